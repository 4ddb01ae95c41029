"""Calls that come together pass a few at a time, and nobody else waits for them."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from langchain_retryrouter._retry import turnstile
from langchain_retryrouter._retry.engine import acall
from langchain_retryrouter._retry.streaming import astream
from langchain_retryrouter._retry.turnstile import AT_ONCE, enter, go_on
from langchain_retryrouter.errors import UnavailableError
from langchain_retryrouter.testing import FakeClock

from .both_twins import plan_for
from .scripted import END, Source, one_turn, token

MANY = 5 * AT_ONCE
Way = Callable[[], Awaitable[None]]
either_way = pytest.mark.parametrize("way", [enter, go_on])


class Turns:
    """Counts the turns of the running loop, and what happens in each."""

    def __init__(self) -> None:
        """From now on, until it is stopped."""
        self._loop = asyncio.get_running_loop()
        self.number = -1
        self.seen: Counter[int] = Counter()
        self._count()

    def _count(self) -> None:
        self.number += 1
        self._next = self._loop.call_soon(self._count)

    def note(self) -> None:
        """Something happened in this turn."""
        self.seen[self.number] += 1

    def stop(self) -> None:
        """Count no more."""
        self._next.cancel()


class Stopwatch:
    """The turnstile's clock; what takes time says so."""

    def __init__(self) -> None:
        """At zero."""
        self.now = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


@pytest.fixture(autouse=True)
def watch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    """A clock that stands still: nobody knows what a call takes."""
    stopwatch = Stopwatch()
    monkeypatch.setattr(turnstile, "perf_counter", stopwatch)
    return stopwatch


@pytest.fixture
async def turns() -> AsyncIterator[Turns]:
    """The turns of the test's own loop."""
    counted = Turns()
    yield counted
    counted.stop()


@either_way
async def test_who_comes_alone_passes_at_once(way: Way) -> None:
    """Without a crowd there is no wait, not even for a turn of the loop."""
    for _ in range(AT_ONCE):
        with pytest.raises(StopIteration):
            way().__await__().send(None)


@either_way
async def test_the_next_turn_is_a_new_one(way: Way) -> None:
    """Who comes turn after turn never waits, however often."""
    for _ in range(MANY):
        with pytest.raises(StopIteration):
            way().__await__().send(None)
        await one_turn()


@either_way
async def test_a_crowd_passes_a_few_at_a_time(way: Way, turns: Turns) -> None:
    """At most `AT_ONCE` pass in a turn of the loop, and no turn is left out."""

    async def call() -> None:
        await way()
        turns.note()

    await asyncio.gather(*(call() for _ in range(MANY)))
    assert set(turns.seen.values()) == {AT_ONCE}
    first, *_, last = sorted(turns.seen)
    assert last - first <= MANY // AT_ONCE


@either_way
async def test_a_crowd_passes_in_its_order(way: Way) -> None:
    """Who came first passes first."""
    passed: list[int] = []

    async def call(number: int) -> None:
        await way()
        passed.append(number)

    await asyncio.gather(*map(call, range(MANY)))
    assert passed == list(range(MANY))


async def test_who_is_under_way_goes_first() -> None:
    """Those who only begin let those pass who came later, but are under way."""
    passed: list[str] = []

    async def call(way: Way, name: str) -> None:
        await way()
        passed.append(name)

    begin = [call(enter, "begins") for _ in range(MANY)]
    under_way = [call(go_on, "goes on") for _ in range(MANY)]
    await asyncio.gather(*begin, *under_way)
    at_once = ["begins"] * AT_ONCE
    assert passed == at_once + ["goes on"] * MANY + ["begins"] * (MANY - AT_ONCE)


@either_way
async def test_a_cancelled_call_gives_its_place_on(way: Way, turns: Turns) -> None:
    """Who is cancelled in the queue leaves at once, and no place is left empty."""

    async def call() -> None:
        await way()
        turns.note()

    tasks = [asyncio.create_task(call()) for _ in range(MANY)]
    await one_turn()
    cancelled = tasks[AT_ONCE : 3 * AT_ONCE : 2]
    for task in cancelled:
        task.cancel()
    await asyncio.wait(tasks)
    assert [task for task in tasks if task.cancelled()] == cancelled
    assert set(turns.seen.values()) == {AT_ONCE}


@either_way
async def test_who_is_cancelled_in_its_turn_holds_nobody_up(way: Way) -> None:
    """A place that was given, and not taken, is there again in the next turn."""
    tasks = [asyncio.ensure_future(way()) for _ in range(MANY)]
    await one_turn()
    await one_turn()  # The queue was looked at: the next ones have their places.
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    with pytest.raises(StopIteration):
        way().__await__().send(None)


def test_loops_have_a_turnstile_each() -> None:
    """A crowd in one thread's loop holds nobody up in another's."""
    crowd_stands, other_is_done = threading.Event(), threading.Event()

    async def stand() -> None:
        for _ in range(MANY):
            asyncio.ensure_future(enter())  # noqa: RUF006 - the run cancels them
        await one_turn()
        crowd_stands.set()
        # The loop stands still, in the middle of its crowd.
        while not other_is_done.is_set():
            pass

    async def pass_by() -> None:
        with pytest.raises(StopIteration):
            enter().__await__().send(None)

    thread = threading.Thread(target=asyncio.run, args=[stand()])
    thread.start()
    try:
        assert crowd_stands.wait(5)
        asyncio.run(pass_by())
    finally:
        other_is_done.set()
        thread.join()


@pytest.mark.parametrize("crowd", [1, MANY])
def test_a_closed_loop_is_let_go(crowd: int) -> None:
    """A loop that is closed in the middle of a crowd is kept by nobody."""
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(enter()) for _ in range(crowd)]
    loop.call_soon(loop.stop)
    loop.run_forever()
    for task in tasks:
        task.cancel()
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    kept = weakref.ref(loop)
    del loop, tasks, task
    gc.collect()
    assert kept() is None


# How many are a few.


async def passed(way: Way, watch: Stopwatch, step: float, others: float) -> list[int]:
    """How many pass in each turn, if each takes `step`, and all else `others`."""
    turns, calls = Turns(), 4_000
    loop = asyncio.get_running_loop()

    async def call() -> None:
        await way()
        turns.note()
        watch.now += step

    def work() -> None:
        if not all(task.done() for task in tasks):
            watch.now += others
            loop.call_soon(work)

    loop.call_soon(work)
    tasks = [asyncio.create_task(call()) for _ in range(calls)]
    for _ in range(40):
        await one_turn()
    turns.stop()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return [count for _, count in sorted(turns.seen.items())]


@either_way
@pytest.mark.parametrize(
    ("step", "others", "at_once"),
    [
        # Half a millisecond where there is little else to do ...
        (0.0001, 0.0, 5),
        (0.00001, 0.0, 50),
        (0.0001, 0.0005, 5),
        # ... and half of what all else takes where there is more.
        (0.0001, 0.004, 20),
        # Never more than 10 ms, but one call.
        (0.0001, 0.5, 100),
        (0.02, 0.0, 1),
        (0.02, 0.5, 1),
    ],
)
async def test_as_many_pass_as_is_fair(
    way: Way, watch: Stopwatch, step: float, others: float, at_once: int
) -> None:
    """Calls leave the rest of the loop's work its time, and take theirs."""
    counts = await passed(way, watch, step, others)
    assert counts[0] == AT_ONCE
    # Times are sums of floats: one call more or less.
    assert set(counts[-10:]) <= {at_once, max(1, at_once - 1)}


async def test_a_crowd_grows_step_by_step(watch: Stopwatch) -> None:
    """What one turn seemed to take does not let all the others pass in the next."""
    counts = await passed(enter, watch, 1e-9, 0.5)
    assert counts[:6] == [AT_ONCE, AT_ONCE, *(AT_ONCE * 2**n for n in range(1, 5))]


# Where the calls of the drive pass.


async def test_attempts_of_a_crowd_are_sent_a_few_at_a_time(
    clock: FakeClock, turns: Turns
) -> None:
    """However many calls are made together, few requests are written in one turn."""

    async def send(_: object) -> str:
        turns.note()
        await one_turn()
        return "hello"

    calls = (acall(plan_for(clock), send) for _ in range(MANY))
    assert await asyncio.gather(*calls) == ["hello"] * MANY
    assert max(turns.seen.values()) <= AT_ONCE


async def test_answers_of_a_crowd_are_read_a_few_at_a_time(
    clock: FakeClock, turns: Turns
) -> None:
    """However many answers come together, the callers get a few of them in one turn."""
    answered = asyncio.Event()

    async def send(_: object) -> str:
        await answered.wait()
        return "hello"

    async def call() -> None:
        await acall(plan_for(clock), send)
        turns.note()

    tasks = [asyncio.create_task(call()) for _ in range(MANY)]
    for _ in range(MANY):
        await one_turn()
    answered.set()
    await asyncio.gather(*tasks)
    assert set(turns.seen.values()) == {AT_ONCE}


async def test_failures_of_a_crowd_are_told_a_few_at_a_time(
    clock: FakeClock, turns: Turns
) -> None:
    """A server that refuses all at once does not make them all repeat in one turn."""
    refused = asyncio.Event()

    async def send(attempt: object) -> str:
        await refused.wait()
        if getattr(attempt, "number", 0) == 1:
            msg = "503"
            raise UnavailableError(msg)
        return "hello"

    async def notify(_: object) -> None:
        turns.note()

    plans = [plan_for(clock) for _ in range(MANY)]
    tasks = [asyncio.create_task(acall(plan, send, notify)) for plan in plans]
    for _ in range(MANY):
        await one_turn()
    refused.set()
    assert await asyncio.gather(*tasks) == ["hello"] * MANY
    assert max(turns.seen.values()) <= AT_ONCE


async def test_streams_of_a_crowd_are_opened_a_few_at_a_time(
    clock: FakeClock, turns: Turns
) -> None:
    """However many streams are begun together, few requests are written in one turn."""

    async def connect(_: object) -> Source:
        turns.note()
        return Source(token("Hello"), END)

    async def read() -> None:
        events = astream(plan_for(clock), connect, lambda: lambda signal: signal)
        assert [event.text async for event in events] == ["Hello", ""]

    await asyncio.gather(*(read() for _ in range(MANY)))
    assert max(turns.seen.values()) <= AT_ONCE


async def test_an_answer_counts_before_its_turn(clock: FakeClock) -> None:
    """Who is cancelled behind its answer has told of its success before."""
    crowd: list[asyncio.Task[None]] = []
    plan = plan_for(clock)

    async def send(_: object) -> str:
        crowd.extend(asyncio.create_task(go_on()) for _ in range(MANY))
        await one_turn()
        return "hello"

    answered = asyncio.create_task(acall(plan, send))
    for _ in range(4):
        await one_turn()
    assert not answered.done()
    answered.cancel()
    await asyncio.wait([answered, *crowd])
    assert answered.cancelled()
    assert [record.outcome for record in plan.call_state.records] == ["ok"]
