"""In which order routes are asked: by list, by turn, by weight, by speed."""

import asyncio
import copy
import math
import pickle
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.language_models import FakeListChatModel
from langchain_core.outputs import ChatResult

from langchain_retryrouter import RetryPolicy, RetryRouter, Route
from langchain_retryrouter._router.strategies import STRATEGIES, Strategy
from langchain_retryrouter.testing import FakeClock
from tests.unit_tests.conftest import Twin

names = st.sampled_from(sorted(STRATEGIES))
measures = st.tuples(st.integers(0, 5), st.floats(0, 1e6), st.floats(-1e9, 1e9))


def new(name: str, of: int | Sequence[float] = 2, seed: int | None = None) -> Strategy:
    """A strategy for so many routes, or for routes of these weights."""
    return STRATEGIES[name]([1.0] * of if isinstance(of, int) else of, seed)


def by_speed(*seconds: float, seed: int = 21) -> Strategy:
    """The strategy by speed, with a measurement of each route."""
    strategy = new("least_latency", len(seconds), seed)
    for route, measured in enumerate(seconds):
        strategy.measured(route, measured, 0)
    return strategy


def firsts(strategy: Strategy, calls: int) -> Counter[int]:
    """How often each route came first."""
    return Counter(strategy.order(0.0)[0] for _ in range(calls))


# --- every strategy -----------------------------------------------------------------


@given(names, st.integers(1, 6), st.integers(), st.lists(measures, max_size=20))
def test_every_order_is_a_permutation(
    name: str, count: int, seed: int, told: list[tuple[int, float, float]]
) -> None:
    """Whatever was measured and when, each route is in the order exactly once."""
    strategy = new(name, count, seed)
    for route, seconds, now in told:
        strategy.measured(route % count, seconds, now)
        assert sorted(strategy.order(now)) == list(range(count))


@pytest.mark.parametrize("name", ["weighted", "least_latency"])
def test_without_a_seed_no_two_runs_are_alike(name: str) -> None:
    """Processes that start together do not choose together."""
    one, other = new(name, 5), new(name, 5)
    assert [one.order(0) for _ in range(50)] != [other.order(0) for _ in range(50)]


def router_of(strategy: Any, *weights: float) -> RetryRouter:
    """A router whose routes answer with their place in the list."""
    routes = [
        Route(model=FakeListChatModel(responses=[str(n)]), weight=weight)
        for n, weight in enumerate(weights)
    ]
    return RetryRouter(routes=routes, strategy=strategy, seed=1)


@pytest.mark.parametrize("strategy", ["round_robin", "weighted"])
def test_copies_share_and_a_pickle_starts_afresh(strategy: str) -> None:
    """Copies of a router are one caller; another process is not."""
    router = router_of(strategy, 1, 1, 0.5)
    begun = [router.invoke("hi").text for _ in range(6)]
    travelled = pickle.loads(pickle.dumps(router))
    assert [travelled.invoke("hi").text for _ in range(6)] == begun
    again = router_of(strategy, 1, 1, 0.5)
    copies = [again, copy.copy(again), copy.deepcopy(again)] * 2
    assert [one.invoke("hi").text for one in copies] == begun


# --- by list and by turn ------------------------------------------------------------


def test_round_robin_begins_one_further_each_time() -> None:
    """Each route leads in its turn, and failover goes on down the list."""
    strategy = new("round_robin", 3)
    turns = [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]
    assert [strategy.order(0) for _ in range(4)] == turns


def test_round_robin_is_fair_under_threads() -> None:
    """However many call at once, no turn is skipped or given twice."""
    strategy = new("round_robin", 4)
    led: list[int] = []
    start = threading.Barrier(50)

    def call() -> None:
        start.wait()
        led.extend(strategy.order(0)[0] for _ in range(40))

    threads = [threading.Thread(target=call) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(led) == dict.fromkeys(range(4), 500)


# --- by weight ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ([1, 1, 1], [1 / 3, 1 / 3, 1 / 3]),
        ([7, 2, 1], [0.7, 0.2, 0.1]),
        ([0.5, 0, 0.5], [0.5, 0, 0.5]),
        ([1e300, 3e300, 1e-300], [0.25, 0.75, 0]),
    ],
    ids=["equal", "uneven", "one-last", "extreme"],
)
def test_routes_lead_by_their_weight(weights: list[float], shares: list[float]) -> None:
    """Over many calls each route leads as often as its weight says."""
    calls = 20_000
    led = firsts(new("weighted", weights, 11), calls)
    for route, share in enumerate(shares):
        deviation = math.sqrt(calls * share * (1 - share))
        assert abs(led[route] - calls * share) <= 4 * deviation


def test_what_is_left_follows_by_weight_again() -> None:
    """When the leader fails, its load goes to the others in their proportion."""
    strategy = new("weighted", [8, 3, 1], 12)
    orders = [strategy.order(0) for _ in range(20_000)]
    seconds = Counter(order[1] for order in orders if order[0] == 0)
    total = seconds.total()
    assert abs(seconds[1] / total - 0.75) <= 4 * math.sqrt(0.75 * 0.25 / total)


def test_a_route_without_weight_is_the_last_resort() -> None:
    """Weight 0 means: only when all others have failed, as they are listed."""
    strategy = new("weighted", [0, 1, 0, 5e-324], 13)
    assert {tuple(strategy.order(0)[2:]) for _ in range(200)} == {(0, 2)}
    with pytest.raises(ValueError, match=r"one weight at least .* not \[0.0, 0.0\]"):
        router_of("weighted", 0, 0)


# --- by speed -----------------------------------------------------------------------


class Silent(FakeListChatModel):
    """A model for which half a minute passes, and which does not answer then either."""

    clock: FakeClock
    may_end: Any
    asked: int = 0

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        self.asked += 1
        self.clock.advance(30)
        self.may_end.wait(10)
        return super()._generate(*args, **kwargs)

    async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
        self.asked += 1
        self.clock.advance(30)
        await asyncio.get_running_loop().create_future()
        return self._generate(*args, **kwargs)


def test_a_route_that_ran_out_of_time_counts_as_slow(
    twin: Twin, clock: FakeClock
) -> None:
    """It is left by later calls, though nobody knows when it would have answered."""
    may_end = threading.Event()
    silent = Silent(clock=clock, may_end=may_end, responses=["not said"])
    router = RetryRouter(
        routes=[silent, FakeListChatModel(responses=["hello"])],
        strategy="least_latency",
        seed=1,
        retry_policy=RetryPolicy(attempt_timeout=0.5),
        clock=clock,
    )
    assert [twin.invoke(router, "hi").text for _ in range(20)] == ["hello"] * 20
    assert silent.asked == 1
    may_end.set()


def test_an_outage_of_all_routes_is_soon_forgotten() -> None:
    """Failures in turn do not add up: after them the faster route leads again."""
    strategy = by_speed(1.0, 5.0)
    for second in range(2_000):
        strategy.measured(second % 2, 0.01, second / 10, has_failed=True)
    for second in range(200, 500):
        leader = strategy.order(second)[0]
        strategy.measured(leader, (1.0, 5.0)[leader], second)
    assert strategy.order(500)[0] == 0


def test_of_many_the_slowest_never_leads() -> None:
    """The faster of two random ones leads, and the others follow by their speed."""
    strategy = by_speed(4.0, 1.0, 3.0, 2.0)
    orders = [strategy.order(0) for _ in range(6_000)]
    led = Counter(order[0] for order in orders)
    # Of the six pairs, three have the fastest, two more the second, one the third.
    for route, pairs in {1: 3, 3: 2, 2: 1, 0: 0}.items():
        assert abs(led[route] - 1_000 * pairs) <= 160
    for first, *rest in orders:
        assert rest == [route for route in (1, 3, 2, 0) if route != first]


def test_nobody_is_preferred_while_nothing_is_known() -> None:
    """At the start calls spread over all routes; the known one is the slower one."""
    led = firsts(new("least_latency", 3, 24), 3_000)
    assert all(abs(led[route] - 1_000) <= 4 * 26 for route in range(3))
    half_known = new("least_latency", 2, 23)
    half_known.measured(0, 0.001, 0)
    assert firsts(half_known, 100) == {1: 100}


def test_a_slow_answer_is_believed_at_once_and_a_fast_one_little_by_little() -> None:
    """One bad measure is enough to leave a route; one good one does not clear it."""
    strategy = by_speed(1.0, 2.0)
    assert strategy.order(0)[0] == 0
    strategy.measured(0, 20.0, 1)
    assert strategy.order(1)[0] == 1
    strategy.measured(0, 1.0, 2)
    assert strategy.order(2)[0] == 1


@pytest.mark.parametrize(("other", "order"), [(4.94, [1, 0]), (4.95, [0, 1])])
def test_a_fast_answer_counts_for_the_time_since_the_last(
    other: float, order: list[int]
) -> None:
    """After a lifetime the old estimate weighs 1/e, and the new answer the rest."""
    strategy = by_speed(10.0, 0.0)
    strategy.measured(0, 2.0, 60.0)  # Comes to 10 / e + 2 * (1 - 1 / e) = 4.943.
    strategy.measured(1, other, 60.0)
    assert strategy.order(60.0) == order


def test_a_route_that_healed_is_found_again() -> None:
    """A slow route is left at once, looked at seldom, and leads again once it is fast.

    Two routes, of 1 s and 2 s; the first takes 20 s for ten minutes.
    """
    strategy = new("least_latency", 2, 27)
    asked: list[tuple[float, int]] = []
    for now in range(0, 1_800, 4):
        route = strategy.order(now)[0]
        is_sick = 600 <= now < 1_200
        seconds = 2.0 if route else (20.0 if is_sick else 1.0)
        strategy.measured(route, seconds, now)
        asked.append((now, route))
    healthy = [route for now, route in asked if now < 600]
    sick = [route for now, route in asked if 600 <= now < 1_200]
    healed = [now for now, route in asked if now >= 1_200 and route == 0]
    assert healthy.count(0) >= 0.6 * len(healthy)
    assert 1 <= sick.count(0) <= 6
    assert healed[0] <= 1_200 + 180
    later = [route for now, route in asked if now >= 1_500]
    assert later.count(0) >= 0.6 * len(later)
