"""An outage seen from the provider: how often it is asked, and how soon again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_retryrouter._retry.call_state import Retry, RoutedCallState, RouteState
from langchain_retryrouter.circuit_breaker import CircuitBreaker
from langchain_retryrouter.failures import Failure, FailureKind
from langchain_retryrouter.policy import RetryPolicy
from langchain_retryrouter.testing import FakeClock

UNAVAILABLE = Failure(FailureKind.UNAVAILABLE, status_code=503)
OUTAGE, CALLS, PACE = 60.0, 25, 4.0


def live_through(breaker: CircuitBreaker, random: float) -> list[tuple[float, str]]:
    """Calls at a steady pace while the first route is down for a minute.

    Returns:
        Time and route of every attempt.
    """
    clock = FakeClock(random=random)
    route_states = [
        RouteState("primary", breaker),
        RouteState("backup", breaker.clone()),
    ]
    asked: list[tuple[float, str]] = []
    for number in range(CALLS):
        clock.advance(max(0.0, number * PACE - clock.monotonic()))
        call_state = RoutedCallState(
            RetryPolicy(max_retries=2), route_states, time=clock
        )
        while call_state.admit() is None:
            now, route = clock.monotonic(), str(call_state.route)
            asked.append((now, route))
            if route == "backup" or now >= OUTAGE:
                call_state.succeeded()
                break
            decision = call_state.failed(UNAVAILABLE)
            assert isinstance(decision, Retry)
            clock.sleep(decision.delay)
    return asked


@pytest.mark.parametrize("recovery_jitter", [0.0, 0.1])
@given(random=st.floats(0, 1, exclude_max=True))
def test_a_sick_provider_is_left_alone_and_found_again(
    random: float, recovery_jitter: float
) -> None:
    """Three calls open the breaker, then only probes reach the sick provider."""
    breaker = CircuitBreaker(
        failure_threshold=3, recovery_time=30, recovery_jitter=recovery_jitter
    )
    asked = live_through(breaker, random)
    at_primary = [now for now, route in asked if route == "primary"]
    in_outage = [now for now in at_primary if now < OUTAGE]
    assert len(in_outage) <= 9
    back = min(now for now in at_primary if now >= OUTAGE)
    assert back <= OUTAGE + 30
    assert [route for now, route in asked if now >= back] == ["primary"] * (
        len(asked) - len([now for now, _ in asked if now < back])
    )
    answered = [route for now, route in asked if route == "backup" or now >= OUTAGE]
    assert len(answered) == CALLS
