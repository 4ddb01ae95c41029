"""What an error's shape and class say, and what is no provider's failure at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import httpx
import pytest
from langchain_core import exceptions as langchain
from langchain_core.language_models.chat_models import (
    agenerate_from_stream,
    generate_from_stream,
)
from langchain_core.outputs import ChatGenerationChunk
from pydantic import BaseModel, SecretStr, ValidationError

from langchain_retryrouter import GPTRouter, GPTRouterModel, RetryPolicy, errors
from langchain_retryrouter._providers.errors import name_failure
from langchain_retryrouter.testing import FaultyGateway, Status

from .attempts import WALL, WAYS, Way, error_of


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    """The error as an `except` sees it, with its traceback."""
    try:
        raise error from cause
    except type(error) as caught:
        return caught


# LangChain's own tree.


@pytest.mark.parametrize(
    ("cls", "named"),
    [
        (langchain.ContextOverflowError, errors.ContextLengthError),
        (langchain.ModelAuthenticationError, errors.AuthenticationError),
        (langchain.ModelPermissionDeniedError, errors.PermissionDeniedError),
        (langchain.ModelNotFoundError, errors.NotFoundError),
        (langchain.ModelInvalidRequestError, errors.InvalidRequestError),
        (langchain.ModelRateLimitError, errors.RateLimitError),
        (langchain.ModelTimeoutError, errors.APITimeoutError),
        (langchain.ModelConnectionError, errors.APIConnectionError),
        (langchain.ModelAPIError, errors.ServerError),
        (langchain.ModelError, errors.ServerError),
    ],
)
def test_langchains_tree_says_what_it_means(
    cls: type[langchain.ModelError], named: type[errors.RetryRouterError]
) -> None:
    """An error of LangChain's without a status counts by its class."""
    error = cls("Said by a model.")
    told = name_failure(error, WALL)
    assert type(told) is named
    assert told.failure.is_retryable is error.is_retryable


def test_who_gave_up_is_believed() -> None:
    """An error that somebody marked as final is not repeated on its route."""
    error = langchain.ModelRateLimitError("busy")
    error.is_retryable = False
    told = name_failure(error, WALL)
    assert type(told) is errors.RateLimitError
    assert not told.failure.is_retryable


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_an_error_of_ours_is_handed_on_as_it_is(way: Way) -> None:
    """GPTRouter names its own failures, and nothing of them gets lost."""
    own = GPTRouterModel(name="gpt-4o", provider_name="openai")
    with FaultyGateway() as gateway:
        gateway.script(Status(429, {"retry-after": "3"}))
        model = GPTRouter(
            models_priority_list=[own],
            gpt_router_api_key=SecretStr("any"),
            gpt_router_api_base=gateway.url,
            retry_policy=RetryPolicy(max_retries=0),
        )
        error = error_of(way, model)
    assert isinstance(error, errors.RateLimitError)
    assert name_failure(error, WALL) is error


# SDKs that are not installed: what is read of them is their documented shape.


class GoogleError(Exception):
    """As `google.genai.errors.APIError`: `code`, `status`, `details`."""

    def __init__(self, code: int, details: dict[str, Any]) -> None:
        super().__init__(f"{code} {details['error']['status']}. {details}")
        self.code = code
        self.status = details["error"]["status"]
        self.details = details
        self.response = None


def google(code: int, status: str, message: str, *details: Any) -> GoogleError:
    error = {"code": code, "message": message, "status": status, "details": [*details]}
    return GoogleError(code, {"error": error})


RETRY_INFO = {
    "@type": "type.googleapis.com/google.rpc.RetryInfo",
    "retryDelay": "34.07s",
}
PER_DAY = {
    "@type": "type.googleapis.com/google.rpc.QuotaFailure",
    "violations": [{"quotaId": "GenerateRequestsPerDayPerProject"}],
}
QUOTA = "You exceeded your current quota, please check your plan and billing details."


class AmazonError(Exception):
    """As `botocore.exceptions.ClientError`: a dict in `response`."""

    def __init__(self, code: str, status: int | None, message: str) -> None:
        super().__init__(f"An error occurred ({code}): {message}")
        self.response = {
            "Error": {"Code": code, "Message": message},
            "ResponseMetadata": {
                "HTTPStatusCode": status,
                "HTTPHeaders": {"x-amzn-requestid": "req_aws"},
            },
        }


class StatusCode(Enum):
    """As `grpc.StatusCode`."""

    UNAVAILABLE = 14
    RESOURCE_EXHAUSTED = 8
    INVALID_ARGUMENT = 3


class RpcError(Exception):
    """As `grpc.RpcError`: methods `code` and `details`."""

    __module__ = "grpc"

    def __init__(self, code: StatusCode) -> None:
        super().__init__("<RpcError>")
        self._code = code

    def code(self) -> StatusCode:
        return self._code

    def details(self) -> str:
        return "Said by gRPC."


class ResponseError(Exception):
    """As `ollama.ResponseError`, whose status is -1 inside a stream."""

    __module__ = "ollama._types"

    def __init__(self, error: str, status_code: int = -1) -> None:
        super().__init__(f"{error} (status code: {status_code})")
        self.error = error
        self.status_code = status_code


SHAPES = [
    (
        google(400, "INVALID_ARGUMENT", "Bad."),
        errors.InvalidRequestError,
        400,
        "INVALID_ARGUMENT",
    ),
    (
        google(
            400,
            "INVALID_ARGUMENT",
            "The input token count (9) exceeds the maximum number of tokens allowed.",
        ),
        errors.ContextLengthError,
        400,
        "INVALID_ARGUMENT",
    ),
    (
        google(429, "RESOURCE_EXHAUSTED", QUOTA),
        errors.QuotaExceededError,
        429,
        "RESOURCE_EXHAUSTED",
    ),
    (
        google(429, "RESOURCE_EXHAUSTED", QUOTA, RETRY_INFO),
        errors.RateLimitError,
        429,
        "RESOURCE_EXHAUSTED",
    ),
    (
        google(429, "RESOURCE_EXHAUSTED", QUOTA, PER_DAY, RETRY_INFO),
        errors.QuotaExceededError,
        429,
        "RESOURCE_EXHAUSTED",
    ),
    (
        google(503, "UNAVAILABLE", "Overloaded."),
        errors.UnavailableError,
        503,
        "UNAVAILABLE",
    ),
    (
        AmazonError("ThrottlingException", 429, "Slow."),
        errors.RateLimitError,
        429,
        "ThrottlingException",
    ),
    (
        AmazonError("throttlingException", None, "Slow."),
        errors.RateLimitError,
        None,
        "throttlingException",
    ),
    (
        AmazonError("ModelErrorException", 424, "It broke."),
        errors.ServerError,
        424,
        "ModelErrorException",
    ),
    (
        AmazonError("ServiceQuotaExceededException", 400, "No."),
        errors.QuotaExceededError,
        400,
        "ServiceQuotaExceededException",
    ),
    (
        AmazonError("AccessDeniedException", 403, "No."),
        errors.PermissionDeniedError,
        403,
        "AccessDeniedException",
    ),
    (
        AmazonError(
            "ValidationException", 400, "Input is too long for requested model."
        ),
        errors.ContextLengthError,
        400,
        "ValidationException",
    ),
    (AmazonError("SomethingNew", 500, "Oh."), errors.ServerError, 500, "SomethingNew"),
    (RpcError(StatusCode.UNAVAILABLE), errors.UnavailableError, 503, "UNAVAILABLE"),
    (
        RpcError(StatusCode.RESOURCE_EXHAUSTED),
        errors.RateLimitError,
        429,
        "RESOURCE_EXHAUSTED",
    ),
    (
        RpcError(StatusCode.INVALID_ARGUMENT),
        errors.InvalidRequestError,
        400,
        "INVALID_ARGUMENT",
    ),
    (ResponseError("model not loaded", 500), errors.ServerError, 500, None),
    (ResponseError("out of memory"), errors.ServerError, None, None),
]


@pytest.mark.parametrize(("error", "cls", "status", "code"), SHAPES, ids=repr)
def test_an_sdk_that_is_not_here_is_told_by_its_shape(
    error: Exception,
    cls: type[errors.RetryRouterError],
    status: int | None,
    code: str | None,
) -> None:
    """Google's, Amazon's, gRPC's and Ollama's errors need none of their packages."""
    told = name_failure(error, WALL)
    assert type(told) is cls
    assert told is not None
    assert (told.status_code, told.code) == (status, code)


def test_googles_delay_is_a_retry_after() -> None:
    """Google says in its body when to come back, and the other SDKs in a header."""
    told = name_failure(google(429, "RESOURCE_EXHAUSTED", QUOTA, RETRY_INFO), WALL)
    assert told is not None
    assert told.retry_after == 34.07


def test_a_wrapper_means_what_it_was_raised_from() -> None:
    """An integration's own exception around a provider's failure says no less."""

    class IntegrationError(Exception):
        """As `ChatGoogleGenerativeAIError`."""

    error = raised(
        IntegrationError("Error calling model"), google(503, "UNAVAILABLE", "x")
    )
    assert type(name_failure(error, WALL)) is errors.UnavailableError


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("ContextWindowExceededError", errors.ContextLengthError),
        ("ContentPolicyViolationError", errors.ContentFilterError),
    ],
)
def test_litellms_classes_say_more_than_their_400(
    name: str, cls: type[errors.RetryRouterError]
) -> None:
    """LiteLLM knows what a provider meant, and says so by the class."""
    error = type(name, (Exception,), {"status_code": 400})("no")
    assert type(name_failure(error, WALL)) is cls


# What is nobody's failure but ours or the caller's.


class Answer(BaseModel):
    """A schema of the caller's."""

    number: int


def schema_error() -> ValidationError:
    try:
        Answer.model_validate_json('{"number": "many"}')
    except ValidationError as error:
        return error
    raise AssertionError


def missing_file() -> Exception:
    return FileNotFoundError(2, "No such file")


@pytest.mark.parametrize(
    "error",
    [
        TypeError("unexpected keyword argument"),
        KeyError("choices"),
        AttributeError("x"),
        IndexError("list index out of range"),
        NotImplementedError(),
        AssertionError(),
        RecursionError(),
        MemoryError(),
        missing_file(),
        PermissionError(13, "no"),
        schema_error(),
        langchain.OutputParserException("no JSON in it"),
        errors.UnsupportedOptionError("no such option"),
    ],
    ids=repr,
)
def test_a_bug_or_a_callers_mistake_has_no_name(error: Exception) -> None:
    """What is no provider's failure propagates unchanged, and at once."""
    assert name_failure(raised(error), WALL) is None


def empty_stream() -> Any:
    return generate_from_stream(iter(()))


def empty_async_stream() -> Any:
    async def nothing() -> Any:
        for _ in ():
            yield

    return asyncio.run(agenerate_from_stream(nothing()))


@pytest.mark.parametrize("collect", [empty_stream, empty_async_stream])
def test_an_empty_stream_is_malformed(collect: Callable[[], Any]) -> None:
    """LangChain's "No generations found in stream." is the provider's failure."""
    with pytest.raises(ValueError, match="No generations found") as caught:
        collect()
    assert type(name_failure(caught.value, WALL)) is errors.MalformedResponseError


def test_a_bug_inside_a_collected_stream_stays_one() -> None:
    """Where LangChain collects a stream, what breaks in the stream is not its end."""

    def broken() -> Iterator[ChatGenerationChunk]:
        msg = "a bug"
        raise ValueError(msg)
        yield

    with pytest.raises(ValueError, match="a bug") as caught:
        generate_from_stream(broken())
    assert name_failure(caught.value, WALL) is None


# Secrets.


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-abcdef0123456789abcdef",
        "gsk_abcdef0123456789abcdef",
        "AIzaSyA0123456789abcdefghijklmnopqrstuvw",
        "xai-abcdef0123456789abcdef",
    ],
)
def test_a_key_is_known_by_its_beginning(key: str) -> None:
    """Where no request tells the key, one that looks like a key is not shown."""
    error = google(401, "UNAUTHENTICATED", f"The key {key} is wrong.")
    told = name_failure(error, WALL)
    shown = f"{told!r} {told and told.body} {error} {error.details}"
    assert "The key *** is wrong." in shown
    assert key not in shown


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("http://127.0.0.1/?key=my-own-secret", {}),
        ("http://127.0.0.1/", {"x-goog-api-key": "my-own-secret"}),
        ("http://127.0.0.1/", {"authorization": "Bearer my-own-secret"}),
        ("http://127.0.0.1/", {"api-key": "my-own-secret"}),
    ],
    ids=str,
)
def test_the_requests_key_is_not_shown(url: str, headers: dict[str, str]) -> None:
    """The key that a request carried, in a header or its address, is taken out."""
    request = httpx.Request("POST", url, headers=headers)
    response = httpx.Response(
        403, request=request, json={"error": {"message": "my-own-secret is wrong"}}
    )
    with pytest.raises(httpx.HTTPStatusError) as caught:
        response.raise_for_status()
    told = name_failure(caught.value, WALL)
    assert told is not None
    assert told.message == "Error code: 403 - *** is wrong"
    assert "my-own-secret" not in f"{told.body} {caught.value}"


def test_headers_may_be_bytes() -> None:
    """What an integration hands on as it came from the socket is read nevertheless."""
    error = Exception("Slow down.")
    headers = {b"Retry-After": b"7", b"X-Request-Id": b"r-1", b"odd": None}
    vars(error).update(status=429, headers=headers)
    told = name_failure(raised(error), WALL)
    assert isinstance(told, errors.RateLimitError)
    assert (told.retry_after, told.request_id) == (7.0, "r-1")
