"""One call's state: attempt log, decisions, budget, breaker and routes."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_retryrouter import CircuitBreaker, RetryBudget, RetryPolicy
from langchain_retryrouter._retry.call_state import (
    CallState,
    Decision,
    Retry,
    RouteState,
    Stop,
    decide,
)
from langchain_retryrouter.failures import (
    FAILURE_ACTIONS,
    Failure,
    FailureAction,
    FailureKind,
)
from langchain_retryrouter.testing import FakeClock

UNAVAILABLE = Failure(FailureKind.UNAVAILABLE, status_code=503)


def one(clock: FakeClock, *, policy: Any = None, **parts: Any) -> CallState:
    """A call without routes."""
    numbers = {"jitter": False, "initial_delay": 0.5, **(policy or {})}
    return CallState(RetryPolicy(**numbers), time=clock, **parts)


def routed(
    clock: FakeClock, *names: str, policy: Any = None, **parts: Any
) -> CallState:
    """A call with routes; `breakers` are theirs by name."""
    breakers = parts.pop("breakers", {})
    routes = [RouteState(name, breakers.get(name)) for name in names]
    numbers = {"jitter": False, "initial_delay": 0.5, **(policy or {})}
    actions = {**FAILURE_ACTIONS, **parts.pop("actions", {})}
    return CallState(
        RetryPolicy(**numbers), routes, time=clock, actions=actions, **parts
    )


def opened(clock: FakeClock, **numbers: Any) -> CircuitBreaker:
    """A breaker that is open."""
    breaker = CircuitBreaker(clock=clock, **numbers)
    breaker.open_for(30)
    return breaker


def outcomes(state: CallState) -> list[tuple[str | None, str]]:
    """Route and outcome of each line of the attempt log."""
    return [(record.route, record.outcome) for record in state.records]


# --- the decision about one route ---


def after(policy: RetryPolicy, **known: Any) -> Decision:
    """The decision after a failed first attempt."""
    kind = known.pop("kind", FailureKind.UNAVAILABLE)
    failure = Failure(kind, **known.pop("failure", {}))
    first = {"attempt": 1, "remaining": None, "random": 0.5}
    return decide(policy, failure, **{**first, **known})


@pytest.mark.parametrize(
    ("known", "policy", "decision"),
    [
        ({}, {}, Retry(0.75)),
        ({"failure": {"retry_after": 10.0}}, {}, Retry(10.75)),
        ({"failure": {"retry_after": 60.0}}, {}, Retry(60.75)),
        ({"failure": {"should_retry": True}}, {}, Retry(0.75)),
        ({"failure": {"should_retry": False}}, {}, "the server said not to retry"),
        ({"attempt": 3}, {}, "no retries left"),
        ({}, {"max_retries": 0}, "retries are off"),
        (
            {"failure": {"retry_after": 61.0}},
            {},
            "Retry-After of 61 s is above max_retry_after of 60 s",
        ),
        ({"remaining": 0.76}, {"deadline": 5}, Retry(0.75)),
        (
            {"remaining": 0.75},
            {"deadline": 5},
            "a wait of 0.8 s would outlast the deadline of 5 s",
        ),
        ({"kind": FailureKind.QUOTA}, {}, ""),
        ({"will_failover": True}, {}, Retry(0.75)),
        ({"kind": FailureKind.QUOTA, "will_failover": True}, {}, Retry(0.0)),
        (
            {"kind": FailureKind.QUOTA, "will_failover": True, "attempt": 3},
            {},
            "no retries left",
        ),
    ],
)
def test_what_ends_the_retries(
    known: dict[str, Any], policy: dict[str, Any], decision: Decision | str
) -> None:
    """Retry-After, `x-should-retry`, the number of retries and the deadline."""
    expected = Stop(decision) if isinstance(decision, str) else decision
    assert after(RetryPolicy(**policy), **known) == expected


@given(
    retry_after=st.none() | st.floats(0, 100),
    remaining=st.none() | st.floats(0, 100),
    attempt=st.integers(1, 5),
    random=st.floats(0, 1, exclude_max=True),
)
def test_a_wait_respects_retry_after_and_deadline(
    retry_after: float | None, remaining: float | None, attempt: int, random: float
) -> None:
    """A wait is never shorter than Retry-After, and always ends in time."""
    decision = after(
        RetryPolicy(max_retries=4, deadline=100),
        failure={"retry_after": retry_after},
        remaining=remaining,
        attempt=attempt,
        random=random,
    )
    if isinstance(decision, Retry):
        assert (retry_after or 0.0) <= decision.delay <= 68
        assert remaining is None or decision.delay < remaining
        assert attempt <= 4
    else:
        assert decision.reason


# --- attempt log, deadline ---


def test_the_attempt_log_has_every_attempt(clock: FakeClock) -> None:
    """Route, outcome, seconds, wait and status, as JSON-able data at any time."""
    state = one(clock)
    assert (state.attempt, state.route) == (0, None)
    state.admit("gpt-4")
    clock.advance(1.25)
    state.failed(UNAVAILABLE)
    clock.sleep(0.5)
    state.admit("claude")
    clock.advance(1 / 3)
    assert json.loads(json.dumps(state.attempt_log())) == state.attempt_log()
    state.succeeded()
    state.cancelled()  # Too late.
    names = ("attempt", "route", "outcome", "seconds", "wait", "status_code")
    lines = state.attempt_log()["attempts"]
    assert [tuple(map(line.get, names)) for line in lines] == [
        (1, "gpt-4", "unavailable", 1.25, 0.5, 503),
        (2, "claude", "ok", 0.333333, 0.0, None),
    ]
    assert "status_code" not in lines[1]
    assert state.routes_tried() == "gpt-4 (unavailable), claude (ok)"
    assert (state.attempts, state.attempt, state.route) == (2, 2, "claude")


# --- budget and breaker ---


@pytest.mark.parametrize(("kind", "price"), [("unavailable", 14), ("rate_limit", 5)])
def test_a_retry_is_paid_for_when_it_is_scheduled(
    clock: FakeClock, kind: str, price: float
) -> None:
    """Tokens are taken before the wait, and given back if the retry is not sent."""
    budget, failure = RetryBudget(), Failure(FailureKind(kind))
    state = one(clock, budget=budget)
    state.admit()
    state.failed(failure)
    assert budget.tokens == 500 - price
    state.cancelled()
    state.cancelled()
    assert budget.tokens == 500
    state.failed(failure)
    state.admit()
    state.cancelled()
    assert budget.tokens == 500 - price


@pytest.mark.parametrize("kind", FailureKind)
@pytest.mark.parametrize("should_retry", [None, False])
def test_only_retryable_kinds_open_the_breaker(
    clock: FakeClock, kind: FailureKind, *, should_retry: bool | None
) -> None:
    """A provider that refuses a request is alive, whatever `x-should-retry` says."""
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    state = one(clock, breaker=breaker)
    state.admit()
    state.failed(Failure(kind, should_retry=should_retry))
    is_sick = Failure(kind).is_retryable and kind is not FailureKind.REJECTED
    assert breaker.is_open is is_sick


@pytest.mark.parametrize(("seconds", "is_open"), [(60.0, False), (61.0, True)])
def test_a_retry_after_that_is_too_long_opens_the_breaker(
    clock: FakeClock, seconds: float, *, is_open: bool
) -> None:
    """No call asks a provider before the time that it named."""
    breaker = CircuitBreaker(clock=clock)
    state = one(clock, breaker=breaker)
    state.admit()
    state.failed(Failure(FailureKind.RATE_LIMIT, retry_after=seconds))
    assert breaker.retry_after == (seconds if is_open else 0)


@pytest.mark.parametrize("end", ["succeeded", "failed", "interrupted", "cancelled"])
def test_every_end_of_a_call_settles_its_permit(clock: FakeClock, end: str) -> None:
    """However a probe's call ends, the breaker can admit another one later."""
    breaker = opened(clock)
    clock.advance(30)
    state = one(clock, breaker=breaker)
    assert state.admit() is None
    if end == "failed":
        state.failed(UNAVAILABLE)
    elif end == "interrupted":
        state.stream_interrupted(UNAVAILABLE)
        assert state.decision == Stop("part of the answer was already delivered")
    else:
        getattr(state, end)()
    clock.advance(30)
    assert one(clock, breaker=breaker).admit() is None


# --- routes ---


@pytest.mark.parametrize("kind", FailureKind)
def test_the_action_of_each_kind(clock: FakeClock, kind: FailureKind) -> None:
    """A transient failure is retried before it fails over, others are not retried."""
    wait = Retry(0.0 if kind is FailureKind.REJECTED else 0.5)
    expected: dict[FailureAction, tuple[str, list[Decision]]] = {
        FailureAction.RETRY: (
            "aabb",
            [wait, Retry(0.0), wait, Stop("no retries left, no route left")],
        ),
        FailureAction.FAILOVER: ("ab", [Retry(0.0), Stop("no route left")]),
        FailureAction.RAISE: ("a", [Stop()]),
    }
    asked, decisions = expected[FAILURE_ACTIONS[kind]]
    state = routed(clock, "a", "b", policy={"max_retries": 1})
    for decision in decisions:
        assert state.admit() is None
        assert state.failed(Failure(kind)) == decision
    assert "".join(route or "" for route, _ in outcomes(state)) == asked
    single = routed(clock, "a", policy={"max_retries": 0})
    single.admit()
    is_retried = FAILURE_ACTIONS[kind] is FailureAction.RETRY
    assert single.failed(Failure(kind)) == Stop("retries are off" if is_retried else "")


@given(
    routes=st.integers(1, 4),
    max_retries=st.integers(0, 3),
    kinds=st.lists(st.sampled_from(list(FailureKind)), min_size=20, max_size=20),
)
def test_no_route_gets_more_attempts_than_allowed(
    routes: int, max_retries: int, kinds: list[FailureKind]
) -> None:
    """Each is asked in turn, and the call returns to each at most once."""
    names = "abcd"[:routes]
    state = routed(FakeClock(), *names, policy={"max_retries": max_retries})
    for kind in kinds:
        assert state.admit() is None
        if isinstance(state.failed(Failure(kind)), Stop):
            break
    asked = [str(route) for route, _ in outcomes(state)]
    returns = sum(after < before for before, after in itertools.pairwise(asked))
    assert returns <= routes
    assert all(asked.count(name) <= max_retries + 1 for name in names)


def test_the_deadline_ends_failover_too(clock: FakeClock) -> None:
    """A wait that does not fit leads to the next route, until the time is over."""
    state = routed(clock, "a", "b", policy={"deadline": 1})
    state.admit()
    clock.advance(0.6)
    assert state.failed(UNAVAILABLE) == Retry(0.0)
    state.admit()
    clock.advance(0.4)
    assert state.failed(UNAVAILABLE) == Stop("the deadline of 1 s is over")


def test_a_route_with_an_open_breaker_is_skipped(clock: FakeClock) -> None:
    """The attempt log says which routes were skipped, once each."""
    breakers = {"a": opened(clock), "c": opened(clock)}
    state = routed(clock, *"abcd", breakers=breakers, policy={"max_retries": 0})
    assert state.admit() is None
    assert state.failed(UNAVAILABLE) == Retry(0.0)
    assert state.admit() is None
    state.succeeded()
    assert outcomes(state) == [
        ("a", "circuit_open"),
        ("b", "unavailable"),
        ("c", "circuit_open"),
        ("d", "ok"),
    ]
    assert state.attempts == 2
    assert state.records[0].number is None


def test_a_breaker_that_opens_ends_the_retries_of_its_route(clock: FakeClock) -> None:
    """There is nothing to wait for on a route whose breaker has opened."""
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    state = routed(clock, "a", "b", breakers={"a": breaker})
    state.admit()
    assert state.failed(UNAVAILABLE) == Retry(0.0)
    assert state.next_route == "b"


@pytest.mark.parametrize(
    ("policy", "is_stream", "limits"),
    [
        ({}, False, [None, None]),
        ({"deadline": 10}, False, [5, 8]),
        ({"deadline": 10}, True, [5, 8]),
        ({"deadline": 10, "attempt_timeout": 7}, False, [7, 7]),
        ({"deadline": 10, "first_token_timeout": 20}, True, [10, 8]),
        ({"attempt_timeout": 7}, True, [None, None]),
    ],
)
def test_a_silent_route_leaves_time_for_the_others(
    clock: FakeClock,
    policy: dict[str, Any],
    is_stream: bool,
    limits: list[float | None],
) -> None:
    """Without a limit of its own, a route gets its share of the deadline."""
    state = routed(clock, "a", "b", policy=policy)
    state.admit()
    first = state.attempt_timeout(is_stream=is_stream)
    clock.advance(2)
    state.failed(Failure(FailureKind.TIMEOUT))
    state.admit()
    assert [first, state.attempt_timeout(is_stream=is_stream)] == limits


# --- hedges and continued streams ---


@pytest.mark.parametrize("has_won", [True, False])
@pytest.mark.parametrize("failure", [None, UNAVAILABLE])
def test_one_of_two_attempts_goes_on(
    clock: FakeClock, has_won: bool, failure: Failure | None
) -> None:
    """The winner is the call's attempt; the loser's permit and log line are settled."""
    breakers = {
        name: CircuitBreaker(failure_threshold=1, clock=clock) for name in ("a", "b")
    }
    state, budget = routed(clock, "a", "b", breakers=breakers), RetryBudget()
    state.admit()
    assert state.hedge() == 1
    assert (state.position, state.route, state.attempts) == (0, "a", 2)
    state.settle_hedge(has_won=has_won, failure=failure)
    winner, loser = ("b", "a") if has_won else ("a", "b")
    assert state.route == winner
    assert breakers[loser].is_open is (failure is not None)
    state.succeeded()
    assert dict(outcomes(state)) == {
        winner: "ok",
        loser: "unavailable" if failure else "cancelled",
    }
    assert budget.tokens == 500


def test_a_hedge_needs_another_route_and_tokens(clock: FakeClock) -> None:
    """It is paid for like a retry, and skips routes whose breakers refuse."""
    single = routed(clock, "a")
    single.admit()
    assert single.hedge() is None
    poor = routed(clock, "a", "b", budget=RetryBudget(capacity=13))
    poor.admit()
    assert poor.hedge() is None
    half_open = opened(clock)
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
    assert outcomes(state) == [("a", "cancelled"), ("b", "cancelled")]


def test_a_failure_of_the_call_cancels_its_hedge(clock: FakeClock) -> None:
    """If the attempt runs out of time, the second one holds no permit either."""
    breaker = opened(clock)
    clock.advance(30)
    state = routed(clock, "a", "b", breakers={"b": breaker})
    state.admit()
    assert state.hedge() == 1
    state.failed(Failure(FailureKind.TIMEOUT))
    assert outcomes(state) == [("a", "timeout"), ("b", "cancelled")]
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


# --- an outage ---


@given(random=st.floats(0, 1, exclude_max=True), jitter=st.sampled_from([0.0, 0.1]))
def test_a_failing_provider_is_left_alone_and_found_again(
    random: float, jitter: float
) -> None:
    """Few attempts reach it during an outage, and calls return to it soon after."""
    clock = FakeClock(random=random)
    breaker = CircuitBreaker(failure_threshold=3, recovery_jitter=jitter, clock=clock)
    asked: list[tuple[float, str | None]] = []
    for number in range(25):
        clock.advance(max(0.0, number * 6.0 - clock.monotonic()))
        state = routed(clock, "primary", "backup", breakers={"primary": breaker})
        while state.admit() is None:
            asked.append((clock.monotonic(), state.route))
            if state.route == "backup" or clock.monotonic() >= 90:
                state.succeeded()
                break
            decision = state.failed(UNAVAILABLE)
            assert isinstance(decision, Retry)
            clock.sleep(decision.delay)
    primary = [now for now, route in asked if route == "primary"]
    assert len([now for now in primary if now < 90]) <= 3 * 3 + 2
    back = min(now for now in primary if now >= 90)
    assert back <= 90 + 30 + 6
    assert all(route == "primary" for now, route in asked if now >= back)


def test_a_breaker_that_other_calls_open_is_probed(clock: FakeClock) -> None:
    """A call that waited for its only route asks it, unless another call does."""
    breaker = CircuitBreaker(failure_threshold=2, clock=clock)
    first, second = (routed(clock, "a", breakers={"a": breaker}) for _ in range(2))
    for state in (first, second):
        state.admit()
        state.failed(UNAVAILABLE)
    assert breaker.is_open
    assert first.admit() is None
    refusal = routed(clock, "a", breakers={"a": breaker}).admit()
    assert refusal is not None
    first.succeeded()
    assert not breaker.is_open
