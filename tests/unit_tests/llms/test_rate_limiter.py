"""`rate_limiter`: one for all attempts of all calls that share it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from langchain_core.rate_limiters import BaseRateLimiter, InMemoryRateLimiter

from langchain_retryrouter import OpenAIChat
from langchain_retryrouter.testing import (
    FaultyGateway,
    Reset,
    Status,
)

from .conftest import NewLLM


class Turnstile(BaseRateLimiter):
    """Lets every request through, and records who asked, and how many were sent."""

    def __init__(self, gateway: FaultyGateway) -> None:
        self._gateway = gateway
        self.asked: list[tuple[str, bool, int]] = []

    def acquire(self, *, blocking: bool = True, twin: str = "sync") -> bool:
        self.asked.append((twin, blocking, len(self._gateway.requests)))
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        return self.acquire(blocking=blocking, twin="async")


@pytest.fixture
def turnstile(gateway: FaultyGateway) -> Turnstile:
    """A limiter that lets every request through."""
    return Turnstile(gateway)


def test_each_attempt_takes_a_turn(
    twin: Any,
    new_any: NewLLM,
    gateway: FaultyGateway,
    turnstile: Turnstile,
    method: str,
) -> None:
    """The limiter is asked once before each request, retries included."""
    gateway.script(Status(503), Reset())
    getattr(twin, method)(new_any(rate_limiter=turnstile), "hi")
    name = "async" if twin.is_async else "sync"
    assert turnstile.asked == [(name, True, 0), (name, True, 1), (name, True, 2)]
    assert len(gateway.requests) == 3


def test_each_request_of_a_batch_takes_a_turn(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway, turnstile: Turnstile
) -> None:
    """Turns are for requests: twenty prompts of one request take one."""
    twin.batch(new_llm(rate_limiter=turnstile, batch_size=2), ["hi"] * 3)
    assert len(turnstile.asked) == len(gateway.requests) == 2
    twin.batch(new_llm(OpenAIChat, rate_limiter=turnstile), ["hi"] * 3)
    assert len(turnstile.asked) == len(gateway.requests) == 5


def test_the_limiter_is_shared_by_copies(new_llm: NewLLM) -> None:
    """A copy asks the same limiter: two of them would let twice as much through."""
    limiter = InMemoryRateLimiter(requests_per_second=1)
    llm = new_llm(rate_limiter=limiter)
    assert copy.deepcopy(llm).rate_limiter is limiter
    assert llm.model_copy().rate_limiter is limiter
    assert "rate_limiter" not in llm.model_dump()
