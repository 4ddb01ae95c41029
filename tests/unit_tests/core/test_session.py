"""What one call learns, and what it takes from budget and breaker and gives back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_retryrouter._core.breaker import BreakerState, CircuitBreaker, Refusal
from langchain_retryrouter._core.budget import RetryBudget
from langchain_retryrouter._core.decision import GiveUp, Retry
from langchain_retryrouter._core.failure import Failure, FailureKind
from langchain_retryrouter._core.policy import RetryPolicy
from langchain_retryrouter._core.session import RetrySession
from langchain_retryrouter.testing import FakeClock

UNAVAILABLE = Failure(FailureKind.UNAVAILABLE, status_code=503)
RATE_LIMIT = Failure(FailureKind.RATE_LIMIT, status_code=429)
BAD_REQUEST = Failure(FailureKind.INVALID_REQUEST, status_code=400)


def opened(clock: FakeClock, **numbers: Any) -> CircuitBreaker:
    """A breaker that has just opened."""
    breaker = CircuitBreaker(**{"failure_threshold": 1, **numbers})
    session = RetrySession(RetryPolicy(), breaker=breaker, time=clock)
    session.admit()
    session.failed(UNAVAILABLE)
    return breaker


def test_the_itinerary_names_routes_where_there_were_several() -> None:
    """An error can tell who was asked in turn; with one route there is nothing to."""
    session = RetrySession(RetryPolicy(), time=FakeClock())
    session.admit("gpt-4")
    session.failed(UNAVAILABLE)
    session.admit("gpt-4")
    session.failed(Failure(FailureKind.NOT_FOUND), is_left_behind=True)
    assert session.itinerary() == ""
    session.admit("claude")
    session.succeeded()
    assert session.itinerary() == (
        "gpt-4 (unavailable), gpt-4 (not_found), claude (ok)"
    )


# --- the ledger ---------------------------------------------------------------------


def test_the_ledger_tells_every_attempt() -> None:
    """Route, outcome, seconds, wait: what happened can be read off afterwards."""
    clock = FakeClock()
    session = RetrySession(RetryPolicy(jitter=False), time=clock)
    session.admit("gpt-4")
    clock.advance(1.25)
    session.failed(UNAVAILABLE)
    clock.sleep(1.5)
    session.admit()
    clock.advance(2)
    session.succeeded()
    assert session.ledger() == {
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
    assert (session.attempts, session.waited) == (2, 1.5)


def test_the_ledger_is_exact_to_the_microsecond() -> None:
    """Digits that no clock keeps are left out, and nothing is cut off before them."""
    clock = FakeClock(random=1 / 3)
    session = RetrySession(RetryPolicy(initial_delay=1.0), time=clock)
    session.admit()
    clock.advance(2 / 3)
    session.failed(UNAVAILABLE)
    (line,) = session.ledger()["attempts"]
    assert (line["seconds"], line["wait"]) == (0.666667, 0.333333)


def test_the_ledger_is_json_in_every_state() -> None:
    """A ledger goes into `response_metadata`, so it is JSON at any moment."""
    session = RetrySession(RetryPolicy(), time=FakeClock())
    assert json.loads(json.dumps(session.ledger())) == {"attempts": []}
    session.admit()
    (line,) = json.loads(json.dumps(session.ledger()))["attempts"]
    assert line == {"attempt": 1, "outcome": "pending", "seconds": 0.0, "wait": 0.0}


def test_the_route_is_that_of_the_last_attempt() -> None:
    """Which model was asked is known from the first attempt on, and moves with each."""
    session = RetrySession(RetryPolicy(), time=FakeClock())
    assert session.route is None
    for route in ("gpt-4", None, "claude"):
        session.admit(route)
        assert session.route == route
        session.failed(UNAVAILABLE)


def test_it_runs_on_the_machines_clock_by_default() -> None:
    """Nobody who does not test needs to hand in a clock."""
    session = RetrySession(RetryPolicy(deadline=100))
    session.admit()
    session.succeeded()
    remaining = session.remaining()
    assert remaining is not None
    assert 0 < remaining <= 100
    assert session.records[0].seconds >= 0


# --- decisions ----------------------------------------------------------------------


def test_one_decision_per_failure() -> None:
    """Each failure is decided once, and the decision can be read until the next."""
    session = RetrySession(RetryPolicy(max_retries=1, jitter=False), time=FakeClock())
    assert session.decision is None
    session.admit()
    assert session.failed(UNAVAILABLE) == Retry(1.5) == session.decision
    session.admit()
    assert session.failed(UNAVAILABLE) == GiveUp("no retries left") == session.decision
    assert session.waited == 1.5


def test_chance_comes_from_the_clock() -> None:
    """The dice are handed in, one throw per failure."""
    session = RetrySession(RetryPolicy(), time=FakeClock(random=[0.0, 0.5]))
    session.admit()
    assert session.failed(UNAVAILABLE) == Retry(0.0)
    session.admit()
    assert session.failed(UNAVAILABLE) == Retry(1.5)


def test_the_deadline_runs_from_the_beginning() -> None:
    """One number over all attempts and waits, from the moment the call began."""
    clock = FakeClock(monotonic=50)
    session = RetrySession(RetryPolicy(deadline=10), time=clock)
    assert session.remaining() == 10
    session.admit()
    clock.advance(4)
    session.failed(UNAVAILABLE)
    clock.sleep(1)
    session.admit()
    assert session.remaining() == 5
    clock.advance(7)
    assert session.remaining() == -2
    assert session.failed(UNAVAILABLE) == GiveUp(
        "a wait of 1.5 s would outlast the deadline of 10 s"
    )


def test_without_a_deadline_nothing_remains_to_be_counted() -> None:
    """No deadline is no number, not a large one."""
    session = RetrySession(RetryPolicy(), time=FakeClock())
    session.admit()
    session.failed(UNAVAILABLE)
    assert session.remaining() is None
    assert session.outlasted() is None


def test_a_slow_witness_can_outlast_the_wait() -> None:
    """If telling of a retry takes so long that its wait no longer fits, it is over."""
    clock = FakeClock()
    budget = RetryBudget()
    policy = RetryPolicy(deadline=10, jitter=False)
    session = RetrySession(policy, budget=budget, time=clock)
    session.admit()
    session.failed(UNAVAILABLE)
    assert session.outlasted() is None
    clock.advance(8)
    assert session.outlasted() is None
    clock.advance(0.5)
    assert session.outlasted() == GiveUp("the deadline of 10 s is over")
    assert session.decision == GiveUp("the deadline of 10 s is over")
    assert session.waited == 0
    assert budget.tokens == 500
    assert session.outlasted() is None


@pytest.mark.parametrize(
    ("is_left_behind", "decision"), [(True, Retry(0.0)), (False, GiveUp(""))]
)
def test_what_is_final_here_is_left_for_another_route(
    is_left_behind: bool, decision: object
) -> None:
    """A caller who asks another route next is not held up by what this one refused."""
    session = RetrySession(RetryPolicy(), time=FakeClock())
    session.admit()
    failure = Failure(FailureKind.NOT_FOUND)
    assert session.failed(failure, is_left_behind=is_left_behind) == decision


# --- the budget ---------------------------------------------------------------------


def test_a_retry_is_paid_for_when_it_is_scheduled() -> None:
    """The price is gone before the wait, so that calls which wait are counted."""
    budget = RetryBudget()
    session = RetrySession(RetryPolicy(), budget=budget, time=FakeClock())
    session.admit()
    assert budget.tokens == 500
    session.failed(UNAVAILABLE)
    assert budget.tokens == 486
    session.admit()
    session.failed(RATE_LIMIT)
    assert budget.tokens == 481
    session.admit()
    session.succeeded()
    assert budget.tokens == 482


@pytest.mark.parametrize("failure", [BAD_REQUEST, Failure(FailureKind.QUOTA)])
def test_what_is_not_repeated_costs_nothing(failure: Failure) -> None:
    """A final failure schedules no retry, so none is paid for."""
    budget = RetryBudget()
    session = RetrySession(RetryPolicy(), budget=budget, time=FakeClock())
    session.admit()
    session.failed(failure)
    assert budget.tokens == 500


def test_a_free_retry_earns_nothing() -> None:
    """Who leaves before a retry that cost nothing gets back just that."""
    budget = RetryBudget(retry_cost=0)
    budget.spend(throttled=True)
    session = RetrySession(RetryPolicy(), budget=budget, time=FakeClock())
    session.admit()
    session.failed(UNAVAILABLE)
    session.abandoned()
    assert budget.tokens == 495


def test_an_empty_budget_ends_the_call() -> None:
    """Who cannot pay for a retry gives up, and says so."""
    budget = RetryBudget(capacity=13)
    session = RetrySession(RetryPolicy(), budget=budget, time=FakeClock())
    session.admit()
    assert session.failed(UNAVAILABLE) == GiveUp("retry budget empty")
    assert session.waited == 0
    assert budget.tokens == 13


def test_a_retry_that_was_sent_is_not_given_back() -> None:
    """What a cancelled call had already sent stays paid for."""
    budget = RetryBudget()
    session = RetrySession(RetryPolicy(), budget=budget, time=FakeClock())
    session.admit()
    session.failed(UNAVAILABLE)
    session.admit()
    session.abandoned()
    assert budget.tokens == 486
    assert [record.outcome for record in session.records] == [
        "unavailable",
        "abandoned",
    ]


def test_a_call_abandoned_while_it_waits_gets_its_money_back() -> None:
    """A retry that nobody waits for is not sent, and is given back once."""
    budget = RetryBudget()
    budget.spend()  # A full purse would hide what is given back too often.
    session = RetrySession(RetryPolicy(), budget=budget, time=FakeClock())
    session.admit()
    session.failed(UNAVAILABLE)
    session.abandoned()
    session.abandoned()
    assert budget.tokens == 486
    assert [record.outcome for record in session.records] == ["unavailable"]


# --- the breaker --------------------------------------------------------------------


def test_an_open_breaker_refuses_the_first_attempt() -> None:
    """Nothing is sent, nothing is in the ledger, and the wait is known."""
    clock = FakeClock()
    session = RetrySession(RetryPolicy(), breaker=opened(clock), time=clock)
    clock.advance(10)
    assert session.admit() == Refusal(retry_after=20.0)
    assert session.attempts == 0


def test_a_door_is_closed_until_the_very_moment() -> None:
    """Whether it lets through is asked for now, unless a later moment is named."""
    clock = FakeClock()
    session = RetrySession(RetryPolicy(), breaker=opened(clock), time=clock)
    clock.advance(29.5)
    assert session.will_be_refused()
    assert session.will_be_refused(0.25)
    assert not session.will_be_refused(0.5)


def test_no_wait_is_begun_towards_a_closed_door() -> None:
    """If the breaker will be open after the wait, the call ends now, and unpaid."""
    clock = FakeClock()
    budget = RetryBudget()
    session = RetrySession(
        RetryPolicy(),
        breaker=CircuitBreaker(failure_threshold=1),
        budget=budget,
        time=clock,
    )
    session.admit()
    assert session.failed(UNAVAILABLE) == GiveUp("the circuit breaker is open")
    assert budget.tokens == 500


def test_a_wait_that_outlasts_the_breaker_is_begun() -> None:
    """A Retry-After beyond the recovery time leads to a probe, not to giving up."""
    clock = FakeClock()
    breaker = CircuitBreaker(failure_threshold=1, recovery_time=2)
    session = RetrySession(RetryPolicy(jitter=False), breaker=breaker, time=clock)
    session.admit()
    failure = Failure(FailureKind.RATE_LIMIT, retry_after=2.0)
    assert session.failed(failure) == Retry(2.0)
    clock.sleep(2)
    assert session.admit() is None
    session.succeeded()
    assert breaker.state(clock.monotonic()) is BreakerState.CLOSED


def test_a_refused_retry_is_given_back() -> None:
    """A retry that was paid for and then not let through costs nothing."""
    clock = FakeClock()
    budget = RetryBudget()
    breaker = CircuitBreaker(failure_threshold=2)
    session = RetrySession(RetryPolicy(), breaker=breaker, budget=budget, time=clock)
    session.admit()
    session.failed(UNAVAILABLE)
    assert budget.tokens == 486
    other = RetrySession(RetryPolicy(), breaker=breaker, time=clock)
    other.admit()
    other.failed(UNAVAILABLE)  # Opens it while the first call waits.
    assert isinstance(session.admit(), Refusal)
    assert budget.tokens == 500
    assert session.attempts == 1


@pytest.mark.parametrize("kind", FailureKind)
def test_the_breaker_counts_what_speaks_of_the_providers_health(
    kind: FailureKind,
) -> None:
    """A passing failure counts; a refusal shows that the provider is alive."""
    clock = FakeClock()
    breaker = CircuitBreaker(failure_threshold=2)
    for failure in (UNAVAILABLE, Failure(kind), BAD_REQUEST, UNAVAILABLE):
        session = RetrySession(RetryPolicy(), breaker=breaker, time=clock)
        if session.admit() is None:
            session.failed(failure)
    opens = Failure(kind).is_retryable
    assert breaker.state(0) is (BreakerState.OPEN if opens else BreakerState.CLOSED)


@pytest.mark.parametrize("verdict", [None, True, False])
def test_a_word_on_retrying_is_no_word_on_health(verdict: bool | None) -> None:
    """A failure that the server says not to repeat is a failure all the same."""
    clock = FakeClock()
    breaker = CircuitBreaker(failure_threshold=1)
    session = RetrySession(RetryPolicy(), breaker=breaker, time=clock)
    session.admit()
    session.failed(Failure(FailureKind.UNAVAILABLE, should_retry=verdict))
    assert breaker.state(0) is BreakerState.OPEN


def test_a_failure_after_the_first_token_counts_too() -> None:
    """A stream that breaks off says something about the provider's health."""
    clock = FakeClock()
    breaker = CircuitBreaker(failure_threshold=1)
    session = RetrySession(RetryPolicy(), breaker=breaker, time=clock)
    session.admit()
    session.broke_off(Failure(FailureKind.INTERRUPTED, status_code=200))
    assert session.decision == GiveUp("part of the answer was already delivered")
    assert session.records[0].outcome == "interrupted"
    assert session.records[0].status_code == 200
    assert breaker.state(0) is BreakerState.OPEN


@pytest.mark.parametrize("end", ["succeeded", "failed", "broke_off", "abandoned"])
def test_a_probe_is_settled_by_every_end(end: str) -> None:
    """However the probe's call ends, the next probe is not blocked for ever."""
    clock = FakeClock()
    breaker = opened(clock)
    clock.advance(30)
    session = RetrySession(RetryPolicy(), breaker=breaker, time=clock)
    assert session.admit() is None
    assert breaker.admit(clock.monotonic()) == Refusal(0.0)
    getattr(session, end)(*([UNAVAILABLE] if end in {"failed", "broke_off"} else []))
    session.abandoned()  # As `_drive` does at the end, whatever came before.
    clock.advance(30)
    assert not isinstance(breaker.admit(clock.monotonic()), Refusal)


def test_an_abandoned_call_that_sent_nothing_leaves_no_trace() -> None:
    """A call that is given up before its first request changes nothing."""
    clock = FakeClock()
    budget, breaker = RetryBudget(), CircuitBreaker()
    budget.spend()
    session = RetrySession(RetryPolicy(), budget=budget, breaker=breaker, time=clock)
    session.abandoned()
    assert session.ledger() == {"attempts": []}
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
    session = RetrySession(RetryPolicy(), budget=budget, breaker=breaker, time=clock)
    for event in story:
        before = budget.tokens
        decision: Any = None
        if session.admit() is None:
            if event == "ok":
                session.succeeded()
            elif event != "abandon":
                decision = session.failed(Failure(event))
        if isinstance(decision, Retry):
            clock.sleep(decision.delay)
            paid += before - budget.tokens
            continue
        session.abandoned()
        session = RetrySession(
            RetryPolicy(), budget=budget, breaker=breaker, time=clock
        )
    session.abandoned()
    assert 0 <= capacity - budget.tokens <= paid
    clock.advance(1)
    assert not isinstance(breaker.admit(clock.monotonic()), Refusal)
