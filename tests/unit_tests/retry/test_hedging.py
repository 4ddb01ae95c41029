"""Two streams for one: who is asked when, who wins, and what becomes of the other."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from langchain_retryrouter._retry.hedging import AHedgedSource, HedgedSource
from langchain_retryrouter._retry.streaming import ChunkInfo
from langchain_retryrouter.errors import (
    APIConnectionError,
    RetryRouterError,
    UnavailableError,
)
from tests.unit_tests.conftest import Twin

from .scripted import END, ROLE, Outcome, happen, one_turn, token

HEL, LO, BON, JOUR = token("Hel"), token("lo"), token("Bon"), token("jour")

FAR = 5.0
SOON = 0.01
_whose: contextvars.ContextVar[str] = contextvars.ContextVar("whose", default="nobody")


class Speaker:
    """A stream that keeps silent until it may speak, or is let go of."""

    def __init__(self, *events: Outcome, silent: bool = False) -> None:
        """An exception among the events is raised in its place."""
        self._events = events
        self._may_speak = threading.Event()
        self.was_asked = threading.Event()
        self.closed = self.aborted = self.read = 0
        self.was_closed = threading.Event()
        if not silent:
            self.speak()

    def speak(self) -> None:
        """End the silence."""
        self._may_speak.set()

    def _said(self) -> Iterator[ChunkInfo]:
        for event in () if self.closed else self._events:
            self.read += 1
            yield happen(event)

    def __iter__(self) -> Iterator[ChunkInfo]:
        """Yield the events, once it may speak."""
        self.was_asked.set()
        assert self._may_speak.wait(FAR), "nobody ended the silence"
        yield from self._said()

    async def __aiter__(self) -> AsyncIterator[ChunkInfo]:
        """Async variant of `__iter__`."""
        self.was_asked.set()
        while not self._may_speak.is_set():
            await one_turn()
        for event in self._said():
            yield event
            await one_turn()

    def abort(self) -> None:
        """Count, and unblock."""
        self.aborted += 1
        self.speak()

    def close(self) -> None:
        """Count, and say nothing more."""
        self.closed += 1
        self.was_closed.set()
        self.speak()

    async def aclose(self) -> None:
        """Async variant of `close`."""
        await one_turn()
        self.close()


@dataclass
class Bet:
    """A hedge that writes down what it is told.

    Attributes:
        rival: The second stream; None if nobody else may be asked.
        then: Done when the second stream is asked for.
        after: Seconds of silence before that.
    """

    rival: Speaker | None
    then: Callable[[], object] = lambda: None
    after: float = SOON
    begun: int = 0
    settled: list[tuple[bool, RetryRouterError | None]] = field(default_factory=list)

    def begin(self) -> Any:
        """Open the second stream."""
        self.begun += 1
        self.then()
        return self.rival

    def settle(self, *, has_won: bool, error: RetryRouterError | None) -> None:
        """Hear who won."""
        self.settled.append((has_won, error))


def says(event: ChunkInfo) -> bool:
    """Whether an event is worth handing over."""
    return event.is_token


def read(
    twin: Twin, first: Speaker, bet: Bet, into: list[ChunkInfo] | None = None
) -> list[ChunkInfo]:
    """All that is heard; what came before an error is found in `into`."""
    heard: list[ChunkInfo] = [] if into is None else into

    def listen() -> None:
        source = HedgedSource(first, bet, says)
        with contextlib.closing(source):
            for event in source:
                heard.append(event)  # noqa: PERF402 - kept also before an error

    async def alisten() -> None:
        source = AHedgedSource(first, bet, says)
        try:
            async for event in source:
                heard.append(event)  # noqa: PERF401
        finally:
            await source.aclose()

    asyncio.run(alisten()) if twin.is_async else listen()
    return heard


# --- one stream ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "events", [(HEL, LO, END), (ROLE, ROLE, HEL, END), (ROLE, END), (END,), ()]
)
def test_who_speaks_in_time_is_not_hedged(
    twin: Twin, events: tuple[ChunkInfo, ...]
) -> None:
    """A stream that speaks, or ends, before its time is handed over event by event."""
    first, bet = Speaker(*events), Bet(Speaker(BON), after=FAR)
    assert read(twin, first, bet) == list(events)
    assert bet.begun == 0
    assert bet.settled == []
    assert first.closed == 1


def test_a_failure_in_time_is_not_hedged(twin: Twin) -> None:
    """Who fails at once was not silent: the error is the call's, to be retried."""
    error = UnavailableError("503")
    bet = Bet(Speaker(BON), after=FAR)
    with pytest.raises(UnavailableError) as caught:
        read(twin, Speaker(error), bet)
    assert caught.value is error
    assert bet.begun == 0


@pytest.mark.parametrize("error", [UnavailableError("503"), KeyError("a bug")])
def test_an_error_comes_where_it_was_met(twin: Twin, error: Exception) -> None:
    """What was said before the error is heard before it, and the rest is not hedged."""
    heard: list[ChunkInfo] = []
    with pytest.raises(type(error)) as caught:
        read(twin, Speaker(ROLE, HEL, LO, error), Bet(None, after=FAR), heard)
    assert caught.value is error
    assert heard == [ROLE, HEL, LO]


def test_where_nobody_else_may_be_asked_the_first_is_waited_for(twin: Twin) -> None:
    """A hedge that finds no second route changes nothing."""
    first = Speaker(HEL, END, silent=True)
    bet = Bet(None, then=first.speak)
    assert read(twin, first, bet) == [HEL, END]
    assert bet.begun == 1
    assert bet.settled == []
    assert first.closed == 1


def test_what_follows_the_first_word_is_read_where_it_is_wanted() -> None:
    """Nothing is read ahead of the caller, who may want no more."""
    first = Speaker(ROLE, HEL, LO, END)
    events = iter(HedgedSource(first, Bet(None, after=FAR), says))
    assert [next(events), next(events)] == [ROLE, HEL]
    assert first.read == 2
    assert next(events) == LO
    assert first.read == 3


async def test_what_follows_is_read_where_it_is_wanted_in_async() -> None:
    """Nothing is read ahead of the caller, who may want no more, in async."""
    first = Speaker(ROLE, HEL, LO, END)
    events = aiter(AHedgedSource(first, Bet(None, after=FAR), says))
    assert [await anext(events), await anext(events)] == [ROLE, HEL]
    assert first.read == 2
    assert await anext(events) == LO
    assert first.read == 3


def test_a_stream_is_read_in_its_callers_context() -> None:
    """Context variables of the caller, such as a tracer's, are seen in the thread."""
    _whose.set("mine")
    first = Speaker(lambda: token(_whose.get()))
    assert list(HedgedSource(first, Bet(None, after=FAR), says)) == [token("mine")]


# --- the race -----------------------------------------------------------------------


def test_the_second_speaks_while_the_first_is_silent(twin: Twin) -> None:
    """The call goes on with the second stream, and the first is let go of."""
    first, second = Speaker(HEL, silent=True), Speaker(ROLE, BON, JOUR, END)
    bet = Bet(second)
    assert read(twin, first, bet) == [ROLE, BON, JOUR, END]
    assert bet.begun == 1
    assert bet.settled == [(True, None)]
    assert first.was_closed.wait(FAR)
    assert second.closed == 1


def test_the_first_speaks_after_all(twin: Twin) -> None:
    """Whoever says something first wins, be it late; the second is let go of."""
    first, second = Speaker(ROLE, HEL, LO, END, silent=True), Speaker(BON, silent=True)
    bet = Bet(second, then=first.speak)
    assert read(twin, first, bet) == [ROLE, HEL, LO, END]
    assert bet.settled == [(False, None)]
    assert second.was_closed.wait(FAR)
    assert first.closed == 1


def test_the_loser_is_let_go_of_before_the_winner_is_heard() -> None:
    """A stream that lost costs nothing while the winner is read."""
    first, second = Speaker(HEL, silent=True), Speaker(BON, JOUR, END)
    events = iter(HedgedSource(first, Bet(second), says))
    assert next(events) == BON
    assert first.was_closed.wait(FAR)
    assert second.closed == 0


async def test_the_loser_is_let_go_of_before_the_winner_is_heard_in_async() -> None:
    """A stream that lost costs nothing while the winner is read, in async."""
    first, second = Speaker(HEL, silent=True), Speaker(BON, JOUR, END)
    events = aiter(AHedgedSource(first, Bet(second), says))
    assert await anext(events) == BON
    assert first.was_closed.wait(FAR)
    assert second.closed == 0


@pytest.mark.parametrize("error", [UnavailableError("503"), KeyError("a bug")])
def test_the_first_fails_and_the_second_speaks(twin: Twin, error: Exception) -> None:
    """A failure is no end while the other may speak; it is told, if it is a model's."""
    first, second = Speaker(error, silent=True), Speaker(BON, END, silent=True)
    bet = Bet(second, then=first.speak)
    threading.Timer(5 * SOON, second.speak).start()
    assert read(twin, first, bet) == [BON, END]
    told = error if isinstance(error, RetryRouterError) else None
    assert bet.settled == [(True, told)]


@pytest.mark.parametrize("error", [UnavailableError("503"), KeyError("a bug")])
def test_the_second_fails_and_the_first_speaks(twin: Twin, error: Exception) -> None:
    """A second route that fails takes nothing from the first one."""
    first, second = Speaker(HEL, END, silent=True), Speaker(error)
    bet = Bet(second)
    threading.Timer(5 * SOON, first.speak).start()
    assert read(twin, first, bet) == [HEL, END]
    told = error if isinstance(error, RetryRouterError) else None
    assert bet.settled == [(False, told)]


@pytest.mark.parametrize("is_first_late", [True, False])
def test_when_both_fail_the_first_ones_error_is_the_calls(
    twin: Twin, is_first_late: bool
) -> None:
    """The call's own route failed, whoever was quicker; the hedge hears of its own."""
    mine, theirs = UnavailableError("mine"), UnavailableError("theirs")
    first = Speaker(mine, silent=True)
    second = Speaker(theirs, silent=not is_first_late)
    bet = Bet(second)
    if not is_first_late:
        bet.then = first.speak
    late = first if is_first_late else second
    threading.Timer(5 * SOON, late.speak).start()
    with pytest.raises(UnavailableError) as caught:
        read(twin, first, bet)
    assert caught.value is mine
    assert bet.settled == [(False, theirs)]


def test_a_silent_end_is_no_failure(twin: Twin) -> None:
    """A second stream that ends without a word has ended well, and wins."""
    first = Speaker(HEL, silent=True)
    bet = Bet(Speaker(END))
    assert read(twin, first, bet) == [END]
    assert bet.settled == [(True, None)]


# --- leaving ------------------------------------------------------------------------


def test_a_wait_can_be_aborted_from_another_thread() -> None:
    """Whoever waits for either stream is freed at once, and both are aborted."""
    first, second = Speaker(HEL, silent=True), Speaker(BON, silent=True)
    source = HedgedSource(first, Bet(second), says)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(list, source)
        assert second.was_asked.wait(FAR)
        source.abort()
        with pytest.raises(APIConnectionError, match="the stream was aborted"):
            waiting.result(FAR)
    assert (first.aborted, second.aborted) == (1, 1)


def test_a_wait_for_one_can_be_aborted_too() -> None:
    """Before a second stream is asked there is one to abort."""
    first = Speaker(HEL, silent=True)
    source = HedgedSource(first, Bet(None, after=FAR), says)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(list, source)
        assert first.was_asked.wait(FAR)
        first.abort = lambda: None  # type: ignore[method-assign]
        source.abort()
        with pytest.raises(APIConnectionError, match="the stream was aborted"):
            waiting.result(FAR)
        first.speak()


def test_closing_lets_go_of_both() -> None:
    """A caller who leaves in the middle leaves no stream behind."""
    first, second = Speaker(HEL, silent=True), Speaker(BON, JOUR)
    source = HedgedSource(first, Bet(second), says)
    assert next(iter(source)) == BON
    source.close()
    assert (first.closed, second.closed) == (1, 1)


def test_nothing_begins_after_an_abort() -> None:
    """A race that was aborted asks for no second stream: the call has gone on."""
    first, bet = Speaker(HEL, silent=True), Bet(Speaker(BON))
    source = HedgedSource(first, bet, says)
    source.abort()
    threading.Timer(4 * SOON, first.speak).start()
    assert list(source) == [HEL]
    assert bet.begun == 0
    source.close()


async def test_closing_goes_on_when_its_task_is_cancelled() -> None:
    """A stream is closed although the task that closes it is cancelled meanwhile."""
    first = Speaker(HEL, LO)
    source = AHedgedSource(first, Bet(None, after=FAR), says)
    assert await anext(aiter(source)) == HEL
    task = asyncio.create_task(source.aclose())
    await one_turn()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert first.was_closed.is_set()


async def test_a_task_that_is_cancelled_lets_go_of_both() -> None:
    """Who is cancelled while both are silent leaves no stream, and no task, behind."""
    first, second = Speaker(HEL, silent=True), Speaker(BON, silent=True)
    source = AHedgedSource(first, Bet(second), says)

    async def listen() -> None:
        async for _ in source:
            raise AssertionError

    task = asyncio.create_task(listen())
    while not second.was_asked.is_set():
        await one_turn()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await source.aclose()
    assert first.was_closed.wait(FAR)
    assert second.was_closed.wait(FAR)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_loser_that_fails_while_it_is_left_is_not_heard() -> None:
    """What a stream says about being let go of is nobody's business any more."""

    class Sore(Speaker):
        async def __aiter__(self) -> AsyncIterator[ChunkInfo]:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                msg = "sore"
                raise ValueError(msg)
            yield HEL

    first, bet = Sore(), Bet(Speaker(BON, END))
    source = AHedgedSource(first, bet, says)
    assert [event async for event in source] == [BON, END]
    assert bet.settled == [(True, None)]
    assert first.was_closed.wait(FAR)
