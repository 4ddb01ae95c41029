"""Processes that share a store act as one, and Redis takes no call down.

Real processes, a real redis-server on a free port, real requests to a gateway here.
"""

import math
import random  # noqa: TID251 - seeded
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import pytest
from langchain_core.language_models import FakeListChatModel

from langchain_retryrouter import RetryBudget, RetryPolicy, RetryRouter
from langchain_retryrouter.stores import RedisStore
from langchain_retryrouter.testing import Answer, FaultyGateway, SlowFirstToken, Status
from tests.promises.conftest import Figures
from tests.support.fleet import each, fleet
from tests.support.interleavings import run_interleaving
from tests.support.redis_server import RedisServer, SlowProxy, wait

SETTINGS: Final = {"failure_threshold": 3, "recovery_time": 2}
NO_RETRIES: Final = {"max_retries": 0, "max_retry_after": 0.5}

pytestmark = pytest.mark.timeout(1_800)


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
    figures.timed(100, max(late), "ms until the last process knows of a pause")
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
    count, recoveries = (64, 10) if is_long else (6, 1)
    with fleet(count) as workers:
        each(workers, "join", redis_server.url, gateway.url, SETTINGS, NO_RETRIES)
        wait(2)
        for number in range(recoveries):
            gateway.always(Status(429, headers={"retry-after": "2"}))
            assert workers[number % count].call("ask", 1) == ["rate_limit"]
            while {state for state, _ in each(workers, "state")} != {"open"}:
                wait(0.02)
            gateway.reset_log()
            for worker in workers:
                worker.send("ask_for", 4.5)
            # One of them looks whether it is true, and is told again.
            gateway.wait_for(
                lambda gateway: any(one.outcome == "sent" for one in gateway.requests)
            )
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
    figures.timed(20, p50, "us added to a healthy call, p50")
    if is_long:  # 1 % of 400 calls is what else the machine has to do.
        figures.timed(100, p99, "us added to a healthy call, p99")


FAULTS: Final[dict[str, Callable[[RedisServer, SlowProxy], None]]] = {
    "dead": lambda server, _: server.kill(),
    "paused": lambda server, _: server.pause(),
    "slow": lambda _, proxy: setattr(proxy, "delay", 1.0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_redis_takes_no_call_down(
    fault: str, redis_server: RedisServer, figures: Figures, *, is_long: bool
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
    figures.timed(50, p50, f"us added to a call, Redis {fault}")
    figures.exactly(0, failed, f"calls that failed, Redis {fault}")
    redis_server.resume() if fault == "paused" else None
    proxy.close()


# --- the scripts ----------------------------------------------------------------------


def test_the_scripts_hold_their_invariants(
    redis_server: RedisServer, figures: Figures, *, is_long: bool
) -> None:
    """Random interleavings, in Redis and in Python: equal replies, and invariants."""
    count = 1_000_000 if is_long else 20_000
    client, rng = redis_server.client(), random.Random(7)  # noqa: S311
    done = 0
    while done < count:
        done += run_interleaving(client, rng, 1_000)
    figures.counted(done, "random interleavings of the scripts, 0 violations")
    client.close()
