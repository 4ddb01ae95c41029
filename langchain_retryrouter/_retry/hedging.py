"""Hedged streams: if the first route is silent, a second one is asked as well.

The first stream that has content wins, and the other one is closed. A stream that fails
earlier loses only if the other one does not fail too.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Generic, Protocol, TypeAlias, TypeVar

from langchain_retryrouter._retry.timeouts import (
    AEventSource,
    EventSource,
    ThreadedStream,
)
from langchain_retryrouter.errors import RetryRouterError

E = TypeVar("E")
S_co = TypeVar("S_co", covariant=True)

# Events up to the first content, and the error that came instead of it.
Opening: TypeAlias = tuple[list[E], BaseException | None]
Pending: TypeAlias = Future[Opening[E]] | asyncio.Task[Opening[E]]


class Hedge(Protocol[S_co]):
    """What the race asks of the call that it is run for."""

    after: float
    """Seconds of silence after which the second stream is opened."""

    def begin(self) -> S_co | None:
        """Open the second stream; None if no other route may be asked."""

    def settle(self, *, has_won: bool, error: RetryRouterError | None) -> None:
        """Whether the second stream has won, and how the loser failed, if it did."""


class HedgedSource(Generic[E]):
    """The events of the stream that is first to have content."""

    def __init__(
        self,
        first: EventSource[E],
        hedge: Hedge[EventSource[E]],
        says: Callable[[E], bool],
    ) -> None:
        """Nothing is read yet.

        Args:
            first: The stream of the first route.
            hedge: Opens the second stream.
            says: Whether an event is content.
        """
        self._hedge, self._says = hedge, says
        self._streams = [ThreadedStream(lambda: first)]
        # The second attempt begins before an abort or not at all: its permit would not
        # be given back by a call that has gone on.
        self._lock = threading.Lock()
        self._is_aborted = False

    def __iter__(self) -> Iterator[E]:
        """The events of the winner.

        Raises:
            RetryRouterError: The first stream's error if both fail.
        """
        openings = [self._streams[0].submit(self._read)]
        wait(openings, self._hedge.after)
        with self._lock:
            is_silent = not openings[0].done() and not self._is_aborted
            if is_silent and (source := self._hedge.begin()) is not None:
                self._streams.append(ThreadedStream(lambda: source))
                openings.append(self._streams[1].submit(self._read))
        while (winner := _winner(openings)) is None:
            pending = [opening for opening in openings if not opening.done()]
            wait(pending, return_when=FIRST_COMPLETED)
        if len(openings) > 1 and not self._is_aborted:
            failure = _failure(openings[1 - winner])
            self._streams[1 - winner].close()
            self._hedge.settle(has_won=winner == 1, error=failure)
        events, error = openings[winner].result()
        yield from events
        if error is not None:
            raise error
        yield from self._streams[winner]

    def abort(self) -> None:
        """Unblock, from another thread, a read under way; it then raises."""
        with self._lock:
            self._is_aborted = True
            for stream in self._streams:
                stream.abort()

    def close(self) -> None:
        """Close both streams."""
        with contextlib.ExitStack() as both:
            for stream in self._streams:
                both.callback(stream.close)

    def _read(self, events: Iterator[E]) -> Opening[E]:
        opening: list[E] = []
        try:
            for event in events:
                opening.append(event)
                if self._says(event):
                    break
        except BaseException as error:  # noqa: BLE001 - raised behind these events
            return opening, error
        return opening, None


class AHedgedSource(Generic[E]):
    """Async variant of `HedgedSource`."""

    def __init__(
        self,
        first: AEventSource[E],
        hedge: Hedge[AEventSource[E]],
        says: Callable[[E], bool],
    ) -> None:
        """Nothing is read yet; the arguments are those of `HedgedSource`."""
        self._first, self._hedge, self._says = first, hedge, says
        self._racers: list[_Racer[E]] = []

    async def __aiter__(self) -> AsyncIterator[E]:
        """The events of the winner.

        Raises:
            RetryRouterError: The first stream's error if both fail.
        """
        openings = [self._start(self._first)]
        await asyncio.wait(openings, timeout=self._hedge.after)
        if not openings[0].done() and (source := self._hedge.begin()) is not None:
            openings.append(self._start(source))
        while (winner := _winner(openings)) is None:
            pending = [opening for opening in openings if not opening.done()]
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        if len(openings) > 1:
            failure = _failure(openings[1 - winner])
            await self._racers[1 - winner].leave()
            self._hedge.settle(has_won=winner == 1, error=failure)
        events, error = openings[winner].result()
        for event in events:
            yield event
        if error is not None:
            raise error
        async for event in self._racers[winner].events:
            yield event

    async def aclose(self) -> None:
        """Close both streams."""
        async with contextlib.AsyncExitStack() as both:
            for racer in self._racers:
                both.push_async_callback(racer.leave)

    def _start(self, source: AEventSource[E]) -> asyncio.Task[Opening[E]]:
        racer = _Racer(source, self._says)
        self._racers.append(racer)
        return racer.opening


class _Racer(Generic[E]):
    """One of two async streams, read by a task up to its first content."""

    def __init__(self, source: AEventSource[E], says: Callable[[E], bool]) -> None:
        self._source = source
        self._says = says
        self._is_closed = False
        self.events = aiter(source)
        self.opening = asyncio.create_task(self._read())

    async def _read(self) -> Opening[E]:
        opening: list[E] = []
        try:
            async for event in self.events:
                opening.append(event)
                if self._says(event):
                    break
        except Exception as error:  # noqa: BLE001 - raised behind these events
            return opening, error
        except BaseException:
            # Here, since the task that calls `leave` may be cancelled as well.
            await self._close()
            raise
        return opening, None

    async def leave(self) -> None:
        self.opening.cancel()
        try:
            # Not `await self.opening`, which could not tell its cancellation from ours.
            await asyncio.wait({self.opening})
        finally:
            if self.opening.done():  # Else its own task closes the source.
                await self._close()

    async def _close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            await self._source.aclose()


def _winner(openings: Sequence[Pending[E]]) -> int | None:
    """Which stream has content; the first one if all failed; None if that is open."""
    done = [opening.done() for opening in openings]
    for place, opening in enumerate(openings):
        if done[place] and _error(opening) is None:
            return place
    return 0 if all(done) else None


def _failure(opening: Pending[E]) -> RetryRouterError | None:
    error = _error(opening) if opening.done() else None
    return error if isinstance(error, RetryRouterError) else None


def _error(opening: Pending[E]) -> BaseException | None:
    return opening.exception() or opening.result()[1]
