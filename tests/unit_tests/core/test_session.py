"""What one call learns, and what it takes from budget and breaker and gives back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_retryrouter._retry.call_state import CallState, Retry, Stop
from langchain_retryrouter.circuit_breaker import BreakerState, CircuitBreaker, Refusal
from langchain_retryrouter.failures import Failure, FailureKind
from langchain_retryrouter.policy import RetryBudget, RetryPolicy
from langchain_retryrouter.testing import FakeClock

UNAVAILABLE = Failure(FailureKind.UNAVAILABLE, status_code=503)
RATE_LIMIT = Failure(FailureKind.RATE_LIMIT, status_code=429)
BAD_REQUEST = Failure(FailureKind.INVALID_REQUEST, status_code=400)


def opened(clock: FakeClock, **numbers: Any) -> CircuitBreaker:
    """A breaker that has just opened."""
    breaker = CircuitBreaker(**{"failure_threshold": 1, **numbers})
    call_state = CallState(RetryPolicy(), breaker=breaker, time=clock)
    call_state.admit()
    call_state.failed(UNAVAILABLE)
    return breaker


def test_the_itinerary_names_routes_where_there_were_several() -> None:
    """An error can tell who was asked in turn; with one route there is nothing to."""
    call_state = CallState(RetryPolicy(), time=FakeClock())
    call_state.admit("gpt-4")
    call_state.failed(UNAVAILABLE)
    call_state.admit("gpt-4")
    call_state.failed(Failure(FailureKind.NOT_FOUND), will_failover=True)
    assert call_state.routes_tried() == ""
    call_state.admit("claude")
    call_state.succeeded()
    assert call_state.routes_tried() == (
        "gpt-4 (unavailable), gpt-4 (not_found), claude (ok)"
    )


# --- the ledger ---------------------------------------------------------------------


def test_the_ledger_tells_every_attempt() -> None:
    """Route, outcome, seconds, wait: what happened can be read off afterwards."""
    clock = FakeClock()
    call_state = CallState(RetryPolicy(jitter=False), time=clock)
    call_state.admit("gpt-4")
    clock.advance(1.25)
    call_state.failed(UNAVAILABLE)
    clock.sleep(1.5)
    call_state.admit()
    clock.advance(2)
    call_state.succeeded()
    assert call_state.attempt_log() == {
        "attempts": [
            {
                "attempt": 1,
                "outcome": "unavailable",
                "seconds": 1.25,
                "wait": 1.5,
                "route": "gpt-4",
                "status_code": 503,
            },
            {"attempt": 2, "outcome": "ok", "seconds": 2.0, "wait": 0.0},
        ]
    }
    assert (call_state.attempts, call_state.waited) == (2, 1.5)


def test_the_ledger_is_exact_to_the_microsecond() -> None:
    """Digits that no clock keeps are left out, and nothing is cut off before them."""
    clock = FakeClock(random=1 / 3)
    call_state = CallState(RetryPolicy(initial_delay=1.0), time=clock)
    call_state.admit()
    clock.advance(2 / 3)
    call_state.failed(UNAVAILABLE)
    (line,) = call_state.attempt_log()["attempts"]
    assert (line["seconds"], line["wait"]) == (0.666667, 0.333333)


def test_the_ledger_is_json_in_every_state() -> None:
    """A ledger goes into `response_metadata`, so it is JSON at any moment."""
    call_state = CallState(RetryPolicy(), time=FakeClock())
    assert json.loads(json.dumps(call_state.attempt_log())) == {"attempts": []}
    call_state.admit()
    (line,) = json.loads(json.dumps(call_state.attempt_log()))["attempts"]
    assert line == {"attempt": 1, "outcome": "pending", "seconds": 0.0, "wait": 0.0}


def test_the_route_is_that_of_the_last_attempt() -> None:
    """Which model was asked is known from the first attempt on, and moves with each."""
    call_state = CallState(RetryPolicy(), time=FakeClock())
    assert call_state.route is None
    for route in ("gpt-4", None, "claude"):
        call_state.admit(route)
        assert call_state.route == route
        call_state.failed(UNAVAILABLE)


def test_it_runs_on_the_machines_clock_by_default() -> None:
    """Nobody who does not test needs to hand in a clock."""
    call_state = CallState(RetryPolicy(deadline=100))
    call_state.admit()
    call_state.succeeded()
    remaining = call_state.remaining()
    assert remaining is not None
    assert 0 < remaining <= 100
    assert call_state.records[0].seconds >= 0


# --- decisions ----------------------------------------------------------------------


def test_one_decision_per_failure() -> None:
    """Each failure is decided once, and the decision can be read until the next."""
    call_state = CallState(RetryPolicy(max_retries=1, jitter=False), time=FakeClock())
    assert call_state.decision is None
    call_state.admit()
    assert call_state.failed(UNAVAILABLE) == Retry(1.5) == call_state.decision
    call_state.admit()
    assert (
        call_state.failed(UNAVAILABLE) == Stop("no retries left") == call_state.decision
    )
    assert call_state.waited == 1.5


def test_chance_comes_from_the_clock() -> None:
    """The dice are handed in, one throw per failure."""
    call_state = CallState(RetryPolicy(), time=FakeClock(random=[0.0, 0.5]))
    call_state.admit()
    assert call_state.failed(UNAVAILABLE) == Retry(0.0)
    call_state.admit()
    assert call_state.failed(UNAVAILABLE) == Retry(1.5)


def test_the_deadline_runs_from_the_beginning() -> None:
    """One number over all attempts and waits, from the moment the call began."""
    clock = FakeClock(monotonic=50)
    call_state = CallState(RetryPolicy(deadline=10), time=clock)
    assert call_state.remaining() == 10
    call_state.admit()
    clock.advance(4)
    call_state.failed(UNAVAILABLE)
    clock.sleep(1)
    call_state.admit()
    assert call_state.remaining() == 5
    clock.advance(7)
    assert call_state.remaining() == -2
    assert call_state.failed(UNAVAILABLE) == Stop(
        "a wait of 1.5 s would outlast the deadline of 10 s"
    )


def test_without_a_deadline_nothing_remains_to_be_counted() -> None:
    """No deadline is no number, not a large one."""
    call_state = CallState(RetryPolicy(), time=FakeClock())
    call_state.admit()
    call_state.failed(UNAVAILABLE)
    assert call_state.remaining() is None
    assert call_state.deadline_exceeded() is None


def test_a_slow_witness_can_outlast_the_wait() -> None:
    """If telling of a retry takes so long that its wait no longer fits, it is over."""
    clock = FakeClock()
    budget = RetryBudget()
    policy = RetryPolicy(deadline=10, jitter=False)
    call_state = CallState(policy, budget=budget, time=clock)
    call_state.admit()
    call_state.failed(UNAVAILABLE)
    assert call_state.deadline_exceeded() is None
    clock.advance(8)
    assert call_state.deadline_exceeded() is None
    clock.advance(0.5)
    assert call_state.deadline_exceeded() == Stop("the deadline of 10 s is over")
    assert call_state.decision == Stop("the deadline of 10 s is over")
    assert call_state.waited == 0
    assert budget.tokens == 500
    assert call_state.deadline_exceeded() is None


@pytest.mark.parametrize(
    ("will_failover", "decision"), [(True, Retry(0.0)), (False, Stop(""))]
)
def test_what_is_final_here_is_left_for_another_route(
    will_failover: bool, decision: object
) -> None:
    """A caller who asks another route next is not held up by what this one refused."""
    call_state = CallState(RetryPolicy(), time=FakeClock())
    call_state.admit()
    failure = Failure(FailureKind.NOT_FOUND)
    assert call_state.failed(failure, will_failover=will_failover) == decision


# --- the budget ---------------------------------------------------------------------


def test_a_retry_is_paid_for_when_it_is_scheduled() -> None:
    """The price is gone before the wait, so that calls which wait are counted."""
    budget = RetryBudget()
    call_state = CallState(RetryPolicy(), budget=budget, time=FakeClock())
    call_state.admit()
    assert budget.tokens == 500
    call_state.failed(UNAVAILABLE)
    assert budget.tokens == 486
    call_state.admit()
    call_state.failed(RATE_LIMIT)
    assert budget.tokens == 481
    call_state.admit()
    call_state.succeeded()
    assert budget.tokens == 482


@pytest.mark.parametrize("failure", [BAD_REQUEST, Failure(FailureKind.QUOTA)])
def test_what_is_not_repeated_costs_nothing(failure: Failure) -> None:
    """A final failure schedules no retry, so none is paid for."""
    budget = RetryBudget()
    call_state = CallState(RetryPolicy(), budget=budget, time=FakeClock())
    call_state.admit()
    call_state.failed(failure)
    assert budget.tokens == 500


def test_a_free_retry_earns_nothing() -> None:
    """Who leaves before a retry that cost nothing gets back just that."""
    budget = RetryBudget(retry_cost=0)
    budget.spend(throttled=True)
    call_state = CallState(RetryPolicy(), budget=budget, time=FakeClock())
    call_state.admit()
    call_state.failed(UNAVAILABLE)
    call_state.cancelled()
    assert budget.tokens == 495


def test_an_empty_budget_ends_the_call() -> None:
    """Who cannot pay for a retry gives up, and says so."""
    budget = RetryBudget(capacity=13)
    call_state = CallState(RetryPolicy(), budget=budget, time=FakeClock())
    call_state.admit()
    assert call_state.failed(UNAVAILABLE) == Stop("retry budget empty")
    assert call_state.waited == 0
    assert budget.tokens == 13


def test_a_retry_that_was_sent_is_not_given_back() -> None:
    """What a cancelled call had already sent stays paid for."""
    budget = RetryBudget()
    call_state = CallState(RetryPolicy(), budget=budget, time=FakeClock())
    call_state.admit()
    call_state.failed(UNAVAILABLE)
    call_state.admit()
    call_state.cancelled()
    assert budget.tokens == 486
    assert [record.outcome for record in call_state.records] == [
        "unavailable",
        "abandoned",
    ]


def test_a_call_abandoned_while_it_waits_gets_its_money_back() -> None:
    """A retry that nobody waits for is not sent, and is given back once."""
    budget = RetryBudget()
    budget.spend()  # A full purse would hide what is given back too often.
    call_state = CallState(RetryPolicy(), budget=budget, time=FakeClock())
    call_state.admit()
    call_state.failed(UNAVAILABLE)
    call_state.cancelled()
    call_state.cancelled()
    assert budget.tokens == 486
    assert [record.outcome for record in call_state.records] == ["unavailable"]


# --- the breaker --------------------------------------------------------------------


def test_an_open_breaker_refuses_the_first_attempt() -> None:
    """Nothing is sent, nothing is in the ledger, and the wait is known."""
    clock = FakeClock()
    call_state = CallState(RetryPolicy(), breaker=opened(clock), time=clock)
    clock.advance(10)
    assert call_state.admit() == Refusal(retry_after=20.0)
    assert call_state.attempts == 0


def test_a_door_is_closed_until_the_very_moment() -> None:
    """Whether it lets through is asked for now, unless a later moment is named."""
    clock = FakeClock()
    call_state = CallState(RetryPolicy(), breaker=opened(clock), time=clock)
    clock.advance(29.5)
    assert call_state.will_be_refused()
    assert call_state.will_be_refused(0.25)
    assert not call_state.will_be_refused(0.5)


def test_no_wait_is_begun_towards_a_closed_door() -> None:
    """If the breaker will be open after the wait, the call ends now, and unpaid."""
    clock = FakeClock()
    budget = RetryBudget()
    call_state = CallState(
        RetryPolicy(),
        breaker=CircuitBreaker(failure_threshold=1),
        budget=budget,
        time=clock,
    )
    call_state.admit()
    assert call_state.failed(UNAVAILABLE) == Stop("the circuit breaker is open")
    assert budget.tokens == 500


def test_a_wait_that_outlasts_the_breaker_is_begun() -> None:
    """A Retry-After beyond the recovery time leads to a probe, not to giving up."""
    clock = FakeClock()
    breaker = CircuitBreaker(failure_threshold=1, recovery_time=2)
    call_state = CallState(RetryPolicy(jitter=False), breaker=breaker, time=clock)
    call_state.admit()
    failure = Failure(FailureKind.RATE_LIMIT, retry_after=2.0)
    assert call_state.failed(failure) == Retry(2.0)
    clock.sleep(2)
    assert call_state.admit() is None
    call_state.succeeded()
    assert breaker.state(clock.monotonic()) is BreakerState.CLOSED


def test_a_refused_retry_is_given_back() -> None:
    """A retry that was paid for and then not let through costs nothing."""
    clock = FakeClock()
    budget = RetryBudget()
    breaker = CircuitBreaker(failure_threshold=2)
    call_state = CallState(RetryPolicy(), breaker=breaker, budget=budget, time=clock)
    call_state.admit()
    call_state.failed(UNAVAILABLE)
    assert budget.tokens == 486
    other = CallState(RetryPolicy(), breaker=breaker, time=clock)
    other.admit()
    other.failed(UNAVAILABLE)  # Opens it while the first call waits.
    assert isinstance(call_state.admit(), Refusal)
    assert budget.tokens == 500
    assert call_state.attempts == 1


@pytest.mark.parametrize("kind", FailureKind)
def test_the_breaker_counts_what_speaks_of_the_providers_health(
    kind: FailureKind,
) -> None:
    """A passing failure counts; a refusal shows that the provider is alive."""
    clock = FakeClock()
    breaker = CircuitBreaker(failure_threshold=2)
    for failure in (UNAVAILABLE, Failure(kind), BAD_REQUEST, UNAVAILABLE):
        call_state = CallState(RetryPolicy(), breaker=breaker, time=clock)
        if call_state.admit() is None:
            call_state.failed(failure)
    opens = Failure(kind).is_retryable
    assert breaker.state(0) is (BreakerState.OPEN if opens else BreakerState.CLOSED)


@pytest.mark.parametrize("final_error", [None, True, False])
def test_a_word_on_retrying_is_no_word_on_health(final_error: bool | None) -> None:
    """A failure that the server says not to repeat is a failure all the same."""
    clock = FakeClock()
    breaker = CircuitBreaker(failure_threshold=1)
    call_state = CallState(RetryPolicy(), breaker=breaker, time=clock)
    call_state.admit()
    call_state.failed(Failure(FailureKind.UNAVAILABLE, should_retry=final_error))
    assert breaker.state(0) is BreakerState.OPEN


def test_a_failure_after_the_first_token_counts_too() -> None:
    """A stream that breaks off says something about the provider's health."""
    clock = FakeClock()
    breaker = CircuitBreaker(failure_threshold=1)
    call_state = CallState(RetryPolicy(), breaker=breaker, time=clock)
    call_state.admit()
    call_state.stream_interrupted(Failure(FailureKind.INTERRUPTED, status_code=200))
    assert call_state.decision == Stop("part of the answer was already delivered")
    assert call_state.records[0].outcome == "interrupted"
    assert call_state.records[0].status_code == 200
    assert breaker.state(0) is BreakerState.OPEN


@pytest.mark.parametrize("end", ["succeeded", "failed", "broke_off", "abandoned"])
def test_a_probe_is_settled_by_every_end(end: str) -> None:
    """However the probe's call ends, the next probe is not blocked for ever."""
    clock = FakeClock()
    breaker = opened(clock)
    clock.advance(30)
    call_state = CallState(RetryPolicy(), breaker=breaker, time=clock)
    assert call_state.admit() is None
    assert breaker.admit(clock.monotonic()) == Refusal(0.0)
    getattr(call_state, end)(*([UNAVAILABLE] if end in {"failed", "broke_off"} else []))
    call_state.cancelled()  # As `_drive` does at the end, whatever came before.
    clock.advance(30)
    assert not isinstance(breaker.admit(clock.monotonic()), Refusal)


def test_an_abandoned_call_that_sent_nothing_leaves_no_trace() -> None:
    """A call that is given up before its first request changes nothing."""
    clock = FakeClock()
    budget, breaker = RetryBudget(), CircuitBreaker()
    budget.spend()
    call_state = CallState(RetryPolicy(), budget=budget, breaker=breaker, time=clock)
    call_state.cancelled()
    assert call_state.attempt_log() == {"attempts": []}
    assert budget.tokens == 486


@given(
    st.lists(st.sampled_from([*FailureKind, "ok", "abandon"]), max_size=12),
    st.integers(0, 200),
    st.integers(1, 4),
)
def test_nothing_is_kept_when_a_call_is_over(
    story: list[Any], capacity: int, threshold: int
) -> None:
    """In any story, a call that is over paid for what it sent, and holds no probe."""
    clock = FakeClock()
    budget = RetryBudget(capacity=capacity, success_gain=0)
    breaker = CircuitBreaker(failure_threshold=threshold, recovery_time=1)
    paid = 0.0
    call_state = CallState(RetryPolicy(), budget=budget, breaker=breaker, time=clock)
    for event in story:
        before = budget.tokens
        decision: Any = None
        if call_state.admit() is None:
            if event == "ok":
                call_state.succeeded()
            elif event != "abandon":
                decision = call_state.failed(Failure(event))
        if isinstance(decision, Retry):
            clock.sleep(decision.delay)
            paid += before - budget.tokens
            continue
        call_state.cancelled()
        call_state = CallState(
            RetryPolicy(), budget=budget, breaker=breaker, time=clock
        )
    call_state.cancelled()
    assert 0 <= capacity - budget.tokens <= paid
    clock.advance(1)
    assert not isinstance(breaker.admit(clock.monotonic()), Refusal)
