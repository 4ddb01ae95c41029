"""The gateway's errors: ours, and at the same time those of the `gptrouter` package.

Each class is one of `langchain_retryrouter.errors` and the exception that the SDK's
client raises in the same place, so that `except` clauses written for either catch it.
"""

from __future__ import annotations

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
        errors.ConflictError,  # The SDK has no class for it.
        GPTRouterMalformedResponseError,
        GPTRouterTimeoutError,
        GPTRouterCircuitOpenError,
        GPTRouterConnectionError,
        GPTRouterStreamInterruptedError,
    )
}


_BY_SDK_CLASS: Final = {
    exceptions.GPTRouterStreamingError: FailureKind.SERVER_ERROR,
    exceptions.GPTRouterBadRequestError: FailureKind.INVALID_REQUEST,
    exceptions.GPTRouterNotAvailableError: FailureKind.UNAVAILABLE,
    exceptions.GPTRouterUnauthorizedError: FailureKind.AUTHENTICATION,
    exceptions.GPTRouterForbiddenError: FailureKind.PERMISSION,
    exceptions.GPTRouterInternalServerError: FailureKind.SERVER_ERROR,
    exceptions.GPTRouterTooManyRequestsError: FailureKind.RATE_LIMIT,
    exceptions.GPTRouterApiTimeoutError: FailureKind.TIMEOUT,
}


def read_sdk_error(error: Exception) -> errors.RetryRouterError | None:
    """An exception of the SDK's own client as one of ours; None if it is not."""
    for cls, kind in _BY_SDK_CLASS.items():
        if isinstance(error, cls):
            return GPT_ROUTER_ERRORS[kind](str(error))
    return None
