"""Exceptions of the OpenAI models: one class for each kind of failure.

Each inherits from our error for that kind and from the SDK's closest one, so that an
`except openai.RateLimitError:` goes on working. `raise_typed` turns what `openai`, httpx
or aiohttp raise into them. The original is the `__cause__`, and the API key is removed
from what it says: servers and HTTP libraries quote headers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn, TypeVar

import openai

from langchain_retryrouter import errors
from langchain_retryrouter._http.errors import transport_of
from langchain_retryrouter._providers.errors import name_failure, read_reported
from langchain_retryrouter._retry.retry_after import read_advice
from langchain_retryrouter.errors import SHORTEST_SECRET, RetryRouterError, mask
from langchain_retryrouter.failures import FailureKind

_Error = TypeVar("_Error", bound="_SDKFacts")

_SECRET_HEADERS: Final = ("authorization", "api-key", "proxy-authorization")
_REQUEST_IDS: Final = (
    "x-request-id",
    "apim-request-id",
    "x-ms-request-id",
    "x-litellm-call-id",
)


class _SDKFacts(errors.RetryRouterError):
    """The attributes of the SDK's exceptions, in addition to those of all our errors."""

    # `Any`: the SDK narrows these per class, to `Literal[429]` and the like.
    status_code: Any
    request: Any = None
    response: Any = None
    param: str | None = None
    type: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """The error without the HTTP objects."""
        kept = {
            name: value
            for name, value in self.__dict__.items()
            if name not in {"request", "response"}
        }
        return _restore_error, (type(self), self.message, kept)


def _restore_error(
    cls: type[_Error], message: str, attributes: dict[str, Any]
) -> _Error:
    error = cls(message)
    error.__dict__.update(attributes)
    return error


class OpenAIAuthenticationError(
    _SDKFacts, errors.AuthenticationError, openai.AuthenticationError
):
    """The key was missing or wrong (401)."""


class OpenAIPermissionDeniedError(
    _SDKFacts, errors.PermissionDeniedError, openai.PermissionDeniedError
):
    """The key is not allowed to do this (403)."""


class OpenAINotFoundError(_SDKFacts, errors.NotFoundError, openai.NotFoundError):
    """There is no such model or endpoint (404)."""


class OpenAIInvalidRequestError(
    _SDKFacts, errors.InvalidRequestError, openai.BadRequestError
):
    """The request was wrong and will be wrong next time (400)."""


class OpenAIContextLengthError(
    _SDKFacts, errors.ContextLengthError, openai.BadRequestError
):
    """Prompt and answer do not fit into the model's context."""


class OpenAIContentFilterError(
    _SDKFacts, errors.ContentFilterError, openai.BadRequestError
):
    """A content filter refused the prompt or the answer."""


class OpenAIRateLimitError(_SDKFacts, errors.RateLimitError, openai.RateLimitError):
    """Too many requests (429)."""


class OpenAIQuotaExceededError(
    _SDKFacts, errors.QuotaExceededError, openai.RateLimitError
):
    """The quota is used up (`insufficient_quota`)."""


class OpenAIServerError(_SDKFacts, errors.ServerError, openai.InternalServerError):
    """The provider failed (5xx)."""


class OpenAIUnavailableError(
    _SDKFacts, errors.UnavailableError, openai.InternalServerError
):
    """The provider is overloaded or down for now (503, 529)."""


class OpenAIConflictError(_SDKFacts, errors.ConflictError, openai.ConflictError):
    """Another request was in the way (409)."""


class OpenAIMalformedResponseError(
    _SDKFacts, errors.MalformedResponseError, openai.APIResponseValidationError
):
    """An answer came that is not the API's protocol."""


class OpenAITimeoutError(_SDKFacts, errors.APITimeoutError, openai.APITimeoutError):
    """No answer in time."""


class OpenAIConnectionError(
    _SDKFacts, errors.APIConnectionError, openai.APIConnectionError
):
    """No connection to the provider, or it was lost."""


class OpenAIStreamInterruptedError(
    _SDKFacts, errors.StreamInterruptedError, openai.APIConnectionError
):
    """The stream ended before every choice had its finish reason."""


class OpenAICircuitOpenError(
    _SDKFacts, errors.CircuitOpenError, openai.APIConnectionError
):
    """The circuit breaker is open: nothing was sent."""


OPENAI_ERRORS: Final[errors.ErrorFamily] = {
    cls.kind: cls
    for cls in (
        OpenAIAuthenticationError,
        OpenAIPermissionDeniedError,
        OpenAINotFoundError,
        OpenAIInvalidRequestError,
        OpenAIContextLengthError,
        OpenAIContentFilterError,
        OpenAIRateLimitError,
        OpenAIQuotaExceededError,
        OpenAIServerError,
        OpenAIUnavailableError,
        OpenAIConflictError,
        OpenAIMalformedResponseError,
        OpenAITimeoutError,
        OpenAIConnectionError,
        OpenAIStreamInterruptedError,
        OpenAICircuitOpenError,
    )
}


def new_error(kind: FailureKind, message: str) -> RetryRouterError:
    """An error for an answer that came with status 200 and is none."""
    return OPENAI_ERRORS[kind](message)


def reported_error(report: Any) -> RetryRouterError:
    """The error that a provider reported inside a 200, or as an event of a stream.

    Args:
        report: The value of `error`: an object, or only a sentence.
    """
    told = read_reported(report)
    return OPENAI_ERRORS[told.kind](told.message, code=told.code, body=told.body)


def raise_typed(
    error: Exception,
    resource: Any,
    unix_time: Callable[[], float],
    response: Any = None,
) -> NoReturn:
    """Raise `error` as one of the classes above, or as it is if no provider caused it.

    Args:
        error: Anything that was raised while a request was sent or its answer read.
        resource: The resource that sent it: its credentials must not be shown.
        unix_time: The seconds since the Unix epoch, to read an HTTP date with.
        response: The HTTP response, where it is known.

    Raises:
        RetryRouterError: A provider's failure.
        UnsupportedOptionError: The request holds text that cannot be encoded.
    """
    if isinstance(error, UnicodeEncodeError):
        msg = (
            f"the request cannot be sent, since UTF-8 cannot encode a part of it: {error}."
            " Remove it, such as half of a surrogate pair, from the prompt or option"
        )
        raise errors.UnsupportedOptionError(msg) from error
    typed = error if isinstance(error, RetryRouterError) else _typed(error, unix_time())
    if typed is None:
        raise error
    _add_response(typed, response, unix_time)
    secrets = _secrets_of(typed, resource)
    for told in {id(one): one for one in (typed, error)}.values():
        mask(secrets, told)
    if typed is error:
        raise error
    raise typed from error


def _typed(error: Exception, unix_time: float) -> RetryRouterError | None:
    for step in _chain(error):
        if isinstance(step, RetryRouterError):
            return step  # Raised while the answer was read, and wrapped by openai 2.
        # The SDK's client over aiohttp calls a lost connection a `ConnectTimeout`.
        if type(step).__module__.startswith("aiohttp") and (way := transport_of(step)):
            message = f"{type(step).__name__}: {step}"
            typed = OPENAI_ERRORS[way.kind](message, may_have_run=way.may_have_run)
            break
    else:
        base = name_failure(error, unix_time)
        if base is None:
            return None
        typed = OPENAI_ERRORS[base.kind](base.message)
        vars(typed).update(vars(base))
    for name in ("request", "response", "param", "type"):
        with contextlib.suppress(RuntimeError):  # httpx raises it for no `request`.
            if (value := getattr(error, name, None)) is not None:
                setattr(typed, name, value)
    return typed


def _chain(error: BaseException) -> Iterator[BaseException]:
    step: BaseException | None = error
    while step is not None:
        yield step
        step = step.__cause__


def _add_response(
    error: RetryRouterError, response: Any, unix_time: Callable[[], float]
) -> None:
    """Add what the response's headers say of an error that came inside a 200."""
    if response is not None and getattr(error, "response", None) is None:
        vars(error).update(response=response, request=response.request)
    headers = getattr(getattr(error, "response", None), "headers", None)
    if not hasattr(headers, "multi_items"):
        return
    advice = read_advice(list(headers.multi_items()), unix_time=unix_time())
    if error.request_id is None:
        found = (headers[name] for name in _REQUEST_IDS if name in headers)
        error.request_id = next(found, None)
    if error.retry_after is None:
        error.retry_after = advice.retry_after
    if error.should_retry is None:
        error.should_retry = advice.should_retry


def _secrets_of(error: Exception, resource: Any) -> set[str]:
    """The credentials in the request's headers, and in the resource's settings."""
    headers: Any = {}
    with contextlib.suppress(RuntimeError):
        headers = getattr(getattr(error, "request", None), "headers", {})
    values = {headers.get(name) for name in _SECRET_HEADERS}
    settings = getattr(resource, "settings", None)
    values |= getattr(settings, "secrets", set())
    words = [value.split() for value in values if isinstance(value, str)]
    return {found[-1] for found in words if found and len(found[-1]) >= SHORTEST_SECRET}
