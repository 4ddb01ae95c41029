"""One call or stream: what is retried, refused and told, by the loop alone."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from langchain_retryrouter import (
    APIConnectionError,
    APITimeoutError,
    BreakerState,
    CircuitBreaker,
    CircuitOpenError,
    FailureKind,
    RateLimit,
    RateLimitError,
    RetryBudget,
    RetryEvent,
    RetryPolicy,
    RetryRouterError,
    StreamInterruptedError,
    UnavailableError,
)
from langchain_retryrouter._gptrouter.protocol import GPT_ROUTER_ERRORS
from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.health import RouteState
from langchain_retryrouter._retry.limits import call_limits
from langchain_retryrouter._retry.streaming import ChunkInfo
from langchain_retryrouter.errors import BASE_ERRORS
from langchain_retryrouter.failures import FAILURE_ACTIONS, Failure
from langchain_retryrouter.rate_limits import Size
from langchain_retryrouter.testing import FakeClock

from .scripted import (
    END,
    ROLE,
    WHOLE,
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


@pytest.mark.parametrize("kind", FailureKind)
def test_only_transient_failures_are_retried(engine: Engine, kind: FailureKind) -> None:
    """A failure that another attempt cannot mend is raised at once, for free.

    A retry costs the budget, less after a 429, and an answer gives a token back.
    """
    error, budget = BASE_ERRORS[kind]("no"), RetryBudget()
    script, context = Script(error, "hello"), engine.context(budget=budget)
    if error.failure.is_retryable:
        assert engine.call(context, script) == "hello"
        assert budget.tokens == 500 - (5 if kind is FailureKind.RATE_LIMIT else 14) + 1
        return
    with pytest.raises(type(error)) as caught:
        engine.call(context, script)
    assert caught.value is error
    assert (script.numbers, budget.tokens) == ([1], 500)
    assert not hasattr(error, "__notes__")


ABOVE = "waited: Retry-After of 86400 s is above max_retry_after of 60 s"


@pytest.mark.parametrize(
    ("count", "retry_after", "policy", "capacity", "reason"),
    [
        (1, None, {"max_retries": 0}, 500, "1 attempt, 0.0 s waited: retries are"),
        (1, 86400.0, {}, 500, f"1 attempt, 0.0 s {ABOVE}"),
        (2, None, {}, 20, "2 attempts, 0.5 s waited: retry budget empty"),
        (4, None, {"max_retries": 3}, 500, "4 attempts, 3.5 s waited: no retries left"),
    ],
)
def test_the_error_says_why_it_is_not_retried(
    engine: Engine,
    count: int,
    retry_after: float | None,
    policy: dict[str, Any],
    capacity: int,
    reason: str,
) -> None:
    """A note of the last error has the reason; only with retries off may others retry.

    The errors of the attempts before it stay as they are.
    """
    errors = [RateLimitError("429", retry_after=retry_after) for _ in range(count)]
    budget = RetryBudget(capacity=capacity, throttled_cost=14)
    script, recorder = Script(*errors), Recorder()
    context = engine.context(RetryPolicy(**policy), budget=budget)
    with pytest.raises(RetryRouterError) as caught:
        engine.call(context, script, recorder)
    assert caught.value is errors[-1]
    assert recorder.errors == errors[:-1]
    assert script.numbers == list(range(1, count + 1))
    assert (caught.value.attempts, caught.value.__cause__) == (count, None)
    (note,) = caught.value.__notes__
    assert note.startswith(f"gave up after {reason}")
    assert not any(hasattr(error, "__notes__") for error in errors[:-1])
    assert caught.value.is_retryable is (policy == {"max_retries": 0})
    assert all(error.is_retryable for error in errors[:-1])
    assert budget.tokens == capacity - 14 * (count - 1)


@pytest.mark.parametrize(("seconds", "is_open"), [(60.0, False), (61.0, True)])
def test_a_retry_after_that_is_too_long_opens_the_breaker(
    engine: Engine, seconds: float, *, is_open: bool
) -> None:
    """No call asks a provider before the time that it named."""
    breaker = CircuitBreaker(clock=engine.clock)
    context = engine.context(RetryPolicy(max_retries=0), breaker=breaker)
    with pytest.raises(RateLimitError):
        engine.call(context, Script(RateLimitError("429", retry_after=seconds)))
    assert breaker.retry_after == (seconds if is_open else 0)


@pytest.mark.parametrize("error", [None, "the attempt's"], ids=["bug", "attempt"])
def test_an_exception_of_a_hook_ends_the_call(
    engine: Engine, error: str | None
) -> None:
    """It passes through; nothing more is sent, and the retry is refunded."""

    def hook(event: RetryEvent) -> None:
        raise (KeyError("a bug in the hook") if error is None else event.error)

    budget = RetryBudget()
    context = engine.context(RetryPolicy(on_retry=hook), budget=budget)
    script = Script(UnavailableError("503"), "not sent")
    with pytest.raises(KeyError if error is None else UnavailableError):
        engine.call(context, script)
    assert (script.numbers, budget.tokens, engine.clock.sleeps) == ([1], 500, [])


UNAVAILABLE = Failure(FailureKind.UNAVAILABLE, status_code=503)


def routed(
    clock: FakeClock, *names: str, policy: Any = None, **parts: Any
) -> CallState:
    """A call with routes; `breakers` are theirs by name."""
    breakers = parts.pop("breakers", {})
    routes = [RouteState(name, breakers.get(name)) for name in names]
    policy = RetryPolicy(jitter=False, **(policy or {}))
    return CallState(policy, routes, time=clock, actions=FAILURE_ACTIONS, **parts)


def test_a_failure_of_the_call_cancels_its_hedge(clock: FakeClock) -> None:
    """If the attempt runs out of time, the second one holds no permit either."""
    breaker = opened(clock)
    state = routed(clock, "a", "b", breakers={"b": breaker})
    state.admit()
    assert state.hedge(lambda _: True) == 1
    state.failed(Failure(FailureKind.TIMEOUT))
    lines = [(record.route, record.outcome) for record in state.records]
    assert lines == [("a", "timeout"), ("b", "cancelled")]
    assert state.admit() is None


def test_a_call_that_is_lost_holds_nothing(clock: FakeClock) -> None:
    """Nobody ends that of a stream whose event loop was closed: it would hold for ever.

    That is the probe of a breaker, and the place in a rate limit.
    """
    breaker = opened(clock)
    places = RateLimit(max_concurrency=1, clock=clock)
    for _ in range(2):
        limits = call_limits([[places]], lambda _: Size())
        state = routed(clock, "a", breakers={"a": breaker}, limits=limits)
        state.open()
        assert state.admit() is None
        assert places.in_flight == 1
        del state
    assert places.in_flight == 0


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


USAGE = ChunkInfo()
CUT = ChunkInfo(is_last=True)


CALL = ChunkInfo(is_token=True)
AT_ONCE = ChunkInfo("Hello", is_token=True, is_end=True, is_last=True)


@pytest.mark.parametrize(
    ("events", "stop_after", "outcome"),
    [
        ([HEL, LO, END], None, "ok"),
        ([ROLE, ROLE, HEL, ROLE, LO, END], None, "ok"),
        ([CALL, END], None, "ok"),
        ([END], None, "ok"),
        ([ROLE, END], None, "ok"),
        ([WHOLE], None, "ok"),
        ([HEL, WHOLE], None, "ok"),
        ([HEL, WHOLE, USAGE, USAGE], None, "ok"),
        ([HEL, WHOLE, USAGE, CUT], None, "ok"),
        ([HEL, WHOLE, USAGE, WHOLE, END], None, "ok"),
        ([AT_ONCE], None, "ok"),
        ([HEL, LO, END], 1, "cancelled"),
        ([ROLE, HEL, LO, END], 1, "cancelled"),
        ([HEL, LO, END], 2, "cancelled"),
        ([HEL, LO, END], 3, "ok"),
        ([HEL, WHOLE, USAGE], 2, "ok"),
    ],
)
def test_a_stream_is_handed_over_and_closed(
    engine: Engine, events: list[ChunkInfo], stop_after: int | None, outcome: str
) -> None:
    """Each event comes once, in order; a caller that leaves before the end cancels."""
    source, recorder, budget = Source(*events), Recorder(), RetryBudget()
    budget.spend()
    context = engine.context(budget=budget)
    seen = engine.stream(context, Script(source), recorder, stop_after=stop_after)
    assert seen == events[:stop_after]
    assert (source.closed, recorder.states, outcomes(context)) == (1, [], [outcome])
    assert budget.tokens == 500 - 14 + (outcome == "ok")


def test_a_first_token_that_was_not_handed_over_is_retried(engine: Engine) -> None:
    """A first event that is the last, and not an end, has not reached the caller."""
    first = Source(ChunkInfo("Hel", is_token=True, is_last=True))
    recorder, context = Recorder(), engine.context()
    script = Script(first, Source(HEL, LO, END))
    assert engine.stream(context, script, recorder) == [HEL, LO, END]
    (error,) = recorder.errors
    assert isinstance(error, StreamInterruptedError)
    assert error.delivered == ""
    assert not hasattr(error, "__notes__")
    assert first.closed == 1
    assert outcomes(context) == ["interrupted", "ok"]


def test_an_interruption_counts_its_attempts_and_its_failure(engine: Engine) -> None:
    """The error has attempts and route, and the budget gains nothing.

    State that a classifier keeps of a failed attempt does not reach the next.
    """
    budget, broken = RetryBudget(), APIConnectionError("the connection broke")
    parts: dict[str, Any] = {"route": lambda: "gpt-4", "budget": budget}
    context = engine.context(errors=GPT_ROUTER_ERRORS, **parts)
    script = Script(Source(ROLE, broken), Source(HEL))
    with pytest.raises(GPT_ROUTER_ERRORS[FailureKind.INTERRUPTED]) as caught:
        engine.stream(context, script)
    assert (caught.value.attempts, caught.value.route) == (2, "gpt-4")
    assert outcomes(context) == ["connection", "interrupted"]
    assert script.classified == [[ROLE], [HEL]]
    assert budget.tokens == 486


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
