"""Stores: connections, keys and failures, and what models with one store share."""

import contextlib
import copy
import functools
import importlib.util
import os
import pickle
import random  # noqa: TID251 - seeded
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fakeredis
import pytest
import redis
import redis.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.embeddings import DeterministicFakeEmbedding
from redis.sentinel import Sentinel

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
from langchain_retryrouter._shared import BUDGET, Shareable
from langchain_retryrouter.circuit_breaker import BreakerState, Refusal
from langchain_retryrouter.stores import MemoryStore, RedisStore
from langchain_retryrouter.testing import Answer, FakeClock, FaultyGateway, Status, Step
from tests.promises.harness import new_model
from tests.support.interleavings import LuaAndPython, run_interleaving
from tests.support.models import KEY, chat_openai
from tests.unit_tests.conftest import Twin

from .conftest import (
    LateStore,
    Processes,
    SilentStore,
    eventually,
    states,
    stores_of,
)

CLOSED, OPEN = BreakerState.CLOSED, BreakerState.OPEN
SERVER = fakeredis.FakeServer()


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_the_scripts_hold_their_invariants(seed: int) -> None:
    """Lua and Python do the same, whatever was done before; see `check`."""
    client = fakeredis.FakeRedis(server=SERVER, decode_responses=True)
    run_interleaving(client, random.Random(seed), 40)  # noqa: S311


def breakers(processes: Processes, **fields: Any) -> tuple[CircuitBreaker, ...]:
    """The breaker of each process, when both know that they are two."""
    made = tuple(
        CircuitBreaker(name="p", store=store, **fields) for store in processes[:2]
    )
    eventually(lambda: [len(s.processes) for s in processes.one.snapshot()] == [2])
    return made


def test_all_keys_are_hashed_and_expire(processes: Processes) -> None:
    """A key shows no name, and no key outlives its last use by more than a day."""
    name = "sk-what-people-put-into-names"
    breaker = CircuitBreaker(name=name, store=processes.one)
    budget = RetryBudget(name=name, store=processes.one)
    breaker.open_for(1_000_000)
    assert budget.spend()
    shared = {"breaker", "budget"}
    eventually(lambda: {one.kind for one in processes.other.snapshot()} == shared)
    with processes.client() as client:
        keys = client.keys()
        assert len(keys) == 3
        for key in keys:
            assert key.startswith("{rr}:")
            assert name not in key
            assert 0 < client.ttl(key) <= 86_400 + 3_600
    eventually(lambda: processes.other.snapshot()[1].facts["tokens"] == 486)
    facts = processes.other.snapshot()[0].facts
    assert facts["by"] == processes.one.process
    assert facts["open_for"] == pytest.approx(86_400, abs=5)


def test_what_was_not_heard_is_repaired(processes: Processes) -> None:
    """A message that is lost is made good by the reading of each second."""
    one, other = breakers(processes)
    present = f"p:{processes.one.process}"
    with processes.client() as client:
        assert client.pubsub_channels() == ["{rr}:news"]
        (key,) = (key for key in client.scan_iter() if client.hget(key, present))
        moment = 1000 * int(client.time()[0]) + 60_000
        client.hset(key, mapping={"gen": moment, "open_until": moment, "by": "x"})
    eventually(lambda: one.state is other.state is OPEN)
    assert 55 < other.retry_after <= 61


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_a_listener_that_raises_stops_nothing(
    processes: Processes, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """An error of another model's `on_state_change` is logged; the call goes on."""

    def report(_before: BreakerState, now: BreakerState) -> None:
        raise LookupError(now)

    stores = processes[:2] if kind == "redis" else [MemoryStore()] * 2
    one, noisy, other = (
        CircuitBreaker(name="p", store=store, on_state_change=listener)
        for store, listener in zip(
            [*stores, stores[1]], (None, report, None), strict=True
        )
    )
    one.open_for(60)
    eventually(lambda: noisy.is_open and other.is_open)
    eventually(lambda: "a listener failed" in caplog.text)
    one.pause_for(30)
    eventually(lambda: other.pause)


def test_tokens_that_redis_has_counted_without_an_answer_count_once() -> None:
    """What is not answered is sent again, and what was taken since then with it."""
    clock = FakeClock()
    store = LateStore(clock=clock)
    budget, other = (RetryBudget(name="b", store=store) for _ in "ab")
    for _ in range(3):
        store.is_late = True
        for _ in range(4):
            budget.spend()
        budget.refund(6)
        clock.advance(1)
        store.wake()
        store.is_late = False
        for _ in range(2):
            clock.advance(1)
            store.wake()
    assert budget.tokens == other.tokens == 500 - 3 * (4 * 14 - 6)
    (scope,) = store.snapshot()
    assert scope.facts == {"capacity": 500, "tokens": budget.tokens}


def test_a_record_that_was_lost_does_not_fill_the_bucket(processes: Processes) -> None:
    """A Redis that comes back empty learns the tokens that were left."""
    one, other = (RetryBudget(name="b", store=store) for store in processes[:2])
    for _ in range(20):
        eventually(one.spend)
    eventually(lambda: other.tokens == 500 - 20 * 14)
    processes.client().flushall()
    eventually(other.spend)
    eventually(lambda: one.tokens == 500 - 21 * 14)


def test_a_record_forgets_the_messages_of_silent_objects() -> None:
    """Of many objects, those that are silent for an hour are not known any more."""
    both, now = LuaAndPython(BUDGET), 1_000_000
    for number in range(120):
        both.run(now, [f"p{number}#0", 1, 500, -1, 500])
    reply = both.run(now + 3_700_000, ["p0#0", 2, 500, -1, 500])
    assert reply[1] == 500 - 121
    kept = {field for field in both.record if field[:2] in {"s:", "u:"}}
    assert kept == {"s:p0#0", "u:p0#0"}


def said_of(caplog: pytest.LogCaptureFixture, *stores: RedisStore) -> list[str]:
    """What was logged about these stores, and not about those of earlier tests."""
    addresses = [repr(store).split("'")[1] for store in stores]
    lines = [record.getMessage() for record in caplog.records]
    return [line for line in lines if any(one in line for one in addresses)]


def threads(host: str = "of-this-test") -> int:
    """How many threads the stores of a host have."""
    return sum(host in one.name for one in threading.enumerate())


def test_a_store_that_is_closed_is_opened_by_the_next_call() -> None:
    """Two threads and two connections for each address; none after `close`."""
    client = fakeredis.FakeRedis(host="of-this-test")
    stores = [RedisStore(client) for _ in range(3)]
    breaker = CircuitBreaker(name="p", store=stores[0])
    assert threads() == 2
    stores[1].close()
    assert threads() == 2
    for store in stores:
        store.close()
    eventually(lambda: threads() == 0)
    breaker.admit()
    assert threads() == 2
    del breaker, store
    stores.clear()
    eventually(lambda: threads() == 0)


def test_a_store_does_not_open_itself_again() -> None:
    """What its thread asks each second may come after `close`, and is no use of it."""
    store = RedisStore(fakeredis.FakeRedis(host="closes-itself"))
    shared: list[Shareable] = [
        CircuitBreaker(name="a", store=store),
        RetryBudget(name="b", store=store),
        RateLimit(requests_per_minute=5, name="c", store=store),
        SpendLimit(5.0, name="d", store=store),
    ]
    store.close()
    for one in shared:
        one.refresh()
    eventually(lambda: threads("closes-itself") == 0)


def test_a_store_that_is_opened_again_was_not_asked() -> None:
    """What was found before it was closed does not count, and is found again."""
    server = fakeredis.FakeServer()
    (store,) = stores_of(server, 1)
    breaker = CircuitBreaker(name="p", store=store)
    server.connected = False
    eventually(lambda: not store.is_up)
    store.close()
    server.connected = True
    breaker.admit()
    assert store.is_up
    breaker.open_for(60)
    eventually(lambda: states(store) == ["open"])
    store.close()


def test_copies(clock: FakeClock) -> None:
    """Copies share a store; a pickle connects to the same address, or begins empty."""
    redis_store, memory = RedisStore("redis://127.0.0.1:1"), MemoryStore(clock=clock)
    for store in (redis_store, memory):
        assert copy.copy(store) is copy.deepcopy(store) is store
    budget = RetryBudget(name="b", store=memory, capacity=50)
    breaker = CircuitBreaker(name="a", store=memory, quorum=3)
    budget.spend()
    copies: list[Any] = [pickle.loads(pickle.dumps(one)) for one in (budget, breaker)]
    assert (copies[0].name, copies[0].tokens) == ("b", 36)
    assert (copies[1].name, copies[1].quorum, copies[1].is_shared) == ("a", 3, True)
    assert [repr(one) for one in copies] == [repr(budget), repr(breaker)]
    redis_store.close()


SENTINEL: Any = Sentinel  # Without types.
UNKNOWN: Any = type("Unknown", (redis.Connection,), {})  # No process can import it.


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("redis://h:7000/", "redis://h:7000/0"),
        ("redis://h/2?password=sesame", "redis://h:6379/2"),
        ("rediss://me:sesame@h/1", "rediss://h:6379/1"),
        ("unix://me:sesame@/tmp/a.sock?db=2", "unix:///tmp/a.sock"),
        (
            SENTINEL([]).master_for("main", db=3, password="sesame"),
            "redis+sentinel://main/3",
        ),
        (SENTINEL([]).slave_for("main", ssl=True), "rediss+sentinel://main/0"),
    ],
)
def test_a_store_shows_where_it_is(given: Any, shown: str) -> None:
    """Its text has the scheme, the service of a Sentinel, and no password."""
    with contextlib.closing(RedisStore(given)) as store:
        assert repr(store) == f"RedisStore({shown!r}, namespace='rr')"


@pytest.mark.parametrize("kind", ["sentinel", "a class of one's own"])
def test_a_store_of_a_client_that_cannot_be_pickled_says_so(kind: str) -> None:
    """The error says what to do instead; a deep copy of the store is the store."""
    client = SENTINEL([]).master_for("any")
    if kind != "sentinel":
        client = redis.Redis(connection_pool=redis.ConnectionPool(UNKNOWN, port=1))
    with contextlib.closing(RedisStore(client)) as store:
        assert copy.deepcopy(store) is store
        with pytest.raises(TypeError, match=r"make the store.* anew in each process"):
            pickle.dumps(CircuitBreaker(name="a", store=store))


def test_redis_that_is_away_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """One line when it goes and one when it comes; what was learned is sent then."""
    server = fakeredis.FakeServer()
    store, other = stores_of(server, 2)
    one, two = (CircuitBreaker(name="p", store=each) for each in (store, other))
    eventually(store.snapshot)
    server.connected = False
    eventually(lambda: not (store.is_up or other.is_up))
    one.open_for(60)
    one.pause_for(90)
    quota = CircuitBreaker(name="q", store=store)
    quota.open_for(70, "the quota is used up")
    assert one.is_open
    assert two.state is CLOSED
    server.connected = True
    eventually(lambda: two.is_open and two.pause > 80)
    eventually(lambda: states(other) == ["open", "open"])
    assert other.snapshot()[1].facts["why"] == "the quota is used up"
    said = said_of(caplog, store, other)
    assert len(said) == 4
    assert sum("is away: each process decides alone" in one for one in said) == 2
    assert sum("is back" in one for one in said) == 2
    for each in (store, other):
        each.close()


def test_a_probe_without_redis_is_decided_here() -> None:
    """While the store is away a process probes on its own, and closes for itself."""
    clock, server = FakeClock(), fakeredis.FakeServer()
    store = RedisStore(fakeredis.FakeRedis(server=server))
    breaker = CircuitBreaker(name="p", store=store, clock=clock, recovery_time=5)
    breaker.open_for(60)
    eventually(lambda: states(store) == ["open"])
    server.connected = False
    eventually(lambda: not store.is_up)
    clock.advance(61)
    permit: Any = breaker.admit()
    assert permit.is_probe
    breaker.succeeded(permit)
    assert breaker.state is CLOSED
    server.connected = True
    eventually(lambda: store.is_up and states(store) == ["closed"])
    store.close()


@pytest.mark.parametrize(
    "make",
    [
        CircuitBreaker,
        RetryBudget,
        functools.partial(RateLimit, max_concurrency=1),
        functools.partial(SpendLimit, 1),
    ],
)
def test_what_is_shared_needs_a_name_and_a_store(make: Any) -> None:
    """A name that is the same everywhere; the error shows no password.

    And a namespace: without one, services with other accounts would meet.
    """
    with pytest.raises(ValueError, match="needs a name, the same in all processes"):
        make(store=MemoryStore())
    url = "redis://:secret@localhost:6379/0"
    with pytest.raises(ValueError, match=r"a RedisStore\(url\).* not of type str$"):
        make(name="any", store=url)
    with pytest.raises(ValueError, match="namespace must be a string with"):
        RedisStore(url, namespace="")


@pytest.mark.parametrize(
    ("given", "error", "advice"),
    [
        (redis.asyncio.Redis(), TypeError, "its thread serves async code as well"),
        (object(), TypeError, "a URL such as 'redis://localhost:6379/0', or a redis"),
        (b"redis://:sesame@h", TypeError, "not of type bytes"),
        ("localhost:6379", ValueError, "must be like redis://localhost:6379/0"),
        ("redis://h?connect_timeout=1", ValueError, "argument 'connect_timeout'"),
        ("redis://:sesame/x@h:6379", ValueError, "in a password / is %2F"),
        ("redis://:sesame#x@h:6379", ValueError, "# is %23"),
        ("redis://:sesame\u2100@h:6379", ValueError, "cannot be read"),
        ("redis://:sesame@h:6379/abc", ValueError, "path must be the number of a data"),
        ("rediss://h:6379/0/foo", ValueError, "path must be the number of a database"),
        ("redis://h:6379/-1", ValueError, "path must be the number of a database"),
        ("redis://:sesame@h:0/1", ValueError, "port must be a number from 1 to 65535"),
    ],
)
def test_what_is_no_address_is_refused(
    given: Any, error: type[Exception], advice: str
) -> None:
    """The error says what to give instead, and shows no password."""
    with pytest.raises(error, match=advice) as caught:
        RedisStore(given)
    with pytest.raises(TypeError) as caught_by_model:
        OpenAI(api_key="any", store=given)
    assert "sesame" not in f"{caught.value} {caught_by_model.value}"


def test_breakers_are_made_while_the_thread_works() -> None:
    """The store's thread goes on while other threads add to what it asks about."""
    store = RedisStore(fakeredis.FakeRedis(host="of-many"))
    made: list[CircuitBreaker] = []

    def make() -> None:
        made.extend(CircuitBreaker(name="p", store=store) for _ in range(2_000))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
    finally:
        sys.setswitchinterval(before)
    made[0].open_for(60)
    eventually(lambda: made[-1].is_open)
    store.close()


def test_a_system_without_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shared can be imported on Windows."""
    monkeypatch.delattr(os, "register_at_fork")
    spec = importlib.util.find_spec("langchain_retryrouter._shared")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_a_store_that_hangs_does_not_keep_a_provider_closed(clock: FakeClock) -> None:
    """A breaker probes on its own if the store's thread does not answer for 2 s."""
    breaker = CircuitBreaker(name="p", store=SilentStore(), clock=clock)
    breaker.learned([1, 1, 5_000, -1, -1, 0, -1, 2, "several failed"])
    assert breaker.is_open
    clock.advance(5)
    assert isinstance(breaker.admit(), Refusal)
    clock.advance(1)
    assert isinstance(breaker.admit(), Refusal)
    clock.advance(1)
    permit: Any = breaker.admit()
    assert permit.is_probe
    breaker.succeeded(permit)
    assert breaker.state is CLOSED


def test_a_program_that_ends_calls_without_threads() -> None:
    """A call that can start no thread any more decides alone."""
    code = """
import atexit
from langchain_retryrouter import CircuitBreaker
from langchain_retryrouter.circuit_breaker import Permit
@atexit.register
def last():
    assert isinstance(breaker.admit(), Permit)
    print("went on")
from langchain_retryrouter.stores import RedisStore
breaker = CircuitBreaker(name="p", store=RedisStore("redis://127.0.0.1:1"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "went on\n")
    assert "Traceback" not in done.stderr


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package redis the error is the command that installs it."""
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ImportError, match=r"pip install .*\[redis\]"):
        RedisStore("redis://127.0.0.1:1")


def test_a_model_without_a_store_imports_none() -> None:
    """Neither redis nor a store is loaded for models, breakers and budgets."""
    code = """
import sys
from langchain_core.language_models import FakeListChatModel
from langchain_retryrouter import CircuitBreaker, GPTRouter, OpenAI, RetryBudget
from langchain_retryrouter import RetryRouter
router = RetryRouter(routes=[FakeListChatModel(responses=["a"])], budget=RetryBudget())
assert router.invoke("hi").content == "a"
loaded = {"redis", *(f"langchain_retryrouter.stores.{n}" for n in ("redis", "memory"))}
assert not loaded & sys.modules.keys(), loaded & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=80)


def test_memory_expires(clock: FakeClock) -> None:
    """What nobody uses for an hour is forgotten."""
    store = MemoryStore(clock=clock)
    CircuitBreaker(name="a", store=store, clock=clock).open_for(7_200)
    clock.advance(7_200 + 3_599)
    assert [scope.name for scope in store.snapshot()] == ["a"]
    clock.advance(1)
    assert store.snapshot() == []


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
    """A model without another route waits as long as the server asked, and answers.

    The random part on top of a pause does not make the wait too long.
    """
    one, other = fleet.router("main"), fleet.router("main")
    fleet.hears(5, one)
    assert 5 <= fleet.waits(other) <= 6.5
    policy = RetryPolicy(max_retries=0, deadline=40, max_retry_after=35)
    for _ in range(10):
        one, other = fleet.two(retry_policy=policy)
        fleet.hears(35, one)
        assert fleet.invoke(other, "hi")


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
