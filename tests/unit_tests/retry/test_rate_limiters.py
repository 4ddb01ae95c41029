"""A turn at the rate limiter: before the attempt, and within the call's deadline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from langchain_retryrouter._gptrouter.errors import GPT_ROUTER_ERRORS
from langchain_retryrouter.circuit_breaker import CircuitBreaker, Permit
from langchain_retryrouter.errors import (
    APITimeoutError,
    CircuitOpenError,
    RateLimitError,
    UnavailableError,
)
from langchain_retryrouter.policy import RetryPolicy
from langchain_retryrouter.testing import FakeClock

from .engines import Drive, plan_for
from .scripted import Script, one_turn

Answer: TypeAlias = object
"""What a limiter answers: yes or no, or whatever a foreign one says."""

YES, NO = True, False


class Turnstile:
    """A rate limiter that answers as written, the last answer for ever."""

    def __init__(
        self, *answers: Answer, when_asked: Callable[[], object] = lambda: None
    ) -> None:
        """Do `when_asked` each time."""
        self._answers = answers
        self._when_asked = when_asked
        self.asked: list[bool] = []

    def acquire(self, *, blocking: bool = True) -> Any:
        """Whether a request may be sent."""
        self.asked.append(blocking)
        self._when_asked()
        return self._answers[min(len(self.asked), len(self._answers)) - 1]

    async def aacquire(self, *, blocking: bool = True) -> Any:
        """Async variant of `acquire`."""
        await one_turn()
        return self.acquire(blocking=blocking)


def test_each_attempt_takes_a_turn(drive: Drive, clock: FakeClock) -> None:
    """Without a deadline the limiter is let wait, once before each attempt."""
    limiter, script = Turnstile(YES), Script(UnavailableError("503"), "hello")
    assert drive.call(plan_for(clock, rate_limiter=limiter), script) == "hello"
    assert limiter.asked == [True, True]
    assert clock.sleeps == [0.5]


@pytest.mark.parametrize("answer", [None, 0, 1, "now"])
@pytest.mark.parametrize("limits", [{}, {"deadline": 5}])
def test_only_false_is_a_no(
    drive: Drive, clock: FakeClock, answer: Answer, limits: dict[str, Any]
) -> None:
    """A limiter of another make may answer nothing at all, and means yes by it."""
    limiter, script = Turnstile(answer), Script("hello")
    plan = plan_for(clock, RetryPolicy(**limits), rate_limiter=limiter)
    assert drive.call(plan, script) == "hello"
    assert len(limiter.asked) == 1
    assert clock.sleeps == []


def test_with_a_deadline_it_is_asked_again_and_again(
    drive: Drive, clock: FakeClock
) -> None:
    """Ten times a second, never let wait; the attempt has the time that is left."""
    limiter, script = Turnstile(NO, NO, NO, YES), Script("hello")
    plan = plan_for(clock, RetryPolicy(deadline=5), rate_limiter=limiter)
    assert drive.call(plan, script) == "hello"
    assert limiter.asked == [False] * 4
    assert clock.sleeps == [0.1] * 3
    assert script.timeouts == [pytest.approx(4.7)]


def test_no_look_comes_after_the_deadline(drive: Drive, clock: FakeClock) -> None:
    """The last wait ends with the deadline; then it is over, and nothing was sent."""
    limiter, script = Turnstile(NO), Script("never sent")
    plan = plan_for(
        clock,
        RetryPolicy(deadline=0.25),
        rate_limiter=limiter,
        errors=GPT_ROUTER_ERRORS,
    )
    with pytest.raises(APITimeoutError) as caught:
        drive.call(plan, script)
    assert str(caught.value) == (
        "nothing was sent: the rate limiter gave no turn within 0.25 s"
    )
    assert caught.value.__notes__ == [
        "gave up after 0 attempts, 0.0 s waited: the deadline is over"
    ]
    assert clock.sleeps == [0.1, 0.1, pytest.approx(0.05)]
    assert script.numbers == []
    assert caught.value.attempts == 0
    assert caught.value.may_have_run is False
    assert caught.value.is_retryable is False
    assert type(caught.value) in GPT_ROUTER_ERRORS.values()


def test_a_limiter_that_says_no_after_its_wait(drive: Drive, clock: FakeClock) -> None:
    """A limiter with a limit of its own is heard: a rate limit, and nothing sent."""
    script = Script("never sent")
    plan = plan_for(clock, rate_limiter=Turnstile(NO), errors=GPT_ROUTER_ERRORS)
    with pytest.raises(RateLimitError) as caught:
        drive.call(plan, script)
    assert str(caught.value) == "nothing was sent: the rate limiter gave no turn"
    assert caught.value.__notes__ == [
        "gave up after 0 attempts, 0.0 s waited: the rate limiter gave no turn"
    ]
    assert script.numbers == []
    assert caught.value.may_have_run is False
    assert caught.value.is_retryable is False
    assert type(caught.value) in GPT_ROUTER_ERRORS.values()


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({}, "0.5 s waited: the rate limiter gave no turn"),
        ({"deadline": 5}, "0.5 s waited: the deadline is over"),
    ],
)
def test_no_turn_for_a_retry_leaves_the_real_error(
    drive: Drive, clock: FakeClock, limits: dict[str, Any], reason: str
) -> None:
    """When it is a retry that gets no turn, what made it necessary comes out."""
    failure = UnavailableError("503")
    script = Script(failure, "never sent")
    plan = plan_for(clock, RetryPolicy(**limits), rate_limiter=Turnstile(YES, NO))
    with pytest.raises(UnavailableError) as caught:
        drive.call(plan, script)
    assert caught.value is failure
    assert caught.value.__notes__ == [f"gave up after 1 attempt, {reason}"]
    assert script.numbers == [1]
    assert [record.outcome for record in plan.call_state.records] == ["unavailable"]


def test_an_open_breaker_takes_no_turn(drive: Drive, clock: FakeClock) -> None:
    """Where nothing would be sent, nobody is made to wait for a turn."""
    breaker, limiter = CircuitBreaker(failure_threshold=1, clock=clock), Turnstile(YES)
    permit = breaker.admit()
    assert isinstance(permit, Permit)
    breaker.failed(permit)
    plan = plan_for(clock, breaker=breaker, rate_limiter=limiter)
    with pytest.raises(CircuitOpenError):
        drive.call(plan, Script("never sent"))
    assert limiter.asked == []


def test_a_wait_for_a_turn_is_no_part_of_an_attempt(
    drive: Drive, clock: FakeClock
) -> None:
    """A turn that was long in coming is not written down as a slow answer."""
    limiter = Turnstile(YES, when_asked=lambda: clock.advance(60))
    plan = plan_for(clock, rate_limiter=limiter)
    drive.call(plan, Script("hello"))
    assert [record.seconds for record in plan.call_state.records] == [0]
