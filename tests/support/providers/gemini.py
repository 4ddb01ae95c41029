"""Google's Gemini API over REST.

Source: ai.google.dev/api/generate-content; errors: google/rpc/status.proto.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final

from tests.support.providers.server import (
    TEXT,
    TOOL,
    USAGE,
    Protocol,
    Reply,
    whole_arguments,
    whole_text,
)

_STATUSES: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


def _answer(part: dict[str, Any], reason: str | None) -> dict[str, Any]:
    candidate: dict[str, Any] = {
        "content": {"parts": [part], "role": "model"},
        "index": 0,
    }
    usage = {"promptTokenCount": USAGE[0], "totalTokenCount": USAGE[0]}
    if reason:
        candidate["finishReason"] = reason
        usage |= {"candidatesTokenCount": USAGE[1], "totalTokenCount": sum(USAGE)}
    return {
        "candidates": [candidate],
        "usageMetadata": usage,
        "modelVersion": "sick",
        "responseId": "r1",
    }


def _part(reply: Reply, text: str) -> dict[str, Any]:
    if reply == "tool":
        return {"functionCall": {"name": TOOL, "args": whole_arguments()}}
    return {"text": text}


def _whole(reply: Reply) -> dict[str, Any]:
    return _answer(_part(reply, whole_text()), "STOP")


def _events(reply: Reply) -> tuple[list[Any], list[Any]]:
    # A call comes whole, so that a cut one ends behind it.
    last = {"text": "" if reply == "tool" else TEXT[1]}
    return [_answer(_part(reply, TEXT[0]), None)], [_answer(last, "STOP")]


def error(status: int, message: str) -> dict[str, Any]:
    name = _STATUSES.get(status, "UNKNOWN")
    return {"error": {"code": status, "message": message, "status": name}}


def _event(message: str) -> bytes:
    # Not as an event: the server writes the object, as the SDK reads it.
    return json.dumps(error(500, message)).encode() + b"\n\n"


def _element(body: dict[str, Any]) -> bytes:
    # Without `alt=sse`: one of the two elements of an array.
    text = json.dumps(body)
    is_last = "finishReason" in body["candidates"][0]
    return (f",\n{text}]" if is_last else f"[{text}").encode()


GEMINI: Final = Protocol(
    _whole,
    _events,
    error,
    event=_event,
    is_stream=lambda path, _: "streamGenerateContent" in path,
)
GEMINI_LIST: Final = replace(
    GEMINI,
    frame=_element,
    event=lambda message: b"[" + json.dumps(error(500, message)).encode() + b"]",
    stream_type="application/json",
)
