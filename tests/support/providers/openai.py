"""OpenAI's Chat Completions, which many other providers speak as well.

Source: platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from tests.support.providers.server import (
    ARGUMENTS,
    TEXT,
    TOOL,
    USAGE,
    Protocol,
    Reply,
    whole_text,
)

USAGE_BODY: Final = {
    "prompt_tokens": USAGE[0],
    "completion_tokens": USAGE[1],
    "total_tokens": sum(USAGE),
}
_IDENTITY: Final = {
    "id": "chatcmpl-1",
    "created": 1_790_000_000,
    "model": "sick",
    "system_fingerprint": "fp_1",
}


def tool_call(arguments: str) -> dict[str, Any]:
    function = {"name": TOOL, "arguments": arguments}
    return {"id": "call_Ab1Cd2Ef3", "type": "function", "function": function}


def whole(reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": whole_text()}
    if reply == "tool":
        calls = [tool_call("".join(ARGUMENTS))]
        message = {"role": "assistant", "content": None, "tool_calls": calls}
    reason = "tool_calls" if reply == "tool" else "stop"
    message["refusal"] = None
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    return {
        **_IDENTITY,
        "object": "chat.completion",
        "choices": [choice],
        "usage": USAGE_BODY,
    }


def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return {**_IDENTITY, "object": "chat.completion.chunk", "choices": [choice]}


def role_chunk(reply: Reply) -> dict[str, Any]:
    return chunk({"role": "assistant", "content": None if reply == "tool" else ""})


def chunks(reply: Reply) -> tuple[list[Any], list[Any]]:
    """The events of a stream as data, up to where a cut one ends, and the others."""
    first: dict[str, Any] = {"content": TEXT[0]}
    second: dict[str, Any] = {"content": TEXT[1]}
    if reply == "tool":
        begin = {"index": 0, **tool_call(ARGUMENTS[0])}
        then = {"index": 0, "function": {"arguments": ARGUMENTS[1]}}
        first, second = {"tool_calls": [begin]}, {"tool_calls": [then]}
    end = chunk({}, "tool_calls" if reply == "tool" else "stop")
    usage = {**chunk({}), "choices": [], "usage": USAGE_BODY}
    return [role_chunk(reply), chunk(first)], [chunk(second), end, usage, "[DONE]"]


def _groq_chunks(reply: Reply) -> tuple[list[Any], list[Any]]:
    first, (second, end, _, done) = chunks(reply)
    end["x_groq"] = {"id": "req_1", "usage": USAGE_BODY}
    return first, [second, end, done]


def error(status: int, message: str) -> dict[str, Any]:
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status) or (
        "server_error" if status >= 500 else "invalid_request_error"
    )
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


OPENAI: Final = Protocol(whole, chunks, error)
GROQ: Final = replace(OPENAI, events=_groq_chunks)
"""Its usage has a place of its own."""
