"""Hedged streams: when the second is opened, which wins, and that both are closed."""

import asyncio
import contextlib
import gc
import operator
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from langchain_retryrouter import APIConnectionError
from langchain_retryrouter._retry.hedging import AHedgedSource, HedgedSource
from langchain_retryrouter._retry.streaming import ChunkInfo
from langchain_retryrouter._retry.timeouts import ThreadedStream, on_abort
from langchain_retryrouter.failures import Failure
from tests.unit_tests.conftest import Twin

from .scripted import END, ROLE, Outcome, happen, one_turn, token

HEL, LO, BON, JOUR = token("Hel"), token("lo"), token("Bon"), token("jour")

LONG = 5.0
SOON = 0.01


class FakeStream:
    """A stream that is silent until it may speak, or is closed."""

    def __init__(self, *events: Outcome, silent: bool = False) -> None:
        """An exception among the events is raised in its place."""
        self._events = events
        self._may_speak = threading.Event()
        self.was_opened, self.was_closed = threading.Event(), threading.Event()
        self.closed = self.aborted = self.read = 0
        if not silent:
            self.speak()

    def speak(self) -> None:
        self._may_speak.set()

    def _read(self) -> Iterator[ChunkInfo]:
        for event in () if self.closed else self._events:
            self.read += 1
            yield happen(event)

    def __iter__(self) -> Iterator[ChunkInfo]:
        on_abort(self.abort)
        self.was_opened.set()
        assert self._may_speak.wait(LONG), "the silence was not ended"
        yield from self._read()

    async def __aiter__(self) -> AsyncIterator[ChunkInfo]:
        self.was_opened.set()
        while not self._may_speak.is_set():
            await one_turn()
        for event in self._read():
            yield event
            await one_turn()

    def abort(self) -> None:
        self.aborted += 1
        self.speak()

    def close(self) -> None:
        self.closed += 1
        self.was_closed.set()
        self.speak()

    async def aclose(self) -> None:
        await one_turn()
        self.close()


@dataclass
class FakeHedge:
    """A hedge, by a second stream if there is one, that records how it was settled."""

    second: Any
    after: float = SOON
    begun: int = 0
    settled: list[tuple[bool, Failure | None]] = field(default_factory=list)

    def begin(self) -> Any:
        self.begun += 1
        return self.second

    def settle_hedge(self, *, has_won: bool, failure: Failure | None) -> None:
        self.settled.append((has_won, failure))

    def ends_call(self, _failure: Failure | None) -> bool:
        return False

    def attach(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def race(self, first: Any, kind: Any = HedgedSource) -> Any:
        parts = (self, first, self.after, self.begin)
        return kind(*parts, operator.attrgetter("is_token"))

    def arace(self, first: Any) -> Any:
        return self.race(first, AHedgedSource)


def test_nothing_is_read_ahead(twin: Twin) -> None:
    """After the first content an event is read when the caller asks for it."""
    first, counts = FakeStream(ROLE, HEL, LO, END), list[int]()
    hedge = FakeHedge(None, after=LONG)

    async def read() -> None:
        async with contextlib.aclosing(hedge.arace(first)) as events:
            async for _ in events:
                counts.append(first.read)

    if twin.is_async:
        asyncio.run(read())
    else:
        with contextlib.closing(hedge.race(first)) as events:
            counts += [first.read for _ in events]
    assert counts == [2, 2, 3, 4]


# --- leaving ---


@pytest.mark.parametrize("has_second", [True, False])
def test_a_wait_can_be_aborted_from_another_thread(*, has_second: bool) -> None:
    """The reader gets an error at once, and the streams are aborted."""
    first, second = FakeStream(HEL, silent=True), FakeStream(BON, silent=True)
    hedge = FakeHedge(
        second if has_second else None, after=SOON if has_second else LONG
    )
    source = hedge.race(first)
    stream = ThreadedStream(lambda: source)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(stream.next, None)
        assert (second if has_second else first).was_opened.wait(LONG)
        stream.abort()
        with pytest.raises(APIConnectionError, match="the stream was aborted"):
            waiting.result(LONG)
    stream.close()
    assert first.was_closed.wait(LONG)
    assert (first.aborted > 0, second.aborted > 0) == (True, has_second)


def test_nothing_begins_after_an_abort() -> None:
    """A race that was aborted opens no second stream."""
    first, hedge = FakeStream(HEL, silent=True), FakeHedge(FakeStream(BON))
    source = hedge.race(first)
    source.abort()
    threading.Timer(4 * SOON, first.speak).start()
    assert list(source) == [HEL]
    assert hedge.begun == 0
    source.close()


async def test_closing_goes_on_when_its_task_is_cancelled() -> None:
    """A stream is closed although the task that closes it is cancelled meanwhile."""
    first = FakeStream(HEL, LO)
    source = FakeHedge(None, after=LONG).arace(first)
    assert await anext(aiter(source)) == HEL
    task = asyncio.create_task(source.aclose())
    await one_turn()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert first.was_closed.is_set()


async def test_a_cancelled_task_closes_both() -> None:
    """A task that is cancelled while both are silent leaves no stream and no task."""
    first, second = FakeStream(HEL, silent=True), FakeStream(BON, silent=True)
    source = FakeHedge(second).arace(first)

    async def read_one() -> None:
        await anext(aiter(source))

    task = asyncio.create_task(read_one())
    while not second.was_opened.is_set():
        await one_turn()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await source.aclose()
    assert first.was_closed.wait(LONG)
    assert second.was_closed.wait(LONG)
    assert asyncio.all_tasks() == {asyncio.current_task()}


class SlowToLeave(FakeStream):
    """A silent stream whose reader, when cancelled, waits until `may_go`, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__(silent=True)
        self._error = error
        self.may_go, self.is_leaving = asyncio.Event(), False
        self.is_running = False

    async def __aiter__(self) -> AsyncIterator[ChunkInfo]:
        """Yield nothing."""
        self.is_running = True
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.is_leaving = True
            await self.may_go.wait()
            if self._error is not None:
                raise self._error from None
            raise
        finally:
            self.is_running = False
        yield HEL

    async def aclose(self) -> None:
        """As an async generator, it cannot be closed while it is running."""
        assert not self.is_running
        await super().aclose()


@pytest.mark.parametrize("goes", [True, False])
async def test_a_cancellation_while_the_loser_leaves_is_kept(*, goes: bool) -> None:
    """The task ends as cancelled, and does not wait for a loser that will not go."""
    loser, winner = SlowToLeave(), FakeStream(BON)
    source = FakeHedge(winner, after=0).arace(loser)

    async def read_one() -> None:
        async with contextlib.aclosing(source):
            await anext(aiter(source))

    task = asyncio.create_task(read_one())
    while not loser.is_leaving:
        await one_turn()
    task.cancel()
    if goes:
        loser.may_go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(20):
        await one_turn()
    assert (loser.closed, winner.closed) == (1, 1)


async def test_an_error_of_a_loser_that_leaves_is_ignored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is neither raised nor reported nor logged."""
    loser, hedge = SlowToLeave(ValueError("late")), FakeHedge(FakeStream(BON, END))
    loser.may_go.set()
    async with contextlib.aclosing(hedge.arace(loser)) as source:
        assert [event async for event in source] == [BON, END]
    assert hedge.settled == [(True, None)]
    assert loser.was_closed.wait(LONG)
    del loser, hedge, source
    for _ in range(20):
        await one_turn()
    gc.collect()
    assert caplog.records == []
