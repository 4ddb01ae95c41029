"""What every class over a gateway shares: its address, key, retries and metadata.

`GatewayConnection` has the fields, their checks, and the client made of them. The
classes in `chat_models` and `embeddings` add what is asked and what becomes of it.
"""

from __future__ import annotations

import difflib
import os
import re
import threading
from typing import Any, Final, Self

from langchain_core.load.serializable import Serializable
from langchain_core.utils import get_from_dict_or_env
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from langchain_retryrouter import _gptrouter
from langchain_retryrouter._base import RetriedModel
from langchain_retryrouter._gptrouter.http import (
    aclose_connections,
    close_connections,
    find_origin,
)
from langchain_retryrouter._secrets import refuse_bool, shown
from langchain_retryrouter._shared import name_hash

GATEWAY_METADATA: Final = ("tag", "user_id", "history_id", "app_id", "gateway_metadata")
"""Fields, and options of a call, that the gateway does not pass on to a provider."""

DEFAULT_API_BASE_URL = "https://gpt-router-preview.writesonic.com"


class GPTRouterModel(BaseModel, frozen=True, hide_input_in_errors=True, extra="forbid"):
    """One model of a priority list.

    Attributes:
        name: The model's name at its provider, such as `gpt-4o`.
        provider_name: The provider's name at the gateway, such as `chat_openai`.
        is_chat: Whether the gateway gives the model messages and tools; False if one
            plain prompt. None for what is known of the provider: `anthropic` and
            `openai` have completion models.
    """

    name: str = Field(min_length=1)
    provider_name: str = Field(min_length=1)
    is_chat: bool | None = Field(
        default=None, repr=False, exclude_if=lambda value: value is None
    )


_OTHER_NAMES: Final = {
    "api_key": "gpt_router_api_key",
    "base_url": "gpt_router_api_base",
    "stop_sequences": "stop",
}
"""What the arguments are called in other LangChain integrations."""


class GatewayConnection(RetriedModel, Serializable):
    """The fields of a class that sends requests to a gateway."""

    # A validation error quotes its input, which may hold the key.
    model_config = ConfigDict(
        populate_by_name=True, arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    client: Any = Field(default=None, exclude=True)
    """The gateway's client, a `gpt_router.client.GPTRouterClient`."""
    models_priority_list: list[GPTRouterModel] = Field(min_length=1)
    """The models to ask, the preferred one first."""
    gpt_router_api_base: str = Field(default="")
    """The gateway's address, with or without `/api`; else `GPT_ROUTER_API_BASE`."""
    gpt_router_api_key: SecretStr | None = Field(default=None, validate_default=True)
    """The gateway's key; else `GPT_ROUTER_API_KEY`."""
    max_retries: int = 4
    """Further attempts after the first, 0 for none; short for a `retry_policy` with
    this number. A `retry_policy` with another number is an error."""
    failover: bool = True
    """Whether a retry asks the list's next model first; False keeps the order."""
    request_timeout: float | tuple[float, float] | None = Field(
        default=60.0, alias="timeout"
    )
    """Seconds to connect and to wait for bytes, one or a pair; None for no limit."""
    # It may hold a password, so it stays out of what is shown, written and traced.
    proxy: str | None = Field(
        default=None, exclude=True, repr=False, validate_default=True
    )
    """URL of a proxy; None for the one that the environment names."""
    tag: str | None = None
    """Gateway metadata: a label of the calls, for the gateway's own records."""
    user_id: str | None = None
    """Gateway metadata: the user on whose behalf a call is made."""
    history_id: str | None = None
    """Gateway metadata: the conversation that a call belongs to."""
    app_id: str | None = None
    """Gateway metadata: the application that makes the call."""
    gateway_metadata: dict[str, Any] = Field(default_factory=dict)
    """More gateway metadata; a call's own replaces all of it. LangChain's own
    `metadata` is for tracers, and is not sent."""

    @classmethod
    def _provider_options(cls) -> frozenset[str]:
        """Constructor arguments that are sent to the provider."""
        return frozenset()

    @model_validator(mode="before")
    @classmethod
    def _read_arguments(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Arguments under the names of the fields; provider options in `model_kwargs`.

        Errors are not ValueErrors, which pydantic would not raise as they are.
        """
        provider_options = cls._provider_options()
        fields = cls.model_fields
        aliases = {f.alias: name for name, f in fields.items() if f.alias}
        values: dict[str, Any] = {}
        seen: set[str] = set()
        options = given.get("model_kwargs") or {}
        if not isinstance(options, dict):
            msg = f"model_kwargs must be a dict, not {shown(options)}"
            raise TypeError(msg)
        options = dict(options)
        for name, value in given.items():
            field = aliases.get(name, _OTHER_NAMES.get(name, name))
            if field not in fields and field not in provider_options:
                known = [*cls.model_fields, "timeout", *_OTHER_NAMES, *provider_options]
                near = difflib.get_close_matches(name, known, n=1)
                msg = f"{cls.__name__} has no argument {name!r}"
                msg += f"; did you mean {near[0]!r}?" if near else "."
                if provider_options:
                    msg += " To send it to the provider as it is, put it into"
                    msg += " `model_kwargs`."
                raise TypeError(msg)
            taken = seen if field in fields else options
            if field in taken:
                msg = f"{field!r} is given twice, once under another name or in"
                msg += " `model_kwargs`"
                raise TypeError(msg)
            if field in fields:
                seen.add(field)
                values[name if name in aliases else field] = value
            else:
                options[field] = value
        values |= {"model_kwargs": options} if options else {}
        values["gpt_router_api_base"] = get_from_dict_or_env(
            values, "gpt_router_api_base", "GPT_ROUTER_API_BASE", DEFAULT_API_BASE_URL
        )
        # Not by `get_from_dict_or_env`, which makes stars of a `SecretStr`. The field
        # says that there is none, so that the error names it.
        key = values.get("gpt_router_api_key") or os.environ.get("GPT_ROUTER_API_KEY")
        values["gpt_router_api_key"] = SecretStr(key) if isinstance(key, str) else key
        return values

    @field_validator("client")
    @classmethod
    def _check_client(cls, value: Any) -> Any:
        if value is not None and not hasattr(value, "generate"):
            msg = f"client must be like the SDK's GPTRouterClient, not {shown(value)}"
            raise ValueError(msg)
        return value

    @field_validator("gpt_router_api_base")
    @classmethod
    def _check_address(cls, value: str) -> str:
        find_origin(value, None)
        return value

    @field_validator("gpt_router_api_key")
    @classmethod
    def _check_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            msg = (
                "there is no gpt_router_api_key: give it, or set the environment"
                " variable GPT_ROUTER_API_KEY"
            )
            raise ValueError(msg)
        plain = value.get_secret_value()
        if not (plain.isascii() and plain.isprintable()):
            msg = (
                "the key holds a line end or another character that no HTTP header can"
                " carry; if it was read from a file, strip it"
            )
            raise ValueError(msg)
        return value

    @field_validator("proxy")
    @classmethod
    def _check_proxy(cls, value: str | None, info: ValidationInfo) -> str | None:
        base = info.data.get("gpt_router_api_base")
        if base is not None:
            find_origin(base, value)
        return value

    _refuse_bool = field_validator("request_timeout", mode="wrap")(refuse_bool)

    @field_validator("request_timeout")
    @classmethod
    def _check_timeout(cls, value: Any) -> Any:
        for seconds in value if isinstance(value, tuple) else (value,):
            if seconds is not None and not 0 < seconds <= threading.TIMEOUT_MAX:
                msg = (
                    "request_timeout must be seconds above 0 that a socket can wait, a"
                    " pair (connect, read) of them, or None for no limit, not"
                    f" {value!r}"
                )
                raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        new_client = _gptrouter.client.GatewayClient
        if self.client is None or type(self.client) is new_client:
            # Made anew also where LangChain copies our fields with one of them changed
            # (`configurable_fields`): the old client would go on with the old key.
            self.client = new_client(
                self.gpt_router_api_base,
                self.gpt_router_api_key or "",
                self.request_timeout,
                getattr(self.client, "stream_read_timeout", None),
                getattr(self.client, "additional_metadata", None),
                proxy=self.proxy,
            )
        self._join_store(f"gptrouter {name_hash(self.gpt_router_api_base)}")
        return self

    # --- connections ----------------------------------------------------------------

    def close(self) -> None:
        """Close the idle connections of sync calls to the gateway.

        Models of one gateway share them. Calls under way finish, and a model that is
        called again opens new ones. A client of your own is yours to close.
        """
        if isinstance(self.client, _gptrouter.client.GatewayClient):
            close_connections(self.client.origin)
        super().close()

    async def aclose(self) -> None:
        """Close the connections of async calls in the running event loop, once idle.

        They are closed with their event loop anyway, if `asyncio.run` or another runner
        shuts it down.
        """
        if isinstance(self.client, _gptrouter.client.GatewayClient):
            await aclose_connections()
        await super().aclose()

    # --- serialization --------------------------------------------------------------

    @property
    def lc_secrets(self) -> dict[str, str]:
        """Where the key is found when the model is loaded again."""
        return {"gpt_router_api_key": "GPT_ROUTER_API_KEY"}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """What LangChain's `dumps` writes besides the fields; see `RetriedModel`."""
        written = super().lc_attributes
        written["models_priority_list"] = [
            model.model_dump() for model in self.models_priority_list
        ]
        if self.proxy is not None:
            written["proxy"] = re.sub(r"(?<=//)[^/@]*@", "", self.proxy)
        return written

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Whether `langchain_core.load` may write it."""
        return True
