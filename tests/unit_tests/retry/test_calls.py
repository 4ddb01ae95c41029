"""`call` and `acall`: which failures are retried, and what the caller is told."""

from typing import Any

import pytest

from langchain_retryrouter import (
    CircuitBreaker,
    FailureKind,
    RateLimit,
    RateLimitError,
    RetryBudget,
    RetryEvent,
    RetryPolicy,
    RetryRouterError,
    UnavailableError,
)
from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.health import RouteState
from langchain_retryrouter._retry.limits import call_limits
from langchain_retryrouter.errors import BASE_ERRORS
from langchain_retryrouter.failures import FAILURE_ACTIONS, Failure
from langchain_retryrouter.rate_limits import Size
from langchain_retryrouter.testing import FakeClock

from .scripted import Engine, Recorder, Script, opened


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
