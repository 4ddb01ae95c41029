"""What a `GPTRouter` is made of: fields, their checks, and what LangChain asks of them.

Which request they make, and what becomes of its answer, stands in `gpt_router`.
"""

from __future__ import annotations

from typing import Any, Final

from langchain_core.language_models import ModelProfile
from langchain_core.language_models.base import LangSmithParams
from langchain_core.outputs import ChatGeneration, Generation
from pydantic import Field, ValidationInfo, field_validator

from langchain_retryrouter._callbacks import RetryVisibleChatModel
from langchain_retryrouter._gateway_connection import (
    GatewayConnection,
    GPTRouterModel,
    put_first,
    read_models,
)
from langchain_retryrouter._gptrouter.content_blocks import PROVIDER
from langchain_retryrouter._gptrouter.usage import add_usage
from langchain_retryrouter.chat_models._profiles import profile_of

NO_CHOICES_IN_A_STREAM = (
    "n must be 1 in a stream: the gateway interleaves several answers without telling"
    " them apart. Use `generate` or `invoke` without streaming, or n=1."
)

_SENT_IF_SET: Final = (
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "stop",
    "reasoning_effort",
    "thinking",
    "web_search_options",
    "output_config",
)


class GatewayFields(GatewayConnection, RetryVisibleChatModel):
    """The fields of a `GPTRouter`."""

    temperature: float | None = Field(default=0.7, allow_inf_nan=False)
    """Sampling temperature; None leaves it to the provider."""

    top_p: float | None = Field(default=None, ge=0, le=1)
    """The share of likely tokens to choose from; None leaves it to the provider."""

    frequency_penalty: float | None = Field(default=None, allow_inf_nan=False)
    """How much a token's past frequency counts against it."""

    presence_penalty: float | None = Field(default=None, allow_inf_nan=False)
    """How much a token's having appeared counts against it."""

    stop: list[str] | str | None = None
    """Where an answer ends; a call's own `stop` takes its place."""

    reasoning_effort: str | None = None
    """How long a reasoning model thinks, from "none" to "max"; newer gateways."""

    thinking: dict[str, Any] | None = None
    """Extended thinking: {"type": "enabled", "budget_tokens": 1024}; newer gateways."""

    web_search_options: dict[str, Any] | None = None
    """What a model that searches the web is told about it; newer gateways."""

    output_config: dict[str, Any] | None = None
    """The provider's own settings of the answer's form; newer gateways."""

    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """More for the provider; sent as it is, also what no gateway is known to read."""

    streaming: bool = False
    """Whether `invoke` streams inside."""

    n: int = Field(default=1, ge=1)
    """Answers per prompt; more than 1 goes with neither streams nor tools."""

    max_tokens: int | None = Field(default=256, ge=1)
    """Tokens of an answer at the most; None leaves it to the provider."""

    gateway_max_retries: int | None = Field(default=None, ge=0)
    """Retries of the gateway itself. None: 0 while we retry, else its default (3)."""

    gateway_timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds the gateway gives its provider; None for its default (60)."""

    @classmethod
    def _provider_options(cls) -> frozenset[str]:
        from langchain_retryrouter._gptrouter.options import (  # noqa: PLC0415
            PROVIDER_OPTIONS,
        )

        return PROVIDER_OPTIONS

    # A check of the whole model would show all its input, the key included.
    @field_validator("n")
    @classmethod
    def _check_n(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and info.data.get("streaming"):
            raise ValueError(NO_CHOICES_IN_A_STREAM)
        return value

    # --- what LangChain asks ---

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
            **{
                name: value
                for name in _SENT_IF_SET
                if (value := getattr(self, name)) is not None
            },
            **self.model_kwargs,
        }

    def _resolve_model_profile(self) -> ModelProfile | None:
        return profile_of([model.name for model in self.models_priority_list])

    def _get_ls_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> LangSmithParams:
        model = kwargs.get("model") or self._models_asked(kwargs)[0].name
        params = super()._get_ls_params(stop=stop, **{**kwargs, "model": model})
        params["ls_provider"] = PROVIDER
        stops = stop or kwargs.get("stop") or self.stop
        if stops:
            params["ls_stop"] = [stops] if isinstance(stops, str) else stops
        return params

    def _models_asked(self, options: dict[str, Any]) -> list[GPTRouterModel]:
        """The models of a call; what its options say of them is taken out of them."""
        models = options.pop("models_priority_list", None)
        models = self.models_priority_list if models is None else read_models(models)
        first = options.pop("model", None)
        return models if first is None else put_first(first, models)

    def _combine_llm_outputs(
        self, llm_outputs: list[dict[str, Any] | None], /
    ) -> dict[str, Any]:
        return add_usage(llm_outputs)

    def _convert_cached_generations(
        self, cache_val: list[Generation]
    ) -> list[ChatGeneration]:
        """What a cache has, saying that this time nothing was sent for it."""
        generations = super()._convert_cached_generations(cache_val)
        for generation in generations:
            message = generation.message
            # A dict of its own: whoever was given the answer before has the old one.
            message.response_metadata = {
                **message.response_metadata,
                "retryrouter": {"attempts": []},
            }
        return generations
