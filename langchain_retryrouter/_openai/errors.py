"""Exceptions of the OpenAI models: one class for each kind of failure.

Each inherits from our error for that kind and from the SDK's closest one, so that an
`except openai.RateLimitError:` goes on working. `TypedErrors` turns what `openai`,
httpx or aiohttp raise into them. The original is the `__cause__`, and the API key is
removed from what it says: servers and HTTP libraries quote headers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Self, TypeVar

import openai

from langchain_retryrouter import errors
from langchain_retryrouter._providers.errors import (
    read_exception,
    read_response,
    safe_getattr,
)
from langchain_retryrouter.errors import RetryRouterError, mask
from langchain_retryrouter.failures import FailureKind

_Error = TypeVar("_Error", bound="_SDKFacts")


class _SDKFacts(errors.RetryRouterError):
    """The attributes of the SDK's exceptions, in addition to those of our errors."""

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


class OpenAIUnprocessableEntityError(
    _SDKFacts, errors.InvalidRequestError, openai.UnprocessableEntityError
):
    """The request could be read and not be followed (422)."""


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


class OpenAIStatusTimeoutError(
    _SDKFacts, errors.APITimeoutError, openai.InternalServerError
):
    """The server itself ran out of time (408, 504)."""


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

_BY_STATUS: Final[Mapping[tuple[int | None, FailureKind], type[RetryRouterError]]] = {
    (408, FailureKind.TIMEOUT): OpenAIStatusTimeoutError,
    (422, FailureKind.INVALID_REQUEST): OpenAIUnprocessableEntityError,
    (504, FailureKind.TIMEOUT): OpenAIStatusTimeoutError,
}


def new_error(kind: FailureKind, message: str) -> RetryRouterError:
    """An error for an answer that came with status 200 and is not an answer."""
    return OPENAI_ERRORS[kind](message)


class TypedErrors:
    """A context that raises exceptions as the classes above.

    What no provider caused leaves it as it is.

    Args:
        resource: The resource that sends: its credentials must not be shown.
        unix_time: The seconds since the Unix epoch, to read an HTTP date with.
        response: The HTTP response, where it is known.

    Raises:
        RetryRouterError: A provider's failure.
        UnsupportedOptionError: The request holds text that cannot be encoded.
    """

    def __init__(
        self, resource: Any, unix_time: Callable[[], float], response: Any = None
    ) -> None:
        """Nothing has been raised yet."""
        self._resource = resource
        self._unix_time = unix_time
        self.response = response

    def __enter__(self) -> Self:
        """The context: its `response` can be set when it is known."""
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Raise the typed error for `error`, from `error`."""
        if not isinstance(error, Exception):
            return
        if isinstance(error, UnicodeEncodeError) and error.encoding.startswith("utf"):
            msg = (
                f"the request cannot be sent, since UTF-8 cannot encode it ({error})."
                " Remove such characters, halves of surrogate pairs, from the prompt"
            )
            raise errors.UnsupportedOptionError(msg) from error
        typed = self._typed(error)
        secrets: set[str] = getattr(
            getattr(self._resource, "settings", None), "secrets", set()
        )
        mask(secrets, error)
        if typed is not None and typed is not error:
            mask(secrets, typed)
            raise typed from error

    def _typed(self, error: Exception) -> RetryRouterError | None:
        # openai 2 wraps an error that was raised while the answer was read.
        is_wrapped = isinstance(error, openai.APIConnectionError)
        for ours in (error, error.__cause__ if is_wrapped else None):
            if isinstance(ours, RetryRouterError):
                if self.response is not None and safe_getattr(ours, "response") is None:
                    _add_headers(ours, self.response, self._unix_time())
                return ours
        report = read_exception(error, unix_time=self._unix_time())
        if report is None:
            return None
        cls = _BY_STATUS.get((report.status_code, report.kind))
        typed = report.to_error(OPENAI_ERRORS if cls is None else {report.kind: cls})
        for name in ("request", "response", "param", "type"):
            if (value := safe_getattr(error, name)) is not None:
                setattr(typed, name, value)
        return typed


def _add_headers(error: RetryRouterError, response: Any, unix_time: float) -> None:
    """Add what the headers say of an error that came inside a 200."""
    vars(error).update(response=response, request=response.request)
    report = read_response(
        response.status_code, response.headers, b"", unix_time=unix_time
    )
    for name in ("request_id", "retry_after", "should_retry"):
        if getattr(error, name) is None:
            setattr(error, name, getattr(report, name))
