"""The gateway's errors: an `error` event or a status other than 200, by their meaning.

Pure. A stream is told the cause in words, some of which are known here; without
streaming the public gateway hides most causes behind one opaque 500.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from langchain_retryrouter import _json
from langchain_retryrouter._core.failure import FailureKind, classify
from langchain_retryrouter._core.retry_after import ServerAdvice
from langchain_retryrouter.errors import RetryRouterError
from langchain_retryrouter.errors.gpt_router import (
    GPT_ROUTER_ERRORS,
    GPT_ROUTER_STATUS_ERRORS,
    GPT_ROUTER_STREAM_ERRORS,
)

# Said by the public gateway in `error` events. Compared in lower case.
_KNOWN_TEXTS: Final = (
    (re.compile(r"^request timed out"), FailureKind.TIMEOUT),
    (re.compile(r"^connection error"), FailureKind.CONNECTION),
    (
        re.compile(r"^(premature close|read econnreset|terminated)"),
        FailureKind.INTERRUPTED,
    ),
    (
        re.compile(r"^(provider|model) with (name|id) .* does not exist"),
        FailureKind.NOT_FOUND,
    ),
    (re.compile(r"^no models available"), FailureKind.UNAVAILABLE),
    (re.compile(r'^\[\s*\{.*"path"', re.DOTALL), FailureKind.INVALID_REQUEST),
)
_LEADING_STATUS: Final = re.compile(r"^([1-5]\d\d)\b")
_NOT_ACCEPTABLE: Final = 406


def read_stream_error(event: Mapping[str, Any]) -> RetryRouterError:
    """The error that an `error` event reports, classed by what its message says."""
    message = event.get("message")
    if not isinstance(message, str):
        message = "the gateway reported an error without a message"
    status = _LEADING_STATUS.match(message)
    status_code = int(status[1]) if status else None
    kind = _by_known_text(message) or classify(status_code, None, message)
    return GPT_ROUTER_STREAM_ERRORS[kind](
        message, status_code=status_code, body=dict(event)
    )


def _by_known_text(message: str) -> FailureKind | None:
    lowered = message.lower()
    return next((kind for text, kind in _KNOWN_TEXTS if text.match(lowered)), None)


def read_status_error(
    status_code: int, body: bytes, advice: ServerAdvice, request_id: str | None
) -> RetryRouterError:
    """The error that an answer other than 200 stands for."""
    data = json_or_none(body)
    message = _told(data) or excerpt(body) or "no body"
    kind = classify(status_code, _code(data), message)
    if status_code == _NOT_ACCEPTABLE:
        # The SDK's own reading of a 406: no model of the list is available.
        kind = FailureKind.UNAVAILABLE
    cls = GPT_ROUTER_STATUS_ERRORS.get((status_code, kind), GPT_ROUTER_ERRORS[kind])
    return cls(
        f"{status_code}: {message}",
        status_code=status_code,
        retry_after=advice.retry_after,
        should_retry=advice.should_retry,
        request_id=request_id,
        code=_code(data),
        body=data if data is not None else excerpt(body),
    )


_UNKNOWN_NAME: Final = re.compile(
    r"^(?:[1-5]\d\d:? )?"  # The status of an answer leads its message.
    r"(?:provider|model) with (?:name|id) (?P<name>.+) does not exist",
    re.IGNORECASE,
)


def unknown_name(error: RetryRouterError) -> str | None:
    """The model or provider that the gateway says it does not know; None if neither."""
    told = _UNKNOWN_NAME.match(error.message)
    return told["name"] if told else None


def is_opaque(error: RetryRouterError) -> bool:
    """Whether the gateway hid the cause, which it would have told a stream."""
    return error.status_code == 500 and error.body == {"error": "Something went wrong"}  # noqa: PLR2004


def _told(data: Any) -> str:
    if not isinstance(data, dict):
        return ""
    nested = data.get("error")
    told = data.get("message") or (
        nested.get("message") if isinstance(nested, dict) else nested
    )
    return told if isinstance(told, str) else ""


def _code(data: Any) -> str | None:
    nested = data.get("error") if isinstance(data, dict) else None
    code = nested.get("code") if isinstance(nested, dict) else None
    return code if isinstance(code, str) else None


def json_or_none(body: bytes) -> Any:
    """What `body` says; None if it is no JSON."""
    try:
        return _json.read_quickly(body)
    except ValueError:
        return None


def excerpt(body: bytes, length: int = 200) -> str:
    """How `body` begins, as text."""
    text = body[: 4 * length].decode("utf-8", "replace").strip()
    return text if len(text) <= length else f"{text[:length]}…"
