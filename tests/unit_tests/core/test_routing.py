"""Several routes: who is asked after which failure, and what a call may cost."""

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
from langchain_retryrouter._core.routing import AFTER, Door, RoutingSession, Step
from langchain_retryrouter.testing import FakeClock

UNAVAILABLE = Failure(FailureKind.UNAVAILABLE, status_code=503)
TIMEOUT = Failure(FailureKind.TIMEOUT)
WRONG = Failure(FailureKind.INVALID_REQUEST, status_code=400)


def new_session(
    *doors: Door | str, clock: FakeClock | None = None, **settings: Any
) -> RoutingSession:
    policy = RetryPolicy(
        **{
            "max_retries": 2,
            "initial_delay": 0.5,
            "jitter": False,
            **settings.pop("policy", {}),
        }
    )
    listed = [Door(door) if isinstance(door, str) else door for door in doors]
    return RoutingSession(policy, listed, time=clock or FakeClock(), **settings)


def run(session: RoutingSession, *failures: Failure) -> list[str | None]:
    """Let attempts fail in turn; the routes they went to."""
    asked = []
    for failure in failures:
        assert session.admit() is None
        asked.append(session.route)
        session.failed(failure)
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
    assert set(AFTER) == set(FailureKind)


@pytest.mark.parametrize(
    "kind", [kind for kind, step in AFTER.items() if step is Step.REPEAT]
)
def test_what_passes_is_repeated_then_left(kind: FailureKind) -> None:
    """The same route after its back-off, and the next one when its retries are gone."""
    session = new_session("a", "b")
    decisions = []
    for _ in range(4):
        session.admit()
        decisions.append((session.route, session.failed(Failure(kind))))
    assert decisions == [
        ("a", Retry(0.5)),
        ("a", Retry(1.0)),
        ("a", Retry(0.0)),
        ("b", Retry(0.5)),
    ]


@pytest.mark.parametrize(
    "kind", [kind for kind, step in AFTER.items() if step is Step.NEXT]
)
def test_what_does_not_pass_here_is_left_at_once(kind: FailureKind) -> None:
    """The next route without a wait, and an end where there is none."""
    session = new_session("a", "b")
    session.admit()
    assert session.failed(Failure(kind)) == Retry(0.0)
    session.admit()
    assert session.route == "b"
    assert session.failed(Failure(kind)) == GiveUp("no route left")


@pytest.mark.parametrize(
    "kind", [kind for kind, step in AFTER.items() if step is Step.END]
)
def test_the_requests_own_fault_ends_it(kind: FailureKind) -> None:
    """Neither this route nor another is asked again, and the error says it all."""
    session = new_session("a", "b")
    session.admit()
    assert session.failed(Failure(kind)) == GiveUp("")


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
    session = new_session("a", "b")
    run(session, failure)
    session.admit()
    assert session.route == ("b" if left else "a")
    assert session.waited == (0.0 if left else 2.0)


def test_a_row_can_be_overruled() -> None:
    """A caller may want a filtered prompt to be tried elsewhere, or a 404 to end it."""
    after = {
        **AFTER,
        FailureKind.CONTENT_FILTER: Step.NEXT,
        FailureKind.NOT_FOUND: Step.END,
    }
    session = new_session("a", "b", after=after)
    session.admit()
    assert session.failed(Failure(FailureKind.CONTENT_FILTER)) == Retry(0.0)
    session.admit()
    assert session.failed(Failure(FailureKind.NOT_FOUND)) == GiveUp("")


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
    session = new_session(*map(str, range(routes)), policy={"max_retries": max_retries})
    asked: list[str | None] = []
    for kind in kinds:
        assert session.admit() is None
        asked.append(session.route)
        if isinstance(session.failed(Failure(kind)), GiveUp):
            break
    assert max(asked.count(name) for name in asked) <= max_retries + 1
    assert asked == sorted(asked, key=str)
    assert session.attempts == len(asked)


def test_only_retries_are_bought() -> None:
    """Another route bears no load of the sick one's, so going there is free."""
    budget = RetryBudget(capacity=14)
    session = new_session("a", "b", budget=budget)
    assert run(session, UNAVAILABLE, UNAVAILABLE, TIMEOUT) == ["a", "a", "b"]
    assert session.decision == GiveUp("no route left")


def test_without_retries_each_route_is_asked_once() -> None:
    """`max_retries=0` turns repeating off, not the failover."""
    session = new_session("a", "b", policy={"max_retries": 0})
    assert run(session, UNAVAILABLE, UNAVAILABLE) == ["a", "b"]
    assert session.decision == GiveUp("retries are off, no route left")
    assert session.owns_retries
    assert not new_session("a", policy={"max_retries": 0}).owns_retries


@pytest.mark.parametrize("kind", [FailureKind.UNAVAILABLE, FailureKind.TIMEOUT])
def test_a_single_route_is_not_missed(kind: FailureKind) -> None:
    """Where there never was another route, nothing is said of one."""
    session = new_session("a", policy={"max_retries": 0})
    run(session, Failure(kind))
    is_repeated = AFTER[kind] is Step.REPEAT
    assert session.decision == GiveUp("retries are off" if is_repeated else "")


@pytest.mark.parametrize("late", [1.0, 1.5])
def test_the_deadline_is_the_whole_calls(late: float) -> None:
    """A wait that does not fit is spent on another route; after the end nothing is."""
    clock = FakeClock()
    session = new_session(
        "a", "b", clock=clock, policy={"deadline": 1.0, "initial_delay": 2.0}
    )
    assert run(session, UNAVAILABLE) == ["a"]
    assert session.decision == Retry(0.0)
    session.admit()
    clock.advance(late)
    assert session.failed(TIMEOUT) == GiveUp("the deadline of 1 s is over")


# --- breakers ---


def test_a_closed_door_is_passed_by_and_told() -> None:
    """A route whose breaker is open is not asked, and the ledger says why."""
    clock = FakeClock()
    session = new_session(Door("a", open_breaker(clock)), "b", clock=clock)
    assert session.admit() is None
    session.succeeded()
    ledger = session.ledger()
    assert json.loads(json.dumps(ledger)) == ledger
    assert ledger == {
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
    closed = Door("b", open_breaker(clock))
    session = new_session("a", closed, "c", clock=clock)
    assert run(session, TIMEOUT, TIMEOUT) == ["a", "c"]
    assert session.itinerary() == "a (timeout), b (circuit_open), c (timeout)"
    session = new_session("a", closed, clock=clock)
    run(session, TIMEOUT)
    assert session.decision == GiveUp("no route left")
    assert session.itinerary() == "a (timeout), b (circuit_open)"
    assert not session.go_on()
    assert session.itinerary() == "a (timeout), b (circuit_open)"


def test_only_a_door_that_was_passed_by_is_told() -> None:
    """A route that failed has its line, and one further down was not come to."""
    clock = FakeClock()
    shuts = Door("a", CircuitBreaker(failure_threshold=1))
    session = new_session(shuts, "b", Door("c", open_breaker(clock)), clock=clock)
    run(session, UNAVAILABLE)
    session.admit()
    session.succeeded()
    assert session.itinerary() == "a (unavailable), b (ok)"


def test_with_every_door_closed_the_first_to_open_is_told() -> None:
    """Nothing is sent, and the caller learns when it is worth coming back."""
    clock = FakeClock()
    first = open_breaker(clock)
    clock.advance(10)
    second = open_breaker(clock)
    session = new_session(Door("a", first), Door("b", second), clock=clock)
    assert session.admit() == Refusal(retry_after=20.0)
    assert (session.attempts, session.served_by()) == (0, None)


def test_a_route_whose_door_shuts_is_left_at_once() -> None:
    """Once its breaker opens there is nothing to wait for on a route."""
    breaker = CircuitBreaker(failure_threshold=2)
    session = new_session(Door("a", breaker), "b")
    assert run(session, UNAVAILABLE, UNAVAILABLE, UNAVAILABLE) == ["a", "a", "b"]


def test_a_probe_that_fails_is_not_repeated() -> None:
    """A half-open route gets one attempt; the call goes on to the next."""
    clock = FakeClock()
    breaker = open_breaker(clock)
    clock.advance(31)
    session = new_session(Door("a", breaker), "b", clock=clock)
    assert run(session, UNAVAILABLE, UNAVAILABLE) == ["a", "b"]
    assert breaker.state(clock.monotonic()) is BreakerState.OPEN


# --- hedges ---


def hedged(**settings: Any) -> RoutingSession:
    """A call whose first attempt is under way, and a second one beside it."""
    session = new_session("a", "b", "c", **settings)
    session.admit()
    assert session.hedge() == 1
    assert (session.route, session.position, session.attempts) == ("a", 0, 2)
    return session


def outcomes(session: RoutingSession) -> list[tuple[str | None, str]]:
    return [(record.route, record.outcome) for record in session.records]


def test_a_hedge_that_wins_is_the_calls_attempt() -> None:
    """What comes of it from then on is the second route's; the first one is let go."""
    session = hedged()
    session.settle_hedge(has_won=True)
    assert (session.route, session.position, session.attempt) == ("b", 1, 2)
    session.succeeded()
    assert outcomes(session) == [("a", "abandoned"), ("b", "ok")]
    assert session.served_by() == "b"


def test_a_hedge_that_loses_leaves_the_call_where_it_was() -> None:
    """The first attempt goes on, and what the second one held is given back."""
    session = hedged()
    session.settle_hedge(has_won=False, failure=UNAVAILABLE)
    session.settle_hedge(has_won=True)  # Settled once, it is settled.
    session.succeeded()
    assert outcomes(session) == [("a", "ok"), ("b", "unavailable")]


def test_a_hedge_is_bought_like_a_retry() -> None:
    """Load on top costs as much, and is not given back once it was sent."""
    budget = RetryBudget()
    session = hedged(budget=budget)
    assert budget.tokens == 500 - 14
    session.settle_hedge(has_won=False)
    session.abandoned()
    assert budget.tokens == 500 - 14


@pytest.mark.parametrize("has_won", [True, False])
def test_of_two_attempts_the_one_that_failed_is_told(has_won: bool) -> None:
    """Its line and its breaker hear of it; the other one's know of nothing."""
    clock = FakeClock()
    breakers = [CircuitBreaker(failure_threshold=1) for _ in range(2)]
    doors = [Door(name, breaker) for name, breaker in zip("ab", breakers, strict=True)]
    session = new_session(*doors, clock=clock)
    session.admit()
    clock.advance(2)
    assert session.hedge() == 1
    clock.advance(3)
    session.settle_hedge(has_won=has_won, failure=UNAVAILABLE)
    failed, other = (0, 1) if has_won else (1, 0)
    assert session.records[failed].as_dict() == {
        "attempt": failed + 1,
        "outcome": "unavailable",
        "seconds": 5.0 if has_won else 3.0,
        "wait": 0.0,
        "route": "ab"[failed],
        "status_code": 503,
    }
    assert session.records[other].outcome == "pending"
    assert session.records[other].status_code is None
    assert breakers[failed].admit(clock.monotonic()) == Refusal(30.0)
    assert breakers[other].state(clock.monotonic()) is BreakerState.CLOSED


def test_a_call_that_is_abandoned_lets_go_of_both() -> None:
    """Neither breaker keeps the place of an attempt that nobody waits for."""
    clock = FakeClock()
    breakers = [open_breaker(clock) for _ in range(2)]
    clock.advance(31)
    doors = [Door(name, breaker) for name, breaker in zip("ab", breakers, strict=True)]
    session = new_session(*doors, clock=clock)
    session.admit()
    assert session.hedge() == 1
    session.abandoned()
    assert outcomes(session) == [("a", "abandoned"), ("b", "abandoned")]
    assert (session.route, session.position) == ("a", 0)
    now = clock.monotonic()
    assert not any(isinstance(breaker.admit(now), Refusal) for breaker in breakers)


def test_a_hedge_needs_an_open_route_and_money() -> None:
    """Without another route, or with a low budget, nobody else is asked."""
    clock = FakeClock()
    alone = new_session("a")
    alone.admit()
    assert alone.hedge() is None

    shut = new_session("a", Door("b", open_breaker(clock)), clock=clock)
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
    session = new_session("a", Door("b", breaker), clock=clock)
    session.admit()
    assert session.hedge() is None
    assert (session.route, session.position) == ("a", 0)


def test_hedges_count_on_their_route() -> None:
    """A route that was asked beside another is not asked more often for it."""
    session = new_session("a", "b", policy={"max_retries": 0})
    session.admit()
    assert session.hedge() == 1
    session.settle_hedge(has_won=False)
    assert session.failed(UNAVAILABLE) == GiveUp("retries are off, no route left")


def test_taking_up_a_stream_on_the_same_route_is_bought() -> None:
    """An outage that cuts every stream is not fed either; another route is free."""
    budget = RetryBudget(capacity=14)
    taken_up = []
    for _ in range(3):
        session = new_session("a", budget=budget)
        session.admit()
        session.broke_off(UNAVAILABLE)
        taken_up.append(session.resume())
    assert (taken_up, budget.tokens) == ([True, False, False], 0)
    session = new_session("a", "b", budget=budget)
    session.admit()
    session.broke_off(UNAVAILABLE)
    assert session.resume()
    assert session.position == 1


def test_a_stream_that_is_never_taken_up_costs_nothing() -> None:
    """What was bought is given back where nobody waits any longer, or none may go."""
    clock, budget = FakeClock(), RetryBudget()
    breaker = CircuitBreaker(failure_threshold=1)
    session = new_session(Door("a", breaker), clock=clock, budget=budget)
    session.admit()
    session.broke_off(UNAVAILABLE)
    assert session.resume()
    assert budget.tokens == 500 - 14
    assert isinstance(session.admit(), Refusal)
    assert budget.tokens == 500


def test_a_call_that_broke_off_is_taken_up_where_it_may_be() -> None:
    """On the next route, or on the same one while it has attempts, or not at all."""
    clock = FakeClock()
    session = new_session(
        "a", "b", clock=clock, policy={"max_retries": 1, "deadline": 10.0}
    )
    taken_up = []
    for _ in range(3):
        session.admit()
        session.broke_off(UNAVAILABLE)
        taken_up.append((session.resume(), session.position))
    assert taken_up == [(True, 1), (True, 1), (False, 1)]


@pytest.mark.parametrize(
    ("seconds", "may_resume"), [(0.5, True), (1, False), (2, False)]
)
def test_nothing_is_taken_up_after_the_deadline(
    seconds: float, may_resume: bool
) -> None:
    """While there is time, however little, a call goes on; then it does not."""
    clock = FakeClock()
    session = new_session("a", "b", clock=clock, policy={"deadline": 1.0})
    session.admit()
    clock.advance(seconds)
    assert session.resume() is may_resume
