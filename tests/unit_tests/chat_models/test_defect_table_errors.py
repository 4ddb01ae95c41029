"""The defect table's rows E and F: errors that are told, and answers that are none.

See `test_defect_table.py` for what the table is.
"""

from __future__ import annotations

import pytest
from gpt_router import exceptions as sdk

from langchain_retryrouter import (
    APIConnectionError,
    APITimeoutError,
    AuthenticationError,
    InvalidRequestError,
    MalformedResponseError,
    NotFoundError,
    RateLimitError,
    RetryPolicy,
    RetryRouterError,
    ServerError,
    StreamInterruptedError,
    UnavailableError,
)
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Body,
    ErrorEvent,
    FakeClock,
    FaultyGateway,
    Hangup,
    HtmlPage,
    Reset,
    Status,
    Step,
    Truncate,
)
from tests.unit_tests.conftest import Twin

from .conftest import NewModel
from .frames import event_stream, text_of

EXACT = RetryPolicy(initial_delay=0.5, jitter=False)


def asked(gateway: FaultyGateway) -> list[bool]:
    """Of each request, whether it asked for a stream."""
    return [request.streaming for request in gateway.requests]


# --- E: errors that the gateway tells ---


def test_e1_a_quota_for_the_day_fails_fast(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway, clock: FakeClock
) -> None:
    """A 429 that asks for a day's patience is out at once, and says the number."""
    gateway.always(Status(429, {"retry-after": "86400"}))

    with pytest.raises(RateLimitError) as caught:
        twin.invoke(new_llm(), "hi")

    assert isinstance(caught.value, sdk.GPTRouterTooManyRequestsError)
    assert caught.value.retry_after == 86400
    assert len(gateway.requests) == 1
    assert clock.sleeps == []
    assert caught.value.__notes__ == [
        (
            "gave up after 1 attempt, 0.0 s waited:"
            " Retry-After of 86400 s is above max_retry_after of 60 s"
        )
    ]
    assert caught.value.is_retryable is False


def test_e4_retry_after_is_waited_for(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway, clock: FakeClock
) -> None:
    """`Retry-After: 1` is waited for: 1 s, not 4."""
    gateway.script(Status(429, {"retry-after": "1"}))

    assert twin.invoke(new_llm(retry_policy=EXACT), "hi").content == STUB_TEXT

    assert clock.sleeps == [1.0]


def test_e2_a_429_in_a_stream_is_retried(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """A stream that is answered 429 is asked again, and after that told as 429."""
    gateway.script(Status(429))

    assert text_of(twin.stream(new_llm(), "hi")) == STUB_TEXT

    gateway.always(Status(429))
    with pytest.raises(RateLimitError, match="429 - You've reached a limit"):
        twin.stream(new_llm(max_retries=1), "hi")
    assert len(gateway.requests) == 4


def test_e11_a_401_in_a_stream_is_told(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """A stream that is answered 401 says so, at once."""
    gateway.always(Status(401))

    with pytest.raises(AuthenticationError, match="401 - Unauthorized") as caught:
        twin.stream(new_llm(), "hi")

    assert isinstance(caught.value, sdk.GPTRouterUnauthorizedError)
    assert len(gateway.requests) == 1


def test_e6_an_unknown_model_is_named(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """Behind an opaque 500 an unknown model is found by one stream, and no more."""
    gateway.always(ErrorEvent("Model with name nope does not exist"))

    with pytest.raises(NotFoundError, match="Model with name nope does not exist"):
        twin.invoke(new_llm(), "hi")

    assert asked(gateway) == [False, True]


def test_e8_n11_retries_do_not_multiply(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """`max_retries=3` on a failing provider is 4 requests, none repeated by others."""
    gateway.always(Status(500))

    with pytest.raises(ServerError) as caught:
        twin.invoke(new_llm(max_retries=3), "hi")

    assert isinstance(caught.value, sdk.GPTRouterInternalServerError)
    assert [request.payload["maxRetries"] for request in gateway.requests] == [0] * 4


def test_e9_a_transient_error_event_is_retried(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """A stream whose first event is a passing error is asked again."""
    gateway.script(ErrorEvent("slow down", status=429), ErrorEvent("Connection error."))

    assert text_of(twin.stream(new_llm(), "hi")) == STUB_TEXT

    assert len(gateway.requests) == 3


@pytest.mark.parametrize(
    ("message", "status", "expected", "requests"),
    [
        ("wrong key", 401, AuthenticationError, 1),
        ("bad request", 400, InvalidRequestError, 1),
        ("slow down", 429, RateLimitError, 2),
        ("oops", 500, ServerError, 2),
        ("Request timed out.", None, APITimeoutError, 2),
        ("Connection error.", None, APIConnectionError, 2),
        ("No models available", None, UnavailableError, 2),
        ("Provider with name nope does not exist", None, NotFoundError, 1),
    ],
)
def test_e7_e9_an_error_event_is_typed_and_reads_the_same(
    twin: Twin,
    new_llm: NewModel,
    gateway: FaultyGateway,
    message: str,
    status: int | None,
    expected: type[RetryRouterError],
    requests: int,
) -> None:
    """An error event is an error of its kind, with the gateway's own message."""
    gateway.always(ErrorEvent(message, status=status))

    with pytest.raises(expected) as caught:
        twin.stream(new_llm(max_retries=1), "hi")

    assert str(caught.value) == (message if status is None else f"{status} {message}")
    assert caught.value.status_code == status
    assert len(gateway.requests) == requests


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (500, sdk.GPTRouterInternalServerError),
        (502, sdk.GPTRouterInternalServerError),
        (503, sdk.GPTRouterNotAvailableError),
    ],
)
def test_e13_a_5xx_to_a_stream_is_retried(
    twin: Twin,
    new_llm: NewModel,
    gateway: FaultyGateway,
    status: int,
    expected: type[Exception],
) -> None:
    """A stream that is answered 5xx is asked again, and its error is the SDK's too."""
    gateway.script(Status(status))

    assert text_of(twin.stream(new_llm(), "hi")) == STUB_TEXT

    gateway.always(Status(status))
    with pytest.raises(ServerError, match=f"{status} - Something went wrong") as caught:
        twin.stream(new_llm(max_retries=0), "hi")
    assert isinstance(caught.value, expected)
    assert caught.value.body == {"error": "Something went wrong"}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("status", "expected", "requests"),
    [
        (400, InvalidRequestError, 1),
        (403, RetryRouterError, 1),
        (404, NotFoundError, 1),
        (406, UnavailableError, 2),
        (408, APITimeoutError, 2),
        (422, InvalidRequestError, 1),
        (502, ServerError, 2),
        (504, APITimeoutError, 2),
    ],
)
def test_e15_e16_f6_every_status_is_typed(
    twin: Twin,
    new_llm: NewModel,
    gateway: FaultyGateway,
    status: int,
    expected: type[RetryRouterError],
    requests: int,
    *,
    streaming: bool,
) -> None:
    """Each status has its class, and what may pass is asked again."""
    gateway.always(Status(status))

    with pytest.raises(expected) as caught:
        twin.invoke(new_llm(max_retries=1, streaming=streaming), "hi")

    assert caught.value.status_code == status
    assert len(gateway.requests) == requests


# --- F: no answer, or none of the gateway's ---


@pytest.mark.parametrize("streaming", [False, True])
def test_f1_f2_f3_a_refused_connection_is_typed_and_retried(
    twin: Twin, new_llm: NewModel, clock: FakeClock, *, streaming: bool
) -> None:
    """Where nobody listens is tried again, and the provider has certainly not run."""
    with FaultyGateway() as gone:
        url = gone.url

    with pytest.raises(APIConnectionError) as caught:
        twin.invoke(new_llm(gpt_router_api_base=url, streaming=streaming), "hi")

    assert caught.value.attempts == 5
    assert len(clock.sleeps) == 4
    assert caught.value.may_have_run is False
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("step", "expected", "status"),
    [
        pytest.param(HtmlPage(502), ServerError, 502, id="f4-502-html"),
        pytest.param(HtmlPage(200), MalformedResponseError, 200, id="f9-200-html"),
        pytest.param(Body(200), MalformedResponseError, 200, id="f11-empty-200"),
        pytest.param(Body(200, None, "[1]"), MalformedResponseError, 200, id="list"),
        pytest.param(Body(200, None, "{}"), MalformedResponseError, 200, id="no-keys"),
    ],
)
def test_f4_f9_f11_what_is_no_answer_is_typed_and_retried(
    twin: Twin,
    new_llm: NewModel,
    gateway: FaultyGateway,
    step: Step,
    expected: type[RetryRouterError],
    status: int,
) -> None:
    """An answer that is not the gateway's keeps its status, and is asked for again."""
    gateway.script(step)
    assert twin.invoke(new_llm(), "hi").content == STUB_TEXT

    gateway.always(step)
    with pytest.raises(expected) as caught:
        twin.invoke(new_llm(max_retries=1), "hi")
    assert caught.value.status_code == status
    assert caught.value.attempts == 2


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("step", [Hangup(), Reset()], ids=["fin", "rst"])
def test_f7_a_connection_closed_before_a_byte_is_retried(
    twin: Twin,
    new_llm: NewModel,
    gateway: FaultyGateway,
    step: Step,
    *,
    streaming: bool,
) -> None:
    """A server that closes before a byte is asked again; it may have run it."""
    llm = new_llm(max_retries=1, streaming=streaming)
    gateway.script(step)
    assert twin.invoke(llm, "hi").content == STUB_TEXT

    gateway.always(step)
    with pytest.raises(APIConnectionError) as caught:
        twin.invoke(llm, "hi")
    assert caught.value.may_have_run is True


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        pytest.param(HtmlPage(200), MalformedResponseError, id="f10-html"),
        pytest.param(Truncate(after=0), StreamInterruptedError, id="g9-no-events"),
        pytest.param(event_stream(), StreamInterruptedError, id="g9-no-bytes"),
    ],
)
def test_f10_g9_a_stream_that_is_none_is_an_error_of_the_gateway(
    twin: Twin,
    new_llm: NewModel,
    gateway: FaultyGateway,
    step: Step,
    expected: type[RetryRouterError],
) -> None:
    """A 200 without a single event is asked for again, and then typed."""
    gateway.script(step)
    assert text_of(twin.stream(new_llm(), "hi")) == STUB_TEXT

    gateway.always(step)
    with pytest.raises(expected) as caught:
        twin.stream(new_llm(max_retries=1), "hi")
    assert caught.value.attempts == 2
    assert caught.value.delivered == ""
