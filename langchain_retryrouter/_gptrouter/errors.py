"""The error tree as code written for the `gptrouter` package knows it.

Each class is one of `langchain_retryrouter.errors` and the exception that
`gpt_router.client` raises in the same place. An error reported inside a stream is a
`GPTRouterStreamingError` as well, since that is what the SDK makes of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gpt_router import exceptions

from langchain_retryrouter import errors
from langchain_retryrouter.failures import FailureKind


class GPTRouterAuthenticationError(
    errors.AuthenticationError, exceptions.GPTRouterUnauthorizedError
):
    """The gateway does not accept the key (401)."""


class GPTRouterPermissionDeniedError(
    errors.PermissionDeniedError, exceptions.GPTRouterForbiddenError
):
    """The key is not allowed to do this (403)."""


class GPTRouterNotFoundError(errors.NotFoundError):
    """The gateway knows no such model, provider or endpoint."""


class GPTRouterInvalidRequestError(
    errors.InvalidRequestError, exceptions.GPTRouterBadRequestError
):
    """The gateway or the provider finds fault with the request (400, 422)."""


class GPTRouterContextLengthError(
    errors.ContextLengthError, exceptions.GPTRouterBadRequestError
):
    """Prompt and answer do not fit into the model's context."""


class GPTRouterContentFilterError(
    errors.ContentFilterError, exceptions.GPTRouterBadRequestError
):
    """The provider's content filter refused."""


class GPTRouterRateLimitError(
    errors.RateLimitError, exceptions.GPTRouterTooManyRequestsError
):
    """The gateway or the provider asks for fewer requests (429)."""


class GPTRouterQuotaExceededError(
    errors.QuotaExceededError, exceptions.GPTRouterTooManyRequestsError
):
    """The quota is used up."""


class GPTRouterServerError(errors.ServerError, exceptions.GPTRouterInternalServerError):
    """The gateway or the provider failed (5xx)."""


class GPTRouterUnavailableError(
    errors.UnavailableError, exceptions.GPTRouterNotAvailableError
):
    """The gateway, or every model of the list, is unavailable (503, 406)."""


class GPTRouterConflictError(errors.ConflictError):
    """Another request was in the way (409)."""


class GPTRouterMalformedResponseError(
    errors.MalformedResponseError, exceptions.GPTRouterInternalServerError
):
    """What came is not the gateway's protocol."""


class GPTRouterTimeoutError(
    errors.APITimeoutError, exceptions.GPTRouterApiTimeoutError
):
    """No answer in time."""


class GPTRouterCircuitOpenError(
    errors.CircuitOpenError, exceptions.GPTRouterNotAvailableError
):
    """The circuit breaker is open: nothing was sent."""


class GPTRouterConnectionError(errors.APIConnectionError):
    """No connection to the gateway, or it was lost."""


class GPTRouterStreamInterruptedError(
    errors.StreamInterruptedError, exceptions.GPTRouterStreamingError
):
    """The stream ended without the gateway's `end` event."""


GPT_ROUTER_ERRORS: Final[errors.ErrorFamily] = {
    cls.kind: cls
    for cls in (
        GPTRouterAuthenticationError,
        GPTRouterPermissionDeniedError,
        GPTRouterNotFoundError,
        GPTRouterInvalidRequestError,
        GPTRouterContextLengthError,
        GPTRouterContentFilterError,
        GPTRouterRateLimitError,
        GPTRouterQuotaExceededError,
        GPTRouterServerError,
        GPTRouterUnavailableError,
        GPTRouterConflictError,
        GPTRouterMalformedResponseError,
        GPTRouterTimeoutError,
        GPTRouterCircuitOpenError,
        GPTRouterConnectionError,
        GPTRouterStreamInterruptedError,
    )
}


def _gpt_router_error(
    cls: type[errors.RetryRouterError], name: str, sdk: type[Exception]
) -> type[errors.RetryRouterError]:
    """`cls`, or a sister of it that an `except` clause for `sdk` catches too."""
    if issubclass(cls, sdk):
        return cls
    namespace = {"__module__": __name__, "__doc__": cls.__doc__}
    sister = type(name, (cls, sdk), namespace)
    globals()[name] = sister  # A pickle finds a class by its name.
    return sister


GPT_ROUTER_STREAM_ERRORS: Final[errors.ErrorFamily] = {
    kind: _gpt_router_error(
        cls,
        cls.__name__.replace("GPTRouter", "GPTRouterStream", 1),
        exceptions.GPTRouterStreamingError,
    )
    for kind, cls in GPT_ROUTER_ERRORS.items()
    if kind is not FailureKind.CIRCUIT_OPEN
}

GPT_ROUTER_STATUS_ERRORS: Final[
    Mapping[tuple[int, FailureKind], type[errors.RetryRouterError]]
] = {
    (status, kind): _gpt_router_error(
        GPT_ROUTER_ERRORS[kind],
        GPT_ROUTER_ERRORS[kind].__name__.removesuffix("Error") + name,
        sdk,
    )
    for status, name, sdk in (
        (400, "BadRequestError", exceptions.GPTRouterBadRequestError),
        (403, "ForbiddenError", exceptions.GPTRouterForbiddenError),
    )
    for kind in (
        FailureKind.AUTHENTICATION,
        FailureKind.NOT_FOUND,
        FailureKind.CONTEXT_OVERFLOW,
        FailureKind.CONTENT_FILTER,
        FailureKind.QUOTA,
    )
}
"""Where a status has a class of its own in the SDK, and the answer means another."""
