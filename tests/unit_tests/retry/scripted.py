"""The sync and async engine behind one interface, and scripted attempts without HTTP.

The events of a stream are `ChunkInfo`s, so the classifier is the identity.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import pytest
from tenacity import RetryCallState

from langchain_retryrouter import (
    APIConnectionError,
    CircuitBreaker,
    RetryPolicy,
    UnavailableError,
)
from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.clock import Clock
from langchain_retryrouter._retry.engine import Attempt, RetryContext, acall, call
from langchain_retryrouter._retry.streaming import ChunkInfo, astream, stream
from langchain_retryrouter._retry.timeouts import on_abort
from langchain_retryrouter.circuit_breaker import Permit
from langchain_retryrouter.testing import FakeClock

Outcome: TypeAlias = object
"""A result; an exception to raise; or a function whose result or exception it is."""


def happen(outcome: Outcome) -> Any:
    if callable(outcome) and not isinstance(outcome, type):
        outcome = outcome()
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


async def one_turn() -> None:
    await asyncio.sleep(0)  # noqa: TID251 - a turn of the loop, and no wait


class Script:
    """One outcome for each attempt; asking for more is a defect of the engine."""

    def __init__(self, *outcomes: Outcome) -> None:
        self._outcomes = outcomes
        self.attempts: list[Attempt] = []
        self.classified: list[list[ChunkInfo]] = []

    @property
    def numbers(self) -> list[int]:
        return [attempt.number for attempt in self.attempts]

    @property
    def timeouts(self) -> list[float | None]:
        return [attempt.timeout for attempt in self.attempts]

    def new_classifier(self) -> Callable[[ChunkInfo], ChunkInfo]:
        """The identity, that keeps the events of its stream in `classified`."""
        seen: list[ChunkInfo] = []
        self.classified.append(seen)

        def classify(chunk: ChunkInfo) -> ChunkInfo:
            seen.append(chunk)
            return chunk

        return classify

    def send(self, attempt: Attempt) -> Any:
        """Send, or connect."""
        self.attempts.append(attempt)
        return happen(self._outcomes[len(self.attempts) - 1])

    async def asend(self, attempt: Attempt) -> Any:
        """Async variant of `send`; other tasks run before it answers."""
        await one_turn()
        return self.send(attempt)


@dataclass
class Recorder:
    """Records each retry, and does `then`."""

    then: Callable[[], object] = lambda: None
    states: list[RetryCallState] = field(default_factory=list)

    @property
    def errors(self) -> list[BaseException | None]:
        """The error of each failed attempt."""
        return [state.outcome.exception() for state in self.states if state.outcome]

    def notify(self, state: RetryCallState) -> None:
        self.states.append(state)
        self.then()

    async def anotify(self, state: RetryCallState) -> None:
        """Record it after other tasks have run, so that a missing await is found."""
        for _ in range(3):
            await one_turn()
        self.notify(state)


# --- streams ---


def token(text: str) -> ChunkInfo:
    return ChunkInfo(text=text, is_token=True)


ROLE = ChunkInfo()
"""An event without content, as most protocols begin with one."""

END = ChunkInfo(is_end=True, is_last=True)
"""The protocol's end, after which nothing comes."""

WHOLE = ChunkInfo(is_end=True)
"""An end after which something may still come, such as usage."""

SILENCE = object()
"""In a source's events: nothing more comes."""


class Source:
    """One attempt's stream, sync and async.

    Attributes:
        closed: How often it was closed.
        read: Events handed out.
    """

    def __init__(self, *events: Outcome, on_close: Outcome = None) -> None:
        """Over these events; an exception among them is raised in its place."""
        self._events = events
        self._on_close = on_close
        self._aborted = threading.Event()
        self._closed = threading.Event()
        self.closed = 0
        self.read = 0

    @property
    def is_aborted(self) -> bool:
        """Whether a read was cut short by another thread."""
        return self._aborted.is_set()

    def was_closed(self) -> bool:
        """Whether it is closed once, also if a worker thread still has to do it."""
        return self._closed.wait(10) and self.closed == 1

    def __iter__(self) -> Iterator[ChunkInfo]:
        """The events; a silent one blocks until it is aborted, like a socket."""
        on_abort(self._aborted.set)
        return self._read()

    def _read(self) -> Iterator[ChunkInfo]:
        for event in self._events:
            if event is SILENCE:
                assert self._aborted.wait(10), "a silent stream was not aborted"
            if self.is_aborted:
                msg = "the connection was shut down"
                raise APIConnectionError(msg)
            self.read += 1
            yield happen(event)

    async def __aiter__(self) -> AsyncIterator[ChunkInfo]:
        """Async variant of `__iter__`; a silent one waits until it is cancelled."""
        for event in self._events:
            await one_turn()
            if event is SILENCE:
                await asyncio.get_running_loop().create_future()
            self.read += 1
            yield happen(event)

    def close(self) -> None:
        self.closed += 1
        self._closed.set()
        happen(self._on_close)

    async def aclose(self) -> None:
        await one_turn()
        self.close()


# --- the engine ---


@dataclass(frozen=True)
class Engine:
    """Runs a call through `call`/`stream`, or through `acall`/`astream`."""

    is_async: bool
    clock: FakeClock

    def context(self, policy: RetryPolicy | None = None, **parts: Any) -> RetryContext:
        """The context of a call on this clock; see `context_for`."""
        return context_for(self.clock, policy, **parts)

    def call(
        self, context: RetryContext, script: Script, recorder: Recorder | None = None
    ) -> Any:
        if self.is_async:
            anotify = recorder.anotify if recorder else None
            return asyncio.run(acall(context, script.asend, anotify))
        return call(context, script.send, recorder.notify if recorder else None)

    def stream(
        self,
        context: RetryContext,
        script: Script,
        recorder: Recorder | None = None,
        *,
        into: list[ChunkInfo] | None = None,
        stop_after: int | None = None,
    ) -> list[ChunkInfo]:
        """The events of the stream, closed after `stop_after`; `into` keeps them."""
        seen: list[ChunkInfo] = [] if into is None else into

        async def read() -> None:
            async with contextlib.aclosing(aopen(context, script, recorder)) as events:
                async for event in events:
                    seen.append(event)
                    if len(seen) == stop_after:
                        return

        if self.is_async:
            asyncio.run(read())
            return seen
        with contextlib.closing(open_(context, script, recorder)) as events:
            for event in events:
                seen.append(event)
                if len(seen) == stop_after:
                    break
        return seen


Start: TypeAlias = Callable[..., Any]
"""`Engine.call` or `Engine.stream`."""

calls_and_streams = pytest.mark.parametrize("start", [Engine.call, Engine.stream])


def answer_for(start: Start) -> object:
    """A whole answer: a value, or a stream."""
    return "hello" if start is Engine.call else Source(token("hello"), END)


def open_(
    context: RetryContext, script: Script, recorder: Recorder | None = None
) -> Generator[ChunkInfo, None, None]:
    notify = recorder.notify if recorder else None
    return stream(context, script.send, script.new_classifier, notify)


def aopen(
    context: RetryContext, script: Script, recorder: Recorder | None = None
) -> AsyncGenerator[ChunkInfo, None]:
    """An async stream, not begun."""
    anotify = recorder.anotify if recorder else None
    return astream(context, script.asend, script.new_classifier, anotify)


def context_for(
    clock: Clock, policy: RetryPolicy | None = None, **parts: Any
) -> RetryContext:
    """The context of a call whose waits are 0.5, 1, 2, 4 and 8 seconds by default."""
    shared = {name: parts.pop(name, None) for name in ("budget", "breaker")}
    policy = policy or RetryPolicy()
    initial_delay = min(policy.initial_delay, 0.5)
    policy = replace(policy, jitter=False, initial_delay=initial_delay)
    return RetryContext(CallState(policy, time=clock, **shared), **parts)


def outcomes(context: RetryContext) -> list[str]:
    return [record.outcome for record in context.call_state.records]


def failures(count: int) -> list[UnavailableError]:
    """So many new errors, since an error is annotated when it leaves a call."""
    return [UnavailableError(str(number + 1)) for number in range(count)]


def opened(clock: FakeClock, seconds_ago: float = 30) -> CircuitBreaker:
    """A breaker that a failure of another call has opened for 30 s."""
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    fail_elsewhere(breaker)
    clock.advance(seconds_ago)
    return breaker


def fail_elsewhere(breaker: CircuitBreaker) -> None:
    """Another call that shares the breaker fails."""
    permit = breaker.admit()
    assert isinstance(permit, Permit)
    breaker.failed(permit)
