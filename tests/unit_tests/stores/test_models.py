"""What models with one store know of each other, sync and async, over real HTTP."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from langchain_retryrouter import (
    AuthenticationError,
    CircuitBreaker,
    CircuitOpenError,
    GPTRouter,
    OpenAI,
    RateLimitError,
    RetryBudget,
    RetryPolicy,
    RetryRouter,
    Route,
    UnavailableError,
)
from langchain_retryrouter.circuit_breaker import BreakerState
from langchain_retryrouter.stores import MemoryStore, RedisStore
from langchain_retryrouter.testing import Answer, FakeClock, FaultyGateway, Status, Step
from tests.promises.harness import new_model
from tests.support.models import KEY, chat_openai
from tests.unit_tests.conftest import Twin

from .conftest import Processes, eventually

NO_RETRIES = RetryPolicy(max_retries=0)


def asked_for(seconds: float) -> Status:
    """A rate limit that names a pause."""
    return Status(429, headers={"retry-after": str(seconds)})


@pytest.fixture
def backup() -> Iterator[FaultyGateway]:
    """A second provider, which answers."""
    with FaultyGateway() as gateway:
        gateway.always(Answer(text="from the backup"))
        yield gateway


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock=clock)


class Fleet:
    """Routers over the same two providers, as processes have them."""

    def __init__(
        self, gateway: FaultyGateway, backup: FaultyGateway, **fields: Any
    ) -> None:
        self.fields = fields
        self.urls = {"main": gateway.url, "backup": backup.url}

    def router(self, *names: str, **fields: Any) -> RetryRouter:
        routes = [
            Route(model=chat_openai(self.urls[name]), name=name)
            for name in names or ("main", "backup")
        ]
        given = {"retry_policy": NO_RETRIES, **self.fields, **fields}
        return RetryRouter(routes=routes, **given)


@pytest.fixture
def fleet(
    gateway: FaultyGateway, backup: FaultyGateway, store: MemoryStore, clock: FakeClock
) -> Fleet:
    """Routers that share one store."""
    return Fleet(gateway, backup, store=store, clock=clock)


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
    said: Step,
    seconds: float,
    twin: Twin,
    fleet: Fleet,
    gateway: FaultyGateway,
    clock: FakeClock,
) -> None:
    """A pause, a refused key and a used up quota keep other processes away."""
    one, other = fleet.router(), fleet.router()
    gateway.script(said)
    assert twin.invoke(one, "hi").content == "from the backup"
    for _ in range(3):
        assert twin.invoke(other, "hi").content == "from the backup"
    assert len(gateway.requests) == 1
    clock.advance(seconds + 1.1)
    assert twin.invoke(other, "hi").content != "from the backup"
    assert twin.invoke(one, "hi").content != "from the backup"


def test_a_refusal_of_one_request_is_not_the_keys(
    twin: Twin, fleet: Fleet, gateway: FaultyGateway
) -> None:
    """A 403 to a single request, however often it is sent, closes nothing; two do."""
    one, other = fleet.router(), fleet.router()
    gateway.script(Status(403), Status(403))
    for _ in range(2):
        assert twin.invoke(one, "a bad word").content == "from the backup"
    assert twin.invoke(other, "hi").content != "from the backup"
    gateway.script(Status(403))
    assert twin.invoke(other, "something else").content == "from the backup"
    gateway.reset_log()
    for router in (one, other):
        assert twin.invoke(router, "hi").content == "from the backup"
    assert gateway.requests == []


def test_a_short_pause_is_waited_for_and_needs_no_probe(
    twin: Twin, fleet: Fleet, gateway: FaultyGateway, clock: FakeClock
) -> None:
    """A router without another route waits as long as the server asked, and answers."""
    one, other = fleet.router("main"), fleet.router("main")
    gateway.script(asked_for(5))
    with pytest.raises(RateLimitError):
        twin.invoke(one, "hi")
    began = clock.monotonic()
    assert twin.invoke(other, "hi").content
    assert 5 <= clock.monotonic() - began <= 6.5


@pytest.mark.parametrize("name", ["GPTRouter", "OpenAI", "OpenAIChat", "AzureOpenAI"])
def test_single_models_share(
    name: str, twin: Twin, gateway: FaultyGateway, clock: FakeClock, store: MemoryStore
) -> None:
    """A model with a store has a breaker; it waits for short pauses only."""
    parts: dict[str, Any] = {"store": store, "clock": clock, "max_retries": 0}
    one, other = (new_model(name, gateway, **parts) for _ in range(2))
    gateway.script(asked_for(3))
    with pytest.raises(RateLimitError):
        twin.invoke(one, "hi")
    began = clock.monotonic()
    assert twin.invoke(other, "hi")
    assert 3 <= clock.monotonic() - began <= 4.5
    gateway.script(asked_for(120))
    with pytest.raises(RateLimitError):
        twin.invoke(other, "hi")
    with pytest.raises(CircuitOpenError, match="the server asked for it"):
        twin.invoke(one, "hi")
    # A refused key is the caller's to see, where there is no other route.
    clock.advance(121)
    gateway.script(Status(401), Status(401))
    for model in (one, other):
        with pytest.raises(AuthenticationError):
            twin.invoke(model, "hi")


def test_a_pause_beyond_the_deadline_is_not_waited_for(
    twin: Twin, gateway: FaultyGateway, clock: FakeClock, store: MemoryStore
) -> None:
    """The deadline holds: the call ends at once, and says when to come back."""
    policy = RetryPolicy(max_retries=0, deadline=4)
    parts: dict[str, Any] = {"store": store, "clock": clock, "retry_policy": policy}
    one, other = (new_model("OpenAI", gateway, **parts) for _ in range(2))
    gateway.script(asked_for(20))
    with pytest.raises(RateLimitError):
        twin.invoke(one, "hi")
    with pytest.raises(CircuitOpenError) as caught:
        twin.invoke(other, "hi")
    assert 19 < (caught.value.retry_after or 0) <= 20
    assert clock.sleeps == []


def test_a_pause_is_waited_for_to_the_last_second(
    twin: Twin, gateway: FaultyGateway, clock: FakeClock, store: MemoryStore
) -> None:
    """The random part on top of a pause does not make the wait too long."""
    policy = RetryPolicy(max_retries=0, deadline=4, max_retry_after=3.5)
    parts: dict[str, Any] = {"store": store, "clock": clock, "retry_policy": policy}
    for _ in range(10):
        one, other = (new_model("OpenAI", gateway, **parts) for _ in range(2))
        gateway.script(asked_for(3.5))
        with pytest.raises(RateLimitError):
            twin.invoke(one, "hi")
        assert twin.invoke(other, "hi")


def test_a_pause_is_not_waited_for_if_the_breaker_is_open_for_longer(
    twin: Twin, gateway: FaultyGateway, clock: FakeClock, store: MemoryStore
) -> None:
    """A call that will be refused after the pause is refused before it."""
    parts: dict[str, Any] = {"store": store, "clock": clock, "max_retries": 0}
    parts["breaker"] = CircuitBreaker(failure_threshold=1, clock=clock)
    model = new_model("OpenAI", gateway, **parts)
    gateway.script(asked_for(3))
    with pytest.raises(RateLimitError):
        twin.invoke(model, "hi")
    with pytest.raises(CircuitOpenError) as caught:
        twin.invoke(model, "hi")
    assert 29 < (caught.value.retry_after or 0) <= 30
    assert clock.sleeps == []


def test_one_probe_for_all(
    twin: Twin, fleet: Fleet, gateway: FaultyGateway, clock: FakeClock
) -> None:
    """After the pause one process asks; its success lets all others ask again."""
    routers = [fleet.router() for _ in range(4)]
    gateway.script(asked_for(120), asked_for(100))
    for router in routers:
        assert twin.invoke(router, "hi").content == "from the backup"
    assert len(gateway.requests) == 1
    clock.advance(121)
    assert twin.invoke(routers[1], "hi").content == "from the backup"
    assert len(gateway.requests) == 2, "the probe is told to wait again"
    for router in routers:
        assert twin.invoke(router, "hi").content == "from the backup"
    assert len(gateway.requests) == 2
    clock.advance(101)
    for router in routers:
        assert twin.invoke(router, "hi").content != "from the backup"


def test_the_budget_of_all(twin: Twin, fleet: Fleet, gateway: FaultyGateway) -> None:
    """Routers with a store draw on one bucket, each from its own budget object."""
    gateway.always(Status(503))
    policy = RetryPolicy(max_retries=3, initial_delay=0)
    fields: dict[str, Any] = {"retry_policy": policy, "breaker_settings": None}
    budgets = [RetryBudget(capacity=60) for _ in range(2)]
    one, other = (fleet.router("main", budget=b, **fields) for b in budgets)
    for router in (one, other, one):
        with pytest.raises(UnavailableError):
            twin.invoke(router, "hi")
    assert len(gateway.requests) == 3 + 60 // 14
    assert budgets[0].tokens == budgets[1].tokens == 60 % 14
    gateway.always(Answer())
    twin.invoke(one, "hi")
    assert budgets[0].tokens == 60 % 14 + 1


def test_votes_of_processes(
    twin: Twin, gateway: FaultyGateway, backup: FaultyGateway, processes: Processes
) -> None:
    """A process that fails alone closes the route for itself; two close it for all."""
    fields: dict[str, Any] = {"breaker_settings": {"failure_threshold": 1}}
    sick, well = (
        Fleet(gateway, backup, store=store, **fields).router()
        for store in processes[:2]
    )

    def facts() -> dict[str, Any]:
        scopes = [one for one in processes.one.snapshot() if one.name != names[1]]
        found = {"processes": len(scopes[0].processes)} if scopes else {"processes": 0}
        return {**scopes[0].facts, **found} if scopes else found

    names = [route.scope for route in sick.routes]
    eventually(lambda: facts()["processes"] == 2)
    gateway.script(Status(503))
    assert twin.invoke(sick, "hi").content == "from the backup"
    assert twin.invoke(sick, "hi").content == "from the backup"
    eventually(lambda: facts()["votes"] == [processes.one.process])
    assert facts()["state"] == "closed"
    assert twin.invoke(well, "hi").content != "from the backup"
    gateway.script(Status(503))
    assert twin.invoke(well, "hi").content == "from the backup"
    eventually(lambda: facts()["state"] == "open")
    third = Fleet(gateway, backup, store=processes.one, **fields).router()
    eventually(lambda: twin.invoke(third, "hi").content == "from the backup")


def test_a_url_makes_a_store_that_the_model_closes(gateway: FaultyGateway) -> None:
    """A store of one's own stays open; that of a URL does not, and is opened again."""
    url = "redis://127.0.0.1:1/0"
    with new_model("OpenAI", gateway, store=url) as model:
        assert isinstance(model.store, RedisStore)
        assert model.store.closes_with_model
        assert model.invoke("hi")
    assert model.invoke("hi")
    own = RedisStore(url)
    router = RetryRouter(routes=[chat_openai(gateway.url)], store=own)
    router.close()
    assert not own.closes_with_model
    for store in (model.store, own):
        copied = pickle.loads(pickle.dumps(store))
        assert copied.closes_with_model is store.closes_with_model
        copied.close()
    model.close()


@pytest.mark.parametrize("make", [GPTRouter, OpenAI, RetryRouter])
@pytest.mark.parametrize("value", [5, "http://localhost", object()])
def test_what_is_no_store_is_refused(
    make: Any, value: Any, gateway: FaultyGateway
) -> None:
    """The error says what a store is, and shows no key."""
    fields: dict[Any, Any] = {
        GPTRouter: {"models_priority_list": [{"name": "a", "provider_name": "b"}]},
        OpenAI: {"api_key": KEY},
        RetryRouter: {"routes": [chat_openai(gateway.url)]},
    }
    with pytest.raises(TypeError, match="redis://localhost:6379/0") as caught:
        make(store=value, **fields[make])
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
    store.close()


@pytest.mark.parametrize(
    ("make", "fields"),
    [
        (RetryRouter, {}),
        (RetryRouter, {"routes": [], "strategy": "x"}),
        (GPTRouter, {"gpt_router_api_key": KEY}),
        (OpenAI, {"api_key": KEY, "batch_size": 0}),
    ],
)
def test_errors_about_other_fields_do_not_show_the_password(
    make: Any, fields: dict[str, Any]
) -> None:
    """A validation error quotes what was given, and not the password of the URL."""
    with pytest.raises(ValueError, match="validation error") as caught:
        make(store="redis://:sesame@127.0.0.1:1", **fields)
    assert "sesame" not in str(caught.value)


def test_a_store_with_nothing_to_share_is_refused(
    gateway: FaultyGateway, store: MemoryStore
) -> None:
    """No option is ignored in silence."""
    with pytest.raises(TypeError, match="has nothing to share"):
        RetryRouter(
            routes=[chat_openai(gateway.url)], store=store, breaker_settings=None
        )


def test_a_breaker_that_is_given_keeps_its_name_and_store(
    gateway: FaultyGateway, store: MemoryStore, clock: FakeClock
) -> None:
    """A name of one's own is what others meet; the model's store is for the rest."""
    mine = CircuitBreaker(name="mine", store=store, clock=clock)
    other = MemoryStore(clock=clock)
    unnamed = CircuitBreaker(clock=clock)
    routes = [
        Route(model=chat_openai(gateway.url), name="a", breaker=mine),
        Route(model=chat_openai(gateway.url), name="b", breaker=unnamed),
    ]
    RetryRouter(routes=routes, store=other, budget=RetryBudget(name="ours"))
    assert [scope.name for scope in store.snapshot()] == ["mine"]
    names = [scope.name for scope in other.snapshot()]
    assert [name.split()[0] for name in names] == ["b", "ours"]
    again = RetryRouter(
        routes=[Route(model=chat_openai(gateway.url), name="b")], store=store
    )
    assert again.store.snapshot()[0].name == names[0]
    twin_of_mine = CircuitBreaker(name="mine", store=store, clock=clock)
    mine.open_for(30)
    assert twin_of_mine.state is BreakerState.OPEN
