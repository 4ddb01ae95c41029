"""The error tree as code written for the `gptrouter` package knows it.

Each class is one of `langchain_retryrouter.errors` and the exception that
`gpt_router.client` raises in the same place. An error reported inside a stream is a
`GPTRouterStreamingError` as well, since that is what the SDK makes of all of them.
"""

from __future__ import annotations

from typing import Final

from gpt_router import exceptions

from langchain_retryrouter import errors
from langchain_retryrouter._core.failure import FailureKind


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


def _in_stream(cls: type[errors.RetryRouterError]) -> type[errors.RetryRouterError]:
    """A sister of `cls` that `except GPTRouterStreamingError` catches too."""
    if issubclass(cls, exceptions.GPTRouterStreamingError):
        return cls
    name = cls.__name__.replace("GPTRouter", "GPTRouterStream", 1)
    namespace = {"__module__": __name__, "__doc__": cls.__doc__}
    sister = type(name, (cls, exceptions.GPTRouterStreamingError), namespace)
    globals()[name] = sister  # A pickle finds a class by its name.
    return sister


GPT_ROUTER_STREAM_ERRORS: Final[errors.ErrorFamily] = {
    kind: _in_stream(cls)
    for kind, cls in GPT_ROUTER_ERRORS.items()
    if kind is not FailureKind.CIRCUIT_OPEN
}
