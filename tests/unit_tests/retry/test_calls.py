"""`call` and `acall`: what is sent again, what is not, and who is told."""

from __future__ import annotations

import time

import pytest

from langchain_retryrouter import errors
from langchain_retryrouter._retry.engine import RetryContext
from langchain_retryrouter.errors import BASE_ERRORS, RetryRouterError, UnavailableError
from langchain_retryrouter.failures import FailureKind
from langchain_retryrouter.policy import RetryBudget, RetryPolicy
from langchain_retryrouter.testing import FakeClock

from .engines import Drive, plan_for
from .scripted import Script, Witness


def test_an_answer_is_sent_for_once(drive: Drive, clock: FakeClock) -> None:
    """On the healthy path there is one request, no wait, and nobody to tell."""
    witness, script, plan = Witness(clock), Script("hello"), plan_for(clock)
    assert drive.call(plan, script, witness) == "hello"
    assert script.numbers == [1]
    assert witness.states == []
    assert clock.sleeps == []
    assert [record.outcome for record in plan.call_state.records] == ["ok"]


@pytest.mark.parametrize("answer", [None, 0, False, "", [], ValueError])
def test_any_answer_is_an_answer(
    drive: Drive, clock: FakeClock, answer: object
) -> None:
    """What comes back is handed out as it is, be it nothing: no value means failure."""
    script = Script(UnavailableError("503"), answer)
    assert drive.call(plan_for(clock), script) is answer


def test_attempts_are_counted_from_one(drive: Drive, clock: FakeClock) -> None:
    """Each attempt knows its number, and `max_retries` of them follow the first."""
    failures = [UnavailableError(str(number)) for number in range(5)]
    script = Script(*failures)
    with pytest.raises(UnavailableError) as caught:
        drive.call(plan_for(clock, RetryPolicy(max_retries=3)), script)
    assert caught.value is failures[3]
    assert script.numbers == [1, 2, 3, 4]
    assert caught.value.attempts == 4


def test_it_waits_what_the_policy_says(drive: Drive, clock: FakeClock) -> None:
    """Between attempts lies the policy's wait, and a Retry-After is its floor."""
    script = Script(
        UnavailableError("503"),
        errors.RateLimitError("429", retry_after=4.0),
        UnavailableError("503"),
        "hello",
    )
    assert drive.call(plan_for(clock, RetryPolicy(max_retries=3)), script) == "hello"
    assert clock.sleeps == [0.5, 4.0, 2.0]


def test_jitter_comes_from_the_clock(drive: Drive) -> None:
    """Chance is handed in, so that back-off can be tested."""
    clock = FakeClock(random=[0.5, 0.25])
    script = Script(UnavailableError("1"), UnavailableError("2"), "hello")
    drive.call(plan_for(clock, jitter=True), script)
    assert clock.sleeps == [0.25, 0.25]


@pytest.mark.parametrize("kind", FailureKind)
def test_only_what_may_pass_is_repeated(
    drive: Drive, clock: FakeClock, kind: FailureKind
) -> None:
    """A failure that another attempt cannot mend is let out at once, as it is."""
    error = BASE_ERRORS[kind]("no")
    script = Script(error, "hello")
    if error.failure.is_retryable:
        assert drive.call(plan_for(clock), script) == "hello"
        return
    with pytest.raises(type(error)) as caught:
        drive.call(plan_for(clock), script)
    assert caught.value is error
    assert script.numbers == [1]
    assert not hasattr(error, "__notes__")


def test_a_retry_is_learned_from(drive: Drive, clock: FakeClock) -> None:
    """Who sends hears of each failure that another attempt follows, and no other."""
    heard: list[RetryRouterError] = []
    failures = [UnavailableError("1"), UnavailableError("2"), UnavailableError("3")]
    plan = plan_for(clock, on_failure=heard.append)
    with pytest.raises(UnavailableError):
        drive.call(plan, Script(*failures))
    assert heard == failures[:2]


def test_the_route_is_asked_before_each_attempt(drive: Drive, clock: FakeClock) -> None:
    """The attempt log, and each error, tell which model was asked."""
    routes = iter(["gpt-4", "claude"])
    failure = UnavailableError("503")
    plan = plan_for(clock, route=lambda: next(routes))
    drive.call(plan, Script(failure, "hello"))
    assert [record.route for record in plan.call_state.records] == ["gpt-4", "claude"]
    assert failure.route == "gpt-4"


def test_a_final_failure_may_be_left_behind(drive: Drive, clock: FakeClock) -> None:
    """Who knows another model goes on where the one asked would end the call."""
    failures = [errors.NotFoundError("1"), errors.AuthenticationError("2")]
    heard: list[RetryRouterError] = []

    def should_failover(error: RetryRouterError) -> bool:
        heard.append(error)
        return isinstance(error, errors.NotFoundError)

    plan = plan_for(clock, should_failover=should_failover)
    script = Script(*failures, "never sent")
    with pytest.raises(errors.AuthenticationError):
        drive.call(plan, script)
    assert heard == failures
    assert script.numbers == [1, 2]
    assert sum(clock.sleeps) == 0


def test_who_was_asked_in_turn_is_told(drive: Drive, clock: FakeClock) -> None:
    """An error that leaves after several models names them all, and how each failed."""
    routes = iter(["gpt-4", "claude"])
    script = Script(UnavailableError("503"), errors.RateLimitError("429"))
    policy = RetryPolicy(max_retries=1)
    plan = plan_for(clock, policy, route=lambda: next(routes))
    with pytest.raises(errors.RateLimitError) as caught:
        drive.call(plan, script)
    assert caught.value.__notes__ == [
        "asked in turn: gpt-4 (unavailable), claude (rate_limit)",
        "gave up after 2 attempts, 0.5 s waited: no retries left",
    ]
    assert caught.value.route == "claude"


def test_a_success_pays_in(drive: Drive, clock: FakeClock) -> None:
    """Each retry costs the budget, and an answer gives a token back."""
    budget = RetryBudget()
    drive.call(plan_for(clock, budget=budget), Script(UnavailableError("503"), "hello"))
    assert budget.tokens == 500 - 14 + 1


def test_a_plan_needs_no_more_than_a_session(drive: Drive) -> None:
    """By default a call runs on the machine's clock, and raises our own errors."""
    plan = RetryContext(plan_for(FakeClock()).call_state)
    assert drive.call(plan, Script("hello")) == "hello"
    assert plan.errors is BASE_ERRORS
    assert plan.route() is None
    plan.on_failure(UnavailableError("nobody minds"))


# --- telling ------------------------------------------------------------------------


def test_each_retry_is_told_in_order_before_its_wait(
    drive: Drive, clock: FakeClock
) -> None:
    """`on_retry` comes once a retry, in order, and is over before the wait begins."""
    witness = Witness(clock)
    script = Script(*(UnavailableError(str(number)) for number in (1, 2, 3)), "hello")
    drive.call(plan_for(clock, RetryPolicy(max_retries=3)), script, witness)
    assert [state.attempt_number for state in witness.states] == [1, 2, 3]
    assert witness.waits_before == [0, 1, 2]
    assert len(clock.sleeps) == 3


def test_the_state_is_that_of_the_failed_attempt(
    drive: Drive, clock: FakeClock
) -> None:
    """It is tenacity's real state, and it is still true after the call is over."""
    witness = Witness(clock)
    failures = [UnavailableError("1"), errors.RateLimitError("2", retry_after=3.0)]
    drive.call(plan_for(clock), Script(*failures, "hello"), witness)
    waits = []
    for number, (state, failure) in enumerate(
        zip(witness.states, failures, strict=True), start=1
    ):
        assert state.attempt_number == number
        assert state.outcome is not None
        assert state.outcome.failed
        assert state.outcome.exception() is failure
        assert state.outcome.attempt_number == number
        assert state.next_action is not None
        assert state.next_action.sleep == state.upcoming_sleep
        waits.append(state.next_action.sleep)
    assert waits == clock.sleeps == [0.5, 3.0]
    assert [state.idle_for for state in witness.states] == [0.5, 3.5]


def test_the_state_counts_from_the_beginning_of_the_call(
    drive: Drive, clock: FakeClock
) -> None:
    """Its seconds are the whole call's, though the loop begins with a failure only."""
    sent: list[float] = []

    def fail() -> UnavailableError:
        sent.append(time.monotonic())
        return UnavailableError("503")

    witness = Witness(clock)
    began = time.monotonic()
    drive.call(plan_for(clock), Script(fail, fail, "hello"), witness)
    for state, moment in zip(witness.states, sent, strict=True):
        assert began <= state.start_time <= sent[0]
        assert state.outcome_timestamp is not None
        assert state.outcome_timestamp >= moment


def test_what_is_not_repeated_is_not_told(drive: Drive, clock: FakeClock) -> None:
    """A last failure is an error, and no retry: requests minus one are told."""
    witness = Witness(clock)
    script = Script(UnavailableError("1"), errors.InvalidRequestError("400"))
    with pytest.raises(errors.InvalidRequestError):
        drive.call(plan_for(clock), script, witness)
    assert len(witness.states) == len(script.attempts) - 1 == 1


# --- giving up ----------------------------------------------------------------------


def test_the_last_real_error_comes_out(drive: Drive, clock: FakeClock) -> None:
    """No wrapper: the very error of the last attempt, with a note that says why."""
    failures = [UnavailableError(str(number)) for number in (1, 2, 3)]
    with pytest.raises(UnavailableError) as caught:
        drive.call(plan_for(clock), Script(*failures))
    assert caught.value is failures[-1]
    assert caught.value.__cause__ is None
    assert caught.value.__notes__ == [
        "gave up after 3 attempts, 1.5 s waited: no retries left"
    ]
    assert all(not hasattr(earlier, "__notes__") for earlier in failures[:-1])


def test_nobody_retries_on_top_of_us(drive: Drive, clock: FakeClock) -> None:
    """After giving up, this instance, and only it, says not to repeat the call."""
    failures = [UnavailableError(str(number)) for number in (1, 2, 3)]
    with pytest.raises(UnavailableError) as caught:
        drive.call(plan_for(clock), Script(*failures))
    assert caught.value.is_retryable is False
    assert failures[0].is_retryable is True
    assert UnavailableError.is_retryable is True
    assert UnavailableError("new").is_retryable is True


def test_with_retries_off_others_may_retry(drive: Drive, clock: FakeClock) -> None:
    """With `max_retries=0` we are not the one who retries, and hide nothing."""
    script = Script(UnavailableError("503"))
    with pytest.raises(UnavailableError) as caught:
        drive.call(plan_for(clock, RetryPolicy(max_retries=0)), script)
    assert caught.value.is_retryable is True
    assert caught.value.attempts == 1
    assert caught.value.__notes__ == [
        "gave up after 1 attempt, 0.0 s waited: retries are off"
    ]


def test_a_server_that_asks_for_too_long_ends_the_call(
    drive: Drive, clock: FakeClock
) -> None:
    """Above `max_retry_after` the call ends at once, and the number is told."""
    script = Script(errors.RateLimitError("429", retry_after=86400.0))
    with pytest.raises(errors.RateLimitError) as caught:
        drive.call(plan_for(clock), script)
    assert clock.sleeps == []
    assert caught.value.__notes__ == [
        (
            "gave up after 1 attempt, 0.0 s waited:"
            " Retry-After of 86400 s is above max_retry_after of 60 s"
        )
    ]
    assert caught.value.is_retryable is False


def test_an_empty_budget_ends_the_call(drive: Drive, clock: FakeClock) -> None:
    """When retries can no longer be paid for, the error comes out, and says so."""
    budget = RetryBudget(capacity=20)
    script = Script(UnavailableError("1"), UnavailableError("2"))
    with pytest.raises(UnavailableError) as caught:
        drive.call(plan_for(clock, budget=budget), script)
    assert script.numbers == [1, 2]
    assert caught.value.__notes__ == [
        "gave up after 2 attempts, 0.5 s waited: retry budget empty"
    ]
    assert budget.tokens == 6


def test_an_error_of_one_call_is_no_news_to_the_next(
    drive: Drive, clock: FakeClock
) -> None:
    """A policy is shared and a session is not: each call counts its own attempts."""
    policy = RetryPolicy(max_retries=1)
    for _ in range(3):
        script = Script(UnavailableError("1"), UnavailableError("2"))
        with pytest.raises(UnavailableError) as caught:
            drive.call(plan_for(clock, policy), script)
        assert caught.value.attempts == 2
        assert len(caught.value.__notes__) == 1
