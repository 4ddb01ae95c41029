"""`RetryRouter`: any LangChain chat models as one that answers while one of them can.

What follows a failure (the same route again, the next one, or an end) is the table of
`_core.routing`; how streams are repeated and watched is `_drive`'s. Here are the
fields, and the way from a call of LangChain's to those and back.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models.base import LangSmithParams, LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    ChatResult,
    Generation,
)
from langchain_core.runnables import Runnable, RunnableBinding
from pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from langchain_retryrouter._callbacks import (
    RetryVisibleChatModel,
    anotifier,
    inspected_once,
    notifier,
    run_manager_of,
)
from langchain_retryrouter._retry.call_state import (
    FAILURE_ACTIONS,
    FailureAction,
    RoutedCallState,
    RouteState,
)
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK, Clock
from langchain_retryrouter._retry.engine import RetryContext, acall, call
from langchain_retryrouter._retry.streaming import astream, stream
from langchain_retryrouter._router.call import (
    AsyncRouterCall,
    EndOfStream,
    ModelRequest,
    RouterCall,
)
from langchain_retryrouter._router.cost import RoutingWorstCase, worst_case
from langchain_retryrouter._router.route import Route, disable_own_retries
from langchain_retryrouter._router.strategies import Strategy, new_strategy
from langchain_retryrouter.circuit_breaker import CircuitBreaker
from langchain_retryrouter.errors import BASE_ERRORS, RetryRouterError
from langchain_retryrouter.failures import FailureKind
from langchain_retryrouter.policy import RetryBudget, RetryPolicy

__all__ = ["RetryRouter", "Route"]

__all__ = ["RetryRouter", "Route"]

_T = TypeVar("_T", RouterCall, AsyncRouterCall)

# Of a first route that does not say it itself.
_OWN_LS_PARAMS: Final = LangSmithParams(ls_provider="retryrouter", ls_model_type="chat")


class _Shared:
    """What a router remembers from call to call, and its bound copies share."""

    def __init__(self, route_states: list[RouteState], strategy: Strategy) -> None:
        self.route_states = route_states
        self.strategy = strategy


class RetryRouter(RetryVisibleChatModel):
    """Several chat models as one, which answers as long as one of them can.

    A failed attempt is repeated on its route, followed by one on the next, or by none,
    as its kind demands; the last word of a call that nobody could answer is the first
    route's error, with the others attached. Retries are seen by callbacks and tracers.

    Example:
        ```python
        from langchain_retryrouter import RetryPolicy, RetryRouter

        router = RetryRouter(
            routes=[primary, backup],  # any chat models
            retry_policy=RetryPolicy(first_token_timeout=10, stall_timeout=10),
        )
        router.invoke("Hello").response_metadata["retryrouter"]
        ```

    The answer's `response_metadata["retryrouter"]` has the route that served, and every
    attempt with its outcome, seconds, wait and usage.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    routes: list[Route] = Field(min_length=1)
    """The models to ask; a plain chat model is a route with the model's name."""

    retry_policy: RetryPolicy = Field(default_factory=RetryPolicy)
    """How patient a call is; `max_retries` counts on each route anew."""

    budget: RetryBudget | None = Field(default=None, exclude=True, repr=False)
    """Where retries are bought; hand the same object to all that share it."""

    breaker: CircuitBreaker | None = Field(
        default_factory=lambda: CircuitBreaker(
            failure_threshold=3, recovery_jitter=0.1
        ),
        exclude=True,
        repr=False,
    )
    """The numbers of each route's own breaker; None for none."""

    strategy: Literal["priority", "weighted", "least_latency", "round_robin"] = (
        "priority"
    )
    """In which order the routes are asked."""

    seed: int | None = None
    """Makes the strategies that draw lots draw the same ones again."""

    stream_recovery: Literal["error", "buffer", "continue"] = "error"
    """What becomes of a stream that breaks after its first token.

    "error": a `StreamInterruptedError` with what was delivered. "buffer": nothing is
    handed over before the end is known to be good, so that all of it can be repeated.
    "continue": another attempt takes up where the text ends, as an assistant prefill on
    routes that support it; on others the answer is asked for anew, and goes on only if
    it begins with what was delivered. Tool calls are never continued.
    """

    hedge_after: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds after which a stream that says nothing is asked of a second route too.

    Whoever speaks first is heard, and the other one's connection closed. Each such
    request is bought from the budget, so that there is none while that is low.
    """

    failover_on: dict[FailureKind, FailureAction] = Field(default_factory=dict)
    """What follows a kind of failure instead: "repeat", "next" or "end"."""

    max_price: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Money for a million tokens of an answer at the most: no route may be dearer."""

    clock: Clock | None = Field(default=None, exclude=True, repr=False)
    """What tells the time and waits; `testing.FakeClock` in a test."""

    _shared: _Shared = PrivateAttr()

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            routes: Sequence[Route | BaseChatModel | RunnableBinding[Any, Any]],
            **fields: Any,
        ) -> None:
            """Of models as well as of routes, which the field's type cannot say."""

    @field_validator("routes", mode="before")
    @classmethod
    def _take_plain_models(cls, value: Any) -> Any:
        if not isinstance(value, Sequence):
            msg = f"routes must be a list of chat models or Routes, not {value!r}"
            raise ValueError(msg)  # noqa: TRY004 - pydantic reports ValueErrors
        return [one if isinstance(one, Route) else Route(model=one) for one in value]

    @field_validator("routes")
    @classmethod
    def _tell_names_apart(cls, value: list[Route]) -> list[Route]:
        seen: dict[str, int] = {}
        names = []
        for route in value:
            seen[route.name] = count = seen.get(route.name, 0) + 1
            names.append(route.name if count == 1 else f"{route.name}-{count}")
        return disable_own_retries(value, names)

    @field_validator("max_price")
    @classmethod
    def _check_prices(cls, value: float | None, info: ValidationInfo) -> float | None:
        for route in info.data.get("routes", []) if value is not None else ():
            if route.output_price is None or route.output_price > value:
                price = (
                    "no output_price"
                    if route.output_price is None
                    else (f"an output_price of {route.output_price:g}")
                )
                msg = f"route {route.name!r} has {price}, and max_price is {value:g}"
                raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _remember(self) -> Self:
        template = self.breaker
        self._shared = _Shared(
            [
                RouteState(route.name, route.breaker or (template and template.clone()))
                for route in self.routes
            ],
            new_strategy(
                self.strategy,
                len(self.routes),
                weights=(
                    [route.weight for route in self.routes]
                    if self.strategy == "weighted"
                    else None
                ),
                seed=self.seed,
            ),
        )
        return self

    # --- a call ---

    @inspected_once
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        plan, router_call = self._set_out(
            RouterCall, ModelRequest(messages, stop, kwargs)
        )
        try:
            result = call(plan, router_call.generate, notifier(run_manager))
        except RetryRouterError as error:
            raise router_call.final_error(error)  # noqa: B904 - its own cause is what caused it
        return router_call.with_attempt_log(result)

    @inspected_once
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        plan, router_call = self._set_out(
            AsyncRouterCall, ModelRequest(messages, stop, kwargs)
        )
        try:
            result = await acall(plan, router_call.generate, anotifier(run_manager))
        except RetryRouterError as error:
            raise router_call.final_error(error)  # noqa: B904
        return router_call.with_attempt_log(result)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        plan, router_call = self._set_out(
            RouterCall, ModelRequest(messages, stop, kwargs)
        )
        retried = run_manager_of(self, run_manager, CallbackManagerForLLMRun)
        events = stream(
            plan, router_call.connect, router_call.new_reader, notifier(retried)
        )
        while True:
            try:
                with contextlib.closing(events):
                    for event in events:
                        if isinstance(event, EndOfStream):
                            continue
                        chunk = router_call.passed_on(event)
                        if run_manager is not None:
                            run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                        yield chunk
                break
            except RetryRouterError as error:
                if not router_call.can_continue(error):
                    raise router_call.final_error(error)  # noqa: B904
            events = stream(
                plan, router_call.connect, router_call.new_reader, notifier(retried)
            )
        yield router_call.last_chunk()

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        plan, router_call = self._set_out(
            AsyncRouterCall, ModelRequest(messages, stop, kwargs)
        )
        retried = run_manager_of(self, run_manager, AsyncCallbackManagerForLLMRun)
        events = astream(
            plan, router_call.connect, router_call.new_reader, anotifier(retried)
        )
        while True:
            try:
                async with contextlib.aclosing(events):
                    async for event in events:
                        if isinstance(event, EndOfStream):
                            continue
                        chunk = router_call.passed_on(event)
                        if run_manager is not None:
                            await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                        yield chunk
                break
            except RetryRouterError as error:
                if not router_call.can_continue(error):
                    raise router_call.final_error(error)  # noqa: B904
            events = astream(
                plan, router_call.connect, router_call.new_reader, anotifier(retried)
            )
        yield router_call.last_chunk()

    @property
    def _after(self) -> Mapping[FailureKind, FailureAction]:
        """What follows each kind of failure, as the caller has overruled it."""
        return (
            {**FAILURE_ACTIONS, **self.failover_on}
            if self.failover_on
            else FAILURE_ACTIONS
        )

    def _set_out(
        self, kind: type[_T], request: ModelRequest
    ) -> tuple[RetryContext, _T]:
        """The plan of a call, and the call itself."""
        clock = self.clock or SYSTEM_CLOCK
        shared = self._shared
        order = shared.strategy.order(clock.monotonic())
        call_state = RoutedCallState(
            self.retry_policy,
            [shared.route_states[index] for index in order],
            budget=self.budget,
            time=clock,
            after=self._after,
        )

        def measured(position: int, seconds: float) -> None:
            shared.strategy.measured(order[position], seconds, clock.monotonic())

        routes = [self.routes[index] for index in order]
        router_call = kind(routes, call_state, request, clock, measured)
        plan = RetryContext(
            call_state,
            errors=BASE_ERRORS,
            clock=clock,
            on_failure=router_call.on_failure,
            is_buffered=self.stream_recovery == "buffer",
        )
        router_call.hedge_after = self.hedge_after
        router_call.may_continue = self.stream_recovery == "continue"
        return plan, router_call

    def explain(
        self, *, input_tokens: int | None = None, output_tokens: int | None = None
    ) -> RoutingWorstCase:
        """What a call costs at the most, before anything runs.

        Example:
            ```python
            print(router.explain(input_tokens=2_000, output_tokens=500))
            ```

        Args:
            input_tokens: Tokens of the prompt; with `output_tokens` and the routes'
                prices they give the money.
            output_tokens: Tokens of an answer at the most.

        Returns:
            Requests, waits and money of each route and in all, seconds, and what
            follows each kind of failure; `str()` of it is a table.

        Raises:
            ValueError: If only one of the counts is given, or one is below 0.
        """
        return worst_case(
            self.retry_policy,
            [route.route_cost for route in self.routes],
            self._after,
            is_buffered=self.stream_recovery == "buffer",
            is_taken_up=self.stream_recovery == "continue",
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        )

    # --- what LangChain asks ---

    def bind_tools(
        self,
        tools: Sequence[Any],
        *,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """A router of the same routes, each offering `tools` in its provider's form.

        It shares breakers, budget and strategy with this one.

        Args:
            tools: As the routes' own `bind_tools` take them.
            tool_choice: As well; not handed on when None.
            **kwargs: As well.
        """
        told = kwargs.pop("ls_structured_output_format", None)
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        routes = [route.with_tools(tools, **kwargs) for route in self.routes]
        router = self.model_copy(update={"routes": routes})
        if told is not None:
            return router.bind(ls_structured_output_format=told)
        return router.bind()  # Of nothing: what LangChain's tests ask of every class.

    def _convert_cached_generations(
        self, cache_val: list[Generation]
    ) -> list[ChatGeneration]:
        """What a cache has, saying that this time nobody was asked for it."""
        generations = super()._convert_cached_generations(cache_val)
        for generation in generations:
            metadata = generation.message.response_metadata
            attempt_log = {**metadata.get("retryrouter", {}), "attempts": []}
            # A dict of its own: whoever was given the answer before has the old one.
            generation.message.response_metadata = {
                **metadata,
                "retryrouter": attempt_log,
            }
        return generations

    @property
    def _llm_type(self) -> str:
        return "retry-router-chat"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {
            "routes": [
                {
                    "name": route.name,
                    "type": route.model._llm_type,  # noqa: SLF001
                    **route.model._identifying_params,  # noqa: SLF001
                    **route.options,
                }
                for route in self.routes
            ],
            "strategy": self.strategy,
        }

    def _get_ls_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> LangSmithParams:
        told = self.routes[0].model._get_ls_params(stop=stop, **kwargs)  # noqa: SLF001
        return LangSmithParams(**{**_OWN_LS_PARAMS, **told})
