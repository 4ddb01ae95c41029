"""What every class over a gateway shares: where it is, who asks, and how patiently.

Fields, their checks, and the client made of them. How a call is driven stands in
`_gateway_plan`; what is asked of the gateway, and what becomes of its answer, in
`chat_models` and `embeddings`. The client's module, and with it the `gptrouter` package
and httpx, is loaded with the first model: to import a class does not need it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Final, Self

from langchain_core.load.serializable import Serializable
from langchain_core.utils import get_from_dict_or_env
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from langchain_retryrouter._gptrouter.pools import check_address, origin_of
from langchain_retryrouter._retry.clock import Clock
from langchain_retryrouter.circuit_breaker import CircuitBreaker
from langchain_retryrouter.policy import RetryBudget, RetryPolicy

GATEWAY_METADATA: Final = (
    "tag",
    "user_id",
    "history_id",
    "app_id",
    "gateway_metadata",
)
"""Fields, and options of a call, that the gateway keeps to itself."""

DEFAULT_API_BASE_URL = "https://gpt-router-preview.writesonic.com"


class GPTRouterModel(BaseModel):
    """One model of a priority list.

    Attributes:
        name: The model's name at its provider, such as `gpt-4o`.
        provider_name: The provider's name at the gateway, such as `chat_openai`.
    """

    model_config = ConfigDict(frozen=True)

    name: str = Field(min_length=1)
    provider_name: str = Field(min_length=1)


_MODELS = TypeAdapter(Annotated[list[GPTRouterModel], Field(min_length=1)])


def read_models(models: Any) -> list[GPTRouterModel]:
    """The models that a call names itself, as objects or as dicts.

    Raises:
        ValueError: If there is none, or one is neither.
    """
    try:
        return _MODELS.validate_python(models)
    except ValidationError as error:
        msg = (
            "models_priority_list must be a list of GPTRouterModel(name=...,"
            f" provider_name=...), at least one, not {models!r}"
        )
        raise ValueError(msg) from error


def put_first(name: str, models: list[GPTRouterModel]) -> list[GPTRouterModel]:
    """`models`, the one called `name` before the others.

    Raises:
        ValueError: If none is called so: nobody says which provider has it.
    """
    first = [model for model in models if model.name == name]
    if not first:
        listed = ", ".join(repr(model.name) for model in models)
        msg = (
            f"model={name!r} is not in models_priority_list ({listed}); to ask another"
            " one, give the call a list of its own: models_priority_list="
            f"[GPTRouterModel(name={name!r}, provider_name=...)]"
        )
        raise ValueError(msg)
    return first + [model for model in models if model.name != name]


_OTHER_NAMES: Final = {
    "api_key": "gpt_router_api_key",
    "base_url": "gpt_router_api_base",
    "stop_sequences": "stop",
}
"""What the arguments are called in other LangChain integrations."""


def place_arguments(
    cls: type[GatewayConnection], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments under the names of the fields; the provider's in `model_kwargs`.

    Raises:
        TypeError: For an argument that there is not, or that is given twice. It would
            be lost without a word; a ValueError is shown with all values by pydantic,
            the key among them.
    """
    provider_options = cls._provider_options()
    fields = {*cls.model_fields, *(f.alias for f in cls.model_fields.values())}
    values: dict[str, Any] = {}
    options = dict(given.get("model_kwargs") or {})
    for name, value in given.items():
        field = _OTHER_NAMES.get(name, name)
        if field in fields:
            _put(values, field, value)
        elif field in provider_options:
            _put(options, field, value)
        else:
            raise TypeError(_unexpected(cls, name))
    return {**values, "model_kwargs": options} if options else values


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    if name in values:
        msg = f"{name!r} is given twice, once under another name or in `model_kwargs`"
        raise TypeError(msg)
    values[name] = value


def _unexpected(cls: type[GatewayConnection], name: str) -> str:
    options = cls._provider_options()
    known = [*cls.model_fields, "timeout", *_OTHER_NAMES, *options]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    way = (
        " To send it to the provider as it is, put it into `model_kwargs`."
        if options
        else ""
    )
    return f"{cls.__name__} has no argument {name!r}{hint or '.'}{way}"


class GatewayConnection(Serializable):
    """The fields of whatever asks a gateway."""

    model_config = ConfigDict(populate_by_name=True, arbitrary_types_allowed=True)

    client: Any = Field(default=None, exclude=True)
    """The gateway's client, a `gpt_router.client.GPTRouterClient`."""

    models_priority_list: list[GPTRouterModel] = Field(min_length=1)
    """The models to ask, the preferred one first."""

    gpt_router_api_base: str = Field(default="")
    """The gateway's address, with or without `/api`; else `GPT_ROUTER_API_BASE`."""

    gpt_router_api_key: SecretStr | None = Field(default=None, validate_default=True)
    """The gateway's key; else `GPT_ROUTER_API_KEY`."""

    max_retries: int = 4
    """Retries, not attempts; 0: one request. Wins over `retry_policy`'s if given."""

    failover: bool = True
    """Whether a retry asks the list's next model first; False keeps the order."""

    retry_policy: RetryPolicy | None = None
    """How often and how patiently to retry; None for the default numbers."""

    budget: RetryBudget | None = Field(default=None, exclude=True, repr=False)
    """Where retries are bought; hand the same object to all models that share it."""

    breaker: CircuitBreaker | None = Field(default=None, exclude=True, repr=False)
    """What may refuse to send; hand the same object to all models of one gateway."""

    request_timeout: float | tuple[float, float] | None = Field(
        default=60.0, alias="timeout"
    )
    """Seconds to connect and to wait for bytes, one or a pair; None: no limit."""

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
    """More gateway metadata; LangChain's own `metadata` is the tracers', not sent.

    A call's own takes the place of all of it.
    """

    clock: Clock | None = Field(default=None, exclude=True, repr=False)
    """What tells the time and waits; `testing.FakeClock` in a test."""

    @classmethod
    def _provider_options(cls) -> frozenset[str]:
        """Arguments that are no fields, and are the provider's."""
        return frozenset()

    @model_validator(mode="before")
    @classmethod
    def _read_arguments(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = place_arguments(cls, values)
        values["gpt_router_api_base"] = get_from_dict_or_env(
            values, "gpt_router_api_base", "GPT_ROUTER_API_BASE", DEFAULT_API_BASE_URL
        )
        # Not by `get_from_dict_or_env`, which makes stars of a `SecretStr`. That there
        # is none is told by the field: an error here would show a proxy's password.
        key = values.get("gpt_router_api_key") or os.environ.get("GPT_ROUTER_API_KEY")
        values["gpt_router_api_key"] = SecretStr(key) if isinstance(key, str) else key
        return values

    @field_validator("client")
    @classmethod
    def _check_client(cls, value: Any) -> Any:
        if value is not None and not hasattr(value, "generate"):
            msg = f"client must be like the SDK's GPTRouterClient, not {value!r}"
            raise ValueError(msg)
        return value

    @field_validator("gpt_router_api_base")
    @classmethod
    def _check_address(cls, value: str) -> str:
        check_address(value)
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
        from langchain_retryrouter._gptrouter.client import check_key

        check_key(value)
        return value

    @field_validator("proxy")
    @classmethod
    def _check_proxy(cls, value: str | None, info: ValidationInfo) -> str | None:
        base = info.data.get("gpt_router_api_base")
        if base is not None:
            origin_of(base, value)
        return value

    # Before pydantic makes 1 of True.
    @field_validator("max_retries", mode="before")
    @classmethod
    def _check_max_retries(cls, value: Any) -> int:
        return RetryPolicy(max_retries=value).max_retries

    @field_validator("request_timeout")
    @classmethod
    def _check_timeout(cls, value: Any) -> Any:
        for seconds in value if isinstance(value, tuple) else (value,):
            if seconds is not None and not 0 < seconds < float("inf"):
                msg = (
                    "request_timeout must be seconds above 0, a pair (connect, read) of"
                    f" them, or None for no limit, not {value!r}"
                )
                raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _open_client(self) -> Self:
        from langchain_retryrouter._gptrouter.client import GatewayClient

        if self.retry_policy is not None and "max_retries" not in self.model_fields_set:
            self.max_retries = self.retry_policy.max_retries
        if self.client is None or type(self.client) is GatewayClient:
            # Made anew also where LangChain copies our fields with one of them changed
            # (`configurable_fields`): the old client would go on with the old key.
            key = self.gpt_router_api_key
            self.client = GatewayClient(
                self.gpt_router_api_base,
                key if key is not None else "",
                self.request_timeout,
                getattr(self.client, "stream_read_timeout", None),
                getattr(self.client, "additional_metadata", None),
                proxy=self.proxy,
            )
        return self

    # --- what LangChain asks ---

    @property
    def lc_secrets(self) -> dict[str, str]:
        """Where the key is found when the model is loaded again."""
        return {"gpt_router_api_key": "GPT_ROUTER_API_KEY"}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """Fields that are objects as data, for `langchain_core.load` and cache keys."""
        policy = self.retry_policy
        return {
            "models_priority_list": [m.model_dump() for m in self.models_priority_list],
            **({} if policy is None else {"retry_policy": asdict(policy)}),
        }

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Whether `langchain_core.load` may write it."""
        return True
