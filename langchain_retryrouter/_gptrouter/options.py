"""What a provider is asked beside the messages: names, values, and how they are sent.

Pure. Sources: what the public gateway was seen to hand on to its providers, and the
payloads of the `gptrouter` package for what newer gateways take.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Final

from gpt_router.models import (
    ExtendedThinking,
    GenerationParams,
    ModelGenerationRequest,
    WebSearchOptions,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from langchain_retryrouter.errors import UnsupportedOptionError

PROVIDER_OPTIONS: Final = frozenset(
    {
        # What the public gateway hands on to the provider.
        "messages",
        "prompt",
        "temperature",
        "top_p",
        "n",
        "stop",
        "max_tokens",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "user",
        "functions",
        "function_call",
        "response_format",
        "tools",
        # What newer gateways take besides, as the `gptrouter` package sends it.
        *GenerationParams.model_fields,
    }
)
"""Names in `promptParams` that some gateway is known to read."""


class GatewayThinking(ExtendedThinking):
    """The SDK's `ExtendedThinking` with what it would drop without a word."""

    model_config = ConfigDict(extra="allow")


class GatewaySearch(WebSearchOptions):
    """The SDK's `WebSearchOptions` with what it would drop without a word."""

    model_config = ConfigDict(extra="allow")


class GatewayParams(GenerationParams):
    """The SDK's `GenerationParams` with what it would drop without a word."""

    model_config = ConfigDict(extra="allow")

    stop: str | list[str] | None = None
    logit_bias: dict[str | int, float] | None = None
    function_call: Any = None
    thinking: GatewayThinking | None = None
    web_search_options: GatewaySearch | None = None


class GatewayRequest(ModelGenerationRequest):
    """The SDK's request, carrying `GatewayParams` whole."""

    prompt_params: GatewayParams = Field(default_factory=GatewayParams)


def check_options(names: Iterable[str]) -> None:
    """Refuse options that no gateway reads, by their names.

    Raises:
        UnsupportedOptionError: Naming them, and the way to send them all the same.
    """
    unknown = sorted(set(names) - PROVIDER_OPTIONS)
    if unknown:
        msg = (
            f"the gateway cannot carry {', '.join(map(repr, unknown))}: it would be"
            " lost without a word. To send it all the same, put it into `model_kwargs`."
        )
        raise UnsupportedOptionError(msg)


def build_params(options: Mapping[str, Any]) -> GatewayParams:
    """What the provider is asked, checked and in the gateway's form.

    Args:
        options: Values by name, the messages among them.

    Raises:
        UnsupportedOptionError: Naming the option, its value, and what it may be.
    """
    options = {
        name: value if name == "messages" else _plain(value)
        for name, value in _fit_function_call(options).items()
    }
    try:
        return GatewayParams(**options)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        told = [line["msg"] for line in error.errors() if line["loc"][0] == name]
        msg = f"`{name}` cannot be {_shown(options[name])}: {', or '.join(told)}"
        raise UnsupportedOptionError(msg) from error


def _fit_function_call(options: Mapping[str, Any]) -> dict[str, Any]:
    """`function_call` as an object: the public gateway answers 500 to a text.

    "auto" is what a provider does anyway, and "none" is said by offering no functions.
    """
    fitted = dict(options)
    call = fitted.get("function_call")
    if isinstance(call, str):
        del fitted["function_call"]
        if call == "none":
            fitted.pop("functions", None)
        elif call != "auto":
            fitted["function_call"] = {"name": call}
    return fitted


def _plain(value: Any) -> Any:
    """`value` without the SDK's types: members of enums and models as JSON has them."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(exclude_none=True))
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _shown(value: Any) -> str:
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = 200
    return shown.repr(value)
