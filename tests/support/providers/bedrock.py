"""Amazon Bedrock: Converse and InvokeModel (Anthropic's bodies), with event streams.

Source: docs.aws.amazon.com/bedrock/latest/APIReference, and for the frames
smithy.io/2.0/aws/amazon-eventstream.html.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from dataclasses import replace
from typing import Any, Final

from tests.support.providers import anthropic
from tests.support.providers.server import (
    ARGUMENTS,
    TEXT,
    TOOL,
    USAGE,
    Protocol,
    Reply,
    whole_arguments,
    whole_text,
)

_NAMES: Final = {
    400: "ValidationException",
    401: "UnrecognizedClientException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    429: "ThrottlingException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
    529: "ServiceUnavailableException",
}
_TOKENS: Final = {
    "inputTokens": USAGE[0],
    "outputTokens": USAGE[1],
    "totalTokens": sum(USAGE),
}
_METRICS: Final = {
    "inputTokenCount": USAGE[0],
    "outputTokenCount": USAGE[1],
    "invocationLatency": 2,
    "firstByteLatency": 1,
}
# The same of a whole answer.
_METRIC_HEADERS: Final = {
    "x-amzn-bedrock-input-token-count": str(USAGE[0]),
    "x-amzn-bedrock-output-token-count": str(USAGE[1]),
    "x-amzn-bedrock-invocation-latency": "2",
}
_STREAM: Final = "application/vnd.amazon.eventstream"


def frame(body: Any, **headers: str) -> bytes:
    """One message of an event stream: lengths, headers, payload and two checksums."""
    packed = b""
    for name, value in headers.items():
        key = f":{name.replace('_', '-')}".encode()
        text = value.encode()
        packed += struct.pack("!B", len(key)) + key
        packed += struct.pack("!BH", 7, len(text)) + text
    payload = json.dumps(body).encode()
    prelude = struct.pack("!II", 16 + len(packed) + len(payload), len(packed))
    prelude += struct.pack("!I", binascii.crc32(prelude))
    message = prelude + packed + payload
    return message + struct.pack("!I", binascii.crc32(message))


def _event_frame(event: tuple[str, Any]) -> bytes:
    kind = {"message_type": "event", "content_type": "application/json"}
    return frame(event[1], event_type=event[0], **kind)


def _event(message: str) -> bytes:
    kind = {"message_type": "exception", "content_type": "application/json"}
    body = {"message": message}
    return frame(body, exception_type="internalServerException", **kind)


def _reason(reply: Reply) -> str:
    return "tool_use" if reply == "tool" else "end_turn"


def _whole(reply: Reply) -> dict[str, Any]:
    block: dict[str, Any] = {"text": whole_text()}
    if reply == "tool":
        call = {"toolUseId": "tooluse_1", "name": TOOL, "input": whole_arguments()}
        block = {"toolUse": call}
    return {
        "output": {"message": {"role": "assistant", "content": [block]}},
        "stopReason": _reason(reply),
        "usage": _TOKENS,
        "metrics": {"latencyMs": 1},
    }


def _events(reply: Reply) -> tuple[list[Any], list[Any]]:
    if reply == "tool":
        deltas: list[dict[str, Any]] = [
            {"toolUse": {"input": one}} for one in ARGUMENTS
        ]
        tool = {"toolUse": {"toolUseId": "tooluse_1", "name": TOOL}}
        start = [("contentBlockStart", {"start": tool, "contentBlockIndex": 0})]
    else:
        deltas, start = [{"text": one} for one in TEXT], []
    pieces = [
        ("contentBlockDelta", {"delta": one, "contentBlockIndex": 0}) for one in deltas
    ]
    end = {"usage": _TOKENS, "metrics": {"latencyMs": 1}}
    return [("messageStart", {"role": "assistant"}), *start, pieces[0]], [
        pieces[1],
        ("contentBlockStop", {"contentBlockIndex": 0}),
        ("messageStop", {"stopReason": _reason(reply)}),
        ("metadata", end),
    ]


def _invoke_events(reply: Reply) -> tuple[list[Any], list[Any]]:
    first, rest = anthropic.events(reply)
    # Bedrock's own count of the tokens, in the last chunk.
    rest[-1]["amazon-bedrock-invocationMetrics"] = _METRICS
    return first, rest


def _chunk(body: dict[str, Any]) -> bytes:
    encoded = base64.b64encode(json.dumps(body).encode()).decode()
    return _event_frame(("chunk", {"bytes": encoded}))


def error(status: int, message: str) -> dict[str, Any]:
    return {"__type": _NAMES.get(status, "InternalServerException"), "message": message}


def _error_headers(body: Any) -> dict[str, str]:
    name = body.get("__type") if isinstance(body, dict) else None
    return {"x-amzn-requestid": "r1"} | ({"x-amzn-errortype": name} if name else {})


def _is_stream(path: str, body: Any) -> bool:
    del body
    return path.endswith(("converse-stream", "invoke-with-response-stream"))


CONVERSE: Final = Protocol(
    _whole, _events, error, _event_frame, _event, _is_stream, _STREAM, _error_headers
)
INVOKE_MODEL: Final = replace(
    CONVERSE,
    whole=anthropic.message,
    events=_invoke_events,
    frame=_chunk,
    headers=_METRIC_HEADERS,
)
