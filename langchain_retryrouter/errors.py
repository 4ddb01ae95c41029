"""All exceptions of this package, by what they mean to the caller.

    ModelError                              LangChain's
    └── RetryRouterError                    also a RuntimeError; facts as attributes
        ├── AuthenticationError             401               ModelAuthenticationError
        ├── PermissionDeniedError           403              ModelPermissionDeniedError
        ├── NotFoundError                   404, unknown model       ModelNotFoundError
        ├── InvalidRequestError             400, 422, …         ModelInvalidRequestError
        │   ├── ContextLengthError          too many tokens       + ContextOverflowError
        │   ├── VectorSpaceError            vectors of another model
        │   └── ContentFilterError          refused by a filter      + ModelRefusalError
        ├── RateLimitError              *   429                      ModelRateLimitError
        │   └── QuotaExceededError          the quota or the money is used up
        ├── ServerError                 *   5xx                            ModelAPIError
        │   ├── UnavailableError        *   503, 529
        │   ├── ConflictError           *   409
        │   └── MalformedResponseError  *   a 200 that is not an answer
        ├── CircuitOpenError                nothing was sent               ModelAPIError
        ├── SpendLimitError                 nothing was sent: too expensive
        ├── RejectedAnswerError         *   not accepted         OutputParserException
        ├── LengthLimitError                cut by a token limit, if that is a failure
        ├── APITimeoutError             *   408, 504, silence          ModelTimeoutError
        ├── APIConnectionError          *   no connection, or lost  ModelConnectionError
        │   └── StreamInterruptedError  *   a stream that ended without its end
        └── UnknownError                    an integration's error that says nothing
    ValueError
    └── UnsupportedOptionError              an option that cannot be sent

`*` is repeated on the same route while the policy allows. `is_retryable` says so, and
is False on the instance that leaves after we gave up, so that LangChain does not retry
on top of us. For the same reason all are a `RuntimeError`, which LangGraph's default
`RetryPolicy` does not repeat. `should_retry` is for graphs that shall retry.

`_gptrouter/protocol.py` and `_openai/errors.py` have a subclass of each that inherits
the class of the SDK too, so that `except openai.RateLimitError:` goes on working. They
are not here, since importing them imports the SDK.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

from langchain_core.exceptions import (
    ContextOverflowError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    ModelPermissionDeniedError,
    ModelRateLimitError,
    ModelTimeoutError,
    OutputParserException,
)

from langchain_retryrouter.failures import Failure, FailureKind

if TYPE_CHECKING:
    from langchain_core.exceptions import ModelRefusalError
    from langchain_core.messages import BaseMessage
else:
    try:
        from langchain_core.exceptions import ModelRefusalError
    except ImportError:  # Before langchain-core 1.7.5.
        ModelRefusalError = ModelError

__all__ = [
    "APIConnectionError",
    "APITimeoutError",
    "AuthenticationError",
    "CircuitOpenError",
    "ConflictError",
    "ContentFilterError",
    "ContextLengthError",
    "InvalidRequestError",
    "LengthLimitError",
    "MalformedResponseError",
    "NotFoundError",
    "PermissionDeniedError",
    "QuotaExceededError",
    "RateLimitError",
    "RejectedAnswerError",
    "RetryRouterError",
    "ServerError",
    "SpendLimitError",
    "StreamInterruptedError",
    "UnavailableError",
    "UnknownError",
    "UnsupportedOptionError",
    "VectorSpaceError",
    "should_retry",
]


class RetryRouterError(ModelError, RuntimeError):
    """A call to a model failed: the class says why, the attributes have the facts.

    Attributes:
        message: The provider's sentence, or ours.
        status_code: The HTTP status, when there was an answer.
        retry_after: Seconds that the server asks to wait, if it does.
        should_retry: What `x-should-retry` says, if the server sent it.
        request_id: The provider's id of the request, for a support case.
        code: The provider's machine-readable error code.
        body: The body of the answer, parsed where it was JSON.
        may_have_run: Whether a provider may have done, and charged, the work in any
            attempt of the call.
        route: The name of the model or route that was asked, if known.
        attempts: Requests that were sent for the call.
        delivered: Text that the caller had received when a stream failed.
        others: The errors of the other attempts of the call, in their order.
        raw_message: The answer that was rejected or cut, if there is one.
        attempt_log: All attempts of the call, as in the `response_metadata` of an
            answer; None before the call has ended. `AttemptLog` reads it.
    """

    kind: ClassVar[FailureKind] = FailureKind.SERVER_ERROR
    raw_message: BaseMessage | None = None

    def __init__(
        self,
        message: str,
        *,
        status_code: int | None = None,
        retry_after: float | None = None,
        should_retry: bool | None = None,
        request_id: str | None = None,
        code: str | None = None,
        body: Any = None,
        may_have_run: bool = True,
    ) -> None:
        """An error with its message and the facts that are known."""
        # Not `super().__init__`: the SDK's class asks for arguments of its own, and
        # everything that it would set is set here.
        Exception.__init__(self, message)
        self.message = message
        self.status_code = status_code
        self.retry_after = retry_after
        self.should_retry = should_retry
        self.request_id = request_id
        self.code = code
        self.body = body
        self.may_have_run = may_have_run
        self.route: str | None = None
        self.attempts = 1
        self.delivered = ""
        self.others: tuple[RetryRouterError, ...] = ()
        self.attempt_log: dict[str, Any] | None = None

    @property
    def failure(self) -> Failure:
        """The error as data for retry decisions."""
        return Failure(
            kind=self.kind,
            status_code=self.status_code,
            retry_after=self.retry_after,
            should_retry=self.should_retry,
            may_have_run=self.may_have_run,
        )


class AuthenticationError(RetryRouterError, ModelAuthenticationError):
    """The key was missing or wrong (401)."""

    kind = FailureKind.AUTHENTICATION


class PermissionDeniedError(RetryRouterError, ModelPermissionDeniedError):
    """The key is not allowed to do this (403)."""

    kind = FailureKind.PERMISSION


class NotFoundError(RetryRouterError, ModelNotFoundError):
    """There is no such model or endpoint (404)."""

    kind = FailureKind.NOT_FOUND


class InvalidRequestError(RetryRouterError, ModelInvalidRequestError):
    """The request was wrong and will be wrong next time (400, 422)."""

    kind = FailureKind.INVALID_REQUEST


class ContextLengthError(InvalidRequestError, ContextOverflowError):
    """Prompt and answer do not fit into the model's context."""

    kind = FailureKind.CONTEXT_OVERFLOW


class ContentFilterError(InvalidRequestError, ModelRefusalError):
    """A content filter refused the prompt or the answer."""

    kind = FailureKind.CONTENT_FILTER


class VectorSpaceError(InvalidRequestError):
    """A route of an `EmbeddingsRouter` answers with vectors of another length."""


class RateLimitError(RetryRouterError, ModelRateLimitError):
    """Too many requests (429); `retry_after` says how long to wait, if known."""

    kind = FailureKind.RATE_LIMIT


class QuotaExceededError(RateLimitError):
    """The quota or the money is used up: waiting within a call does not help."""

    kind = FailureKind.QUOTA
    is_retryable = False


class ServerError(RetryRouterError, ModelAPIError):
    """The provider failed (5xx)."""

    kind = FailureKind.SERVER_ERROR


class UnavailableError(ServerError):
    """The provider is overloaded or down for now (503, 529)."""

    kind = FailureKind.UNAVAILABLE


class ConflictError(ServerError):
    """Another request was in the way (409)."""

    kind = FailureKind.CONFLICT


class MalformedResponseError(ServerError):
    """A 200 came that is not an answer: not JSON, an HTML page, or empty."""

    kind = FailureKind.MALFORMED


class RejectedAnswerError(RetryRouterError, OutputParserException):
    """An answer came that does not fit its schema, or that `accept` rejected."""

    kind = FailureKind.REJECTED
    is_retryable = True
    llm_output = observation = None
    send_to_llm = False


class LengthLimitError(RetryRouterError):
    """A token limit cut the answer: a tool call, or any if `failover_on` names it."""

    kind = FailureKind.LENGTH


class CircuitOpenError(RetryRouterError, ModelAPIError):
    """The circuit breaker is open: nothing was sent; try again after `retry_after`."""

    kind = FailureKind.CIRCUIT_OPEN
    is_retryable = False


class SpendLimitError(RetryRouterError):
    """Too expensive: nothing was sent. `retry_after` is when a `SpendLimit` resets."""

    kind = FailureKind.SPEND_LIMIT
    is_retryable = False


class APITimeoutError(RetryRouterError, ModelTimeoutError):
    """No answer within the time limit."""

    kind = FailureKind.TIMEOUT


class APIConnectionError(RetryRouterError, ModelConnectionError):
    """No connection to the provider, or a lost one; see `may_have_run`."""

    kind = FailureKind.CONNECTION


class StreamInterruptedError(APIConnectionError):
    """A stream ended without its end; `delivered` is the text that arrived."""

    kind = FailureKind.INTERRUPTED


class UnknownError(RetryRouterError):
    """An integration raised an error that says nothing about the provider.

    The original is the `__cause__`. A router goes on to its next route.
    """

    kind = FailureKind.UNKNOWN


class UnsupportedOptionError(ValueError):
    """An option that cannot be sent to this model."""


def should_retry(error: BaseException) -> bool:
    """Whether the same call may succeed if it is repeated.

    For graphs whose models do not retry themselves (`max_retries=0`), so that LangGraph
    does: `RetryPolicy(retry_on=langchain_retryrouter.should_retry)`.

    Args:
        error: Any exception that a node raised.

    Returns:
        For errors of this package and of LangChain's `ModelError` tree: whether they
            are transient, and the server did not forbid a retry. For Python's own
            `ConnectionError` and `TimeoutError`: True. For all others: False.
    """
    if isinstance(error, RetryRouterError):
        return error.is_retryable and error.should_retry is not False
    if isinstance(error, ModelError):
        return error.is_retryable
    return isinstance(error, ConnectionError | TimeoutError)


ErrorFamily: TypeAlias = Mapping[FailureKind, type[RetryRouterError]]
"""The class for each kind of failure: ours, or its subclass for an SDK."""

BASE_ERRORS: Final[ErrorFamily] = {
    cls.kind: cls
    for cls in (
        AuthenticationError,
        PermissionDeniedError,
        NotFoundError,
        InvalidRequestError,
        ContextLengthError,
        ContentFilterError,
        RateLimitError,
        QuotaExceededError,
        ServerError,
        UnavailableError,
        ConflictError,
        MalformedResponseError,
        RejectedAnswerError,
        LengthLimitError,
        CircuitOpenError,
        SpendLimitError,
        APITimeoutError,
        APIConnectionError,
        StreamInterruptedError,
        UnknownError,
    )
}


def sdk_error(
    namespace: dict[str, Any],
    prefix: str,
    ours: type[RetryRouterError],
    *others: type[Any],
    name: str = "",
) -> type[RetryRouterError]:
    """A class that is ours and an SDK's, such as `OpenAIRateLimitError`.

    It is put into the namespace of its module, where pickle finds it.
    """
    name = f"{prefix}{name or ours.__name__.removeprefix('API')}"
    facts = {"__doc__": ours.__doc__, "__module__": namespace["__name__"]}
    made: type[RetryRouterError] = type(name, (ours, *others), facts)
    namespace[name] = made
    return made
