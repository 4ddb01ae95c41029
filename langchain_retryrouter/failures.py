"""What went wrong, as plain data, and the table that says what a status means.

Everything about the *meaning* of a failure lives here. This file does not know which
SDK reported it, who will be told, or whether anybody will try again; it only knows
which failures another attempt on the same route could mend.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class FailureKind(StrEnum):
    """The meaning of a failure, whichever provider reported it."""

    RATE_LIMIT = "rate_limit"
    QUOTA = "quota"
    UNAVAILABLE = "unavailable"
    SERVER_ERROR = "server_error"
    CONFLICT = "conflict"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    INTERRUPTED = "interrupted"
    MALFORMED = "malformed"
    INVALID_REQUEST = "invalid_request"
    AUTHENTICATION = "authentication"
    PERMISSION = "permission"
    NOT_FOUND = "not_found"
    CONTEXT_OVERFLOW = "context_overflow"
    CONTENT_FILTER = "content_filter"
    CIRCUIT_OPEN = "circuit_open"


_RETRYABLE: Final = frozenset(
    {
        FailureKind.RATE_LIMIT,
        FailureKind.UNAVAILABLE,
        FailureKind.SERVER_ERROR,
        FailureKind.CONFLICT,
        FailureKind.TIMEOUT,
        FailureKind.CONNECTION,
        FailureKind.INTERRUPTED,
        FailureKind.MALFORMED,
    }
)

# What is wrong between one route and this request, and may be right on another.
_ROUTES_OWN: Final = frozenset(
    {
        FailureKind.AUTHENTICATION,
        FailureKind.PERMISSION,
        FailureKind.NOT_FOUND,
        FailureKind.QUOTA,
        FailureKind.CONTEXT_OVERFLOW,
    }
)

_BY_STATUS: Final = {
    401: FailureKind.AUTHENTICATION,
    402: FailureKind.QUOTA,
    403: FailureKind.PERMISSION,
    404: FailureKind.NOT_FOUND,
    408: FailureKind.TIMEOUT,
    409: FailureKind.CONFLICT,
    410: FailureKind.NOT_FOUND,
    425: FailureKind.UNAVAILABLE,
    429: FailureKind.RATE_LIMIT,
    # 501 and 505 say that the server will never do it.
    501: FailureKind.INVALID_REQUEST,
    503: FailureKind.UNAVAILABLE,
    504: FailureKind.TIMEOUT,
    505: FailureKind.INVALID_REQUEST,
    529: FailureKind.UNAVAILABLE,
}

_BY_CODE: Final = {
    "insufficient_quota": FailureKind.QUOTA,
    "billing_hard_limit_reached": FailureKind.QUOTA,
    "billing_not_active": FailureKind.QUOTA,
    "context_length_exceeded": FailureKind.CONTEXT_OVERFLOW,
    "string_above_max_length": FailureKind.CONTEXT_OVERFLOW,
    "content_filter": FailureKind.CONTENT_FILTER,
    "content_policy_violation": FailureKind.CONTENT_FILTER,
    "invalid_api_key": FailureKind.AUTHENTICATION,
    "model_not_found": FailureKind.NOT_FOUND,
    "rate_limit_exceeded": FailureKind.RATE_LIMIT,
    "server_error": FailureKind.SERVER_ERROR,
}

# Said by servers that put no machine-readable code beside the sentence.
_BY_PHRASE: Final = (
    ("maximum context length", FailureKind.CONTEXT_OVERFLOW),
    ("exceeds the context window", FailureKind.CONTEXT_OVERFLOW),
    ("input tokens exceed the configured limit", FailureKind.CONTEXT_OVERFLOW),
    ("prompt is too long", FailureKind.CONTEXT_OVERFLOW),
    ("contextwindowexceedederror", FailureKind.CONTEXT_OVERFLOW),
    # Anthropic's, Bedrock's, Google's.
    ("`max_tokens` exceed context limit", FailureKind.CONTEXT_OVERFLOW),
    ("input is too long for requested model", FailureKind.CONTEXT_OVERFLOW),
    ("exceeds the maximum number of tokens allowed", FailureKind.CONTEXT_OVERFLOW),
    ("exceeded your current quota", FailureKind.QUOTA),
    ("credit balance is too low", FailureKind.QUOTA),
    ("content management policy", FailureKind.CONTENT_FILTER),
    ("blocked by content filtering policy", FailureKind.CONTENT_FILTER),
    ("contentpolicyviolationerror", FailureKind.CONTENT_FILTER),
    ("invalid model name passed", FailureKind.NOT_FOUND),
)

# A phrase or code may sharpen what these statuses say; it never overrules a 401 or 404.
_SHARPENED_BY_TEXT: Final = frozenset({None, 400, 403, 413, 422, 429})

_REDIRECT: Final = 300
_SERVER_ERROR: Final = 500
_END_OF_STATUSES: Final = 600


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt.

    Attributes:
        kind: What the failure means.
        status_code: The HTTP status, when there was an answer.
        retry_after: Seconds the server asked to be left alone, when it said so.
        should_retry: The server's own verdict (`x-should-retry`), when it gave one.
        may_have_run: Whether the provider may have done (and charged) the work.
    """

    kind: FailureKind
    status_code: int | None = None
    retry_after: float | None = None
    should_retry: bool | None = None
    may_have_run: bool = True

    @property
    def is_retryable(self) -> bool:
        """Whether the same request on the same route may succeed later."""
        if not is_retryable(self.kind):
            # `x-should-retry: true` cannot make a wrong request right.
            return False
        return self.should_retry is not False


def is_retryable(kind: FailureKind) -> bool:
    """Whether another attempt on the same route could mend a failure of this kind."""
    return kind in _RETRYABLE


def is_routes_own(kind: FailureKind) -> bool:
    """Whether a failure that is final on its route says nothing about other routes."""
    return kind in _ROUTES_OWN


def classify(
    status_code: int | None, code: str | None = None, message: str = ""
) -> FailureKind:
    """The meaning of an HTTP status, sharpened by what the body says.

    Args:
        status_code: The HTTP status; None for an error reported inside a stream.
        code: The provider's machine-readable error code, such as
            `insufficient_quota`.
        message: The provider's sentence, read where the code says nothing we know.
    """
    if status_code in _SHARPENED_BY_TEXT:
        told = _BY_CODE.get(code) if code else None
        told = told or _by_phrase(message)
        if told is not None and _may_sharpen(status_code, told):
            return told
    if status_code is None:
        return FailureKind.SERVER_ERROR
    return _by_status(status_code)


def _may_sharpen(status_code: int | None, told: FailureKind) -> bool:
    # A 429 is either a rate limit or an empty purse; a 4xx is never a server error.
    if status_code == 429:  # noqa: PLR2004 - the status is its own best name
        return told is FailureKind.QUOTA
    return status_code is None or not is_retryable(told)


def _by_phrase(message: str) -> FailureKind | None:
    lowered = message.lower()
    return next((kind for phrase, kind in _BY_PHRASE if phrase in lowered), None)


def _by_status(status_code: int) -> FailureKind:
    known = _BY_STATUS.get(status_code)
    if known is not None:
        return known
    if _REDIRECT <= status_code < _SERVER_ERROR:
        # A redirect is never followed, since it would take the key to another host:
        # it says that the address is wrong, and will be next time.
        return FailureKind.INVALID_REQUEST
    if _SERVER_ERROR <= status_code < _END_OF_STATUSES:
        return FailureKind.SERVER_ERROR
    # 1xx, an unexpected 2xx, or no HTTP status at all.
    return FailureKind.MALFORMED
