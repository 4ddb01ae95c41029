"""What goes wrong, row by row: the error, its facts, and how often it was tried."""

import json
import re
import socket
import traceback
from typing import Any

import openai
import pytest

from langchain_retryrouter import AzureOpenAI, FailureKind, OpenAIChat, errors
from langchain_retryrouter._openai.errors import OPENAI_ERRORS
from langchain_retryrouter.failures import is_retryable
from langchain_retryrouter.testing import (
    Body,
    Cut,
    ErrorEvent,
    ErrorInOk,
    Hangup,
    HtmlPage,
    MalformedEvent,
    Raw,
    Reset,
    Silence,
    Status,
    Step,
    Truncate,
)

from .conftest import EVENTS, JSON, KEY, Env, base_url, choice, events, streamed, whole

K = FailureKind
ATTEMPTS = 3  # One, and the two retries that the models make when they are not told.
NO_MONEY = "insufficient_quota"
MAXIMUM = "This model's maximum context length is 4096 tokens."
# Each fault, and the kind of its error.
STATUSES = [
    *((Status(status), K.INVALID_REQUEST) for status in (400, 413, 422, 501)),
    (Status(400, error_code="context_length_exceeded"), K.CONTEXT_OVERFLOW),
    (Status(400, message=MAXIMUM), K.CONTEXT_OVERFLOW),
    (Status(400, error_code="content_filter"), K.CONTENT_FILTER),
    (Status(401), K.AUTHENTICATION),
    (Status(402), K.QUOTA),
    (Status(403), K.PERMISSION),
    (Status(404), K.NOT_FOUND),
    *((Status(status), K.TIMEOUT) for status in (408, 504)),
    (Status(409), K.CONFLICT),
    (Status(429), K.RATE_LIMIT),
    (Status(429, error_code=NO_MONEY), K.QUOTA),
    (Status(500), K.SERVER_ERROR),
    *((Status(status), K.UNAVAILABLE) for status in (503, 529)),
    (HtmlPage(502), K.SERVER_ERROR),
]
EITHER_WAY = [
    *((step, K.CONNECTION) for step in (Reset(), Hangup(), Cut(0))),
    (HtmlPage(200), K.MALFORMED),
    (Body(200, JSON, b""), K.MALFORMED),
    (Body(200, {"content-type": "text/plain"}, b""), K.MALFORMED),
    (Truncate(0), K.MALFORMED),
    (ErrorInOk("Overloaded."), K.UNAVAILABLE),
    (ErrorInOk("No money.", code=NO_MONEY), K.QUOTA),
]
STREAMS_ONLY = [
    (MalformedEvent(1), K.MALFORMED),
    (ErrorEvent("Rate limit reached.", status=429), K.RATE_LIMIT),
    (ErrorEvent("Out of money.", code=NO_MONEY, status=429), K.QUOTA),
    (ErrorEvent("x", code="context_length_exceeded", status=400), K.CONTEXT_OVERFLOW),
    (ErrorEvent("You asked for the impossible.", status=400), K.INVALID_REQUEST),
    (ErrorEvent("The server had an error.", status=500), K.SERVER_ERROR),
]
FAULTS = [
    *(("invoke", *row) for row in (*STATUSES, *EITHER_WAY)),
    *(("stream", *row) for row in (*STATUSES, *EITHER_WAY, *STREAMS_ONLY)),
    ("invoke", Cut(0, "rst"), K.CONNECTION),
    # Gateways put a status into the `code` of an error in a 200.
    ("invoke", Body(200, JSON, '{"error": {"code": 400}}'), K.INVALID_REQUEST),
    ("invoke", Body(200, JSON, '{"error": {"code": "400"}}'), K.INVALID_REQUEST),
]
# Where the SDK's class is that of the status, and not that of the kind.
OF_STATUS = {
    408: ("OpenAIStatusTimeoutError", openai.InternalServerError),
    422: ("OpenAIUnprocessableEntityError", openai.UnprocessableEntityError),
    504: ("OpenAIStatusTimeoutError", openai.InternalServerError),
    524: ("OpenAIStatusTimeoutError", openai.InternalServerError),
}


def name_of(value: Any) -> str:
    return re.sub(r", \w+=(None|\(\))", "", repr(value))


@pytest.mark.parametrize(("method", "step", "kind"), FAULTS, ids=name_of)
def test_each_fault_has_its_error(
    env: Env, method: str, step: Step, kind: FailureKind
) -> None:
    """Each fault has its error, streamed or not; only transient ones are retried."""
    env.gateway.always(step)
    with pytest.raises(errors.RetryRouterError) as caught:
        getattr(env, method)(env.new(), "hi")
    error = caught.value
    status = step.code if isinstance(step, Status) else None
    named = (OPENAI_ERRORS[kind].__name__, OPENAI_ERRORS[kind])
    name, cls = OF_STATUS.get(status or 0, named)
    assert (type(error).__name__, error.kind) == (name, kind)
    assert isinstance(error, cls)
    assert status in {None, error.status_code}
    if isinstance(step, ErrorInOk):
        assert error.message == step.message
        assert step.code in {None, error.code}
    sent = ATTEMPTS if is_retryable(kind) else 1
    assert (len(env.gateway.requests), error.attempts) == (sent, sent)
    assert error.is_retryable is False


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


@pytest.mark.parametrize(
    "facts",
    [
        {"message": {"no": "text"}, "code": {"a": "b"}, "type": ["c"], "param": 7},
        {"message": None, "code": 0, "type": 4},
        {"detail": [{"loc": ["body"], "msg": "field required"}]},
    ],
    ids=["nested", "numbers", "fastapi"],
)
def test_an_error_body_of_any_shape_is_read(
    env: Env, facts: dict[str, Any], method: str
) -> None:
    """A status with a body that is not OpenAI's is still the status's own error."""
    for body in (facts, {"error": facts}):
        env.gateway.always(Status(400, body=body))
        with pytest.raises(errors.InvalidRequestError, match=r"^Error code: 400 - "):
            getattr(env, method)(env.new(), "hi")


@pytest.mark.parametrize("error", ["out of order", {"no": "message"}, ["odd"], 7])
def test_an_error_of_any_shape_is_one(env: Env, error: Any, method: str) -> None:
    """Whatever stands under `error` in a 200 is an error, never an answer."""
    body = {"error": error}
    is_event = method == "stream"
    env.gateway.always(events(body) if is_event else Body(200, JSON, json.dumps(body)))
    with pytest.raises(errors.ServerError):
        getattr(env, method)(env.new(max_retries=0), "hi")


ABYSS = "[" * 100_000
DEEP = "[" * 300 + "]" * 300
DIGITS = "9" * 5_000
ANSWER = '{"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "b": 1}'
CHUNK = "data: " + ANSWER.replace("message", "delta")


@pytest.mark.parametrize(
    ("method", "body"),
    [
        *(("invoke", f'{{"choices": {x}}}') for x in ("null", "[]", '"x"', '["x"]')),
        ("invoke", '{"choices": [null]}'),
        ("invoke", '{"choices": [{"index": 0, "finish_reason": "stop"}]}'),
        ("invoke", '{"choices": [{"message": "a text"}]}'),
        ("invoke", '{"choices": [{"text": 7, "message": {"content": 7}}]}'),
        ("invoke", '{"choices": [{"text": [], "message": {"content": [{"a": 1}]}}]}'),
        *(("invoke", body) for body in ("{}", '{"object": "list"}', "[]", "7", ABYSS)),
        *(("invoke", ANSWER.replace("1", odd)) for odd in (DEEP, DIGITS)),
        *(("invoke", ANSWER.replace('"stop"', odd)) for odd in ("13", '{"a": "b"}')),
        *(("stream", f"data: {odd}") for odd in (ABYSS, DIGITS)),
        ("stream", CHUNK.replace("1", DEEP)),
        ("stream", CHUNK.replace('"stop"', "13")),
    ],
    ids=lambda value: re.sub(r"(.)\1{9,}", r"\1…", value),
)
def test_what_cannot_be_read_is_malformed(env: Env, method: str, body: str) -> None:
    """What is no answer, or cannot be read, is this error, and never a `TypeError`."""
    headers = EVENTS if method == "stream" else JSON
    env.gateway.script(Body(200, headers, f"{body}\n\n"))
    with pytest.raises(errors.MalformedResponseError) as caught:
        getattr(env, method)(env.new(max_retries=0), "hi")
    assert caught.value.attempts == 1


@pytest.mark.parametrize("status", [200, 400, 503])
@pytest.mark.parametrize(
    "error",
    [
        f'{{"code": "{DIGITS}", "message": "odd"}}',
        f'{{"code": 503, "message": {"[" * 700 + "]" * 700}}}',
    ],
    ids=["digits", "deep"],
)
def test_an_unexpected_error_is_a_typed_error(
    env: Env, status: int, error: str
) -> None:
    """Whatever a server puts into its error, what leaves can be caught by its class."""
    env.gateway.script(Body(status, JSON, f'{{"error": {error}}}'))
    with pytest.raises(errors.RetryRouterError) as caught:
        env.invoke(env.new(max_retries=0), "hi")
    assert json.dumps(caught.value.body)


def test_an_answer_to_another_request_is_malformed(env: Env) -> None:
    """Too few choices, or no stream where one was asked for, are malformed."""
    env.gateway.always(whole(choice("a", "stop")))
    llm = env.new(max_retries=0)
    with pytest.raises(errors.MalformedResponseError, match="1 choices, 2 expected"):
        env.generate(llm, ["hi", "ho"])
    with pytest.raises(errors.MalformedResponseError, match="no stream, but"):
        env.stream(llm, "hi")


def _refusal(**message: Any) -> Body:
    return whole({"message": {"content": None, **message}, "finish_reason": "stop"})


PIECES = [{"delta": {"refusal": piece}} for piece in ("I ", "will ", "not.")]


@pytest.mark.parametrize(
    ("method", "step"),
    [
        ("invoke", _refusal(refusal="I will not.")),
        ("invoke", _refusal(provider_specific_fields={"refusal": "I will not."})),
        ("invoke", _refusal(refusal="I will not.", provider_specific_fields=None)),
        ("invoke", _refusal(refusal=["I will not."])),
        ("invoke", _refusal(refusal={"why": "I will not."})),
        ("stream", streamed(*PIECES, {"delta": {}, "finish_reason": "stop"})),
    ],
    ids=["openai", "litellm", "null", "list", "object", "pieces"],
)
def test_a_refusal_is_an_error(env: Env, method: str, step: Body) -> None:
    """A chat model that refuses, whole or in pieces, has not answered with nothing."""
    env.gateway.script(step)
    with pytest.raises(errors.ContentFilterError, match=r"refused: .*I will not\."):
        getattr(env, method)(env.new(OpenAIChat), "hi")
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


@pytest.mark.parametrize("by_function", [False, True])
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
    every: Env, method: str, body: Any, status: int, *, by_function: bool
) -> None:
    """Neither an error nor its causes show the key, even if the server quotes it."""
    fields: dict[str, Any] = {}
    if by_function:
        is_azure = isinstance(every.new(), AzureOpenAI)
        fields = {"api_key": None, "azure_ad_token_provider": lambda: KEY}
        fields = fields if is_azure else {"api_key": lambda: KEY}
    is_page = isinstance(body, str)
    headers = {"content-type": "text/html"} if is_page else JSON
    every.gateway.always(Body(status, headers, body if is_page else json.dumps(body)))
    with pytest.raises(errors.RetryRouterError) as caught:
        getattr(every, method)(every.new(**fields), "hi")
    assert status == 200 or isinstance(caught.value, errors.AuthenticationError)
    assert "***" in everything_said(caught.value)
    assert KEY not in everything_said(caught.value)


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


@pytest.mark.parametrize(
    "sent",
    [
        "220 mail.example.com ESMTP\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: one\r\n\r\n",
        f"HTTP/1.1 200 OK\r\nx: {'x' * 200_000}\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["status line", "length", "header", "chunk"],
)
def test_what_is_not_http_is_a_lost_connection(env: Env, sent: str) -> None:
    """It is no refusal of the request, whatever status a library makes up for it."""
    env.gateway.script(Raw(sent.encode()), whole(choice("text", "stop")))
    assert env.invoke(env.new(), "hi") == "text"
    env.gateway.always(Raw(sent.encode()))
    with pytest.raises(errors.APIConnectionError):
        env.invoke(env.new(max_retries=0), "hi")


@pytest.mark.parametrize(
    ("sentence", "seconds"),
    [
        ("Please retry in 34.074824224s.", 34.074824224),
        ("Please try again in 1m2.5s.", 62.5),
        ("Please try again after 1 minute and 30 seconds", 90),
        ("Weekly usage limit reached. Resets in 6hr 29min.", 23_340),
        ("Retry after: 2 hrs", 7200),
        ("Try again in less than 5 minutes", 300),
        ("Please wait about ~20s", 20),
        ("Limit of 5 requests in 10 seconds. Try again later.", None),
    ],
)
def test_the_wait_in_a_sentence(env: Env, sentence: str, seconds: float | None) -> None:
    """A provider that asks for a wait in words alone is heard."""
    env.gateway.always(Status(429, message=sentence))
    with pytest.raises(errors.RateLimitError) as caught:
        env.invoke(env.new(max_retries=0), "hi")
    assert caught.value.retry_after == seconds


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
