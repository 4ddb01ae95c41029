"""Anthropic's model and wire format, which `FaultyGateway` does not speak by itself.

In the forms of docs.claude.com/en/api/errors and docs.claude.com/en/api/streaming.
"""

import json
from typing import Any, Final

from langchain_anthropic import ChatAnthropic
from pydantic import SecretStr

from langchain_retryrouter.testing import Body, FaultyGateway, Step
from tests.support.models import CLOSE, KEY

# Not a real one: the SDK warns of models that are on their way out.
MODEL: Final = "claude-of-the-tests"
JSON: Final = {"content-type": "application/json", "request-id": "req_header"}
ANSWER: Final[dict[str, Any]] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": MODEL,
    "content": [{"type": "text", "text": "Hello."}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 3, "output_tokens": 2},
}


def chat_anthropic(gateway: FaultyGateway, **fields: Any) -> ChatAnthropic:
    """`ChatAnthropic`, and a gateway that has an answer for it."""
    gateway.respond("/v1/messages", ANSWER)
    settings: dict[str, Any] = {
        "model": MODEL,
        "base_url": gateway.url,
        "api_key": SecretStr(KEY),
        "default_headers": CLOSE,
    }
    return ChatAnthropic(**{**settings, **fields})


def problem(kind: str, message: str = "Said by Anthropic.") -> str:
    """The body of every error, whole or as an event."""
    error = {"type": kind, "message": message}
    return json.dumps({"type": "error", "error": error, "request_id": "req_body"})


def event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"


_BEGINNING: Final = event(
    "message_start",
    json.dumps(
        {
            "type": "message_start",
            "message": {**ANSWER, "content": [], "stop_reason": None},
        }
    ),
) + event(
    "content_block_start",
    '{"type":"content_block_start","index":0,'
    '"content_block":{"type":"text","text":""}}',
)
TEXT: Final = event(
    "content_block_delta",
    '{"type":"content_block_delta","index":0,'
    '"delta":{"type":"text_delta","text":"Hello."}}',
)
END: Final = event(
    "message_delta",
    json.dumps(
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 2},
        }
    ),
) + event("message_stop", '{"type":"message_stop"}')


def after_the_beginning(*events: str) -> Step:
    """A stream that began well, and went on with these events."""
    headers = {"content-type": "text/event-stream"}
    return Body(200, headers, _BEGINNING + "".join(events))
