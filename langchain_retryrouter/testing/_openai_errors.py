"""What OpenAI and Azure say when they do not answer.

Pure. Error bodies for every status, errors inside a stream, and the requests that are
turned down before a script is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._reply import JSON_HEADERS, Pairs, Whole, compact_json, sse
from .steps import Status, Step

if TYPE_CHECKING:
    from .recorded_request import RecordedRequest


@dataclass(frozen=True, slots=True)
class _Kind:
    type: str
    code: str | None
    message: str


_SERVER_ERROR = _Kind(
    "server_error", None, "The server had an error while processing your request."
)
_OTHER_ERROR = _Kind("invalid_request_error", None, "The request was turned down.")
_KINDS: dict[int, _Kind] = {
    401: _Kind(
        "invalid_request_error", "invalid_api_key", "Incorrect API key provided."
    ),
    404: _Kind("invalid_request_error", "model_not_found", "The model does not exist."),
    429: _Kind("requests", "rate_limit_exceeded", "Rate limit reached for requests."),
    500: _SERVER_ERROR,
    503: _Kind(
        "server_error",
        None,
        "The engine is currently overloaded, please try again later.",
    ),
}
_AZURE_KINDS: dict[int, _Kind] = {
    401: _Kind(
        "",
        "401",
        "Access denied due to invalid subscription key or wrong API endpoint.",
    ),
    404: _Kind("", "404", "Resource not found"),
    429: _Kind(
        "",
        "429",
        "Requests have exceeded the call rate limit of your current pricing tier.",
    ),
}
_TYPES_BY_CODE = {"insufficient_quota": "insufficient_quota"}
_LEAST_SERVER_ERROR = 500


def headers_of(request: RecordedRequest) -> Pairs:
    """The header fields by which a provider's support finds a request."""
    name = "apim-request-id" if request.deployment else "x-request-id"
    return ((name, f"req_{request.number:06d}"),)


def error(
    request: RecordedRequest, status: int, code: str | None, message: str | None
) -> Whole:
    """The reply for this status: OpenAI's body, or Azure's, which has no type."""
    body = (
        _azure_error(status, code, message)
        if request.deployment
        else _error(status, code, message)
    )
    return Whole(
        status, JSON_HEADERS + headers_of(request), compact_json({"error": body})
    )


def unstreamed_error(
    request: RecordedRequest, message: str, status: int | None, code: str | None
) -> Whole:
    """The error as a status, which is where it belongs when nothing is streamed."""
    return error(request, status or _LEAST_SERVER_ERROR, code, message)


def error_event(message: str, status: int | None, code: str | None) -> bytes:
    """The event that ends a stream that fails; no `[DONE]` comes after it."""
    return sse({"error": _error(status or _LEAST_SERVER_ERROR, code, message)})


def error_in_ok(message: str, code: str | None) -> bytes:
    """The body of an error that comes with status 200."""
    return compact_json({"error": _error(_LEAST_SERVER_ERROR, code, message)})


def _error(status: int, code: str | None, message: str | None) -> dict[str, Any]:
    kind = _KINDS.get(
        status, _SERVER_ERROR if status >= _LEAST_SERVER_ERROR else _OTHER_ERROR
    )
    return {
        "message": message or kind.message,
        "type": _TYPES_BY_CODE.get(code or "", kind.type),
        "param": None,
        "code": code or kind.code,
    }


def _azure_error(status: int, code: str | None, message: str | None) -> dict[str, Any]:
    kind = _AZURE_KINDS.get(status, _Kind("", str(status), _SERVER_ERROR.message))
    return {"code": code or kind.code, "message": message or kind.message}


def unknown_path(request: RecordedRequest) -> Step:
    """What is said to a path or a method that does not exist."""
    return Status(
        404,
        message=f"Invalid URL ({request.method} {request.path})",
        error_code="unknown_url",
    )


def is_authorized(request: RecordedRequest, api_key: str) -> bool:
    """Whether `request` carries the key; Azure has a header of its own for it."""
    headers = request.headers
    if headers.get("authorization") == f"Bearer {api_key}":
        return True
    return request.deployment is not None and headers.get("api-key") == api_key


def refusal(request: RecordedRequest) -> Step | None:
    """How `request` is turned down; None when it is as it should be."""
    if request.deployment and "api-version=" not in request.query:
        # Azure answers 404, not 400, to a call that does not say its version.
        return Status(404)
    if not request.payload:
        message = "We could not parse the JSON body of your request."
    elif request.model is None:
        message = "you must provide a model parameter"
    elif request.endpoint == "chat" and not isinstance(
        request.payload.get("messages"), list
    ):
        message = "Missing required parameter: 'messages'."
    else:
        return None
    return Status(400, message=message)
