"""`RetryRouter`: any LangChain chat models as one that answers while one of them can.

This module has the fields, and the way from a call of LangChain's to the engine and
back. What follows a failure (the same route again, the next one, or the error) is the
table `failures.FAILURE_ACTIONS`; the engine in `_retry` waits and repeats. Next to
read: `_router.call`, which chooses the routes of a call and makes its attempts.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, Literal, Self, cast

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models.base import LangSmithParams, LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.load.serializable import (
    SerializedConstructor,
    SerializedNotImplemented,
)
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig
from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from langchain_retryrouter._base import SharingModel
from langchain_retryrouter._callbacks import (
    AsyncNotifier,
    Notifier,
    RetryVisibleChatModel,
    run_manager_of,
)
from langchain_retryrouter._providers.integrations import (
    check_tool_choice,
    name_of_tool,
    names_of_keys,
    read_tool_choice,
    takes_format_with_tools,
    tracing_params,
)
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK
from langchain_retryrouter._retry.engine import acall, call
from langchain_retryrouter._retry.health import health_of
from langchain_retryrouter._retry.streaming import astream, stream
from langchain_retryrouter._router import preflight, setup
from langchain_retryrouter._router.call import (
    OWN_LS_PARAMS,
    FailoverRules,
    RouterCall,
    info_of,
)
from langchain_retryrouter._router.models import NamedKeys
from langchain_retryrouter._router.preflight import RoutingWorstCase
from langchain_retryrouter._router.route import Accept, Route
from langchain_retryrouter._router.setup import FailoverRule
from langchain_retryrouter._secrets import (
    check_number,
    name_value,
    refuse_unknown,
    shown,
)
from langchain_retryrouter.chat_models._structured import OutputFormat
from langchain_retryrouter.circuit_breaker import CircuitBreakerSettings
from langchain_retryrouter.failures import FailureKind
from langchain_retryrouter.policy import RetryPolicy
from langchain_retryrouter.rate_limits import RateLimit
from langchain_retryrouter.spend_limits import SpendLimit

__all__ = ["RetryRouter", "Route"]

# Only needed by those who use it.
_CONFIG: Final = "langchain_retryrouter._router.config"
_METHODS: Final = ("auto", "function_calling", "json_schema", "json_mode")
_RENAMED: Final = {
    "breaker": (
        "give breaker_settings={{'failure_threshold': 5}}, the numbers of each route's"
        " own breaker (None: no breakers), or let routes share one by"
        " Route(model=..., breaker=CircuitBreaker())"
    ),
    "max_retries": "give retry_policy=RetryPolicy(max_retries={value})",
    "deadline": "give retry_policy=RetryPolicy(deadline={value})",
    "timeout": (
        "give retry_policy=RetryPolicy(attempt_timeout={value}) for each attempt, or"
        " deadline={value} for the whole call"
    ),
    "models": "give them as routes",
    "fallbacks": "give them as routes, after the one that is asked first",
    "api_key": "give it to the model of a route",
    "api_keys": "give Route.pool(model, api_keys=[...]) as one of the routes",
    **dict.fromkeys(
        ("model", "model_name", "temperature", "max_tokens", "base_url"),
        "give it to the models of the routes",
    ),
}


class RetryRouter(SharingModel, RetryVisibleChatModel):
    """A chat model that retries, and fails over across several chat models.

    After a failure the same route is asked again, then the next one, depending on the
    kind of the failure. If no route could answer, the first route's error is raised,
    with the others attached as `others`. Callbacks and tracers see each retry.

    Example:
        ```python
        from langchain_retryrouter import RetryPolicy, RetryRouter

        router = RetryRouter(
            routes=[primary, backup],  # any chat models
            retry_policy=RetryPolicy(
                attempt_timeout=60, first_token_timeout=10, stall_timeout=10
            ),
        )
        router.invoke("Hello").response_metadata["retryrouter"]
        ```

    The answer's `response_metadata["retryrouter"]` has the route that answered, and
    every attempt with its outcome, seconds, wait and usage.

    `close()` and `aclose()`, or a `with` or `async with` block, close what the routes'
    models offer to close.
    """

    # An unknown argument may be a key, and a URL has a password.
    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", hide_input_in_errors=True
    )

    routes: list[Route] = Field(min_length=1)
    """The models to ask; a plain chat model is a route with the model's name.

    With langchain installed, a string such as "openai:gpt-5.5" is a model, too.
    """

    retry_policy: RetryPolicy = Field(default_factory=RetryPolicy)
    """Retries, waits and time limits; `max_retries` holds for each route.

    Where the policy does not set them, an attempt has 300 s without a stream
    (`attempt_timeout`), and with one 60 s until its first token and 60 s for each
    silence after it (`first_token_timeout`, `stall_timeout`); with a `deadline`, less
    if that is the route's share of it. `math.inf` means no limit.
    """

    rate_limit: RateLimit | None = Field(default=None, exclude=True, repr=False)
    """Limits the attempts on all routes together; `Route.rate_limit` those on one."""

    store: Any = Field(default=None, exclude=True, repr=False)
    """Where other processes learn what this router learns, and the other way round.

    A `stores.RedisStore`, its URL, or a `stores.MemoryStore`. Each route's breaker and
    limits are shared under the route's name and what it asks; the budget and the limits
    of all routes among routers with the same routes. Those with a `name` keep it. A
    store of your own is yours to close.
    """

    breaker_settings: CircuitBreakerSettings | None = Field(
        default_factory=lambda: CircuitBreakerSettings(**setup.BREAKER_DEFAULTS)
    )
    """Numbers of each route's own circuit breaker, as `CircuitBreaker` takes them.

    What is left out has the router's defaults, `failure_threshold=3`,
    `recovery_time=10` and `recovery_jitter=0.1`, or else those of `CircuitBreaker`.
    None: no breakers.
    """

    strategy: Literal["priority", "weighted", "least_latency", "round_robin"] = (
        "priority"
    )
    """In which order the routes are asked, or the routes of a tier or pool.

    "priority" is the order of the list, and by turns in a tier or pool.
    """

    affinity: Literal["conversation"] | None = None
    """"conversation": the turns of a conversation stay on one route while that is well.

    So providers find their prompts in their caches. A conversation is the `thread_id`
    in a config's "configurable" (or `conversation_id`, `session_id`), or else what it
    begins with: the system message and the first message of the user. Its first route
    is chosen by a hash of it and the routes' weights, the same in all processes,
    instead of by `strategy`; with "priority", within tiers and pools, or if a route
    is given a weight. A conversation that was answered by another route stays
    there, in this process, until an hour after its last answer.
    """

    seed: int | None = None
    """Seed of the random strategies, to repeat a run."""

    stream_recovery: Literal["error", "buffer", "continue"] = "continue"
    """What follows a stream that breaks after its first token.

    "continue": another attempt continues the text, by an assistant prefill on routes
    with `supports_prefill`; other routes are asked for the whole answer again, which is
    continued only if it begins with what was delivered. If neither works, and after
    the beginning of a tool call, a `StreamInterruptedError` has the text that was
    delivered. "error": that error at once. "buffer": the stream is handed over only at
    its end, so that all of it can be repeated.
    """

    hedge_after: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds without a token after which a second route is asked for the stream too.

    The first one to send a token is used. The other one's connection is closed: at once
    in async code, in sync code when its next event arrives or its model's own timeout
    is over.
    Each such request draws on the budget, and is not sent while that is low.
    """

    failover_on: FailoverRule | list[FailoverRule] = Field(default_factory=dict)
    """What follows a failure instead: "retry", "failover" or "raise".

    A mapping of kinds of failure and of exception classes to actions, a function of the
    exception that returns an action or None, or a list of these, of which the first one
    with an action counts. Classes and functions see what the route's model raised; they
    count before kinds. A kind that no retry can mend is not retried, whatever the
    mapping says; what a class or a function says is done.

    "length", or `LengthLimitError`, makes a failure of an answer that a token limit cut
    (`max_tokens`, or the end of the context). Such an answer is returned otherwise.
    Streams are then held until their end.

    Example:
        ```python
        failover_on={"content_filter": "failover", LookupError: "raise"}
        ```
    """

    accept: Accept | None = Field(default=None, exclude=True, repr=False)
    """Judges each whole answer: a function of the message that returns True to accept
    it, and False or a string to reject it. The string is the reason of the rejection.

    An answer that is rejected is a failure of kind "rejected": it is retried and
    failed over, and its reason is in the attempt log and in the error. Streams are held
    until their end, so that nothing of such an answer is handed over. An async function
    is for async calls. An exception that it raises ends the call.

    Example:
        ```python
        accept=lambda message: "as an AI" not in message.text or "a disclaimer"
        ```
    """

    max_price: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """The highest `output_price` that a route may have."""

    max_cost: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Money that a call may cost, with all its attempts; a call's own goes first.

    No attempt begins that is estimated to go beyond it, by the tokens of the prompt and
    `max_tokens`, or the mean of earlier answers. The next route is asked instead, or
    the call ends. Each route needs a known price.

    Example:
        ```python
        router.invoke("Hello", max_cost=0.01)
        ```
    """

    spend_limit: SpendLimit | None = Field(default=None, exclude=True, repr=False)
    """Limits the money of all calls, in a day for instance; give the same object to all
    that share it. `Route.spend_limit` is that of a single route."""

    source: dict[str, Any] | None = Field(default=None, exclude=True, repr=False)
    """Where `from_config` found the store, for `to_config`, which fill and read it."""

    _read_once = frozenset(
        {"affinity", "breaker_settings", "clock", "routes", "seed", "store", "strategy"}
    )

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            routes: Sequence[
                Route | list[Route] | BaseChatModel | RunnableBinding[Any, Any] | str
            ],
            **fields: Any,
        ) -> None:
            """Plain chat models are taken as routes."""

    @model_validator(mode="before")
    @classmethod
    def _explain_other_names(cls, values: Any) -> Any:
        if isinstance(values, dict):
            advice = {
                name: text.format(value=shown(values[name]))
                for name, text in _RENAMED.items()
                if name in values
            }
            refuse_unknown(cls, values, advice)
        return values

    _check_breaker_settings = field_validator("breaker_settings", mode="before")(
        setup.breaker_settings
    )
    _prepare_routes = field_validator("routes")(setup.prepare_routes)
    _check_rules = field_validator("failover_on", mode="before")(setup.check_rules)
    _check_numbers = field_validator(
        "seed", "hedge_after", "max_price", "max_cost", mode="wrap"
    )(check_number)
    _name_values = field_validator(
        "strategy", "affinity", "stream_recovery", "trace_attempts", mode="wrap"
    )(name_value)

    @field_validator("routes", mode="before")
    @classmethod
    def _take_plain_models(cls, value: Any) -> Any:
        if isinstance(value, Sequence) and not isinstance(value, str):
            flat: list[Any] = []
            for one in value:
                flat += one if isinstance(one, list) else [one]  # A `Route.pool`.
            return [one if isinstance(one, Route) else Route(model=one) for one in flat]
        given = repr(value) if isinstance(value, str) else shown(value)
        msg = (
            f"routes must be a list of chat models or Routes, not {given}; a model in"
            " it may be a string such as 'openai:gpt-5.5'"
        )
        raise ValueError(msg)

    @field_validator("max_price")
    @classmethod
    def _check_prices(cls, value: float | None, info: ValidationInfo) -> float | None:
        for route in info.data.get("routes", []) if value is not None else ():
            price = route.output_price
            if price is None or price > value:
                has = "no output_price"
                if price is not None:
                    has = f"an output_price of {price:g}"
                msg = f"route {route.name!r} has {has}, and max_price is {value:g}"
                raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _check_routes(self) -> Self:
        is_limited = self.max_cost is not None or self.spend_limit is not None
        setup.check_routes(self.routes, needs_prices=is_limited)
        if self.affinity and self.strategy == "least_latency":
            msg = (
                "affinity='conversation' keeps a conversation where it is, and strategy"
                " 'least_latency' asks the fastest route: choose 'weighted',"
                " 'round_robin' or 'priority'"
            )
            raise ValueError(msg)
        _ = self._memory  # Made before there are copies, which share it.
        return self

    def model_copy(
        self, *, update: Mapping[str, Any] | None = None, deep: bool = False
    ) -> Self:
        """A copy with the same memory, or with other routes a new router."""
        copy = super().model_copy(update=update, deep=deep)
        # What answers of a bound copy must fit.
        vars(copy)["_memory"].output = self._memory.output
        return copy

    @functools.cached_property
    def _memory(self) -> setup.RouterMemory:
        return setup.RouterMemory(self)

    @classmethod
    def from_config(
        cls,
        source: str | os.PathLike[str] | Mapping[str, Any],
        **fields: Any,
    ) -> Self:
        """A router as a TOML, JSON or YAML file, or a mapping, describes it.

        Keys are named by environment variable; a key in the config is refused.

        Example:
            ```toml
            [[routes]]
            model = "openai:gpt-5.5"
            api_key_env = "OPENAI_API_KEY"
            params = { temperature = 0 }

            [[routes]]
            model = "anthropic:claude-opus-5"

            [retry_policy]
            deadline = 60
            ```

        Args:
            source: The path of the file, or the mapping.
            **fields: Fields that data cannot express, such as `accept` or `clock`.

        Raises:
            ImportError: langchain, a provider's package or PyYAML is not installed.
            OSError: The file cannot be read.
            ValueError: Something in it is wrong; the message has a line for each
                problem, with the file's name and line.
        """
        config = importlib.import_module(_CONFIG)
        return cast("Self", config.from_config(cls, source, fields))

    def to_config(self) -> dict[str, Any]:
        """What `from_config` makes an equal router of, as data without keys.

        Models that were not made by `from_config` or of a string are written as
        "provider:model", if `init_chat_model` makes an equal model of that.

        Raises:
            ValueError: Something is not data, such as a function or a shared breaker,
                or a key is not in the provider's environment variable; the message
                names all of it.
        """
        config = importlib.import_module(_CONFIG)
        return cast("dict[str, Any]", config.to_config(self))

    # --- a call ---

    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """The answer; see `BaseChatModel.invoke`."""
        config = preflight.with_thread(config) if self.affinity else config
        return super().invoke(input, config, stop=stop, **kwargs)

    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """The answer; see `BaseChatModel.ainvoke`."""
        config = preflight.with_thread(config) if self.affinity else config
        return await super().ainvoke(input, config, stop=stop, **kwargs)

    def stream_events(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Any:
        """The events of a run; see `BaseChatModel.stream_events`."""
        config = preflight.with_thread(config) if self.affinity else config
        return super().stream_events(input, config, **kwargs)

    def astream_events(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Any:
        """The events of a run; see `BaseChatModel.astream_events`."""
        config = preflight.with_thread(config) if self.affinity else config
        return super().astream_events(input, config, **kwargs)

    def _open_run(self, config: RunnableConfig, *kinds: Any) -> Any:
        if self.affinity:  # Of `stream` and `astream`.
            config.update(preflight.with_thread(config))
        return super()._open_run(config, *kinds)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request = preflight.ModelRequest(messages, stop, kwargs)
        router_call = RouterCall(self, self._memory, request, run_manager)
        notify = Notifier(run_manager)
        with router_call:
            result = call(router_call.context(), router_call.generate, notify)
        return router_call.with_attempt_log(result)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request = preflight.ModelRequest(messages, stop, kwargs)
        router_call = RouterCall(self, self._memory, request, run_manager)
        notify = AsyncNotifier(run_manager)
        with router_call:
            result = await acall(router_call.context(), router_call.agenerate, notify)
        return router_call.with_attempt_log(result)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        request = preflight.ModelRequest(messages, stop, kwargs)
        run = run_manager_of(self, run_manager, CallbackManagerForLLMRun)
        router_call = RouterCall(self, self._memory, request, run)
        context = router_call.context()
        notify = Notifier(run)
        while not router_call.is_over:
            events = stream(context, router_call.connect, lambda: info_of, notify)
            with router_call, contextlib.closing(events):
                for event in events:
                    if event.chunk is None:
                        continue
                    chunk = router_call.passed_on(event.chunk)
                    if run_manager is not None:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk
            context.continues = router_call.continued
        yield router_call.last_chunk()

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        request = preflight.ModelRequest(messages, stop, kwargs)
        run = run_manager_of(self, run_manager, AsyncCallbackManagerForLLMRun)
        router_call = RouterCall(self, self._memory, request, run)
        context = router_call.context()
        notify = AsyncNotifier(run)
        while not router_call.is_over:
            events = astream(context, router_call.aconnect, lambda: info_of, notify)
            with router_call:
                async with contextlib.aclosing(events):
                    async for event in events:
                        if event.chunk is None:
                            continue
                        chunk = router_call.passed_on(event.chunk)
                        if run_manager is not None:
                            await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                        yield chunk
            context.continues = router_call.continued
        yield router_call.last_chunk()

    def explain(
        self, *, input_tokens: int | None = None, output_tokens: int | None = None
    ) -> RoutingWorstCase:
        """What a call costs at most, before anything is sent.

        Example:
            ```python
            print(router.explain(input_tokens=2_000, output_tokens=500))
            ```

        Args:
            input_tokens: Tokens of the prompt; with `output_tokens` and the routes'
                prices they give the money.
            output_tokens: Tokens of an answer at most.

        Returns:
            Requests, waits and money of each route and in all, seconds, and what
            follows each kind of failure; `str()` of it is a table.

        Raises:
            ValueError: If only one of the counts is given, or one is below 0.
        """
        failover = FailoverRules(self.failover_on)
        after = {
            kind: action
            for kind, action in failover.actions.items()
            if kind is not FailureKind.LENGTH or failover.hears_length
        }
        return preflight.worst_case(
            preflight.limited_policy(self.retry_policy, self._memory.places),
            [route for route in self.routes if not route.status.unfit],
            after,
            stream_recovery=self.stream_recovery,
            tokens={"input_tokens": input_tokens, "output_tokens": output_tokens},
            max_cost=self.max_cost,
            spend_limit=self.spend_limit,
        )

    def health(self) -> dict[str, Any]:
        """How the routes are, by the calls so far, as JSON-able data; nothing is sent.

        Example:
            ```python
            status = 200 if router.health()["is_healthy"] else 503
            ```

        Returns:
            `is_healthy`: whether a route can be asked. `routes`: of each its `name`,
            `is_healthy`, the `state` of its breaker, and, if that is open, for how many
            seconds (`open_for`) and until which Unix time (`open_until`); how many
            attempts `answered` and `failed`; the seconds since the last answer
            (`last_answer_ago`); the `last_error` by `kind`, `status_code` and seconds
            `ago`; the mean and median `latency` of the latest answers in seconds. There
            are no keys, prompts or messages in it.
        """
        return health_of(self._memory.route_states, self.clock or SYSTEM_CLOCK)

    # --- closing ---

    def close(self) -> None:
        """Close the routes' models, as far as they have a `close` method."""
        for model in [one for route in self.routes for one in route.models]:
            if callable(close := getattr(model, "close", None)):
                close()
        super().close()

    async def aclose(self) -> None:
        """Close the routes' models by `aclose`, or else by `close`."""
        for model in [one for route in self.routes for one in route.models]:
            if callable(aclose := getattr(model, "aclose", None)):
                await aclose()
            elif callable(close := getattr(model, "close", None)):
                close()
        await super().aclose()

    # --- what LangChain asks ---

    def configurable_fields(self, **kwargs: Any) -> Any:
        """See `RunnableSerializable.configurable_fields`.

        LangChain makes a new router for each call that sets a field: its routes share
        the breakers of this one, unless `breaker_settings` is such a field.
        """
        router = self
        if "breaker_settings" not in kwargs:
            pairs = zip(self.routes, self._memory.route_states, strict=True)
            routes = [r.model_copy(update={"breaker": s.breaker}) for r, s in pairs]
            router = self.model_copy()
            vars(router).update(routes=routes)
        return super(RetryRouter, router).configurable_fields(**kwargs)

    def _resolve_model_profile(self) -> ModelProfile | None:
        models = [route.model for route in self.routes]
        profile = preflight.common_profile([model.profile for model in models])
        if profile is not None and not all(map(takes_format_with_tools, models)):
            # LangChain's agents would ask for the format together with their tools.
            profile.pop("structured_output", None)
        return profile

    def get_token_ids(self, text: str) -> list[int]:
        """The ids of the tokens of `text`, as the first route that can counts them.

        If no route can, as many numbers as there are tokens approximately.
        """
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        found = self._memory.counter.ask(self.routes, "get_token_ids", text)
        return list(range(-(-len(text) // 4))) if found is None else found

    def get_num_tokens(self, text: str) -> int:
        """The number of tokens of `text`, see `get_num_tokens_from_messages`."""
        found = None
        if self.custom_get_token_ids is None:
            found = self._memory.counter.ask(self.routes, "get_num_tokens", text)
        return len(self.get_token_ids(text)) if found is None else found

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """The number of tokens of `messages`, as the first route that can counts them.

        A route without a counter of its own is passed over, and one whose counter
        fails is for a minute. If no route can count, langchain-core's approximate
        number is returned. `tools` that are offered count where a counter counts them.
        """
        if self.custom_get_token_ids is not None:
            return super().get_num_tokens_from_messages(messages, tools)
        counter, offered = self._memory.counter, {"tools": tools} if tools else {}
        name = "get_num_tokens_from_messages"
        found: int | None = counter.ask(self.routes, name, messages, **offered)
        if found is None:
            return count_tokens_approximately(messages, tools=list(tools or ()) or None)
        return found

    def bind_tools(
        self,
        tools: Sequence[Any],
        *,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """A router of the same routes, each offering `tools` in its provider's form.

        It shares breakers, budget and strategy with this one. A route that cannot take
        a tool or an argument is left out, with a warning, if another one can. Tools
        that are bound to a route's model are offered by that route as well.

        Args:
            tools: Functions, pydantic classes, TypedDicts, `BaseTool`s, or dicts.
            tool_choice: "any", "required" or True for at least one call, "none",
                "auto", a tool's name, or a dict in OpenAI's or Anthropic's form. Each
                route gets it in its integration's form.
            **kwargs: Handed on to the routes' `bind_tools`; `strict` and
                `parallel_tool_calls` are translated, too.

        Raises:
            TypeError: If no route's model has tools.
            ValueError: If no route can take the tools or an argument, or `tool_choice`
                names a tool that is not given.
        """
        output_format = kwargs.pop("ls_structured_output_format", None)
        choice = read_tool_choice(tool_choice)
        names = [name_of_tool(tool) for tool in tools]
        if isinstance(choice, str) and None not in names:
            own = [one for r in self.routes for one in r.options.get("tools") or ()]
            check_tool_choice(choice, [*names, *map(name_of_tool, own)])
        if choice is not None:
            kwargs["tool_choice"] = choice
        routes = setup.bound_routes(
            self.routes, lambda route: route.with_tools(tools, **kwargs), self._memory
        )
        form, output = kwargs.get("response_format"), None
        if isinstance(form, dict) and form.get("type") == "json_schema":
            output = OutputFormat(form, may_call=True)  # An agent's `ProviderStrategy`.
        return self._with_routes(routes, output_format, output)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None,
        *,
        include_raw: bool = False,
        method: Literal[
            "auto", "function_calling", "json_schema", "json_mode"
        ] = "auto",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Objects of `schema`, whichever route answers.

        An answer that does not fit the schema is a failure of kind "rejected": the
        model is shown what is wrong, once, and then the next route is asked. Streams
        are held until their end, and give the whole object.

        Args:
            schema: A pydantic class, a TypedDict class, or a JSON schema; None for any
                JSON, with `method="json_mode"`.
            include_raw: Whether to give the message (`raw`), the object (`parsed`) and
                the `parsing_error`. If no answer fits, `parsed` is None, and nothing is
                raised.
            method: How the providers are asked. "auto": each route by its provider's
                own format where its model's profile says that it has one, by a tool
                otherwise. The others hold for every route.
            strict: Whether the provider must guarantee the schema.
            **kwargs: Not supported; any keyword raises `ValueError`.

        Raises:
            ValueError: If a route cannot honour the method, or `strict`, or there are
                other keywords.
        """
        if kwargs:
            msg = f"with_structured_output takes no {', '.join(map(repr, kwargs))}"
            raise ValueError(msg)
        if method not in _METHODS or (schema is None and method != "json_mode"):
            msg = (
                f"method must be one of {', '.join(map(repr, _METHODS))}, and only"
                f" 'json_mode' goes without a schema; not {method!r} with {schema!r}"
            )
            raise ValueError(msg)
        output = OutputFormat(schema)

        def bind(route: Route) -> Route:
            form = output.json_schema
            return route.with_format(output.schema, form, method, strict=strict)

        if method == "auto" and strict is None:
            routes = setup.bound_routes(self.routes, bind, self._memory)
        else:
            routes = [bind(route) for route in self.routes]
        asked = {"method": method, **({} if strict is None else {"strict": strict})}
        router = self._with_routes(routes, {"kwargs": asked, "schema": schema}, output)
        return output.read_from(router, include_raw=include_raw)

    def _with_routes(
        self,
        routes: list[Route],
        output_format: Any,
        output: OutputFormat | None = None,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        memory = copy.copy(self._memory)
        memory.output = output
        router = self.model_copy()  # With other routes it would be a new router.
        vars(router).update(routes=routes, _memory=memory)
        if output_format is not None:
            return router.bind(ls_structured_output_format=output_format)
        return router.bind()  # Of nothing: LangChain's tests ask it of every class.

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """The key of LangChain's cache: what is asked, and not how often.

        Of a class that `dumps` writes, LangChain would take what it wrote; bound copies
        have that of their router, and routes that it cannot write their address.
        """
        params = {**self._get_invocation_params(stop=stop, **kwargs), **kwargs}
        return str(sorted(params.items()))

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Whether LangChain's `dumps` can write it: as far as it can its routes."""
        return True

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """What `dumps` writes; several keys of one integration get names of their own.

        They are numbered in the order of the routes, such as OPENAI_API_KEY_1.
        """
        written: Any = super().to_json()
        names = names_of_keys([route.model for route in self.routes])
        if any(names):
            written["kwargs"]["routes"] = [
                route.model_copy(
                    update={"model": NamedKeys(model=route.model, names=n)}
                )
                for route, n in zip(self.routes, names, strict=True)
            ]
        return cast("SerializedConstructor", written)

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """What `dumps` writes besides the fields, so that nothing is lost silently.

        `loads` refuses what is not data, such as a function or a shared budget.
        """
        own = type(self).model_fields.keys() - BaseChatModel.model_fields.keys()
        own -= {"source"}
        hidden = sorted(name for name in own if type(self).model_fields[name].exclude)
        given = {name: getattr(self, name) for name in hidden}
        policy, default = self.retry_policy, RetryPolicy()
        return {
            **{name: value for name, value in given.items() if value is not None},
            "breaker_settings": self.breaker_settings,
            "retry_policy": {
                one.name: value
                for one in fields(policy)
                if (value := getattr(policy, one.name)) != getattr(default, one.name)
            },
        }

    @property
    def _llm_type(self) -> str:
        return "retry-router-chat"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {
            "routes": [
                {"name": route.name, **route.identity, **route.options}
                for route in self.routes
            ],
            "strategy": self.strategy,
        }

    def _get_ls_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> LangSmithParams:
        first = tracing_params(self.routes[0].model, stop=stop, **kwargs)
        return LangSmithParams(**{**OWN_LS_PARAMS, **first})
