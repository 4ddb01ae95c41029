"""The requests that GPTRouter turns down by itself, and what it says to each.

Pure. All found on the real server: whatever is wrong with the shape of a request, the
answer is one opaque 500, never a 400.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._gptrouter_embeddings import shape_refusal
from ._reply import compact_json
from .steps import ErrorEvent, Status, Step

if TYPE_CHECKING:
    from .recorded_request import RecordedRequest

_BODY_LIMIT = 1024 * 1024
_ROLES = {"system", "user", "assistant", "function", "tool"}
_RESPONSE_FORMATS = {
    "public": {"text", "json_object"},
    "hosted": {"text", "json_object", "json_schema"},
}

_NO_MESSAGES = [
    {"path": "/messages", "message": "Expected array"},
    {"path": "/messages", "message": "Expected required property"},
]
_UNKNOWN_RESPONSE_FORMAT = [
    {"path": "/response_format/type", "message": "Expected value of union"},
    {"path": "/response_format/type", "message": "Expected 'text'"},
    {"path": "/response_format/type", "message": "Expected 'json_object'"},
]


def unknown_path(_request: RecordedRequest) -> Step:
    """What is said to a path or a method that does not exist."""
    return Status(404)


def is_authorized(request: RecordedRequest, api_key: str) -> bool:
    """Whether `request` carries the key, as a secret or as a bearer token."""
    headers = request.headers
    return (
        api_key == headers.get("ws-secret")
        or headers.get("authorization") == f"Bearer {api_key}"
    )


def refusal(request: RecordedRequest) -> Step | None:
    """How `request` is turned down; None when it is as it should be."""
    if len(request.body) > _BODY_LIMIT:
        return Status(500, headers={"connection": "close"})
    if not request.headers.get("content-type", "").startswith("application/json"):
        return Status(500)
    if request.endpoint != "generate":
        return shape_refusal(request)
    if not _has_valid_shape(request):
        return Status(500)
    return _provider_refusal(request)


def _has_valid_shape(request: RecordedRequest) -> bool:
    entries = request.payload.get("data")
    return isinstance(entries, list) and all(
        _is_valid_entry(entry) for entry in entries
    )


def _is_valid_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not _is_number(entry.get("order")):
        return False
    parameters = entry.get("promptParams")
    if not isinstance(parameters, dict):
        return False
    if not isinstance(parameters.get("function_call", {}), dict):
        return False
    messages = parameters.get("messages", [])
    return isinstance(messages, list) and all(
        _is_valid_message(message) for message in messages
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (
        isinstance(value, str) and value.isdigit()
    )


def _is_valid_message(message: Any) -> bool:
    # The key `content` must be there, null is allowed.
    return (
        isinstance(message, dict)
        and message.get("role") in _ROLES
        and "content" in message
    )


def _provider_refusal(request: RecordedRequest) -> Step | None:
    """What is only found out after a stream has begun, hence comes inside of it."""
    if not request.payload["data"]:
        return ErrorEvent("No models available")
    parameters = request.parameters
    if "messages" not in parameters and "prompt" not in parameters:
        return ErrorEvent(compact_json(_NO_MESSAGES).decode())
    response_format = parameters.get("response_format") or {"type": "text"}
    if response_format.get("type") not in _RESPONSE_FORMATS[request.gptrouter]:
        return ErrorEvent(compact_json(_UNKNOWN_RESPONSE_FORMAT).decode())
    return None
