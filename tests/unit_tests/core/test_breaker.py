"""The fuse: when it opens, who may try, and whose word counts."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from langchain_retryrouter.circuit_breaker import (
    BreakerState,
    CircuitBreaker,
    Permit,
    Refusal,
)
from tests.unit_tests.core.interleaving import interleavings

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def admitted(breaker: CircuitBreaker, now: float) -> Permit:
    """A permit that the breaker must give."""
    permit = breaker.admit(now)
    assert isinstance(permit, Permit)
    return permit


def opened(now: float = 0.0, **numbers: Any) -> CircuitBreaker:
    """A breaker that opened at `now`."""
    breaker = CircuitBreaker(**{"failure_threshold": 1, **numbers})
    breaker.failed(admitted(breaker, now), now)
    return breaker


def test_closed_it_lets_everything_through() -> None:
    """A breaker starts closed, and successes leave it so."""
    breaker = CircuitBreaker()
    for _ in range(100):
        breaker.succeeded(admitted(breaker, 0))
    assert breaker.state(0) is CLOSED


@pytest.mark.parametrize("threshold", [1, 2, 5])
def test_it_opens_at_the_threshold(threshold: int) -> None:
    """So many failures in a row open it, and not one fewer."""
    breaker = CircuitBreaker(failure_threshold=threshold)
    for number in range(1, threshold + 1):
        assert breaker.state(0) is CLOSED, number
        breaker.failed(admitted(breaker, 0), 0)
    assert breaker.state(0) is OPEN


def test_a_success_ends_the_row() -> None:
    """Failures count in a row only: a success in between starts the count anew."""
    breaker = CircuitBreaker(failure_threshold=3)
    for _ in range(50):
        breaker.failed(admitted(breaker, 0), 0)
        breaker.failed(admitted(breaker, 0), 0)
        breaker.succeeded(admitted(breaker, 0))
    assert breaker.state(0) is CLOSED


def test_an_abandoned_call_says_nothing() -> None:
    """A call that nobody waited for neither counts as a failure nor ends the row."""
    breaker = CircuitBreaker(failure_threshold=2)
    breaker.failed(admitted(breaker, 0), 0)
    breaker.cancelled(admitted(breaker, 0))
    assert breaker.state(0) is CLOSED
    breaker.failed(admitted(breaker, 0), 0)
    assert breaker.state(0) is OPEN


@pytest.mark.parametrize(
    ("now", "refusal", "state"),
    [
        (0.0, 30.0, OPEN),
        (10.0, 20.0, OPEN),
        (29.5, 0.5, OPEN),
        (30.0, None, HALF_OPEN),
        (1e9, None, HALF_OPEN),
    ],
)
def test_open_it_says_for_how_long(
    now: float, refusal: float | None, state: BreakerState
) -> None:
    """A refusal tells the seconds until a probe is let through, and then one is."""
    breaker = opened()
    assert breaker.state(now) is state
    answer = breaker.admit(now)
    if refusal is None:
        assert isinstance(answer, Permit)
        assert answer.is_probe
    else:
        assert answer == Refusal(retry_after=refusal)


def test_one_probe_at_a_time() -> None:
    """While the probe is under way, all others are told to stay away."""
    breaker = opened()
    admitted(breaker, 30)
    assert [breaker.admit(now) for now in (30, 31, 1_000)] == [Refusal(0.0)] * 3


def test_a_probe_that_succeeds_closes_it() -> None:
    """One good answer is enough, and the old failures are forgotten."""
    breaker = opened()
    breaker.succeeded(admitted(breaker, 30))
    assert breaker.state(30) is CLOSED
    assert not admitted(breaker, 30).is_probe


def test_a_probe_that_fails_opens_it_anew() -> None:
    """The time of recovery starts again, from the probe's failure."""
    breaker = opened(failure_threshold=1)
    breaker.failed(admitted(breaker, 40), 45)
    assert breaker.admit(45) == Refusal(30.0)
    assert admitted(breaker, 75).is_probe


def test_one_failed_probe_is_enough_whatever_the_threshold() -> None:
    """Half-open, the breaker is not patient: a threshold of 5 is for the healthy."""
    breaker = CircuitBreaker(failure_threshold=5)
    for _ in range(5):
        breaker.failed(admitted(breaker, 0), 0)
    breaker.failed(admitted(breaker, 30), 30)
    assert breaker.state(30) is OPEN
    breaker.succeeded(admitted(breaker, 60))
    breaker.failed(admitted(breaker, 60), 60)
    assert breaker.state(60) is CLOSED


def test_after_an_outage_the_row_starts_anew() -> None:
    """Closed again, it takes as many failures in a row to open as at the beginning."""
    breaker = CircuitBreaker(failure_threshold=3)
    for now in (0, 30, 60):
        for _ in range(2):
            breaker.failed(admitted(breaker, now), now)
        assert breaker.state(now) is CLOSED
        breaker.failed(admitted(breaker, now), now)
        assert breaker.state(now) is OPEN
        breaker.succeeded(admitted(breaker, now + 30))


def test_an_abandoned_probe_gives_its_place_back() -> None:
    """A cancelled probe proves nothing, and does not block the next one."""
    breaker = opened()
    breaker.cancelled(admitted(breaker, 30))
    assert breaker.state(30) is HALF_OPEN
    assert admitted(breaker, 30).is_probe


@pytest.mark.parametrize("final_error", ["succeeded", "failed", "abandoned"])
def test_a_call_of_an_earlier_era_has_no_say(final_error: str) -> None:
    """A slow call admitted before an outage says nothing about the time after it."""
    breaker = CircuitBreaker(failure_threshold=1)
    slow = admitted(breaker, 0)
    breaker.failed(admitted(breaker, 0), 0)
    settle(breaker, final_error, slow, 10)
    assert breaker.state(10) is OPEN
    probe = admitted(breaker, 30)
    settle(breaker, final_error, slow, 30)
    assert breaker.admit(30) == Refusal(0.0)  # The probe's place is still taken.
    breaker.succeeded(probe)
    settle(breaker, final_error, slow, 30)
    assert breaker.state(30) is CLOSED


@pytest.mark.parametrize("final_error", ["succeeded", "failed", "abandoned"])
def test_an_old_probe_has_no_say_either(final_error: str) -> None:
    """A probe that is settled once more does not touch the next one's place."""
    breaker = opened()
    old = admitted(breaker, 30)
    breaker.failed(old, 30)
    admitted(breaker, 60)
    settle(breaker, final_error, old, 60)
    assert breaker.state(60) is HALF_OPEN
    assert breaker.admit(60) == Refusal(0.0)


def settle(
    breaker: CircuitBreaker, final_error: str, permit: Permit, now: float
) -> None:
    """Give the breaker one of its three verdicts."""
    if final_error == "failed":
        breaker.failed(permit, now)
    elif final_error == "succeeded":
        breaker.succeeded(permit)
    else:
        breaker.cancelled(permit)


def test_a_clock_that_starts_below_zero_will_do() -> None:
    """A monotonic clock may start anywhere."""
    breaker = opened(now=-1_000.0)
    assert breaker.admit(-990.0) == Refusal(20.0)
    assert admitted(breaker, -970.0).is_probe


# --- many threads -------------------------------------------------------------------


@pytest.mark.usefixtures("restless_threads")
def test_exactly_one_of_five_hundred_threads_is_the_probe() -> None:
    """However many knock at once, one is let through, and all others are refused."""
    for _ in range(5):
        breaker = opened()
        knock = threading.Barrier(500)
        answers: list[Permit | Refusal] = []

        def call(
            breaker: CircuitBreaker = breaker,
            knock: threading.Barrier = knock,
            answers: list[Permit | Refusal] = answers,
        ) -> None:
            knock.wait()
            answers.append(breaker.admit(30))

        threads = [threading.Thread(target=call) for _ in range(500)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        probes = [answer for answer in answers if isinstance(answer, Permit)]
        assert len(answers) == 500
        assert len(probes) == 1
        assert probes[0].is_probe


def test_nobody_slips_past_a_probe_that_is_being_admitted() -> None:
    """Whoever knocks between two steps of an admission does not become a probe too."""

    def prepare() -> Callable[[], Permit | Refusal]:
        breaker = opened()
        return lambda: breaker.admit(30)

    for answers in interleavings(prepare):
        assert sum(isinstance(answer, Permit) for answer in answers) == 1


# --- what it is ---------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "5", None, math.nan])
def test_the_threshold_is_a_whole_number(value: Any) -> None:
    """What is no number of failures is refused by name and value."""
    with pytest.raises(ValueError, match="failure_threshold must be a whole") as caught:
        CircuitBreaker(failure_threshold=value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [0, -1.0, math.nan, math.inf, 10**400, True, "30", None],
    ids=lambda v: repr(v)[:9],
)
def test_the_recovery_time_is_above_zero(value: Any) -> None:
    """What is no time to recover in is refused by name and value."""
    with pytest.raises(ValueError, match="recovery_time must be a finite") as caught:
        CircuitBreaker(recovery_time=value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_is_the_same_breaker(duplicate: Any) -> None:
    """A copied model goes on sharing: sharing is what a breaker is for."""
    breaker = CircuitBreaker()
    assert duplicate(breaker) is breaker
    assert duplicate({"breaker": breaker})["breaker"] is breaker


def test_a_pickle_carries_the_numbers_and_starts_closed() -> None:
    """Another process has a clock of its own: what happened here stays here."""
    breaker = opened(failure_threshold=1, recovery_time=7)
    other = pickle.loads(pickle.dumps(breaker))
    assert (other.failure_threshold, other.recovery_time) == (1, 7)
    assert other.state(0) is CLOSED
    assert breaker.state(0) is OPEN


def test_it_shows_its_numbers() -> None:
    """A breaker in a log says what it was made with."""
    told = "CircuitBreaker(failure_threshold=5, recovery_time=30)"
    assert repr(CircuitBreaker()) == told


# --- any order of events ------------------------------------------------------------


REFUSED = Permit(generation=-1, is_probe=False)
"""Stands for a call that was not let through: a permit of no era has no say."""


class BreakerLife(RuleBasedStateMachine):
    """A model of the breaker, simple enough to be believed, beside the real one."""

    calls: Bundle[tuple[Permit, int]] = Bundle("calls")

    @initialize(threshold=st.integers(1, 4), recovery=st.integers(1, 10))
    def start(self, threshold: int, recovery: int) -> None:
        """Closed, with nothing under way."""
        self.breaker = CircuitBreaker(
            failure_threshold=threshold, recovery_time=recovery
        )
        self.threshold, self.recovery = threshold, recovery
        self.now = 0
        self.row = 0
        self.opened_at: int | None = None
        self.probe: Permit | None = None
        self.turns = 0

    @rule(seconds=st.integers(0, 12))
    def wait(self, seconds: int) -> None:
        """Time passes."""
        self.now += seconds

    @rule(target=calls)
    def call(self) -> tuple[Permit, int] | Any:
        """Let through when closed, or as the one probe after the recovery time."""
        answer = self.breaker.admit(self.now)
        if self.opened_at is None:
            assert isinstance(answer, Permit)
            assert not answer.is_probe
        elif self.now < self.opened_at + self.recovery:
            assert answer == Refusal(self.opened_at + self.recovery - self.now)
        elif self.probe is not None:
            assert answer == Refusal(0.0)
        else:
            assert isinstance(answer, Permit)
            assert answer.is_probe
            self.probe = answer
        # What was refused goes into the bundle too, as a call of no era.
        return (answer, self.turns) if isinstance(answer, Permit) else (REFUSED, -1)

    @rule(call=consumes(calls))
    def succeed(self, call: tuple[Permit, int]) -> None:
        """A good answer ends the row, and closes if it was the probe's."""
        permit, turn = call
        self.breaker.succeeded(permit)
        if turn == self.turns:
            self.row = 0
            if permit.is_probe:
                self.turn(None)

    @rule(call=consumes(calls))
    def fail(self, call: tuple[Permit, int]) -> None:
        """A failure lengthens the row, and opens at its end, as a probe's does."""
        permit, turn = call
        self.breaker.failed(permit, self.now)
        if turn == self.turns:
            self.row += 1
            if permit.is_probe or self.row == self.threshold:
                self.turn(self.now)

    @rule(call=consumes(calls))
    def abandon(self, call: tuple[Permit, int]) -> None:
        """Nobody waited: a probe's place is free again, and else nothing happened."""
        permit, turn = call
        self.breaker.cancelled(permit)
        if turn == self.turns and permit.is_probe:
            self.probe = None

    def turn(self, opened_at: int | None) -> None:
        """The breaker opened or closed."""
        self.turns += 1
        self.row = 0
        self.probe = None
        self.opened_at = opened_at

    @invariant()
    def the_state_agrees(self) -> None:
        """Its state is what the model says."""
        if not hasattr(self, "breaker"):
            return
        if self.opened_at is None:
            expected = CLOSED
        elif self.now < self.opened_at + self.recovery:
            expected = OPEN
        else:
            expected = HALF_OPEN
        assert self.breaker.state(self.now) is expected


TestBreakerLife = BreakerLife.TestCase
