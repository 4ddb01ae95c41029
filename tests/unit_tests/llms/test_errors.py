"""What goes wrong, row by row: the error, its facts, and how often it was tried."""

from __future__ import annotations

import json
import pickle
import re
import socket
import traceback
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
from langchain_core import exceptions as langchain

from langchain_retryrouter import AzureOpenAI, OpenAIChat, errors
from langchain_retryrouter._openai import errors as named
from langchain_retryrouter.testing import (
    Body,
    Cut,
    ErrorEvent,
    ErrorInOk,
    FakeClock,
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

from .conftest import KEY, NewLLM

ATTEMPTS = 3  # One, and the two retries that the models make when they are not told.


@dataclass(frozen=True)
class Row:
    """One fault, and what a caller may expect of it."""

    step: Step
    error: type[errors.RetryRouterError]
    sdk: type[Exception]
    meaning: type[langchain.ModelError]
    is_repeated: bool
    facts: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """What pytest calls the row."""
        return re.sub(r", \w+=(None|\(\))", "", repr(self.step))


def status(
    code: int,
    error: type[errors.RetryRouterError],
    sdk: type[Exception],
    meaning: type[langchain.ModelError],
    *,
    is_repeated: bool = False,
    error_code: str | None = None,
    message: str | None = None,
) -> Row:
    """The row of an HTTP status."""
    step = Status(code, error_code=error_code, message=message)
    return Row(step, error, sdk, meaning, is_repeated, {"status_code": code})


STATUS_ROWS = [
    status(
        400,
        named.OpenAIInvalidRequestError,
        openai.BadRequestError,
        langchain.ModelInvalidRequestError,
    ),
    status(
        400,
        named.OpenAIContextLengthError,
        openai.BadRequestError,
        langchain.ContextOverflowError,
        error_code="context_length_exceeded",
    ),
    status(
        400,
        named.OpenAIContextLengthError,
        openai.BadRequestError,
        langchain.ContextOverflowError,
        message="This model's maximum context length is 4096 tokens.",
    ),
    status(
        400,
        named.OpenAIContentFilterError,
        openai.BadRequestError,
        langchain.ModelInvalidRequestError,
        error_code="content_filter",
    ),
    status(
        401,
        named.OpenAIAuthenticationError,
        openai.AuthenticationError,
        langchain.ModelAuthenticationError,
    ),
    status(
        402,
        named.OpenAIQuotaExceededError,
        openai.RateLimitError,
        langchain.ModelRateLimitError,
    ),
    status(
        403,
        named.OpenAIPermissionDeniedError,
        openai.PermissionDeniedError,
        langchain.ModelPermissionDeniedError,
    ),
    status(
        404,
        named.OpenAINotFoundError,
        openai.NotFoundError,
        langchain.ModelNotFoundError,
    ),
    status(
        408,
        named.OpenAIStatusTimeoutError,
        openai.APIStatusError,
        langchain.ModelTimeoutError,
        is_repeated=True,
    ),
    status(
        409,
        named.OpenAIConflictError,
        openai.ConflictError,
        langchain.ModelAPIError,
        is_repeated=True,
    ),
    status(
        413,
        named.OpenAIInvalidRequestError,
        openai.APIStatusError,
        langchain.ModelInvalidRequestError,
    ),
    status(
        422,
        named.OpenAIUnprocessableEntityError,
        openai.UnprocessableEntityError,
        langchain.ModelInvalidRequestError,
    ),
    status(
        429,
        named.OpenAIRateLimitError,
        openai.RateLimitError,
        langchain.ModelRateLimitError,
        is_repeated=True,
    ),
    status(
        429,
        named.OpenAIQuotaExceededError,
        openai.RateLimitError,
        langchain.ModelRateLimitError,
        error_code="insufficient_quota",
    ),
    status(
        500,
        named.OpenAIServerError,
        openai.InternalServerError,
        langchain.ModelAPIError,
        is_repeated=True,
    ),
    status(
        501,
        named.OpenAIInvalidRequestError,
        openai.BadRequestError,
        langchain.ModelInvalidRequestError,
    ),
    status(
        503,
        named.OpenAIUnavailableError,
        openai.InternalServerError,
        langchain.ModelAPIError,
        is_repeated=True,
    ),
    status(
        504,
        named.OpenAIStatusTimeoutError,
        openai.InternalServerError,
        langchain.ModelTimeoutError,
        is_repeated=True,
    ),
    status(
        529,
        named.OpenAIUnavailableError,
        openai.InternalServerError,
        langchain.ModelAPIError,
        is_repeated=True,
    ),
    Row(
        HtmlPage(502),
        named.OpenAIServerError,
        openai.InternalServerError,
        langchain.ModelAPIError,
        is_repeated=True,
        facts={"status_code": 502},
    ),
]

LOST = Row(
    Reset(),
    named.OpenAIConnectionError,
    openai.APIConnectionError,
    langchain.ModelConnectionError,
    is_repeated=True,
    facts={"status_code": None, "may_have_run": True},
)
MALFORMED = Row(
    HtmlPage(200),
    named.OpenAIMalformedResponseError,
    openai.APIResponseValidationError,
    langchain.ModelAPIError,
    is_repeated=True,
)
EITHER_WAY = [
    LOST,
    Row(Hangup(), LOST.error, LOST.sdk, LOST.meaning, is_repeated=True),
    MALFORMED,
    Row(
        Body(200, {"content-type": "application/json"}, b""),
        MALFORMED.error,
        MALFORMED.sdk,
        MALFORMED.meaning,
        is_repeated=True,
    ),
    Row(
        Body(200, {"content-type": "text/plain"}, b""),
        MALFORMED.error,
        MALFORMED.sdk,
        MALFORMED.meaning,
        is_repeated=True,
    ),
    Row(
        ErrorInOk("The engine is overloaded."),
        named.OpenAIUnavailableError,
        openai.InternalServerError,
        langchain.ModelAPIError,
        is_repeated=True,
        facts={"message": "The engine is overloaded."},
    ),
    Row(
        ErrorInOk("No money.", code="insufficient_quota"),
        named.OpenAIQuotaExceededError,
        openai.RateLimitError,
        langchain.ModelRateLimitError,
        is_repeated=False,
        facts={"code": "insufficient_quota"},
    ),
]
ANSWERS_ONLY = [
    Row(
        Truncate(0),
        MALFORMED.error,
        MALFORMED.sdk,
        MALFORMED.meaning,
        is_repeated=True,
    ),
    Row(Cut(0), LOST.error, LOST.sdk, LOST.meaning, is_repeated=True),
    Row(Cut(0, "rst"), LOST.error, LOST.sdk, LOST.meaning, is_repeated=True),
]
STREAMS_ONLY = [
    Row(
        Truncate(0),
        named.OpenAIMalformedResponseError,
        openai.APIResponseValidationError,
        langchain.ModelAPIError,
        is_repeated=True,
    ),
    Row(Cut(0), LOST.error, LOST.sdk, LOST.meaning, is_repeated=True),
    Row(
        MalformedEvent(1),
        MALFORMED.error,
        MALFORMED.sdk,
        MALFORMED.meaning,
        is_repeated=True,
    ),
    Row(
        ErrorEvent("Rate limit reached.", status=429),
        named.OpenAIRateLimitError,
        openai.RateLimitError,
        langchain.ModelRateLimitError,
        is_repeated=True,
    ),
    Row(
        ErrorEvent("Out of money.", code="insufficient_quota", status=429),
        named.OpenAIQuotaExceededError,
        openai.RateLimitError,
        langchain.ModelRateLimitError,
        is_repeated=False,
    ),
    Row(
        ErrorEvent("Too long.", code="context_length_exceeded", status=400),
        named.OpenAIContextLengthError,
        openai.BadRequestError,
        langchain.ContextOverflowError,
        is_repeated=False,
    ),
    Row(
        ErrorEvent("You asked for the impossible.", status=400),
        named.OpenAIInvalidRequestError,
        openai.BadRequestError,
        langchain.ModelInvalidRequestError,
        is_repeated=False,
    ),
    Row(
        ErrorEvent("The server had an error.", status=500),
        named.OpenAIServerError,
        openai.InternalServerError,
        langchain.ModelAPIError,
        is_repeated=True,
    ),
]


def expect(row: Row, gateway: FaultyGateway, call: Any) -> errors.RetryRouterError:
    """The error that `call` raises, after it was compared with the row."""
    gateway.always(row.step)
    with pytest.raises(row.error) as caught:
        call()
    error = caught.value
    assert type(error) is row.error
    assert isinstance(error, row.sdk)
    assert isinstance(error, row.meaning)
    assert {name: getattr(error, name) for name in row.facts} == row.facts
    sent = ATTEMPTS if row.is_repeated else 1
    assert (len(gateway.requests), error.attempts) == (sent, sent)
    assert error.is_retryable is False
    return error


@pytest.mark.parametrize("row", [*STATUS_ROWS, *EITHER_WAY, *ANSWERS_ONLY], ids=str)
def test_an_answer_that_is_none(
    twin: Any, row: Row, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """Each fault has its error; only what another attempt could mend is repeated."""
    expect(row, gateway, lambda: twin.invoke(new_llm(), "hi"))


@pytest.mark.parametrize("row", [*STATUS_ROWS, *EITHER_WAY, *STREAMS_ONLY], ids=str)
def test_a_stream_that_is_none(
    twin: Any, row: Row, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A stream has the same error for the same fault, before its first token."""
    expect(row, gateway, lambda: twin.stream(new_llm(), "hi"))


@pytest.mark.parametrize(
    "row", [STATUS_ROWS[0], STATUS_ROWS[12], LOST, MALFORMED], ids=str
)
@pytest.mark.parametrize("method", ["invoke", "stream"])
def test_every_class_has_the_same_errors(
    twin: Any,
    any_model: Any,
    row: Row,
    method: str,
    new_llm: NewLLM,
    gateway: FaultyGateway,
) -> None:
    """The four classes name their errors alike."""
    llm = new_llm(any_model, max_retries=ATTEMPTS - 1)
    expect(row, gateway, lambda: getattr(twin, method)(llm, "hi"))


def test_a_refused_connection(
    twin: Any, any_model: Any, new_llm: NewLLM, clock: FakeClock
) -> None:
    """Where nobody listens, the request has surely not run, and it is tried again."""
    with socket.socket() as disabled_retries:
        disabled_retries.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{disabled_retries.getsockname()[1]}"
        name = "azure_endpoint" if any_model.__name__ == "AzureOpenAI" else "base_url"
        llm = new_llm(any_model, max_retries=1, **{name: address})
        with pytest.raises(named.OpenAIConnectionError) as caught:
            twin.invoke(llm, "hi")
    assert caught.value.may_have_run is False
    assert caught.value.attempts == 2
    assert len(clock.sleeps) == 1


def test_silence_is_a_timeout(
    twin: Any, any_model: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A server that says nothing is given up after `timeout`, as the SDK does."""
    gateway.always(Silence())
    llm = new_llm(any_model, timeout=(5, 0.05), max_retries=1)
    with pytest.raises(named.OpenAITimeoutError, match="Request timed out") as caught:
        twin.invoke(llm, "hi")
    assert isinstance(caught.value, openai.APITimeoutError)
    assert caught.value.may_have_run is True
    assert caught.value.attempts == 2


@pytest.mark.parametrize("address", ["127.0.0.1:1/v1", "ftp://127.0.0.1/v1"])
def test_an_address_that_is_none_is_final(
    twin: Any, new_llm: NewLLM, clock: FakeClock, address: str
) -> None:
    """An address that cannot be right is said to be wrong at once."""
    with pytest.raises(
        named.OpenAIInvalidRequestError, match=r"(?i)unsupported ?protocol"
    ):
        twin.invoke(new_llm(base_url=address), "hi")
    assert clock.sleeps == []


@pytest.mark.parametrize("request_id", ["x-request-id", "x-litellm-call-id"])
def test_the_facts_of_an_error(
    request_id: str,
    twin: Any,
    any_model: Any,
    new_llm: NewLLM,
    gateway: FaultyGateway,
) -> None:
    """An error carries what the provider said, in the same attributes always."""
    headers = {"retry-after": "7", "x-should-retry": "false", request_id: "req_1"}
    body = {
        "error": {"message": "Slow down.", "code": "slow", "type": "t", "param": "p"}
    }
    gateway.script(Status(429, headers, body))
    with pytest.raises(errors.RateLimitError) as caught:
        twin.invoke(new_llm(any_model), "hi")
    error: Any = caught.value
    assert str(error) == "Error code: 429 - Slow down."
    assert (error.status_code, error.retry_after, error.should_retry) == (429, 7, False)
    assert (error.request_id, error.code, error.type, error.param) == (
        "req_1",
        "slow",
        "t",
        "p",
    )
    assert error.body == body["error"]
    assert error.response.status_code == 429
    assert str(error.request.url).startswith(gateway.url)
    assert isinstance(error.__cause__, openai.RateLimitError)
    assert error.__notes__ == [
        "gave up after 1 attempt, 0.0 s waited: the server said not to retry"
    ]


def test_the_request_id_of_azure(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """Azure's name for the id of a request is known as well."""
    gateway.script(Status(400))
    with pytest.raises(errors.InvalidRequestError) as caught:
        twin.invoke(new_llm(AzureOpenAI), "hi")
    assert caught.value.request_id == "req_000001"


@pytest.mark.parametrize(
    ("code", "ran"), [(400, False), (429, False), (408, True), (500, True), (503, True)]
)
def test_a_refusal_has_not_run(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway, code: int, *, ran: bool
) -> None:
    """What a provider turned away, it has not done; what it failed at, it may have."""
    gateway.script(Status(code))
    with pytest.raises(errors.RetryRouterError) as caught:
        twin.invoke(new_llm(max_retries=0), "hi")
    assert caught.value.may_have_run is ran


@pytest.mark.parametrize("code", ["400", 400], ids=repr)
def test_a_status_as_code_is_read_as_one(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway, code: Any
) -> None:
    """Gateways that put a status into `code` of an error in a 200 are understood."""
    body = {"error": {"message": "No.", "code": code}}
    gateway.respond("/v1/completions", body)
    with pytest.raises(named.OpenAIInvalidRequestError, match=r"^No\.$") as caught:
        twin.invoke(new_llm(), "hi")
    assert caught.value.code == "400"
    assert len(gateway.requests) == 1


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
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway, facts: dict[str, Any]
) -> None:
    """A status with a body that is not OpenAI's is still the status's own error."""
    gateway.always(Status(400, body={"error": facts}))
    with pytest.raises(named.OpenAIInvalidRequestError, match=r"^Error code: 400 - "):
        twin.invoke(new_llm(), "hi")
    gateway.always(Status(400, body=facts))
    with pytest.raises(named.OpenAIInvalidRequestError, match=r"^Error code: 400 - "):
        twin.stream(new_llm(), "hi")


@pytest.mark.parametrize("method", ["invoke", "stream"])
@pytest.mark.parametrize("error", ["out of order", {"no": "message"}, ["odd"], 7])
def test_an_error_of_any_shape_is_one(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway, error: Any, method: str
) -> None:
    """Whatever stands under `error` in a 200 is an error, never an answer."""
    body = json.dumps({"error": error})
    is_event = method == "stream"
    content_type = "text/event-stream" if is_event else "application/json"
    text = f"data: {body}\n\n" if is_event else body
    gateway.always(Body(200, {"content-type": content_type}, text))
    with pytest.raises(named.OpenAIServerError):
        getattr(twin, method)(new_llm(max_retries=0), "hi")


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
def test_an_answer_without_choices_is_malformed(
    twin: Any, any_model: Any, new_llm: NewLLM, gateway: FaultyGateway, body: Any
) -> None:
    """JSON that has no choices is no answer, and never a `TypeError`."""
    for path in (
        "/v1/completions",
        "/v1/chat/completions",
        "/openai/deployments/my-deployment/completions",
    ):
        gateway.respond(path, body)
    with pytest.raises(named.OpenAIMalformedResponseError):
        twin.invoke(new_llm(any_model, max_retries=0), "hi")


def test_too_few_choices_are_malformed(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """An answer for fewer prompts than were asked would be given to the wrong ones."""
    choice = {"index": 0, "text": "a", "finish_reason": "stop", "logprobs": None}
    gateway.respond("/v1/completions", {"choices": [choice]})
    with pytest.raises(errors.MalformedResponseError, match="1 choices, 2 expected"):
        twin.generate(new_llm(max_retries=0), ["hi", "ho"])


def test_a_whole_answer_to_a_stream_is_malformed(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A server that does not stream when it is asked to is quoted."""
    choice = {"index": 0, "text": "a", "finish_reason": "stop", "logprobs": None}
    gateway.respond("/v1/completions", {"choices": [choice]})
    with pytest.raises(errors.MalformedResponseError, match="no stream, but"):
        twin.stream(new_llm(max_retries=0), "hi")


@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param({"refusal": "I will not."}, id="openai"),
        pytest.param(
            {"provider_specific_fields": {"refusal": "I will not."}}, id="litellm"
        ),
        pytest.param(
            {"refusal": "I will not.", "provider_specific_fields": None}, id="null"
        ),
    ],
)
def test_a_refusal_is_an_error(
    refusal: dict[str, Any], twin: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A chat model that refuses has not answered with an empty text."""
    message = {"role": "assistant", "content": None, **refusal}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    gateway.respond("/v1/chat/completions", {"choices": [choice]})
    with pytest.raises(named.OpenAIContentFilterError, match=r"refused: I will not\."):
        twin.invoke(new_llm(OpenAIChat), "hi")
    assert len(gateway.requests) == 1


def test_a_streamed_refusal_is_an_error(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A refusal that comes in pieces is told whole."""
    pieces = ["I ", "will ", "not."]
    events = [
        *(
            f'{{"choices":[{{"index":0,"delta":{{"refusal":"{piece}"}}}}]}}'
            for piece in pieces
        ),
        '{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}',
        "[DONE]",
    ]
    body = "".join(f"data: {event}\n\n" for event in events)
    gateway.script(Body(200, {"content-type": "text/event-stream"}, body))
    with pytest.raises(named.OpenAIContentFilterError, match=r"refused: I will not\."):
        twin.stream(new_llm(OpenAIChat), "hi")
    assert len(gateway.requests) == 1


# The key.


def everything_said(error: BaseException) -> str:
    """The error, what led to it, and all that it can show of itself."""
    told = [*traceback.format_exception(error)]
    cause: BaseException | None = error
    while cause is not None:
        told += [str(cause), repr(cause), str(getattr(cause, "body", ""))]
        cause = cause.__cause__ or cause.__context__
    return "\n".join(told)


@pytest.mark.parametrize("method", ["invoke", "stream"])
@pytest.mark.parametrize(
    "body",
    [{"error": {"message": f"key {KEY}", "more": [KEY]}}, f"<html>{KEY}</html>"],
    ids=["error", "page"],
)
def test_a_key_quoted_in_a_200_is_not_shown(
    twin: Any,
    any_model: Any,
    new_llm: NewLLM,
    gateway: FaultyGateway,
    method: str,
    body: Any,
) -> None:
    """The same holds for an error, or a page, that comes with status 200."""
    is_page = isinstance(body, str)
    content_type = "text/html" if is_page else "application/json"
    text = body if is_page else json.dumps(body)
    gateway.always(Body(200, {"content-type": content_type}, text))
    with pytest.raises(errors.RetryRouterError) as caught:
        getattr(twin, method)(new_llm(any_model), "hi")
    assert "***" in everything_said(caught.value)
    assert KEY not in everything_said(caught.value)


@pytest.mark.parametrize("method", ["invoke", "stream"])
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
    twin: Any,
    any_model: Any,
    new_llm: NewLLM,
    gateway: FaultyGateway,
    method: str,
    body: Any,
) -> None:
    """Neither an error nor what led to it shows the key, even if the server does."""
    gateway.always(Status(401, body=body))
    with pytest.raises(errors.AuthenticationError) as caught:
        getattr(twin, method)(new_llm(any_model), "hi")
    assert "***" in everything_said(caught.value)
    assert KEY not in everything_said(caught.value)


def test_a_pickled_error_has_no_key(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """An error can be pickled, and its request, which carries the key, stays behind."""
    gateway.script(Status(400))
    with pytest.raises(errors.InvalidRequestError) as caught:
        twin.invoke(new_llm(), "hi")
    data = pickle.dumps(caught.value)
    assert KEY.encode() not in data
    again = pickle.loads(data)
    assert (str(again), again.status_code, again.attempts) == (
        str(caught.value),
        400,
        1,
    )


@pytest.mark.parametrize("method", ["invoke", "stream"])
def test_an_answer_that_is_nested_too_deep_is_malformed(
    twin: Any, any_model: Any, method: str, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """JSON that no reader can follow is the provider's failure, named as such."""
    deep = b"[" * 100_000 + b"]" * 100_000
    gateway.always(Body(200, {"content-type": "application/json"}, deep))
    with pytest.raises(named.OpenAIMalformedResponseError):
        getattr(twin, method)(new_llm(any_model, max_retries=0), "hi")
