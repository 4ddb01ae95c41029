"""What providers answer with a 400, told of the body of a request.

A body is read as a sequence of blocks, calls of tools and their results. Sources: the
references that the other modules of this package name, and the messages of the
providers' errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple


class Found(NamedTuple):
    """One block; `id` is that of a call or of the call that a result is of."""

    role: str
    kind: str
    text: str = "x"
    id: str = ""
    unknown: frozenset[str] = frozenset()


Reading = Iterator[Found]
# Thoughts are looked for by their text.
_CHAT_KEYS: Final = frozenset(
    {"role", "content", "name", "refusal", "audio", "tool_calls", "tool_call_id"}
    | {"reasoning", "reasoning_content", "reasoning_details", "tool_plan"}
)
_ANTHROPIC_KEYS: Final = {
    "text": "text citations",
    "image": "source",
    "tool_use": "id name input caller",
    "tool_result": "tool_use_id content is_error",
    "thinking": "thinking signature",
}


def _blocks(content: Any) -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return content or []


def _chat(body: Any) -> Reading:
    for message in body["messages"]:
        role, name = message["role"], message.get("name") or ""
        unknown = message.keys() - _CHAT_KEYS
        if re.search(r"[\s<|\\/>]", name):
            unknown |= {f"name {name!r}"}
        calls = message.get("tool_calls") or []
        if role == "tool":
            yield Found(role, "result", id=message["tool_call_id"])
        elif not calls or unknown:
            yield Found(role, "message", unknown=frozenset(unknown))
        for block in _blocks(message.get("content") or message.get("tool_plan")):
            yield Found(role, block.get("type", "?"), block.get("text", "x"))
        for call in calls:
            function = call["function"]
            is_valid = isinstance(json.loads(function["arguments"]), dict) and bool(
                re.fullmatch("[a-zA-Z_][a-zA-Z0-9_-]{0,63}", function["name"])
            )
            yield Found(role, "call" if is_valid else f"call {call}", id=call["id"])


def _ollama(body: Any) -> Reading:
    # Go's decoder: texts are strings, arguments objects; other keys are ignored.
    for message in body["messages"]:
        kind = "text" if isinstance(message.get("content", ""), str) else "list"
        yield Found(message["role"], kind)
        for call in message.get("tool_calls") or []:
            arguments = call["function"]["arguments"]
            yield Found(message["role"], f"arguments_{type(arguments).__name__}")


def _responses(body: Any) -> Reading:
    prefixes = {"message": "msg", "function_call": "fc", "reasoning": "rs"}
    kinds = {"function_call": "call", "function_call_output": "result"}
    for item in body["input"]:
        kind, role = item.get("type", "message"), item.get("role", "")
        prefix = prefixes.get(kind, "")
        is_known = str(item.get("id") or prefix).startswith(prefix)
        unknown = frozenset() if is_known else frozenset({f"id {item['id']!r}"})
        found = Found(role, kinds.get(kind, kind), id=item.get("call_id", ""))
        yield found._replace(unknown=unknown)
        for block in _blocks(item.get("content") or item.get("output")):
            yield Found(role, block["type"])


def _anthropic(body: Any) -> Reading:
    kinds = {"tool_use": "call", "tool_result": "result"}

    def found(role: str, block: Any) -> Reading:
        kind = block["type"]
        known = {"type", "cache_control", *_ANTHROPIC_KEYS.get(kind, "").split()}
        given = block.get("id") or block.get("tool_use_id") or ""
        text, unknown = block.get("text", "x"), frozenset(block.keys() - known)
        yield Found(role, kinds.get(kind, kind), text, given, unknown)
        if kind == "tool_result":
            for inner in _blocks(block["content"]):
                yield from found("tool", inner)

    for message in body["messages"]:
        for block in _blocks(message["content"]):
            yield from found(message["role"], block)


def _converse(body: Any) -> Reading:
    kinds = {"toolUse": "call", "toolResult": "result"}
    last = ""
    for message in body["messages"]:
        role, blocks = message["role"], message["content"]
        if role == last or not blocks:
            yield Found(role, f"turn of {len(blocks)} blocks after {last}")
        last = role
        for block in blocks:
            kind, value = next(iter(block.items()))
            text = value if kind == "text" else "x"
            given = value["toolUseId"] if kind in kinds else ""
            unknown = frozenset([*block][1:])
            yield Found(role, kinds.get(kind, kind), text, given, unknown)
            for inner in value["content"] if kind == "toolResult" else []:
                yield Found("tool", next(iter(inner)))


def _gemini(body: Any) -> Reading:
    # A call is known by its name here.
    kinds = {"functionCall": "call", "functionResponse": "result"}
    data = {"text", "inlineData", "fileData", *kinds}
    for turn in body["contents"]:
        # What a tool gave is among the results of one turn.
        has_results = any("functionResponse" in part for part in turn["parts"])
        role = "tool" if has_results else turn["role"]
        for part in turn["parts"]:
            kind = " ".join(sorted(part.keys() & data))
            given = part[kind]["name"] if kind in kinds else ""
            unknown = part.keys() - data - {"thought", "thoughtSignature"}
            found = Found(role, kinds.get(kind, kind), id=given)
            yield found._replace(unknown=frozenset(unknown))


_READERS: Final[Mapping[str, tuple[Callable[[Any], Reading], str]]] = {
    "openai-responses": (_responses, ".{1,64}"),
    "anthropic": (_anthropic, "[a-zA-Z0-9_-]{1,64}"),
    "aws-invoke": (_anthropic, "[a-zA-Z0-9_-]{1,64}"),
    "aws-converse": (_converse, "[a-zA-Z0-9_-]{1,64}"),
    "google-genai": (_gemini, ".+"),
    "google-vertexai": (_gemini, ".+"),
    "mistralai": (_chat, "[a-zA-Z0-9]{9}"),
    "ollama": (_ollama, ""),
}
# The blocks of each role.
_KINDS: Final[Mapping[Any, dict[str, str]]] = {
    _chat: {
        "system": "message text",
        "user": "message text image_url input_audio file",
        "assistant": "message text refusal call",
        "tool": "result text document",  # Documents are Cohere's.
    },
    _ollama: dict.fromkeys(
        ("system", "user", "assistant", "tool"), "text arguments_dict"
    ),
    _responses: {
        "": "reasoning call result text input_text input_image input_file",
        "system": "message text input_text",
        "user": "message text input_text input_image input_file",
        "assistant": "message text output_text refusal",
    },
    _anthropic: {
        "user": "text image result",
        "assistant": "text thinking call",
        "tool": "text image",
    },
    _converse: {
        "user": "text image result",
        "assistant": "text reasoningContent call",
        "tool": "text image",
    },
    _gemini: {
        "user": "text inlineData fileData",
        "model": "text call",
        "tool": "text inlineData fileData result",
    },
}


def complaints(name: str, body: Any, own: set[str]) -> Iterator[str]:
    """What is wrong in a request to the provider of this row of the matrix.

    `own` are ids of calls that the provider made itself.
    """
    read, pattern = _READERS.get(name, (_chat, ".{1,40}"))
    kinds = _KINDS[read]
    waiting: list[str] = []
    used: set[str] = set()
    last = Found("", "")
    for place, found in enumerate(read(body)):
        role, kind = found.role, found.kind
        if kind not in kinds[role].split():
            yield f"{place}: {kind!r} of {role}"
        if found.unknown or not found.text.strip():
            yield f"{place}: {found}"
        if name == "mistralai" and (last.role, role) == ("tool", "user"):
            yield f"{place}: Unexpected role 'user' after role 'tool'"
        if kind == "call":
            is_fit = re.fullmatch(pattern, found.id) or found.id in own
            if not is_fit or (found.id in used and read is not _gemini):
                yield f"{place}: id {found.id!r}"
            waiting.append(found.id)
            used.add(found.id)
        elif kind == "result":
            if found.id not in waiting:
                yield f"{place}: no call has the id {found.id!r}"
            else:
                waiting.remove(found.id)
        elif waiting and role not in {"", "tool"}:
            yield f"{place}: {kind} of {role}, and no results of {waiting}"
        last = found
    if waiting:
        yield f"no results of {waiting}"


def read_choice(name: str, body: Any) -> str:
    """A request's choice of tools: "any", "auto", "none" or a name."""
    if "contents" in body:
        config = body["toolConfig"]["functionCallingConfig"]
        names = config.get("allowedFunctionNames", [])
        words = {1: "auto", 2: "any", 3: "none"}  # google.cloud.aiplatform's enum
        mode = words.get(config["mode"]) or str(config["mode"]).lower()
        return names[0] if len(names) == 1 else mode
    if "toolConfig" in body:
        choice = body["toolConfig"].get("toolChoice", {"auto": {}})
        return str(choice["tool"]["name"] if "tool" in choice else next(iter(choice)))
    choice = body.get("tool_choice", body.get("tool_choice_option", "auto"))
    if isinstance(choice, str):
        words_of = {"required": "any", "REQUIRED": "any", "NONE": "none"}
        word = choice if name in {"mistralai", "fireworks"} and choice == "any" else (
            words_of | {"none": "none", "auto": "auto"})[choice]  # fmt: skip
        is_only = word == "any" and len(body["tools"]) == 1
        return str(body["tools"][0]["function"]["name"] if is_only else word)
    if _READERS.get(name, (None,))[0] is _anthropic:
        return str(choice.get("name") or choice["type"])
    assert choice["type"] == "function"
    return str((choice if name == "openai-responses" else choice["function"])["name"])
