"""Everything that can go wrong, by what it means to the caller.

    ModelError                              LangChain's
    └── RetryRouterError                    facts: status_code, retry_after, attempts, …
        ├── AuthenticationError             401               ModelAuthenticationError
        ├── PermissionDeniedError           403              ModelPermissionDeniedError
        ├── NotFoundError                   404, unknown model       ModelNotFoundError
        ├── InvalidRequestError             400, 422, …         ModelInvalidRequestError
        │   ├── ContextLengthError          too many tokens       + ContextOverflowError
        │   └── ContentFilterError          refused by a content filter
        ├── RateLimitError              *   429                      ModelRateLimitError
        │   └── QuotaExceededError          429, money is out: waiting is no answer
        ├── ServerError                 *   5xx                            ModelAPIError
        │   ├── UnavailableError        *   503, 529
        │   ├── ConflictError           *   409
        │   └── MalformedResponseError  *   a 200 that is no answer
        ├── CircuitOpenError                nothing was sent               ModelAPIError
        ├── APITimeoutError             *   408, 504, silence          ModelTimeoutError
        └── APIConnectionError          *   no connection, or lost  ModelConnectionError
            └── StreamInterruptedError  *   a stream that ended without its end
    ValueError
    └── UnsupportedOptionError              an option that cannot be sent

`*` is repeated on the same route while the policy allows; `is_retryable` says so, and
is False on the instance that leaves after we gave up, so that nobody retries on top.
Where it is False the error counts as a `RuntimeError` besides, for LangGraph's sake.

Each class has a sister per SDK that inherits the SDK's own class too (`errors.openai`,
`errors.gpt_router`), so that an `except openai.RateLimitError:` goes on working. They
stand in modules of their own because importing them imports the SDK.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, ClassVar, Final, Self, TypeAlias

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
)

from langchain_retryrouter import _json
from langchain_retryrouter.failures import Failure, FailureKind

__all__ = [
    "APIConnectionError",
    "APITimeoutError",
    "AuthenticationError",
    "CircuitOpenError",
    "ConflictError",
    "ContentFilterError",
    "ContextLengthError",
    "InvalidRequestError",
    "MalformedResponseError",
    "NotFoundError",
    "PermissionDeniedError",
    "QuotaExceededError",
    "RateLimitError",
    "RetryRouterError",
    "ServerError",
    "StreamInterruptedError",
    "UnavailableError",
    "UnsupportedOptionError",
]


class RetryRouterError(ModelError):
    """A call to a model failed; the class says what it means, the attributes the facts.

    Attributes:
        message: What the provider, or we, said.
        status_code: The HTTP status, when there was an answer.
        retry_after: Seconds the server asked to be left alone, when it said so.
        should_retry: The server's own verdict (`x-should-retry`), when it gave one.
        request_id: The provider's id of the request, for a support case.
        code: The provider's machine-readable error code.
        body: The body of the answer, parsed where it was JSON.
        may_have_run: Whether the provider may have done, and charged, the work.
        route: The model that was asked, where the call knows it.
        attempts: Requests sent for the call until this error came out.
        delivered: Text that a stream had handed to the caller before it failed.
        others: What the other routes of the call said, where there were several.
    """

    kind: ClassVar[FailureKind] = FailureKind.SERVER_ERROR

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
        """With the message alone, or with any of the facts."""
        # Not `super().__init__`: the SDKs' classes beside us in the line ask for
        # arguments of their own, and all that they would set is set here.
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

    @property  # type: ignore[misc]  # nobody sets the class of an error
    def __class__(self) -> type[Self]:
        """Its class, which is a `RuntimeError` too where another try is of no use.

        LangGraph's `RetryPolicy` does not ask `is_retryable`. Unless it is told better,
        it repeats whatever is not, by `isinstance`, one of some errors of Python's own;
        this is the one among them that is true. To `except` and `type` nothing changes.
        """
        cls: type = type(self)
        return cls if self.is_retryable else _as_final(cls)

    @property
    def failure(self) -> Failure:
        """The error as data, to decide by."""
        return Failure(
            kind=self.kind,
            status_code=self.status_code,
            retry_after=self.retry_after,
            should_retry=self.should_retry,
            may_have_run=self.may_have_run,
        )


@cache
def _as_final(cls: type) -> type:
    """`cls` as an error that no retry would mend: never raised, only pointed to."""
    names = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls, RuntimeError), names)


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


class ContentFilterError(InvalidRequestError):
    """A content filter refused the prompt or the answer."""

    kind = FailureKind.CONTENT_FILTER


class RateLimitError(RetryRouterError, ModelRateLimitError):
    """Too many requests (429); `retry_after` says when to come back, if it was told."""

    kind = FailureKind.RATE_LIMIT


class QuotaExceededError(RateLimitError):
    """The quota is used up: a 429 that no waiting within a call will mend."""

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
    """An answer came, and was not one: not JSON, an HTML page, nothing at all."""

    kind = FailureKind.MALFORMED


class CircuitOpenError(RetryRouterError, ModelAPIError):
    """The circuit breaker is open, nothing was sent; come back after `retry_after`."""

    kind = FailureKind.CIRCUIT_OPEN
    is_retryable = False


class APITimeoutError(RetryRouterError, ModelTimeoutError):
    """No answer within the time that was given."""

    kind = FailureKind.TIMEOUT


class APIConnectionError(RetryRouterError, ModelConnectionError):
    """No connection to the provider, or it was lost; see `may_have_run`."""

    kind = FailureKind.CONNECTION


class StreamInterruptedError(APIConnectionError):
    """A stream ended without its protocol's end; `delivered` is what the caller has."""

    kind = FailureKind.INTERRUPTED


class UnsupportedOptionError(ValueError):
    """An option that cannot be sent, so that it would have been lost without a word."""


ErrorFamily: TypeAlias = Mapping[FailureKind, type[RetryRouterError]]
"""Which class to raise for which failure: ours, or its sister of an SDK."""

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
        CircuitOpenError,
        APITimeoutError,
        APIConnectionError,
        StreamInterruptedError,
    )
}


MASK: Final = "***"
SHORTEST_SECRET: Final = 8
"""A shorter key, such as the "EMPTY" of local servers, is no secret, and is found in
every other word."""
_CUT: Final = "…"
_SAID: Final = ("message", "body", "details")


class redact:
    """Within it, what leaves as an error of ours says none of these secrets."""

    def __init__(self, *secrets: str) -> None:
        """Of what is too short to be one, nothing is hidden."""
        self._secrets = {one for one in secrets if len(one) >= SHORTEST_SECRET}

    def __enter__(self) -> None:
        """Nothing has been said yet."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Hide them."""
        if isinstance(error, RetryRouterError):
            mask(self._secrets, error)


def mask(secrets: Iterable[str], error: BaseException | None) -> None:
    """Take `secrets` out of all that an error, and what led to it, says."""
    secrets = set(secrets)
    seen: set[int] = set()
    while secrets and error is not None and id(error) not in seen:
        seen.add(id(error))
        mask_one(error, lambda text: redact_text(secrets, text))
        error = error.__cause__ or error.__context__


def mask_one(error: BaseException, hide: Callable[[str], str]) -> None:
    """Let `hide` rewrite all that an error says, and nothing of what led to it."""
    error.args = tuple(_rewritten(_json.cut(told), hide) for told in error.args)
    for name in _SAID:
        if isinstance(told := vars(error).get(name), str | dict | list):
            setattr(error, name, _rewritten(_json.cut(told), hide))


def redact_text(secrets: Iterable[str], text: str) -> str:
    """`text`, with stars where it says one of `secrets`."""
    for secret in secrets:
        text = _redact_text(secret, text)
    return text


def _rewritten(value: Any, hide: Callable[[str], str]) -> Any:
    """`value`, text or JSON, with its texts as `hide` makes them."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {
            _rewritten(name, hide): _rewritten(item, hide)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_rewritten(item, hide) for item in value]
    return value


def _redact_text(secret: str, text: str) -> str:
    text = text.replace(secret, MASK)
    if _CUT in text:
        # An excerpt may have ended in the middle of it.
        for length in range(len(secret) - 1, SHORTEST_SECRET - 1, -1):
            text = text.replace(f"{secret[:length]}{_CUT}", f"{MASK}{_CUT}")
    return text
