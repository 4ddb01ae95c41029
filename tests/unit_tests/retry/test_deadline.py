"""The deadline: one number over attempts and waits, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from langchain_retryrouter._retry.engine import Attempt, acall
from langchain_retryrouter.errors import RetryRouterError, UnavailableError
from langchain_retryrouter.policy import RetryBudget, RetryPolicy
from langchain_retryrouter.testing import FakeClock

from .engines import Drive, plan_for
from .scripted import END, Script, Source, Witness, token

HEL = token("Hel")


class Failing:
    """An outcome that takes its time and then fails."""

    def __init__(self, clock: FakeClock, seconds: float) -> None:
        """Take `seconds` of the clock."""
        self._clock = clock
        self._seconds = seconds

    def __call__(self) -> RetryRouterError:
        """Fail."""
        self._clock.advance(self._seconds)
        return UnavailableError("503")


def test_each_attempt_is_given_what_is_left(drive: Drive, clock: FakeClock) -> None:
    """One number over all attempts and waits: each attempt is told what is left."""
    slow = Failing(clock, 3)
    script = Script(slow, slow, "hello")
    policy = RetryPolicy(deadline=10, max_retries=5)
    assert drive.call(plan_for(clock, policy), script) == "hello"
    assert script.timeouts == [10, 6.5, 2.5]


def test_no_wait_is_begun_that_cannot_end(drive: Drive, clock: FakeClock) -> None:
    """When the next wait would reach the deadline, the error comes out at once."""
    slow = Failing(clock, 3)
    script, witness = Script(slow, slow, slow), Witness(clock)
    policy = RetryPolicy(deadline=9, max_retries=5)
    plan = plan_for(clock, policy, budget=(budget := RetryBudget()))
    with pytest.raises(UnavailableError) as caught:
        drive.call(plan, script, witness)
    # 3 + 0.5 + 3 + 1 leave 1.5 s, in which the third attempt takes its 3.
    assert script.timeouts == [9, 5.5, 1.5]
    assert clock.sleeps == [0.5, 1.0]
    assert clock.monotonic() == 10.5
    assert len(witness.states) == 2
    assert caught.value.__notes__ == [
        (
            "gave up after 3 attempts, 1.5 s waited:"
            " a wait of 2.0 s would outlast the deadline of 9 s"
        )
    ]
    assert caught.value.is_retryable is False
    assert budget.tokens == 500 - 28


def test_a_slow_handler_can_eat_the_deadline(drive: Drive, clock: FakeClock) -> None:
    """If being told of a retry takes too long, the wait is not begun, nor paid for."""
    failure, budget = UnavailableError("503"), RetryBudget()
    script = Script(failure, "never sent")
    witness = Witness(clock, lambda: clock.advance(9.5))
    plan = plan_for(clock, RetryPolicy(deadline=10), budget=budget)
    with pytest.raises(UnavailableError) as caught:
        drive.call(plan, script, witness)
    assert caught.value is failure
    assert caught.value.__notes__ == [
        "gave up after 1 attempt, 0.0 s waited: the deadline of 10 s is over"
    ]
    assert script.numbers == [1]
    assert clock.sleeps == []
    assert budget.tokens == 500


class LateClock(FakeClock):
    """A clock on which every wait takes longer than it should, as on a busy machine."""

    def __init__(self, late: float) -> None:
        """By so many seconds."""
        super().__init__()
        self._late = late

    def sleep(self, seconds: float) -> None:
        """Wait, and some more."""
        super().sleep(seconds)
        self.advance(self._late)

    async def asleep(self, seconds: float) -> None:
        """Wait, and some more."""
        await super().asleep(seconds)
        self.advance(self._late)


@pytest.mark.parametrize("start", [Drive.call, Drive.stream])
@pytest.mark.parametrize("late", [4.5, 10])
def test_a_wait_that_took_too_long_is_not_followed(
    drive: Drive, late: float, start: Any
) -> None:
    """After the deadline no request is sent, though the wait was to end in time."""
    failure, budget = UnavailableError("503"), RetryBudget()
    script = Script(failure, "never sent")
    plan = plan_for(LateClock(late), RetryPolicy(deadline=5), budget=budget)
    with pytest.raises(UnavailableError) as caught:
        start(drive, plan, script)
    assert caught.value is failure
    assert caught.value.__notes__ == [
        "gave up after 1 attempt, 0.5 s waited: the deadline is over"
    ]
    assert script.numbers == [1]
    assert budget.tokens == 500


@pytest.mark.parametrize("start", [Drive.call, Drive.stream])
def test_a_late_wait_is_followed_while_there_is_time(drive: Drive, start: Any) -> None:
    """As long as anything is left of the deadline, the next attempt is given that."""
    answer = "hello" if start is Drive.call else Source(HEL, END)
    script = Script(UnavailableError("503"), answer)
    start(drive, plan_for(LateClock(4), RetryPolicy(deadline=5)), script)
    assert script.timeouts == [5, 0.5]


def test_the_first_attempt_is_sent_whatever_the_clock(drive: Drive) -> None:
    """A deadline that is over before anything ran leaves the first attempt a moment."""
    clock, script = FakeClock(), Script("hello")
    plan = plan_for(clock, RetryPolicy(deadline=1))
    clock.advance(5)

    async def answer_at_once(attempt: Attempt) -> Any:
        return script.send(attempt)

    if drive.is_async:
        assert asyncio.run(acall(plan, answer_at_once)) == "hello"
    else:
        assert drive.call(plan, script) == "hello"
    assert script.timeouts == [0.001]


@pytest.mark.parametrize(
    ("limits", "call", "stream"),
    [
        ({}, None, None),
        ({"deadline": 9}, 9, 9),
        ({"first_token_timeout": 2}, None, 2),
        ({"deadline": 9, "first_token_timeout": 2}, 9, 2),
        ({"deadline": 1, "first_token_timeout": 2}, 1, 1),
        ({"stall_timeout": 3}, None, None),
    ],
)
def test_what_an_attempt_is_given(
    drive: Drive,
    clock: FakeClock,
    limits: dict[str, Any],
    call: float | None,
    stream: float | None,
) -> None:
    """A call has until the deadline, a stream's first token perhaps less."""
    policy = RetryPolicy(**limits)
    script = Script("hello")
    drive.call(plan_for(clock, policy), script)
    assert script.timeouts == [call]
    script = Script(Source(HEL, END))
    drive.stream(plan_for(clock, policy), script)
    assert script.timeouts == [stream]
