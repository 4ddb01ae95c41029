"""OpenAI's Responses API. Source: platform.openai.com/docs/api-reference/responses."""

from __future__ import annotations

from typing import Any, Final

from tests.support.providers.openai import error
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


def _item(reply: Reply, content: str, status: str) -> dict[str, Any]:
    if reply == "tool":
        call = {"call_id": "call_1", "name": TOOL, "arguments": content}
        return {"id": "fc_1", "type": "function_call", "status": status, **call}
    part = {"type": "output_text", "text": content, "annotations": []}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [part] if content else [],
    }


def _response(reply: Reply, status: str = "completed") -> dict[str, Any]:
    is_done = status == "completed"
    content = "".join(ARGUMENTS) if reply == "tool" else whole_text()
    usage = {
        "input_tokens": USAGE[0],
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": USAGE[1],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": sum(USAGE),
    }
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_790_000_000,
        "model": "sick",
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "output": [_item(reply, content, "completed")] if is_done else [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": usage if is_done else None,
    }


def _events(reply: Reply) -> tuple[list[Any], list[Any]]:
    place = {"output_index": 0, "item_id": "fc_1" if reply == "tool" else "msg_1"}
    pieces = ARGUMENTS if reply == "tool" else TEXT
    kind = "function_call_arguments" if reply == "tool" else "output_text"
    if reply == "text":
        place["content_index"] = 0
    deltas: list[dict[str, Any]] = [
        {"type": f"response.{kind}.delta", **place, "delta": one, "logprobs": []}
        for one in pieces
    ]
    text = "".join(pieces)
    done_key = "arguments" if reply == "tool" else "text"
    done: dict[str, Any] = {
        "type": f"response.{kind}.done",
        **place,
        done_key: text,
        "logprobs": [],
    }
    running = {"output_index": 0, "item": _item(reply, "", "in_progress")}
    finished = {"output_index": 0, "item": _item(reply, text, "completed")}
    bodies: list[dict[str, Any]] = [
        {"type": "response.created", "response": _response(reply, "in_progress")},
        {"type": "response.output_item.added", **running},
        deltas[0],
        deltas[1],
        done,
        {"type": "response.output_item.done", **finished},
        {"type": "response.completed", "response": _response(reply)},
    ]
    numbered = [{**one, "sequence_number": i} for i, one in enumerate(bodies)]
    return numbered[:3], numbered[3:]


def _event(message: str) -> bytes:
    body = {"type": "error", "code": "server_error", "message": message, "param": None}
    return typed_sse({**body, "sequence_number": 9})


RESPONSES: Final = Protocol(_response, _events, error, typed_sse, _event)
