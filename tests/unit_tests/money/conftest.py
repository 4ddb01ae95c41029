"""Routes with prices, crowds of callers, and money that a store has leased."""

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from langchain_retryrouter import (
    AttemptLog,
    GPTRouter,
    RetryRouter,
    RetryRouterError,
    Route,
    SpendLimit,
    SpendLimitError,
)
from langchain_retryrouter.spend_limits import Price, SpendReservation
from langchain_retryrouter.testing import FakeClock, FaultyGateway
from tests.support import models
from tests.unit_tests.conftest import Twin
from tests.unit_tests.stores.conftest import eventually

ASKED, ANSWERED = 11, 5  # The tokens that the gateway counts.
COST = (ASKED * 100 + ANSWERED * 1000) / 1_000_000


def new_route(gateway: FaultyGateway, name: str = "own", **fields: Any) -> Route:
    model = fields.pop("model", {})
    if isinstance(model, dict):
        model = models.chat_openai(gateway, name, stream_usage=True, **model)
    prices = {"input_price": 100, "output_price": 1000}
    return Route(**{"model": model, "name": name, **prices, **fields})


def new_router(*routes: Route, **fields: Any) -> RetryRouter:
    return RetryRouter(**{"routes": list(routes), "clock": FakeClock(), **fields})


@dataclass(frozen=True)
class Env(Twin):
    """Sync or async calls of routers over one gateway."""

    gateway: FaultyGateway

    def route(self, name: str = "own", **fields: Any) -> Route:
        return new_route(self.gateway, name, **fields)

    def log(self, way: str, router: RetryRouter | GPTRouter) -> AttemptLog:
        """The log of a call, answered or not."""
        try:
            if way == "invoke":
                return AttemptLog(self.invoke(router, "hi"))
            first, *others = self.stream(router, "hi")
            return AttemptLog(sum(others, first))
        except RetryRouterError as error:
            return AttemptLog(error)


@pytest.fixture
def env(twin: Twin, gateway: FaultyGateway) -> Env:
    """Run the test with sync calls and with async calls."""
    return Env(twin.is_async, gateway)


def crowd(*routers: RetryRouter, is_async: bool = False) -> Counter[str]:
    """How 64 calls of routers end, all at the same time."""

    def ask(number: int) -> str:
        try:
            routers[number % len(routers)].invoke("hi")
        except SpendLimitError:
            return "refused"
        return "ok"

    async def all_at_once() -> list[Any]:
        calls = [routers[0].ainvoke("hi") for _ in range(64)]
        return await asyncio.gather(*calls, return_exceptions=True)

    if is_async:
        ends = asyncio.run(all_at_once())
        errors = [end for end in ends if isinstance(end, BaseException)]
        assert all(isinstance(error, SpendLimitError) for error in errors)
        return Counter(refused=len(errors), ok=len(ends) - len(errors))
    with ThreadPoolExecutor(64) as pool:
        return Counter(pool.map(ask, range(64)))


def reserved(limit: SpendLimit, estimate: float) -> SpendReservation:
    """A reservation, once the store has leased the money."""
    found: list[SpendReservation] = []

    def is_there() -> bool:
        one = limit.reserve(Price(estimate, estimate))
        found.extend([one] if isinstance(one, SpendReservation) else [])
        return bool(found)

    eventually(is_there)
    return found[0]
