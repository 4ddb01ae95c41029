"""Hedged streams: if the first route is silent, a second one is asked as well.

The first stream that has content wins, and the other one is closed. A stream that fails
earlier loses only if the other one does not fail too; but an error that ends the call,
such as a refusal, wins like content.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.timeouts import (
    AEventSource,
    End,
    EventSource,
    ThreadedStream,
    on_abort,
    run_in_worker,
    take,
)
from langchain_retryrouter.errors import RetryRouterError
from langchain_retryrouter.failures import Failure

# Seconds that the end of a call waits for a loser that is slow to close.
_LEAVING = 1.0

E = TypeVar("E")
S = TypeVar("S")

# Events up to the first content, and the error that came instead of it.
Opening: TypeAlias = tuple[list[E], BaseException | None]


@dataclass(eq=False, repr=False)
class _Race(Generic[S, E]):
    """Two streams, of which the first to have content wins.

    Attributes:
        call_state: The call that both are attempts of.
        first: The stream of the first route.
        after: Seconds of silence after which the second stream is opened.
        begin: Opens it; None if no other route may be asked.
        says: Whether an event is content.
    """

    call_state: CallState
    first: S
    after: float
    begin: Callable[[], S | None]
    says: Callable[[E], bool]

    def _winner(self, openings: dict[int, Opening[E]], streams: int) -> int | None:
        """The stream that has content; the first one if all failed; None if open."""
        for place, opening in openings.items():
            has_content = opening[1] is None
            if has_content or self.call_state.ends_call(self._failure(opening)):
                return place
        return 0 if len(openings) == streams else None

    def _settle(self, openings: dict[int, Opening[E]], winner: int) -> None:
        failure = self._failure(openings.get(1 - winner))
        self.call_state.settle_hedge(has_won=winner == 1, failure=failure)

    @staticmethod
    def _failure(opening: Opening[E] | None) -> Failure | None:
        error = None if opening is None else opening[1]
        return error.failure if isinstance(error, RetryRouterError) else None


@dataclass(eq=False, repr=False)
class HedgedSource(_Race[EventSource[E], E]):
    """The events of the stream that is first to have content."""

    _streams: list[ThreadedStream[E]] = field(default_factory=list)
    _finished: queue.SimpleQueue[tuple[int, Opening[E]]] = field(
        default_factory=queue.SimpleQueue
    )
    # The second attempt begins before an abort or not at all: its permit would not be
    # given back by a call that has gone on.
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _is_aborted: bool = False

    def __iter__(self) -> Iterator[E]:
        """The events of the winner.

        Raises:
            RetryRouterError: The first stream's error if both fail.
        """
        on_abort(self.abort)
        self._start(self.first)
        openings: dict[int, Opening[E]] = {}
        try:
            openings.update([take(self._finished, self.after)])
        except queue.Empty:
            with self._lock:
                source = None if self._is_aborted else self.begin()
                if source is not None:
                    with self.call_state.attach():
                        self._start(source)
        streams = len(self._streams)
        while (winner := self._winner(openings, streams)) is None:
            openings.update([take(self._finished, None)])
        if len(self._streams) > 1 and not self._is_aborted:
            self._streams[1 - winner].close()
            self._settle(openings, winner)
        events, error = openings[winner]
        yield from events
        if error is not None:
            raise error
        while not isinstance(event := self._streams[winner].next(None), End):
            yield event

    def abort(self) -> None:
        """Begin no second attempt; those that have begun are aborted by their jobs."""
        with self._lock:
            self._is_aborted = True

    def close(self) -> None:
        """Close both streams."""
        with contextlib.ExitStack() as both:
            for stream in self._streams:
                both.callback(stream.close)
            if not self._streams:
                self.first.close()

    def _start(self, source: EventSource[E]) -> None:
        """Read a stream, in its own threads, up to its first content."""
        place = len(self._streams)
        stream = ThreadedStream(lambda: source)
        self._streams.append(stream)
        run_in_worker(lambda: self._finished.put((place, self._read(stream))))

    def _read(self, stream: ThreadedStream[E]) -> Opening[E]:
        opening: list[E] = []
        try:
            while not isinstance(event := stream.next(None), End):
                opening.append(event)
                if self.says(event):
                    break
        except BaseException as error:  # noqa: BLE001 - raised behind these events
            return opening, error
        return opening, None


@dataclass(eq=False, repr=False)
class AHedgedSource(_Race[AEventSource[E], E]):
    """Async variant of `HedgedSource`."""

    _racers: list[_Racer[E]] = field(default_factory=list)

    async def __aiter__(self) -> AsyncIterator[E]:
        """The events of the winner.

        Raises:
            RetryRouterError: The first stream's error if both fail.
        """
        self._racers.append(_Racer(self.first, self.says))
        await asyncio.wait([self._racers[0].opening], timeout=self.after)
        if not self._openings() and (source := self.begin()) is not None:
            with self.call_state.attach():
                self._racers.append(_Racer(source, self.says))
        racers = len(self._racers)
        while (winner := self._winner(self._openings(), racers)) is None:
            pending = [one.opening for one in self._racers if not one.opening.done()]
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        openings = self._openings()
        if len(self._racers) > 1:
            self._racers[1 - winner].cancel()
            self._settle(openings, winner)
        events, error = openings[winner]
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

    def _openings(self) -> dict[int, Opening[E]]:
        """What has been read of the streams that are not read any longer."""
        tasks = enumerate(racer.opening for racer in self._racers)
        return {place: task.result() for place, task in tasks if task.done()}


class _Racer(Generic[E]):
    """One of two async streams, read by a task up to its first content."""

    def __init__(self, source: AEventSource[E], says: Callable[[E], bool]) -> None:
        self._source = source
        self._says = says
        self._is_closed = self._is_cancelled = False
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

    def cancel(self) -> None:
        """Have its task close the stream, if it reads it."""
        if not self._is_cancelled:  # Again would end the closing.
            self._is_cancelled = True
            self.opening.cancel()

    async def leave(self) -> None:
        self.cancel()
        try:
            # Not `await self.opening`, which could not tell its cancellation from ours.
            await asyncio.wait({self.opening}, timeout=_LEAVING)
        finally:
            if self.opening.done():
                await self._close()
            else:  # Its own task closes the source, once it has given up what it does.
                self.opening.cancel()

    async def _close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            await self._source.aclose()
