"""Cohere's chat API, version 2. Source: docs.cohere.com/v2/reference/chat-stream."""

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
    whole_text,
)

_TOKENS: Final = {"input_tokens": USAGE[0], "output_tokens": USAGE[1]}
_USAGE: Final = {"billed_units": _TOKENS, "tokens": _TOKENS}


def _call(arguments: str) -> dict[str, Any]:
    function = {"name": TOOL, "arguments": arguments}
    return {"id": "delete_files_1", "type": "function", "function": function}


def _whole(reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant"}
    if reply == "tool":
        message |= {"tool_plan": "I delete.", "tool_calls": [_call("".join(ARGUMENTS))]}
    else:
        message["content"] = [{"type": "text", "text": whole_text()}]
    reason = "TOOL_CALL" if reply == "tool" else "COMPLETE"
    return {"id": "c1", "message": message, "finish_reason": reason, "usage": _USAGE}


def _delta(kind: str, message: dict[str, Any], **place: int) -> dict[str, Any]:
    return {"type": kind, **place, "delta": {"message": message}}


def _events(reply: Reply) -> tuple[list[Any], list[Any]]:
    begin = {
        "type": "message-start",
        "id": "c1",
        "delta": {"message": {"role": "assistant"}},
    }
    if reply == "tool":
        then = {"function": {"arguments": ARGUMENTS[1]}}
        first = [
            begin,
            _delta("tool-plan-delta", {"tool_plan": "I delete."}),
            _delta("tool-call-start", {"tool_calls": _call("")}, index=0),
            _delta(
                "tool-call-delta",
                {"tool_calls": {"function": {"arguments": ARGUMENTS[0]}}},
                index=0,
            ),
        ]
        rest = [
            _delta("tool-call-delta", {"tool_calls": then}, index=0),
            {"type": "tool-call-end", "index": 0},
        ]
    else:
        start = {"content": {"type": "text", "text": ""}}
        deltas = [
            _delta("content-delta", {"content": {"text": one}}, index=0) for one in TEXT
        ]
        first = [begin, _delta("content-start", start, index=0), deltas[0]]
        rest = [deltas[1], {"type": "content-end", "index": 0}]
    reason = "TOOL_CALL" if reply == "tool" else "COMPLETE"
    rest.append(_end(reason))
    return first, rest


def _end(reason: str, **more: str) -> dict[str, Any]:
    delta = {"finish_reason": reason, "usage": _USAGE, **more}
    return {"type": "message-end", "id": "c1", "delta": delta}


def _event(message: str) -> bytes:
    return typed_sse(_end("ERROR", error=message))


def error(status: int, message: str) -> dict[str, Any]:
    del status
    return {"id": "e1", "message": message}


COHERE: Final = Protocol(_whole, _events, error, typed_sse, _event)
