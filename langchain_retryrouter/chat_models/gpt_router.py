"""`GPTRouter`: a chat model over a GPTRouter gateway, with one retry owner.

The module, its classes and its functions are named as in langchain-community, so that
moving over takes one word in the imports. What is promised here holds for `GPTRouter`'s
methods and for `completion_with_retry` called directly.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from dataclasses import asdict
from typing import Any, Self, cast

from gpt_router.models import ChunkedGenerationResponse, GenerationResponse
from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import (
    agenerate_from_stream,
    generate_from_stream,
)
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
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

from langchain_retryrouter._callbacks import (
    RetryVisibleChatModel,
    anotifier,
    notifier,
    run_manager_of,
)
from langchain_retryrouter._core.breaker import CircuitBreaker
from langchain_retryrouter._core.budget import RetryBudget
from langchain_retryrouter._core.policy import RetryPolicy, effective_policy
from langchain_retryrouter._core.session import RetrySession
from langchain_retryrouter._drive import (
    SYSTEM_CLOCK,
    Clock,
    Plan,
    acall,
    astream,
    call,
    stream,
)
from langchain_retryrouter._gptrouter.messages import (
    add_usage,
    build_messages,
    read_chunk,
    read_result,
)
from langchain_retryrouter._gptrouter.pools import check_address, origin_of
from langchain_retryrouter._gptrouter.transport import GatewayClient, check_key
from langchain_retryrouter._gptrouter.wire import (
    EventReader,
    GatewayEvent,
    GatewayParams,
    GatewayRequest,
    check_options,
)
from langchain_retryrouter.chat_models._exchange import AsyncExchange, Exchange
from langchain_retryrouter.errors.gpt_router import GPT_ROUTER_ERRORS

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


def get_ordered_generation_requests(
    models_priority_list: list[GPTRouterModel], **kwargs: Any
) -> list[GatewayRequest]:
    """What the SDK's client sends for a list of models: a request for each, in order.

    Args:
        models_priority_list: The models, the preferred one first.
        **kwargs: What the provider is asked, such as `messages` and `temperature`;
            `stream`, which is the gateway's to know, is left out.
    """
    kwargs.pop("stream", None)
    params = GatewayParams(**kwargs)
    return [
        GatewayRequest(
            model_name=model.name,
            provider_name=model.provider_name,
            order=order,
            prompt_params=params,
        )
        for order, model in enumerate(models_priority_list, start=1)
    ]


def completion_with_retry(
    llm: GPTRouter,
    models_priority_list: list[GPTRouterModel],
    run_manager: CallbackManagerForLLMRun | None = None,
    **kwargs: Any,
) -> GenerationResponse | Generator[ChunkedGenerationResponse, None, None]:
    """The gateway's answer, with retries that `run_manager` sees.

    Args:
        llm: The model whose client, policy, budget and breaker are used.
        models_priority_list: The models to ask, the preferred one first.
        run_manager: Told of each retry (`on_retry`) before its wait.
        **kwargs: What the provider is asked, such as `messages`; with `stream=True`
            the answer is a generator of events.

    Returns:
        The answer; its `retryrouter` tells the attempts it took. With `stream=True`
        the events up to and with `end`; nothing is sent before the first `next`, and
        the call is repeated until its first token has been handed over.

    Raises:
        RetryRouterError: The last attempt's own error, with a note saying why there was
            no further one. A stream raises it from `next`.
    """
    is_stream = bool(kwargs.pop("stream", False))
    requests = get_ordered_generation_requests(models_priority_list, **kwargs)
    exchange = Exchange(llm.client, requests, **llm._exchange_settings())  # noqa: SLF001
    plan = llm._plan(exchange)  # noqa: SLF001 - the other half of the model
    if is_stream:
        events = stream(plan, exchange.connect, EventReader, notifier(run_manager))
        return _with_ledger(events, plan.session)
    response = call(plan, exchange.send, notifier(run_manager))
    return exchange.signed(response, plan.session.ledger())


async def acompletion_with_retry(
    llm: GPTRouter,
    models_priority_list: list[GPTRouterModel],
    run_manager: AsyncCallbackManagerForLLMRun | None = None,
    **kwargs: Any,
) -> GenerationResponse | AsyncGenerator[ChunkedGenerationResponse, None]:
    """Async twin of `completion_with_retry`."""
    is_stream = bool(kwargs.pop("stream", False))
    requests = get_ordered_generation_requests(models_priority_list, **kwargs)
    exchange = AsyncExchange(llm.client, requests, **llm._exchange_settings())  # noqa: SLF001
    plan = llm._plan(exchange)  # noqa: SLF001 - the other half of the model
    if is_stream:
        events = astream(plan, exchange.connect, EventReader, anotifier(run_manager))
        return _awith_ledger(events, plan.session)
    response = await acall(plan, exchange.send, anotifier(run_manager))
    return exchange.signed(response, plan.session.ledger())


def _with_ledger(
    events: Generator[ChunkedGenerationResponse, None, None], session: RetrySession
) -> Generator[ChunkedGenerationResponse, None, None]:
    with contextlib.closing(events):
        for event in events:
            yield _signed_end(event, session)


async def _awith_ledger(
    events: AsyncGenerator[ChunkedGenerationResponse, None], session: RetrySession
) -> AsyncGenerator[ChunkedGenerationResponse, None]:
    async with contextlib.aclosing(events):
        async for event in events:
            yield _signed_end(event, session)


def _signed_end(
    event: ChunkedGenerationResponse, session: RetrySession
) -> ChunkedGenerationResponse:
    if event.event == "end" and isinstance(event, GatewayEvent):
        event.retryrouter = session.ledger()
    return event


class GPTRouter(RetryVisibleChatModel):
    """A chat model over a GPTRouter gateway, retried until it answers or cannot.

    The key and the address come from the arguments or from `GPT_ROUTER_API_KEY` and
    `GPT_ROUTER_API_BASE`. Retries are ours alone: the gateway is asked not to repeat,
    and the connections are pooled. A stream that ends without the gateway's `end` is a
    `StreamInterruptedError`, never a short answer.

    Example:
        ```python
        from langchain_retryrouter import GPTRouter, GPTRouterModel

        llm = GPTRouter(
            models_priority_list=[
                GPTRouterModel(name="gpt-4o", provider_name="chat_openai"),
            ]
        )
        llm.invoke("Hello").content
        ```

    The answer's `response_metadata` has `model_name`, `provider_name`, `token_usage`,
    `finish_reason`, and under `retryrouter` the attempts that it took.
    """

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
            raise ValueError(_NO_CHOICES_IN_A_STREAM)
        return value

    @field_validator("max_retries")
    @classmethod
    def _check_max_retries(cls, value: int) -> int:
        return effective_policy(None, value).max_retries

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
        params["ls_model_name"] = self.models_priority_list[0].name
        return params

    def _combine_llm_outputs(
        self, llm_outputs: list[dict[str, Any] | None], /
    ) -> dict[str, Any]:
        return add_usage(llm_outputs)

    # --- a prompt's way ---

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        stream: bool | None = None,  # noqa: FBT001 - langchain-community's signature
        **kwargs: Any,
    ) -> ChatResult:
        if self.streaming if stream is None else stream:
            return generate_from_stream(
                self._stream(messages, stop=stop, run_manager=run_manager, **kwargs)
            )
        models, params = self._prepare(messages, stop, kwargs, stream=False)
        response = completion_with_retry(
            self, models_priority_list=models, run_manager=run_manager, **params
        )
        return read_result(cast("GenerationResponse", response), _providers(models))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        stream: bool | None = None,  # noqa: FBT001 - langchain-community's signature
        **kwargs: Any,
    ) -> ChatResult:
        if self.streaming if stream is None else stream:
            return await agenerate_from_stream(
                self._astream(messages, stop=stop, run_manager=run_manager, **kwargs)
            )
        models, params = self._prepare(messages, stop, kwargs, stream=False)
        response = await acompletion_with_retry(
            self, models_priority_list=models, run_manager=run_manager, **params
        )
        return read_result(cast("GenerationResponse", response), _providers(models))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        models, params = self._prepare(messages, stop, kwargs, stream=True)
        retried = run_manager_of(self, run_manager, CallbackManagerForLLMRun)
        answer = completion_with_retry(
            self, models_priority_list=models, run_manager=retried, **params
        )
        events = cast("Generator[ChunkedGenerationResponse, None, None]", answer)
        providers = _providers(models)
        with contextlib.closing(events):
            for event in events:
                chunk = read_chunk(event, providers)
                if chunk is None:
                    continue
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        models, params = self._prepare(messages, stop, kwargs, stream=True)
        retried = run_manager_of(self, run_manager, AsyncCallbackManagerForLLMRun)
        answer = await acompletion_with_retry(
            self, models_priority_list=models, run_manager=retried, **params
        )
        events = cast("AsyncGenerator[ChunkedGenerationResponse, None]", answer)
        providers = _providers(models)
        async with contextlib.aclosing(events):
            async for event in events:
                chunk = read_chunk(event, providers)
                if chunk is None:
                    continue
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _prepare(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        options: Mapping[str, Any],
        *,
        stream: bool,
    ) -> tuple[list[GPTRouterModel], dict[str, Any]]:
        """Which models are asked, and what; fields first, then the call's options."""
        options = dict(options)
        models = options.pop("models_priority_list", None) or self.models_priority_list
        check_options(options)
        params = {**self._default_params, **options, "stream": stream}
        if stop is not None:
            if params.get("stop") is not None:
                msg = "`stop` is given both to the call and to the model; give it once"
                raise ValueError(msg)
            params["stop"] = stop
        if stream and (params.get("n") or 1) > 1:
            raise ValueError(_NO_CHOICES_IN_A_STREAM)
        return models, {**params, "messages": build_messages(messages)}

    def _plan(self, exchange: Exchange | AsyncExchange) -> Plan:
        clock = self.clock or SYSTEM_CLOCK
        session = RetrySession(
            self._policy, budget=self.budget, breaker=self.breaker, time=clock
        )
        return Plan(
            session,
            errors=GPT_ROUTER_ERRORS,
            clock=clock,
            route=exchange.route,
            learn=exchange.learn,
        )

    @property
    def _policy(self) -> RetryPolicy:
        return effective_policy(self.retry_policy, self.max_retries)

    def _exchange_settings(self) -> dict[str, Any]:
        max_retries = self.gateway_max_retries
        if max_retries is None and self._policy.max_retries:
            max_retries = 0  # One retry owner.
        options = {
            "gateway_timeout": self.gateway_timeout,
            "gateway_max_retries": max_retries,
        }
        return {"options": options, "failover": self.failover}


_NO_CHOICES_IN_A_STREAM = (
    "n must be 1 in a stream: the gateway interleaves several answers without telling"
    " them apart. Use `generate` or `invoke` without streaming, or n=1."
)


def _providers(models: list[GPTRouterModel]) -> dict[str, str]:
    return {model.name: model.provider_name for model in models}
