"""What models with one store know of each other, sync and async, over real HTTP."""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding

from langchain_retryrouter import (
    AuthenticationError,
    CircuitBreaker,
    CircuitOpenError,
    EmbeddingsRouter,
    GPTRouter,
    OpenAI,
    RateLimit,
    RateLimitError,
    RetryBudget,
    RetryPolicy,
    RetryRouter,
    Route,
    SpendLimit,
    UnavailableError,
)
from langchain_retryrouter.circuit_breaker import BreakerState
from langchain_retryrouter.stores import MemoryStore, RedisStore
from langchain_retryrouter.testing import Answer, FakeClock, FaultyGateway, Status, Step
from tests.promises.harness import new_model
from tests.support.models import KEY, chat_openai
from tests.unit_tests.conftest import Twin

NO_RETRIES = RetryPolicy(max_retries=0)


def asked_for(seconds: float) -> Status:
    """A rate limit that names a pause."""
    return Status(429, headers={"retry-after": str(seconds)})


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock=clock)


@dataclass(frozen=True)
class Fleet(Twin):
    """Models over the same two providers, as processes that share a store have them."""

    gateway: FaultyGateway
    backup: FaultyGateway
    clock: FakeClock
    store: Any

    def router(self, *names: str, **fields: Any) -> RetryRouter:
        places = {"main": self.gateway, "backup": self.backup}
        routes = [
            Route(model=chat_openai(places[name]), name=name)
            for name in names or places
        ]
        given = {"retry_policy": NO_RETRIES, "store": self.store, "clock": self.clock}
        return RetryRouter(routes=routes, **{**given, **fields})

    def two(self, name: str = "OpenAI", **fields: Any) -> list[Any]:
        """A model of this class in each of two processes."""
        parts = {"store": self.store, "clock": self.clock, **fields}
        return [new_model(name, self.gateway, **parts) for _ in range(2)]

    def asks_main(self, router: RetryRouter, prompt: str = "hi") -> bool:
        """Whether the first provider answers; else it is the backup."""
        return bool(self.invoke(router, prompt).content != "from the backup")

    def hears(self, seconds: float, model: Any) -> None:
        """A call of a model is told to come back later."""
        self.gateway.script(asked_for(seconds))
        with pytest.raises(RateLimitError):
            self.invoke(model, "hi")

    def waits(self, model: Any) -> float:
        """Seconds that an answered call of a model takes."""
        began = self.clock.monotonic()
        assert self.invoke(model, "hi")
        return self.clock.monotonic() - began


@pytest.fixture
def fleet(
    twin: Twin, gateway: FaultyGateway, clock: FakeClock, store: MemoryStore
) -> Iterator[Fleet]:
    """Run the test with sync calls and with async calls."""
    with FaultyGateway(answer=Answer("from the backup")) as backup:
        yield Fleet(twin.is_async, gateway, backup, clock, store)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (asked_for(120), 120),
        (asked_for(2), 2),
        (Status(503, headers={"retry-after": "7"}), 7),
        (Status(401), 10),
        (Status(402), 10),
        (Status(429, error_code="insufficient_quota"), 10),
    ],
)
def test_what_a_server_said_holds_for_all(
    fleet: Fleet, said: Step, seconds: float
) -> None:
    """A pause, a refused key and a used up quota keep other processes away."""
    one, other = fleet.router(), fleet.router()
    fleet.gateway.script(said)
    assert not fleet.asks_main(one)
    for _ in range(3):
        assert not fleet.asks_main(other)
    assert len(fleet.gateway.requests) == 1
    fleet.clock.advance(seconds + 1.1)
    assert fleet.asks_main(other)
    assert fleet.asks_main(one)


def test_a_refusal_of_one_request_is_not_the_keys(fleet: Fleet) -> None:
    """A 403 to a single request, however often it is sent, closes nothing; two do."""
    one, other = fleet.router(), fleet.router()
    fleet.gateway.script(Status(403), Status(403))
    for _ in range(2):
        assert not fleet.asks_main(one, "a bad word")
    assert fleet.asks_main(other)
    fleet.gateway.script(Status(403))
    assert not fleet.asks_main(other, "something else")
    fleet.gateway.reset_log()
    for router in (one, other):
        assert not fleet.asks_main(router)
    assert fleet.gateway.requests == []


def test_a_short_pause_is_waited_for_and_needs_no_probe(fleet: Fleet) -> None:
    """A router without another route waits as long as the server asked, and answers."""
    one, other = fleet.router("main"), fleet.router("main")
    fleet.hears(5, one)
    assert 5 <= fleet.waits(other) <= 6.5


@pytest.mark.parametrize("name", ["GPTRouter", "OpenAI", "OpenAIChat", "AzureOpenAI"])
def test_single_models_share(fleet: Fleet, name: str) -> None:
    """A model with a store has a breaker; it waits for short pauses only."""
    one, other = fleet.two(name, max_retries=0)
    fleet.hears(3, one)
    assert 3 <= fleet.waits(other) <= 4.5
    fleet.hears(120, other)
    with pytest.raises(CircuitOpenError, match="the server asked for it"):
        fleet.invoke(one, "hi")
    # A refused key is the caller's to see, where there is no other route.
    fleet.clock.advance(121)
    fleet.gateway.script(Status(401), Status(401))
    for model in (one, other):
        with pytest.raises(AuthenticationError):
            fleet.invoke(model, "hi")


@pytest.mark.parametrize("reason", ["the deadline", "an open breaker"])
def test_a_wait_that_would_be_in_vain_does_not_begin(fleet: Fleet, reason: str) -> None:
    """The deadline, or the end of an open breaker, comes after the server's pause."""
    if reason == "the deadline":
        policy = RetryPolicy(max_retries=0, deadline=4)
        one, other = fleet.two(retry_policy=policy)
        pause, ends = 20, 20
    else:
        breaker = CircuitBreaker(failure_threshold=1, clock=fleet.clock)
        one = other = fleet.two(max_retries=0, breaker=breaker)[0]
        pause, ends = 3, 30
    fleet.hears(pause, one)
    with pytest.raises(CircuitOpenError) as caught:
        fleet.invoke(other, "hi")
    assert ends - 1 < (caught.value.retry_after or 0) <= ends
    assert fleet.clock.sleeps == []


def test_a_pause_is_waited_for_to_the_last_second(fleet: Fleet) -> None:
    """The random part on top of a pause does not make the wait too long."""
    policy = RetryPolicy(max_retries=0, deadline=40, max_retry_after=35)
    for _ in range(10):
        one, other = fleet.two(retry_policy=policy)
        fleet.hears(35, one)
        assert fleet.invoke(other, "hi")


def test_one_probe_for_all(fleet: Fleet) -> None:
    """After the pause one process asks; its success lets all others ask again."""
    routers = [fleet.router() for _ in range(4)]
    fleet.gateway.script(asked_for(120), asked_for(100))
    assert not any(fleet.asks_main(router) for router in routers)
    assert len(fleet.gateway.requests) == 1
    fleet.clock.advance(121)
    assert not fleet.asks_main(routers[1])
    assert len(fleet.gateway.requests) == 2, "the probe is told to wait again"
    assert not any(fleet.asks_main(router) for router in routers)
    assert len(fleet.gateway.requests) == 2
    fleet.clock.advance(101)
    assert all(fleet.asks_main(router) for router in routers)


def test_the_budget_of_all(fleet: Fleet) -> None:
    """Routers with a store draw on one bucket, each from its own budget object."""
    fleet.gateway.always(Status(503))
    policy = RetryPolicy(max_retries=3, initial_delay=0)
    fields: dict[str, Any] = {"retry_policy": policy, "breaker_settings": None}
    budgets = [RetryBudget(capacity=60) for _ in range(2)]
    one, other = (fleet.router("main", budget=b, **fields) for b in budgets)
    for router in (one, other, one):
        with pytest.raises(UnavailableError):
            fleet.invoke(router, "hi")
    assert len(fleet.gateway.requests) == 3 + 60 // 14
    assert budgets[0].tokens == budgets[1].tokens == 60 % 14
    fleet.gateway.always(Answer())
    fleet.invoke(one, "hi")
    assert budgets[0].tokens == 60 % 14 + 1


def test_the_money_of_all(fleet: Fleet) -> None:
    """Routers with a store spend from one limit, and routes with a limit as well."""
    routers, limits = [], []
    for _ in range(2):
        of_route, of_all = (SpendLimit(3, clock=fleet.clock) for _ in "ab")
        model = chat_openai(fleet.gateway, max_tokens=100)
        route = Route(
            model=model,
            name="main",
            input_price=1,
            output_price=1e4,
            spend_limit=of_route,
        )
        made = {"store": fleet.store, "clock": fleet.clock, "spend_limit": of_all}
        routers.append(RetryRouter(routes=[route], **made))
        limits += [of_route, of_all]
    assert all(limit.is_shared for limit in limits)
    for router in (*routers, routers[0]):
        fleet.invoke(router, "hi")
    assert [limit.spent >= 3 * 0.05 for limit in limits] == [True] * 4
    fleet.clock.advance(2)
    fleet.store.wake()
    for _ in range(2):  # What is leased and not used goes back.
        fleet.clock.advance(1)
        fleet.store.wake()
    assert [limit.spent for limit in limits] == [pytest.approx(0.15, abs=1e-3)] * 4
    scopes = [one for one in fleet.store.snapshot() if one.kind == "spend"]
    assert [one.name.split()[0] for one in scopes] == ["main", "router"]


def test_routers_of_other_routes_share_nothing(fleet: Fleet) -> None:
    """Limits and budgets without a name meet in routers with the same routes."""
    made: dict[tuple[str, ...], RetryRouter] = {}
    for names in (("main",), ("backup",), ("main", "backup"), ("backup", "main")):
        limits = {
            "rate_limit": RateLimit(requests_per_minute=60, clock=fleet.clock),
            "budget": RetryBudget(),
        }
        made[names] = fleet.router(*names, **limits)
    for what in ("rate_limit", "budget"):
        main, backup, one, other = (getattr(r, what).record for r in made.values())
        assert one == other
        assert len({main, backup, one}) == 3
    gpt, llm = fleet.two("GPTRouter", budget=RetryBudget())[0], fleet.two()[0]
    assert gpt.budget.name == gpt.breaker.name != llm.breaker.name


def test_a_url_makes_a_store_that_the_model_closes(gateway: FaultyGateway) -> None:
    """A store of one's own stays open; that of a URL does not, and is opened again."""
    url = "redis://127.0.0.1:1/0"
    with new_model("OpenAI", gateway, store=url) as model:
        assert isinstance(model.store, RedisStore)
        assert model.store.closes_with_model
        assert model.invoke("hi")
    assert model.invoke("hi")
    own = RedisStore(url)
    router = RetryRouter(routes=[chat_openai(gateway)], store=own)
    router.close()
    assert not own.closes_with_model
    for store in (model.store, own):
        copied = pickle.loads(pickle.dumps(store))
        assert copied.closes_with_model is store.closes_with_model
        copied.close()
    model.close()
    own.close()


FIELDS: dict[Any, dict[str, Any]] = {
    GPTRouter: {"models_priority_list": [{"name": "a", "provider_name": "b"}]},
    OpenAI: {"api_key": KEY},
    RetryRouter: {"routes": [chat_openai("http://127.0.0.1:1")]},
    EmbeddingsRouter: {"routes": [DeterministicFakeEmbedding(size=8)]},
}


@pytest.mark.parametrize("make", FIELDS)
@pytest.mark.parametrize("value", [5, "http://localhost", object()])
def test_what_is_no_store_is_refused(make: Any, value: Any) -> None:
    """The error says what a store is, and shows no key."""
    with pytest.raises(TypeError, match="redis://localhost:6379/0") as caught:
        make(store=value, **FIELDS[make])
    assert KEY not in str(caught.value)


def test_the_password_is_not_shown(gateway: FaultyGateway) -> None:
    """Neither a store nor a model shows it; a pickle carries it to where it is used."""
    store = RedisStore("redis://me:sesame@127.0.0.1:1/3", namespace="mine")
    router = RetryRouter(routes=[new_model("GPTRouter", gateway)], store=store)
    breaker = CircuitBreaker(name="a", store=store)
    shown = [store, router, breaker, vars(router), vars(store), router.model_dump()]
    assert not any("sesame" in f"{one!r} {one}" for one in shown)
    assert repr(store) == "RedisStore('redis://127.0.0.1:1/3', namespace='mine')"
    copies: list[Any] = [pickle.loads(pickle.dumps(one)) for one in (store, router)]
    assert repr(copies[0]) == repr(store) == repr(copies[1].store)
    for one in (store, copies[0], copies[1].store):
        one.close()


@pytest.mark.parametrize("make", FIELDS)
@pytest.mark.parametrize("fields", [{}, {"max_retries": -1}])
def test_errors_about_other_fields_do_not_show_the_password(
    make: Any, fields: dict[str, Any]
) -> None:
    """A validation error quotes what was given, and not the password of the URL."""
    given = {**FIELDS[make], **fields} if fields else {}
    with pytest.raises(ValueError, match="validation error") as caught:
        make(store="redis://:sesame@127.0.0.1:1", **given)
    assert "sesame" not in str(caught.value)
    del caught  # It and this frame would keep each other, and the store, alive.


def test_a_store_with_nothing_to_share_is_refused(
    gateway: FaultyGateway, store: MemoryStore
) -> None:
    """No option is ignored in silence."""
    with pytest.raises(TypeError, match="has nothing to share"):
        RetryRouter(routes=[chat_openai(gateway)], store=store, breaker_settings=None)


def test_a_breaker_that_is_given_keeps_its_name_and_store(
    gateway: FaultyGateway, store: MemoryStore, clock: FakeClock
) -> None:
    """A name of one's own is what others meet; the model's store is for the rest."""
    mine = CircuitBreaker(name="mine", store=store, clock=clock)
    other = MemoryStore(clock=clock)
    unnamed = CircuitBreaker(clock=clock)
    routes = [
        Route(model=chat_openai(gateway), name="a", breaker=mine),
        Route(model=chat_openai(gateway), name="b", breaker=unnamed),
    ]
    RetryRouter(routes=routes, store=other, budget=RetryBudget(name="ours"))
    assert [scope.name for scope in store.snapshot()] == ["mine"]
    names = [scope.name for scope in other.snapshot()]
    assert [name.split()[0] for name in names] == ["b", "ours"]
    again = RetryRouter(
        routes=[Route(model=chat_openai(gateway), name="b")], store=store
    )
    assert again.store.snapshot()[0].name == names[0]
    twin_of_mine = CircuitBreaker(name="mine", store=store, clock=clock)
    mine.open_for(30)
    assert twin_of_mine.state is BreakerState.OPEN
