"""What RetryRouter makes of what integrations, SDKs, HTTP and providers say."""

import asyncio
import errno
import json
import socket
import ssl
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import aiohttp
import httpx
import httpx2
import openai
import pytest
import requests
import urllib3
from hypothesis import given
from hypothesis import strategies as st
from langchain_core import exceptions as langchain
from langchain_core.language_models import BaseChatModel
from openai.types.responses import ResponseError
from pydantic import BaseModel, ValidationError

from langchain_retryrouter import FailureKind
from langchain_retryrouter._providers.errors import (
    read_event,
    read_exception,
    read_response,
)
from langchain_retryrouter.errors import RetryRouterError, UnsupportedOptionError
from langchain_retryrouter.testing import (
    Body,
    Cut,
    ErrorEvent,
    ErrorInOk,
    FaultyGateway,
    Hangup,
    HtmlPage,
    MalformedEvent,
    Raw,
    Reset,
    Silence,
    Status,
    Step,
)
from tests.support.models import KEY, NOWHERE, chat_openai
from tests.support.provider_answers import DATA, check, status_of

from .anthropic_wire import after_the_beginning, chat_anthropic, event, problem
from .attempts import WAYS, Odd, Way, ask, error_of, every_way, router_of

K = FailureKind
JSON = {"content-type": "application/json"}
EVENTS = {"content-type": "text/event-stream"}
STREAMING = [way for way in WAYS if way.is_streaming]
WHOLE = [way for way in WAYS if not way.is_streaming]


def routed(model: BaseChatModel, way: Way = WAYS[0]) -> Any:
    """The error that leaves a router over this model, which sends once."""
    return error_of(way, router_of(model))


def raising(error: Exception) -> BaseChatModel:
    """A model that raises `error`."""
    return Odd(results=[error])


def asking(ask: Callable[[], Any]) -> BaseChatModel:
    """A model that asks its provider by `ask`, which fails."""
    return Odd(results=[lambda _: ask()])


# --- ChatOpenAI and ChatAnthropic over HTTP -----------------------------------------


def malformed(*bodies: str, headers: dict[str, str] = JSON) -> list[Any]:
    return [(chat_openai, Body(200, headers, one), K.MALFORMED, {}) for one in bodies]


CUT_CHUNK = Raw(
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"transfer-encoding: chunked\r\n\r\n40\r\nevent: message"
)
OF_ANTHROPIC = {**JSON, "request-id": "r-1"}
LIMITED_BY_ANTHROPIC = Status(429, OF_ANTHROPIC, problem("rate_limit_error"))
OVERLOADED = after_the_beginning(event("error", problem("overloaded_error")))
CUT_EVENT = after_the_beginning(event("content_block_delta", '{"type":'))
IN_A_CHOICE = 'data: {"error": {"code": 502, "message": "x"}}\n\n'
TOO_LONG_IN_OK = ErrorInOk("x", code="context_length_exceeded")
NEVER = Status(429, {"x-should-retry": "false"})
SAID = "Said by Anthropic."
# tests/integrations has more faults, and more integrations.
EITHER_WAY = [
    (chat_openai, Status(400), K.INVALID_REQUEST, {"may_have_run": False}),
    (chat_openai, Status(401), K.AUTHENTICATION, {"code": "invalid_api_key"}),
    (chat_openai, Status(408), K.TIMEOUT, {"may_have_run": True}),
    (chat_openai, NEVER, K.RATE_LIMIT, {"should_retry": False, "retry_after": None}),
    (chat_openai, HtmlPage(502), K.SERVER_ERROR, {"status_code": 502, "code": None}),
    (chat_openai, Status(400, body="no"), K.INVALID_REQUEST, {"body": "no"}),
    (chat_openai, Silence(), K.TIMEOUT, {"may_have_run": True}),
    (chat_openai, MalformedEvent(at=3), K.MALFORMED, {"may_have_run": True}),
    # No server listens.
    (chat_openai, None, K.CONNECTION, {"may_have_run": False}),
    (chat_anthropic, None, K.CONNECTION, {"may_have_run": False}),
    (
        chat_anthropic,
        LIMITED_BY_ANTHROPIC,
        K.RATE_LIMIT,
        {"code": "rate_limit_error", "request_id": "r-1", "may_have_run": False},
    ),
    (chat_anthropic, CUT_CHUNK, K.CONNECTION, {"may_have_run": True}),
]
IN_A_200 = [
    (chat_openai, ErrorInOk("On fire."), K.SERVER_ERROR, {"message": "On fire."}),
    (chat_openai, TOO_LONG_IN_OK, K.CONTEXT_OVERFLOW, {"status_code": None}),
    (chat_openai, Cut(after=5, how="rst"), K.CONNECTION, {"may_have_run": True}),
    *malformed("{}", '{"choices": null}', "[]", "no JSON", "[" * 100_000, "9" * 5_000),
]
IN_A_STREAM = [
    (chat_openai, ErrorEvent("It broke."), K.SERVER_ERROR, {"message": "It broke."}),
    (chat_openai, Body(200, EVENTS, IN_A_CHOICE), K.SERVER_ERROR, {"code": "502"}),
    *malformed(
        *(f"data: {one}\n\n" for one in ("42", "\xff", "[" * 100_000)), headers=EVENTS
    ),
    (
        chat_anthropic,
        OVERLOADED,
        K.UNAVAILABLE,
        {"message": SAID, "status_code": None, "may_have_run": True},
    ),
    (chat_anthropic, CUT_EVENT, K.MALFORMED, {}),
]
FAULTS = [
    *((WAYS, fault) for fault in EITHER_WAY),
    *((WHOLE, fault) for fault in IN_A_200),
    *((STREAMING, fault) for fault in IN_A_STREAM),
]


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize(
    ("way", "fault"),
    [
        pytest.param(way, fault, id=f"{fault[0].__name__}-{fault[2]}-{place}-{way}")
        for place, (ways, fault) in enumerate(FAULTS)
        for way in ways
    ],
)
def test_a_fault_has_its_kind(gateway: FaultyGateway, way: Way, fault: Any) -> None:
    """What goes wrong over HTTP is named, with the facts that it came with."""
    make, step, kind, facts = fault
    gateway.script(*filter(None, [step]))
    address = {} if step else {"base_url": NOWHERE}
    seconds = 0.6 if isinstance(step, Silence) else 5.0
    error = routed(make(gateway, timeout=seconds, **address), way)
    assert len(gateway.requests) == bool(step)
    assert error.kind is kind
    assert {name: getattr(error, name) for name in facts} == facts


AZURES = "0123456789abcdef0123456789abcdef"  # Of no known form.


@every_way
@pytest.mark.parametrize(
    ("make", "key", "status"),
    [(chat_openai, KEY, 401), (chat_anthropic, KEY, 401), (chat_openai, AZURES, 200)],
)
def test_a_key_is_not_shown(
    gateway: FaultyGateway, make: Any, way: Way, key: str, status: int
) -> None:
    """A server that quotes the key does not bring it into a log or a trace.

    The exception for an error in a 200 carries no request; the route has the key.
    """
    said = f"invalid: {key}."
    body = {"error": {"type": "authentication_error", "message": said}}
    in_a_200 = ErrorEvent(said) if way.is_streaming else ErrorInOk(said)
    gateway.script(in_a_200 if status == 200 else Status(401, JSON, body))
    error = routed(make(gateway, api_key=key), way)
    shown = f"{error.body} {''.join(traceback.format_exception(error))}"
    assert "invalid: ***." in shown
    assert key not in shown


@every_way
@pytest.mark.parametrize("end", ["\n", "\x00 the rest of it"], ids=["line", "nul"])
def test_a_key_that_no_header_can_carry_is_the_routes_fault(
    gateway: FaultyGateway, way: Way, end: str
) -> None:
    """A key with a line feed or NUL is not sent and not shown, and counts as a 401."""
    model = chat_openai(gateway)
    for client in (model.root_client, model.root_async_client):
        client.api_key = f"{KEY}{end}"
    error = routed(model, way)
    assert gateway.requests == []
    assert (error.kind, error.may_have_run) == (K.AUTHENTICATION, False)
    shown = "".join(traceback.format_exception(error))
    assert KEY not in shown
    assert "the rest of it" not in shown


@every_way
@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize(
    "odd", ['{"a":' * 700 + "0" + "}" * 700, '"9"' * 1, "9" * 5_000], ids=len
)
def test_an_odd_error_is_an_error(
    gateway: FaultyGateway, way: Way, status: int, odd: str
) -> None:
    """What a provider says of its failure may be odd; that it failed is still known."""
    document = f'{{"error": {{"message": "odd", "type": {odd}}}}}'
    is_event = way.is_streaming and status == 200
    body = f"data: {document}\n\n" if is_event else document
    gateway.script(Body(status, EVENTS if is_event else JSON, body))
    error = routed(chat_openai(gateway), way)
    assert isinstance(error, RetryRouterError)
    assert error.status_code in {None, status}


# --- SDKs that are not installed, by the shape of their exceptions ------------------


def plain(error: Exception, **attributes: Any) -> Exception:
    vars(error).update(attributes)
    return error


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def classed(name: str, text: str = "no", module: str = "sdk", **facts: Any) -> Any:
    """An exception of a class of this name and module."""
    cls = type(name, (Exception,), {"__module__": module})
    return plain(cls(text), **facts)


def googles(code: int, status: str, message: str, *details: Any) -> Any:
    """As `google.genai.errors.APIError`."""
    error = {"code": code, "message": message, "status": status}
    body = {"error": {**error, "details": [*details]}}
    facts: dict[str, Any] = {"code": code, "status": status, "details": body}
    return classed("APIError", f"{code} {status}. {body}", response=None, **facts)


def google_cores(code: int, message: str, *details: Any) -> Any:
    """As `google.api_core.exceptions.GoogleAPICallError`, which gRPC's become."""
    facts: dict[str, Any] = {"code": code, "message": message, "details": [*details]}
    text = f"{code} {message}"
    return classed("GoogleAPICallError", text, response=None, errors=(), **facts)


def amazons(code: str, status: int | None, message: str = "No.") -> Any:
    """As `botocore.exceptions.ClientError`: a dict in `response`."""
    answer = {"HTTPStatusCode": status, "HTTPHeaders": {"x-amzn-requestid": "r-aws"}}
    response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": answer}
    return classed("ClientError", f"An error occurred ({code})", response=response)


def grpcs(name: str) -> Any:
    """As `grpc.RpcError`: methods `code` and `details`."""
    code, details = SimpleNamespace(name=name), "Said by gRPC."
    facts: dict[str, Any] = {"code": lambda: code, "details": lambda: details}
    return classed("RpcError", "<RpcError>", "grpc", **facts)


def ollamas(text: str, status_code: int = -1) -> Any:
    """As `ollama.ResponseError`, whose status is -1 inside a stream."""
    return classed("ResponseError", text, "ollama._types", status_code=status_code)


class Answer(BaseModel):
    """A schema of the caller's."""

    number: int


class ChatCompletion(Answer):
    """An answer of an SDK."""


def schema_error(cls: type[Answer]) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        cls.model_validate_json('{"number": "many"}')
    return caught.value


RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34s"}
RETRY_INFO_OBJECT = SimpleNamespace(
    retry_delay=SimpleNamespace(seconds=34, nanos=500_000_000)
)
PER_DAY = {"@type": "QuotaFailure", "violations": [{"quotaId": "RequestsPerDay"}]}
QUOTA = "You exceeded your current quota, please check your plan and billing details."
EXHAUSTED = "RESOURCE_EXHAUSTED"
TOO_LONG = "Input is too long for requested model."
REPORT = '{"error": {"message": "maximum context length", "code": 400}}'
WAIT = {"retry-after": "7"}
LIMITED = {b"Retry-After": b"7", b"X-Request-Id": b"r-1", b"odd": None}
BAD = googles(400, "INVALID_ARGUMENT", "Bad.")
NOT_ALLOWED = {"error": {"type": "permission_error", "message": "No."}}
# The exceptions of SDKs, with facts of their errors.
SHAPES: list[tuple[Exception, FailureKind, dict[str, Any]]] = [
    (BAD, K.INVALID_REQUEST, {"code": "INVALID_ARGUMENT", "status_code": 400}),
    (googles(503, "UNAVAILABLE", "Busy."), K.UNAVAILABLE, {"status_code": 503}),
    (googles(429, EXHAUSTED, QUOTA), K.QUOTA, {}),
    (googles(429, EXHAUSTED, QUOTA, PER_DAY, RETRY_INFO), K.QUOTA, {}),
    (
        googles(429, EXHAUSTED, QUOTA, RETRY_INFO),
        K.RATE_LIMIT,
        {"retry_after": 34.0},
    ),
    (google_cores(429, "x", RETRY_INFO_OBJECT), K.RATE_LIMIT, {"retry_after": 34.5}),
    (google_cores(400, "API key not valid."), K.AUTHENTICATION, {}),
    (grpcs("INVALID_ARGUMENT"), K.INVALID_REQUEST, {"status_code": 400}),
    (grpcs("UNAVAILABLE"), K.UNAVAILABLE, {"code": "UNAVAILABLE"}),
    (
        amazons("ThrottlingException", 429),
        K.RATE_LIMIT,
        {"code": "ThrottlingException", "request_id": "r-aws", "message": "No."},
    ),
    (amazons("throttlingException", None), K.RATE_LIMIT, {"status_code": None}),
    (amazons("ServiceQuotaExceededException", 400), K.QUOTA, {}),
    (amazons("AccessDeniedException", 403), K.PERMISSION, {}),
    (amazons("ModelErrorException", 424), K.SERVER_ERROR, {"status_code": 424}),
    (amazons("SomethingNew", 500), K.SERVER_ERROR, {"status_code": 500}),
    (amazons("ValidationException", 400, TOO_LONG), K.CONTEXT_OVERFLOW, {}),
    (ollamas("model not loaded", 500), K.SERVER_ERROR, {"status_code": 500}),
    (ollamas("out of memory"), K.SERVER_ERROR, {"status_code": None}),
    # The status in a text: as ChatNVIDIA's, ChatTongyi's, and many users' own.
    (Exception("[503] Service Unavailable\nx"), K.UNAVAILABLE, {"status_code": 503}),
    (Exception("status_code: 429 \n code: x"), K.RATE_LIMIT, {"status_code": 429}),
    (
        RuntimeError('API error 429: {"error": {"message": "try again in 3s"}}'),
        K.RATE_LIMIT,
        {"retry_after": 3.0, "message": "Error code: 429 - try again in 3s"},
    ),
    (ValueError("Error from x: {'error': {'code': 'overloaded'}}"), K.UNAVAILABLE, {}),
    (classed("ApiError", status_code="401"), K.AUTHENTICATION, {"status_code": 401}),
    (classed("ApiError", http_status=404), K.NOT_FOUND, {"status_code": 404}),
    (classed("ApiError", status_code=429, headers="none"), K.RATE_LIMIT, {}),
    (classed("ApiError", status=503, headers=[("a",), 1]), K.UNAVAILABLE, {}),
    (
        classed("ApiError", response=SimpleNamespace(status=429, headers=WAIT)),
        K.RATE_LIMIT,
        {"status_code": 429, "retry_after": 7.0},
    ),
    (ExceptionGroup("in a task", [ConnectionResetError()]), K.CONNECTION, {}),
    (ExceptionGroup("in a task", [googles(503, "x", "y")]), K.UNAVAILABLE, {}),
    (
        plain(Exception("busy"), status_code=429, litellm_response_headers=WAIT),
        K.RATE_LIMIT,
        {"retry_after": 7.0},
    ),
    (
        plain(Exception("Slow down."), status=429, headers=LIMITED),
        K.RATE_LIMIT,
        {"retry_after": 7.0, "request_id": "r-1"},
    ),
    (  # ChatOpenRouter's: JSON in a string.
        plain(Exception("OpenRouterError"), status_code=400, body=REPORT),
        K.CONTEXT_OVERFLOW,
        {"message": "Error code: 400 - maximum context length"},
    ),
    # Python's reader of literals has a limit.
    (
        plain(Exception("no"), status_code=400, body="{'a': " + "-" * 5_000 + "1}"),
        K.INVALID_REQUEST,
        {"status_code": 400},
    ),
    # A name says more than a 400.
    (plain(Exception("No."), status_code=400, body=NOT_ALLOWED), K.PERMISSION, {}),
    # LiteLLM's classes say more than their status.
    (classed("ContextWindowExceededError", status_code=400), K.CONTEXT_OVERFLOW, {}),
    (classed("ContentPolicyViolationError", status_code=400), K.CONTENT_FILTER, {}),
    (ValueError("rate_limit_exceeded: slow down"), K.RATE_LIMIT, {}),
    (
        ValueError("ResponseError(code='invalid_prompt', message='x')"),
        K.CONTENT_FILTER,
        {"code": "invalid_prompt"},
    ),
    (ValueError("No generations found in stream."), K.MALFORMED, {}),
    (schema_error(ChatCompletion), K.MALFORMED, {}),
    (ValueError(ResponseError(code="server_error", message="x")), K.SERVER_ERROR, {}),
    (
        ValueError(ResponseError.model_construct(message="x", type="rate_limit_error")),
        K.RATE_LIMIT,
        {},
    ),
    *(
        (getattr(langchain, f"{name}Error")("x"), kind, {})
        for name, kind in {
            "ModelInvalidRequest": K.INVALID_REQUEST,
            "ModelRateLimit": K.RATE_LIMIT,
            "ModelAuthentication": K.AUTHENTICATION,
            "ModelPermissionDenied": K.PERMISSION,
            "ModelNotFound": K.NOT_FOUND,
            "ModelAPI": K.SERVER_ERROR,
            "ContextOverflow": K.CONTEXT_OVERFLOW,
            "ModelTimeout": K.TIMEOUT,
            "ModelConnection": K.CONNECTION,
        }.items()
    ),
    (langchain.ModelError("x"), K.SERVER_ERROR, {"should_retry": False}),
    (
        plain(langchain.ModelRateLimitError("x"), is_retryable=False),
        K.RATE_LIMIT,
        {"should_retry": False},
    ),
    # langchain-google-genai raises LangChain's class from the error with the facts.
    (
        caused(
            langchain.ModelRateLimitError("x"),
            googles(429, EXHAUSTED, QUOTA, PER_DAY, RETRY_INFO),
        ),
        K.QUOTA,
        {"status_code": 429, "code": EXHAUSTED},
    ),
    # A certificate that is wrong now is wrong in a second too.
    (
        caused(httpx.ConnectError("[SSL]"), ssl.SSLCertVerificationError("bad")),
        K.CONNECTION,
        {"should_retry": False, "may_have_run": False},
    ),
]


@pytest.mark.parametrize(("error", "kind", "facts"), SHAPES, ids=repr)
def test_an_exception_is_known_by_its_shape(
    error: Exception, kind: FailureKind, facts: dict[str, Any]
) -> None:
    """What an SDK raises needs none of its package to be understood."""
    told = routed(raising(error))
    assert told.kind is kind
    assert told.__cause__ is error
    assert {name: getattr(told, name) for name in facts} == facts


class IntegrationError(Exception):
    """A wrapper that keeps nothing, raised while another exception is handled."""


def refused_by_httpx() -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://127.0.0.1")
    response = httpx.Response(503, headers=WAIT, request=request)
    return httpx.HTTPStatusError("busy", request=request, response=response)


@pytest.mark.parametrize(
    ("cause", "wrapper", "kind", "wait"),
    [
        (googles(503, "UNAVAILABLE", "x"), IntegrationError("x"), K.UNAVAILABLE, None),
        (httpx.ReadTimeout("x"), IntegrationError("x"), K.TIMEOUT, None),
        # Ollama's headers are in the context alone.
        (refused_by_httpx(), ollamas("busy", 503), K.UNAVAILABLE, 7),
    ],
    ids=repr,
)
def test_a_wrapper_is_what_it_was_raised_in_place_of(
    cause: Exception, wrapper: Exception, kind: FailureKind, wait: float | None
) -> None:
    """An exception of an integration is read by its context; one of Python's is not."""

    def ask(wrapper: Exception) -> None:
        try:
            raise cause
        except type(cause):
            raise wrapper  # noqa: B904 - as integrations do

    told = routed(asking(lambda: ask(wrapper)))
    assert (told.kind, told.retry_after) == (kind, wait)
    with pytest.raises(ValueError, match="a bug") as caught:
        ask(ValueError("a bug"))
    assert read_exception(caught.value, unix_time=0.0) is None


@pytest.mark.parametrize("begin", ["sk-proj-", "gsk_", "AIzaSyA", "xai-"])
def test_a_key_is_known_by_its_beginning(begin: str) -> None:
    """If no request tells the key, a text that looks like one is not shown."""
    key = f"{begin}abcdef0123456789abcdef0123456789ab"
    error = googles(401, "UNAUTHENTICATED", f"The key {key} is wrong.")
    told = routed(raising(error))
    shown = f"{told.body} {error.details} {''.join(traceback.format_exception(told))}"
    assert "The key *** is wrong." in shown
    assert key not in shown


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("?key=my-own-secret", {}),
        ("", {"x-goog-api-key": "my-own-secret"}),
        ("", {"authorization": "Bearer my-own-secret"}),
        ("", {"api-key": "my-own-secret"}),
    ],
    ids=str,
)
def test_the_requests_key_is_not_shown(query: str, headers: dict[str, str]) -> None:
    """The key that a request carried, in a header or its address, is taken out."""

    def ask() -> None:
        request = httpx.Request("POST", f"http://a/{query}", headers=headers)
        body = {"error": {"message": "my-own-secret is wrong"}}
        httpx.Response(403, request=request, json=body).raise_for_status()

    told = routed(asking(ask))
    assert told.message == "Error code: 403 - *** is wrong"
    shown = f"{told.body} {''.join(traceback.format_exception(told))}"
    assert "my-own-secret" not in shown


def test_aiohttps_errors_lose_the_headers_with_the_key() -> None:
    """The `repr` of aiohttp's errors, which debuggers show, has no API key."""

    async def post(url: str) -> None:
        headers = {"authorization": "Bearer my-own-secret"}
        async with aiohttp.ClientSession(headers=headers) as session:
            await session.post(url, json=PAYLOAD, raise_for_status=True)

    told = sent(lambda url, _: asyncio.run(post(url)), Status(403))
    assert told.kind is K.PERMISSION
    assert "my-own-secret" not in f"{told.__cause__!r} {vars(told.__cause__)}"


# --- Exceptions that say nothing about a provider -----------------------------------


@pytest.mark.parametrize(
    "error",
    [
        TypeError("unexpected keyword argument"),
        KeyError("choices"),
        ValueError("a bug"),
        ValueError("a_name: a bug"),
        AttributeError("x"),
        IndexError("list index out of range"),
        RuntimeError("a bug"),
        NotImplementedError(),
        AssertionError(),
        RecursionError(),
        MemoryError(),
        FileNotFoundError(2, "No such file"),
        PermissionError(13, "no"),
        schema_error(Answer),
        langchain.OutputParserException("no JSON in it"),
        UnsupportedOptionError("no such option"),
    ],
    ids=repr,
)
def test_a_bug_says_nothing_about_a_provider(error: Exception) -> None:
    """The router is told that it is unknown, and not that the provider failed."""
    assert read_exception(error, unix_time=0.0) is None


# --- HTTP libraries without an SDK --------------------------------------------------

PAYLOAD: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def with_aiohttp(url: str, timeout: float) -> Any:
    async def send() -> Any:
        limits = aiohttp.ClientTimeout(sock_read=timeout)
        async with (
            aiohttp.ClientSession(timeout=limits) as session,
            session.post(url, json=PAYLOAD, raise_for_status=True) as response,
        ):
            return await response.json()

    return asyncio.run(send())


def with_requests(url: str, timeout: float) -> Any:
    with requests.Session() as session:
        session.trust_env = False
        response = session.post(url, json=PAYLOAD, timeout=timeout)
        response.raise_for_status()
        return response.json()


def with_urllib(url: str, timeout: float) -> Any:
    data = json.dumps(PAYLOAD).encode()
    request = urllib.request.Request(url, data, JSON)  # noqa: S310 - the loopback
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout) as response:
            return response.read()
    except urllib.error.HTTPError as error:
        error.close()  # It is the response, too.
        raise


def with_urllib3(url: str, timeout: float) -> Any:
    with urllib3.PoolManager(retries=urllib3.Retry(0), timeout=timeout) as pool:
        return pool.request("POST", url, json=PAYLOAD).json()


# ChatAnthropic and ChatOpenAI above send by httpx.
CHECK_STATUS = [with_aiohttp, with_requests, with_urllib]
CLIENTS = [*CHECK_STATUS, with_urllib3]


def sent(send: Any, step: Step | None) -> Any:
    """The router's error for a request by `send`; None: no server listens."""
    if step is None:
        return routed(asking(lambda: send(NOWHERE, 5.0)))
    with FaultyGateway() as gateway:
        url = f"{gateway.openai_url}/chat/completions"
        timeout = 0.6 if isinstance(step, Silence) else 5.0
        gateway.script(step)
        return routed(asking(lambda: send(url, timeout)))


LIMITS = {"status_code": 429, "may_have_run": False}
BUSY = {"status_code": 503, "may_have_run": True}
OF_HEADERS = {"retry_after": 7.0, "request_id": "req_000001"}
TOO_LONG_IN_400 = Status(400, error_code="context_length_exceeded")
# Which libraries, what they meet, and what the error has of it.
MET: list[tuple[list[Any], Step | None, FailureKind, dict[str, Any]]] = [
    (CHECK_STATUS, Status(400, WAIT), K.INVALID_REQUEST, {"may_have_run": False}),
    (CHECK_STATUS, Status(429, WAIT), K.RATE_LIMIT, {**LIMITS, **OF_HEADERS}),
    (CHECK_STATUS, Status(503, WAIT), K.UNAVAILABLE, {**BUSY, **OF_HEADERS}),
    # What the body says counts if the library keeps it.
    ([with_requests], TOO_LONG_IN_400, K.CONTEXT_OVERFLOW, {"status_code": 400}),
    (CLIENTS, None, K.CONNECTION, {"may_have_run": False}),
    *(
        (CLIENTS, step, K.CONNECTION, {"may_have_run": True})
        for step in (Reset(), Hangup(), Cut(after=5))
    ),
    (CLIENTS, Silence(), K.TIMEOUT, {"may_have_run": True}),
    # Half a document with status 200 is the provider's failure.
    (
        [with_aiohttp, with_requests, with_urllib3],
        MalformedEvent(at=1),
        K.MALFORMED,
        {},
    ),
]


@pytest.mark.parametrize(
    ("send", "step", "kind", "facts"),
    [(send, *row) for clients, *row in MET for send in clients],
)
def test_an_http_library_without_an_sdk(
    send: Any, step: Step | None, kind: FailureKind, facts: dict[str, Any]
) -> None:
    """Its own classes are named, with what headers say and whether it may have run."""
    told = sent(send, step)
    assert told.kind is kind
    assert {name: getattr(told, name) for name in facts} == facts


class InferenceTimeoutError(requests.HTTPError, TimeoutError):
    """As Hugging Face's."""


ADDRESS: Any = SimpleNamespace(host="127.0.0.1", port=1, ssl=False)
REFUSED = aiohttp.ClientConnectorError(ADDRESS, ConnectionRefusedError())
TRANSPORT = [
    (TimeoutError(), K.TIMEOUT, True),
    (ConnectionResetError(), K.CONNECTION, True),
    (ConnectionRefusedError(), K.CONNECTION, False),
    (socket.gaierror(-2, "no such host"), K.CONNECTION, False),
    (ssl.SSLError("eof"), K.CONNECTION, True),
    (ssl.SSLCertVerificationError("bad"), K.CONNECTION, False),
    (OSError(errno.ENETUNREACH, "no way"), K.CONNECTION, False),
    (asyncio.IncompleteReadError(b"", 4), K.CONNECTION, True),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), K.MALFORMED, True),
    (RuntimeError("Event loop is closed"), K.CONNECTION, True),
    # Before anything was sent: a prompt with half a character, a key with an umlaut.
    (UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "no"), K.INVALID_REQUEST, False),
    (UnicodeEncodeError("ascii", "kéy", 1, 2, "no"), K.AUTHENTICATION, False),
    (RuntimeError("the client has been closed."), K.CONNECTION, False),
    (httpx.PoolTimeout("full"), K.TIMEOUT, False),
    (httpx.ConnectTimeout("slow"), K.TIMEOUT, False),
    (httpx2.UnsupportedProtocol("ftp"), K.INVALID_REQUEST, False),
    (httpx2.DecodingError("gzip"), K.MALFORMED, True),
    # httpx-aiohttp, which openai's aiohttp client uses, calls it a timeout.
    (caused(httpx.ConnectTimeout("no connection"), REFUSED), K.CONNECTION, False),
    (requests.ConnectTimeout(), K.TIMEOUT, False),
    (requests.exceptions.InvalidURL("x"), K.INVALID_REQUEST, False),
    (InferenceTimeoutError("slow"), K.TIMEOUT, True),
    (aiohttp.ConnectionTimeoutError(), K.TIMEOUT, False),
    (aiohttp.ClientPayloadError("cut"), K.CONNECTION, True),
    (aiohttp.http_exceptions.TransferEncodingError("cut"), K.CONNECTION, True),
    (urllib3.exceptions.DecodeError("gzip"), K.MALFORMED, True),
    (urllib3.exceptions.ProtocolError("x", TimeoutError()), K.TIMEOUT, True),
    (openai.APITimeoutError(httpx2.Request("POST", "http://x")), K.TIMEOUT, True),
]


@pytest.mark.parametrize(("error", "kind", "may_have_run"), TRANSPORT, ids=repr)
def test_a_transport_error_is_known_by_its_class(
    error: Exception, kind: FailureKind, *, may_have_run: bool
) -> None:
    """The class of an exception below HTTP says whether the request may have run."""
    told = routed(raising(error))
    assert (told.kind, told.may_have_run) == (kind, may_have_run)


@pytest.mark.parametrize("way", [WAYS[0], WAYS[3]], ids=str)
@pytest.mark.parametrize("entry", DATA["answers"], ids=lambda entry: entry["name"])
def test_an_answer_has_its_kind_and_its_wait(
    gateway: FaultyGateway, entry: dict[str, Any], way: Way
) -> None:
    """Status, codes, sentences and headers of a provider are understood as meant."""
    make = chat_anthropic if entry["protocol"] == "anthropic" else chat_openai
    gateway.script(status_of(entry))
    error = error_of(way, router_of(make(gateway), clock=None))
    assert len(gateway.requests) == 1
    check(error, entry)


@pytest.mark.parametrize("entry", [*DATA["wordings"], *DATA["made_up"]])
def test_a_wording_has_its_kind(entry: dict[str, Any]) -> None:
    """Each provider's words for a kind are known, with the seconds that they name."""
    report = read_response(entry["status"], entry.get("headers", {}), entry["body"])
    assert report.kind == entry["kind"]
    assert report.retry_after == entry.get("asked")


@pytest.mark.parametrize("entry", DATA["events"], ids=lambda entry: entry["name"])
def test_an_event_is_an_error_or_not(entry: dict[str, Any]) -> None:
    """Every dialect of an error inside a stream is known, and no chunk is one.

    Google's are in a list; a proxy that gathers what it got makes a list of it.
    """
    data = entry["data"]
    written = data if isinstance(data, str) else json.dumps(data)
    forms = [(form, entry["event"]) for form in (data, written, written.encode())]
    if entry["kind"] and "error" in data:
        forms += [(form, "error") for form in ([data], [[data]], [json.dumps([data])])]
    for form, kind in forms:
        report = read_event(form, kind)
        assert (report and report.kind) == entry["kind"]


facts = st.sampled_from(["error", "type", "code", "status", "message", "details"])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)


@given(
    st.recursive(
        scalars,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(facts, inner, max_size=4)
        ),
    ),
    st.sampled_from([None, 200, 302, 400, 429, 500]),
)
def test_no_body_makes_the_reader_fail(body: Any, status: int | None) -> None:
    """Whatever stands where a name or a sentence is expected, there is a kind."""
    assert read_response(status, {}, body).kind in FailureKind
    read_event(body)


@pytest.mark.parametrize("way", WAYS[1::2], ids=str)
@pytest.mark.parametrize(
    "entry",
    [entry for entry in DATA["events"] if "response.failed" in str(entry)],
    ids=lambda entry: entry["name"],
)
def test_a_failed_response_counts_by_its_code(entry: dict[str, Any], way: Way) -> None:
    """langchain-openai raises its text alone, in which the code stands.

    Old versions swallow the event: no chunk at all is a malformed answer.
    """
    data = {"sequence_number": 1, **entry["data"]}
    event = f"event: response.failed\ndata: {json.dumps(data)}\n\n"
    with FaultyGateway() as gateway:
        gateway.respond("/v1/responses", {})
        gateway.always(Body(200, {"content-type": "text/event-stream"}, event))
        bare, routed = (chat_openai(gateway), chat_openai(gateway))
        bare.use_responses_api = routed.use_responses_api = True
        try:
            is_swallowed = not ask(way, bare)
        except ValueError:
            is_swallowed = False
        error = error_of(way, router_of(routed))
    assert isinstance(error, RetryRouterError)
    assert error.kind == ("malformed" if is_swallowed else entry["kind"])
    assert is_swallowed or "Said by OpenAI" in error.message


@pytest.mark.parametrize("way", [WAYS[0], WAYS[3]], ids=str)
def test_the_text_of_a_large_error_is_cut(way: Way) -> None:
    """Megabytes of an error page are neither searched nor handed on."""
    page = "an error, said often. " * 100_000
    with FaultyGateway() as gateway:
        gateway.script(Status(400, {}, {"error": {"message": page}}))
        error = error_of(way, router_of(chat_openai(gateway)))
    assert page[:9_000] in str(error)
    assert len(str(error)) < len(str(error.__cause__)) + 100 < 11_000
