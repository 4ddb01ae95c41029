"""A conversation as the gateway takes it: LangChain's messages in OpenAI's form.

Pure. What a user, a tool or the system says is sent whole, or an error names what
cannot be. Of what a model said its text, its media and its calls are sent back: the
rest, such as reasoning, is a provider's record of its own work, which no other takes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    convert_to_openai_data_block,
    is_data_content_block,
)
from langchain_core.messages.utils import convert_to_openai_messages

from langchain_retryrouter.errors import UnsupportedOptionError

# Blocks that LangChain's own conversion puts into OpenAI's form.
_CONVERTED: Final = frozenset(
    {"image_url", "image", "file", "audio", "input_audio", "media", "json"}
)
_PLAIN_ROLES: Final = {HumanMessage: "user", SystemMessage: "system"}
_CALLS: Final = frozenset({"tool_use", "tool_call", "function_call"})
# LangChain's own marks on a text, which no provider knows.
_MARKS: Final = frozenset({"id", "index", "annotations", "extras"})


def build_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """LangChain's messages as the gateway takes them.

    Every message has a `content` key, since the gateway answers 500 to one without; the
    role `developer`, which it does not know, is `system`.

    Raises:
        UnsupportedOptionError: If a message has content that cannot be sent.
    """
    return [built for message in messages for built in _build(message)]


def _build(message: BaseMessage) -> Iterator[dict[str, Any]]:
    if isinstance(message, AIMessage):
        yield _build_ai(message)
        return
    content = message.content
    role = _PLAIN_ROLES.get(type(message))
    if role and isinstance(content, str) and _is_bare(message):
        # What most messages are; LangChain's own way takes ten times as long.
        yield {"role": role, "content": content}
        return
    built = _frame(message)
    if isinstance(content, str):
        yield {**built, "content": content}
        return
    results, said = _split(content, "tool_result")
    # The results of a call are to follow it at once.
    yield from _tool_results(results)
    if said or not results:
        parts = [part for block in said for part in _parts(block, built["role"])]
        yield {**built, "content": _fewest(parts)}


def _is_bare(message: BaseMessage) -> bool:
    return message.name is None and not message.additional_kwargs


def _build_ai(message: AIMessage) -> dict[str, Any]:
    built = _frame(message)
    content = message.content
    blocks = [content] if isinstance(content, str) else content
    calls = [*built.pop("tool_calls", []), *_calls_besides(message, blocks)]
    if calls:
        built["tool_calls"] = calls
    elif legacy := message.additional_kwargs.get("function_call"):
        built["function_call"] = legacy
    said = _fewest([part for block in blocks for part in _said_parts(block)])
    nothing = None if calls or "function_call" in built else ""
    return {**built, "content": said or _words_besides(message) or nothing}


def _words_besides(message: AIMessage) -> str:
    """What a model said without a content; the gateway knows no key for it."""
    audio = message.additional_kwargs.get("audio")
    spoken = audio.get("transcript") if isinstance(audio, dict) else None
    return message.additional_kwargs.get("refusal") or spoken or ""


def _frame(message: BaseMessage) -> dict[str, Any]:
    """All of a message but its content, in OpenAI's form."""
    empty = message.model_copy(update={"content": ""})
    try:
        frame: dict[str, Any] = convert_to_openai_messages(empty)
    except (TypeError, ValueError) as error:
        msg = f"a message of type {message.type!r} cannot be sent: {error}"
        raise UnsupportedOptionError(msg) from error
    if frame["role"] == "developer":
        frame["role"] = "system"
    frame.pop("name", None)
    frame.pop("refusal", None)
    name = message.name or message.additional_kwargs.get("name")
    if name is not None and not isinstance(message, ToolMessage):
        frame["name"] = name
    return frame


# --- calls --------------------------------------------------------------------------


def _calls_besides(
    message: AIMessage, blocks: Iterable[str | dict[Any, Any]]
) -> Iterator[dict[str, Any]]:
    """The calls that are not in `tool_calls`: unreadable ones, and those in blocks."""
    known = {call["id"] for call in (*message.tool_calls, *message.invalid_tool_calls)}
    for invalid in message.invalid_tool_calls:
        yield _call(invalid["id"], invalid["name"], invalid["args"] or "")
    for block in blocks:
        if not isinstance(block, dict) or block.get("type") not in _CALLS:
            continue
        id_ = block.get("call_id") or block.get("id")
        if id_ is not None and id_ not in known:
            arguments = block.get("arguments", block.get("input", block.get("args")))
            if not isinstance(arguments, str):
                arguments = json.dumps(arguments or {}, ensure_ascii=False)
            yield _call(id_, block.get("name"), arguments)


def _call(id_: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "id": id_, "function": function}


def _tool_results(blocks: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Anthropic's blocks for what tools said, as messages of their own."""
    for block in blocks:
        content = block.get("content") or ""
        yield from _build(
            ToolMessage(content, tool_call_id=block.get("tool_use_id") or "")
        )


def _split(
    blocks: Iterable[str | dict[Any, Any]], kind: str
) -> tuple[list[dict[Any, Any]], list[str | dict[Any, Any]]]:
    """The blocks of this kind, and the others."""
    found: list[dict[Any, Any]] = []
    others: list[str | dict[Any, Any]] = []
    for block in blocks:
        if isinstance(block, dict) and block.get("type") == kind:
            found.append(block)
        else:
            others.append(block)
    return found, others


# --- content ------------------------------------------------------------------------


def _said_parts(block: str | dict[Any, Any]) -> list[dict[str, Any]]:
    """A block of what a model said; nothing if it is its provider's own."""
    kind = "text" if isinstance(block, str) else block.get("type")
    if kind in {"text", "refusal"}:
        text = block if isinstance(block, str) else block.get(kind)
        return [{"type": "text", "text": text}] if text else []
    if kind not in _CONVERTED:
        return []
    try:
        return _parts(block, "assistant")
    except UnsupportedOptionError:
        return []


def _parts(block: str | dict[Any, Any], role: str) -> list[dict[str, Any]]:
    """A block of what was said to a model, as OpenAI's parts of a content."""
    if isinstance(block, str):
        return [{"type": "text", "text": block}]
    kind = block.get("type")
    if kind == "non_standard" and isinstance(block.get("value"), dict):
        return [block["value"]]  # What the caller says is the provider's own.
    if kind in {"text", "text-plain"} and isinstance(block.get("text"), str):
        own = {key: value for key, value in block.items() if key not in _MARKS}
        return [own if kind == "text" else {"type": "text", "text": block["text"]}]
    if kind is None and role == "tool":
        return [{"type": "text", "text": json.dumps(block, ensure_ascii=False)}]
    if kind not in _CONVERTED and not {"image", "guard_content"} & block.keys():
        raise _unsendable(block, role, "no provider's form for it is known")
    try:
        return _converted(block)
    except (ValueError, KeyError, TypeError) as error:
        raise _unsendable(block, role, str(error)) from error


def _converted(block: dict[Any, Any]) -> list[dict[str, Any]]:
    source = block.get("source")
    if block.get("type") == "image_url" and isinstance(block.get("image_url"), str):
        block = {**block, "image_url": {"url": block["image_url"]}}
    elif isinstance(source, dict) and source.get("type") == "url":
        # Anthropic's, whose other form LangChain knows.
        block = {"type": "image_url", "image_url": {"url": source["url"]}}
    elif isinstance(file := block.get("file"), dict) and file.get("file_id"):
        return [block]
    if is_data_content_block(block):
        return [convert_to_openai_data_block(block)]
    message: dict[str, Any] = convert_to_openai_messages(
        HumanMessage([block]), text_format="block"
    )
    parts: list[dict[str, Any]] = message["content"]
    return parts


def _unsendable(
    block: Mapping[Any, Any], role: str, reason: str
) -> UnsupportedOptionError:
    told = reason.split("Full content block", maxsplit=1)[0].strip()
    return UnsupportedOptionError(
        f"a message of role {role!r} cannot carry a content block of type"
        f" {block.get('type')!r}: {told}. To send a block of your provider's own as it"
        " is, put it into {'type': 'non_standard', 'value': ...}."
    )


def _fewest(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """One text as a text: the public gateway counts the tokens of no list."""
    if not parts:
        return ""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        return str(parts[0]["text"])
    return parts
