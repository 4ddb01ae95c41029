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


def _chat(name: str, body: Any) -> None:
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
    if name == "cohere":
        body["message"] = {"role": "assistant", "tool_plan": content}
        body["message"]["tool_calls"] = calls
    else:
        body["choices"][0]["message"] = message | thoughts


def _anthropic(name: str, body: Any) -> None:
    secret, args = f"Secret of {name}.", {"path": name}
    body["content"] = [
        {"type": "thinking", "thinking": secret, "signature": secret},
        {"type": "text", "text": f"Text of {name}."},
        *(
            {"type": "tool_use", "id": f"toolu_01_{place}", "name": tool, "input": args}
            for place, tool in enumerate(NAMES)
        ),
    ]


def _converse(name: str, body: Any) -> None:
    secret, args = f"Secret of {name}.", {"path": name}
    thought = {"reasoningText": {"text": secret, "signature": secret}}
    calls = [
        {"toolUse": {"toolUseId": f"tooluse_{place}", "name": tool, "input": args}}
        for place, tool in enumerate(NAMES)
    ]
    content = [{"reasoningContent": thought}, {"text": f"Text of {name}."}, *calls]
    body["output"]["message"]["content"] = content


def _gemini(name: str, body: Any) -> None:
    signature = base64.b64encode(f"Secret of {name}.".encode()).decode()
    parts: list[dict[str, Any]] = [
        {"text": f"Secret of {name}.", "thought": True},
        {"text": f"Text of {name}."},
        *({"functionCall": {"name": tool, "args": {"path": name}}} for tool in NAMES),
    ]
    parts[2]["thoughtSignature"] = signature
    body["candidates"][0]["content"]["parts"] = parts


def _ollama(name: str, body: Any) -> None:
    calls = [
        {"function": {"name": tool, "arguments": {"path": name}}} for tool in NAMES
    ]
    message = {"role": "assistant", "content": f"Text of {name}.", "tool_calls": calls}
    body["message"] = {**message, "thinking": f"Secret of {name}."}


def _responses(name: str, body: Any) -> None:
    secret = f"Secret of {name}."
    summary = {"type": "summary_text", "text": secret}
    part = {"type": "output_text", "text": f"Text of {name}.", "annotations": []}
    body["output"] = [
        {"type": "reasoning", "id": "rs_1", "summary": [summary],
         "encrypted_content": secret},
        {"type": "message", "id": "msg_1", "role": "assistant", "content": [part]},
        *(
            {"type": "function_call", "id": f"fc_{place}", "call_id": f"call_r{place}",
             "name": tool, "arguments": json.dumps({"path": name})}
            for place, tool in enumerate(NAMES)
        ),
    ]  # fmt: skip


_PUT: Final[Mapping[str, Callable[[str, Any], None]]] = {
    "openai-responses": _responses,
    "anthropic": _anthropic,
    "aws-invoke": _anthropic,
    "aws-converse": _converse,
    "google-genai": _gemini,
    "google-vertexai": _gemini,
    "ollama": _ollama,
}


def rich(name: str, protocol: Protocol) -> Protocol:
    """The protocol of a row of the matrix, with such an answer outside of streams."""
    body = protocol.whole("tool")
    _PUT.get(name, _chat)(name, body)
    if name == "ollama":  # It streams inside `invoke`.
        return replace(protocol, events=lambda _: ([body], []))
    return replace(protocol, whole=lambda _: body)
