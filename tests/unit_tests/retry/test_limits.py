"""Time limits of streams, which also hold a read that blocks, and buffered streams.

The time is real here, and short, since a socket has no clock to hand in.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from langchain_retryrouter import (
    APIConnectionError,
    APITimeoutError,
    FailureKind,
    RetryBudget,
    RetryPolicy,
    StreamInterruptedError,
    UnavailableError,
)
from langchain_retryrouter._gptrouter.protocol import GPT_ROUTER_ERRORS
from langchain_retryrouter._retry import streaming
from langchain_retryrouter._retry.call_log import CallObserver
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK
from langchain_retryrouter._retry.engine import Attempt, RetryContext, acall
from langchain_retryrouter._retry.streaming import ChunkInfo
from langchain_retryrouter._retry.timeouts import on_abort
from langchain_retryrouter.testing import FakeClock

from .scripted import (
    END,
    ROLE,
    SILENCE,
    WHOLE,
    Engine,
    Recorder,
    Script,
    Source,
    Start,
    answer_for,
    aopen,
    calls_and_streams,
    context_for,
    failures,
    happen,
    open_,
    outcomes,
    token,
)

HEL, LO = token("Hel"), token("lo")
TIMEOUT = GPT_ROUTER_ERRORS[FailureKind.TIMEOUT]

SHORT = 0.1
DEADLINE = 0.25  # Enough for a busy machine to start a loop and read the first token.
LONG = 100.0  # More than a test may take.


def limited(*, buffered: bool = False, **policy: Any) -> RetryContext:
    """A context on the system clock, without back-off, with one retry."""
    numbers = {"initial_delay": 0.0, "max_retries": 1, **policy}
    return context_for(
        SYSTEM_CLOCK,
        RetryPolicy(**numbers),
        errors=GPT_ROUTER_ERRORS,
        is_buffered=buffered,
    )


class SlowSource(Source):
    """A source that takes a moment over each event but the first."""

    def __iter__(self) -> Iterator[ChunkInfo]:
        for event in super().__iter__():
            yield event
            SYSTEM_CLOCK.sleep(SHORT)

    async def __aiter__(self) -> AsyncIterator[ChunkInfo]:
        async for event in super().__aiter__():
            yield event
            await SYSTEM_CLOCK.asleep(SHORT)


# --- before the first token ---


@pytest.mark.parametrize("seconds", [10, 70])
def test_the_first_token_has_the_time_that_connecting_left(
    clock: FakeClock, seconds: float
) -> None:
    """The limit counts from the attempt's beginning, also on a clock far from zero."""

    def connect() -> Source:
        clock.advance(seconds)
        return source

    def slow_token() -> ChunkInfo:
        SYSTEM_CLOCK.sleep(SHORT)
        return HEL

    source = Source(ROLE, slow_token, END)
    clock.advance(1_000)
    context = context_for(clock, RetryPolicy(first_token_timeout=60, max_retries=0))
    events = open_(context, Script(connect))
    if seconds < 60:
        assert list(events) == [ROLE, HEL, END]
        return
    with pytest.raises(APITimeoutError, match="no first token within 60 s"):
        list(events)
    assert source.was_closed()


class LateSource(Source):
    """A source that goes on in the moment in which its read is cut."""

    def __iter__(self) -> Iterator[ChunkInfo]:
        on_abort(self._aborted.set)
        assert self._aborted.wait(LONG)
        for event in self._events:
            yield happen(event)


def test_a_token_in_the_last_moment_is_dropped() -> None:
    """Nothing of a stream that was cut is delivered, so that it can be retried."""
    late = LateSource(HEL, APIConnectionError("the connection was shut down"))
    context = limited(first_token_timeout=SHORT)
    assert list(open_(context, Script(late, Source(LO, END)))) == [LO, END]
    assert late.was_closed()
    assert outcomes(context) == ["timeout", "ok"]


# --- after it ---


def test_a_slow_caller_is_not_a_stall(engine: Engine) -> None:
    """The time that the caller takes over an event is not the server's silence."""
    context = limited(stall_timeout=SHORT, first_token_timeout=SHORT)
    script, expected = Script(Source(HEL, LO, END)), [HEL, LO, END]

    async def read() -> None:
        events = aopen(context, script)
        for event in expected:
            assert await anext(events) == event
            await SYSTEM_CLOCK.asleep(2 * SHORT)
        assert [event async for event in events] == []

    if engine.is_async:
        asyncio.run(read())
        return
    events = open_(context, script)
    for event in expected:
        assert next(events) == event
        SYSTEM_CLOCK.sleep(2 * SHORT)
    assert list(events) == []


@pytest.mark.parametrize("limit", [None, "stall_timeout", "deadline"])
def test_silence_after_the_end_is_not_waited_for(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, limit: str | None
) -> None:
    """A server that neither sends usage nor closes does not hold up a whole answer."""
    monkeypatch.setattr(streaming, "_AFTER_THE_END", LONG if limit else SHORT)
    source = Source(HEL, WHOLE, SILENCE)
    limits: dict[str, Any] = {limit: DEADLINE} if limit else {}
    context = limited(**limits)
    assert engine.stream(context, Script(source)) == [HEL, WHOLE]
    assert source.was_closed()
    assert outcomes(context) == ["ok"]


def test_the_limit_after_the_end_does_not_hold_before_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token may take longer than what follows the end of the answer."""
    monkeypatch.setattr(streaming, "_AFTER_THE_END", SHORT / 4)
    script = Script(SlowSource(HEL, LO, END))
    assert engine.stream(limited(stall_timeout=LONG), script) == [HEL, LO, END]


# --- buffered streams ---


def test_a_buffered_stream_that_fails_delivers_nothing(engine: Engine) -> None:
    """The error does not name text as delivered that the caller has not seen."""
    seen: list[ChunkInfo] = []
    context = engine.context(RetryPolicy(max_retries=0), is_buffered=True)
    with pytest.raises(StreamInterruptedError) as caught:
        engine.stream(context, Script(Source(HEL, LO)), into=seen)
    assert seen == []
    assert str(caught.value) == (
        "the stream ended before the answer was complete, after 5 characters"
    )


@pytest.mark.parametrize(
    "limits",
    [
        {"first_token_timeout": 10 * SHORT},
        {"stall_timeout": 10 * SHORT, "first_token_timeout": 60},
    ],
)
def test_the_limits_of_a_buffered_stream_are_not_for_the_whole_answer(
    engine: Engine, limits: dict[str, Any]
) -> None:
    """The first token's limit ends with it, and a stall is one silence."""
    events = [HEL, *[LO] * 11, END]
    context = limited(buffered=True, **limits)
    assert engine.stream(context, Script(SlowSource(*events), "not sent")) == events


def test_the_deadline_of_a_buffered_stream_is_named(engine: Engine) -> None:
    """The error names the limit that ended the answer."""
    source = Source(HEL, SILENCE)
    with pytest.raises(TIMEOUT) as caught:
        engine.stream(limited(buffered=True, deadline=DEADLINE), Script(source))
    assert str(caught.value) == "the deadline of 0.25 s is over"
    assert source.was_closed()


# --- the deadline ---


def test_no_wait_begins_that_would_outlast_the_deadline(engine: Engine) -> None:
    """When the next wait would reach the deadline, the error comes out at once.

    The deadline is the limit of the first attempt, and shrinks with each.
    """

    def slow() -> UnavailableError:
        engine.clock.advance(3)
        return UnavailableError("503")

    script, recorder, budget = Script(*[slow] * 3), Recorder(), RetryBudget()
    policy = RetryPolicy(deadline=9, max_retries=5)
    with pytest.raises(UnavailableError) as caught:
        engine.call(engine.context(policy, budget=budget), script, recorder)
    # 3 + 0.5 + 3 + 1 leave 1.5 s, in which the third attempt takes its 3.
    assert script.timeouts == [9, 5.5, 1.5]
    assert engine.clock.sleeps == [0.5, 1.0]
    assert engine.clock.monotonic() == 10.5
    assert len(recorder.states) == 2
    assert caught.value.__notes__ == [
        (
            "gave up after 3 attempts, 1.5 s waited:"
            " a wait of 2.0 s would outlast the deadline of 9 s"
        )
    ]
    assert caught.value.is_retryable is False
    assert budget.tokens == 500 - 28


class LateClock(FakeClock):
    """A clock whose waits take longer than they should, as on a busy machine."""

    def __init__(self, late: float) -> None:
        super().__init__()
        self._late = late

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self.advance(self._late)


@calls_and_streams
@pytest.mark.parametrize(
    ("late", "handler", "note"),
    [
        (4.5, 0, "0.5 s waited: the deadline is over"),
        (10, 0, "0.5 s waited: the deadline is over"),
        (0, 4.8, "0.0 s waited: the deadline of 5 s is over"),
    ],
)
def test_after_the_deadline_nothing_is_sent(
    engine: Engine, start: Start, late: float, handler: float, note: str
) -> None:
    """A wait or an `on_retry` that took too long ends the call; the retry is refunded.

    After such an `on_retry` the wait does not begin.
    """
    (error,), budget, clock = failures(1), RetryBudget(), LateClock(late)
    script = Script(error, "not sent")
    context = context_for(clock, RetryPolicy(deadline=5), budget=budget)
    with pytest.raises(UnavailableError) as caught:
        start(engine, context, script, Recorder(lambda: clock.advance(handler)))
    assert caught.value is error
    assert caught.value.__notes__ == [f"gave up after 1 attempt, {note}"]
    assert clock.sleeps == ([] if handler else [0.5])
    assert (script.numbers, budget.tokens) == ([1], 500)


@calls_and_streams
def test_a_late_attempt_gets_what_is_left(engine: Engine, start: Start) -> None:
    """As long as anything is left of the deadline, the next attempt is sent."""
    script = Script(*failures(1), answer_for(start))
    start(engine, context_for(LateClock(4), RetryPolicy(deadline=5)), script)
    assert script.timeouts == [5, 0.5]


@calls_and_streams
def test_an_attempt_gets_what_a_slow_observer_leaves(
    engine: Engine, start: Start
) -> None:
    """What is awaited at the beginning of an attempt counts for the deadline."""

    class Slow(CallObserver):
        def attempt_began(self, *_: Any) -> None:
            engine.clock.advance(0 if engine.is_async else 4)

        async def flush(self) -> None:
            engine.clock.advance(4)

    script, context = Script(answer_for(start)), engine.context(RetryPolicy(deadline=5))
    context.call_state.observers.append(Slow())
    start(engine, context, script)
    assert script.timeouts == [1]


def test_the_first_attempt_is_always_sent(engine: Engine) -> None:
    """If the deadline is over before anything ran, the attempt gets a moment."""
    script, context = Script("hello"), engine.context(RetryPolicy(deadline=1))
    engine.clock.advance(5)

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
    engine: Engine, limits: Any, call: Any, stream: Any
) -> None:
    """A call has until the deadline, the first token of a stream perhaps less."""
    for start, limit in ((Engine.call, call), (Engine.stream, stream)):
        script = Script(answer_for(start))
        start(engine, engine.context(RetryPolicy(**limits)), script)
        assert script.timeouts == [limit]
