"""The gateway's errors: ours, and at the same time those of the `gptrouter` package.

Each class is one of `langchain_retryrouter.errors` and the exception that the SDK's
client raises in the same place, so that `except` clauses written for either catch it.
Where the SDK has none, as for a lost connection, it is ours.
"""

from __future__ import annotations

from typing import Final

from gpt_router import exceptions

from langchain_retryrouter import errors
from langchain_retryrouter.failures import FailureKind

_SDK_CLASSES: Final[dict[type[errors.RetryRouterError], type[Exception]]] = {
    errors.AuthenticationError: exceptions.GPTRouterUnauthorizedError,
    errors.PermissionDeniedError: exceptions.GPTRouterForbiddenError,
    errors.InvalidRequestError: exceptions.GPTRouterBadRequestError,
    errors.ContextLengthError: exceptions.GPTRouterBadRequestError,
    errors.ContentFilterError: exceptions.GPTRouterBadRequestError,
    errors.RateLimitError: exceptions.GPTRouterTooManyRequestsError,
    errors.QuotaExceededError: exceptions.GPTRouterTooManyRequestsError,
    errors.ServerError: exceptions.GPTRouterInternalServerError,
    errors.UnavailableError: exceptions.GPTRouterNotAvailableError,
    errors.MalformedResponseError: exceptions.GPTRouterInternalServerError,
    errors.APITimeoutError: exceptions.GPTRouterApiTimeoutError,
    errors.CircuitOpenError: exceptions.GPTRouterNotAvailableError,
    errors.StreamInterruptedError: exceptions.GPTRouterStreamingError,
}
SDK_KINDS: Final = {
    # Of several kinds with one class of the SDK, the first.
    **{theirs: ours.kind for ours, theirs in reversed(_SDK_CLASSES.items())},
    exceptions.GPTRouterStreamingError: FailureKind.SERVER_ERROR,
}
"""What the exceptions of the SDK's own client mean."""

GPT_ROUTER_ERRORS: Final[errors.ErrorFamily] = {
    **errors.BASE_ERRORS,
    **{
        ours.kind: errors.sdk_error(globals(), "GPTRouter", ours, theirs)
        for ours, theirs in _SDK_CLASSES.items()
    },
}
