"""Which route is asked first: strategies, tiers, and pools of keys."""

import asyncio
import copy
import logging
import math
import pickle
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatResult
from langchain_openai import AzureChatOpenAI, ChatOpenAI
from pydantic import SecretStr

from langchain_retryrouter import (
    CircuitBreaker,
    GPTRouter,
    RateLimitError,
    RetryPolicy,
    RetryRouter,
    Route,
)
from langchain_retryrouter._router.strategies import STRATEGIES, Strategy
from langchain_retryrouter.errors import (
    AuthenticationError,
    ContentFilterError,
    RetryRouterError,
)
from langchain_retryrouter.testing import (
    Answer,
    FakeClock,
    FaultyGateway,
    Reset,
    Silence,
    Status,
    Step,
)
from tests.support.models import NOWHERE, chat_openai, gpt_router
from tests.unit_tests.conftest import Twin

from .attempts import WAYS, Way, message_of

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


def leaders_of(strategy: Strategy, calls: int) -> Counter[int]:
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


def strategic(strategy: Any, *weights: float) -> RetryRouter:
    """A router whose routes answer with their place in the list."""
    routes = [
        Route(model=FakeListChatModel(responses=[str(n)]), weight=weight)
        for n, weight in enumerate(weights)
    ]
    return RetryRouter(routes=routes, strategy=strategy, seed=1)


@pytest.mark.parametrize("strategy", ["round_robin", "weighted"])
def test_copies_share_and_a_pickle_starts_afresh(strategy: str) -> None:
    """Copies of a router are one caller; another process is not."""
    router = strategic(strategy, 1, 1, 0.5)
    begun = [router.invoke("hi").text for _ in range(6)]
    travelled = pickle.loads(pickle.dumps(router))
    assert [travelled.invoke("hi").text for _ in range(6)] == begun
    again = strategic(strategy, 1, 1, 0.5)
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
    led = leaders_of(new("weighted", weights, 11), calls)
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
        strategic("weighted", 0, 0)


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
    led = leaders_of(new("least_latency", 3, 24), 3_000)
    assert all(abs(led[route] - 1_000) <= 4 * 26 for route in range(3))
    half_known = new("least_latency", 2, 23)
    half_known.measured(0, 0.001, 0)
    assert leaders_of(half_known, 100) == {1: 100}


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


KEYS = [f"sk-the-secret-of-account-{number}" for number in range(1, 4)]
SPENT = Status(429, error_code="insufficient_quota")
SLOW_DOWN = Status(429, {"retry-after": "20"})


@dataclass
class Provider:
    """A provider that treats each key in its own way, and a model that asks it."""

    gateway: FaultyGateway
    way: Way
    clock: FakeClock
    steps: dict[str, Step] = field(default_factory=dict)

    def pool(self, *keys: Any, **fields: Any) -> list[Route]:
        model = chat_openai(self.gateway, "gpt-5")
        return Route.pool(model, api_keys=keys or KEYS, **fields)

    def router(self, *routes: Any, **fields: Any) -> RetryRouter:
        """A router, by default over a pool of all keys."""
        given = list(routes) or self.pool()
        return RetryRouter(**{"routes": given, "clock": self.clock, **fields})

    def ask(self, router: RetryRouter, times: int = 1) -> AIMessage:
        """The router's last answer, sync or async, streamed or not."""
        *_, last = [message_of(self.way, router) for _ in range(times)]
        return cast("AIMessage", last)

    def asked(self) -> list[int]:
        """The requests of each key since the last time."""
        keys = [key_of(request) for request in self.gateway.requests]
        self.gateway.reset_log()
        return [keys.count(key) for key in KEYS]


def key_of(request: Any) -> str:
    """The key that a request was sent with."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    sent = headers.get("ws-secret") or headers.get("authorization", "")
    return str(sent).removeprefix("Bearer ")


@pytest.fixture(params=WAYS, ids=str)
def provider(
    request: pytest.FixtureRequest, gateway: FaultyGateway, fake_clock: FakeClock
) -> Provider:
    """A provider that answers every key."""
    provider = Provider(gateway, request.param, fake_clock)
    gateway.always(lambda asked: provider.steps.get(key_of(asked)) or Answer("Hi."))
    return provider


# --- failover between keys ----------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "fields"),
    [
        (Status(401), {}),
        (Status(402), {}),
        (Status(403), {}),
        (Status(429), {}),
        (SLOW_DOWN, {}),
        (SPENT, {}),
        # Which is about failures of the provider, not about keys.
        (SLOW_DOWN, {"breaker_settings": None}),
    ],
    ids=["401", "402", "403", "429", "429-20s", "quota", "no breakers"],
)
def test_two_of_three_keys_exhausted(
    provider: Provider, refusal: Step, fields: dict[str, Any]
) -> None:
    """One extra request at most for each bad key, no wait, and then none at all."""
    provider.steps = dict.fromkeys(KEYS[:2], refusal)
    router = provider.router(**fields)
    provider.ask(router, 3)
    bad_1, bad_2, good = provider.asked()
    assert max(bad_1, bad_2) <= 1
    assert good == 3
    assert sum(provider.clock.sleeps) == 0
    provider.ask(router, 10)
    assert provider.asked() == [0, 0, 10]
    states = [route["state"] for route in router.health()["routes"]]
    assert states == ["open", "open", "closed"]


def test_a_held_key_is_asked_again_when_its_hold_ends(provider: Provider) -> None:
    """A 429 holds a key for as long as its server asked; the others share its load."""
    provider.steps = {KEYS[0]: SLOW_DOWN}
    router = provider.router()
    provider.ask(router, 3)
    assert provider.asked()[0] == 1
    provider.clock.advance(19)
    provider.ask(router, 10)
    assert provider.asked() == [0, 5, 5]
    provider.steps = {}
    provider.clock.advance(2)
    provider.ask(router, 9)
    assert provider.asked()[0] >= 3


def test_the_last_keys_rate_limit_is_waited_for(provider: Provider) -> None:
    """With all keys limited, the call waits as it would for a single route."""
    provider.steps = dict.fromkeys(KEYS, Status(429, {"retry-after": "2"}))
    router = provider.router(retry_policy=RetryPolicy(max_retries=1))
    with pytest.raises(RateLimitError):
        provider.ask(router)
    assert sum(provider.asked()) >= 4
    assert max(provider.clock.sleeps) >= 2


@pytest.mark.parametrize("code", [400, 403, 422])
def test_a_wrong_request_holds_no_key(provider: Provider, code: int) -> None:
    """A request that is wrong, or refused to all keys, closes no pool for others."""
    provider.steps = dict.fromkeys(KEYS, Status(code))
    router = provider.router()
    with pytest.raises(RetryRouterError):
        provider.ask(router)
    asked = provider.asked()
    assert code != 403 or asked == [1, 1, 1]
    provider.steps = {}
    provider.ask(router, 3)
    assert provider.asked() == [1, 1, 1]


ONE_RETRY = {"retry_policy": RetryPolicy(max_retries=1)}
NO_RETRY = {"retry_policy": RetryPolicy(max_retries=0)}


@pytest.mark.parametrize(
    ("fault", "fields", "requests", "error"),
    [
        # A refusal is an answer, whichever key asks; and the caller's rule counts.
        (Status(400, error_code="content_filter"), {}, 1, ContentFilterError),
        (SLOW_DOWN, {"failover_on": {"rate_limit": "raise"}}, 1, RateLimitError),
        # The keys of one endpoint share its retries, each of which takes another key.
        (Status(500), ONE_RETRY, 2, None),
        (Status(503), ONE_RETRY, 2, None),
        (Reset(), ONE_RETRY, 2, None),
        # A timeout is not waited for once more with any key.
        (Status(504), ONE_RETRY, 1, None),
        # Without retries nothing is waited for; the fault may be one key's own.
        (Status(429), NO_RETRY, 3, None),
        (SLOW_DOWN, NO_RETRY, 3, None),
        (Status(503), NO_RETRY, 2, None),
    ],
)
def test_a_fault_of_every_key_is_asked_about_once_with_each(
    provider: Provider,
    fault: Step,
    fields: Any,
    requests: int,
    error: type[Exception] | None,
) -> None:
    """And with no more keys than may answer; then another model is asked."""
    provider.steps = dict.fromkeys(KEYS, fault)
    backup = FakeListChatModel(responses=["backup"])
    router = provider.router(*provider.pool(), backup, **fields)
    if error is None:
        assert provider.ask(router).text == "backup"
    else:
        with pytest.raises(error):
            provider.ask(router)
    asked = provider.asked()
    assert (sum(asked), max(asked)) == (requests, 1)
    assert fields is not NO_RETRY or sum(provider.clock.sleeps) == 0


@pytest.mark.parametrize("retries", [0, 2])
def test_a_key_that_only_fails_is_answered_for_by_another(
    provider: Provider, retries: int
) -> None:
    """A 500 for one key only is not the end of the call, with any number of retries."""
    provider.steps = {KEYS[0]: Status(500)}
    router = provider.router(retry_policy=RetryPolicy(max_retries=retries))
    provider.ask(router, 3)
    assert provider.asked()[0] == 1


def test_regions_have_retries_of_their_own() -> None:
    """Other addresses of one tier are other places, and each is asked as a route is."""
    with FaultyGateway() as east, FaultyGateway() as west:
        east.always(Status(503))
        pool = Route.pool(gpt_router(NOWHERE, "a"), base_urls=[east.url, west.url])
        with RetryRouter(routes=pool, clock=FakeClock(), **ONE_RETRY) as router:
            for _ in range(2):
                router.invoke("hi")
        assert (len(east.requests), len(west.requests)) == (2, 2)


@pytest.mark.parametrize("refusal", [Status(401), SPENT], ids=["401", "quota"])
def test_a_pool_of_refused_keys_is_left_alone(
    provider: Provider, refusal: Step
) -> None:
    """Another model is asked after all keys, and no later call asks bad keys again."""
    provider.steps = dict.fromkeys(KEYS, refusal)
    backup = FakeListChatModel(responses=["backup"])
    router = provider.router(*provider.pool(), backup)
    for asked in ([1, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]):
        assert provider.ask(router).text == "backup"
        assert provider.asked() == asked


def test_more_keys_do_not_shorten_the_share_of_a_deadline() -> None:
    """A silent endpoint is left with all its keys, so it has one share of the time."""
    with FaultyGateway() as gateway:
        gateway.always(Silence())
        model = gpt_router(gateway, "a")
        keys = [f"key-{number}" for number in range(9)]
        backup = FakeListChatModel(responses=["backup"])
        with RetryRouter(
            routes=[Route.pool(model, api_keys=keys), backup],
            retry_policy=RetryPolicy(deadline=1.0),
        ) as router:
            log = router.invoke("hi").response_metadata["retryrouter"]
    assert log["route"] == "FakeListChatModel"
    assert len(log["attempts"]) == 2
    assert log["attempts"][0]["seconds"] >= 0.45


# --- balance ------------------------------------------------------------------------


def test_a_tier_is_balanced_by_weight(provider: Provider) -> None:
    """By default each key gets its turn, and a key of weight 2 gets two."""
    router = provider.router()
    provider.ask(router, 9)
    assert provider.asked() == [3, 3, 3]
    weighted = [
        route.model_copy(update={"weight": weight})
        for route, weight in zip(provider.pool(), (2, 1, 1), strict=True)
    ]
    router = provider.router(*weighted)
    provider.ask(router, 8)
    assert provider.asked() == [4, 2, 2]


def fakes(*tiers: int | None) -> list[Route]:
    """Routes of these tiers, which answer with their place in the list."""
    return [
        Route(model=FakeListChatModel(responses=[str(n)]), name=str(n), tier=tier)
        for n, tier in enumerate(tiers)
    ]


def firsts(router: RetryRouter, calls: int = 60) -> Counter[str]:
    return Counter(router.invoke("hi").text for _ in range(calls))


@pytest.mark.parametrize(
    ("tiers", "leaders", "strategies"),
    [
        ((1, 0, 1, 0), "13", "priority weighted round_robin"),
        ((0, 0, 1), "01", "round_robin"),
        ((0, 0, 1, 1), "01", "round_robin"),
        ((1, 0, 0, 0, 2), "123", "round_robin"),
        # A route without a tier comes after the tiers that are listed before it.
        ((None, None), "0", "priority"),
        ((None, 0, 0), "0", "priority"),
        ((0, 0, None), "01", "priority"),
        ((1, None, 0), "2", "priority"),
        ((0, 0), "01", "priority"),
    ],
)
def test_the_lowest_tier_gets_every_call(
    tiers: tuple[int | None, ...], leaders: str, strategies: str
) -> None:
    """While it can answer, wherever it is listed; its routes have equal shares."""
    for strategy in strategies.split():
        fields: dict[str, Any] = {"strategy": strategy, "seed": 3}
        asked = firsts(RetryRouter(routes=fakes(*tiers), **fields))
        assert set(asked) == set(leaders)
        is_exact = strategy != "weighted"
        assert min(asked.values()) >= (60 // len(leaders) if is_exact else 18)


def test_a_pool_stays_together_when_routes_take_turns(provider: Provider) -> None:
    """A key's rate limit is followed by the next key, not by another model."""
    provider.steps = {KEYS[0]: SLOW_DOWN}
    other = FakeListChatModel(responses=["other"])
    pool = provider.pool(*KEYS[:2])
    for seed in range(8):
        router = provider.router(
            pool[0], other, pool[1], strategy="round_robin", seed=seed
        )
        served = [provider.ask(router) for _ in range(3)]
        logs = [one.response_metadata["retryrouter"]["attempts"] for one in served]
        failed = [log for log in logs if log[0]["outcome"] == "rate_limit"]
        assert [log[1]["route"] for log in failed] == ["gpt-5#2"]


def test_pools_keep_their_place_in_the_list() -> None:
    """Two pools of one model are two groups, each at its own place."""

    def pool(text: str) -> list[Route]:
        model = Keyed(responses=[text], api_key="k")
        return Route.pool(model, api_keys=["one", "two"], name="same")

    last = Route(model=Keyed(responses=["c"], api_key="k"), name="same#1-2")
    router = RetryRouter(routes=[pool("a"), pool("b"), last])
    names = [route.name for route in router.routes]
    assert names == ["same#1", "same#2", "same#1-2", "same#2-2", "same#1-2-2"]
    assert firsts(router) == {"a": 60}


# --- making pools -------------------------------------------------------------------


class Keyed(FakeListChatModel):
    """A model of an unknown package, with a field for its key."""

    api_key: str


def secrets_of(routes: list[Route], name: str) -> list[str]:
    values = [getattr(route.model, name) for route in routes]
    return [v.get_secret_value() if isinstance(v, SecretStr) else v for v in values]


KEY = "secret-1"
AZURE = {"azure_endpoint": "https://east.example.com", "api_version": "2025-01-01"}
GATEWAY = {"models_priority_list": [{"name": "gpt-4o", "provider_name": "openai"}]}


@pytest.mark.parametrize(
    ("cls", "fields", "key", "url"),
    [
        (ChatOpenAI, {"model": "gpt-4o"}, "openai_api_key", "openai_api_base"),
        (AzureChatOpenAI, AZURE, "openai_api_key", "azure_endpoint"),
        (ChatAnthropic, {"model": "m"}, "anthropic_api_key", "anthropic_api_url"),
        (GPTRouter, GATEWAY, "gpt_router_api_key", "gpt_router_api_base"),
    ],
)
def test_models_are_made_again_for_each_key_and_address(
    cls: Any, fields: dict[str, Any], key: str, url: str
) -> None:
    """The new models keep all other settings, and their clients have the new key."""
    model = cls(**{"api_key": "k", "temperature": 0.5, **fields})
    urls = ["https://one.example.com/v1", "https://two.example.com/v1"]
    routes = Route.pool(model, api_keys=["one-key", "two-key"], base_urls=urls)
    assert secrets_of(routes, key) == ["one-key", "two-key"]
    assert secrets_of(routes, url) == urls
    assert {vars(route.model)["temperature"] for route in routes} == {0.5}
    assert secrets_of(Route.pool(model, base_urls=urls), url) == urls


def test_a_string_makes_a_pool() -> None:
    """`init_chat_model` makes the model, which needs no key in the environment."""
    routes = Route.pool("openai:gpt-4o", api_keys=["one-key", "two-key"])
    assert [route.name for route in routes] == ["gpt-4o#1", "gpt-4o#2"]
    assert secrets_of(routes, "openai_api_key") == ["one-key", "two-key"]


def test_bound_options_and_fields_are_kept() -> None:
    """A pool is made of what a route can be made of."""
    model: Any = Keyed(responses=["a"], api_key="k").bind(stop=["x"])
    routes = Route.pool(model, api_keys=["a", "b"], tier=2, name="n", input_price=3)
    assert [route.name for route in routes] == ["n#1", "n#2"]
    assert {(r.tier, r.input_price, str(r.options)) for r in routes} == {
        (2, 3.0, "{'stop': ['x']}")
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "a pool needs api_keys"),
        ({"api_keys": []}, "a pool needs api_keys"),
        ({"api_keys": [KEY, None]}, r"api_keys\[1\] must be a str, and is NoneType"),
        ({"api_keys": [KEY, ""]}, r"api_keys\[1\] must be a str, and is empty"),
        ({"api_keys": [KEY, KEY]}, "has an entry twice"),
        ({"api_keys": [KEY], "base_urls": ["a", "b"]}, "1 keys and 2 addresses"),
        ({"base_urls": ["https://x"]}, "Keyed has no field for base_url.*api_key"),
        # A text is a list of characters to Python, and not what was meant.
        ({"api_keys": KEY}, "api_keys must be a list, not str"),
    ],
)
def test_a_pool_that_cannot_be_made_is_explained(
    given: dict[str, Any], message: str
) -> None:
    """The message says what is wrong, and shows no key."""
    with pytest.raises((TypeError, ValueError), match=message) as raised:
        Route.pool(Keyed(responses=["a"], api_key="k"), **given)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("name", ["api_key", "api_keys"])
def test_a_key_of_a_route_is_not_shown(name: str) -> None:
    """A route has no key: its model has one, and a pool has several."""
    given: dict[str, Any] = {"model": Keyed(responses=["a"], api_key="k")}
    with pytest.raises(TypeError, match=f"takes no {name}: give the key") as raised:
        Route.model_validate({**given, name: "secret-1"})
    assert "secret-1" not in str(raised.value)


class Stubborn(Keyed):
    """A model whose constructor shows what it was given."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        if self.api_key != "k":
            msg = f"bad key {self.api_key}"
            raise ValueError(msg)


def test_a_constructor_that_fails_shows_no_key() -> None:
    """Whatever the class says, its text may hold the key."""
    with pytest.raises(ValueError, match="Stubborn cannot be made again") as raised:
        Route.pool(Stubborn(responses=["a"], api_key="k"), api_keys=["secret-1"])
    assert "secret-1" not in str(raised.value)
    assert raised.value.__suppress_context__


def test_routes_of_a_tier_cannot_share_a_breaker() -> None:
    """One key's rate limit would hold the other key."""
    breaker = CircuitBreaker()
    model = Keyed(responses=["a"], api_key="k")
    pool = Route.pool(model, api_keys=["a", "b"], breaker=breaker)
    with pytest.raises(ValueError, match="shares its breaker with another route"):
        RetryRouter(routes=pool)


# --- keys that are functions --------------------------------------------------------


def test_a_function_is_asked_for_each_request(provider: Provider) -> None:
    """A key may change without a new router; ChatOpenAI's SDK asks for it itself."""
    keys = iter(KEYS)

    async def of_async() -> str:
        return next(keys)

    function = of_async if provider.way.is_async else lambda: next(keys)
    provider.ask(provider.router(*provider.pool(function)), 2)
    assert provider.asked() == [1, 1, 0]


@dataclass
class Vault:
    """A function of a key that has no hash."""

    name: str

    def __call__(self) -> str:
        return self.name


def test_a_string_takes_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any provider, without a key in the environment, and of any class."""
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    pool = Route.pool("anthropic:claude-opus-4-5", api_keys=[Vault("a"), Vault("b")])
    assert [route.api_key_function for route in pool] == [Vault("a"), Vault("b")]
    with pytest.raises(ValueError, match="has an entry twice"):
        Route.pool("anthropic:claude-opus-4-5", api_keys=[Vault("a"), Vault("a")])


@pytest.mark.parametrize("is_function_async", [False, True])
def test_a_function_works_with_any_model(
    provider: Provider, *, is_function_async: bool
) -> None:
    """A model whose SDK takes no functions is made again when its key has changed."""
    current, asked = [KEYS[0]], []

    async def of_async() -> SecretStr:
        return SecretStr(of_sync())

    def of_sync() -> str:
        asked.append(current[0])
        return current[0]

    model = gpt_router(provider.gateway, "a")
    function: Any = of_async if is_function_async else of_sync
    router = provider.router(*Route.pool(model, api_keys=[function]))
    if is_function_async and not provider.way.is_async:
        with pytest.raises(RetryRouterError, match="an async function is for async"):
            provider.ask(router)
        return
    provider.ask(router, 2)
    current[0] = KEYS[1]
    provider.ask(router)
    keys = [key_of(request) for request in provider.gateway.requests]
    assert keys == asked == [KEYS[0], KEYS[0], KEYS[1]]
    Twin(provider.way.is_async).call(router, "close")


@pytest.mark.parametrize("given", [None, "", 5])
def test_a_function_without_a_key_fails_its_route(given: Any) -> None:
    """Another key answers, and the message names the route."""
    model = Keyed(responses=["a"], api_key="k")
    router = RetryRouter(routes=Route.pool(model, api_keys=[lambda: given, "good"]))
    logs = [router.invoke("hi").response_metadata["retryrouter"] for _ in range(2)]
    assert {log["route"] for log in logs} == {"Keyed#2"}
    router = RetryRouter(routes=Route.pool(model, api_keys=[lambda: given]))
    with pytest.raises(RetryRouterError, match="function of route 'Keyed#1' returned"):
        router.invoke("hi")


# --- secrets ------------------------------------------------------------------------


def test_no_key_shows(provider: Provider, caplog: pytest.LogCaptureFixture) -> None:
    """Not in names, reprs, logs, attempt logs, errors, nor in what is remembered."""
    caplog.set_level(logging.DEBUG, "langchain_retryrouter")
    provider.steps = {
        KEYS[0]: Status(401, message=f"Incorrect API key provided: {KEYS[0]}"),
        KEYS[1]: SLOW_DOWN,
        KEYS[2]: Reset(),
    }
    router = provider.router(retry_policy=RetryPolicy(max_retries=0))
    shown = [repr(router), str(router.explain()), str(router.routes)]
    with pytest.raises(RetryRouterError) as raised:
        provider.ask(router)
    error = raised.value
    shown += [str(error), repr(error.others), str(getattr(error, "__notes__", ""))]
    provider.steps.pop(KEYS[2])
    provider.clock.advance(60)
    shown.append(str(provider.ask(router).response_metadata))
    shown += [record.getMessage() for record in caplog.records]
    states = pickle.dumps([route.breaker for route in router.routes])
    shown.append(states.decode("latin-1"))
    assert any(isinstance(one, AuthenticationError) for one in (error, *error.others))
    for text in shown:
        assert not any(key in text or key[-10:] in text for key in KEYS), text
