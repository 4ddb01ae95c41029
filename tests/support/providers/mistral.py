"""Mistral's chat API: OpenAI's form with its own errors.

Source: docs.mistral.ai/api.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from tests.support.providers.openai import (
    OPENAI,
    USAGE_BODY,
    chunk,
    role_chunk,
    tool_call,
)
from tests.support.providers.server import ARGUMENTS, TEXT, Reply


def _chunks(reply: Reply) -> tuple[list[Any], list[Any]]:
    first = [role_chunk(reply)]
    delta: dict[str, Any] = {"content": TEXT[1]}
    if reply == "text":
        first.append(chunk({"content": TEXT[0]}))
    else:  # A call comes whole, with the end.
        delta = {"content": "", "tool_calls": [tool_call("".join(ARGUMENTS))]}
    end = chunk(delta, "tool_calls" if reply == "tool" else "stop")
    return first, [{**end, "usage": USAGE_BODY}, "[DONE]"]


def error(status: int, message: str) -> dict[str, Any]:
    kinds = {401: "unauthorized", 429: "rate_limited", 400: "invalid_request_error"}
    kind = kinds.get(status, "internal_server_error")
    return {
        "object": "error",
        "message": message,
        "type": kind,
        "param": None,
        "code": str(status),
    }


MISTRAL: Final = replace(OPENAI, events=_chunks, error=error)
