"""Anthropic's Messages API.

Source: docs.claude.com/en/api/messages-streaming and docs.claude.com/en/api/errors.
"""

from __future__ import annotations

from typing import Any, Final

from tests.support.providers.server import (
    ARGUMENTS,
    TEXT,
    TOOL,
    USAGE,
    Protocol,
    Reply,
    typed_sse,
    whole_arguments,
    whole_text,
)

_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


def message(reply: Reply) -> dict[str, Any]:
    """A whole message."""
    content: dict[str, Any] = {"type": "text", "text": whole_text()}
    if reply == "tool":
        call = {"id": "toolu_01", "name": TOOL, "input": whole_arguments()}
        content = {"type": "tool_use", **call}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "sick",
        "content": [content],
        "stop_reason": "tool_use" if reply == "tool" else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": USAGE[0], "output_tokens": USAGE[1]},
    }


def events(reply: Reply) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The events of a stream, up to where a cut one ends, and the others."""
    usage = {"input_tokens": USAGE[0], "output_tokens": 1}
    begin = message(reply) | {"content": [], "stop_reason": None, "usage": usage}
    if reply == "tool":
        block = {"type": "tool_use", "id": "toolu_01", "name": TOOL, "input": {}}
        deltas = [
            {"type": "input_json_delta", "partial_json": one} for one in ARGUMENTS
        ]
    else:
        block = {"type": "text", "text": ""}
        deltas = [{"type": "text_delta", "text": one} for one in TEXT]
    pieces = [
        {"type": "content_block_delta", "index": 0, "delta": one} for one in deltas
    ]
    reason = message(reply)["stop_reason"]
    end = {
        "type": "message_delta",
        "delta": {"stop_reason": reason, "stop_sequence": None},
        "usage": {"input_tokens": USAGE[0], "output_tokens": USAGE[1]},
    }
    start = {"type": "content_block_start", "index": 0, "content_block": block}
    stop = {"type": "content_block_stop", "index": 0}
    first: list[dict[str, Any]] = [
        {"type": "message_start", "message": begin},
        start,
        pieces[0],
    ]
    return first, [pieces[1], stop, end, {"type": "message_stop"}]


def error(status: int, message: str) -> dict[str, Any]:
    kind = _TYPES.get(status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


ANTHROPIC: Final = Protocol(message, events, error, typed_sse)
