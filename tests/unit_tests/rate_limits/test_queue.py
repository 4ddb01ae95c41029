"""The queue of a `RateLimit`: threads and loops in one line, and no permit lost."""

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from langchain_retryrouter import RateLimit
from langchain_retryrouter.failures import Failure, FailureKind
from langchain_retryrouter.rate_limits import Reservation, Size
from langchain_retryrouter.stores import MemoryStore
from langchain_retryrouter.testing import FakeClock
from tests.support.forks import told_by_a_child

from .conftest import ONE, admitted


def until_waiting(limit: RateLimit, number: int) -> None:
    """Let other threads run until so many of them wait."""
    end = time.monotonic() + 10
    while limit.waiting != number:
        assert time.monotonic() < end
        os.sched_yield()


def test_threads_and_loops_stand_in_one_line() -> None:
    """Whoever came first is admitted first, whatever it waits with."""
    limit = RateLimit(max_concurrency=1)
    held = limit.take(ONE)
    order: list[int] = []

    def in_thread(number: int) -> None:
        one = admitted(limit)
        order.append(number)
        one.succeeded()

    async def in_loop(number: int) -> None:
        one = await limit.areserve(ONE)
        assert one is not None
        order.append(number)
        one.succeeded()

    with ThreadPoolExecutor(12) as pool:
        waits = []
        for number in range(12):
            if number % 2:
                waits.append(pool.submit(in_thread, number))
            else:
                waits.append(pool.submit(asyncio.run, in_loop(number)))
            until_waiting(limit, number + 1)
        held.succeeded()
        for one in waits:
            one.result(10)
    assert order == list(range(12))
    assert (limit.in_flight, limit.waiting) == (0, 0)


async def test_nobody_overtakes_the_queue(clock: FakeClock) -> None:
    """A small request does not pass a large one that waits, nor one without a wait."""
    limit = RateLimit(tokens_per_minute=600, clock=clock)
    limit.take(Size(0, 30)).cancelled()
    large = asyncio.create_task(limit.areserve(Size(0, 500)))
    await asyncio.sleep(0)  # noqa: TID251 - one turn
    assert limit.waiting == 1
    assert limit.try_reserve(Size(0, 1)) is None
    small = asyncio.create_task(limit.areserve(Size(0, 1)))
    first, second = await large, await small
    assert first is not None
    assert second is not None
    assert first.since < second.since


@pytest.mark.parametrize("state", ["waiting", "granted"])
async def test_a_cancelled_wait_lets_the_next_one_in(state: str) -> None:
    """Also if its turn came in the same instant."""
    limit = RateLimit(max_concurrency=1)
    held = limit.take(ONE)
    first = asyncio.create_task(limit.areserve(ONE))
    second = asyncio.create_task(limit.areserve(ONE))
    await asyncio.sleep(0)  # noqa: TID251 - one turn
    assert limit.waiting == 2
    if state == "granted":
        held.succeeded()
    first.cancel()
    held.succeeded()
    one = await second
    assert one is not None
    one.succeeded()
    assert first.cancelled()
    assert (limit.in_flight, limit.waiting) == (0, 0)


def test_an_interrupted_wait_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control-C is no answer, and takes no place."""
    limit = RateLimit(max_concurrency=1)
    limit.take(ONE)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Event, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        limit.reserve(ONE)
    assert (limit.in_flight, limit.waiting) == (1, 0)


class StillClock(FakeClock):
    """A clock that waits do not move: they only let other threads run."""

    def sleep(self, seconds: float) -> None:
        del seconds
        os.sched_yield()


def test_what_is_given_back_goes_to_those_who_wait() -> None:
    """At once, and all of it, also if it is more than the bucket holds."""
    clock = StillClock()
    limit = RateLimit(tokens_per_minute=60, clock=clock)  # Its bucket holds one.
    held = limit.take(Size(0, max_tokens=1_000))
    size = Size(10, max_tokens=20)
    with ThreadPoolExecutor(20) as pool:
        waits = []
        for at in range(20):
            waits.append(pool.submit(limit.reserve, size, 1_000))
            until_waiting(limit, at + 1)
        clock.advance(500)
        held.used = (0, 0)
        held.succeeded()
        assert limit.available() == {"tokens": pytest.approx(1 + 500 - 17 * 30)}
        assert (limit.in_flight, limit.waiting) == (17, 3)
        clock.advance(1_000)
        assert sum(one.result(10) is not None for one in waits) >= 17
    assert limit.waiting == 0


def test_a_forked_process_starts_afresh() -> None:
    """What its parent has in flight, and who waits there, is not its own."""
    limit = RateLimit(max_concurrency=2)
    held = limit.take(ONE)

    def in_the_child() -> tuple[int, int]:
        held.succeeded()
        return limit.in_flight, limit.waiting

    assert told_by_a_child(in_the_child) == "(0, 0)"
    assert limit.in_flight == 1


def test_a_limit_that_gets_a_store_keeps_what_is_in_flight() -> None:
    """And those who wait for it: another model may be given the store meanwhile."""
    limit = RateLimit(max_concurrency=1)
    held = limit.take(ONE)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(limit.reserve, ONE, 30)
        until_waiting(limit, 1)
        limit.join(MemoryStore(), "any")
        assert (limit.in_flight, limit.waiting) == (1, 1)
        held.succeeded()
        one = waiting.result()
    assert one is not None
    one.succeeded()
    assert limit.in_flight == 0


class Histories(RuleBasedStateMachine):
    """Any order of reservations, ends and time."""

    sent = Bundle("sent")

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.limit = RateLimit(
            requests_per_minute=120,
            tokens_per_minute=6_000,
            input_tokens_per_minute=3_000,
            max_concurrency=4,
            adaptive=True,
            clock=self.clock,
        )
        self.held = 0

    @rule(
        target=sent,
        prompt=st.integers(0, 2_000),
        most=st.none() | st.integers(1, 2_000),
        patience=st.sampled_from([0.0, 0.5, 5.0, 300.0]),
    )
    def reserve(self, prompt: int, most: int | None, patience: float) -> Any:
        with_ratio = self.limit.costs_of(Size(100))["input_tokens"] / 100
        if prompt * with_ratio > 3_000:
            return multiple()
        one = self.limit.reserve(Size(prompt, most), patience)
        if one is None:
            return multiple()
        self.held += 1
        return one

    @rule(
        one=consumes(sent),
        end=st.sampled_from(["succeeded", "cancelled", "unsent", 429, 500, None]),
        used=st.none() | st.tuples(st.integers(0, 3_000), st.integers(0, 3_000)),
    )
    def end(
        self, one: Reservation, end: str | int | None, used: tuple[int, int] | None
    ) -> None:
        one.used = used
        if isinstance(end, str):
            getattr(one, end)()
        else:
            kind = FailureKind.RATE_LIMIT if end == 429 else FailureKind.CONNECTION
            one.failed(Failure(kind, end, may_have_run=end == 500))
        self.held -= 1

    @rule(seconds=st.floats(0, 120))
    def let_pass(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def nothing_is_lost(self) -> None:
        """Permits are those held, nobody is left waiting, no bucket overflows."""
        assert self.limit.in_flight == self.held
        assert self.held <= 4
        assert self.limit.waiting == 0
        levels = self.limit.available()
        assert levels["requests"] <= 2 + 1e-6
        assert levels["tokens"] <= 100 + 1e-6
        assert levels["input_tokens"] <= 50 + 1e-6

    def teardown(self) -> None:
        self.clock.advance(1e6)
        assert self.limit.available() == {
            "requests": 2.0,
            "tokens": 100.0,
            "input_tokens": 50.0,
        }


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None
)
