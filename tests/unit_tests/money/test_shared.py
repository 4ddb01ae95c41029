"""Limits for a period that processes share over a store."""

import pickle
from collections.abc import Iterator
from typing import Any

import fakeredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_retryrouter import SpendLimit
from langchain_retryrouter._shared import SPEND, Record
from langchain_retryrouter.circuit_breaker import Refusal
from langchain_retryrouter.spend_limits import Price, SpendReservation
from langchain_retryrouter.stores import MemoryStore
from langchain_retryrouter.testing import FakeClock, FaultyGateway
from tests.support.forks import told_by_a_child
from tests.support.interleavings import LuaAndPython
from tests.unit_tests.stores.conftest import (
    AwayStore,
    LateStore,
    Processes,
    RefusingStore,
    SilentStore,
    eventually,
    processes,
    stores_of,
)

from .conftest import COST, Env, crowd, new_route, new_router, reserved

__all__ = ["processes"]


@pytest.fixture(params=["memory", "redis"])
def stores(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    """Four stores of the same records, as four processes have."""
    if request.param == "memory":
        yield [MemoryStore()] * 4
        return
    server = fakeredis.FakeServer()
    made = stores_of(server, 4)
    yield made
    for store in made:
        store.close()


def test_64_callers_of_four_processes_stay_below_the_limit(
    gateway: FaultyGateway, stores: list[Any]
) -> None:
    """The processes spend the amount together, and none of them goes beyond it."""
    model = {"max_completion_tokens": 10}
    routers = [
        new_router(
            new_route(gateway, model=model),
            spend_limit=SpendLimit(20.5 * COST, name="team", store=store),
            clock=None,
        )
        for store in stores
    ]
    outcomes = crowd(*routers)
    assert outcomes["ok"] == len(gateway.requests)
    assert 12 <= outcomes["ok"] <= 20


def test_what_one_process_spends_is_missing_in_the_others(stores: list[Any]) -> None:
    """Each process knows what is left, and gives back what it has not used."""
    one, other = (SpendLimit(10, name="x", store=store) for store in stores[:2])
    reserved(one, 5).settle(6)  # What it cost beyond its estimate is missing, too.
    eventually(lambda: other.left <= 4)
    reasons: list[str] = []

    def is_refused() -> bool:
        one = other.reserve(Price(5, 5))
        assert isinstance(one, Refusal)
        reasons.append(one.reason)
        return one.retry_after > 1

    eventually(is_refused)
    assert "it resets in" in reasons[-1]
    reserved(other, 3).settle(1)
    eventually(lambda: 6.9 < one.spent < 7.5 and other.left > 2)


def test_a_new_period_begins_in_all_processes() -> None:
    """The money of a period is leased anew, and what is late counts in the old one."""
    clock = FakeClock(unix_time=1_800_000_000)
    store = MemoryStore(clock=clock)
    one, other = (
        SpendLimit(10, per="hour", name="x", store=store, clock=clock) for _ in "ab"
    )
    late = reserved(one, 2)
    reserved(other, 7).settle(8)
    clock.advance(3600)
    assert (one.left, other.left) == (10, 10)
    late.settle(2)
    assert one.spent == 0
    reserved(other, 9).settle(9)


def test_a_store_that_is_away_leaves_each_process_its_share(
    processes: Processes,
) -> None:
    """Without its store a process spends no more than its share of what was left."""
    *stores, server = processes
    limits = [SpendLimit(10, name="x", store=store) for store in stores]
    eventually(lambda: [len(one.processes) for one in stores[0].snapshot()] == [2])
    for limit in limits:
        reserved(limit, 1).settle(1)
    server.connected = False
    eventually(lambda: not any(store.is_up for store in stores))
    for limit in limits:
        one = limit.reserve(Price(3, 3))
        assert isinstance(one, SpendReservation)
        assert not isinstance(limit.reserve(Price(3, 3)), SpendReservation)
        one.settle(3)
    server.connected = True
    eventually(lambda: stores[0].is_up)
    eventually(lambda: processes.one.snapshot()[0].facts["taken"] == pytest.approx(8))


def test_money_that_redis_has_forgotten_stays_spent(processes: Processes) -> None:
    """A restart without persistence gives no money back, whoever asks first."""
    limits = [SpendLimit(10, name="x", store=store) for store in processes[:2]]
    for limit in limits:
        reserved(limit, 4).settle(4)
    processes.client().flushall()
    reserved(limits[0], 1).settle(1)
    eventually(lambda: max(limit.left for limit in limits) <= 1)


MOVE = st.tuples(
    st.integers(0, 2),  # The process, its window, what it spends and asks for.
    st.sampled_from([1, 1, 1, 1, 2]),
    st.sampled_from([0.0, 0.1, 3.0, -2.5]),
    st.sampled_from([0.0, 0.0, 1.3, 7.0]),
    st.sampled_from(["", "", "unanswered", "again", "leaves", "lost", "older"]),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(MOVE, max_size=25))
def test_lua_and_python_are_the_same(moves: list[tuple[Any, ...]]) -> None:
    """And once all have said what they have, that is what counts, whatever was lost.

    No answer that is late, no message that comes again, and no record that is lost, or
    an older one, makes it less. While no record is lost, it is not more either.
    """
    both = LuaAndPython(SPEND)
    has, names = dict[int, float](), dict[int, int]()
    left, now, current, was_lost = 0.0, 1_000_000, 1, False
    older: Record = {}

    def tell(who: int, more: float = 0.0, has_left: int = 0) -> list[Any]:
        nonlocal now
        now += 100
        me = f"p{who}#{names.setdefault(who, 0)}"
        total = has.setdefault(who, 0.0)
        return both.run(now, [me, current, 60_000, 10.0, total, more, total, has_left])

    for who, window, change, more, event in moves:
        if window > current:
            current, has, left, was_lost = window, {}, 0.0, False
        has[who] = max(0.0, has.get(who, 0.0) + change)
        if event in {"lost", "older"}:
            both.lose(older if event == "older" else {})
            was_lost = True
        elif event == "leaves":
            tell(who, has_left=1)
            left += has.pop(who)
            names[who] += 1
        else:
            reply = tell(who, more)
            assert reply[1] == 0 or reply[2] <= 10 + 1e-9
            if event == "again":
                reply = tell(who, more)
            has[who] += reply[1] if event != "unanswered" else 0.0
        older = dict(both.record) if event == "again" else older
    for who in list(has):
        reply = tell(who)
        if was_lost:
            assert reply[2] >= has[who] - 1e-9
    if has and was_lost:
        assert reply[2] >= sum(has.values()) - 1e-9
    elif has:
        assert reply[2] == pytest.approx(sum(has.values()) + left, abs=1e-9)


def test_a_record_forgets_silent_objects_and_not_what_they_have() -> None:
    """Of many objects, those that are silent for an hour are kept as a sum."""
    both, now = LuaAndPython(SPEND), 1_000_000
    for number in range(120):
        both.run(now, [f"p{number}#0", 1, 60_000, 99.0, 0.5, 0.0, 0.5, 0])
    now += 3_700_000
    reply = both.run(now, ["p0#0", 1, 60_000, 99.0, 0.5, 1.0, 1.5, 0])
    assert reply[1:3] == [1, pytest.approx(61)]
    kept = {field for field in both.record if field[:2] in {"t:", "s:", "u:"}}
    assert kept == {"t:p0#0", "s:p0#0", "u:p0#0"}


def test_what_a_killed_process_has_leased_goes_back() -> None:
    """After two minutes it counts with what it had in use; if it is back, in full."""
    both, now = LuaAndPython(SPEND), 1_000_000
    window = [1, 600_000, 10.0]
    assert both.run(now, ["killed#0", *window, 1.0, 7.0, 2.0, 0])[1] == 7
    assert both.run(now, ["p#0", *window, 0.0, 5.0, 5.0, 0])[1] == 2
    now += 119_000
    assert both.run(now, ["p#0", *window, 2.0, 9.0, 9.0, 0])[1] == 0
    now += 2_000
    assert both.run(now, ["p#0", *window, 2.0, 9.0, 9.0, 0])[1:3] == [6, 10]
    assert both.run(now, ["killed#0", *window, 8.0, 1.0, 9.0, 0])[1:3] == [0, 16]
    assert both.run(now, ["p#0", *window, 8.0, 1.0, 9.0, 0])[1:3] == [0, 16]


def seconds_later(clock: FakeClock, store: MemoryStore, seconds: int = 2) -> None:
    """Let all that is watched say what it has."""
    for _ in range(seconds):
        clock.advance(1)
        store.wake()


def test_what_redis_has_counted_without_an_answer_counts_once() -> None:
    """Neither what was spent, nor what was leased, nor what is given back."""
    clock = FakeClock()
    store = LateStore(clock=clock)
    limit = SpendLimit(100, name="x", store=store, clock=clock)
    store.is_late = False
    seconds_later(clock, store)
    for _ in range(3):
        one = reserved(limit, 10)
        store.is_late = True
        one.settle(20)
        store.is_late = False
        seconds_later(clock, store)
        store.is_late = True
        reserved(limit, 25).settle(0)  # It has asked for a lease, before.
        seconds_later(clock, store)
        store.is_late = False
        seconds_later(clock, store)
    assert limit.spent == 60
    (scope,) = store.snapshot()
    assert scope.facts["taken"] == pytest.approx(60)
    assert set(scope.facts) == {"taken", "window", "window_for"}


def test_limits_of_other_periods_are_others(gateway: FaultyGateway) -> None:
    """A team's hourly and daily limits may have one name; equal periods are one."""
    clock = FakeClock(unix_time=1_800_000_100)
    store = MemoryStore(clock=clock)
    given: dict[str, Any] = {"name": "team", "store": store, "clock": clock}
    hourly, daily = SpendLimit(2, per="hour", **given), SpendLimit(20, **given)
    router = new_router(new_route(gateway, spend_limit=hourly), spend_limit=daily)
    for _ in range(2):
        assert router.invoke("hi").text
    for limit in (hourly, daily):
        assert limit.spent == pytest.approx(2 * COST)
    seconds = SpendLimit(2, per=3600, **given)
    assert seconds.spent >= hourly.spent
    names = [scope.name for scope in store.snapshot()]
    assert names == ["team per day", "team per hour"]


@pytest.mark.parametrize("end", ["leaves", "is collected"])
def test_what_was_leased_and_not_used_is_given_back(end: str) -> None:
    """An object that goes keeps what it has spent, and what is in flight."""
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    for _ in range(3):
        limit = SpendLimit(10, name="x", store=store, clock=clock)
        one, held = reserved(limit, 2), reserved(limit, 0.5)
        one.settle(1)
        if end == "leaves":
            limit.leave()
            limit.leave()  # It has nothing any more.
            held.settle(0.2)  # It counts with the most that it could come to.
        del limit, one, held
    (scope,) = store.snapshot()
    assert scope.facts["taken"] == pytest.approx(4.5)
    other = SpendLimit(10, name="x", store=store, clock=clock)
    reserved(other, 5.5).settle(5)
    other.leave()
    assert other.left == pytest.approx(0.5)
    reserved(other, 0.5).settle(0.5)
    assert other.spent == pytest.approx(10)


def test_a_closed_store_gives_back_and_is_used_again(processes: Processes) -> None:
    """The last `close` gives back what is not used; then the limit leases anew."""
    one, other = (SpendLimit(10, name="x", store=store) for store in processes[:2])
    reserved(one, 6).settle(1)
    processes.one.close()
    eventually(lambda: other.spent == pytest.approx(1))
    eventually(lambda: one.spent == pytest.approx(1))
    reserved(other, 6).settle(6)
    reserved(one, 2).settle(2)
    eventually(lambda: other.spent >= 9)
    eventually(lambda: one.left <= 1)


@pytest.mark.parametrize("cls", [RefusingStore, SilentStore])
def test_a_store_that_does_nothing_leaves_each_process_its_share(cls: Any) -> None:
    """It does what it can do without its store, at once or when it has waited."""
    clock = FakeClock()
    limit = SpendLimit(10, name="x", store=cls(clock=clock), clock=clock)
    if cls is SilentStore:
        assert isinstance(limit.reserve(Price(6, 6)), Refusal)
        clock.advance(1)
    one = limit.reserve(Price(6, 6))
    assert isinstance(one, SpendReservation)
    refusal = limit.reserve(Price(6, 6))
    assert isinstance(refusal, Refusal)
    assert "1 attempt in flight may take the rest" in refusal.reason


def test_a_clock_that_is_ahead_takes_no_money_from_others() -> None:
    """The period that has begun by one clock is that of all processes."""
    midnight = 86_400 * 20_000
    clocks = [FakeClock(unix_time=midnight + seconds) for seconds in (1, -2)]
    store = MemoryStore(clock=clocks[0])
    limits = [SpendLimit(10, name="x", store=store, clock=clock) for clock in clocks]
    for limit in limits:
        reserved(limit, 4).settle(4)
    for clock in clocks:
        clock.advance(3)
    assert [limit.left for limit in limits] == [pytest.approx(2)] * 2


@pytest.mark.parametrize("seconds", [1e10, 1e306])
def test_a_limit_for_all_time_is_shared(stores: list[Any], seconds: float) -> None:
    """A period that began with the Unix epoch, and ends after any time, is one."""
    one, other = (
        SpendLimit(10, per=seconds, name="x", store=store) for store in stores[:2]
    )
    reserved(one, 6).settle(6)
    eventually(lambda: other.left <= 4)
    reserved(other, 3).settle(3)
    eventually(lambda: one.left <= 1)


@pytest.mark.parametrize("way", ["pickle", "fork"])
def test_a_copy_in_another_process_knows_what_was_spent(way: str) -> None:
    """While the store is away it does not spend what others have, once more."""
    store = AwayStore()
    store.is_up = True
    limit = SpendLimit(10, name="x", store=store)
    reserved(limit, 8).settle(8)
    store.is_up = False
    copied = pickle.loads(pickle.dumps(limit))
    left = copied.left if way == "pickle" else told_by_a_child(lambda: limit.left)
    assert float(left) <= 2


class WaitingStore(MemoryStore):
    """Answers while its callers wait, as a thread does; it is their clock, too."""

    def __init__(self) -> None:
        self.jobs: list[Any] = []
        self.clock = Answering(self)
        super().__init__(clock=self.clock)

    def submit(self, *job: Any) -> bool:
        self.jobs.append(job)
        return True

    def answer(self) -> None:
        while self.jobs:
            super().submit(*self.jobs.pop(0))


class Answering(FakeClock):
    """Lets a store answer in each wait."""

    def __init__(self, store: WaitingStore) -> None:
        super().__init__()
        self._store = store

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self._store.answer()

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_the_first_route_waits_for_the_stores_answer(env: Env, way: str) -> None:
    """The next route is not asked because money was not leased ahead."""
    store = WaitingStore()
    limit = SpendLimit(1, name="x", store=store, clock=store.clock)
    first = env.route("first", model={"max_tokens": 10}, spend_limit=limit)
    router = new_router(first, env.route("next"), clock=store.clock)
    assert env.log(way, router).route == "first"
    assert 0 < sum(store.clock.sleeps) < 0.01


def test_a_store_that_hangs_is_not_waited_for(env: Env) -> None:
    """After a moment the next route is asked; and each process has its share."""
    clock = FakeClock()
    limit = SpendLimit(1, name="x", store=SilentStore(clock=clock), clock=clock)
    first = env.route("first", spend_limit=limit)
    router = new_router(first, env.route("next"), clock=clock)
    assert env.log("invoke", router).route == "next"
    assert sum(clock.sleeps) == pytest.approx(0.25, abs=0.01)
    clock.advance(1)
    assert env.log("invoke", router).route == "first"
    assert sum(clock.sleeps) < 0.3
