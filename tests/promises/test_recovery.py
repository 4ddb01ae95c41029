"""After an outage the service is back within seconds, and was never run over."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import httpx2
import openai
import pytest
from pydantic import SecretStr

from langchain_retryrouter import CircuitBreaker, RetryBudget, RetryPolicy
from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.engine import Attempt, RetryContext, acall
from langchain_retryrouter.errors import BASE_ERRORS
from langchain_retryrouter.failures import FailureKind
from tests.promises.evidence import Evidence, Length, Promise
from tests.promises.overload import (
    Client,
    How,
    Outage,
    Refused,
    Server,
    live_through,
)
from tests.promises.virtual_time import VirtualClock

PROMISE = Promise(
    title="Recovery",
    number="goodput back to ≥ 95 % within ≤ 5 s, peak ≤ 2 times what is offered",
    why=(
        "70 calls a second meet a server that can do 100, and has an outage of 30 s."
        " Retries that go on asking it keep it down for good, since it works on answers"
        " that nobody waits for any longer. Simulated on a virtual clock: a first-in-"
        "first-out queue of 2 s, clients who wait for 2 s. The default policy keeps it"
        " with a shared `RetryBudget()`. Where a server queues without limit, a budget"
        " alone does not; a `CircuitBreaker(recovery_time=2)` with it does. A breaker"
        " is as late as its `recovery_time`, which is 30 s unless given."
    ),
)
A_QUEUE: Final = 200
"""Two seconds of work: what the clients' patience lasts for."""
NO_LIMIT: Final = 1_000_000
KINDS: Final = {
    Refused: FailureKind.UNAVAILABLE,
    TimeoutError: FailureKind.TIMEOUT,
}
BACK: Final = "seconds until goodput is back"
PEAK: Final = "the busiest second, in multiples of what is offered"
WORDS: Final = {
    ("refuses", A_QUEUE): "the server refuses",
    ("hangs", A_QUEUE): "the server hangs",
    ("hangs", NO_LIMIT): "the server hangs, and queues without limit",
}


def ours(
    seed: int, budget: RetryBudget | None, breaker: CircuitBreaker | None = None
) -> Client:
    """A call as all our models make it, with the default policy."""
    policy, clock = RetryPolicy(), VirtualClock(seed)

    async def client(server: Server) -> None:
        async def send(_: Attempt) -> None:
            try:
                await server.ask()
            except (Refused, TimeoutError) as error:
                raise BASE_ERRORS[KINDS[type(error)]](repr(error)) from error

        call_state = CallState(policy, budget=budget, breaker=breaker, time=clock)
        await acall(RetryContext(call_state, clock=clock), send)

    return client


@pytest.mark.parametrize("how", ["refuses", "hangs"])
def test_with_a_budget_the_service_is_back(
    how: How, evidence: Evidence, length: Length
) -> None:
    """Retries that are paid for by answers leave room for the calls themselves."""
    outage = Outage(how, A_QUEUE, watched=length.of(short=7, long=60))
    for seed in range(length.of(short=1, long=10)):
        course = live_through(outage, partial(ours, seed, RetryBudget()))
        take_down(evidence, outage, course.recovered_after, course.peak)
    evidence.counted(length.of(short=1, long=10), "outages lived through")
    if length.is_long:
        watch_others(evidence, how, A_QUEUE)


def test_with_an_eager_breaker_no_queue_is_too_long(
    evidence: Evidence, length: Length
) -> None:
    """Nobody queues at a server that does not answer, and the end is soon found."""
    lengths = [30.0] if not length.is_long else [30 + tenth / 4 for tenth in range(13)]
    for seconds in lengths:
        outage = Outage("hangs", NO_LIMIT, length.of(short=7, long=60), seconds)
        course = live_through(
            outage, lambda: ours(1, RetryBudget(), CircuitBreaker(recovery_time=2))
        )
        take_down(evidence, outage, course.recovered_after, course.peak)
    evidence.counted(len(lengths), "outages lived through")
    if length.is_long:
        watch_others(evidence, "hangs", NO_LIMIT)


def take_down(
    evidence: Evidence, outage: Outage, recovered_after: float, peak: float
) -> None:
    """Hold what was seen of an outage to the promise."""
    words = WORDS[outage.how, outage.queue]
    evidence.at_most(5, recovered_after, f"{BACK}; {words}")
    evidence.at_most(2, peak, f"{PEAK}; {words}")


# --- the peers ---


def openai_sdk() -> Client:
    """The SDK's own client, with its own retries and waits."""

    class Line(httpx2.AsyncBaseTransport):
        server: Server

        async def handle_async_request(
            self, request: httpx2.Request
        ) -> httpx2.Response:
            try:
                await self.server.ask()
            except Refused:
                return httpx2.Response(503)
            except TimeoutError as error:
                raise httpx2.ReadTimeout(str(error), request=request) from error
            return httpx2.Response(200, json={"object": "list", "data": []})

    line = Line()
    sdk = openai.AsyncOpenAI(
        api_key="any", http_client=httpx2.AsyncClient(transport=line)
    )

    async def client(server: Server) -> None:
        line.server = server
        await sdk.models.list()

    return client


def community() -> Client:
    """langchain-community's GPTRouter, with its own decorator for retries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from gpt_router import exceptions  # noqa: PLC0415
        from langchain_community.chat_models import gpt_router  # noqa: PLC0415

    class Line:
        server: Server

        async def agenerate(self, **_: Any) -> None:
            try:
                await self.server.ask()
            except Refused as error:
                raise exceptions.GPTRouterInternalServerError(str(error)) from error
            except TimeoutError as error:
                raise exceptions.GPTRouterApiTimeoutError(str(error)) from error

    line = Line()
    model = gpt_router.GPTRouterModel(name="gpt-4o", provider_name="chat_openai")
    llm = gpt_router.GPTRouter(
        models_priority_list=[model], gpt_router_api_key=SecretStr("any")
    )
    llm.client = line

    async def client(server: Server) -> None:
        line.server = server
        await gpt_router.acompletion_with_retry(llm, [model], messages=[])

    return client


OTHERS: Final[dict[str, Callable[[], Client]]] = {
    "openai": openai_sdk,
    "langchain-community": community,
    "ours, no budget": lambda: ours(1, None),
    "ours, RetryBudget()": lambda: ours(1, RetryBudget()),
    "ours, CircuitBreaker()": lambda: ours(1, RetryBudget(), CircuitBreaker()),
}
"""Other clients, and ours with settings that do not keep the promise everywhere."""


def watch_others(evidence: Evidence, how: How, queue: int) -> None:
    """Send the others through the same outage."""
    # 33 s, or a breaker of 30 s would end with the outage by chance.
    outage = Outage(how, queue, watched=60, seconds=33)
    words = WORDS[how, queue]
    for system, new_client in OTHERS.items():
        course = live_through(outage, new_client)
        evidence.peer(system, course.recovered_after, f"{BACK}; {words}")
        evidence.peer(system, course.peak, f"{PEAK}; {words}")
