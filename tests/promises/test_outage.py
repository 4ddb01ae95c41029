"""A provider that is down is asked about as often as on a healthy day."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from langchain_retryrouter import (
    GPTRouter,
    GPTRouterModel,
    OpenAI,
    RetryBudget,
    RetryPolicy,
    RetryRouter,
)
from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.engine import Attempt, RetryContext, acall, call
from langchain_retryrouter.errors import BASE_ERRORS, RetryRouterError
from langchain_retryrouter.failures import FailureKind
from langchain_retryrouter.testing import FakeClock, FaultyGateway, Status
from tests.promises.evidence import Evidence, Length, Promise
from tests.promises.virtual_time import VirtualClock, let_pass, run

PROMISE = Promise(
    title="A full outage is not amplified",
    number="requests / calls ≤ 1.1 at 1,000 calls, ≤ 1.02 at 10,000",
    why=(
        "Every call fails, and each might be sent three times: that is what finishes a"
        " provider off. With a shared `RetryBudget()` of default numbers it is asked"
        " about once a call. Counted by the server, over HTTP and at a virtual one."
    ),
)
BARS: Final = {1_000: 1.1, 10_000: 1.02}
POLICY: Final = RetryPolicy(max_retries=2)
KEY: Final = SecretStr("any")


def words(calls: int) -> str:
    return f"requests a call, {calls:,} calls"


# --- the drive alone ---


def down(asked: list[int], kind: FailureKind) -> RetryRouterError:
    """A server that counts, and says no."""
    asked.append(1)
    return BASE_ERRORS[kind]("down")


def one_after_another(calls: int, kind: FailureKind) -> int:
    """The requests that come of calls one after another."""
    asked: list[int] = []
    clock, budget = FakeClock(), RetryBudget()

    def send(_: Attempt) -> None:
        raise down(asked, kind)

    for _ in range(calls):
        call_state = CallState(POLICY, budget=budget, time=clock)
        with contextlib.suppress(RetryRouterError):
            call(RetryContext(call_state, clock=clock), send)
    return len(asked)


def all_at_once(calls: int, kind: FailureKind) -> int:
    """The requests that come of calls that are all under way together."""
    asked: list[int] = []
    clock, budget = VirtualClock(seed=1), RetryBudget()

    async def send(_: Attempt) -> None:
        await let_pass(0.1)
        raise down(asked, kind)

    async def calling() -> None:
        plans = [
            RetryContext(CallState(POLICY, budget=budget, time=clock), clock=clock)
            for _ in range(calls)
        ]
        waiting = (acall(plan, send) for plan in plans)
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert [end for end in ends if not isinstance(end, RetryRouterError)] == []

    run(calling())
    return len(asked)


@pytest.mark.parametrize("kind", [FailureKind.UNAVAILABLE, FailureKind.RATE_LIMIT])
@pytest.mark.parametrize("ask", [one_after_another, all_at_once])
def test_retries_run_out_and_calls_do_not(
    ask: Callable[[int, FailureKind], int],
    kind: FailureKind,
    evidence: Evidence,
    length: Length,
) -> None:
    """However many calls there are, the budget buys a few dozen retries for them all.

    That is 35 at 14 tokens each, or 100 at the 5 that a retry after a 429 costs.
    """
    retries = 35 if kind is FailureKind.UNAVAILABLE else 100
    for calls, bar in BARS.items():
        if calls == 1_000 or length.is_long or ask is one_after_another:
            requests = ask(calls, kind)
            assert requests == calls + retries
            evidence.at_most(bar, requests / calls, words(calls))


# --- over HTTP ---


@pytest.fixture
def gateway() -> Iterator[FaultyGateway]:
    """A provider that is down."""
    with FaultyGateway() as gateway:
        gateway.always(Status(503))
        yield gateway


def gpt_router(gateway: FaultyGateway, budget: RetryBudget) -> GPTRouter:
    return GPTRouter(
        models_priority_list=[GPTRouterModel(name="gpt-4o", provider_name="openai")],
        gpt_router_api_base=gateway.url,
        gpt_router_api_key=KEY,
        max_retries=2,
        budget=budget,
        clock=FakeClock(),
    )


def openai_llm(gateway: FaultyGateway, budget: RetryBudget) -> OpenAI:
    return OpenAI(
        base_url=gateway.openai_url,
        api_key=KEY,
        max_retries=2,
        budget=budget,
        clock=FakeClock(),
    )


def chat_openai(gateway: FaultyGateway) -> ChatOpenAI:
    # A connection a request: the SDK's pool outlives the loop that it was used on.
    return ChatOpenAI(
        model="gpt-4o",
        base_url=gateway.openai_url,
        api_key=KEY,
        default_headers={"connection": "close"},
    )


def call_it(model: Runnable[Any, Any], calls: int) -> None:
    """Call it in every way there is: in a row, in threads, and in coroutines."""

    def invoke(_: object) -> None:
        with pytest.raises(RetryRouterError):
            model.invoke("Hello?")

    async def ainvoke(turns: asyncio.Semaphore) -> None:
        async with turns:
            with pytest.raises(RetryRouterError):
                await model.ainvoke("Hello?")

    async def all_together(number: int) -> None:
        turns = asyncio.Semaphore(100)
        await asyncio.gather(*(ainvoke(turns) for _ in range(number)))

    share = calls // 4
    for number in range(share):
        invoke(number)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(invoke, range(share)))
    asyncio.run(all_together(calls - 2 * share))


def test_a_sick_server_counts_no_storm(
    gateway: FaultyGateway, evidence: Evidence, length: Length
) -> None:
    """Two models, threads and event loops share one budget; the server counts."""
    calls, budget = length.of(short=1_000, long=10_000), RetryBudget()
    call_it(gpt_router(gateway, budget), calls * 3 // 4)
    call_it(openai_llm(gateway, budget), calls // 4)
    requests = len(gateway.requests)
    assert requests == calls + 35
    evidence.at_most(BARS[calls], requests / calls, words(calls))
    evidence.counted(requests, "requests over HTTP")
    if length.is_long:
        watch_others(gateway, evidence)


def watch_others(gateway: FaultyGateway, evidence: Evidence) -> None:
    """Send the others through the same outage; they wait for real."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from langchain_community.chat_models import gpt_router as theirs  # noqa: PLC0415
    community = theirs.GPTRouter(
        models_priority_list=[
            theirs.GPTRouterModel(name="gpt-4o", provider_name="openai")
        ],
        gpt_router_api_base=gateway.url,
        gpt_router_api_key=KEY,
        max_retries=3,  # It counts attempts.
    )
    others: dict[str, Runnable[Any, Any]] = {
        "ChatOpenAI": chat_openai(gateway),
        "ChatOpenAI.with_retry()": chat_openai(gateway).with_retry(),
        "langchain-community": community,
    }
    calls, many = 1_000, RunnableConfig(max_concurrency=100)
    for system, model in others.items():
        gateway.reset_log()
        asyncio.run(model.abatch(["Hello?"] * calls, many, return_exceptions=True))
        evidence.peer(system, len(gateway.requests) / calls, words(calls))


def test_a_router_spares_each_of_its_providers(
    gateway: FaultyGateway, evidence: Evidence, length: Length
) -> None:
    """Where all of a router's providers are down, each is asked about once a call."""
    calls = length.of(short=40, long=1_000)
    with FaultyGateway() as other:
        other.always(Status(503))
        router = RetryRouter(
            routes=[chat_openai(one) for one in (gateway, other)],
            retry_policy=POLICY,
            budget=RetryBudget(),
            breaker=None,
            clock=FakeClock(),
        )
        call_it(router, calls)
        requests = [len(one.requests) for one in (gateway, other)]
    # What the budget buys does not grow with the calls: 35 retries for both together.
    assert sum(requests) == 2 * calls + 35
    if length.is_long:
        evidence.at_most(BARS[calls], max(requests) / calls, words(calls))
    evidence.counted(sum(requests), "requests over HTTP")
