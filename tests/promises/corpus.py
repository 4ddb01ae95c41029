"""Answers as they are when all goes well, and errors as providers send them.

GPTRouter's were recorded; OpenAI's are those of its API reference, and of the servers
that speak like it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from tests.promises import readers
from tests.promises.readers import Reader
from tests.unit_tests.gptrouter.test_captures import NAMES, load


def _stream(*events: Any, done: str = "data: [DONE]\n\n") -> bytes:
    lines = (f"data: {json.dumps(event)}\n\n" for event in events)
    return ("".join(lines) + done).encode()


def _chunk(delta: dict[str, Any], finish: str | None = None, **rest: Any) -> Any:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_800_000_000,
        "model": "gpt-4o",
        "choices": [choice],
        **rest,
    }


_USAGE: Final = {
    "prompt_tokens": 9,
    "completion_tokens": 4,
    "total_tokens": 13,
    "prompt_tokens_details": {"cached_tokens": 2, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 1},
}
_CALL: Final = {
    "index": 0,
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
}


def _completion(**choice: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_800_000_000,
        "model": "gpt-4o",
        "system_fingerprint": "fp_1",
        "choices": [{"index": 0, "finish_reason": "stop", **choice}],
        "usage": _USAGE,
    }


_ANSWERS: Final = [
    _completion(message={"role": "assistant", "content": "Hello", "refusal": None}),
    _completion(text="Hello", logprobs={"tokens": ["Hello"], "token_logprobs": [-0.1]}),
    _completion(message={"role": "assistant", "content": None, "tool_calls": [_CALL]}),
    _completion(message={"role": "assistant", "content": None, "refusal": "No."}),
    _completion(
        message={
            "role": "assistant",
            "content": "",
            "provider_specific_fields": {"refusal": "No."},
        },
        content_filter_results={"hate": {"filtered": True, "severity": "high"}},
    ),
    _completion(
        message={"content": "Hi", "function_call": {"name": "f", "arguments": "{}"}}
    ),
    {"error": {"message": "Overloaded", "type": "server_error", "code": 503}},
]
_CHUNKS: Final = [
    [
        _chunk({"role": "assistant", "content": "", "refusal": None}),
        _chunk({"content": "Hel"}),
        _chunk({"content": "lo"}),
        _chunk({}, "stop"),
        {**_chunk({}), "choices": [], "usage": _USAGE},
    ],
    [
        _chunk({"role": "assistant", "content": None, "tool_calls": [_CALL]}),
        _chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}),
        _chunk({}, "tool_calls", usage=_USAGE),
    ],
    [_chunk({"refusal": "No."}), _chunk({}, "stop")],
    [_completion(text="Hel", finish_reason=None), _completion(text="lo")],
    [_chunk({"content": "Hel"}), {"error": {"message": "Overloaded", "code": 529}}],
]
_ERRORS: Final = [
    {
        "error": {
            "message": "You exceeded your current quota",
            "type": "insufficient_quota",
            "param": None,
            "code": "insufficient_quota",
        }
    },
    {"error": {"message": "No such model", "code": 404}},
    {"error": "Something went wrong"},
    {"detail": [{"loc": ["body", "n"], "msg": "field required"}]},
    {"message": "Bad gateway", "code": "502"},
    {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
    [
        {
            "error": {
                "code": 429,
                "status": "RESOURCE_EXHAUSTED",
                "message": "Quota exceeded",
                "details": [
                    {
                        "@type": "type.googleapis.com/google.rpc.RetryInfo",
                        "retryDelay": "34.07s",
                    }
                ],
            }
        }
    ],
]
_PAGE: Final = b"<html><head><title>502</title></head><body>Bad gateway</body></html>"
_VECTORS: Final = {
    "choices": [
        {"index": 0, "embedding": [0.1, -0.2, 3]},
        {"index": 1, "embedding": [0.3, 1e-9, 0]},
    ],
    "meta": {"prompt_tokens": 4},
}


def _captured(*, streamed: bool) -> Iterator[bytes]:
    """What was answered; of a body that is an error without a stream, a few do."""
    for capture in map(load, NAMES):
        is_answer = capture.status == 200 or capture.name.startswith("6")
        if is_answer and capture.is_event_stream is streamed:
            yield capture.body


_OPENAIS: Final = [json.dumps(answer).encode() for answer in _ANSWERS]
_OPENAI_STREAMS: Final = [
    *(_stream(*chunks) for chunks in _CHUNKS),
    _stream(*_CHUNKS[0], done=""),
    _stream(*_CHUNKS[0]).replace(b"\n", b"\r\n"),
]
_REFUSALS: Final = [*(json.dumps(error).encode() for error in _ERRORS), _PAGE]
_GATEWAYS: Final = [*_captured(streamed=False), *_OPENAIS[:3]]
_GATEWAY_STREAMS: Final = list(_captured(streamed=True))

CORPUS: Final[dict[str, tuple[Reader, list[bytes]]]] = {
    "sse": (readers.sse, [*_GATEWAY_STREAMS, *_OPENAI_STREAMS]),
    "gateway_answer": (readers.gateway_answer, [*_GATEWAYS, *_REFUSALS]),
    "gateway_stream": (readers.gateway_stream, _GATEWAY_STREAMS),
    "gateway_vectors": (readers.gateway_vectors, [json.dumps(_VECTORS).encode()]),
    "openai_answer": (readers.openai_answer, _OPENAIS),
    "openai_objects": (readers.openai_objects, _OPENAIS),
    "openai_stream": (readers.openai_stream, _OPENAI_STREAMS),
    "openai_error": (readers.openai_error, _REFUSALS),
    "router_answer": (readers.router_answer, _OPENAIS),
    "router_stream": (readers.router_stream, _OPENAI_STREAMS),
    "router_error": (readers.router_error, _REFUSALS),
    "headers": (readers.headers, [b""]),
}
"""Each reader, and the answers that are mutated for it."""
