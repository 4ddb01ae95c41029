"""Streams for the gateway to answer with, and readers of their chunks."""

import json
from typing import Any

from langchain_core.messages import AIMessageChunk
from langchain_core.messages.ai import add_ai_message_chunks

from langchain_retryrouter.testing import Body


def text_of(chunks: list[Any]) -> str:
    return "".join(str(chunk.content) for chunk in chunks)


def sum_of(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    return add_ai_message_chunks(*chunks)


def attempts_of(message: Any) -> list[dict[str, Any]]:
    """The attempts in a message's metadata."""
    attempts: list[dict[str, Any]] = message.response_metadata["retryrouter"][
        "attempts"
    ]
    return attempts


def outcomes(message: Any) -> list[str]:
    return [attempt["outcome"] for attempt in attempts_of(message)]


def whole(*choices: dict[str, Any], **rest: Any) -> Body:
    """An answer in one piece."""
    numbered = [{"index": index, **choice} for index, choice in enumerate(choices)]
    answer = {"id": "a", "model": "m", "choices": numbered, **rest}
    return Body(200, {"content-type": "application/json"}, json.dumps(answer))


def event_stream(*frames: str) -> Body:
    body = "".join(f"{frame}\n\n" for frame in frames)
    return Body(200, {"content-type": "text/event-stream"}, body)


def event(kind: str, data: Any, **rest: Any) -> str:
    return "data: " + json.dumps({"event": kind, "data": data, **rest})


def update(text: str = "", finish_reason: str | None = None, **data: Any) -> str:
    return event("update", {"text": text, "finish_reason": finish_reason, **data})


END = 'data: {"event":"end","data":"end"}'
FAREWELL = "event: end\ndata: Stream closed"
