"""Ollama's chat API: lines of JSON. Source: github.com/ollama/ollama, docs/api.md."""

from __future__ import annotations

import json
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


def _line(message: dict[str, Any], *, done: bool) -> dict[str, Any]:
    end = {
        "done_reason": "stop",
        "prompt_eval_count": USAGE[0],
        "eval_count": USAGE[1],
        "total_duration": 1,
    }
    return {
        "model": "sick",
        "created_at": "2026-11-29T10:00:00Z",
        "message": {"role": "assistant", **message},
        "done": done,
        **(end if done else {}),
    }


def _message(reply: Reply, text: str) -> dict[str, Any]:
    if reply == "tool":
        call = {"function": {"name": TOOL, "arguments": whole_arguments()}}
        return {"content": "", "tool_calls": [call]}
    return {"content": text}


def _whole(reply: Reply) -> dict[str, Any]:
    return _line(_message(reply, whole_text()), done=True)


def _events(reply: Reply) -> tuple[list[Any], list[Any]]:
    # A call comes whole, so that a cut one ends behind it.
    end = _line({"content": "" if reply == "tool" else TEXT[1]}, done=True)
    return [_line(_message(reply, TEXT[0]), done=False)], [end]


def error(status: int, message: str) -> dict[str, Any]:
    del status
    return {"error": message}


OLLAMA: Final = Protocol(
    _whole,
    _events,
    error,
    lambda body: json.dumps(body).encode() + b"\n",
    # Without the field, Ollama streams.
    is_stream=lambda _, body: bool(body.get("stream", True)),
    stream_type="application/x-ndjson",
)
