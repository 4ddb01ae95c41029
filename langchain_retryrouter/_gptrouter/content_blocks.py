"""A gateway's answer as LangChain's standard content blocks.

Importing this registers the reading with LangChain, which asks it for `content_blocks`
of messages whose `model_provider` is ours. Beside LangChain's own best effort it has
the citations as annotations, calls without an id, and unreadable calls; and pieces of a
stream get indices of their own, or a call's piece would be added to a text's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages import content as types
from langchain_core.messages.block_translators import register_translator

PROVIDER: Final = "gptrouter"
"""The `model_provider` of our messages."""

_CITATION_FIELDS: Final = {
    "url": str,
    "title": str,
    "cited_text": str,
    "start_index": int,
    "end_index": int,
}


def translate_content(message: AIMessage) -> list[types.ContentBlock]:
    """The blocks of a whole message.

    Raises:
        NotImplementedError: If its content is a list, which our answers never have;
            LangChain then reads it by itself.
    """
    blocks = _said(message)
    blocks += [{**call, "type": "tool_call"} for call in message.tool_calls]
    blocks += [
        {**call, "type": "invalid_tool_call"} for call in message.invalid_tool_calls
    ]
    return cast("list[types.ContentBlock]", blocks)


def translate_content_chunk(message: AIMessageChunk) -> list[types.ContentBlock]:
    """The blocks of a chunk, or of the sum of a stream's chunks.

    Raises:
        NotImplementedError: As `translate_content`.
    """
    is_sum = message.content or message.tool_call_chunks or message.additional_kwargs
    if is_sum and message.chunk_position == "last":
        return translate_content(message)
    blocks = [
        {**block, "index": "lc_txt_0" if block["type"] == "text" else "lc_rs_0"}
        for block in _said(message)
    ]
    blocks += [
        {**call, "type": "tool_call_chunk", "index": f"lc_tc_{call['index']}"}
        for call in message.tool_call_chunks
    ]
    return cast("list[types.ContentBlock]", blocks)


def _said(message: AIMessage) -> list[dict[str, Any]]:
    if not isinstance(message.content, str):
        raise NotImplementedError
    blocks: list[dict[str, Any]] = []
    reasoning = message.additional_kwargs.get("reasoning_content")
    if reasoning and isinstance(reasoning, str):
        blocks.append({"type": "reasoning", "reasoning": reasoning})
    text: dict[str, Any] = {"type": "text", "text": message.content}
    citations = message.response_metadata.get("citations")
    if citations and isinstance(citations, list):
        text["annotations"] = [_annotation(citation) for citation in citations]
    if message.content or "annotations" in text:
        blocks.append(text)
    return blocks


def _annotation(citation: Any) -> dict[str, Any]:
    if isinstance(citation, str):
        return {"type": "citation", "url" if "://" in citation else "title": citation}
    if not isinstance(citation, dict):
        return {"type": "non_standard_annotation", "value": {"citation": citation}}
    told = _flat(citation)
    known = {
        name: told[name]
        for name, kind in _CITATION_FIELDS.items()
        if isinstance(told.get(name), kind)
    }
    if not known:
        return {"type": "non_standard_annotation", "value": citation}
    extras = {key: value for key, value in told.items() if key not in known}
    return {"type": "citation", **known, **({"extras": extras} if extras else {})}


def _flat(citation: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI nests a citation under its type's name."""
    nested = citation.get(str(citation.get("type")))
    told = nested if isinstance(nested, dict) else citation
    return {key: value for key, value in told.items() if key != "type"}


register_translator(PROVIDER, translate_content, translate_content_chunk)
