"""The deadline covers all attempts and waits of a call; the test moves the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from langchain_retryrouter import RetryBudget, RetryPolicy, UnavailableError
from langchain_retryrouter._retry.engine import Attempt, acall
from langchain_retryrouter.testing import FakeClock

from .scripted import (
    Engine,
    Recorder,
    Script,
    Start,
    answer_for,
    calls_and_streams,
    context_for,
    failures,
)


def failing_after(clock: FakeClock, seconds: float) -> Callable[[], UnavailableError]:
    """An outcome that takes its time and then fails."""

    def fail() -> UnavailableError:
        clock.advance(seconds)
        return UnavailableError("503")

    return fail


def test_each_attempt_gets_the_time_that_is_left(
    engine: Engine, clock: FakeClock
) -> None:
    """The deadline is the limit of the first attempt, and shrinks with each."""
    slow = failing_after(clock, 3)
    script = Script(slow, slow, "hello")
    context = context_for(clock, RetryPolicy(deadline=10, max_retries=5))
    assert engine.call(context, script) == "hello"
    assert script.timeouts == [10, 6.5, 2.5]


def test_no_wait_begins_that_would_outlast_the_deadline(
    engine: Engine, clock: FakeClock
) -> None:
    """When the next wait would reach the deadline, the error comes out at once."""
    slow = failing_after(clock, 3)
    script, recorder, budget = Script(slow, slow, slow), Recorder(clock), RetryBudget()
    policy = RetryPolicy(deadline=9, max_retries=5)
    with pytest.raises(UnavailableError) as caught:
        engine.call(context_for(clock, policy, budget=budget), script, recorder)
    # 3 + 0.5 + 3 + 1 leave 1.5 s, in which the third attempt takes its 3.
    assert script.timeouts == [9, 5.5, 1.5]
    assert clock.sleeps == [0.5, 1.0]
    assert clock.monotonic() == 10.5
    assert len(recorder.states) == 2
    assert caught.value.__notes__ == [
        (
            "gave up after 3 attempts, 1.5 s waited:"
            " a wait of 2.0 s would outlast the deadline of 9 s"
        )
    ]
    assert caught.value.is_retryable is False
    assert budget.tokens == 500 - 28


def test_a_slow_handler_can_use_up_the_deadline(
    engine: Engine, clock: FakeClock
) -> None:
    """If `on_retry` takes too long, the wait does not begin and is refunded."""
    (error,), budget = failures(1), RetryBudget()
    script = Script(error, "not sent")
    recorder = Recorder(clock, lambda: clock.advance(9.5))
    context = context_for(clock, RetryPolicy(deadline=10), budget=budget)
    with pytest.raises(UnavailableError) as caught:
        engine.call(context, script, recorder)
    assert caught.value is error
    assert caught.value.__notes__ == [
        "gave up after 1 attempt, 0.0 s waited: the deadline of 10 s is over"
    ]
    assert (script.numbers, clock.sleeps, budget.tokens) == ([1], [], 500)


class LateClock(FakeClock):
    """A clock whose waits take longer than they should, as on a busy machine."""

    def __init__(self, late: float) -> None:
        super().__init__()
        self._late = late

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self.advance(self._late)

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)


@calls_and_streams
@pytest.mark.parametrize("late", [4.5, 10])
def test_after_the_deadline_nothing_is_sent(
    engine: Engine, late: float, start: Start
) -> None:
    """A wait that took too long is not followed by an attempt, and is refunded."""
    (error,), budget = failures(1), RetryBudget()
    script = Script(error, "not sent")
    context = context_for(LateClock(late), RetryPolicy(deadline=5), budget=budget)
    with pytest.raises(UnavailableError) as caught:
        start(engine, context, script)
    assert caught.value is error
    assert caught.value.__notes__ == [
        "gave up after 1 attempt, 0.5 s waited: the deadline is over"
    ]
    assert (script.numbers, budget.tokens) == ([1], 500)


@calls_and_streams
def test_a_late_attempt_gets_what_is_left(engine: Engine, start: Start) -> None:
    """As long as anything is left of the deadline, the next attempt is sent."""
    script = Script(*failures(1), answer_for(start))
    start(engine, context_for(LateClock(4), RetryPolicy(deadline=5)), script)
    assert script.timeouts == [5, 0.5]


def test_the_first_attempt_is_always_sent(engine: Engine, clock: FakeClock) -> None:
    """If the deadline is over before anything ran, the attempt gets a moment."""
    script, context = Script("hello"), context_for(clock, RetryPolicy(deadline=1))
    clock.advance(5)

    async def answer_at_once(attempt: Attempt) -> Any:
        return script.send(attempt)

    if engine.is_async:
        assert asyncio.run(acall(context, answer_at_once)) == "hello"
    else:
        assert engine.call(context, script) == "hello"
    assert script.timeouts == [0.05]


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
def test_the_limit_of_an_attempt(
    engine: Engine, clock: FakeClock, limits: Any, call: Any, stream: Any
) -> None:
    """A call has until the deadline, the first token of a stream perhaps less."""
    for start, limit in ((Engine.call, call), (Engine.stream, stream)):
        script = Script(answer_for(start))
        start(engine, context_for(clock, RetryPolicy(**limits)), script)
        assert script.timeouts == [limit]
