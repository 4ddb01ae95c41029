"""What goes wrong, row by row: the error, its facts, and how often it was tried."""

import json
import pickle
import re
import socket
import traceback
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from langchain_core import exceptions as langchain

from langchain_retryrouter import OpenAIChat, errors
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

from .conftest import EVENTS, JSON, KEY, Env, base_url, choice, events, streamed, whole

ATTEMPTS = 3  # One, and the two retries that the models make when they are not told.


@dataclass(frozen=True)
class Row:
    """One fault, and what a caller may expect of it."""

    step: Step
    name: str
    sdk: type[Exception]
    meaning: type[langchain.ModelError]
    facts: dict[str, Any]
    is_repeated: bool

    def __str__(self) -> str:
        return re.sub(r", \w+=(None|\(\))", "", repr(self.step))


def row(step: Any, ours: str, sdk: str, meaning: str, **facts: Any) -> Row:
    """The row of a fault, or of a status, by the names of its error's classes."""
    repeated = facts.pop("repeated", False)
    step = Status(step) if isinstance(step, int) else step
    if isinstance(step, Status):
        facts["status_code"] = step.code
    classes = (getattr(openai, sdk), getattr(langchain, meaning))
    return Row(step, f"OpenAI{ours}Error", *classes, facts, repeated)


INVALID = ("InvalidRequest", "BadRequestError", "ModelInvalidRequestError")
TOO_LONG = ("ContextLength", "BadRequestError", "ContextOverflowError")
FILTERED = ("ContentFilter", "BadRequestError", "ModelInvalidRequestError")
KEY_REFUSED = ("Authentication", "AuthenticationError", "ModelAuthenticationError")
FORBIDDEN = ("PermissionDenied", "PermissionDeniedError", "ModelPermissionDeniedError")
CONFLICT = ("Conflict", "ConflictError", "ModelAPIError")
UNPROCESSABLE = (
    "UnprocessableEntity",
    "UnprocessableEntityError",
    "ModelInvalidRequestError",
)
LIMITED = ("RateLimit", "RateLimitError", "ModelRateLimitError")
NO_QUOTA = ("QuotaExceeded", "RateLimitError", "ModelRateLimitError")
SERVER = ("Server", "InternalServerError", "ModelAPIError")
BUSY = ("Unavailable", "InternalServerError", "ModelAPIError")
LATE = ("StatusTimeout", "InternalServerError", "ModelTimeoutError")
LOST = ("Connection", "APIConnectionError", "ModelConnectionError")
MALFORMED = ("MalformedResponse", "APIResponseValidationError", "ModelAPIError")
NO_MONEY = "insufficient_quota"
MAXIMUM = "This model's maximum context length is 4096 tokens."

STATUS_ROWS = [
    row(400, *INVALID),
    row(Status(400, error_code="context_length_exceeded"), *TOO_LONG),
    row(Status(400, message=MAXIMUM), *TOO_LONG),
    row(Status(400, error_code="content_filter"), *FILTERED),
    row(401, *KEY_REFUSED),
    row(402, *NO_QUOTA),
    row(403, *FORBIDDEN),
    row(404, "NotFound", "NotFoundError", "ModelNotFoundError"),
    row(408, "StatusTimeout", "APIStatusError", "ModelTimeoutError", repeated=True),
    row(409, *CONFLICT, repeated=True),
    row(413, "InvalidRequest", "APIStatusError", "ModelInvalidRequestError"),
    row(422, *UNPROCESSABLE),
    row(429, *LIMITED, repeated=True),
    row(Status(429, error_code=NO_MONEY), *NO_QUOTA),
    row(500, *SERVER, repeated=True),
    row(501, *INVALID),
    row(503, *BUSY, repeated=True),
    row(504, *LATE, repeated=True),
    row(529, *BUSY, repeated=True),
    row(HtmlPage(502), *SERVER, repeated=True, status_code=502),
]
EITHER_WAY = [
    row(Reset(), *LOST, repeated=True, status_code=None, may_have_run=True),
    row(Hangup(), *LOST, repeated=True),
    row(HtmlPage(200), *MALFORMED, repeated=True),
    row(Body(200, JSON, b""), *MALFORMED, repeated=True),
    row(Body(200, {"content-type": "text/plain"}, b""), *MALFORMED, repeated=True),
    row(ErrorInOk("Overloaded."), *BUSY, repeated=True, message="Overloaded."),
    row(ErrorInOk("No money.", code=NO_MONEY), *NO_QUOTA, code=NO_MONEY),
    row(Truncate(0), *MALFORMED, repeated=True),
    row(Cut(0), *LOST, repeated=True),
]
ANSWERS_ONLY = [row(Cut(0, "rst"), *LOST, repeated=True)]
STREAMS_ONLY = [
    row(MalformedEvent(1), *MALFORMED, repeated=True),
    row(ErrorEvent("Rate limit reached.", status=429), *LIMITED, repeated=True),
    row(ErrorEvent("Out of money.", code=NO_MONEY, status=429), *NO_QUOTA),
    row(ErrorEvent("Too long.", code="context_length_exceeded", status=400), *TOO_LONG),
    row(ErrorEvent("You asked for the impossible.", status=400), *INVALID),
    row(ErrorEvent("The server had an error.", status=500), *SERVER, repeated=True),
]
A_FEW = [STATUS_ROWS[0], STATUS_ROWS[12], EITHER_WAY[0], EITHER_WAY[2]]


def expect(row: Row, gateway: FaultyGateway, call: Any) -> None:
    """Compare the error that `call` raises with the row."""
    gateway.always(row.step)
    with pytest.raises(errors.RetryRouterError) as caught:
        call()
    error = caught.value
    assert type(error).__name__ == row.name
    assert isinstance(error, row.sdk)
    assert isinstance(error, row.meaning)
    assert {name: getattr(error, name) for name in row.facts} == row.facts
    sent = ATTEMPTS if row.is_repeated else 1
    assert (len(gateway.requests), error.attempts) == (sent, sent)
    assert error.is_retryable is False


@pytest.mark.parametrize("row", [*STATUS_ROWS, *EITHER_WAY, *ANSWERS_ONLY], ids=str)
def test_each_fault_of_an_answer_has_its_error(env: Env, row: Row) -> None:
    """Each fault has its error; only transient ones are retried."""
    expect(row, env.gateway, lambda: env.invoke(env.new(), "hi"))


@pytest.mark.parametrize("row", [*STATUS_ROWS, *EITHER_WAY, *STREAMS_ONLY], ids=str)
def test_each_fault_of_a_stream_has_its_error(env: Env, row: Row) -> None:
    """A stream has the same error for the same fault, before its first token."""
    expect(row, env.gateway, lambda: env.stream(env.new(), "hi"))


@pytest.mark.parametrize("row", A_FEW, ids=str)
def test_every_class_has_the_same_errors(every: Env, row: Row, method: str) -> None:
    """The four classes name their errors alike."""
    llm = every.new(max_retries=ATTEMPTS - 1)
    expect(row, every.gateway, lambda: getattr(every, method)(llm, "hi"))


def test_a_refused_connection(env: Env, any_model: Any) -> None:
    """A request whose connection was refused has not run, and is retried."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = base_url(any_model, f"http://127.0.0.1:{unused.getsockname()[1]}")
        llm = env.new(any_model, max_retries=1, **address)
        with pytest.raises(errors.APIConnectionError) as caught:
            env.invoke(llm, "hi")
    assert caught.value.may_have_run is False
    assert caught.value.attempts == 2
    assert len(env.clock.sleeps) == 1


def test_silence_is_a_timeout(every: Env) -> None:
    """A server that says nothing is given up after `timeout`, as the SDK does."""
    every.gateway.always(Silence())
    llm = every.new(timeout=(5, 0.05), max_retries=1)
    with pytest.raises(errors.APITimeoutError, match="Request timed out") as caught:
        every.invoke(llm, "hi")
    assert isinstance(caught.value, openai.APITimeoutError)
    assert caught.value.may_have_run is True
    assert caught.value.attempts == 2


@pytest.mark.parametrize("address", ["127.0.0.1:1/v1", "ftp://127.0.0.1/v1"])
def test_an_address_that_is_none_is_final(env: Env, address: str) -> None:
    """An address that cannot be right is said to be wrong at once."""
    with pytest.raises(errors.InvalidRequestError, match=r"(?i)unsupported ?protocol"):
        env.invoke(env.new(base_url=address), "hi")
    assert env.clock.sleeps == []


@pytest.mark.parametrize(
    "request_id", ["x-request-id", "x-litellm-call-id", "apim-request-id"]
)
def test_the_facts_of_an_error(every: Env, request_id: str) -> None:
    """An error has what the provider said, in the same attributes always."""
    headers = {"retry-after": "7", "x-should-retry": "false", request_id: "req_1"}
    facts = {"message": "Slow down.", "code": "slow", "type": "t", "param": "p"}
    every.gateway.script(Status(429, headers, {"error": facts}))
    with pytest.raises(errors.RateLimitError) as caught:
        every.invoke(every.new(), "hi")
    error: Any = caught.value
    assert str(error) == "Error code: 429 - Slow down."
    assert (error.status_code, error.retry_after, error.should_retry) == (429, 7, False)
    assert (error.request_id, error.code) == ("req_1", "slow")
    assert (error.type, error.param) == ("t", "p")
    assert error.body == facts
    assert error.response.status_code == 429
    assert str(error.request.url).startswith(every.gateway.url)
    assert isinstance(error.__cause__, openai.RateLimitError)
    assert error.__notes__ == [
        "gave up after 1 attempt, 0.0 s waited: the server said not to retry"
    ]


@pytest.mark.parametrize("code", ["400", 400], ids=repr)
def test_a_status_as_code_is_read_as_one(env: Env, code: Any) -> None:
    """Gateways that put a status into `code` of an error in a 200 are understood."""
    body = {"error": {"message": "No.", "code": code}}
    env.gateway.respond("/v1/completions", body)
    with pytest.raises(errors.InvalidRequestError, match=r"^No\.$") as caught:
        env.invoke(env.new(), "hi")
    assert caught.value.code == "400"
    assert len(env.gateway.requests) == 1


@pytest.mark.parametrize(
    "facts",
    [
        {"message": {"no": "text"}, "code": {"a": "b"}, "type": ["c"], "param": 7},
        {"message": None, "code": 0, "type": 4},
        {"detail": [{"loc": ["body"], "msg": "field required"}]},
    ],
    ids=["nested", "numbers", "fastapi"],
)
def test_an_error_body_of_any_shape_is_read(env: Env, facts: dict[str, Any]) -> None:
    """A status with a body that is not OpenAI's is still the status's own error."""
    env.gateway.always(Status(400, body={"error": facts}))
    with pytest.raises(errors.InvalidRequestError, match=r"^Error code: 400 - "):
        env.invoke(env.new(), "hi")
    env.gateway.always(Status(400, body=facts))
    with pytest.raises(errors.InvalidRequestError, match=r"^Error code: 400 - "):
        env.stream(env.new(), "hi")


@pytest.mark.parametrize("error", ["out of order", {"no": "message"}, ["odd"], 7])
def test_an_error_of_any_shape_is_one(env: Env, error: Any, method: str) -> None:
    """Whatever stands under `error` in a 200 is an error, never an answer."""
    body = {"error": error}
    is_event = method == "stream"
    env.gateway.always(events(body) if is_event else Body(200, JSON, json.dumps(body)))
    with pytest.raises(errors.ServerError):
        getattr(env, method)(env.new(max_retries=0), "hi")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"choices": None},
        {"choices": []},
        {"choices": "x"},
        {"choices": [None]},
        {"choices": ["x"]},
        {"choices": [{"index": 0, "finish_reason": "stop"}]},
        {"choices": [{"message": "a text"}]},
        {"choices": [{"text": 7, "message": {"content": 7}}]},
        {"choices": [{"text": [], "message": {"content": [{"type": "text"}]}}]},
        {"object": "list"},
        [],
        7,
    ],
    ids=str,
)
def test_an_answer_without_choices_is_malformed(every: Env, body: Any) -> None:
    """JSON that has no choices is no answer, and never a `TypeError`."""
    every.gateway.script(Body(200, JSON, json.dumps(body)))
    with pytest.raises(errors.MalformedResponseError):
        every.invoke(every.new(max_retries=0), "hi")


def test_an_answer_to_another_request_is_malformed(env: Env) -> None:
    """Too few choices, or no stream where one was asked for, are malformed."""
    env.gateway.always(whole(choice("a", "stop")))
    llm = env.new(max_retries=0)
    with pytest.raises(errors.MalformedResponseError, match="1 choices, 2 expected"):
        env.generate(llm, ["hi", "ho"])
    with pytest.raises(errors.MalformedResponseError, match="no stream, but"):
        env.stream(llm, "hi")


@pytest.mark.parametrize(
    "refusal",
    [
        {"refusal": "I will not."},
        {"provider_specific_fields": {"refusal": "I will not."}},
        {"refusal": "I will not.", "provider_specific_fields": None},
        {"refusal": ["I will not."]},
        {"refusal": {"why": "I will not."}},
    ],
    ids=["openai", "litellm", "null", "list", "object"],
)
def test_a_refusal_is_an_error(env: Env, refusal: Any) -> None:
    """A chat model that refuses has not answered with an empty text."""
    message = {"role": "assistant", "content": None, **refusal}
    env.gateway.script(whole({"message": message, "finish_reason": "stop"}))
    with pytest.raises(errors.ContentFilterError, match=r"refused: .*I will not\."):
        env.invoke(env.new(OpenAIChat), "hi")
    assert len(env.gateway.requests) == 1


def test_a_streamed_refusal_is_an_error(env: Env) -> None:
    """A refusal that comes in pieces is told whole."""
    pieces = [{"delta": {"refusal": piece}} for piece in ("I ", "will ", "not.")]
    env.gateway.script(streamed(*pieces, {"delta": {}, "finish_reason": "stop"}))
    with pytest.raises(errors.ContentFilterError, match=r"refused: I will not\."):
        env.stream(env.new(OpenAIChat), "hi")
    assert len(env.gateway.requests) == 1


# The key.


def everything_said(error: BaseException) -> str:
    """The error, what led to it, and all that it can show of itself."""
    told = [*traceback.format_exception(error)]
    cause: BaseException | None = error
    while cause is not None:
        told += [str(cause), repr(cause), str(getattr(cause, "body", ""))]
        cause = cause.__cause__ or cause.__context__
    return "\n".join(told)


@pytest.mark.parametrize("status", [200, 401])
@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": f"Incorrect key: {KEY}.", "code": "invalid_api_key"}},
        {"error": {"message": "No.", "details": [{"key": KEY}]}},
        f"<html>{KEY}</html>",
    ],
    ids=["message", "details", "page"],
)
def test_a_key_that_the_server_quotes_is_not_shown(
    every: Env, method: str, body: Any, status: int
) -> None:
    """Neither an error nor its causes show the key, even if the server quotes it."""
    is_page = isinstance(body, str)
    headers = {"content-type": "text/html"} if is_page else JSON
    every.gateway.always(Body(status, headers, body if is_page else json.dumps(body)))
    with pytest.raises(errors.RetryRouterError) as caught:
        getattr(every, method)(every.new(), "hi")
    assert status == 200 or isinstance(caught.value, errors.AuthenticationError)
    assert "***" in everything_said(caught.value)
    assert KEY not in everything_said(caught.value)


def test_a_pickled_error_has_no_key(env: Env) -> None:
    """An error can be pickled; its request, which has the key, is left out."""
    env.gateway.script(Status(400))
    with pytest.raises(errors.InvalidRequestError) as caught:
        env.invoke(env.new(), "hi")
    data = pickle.dumps(caught.value)
    assert KEY.encode() not in data
    again = pickle.loads(data)
    assert (str(again), again.status_code) == (str(caught.value), 400)
    assert again.attempts == 1


def test_an_error_in_a_200_has_the_facts_of_its_headers(
    every: Env, method: str
) -> None:
    """Request id and HTTP response are known of an error in a 200, streamed or not."""
    text = json.dumps({"error": {"message": "No.", "code": "invalid_api_key"}})
    headers, body = JSON, text
    if method == "stream":
        headers, body = EVENTS, f"data: {text}\n\n"
    every.gateway.script(Body(200, {**headers, "x-request-id": "req_1"}, body))
    with pytest.raises(errors.AuthenticationError) as caught:
        getattr(every, method)(every.new(), "hi")
    error: Any = caught.value
    assert (error.request_id, error.response.status_code) == ("req_1", 200)


# --- filters ---


def _filtered(*texts: str) -> Body:
    """A whole answer whose choices a content filter has ended."""
    choices = [choice(text, "content_filter") for text in texts]
    return whole(*({**one, "index": at} for at, one in enumerate(choices)))


def _filtered_stream(*texts: str) -> Body:
    """A stream that a content filter ends after these texts."""
    return streamed(*map(choice, texts), choice("", "content_filter"))


def test_an_answer_that_a_filter_took_away_is_an_error(every: Env) -> None:
    """Nothing but a finish reason is no empty answer, and is not asked for again."""
    llm = every.new()
    every.gateway.script(_filtered(""), _filtered_stream(), _filtered_stream(""))
    with pytest.raises(errors.ContentFilterError, match="removed the whole answer"):
        every.invoke(llm, "hi")
    for _ in range(2):
        with pytest.raises(errors.ContentFilterError, match="removed"):
            every.stream(llm, "hi")
    assert len(every.gateway.requests) == 3


def test_what_a_filter_left_is_kept(every: Env) -> None:
    """What came before a filter, or of the other answers, is told with its reason."""
    every.gateway.script(_filtered("so far"), _filtered_stream("so ", "far"))
    llm = every.new()
    (only,) = every.generate(llm, ["hi"]).generations[0]
    assert only.text == "".join(every.stream(llm, "hi")) == "so far"
    assert only.generation_info["finish_reason"] == "content_filter"
    every.gateway.script(_filtered("", "so far"))
    both = every.generate(every.new(n=2), ["hi"]).generations[0]
    assert [generation.text for generation in both] == ["", "so far"]
