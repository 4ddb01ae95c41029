"""What an Azure deployment needs beside a key: an endpoint, a version, an identity."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import warnings
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final, Literal, Self

from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.llms import BaseLLM
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.utils import get_pydantic_field_names
from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from langchain_retryrouter._openai.clients.sharing import (
    AsyncKey,
    AsyncSDKResource,
    MissingResource,
    Resource,
    SDKResource,
)
from langchain_retryrouter._openai.protocol import (
    ClientSettings,
    check_timeout,
    sdk_timeout,
    without_password,
    without_secrets,
)
from langchain_retryrouter._retry.clock import Clock
from langchain_retryrouter.circuit_breaker import CircuitBreaker
from langchain_retryrouter.policy import RetryBudget, RetryPolicy


def closing(chunks: Any) -> contextlib.AbstractContextManager[Any]:
    """Closes a generator behind the `with`; any other iterable it leaves alone."""
    has_end = hasattr(chunks, "close")
    return contextlib.closing(chunks) if has_end else contextlib.nullcontext(chunks)


def aclosing(chunks: Any) -> contextlib.AbstractAsyncContextManager[Any]:
    """Async twin of `closing`."""
    has_end = hasattr(chunks, "aclose")
    return contextlib.aclosing(chunks) if has_end else contextlib.nullcontext(chunks)


logger = logging.getLogger(__name__)

# `str` is what type checkers shall accept; `_hide` makes a `SecretStr` of it.
Secret = str | SecretStr
ApiKey = Secret | Callable[[], str] | Callable[[], Awaitable[str]]


def first_env(*names: str) -> Callable[[], str | None]:
    """A default: the first of these environment variables that says anything."""
    return lambda: next(filter(None, map(os.environ.get, names)), None)


def secret_env(*names: str) -> Callable[[], SecretStr | None]:
    """`first_env` for what must not be shown."""

    def read() -> SecretStr | None:
        found = first_env(*names)()
        return None if found is None else SecretStr(found)

    return read


class OpenAIConnection(BaseLLM):
    """The fields that all models of the OpenAI family have."""

    client: Any = Field(default=None, exclude=True)
    """What has the SDK's `create`. Made from the fields below if it is not given."""
    async_client: Any = Field(default=None, exclude=True)
    """Async twin of `client`."""
    model_name: str = Field(default="gpt-3.5-turbo-instruct", alias="model")
    """Name of the model."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the API that have no field here; unknown fields end up in it."""
    openai_api_key: ApiKey | None = Field(
        default_factory=secret_env("OPENAI_API_KEY"), alias="api_key"
    )
    """The key, or a function that returns it, asked before each request. From
    `OPENAI_API_KEY` if it is not given."""
    openai_api_base: str | None = Field(
        default_factory=first_env("OPENAI_API_BASE", "OPENAI_BASE_URL"),
        alias="base_url",
    )
    """The address of the API; OpenAI's own if neither it nor `OPENAI_API_BASE` or
    `OPENAI_BASE_URL` says otherwise."""
    openai_organization: str | None = Field(
        default_factory=first_env("OPENAI_ORG_ID", "OPENAI_ORGANIZATION"),
        alias="organization",
    )
    """OpenAI's id of the organization to charge."""
    openai_proxy: str | None = Field(
        default_factory=first_env("OPENAI_PROXY"), repr=False, exclude=True
    )
    """The address of a proxy that all requests take."""
    request_timeout: Any = Field(default=None, alias="timeout")
    """Seconds to connect and to wait for bytes, one number or a pair. None is the SDK's
    own limit, 5 and 600. The `Timeout` of the SDK's HTTP library is taken as well."""
    default_headers: Mapping[str, str] | None = Field(
        default=None, repr=False, exclude=True
    )
    """Headers of every request."""
    default_query: Mapping[str, object] | None = None
    """Query parameters of every request."""
    http_client: Any = None
    """A `Client` of the SDK's HTTP library, for sync calls. It stays yours to close."""
    http_async_client: Any = None
    """Its `AsyncClient`, for async calls."""
    extra_body: Mapping[str, Any] | None = None
    """More properties of the request's JSON, for servers such as vLLM."""
    streaming: bool = False
    """Whether `invoke` and `generate` stream inside, so that callbacks see tokens."""
    stream_usage: bool = False
    """Whether a stream asks for its token usage (`stream_options`)."""
    batch_size: int = 20
    """Prompts that go out together: in one request where the API takes several, else
    in requests at the same time."""
    allowed_special: Literal["all"] | AbstractSet[str] = frozenset()
    """Special tokens that tiktoken accepts."""
    disallowed_special: Literal["all"] | Collection[str] = "all"
    """Special tokens that tiktoken refuses."""
    tiktoken_model_name: str | None = None
    """The model whose tokens tiktoken counts, if it does not know `model_name`."""

    max_retries: int = 2
    """Further attempts after the first. When given, it wins over the policy's."""
    retry_policy: RetryPolicy | None = Field(default=None, exclude=True)
    """How often and how patiently to try again."""
    budget: RetryBudget | None = Field(default=None, exclude=True)
    """Where retries are bought; hand one to all models that share it."""
    breaker: CircuitBreaker | None = Field(default=None, exclude=True)
    """What refuses to send while the provider is down; to be shared as well."""
    rate_limiter: BaseRateLimiter | None = Field(default=None, exclude=True)
    """Gives each attempt its turn, retries too; LangChain has it for chat models only.
    To be shared by models of one account."""
    clock: Clock | None = Field(default=None, exclude=True, repr=False)
    """What waits and tells the time, such as `testing.FakeClock`; None: the machine."""

    # A validation error quotes its input, and the key is in there.
    model_config = ConfigDict(
        populate_by_name=True, hide_input_in_errors=True, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def build_extra(cls, values: dict[str, Any]) -> Any:
        """Move what is no field to `model_kwargs`, and fields out of it."""
        fields = get_pydantic_field_names(cls)
        known = {name: value for name, value in values.items() if name in fields}
        extra = dict(values.get("model_kwargs") or {})
        for name in sorted(values.keys() & extra.keys()):
            msg = f"{name!r} is given twice, as a field and in model_kwargs"
            raise ValueError(msg)
        for name in values.keys() - fields:
            # Begins with the words of langchain-community, by which users filter it.
            _warn(
                f"{name} is not default parameter of {cls.__name__}: it was moved to"
                " model_kwargs, and is sent as it is. Is that what you intended?"
            )
            extra[name] = values[name]
        for name in extra.keys() & fields:
            _warn(f"{name!r} is a field of {cls.__name__}: moved out of model_kwargs")
            known[name] = extra.pop(name)
        return {**known, "model_kwargs": extra}

    @field_validator("max_retries", mode="before")
    @classmethod
    def _check_retries(cls, value: Any) -> Any:
        return RetryPolicy(max_retries=value).max_retries

    @field_validator("request_timeout")
    @classmethod
    def _check_timeout(cls, value: Any) -> Any:
        return check_timeout(value)

    @field_validator(
        "openai_api_key", "azure_ad_token", mode="before", check_fields=False
    )
    @classmethod
    def _hide(cls, value: Any) -> Any:
        return SecretStr(value) if isinstance(value, str) else value

    @field_validator("openai_api_key", "azure_ad_token", check_fields=False)
    @classmethod
    def _check_secret(cls, value: Any) -> Any:
        key = value.get_secret_value() if isinstance(value, SecretStr) else ""
        wrong = next((at for at, c in enumerate(key) if not "!" <= c <= "~"), None)
        if wrong is not None:
            msg = (
                f"the key has a {_name_of(key[wrong])} as character {wrong + 1} of"
                f" {len(key)}, which no header can carry: was it copied whole?"
            )
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def validate_environment(self) -> Self:
        """Check what the fields say together, and make the clients."""
        self._settle()
        self._check_numbers()
        self._check_http_clients()
        if self.retry_policy is not None and "max_retries" not in self.model_fields_set:
            self.max_retries = self.retry_policy.max_retries
        # One of ours comes from a model that is copied, maybe with other fields.
        is_given = [
            client is not None and not isinstance(client, Resource)
            for client in (self.client, self.async_client)
        ]
        if not any(is_given):
            self._check_account()
        if not is_given[0]:
            self.client = self._make_client()
        if not is_given[1]:
            self.async_client = self._make_async_client()
        return self

    def _settle(self) -> None:
        """Choose, where fields and environment variables leave a choice."""

    def _check_numbers(self) -> None:
        if self.batch_size < 1:
            msg = f"batch_size must be 1 or more, not {self.batch_size}"
            raise ValueError(msg)

    def _check_http_clients(self) -> None:
        if self.http_client is not None and hasattr(self.http_client, "aclose"):
            msg = "http_client is for sync calls: use http_async_client for async ones"
            raise ValueError(msg)
        client = self.http_async_client
        if client is not None and not hasattr(client, "aclose"):
            msg = "http_async_client must be an AsyncClient of the SDK's HTTP library"
            raise ValueError(msg)
        if self.openai_proxy and (self.http_client or self.http_async_client):
            msg = "openai_proxy would not be used by http_client: set its proxy instead"
            raise ValueError(msg)

    def _check_account(self) -> None:
        """Whether the fields say whom to ask, and as whom."""
        if not secret_of(self.openai_api_key):
            msg = "no API key: pass api_key=..., or set the variable OPENAI_API_KEY"
            raise ValueError(msg)

    # The clients.

    @property
    def _resource_path(self) -> str:
        return "completions"

    @property
    def _sdk_class(self) -> str:
        return "OpenAI"

    def _make_client(self) -> Any:
        if inspect.iscoroutinefunction(self.openai_api_key):
            return MissingResource(
                "the key is an async function: use the async methods"
            )
        options = self._options(is_async=False)
        settings = ClientSettings(
            self._sdk_class, options, self.openai_proxy, self.http_client
        )
        return SDKResource(settings, self._resource_path)

    def _make_async_client(self) -> Any:
        options = self._options(is_async=True)
        settings = ClientSettings(
            self._sdk_class, options, self.openai_proxy, self.http_async_client
        )
        return AsyncSDKResource(settings, self._resource_path)

    def _options(self, *, is_async: bool) -> dict[str, Any]:
        """The keyword arguments of the SDK's client; None leaves it its own default."""
        options = {
            **self._credentials(is_async=is_async),
            "base_url": self.openai_api_base,
            "organization": self.openai_organization,
            "project": os.environ.get("OPENAI_PROJECT_ID"),
            "timeout": sdk_timeout(self.request_timeout),
            "default_headers": self.default_headers,
            "default_query": self.default_query,
        }
        return {name: value for name, value in options.items() if value is not None}

    def _credentials(self, *, is_async: bool) -> dict[str, Any]:
        key = secret_of(self.openai_api_key)
        return {"api_key": AsyncKey(key) if is_async and callable(key) else key}

    def close(self) -> None:
        """Close the connections of sync calls, unless other models use them too.

        A model that is called again opens new ones, and one that is never closed loses
        them when it is collected. A client of your own stays yours to close.
        """
        if isinstance(self.client, SDKResource):
            self.client.close()

    async def aclose(self) -> None:
        """Async twin of `close`: the connections of the running event loop."""
        if isinstance(self.async_client, AsyncSDKResource):
            await self.async_client.aclose()

    def __enter__(self) -> Self:
        """The model, whose sync connections are closed behind the `with`."""
        return self

    async def __aenter__(self) -> Self:
        """Async twin of `__enter__`, for an `async with`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close them."""
        self.close()

    async def __aexit__(self, *_: object) -> None:
        """Async twin of `__exit__`."""
        await self.aclose()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy; what was handed in to be used, such as an HTTP client, is shared."""
        clients = (self.client, self.async_client)
        http_clients = (self.http_client, self.http_async_client)
        kept = (*clients, *http_clients, self.rate_limiter, self.clock)
        shared = {id(thing): thing for thing in kept}
        return super().__deepcopy__({**shared, **(memo or {})})

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """What LangChain saves of the fields that may hold a secret: all but that."""
        saved = {
            "openai_proxy": without_password(self.openai_proxy or ""),
            "default_headers": without_secrets(self.default_headers or {}),
        }
        return {name: value for name, value in saved.items() if value}

    # What the endpoints say for themselves.

    @property
    @abstractmethod
    def _default_params(self) -> dict[str, Any]:
        """The parameters of every request."""

    @property
    def _invocation_params(self) -> dict[str, Any]:
        """The parameters of every request, the model's name among them."""
        return {"model": self.model_name, **self._default_params}

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {"model_name": self.model_name, **self._default_params}

    def _get_ls_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "openai"
        return params

    @property
    def _at_once(self) -> int:
        """How many requests of one async call may be under way together."""
        return 1

    @abstractmethod
    def _requests(
        self, prompts: list[str], stop: list[str] | None, options: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """The keyword arguments of `create` for each request that `prompts` take."""

    # Tokens.

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
        allowed, disallowed = self.allowed_special, self.disallowed_special
        return encoding.encode(
            text,
            allowed_special="all" if allowed == "all" else set(allowed),
            disallowed_special=disallowed,
        )


def secret_of(value: Any) -> Any:
    """What a `SecretStr` hides; a function or None as it is."""
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def add_stop(params: dict[str, Any], stop: list[str] | None) -> None:
    """Put a call's `stop` to the parameters.

    Raises:
        ValueError: If the model has one of its own: which of both was meant?
    """
    if stop is None:
        return
    if params.get("stop") is not None:
        msg = "`stop` is given both to the call and to the model; give it once"
        raise ValueError(msg)
    params["stop"] = stop


def _name_of(character: str) -> str:
    return {"\n": "line end", "\r": "line end", " ": "space"}.get(
        character, "character outside ASCII or a control character"
    )


def _warn(message: str) -> None:
    # The caller's line: above it are this function, the validator, and two `__init__`.
    warnings.warn(message, stacklevel=5)


_USER_AGENT: Final = {"User-Agent": "langchain-retryrouter-python-azure-openai"}


class AzureConnection(OpenAIConnection):
    """The fields that Azure's form of the API needs."""

    azure_endpoint: str | None = Field(
        default_factory=first_env("AZURE_OPENAI_ENDPOINT")
    )
    """The resource, such as `https://example-resource.azure.openai.com/`. From
    `AZURE_OPENAI_ENDPOINT` if it is not given."""
    deployment_name: str | None = Field(default=None, alias="azure_deployment")
    """The deployment that answers; `model_name` if it is not given."""
    openai_api_version: str | None = Field(
        default_factory=first_env("OPENAI_API_VERSION"), alias="api_version"
    )
    """The version of the API. From `OPENAI_API_VERSION` if it is not given."""
    openai_api_key: Secret | None = Field(
        default_factory=secret_env("AZURE_OPENAI_API_KEY", "OPENAI_API_KEY"),
        alias="api_key",
    )
    """From `AZURE_OPENAI_API_KEY`, then `OPENAI_API_KEY`, if it is not given."""
    openai_api_base: str | None = Field(
        default_factory=first_env("OPENAI_API_BASE"), alias="base_url"
    )
    """The address up to `/openai` or the deployment; better give `azure_endpoint`."""
    azure_ad_token: Secret | None = Field(
        default_factory=secret_env("AZURE_OPENAI_AD_TOKEN")
    )
    """A Microsoft Entra token. From `AZURE_OPENAI_AD_TOKEN` if it is not given."""
    azure_ad_token_provider: Callable[[], str] | None = None
    """Returns an Entra token; called before each request, async ones too if there is no
    `azure_ad_async_token_provider`."""
    azure_ad_async_token_provider: Callable[[], Awaitable[str]] | None = None
    """Returns an Entra token; awaited before each async request."""
    openai_api_type: str | None = Field(
        default_factory=lambda: first_env("OPENAI_API_TYPE")() or "azure"
    )
    """Kept for old code; it has no effect."""
    validate_base_url: bool = True
    """Whether an `openai_api_base` that is no Azure address yet is made one."""

    def _check_account(self) -> None:
        if not (self.azure_endpoint or self.openai_api_base):
            msg = (
                "no address: pass azure_endpoint=..., or set the variable"
                " AZURE_OPENAI_ENDPOINT"
            )
            raise ValueError(msg)
        if not self.openai_api_version:
            msg = (
                "no API version: pass api_version=..., or set the variable"
                " OPENAI_API_VERSION"
            )
            raise ValueError(msg)
        if not any(self._credentials(is_async=twin) for twin in (False, True)):
            msg = (
                "no credentials: pass api_key=..., azure_ad_token=... or"
                " azure_ad_token_provider=..., or set the variable AZURE_OPENAI_API_KEY"
                " or AZURE_OPENAI_AD_TOKEN"
            )
            raise ValueError(msg)

    def _settle(self) -> None:
        """Choose one address and one identity, as the SDK asks for.

        What is given goes before what a variable says; both are never given.
        """
        self._choose("openai_api_base", "azure_endpoint")
        self._choose("azure_ad_token_provider", "azure_ad_token")
        if self._is_given("openai_api_key") and not self._is_given("azure_ad_token"):
            self.azure_ad_token = None
        if self.openai_api_base and self.validate_base_url:
            self.openai_api_base = self._azure_address(self.openai_api_base)

    def _choose(self, name: str, other: str) -> None:
        if getattr(self, name) is None or getattr(self, other) is None:
            return
        if self._is_given(name) and self._is_given(other):
            msg = f"{name} and {other} are both given: choose one"
            raise ValueError(msg)
        setattr(self, other if self._is_given(name) else name, None)

    def _is_given(self, name: str) -> bool:
        return name in self.model_fields_set and getattr(self, name) is not None

    def _azure_address(self, base: str) -> str:
        address = base
        if "/openai" not in address:
            address = address.rstrip("/") + "/openai"
        if self.deployment_name and self.deployment_name not in address:
            address = f"{address.rstrip('/')}/deployments/{self.deployment_name}"
        if address != base:
            warnings.warn(
                f"openai_api_base {base!r} is taken as {address!r}; say"
                " azure_endpoint=... and azure_deployment=... instead",
                stacklevel=6,
            )
        return address

    @property
    def _sdk_class(self) -> str:
        return "AzureOpenAI"

    def _make_client(self) -> Any:
        if not self._credentials(is_async=False):
            return MissingResource(
                "no credentials for sync calls: pass azure_ad_token_provider=..."
                " beside those for async ones"
            )
        return super()._make_client()

    def _options(self, *, is_async: bool) -> dict[str, Any]:
        options = {
            **super()._options(is_async=is_async),
            "api_version": self.openai_api_version,
            "default_headers": {**_USER_AGENT, **(self.default_headers or {})},
        }
        if self.azure_endpoint:
            options["azure_endpoint"] = self.azure_endpoint
            if self.deployment_name:
                options["azure_deployment"] = self.deployment_name
        return options

    def _credentials(self, *, is_async: bool) -> dict[str, Any]:
        provider: Any = self.azure_ad_token_provider
        if is_async and self.azure_ad_async_token_provider is not None:
            provider = self.azure_ad_async_token_provider
        if provider is not None:
            return {"azure_ad_token_provider": provider}
        if self.azure_ad_token is not None:
            return {"azure_ad_token": secret_of(self.azure_ad_token)}
        if self.openai_api_key is not None:
            return super()._credentials(is_async=is_async)
        return {}
