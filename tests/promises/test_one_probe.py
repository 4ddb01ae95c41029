"""One probe at a time finds out whether a sick provider is well again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice

import pytest
from pydantic import SecretStr

from langchain_retryrouter import (
    CircuitOpenError,
    GPTRouter,
    GPTRouterModel,
    RetryRouterError,
    UnavailableError,
)
from langchain_retryrouter.circuit_breaker import CircuitBreaker, Permit
from langchain_retryrouter.testing import FakeClock, FaultyGateway, Silence, Status
from tests.promises.evidence import Evidence, Length, Promise

PROMISE = Promise(
    title="One probe",
    number="exactly 1 of 500 threads, 1 of 50 calls over HTTP",
    why=(
        "A provider that begins to recover is asked by one call, not by all that have"
        " waited: 500 threads arrive at a half-open breaker at the same moment. And 50"
        " calls of a model, in threads and as coroutines: the server counts one request"
        " for as long as that one is not answered."
    ),
)
THREADS = 500
CALLS = 50


def probes_among_threads() -> int:
    """How many of the threads a half-open breaker lets through."""
    breaker = CircuitBreaker(failure_threshold=1, recovery_time=30)
    permit = breaker.admit(0)
    assert isinstance(permit, Permit)
    breaker.failed(permit, 0)
    together = threading.Barrier(THREADS)

    def arrive() -> bool:
        together.wait()
        return isinstance(breaker.admit(30), Permit)

    with ThreadPoolExecutor(THREADS) as pool:
        arrivals = [pool.submit(arrive) for _ in range(THREADS)]
        return sum(arrival.result() for arrival in arrivals)


def test_one_of_500_threads_is_the_probe(evidence: Evidence, length: Length) -> None:
    """However many arrive at a half-open breaker at once, one is let through."""
    rounds = length.of(short=3, long=100)
    for _ in range(rounds):
        evidence.exactly(1, probes_among_threads(), "probes among 500 threads")
    evidence.counted(rounds, "times tried")


def in_threads(model: GPTRouter, gateway: FaultyGateway) -> tuple[int, int]:
    """Call from threads; the calls refused, and the requests that came meanwhile."""
    together = threading.Barrier(CALLS)

    def ask() -> object:
        together.wait()
        return model.invoke("Hello?")

    with ThreadPoolExecutor(CALLS) as pool:
        calls = [pool.submit(ask) for _ in range(CALLS)]
        first = list(islice(as_completed(calls, timeout=20), CALLS - 1))
        gateway.wait_for(lambda gateway: gateway.requests != [])
        seen = len(gateway.requests)
        gateway.stop()  # The probe is let go, and fails.
    assert all(call.exception() for call in calls)
    return sum(isinstance(call.exception(), CircuitOpenError) for call in first), seen


def in_coroutines(model: GPTRouter, gateway: FaultyGateway) -> tuple[int, int]:
    """The same with the coroutines of one event loop."""

    async def all_together() -> tuple[int, int]:
        calls = [asyncio.create_task(model.ainvoke("Hello?")) for _ in range(CALLS)]
        for _ in range(CALLS - 1):
            await asyncio.wait(
                [call for call in calls if not call.done()],
                return_when=asyncio.FIRST_COMPLETED,
                timeout=20,
            )
            if sum(call.done() for call in calls) == CALLS - 1:
                break
        first = [call for call in calls if call.done()]
        await gateway.await_for(lambda gateway: gateway.requests != [])
        seen = len(gateway.requests)
        await asyncio.to_thread(gateway.stop)
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(end, RetryRouterError) for end in ends)
        return sum(isinstance(one.exception(), CircuitOpenError) for one in first), seen

    return asyncio.run(all_together())


@pytest.mark.parametrize("arrive", [in_threads, in_coroutines])
def test_a_recovering_server_sees_one_request(
    arrive: Callable[[GPTRouter, FaultyGateway], tuple[int, int]],
    evidence: Evidence,
    length: Length,
) -> None:
    """While the probe has no answer, all the other calls end without a request."""
    rounds = length.of(short=2, long=20)
    for _ in range(rounds):
        clock = FakeClock()
        with FaultyGateway() as gateway:
            model = GPTRouter(
                models_priority_list=[GPTRouterModel(name="m", provider_name="p")],
                gpt_router_api_base=gateway.url,
                gpt_router_api_key=SecretStr("any"),
                max_retries=0,
                breaker=CircuitBreaker(failure_threshold=1, recovery_time=30),
                clock=clock,
            )
            gateway.script(Status(503))
            with pytest.raises(UnavailableError):
                model.invoke("Hello?")
            clock.advance(30)
            gateway.reset_log()
            gateway.always(Silence())
            refused, seen = arrive(model, gateway)
        evidence.exactly(1, seen, "requests of 50 calls, over HTTP")
        assert refused == CALLS - 1
    evidence.counted(rounds, "times tried")
