"""The error tree as code written for the `openai` SDK knows it.

Each class is one of `langchain_retryrouter.errors` and the exception that the SDK, and
`langchain_openai`, raise in the same place, on openai 2 and 3. `response` and `request`
are the SDK's own, where there are any; a pickle leaves them out, since the request
carries the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

import openai

from langchain_retryrouter import errors
from langchain_retryrouter._core.failure import FailureKind

_Error = TypeVar("_Error", bound="_SDKFacts")


class _SDKFacts(errors.RetryRouterError):
    """What the SDK's exceptions carry beside the facts that all of ours have."""

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


def _sister(
    cls: type[errors.RetryRouterError], sdk: type[openai.APIStatusError]
) -> type[errors.RetryRouterError]:
    """`cls`, or a sister of it that the SDK's class for a status catches too."""
    if issubclass(cls, sdk):
        return cls
    name = cls.__name__.removesuffix("Error") + sdk.__name__
    namespace = {"__module__": __name__, "__doc__": cls.__doc__}
    sister = type(name, (cls, sdk), namespace)
    globals()[name] = sister  # A pickle finds a class by its name.
    return sister


# The kinds that the body of an answer can make of a status.
_SHARPER: Final = (
    FailureKind.AUTHENTICATION,
    FailureKind.NOT_FOUND,
    FailureKind.INVALID_REQUEST,
    FailureKind.CONTEXT_OVERFLOW,
    FailureKind.CONTENT_FILTER,
    FailureKind.QUOTA,
)

OPENAI_STATUS_ERRORS: Final[
    Mapping[tuple[int, FailureKind], type[errors.RetryRouterError]]
] = {
    **{
        (status, kind): _sister(OPENAI_ERRORS[kind], sdk)
        for status, sdk in (
            (400, openai.BadRequestError),
            (403, openai.PermissionDeniedError),
            (422, openai.UnprocessableEntityError),
        )
        for kind in _SHARPER
        if (status, kind) != (422, FailureKind.INVALID_REQUEST)
    },
    **dict.fromkeys(
        [(501, FailureKind.INVALID_REQUEST), (505, FailureKind.INVALID_REQUEST)],
        _sister(OpenAIInvalidRequestError, openai.InternalServerError),
    ),
    (408, FailureKind.TIMEOUT): OpenAIStatusTimeoutError,
    (422, FailureKind.INVALID_REQUEST): OpenAIUnprocessableEntityError,
    (504, FailureKind.TIMEOUT): OpenAIStatusTimeoutError,
}
"""Where a status has a class of its own in the SDK, and the answer means another.

An `except` clause for either catches it.
"""
