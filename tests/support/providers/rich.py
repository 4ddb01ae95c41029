"""Answers with all that a provider's own history may hold: a thought, text, two calls.

Each has `Secret of NAME`, which no other provider may read, and `Text of NAME`. The ids
of the calls are as each provider, or the models that it hosts, makes them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from tests.support.providers.openai import USAGE_BODY
from tests.support.providers.server import TOOL, Protocol

NAMES: Final = (TOOL, "look_up")
_IDS: Final = {  # vLLM's, Kimi's, TGI's; more than 40 characters, others than letters.
    "openai": "call_Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op{}",
    "mistralai": "Ab1Cd2Ef{}",
    "nvidia": "chatcmpl-tool-0123456789abcdef0123456789abcde{}",
    "fireworks": "functions.look_up:{}",
    "huggingface": "{}",
    "cohere": "look_up_x7.{}",
}
_THOUGHTS: Final[Mapping[str, Callable[[str], dict[str, Any]]]] = {
    "groq": lambda it: {"reasoning": it},
    "cerebras": lambda it: {"reasoning": it},
    "openrouter": lambda it: {
        "reasoning": it,
        "reasoning_details": [
            {"type": "reasoning.text", "text": it, "signature": it, "index": 0}
        ],
    },
    "openai": lambda _: {},
    "perplexity": lambda _: {},
}


def _chat(name: str) -> dict[str, Any]:
    ids = _IDS.get(name, _IDS["openai"])
    calls = [
        {
            "id": ids.format(place),
            "type": "function",
            "function": {"name": tool, "arguments": json.dumps({"path": name})},
        }
        for place, tool in enumerate(NAMES)
    ]
    secret = f"Secret of {name}."
    content: Any = f"Text of {name}."
    thoughts = {"reasoning_content": secret}
    if name in _THOUGHTS:
        thoughts = _THOUGHTS[name](secret)
    if name == "mistralai":
        parts = [{"type": "text", "text": secret}]
        text = {"type": "text", "text": content}
        content, thoughts = [{"type": "thinking", "thinking": parts}, text], {}
    message = {"role": "assistant", "content": content, "tool_calls": calls}
    choice = {"index": 0, "message": message | thoughts, "finish_reason": "tool_calls"}
    return {
        "id": "chatcmpl-1",
        "created": 1,
        "model": "sick",
        "usage": USAGE_BODY,
        "object": "chat.completion",
        "choices": [choice],
        "system_fingerprint": None,
    }


def _anthropic(name: str) -> dict[str, Any]:
    secret, args = f"Secret of {name}.", {"path": name}
    calls = [
        {"type": "tool_use", "id": f"toolu_01_{place}", "name": tool, "input": args}
        for place, tool in enumerate(NAMES)
    ]
    content = [
        {"type": "thinking", "thinking": secret, "signature": secret},
        {"type": "text", "text": f"Text of {name}."},
        *calls,
    ]
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "sick",
        "content": content,
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }


def _converse(name: str) -> dict[str, Any]:
    secret = f"Secret of {name}."
    thought = {"reasoningText": {"text": secret, "signature": secret}}
    args = {"path": name}
    calls = [
        {"toolUse": {"toolUseId": f"tooluse_{place}", "name": tool, "input": args}}
        for place, tool in enumerate(NAMES)
    ]
    content = [{"reasoningContent": thought}, {"text": f"Text of {name}."}, *calls]
    return {
        "output": {"message": {"role": "assistant", "content": content}},
        "stopReason": "tool_use",
        "usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2},
        "metrics": {"latencyMs": 1},
    }


def _gemini(name: str) -> dict[str, Any]:
    signature = base64.b64encode(f"Secret of {name}.".encode()).decode()
    parts: list[dict[str, Any]] = [
        {"text": f"Secret of {name}.", "thought": True},
        {"text": f"Text of {name}."},
        *({"functionCall": {"name": tool, "args": {"path": name}}} for tool in NAMES),
    ]
    parts[2]["thoughtSignature"] = signature
    content = {"parts": parts, "role": "model"}
    return {
        "candidates": [{"content": content, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 1, "totalTokenCount": 1},
        "modelVersion": "sick",
    }


def _cohere(name: str) -> dict[str, Any]:
    message = _chat(name)["choices"][0]["message"]
    call = {"role": "assistant", "tool_plan": f"Text of {name}."}
    call["tool_calls"] = message["tool_calls"]
    usage = {"tokens": {"input_tokens": 1, "output_tokens": 1}}
    return {"id": "c1", "message": call, "finish_reason": "TOOL_CALL", "usage": usage}


def _ollama(name: str) -> dict[str, Any]:
    calls = [
        {"function": {"name": tool, "arguments": {"path": name}}} for tool in NAMES
    ]
    message = {"role": "assistant", "content": f"Text of {name}.", "tool_calls": calls}
    return {
        "model": "sick",
        "created_at": "2026-11-29T10:00:00Z",
        "done": True,
        "message": {**message, "thinking": f"Secret of {name}."},
        "done_reason": "stop",
        "prompt_eval_count": 1,
        "eval_count": 1,
    }


def _responses(name: str) -> dict[str, Any]:
    secret = f"Secret of {name}."
    summary = {"type": "summary_text", "text": secret}
    part = {"type": "output_text", "text": f"Text of {name}.", "annotations": []}
    output = [
        {"type": "reasoning", "id": "rs_1", "summary": [summary],
         "encrypted_content": secret},
        {"type": "message", "id": "msg_1", "role": "assistant", "content": [part]},
        *(
            {"type": "function_call", "id": f"fc_{place}", "call_id": f"call_r{place}",
             "name": tool, "arguments": json.dumps({"path": name})}
            for place, tool in enumerate(NAMES)
        ),
    ]  # fmt: skip
    details: dict[str, Any] = {"input_tokens_details": {}, "output_tokens_details": {}}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "sick",
        "status": "completed",
        "error": None,
        "output": output,
        "usage": {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2, **details},
    }


_BODIES: Final[Mapping[str, Callable[[str], dict[str, Any]]]] = {
    "openai-responses": _responses,
    "anthropic": _anthropic,
    "aws-invoke": _anthropic,
    "aws-converse": _converse,
    "google-genai": _gemini,
    "google-vertexai": _gemini,
    "cohere": _cohere,
    "ollama": _ollama,
}


def rich(name: str, protocol: Protocol) -> Protocol:
    """The protocol of a row of the matrix, with such an answer outside of streams."""
    if name == "ollama":  # It streams inside `invoke`.
        return replace(protocol, events=lambda _: ([_ollama(name)], []))
    return replace(protocol, whole=lambda _: _BODIES.get(name, _chat)(name))
