"""The fields that all models of the OpenAI family share, and the clients they make.

Azure's own fields are those of `AzureOpenAI`.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import re
import warnings
from collections.abc import Awaitable, Callable, Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, ClassVar, Final, Literal, Self

from langchain_core.language_models.llms import BaseLLM
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.utils import get_pydantic_field_names
from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from langchain_retryrouter._base import RetriedModel
from langchain_retryrouter._openai import client as sdk
from langchain_retryrouter._secrets import shown
from langchain_retryrouter._shared import is_positive, name_hash

logger = logging.getLogger(__name__)

# Type checkers shall accept `str`; `_hide` turns it into a `SecretStr`.
Secret = str | SecretStr
ApiKey = Secret | Callable[[], str] | Callable[[], Awaitable[str]]


# How many tokens, prompt and answer together, fit into a model's context. Sources:
# OpenAI's model pages ("context window"), and for gpt-5.6 and later the model profiles
# of langchain-openai 1.7, read in November 2026.
CONTEXT_SIZES: Final = {
    name: size
    for size, names in (
        (4_096, "gpt-3.5-turbo-instruct gpt-3.5-turbo-0301 gpt-3.5-turbo-0613"),
        (16_384, "davinci-002 babbage-002"),
        (16_385, "gpt-3.5-turbo gpt-3.5-turbo-0125 gpt-3.5-turbo-1106"),
        (16_385, "gpt-3.5-turbo-16k gpt-3.5-turbo-16k-0613"),
        (8_192, "gpt-4 gpt-4-0314 gpt-4-0613"),
        (32_768, "gpt-4-32k gpt-4-32k-0314 gpt-4-32k-0613"),
        (128_000, "gpt-4-1106-preview gpt-4-0125-preview gpt-4-turbo"),
        (128_000, "gpt-4-turbo-preview gpt-4o gpt-4o-mini gpt-4-vision-preview"),
        (128_000, "gpt-4o-audio-preview gpt-4o-mini-audio-preview"),
        (128_000, "gpt-4o-search-preview gpt-4o-mini-search-preview chatgpt-4o-latest"),
        (128_000, "o1-mini o1-preview gpt-5-chat-latest gpt-5.1-chat-latest"),
        (128_000, "gpt-5.2-chat-latest"),
        (1_047_576, "gpt-4.1 gpt-4.1-mini gpt-4.1-nano"),
        (200_000, "o1 o1-pro o3 o3-mini o3-pro o4-mini codex-mini-latest"),
        (400_000, "gpt-5 gpt-5-mini gpt-5-nano gpt-5-codex gpt-5-pro gpt-5.1"),
        (400_000, "gpt-5.1-codex gpt-5.1-codex-max gpt-5.1-codex-mini gpt-5.2"),
        (400_000, "gpt-5.2-pro gpt-5.3-codex gpt-5.4-mini gpt-5.4-nano"),
        (1_050_000, "gpt-5.4 gpt-5.4-pro gpt-5.5 gpt-5.5-pro gpt-5.6 gpt-5.6-sol"),
        (1_050_000, "gpt-5.6-terra gpt-5.6-luna gpt-6-astra gpt-6-sol gpt-6-luna"),
        (1_050_000, "gpt-6.1-sol gpt-6.1-terra"),
        # Gone from OpenAI, and still what other servers call their models.
        (4_097, "text-davinci-003 text-davinci-002"),
        (2_049, "text-curie-001 text-babbage-001 text-ada-001 davinci curie babbage"),
        (2_049, "ada"),
        (8_001, "code-davinci-002 code-davinci-001"),
        (2_048, "code-cushman-002 code-cushman-001"),
    )
    for name in names.split()
}
_OPENAI_API: Final = "https://api.openai.com/v1"
_CLIENTS: Final = ("client", "async_client")
_HTTP_CLIENTS: Final = ("http_client", "http_async_client")
_ADDRESSES: Final = ("openai_api_base", "azure_endpoint", "deployment_name")


def first_env(*names: str, kind: Callable[[str], Any] = str) -> Callable[[], Any]:
    """A default factory: the first of these environment variables that is not empty."""
    return lambda: next((kind(v) for v in map(os.environ.get, names) if v), None)


def unhide(value: Any) -> Any:
    """The value of a `SecretStr`; a function or None as it is."""
    return value.get_secret_value() if isinstance(value, SecretStr) else value


class OpenAIConnection(RetriedModel, BaseLLM):
    """Account, address, time limits and retries of a model."""

    client: Any = Field(default=None, exclude=True)
    """An object with the SDK's `create`. Made from the fields below if not given."""
    async_client: Any = Field(default=None, exclude=True)
    """The same for async calls."""
    model_name: str = Field(default="gpt-3.5-turbo-instruct", alias="model")
    """Name of the model."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the API that have no field here; unknown fields end up in it."""
    openai_api_key: ApiKey | None = Field(
        default_factory=first_env("OPENAI_API_KEY", kind=SecretStr), alias="api_key"
    )
    """The key, or a function that returns it and is called before each request. From
    `OPENAI_API_KEY` if it is not given."""
    openai_api_base: str | None = Field(
        default_factory=first_env("OPENAI_API_BASE", "OPENAI_BASE_URL"),
        alias="base_url",
    )
    """The address of the API. From `OPENAI_API_BASE` or `OPENAI_BASE_URL` if it is not
    given, else OpenAI's own."""
    openai_organization: str | None = Field(
        default_factory=first_env("OPENAI_ORG_ID", "OPENAI_ORGANIZATION"),
        alias="organization",
    )
    """OpenAI's id of the organization to charge."""
    openai_proxy: str | None = Field(
        default_factory=first_env("OPENAI_PROXY"), repr=False, exclude=True
    )
    """The address of a proxy for all requests."""
    request_timeout: Any = Field(default=None, alias="timeout")
    """Seconds to connect and to wait for bytes, one number or a pair, or a `Timeout` of
    the SDK's HTTP library. None is the SDK's own limit, 5 and 600."""
    default_headers: Mapping[str, str] | None = Field(
        default=None, repr=False, exclude=True
    )
    """Headers of every request."""
    default_query: Mapping[str, object] | None = None
    """Query parameters of every request."""
    http_client: Any = None
    """A `Client` of the SDK's HTTP library, for sync calls. You have to close it."""
    http_async_client: Any = None
    """An `AsyncClient` of the SDK's HTTP library, for async calls."""
    extra_body: Mapping[str, Any] | None = None
    """More properties of the request's JSON, for servers such as vLLM."""
    streaming: bool = False
    """Whether `invoke` and `generate` stream inside, so that callbacks see tokens."""
    stream_usage: bool = False
    """Whether a stream asks for its token usage (`stream_options`)."""
    batch_size: int = 20
    """Prompts that are sent together: in one request where the API takes several, else
    in requests at the same time."""
    allowed_special: Literal["all"] | AbstractSet[str] = frozenset()
    """Special tokens that tiktoken accepts."""
    disallowed_special: Literal["all"] | Collection[str] = "all"
    """Special tokens that tiktoken refuses."""
    tiktoken_model_name: str | None = None
    """The model whose tokens tiktoken counts, if it does not know `model_name`."""

    rate_limiter: BaseRateLimiter | None = Field(default=None, exclude=True)
    """Admits each attempt, retries included. Share one between models of an account."""
    trace_attempts: bool | None = Field(default=None, exclude=True, repr=False)
    """Whether callback handlers see each attempt as a run below the call's. None: only
    LangSmith's tracer does, where it exports by OpenTelemetry and loses retries."""

    # What differs between OpenAI and Azure, and between the two endpoints.
    ls_provider: ClassVar[str] = "openai"
    """The provider, for tracers and the list of prices."""
    _sdk_class: ClassVar[str] = "OpenAI"
    _resource_path: ClassVar[str] = "completions"

    # A validation error quotes its input, which may hold the key.
    model_config = ConfigDict(
        populate_by_name=True,
        hide_input_in_errors=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def build_extra(cls, values: dict[str, Any]) -> Any:
        """Move unknown fields to `model_kwargs`, and known ones out of it."""
        fields = get_pydantic_field_names(cls)
        known = {name: value for name, value in values.items() if name in fields}
        extra = dict(values.get("model_kwargs") or {})
        for name in sorted(values.keys() & extra.keys()):
            msg = f"{name!r} is given twice, as a field and in model_kwargs"
            raise ValueError(msg)
        # The caller's line: above it are the validator and two `__init__`.
        warn = functools.partial(warnings.warn, stacklevel=4)
        for name in values.keys() - fields:
            # Begins with the words of langchain-community, which users filter by.
            warn(
                f"{name} is not default parameter of {cls.__name__}: it was moved to"
                " model_kwargs, for which the SDK's `create` must know it. What only a"
                f" server knows is given as extra_body={{{name!r}: ...}}."
            )
            extra[name] = values[name]
        for name in extra.keys() & fields:
            warn(f"{name!r} is a field of {cls.__name__}: moved out of model_kwargs")
            known[name] = extra.pop(name)
        return {**known, "model_kwargs": extra}

    @field_validator("request_timeout")
    @classmethod
    def _check_timeout(cls, value: Any) -> Any:
        if value is None or is_positive(value) or hasattr(value, "as_dict"):
            return value
        if isinstance(value, list | tuple) and [*map(is_positive, value)] == [True] * 2:
            return tuple(value)
        msg = (
            "request_timeout must be seconds above 0, or a pair of them for connecting"
            f" and for reading, or None for the SDK's own, not {shown(value)}"
        )
        raise ValueError(msg)

    @field_validator(
        "openai_api_key", "azure_ad_token", mode="before", check_fields=False
    )
    @classmethod
    def _hide(cls, value: Any) -> Any:
        value = SecretStr(value) if isinstance(value, str) else value
        key = value.get_secret_value() if isinstance(value, SecretStr) else ""
        if found := re.search("[^!-~]", key):
            names = {"\n": "line end", "\r": "line end", " ": "space"}
            other = "character outside ASCII or a control character"
            msg = (
                f"the key has a {names.get(found[0], other)} as character {found.end()}"
                f" of {len(key)}, which no header can carry: was it copied whole?"
            )
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def validate_environment(self) -> Self:
        """Check the fields together, and make the clients."""
        self._choose_account()
        self._check_numbers()
        # A resource of ours comes from a copied model, maybe with other fields.
        ours = (sdk.SDKResource, type(None))
        made = {name for name in _CLIENTS if isinstance(getattr(self, name), ours)}
        self._check_http_clients({*_CLIENTS} - made)
        if len(made) == len(_CLIENTS):
            self._check_account()
        for name in made:
            setattr(self, name, self._make_client(is_async=name == "async_client"))
        asked = [getattr(self, name, None) for name in _ADDRESSES]
        self._join_store(f"{self.model_name} {name_hash(*asked)}")
        return self

    def _choose_account(self) -> None:
        """Choose, where fields and environment variables name several accounts."""

    def _check_numbers(self) -> None:
        """Check the numbers, also together."""

    def _check_http_clients(self, own: set[str]) -> None:
        msg, http_async_client = "", self.http_async_client
        for client, http in zip(_CLIENTS, _HTTP_CLIENTS, strict=True):
            if client in own and getattr(self, http) is not None:
                msg = f"{http} would not be used by {client}: give one of both"
        if self.openai_proxy and (self.http_client or http_async_client):
            msg = "openai_proxy would not be used by http_client: set its proxy instead"
        if http_async_client is not None and not hasattr(http_async_client, "aclose"):
            msg = "http_async_client must be an AsyncClient of the SDK's HTTP library"
        if hasattr(self.http_client, "aclose"):
            msg = "http_client is for sync calls: use http_async_client for async ones"
        if msg:
            raise ValueError(msg)

    def _check_account(self) -> None:
        if not unhide(self.openai_api_key):
            msg = "no API key: pass api_key=..., or set the variable OPENAI_API_KEY"
            raise ValueError(msg)

    # The clients.

    def _make_client(self, *, is_async: bool) -> sdk.SDKResource:
        settings = sdk.ClientSettings(
            ("Async" if is_async else "") + self._sdk_class,
            self._client_options(is_async=is_async),
            self.openai_proxy,
            self.http_async_client if is_async else self.http_client,
            "" if is_async else self._missing_for_sync(),
        )
        return sdk.SDKResource(settings, self._resource_path)

    def _missing_for_sync(self) -> str:
        """Why sync calls cannot be made, although async ones may be."""
        if inspect.iscoroutinefunction(self.openai_api_key):
            return "the key is an async function: use the async methods"
        return ""

    def _client_options(self, *, is_async: bool) -> dict[str, Any]:
        """The keyword arguments of the SDK's client, without those left to the SDK."""
        options = {
            **self._credentials(is_async=is_async),
            # The SDK would take an empty variable for an address.
            "base_url": self.openai_api_base or _OPENAI_API,
            "organization": self.openai_organization,
            "project": os.environ.get("OPENAI_PROJECT_ID"),
            "timeout": sdk.sdk_timeout(self.request_timeout),
            "default_headers": self.default_headers,
            "default_query": self.default_query,
        }
        return {name: value for name, value in options.items() if value is not None}

    def _credentials(self, *, is_async: bool) -> dict[str, Any]:
        key = unhide(self.openai_api_key)
        return {"api_key": sdk.AsyncKey(key) if is_async and callable(key) else key}

    def close(self) -> None:
        """Close the connections of sync calls, unless other models use them too.

        A later call opens new ones. A model that is never closed loses its connections
        when it is collected. An HTTP client of your own is not closed.
        """
        if isinstance(self.client, sdk.SDKResource):
            self.client.close()
        super().close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop, as `close`."""
        if isinstance(self.async_client, sdk.SDKResource):
            await self.async_client.aclose()
        await super().aclose()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy that shares clients, rate limiter and clock with the original."""
        kept = (*_CLIENTS, *_HTTP_CLIENTS, "rate_limiter", "clock")
        shared = {id(thing := getattr(self, name)): thing for name in kept}
        return super().__deepcopy__({**shared, **(memo or {})})

    def get_token_ids(self, text: str) -> list[int]:
        """The tokens of `text`, as tiktoken counts them for the model.

        Raises:
            ImportError: If tiktoken is not installed.
        """
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        try:
            import tiktoken  # noqa: PLC0415 - an extra, and slow to import
        except ImportError as error:
            msg = "to count tokens: pip install 'langchain-retryrouter[tiktoken]'"
            raise ImportError(msg) from error
        model = self.tiktoken_model_name or self.model_name
        try:
            encoding = tiktoken.encoding_for_model(model)
        except KeyError:
            logger.warning("tiktoken does not know %r: counting by cl100k_base", model)
            encoding = tiktoken.get_encoding("cl100k_base")
        return encoding.encode(
            text,
            allowed_special=self.allowed_special,
            disallowed_special=self.disallowed_special,
        )
