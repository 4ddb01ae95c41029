"""`RateLimit(store=)`: one limit for many processes, by leases; here without Redis."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_retryrouter import RateLimit, RetryRouter, Route
from langchain_retryrouter._shared import LIMIT, Record
from langchain_retryrouter.rate_limits import Size
from langchain_retryrouter.stores import MemoryStore
from langchain_retryrouter.testing import FakeClock, FaultyGateway
from tests.promises.harness import limited_fleet, run
from tests.support.interleavings import LuaAndPython
from tests.support.models import chat_openai
from tests.unit_tests.stores.conftest import RefusingStore, SilentStore

from .conftest import ONE, admitted


def shared(store: Any, clock: Any, **numbers: Any) -> RateLimit:
    return RateLimit(**numbers, name="shared", store=store, clock=clock)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("per_minute", [600, 2_400])
def test_a_fleet_gets_the_limit_in_equal_parts(per_minute: int, strict: bool) -> None:
    """Twice as much is wanted as there is: all of it is used, and nobody starves."""
    numbers: Any = {"requests_per_minute": per_minute, "strict": strict}
    admissions, _ = run(limited_fleet(8, per_minute / 240, 20, **numbers))
    limit, fair = per_minute / 3, sum(admissions) / 8
    burst = per_minute / 60 + 8  # A second's worth, and the first of each process.
    assert 0.97 * limit <= sum(admissions) <= 1.02 * limit + burst
    assert fair / 2 <= min(admissions) <= max(admissions) <= fair * 2


def test_what_others_leave_is_used() -> None:
    """Below the limit nobody waits for long, whoever has how much to do."""
    admissions, waits = run(limited_fleet(4, 2.0, 30, requests_per_minute=1_200))
    assert len(waits) >= sum(admissions) > 200
    assert sorted(waits)[int(len(waits) * 0.9)] < 0.01


def test_concurrency_is_shared(clock: FakeClock) -> None:
    """A permit that one process gives back, another one may take."""
    store = MemoryStore(clock=clock)
    first, second = (shared(store, clock, max_concurrency=4) for _ in range(2))
    held = [admitted(first) for _ in range(4)]
    assert second.reserve(ONE, 1) is None
    for one in held[1:]:
        one.succeeded()
    for _ in range(3):
        clock.advance(1)
        store.wake()
    while second.reserve(ONE, 1) is not None:
        pass
    assert 1 <= second.in_flight <= 3
    assert first.in_flight + second.in_flight <= 4


@pytest.mark.parametrize("strict", [False, True])
def test_a_limit_of_requests_alone_has_many_in_flight(
    clock: FakeClock, strict: bool
) -> None:
    """Without `max_concurrency` the next request does not wait for an end."""
    store = MemoryStore(clock=clock)
    limit = shared(store, clock, requests_per_minute=6_000, strict=strict)
    assert None not in [limit.reserve(ONE, 1) for _ in range(20)]
    assert (limit.in_flight, limit.waiting) == (20, 0)
    assert clock.monotonic() < 1


def test_the_first_call_does_not_wait_for_the_store(clock: FakeClock) -> None:
    """A process begins with one request, and pays for it later; but not if strict."""
    for strict in (False, True):
        numbers = {"requests_per_minute": 60, "strict": strict}
        admitted(shared(SilentStore(clock=clock), clock, **numbers))
        assert (clock.sleeps != []) == strict


class Away(MemoryStore):
    """A store that can be switched off."""

    def submit(self, *args: Any, **kwargs: Any) -> bool:
        return self.is_up and super().submit(*args, **kwargs)


def test_without_its_store_a_process_keeps_to_its_share(clock: FakeClock) -> None:
    """Not to nothing, and not to the whole limit: the processes last seen divide it.

    A limit without `max_concurrency` has no share of it: requests need not end.
    """
    store = Away(clock=clock)
    limits = [shared(store, clock, requests_per_minute=600) for _ in range(5)]
    for limit in limits:
        admitted(limit)
    clock.advance(1)
    store.wake()
    store.is_up = False
    began, count = clock.monotonic(), 0
    while clock.monotonic() - began < 30:
        admitted(limits[0])
        count += 1
    assert 60 <= count <= 60 + 10  # And what it had in stock.
    store.is_up = True
    clock.advance(2)
    store.wake()
    assert limits[0].reserve(ONE, 1) is not None


def test_a_store_that_refuses_is_not_asked_all_the_time() -> None:
    """A wait asks ten times a second at most, and the local share decides."""
    store = RefusingStore()
    limit = RateLimit(requests_per_minute=240, name="a", store=store)
    for _ in range(3):
        admitted(limit)
    assert 0 < store.asked < 20


def test_a_limit_of_a_router_is_shared_by_its_store(
    gateway: FaultyGateway, clock: FakeClock
) -> None:
    """`RetryRouter(store=)` shares the limits of its routes under the routes' names."""
    store = MemoryStore(clock=clock)
    limit = RateLimit(requests_per_minute=60, clock=clock)
    route = Route(model=chat_openai(gateway.url), name="a", rate_limit=limit)
    RetryRouter(routes=[route], store=store, clock=clock).invoke("hi")
    assert limit.is_shared
    (scope,) = [one for one in store.snapshot() if one.kind == "limit"]
    assert scope.facts["requests_per_minute"] == pytest.approx(60)
    assert (scope.facts["permits"], scope.facts["waiting"]) == (0, [])
    assert len(scope.processes) == 1


# --- the operation, in Lua and in Python ---

STEP = st.tuples(
    st.integers(0, 5),  # The process, its permits, and the time to the next step.
    st.integers(0, 10),
    st.integers(0, 6_000),
    st.sampled_from([0.0, 0.5, 2.0]),  # The rate, what changes, is wanted and needed.
    st.sampled_from([0.0, 1.0, -3.0]),
    st.sampled_from([0.0, 1.0, 7.0, 200.0]),
    st.sampled_from([0.0, 1.0, 50.0]),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(STEP, max_size=25))
def test_lua_and_python_are_the_same(steps: list[tuple[Any, ...]]) -> None:
    """And in any order no more is granted than there is, nor more permits than 8."""
    both = LuaAndPython(LIMIT)
    now = 1_000_000
    seen, held = dict[str, int](), dict[str, int]()
    for number, permits, pause, rate, change, want, need in steps:
        now += pause
        process = f"p{number}"
        is_alive = now - seen.get(process, 0) <= 5_000
        busy = min(held.get(process, 0), permits) if is_alive else 0
        most = max(permits, busy)
        kind = ["requests", rate, 100.0, change, max(want, need), need, need]
        args = [process, 8, most, most, busy, [kind]]
        reply = both.run(now, args)
        seen[process], held[process] = now, reply[3]
        alive = [n for who, n in held.items() if now - seen[who] <= 5_000]
        assert sum(alive) <= 8
        assert reply[4] <= max(100.0, need)
        assert -60_000 * rate - 200 <= both.record["requests"] <= 100


def test_a_dead_process_holds_nothing() -> None:
    """Its permits are free after 5 s; one that lives may take them."""
    record: Record = {}
    for who, now, permits in ((1, 0, 8), (2, 4_000, 0), (2, 5_001, 8)):
        assert LIMIT.run(record, now, [f"p{who}", 8, 8, 8, 0, []])[3] == permits
    assert "c:p1" not in record


def granted(record: Record, who: int, now: int, *kind: float) -> Any:
    """What a process is granted of requests; `kind` has its rate, capacity, ..."""
    return LIMIT.run(record, now, [f"p{who}", 0, 0, 0, 0, [["requests", *kind]]])[4]


def test_the_processes_take_turns() -> None:
    """Whoever has waited longest is next, however often the others ask."""
    record: Record = {"requests": 0.0, "at": 0}
    turns = []
    for now in range(0, 3_000, 10):
        for who in (1, 2, 3):
            asks = who != 3 or now % 100 == 0  # The third one asks seldom.
            if asks and granted(record, who, now, 0.01, 10.0, 0.0, 2.0, 1.0, 2.0):
                turns.append(who)
    assert turns.count(3) == pytest.approx(len(turns) / 3, abs=1)
    assert len(turns) == pytest.approx(30, abs=1)


def test_a_process_that_only_stocks_up_is_not_waited_for() -> None:
    """It has no request that waits, so it does not stand in the others' way."""
    record: Record = {"requests": -0.5, "at": 0}
    for who, now, need, got in (
        (1, 0, 0, 0),
        (2, 100, 1, 0),
        (1, 510, 0, 0),
        (2, 520, 1, 1),
    ):
        assert granted(record, who, now, 0.001, 1.0, 0.0, 1.0, need, need) == got


def test_a_reservation_settles_in_a_shared_bucket(clock: FakeClock) -> None:
    """What was not used goes back to all."""
    store = MemoryStore(clock=clock)
    first, second = (shared(store, clock, tokens_per_minute=600) for _ in range(2))
    one = admitted(first, Size(0, 500))
    one.used = (0, 10)
    one.succeeded()
    for _ in range(4):
        clock.advance(1)
        store.wake()
    assert second.reserve(Size(0, 10), 2) is not None
