"""One call of a `RetryRouter`: its attempts, and what becomes of their answers.

The engine (`_retry.engine`, `_retry.streaming`) decides when an attempt is made, and
asks `RouterCall` to make it. An attempt asks the model of one route, gives each
exception its meaning, and judges the answer: an answer that is empty, filtered or cut
is a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import (
    AsyncGenerator,
    Callable,
    Generator,
    Mapping,
)
from operator import attrgetter
from traceback import clear_frames
from typing import Any, Final, NamedTuple, Self, TypeAlias, TypeGuard, TypeVar

from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.messages.ai import add_usage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ValidationError

from langchain_retryrouter._callbacks import AnyRunManager, name_served, observe_run
from langchain_retryrouter._prices import write_costs
from langchain_retryrouter._providers.errors import (
    MOST_STALE,
    PAYLOADS,
    is_of_closed_loop,
    name_failure,
    safe_getattr,
)
from langchain_retryrouter._providers.finish_reasons import (
    StreamCheck,
    check_result,
    is_more_than_text,
    reason_in,
)
from langchain_retryrouter._providers.history import fit_history, foreign_response_id
from langchain_retryrouter._providers.integrations import (
    UNKNOWN_INTEGRATION,
    integration_of,
    keys_of,
    tracing_params,
)
from langchain_retryrouter._retry.call_log import AttemptRecord
from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK
from langchain_retryrouter._retry.engine import Attempt, RetryContext
from langchain_retryrouter._retry.hedging import AHedgedSource, HedgedSource
from langchain_retryrouter._retry.limits import call_limits
from langchain_retryrouter._retry.streaming import ChunkInfo
from langchain_retryrouter._retry.timeouts import (
    END,
    AEventSource,
    End,
    EventSource,
    refuse_given_up,
    reraise_lost_cancellation,
)
from langchain_retryrouter._router.costs import CallCosts
from langchain_retryrouter._router.outcomes import (
    AnswerJudge,
    CallersError,
    PrefixFilter,
    RouteAttempt,
    StreamBlocks,
    kept_apart,
    lead_of,
    whole_message,
    with_info,
    with_others,
)
from langchain_retryrouter._router.preflight import (
    ModelRequest,
    conversation_of,
    limited_policy,
    skipped_routes,
)
from langchain_retryrouter._router.route import in_blocks, rate_limits_of
from langchain_retryrouter._router.setup import (
    FailoverRule,
    RouterFields,
    RouterMemory,
    check_action,
)
from langchain_retryrouter.errors import BASE_ERRORS, LengthLimitError, RetryRouterError
from langchain_retryrouter.failures import FAILURE_ACTIONS, FailureAction, FailureKind

logger = logging.getLogger(__name__)

OWN_LS_PARAMS: Final = LangSmithParams(ls_provider="retryrouter", ls_model_type="chat")
"""For tracers, where a route does not say it itself."""

_S = TypeVar("_S")
# Messages with their finish reasons.
_Answers: TypeAlias = list[tuple[BaseMessage, str | None]]

_LOGGED: Final = frozenset(
    {
        FailureKind.AUTHENTICATION,
        FailureKind.PERMISSION,
        FailureKind.NOT_FOUND,
        FailureKind.INVALID_REQUEST,
        FailureKind.UNKNOWN,
    }
)
"""Failures that need a human: a silent failover would hide them."""

_REJECTED: Final = frozenset(
    {FailureKind.INVALID_REQUEST, FailureKind.UNKNOWN, FailureKind.NOT_FOUND}
)
"""Failures that content of other authors may cause."""
_MISSES_ITEM: Final = re.compile(r"(?i)\b(?:response|item|container|file)s?\b")
# Of a 400 that is about the way in which JSON was asked for.
_ABOUT_FORMAT: Final = re.compile(
    r"schema|response.?(?:format|mime)|output.?(?:config|format)"
    r"|structured.?output|json.?mode",
    re.IGNORECASE,
)


class StreamEvent(NamedTuple):
    """One chunk of a stream and what it means; without a chunk, the end of it."""

    chunk: ChatGenerationChunk | None
    info: ChunkInfo


info_of: Final = attrgetter("info")
"""What an event means: already known when the event is made."""


class FailoverRules:
    """What follows failures, by the caller's `failover_on`.

    `actions` are those of each kind, and `hears_length` is whether an answer that a
    token limit cut is a failure.
    """

    def __init__(self, failover_on: FailoverRule | list[FailoverRule]) -> None:
        self._rules = failover_on if isinstance(failover_on, list) else [failover_on]
        # The first rule with an action counts, so it comes last here.
        mappings = [one for one in reversed(self._rules) if isinstance(one, dict)]
        own = {what: action for one in mappings for what, action in one.items()}
        self.hears_length = FailureKind.LENGTH in own or LengthLimitError in own
        kinds = {what: own[what] for what in own if isinstance(what, FailureKind)}
        self.actions = {**FAILURE_ACTIONS, **kinds}

    def action_for(self, error: RetryRouterError) -> FailureAction | None:
        """What a class or a function says of a failure; None if none does."""
        cause = error.__cause__
        raised = cause if isinstance(cause, Exception) else error
        for rule in self._rules:
            if callable(rule):
                if (action := rule(raised)) is not None:
                    name = getattr(rule, "__name__", repr(rule))
                    return check_action(action, f"failover_on: {name}(...)")
                continue
            for failure, action in rule.items():
                if isinstance(failure, type) and (
                    isinstance(raised, failure) or isinstance(error, failure)
                ):
                    return action
        return None


class RouterCall:
    """One call: its routes, attempts, failures, continued streams, and attempt log.

    `is_over` is whether the answer is complete: a stream that is continued takes
    several passes of the engine.
    """

    def __init__(
        self,
        router: RouterFields,
        memory: RouterMemory,
        request: ModelRequest,
        run: AnyRunManager | None,
    ) -> None:
        """Choose the routes; a `ContextLengthError` if none can hold the prompt."""
        self._router, self._memory = router, memory
        self._request, self._run = request, run
        self._clock = clock = router.clock or SYSTEM_CLOCK
        self._conversation = None
        if router.affinity is not None:
            metadata = getattr(run, "metadata", None)
            self._conversation = conversation_of(request.messages, metadata)
        now, is_open = clock.monotonic(), memory.is_open
        order = memory.order.order(now, is_open, self._conversation)
        order = [index for index in order if not router.routes[index].status.unfit]
        skipped, error = skipped_routes([router.routes[i] for i in order], request)
        if error is None:
            order = [i for i in order if router.routes[i].name not in skipped]
        self._order = order
        self._routes = routes = [router.routes[index] for index in order]
        self._attempts: dict[int, RouteAttempt] = {}
        self._costs = CallCosts(
            routes,
            request,
            self._attempts,
            memory.outputs,
            router.max_cost,
            router.spend_limit,
        )
        self._failover = FailoverRules(router.failover_on)
        hears_length = self._failover.hears_length
        self._judge = AnswerJudge(router.accept, hears_length, memory.output)
        accepts = (router.accept, *(route.accept for route in routes))
        self._needs_whole = hears_length or any(
            one is not None for one in (memory.output, *accepts)
        )
        everywhere = [] if router.rate_limit is None else [router.rate_limit]
        self._state = CallState(
            limited_policy(router.retry_policy, memory.places),
            [memory.route_states[index] for index in order],
            budget=router.budget,
            time=clock,
            actions=self._failover.actions,
            request_hash=request.hash,
            describe=lambda position: routes[position].subject,
            limits=call_limits(
                [[*everywhere, *rate_limits_of(route)] for route in routes],
                lambda at: routes[at].size_of(request.messages, request.options),
            ),
            reserve=self._costs.reserve if self._costs.is_limited else None,
            spend_limits=self._costs.limits,
        )
        observe_run(self._state, run, trace_attempts=router.trace_attempts)
        self._state.records += [
            AttemptRecord(None, route, "skipped", reason=reason)
            for route, reason in skipped.items()
        ]
        if error is not None:
            self._state.open()
            self._state.end(error)
            error.attempt_log = self._state.attempt_log()
            raise error
        self._state.cost_of = self._costs.cost_of
        self.is_over = False
        self._may_continue = router.stream_recovery == "continue"
        self._failures: list[RetryRouterError] = []
        self._interrupted: RetryRouterError | None = None
        self.continued: RetryRouterError | None = None  # The last one.
        self._delivered = ""
        self._has_delivered = False
        self._blocks: StreamBlocks | None = None  # If the first that delivers has them.
        self._said_more_than_text = False
        self._passes = 0  # How often the stream broke off and was taken up again.
        self._authors = {route.name: route.reader for route in routes}
        self._refused_prefill: set[str] = set()
        self._strict: set[str] = set()
        self._metadata: dict[str, str] = {}

    def context(self) -> RetryContext:
        """The call for the engine.

        It is not kept here: a cycle would keep the models' connections open for long.
        """
        return RetryContext(
            self._state,
            errors=BASE_ERRORS,
            on_failure=self._on_failure,
            action=self._action_for,
            rate_limiters=tuple(route.model.rate_limiter for route in self._routes),
            is_buffered=self._router.stream_recovery == "buffer" or self._needs_whole,
            ends_call=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: object, error: BaseException | None, traceback: object
    ) -> bool:
        """Raise the error that the caller gets, unless another pass continues."""
        self.is_over = error is None
        self._costs.settle(self._state.records)
        if isinstance(error, CallersError) and error.__cause__ is not None:
            self._state.end(error.__cause__)
            raise error.__cause__
        if not isinstance(error, RetryRouterError):
            if error is not None and self._has_delivered:
                self._keep_conversation()  # The caller has left a stream that was well.
            self._state.end(error)
            return False
        if self._begin_continuation(error):
            return True
        final = self._final_error(error)
        self._state.end(final)
        final.attempt_log = self._attempt_log()
        raise final

    def _on_failure(self, error: RetryRouterError) -> None:
        """Keep a failure that another attempt follows."""
        self._costs.settle(self._state.records)
        self._measure_failed()
        self._failures.append(error)
        if error.kind in _LOGGED:
            cause = error.__cause__ if error.kind is FailureKind.UNKNOWN else None
            logger.warning(
                "route %r cannot answer: %s", error.route, error, exc_info=cause
            )

    def _action_for(self, error: RetryRouterError) -> FailureAction | None:
        """What follows a failure instead of the action for its kind, if anything.

        A model that has seen its mistake, and repeats it, is not asked again.
        """
        own = self._failover.action_for(error)
        if own is None and error is self._judge.hopeless:
            return FailureAction.FAILOVER
        return own

    def _final_error(self, error: RetryRouterError) -> RetryRouterError:
        """The error that the caller gets, with the others attached.

        The first route's; or the one that was not to be followed by another route, such
        as the refusal of a content filter.
        """
        self._measure_failed()
        if self._interrupted is not None:
            lead = self._interrupted
            lead.delivered, lead.attempts = self._delivered, self._state.attempts
            lead.is_retryable = False  # A caller that retried would multiply the load.
            return with_others(lead, [*self._failures, error])
        is_raised = bool(error.delivered) or self._state.is_raised
        return lead_of([*self._failures, error], is_raised=is_raised)

    def _begin_continuation(self, error: RetryRouterError) -> bool:
        """Let another attempt continue a stream that broke; whether one can.

        Tool calls, images and refused answers are never continued. After thoughts
        without any text, another attempt begins its answer anew.
        """
        broke_off = bool(error.delivered) or self._state.broke_off
        if not (broke_off and self._may_continue) or self._said_more_than_text:
            return False
        if error.kind is FailureKind.CONTENT_FILTER:
            return False
        self._interrupted = self._interrupted or error
        self.continued = error
        self._delivered += error.delivered
        self._passes += 1
        self._metadata.clear()
        has_next = self._state.resume()
        if has_next:
            size = len(self._delivered)
            self._state.tell("continued", route=self._state.next_route, characters=size)
        return has_next

    def _attempt_log(self) -> dict[str, Any]:
        """The call so far, as JSON-able data."""
        log, records = self._state.attempt_log(), self._state.records
        for line, record in zip(log["attempts"], records, strict=True):
            if (attempt := self._attempts.get(record.number or 0)) is not None:
                line.update(attempt.facts)
        write_costs(log, [self._costs.price(record) for record in records])
        return log

    def _keep_conversation(self) -> None:
        """Keep the conversation on the route that answers."""
        if self._conversation is not None:
            index, now = self._order[self._state.position], self._clock.monotonic()
            self._memory.order.served(self._conversation, index, now)

    def _note_served(self) -> None:
        """Keep the conversation there, and name the model that answered to tracers."""
        self._keep_conversation()
        served = self._routes[self._state.position]
        if self._run is not None and served is not self._router.routes[0]:
            params = tracing_params(served.model, **served.options)
            name_served(self._run, {**OWN_LS_PARAMS, **params})

    def with_attempt_log(self, result: ChatResult) -> ChatResult:
        """An answer with the call's attempt log."""
        self._note_served()
        log = self._attempt_log()
        # The model may keep its own message, and give it again.
        generations = []
        for one in result.generations:
            metadata = {**one.message.response_metadata, "retryrouter": log}
            message = one.message.model_copy(update={"response_metadata": metadata})
            generations.append(one.model_copy(update={"message": message}))
        output = {**(result.llm_output or {}), "retryrouter": log}
        return ChatResult(generations=generations, llm_output=output)

    def passed_on(self, chunk: ChatGenerationChunk) -> ChatGenerationChunk:
        """A chunk without what only the router may say: the log, and which is last."""
        if not self._has_delivered:
            self._has_delivered = True
            route = self._routes[self._state.position]
            if route.model.output_version == "v1":
                self._blocks = StreamBlocks()
        if not self._said_more_than_text:
            self._said_more_than_text = is_more_than_text(chunk)
        message = chunk.message
        is_only_text = not (
            self._blocks
            or self._passes
            or chunk.generation_info
            or message.response_metadata
            or getattr(message, "usage_metadata", None)
            or getattr(message, "chunk_position", None)
        )
        return chunk if is_only_text else self._rewritten(chunk)

    def _rewritten(self, chunk: ChatGenerationChunk) -> ChatGenerationChunk:
        """A copy of a chunk, since the model may keep its own, and give it again."""
        message = chunk.message
        if self._blocks is not None:
            message = self._blocks.in_blocks(message)
        metadata = {**message.response_metadata}
        info = {**(chunk.generation_info or {})}
        update: dict[str, Any] = {"response_metadata": metadata}
        if isinstance(message, AIMessageChunk):
            update["chunk_position"] = None
        if self._passes:
            update["content"] = kept_apart(message.content, self._passes)
        message = message.model_copy(update=update)
        self._take_facts(message, info)
        for one in (metadata, info) if self._may_continue else ():
            self._hold_metadata(one)
        return chunk.model_copy(update={"message": message, "generation_info": info})

    def last_chunk(self) -> ChatGenerationChunk:
        """The router's own last chunk, with the attempt log."""
        self._note_served()
        metadata = {**self._metadata, "retryrouter": self._attempt_log()}
        message = AIMessageChunk(
            content="", response_metadata=metadata, chunk_position="last"
        )
        return ChatGenerationChunk(message=message)

    def _hold_metadata(self, metadata: dict[str, Any]) -> None:
        """Keep texts such as the model's name for the last chunk.

        LangChain joins the texts of all chunks, and those of an attempt that was
        interrupted would be in front of those of the attempt that continued it.
        """
        for name in [name for name, value in metadata.items() if type(value) is str]:
            # Content is parsed by these two; of several attempts the first one's stay.
            if name not in {"model_provider", "output_version"}:
                self._metadata[name] = metadata.pop(name)
            elif self._interrupted is not None:
                del metadata[name]

    def _take_facts(
        self, message: BaseMessage, info: Mapping[str, Any] | None = None
    ) -> None:
        """Note a route's usage and take its own attempt log out of the message."""
        attempt = self._attempts[self._state.attempt]
        self._note(message, attempt, info)
        message.response_metadata.pop("retryrouter", None)

    def _note(
        self,
        message: BaseMessage,
        attempt: RouteAttempt,
        *infos: Mapping[str, Any] | None,
    ) -> None:
        """Tell the observers what an answer, or a part of it, says of itself.

        `infos` are what LangChain adds to the message's metadata later.
        """
        inner = message.response_metadata.get("retryrouter")
        if inner and attempt.route.is_own:
            attempt.facts["inside"] = inner
            self._state.sent_inside(attempt.number, inner)
        if not self._state.wants_facts:
            return
        says: dict[str, Any] = {}
        for info in (*infos, message.response_metadata):
            says |= info or {}
        reason, usage = reason_in(says), attempt.facts.get("usage")
        facts: dict[str, Any] = {
            "usage": usage or getattr(message, "usage_metadata", None),
            "model": says.get("model_name") or says.get("model"),
            "finish_reasons": [reason] if reason else None,
        }
        prices = attempt.route.prices
        if prices is not None and facts["usage"]:
            facts["cost"] = prices.cost(facts["usage"])
        self._state.answered(attempt.number, **{n: v for n, v in facts.items() if v})

    def _read_headers(self, attempt: RouteAttempt, answer: ChatGeneration) -> None:
        """Correct the rate limits by the headers that a model hands on, if it does."""
        if info := answer.generation_info:
            self._state.read_headers(attempt.number, info.get("headers"))

    def _begin(self, position: int | None = None) -> RouteAttempt:
        """The attempt that has just begun, on the route at `position`."""
        position = self._state.position if position is None else position
        route = self._routes[position]
        by_tool = route.status.by_tool
        if by_tool is not None and route.name in self._memory.output.refused:
            route = by_tool
        number, began = self._state.attempts, self._clock.monotonic()
        attempt = RouteAttempt(route, position, number, began)
        attempt.is_strict = route.name in self._strict
        self._fit(attempt)
        self._attempts[number] = attempt
        return attempt

    def _fit(self, attempt: RouteAttempt) -> None:
        """Give an attempt the messages and options that its route can read."""
        route, request = attempt.route, self._request
        attempt.messages, left_out = fit_history(
            request.messages, route.reader, self._authors, is_strict=attempt.is_strict
        )
        options = request.options
        response_id = options.get("previous_response_id")
        if response_id is not None and (
            attempt.is_strict
            or foreign_response_id(
                response_id, request.messages, route.reader, self._authors
            )
        ):
            options = {**options}
            del options["previous_response_id"]
            left_out = (*left_out, "previous_response_id")
        attempt.options = route.call_options(options, request.stop)
        attempt.facts.pop("left_out", None)
        if left_out:
            attempt.facts["left_out"] = list(left_out)
        repairs = self._judge.repairs.get(attempt.position, ())
        attempt.messages = [*attempt.messages, *repairs]
        if self._delivered:
            # Providers refuse a prefill that ends in white space.
            text = self._delivered.rstrip()
            refused = not text or route.name in self._refused_prefill
            prefill = None if refused else route.prefill(text)
            attempt.is_prefilled = prefill is not None
            attempt.facts["continued_at"] = len(self._delivered)
            attempt.facts["prefill"] = attempt.is_prefilled
            expected, space = self._delivered, ""
            if prefill is not None:
                attempt.messages = [*attempt.messages, prefill]
                space = self._delivered[len(text) :]
                if not route.may_repeat_prefill:
                    expected = space
            attempt.prefix = PrefixFilter(
                expected, is_optional=attempt.is_prefilled or not text, space=space
            )

    def _amend(self, attempt: RouteAttempt, error: Exception) -> bool:
        """Whether a request that was rejected is to be sent again in a plainer form.

        A prefill was our idea, and so was what is left of other models' answers: the
        caller's request is not to fail because of them. The first time the prefill is
        left out, the second time all that may be particular to one author.

        A client that served another `asyncio.run` still has connections of that event
        loop, and they say nothing about the provider: the request is sent as it was.
        """
        named = self._name(error, attempt)
        name, by_tool = attempt.route.name, attempt.route.status.by_tool
        is_missing = named.kind is FailureKind.NOT_FOUND
        if is_of_closed_loop(error):
            resent = attempt.facts["resent"] = attempt.facts.get("resent", 0) + 1
            if resent >= MOST_STALE:
                return False
            self._costs.send_again(attempt.position, attempt.number)
        elif named.kind not in _REJECTED or (
            is_missing and not _MISSES_ITEM.search(named.message)
        ):
            return False
        elif by_tool is not None and _ABOUT_FORMAT.search(named.message):
            attempt.route = by_tool
            self._fit(attempt)
            self._memory.output.refused.add(name)
        else:
            if attempt.is_prefilled:
                self._refused_prefill.add(name)
            elif attempt.is_strict:
                return False
            else:
                attempt.is_strict = True
            before = (attempt.messages, attempt.options)
            self._fit(attempt)
            if (attempt.messages, attempt.options) == before:
                return False
            if attempt.is_strict:
                self._strict.add(name)
            attempt.facts["rejected"] = named.message
        self._state.resent(attempt.number, named.failure)
        return True

    def heard(self, attempt: RouteAttempt, *, has_failed: bool = False) -> None:
        """Measure the seconds until the first sign of life, or of failure."""
        if not attempt.was_heard:
            attempt.was_heard = True
            index, now = self._order[attempt.position], self._clock.monotonic()
            self._memory.order.strategy.measured(
                index, now - attempt.began, now, has_failed=has_failed
            )

    def _measure_failed(self) -> None:
        """Measure attempts that failed: one that timed out may still be running."""
        for attempt in self._attempts.values():
            self.heard(attempt, has_failed=True)

    def _name(self, error: BaseException, attempt: RouteAttempt) -> RetryRouterError:
        keys = [key for model in attempt.route.models for key in keys_of(model)]
        return name_failure(error, self._clock.time(), keys)

    def named(self, error: BaseException, attempt: RouteAttempt) -> RetryRouterError:
        """What a route's model raised, as an error with a kind."""
        named = self._name(error, attempt)
        headers = safe_getattr(safe_getattr(error, "response"), "headers")
        self._state.read_headers(attempt.number, headers)
        is_unread = named.kind is FailureKind.UNKNOWN
        if is_unread and self._memory.output and isinstance(error, ValidationError):
            return self._judge.misfit(attempt, error)  # Parsed by the SDK itself.
        is_key = isinstance(error, KeyError) and PAYLOADS.issuperset(error.args)
        if is_key and integration_of(attempt.route.model) is not UNKNOWN_INTEGRATION:
            # The answer lacks what each answer has.
            msg = f"the provider's answer has no field {error}"
            return BASE_ERRORS[FailureKind.MALFORMED](msg)
        if named.attempt_log is not None:  # Of a model of our own, with attempts.
            attempt.facts["inside"] = named.attempt_log
            self._state.sent_inside(attempt.number, named.attempt_log)
        if named is error:
            # A model of our own has noted how it ended, of itself, not of the call.
            notes = getattr(error, "__notes__", [])
            notes[:] = [f"{attempt.route.name}: {note}" for note in notes]
        return named

    def _check(self, result: ChatResult, attempt: RouteAttempt) -> _Answers:
        """The answers that are to be judged, as the caller gets them."""
        for generation in result.generations:
            message = generation.message
            if usage := getattr(message, "usage_metadata", None):
                attempt.facts["usage"] = dict(usage)
            self._note(message, attempt, result.llm_output, generation.generation_info)
            self._read_headers(attempt, generation)
        route = attempt.route
        reasons = check_result(result, needs_reason=route.needs_reason("generate"))
        if None not in reasons:
            route.learn_reason("generate")
        if not self._needs_whole:
            return []
        shared = result.llm_output if len(result.generations) == 1 else None
        messages = [
            with_info(generation.message, shared, generation.generation_info)
            for generation in result.generations
        ]
        return list(zip(messages, reasons, strict=True))

    def _hedged(
        self, events_of: Callable[[RouteAttempt], _S], race: Callable[..., _S]
    ) -> _S:
        """One attempt's events; a second route is asked as well after a silence."""
        events, state = events_of(self._begin()), self._state
        if self._router.hedge_after is None:
            return events

        def may_send(position: int) -> bool:
            limiter = self._routes[position].model.rate_limiter
            return limiter is None or limiter.acquire(blocking=False)

        def second() -> _S | None:
            position = state.hedge(may_send)
            return None if position is None else events_of(self._begin(position))

        return race(
            state,
            events,
            self._router.hedge_after,
            second,
            lambda event: event.info.is_token or event.info.is_end,
        )

    def _read(
        self, chunk: ChatGenerationChunk, attempt: RouteAttempt, check: StreamCheck
    ) -> tuple[StreamEvent, ...]:
        """The events of one chunk: none where it is kept back or already known."""
        if not attempt.was_heard:
            self.heard(attempt)
        self._read_headers(attempt, chunk)
        if self._needs_whole:
            attempt.chunks.append(chunk)
        if usage := getattr(chunk.message, "usage_metadata", None):
            # Some providers send it in parts.
            usage = add_usage(attempt.facts.get("usage"), usage)
            attempt.facts["usage"] = dict(usage)
        attempt.received = (attempt.received or 0) + len(chunk.text)
        info = check.read(chunk)
        if info is None:
            return ()
        if attempt.prefix is not None:
            new = attempt.prefix.strip(chunk)
            if new is None:
                return ()
            chunk, info = new, info._replace(text=new.text)
        if self._needs_whole:
            info = info._replace(is_end=False)  # Its judges have the last word.
        event = StreamEvent(chunk, info)
        return (*self._released(check), event) if check.held else (event,)

    @staticmethod
    def _new_check(attempt: RouteAttempt) -> StreamCheck:
        # What is continued may have been whole but for its end.
        needs_reason = attempt.route.needs_reason("stream")
        return StreamCheck(needs_reason=needs_reason, may_be_empty=attempt.is_prefilled)

    def _end(
        self, attempt: RouteAttempt, check: StreamCheck
    ) -> tuple[list[StreamEvent], _Answers]:
        """The last events of a stream that did not break, and what is to be judged."""
        info = check.end()
        if attempt.prefix is not None:
            attempt.prefix.end()
        if check.reason is not None:
            attempt.route.learn_reason("stream")
        events = [*self._released(check), StreamEvent(None, info)]
        if attempt.prefix is not None and attempt.prefix.facts is not None:
            events.insert(0, StreamEvent(attempt.prefix.facts, ChunkInfo()))
        if not self._needs_whole:
            return events, []
        whole = whole_message(attempt.chunks)
        if attempt.route.model.output_version == "v1":
            whole = in_blocks(whole)
        self._note(whole, attempt)
        return events, [(whole, check.reason)]

    @staticmethod
    def _released(check: StreamCheck) -> list[StreamEvent]:
        """The chunks that were kept back."""
        held, check.held = check.held, []
        return [StreamEvent(chunk, ChunkInfo()) for chunk in held]

    # --- attempts ---

    def generate(self, _: Attempt) -> ChatResult:
        """One attempt's answer."""
        begun = self._begin()
        with _Reported(self, begun):
            while True:
                try:
                    route = begun.route.keyed()
                    refuse_given_up()
                    result, entry = route.generate(begun.messages, begun.options)
                    break
                except Exception as error:
                    if not self._amend(begun, error):
                        raise
            refuse_given_up()
            answers = self._check(result, begun)
        for message, reason in answers:
            self._judge.judge(message, reason, begun)
        if entry is not None:
            entry.update()
        return result

    def connect(self, _: Attempt) -> EventSource[StreamEvent]:
        """One attempt's stream."""
        return self._hedged(self._events, HedgedSource)

    def _events(self, attempt: RouteAttempt) -> Generator[StreamEvent, None, None]:
        attempt.received = 0
        with _Reported(self, attempt):
            while True:
                check = self._new_check(attempt)
                try:
                    route = attempt.route.keyed()
                    refuse_given_up()
                    chunks, entry = route.stream(attempt.messages, attempt.options)
                    with contextlib.ExitStack() as stack:
                        if hasattr(chunks, "close"):  # As a generator has.
                            stack.callback(chunks.close)
                        for chunk in chunks:
                            yield from self._read(chunk, attempt, check)
                    break
                except Exception as error:
                    if check.saw_chunk or not self._amend(attempt, error):
                        # An open response that they hold would be closed by a garbage
                        # collection, which may come while httpcore holds its lock.
                        clear_frames(error.__traceback__)
                        raise
            refuse_given_up()
            events, answers = self._end(attempt, check)
        for message, reason in answers:
            self._judge.judge(message, reason, attempt)
        if entry is not None:
            entry.update()
        yield from events

    async def agenerate(self, _: Attempt) -> ChatResult:
        """Async variant of `generate`."""
        begun = self._begin()
        with _Reported(self, begun), reraise_lost_cancellation():
            while True:
                try:
                    route = await begun.route.akeyed()
                    messages, options = begun.messages, begun.options
                    result, entry = await route.agenerate(messages, options)
                    break
                except Exception as error:
                    if not self._amend(begun, error):
                        raise
            answers = self._check(result, begun)
        for message, reason in answers:
            await self._judge.ajudge(message, reason, begun)
        if entry is not None:
            await entry.aupdate()
        return result

    async def aconnect(self, _: Attempt) -> AEventSource[StreamEvent]:
        """Async variant of `connect`."""
        return self._hedged(self._aevents, AHedgedSource)

    async def _aevents(
        self, attempt: RouteAttempt
    ) -> AsyncGenerator[StreamEvent, None]:
        attempt.received = 0
        with _Reported(self, attempt):
            while True:
                check = self._new_check(attempt)
                try:
                    with reraise_lost_cancellation():
                        route = await attempt.route.akeyed()
                        messages, options = attempt.messages, attempt.options
                        found, entry = await route.astream(messages, options)
                    chunks = aiter(found)
                    async with contextlib.AsyncExitStack() as stack:
                        if hasattr(chunks, "aclose"):
                            stack.push_async_callback(chunks.aclose)
                        while True:
                            with reraise_lost_cancellation():
                                chunk = await anext(chunks, END)
                            if isinstance(chunk, End):
                                break
                            for event in self._read(chunk, attempt, check):
                                yield event
                    break
                except Exception as error:
                    if check.saw_chunk or not self._amend(attempt, error):
                        raise
            events, answers = self._end(attempt, check)
        for message, reason in answers:
            await self._judge.ajudge(message, reason, attempt)
        if entry is not None:
            await entry.aupdate()
        for event in events:
            yield event


class _Reported:
    """Raise what a model raises as an error with a kind; measure its time.

    A class, since `contextlib.contextmanager` takes what is raised from a StopIteration
    for that StopIteration.
    """

    def __init__(self, call: RouterCall, attempt: RouteAttempt) -> None:
        self._call, self._attempt = call, attempt

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: object, error: BaseException | None, traceback: object
    ) -> None:
        if not self._is_models(error):
            self._call.heard(self._attempt)
            return
        named = self._call.named(error, self._attempt)
        # A refusal of the prompt is an answer, and may be a quick one.
        is_answer = named.kind is FailureKind.CONTENT_FILTER
        self._call.heard(self._attempt, has_failed=not is_answer)
        if named is not error:
            raise named from error

    @staticmethod
    def _is_models(error: BaseException | None) -> TypeGuard[BaseException]:
        """Whether the model has raised it, and not this call been cancelled."""
        if isinstance(error, asyncio.CancelledError):
            with contextlib.suppress(RuntimeError):  # In a thread.
                task = asyncio.current_task()
                return task is not None and not task.cancelling()
            return True
        return isinstance(error, Exception)
