"""Two streams for one: a second route is asked when the first one says nothing.

Whoever says something first is the call's stream; the other one is closed. A failure
before that is no end while the other one may still speak.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from langchain_retryrouter._retry.streaming import AEventSource, EventSource
from langchain_retryrouter._retry.timeouts import start_thread
from langchain_retryrouter.errors import APIConnectionError, RetryRouterError

E = TypeVar("E")
S_co = TypeVar("S_co", covariant=True)


class Hedge(Protocol[S_co]):
    """What a race has to know of the call that it is run for."""

    after: float
    """Seconds of silence, before which nobody else is asked."""

    def begin(self) -> S_co | None:
        """The second stream, opened; None if nobody else may be asked."""

    def settle(self, *, has_won: bool, error: RetryRouterError | None) -> None:
        """Who goes on; and how the other one failed, if it did."""


@dataclass(slots=True)
class _Runner(Generic[E]):
    """One of both streams, read until it says something."""

    source: EventSource[E]
    says: Callable[[E], bool]
    held: list[E] = field(default_factory=list)
    error: BaseException | None = None
    events: Iterator[E] = field(init=False)

    def run(self, arrived: queue.SimpleQueue[_Runner[E] | None]) -> None:
        self.events = iter(self.source)
        try:
            for event in self.events:
                self.held.append(event)
                if self.says(event):
                    break
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self.error = error
        arrived.put(self)

    def rest(self) -> Iterator[E]:
        yield from self.held
        if self.error is not None:
            raise self.error
        yield from self.events


class HedgedSource(Generic[E]):
    """The events of the stream that speaks first."""

    def __init__(
        self,
        first: EventSource[E],
        hedge: Hedge[EventSource[E]],
        says: Callable[[E], bool],
    ) -> None:
        """Both must be sources that another thread can abort."""
        self._first, self._hedge, self._says = first, hedge, says
        self._second: EventSource[E] | None = None
        self._arrived: queue.SimpleQueue[_Runner[E] | None] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[E]:
        """The events of whoever speaks first.

        Raises:
            RetryRouterError: The first stream's, if neither says anything.
        """
        first = self._start(self._first)
        arrived = self._wait(self._hedge.after)
        if arrived is not None or (second := self._begin()) is None:
            winner = arrived or self._wait() or first
        else:
            winner = self._race(first, second)
        yield from winner.rest()

    def abort(self) -> None:
        """Unblock whoever waits for an event."""
        self._first.abort()
        if self._second is not None:
            self._second.abort()
        self._arrived.put(None)

    def close(self) -> None:
        """Let go of both."""
        self._first.close()
        if self._second is not None:
            self._second.close()

    def _start(self, source: EventSource[E]) -> _Runner[E]:
        runner = _Runner(source, self._says)
        start_thread(lambda: runner.run(self._arrived))
        return runner

    def _begin(self) -> _Runner[E] | None:
        self._second = self._hedge.begin()
        return None if self._second is None else self._start(self._second)

    def _wait(self, seconds: float | None = None) -> _Runner[E] | None:
        """Who has arrived; None if nobody has in so many seconds."""
        try:
            arrived = self._arrived.get(timeout=seconds)
        except queue.Empty:
            return None
        if arrived is None:
            msg = "the stream was left, since its time was up"
            raise APIConnectionError(msg)
        return arrived

    def _race(self, first: _Runner[E], second: _Runner[E]) -> _Runner[E]:
        winner = self._wait() or first
        if winner.error is not None:
            other = self._wait() or first
            winner = other if other.error is None else first
        loser = first if winner is second else second
        loser.source.close()
        _settle(self._hedge, has_won=winner is second, error=loser.error)
        return winner


class AHedgedSource(Generic[E]):
    """Async twin of `HedgedSource`."""

    def __init__(
        self,
        first: AEventSource[E],
        hedge: Hedge[AEventSource[E]],
        says: Callable[[E], bool],
    ) -> None:
        """What both streams say is read by tasks of the running event loop."""
        self._first, self._hedge, self._says = first, hedge, says
        self._runners: list[_ARunner[E]] = []

    async def __aiter__(self) -> AsyncIterator[E]:
        """The events of whoever speaks first.

        Raises:
            RetryRouterError: The first stream's, if neither says anything.
        """
        winner = first = self._start(self._first)
        await asyncio.wait({first.task}, timeout=self._hedge.after)
        if not first.task.done() and (second := self._begin()) is not None:
            winner = await self._race(first, second)
        for event in await winner.task:
            yield event
        async for event in winner.events:
            yield event

    async def aclose(self) -> None:
        """Let go of both."""
        async with contextlib.AsyncExitStack() as both:
            for runner in self._runners:
                both.push_async_callback(runner.leave)

    def _start(self, source: AEventSource[E]) -> _ARunner[E]:
        runner = _ARunner(source, self._says)
        self._runners.append(runner)
        return runner

    def _begin(self) -> _ARunner[E] | None:
        source = self._hedge.begin()
        return None if source is None else self._start(source)

    async def _race(self, first: _ARunner[E], second: _ARunner[E]) -> _ARunner[E]:
        tasks = {first.task: first, second.task: second}
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        arrived = [runner for task, runner in tasks.items() if task in done]
        if all(runner.error() is not None for runner in arrived):
            await asyncio.wait(tasks)
            arrived = [first, second]
        spoke = [runner for runner in arrived if runner.error() is None]
        winner = spoke[0] if spoke else first
        loser = first if winner is second else second
        error = loser.error() if loser.task.done() else None
        await loser.leave()
        _settle(self._hedge, has_won=winner is second, error=error)
        return winner


class _ARunner(Generic[E]):
    """Async twin of `_Runner`."""

    def __init__(self, source: AEventSource[E], says: Callable[[E], bool]) -> None:
        self._source = source
        self._says = says
        self._is_closed = False
        self.events = aiter(source)
        self.task = asyncio.create_task(self._run())
        # Looked at, or asyncio would tell the log of an error that nobody waited for.
        self.task.add_done_callback(lambda _: self.error())

    async def _run(self) -> list[E]:
        held: list[E] = []
        try:
            async for event in self.events:
                held.append(event)
                if self._says(event):
                    break
        except BaseException:
            # Here, since whoever leaves this task may be cancelled before it is over.
            await self._close()
            raise
        return held

    def error(self) -> BaseException | None:
        return self.task.exception() if not self.task.cancelled() else None

    async def leave(self) -> None:
        self.task.cancel()
        # Not `await self.task`: who suppresses its cancel suppresses their own, too.
        await asyncio.wait({self.task})
        await self._close()

    async def _close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            await self._source.aclose()


def _settle(
    hedge: Hedge[object], *, has_won: bool, error: BaseException | None
) -> None:
    named = error if isinstance(error, RetryRouterError) else None
    hedge.settle(has_won=has_won, error=named)
