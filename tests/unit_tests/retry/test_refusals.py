"""Calls that share a circuit breaker, or that wait for a rate limiter."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from langchain_retryrouter import (
    APITimeoutError,
    BreakerState,
    CircuitBreaker,
    CircuitOpenError,
    FailureKind,
    RateLimitError,
    RetryBudget,
    RetryPolicy,
    StreamInterruptedError,
    UnavailableError,
)
from langchain_retryrouter._gptrouter.protocol import GPT_ROUTER_ERRORS
from langchain_retryrouter._retry.streaming import ChunkInfo
from langchain_retryrouter.errors import BASE_ERRORS

from .scripted import (
    END,
    ROLE,
    Engine,
    Recorder,
    Script,
    Source,
    Start,
    answer_for,
    calls_and_streams,
    fail_elsewhere,
    failures,
    one_turn,
    opened,
    outcomes,
    token,
)

HEL, LO = token("Hel"), token("lo")


@calls_and_streams
@pytest.mark.parametrize(
    ("seconds_ago", "retry_after", "message"),
    [
        (10, 20, "is open for another 20.0 s"),
        (29.99, 0.01, "is open for another 0.1 s"),  # Rounded up, never 0.0 s.
        (30, 0, "is half open; another call is probing the provider"),
    ],
)
def test_an_open_breaker_sends_nothing(
    engine: Engine, start: Start, seconds_ago: float, retry_after: float, message: str
) -> None:
    """The error says when the breaker admits a probe, and that nothing was sent."""
    breaker = opened(engine.clock, seconds_ago)
    breaker.admit()  # The probe of another call, if it is half open.
    context = engine.context(breaker=breaker, errors=GPT_ROUTER_ERRORS)
    script, recorder = Script("not sent"), Recorder()
    with pytest.raises(GPT_ROUTER_ERRORS[FailureKind.CIRCUIT_OPEN]) as caught:
        start(engine, context, script, recorder)
    assert str(caught.value) == f"nothing was sent: the circuit breaker {message}"
    assert caught.value.retry_after == pytest.approx(retry_after)
    assert (caught.value.attempts, caught.value.may_have_run) == (0, False)
    assert caught.value.is_retryable is False
    assert (script.numbers, recorder.states, engine.clock.sleeps) == ([], [], [])


@calls_and_streams
@pytest.mark.parametrize(("opened_by", "waited"), [("the call", 0.0), ("others", 0.5)])
def test_a_breaker_that_opens_ends_the_retries(
    engine: Engine, start: Start, opened_by: str, waited: float
) -> None:
    """The call's own error comes out, at once or after its wait; no retry is paid."""
    threshold = 1 if opened_by == "the call" else 2
    breaker = CircuitBreaker(failure_threshold=threshold, clock=engine.clock)
    errors, budget = failures(2), RetryBudget()
    script = Script(*errors)
    recorder = Recorder(lambda: fail_elsewhere(breaker))
    context = engine.context(breaker=breaker, budget=budget)
    with pytest.raises(UnavailableError) as caught:
        start(engine, context, script, recorder)
    assert caught.value is errors[0]
    assert caught.value.__notes__ == [
        f"gave up after 1 attempt, {waited} s waited: the circuit breaker is open"
    ]
    assert (caught.value.attempts, caught.value.is_retryable) == (1, False)
    assert (script.numbers, budget.tokens) == ([1], 500)


def test_a_probe_that_streams_holds_up_no_other_call(engine: Engine) -> None:
    """Its first token closes the breaker, which opens again if the stream breaks."""
    breaker = CircuitBreaker(failure_threshold=3, clock=engine.clock)
    states: list[BreakerState] = []

    def event(chunk: ChunkInfo) -> ChunkInfo:
        states.append(breaker.state)
        return chunk

    for end, after in ((END, BreakerState.CLOSED), (LO, BreakerState.OPEN)):
        breaker.open_for(30)
        engine.clock.advance(30)
        states.clear()
        source = Source(lambda: event(ROLE), HEL, lambda: event(LO), end)
        with contextlib.suppress(StreamInterruptedError):
            engine.stream(engine.context(breaker=breaker), Script(source))
        assert states == [BreakerState.HALF_OPEN, BreakerState.CLOSED]
        assert breaker.state is after


@calls_and_streams
def test_a_call_waits_until_the_probe_if_retry_after_is_longer(
    engine: Engine, start: Start
) -> None:
    """A Retry-After beyond the recovery time ends in a probe, and not in giving up."""
    breaker = CircuitBreaker(failure_threshold=1, recovery_time=5, clock=engine.clock)
    script = Script(RateLimitError("429", retry_after=6.0), answer_for(start))
    start(engine, engine.context(breaker=breaker), script)
    assert engine.clock.sleeps == [6.0]
    assert breaker.state is BreakerState.CLOSED


@calls_and_streams
@pytest.mark.parametrize("kind", FailureKind)
def test_only_retryable_kinds_open_the_breaker(
    engine: Engine, start: Start, kind: FailureKind
) -> None:
    """A provider that refuses a request is alive, and so is one that was rejected."""
    error = BASE_ERRORS[kind]
    breaker = CircuitBreaker(failure_threshold=1, clock=engine.clock)
    context = engine.context(RetryPolicy(max_retries=0), breaker=breaker)
    with pytest.raises(error):
        start(engine, context, Script(error("no")))
    is_sick = error("no").failure.is_retryable and kind is not FailureKind.REJECTED
    assert breaker.is_open is is_sick


GRANTED, REFUSED = True, False


class Limiter:
    """A rate limiter that answers as written, the last answer for ever."""

    def __init__(
        self, *answers: object, when_asked: Callable[[], object] = lambda: None
    ) -> None:
        self._answers = answers
        self._when_asked = when_asked
        self.asked: list[bool] = []

    def acquire(self, *, blocking: bool = True) -> Any:
        self.asked.append(blocking)
        self._when_asked()
        return self._answers[min(len(self.asked), len(self._answers)) - 1]

    async def aacquire(self, *, blocking: bool = True) -> Any:
        await one_turn()
        return self.acquire(blocking=blocking)


@pytest.mark.parametrize("answer", [None, 0, 1, "now"])
@pytest.mark.parametrize("limits", [{}, {"deadline": 5}])
def test_only_false_is_a_refusal(
    engine: Engine, answer: object, limits: dict[str, Any]
) -> None:
    """A limiter of another make may return None and mean yes."""
    limiter = Limiter(answer)
    context = engine.context(RetryPolicy(**limits), rate_limiters=[limiter])
    assert engine.call(context, Script("hello")) == "hello"
    assert (len(limiter.asked), engine.clock.sleeps) == (1, [])


def test_with_a_deadline_the_limiter_is_polled(engine: Engine) -> None:
    """Ten times a second, without blocking; the attempt gets the time that is left."""
    limiter, script = Limiter(REFUSED, REFUSED, REFUSED, GRANTED), Script("hello")
    context = engine.context(RetryPolicy(deadline=5), rate_limiters=[limiter])
    assert engine.call(context, script) == "hello"
    assert limiter.asked == [False] * 4
    assert engine.clock.sleeps == [0.1] * 3
    assert script.timeouts == [pytest.approx(4.7)]


IN_VAIN = "did not admit the request"


@pytest.mark.parametrize("sent", [0, 1])
@pytest.mark.parametrize(
    ("limits", "cls", "message", "reason", "waits"),
    [
        ({}, RateLimitError, IN_VAIN, f"the rate limiter {IN_VAIN}", 0),
        (
            {"deadline": 1.25},
            APITimeoutError,
            f"{IN_VAIN} within 1.25 s",
            "the deadline is over",
            1.25,
        ),
    ],
)
def test_a_limiter_that_refuses_sends_nothing(
    engine: Engine,
    limits: dict[str, Any],
    cls: type[Exception],
    message: str,
    reason: str,
    waits: float,
    sent: int,
) -> None:
    """A rate limit, or a timeout if the deadline is over; and nothing was sent.

    If it refuses a retry, the error that caused the retry comes out.
    """
    errors, limiter = failures(sent), Limiter(*[GRANTED] * sent, REFUSED)
    script, policy = Script(*errors, "not sent"), RetryPolicy(**limits)
    context = engine.context(policy, errors=GPT_ROUTER_ERRORS, rate_limiters=[limiter])
    with pytest.raises(UnavailableError if sent else cls) as caught:
        engine.call(context, script)
    error: Any = caught.value
    attempts = f"{sent} attempt{'s' * (not sent)}"
    note = f"gave up after {attempts}, {0.5 * sent} s waited: {reason}"
    assert error.__notes__ == [note]
    assert (script.numbers, outcomes(context)) == ([1] * sent, ["unavailable"] * sent)
    assert (error.attempts, error.is_retryable) == (sent, False)
    if sent:
        assert error is errors[0]
        return
    assert str(error) == f"nothing was sent: the rate limiter {message}"
    assert sum(engine.clock.sleeps) == pytest.approx(waits)
    assert not error.may_have_run
    assert type(error) in GPT_ROUTER_ERRORS.values()


def test_what_a_limiter_raises_leaves_the_call(engine: Engine) -> None:
    """Even a StopIteration, which in a coroutine becomes a RuntimeError."""

    def fail() -> None:
        raise StopIteration

    context = engine.context(rate_limiters=[Limiter(GRANTED, when_asked=fail)])
    script = Script("not sent")
    with pytest.raises((StopIteration, RuntimeError)):
        engine.call(context, script)
    assert script.numbers == []


def test_an_open_breaker_is_asked_before_the_limiter(engine: Engine) -> None:
    """No call waits for the limiter if the breaker refuses it anyway."""
    limiter = Limiter(GRANTED)
    context = engine.context(breaker=opened(engine.clock, 0), rate_limiters=[limiter])
    with pytest.raises(CircuitOpenError):
        engine.call(context, Script("not sent"))
    assert limiter.asked == []
