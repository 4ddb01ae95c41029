"""Failing gateways: what is retried, what is not, what is shared, what is logged."""

import logging
import time
from typing import Any

import pytest
from gpt_router import exceptions as sdk

from langchain_retryrouter import (
    APIConnectionError,
    APITimeoutError,
    CircuitBreaker,
    CircuitOpenError,
    MalformedResponseError,
    NotFoundError,
    QuotaExceededError,
    RetryPolicy,
    RetryRouterError,
    ServerError,
    UnavailableError,
)
from langchain_retryrouter.testing import (
    Drip,
    ErrorEvent,
    FaultyGateway,
    Hangup,
    RecordedRequest,
    Reset,
    Silence,
    SlowFirstToken,
    Status,
    Step,
    Truncate,
)
from langchain_retryrouter.testing._gptrouter_api import stub_embedding
from tests.support.models import gpt_router

from .conftest import AT_AZURE, KEY, SMALL, Env, texts_of

EXACT = RetryPolicy(initial_delay=0.5, jitter=False)
SHORT = 0.15

RETRIED: dict[str, tuple[Step, type[RetryRouterError]]] = {
    "503": (Status(503), UnavailableError),
    "a provider's error": (ErrorEvent("slow down", status=429), ServerError),
    "half a body": (Truncate(1), MalformedResponseError),
    "a hangup": (Hangup(), APIConnectionError),
}


@pytest.mark.parametrize("endpoint", ["v1", "v2"])
@pytest.mark.parametrize("fault", RETRIED)
def test_a_transient_error_is_retried_and_then_raised(
    env: Env, fault: str, endpoint: str
) -> None:
    """An error that may pass is retried after a wait, and raised in the end."""
    step, expected = RETRIED[fault]
    embeddings = env.embeddings(max_retries=2, retry_policy=EXACT, endpoint=endpoint)
    env.gateway.script(step, step)
    assert env.embed(embeddings, ["a", "b"]) == [stub_embedding(text) for text in "ab"]
    assert texts_of(env.gateway) == [["a", "b"]] * 3
    assert env.clock.sleeps == [0.5, 1.0]
    env.gateway.always(step)
    with pytest.raises(expected) as caught:
        env.embed(embeddings, "a")
    assert caught.value.attempts == 3
    assert caught.value.is_retryable is False
    assert caught.value.__notes__ == [
        "gave up after 3 attempts, 1.5 s waited: no retries left"
    ]
    assert len(env.gateway.requests) == 6


@pytest.mark.parametrize(
    ("step", "expected", "sdks"),
    [
        # What the public gateway, which has no embeddings, says to all of them.
        (Status(404), NotFoundError, NotFoundError),
        (
            Status(429, message="You exceeded your current quota"),
            QuotaExceededError,
            sdk.GPTRouterTooManyRequestsError,
        ),
    ],
    ids=["404", "quota"],
)
def test_a_permanent_error_is_raised_at_once(
    env: Env, step: Step, expected: type[RetryRouterError], sdks: type[Exception]
) -> None:
    """An error that would come again is raised at once, as `GPTRouter` raises it."""
    env.gateway.always(step)
    embeddings = env.embeddings(models_priority_list=[SMALL, AT_AZURE])
    with pytest.raises(expected) as caught:
        env.embed(embeddings, ["a"])
    assert isinstance(caught.value, sdks)
    assert len(env.gateway.requests) == 1
    assert env.clock.sleeps == []


def test_only_the_chunk_that_failed_is_repeated(env: Env) -> None:
    """A retry repeats its own chunk, and not those that have their vectors."""
    failed: list[int] = []

    def step(request: RecordedRequest) -> Step:
        if request.parameters["input"] == ["b"] and not failed:
            failed.append(1)
            return Status(500)
        return SlowFirstToken(0)

    env.gateway.always(step)
    vectors = env.embed(env.embeddings(chunk_size=1), ["a", "b", "c"])
    assert vectors == [stub_embedding(text) for text in "abc"]
    assert sorted(texts_of(env.gateway)) == [["a"], ["b"], ["b"], ["c"]]


# --- failover ---


def asked(gateway: FaultyGateway) -> list[list[str]]:
    """The providers of each request, in their order."""
    return [
        [entry["providerName"] for entry in sorted(data, key=lambda one: one["order"])]
        for data in (request.payload["data"] for request in gateway.requests)
    ]


@pytest.mark.parametrize("failover", [True, False])
def test_a_provider_that_failed_is_asked_last(env: Env, failover: bool) -> None:
    """A retry asks the next provider unless `failover` is off; the error lists both."""
    env.gateway.script(Status(503), Status(503))
    embeddings = env.embeddings(
        models_priority_list=[SMALL, AT_AZURE], failover=failover
    )
    assert env.embed(embeddings, "a") == stub_embedding("a")
    first, second = SMALL.provider_name, AT_AZURE.provider_name
    there, back = [first, second], [second, first] if failover else [first, second]
    assert asked(env.gateway) == [there, back, there]
    env.gateway.always(Status(503))
    with pytest.raises(UnavailableError) as caught:
        env.embed(embeddings.model_copy(update={"max_retries": 1}), "a")
    assert caught.value.route == f"{back[0]}/{SMALL.name}"
    assert caught.value.__notes__[0] == (
        f"routes tried: {first}/{SMALL.name} (unavailable),"
        f" {second}/{SMALL.name} (unavailable)"
        if failover
        else "gave up after 2 attempts, 0.8 s waited: no retries left"
    )


def test_a_breaker_is_shared_with_chat_models(env: Env) -> None:
    """A breaker that a chat model opened stops embeddings of the same gateway too."""
    breaker = CircuitBreaker(failure_threshold=1, recovery_time=30.0, clock=env.clock)
    embeddings = env.embeddings(breaker=breaker, max_retries=0)
    chat = gpt_router(env.gateway, "gpt-4o", breaker=breaker, max_retries=0)
    env.gateway.script(Status(500))
    with pytest.raises(ServerError):
        env.invoke(chat, "hi")
    with pytest.raises(CircuitOpenError):
        env.embed(embeddings, "a")
    assert len(env.gateway.requests) == 1
    env.clock.advance(31.0)
    assert env.embed(embeddings, "a") == stub_embedding("a")
    assert env.is_async or env.gateway.connections == 1


# --- time ---


@pytest.mark.parametrize(
    ("step", "limits"),
    [
        (Silence(), {"timeout": SHORT, "max_retries": 0}),
        (Drip(0.1), {"retry_policy": RetryPolicy(max_retries=0, deadline=SHORT)}),
    ],
    ids=["timeout", "deadline"],
)
def test_a_slow_gateway_is_not_waited_for(
    env: Env, step: Step, limits: dict[str, Any]
) -> None:
    """A deadline ends a slow call, and the timeout one whose server is silent."""
    env.gateway.always(step)
    began = time.monotonic()
    with pytest.raises(APITimeoutError):
        env.embed(env.embeddings(clock=None, **limits), "a")
    assert SHORT - 0.01 <= time.monotonic() - began < 8


# --- what is seen ---


def test_each_retry_is_one_line_of_the_log(
    env: Env, caplog: pytest.LogCaptureFixture
) -> None:
    """A retry is a warning with its model, error and wait; a success is not logged."""
    env.gateway.script(Status(429, {"retry-after": "3"}, message=f"no, {KEY}"), Reset())
    embeddings = env.embeddings(retry_policy=EXACT)
    with caplog.at_level(logging.INFO, "langchain_retryrouter"):
        for _ in range(2):
            env.embed(embeddings, ["a", "b"])
    model = "openai_embeddings/text-embedding-3-small"
    failed = f"attempt %s to embed 2 text(s) at {model} failed (%s), another follows in"
    assert env.clock.sleeps == [3.0, 1.0]
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert caplog.messages == [
        failed % (1, "GPTRouterRateLimitError, 429") + " 3.00 s",
        failed % (2, "APIConnectionError") + " 1.00 s",
    ]
