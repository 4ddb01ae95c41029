"""Tiers and key pools: several keys, accounts or regions for one model."""

import logging
import pickle
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage
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
