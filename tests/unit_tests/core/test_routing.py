"""Several routes: who is asked after which failure, and what a call may cost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_retryrouter._retry.call_state import (
    FAILURE_ACTIONS,
    FailureAction,
    Retry,
    RoutedCallState,
    RouteState,
    Stop,
)
from langchain_retryrouter.circuit_breaker import BreakerState, CircuitBreaker, Refusal
from langchain_retryrouter.failures import Failure, FailureKind
from langchain_retryrouter.policy import RetryBudget, RetryPolicy
from langchain_retryrouter.testing import FakeClock

UNAVAILABLE = Failure(FailureKind.UNAVAILABLE, status_code=503)
TIMEOUT = Failure(FailureKind.TIMEOUT)
WRONG = Failure(FailureKind.INVALID_REQUEST, status_code=400)


def new_session(
    *route_states: RouteState | str, clock: FakeClock | None = None, **settings: Any
) -> RoutedCallState:
    policy = RetryPolicy(
        **{
            "max_retries": 2,
            "initial_delay": 0.5,
            "jitter": False,
            **settings.pop("policy", {}),
        }
    )
    listed = [
        RouteState(route_state) if isinstance(route_state, str) else route_state
        for route_state in route_states
    ]
    return RoutedCallState(policy, listed, time=clock or FakeClock(), **settings)


def run(call_state: RoutedCallState, *failures: Failure) -> list[str | None]:
    """Let attempts fail in turn; the routes they went to."""
    asked = []
    for failure in failures:
        assert call_state.admit() is None
        asked.append(call_state.route)
        call_state.failed(failure)
    return asked


def open_breaker(clock: FakeClock) -> CircuitBreaker:
    breaker = CircuitBreaker(failure_threshold=1)
    permit = breaker.admit(clock.monotonic())
    assert not isinstance(permit, Refusal)
    breaker.failed(permit, clock.monotonic())
    assert breaker.state(clock.monotonic()) is BreakerState.OPEN
    return breaker


# --- the table ---


def test_the_table_has_a_row_for_every_failure() -> None:
    """What is not in the table would have no rule; each kind has exactly one."""
    assert set(FAILURE_ACTIONS) == set(FailureKind)


@pytest.mark.parametrize(
    "kind",
    [kind for kind, step in FAILURE_ACTIONS.items() if step is FailureAction.RETRY],
)
def test_what_passes_is_repeated_then_left(kind: FailureKind) -> None:
    """The same route after its back-off, and the next one when its retries are gone."""
    call_state = new_session("a", "b")
    decisions = []
    for _ in range(4):
        call_state.admit()
        decisions.append((call_state.route, call_state.failed(Failure(kind))))
    assert decisions == [
        ("a", Retry(0.5)),
        ("a", Retry(1.0)),
        ("a", Retry(0.0)),
        ("b", Retry(0.5)),
    ]


@pytest.mark.parametrize(
    "kind",
    [kind for kind, step in FAILURE_ACTIONS.items() if step is FailureAction.FAILOVER],
)
def test_what_does_not_pass_here_is_left_at_once(kind: FailureKind) -> None:
    """The next route without a wait, and an end where there is none."""
    call_state = new_session("a", "b")
    call_state.admit()
    assert call_state.failed(Failure(kind)) == Retry(0.0)
    call_state.admit()
    assert call_state.route == "b"
    assert call_state.failed(Failure(kind)) == Stop("no route left")


@pytest.mark.parametrize(
    "kind",
    [kind for kind, step in FAILURE_ACTIONS.items() if step is FailureAction.RAISE],
)
def test_the_requests_own_fault_ends_it(kind: FailureKind) -> None:
    """Neither this route nor another is asked again, and the error says it all."""
    call_state = new_session("a", "b")
    call_state.admit()
    assert call_state.failed(Failure(kind)) == Stop("")


@pytest.mark.parametrize(
    ("failure", "left"),
    [
        (Failure(FailureKind.RATE_LIMIT, retry_after=2.0), False),
        (Failure(FailureKind.RATE_LIMIT, retry_after=61.0), True),
        (Failure(FailureKind.UNAVAILABLE, should_retry=False), True),
    ],
    ids=["short", "long", "told-not-to"],
)
def test_a_wait_that_is_too_long_is_spent_elsewhere(
    failure: Failure, left: bool
) -> None:
    """A short Retry-After is waited for; a long one, or a no, sends us to the next."""
    call_state = new_session("a", "b")
    run(call_state, failure)
    call_state.admit()
    assert call_state.route == ("b" if left else "a")
    assert call_state.waited == (0.0 if left else 2.0)


def test_a_row_can_be_overruled() -> None:
    """A caller may want a filtered prompt to be tried elsewhere, or a 404 to end it."""
    after = {
        **FAILURE_ACTIONS,
        FailureKind.CONTENT_FILTER: FailureAction.FAILOVER,
        FailureKind.NOT_FOUND: FailureAction.RAISE,
    }
    call_state = new_session("a", "b", after=after)
    call_state.admit()
    assert call_state.failed(Failure(FailureKind.CONTENT_FILTER)) == Retry(0.0)
    call_state.admit()
    assert call_state.failed(Failure(FailureKind.NOT_FOUND)) == Stop("")


# --- what it costs ---


@given(
    st.integers(1, 4),
    st.integers(0, 3),
    st.lists(st.sampled_from(list(FailureKind)), min_size=30, max_size=30),
)
def test_no_route_is_asked_more_often_than_it_may(
    routes: int, max_retries: int, kinds: list[FailureKind]
) -> None:
    """Requests to a route never exceed `max_retries + 1`, whatever fails and how."""
    call_state = new_session(
        *map(str, range(routes)), policy={"max_retries": max_retries}
    )
    asked: list[str | None] = []
    for kind in kinds:
        assert call_state.admit() is None
        asked.append(call_state.route)
        if isinstance(call_state.failed(Failure(kind)), Stop):
            break
    assert max(asked.count(name) for name in asked) <= max_retries + 1
    assert asked == sorted(asked, key=str)
    assert call_state.attempts == len(asked)


def test_only_retries_are_bought() -> None:
    """Another route bears no load of the sick one's, so going there is free."""
    budget = RetryBudget(capacity=14)
    call_state = new_session("a", "b", budget=budget)
    assert run(call_state, UNAVAILABLE, UNAVAILABLE, TIMEOUT) == ["a", "a", "b"]
    assert call_state.decision == Stop("no route left")


def test_without_retries_each_route_is_asked_once() -> None:
    """`max_retries=0` turns repeating off, not the failover."""
    call_state = new_session("a", "b", policy={"max_retries": 0})
    assert run(call_state, UNAVAILABLE, UNAVAILABLE) == ["a", "b"]
    assert call_state.decision == Stop("retries are off, no route left")
    assert call_state.retries_enabled
    assert not new_session("a", policy={"max_retries": 0}).retries_enabled


@pytest.mark.parametrize("kind", [FailureKind.UNAVAILABLE, FailureKind.TIMEOUT])
def test_a_single_route_is_not_missed(kind: FailureKind) -> None:
    """Where there never was another route, nothing is said of one."""
    call_state = new_session("a", policy={"max_retries": 0})
    run(call_state, Failure(kind))
    is_repeated = FAILURE_ACTIONS[kind] is FailureAction.RETRY
    assert call_state.decision == Stop("retries are off" if is_repeated else "")


@pytest.mark.parametrize("late", [1.0, 1.5])
def test_the_deadline_is_the_whole_calls(late: float) -> None:
    """A wait that does not fit is spent on another route; after the end nothing is."""
    clock = FakeClock()
    call_state = new_session(
        "a", "b", clock=clock, policy={"deadline": 1.0, "initial_delay": 2.0}
    )
    assert run(call_state, UNAVAILABLE) == ["a"]
    assert call_state.decision == Retry(0.0)
    call_state.admit()
    clock.advance(late)
    assert call_state.failed(TIMEOUT) == Stop("the deadline of 1 s is over")


# --- breakers ---


def test_a_closed_door_is_passed_by_and_told() -> None:
    """A route whose breaker is open is not asked, and the ledger says why."""
    clock = FakeClock()
    call_state = new_session(RouteState("a", open_breaker(clock)), "b", clock=clock)
    assert call_state.admit() is None
    call_state.succeeded()
    attempt_log = call_state.attempt_log()
    assert json.loads(json.dumps(attempt_log)) == attempt_log
    assert attempt_log == {
        "route": "b",
        "attempts": [
            {"outcome": "circuit_open", "seconds": 0.0, "wait": 0.0, "route": "a"},
            {
                "attempt": 1,
                "outcome": "ok",
                "seconds": 0.0,
                "wait": 0.0,
                "route": "b",
            },
        ],
    }


def test_nobody_is_sent_to_a_closed_door() -> None:
    """After a failure the next open route is meant; with none left the call is over."""
    clock = FakeClock()
    closed = RouteState("b", open_breaker(clock))
    call_state = new_session("a", closed, "c", clock=clock)
    assert run(call_state, TIMEOUT, TIMEOUT) == ["a", "c"]
    assert call_state.routes_tried() == "a (timeout), b (circuit_open), c (timeout)"
    call_state = new_session("a", closed, clock=clock)
    run(call_state, TIMEOUT)
    assert call_state.decision == Stop("no route left")
    assert call_state.routes_tried() == "a (timeout), b (circuit_open)"
    assert not call_state.go_on()
    assert call_state.routes_tried() == "a (timeout), b (circuit_open)"


def test_only_a_door_that_was_passed_by_is_told() -> None:
    """A route that failed has its line, and one further down was not come to."""
    clock = FakeClock()
    shuts = RouteState("a", CircuitBreaker(failure_threshold=1))
    call_state = new_session(
        shuts, "b", RouteState("c", open_breaker(clock)), clock=clock
    )
    run(call_state, UNAVAILABLE)
    call_state.admit()
    call_state.succeeded()
    assert call_state.routes_tried() == "a (unavailable), b (ok)"


def test_a_route_whose_breaker_opens_is_left_at_once() -> None:
    """Once its breaker opens there is nothing to wait for on a route."""
    breaker = CircuitBreaker(failure_threshold=1)
    call_state = new_session(RouteState("a", breaker), "b")
    assert run(call_state, UNAVAILABLE, UNAVAILABLE) == ["a", "b"]


def test_a_probe_that_fails_is_not_repeated() -> None:
    """A half-open route gets one attempt; the call goes on to the next."""
    clock = FakeClock()
    breaker = open_breaker(clock)
    clock.advance(31)
    call_state = new_session(RouteState("a", breaker), "b", clock=clock)
    assert run(call_state, UNAVAILABLE, UNAVAILABLE) == ["a", "b"]
    assert breaker.state(clock.monotonic()) is BreakerState.OPEN


# --- hedges ---


def hedged(**settings: Any) -> RoutedCallState:
    """A call whose first attempt is under way, and a second one beside it."""
    call_state = new_session("a", "b", "c", **settings)
    call_state.admit()
    assert call_state.hedge() == 1
    assert (call_state.route, call_state.position, call_state.attempts) == ("a", 0, 2)
    return call_state


def outcomes(call_state: RoutedCallState) -> list[tuple[str | None, str]]:
    return [(record.route, record.outcome) for record in call_state.records]


def test_a_hedge_that_wins_is_the_calls_attempt() -> None:
    """What comes of it from then on is the second route's; the first one is let go."""
    call_state = hedged()
    call_state.settle_hedge(has_won=True)
    assert (call_state.route, call_state.position, call_state.attempt) == ("b", 1, 2)
    call_state.succeeded()
    assert outcomes(call_state) == [("a", "abandoned"), ("b", "ok")]
    assert call_state.served_by() == "b"


def test_a_hedge_that_loses_leaves_the_call_where_it_was() -> None:
    """The first attempt goes on, and what the second one held is given back."""
    call_state = hedged()
    call_state.settle_hedge(has_won=False, failure=UNAVAILABLE)
    call_state.settle_hedge(has_won=True)  # Settled once, it is settled.
    call_state.succeeded()
    assert outcomes(call_state) == [("a", "ok"), ("b", "unavailable")]


def test_a_hedge_is_bought_like_a_retry() -> None:
    """Load on top costs as much, and is not given back once it was sent."""
    budget = RetryBudget()
    call_state = hedged(budget=budget)
    assert budget.tokens == 500 - 14
    call_state.settle_hedge(has_won=False)
    call_state.cancelled()
    assert budget.tokens == 500 - 14


@pytest.mark.parametrize("has_won", [True, False])
def test_of_two_attempts_the_one_that_failed_is_told(has_won: bool) -> None:
    """Its line and its breaker hear of it; the other one's know of nothing."""
    clock = FakeClock()
    breakers = [CircuitBreaker(failure_threshold=1) for _ in range(2)]
    route_states = [
        RouteState(name, breaker) for name, breaker in zip("ab", breakers, strict=True)
    ]
    call_state = new_session(*route_states, clock=clock)
    call_state.admit()
    clock.advance(2)
    assert call_state.hedge() == 1
    clock.advance(3)
    call_state.settle_hedge(has_won=has_won, failure=UNAVAILABLE)
    failed, other = (0, 1) if has_won else (1, 0)
    assert call_state.records[failed].as_dict() == {
        "attempt": failed + 1,
        "outcome": "unavailable",
        "seconds": 5.0 if has_won else 3.0,
        "wait": 0.0,
        "route": "ab"[failed],
        "status_code": 503,
    }
    assert call_state.records[other].outcome == "pending"
    assert call_state.records[other].status_code is None
    assert breakers[failed].admit(clock.monotonic()) == Refusal(30.0)
    assert breakers[other].state(clock.monotonic()) is BreakerState.CLOSED


def test_a_call_that_is_abandoned_lets_go_of_both() -> None:
    """Neither breaker keeps the place of an attempt that nobody waits for."""
    clock = FakeClock()
    breakers = [open_breaker(clock) for _ in range(2)]
    clock.advance(31)
    route_states = [
        RouteState(name, breaker) for name, breaker in zip("ab", breakers, strict=True)
    ]
    call_state = new_session(*route_states, clock=clock)
    call_state.admit()
    assert call_state.hedge() == 1
    call_state.cancelled()
    assert outcomes(call_state) == [("a", "abandoned"), ("b", "abandoned")]
    assert (call_state.route, call_state.position) == ("a", 0)
    now = clock.monotonic()
    assert not any(isinstance(breaker.admit(now), Refusal) for breaker in breakers)


def test_a_hedge_needs_an_open_route_and_money() -> None:
    """Without another route, or with a low budget, nobody else is asked."""
    clock = FakeClock()
    alone = new_session("a")
    alone.admit()
    assert alone.hedge() is None

    shut = new_session("a", RouteState("b", open_breaker(clock)), clock=clock)
    shut.admit()
    assert shut.hedge() is None

    poor = new_session("a", "b", budget=RetryBudget(capacity=1))
    poor.admit()
    assert poor.hedge() is None
    assert poor.attempts == 1


def test_a_probe_of_another_call_keeps_a_hedge_away() -> None:
    """A half-open route is asked by one call at a time, whatever it is asked for."""
    clock = FakeClock()
    breaker = open_breaker(clock)
    clock.advance(31)
    breaker.admit(clock.monotonic())
    call_state = new_session("a", RouteState("b", breaker), clock=clock)
    call_state.admit()
    assert call_state.hedge() is None
    assert (call_state.route, call_state.position) == ("a", 0)


def test_hedges_count_on_their_route() -> None:
    """A route that was asked beside another is not asked more often for it."""
    call_state = new_session("a", "b", policy={"max_retries": 0})
    call_state.admit()
    assert call_state.hedge() == 1
    call_state.settle_hedge(has_won=False)
    assert call_state.failed(UNAVAILABLE) == Stop("retries are off, no route left")


def test_taking_up_a_stream_on_the_same_route_is_bought() -> None:
    """An outage that cuts every stream is not fed either; another route is free."""
    budget = RetryBudget(capacity=14)
    taken_up = []
    for _ in range(3):
        call_state = new_session("a", budget=budget)
        call_state.admit()
        call_state.stream_interrupted(UNAVAILABLE)
        taken_up.append(call_state.resume())
    assert (taken_up, budget.tokens) == ([True, False, False], 0)
    call_state = new_session("a", "b", budget=budget)
    call_state.admit()
    call_state.stream_interrupted(UNAVAILABLE)
    assert call_state.resume()
    assert call_state.position == 1


def test_a_stream_that_is_never_taken_up_costs_nothing() -> None:
    """What was bought is given back where nobody waits any longer, or none may go."""
    clock, budget = FakeClock(), RetryBudget()
    breaker = CircuitBreaker(failure_threshold=1)
    call_state = new_session(RouteState("a", breaker), clock=clock, budget=budget)
    call_state.admit()
    call_state.stream_interrupted(UNAVAILABLE)
    assert call_state.resume()
    assert budget.tokens == 500 - 14
    assert isinstance(call_state.admit(), Refusal)
    assert budget.tokens == 500


def test_a_call_that_broke_off_is_taken_up_where_it_may_be() -> None:
    """On the next route, or on the same one while it has attempts, or not at all."""
    clock = FakeClock()
    call_state = new_session(
        "a", "b", clock=clock, policy={"max_retries": 1, "deadline": 10.0}
    )
    taken_up = []
    for _ in range(3):
        call_state.admit()
        call_state.stream_interrupted(UNAVAILABLE)
        taken_up.append((call_state.resume(), call_state.position))
    assert taken_up == [(True, 1), (True, 1), (False, 1)]


@pytest.mark.parametrize(
    ("seconds", "may_resume"), [(0.5, True), (1, False), (2, False)]
)
def test_nothing_is_taken_up_after_the_deadline(
    seconds: float, may_resume: bool
) -> None:
    """While there is time, however little, a call goes on; then it does not."""
    clock = FakeClock()
    call_state = new_session("a", "b", clock=clock, policy={"deadline": 1.0})
    call_state.admit()
    clock.advance(seconds)
    assert call_state.resume() is may_resume
