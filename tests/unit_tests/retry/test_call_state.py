"""One call's state: what opens a breaker, what a hedge costs, what may be continued."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_retryrouter import (
    CircuitBreaker,
    FailureKind,
    RetryBudget,
    RetryPolicy,
)
from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.health import RouteState
from langchain_retryrouter.failures import FAILURE_ACTIONS, Failure
from langchain_retryrouter.testing import FakeClock

UNAVAILABLE = Failure(FailureKind.UNAVAILABLE, status_code=503)


def routed(
    clock: FakeClock, *names: str, policy: Any = None, **parts: Any
) -> CallState:
    """A call with routes; `breakers` are theirs by name."""
    breakers = parts.pop("breakers", {})
    routes = [RouteState(name, breakers.get(name)) for name in names]
    policy = RetryPolicy(jitter=False, **(policy or {}))
    return CallState(policy, routes, time=clock, actions=FAILURE_ACTIONS, **parts)


@pytest.mark.parametrize(("seconds", "is_open"), [(60.0, False), (61.0, True)])
def test_a_retry_after_that_is_too_long_opens_the_breaker(
    clock: FakeClock, seconds: float, *, is_open: bool
) -> None:
    """No call asks a provider before the time that it named."""
    breaker = CircuitBreaker(clock=clock)
    state = CallState(RetryPolicy(), time=clock, breaker=breaker)
    state.admit()
    state.failed(Failure(FailureKind.RATE_LIMIT, retry_after=seconds))
    assert breaker.retry_after == (seconds if is_open else 0)


def test_a_hedge_needs_another_route_and_tokens(clock: FakeClock) -> None:
    """It is paid for like a retry, and skips routes whose breakers refuse."""
    single = routed(clock, "a")
    single.admit()
    assert single.hedge() is None
    poor = routed(clock, "a", "b", budget=RetryBudget(capacity=13))
    poor.admit()
    assert poor.hedge() is None
    half_open = CircuitBreaker(clock=clock)
    half_open.open_for(30)
    clock.advance(30)
    half_open.admit()
    budget = RetryBudget()
    blocked = routed(clock, "a", "b", breakers={"b": half_open}, budget=budget)
    blocked.admit()
    assert blocked.hedge() is None
    assert budget.tokens == 500
    state = routed(clock, "a", "b", budget=budget)
    state.admit()
    assert state.hedge() == 1
    state.cancelled()
    assert budget.tokens == 486
    log = [(record.route, record.outcome) for record in state.records]
    assert log == [("a", "cancelled"), ("b", "cancelled")]


def test_a_failure_of_the_call_cancels_its_hedge(clock: FakeClock) -> None:
    """If the attempt runs out of time, the second one holds no permit either."""
    breaker = CircuitBreaker(clock=clock)
    breaker.open_for(30)
    clock.advance(30)
    state = routed(clock, "a", "b", breakers={"b": breaker})
    state.admit()
    assert state.hedge() == 1
    state.failed(Failure(FailureKind.TIMEOUT))
    log = [(record.route, record.outcome) for record in state.records]
    assert log == [("a", "timeout"), ("b", "cancelled")]
    assert state.admit() is None


def test_an_interrupted_stream_continues_where_it_may(clock: FakeClock) -> None:
    """On the next route for free, on one asked before as a paid retry, or not."""
    budget = RetryBudget(capacity=14)
    state = routed(clock, "a", "b", policy={"max_retries": 1}, budget=budget)
    for can_resume, route, tokens in ((True, "b", 14), (True, "a", 0), (True, "b", 0)):
        state.admit()
        state.stream_interrupted(UNAVAILABLE)
        assert state.resume() is can_resume
        assert (state.next_route, budget.tokens) == (route, tokens)
    state.admit()
    state.stream_interrupted(UNAVAILABLE)
    assert not state.resume()
    late = routed(clock, "a", "b", policy={"deadline": 1})
    late.admit()
    clock.advance(1)
    assert not late.resume()
