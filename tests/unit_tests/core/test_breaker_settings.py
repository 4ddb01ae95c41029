"""The fuse's finer settings: a share of failures, a server's word, and chance."""

from __future__ import annotations

import math
import pickle
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter.circuit_breaker import (
    BreakerState,
    CircuitBreaker,
    OutcomeWindow,
    Permit,
    Refusal,
)
from langchain_retryrouter.failures import Failure, FailureKind
from langchain_retryrouter.policy import RetryPolicy
from langchain_retryrouter.testing import FakeClock

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def admitted(breaker: CircuitBreaker, now: float) -> Permit:
    permit = breaker.admit(now)
    assert isinstance(permit, Permit)
    return permit


def feed(breaker: CircuitBreaker, outcomes: str, now: float = 0.0) -> None:
    """Settle a call for each letter: `x` failed, `.` succeeded."""
    for outcome in outcomes:
        permit = admitted(breaker, now)
        if outcome == "x":
            breaker.failed(permit, now)
        else:
            breaker.succeeded(permit, now)


# --- the share of failures ----------------------------------------------------------


def rated(**settings: Any) -> CircuitBreaker:
    """A breaker that counts the share of failures, and no failures in a row."""
    return CircuitBreaker(
        **{
            "failure_threshold": 1_000,
            "failure_rate": 0.5,
            "minimum_calls": 4,
            **settings,
        }
    )


@pytest.mark.parametrize(
    ("settings", "outcomes", "state"),
    [
        ({}, "x.x", CLOSED),
        ({}, ".x.x", OPEN),
        ({}, "..x.x", CLOSED),
        ({}, "..x.xx", OPEN),
        ({}, "xxx.", CLOSED),
        ({}, "xxxx", OPEN),
        ({"failure_rate": 1.0}, ".xxxxxxxx", CLOSED),
        ({"failure_rate": 1}, "xxxx", OPEN),
        ({"minimum_calls": 1}, "x", OPEN),
        ({"failure_rate": 0.07, "minimum_calls": 100}, "." * 93 + "x" * 7, OPEN),
        ({"failure_rate": None}, "x" * 999, CLOSED),
        ({"failure_rate": None}, "x" * 1_000, OPEN),
        ({"failure_threshold": 2}, "xx", OPEN),
    ],
    ids=lambda value: str(value)[:40],
)
def test_it_opens_at_a_share_of_failures(
    settings: dict[str, Any], outcomes: str, state: BreakerState
) -> None:
    """A failure opens it once enough calls were seen and enough of them failed."""
    breaker = rated(**settings)
    feed(breaker, outcomes)
    assert breaker.state(0) is state


def test_successes_in_between_do_not_hide_a_sick_provider() -> None:
    """Every third answer good keeps a row short for ever, but not the share small."""
    in_a_row = CircuitBreaker(failure_threshold=3)
    feed(in_a_row, "xx." * 50)
    assert in_a_row.state(0) is CLOSED
    by_share = CircuitBreaker(failure_threshold=3, failure_rate=0.6)
    feed(by_share, "xx." * 3 + "x")
    assert by_share.state(0) is OPEN


def test_what_is_older_than_the_window_is_forgotten() -> None:
    """Failures of a minute ago say nothing about the calls of now."""
    breaker = rated(window=60)
    feed(breaker, "xxx", now=0)
    feed(breaker, "x..", now=60)
    assert breaker.state(60) is CLOSED
    feed(breaker, "x", now=100)
    assert breaker.state(100) is OPEN


def test_a_success_counts_when_it_came() -> None:
    """A slow answer is as young as its end, and not as old as its beginning."""
    breaker = rated(window=60)
    for call in [admitted(breaker, 0) for _ in range(4)]:
        breaker.succeeded(call, 50)
    feed(breaker, ".xxx", now=65)
    assert breaker.state(65) is CLOSED


@pytest.mark.parametrize("refusal", [None, Failure(FailureKind.INVALID_REQUEST)])
def test_a_session_tells_when_an_answer_came(refusal: Failure | None) -> None:
    """A call that took long counts at its end, be the answer only a refusal."""
    clock, breaker = FakeClock(), rated(window=60)
    sessions = [CallState(RetryPolicy(), breaker=breaker, time=clock) for _ in range(4)]
    for call_state in sessions:
        call_state.admit()
    clock.advance(50)
    for call_state in sessions:
        call_state.succeeded() if refusal is None else call_state.failed(refusal)
    feed(breaker, ".xxx", now=65)
    assert breaker.state(65) is CLOSED


def test_a_success_without_a_time_counts_at_the_last_admission() -> None:
    """A caller that tells no time with its success is counted all the same."""
    breaker = rated()
    for _ in range(4):
        breaker.succeeded(admitted(breaker, 5.0))
    feed(breaker, "xxx", now=5.0)
    assert breaker.state(5.0) is CLOSED
    feed(breaker, "x", now=5.0)
    assert breaker.state(5.0) is OPEN


def test_a_recovered_provider_starts_with_a_clean_sheet() -> None:
    """After the probe's success the share is reckoned anew."""
    breaker = rated()
    feed(breaker, "xxxx")
    feed(breaker, ".", now=30)
    feed(breaker, "xxx", now=30)
    assert breaker.state(30) is CLOSED
    feed(breaker, "x", now=30)
    assert breaker.state(30) is OPEN


@given(
    st.lists(st.tuples(st.floats(0, 30) | st.just(0.0), st.booleans()), max_size=60),
    st.floats(0.5, 100),
)
def test_the_window_counts_the_latest_calls(
    story: list[tuple[float, bool]], seconds: float
) -> None:
    """All of the last nine tenths of a window are counted, none older than it."""
    window = OutcomeWindow(seconds)
    now, told = 1_000.0, []
    for pause, has_failed in story:
        now += pause
        window.add(now, has_failed=has_failed)
        told.append((now, has_failed))
        surely = [bad for at, bad in told if at > now - 0.9 * seconds + 1e-9]
        at_most = [bad for at, bad in told if at > now - seconds]
        assert len(surely) <= window.calls <= len(at_most)
        assert sum(surely) <= window.failures <= sum(at_most)


def test_the_window_does_not_grow_with_its_calls() -> None:
    """A million calls a minute take no more memory than ten."""
    window = OutcomeWindow(60.0)
    for number in range(100_000):
        window.add(number * 0.01, has_failed=number % 2 == 0)
        if number % 1_000 == 0:
            assert len(pickle.dumps(window)) < 1_000
    assert 5_400 <= window.calls <= 6_000
    assert window.failures == pytest.approx(window.calls / 2, abs=1)


def test_a_thread_that_is_late_counts_with_the_others() -> None:
    """Two threads may read the clock in one order and get the lock in the other."""
    window = OutcomeWindow(10.0)
    window.add(100.0, has_failed=False)
    window.add(99.9, has_failed=True)
    assert (window.calls, window.failures) == (2, 1)


# --- a server's word ----------------------------------------------------------------


def test_a_server_can_close_the_door() -> None:
    """One demand for a long pause is enough, whatever the threshold; then a probe."""
    breaker = CircuitBreaker(failure_threshold=5)
    breaker.open_for(0, 120)
    assert breaker.admit(119) == Refusal(1.0)
    assert admitted(breaker, 120).is_probe
    assert breaker.admit(120) == Refusal(0.0)


@pytest.mark.parametrize(
    ("seconds", "refused"), [(20, 25.0), (25, 25.0), (26, 26.0), (300, 300.0)]
)
def test_of_two_demands_the_longer_counts(seconds: float, refused: float) -> None:
    """An open door stays shut for as long as the most patient demand says."""
    breaker = CircuitBreaker(failure_threshold=1)
    breaker.failed(admitted(breaker, 0), 0)
    breaker.open_for(5, seconds)
    assert breaker.admit(5) == Refusal(refused)


def test_a_servers_word_outweighs_a_probe_under_way() -> None:
    """While a probe runs, another call may learn that the pause is a long one."""
    breaker = CircuitBreaker(failure_threshold=1)
    breaker.failed(admitted(breaker, 0), 0)
    probe = admitted(breaker, 30)
    breaker.open_for(31, 100)
    breaker.succeeded(probe, 32)
    assert breaker.admit(32) == Refusal(99.0)


@pytest.mark.parametrize(
    ("seconds", "until"),
    [
        (0, 0.0),
        (-1, 0.0),
        (math.nan, 0.0),
        (0.5, 0.5),
        (1e60, 86_400.0),
        (math.inf, 86_400.0),
    ],
)
def test_a_number_that_cannot_be_meant_shuts_nobody_out(
    seconds: float, until: float
) -> None:
    """What is no pause does nothing, and the longest is a day."""
    breaker = CircuitBreaker()
    breaker.open_for(0, seconds)
    assert breaker.state(until) is (HALF_OPEN if until else CLOSED)
    assert breaker.state(until - 1) is (OPEN if until else CLOSED)


@pytest.mark.parametrize(
    ("retry_after", "refused"), [(None, 30.0), (0.0, 30.0), (7.0, 30.0), (45.0, 45.0)]
)
def test_it_opens_for_no_less_than_the_server_asked(
    retry_after: float | None, refused: float
) -> None:
    """A Retry-After above the recovery time is the recovery time of this opening."""
    breaker = CircuitBreaker(failure_threshold=2)
    breaker.failed(admitted(breaker, 0), 0, retry_after=1_000.0)
    assert breaker.state(0) is CLOSED
    breaker.failed(admitted(breaker, 0), 0, retry_after=retry_after)
    assert breaker.admit(0) == Refusal(refused)


@pytest.mark.parametrize("end", ["failed", "broke_off"])
@pytest.mark.parametrize(
    ("retry_after", "refused"), [(None, None), (60.0, None), (90.0, 90.0)]
)
def test_a_pause_that_nobody_waits_for_closes_the_door(
    end: str, retry_after: float | None, refused: float | None
) -> None:
    """A Retry-After above the policy's limit holds back all calls, not only its own."""
    clock = FakeClock()
    breaker = CircuitBreaker()
    policy = RetryPolicy(max_retry_after=60)
    call_state = CallState(policy, breaker=breaker, time=clock)
    call_state.admit()
    getattr(call_state, end)(Failure(FailureKind.RATE_LIMIT, retry_after=retry_after))
    answer = CallState(policy, breaker=breaker, time=clock).admit()
    assert answer == (None if refused is None else Refusal(refused))


# --- chance -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jitter", "random", "refused"),
    [(0.0, 0.9, 30.0), (0.5, 0.0, 30.0), (0.5, 0.5, 37.5), (1.0, 0.5, 45.0)],
)
def test_processes_do_not_probe_together(
    jitter: float, random: float, refused: float
) -> None:
    """A random part of a share of the recovery time comes on top at each opening."""
    breaker = CircuitBreaker(failure_threshold=1, recovery_jitter=jitter)
    breaker.failed(admitted(breaker, 0), 0, random=random)
    assert breaker.admit(0) == Refusal(refused)
    held = CircuitBreaker(recovery_jitter=jitter)
    held.open_for(0, 90, random=random)
    assert held.admit(0) == Refusal(60 + refused)


def test_who_throws_no_dice_adds_nothing() -> None:
    """Without a chance handed in, a door is shut for exactly as long as was said."""
    failed, held = (
        CircuitBreaker(failure_threshold=1, recovery_jitter=1.0) for _ in range(2)
    )
    failed.failed(admitted(failed, 0), 0)
    held.open_for(0, 90)
    assert (failed.admit(0), held.admit(0)) == (Refusal(30.0), Refusal(90.0))


def test_a_session_hands_on_what_the_server_asked_for() -> None:
    """A short Retry-After lengthens an opening; a long one opens, with dice thrown."""
    clock = FakeClock(random=0.5)
    opens = CircuitBreaker(failure_threshold=1)
    holds = CircuitBreaker(recovery_jitter=1.0)
    for breaker, seconds in ((opens, 45.0), (holds, 90.0)):
        call_state = CallState(RetryPolicy(), breaker=breaker, time=clock)
        call_state.admit()
        call_state.failed(Failure(FailureKind.RATE_LIMIT, retry_after=seconds))
    assert opens.admit(0) == Refusal(45.0)
    assert holds.admit(0) == Refusal(90.0 + 0.5 * 30.0)


def test_a_sessions_dice_are_the_breakers() -> None:
    """The breaker has no dice of its own: the call's clock throws them."""
    clock = FakeClock(random=0.5)
    breaker = CircuitBreaker(failure_threshold=1, recovery_jitter=0.2)
    call_state = CallState(RetryPolicy(), breaker=breaker, time=clock)
    call_state.admit()
    call_state.failed(Failure(FailureKind.UNAVAILABLE))
    assert breaker.admit(0) == Refusal(33.0)


# --- what it is ---------------------------------------------------------------------

SETTINGS: dict[str, Any] = {
    "failure_threshold": 1_000_000,
    "recovery_time": 7.5,
    "failure_rate": 0.25,
    "window": 10.0,
    "minimum_calls": 3,
    "recovery_jitter": 0.1,
}


def numbers_of(breaker: CircuitBreaker) -> dict[str, Any]:
    return {name: getattr(breaker, name) for name in SETTINGS}


def test_a_fresh_one_has_the_numbers_and_a_state_of_its_own() -> None:
    """One template makes a breaker for each route, and none knows of the others."""
    template = CircuitBreaker(**SETTINGS)
    template.open_for(0, 100)
    clone = template.clone()
    assert numbers_of(clone) == SETTINGS
    assert clone.state(0) is CLOSED
    clone.open_for(0, 200)
    assert template.state(150) is HALF_OPEN
    assert clone.state(150) is OPEN


def test_a_pickle_carries_all_numbers() -> None:
    """No setting is lost on the way to another process."""
    assert numbers_of(pickle.loads(pickle.dumps(CircuitBreaker(**SETTINGS)))) == (
        SETTINGS
    )


def test_it_shows_all_numbers_that_were_given() -> None:
    """A breaker in a log says what it was made with, and how to make it again."""
    breaker = CircuitBreaker(**SETTINGS)
    assert repr(breaker) == (
        "CircuitBreaker(failure_threshold=1000000, recovery_time=7.5,"
        " failure_rate=0.25, window=10, minimum_calls=3, recovery_jitter=0.1)"
    )
    assert repr(CircuitBreaker(recovery_time=2e6)) == (
        "CircuitBreaker(failure_threshold=5, recovery_time=2e+06)"
    )


@pytest.mark.parametrize(
    "edges",
    [
        {"failure_rate": 1, "recovery_jitter": 1, "minimum_calls": 1},
        {"failure_rate": 5e-324, "recovery_jitter": 0, "window": 5e-324},
        {"recovery_time": sys.float_info.max, "window": sys.float_info.max},
    ],
    ids=["most", "least", "longest"],
)
def test_the_edges_are_allowed(edges: dict[str, Any]) -> None:
    """The ends of each range belong to it."""
    breaker = CircuitBreaker(**edges)
    assert {name: getattr(breaker, name) for name in edges} == edges


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        *(
            ("failure_rate", value, "a share above 0 and up to 1")
            for value in (0, -0.1, 1.01, math.nan, True, "0.5")
        ),
        *(
            ("recovery_jitter", value, "a share from 0 to 1")
            for value in (-0.1, 1.01, math.nan, False, None)
        ),
        *(
            ("window", value, "a finite number above 0")
            for value in (0, -1, math.inf, math.nan, None)
        ),
        *(
            ("minimum_calls", value, "a whole number, 1 or more")
            for value in (0, -1, 2.0, True, None)
        ),
    ],
)
def test_numbers_out_of_range_are_refused(name: str, value: Any, told: str) -> None:
    """What is no setting is refused at construction, by name and value."""
    with pytest.raises(ValueError, match=f"^{name} must be {told}, not") as caught:
        CircuitBreaker(**{name: value})
    assert str(caught.value).endswith(repr(value))
