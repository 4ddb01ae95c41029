"""Those who failed together do not come back together."""

from __future__ import annotations

import asyncio
import random  # noqa: TID251 - what a program seeds, and we do not throw
import warnings
from collections.abc import Callable, Iterable
from typing import Final

import httpx2
import openai
import pytest
from openai._models import FinalRequestOptions
from pydantic import SecretStr
from tenacity import RetryCallState

from langchain_retryrouter import RetryPolicy
from langchain_retryrouter._retry.call_state import CallState, Retry
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK
from langchain_retryrouter._retry.engine import Attempt, RetryContext, acall
from langchain_retryrouter.errors import BASE_ERRORS
from langchain_retryrouter.failures import Failure, FailureKind
from langchain_retryrouter.testing import FakeClock
from tests.promises.evidence import Evidence, Length, Promise
from tests.promises.rng import seeded
from tests.promises.virtual_time import VirtualClock, run

PROMISE = Promise(
    title="No herd",
    number="≤ 12 % of the retries within any 100 ms; ≤ 15 % after a `Retry-After`",
    why=(
        "1,000 clients fail at the same instant. If they come back at the same instant,"
        " they are the next outage. Each crowd is thrown anew with other dice, and the"
        " worst crowd counts."
    ),
)
CLIENTS: Final = 1_000
WITHOUT: Final = "% of first retries in the busiest 100 ms, no header"
WITH: Final = "% of first retries in the busiest 100 ms, same Retry-After"
TOLD: Final = (0.05, 0.5, 0.75, 1.0, 2.0, 20.0, 58.0, 60.0)
"""Seconds that a server tells all of them, from next to nothing to all we wait for."""


def busiest(waits: Iterable[float]) -> float:
    """Per cent of the waits that end within one 100 ms, wherever it begins."""
    ends = sorted(waits)
    most, first = 0, 0
    for last, end in enumerate(ends):
        while end - ends[first] > 0.1:
            first += 1
        most = max(most, last - first + 1)
    return 100 * most / len(ends)


def crowd(retry_after: float | None, rng: Callable[[], float]) -> list[float]:
    """How long each of the clients waits before its first retry."""
    policy, clock = RetryPolicy(), FakeClock(random=iter(rng, None))
    failure = Failure(FailureKind.RATE_LIMIT, 429, retry_after=retry_after)
    waits = []
    for _ in range(CLIENTS):
        call_state = CallState(policy, time=clock)
        call_state.admit()
        decision = call_state.failed(failure)
        assert isinstance(decision, Retry)
        waits.append(decision.delay)
    return waits


def test_a_crowd_without_a_header_is_spread(evidence: Evidence, length: Length) -> None:
    """Of any crowd that failed together, few come back within the same 100 ms."""
    crowds = length.of(short=100, long=2_000)
    worst = max(
        (busiest(crowd(None, seeded(seed).random)), seed) for seed in range(crowds)
    )
    assert worst[0] <= 12, f"{worst[0]} % of the crowd of seed {worst[1]}"
    evidence.at_most(12, worst[0], WITHOUT)
    evidence.counted(crowds, "crowds of 1,000 clients")


@pytest.mark.parametrize("told", TOLD)
def test_a_crowd_that_was_told_the_same_is_spread(
    told: float, evidence: Evidence, length: Length
) -> None:
    """Whatever a server tells all of them, they come back spread, and none early."""
    crowds = length.of(short=10, long=500)
    for seed in range(crowds):
        waits = crowd(told, seeded(seed).random)
        evidence.at_most(15, busiest(waits), WITH)
        evidence.exactly(0, sum(wait < told for wait in waits), "of them early")
    evidence.counted(crowds, "crowds of 1,000 clients")


def test_the_same_seed_everywhere_makes_no_herd(evidence: Evidence) -> None:
    """Workers that all call `random.seed(42)` are spread nevertheless."""
    state, thrown = random.getstate(), []
    for _ in range(CLIENTS):
        random.seed(42)
        thrown.append(SYSTEM_CLOCK.random())
    random.setstate(state)
    rng = iter(thrown)
    evidence.at_most(12, busiest(crowd(None, lambda: next(rng))), WITHOUT)


async def arrivals(seed: int, retry_after: float | None) -> list[float]:
    """When the first retries of real calls come to a server, on a virtual clock."""
    clock, came = VirtualClock(seed), []

    async def send(attempt: Attempt) -> None:
        if attempt.number == 1:
            raise BASE_ERRORS[FailureKind.UNAVAILABLE](
                str(attempt), retry_after=retry_after
            )
        came.append(asyncio.get_running_loop().time())

    calls = (
        acall(RetryContext(CallState(RetryPolicy(), time=clock), clock=clock), send)
        for _ in range(CLIENTS)
    )
    await asyncio.gather(*calls)
    return came


@pytest.mark.parametrize(
    ("told", "bar", "what"), [(None, 12, WITHOUT), (20.0, 15, WITH)]
)
def test_what_the_server_sees_is_spread(
    told: float | None, bar: float, what: str, evidence: Evidence
) -> None:
    """The decision is what happens: 1,000 real calls arrive as they were spread."""
    came = run(arrivals(2027, told))
    assert len(came) == CLIENTS
    evidence.at_most(bar, busiest(came), what)


def test_what_the_openai_sdk_does(evidence: Evidence) -> None:
    """The SDK takes up to a quarter off its 0.5 s, and off a Retry-After nothing."""
    client = openai.OpenAI(api_key="any", base_url="http://127.0.0.1:9")
    options = FinalRequestOptions(method="post", url="/chat/completions")
    told = httpx2.Headers({"retry-after": "20"})
    for headers, what in ((None, WITHOUT), (told, WITH)):
        waits = [
            client._calculate_retry_timeout(  # noqa: SLF001 - as it ships
                client.max_retries, options, headers
            )
            for _ in range(CLIENTS)
        ]
        evidence.peer("openai", busiest(waits), what)
    client.close()


def test_what_langchain_community_does(evidence: Evidence) -> None:
    """Its GPTRouter waits for 4 s exactly, whatever the server says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from langchain_community.chat_models import gpt_router  # noqa: PLC0415
    model = gpt_router.GPTRouterModel(name="gpt-4o", provider_name="chat_openai")
    llm = gpt_router.GPTRouter(
        models_priority_list=[model], gpt_router_api_key=SecretStr("any")
    )
    decorator = gpt_router._create_retry_decorator(llm)  # noqa: SLF001 - as it ships
    retried = decorator(print)
    state = RetryCallState(retried.retry, print, (), {})
    waits = [retried.retry.wait(state) for _ in range(CLIENTS)]
    for what in (WITHOUT, WITH):
        evidence.peer("langchain-community", busiest(waits), what)
