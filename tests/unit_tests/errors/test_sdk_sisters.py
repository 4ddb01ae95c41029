"""Old `except` clauses: each error is the SDK's own class too."""

from __future__ import annotations

import gpt_router.exceptions as gateway_sdk
import openai
import pytest

from langchain_retryrouter import errors
from langchain_retryrouter._gptrouter.errors import (
    GPT_ROUTER_ERRORS,
    GPT_ROUTER_STREAM_ERRORS,
)
from langchain_retryrouter._openai.errors import (
    OPENAI_ERRORS,
    OpenAIStatusTimeoutError,
    OpenAIUnprocessableEntityError,
)
from langchain_retryrouter.errors import RetryRouterError
from langchain_retryrouter.failures import FailureKind

from .families import ALL_CLASSES, GPT_ROUTER_CLASSES, OPENAI_CLASSES

K = FailureKind

NO = "the provider said no"

# What the gateway's SDK raises in the same place; None where it raises none of its own.
GATEWAY_SDK: dict[FailureKind, type[Exception] | None] = {
    K.RATE_LIMIT: gateway_sdk.GPTRouterTooManyRequestsError,
    K.QUOTA: gateway_sdk.GPTRouterTooManyRequestsError,
    K.UNAVAILABLE: gateway_sdk.GPTRouterNotAvailableError,
    K.SERVER_ERROR: gateway_sdk.GPTRouterInternalServerError,
    K.CONFLICT: None,
    K.TIMEOUT: gateway_sdk.GPTRouterApiTimeoutError,
    K.CONNECTION: None,
    K.INTERRUPTED: gateway_sdk.GPTRouterStreamingError,
    K.MALFORMED: gateway_sdk.GPTRouterInternalServerError,
    K.INVALID_REQUEST: gateway_sdk.GPTRouterBadRequestError,
    K.AUTHENTICATION: gateway_sdk.GPTRouterUnauthorizedError,
    K.PERMISSION: gateway_sdk.GPTRouterForbiddenError,
    K.NOT_FOUND: None,
    K.CONTEXT_OVERFLOW: gateway_sdk.GPTRouterBadRequestError,
    K.CONTENT_FILTER: gateway_sdk.GPTRouterBadRequestError,
    K.CIRCUIT_OPEN: gateway_sdk.GPTRouterNotAvailableError,
}

OPENAI_SDK: dict[FailureKind, type[Exception]] = {
    K.RATE_LIMIT: openai.RateLimitError,
    K.QUOTA: openai.RateLimitError,
    K.UNAVAILABLE: openai.InternalServerError,
    K.SERVER_ERROR: openai.InternalServerError,
    K.CONFLICT: openai.ConflictError,
    K.TIMEOUT: openai.APITimeoutError,
    K.CONNECTION: openai.APIConnectionError,
    K.INTERRUPTED: openai.APIConnectionError,
    K.MALFORMED: openai.APIResponseValidationError,
    K.INVALID_REQUEST: openai.BadRequestError,
    K.AUTHENTICATION: openai.AuthenticationError,
    K.PERMISSION: openai.PermissionDeniedError,
    K.NOT_FOUND: openai.NotFoundError,
    K.CONTEXT_OVERFLOW: openai.BadRequestError,
    K.CONTENT_FILTER: openai.BadRequestError,
    K.CIRCUIT_OPEN: openai.APIConnectionError,
}


def foreign_parents(cls: type[RetryRouterError], package: str) -> set[type]:
    """The exceptions of an SDK that `cls` inherits most closely."""
    foreign = {c for c in cls.__mro__ if c.__module__.split(".")[0] == package}
    return {c for c in foreign if not any(issubclass(o, c) for o in foreign - {c})}


@pytest.mark.parametrize("kind", FailureKind)
def test_the_gateway_sdks_except_clauses_work(kind: FailureKind) -> None:
    """Who caught the SDK's exception catches ours, and no other one by mistake."""
    cls, sdk = GPT_ROUTER_ERRORS[kind], GATEWAY_SDK[kind]
    assert foreign_parents(cls, "gpt_router") == ({sdk} if sdk else set())
    with pytest.raises(sdk or errors.BASE_ERRORS[kind], match=rf"^{NO}$"):
        raise cls(NO)


@pytest.mark.parametrize("kind", GPT_ROUTER_STREAM_ERRORS)
def test_an_error_inside_a_stream_is_a_streaming_error_too(kind: FailureKind) -> None:
    """The SDK made a streaming error of all that a stream reported; so do we."""
    cls = GPT_ROUTER_STREAM_ERRORS[kind]
    with pytest.raises(gateway_sdk.GPTRouterStreamingError, match=rf"^{NO}$") as caught:
        raise cls(NO)
    assert isinstance(caught.value, GPT_ROUTER_ERRORS[kind])


@pytest.mark.parametrize("kind", FailureKind)
def test_the_openai_sdks_except_clauses_work(kind: FailureKind) -> None:
    """Who caught openai's exception catches ours, and no other one by mistake."""
    cls, sdk = OPENAI_ERRORS[kind], OPENAI_SDK[kind]
    assert foreign_parents(cls, "openai") == {sdk}
    with pytest.raises(sdk, match=rf"^{NO}$"):
        raise cls(NO)
    with pytest.raises(openai.OpenAIError):
        raise cls(NO)


@pytest.mark.parametrize(
    ("cls", "sdk", "kind"),
    [
        (
            OpenAIUnprocessableEntityError,
            openai.UnprocessableEntityError,
            K.INVALID_REQUEST,
        ),
        (OpenAIStatusTimeoutError, openai.InternalServerError, K.TIMEOUT),
    ],
)
def test_openais_finer_distinctions(
    cls: type[RetryRouterError], sdk: type[Exception], kind: FailureKind
) -> None:
    """Where openai has two classes for what is one to us, both have a sister."""
    assert foreign_parents(cls, "openai") == {sdk}
    assert cls.kind is kind
    assert issubclass(cls, errors.BASE_ERRORS[kind])


@pytest.mark.parametrize("cls", OPENAI_CLASSES)
def test_openais_attributes_are_there(cls: type[RetryRouterError]) -> None:
    """Code that reads what openai's exceptions carry finds it, if only to be None."""
    error = cls("no", status_code=418, request_id="req_1", code="teapot", body={"a": 1})
    for name in ("request", "response", "param", "type"):
        assert getattr(error, name) is None
    told = (error.status_code, error.request_id, error.code, error.body, error.message)
    assert told == (418, "req_1", "teapot", {"a": 1}, "no")


@pytest.mark.parametrize("cls", ALL_CLASSES)
def test_a_message_is_shown_as_it_is(cls: type[RetryRouterError]) -> None:
    """No SDK class in the line changes what `str` says."""
    error = cls("429: slow down")
    assert str(error) == error.message == "429: slow down"
    assert error.args == ("429: slow down",)
    assert repr(error) == f"{cls.__name__}('429: slow down')"


@pytest.mark.parametrize("cls", [*GPT_ROUTER_CLASSES, *OPENAI_CLASSES])
def test_our_meaning_comes_first(cls: type[RetryRouterError]) -> None:
    """What both sides define is ours: the SDK's class comes last in the line."""
    mro = cls.__mro__
    ours = [i for i, c in enumerate(mro) if issubclass(c, RetryRouterError)]
    sdk = [
        i
        for i, c in enumerate(mro)
        if c.__module__.split(".")[0] in {"openai", "gpt_router"}
    ]
    assert not sdk or max(ours) < min(sdk)
