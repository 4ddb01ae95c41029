"""The stores: threads and connections, keys, and what they do when something fails."""

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
from typing import Any

import fakeredis
import pytest
import redis
import redis.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.sentinel import Sentinel

from langchain_retryrouter import (
    CircuitBreaker,
    OpenAI,
    RateLimit,
    RetryBudget,
    SpendLimit,
)
from langchain_retryrouter._shared import BUDGET, Shareable
from langchain_retryrouter.circuit_breaker import BreakerState, Refusal
from langchain_retryrouter.stores import MemoryStore, RedisStore
from langchain_retryrouter.testing import FakeClock
from tests.support.interleavings import LuaAndPython, run_interleaving

from .conftest import (
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
