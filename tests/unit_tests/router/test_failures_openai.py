"""What `ChatOpenAI` raises, fault by fault, and the name that it gets."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import pytest

from langchain_retryrouter import errors
from langchain_retryrouter._providers.errors import name_failure
from langchain_retryrouter.testing import (
    Body,
    Cut,
    ErrorEvent,
    ErrorInOk,
    FaultyGateway,
    Hangup,
    HtmlPage,
    MalformedEvent,
    Reset,
    Silence,
    Status,
    Step,
    Truncate,
)

from .attempts import WALL, WAYS, Way, error_of, failure
from .models import OPENAI_KEY, chat_openai

JSON = {"content-type": "application/json"}
EVENTS = {"content-type": "text/event-stream"}


@dataclass(frozen=True)
class Row:
    """A fault, the class of its error, and facts that it must have."""

    step: Step
    error: type[errors.RetryRouterError]
    facts: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """What pytest calls the row."""
        return re.sub(r", \w+=(None|\(\))", "", repr(self.step))


def json_body(text: str) -> Body:
    """A 200 with this document."""
    return Body(200, JSON, text)


def events(text: str) -> Body:
    """A whole stream of events."""
    return Body(200, EVENTS, text)


SAYS_NOTHING = {"may_have_run": False, "retry_after": None, "should_retry": None}

EITHER_WAY = [
    Row(Status(400), errors.InvalidRequestError, {"status_code": 400, **SAYS_NOTHING}),
    Row(
        Status(400, error_code="context_length_exceeded"),
        errors.ContextLengthError,
        {"status_code": 400, "code": "context_length_exceeded", **SAYS_NOTHING},
    ),
    Row(
        Status(400, message="This model's maximum context length is 8192 tokens."),
        errors.ContextLengthError,
        {"status_code": 400, "code": None},
    ),
    Row(
        Status(400, message="prompt is too long: 215000 tokens > 200000 maximum"),
        errors.ContextLengthError,
    ),
    Row(
        Status(400, error_code="content_policy_violation"),
        errors.ContentFilterError,
        {"code": "content_policy_violation"},
    ),
    Row(Status(400, error_code="content_filter"), errors.ContentFilterError),
    Row(Status(401), errors.AuthenticationError, {"code": "invalid_api_key"}),
    Row(Status(402), errors.QuotaExceededError, {"status_code": 402}),
    Row(Status(403), errors.PermissionDeniedError, {"status_code": 403}),
    Row(Status(404), errors.NotFoundError, {"code": "model_not_found"}),
    Row(
        Status(408), errors.APITimeoutError, {"status_code": 408, "may_have_run": True}
    ),
    Row(Status(409), errors.ConflictError, {"status_code": 409}),
    Row(Status(413), errors.InvalidRequestError, {"status_code": 413}),
    Row(Status(422), errors.InvalidRequestError, {"status_code": 422}),
    Row(
        Status(429),
        errors.RateLimitError,
        {"code": "rate_limit_exceeded", "is_retryable": True, **SAYS_NOTHING},
    ),
    Row(Status(429, {"retry-after": "2"}), errors.RateLimitError, {"retry_after": 2.0}),
    Row(
        Status(429, {"retry-after-ms": "1500"}),
        errors.RateLimitError,
        {"retry_after": 1.5},
    ),
    Row(
        Status(429, {"retry-after": "Fri, 15 Jan 2027 08:00:30 GMT"}),
        errors.RateLimitError,
        {"retry_after": 30.0},
    ),
    Row(
        Status(429, {"retry-after": "soon"}),
        errors.RateLimitError,
        {"retry_after": None},
    ),
    Row(
        Status(429, {"x-should-retry": "false"}),
        errors.RateLimitError,
        {"should_retry": False},
    ),
    Row(
        Status(429, error_code="insufficient_quota"),
        errors.QuotaExceededError,
        {"code": "insufficient_quota", "is_retryable": False},
    ),
    Row(Status(500), errors.ServerError, {"status_code": 500, "may_have_run": True}),
    Row(Status(501), errors.InvalidRequestError, {"status_code": 501}),
    Row(Status(503), errors.UnavailableError, {"status_code": 503}),
    Row(Status(504), errors.APITimeoutError, {"status_code": 504}),
    Row(Status(529), errors.UnavailableError, {"status_code": 529}),
    Row(HtmlPage(502), errors.ServerError, {"status_code": 502, "code": None}),
    Row(HtmlPage(503), errors.UnavailableError, {"status_code": 503}),
    Row(Status(400, body="no JSON"), errors.InvalidRequestError, {"body": "no JSON"}),
    Row(Reset(), errors.APIConnectionError, {"may_have_run": True}),
    Row(Hangup(), errors.APIConnectionError, {"may_have_run": True}),
    Row(Cut(after=5), errors.APIConnectionError, {"may_have_run": True}),
    Row(Cut(after=5, how="rst"), errors.APIConnectionError),
    Row(MalformedEvent(at=3), errors.MalformedResponseError, {"may_have_run": True}),
]

UNSTREAMED = [
    Row(
        ErrorInOk("The server is on fire."),
        errors.ServerError,
        {"message": "The server is on fire.", "status_code": None},
    ),
    Row(ErrorInOk("No money.", code="insufficient_quota"), errors.QuotaExceededError),
    Row(
        ErrorInOk("Too long.", code="context_length_exceeded"),
        errors.ContextLengthError,
    ),
    Row(
        json_body('{"error": {"code": 429, "message": "Slow down."}}'),
        errors.RateLimitError,
        {"code": "429", "status_code": None},
    ),
    Row(json_body("{}"), errors.MalformedResponseError),
    Row(json_body('{"choices": null}'), errors.MalformedResponseError),
    Row(json_body('{"choices": [{"message": "x"}]}'), errors.MalformedResponseError),
    Row(json_body("[]"), errors.MalformedResponseError),
    Row(json_body("no JSON"), errors.MalformedResponseError),
    Row(HtmlPage(200), errors.MalformedResponseError),
    Row(Truncate(after=5), errors.MalformedResponseError, {"may_have_run": True}),
]

STREAMED = [
    Row(
        ErrorEvent("It broke.", after=3),
        errors.ServerError,
        {"message": "It broke.", "status_code": None, "may_have_run": True},
    ),
    Row(
        ErrorEvent("Slow down.", after=3, status=429),
        errors.RateLimitError,
        {"code": "rate_limit_exceeded"},
    ),
    Row(
        ErrorEvent("No money.", after=3, status=429, code="insufficient_quota"),
        errors.QuotaExceededError,
    ),
    Row(
        ErrorEvent("Your input exceeds the context window of this model."),
        errors.ContextLengthError,
    ),
    Row(ErrorEvent("Bad.", status=400), errors.InvalidRequestError),
    Row(
        events('data: {"error": {"code": 502, "message": "Bad gateway"}}\n\n'),
        errors.ServerError,
        {"code": "502", "status_code": None},
    ),
    Row(events("data: 42\n\n"), errors.MalformedResponseError),
    Row(events("data: null\n\n"), errors.MalformedResponseError),
    Row(events('data: "text"\n\n'), errors.MalformedResponseError),
    Row(
        events('data: {"choices": [{"delta": "x"}]}\n\n'), errors.MalformedResponseError
    ),
    Row(events("data: \xff\n\n"), errors.MalformedResponseError),
]

STREAMING = [way for way in WAYS if way.is_streaming]
NOT_STREAMING = [way for way in WAYS if not way.is_streaming]


def check(row: Row, way: Way) -> None:
    with FaultyGateway() as gateway:
        gateway.script(row.step)
        named = failure(way, chat_openai(gateway))
        assert len(gateway.requests) == 1
    assert type(named) is row.error
    assert {name: getattr(named, name) for name in row.facts} == row.facts


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("row", EITHER_WAY, ids=str)
def test_a_fault_has_its_name(row: Row, way: Way) -> None:
    """What goes wrong is named, with the facts that it came with."""
    check(row, way)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("way", NOT_STREAMING, ids=str)
@pytest.mark.parametrize("row", UNSTREAMED, ids=str)
def test_a_200_that_is_no_answer_is_the_providers_failure(row: Row, way: Way) -> None:
    """The bare ValueError of an integration is told from a caller's own mistake."""
    check(row, way)


# pydantic says first what langchain-openai stumbles over next.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("way", STREAMING, ids=str)
@pytest.mark.parametrize("row", STREAMED, ids=str)
def test_an_event_that_is_no_chunk_is_the_providers_failure(row: Row, way: Way) -> None:
    """An error event keeps its meaning, and one that cannot be read is malformed."""
    check(row, way)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_silence_is_a_timeout(way: Way) -> None:
    """A provider that says nothing in time may have run the request nevertheless."""
    with FaultyGateway() as gateway:
        gateway.script(Silence())
        named = failure(way, chat_openai(gateway, timeout=0.3))
    assert type(named) is errors.APITimeoutError
    assert named.may_have_run


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_refused_connection_was_never_sent(way: Way) -> None:
    """Where nobody listens nothing has run, and the error says so."""
    with FaultyGateway() as gateway:
        model = chat_openai(gateway)
    named = failure(way, model)
    assert type(named) is errors.APIConnectionError
    assert not named.may_have_run


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_key_is_not_shown(way: Way) -> None:
    """A server that quotes the key does not bring it into a log or a trace."""
    with FaultyGateway() as gateway:
        gateway.script(
            Status(401, message=f"Incorrect API key provided: {OPENAI_KEY}.")
        )
        raised = error_of(way, chat_openai(gateway))
    named = name_failure(raised, WALL)
    assert named is not None
    shown = f"{named} {named.body} {raised} {raised.__cause__}"
    assert "Incorrect API key provided: ***." in shown
    assert OPENAI_KEY not in shown


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_callers_mistake_is_no_providers_failure(way: Way) -> None:
    """What the integration refuses before it sends goes to the caller unchanged."""
    with FaultyGateway() as gateway:
        raised = error_of(way, chat_openai(gateway), tools="no list", no_such_option=1)
        assert gateway.requests == []
    assert isinstance(raised, TypeError)
    assert name_failure(raised, WALL) is None
