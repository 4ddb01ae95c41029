"""One call on its way along the routes: what an attempt asks, and what came of it.

Between the drive, which says when, and the routes, whose models say how. What a model
raises gets its meaning here, and what it answers is looked at: an answer without the
end that its provider always tells is a broken one, whoever calls it whole.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import (
    AsyncGenerator,
    Callable,
    Generator,
    Iterator,
)
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Generic, Self, TypeVar

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from langchain_retryrouter._providers.errors import name_failure
from langchain_retryrouter._providers.finish_reasons import (
    ChunkReader,
    has_finish_reason,
    reports_finish_reason,
)
from langchain_retryrouter._providers.history import fit_history
from langchain_retryrouter._retry.call_state import RoutedCallState
from langchain_retryrouter._retry.clock import Clock
from langchain_retryrouter._retry.engine import Attempt
from langchain_retryrouter._retry.hedging import AHedgedSource, HedgedSource
from langchain_retryrouter._retry.streaming import AEventSource, ChunkInfo, EventSource
from langchain_retryrouter._retry.timeouts import (
    ThreadedStream,
    reraise_lost_cancellation,
    run_with_timeout,
)
from langchain_retryrouter._router.route import Route
from langchain_retryrouter.errors import BASE_ERRORS, RetryRouterError
from langchain_retryrouter.failures import FailureKind

logger = logging.getLogger(__name__)

S = TypeVar("S")


class EndOfStream:
    """What comes behind the last chunk of a stream that did not break."""


Event = ChatGenerationChunk | EndOfStream

_SAID_ALOUD = frozenset(
    {FailureKind.AUTHENTICATION, FailureKind.PERMISSION, FailureKind.NOT_FOUND}
)
"""Failures of a route that somebody has to mend; to go on quietly would hide them."""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What the caller asked, the same for every route."""

    messages: list[BaseMessage]
    stop: list[str] | None
    options: dict[str, Any]


@dataclass(slots=True)
class RouteAttempt:
    """One attempt: whom it asks, and what."""

    route: Route
    position: int
    messages: list[BaseMessage]
    is_prefilled: bool = False
    rest: PrefixFilter | None = None


class PrefixFilter:
    """Tells what is new in an answer that was asked for anew after being said in part.

    A model seldom says the same twice, so this asks for nothing less than every
    character.
    """

    def __init__(self, delivered: str) -> None:
        """After `delivered` has been handed over."""
        self._missing = delivered

    def begins(self, chunk: ChatGenerationChunk) -> bool:
        """Whether `chunk` is new; the part of its text that is not is taken out of it.

        Raises:
            StreamInterruptedError: This answer is another one.
        """
        text = chunk.text
        if not self._missing or not text:
            return not self._missing
        common = min(len(text), len(self._missing))
        if text[:common] != self._missing[:common]:
            msg = "another attempt gave another answer, which cannot be continued"
            raise BASE_ERRORS[FailureKind.INTERRUPTED](msg, should_retry=False)
        self._missing = self._missing[common:]
        chunk.message.content = text[common:]
        chunk.text = text[common:]
        return bool(text[common:])


class _Wait:
    """The time until something is heard of an attempt, told once."""

    __slots__ = ("_began", "_clock", "_is_over", "_told")

    def __init__(self, clock: Clock, told: Callable[[float], None]) -> None:
        """From now on."""
        self._clock = clock
        self._told = told
        self._is_over = False
        self._began = clock.monotonic()

    def end(self) -> None:
        """Something is heard; the first time counts."""
        if not self._is_over:
            self._is_over = True
            self._told(self._clock.monotonic() - self._began)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.end()


class BaseRouterCall:
    """What both twins know of a call."""

    def __init__(
        self,
        routes: list[Route],
        call_state: RoutedCallState,
        request: ModelRequest,
        clock: Clock,
        measured: Callable[[int, float], None],
    ) -> None:
        """Nothing is asked yet.

        Args:
            routes: In the order of the session's doors.
            session: Where the call stands.
            question: What is asked.
            clock: What tells the time.
            measured: Told of a route, by its place in the order, and the seconds that
                it took to say something, or to say nothing at all.
        """
        self._measured = measured
        self._routes = routes
        self._session = call_state
        self._question = request
        self._clock = clock
        self._failures: list[RetryRouterError] = []
        self._facts: dict[int, dict[str, Any]] = {}
        self._broken: RetryRouterError | None = None
        self._delivered = ""
        self._called_tools = False
        self._no_prefill: set[str] = set()
        self.may_continue = False
        self.hedge_after: float | None = None

    def on_failure(self, error: RetryRouterError) -> None:
        """Keep a failure that another attempt follows."""
        self._failures.append(error)
        if error.kind in _SAID_ALOUD:
            logger.warning("route %r cannot answer: %s", error.route, error)

    def final_error(self, error: RetryRouterError) -> RetryRouterError:
        """The error that leaves: the first route's, the others attached to it."""
        if self._broken is not None:
            return self._broken_for_good(error)
        if error.delivered:
            return error
        failures = [*self._failures, error]
        lead = [one for one in failures if one.route == failures[0].route][-1]
        if lead is not error:
            lead.attempts, lead.is_retryable = error.attempts, error.is_retryable
            for note in getattr(error, "__notes__", ()):
                lead.add_note(note)
        return _with_others(lead, failures)

    def can_continue(self, error: RetryRouterError) -> bool:
        """Whether a stream that broke off after its first token is taken up again."""
        if not (error.delivered and self.may_continue) or self._called_tools:
            return False
        self._broken = self._broken or error
        self._delivered += error.delivered
        return self._session.resume()

    def _broken_for_good(self, error: RetryRouterError) -> RetryRouterError:
        """The error that broke the stream first, with all that was delivered."""
        broken = self._broken or error
        broken.delivered, broken.attempts = self._delivered, self._session.attempts
        return _with_others(broken, [*self._failures, error])

    def hedge(self) -> int | None:
        """The position of a route that has just been asked beside the one under way."""
        return self._session.hedge()

    def settle_hedge(self, *, has_won: bool, error: RetryRouterError | None) -> None:
        """Which of two attempts goes on; and how the other one failed, if it did."""
        failure = None if error is None else error.failure
        self._session.settle_hedge(has_won=has_won, failure=failure)

    def attempt_log(self) -> dict[str, Any]:
        """The call so far, as JSON-able data."""
        attempt_log = self._session.attempt_log()
        for line in attempt_log["attempts"]:
            line.update(self._facts.get(line.get("attempt", 0), {}))
        return attempt_log

    def with_attempt_log(self, result: ChatResult) -> ChatResult:
        """An answer with its ledger."""
        for generation in result.generations:
            self._settle(generation.message)
        attempt_log = self.attempt_log()
        for generation in result.generations:
            generation.message.response_metadata["retryrouter"] = attempt_log
        result.llm_output = {**(result.llm_output or {}), "retryrouter": attempt_log}
        return result

    def passed_on(self, chunk: ChatGenerationChunk) -> ChatGenerationChunk:
        """A chunk without what is the router's to say."""
        self._settle(chunk.message)
        if isinstance(chunk.message, AIMessageChunk):
            if chunk.message.chunk_position is not None:
                chunk.message.chunk_position = None
            self._called_tools |= bool(chunk.message.tool_call_chunks)
        return chunk

    def last_chunk(self) -> ChatGenerationChunk:
        """What the router says itself when a stream is over."""
        metadata = {"retryrouter": self.attempt_log()}
        message = AIMessageChunk(
            content="", response_metadata=metadata, chunk_position="last"
        )
        return ChatGenerationChunk(message=message)

    def new_reader(self) -> Callable[[Event], ChunkInfo]:
        """What tells token and end for the attempt under way."""
        reader = ChunkReader()
        # Asked anew for each route: a hedge may have made it another one.
        tells = cache(
            lambda position: reports_finish_reason(self._routes[position].model)
        )

        def read(event: Event) -> ChunkInfo:
            does_tell = tells(self._session.position)
            if isinstance(event, EndOfStream):
                return ChunkInfo(is_end=not does_tell, is_last=True)
            signal = reader(event)
            if signal.is_end and not does_tell:
                return signal._replace(is_end=False)
            return signal

        return read

    def _settle(self, message: BaseMessage) -> None:
        """Take note of what a route says of itself, and take out its own ledger."""
        own = message.response_metadata.pop("retryrouter", None)
        usage = getattr(message, "usage_metadata", None)
        if own is None and not usage:
            return  # As with nearly every chunk of a stream.
        facts = self._facts.setdefault(self._session.attempt, {})
        if own is not None:
            facts["inside"] = own
        if usage:
            facts["usage"] = dict(usage)

    def _route_attempt(self, position: int | None = None) -> RouteAttempt:
        """What the attempt that has just begun asks, and whom.

        Settled when it begins: a thread that is left to itself finds a call that has
        long since gone on.
        """
        position = self._session.position if position is None else position
        route = self._routes[position]
        facts = self._facts.setdefault(self._session.attempts, {})
        messages, left_out = fit_history(self._question.messages, route.provider)
        if left_out:
            facts["left_out"] = list(left_out)
        fills = route.supports_prefill and route.name not in self._no_prefill
        route_attempt = RouteAttempt(route, position, messages)
        if self._delivered:
            facts |= {"continued_at": len(self._delivered), "prefill": fills}
            if fills:
                route_attempt.is_prefilled = True
                route_attempt.messages = [*messages, AIMessage(content=self._delivered)]
            else:
                route_attempt.rest = PrefixFilter(self._delivered)
        return route_attempt

    def _check_whole(self, result: ChatResult, route: Route) -> None:
        if not result.generations:
            msg = "the answer has no content at all"
            raise BASE_ERRORS[FailureKind.MALFORMED](msg)
        if reports_finish_reason(route.model) and not has_finish_reason(result):
            msg = "the answer came without a finish reason: it may have been cut"
            raise BASE_ERRORS[FailureKind.INTERRUPTED](msg)

    def _timed(self, route_attempt: RouteAttempt) -> _Wait:
        """Tells how long an answer, or a failure, was waited for."""
        return _Wait(self._clock, partial(self._measured, route_attempt.position))

    @contextlib.contextmanager
    def _named_errors(self, route_attempt: RouteAttempt) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            named = name_failure(error, self._clock.time())
            if named is None:
                raise
            if route_attempt.is_prefilled and named.kind is FailureKind.INVALID_REQUEST:
                # A fault of ours and not of the caller's, so the call goes on without.
                self._no_prefill.add(route_attempt.route.name)
                msg = f"{route_attempt.route.name} takes no prefill: {named.message}"
                raise BASE_ERRORS[FailureKind.INTERRUPTED](msg) from error
            if named is error:
                # A model of our own has said how it ended: of itself, not of the call.
                notes = getattr(error, "__notes__", [])
                notes[:] = [f"{route_attempt.route.name}: {note}" for note in notes]
                raise
            raise named from error


def _with_others(
    lead: RetryRouterError, failures: list[RetryRouterError]
) -> RetryRouterError:
    """`lead` with all other failures of the call attached to it, and in its notes."""
    lead.others = tuple(one for one in failures if one is not lead)
    for other in lead.others:
        lead.add_note(f"{other.route}: {type(other).__name__}: {other.message}")
    return lead


class _Hedge(Generic[S]):
    """A trip as a race sees it."""

    def __init__(
        self, router_call: BaseRouterCall, open_rival: Callable[[int], S]
    ) -> None:
        self.after = router_call.hedge_after or 0.0
        self._trip = router_call
        self._open_rival = open_rival

    def begin(self) -> S | None:
        position = self._trip.hedge()
        return None if position is None else self._open_rival(position)

    def settle(self, *, has_won: bool, error: RetryRouterError | None) -> None:
        self._trip.settle_hedge(has_won=has_won, error=error)


def says(event: Event) -> bool:
    """Whether an event is worth having won a race with."""
    return isinstance(event, EndOfStream) or ChunkReader()(event).is_token


class RouterCall(BaseRouterCall):
    """One call of sync models."""

    def generate(self, attempt: Attempt) -> ChatResult:
        """One attempt's answer."""
        route_attempt, asked = self._route_attempt(), self._question
        with self._named_errors(route_attempt), self._timed(route_attempt):
            ask = partial(
                route_attempt.route.generate, route_attempt.messages, asked.stop
            )
            result = run_with_timeout(attempt.timeout, partial(ask, asked.options))
        self._check_whole(result, route_attempt.route)
        return result

    def connect(self, attempt: Attempt) -> EventSource[Event]:
        """One attempt's stream; in a thread where it may have to be cut short."""
        events = self._events(self._route_attempt())
        if self.hedge_after is not None:
            return HedgedSource(ThreadedStream(events), _Hedge(self, self._rival), says)
        if attempt.timeout is None and self._session.policy.stall_timeout is None:
            return _Direct(events)
        return ThreadedStream(events)

    def _rival(self, position: int) -> EventSource[Event]:
        return ThreadedStream(self._events(self._route_attempt(position)))

    def _events(self, route_attempt: RouteAttempt) -> Generator[Event, None, None]:
        asked = self._question
        with self._named_errors(route_attempt), self._timed(route_attempt) as wait:
            chunks = route_attempt.route.stream(
                route_attempt.messages, asked.stop, asked.options
            )
            with contextlib.closing(chunks):
                for chunk in chunks:
                    wait.end()
                    if route_attempt.rest is None or route_attempt.rest.begins(chunk):
                        yield chunk
        yield EndOfStream()


class AsyncRouterCall(BaseRouterCall):
    """One call of async models."""

    async def generate(self, attempt: Attempt) -> ChatResult:
        """One attempt's answer, within the time that whoever awaits it gives."""
        del attempt
        route_attempt, asked = self._route_attempt(), self._question
        with (
            self._named_errors(route_attempt),
            self._timed(route_attempt),
            reraise_lost_cancellation(),
        ):
            result = await route_attempt.route.agenerate(
                route_attempt.messages, asked.stop, asked.options
            )
        self._check_whole(result, route_attempt.route)
        return result

    async def connect(self, attempt: Attempt) -> AEventSource[Event]:
        """One attempt's stream."""
        del attempt
        events = _AsyncDirect(self._events(self._route_attempt()))
        if self.hedge_after is not None:
            return AHedgedSource(events, _Hedge(self, self._rival), says)
        return events

    def _rival(self, position: int) -> AEventSource[Event]:
        return _AsyncDirect(self._events(self._route_attempt(position)))

    async def _events(self, route_attempt: RouteAttempt) -> AsyncGenerator[Event, None]:
        asked = self._question
        with self._named_errors(route_attempt), self._timed(route_attempt) as wait:
            chunks = route_attempt.route.astream(
                route_attempt.messages, asked.stop, asked.options
            )
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    wait.end()
                    if route_attempt.rest is None or route_attempt.rest.begins(chunk):
                        yield chunk
        yield EndOfStream()


class _Direct:
    """The events of a generator, read where they are wanted."""

    def __init__(self, events: Generator[Event, None, None]) -> None:
        self._events = events

    def __iter__(self) -> Iterator[Event]:
        return self._events

    def abort(self) -> None:
        """Nothing that could be done: a route's own time limit holds."""

    def close(self) -> None:
        self._events.close()


class _AsyncDirect:
    """Async twin of `_Direct`."""

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        self._events = events

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        with reraise_lost_cancellation():
            return await anext(self._events)

    async def aclose(self) -> None:
        await self._events.aclose()
