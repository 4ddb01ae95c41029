"""Scripted attempts, sync and async, for tests of the engine without HTTP.

The events of a stream are `ChunkInfo`s, so the classifier is the identity.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeAlias

from tenacity import RetryCallState

from langchain_retryrouter._retry.engine import Attempt
from langchain_retryrouter._retry.streaming import ChunkInfo
from langchain_retryrouter.errors import APIConnectionError
from langchain_retryrouter.testing import FakeClock

Outcome: TypeAlias = object
"""A result; an exception to raise; or a function whose result or exception it is."""


def happen(outcome: Outcome) -> Any:
    """Return or raise an outcome."""
    if callable(outcome) and not isinstance(outcome, type):
        outcome = outcome()
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


async def one_turn() -> None:
    """Let the other tasks run once."""
    await asyncio.sleep(0)  # noqa: TID251 - a turn of the loop, and no wait


class Script:
    """One outcome an attempt, in order; asking for more is a defect of the engine."""

    def __init__(self, *outcomes: Outcome) -> None:
        """Nothing sent yet."""
        self._outcomes = outcomes
        self.attempts: list[Attempt] = []

    @property
    def numbers(self) -> list[int]:
        """Which attempts were sent."""
        return [attempt.number for attempt in self.attempts]

    @property
    def timeouts(self) -> list[float | None]:
        """The limit that each attempt was given."""
        return [attempt.timeout for attempt in self.attempts]

    def send(self, attempt: Attempt) -> Any:
        """Send, or connect."""
        self.attempts.append(attempt)
        return happen(self._outcomes[len(self.attempts) - 1])

    async def asend(self, attempt: Attempt) -> Any:
        """Async variant of `send`; other tasks run before it answers."""
        await one_turn()
        return self.send(attempt)


class Witness:
    """Records each retry, and how many waits were over then."""

    def __init__(
        self, clock: FakeClock, then: Callable[[], object] = lambda: None
    ) -> None:
        """Do `then` after each."""
        self._clock = clock
        self._then = then
        self.states: list[RetryCallState] = []
        self.waits_before: list[int] = []

    def notify(self, state: RetryCallState) -> None:
        """Take note."""
        self.states.append(state)
        self.waits_before.append(len(self._clock.sleeps))
        self._then()

    async def anotify(self, state: RetryCallState) -> None:
        """Take note, after other tasks have run, so that a missing await is found."""
        for _ in range(3):
            await one_turn()
        self.notify(state)


def token(text: str) -> ChunkInfo:
    """An event with text."""
    return ChunkInfo(text=text, is_token=True)


ROLE = ChunkInfo()
"""An event without content, as most protocols begin with one."""

END = ChunkInfo(is_end=True, is_last=True)
"""The protocol's end, after which nothing comes."""

WHOLE = ChunkInfo(is_end=True)
"""An end after which something may still come, such as usage."""


class _Silence:
    """In a source's events: nothing more comes."""


SILENCE = _Silence()


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
        """Whether a read was cut short from outside."""
        return self._aborted.is_set()

    def was_closed(self) -> bool:
        """Whether it is closed once, also if a worker thread still has to do it."""
        return self._closed.wait(10) and self.closed == 1

    def __iter__(self) -> Iterator[ChunkInfo]:
        """Yield the events; a silent one blocks until it is aborted, like a socket."""
        for event in self._events:
            if event is SILENCE:
                assert self._aborted.wait(10), "nobody aborted a silent stream"
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

    def abort(self) -> None:
        """Unblock a read under way."""
        self._aborted.set()

    def close(self) -> None:
        """Count."""
        self.closed += 1
        self._closed.set()
        happen(self._on_close)

    async def aclose(self) -> None:
        """Async variant of `close`."""
        await one_turn()
        self.close()
