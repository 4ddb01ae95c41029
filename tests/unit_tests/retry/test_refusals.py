"""The circuit breaker in the way: at the beginning of a call, and in its middle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from langchain_retryrouter._gptrouter.errors import GPT_ROUTER_ERRORS
from langchain_retryrouter.circuit_breaker import BreakerState, CircuitBreaker, Permit
from langchain_retryrouter.errors import (
    CircuitOpenError,
    InvalidRequestError,
    RateLimitError,
    UnavailableError,
)
from langchain_retryrouter.failures import FailureKind
from langchain_retryrouter.policy import RetryBudget, RetryPolicy
from langchain_retryrouter.testing import FakeClock

from .engines import Drive, plan_for
from .scripted import END, Script, Source, Witness, token

either = pytest.mark.parametrize("start", [Drive.call, Drive.stream])
Start = Callable[..., Any]


def fail_elsewhere(breaker: CircuitBreaker) -> None:
    """Another call that shares the breaker fails."""
    permit = breaker.admit()
    assert isinstance(permit, Permit)
    breaker.failed(permit)


@either
def test_an_open_breaker_sends_nothing(
    drive: Drive, clock: FakeClock, start: Start
) -> None:
    """The error says when the breaker admits a probe, and that nothing was sent."""
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    fail_elsewhere(breaker)
    clock.advance(10)
    script, witness = Script("never sent"), Witness(clock)
    with pytest.raises(CircuitOpenError) as caught:
        start(drive, plan_for(clock, breaker=breaker), script, witness)
    assert str(caught.value) == (
        "nothing was sent: the circuit breaker is open for another 20.0 s"
    )
    assert caught.value.retry_after == 20
    assert caught.value.attempts == 0
    assert caught.value.may_have_run is False
    assert caught.value.is_retryable is False
    assert script.numbers == []
    assert witness.states == []
    assert clock.sleeps == []


@either
def test_the_refusal_is_of_the_callers_family(
    drive: Drive, clock: FakeClock, start: Start
) -> None:
    """The class raised is the one that the caller's `except` clauses know."""
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    fail_elsewhere(breaker)
    with pytest.raises(GPT_ROUTER_ERRORS[FailureKind.CIRCUIT_OPEN]):
        start(
            drive,
            plan_for(clock, breaker=breaker, errors=GPT_ROUTER_ERRORS),
            Script("never"),
        )


@either
def test_the_breaker_opens_under_our_own_failures(
    drive: Drive, clock: FakeClock, start: Start
) -> None:
    """When our own failure opens it, we give up at once, and pay for no retry."""
    breaker, budget = CircuitBreaker(failure_threshold=1, clock=clock), RetryBudget()
    failures = [UnavailableError(str(number)) for number in (1, 2)]
    script = Script(*failures)
    policy = RetryPolicy(max_retries=5)
    with pytest.raises(UnavailableError) as caught:
        start(drive, plan_for(clock, policy, breaker=breaker, budget=budget), script)
    assert caught.value is failures[0]
    assert caught.value.__notes__ == [
        "gave up after 1 attempt, 0.0 s waited: the circuit breaker is open"
    ]
    assert script.numbers == [1]
    assert budget.tokens == 500


@either
def test_the_breaker_opens_while_we_wait(
    drive: Drive, clock: FakeClock, start: Start
) -> None:
    """When others open it during our wait, our last error comes out, unpaid."""
    breaker, budget = CircuitBreaker(failure_threshold=2, clock=clock), RetryBudget()
    failure = UnavailableError("503")
    script = Script(failure, "never sent")
    witness = Witness(clock, lambda: fail_elsewhere(breaker))
    with pytest.raises(UnavailableError) as caught:
        start(drive, plan_for(clock, breaker=breaker, budget=budget), script, witness)
    assert caught.value is failure
    assert caught.value.attempts == 1
    assert caught.value.__notes__ == [
        "gave up after 1 attempt, 0.5 s waited: the circuit breaker is open"
    ]
    assert caught.value.is_retryable is False
    assert script.numbers == [1]
    assert budget.tokens == 500


@either
def test_another_ones_probe_is_in_the_way(
    drive: Drive, clock: FakeClock, start: Start
) -> None:
    """While somebody else's probe is under way, nothing else is sent."""
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    fail_elsewhere(breaker)
    clock.advance(30)
    breaker.admit()
    with pytest.raises(CircuitOpenError) as caught:
        start(drive, plan_for(clock, breaker=breaker), Script("never sent"))
    assert str(caught.value) == (
        "nothing was sent: the circuit breaker is half open,"
        " and another call is trying right now"
    )
    assert caught.value.retry_after == 0


@either
def test_a_door_about_to_open_is_not_open_for_no_time(
    drive: Drive, clock: FakeClock, start: Start
) -> None:
    """The last moments are rounded up: "another 0.0 s" would be no reason at all."""
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    fail_elsewhere(breaker)
    clock.advance(29.99)
    with pytest.raises(CircuitOpenError, match=r"open for another 0\.1 s$"):
        start(drive, plan_for(clock, breaker=breaker), Script("never sent"))


@either
def test_a_call_can_be_the_probe(drive: Drive, clock: FakeClock, start: Start) -> None:
    """After the recovery time a call goes through, and its success closes it."""
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    fail_elsewhere(breaker)
    clock.advance(30)
    answer = "hello" if start is Drive.call else Source(token("hello"), END)
    start(drive, plan_for(clock, breaker=breaker), Script(answer))
    assert breaker.state is BreakerState.CLOSED


@either
def test_a_call_waits_out_the_breaker_if_told_to(
    drive: Drive, clock: FakeClock, start: Start
) -> None:
    """A Retry-After beyond the recovery time ends in a probe, and not in giving up."""
    breaker = CircuitBreaker(failure_threshold=1, recovery_time=5, clock=clock)
    answer = "hello" if start is Drive.call else Source(token("hello"), END)
    script = Script(RateLimitError("429", retry_after=6.0), answer)
    start(drive, plan_for(clock, breaker=breaker), script)
    assert clock.sleeps == [6.0]
    assert breaker.state is BreakerState.CLOSED


@either
def test_a_wrong_request_says_nothing_about_the_provider(
    drive: Drive, clock: FakeClock, start: Start
) -> None:
    """A provider that finds fault with the request is alive."""
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    with pytest.raises(InvalidRequestError):
        start(
            drive, plan_for(clock, breaker=breaker), Script(InvalidRequestError("400"))
        )
    assert breaker.state is BreakerState.CLOSED
