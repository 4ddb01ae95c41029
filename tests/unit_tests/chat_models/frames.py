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


def event_stream(*frames: str) -> Body:
    body = "".join(f"{frame}\n\n" for frame in frames)
    return Body(200, {"content-type": "text/event-stream"}, body)


def update(text: str, finish_reason: str | None = None) -> str:
    data = {"text": text, "finish_reason": finish_reason}
    return "data: " + json.dumps({"event": "update", "data": data})


END = 'data: {"event":"end","data":"end"}'
FAREWELL = "event: end\ndata: Stream closed"
