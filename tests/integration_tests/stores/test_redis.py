"""A real redis-server that dies, stops, is slow, full or empty, and real processes."""

import contextlib
import functools
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from langchain_retryrouter import (
    CircuitBreaker,
    RateLimit,
    RateLimitError,
    RetryBudget,
    RetryPolicy,
    RetryRouter,
    Route,
    SpendLimit,
)
from langchain_retryrouter._shared import LIMIT, SPEND, Operation
from langchain_retryrouter.stores import RedisStore
from langchain_retryrouter.testing import Answer, FaultyGateway, Silence, Status
from tests.support.fleet import each, fleet
from tests.support.models import chat_openai
from tests.support.redis_server import RedisServer, SlowProxy, free_port, wait
from tests.unit_tests.conftest import Twin
from tests.unit_tests.money.conftest import reserved
from tests.unit_tests.stores.conftest import eventually, states

# Python warns of forks in programs with threads; the stores' are some.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded, use of fork:DeprecationWarning"
)
SETTINGS = {"failure_threshold": 2, "recovery_time": 2}
NO_RETRIES = {"max_retries": 0, "max_retry_after": 0.5}
LONG = Status(429, headers={"retry-after": "120"})


def new_router(url: str, gateway: FaultyGateway, **fields: Any) -> RetryRouter:
    model = chat_openai(gateway.url)
    route = Route(model=model, name="provider", input_price=1, output_price=1)
    policy = RetryPolicy(max_retries=0, max_retry_after=0.5)
    return RetryRouter(
        routes=[route], store=RedisStore(url), retry_policy=policy, **fields
    )


def give_memory(server: RedisServer, most: str) -> None:
    """Let Redis refuse all that would need more; 0 is no limit."""
    with server.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", most)


Change = Callable[[RedisServer, SlowProxy], object]
FAULTS: dict[str, tuple[Change, Change]] = {
    "killed": (lambda s, _: s.kill(), lambda s, _: s.start()),
    "paused": (lambda s, _: s.pause(), lambda s, _: s.resume()),
    "slow": (
        lambda _, proxy: setattr(proxy, "delay", 5.0),
        lambda _, proxy: setattr(proxy, "delay", 0.0),
    ),
    "out of memory": (
        lambda s, _: give_memory(s, "1mb"),
        lambda s, _: give_memory(s, "0"),
    ),
    "read-only": (
        lambda s, _: s.client().replicaof("127.0.0.1", 1),
        lambda s, _: s.client().replicaof("NO", "ONE"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_redis_fails_while_calls_learn(
    fault: str, twin: Twin, redis_server: RedisServer, gateway: FaultyGateway
) -> None:
    """No call fails or waits for Redis; what was learned is sent when it is back."""
    begin, end = FAULTS[fault]
    proxy = SlowProxy(redis_server.port)
    money = RedisStore(proxy.url)
    router = new_router(
        proxy.url,
        gateway,
        budget=RetryBudget(),
        rate_limit=RateLimit(requests_per_minute=60_000),
        spend_limit=SpendLimit(100, name="money", store=money),
    )
    assert twin.invoke(router, "hi").content
    eventually(lambda: states(RedisStore(redis_server.url)) == ["closed"])
    begin(redis_server, proxy)
    took = []
    for _ in range(20):  # Nobody knows yet that it is gone.
        began = time.perf_counter()
        assert twin.invoke(router, "hi").content
        took.append(time.perf_counter() - began)
    gateway.script(LONG)
    began = time.perf_counter()
    with pytest.raises(RateLimitError):
        twin.invoke(router, "hi")
    took.append(time.perf_counter() - began)
    assert max(took) < 4, took  # A slow Redis takes 5 s for an answer.
    wait(0.5)
    end(redis_server, proxy)
    other = RedisStore(redis_server.url)
    breaker = CircuitBreaker(name=router.routes[0].scope, store=other)
    eventually(lambda: breaker.is_open)
    assert 80 < breaker.retry_after <= 120
    for store in (other, router.store, money):
        store.close()
    proxy.close()


@pytest.mark.parametrize(
    ("operation", "args"),
    [
        (LIMIT, ["p", 0, 0, 0, 0, [["requests", 1.0, 9.0, 9.0, 10 / 3, 0.0, 0.0]]]),
        (SPEND, ["p", 1, 60_000, 9.0, 0.0, 10 / 3, 10 / 3, 0]),
    ],
)
def test_replies_have_all_digits(
    operation: Operation, args: list[Any], redis_server: RedisServer
) -> None:
    """What was granted in full must not look smaller: that is a limit used up."""
    with contextlib.closing(RedisStore(redis_server.url)) as store:
        replies: list[Any] = []
        store.submit(operation, "name", args, replies.append)
        eventually(lambda: replies)
    assert 10 / 3 in replies[0]


def test_what_a_late_redis_has_counted_counts_once(redis_server: RedisServer) -> None:
    """It did what it was asked, and answered too late: it is told again."""
    with contextlib.closing(RedisStore(redis_server.url)) as store:
        limit = SpendLimit(100, name="x", store=store)
        budget = RetryBudget(name="x", store=store)
        for _ in range(3):
            one = reserved(limit, 10)
            redis_server.pause()
            one.settle(20)
            budget.spend()
            wait(0.3)
            redis_server.resume()
            eventually(lambda: store.is_up)
            eventually(budget.spend)

        def facts() -> dict[str, Any]:
            return {scope.kind: scope.facts for scope in store.snapshot()}

        eventually(lambda: facts()["spend"]["taken"] == pytest.approx(60))
        eventually(lambda: facts()["budget"]["tokens"] == 500 - 6 * 14)
        wait(2.1)  # What is said each second changes nothing any more.
        assert limit.spent == pytest.approx(60)
        assert taken(store) == pytest.approx(60)
        assert budget.tokens == facts()["budget"]["tokens"] == 500 - 6 * 14


def test_what_an_older_redis_does_not_know_stays_spent(
    redis_server: RedisServer,
) -> None:
    """A restart from a file gives no money back that was spent since it was written."""
    with contextlib.closing(RedisStore(redis_server.url)) as store:
        limit = SpendLimit(100, name="x", store=store)
        reserved(limit, 10).settle(10)
        with redis_server.client() as client:
            client.save()
        for _ in range(5):
            reserved(limit, 10).settle(10)
        redis_server.kill()
        redis_server.start()
        with contextlib.closing(RedisStore(redis_server.url, namespace="b")) as other:
            eventually(lambda: other.is_up and store.is_up)
        eventually(lambda: taken(store) >= 60)
        assert limit.left <= 40


def taken(store: RedisStore) -> float:
    """What all processes have taken of the one limit."""
    found = [one.facts["taken"] for one in store.snapshot() if one.kind == "spend"]
    return float(sum(found))


JOB = """
import os, time
from langchain_retryrouter import SpendLimit
from langchain_retryrouter.spend_limits import Price, SpendReservation
from langchain_retryrouter.stores import RedisStore

store = RedisStore({url!r})
limit = SpendLimit(20, name="team", store=store)
while not isinstance(one := limit.reserve(Price(0.01, 0.01)), SpendReservation):
    time.sleep(0.01)
{end}
"""
ENDS = {
    "it closes the store": "one.settle(0.01); store.close()",
    "it ends": "one.settle(0.01)",
    "it ends in a child": """
if (child := os.fork()):
    os.waitpid(child, 0)
    one.settle(0.01)
""",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_program_that_ends_gives_back_what_it_has_leased(
    end: str, redis_server: RedisServer
) -> None:
    """Many short jobs use up no limit; a child does not end its parent's lease."""
    code = JOB.format(url=redis_server.url, end=ENDS[end])
    for _ in range(3):
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with contextlib.closing(RedisStore(redis_server.url)) as store:
        assert taken(store) == pytest.approx(0.03)


def test_an_empty_redis_is_filled_again(
    redis_server: RedisServer, gateway: FaultyGateway, caplog: pytest.LogCaptureFixture
) -> None:
    """A restart that loses everything changes nothing beyond one repair."""
    with fleet(3) as workers:
        each(workers, "join", redis_server.url, gateway.url, SETTINGS, NO_RETRIES)
        assert each(workers, "ask", 1) == [["ok"]] * 3
        gateway.always(LONG)
        gateway.reset_log()
        assert workers[0].call("ask", 1) == ["rate_limit"]
        wait(0.3)
        # Is it true? A store that is slow to say who may ask is asked again.
        eventually(lambda: workers[1].call("ask", 1) == ["rate_limit"])
        wait(0.3)  # The store has heard of it.
        redis_server.kill()
        redis_server.start()
        late = RedisStore(redis_server.url, namespace="fleet")
        eventually(lambda: knows(late, 3))
        eventually(lambda: states(late) == ["open"])
        eventually(lambda: {one.call("state")[0] for one in workers} == {"open"})
        (scope,) = (one for one in late.snapshot() if one.kind == "breaker")
        assert 80 < scope.facts["open_for"] <= 120
        ends = Counter(end for ends in each(workers, "ask", 5) for end in ends)
        # A process that starts now knows it, too.
        breaker = CircuitBreaker(name=scope.name, store=late)
        eventually(lambda: breaker.is_open)
    assert ends == {"circuit_open": 15}
    assert len(gateway.requests) == 2
    late.close()
    assert all(
        "away" in one.getMessage() or "back" in one.getMessage()
        for one in caplog.records
    )


def test_what_was_flushed_is_found_again(redis_server: RedisServer) -> None:
    """The names of what is shared are written every few seconds, for `status`."""
    with contextlib.closing(RedisStore(redis_server.url)) as store:
        breaker = CircuitBreaker(name="x", store=store)
        eventually(lambda: states(store) == ["closed"])
        with redis_server.client() as client:
            client.flushall()
        eventually(lambda: states(store) == [breaker.state])


def test_a_dead_prober_does_not_hold_the_probe(
    redis_server: RedisServer, gateway: FaultyGateway
) -> None:
    """The lease of a process that was killed ends, and another one probes."""
    with fleet(2) as workers:
        each(workers, "join", redis_server.url, gateway.url, SETTINGS, NO_RETRIES)
        gateway.script(Status(429, headers={"retry-after": "1"}))
        assert workers[0].call("ask", 1) == ["rate_limit"]
        wait(1.2)
        gateway.always(Silence(60))
        gateway.reset_log()
        workers[0].send("ask_for", 30)
        gateway.wait_for(lambda one: one.requests != [])
        wait(1.5)  # The lease is renewed while the probe is under way.
        assert workers[1].call("ask", 1) == ["circuit_open"]
        workers[0].process.kill()
        gateway.always(Answer())
        assert workers[1].call("ask", 1) == ["circuit_open"]
        eventually(lambda: workers[1].call("ask", 1) == ["ok"])


def test_one_sick_process_closes_nothing_for_others(
    redis_server: RedisServer, gateway: FaultyGateway
) -> None:
    """A process that fails alone keeps its own breaker open; two agree for all."""
    with fleet(4) as workers:
        each(workers, "join", redis_server.url, gateway.url, SETTINGS, NO_RETRIES)
        each(workers, "ask", 1)
        with contextlib.closing(
            RedisStore(redis_server.url, namespace="fleet")
        ) as all_of:
            eventually(lambda: knows(all_of, 4))
        gateway.script(Status(503), Status(503))
        assert workers[0].call("ask", 2) == ["unavailable"] * 2
        wait(0.2)
        assert [one.call("state")[0] for one in workers] == ["open"] + ["closed"] * 3
        assert each(workers[1:], "ask", 3) == [["ok"] * 3] * 3
        gateway.script(Status(503), Status(503))
        assert workers[1].call("ask", 2) == ["unavailable"] * 2
        eventually(lambda: [one.call("state")[0] for one in workers] == ["open"] * 4)
        # It is over: one of them finds out for all, which may be the sick one.
        wait(2.2)
        eventually(lambda: each(workers, "ask", 1) == [["ok"]] * 4)


def test_clocks_that_are_wrong(
    redis_server: RedisServer, gateway: FaultyGateway
) -> None:
    """The time is Redis's: what a process thinks that it is does not count."""
    seconds = 86_400.0
    with fleet(3) as workers:
        workers[0].call("skew", seconds)
        workers[1].call("skew", -seconds)
        each(workers, "join", redis_server.url, gateway.url, SETTINGS, NO_RETRIES)
        for number in range(3):
            gateway.script(Status(429, headers={"retry-after": "3"}))
            assert workers[number].call("ask", 1) == ["rate_limit"]
            eventually(lambda: {one.call("state")[0] for one in workers} == {"open"})
            wait(3.1)
            eventually(lambda: workers[0].call("ask", 1) == ["ok"])
            eventually(lambda: each(workers, "ask", 1) == [["ok"]] * 3)


def test_a_fork_shares(redis_server: RedisServer, gateway: FaultyGateway) -> None:
    """A forked process has threads and a name of its own; the parent learns from it."""
    router = new_router(redis_server.url, gateway)
    assert router.invoke("hi").content
    parent = router.store.process
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()

    def child() -> None:
        gateway_said = ""
        try:
            router.invoke("hi")
        except RateLimitError as error:
            gateway_said = str(error.retry_after)
        eventually(lambda: states(router.store) == ["open"])
        told.put((router.store.process, gateway_said, os.getpid()))

    gateway.script(LONG)
    process = context.Process(target=child)
    process.start()
    name, said, pid = told.get()
    process.join(10)
    assert name != parent
    assert f":{pid}:" in name
    assert said == "120.0"
    breaker_of = CircuitBreaker(name=router.routes[0].scope, store=router.store)
    eventually(lambda: breaker_of.is_open)
    router.store.close()


def test_a_program_that_ends_says_what_it_knows(redis_server: RedisServer) -> None:
    """What was learned in the last moment is sent before the interpreter ends."""
    code = f"""
from langchain_retryrouter import CircuitBreaker
from langchain_retryrouter.stores import RedisStore
CircuitBreaker(name="p", store=RedisStore({redis_server.url!r})).open_for(60)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert states(RedisStore(redis_server.url)) == ["open"]


def is_formed(client: Any) -> bool:
    """Whether a node of a cluster knows who has which slots."""
    info = client.execute_command("CLUSTER INFO")
    return (
        "ok" in str(info["cluster_state"])
        and len(client.execute_command("CLUSTER SLOTS")) == 2
    )


def knows(store: RedisStore, count: int) -> bool:
    """Whether the breaker is used by so many processes."""
    scopes = [scope for scope in store.snapshot() if scope.kind == "breaker"]
    return [len(scope.processes) for scope in scopes] == [count]


def test_a_cluster(gateway: FaultyGateway) -> None:
    """The URL of any node will do: the store goes to the node that has its keys."""
    bus = [str(free_port()) for _ in range(2)]
    options = [("--cluster-enabled", "yes", "--cluster-port", port) for port in bus]
    with RedisServer(*options[0]) as one, RedisServer(*options[1]) as other:
        with one.client() as first, other.client() as second:
            first.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 8_191)
            second.execute_command("CLUSTER", "ADDSLOTSRANGE", 8_192, 16_383)
            second.execute_command("CLUSTER", "MEET", "127.0.0.1", one.port, bus[0])
            for client in (first, second):
                eventually(functools.partial(is_formed, client))
        routers = [new_router(server.url, gateway) for server in (one, other)]
        for router in routers:
            eventually(functools.partial(knows, router.store, 2))
        gateway.script(LONG)
        with pytest.raises(RateLimitError):
            routers[0].invoke("hi")
        eventually(lambda: states(routers[1].store) == ["open"])
        assert [router.store.is_up for router in routers] == [True, True]
        # The node that has the keys is lost, and the other one has its slots.
        with one.client() as first:
            is_first = first.execute_command("CLUSTER", "KEYSLOT", "{rr}:") < 8_192
        lost, left = (one, other) if is_first else (other, one)
        slots = (0, 8_191) if is_first else (8_192, 16_383)
        lost.kill()
        with left.client() as client:
            client.execute_command("CLUSTER", "DELSLOTSRANGE", *slots)
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", *slots)
            eventually(lambda: client.execute_command("KEYS", "{rr}:*"))
        store = routers[is_first].store
        eventually(lambda: store.is_up)
        eventually(lambda: states(store) == ["open"])
        for router in routers:
            router.store.close()


def test_a_wrong_password_is_said_once(
    gateway: FaultyGateway, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls go on, and one line says what is wrong, without the password."""
    with RedisServer("--requirepass", "right") as server:
        url = server.url.replace("redis://", "redis://:sesame@")
        router = new_router(url, gateway)
        with caplog.at_level(logging.WARNING):
            assert router.invoke("hi").content
            eventually(lambda: not router.store.is_up)
            wait(2.2)
        assert router.invoke("hi").content
    (line,) = (one.getMessage() for one in caplog.records if "store" in one.name)
    assert "is away" in line
    assert "sesame" not in caplog.text
    router.store.close()


@pytest.mark.parametrize("is_client", [False, True])
def test_stores_of_one_address_have_two_connections(
    redis_server: RedisServer, *, is_client: bool
) -> None:
    """However many stores, pickles and breakers a process has; none after `close`."""
    made_of = redis_server.client() if is_client else redis_server.url
    stores = [RedisStore(made_of) for _ in range(3)]
    stores.append(pickle.loads(pickle.dumps(stores[0])))
    breakers = [CircuitBreaker(name="p", store=store) for store in stores * 10]
    breakers[-1].open_for(60)
    eventually(lambda: all(breaker.is_open for breaker in breakers))
    with redis_server.client() as client:
        eventually(lambda: len(client.client_list()) == 1 + 2)
        for store in stores:
            store.close()
        eventually(lambda: len(client.client_list()) == 1)
