"""What `ChatAnthropic` raises, fault by fault, and the name that it gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from langchain_retryrouter import errors
from langchain_retryrouter._providers.errors import name_failure
from langchain_retryrouter.testing import (
    FaultyGateway,
    Hangup,
    HtmlPage,
    Raw,
    Reset,
    Silence,
    Status,
    Step,
)

from .anthropic_wire import JSON, after_the_beginning, event, problem
from .attempts import WALL, WAYS, Way, ask, error_of, failure
from .models import ANTHROPIC_KEY, chat_anthropic


@dataclass(frozen=True)
class Row:
    """A fault, the class of its error, and facts that it must have."""

    name: str
    step: Step
    error: type[errors.RetryRouterError]
    facts: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """What pytest calls the row."""
        return self.name


def status(
    code: int,
    kind: str,
    error: type[errors.RetryRouterError],
    message: str = "Said by Anthropic.",
    **facts: Any,
) -> Row:
    """An error with a status of its own."""
    told = {"status_code": code, "code": kind, "request_id": "req_header", **facts}
    step = Status(code, JSON, problem(kind, message))
    return Row(f"{code} {kind}: {message}", step, error, told)


EITHER_WAY = [
    status(400, "invalid_request_error", errors.InvalidRequestError),
    status(
        400,
        "invalid_request_error",
        errors.ContextLengthError,
        "prompt is too long: 215000 tokens > 200000 maximum",
    ),
    status(
        400,
        "invalid_request_error",
        errors.ContextLengthError,
        "input length and `max_tokens` exceed context limit: 178959 + 64000 > 200000",
    ),
    status(
        400,
        "invalid_request_error",
        errors.ContentFilterError,
        "Output blocked by content filtering policy",
    ),
    status(
        400,
        "invalid_request_error",
        errors.QuotaExceededError,
        "Your credit balance is too low to access the Anthropic API.",
    ),
    status(401, "authentication_error", errors.AuthenticationError),
    status(402, "billing_error", errors.QuotaExceededError),
    status(403, "permission_error", errors.PermissionDeniedError),
    status(404, "not_found_error", errors.NotFoundError),
    status(409, "conflict_error", errors.ConflictError),
    status(413, "request_too_large", errors.InvalidRequestError),
    status(429, "rate_limit_error", errors.RateLimitError, may_have_run=False),
    status(500, "api_error", errors.ServerError, may_have_run=True),
    status(504, "timeout_error", errors.APITimeoutError),
    status(529, "overloaded_error", errors.UnavailableError),
    Row(
        "429 with Retry-After",
        Status(429, {**JSON, "retry-after": "7"}, problem("rate_limit_error")),
        errors.RateLimitError,
        {"retry_after": 7.0},
    ),
    Row("HTML 503", HtmlPage(503), errors.UnavailableError, {"code": None}),
    Row("reset", Reset(), errors.APIConnectionError, {"may_have_run": True}),
    Row("hangup", Hangup(), errors.APIConnectionError, {"may_have_run": True}),
    Row(
        "cut",
        Raw(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n40\r\nevent: message"
        ),
        errors.APIConnectionError,
        {"may_have_run": True},
    ),
]

STREAMED = [
    Row(
        f"event {kind}",
        after_the_beginning(event("error", problem(kind))),
        error,
        {
            "message": "Said by Anthropic.",
            "code": kind,
            "status_code": None,
            "may_have_run": True,
        },
    )
    for kind, error in {
        "overloaded_error": errors.UnavailableError,
        "api_error": errors.ServerError,
        "rate_limit_error": errors.RateLimitError,
        "timeout_error": errors.APITimeoutError,
        "invalid_request_error": errors.InvalidRequestError,
        "a_new_error": errors.ServerError,
    }.items()
] + [
    Row(
        "error event that is no JSON",
        after_the_beginning(event("error", "oh dear")),
        errors.MalformedResponseError,
        {"message": "oh dear", "status_code": None, "may_have_run": True},
    ),
    Row(
        "event that is no JSON",
        after_the_beginning(event("content_block_delta", '{"type":')),
        errors.MalformedResponseError,
    ),
]


def check(row: Row, way: Way) -> None:
    with FaultyGateway() as gateway:
        gateway.script(row.step)
        named = failure(way, chat_anthropic(gateway))
        assert len(gateway.requests) == 1
    assert type(named) is row.error
    assert {name: getattr(named, name) for name in row.facts} == row.facts


@pytest.mark.parametrize("way", [way for way in WAYS if not way.is_streaming], ids=str)
def test_the_route_answers_where_nothing_is_scripted(way: Way) -> None:
    """The faults below are the only reason for which the model fails."""
    with FaultyGateway() as gateway:
        assert ask(way, chat_anthropic(gateway))[0].text == "Hello."


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("row", EITHER_WAY, ids=str)
def test_a_fault_has_its_name(row: Row, way: Way) -> None:
    """What goes wrong before an answer is named, with the facts that it came with."""
    check(row, way)


@pytest.mark.parametrize("way", [way for way in WAYS if way.is_streaming], ids=str)
@pytest.mark.parametrize("row", STREAMED, ids=str)
def test_an_error_after_the_200_keeps_its_meaning(row: Row, way: Way) -> None:
    """An `error` event counts by its type: the status came before it, and was 200."""
    check(row, way)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_silence_is_a_timeout(way: Way) -> None:
    """A provider that says nothing in time may have run the request nevertheless."""
    with FaultyGateway() as gateway:
        gateway.script(Silence())
        named = failure(way, chat_anthropic(gateway, timeout=0.3))
    assert type(named) is errors.APITimeoutError
    assert named.may_have_run


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_refused_connection_was_never_sent(way: Way) -> None:
    """Where nobody listens nothing has run, and the error says so."""
    with FaultyGateway() as gateway:
        model = chat_anthropic(gateway)
    named = failure(way, model)
    assert type(named) is errors.APIConnectionError
    assert not named.may_have_run


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_key_is_not_shown(way: Way) -> None:
    """A server that quotes the key does not bring it into a log or a trace."""
    with FaultyGateway() as gateway:
        body = problem("authentication_error", f"invalid x-api-key: {ANTHROPIC_KEY}")
        gateway.script(Status(401, JSON, body))
        raised = error_of(way, chat_anthropic(gateway))
    named = name_failure(raised, WALL)
    assert named is not None
    shown = f"{named} {named.body} {raised} {raised.__cause__}"
    assert "invalid x-api-key: ***" in shown
    assert ANTHROPIC_KEY not in shown


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_missing_key_is_no_providers_failure(way: Way) -> None:
    """What the SDK refuses before it sends goes to the caller unchanged."""
    with FaultyGateway() as gateway:
        model = chat_anthropic(gateway)
        for name in ("_client", "_async_client"):
            vars(model)[name].api_key = None
        raised = error_of(way, model)
        assert gateway.requests == []
    assert isinstance(raised, TypeError)
    assert name_failure(raised, WALL) is None
