"""Processes that share a store act as one, and Redis takes no call down.

Real processes, a real redis-server on a free port, real requests to a gateway here.
"""

from __future__ import annotations

import json
import math
import random  # noqa: TID251 - seeded
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from langchain_core.language_models import FakeListChatModel

from langchain_retryrouter import RetryBudget, RetryPolicy, RetryRouter
from langchain_retryrouter._shared import BREAKER, BUDGET, Record
from langchain_retryrouter.stores import RedisStore
from langchain_retryrouter.stores.redis import script
from langchain_retryrouter.testing import Answer, FaultyGateway, SlowFirstToken, Status
from tests.promises.conftest import Figures
from tests.support.fleet import each, fleet
from tests.support.redis_server import RedisServer, SlowProxy

SETTINGS: Final = {"failure_threshold": 3, "recovery_time": 2}
NO_RETRIES: Final = {"max_retries": 0, "max_retry_after": 0.5}

pytestmark = pytest.mark.timeout(1_800)


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A server of the test's own."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def gateway() -> Iterator[FaultyGateway]:
    """The provider of all workers."""
    with FaultyGateway() as gateway:
        yield gateway


def wait(seconds: float) -> None:
    """Let real processes do something."""
    time.sleep(seconds)  # noqa: TID251 - they take real time


def test_a_pause_is_known_everywhere_at_once(
    redis_server: RedisServer, figures: Figures, *, is_long: bool
) -> None:
    """What a server asked one process for is known to all others."""
    count, announcements = (64, 200) if is_long else (6, 20)
    with fleet(count) as workers:
        each(workers, "listen", redis_server.url)
        wait(2)
        told = {}
        for number in range(announcements):
            seconds = 100 + 10 * number
            told[seconds] = workers[number % count].call("announce", seconds)
            wait(0.1)
        wait(0.5)
        heard = each(workers, "told")
    late = [
        1000 * (one.get(seconds, math.inf) - at)
        for seconds, at in told.items()
        for one in heard
    ]
    figures.at_most(100, max(late), "ms until the last process knows of a pause")
    figures.counted(len(told), "announcements")


def test_a_provider_that_said_120_s_is_left_alone(
    redis_server: RedisServer, gateway: FaultyGateway, figures: Figures
) -> None:
    """16 processes send it one request, and one more to see whether it is true."""
    with fleet(16) as workers:
        each(workers, "join", redis_server.url, gateway.url, SETTINGS, NO_RETRIES)
        assert each(workers, "ask", 1) == [["ok"]] * 16
        gateway.reset_log()
        gateway.always(Status(429, headers={"retry-after": "120"}))
        assert workers[0].call("ask", 1) == ["rate_limit"]
        wait(0.2)
        ends = Counter(end for ends in each(workers, "ask", 10) for end in ends)
    assert ends["circuit_open"] >= 159, ends
    sent = len(gateway.requests)
    figures.at_most(2, sent, "requests of 16 processes to one that said 120 s")


def test_one_process_probes(
    redis_server: RedisServer,
    gateway: FaultyGateway,
    figures: Figures,
    *,
    is_long: bool,
) -> None:
    """All processes call at the end of a pause; one of them asks the provider."""
    count, recoveries = (64, 20) if is_long else (6, 1)
    with fleet(count) as workers:
        each(workers, "join", redis_server.url, gateway.url, SETTINGS, NO_RETRIES)
        wait(2)
        for number in range(recoveries):
            gateway.always(Status(429, headers={"retry-after": "2"}))
            assert workers[number % count].call("ask", 1) == ["rate_limit"]
            wait(0.2)
            gateway.reset_log()
            for worker in workers:
                worker.send("ask_for", 4.5)
            wait(1.5)  # One of them looks whether it is true, and is told again.
            gateway.always(SlowFirstToken(0.5))
            answered = [one for worker in workers for one in worker.receive()]
            early = [one for one in gateway.requests if isinstance(one.step, Status)]
            late = [one.at for one in gateway.requests if one not in early]
            together = sum(at < min(late) + 0.5 for at in late)
            figures.at_most(1, together, "probes at a time")
            figures.at_most(2, len(early) + together, "probes in a recovery")
            gateway.always(Answer())
            wait(0.2)
            ends = Counter(end for ends in each(workers, "ask", 1) for end in ends)
            assert ends == {"ok": count}, ends
            assert {end for _, end in answered} <= {"ok", "circuit_open", "rate_limit"}
    figures.counted(recoveries, "recoveries")


def test_an_outage_is_not_amplified(
    redis_server: RedisServer,
    gateway: FaultyGateway,
    figures: Figures,
    *,
    is_long: bool,
) -> None:
    """The retries of all processes come from one budget."""
    count, calls = (16, 1_000) if is_long else (4, 100)
    policy = {"max_retries": 2, "initial_delay": 0}
    gateway.always(Status(503))
    with fleet(count) as workers:
        each(workers, "join", redis_server.url, gateway.url, None, policy)
        wait(2)
        each(workers, "ask", calls)
    made, sent = count * calls, len(gateway.requests)
    what = f"requests a call in an outage, {count} x {calls:,} calls"
    figures.at_most(1.10, sent / made, what)
    # One bucket has tokens for 35 retries; a process more may be under way in each.
    figures.at_most(35 + count, sent - made, f"retries of {count} processes")


# --- what it costs --------------------------------------------------------------------

QUICK: Final = RetryPolicy(max_retries=0, attempt_timeout=math.inf)


def new_router(**fields: Any) -> RetryRouter:
    """A router over a model that answers at once."""
    model = FakeListChatModel(responses=["answer"])
    return RetryRouter(routes=[model], retry_policy=QUICK, **fields)


def added(shared: RetryRouter, calls: int) -> tuple[float, float]:
    """Microseconds that sharing adds to a call, p50 and p99, beside one without.

    Medians of five rounds, the calls in turns.
    """
    plain, rounds = new_router(budget=RetryBudget()), []
    for _ in range(5):
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(calls):
            for model, spent in zip((plain, shared), times, strict=True):
                began = time.perf_counter()
                model.invoke("hi")
                spent.append(time.perf_counter() - began)
        without, with_store = map(sorted, times)
        rounds.append(
            tuple(
                1e6 * (with_store[int(calls * part)] - without[int(calls * part)])
                for part in (0.5, 0.99)
            )
        )
    p50, p99 = (statistics.median(one) for one in zip(*rounds, strict=True))
    return p50, p99


def test_a_healthy_call_pays_nothing(
    redis_server: RedisServer, figures: Figures, *, is_long: bool
) -> None:
    """A call reads what its process knows."""
    with_store = new_router(store=RedisStore(redis_server.url), budget=RetryBudget())
    wait(0.5)
    p50, p99 = added(with_store, 4_000 if is_long else 400)
    figures.at_most(20, p50, "us added to a healthy call, p50")
    figures.at_most(100, p99, "us added to a healthy call, p99")


FAULTS: Final[dict[str, Callable[[RedisServer, SlowProxy], None]]] = {
    "dead": lambda server, _: server.kill(),
    "paused": lambda server, _: server.pause(),
    "slow": lambda _, proxy: setattr(proxy, "delay", 1.0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_redis_takes_no_call_down(
    fault: str,
    redis_server: RedisServer,
    figures: Figures,
    *,
    is_long: bool,
) -> None:
    """Without Redis calls are answered, and as quick."""
    proxy = SlowProxy(redis_server.port)
    store = RedisStore(proxy.url)
    router = new_router(store=store, budget=RetryBudget())
    router.invoke("hi")
    wait(0.5)
    FAULTS[fault](redis_server, proxy)
    failed, deadline = 0, time.monotonic() + 3
    while store.is_up and time.monotonic() < deadline:
        failed += router.invoke("hi").content != "answer"
    assert not store.is_up
    p50, _ = added(router, 2_000 if is_long else 300)
    figures.at_most(50, p50, f"us added to a call, Redis {fault}")
    figures.exactly(0, failed, f"calls that failed, Redis {fault}")
    redis_server.resume() if fault == "paused" else None
    proxy.close()


# --- the scripts ----------------------------------------------------------------------


ACTIONS: Final = (
    *("see", "hold", "pause", "vote", "vote", "retract", "probe", "probe", "probe"),
    *("renew", "cancelled", "succeeded", "failed", "close", "restore"),
)


def random_args(rng: random.Random, leases: dict[str, int], gen: int) -> list[Any]:
    """The arguments of a random action of a random process."""
    me = f"host:{rng.randrange(4)}:x#{rng.randrange(2)}"
    process = me.partition("#")[0]
    lease = leases.get(me, 0) if rng.random() < 0.8 else rng.randrange(5)
    action = rng.choice(ACTIONS)
    pause = rng.choice([0, 500, 2_000, 20_000])
    own: dict[str, list[Any]] = {
        "hold": [pause, rng.randrange(2), "said"],
        "pause": [pause],
        "vote": [process, pause, 5_000, rng.randint(1, 3), rng.randrange(2), "felt"],
        "retract": [process],
        "probe": [gen + rng.choice([0, 0, 0, -1]), rng.randrange(2), 3_000, "lost"],
        "renew": [lease, 3_000],
        "cancelled": [lease],
        "succeeded": [lease],
        "failed": [lease, pause, rng.choice([0, pause])],
        "close": [gen],
        "restore": [gen + rng.choice([-1, 0]), pause, 0, "lost"],
    }
    return [action, me, *own.get(action, [])]


def check(
    args: list[Any], reply: list[Any], before: Record, after: Record, now: int
) -> None:
    """What holds for each operation on a breaker, whatever came before."""
    action, me = args[:2]
    assert after.get("gen", 0) >= before.get("gen", 0)
    was_open, is_open = "open_until" in before, "open_until" in after
    if reply[5]:  # A lease was given.
        assert action == "probe"
        assert before.get("lease_until", 0) <= now or before.get("lease_by") == me
        assert reply[5] == before.get("lease_no", 0) + 1 == after["lease_no"]
        assert after["lease_until"] == now + args[4]
        is_due = before.get("open_until", 0) <= now
        assert is_due or (args[3] and not before.get("probed"))
    if was_open and not is_open:
        holds = before.get("lease_by") == me and before.get("lease_no") == args[2]
        assert (action == "succeeded" and holds) or action == "close"
    if not was_open and is_open and action == "vote":
        voters = {
            f[2:] for f in before if f.startswith("v:") and now - before[f] <= args[4]
        }
        alive = sum(f.startswith("p:") for f in after)
        assert len(voters | {args[2]}) >= (min(args[5], alive) if args[6] else args[5])
    if action in {"succeeded", "failed", "cancelled", "renew"} and (
        before.get("lease_by") != me or before.get("lease_no") != args[2]
    ):
        ours = {f for f in after if not f.startswith("p:")}
        assert {f: after[f] for f in ours} == {
            f: v for f, v in before.items() if not f.startswith("p:")
        }
    if was_open and is_open and action == "hold":
        assert after["open_until"] >= before["open_until"]


def test_the_scripts_hold_their_invariants(
    redis_server: RedisServer, figures: Figures, *, is_long: bool
) -> None:
    """Random interleavings, in Redis and in Python: equal replies, and invariants."""
    count = 1_000_000 if is_long else 20_000
    client, rng = redis_server.client(), random.Random(7)  # noqa: S311
    # Time is handed in, so that leases and votes end.
    texts = {
        one.name: script(one)[0].replace("redis.call('TIME')", "{ARGV[3], ARGV[4]}")
        for one in (BREAKER, BUDGET)
    }
    shas = {name: client.script_load(text) for name, text in texts.items()}
    now, done = 1_900_000_000_000, 0
    while done < count:
        record: Record = {}
        budget: Record = {}
        leases: dict[str, int] = {}
        asked: list[Any] = []
        expected = []
        for _ in range(1_000):
            now += rng.choice([0, 1, 30, 400, 3_000, 12_000])
            if rng.random() < 0.01:
                record = {}  # Redis was restarted.
                asked.append(None)
            if rng.random() < 0.1:
                args: list[Any] = ["h:1:x", 500, rng.choice([-14, -5, 1, 20])]
                operation, kept = BUDGET, budget
            else:
                args = random_args(rng, leases, record.get("gen", 0))
                operation, kept = BREAKER, record
            before = dict(kept)
            reply = operation.apply(kept, now, args)
            if operation is BREAKER:
                check(args, reply, before, kept, now)
                if reply[5]:
                    leases[args[1]] = reply[5]
            else:
                assert -500 <= reply[1] <= 500
            asked.append((operation.name, now, args))
            expected.append(reply)
        with client.pipeline(transaction=False) as pipeline:
            pipeline.delete("breaker", "budget")
            for one in asked:
                if one is None:
                    pipeline.delete("breaker")
                    continue
                name, at, args = one
                seconds, micros = str(at // 1000), str(at % 1000 * 1000)
                text = json.dumps(args)
                pipeline.evalsha(shas[name], 1, name, "news", text, seconds, micros)
            replies = [one for one in pipeline.execute() if isinstance(one, str)]
            left = client.hgetall("breaker")
        assert [json.loads(one) for one in replies] == expected
        assert {
            k: v for k, v in record.items() if isinstance(v, str)
        }.items() <= left.items()
        done += len(expected)
    figures.counted(done, "random interleavings of the scripts, 0 violations")
    client.close()
