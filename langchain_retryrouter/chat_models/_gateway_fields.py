"""What a `GPTRouter` is made of: fields, their checks, and what LangChain asks of them.

Which request they make, and what becomes of its answer, stands in `gpt_router`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Self

from langchain_core.language_models.base import LangSmithParams
from langchain_core.utils import get_from_dict_or_env, get_from_env
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from langchain_retryrouter._callbacks import RetryVisibleChatModel
from langchain_retryrouter._core.breaker import CircuitBreaker
from langchain_retryrouter._core.budget import RetryBudget
from langchain_retryrouter._core.policy import RetryPolicy
from langchain_retryrouter._drive import Clock
from langchain_retryrouter._gptrouter.messages import add_usage
from langchain_retryrouter._gptrouter.pools import check_address, origin_of
from langchain_retryrouter._gptrouter.transport import GatewayClient, check_key

DEFAULT_API_BASE_URL = "https://gpt-router-preview.writesonic.com"

NO_CHOICES_IN_A_STREAM = (
    "n must be 1 in a stream: the gateway interleaves several answers without telling"
    " them apart. Use `generate` or `invoke` without streaming, or n=1."
)


class GPTRouterModel(BaseModel):
    """One model of a priority list.

    Attributes:
        name: The model's name at its provider, such as `gpt-4o`.
        provider_name: The provider's name at the gateway, such as `chat_openai`.
    """

    model_config = ConfigDict(frozen=True)

    name: str = Field(min_length=1)
    provider_name: str = Field(min_length=1)


class GatewayFields(RetryVisibleChatModel):
    """The fields of a `GPTRouter`."""

    model_config = ConfigDict(populate_by_name=True, arbitrary_types_allowed=True)

    client: Any = Field(default=None, exclude=True)
    """The gateway's client, a `gpt_router.client.GPTRouterClient`."""

    models_priority_list: list[GPTRouterModel] = Field(min_length=1)
    """The models to ask, the preferred one first."""

    gpt_router_api_base: str = Field(default="")
    """The gateway's address, with or without `/api`; else `GPT_ROUTER_API_BASE`."""

    gpt_router_api_key: SecretStr | None = None
    """The gateway's key; else `GPT_ROUTER_API_KEY`."""

    temperature: float | None = Field(default=0.7, allow_inf_nan=False)
    """Sampling temperature; None leaves it to the provider."""

    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """More for the provider; sent as it is, also what no gateway is known to read."""

    max_retries: int = 4
    """Retries, not attempts; 0: one request. Wins over `retry_policy`'s if given."""

    streaming: bool = False
    """Whether `invoke` streams inside."""

    n: int = Field(default=1, ge=1)
    """Answers per prompt; more than 1 cannot be streamed."""

    max_tokens: int | None = Field(default=256, ge=1)
    """Tokens of an answer at the most; None leaves it to the provider."""

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

    gateway_max_retries: int | None = Field(default=None, ge=0)
    """Retries of the gateway itself. None: 0 while we retry, else its default (3)."""

    gateway_timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds the gateway gives its provider; None for its default (60)."""

    # It may hold a password, so it stays out of what is shown, written and traced.
    proxy: str | None = Field(
        default=None, exclude=True, repr=False, validate_default=True
    )
    """URL of a proxy; None for the one that the environment names."""

    clock: Clock | None = Field(default=None, exclude=True, repr=False)
    """What tells the time and waits; `testing.FakeClock` in a test."""

    @model_validator(mode="before")
    @classmethod
    def _read_environment(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = dict(values)
        values["gpt_router_api_base"] = get_from_dict_or_env(
            values, "gpt_router_api_base", "GPT_ROUTER_API_BASE", DEFAULT_API_BASE_URL
        )
        # Not by `get_from_dict_or_env`, which makes stars of a `SecretStr`.
        key = values.get("gpt_router_api_key") or get_from_env(
            "gpt_router_api_key", "GPT_ROUTER_API_KEY"
        )
        values["gpt_router_api_key"] = SecretStr(key) if isinstance(key, str) else key
        return values

    @field_validator("gpt_router_api_base")
    @classmethod
    def _check_address(cls, value: str) -> str:
        check_address(value)
        return value

    @field_validator("gpt_router_api_key")
    @classmethod
    def _check_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_key(value)
        return value

    @field_validator("proxy")
    @classmethod
    def _check_proxy(cls, value: str | None, info: ValidationInfo) -> str | None:
        base = info.data.get("gpt_router_api_base")
        if base is not None:
            origin_of(base, value)
        return value

    # A check of the whole model would show all its input, the key included.
    @field_validator("n")
    @classmethod
    def _check_n(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and info.data.get("streaming"):
            raise ValueError(NO_CHOICES_IN_A_STREAM)
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

    @property
    def _llm_type(self) -> str:
        return "gpt-router-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            "models_priority_list": self.models_priority_list,
            **self._default_params,
        }

    @property
    def _default_params(self) -> dict[str, Any]:
        return {
            "max_tokens": self.max_tokens,
            "stream": self.streaming,
            "n": self.n,
            "temperature": self.temperature,
            **self.model_kwargs,
        }

    def _get_ls_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "gptrouter"
        models = kwargs.get("models_priority_list") or self.models_priority_list
        params["ls_model_name"] = kwargs.get("model", models[0].name)
        return params

    def _combine_llm_outputs(
        self, llm_outputs: list[dict[str, Any] | None], /
    ) -> dict[str, Any]:
        return add_usage(llm_outputs)
