"""Retries: how many, seen by whom, after which wait, and who pays for them."""

from typing import Any
from unittest.mock import Mock, call

import pytest
from langchain_core.rate_limiters import BaseRateLimiter

from langchain_retryrouter import (
    CircuitBreaker,
    OpenAIChat,
    RetryBudget,
    RetryPolicy,
    errors,
)
from langchain_retryrouter.testing import (
    STUB_TEXT,
    HtmlPage,
    Reset,
    Silence,
    SlowFirstToken,
    Status,
)

from .conftest import Env, Recorder

FAULTS = (Status(429), Reset(), HtmlPage(502))
KINDS = ["rate_limit", "connection", "server_error"]


@pytest.mark.parametrize("method", ["invoke", "stream", "batch", "generate"])
def test_every_retry_is_seen(
    every: Env, recorder: Recorder, method: str, streaming: bool
) -> None:
    """`on_retry` is called for every retry of each prompt, before its wait."""
    every.gateway.script(*FAULTS)
    llm = every.new(max_retries=3, streaming=streaming, batch_size=1)
    prompts = ["hi", "ho"] if method in {"batch", "generate"} else ["hi"]
    config: dict[str, Any] = {"callbacks": [recorder]}
    options = config if method == "generate" else {"config": config}
    getattr(every, method)(llm, prompts if len(prompts) > 1 else "hi", **options)
    retries = recorder.retries
    assert len(retries) == len(every.gateway.requests) - len(prompts) == len(FAULTS)
    assert [state.attempt_number for state in retries] == [1, 2, 3]
    failures = [state.outcome and state.outcome.exception() for state in retries]
    assert [getattr(error, "kind", "") for error in failures] == KINDS
    waits = [state.next_action and state.next_action.sleep for state in retries]
    assert waits == every.clock.sleeps


# How many.


@pytest.mark.parametrize(
    ("fields", "retries"),
    [
        ({}, None),
        ({"max_retries": 0}, 0),
        ({"max_retries": 1}, 1),
        ({"retry_policy": RetryPolicy(max_retries=4)}, 4),
        ({"retry_policy": RetryPolicy(max_retries=0)}, 0),
    ],
)
def test_max_retries_counts_retries(
    every: Env, fields: Any, retries: int | None
) -> None:
    """`max_retries`, of model or policy, is the number of retries; the SDK has none."""
    every.gateway.always(Status(503))
    llm = every.new(**fields)
    with pytest.raises(errors.UnavailableError):
        every.invoke(llm, "hi")
    if retries is None:  # As in langchain-community.
        retries = 6 if isinstance(llm, OpenAIChat) else 2
    assert len(every.gateway.requests) == retries + 1 == llm.max_retries + 1


def test_each_attempt_has_its_number_and_its_calls_key(every: Env, method: str) -> None:
    """Attempts of one call share an `Idempotency-Key`, and each sends its number."""
    every.gateway.script(Status(503), Reset())
    llm = every.new()
    getattr(every, method)(llm, "hi")
    getattr(every, method)(llm, "hi")
    sent = [request.headers for request in every.gateway.requests]
    numbers = [headers["x-stainless-retry-count"] for headers in sent]
    assert numbers == ["0", "1", "2", "0"]
    keys = [headers["idempotency-key"] for headers in sent]
    assert keys[0] == keys[1] == keys[2] != keys[3]
    assert all(key.startswith("retryrouter-") for key in keys)


@pytest.mark.parametrize("of_the_call", [True, False])
def test_a_key_of_the_users_own_is_kept(
    env: Env, method: str, of_the_call: bool
) -> None:
    """An `Idempotency-Key` among the headers of model or call is the one sent."""
    env.gateway.script(Status(503))
    headers = {"idempotency-key": "mine"}
    llm = env.new(default_headers=None if of_the_call else headers)
    options = {"extra_headers": headers} if of_the_call else {}
    getattr(env, method)(llm, "hi", **options)
    keys = [r.headers["idempotency-key"] for r in env.gateway.requests]
    assert keys == ["mine", "mine"]


# How long.


def test_retry_after_is_a_floor(every: Env, method: str) -> None:
    """No attempt comes earlier than the server asked for, in any of its forms."""
    every.gateway.script(
        Status(429, {"retry-after": "5"}),
        Status(503, {"retry-after-ms": "2500"}),
        Status(429, {"retry-after": "Fri, 15 Jan 2027 08:00:30 GMT"}),
    )
    llm = every.new(max_retries=3)
    began = every.clock.time()
    getattr(every, method)(llm, "hi")
    first, second, third = every.clock.sleeps
    assert first >= 5
    assert second >= 2.5
    assert began + first + second + third >= 1_800_000_030


@pytest.mark.parametrize(
    ("deadline", "timeout"), [(0.5, 60), (60, 0.5), (60, (5, 0.4))], ids=str
)
def test_the_smaller_limit_wins(env: Env, deadline: float, timeout: Any) -> None:
    """Of the call's `timeout` and the deadline, the smaller one limits an attempt."""
    env.gateway.always(Silence())
    llm = env.new(retry_policy=RetryPolicy(deadline=deadline, max_retries=0))
    with pytest.raises(errors.APITimeoutError):
        env.invoke(llm, "hi", timeout=timeout)
    assert len(env.gateway.requests) == 1


def test_a_late_first_token_is_retried(every: Env) -> None:
    """A stream whose first token does not come in time is started anew."""
    every.gateway.script(SlowFirstToken(60), Silence(60))
    llm = every.new(retry_policy=RetryPolicy(first_token_timeout=0.8))
    assert "".join(every.stream(llm, "hi")) == STUB_TEXT
    assert len(every.gateway.requests) == 3


# At whose expense.


def test_retries_are_bought(every: Env) -> None:
    """When a budget that models share is empty, none of them retries."""
    every.gateway.always(Status(503))
    budget = RetryBudget(capacity=20, retry_cost=14)
    for model in (every.new(budget=budget), every.new(budget=budget)):
        with pytest.raises(errors.UnavailableError) as caught:
            every.invoke(model, "hi")
    assert len(every.gateway.requests) == 3
    assert "retry budget empty" in caught.value.__notes__[0]


def test_an_open_breaker_sends_nothing(every: Env) -> None:
    """A breaker that models share opens for all of them, and closes after a probe."""
    breaker = CircuitBreaker(failure_threshold=1, recovery_time=30, clock=every.clock)
    llm = every.new(breaker=breaker, max_retries=1)
    every.gateway.script(Status(503))
    with pytest.raises(errors.UnavailableError):
        every.invoke(llm, "hi")
    with pytest.raises(errors.CircuitOpenError, match="nothing was sent") as caught:
        every.stream(every.new(breaker=breaker), "hi")
    assert isinstance(caught.value, errors.RetryRouterError)
    assert len(every.gateway.requests) == 1
    every.clock.advance(30)
    assert every.invoke(llm, "hi") == STUB_TEXT
    assert "".join(every.stream(llm, "hi")) == STUB_TEXT


def test_each_attempt_takes_a_turn(every: Env, method: str) -> None:
    """The limiter is asked once before each request, retries included."""
    sent: list[int] = []

    def take(**_: bool) -> bool:
        sent.append(len(every.gateway.requests))
        return True

    limiter = Mock(spec=BaseRateLimiter)
    name = "aacquire" if every.is_async else "acquire"
    getattr(limiter, name).side_effect = take
    every.gateway.script(Status(503), Reset())
    llm = every.new(rate_limiter=limiter, batch_size=2)
    getattr(every, method)(llm, "hi")
    assert sent == [0, 1, 2]
    assert limiter.method_calls == [getattr(call, name)(blocking=True)] * 3
    every.batch(llm, ["hi"] * 3)
    assert len(sent) == len(every.gateway.requests)
