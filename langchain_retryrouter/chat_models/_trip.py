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

from langchain_retryrouter._core.failure import FailureKind
from langchain_retryrouter._core.routing import RoutingSession
from langchain_retryrouter._core.streaming import Signal
from langchain_retryrouter._drive import AEventSource, Attempt, Clock, EventSource
from langchain_retryrouter._drive.cancels import heeding_cancels
from langchain_retryrouter._drive.hedging import AHedgedSource, HedgedSource
from langchain_retryrouter._drive.threads import PumpedSource, within
from langchain_retryrouter._router.ends import (
    ChunkReader,
    names_its_end,
    tells_the_end,
)
from langchain_retryrouter._router.failures import name_failure
from langchain_retryrouter._router.history import fit_history
from langchain_retryrouter.chat_models._routes import Route
from langchain_retryrouter.errors import BASE_ERRORS, RetryRouterError

logger = logging.getLogger(__name__)

S = TypeVar("S")


class Whole:
    """What comes behind the last chunk of a stream that did not break."""


Event = ChatGenerationChunk | Whole

_SAID_ALOUD = frozenset(
    {FailureKind.AUTHENTICATION, FailureKind.PERMISSION, FailureKind.NOT_FOUND}
)
"""Failures of a route that somebody has to mend; to go on quietly would hide them."""


@dataclass(frozen=True, slots=True)
class Question:
    """What the caller asked, the same for every route."""

    messages: list[BaseMessage]
    stop: list[str] | None
    options: dict[str, Any]


@dataclass(slots=True)
class _Leg:
    """One attempt: whom it asks, and what."""

    route: Route
    position: int
    messages: list[BaseMessage]
    is_prefilled: bool = False
    rest: Rest | None = None


class Rest:
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


class _Trip:
    """What both twins know of a call."""

    def __init__(
        self,
        routes: list[Route],
        session: RoutingSession,
        question: Question,
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
        self._session = session
        self._question = question
        self._clock = clock
        self._failures: list[RetryRouterError] = []
        self._facts: dict[int, dict[str, Any]] = {}
        self._broken: RetryRouterError | None = None
        self._delivered = ""
        self._called_tools = False
        self._no_prefill: set[str] = set()
        self.may_continue = False
        self.hedge_after: float | None = None

    def learn(self, error: RetryRouterError) -> None:
        """Keep a failure that another attempt follows."""
        self._failures.append(error)
        if error.kind in _SAID_ALOUD:
            logger.warning("route %r cannot answer: %s", error.route, error)

    def verdict(self, error: RetryRouterError) -> RetryRouterError:
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

    def takes_up(self, error: RetryRouterError) -> bool:
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

    def ledger(self) -> dict[str, Any]:
        """The call so far, as JSON-able data."""
        ledger = self._session.ledger()
        for line in ledger["attempts"]:
            line.update(self._facts.get(line.get("attempt", 0), {}))
        return ledger

    def signed(self, result: ChatResult) -> ChatResult:
        """An answer with its ledger."""
        for generation in result.generations:
            self._settle(generation.message)
        ledger = self.ledger()
        for generation in result.generations:
            generation.message.response_metadata["retryrouter"] = ledger
        result.llm_output = {**(result.llm_output or {}), "retryrouter": ledger}
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
        metadata = {"retryrouter": self.ledger()}
        message = AIMessageChunk(
            content="", response_metadata=metadata, chunk_position="last"
        )
        return ChatGenerationChunk(message=message)

    def new_reader(self) -> Callable[[Event], Signal]:
        """What tells token and end for the attempt under way."""
        reader = ChunkReader()
        # Asked anew for each route: a hedge may have made it another one.
        tells = cache(lambda position: tells_the_end(self._routes[position].model))

        def read(event: Event) -> Signal:
            does_tell = tells(self._session.position)
            if isinstance(event, Whole):
                return Signal(is_end=not does_tell, is_last=True)
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

    def _leg(self, position: int | None = None) -> _Leg:
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
        leg = _Leg(route, position, messages)
        if self._delivered:
            facts |= {"continued_at": len(self._delivered), "prefill": fills}
            if fills:
                leg.is_prefilled = True
                leg.messages = [*messages, AIMessage(content=self._delivered)]
            else:
                leg.rest = Rest(self._delivered)
        return leg

    def _check_whole(self, result: ChatResult, route: Route) -> None:
        if not result.generations:
            msg = "the answer has no content at all"
            raise BASE_ERRORS[FailureKind.MALFORMED](msg)
        if tells_the_end(route.model) and not names_its_end(result):
            msg = "the answer came without a finish reason: it may have been cut"
            raise BASE_ERRORS[FailureKind.INTERRUPTED](msg)

    def _timed(self, leg: _Leg) -> _Wait:
        """Tells how long an answer, or a failure, was waited for."""
        return _Wait(self._clock, partial(self._measured, leg.position))

    @contextlib.contextmanager
    def _named_errors(self, leg: _Leg) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            named = name_failure(error, self._clock.wall())
            if named is None:
                raise
            if leg.is_prefilled and named.kind is FailureKind.INVALID_REQUEST:
                # A fault of ours and not of the caller's, so the call goes on without.
                self._no_prefill.add(leg.route.name)
                msg = f"{leg.route.name} takes no prefill: {named.message}"
                raise BASE_ERRORS[FailureKind.INTERRUPTED](msg) from error
            if named is error:
                # A model of our own has said how it ended: of itself, not of the call.
                notes = getattr(error, "__notes__", [])
                notes[:] = [f"{leg.route.name}: {note}" for note in notes]
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

    def __init__(self, trip: _Trip, open_rival: Callable[[int], S]) -> None:
        self.after = trip.hedge_after or 0.0
        self._trip = trip
        self._open_rival = open_rival

    def begin(self) -> S | None:
        position = self._trip.hedge()
        return None if position is None else self._open_rival(position)

    def settle(self, *, has_won: bool, error: RetryRouterError | None) -> None:
        self._trip.settle_hedge(has_won=has_won, error=error)


def says(event: Event) -> bool:
    """Whether an event is worth having won a race with."""
    return isinstance(event, Whole) or ChunkReader()(event).is_token


class Trip(_Trip):
    """One call of sync models."""

    def generate(self, attempt: Attempt) -> ChatResult:
        """One attempt's answer."""
        leg, asked = self._leg(), self._question
        with self._named_errors(leg), self._timed(leg):
            ask = partial(leg.route.generate, leg.messages, asked.stop)
            result = within(attempt.timeout, partial(ask, asked.options))
        self._check_whole(result, leg.route)
        return result

    def connect(self, attempt: Attempt) -> EventSource[Event]:
        """One attempt's stream; in a thread where it may have to be cut short."""
        events = self._events(self._leg())
        if self.hedge_after is not None:
            return HedgedSource(PumpedSource(events), _Hedge(self, self._rival), says)
        if attempt.timeout is None and self._session.policy.stall_timeout is None:
            return _Direct(events)
        return PumpedSource(events)

    def _rival(self, position: int) -> EventSource[Event]:
        return PumpedSource(self._events(self._leg(position)))

    def _events(self, leg: _Leg) -> Generator[Event, None, None]:
        asked = self._question
        with self._named_errors(leg), self._timed(leg) as wait:
            chunks = leg.route.stream(leg.messages, asked.stop, asked.options)
            with contextlib.closing(chunks):
                for chunk in chunks:
                    wait.end()
                    if leg.rest is None or leg.rest.begins(chunk):
                        yield chunk
        yield Whole()


class AsyncTrip(_Trip):
    """One call of async models."""

    async def generate(self, attempt: Attempt) -> ChatResult:
        """One attempt's answer, within the time that whoever awaits it gives."""
        del attempt
        leg, asked = self._leg(), self._question
        with self._named_errors(leg), self._timed(leg), heeding_cancels():
            result = await leg.route.agenerate(leg.messages, asked.stop, asked.options)
        self._check_whole(result, leg.route)
        return result

    async def connect(self, attempt: Attempt) -> AEventSource[Event]:
        """One attempt's stream."""
        del attempt
        events = _AsyncDirect(self._events(self._leg()))
        if self.hedge_after is not None:
            return AHedgedSource(events, _Hedge(self, self._rival), says)
        return events

    def _rival(self, position: int) -> AEventSource[Event]:
        return _AsyncDirect(self._events(self._leg(position)))

    async def _events(self, leg: _Leg) -> AsyncGenerator[Event, None]:
        asked = self._question
        with self._named_errors(leg), self._timed(leg) as wait:
            chunks = leg.route.astream(leg.messages, asked.stop, asked.options)
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    wait.end()
                    if leg.rest is None or leg.rest.begins(chunk):
                        yield chunk
        yield Whole()


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
        with heeding_cancels():
            return await anext(self._events)

    async def aclose(self) -> None:
        await self._events.aclose()
