"""Again, and when, or not at all, and why."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_retryrouter._retry.call_state import FailedAttempt, Retry, Stop, decide
from langchain_retryrouter.failures import Failure, FailureKind
from langchain_retryrouter.policy import RetryPolicy

RATE_LIMIT = FailureKind.RATE_LIMIT


def situation(
    kind: FailureKind = FailureKind.UNAVAILABLE, **known: Any
) -> FailedAttempt:
    """A failed first attempt of which `known` is known."""
    failure = Failure(kind, **known.pop("failure", {}))
    facts = {"attempt": 1, "remaining": None, "random": 0.5, **known}
    return FailedAttempt(failure=failure, **facts)


@pytest.mark.parametrize(
    "kind", [k for k in FailureKind if not Failure(k).is_retryable]
)
def test_a_final_failure_needs_no_reason(kind: FailureKind) -> None:
    """What another attempt cannot mend is let out as it is: the error says it all."""
    assert decide(RetryPolicy(), situation(kind)) == Stop("")


@pytest.mark.parametrize("kind", [k for k in FailureKind if Failure(k).is_retryable])
def test_a_passing_failure_is_repeated(kind: FailureKind) -> None:
    """Every kind that may pass is repeated after its back-off."""
    assert decide(RetryPolicy(), situation(kind)) == Retry(0.75)


@pytest.mark.parametrize(
    ("known", "decision"),
    [
        ({}, Retry(0.0)),
        ({"failure": {"retry_after": 600.0}}, Retry(0.0)),
        ({"attempt": 3}, Stop("no retries left")),
    ],
)
def test_a_final_failure_on_one_route_leads_to_the_next_at_once(
    known: dict[str, Any], decision: Any
) -> None:
    """Another route owes no wait for what this one cannot do; it counts as a retry."""
    left_behind = situation(FailureKind.QUOTA, will_failover=True, **known)
    assert decide(RetryPolicy(max_retries=2), left_behind) == decision


def test_a_passing_failure_keeps_its_wait_on_any_route() -> None:
    """Leaving a route behind spares no back-off that the failure itself asks for."""
    assert decide(RetryPolicy(), situation(will_failover=True)) == Retry(0.75)


def test_a_server_that_says_no_is_obeyed() -> None:
    """`x-should-retry: false` ends the call, and the reason names it."""
    told = situation(failure={"should_retry": False})
    assert decide(RetryPolicy(), told) == Stop("the server said not to retry")


@pytest.mark.parametrize(
    ("max_retries", "attempt", "decision"),
    [
        (0, 1, Stop("retries are off")),
        (1, 1, Retry(0.75)),
        (1, 2, Stop("no retries left")),
        (3, 3, Retry(3.0)),
        (3, 4, Stop("no retries left")),
        (3, 5, Stop("no retries left")),
    ],
)
def test_retries_are_counted(max_retries: int, attempt: int, decision: Any) -> None:
    """`max_retries` further attempts follow the first, and not one more."""
    policy = RetryPolicy(max_retries=max_retries)
    assert decide(policy, situation(attempt=attempt)) == decision


@pytest.mark.parametrize(
    ("retry_after", "decision"),
    [
        (None, Retry(0.75)),
        (0.0, Retry(0.75)),
        (3.0, Retry(3.75)),
        (60.0, Retry(60.75)),
        (60.1, Stop("Retry-After of 60.1 s is above max_retry_after of 60 s")),
        (86400.0, Stop("Retry-After of 86400 s is above max_retry_after of 60 s")),
        (1e63, Stop("Retry-After of 1e+63 s is above max_retry_after of 60 s")),
    ],
)
def test_too_long_a_retry_after_is_not_waited_for(
    retry_after: float | None, decision: Any
) -> None:
    """Up to `max_retry_after` it is a floor; above it the call ends, and says so."""
    told = situation(RATE_LIMIT, failure={"retry_after": retry_after})
    assert decide(RetryPolicy(), told) == decision


@pytest.mark.parametrize(
    ("remaining", "decision"),
    [
        (0.8, Retry(0.75)),
        (0.75, Stop("a wait of 0.8 s would outlast the deadline of 2 s")),
        (0.1, Stop("a wait of 0.8 s would outlast the deadline of 2 s")),
        (0.0, Stop("a wait of 0.8 s would outlast the deadline of 2 s")),
        (-1.0, Stop("a wait of 0.8 s would outlast the deadline of 2 s")),
    ],
)
def test_no_wait_is_begun_that_cannot_end(remaining: float, decision: Any) -> None:
    """A wait that would reach the deadline is not begun: no attempt could follow it."""
    policy = RetryPolicy(deadline=2)
    assert decide(policy, situation(remaining=remaining)) == decision


def test_the_first_reason_is_the_one_told() -> None:
    """With several reasons to give up, the one that no patience could mend is told."""
    policy = RetryPolicy(max_retries=1, deadline=1)
    hopeless: dict[str, Any] = {"attempt": 2, "remaining": 0.0}
    too_long = {"retry_after": 99.0}
    assert decide(policy, situation(failure=too_long, **hopeless)) == Stop(
        "no retries left"
    )
    assert decide(policy, situation(failure=too_long, remaining=0.0)) == Stop(
        "Retry-After of 99 s is above max_retry_after of 60 s"
    )


@given(
    st.sampled_from(FailureKind),
    st.none() | st.floats(0, 1e9),
    st.integers(1, 10),
    st.none() | st.floats(-10, 1e9),
    st.floats(0, 1, exclude_max=True),
)
def test_a_retry_keeps_every_promise(
    kind: FailureKind,
    retry_after: float | None,
    attempt: int,
    remaining: float | None,
    random: float,
) -> None:
    """Whatever happens, a retry is of a passing failure, in number, floor and time."""
    policy = RetryPolicy(max_retries=5, deadline=1e9)
    facts = situation(
        kind,
        failure={"retry_after": retry_after},
        attempt=attempt,
        remaining=remaining,
        random=random,
    )
    decision = decide(policy, facts)
    if isinstance(decision, Retry):
        assert facts.failure.is_retryable
        assert attempt <= policy.max_retries
        assert (retry_after or 0.0) <= min(decision.delay, policy.max_retry_after)
        assert remaining is None or decision.delay < remaining
