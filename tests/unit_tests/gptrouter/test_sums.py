"""An answer cut into pieces anywhere is the answer in one piece."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, message_chunk_to_message
from langchain_core.messages.ai import add_ai_message_chunks
from langchain_core.outputs import ChatResult

from langchain_retryrouter._gptrouter.messages import ChunkReader, assemble, read_result
from langchain_retryrouter._gptrouter.protocol import (
    GatewayEvent,
    read_event,
    read_response,
)

PROVIDERS = {"gpt-4": "chat_openai", "claude": "anthropic"}
TEXTS = st.text(max_size=12)
NAMES = st.text("abc_", min_size=1, max_size=4)
VALUES = st.none() | st.booleans() | st.integers(-9, 9) | TEXTS
ARGUMENTS = st.dictionaries(NAMES, VALUES | st.lists(VALUES, max_size=2), max_size=3)
COUNTS = st.integers(0, 1000)
CITATIONS = st.lists(
    st.sampled_from(["https://a", "b"]) | st.fixed_dictionaries({"index": COUNTS}),
    max_size=3,
    unique_by=repr,
)


@st.composite
def cut(draw: st.DrawFn, text: str) -> list[str]:
    """`text` in pieces, some of them empty."""
    places = draw(st.lists(st.integers(0, len(text)), max_size=4))
    ends = [*sorted(places), len(text)]
    return [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]


@st.composite
def answers(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A gateway's answer in one piece, and as the events of a stream."""
    text, thought = draw(TEXTS), draw(TEXTS)
    updates: list[dict[str, Any]] = [
        *({"reasoning_content": piece} for piece in draw(cut(thought))),
        *({"text": piece} for piece in draw(cut(text))),
    ]
    whole_calls = []
    for index in range(draw(st.integers(0, 3))):
        arguments = json.dumps(draw(ARGUMENTS))
        function = {"name": draw(NAMES), "arguments": arguments}
        call = {"id": f"call_{index}", "type": "function", "function": function}
        whole_calls.append(call)
        head, *rest = draw(cut(arguments))
        opening = {**call, "function": {**function, "arguments": head}}
        place = {"index": index} if draw(st.booleans()) else {"id": call["id"]}
        pieces = [
            {**place, **opening},
            *({**place, "function": {"arguments": piece}} for piece in rest),
        ]
        if draw(st.booleans()):
            pieces.append({**place, **call})  # A gateway may say it all again.
        updates += [{"tool_calls": [piece]} for piece in pieces]
    if draw(st.booleans()):
        updates = [{**one, "finish_reason": None} for one in updates]
    reason = draw(st.sampled_from(["stop", "length", "tool_calls"]))
    updates.append({"text": "", "finish_reason": reason})
    usage = {
        "prompt_tokens": draw(COUNTS),
        "completion_tokens": draw(COUNTS),
        "prompt_tokens_details": {"cached_tokens": draw(COUNTS)},
    }
    model, citations = draw(st.sampled_from([*PROVIDERS, "else"])), draw(CITATIONS)
    choice: dict[str, Any] = {
        "index": 0,
        "text": text,
        "finish_reason": reason,
        "reasoning_content": thought,
        "tool_calls": whole_calls or None,
    }
    whole = {
        "id": "chatcmpl-1",
        "model": model,
        "choices": [choice],
        "meta": {"usage": usage},
        "providerId": "p",
        "modelId": "m",
        "citations": citations,
    }
    source = {"providerId": "p", "modelId": "m"}
    events: list[dict[str, Any]] = [
        *({"event": "update", "id": "chatcmpl-1", "data": one} for one in updates),
        {"event": "meta", "data": {"model": model, "usage": usage}},
        {"event": "generation_source", "data": source, "citations": citations},
        {"event": "end", "data": "end"},
    ]
    return whole, events


def message_of(result: ChatResult) -> AIMessage:
    """The message as LangChain hands it over: with all that was said beside it."""
    [generation] = result.generations
    message = generation.message
    assert isinstance(message, AIMessage)
    beside = {**(result.llm_output or {}), **(generation.generation_info or {})}
    message.response_metadata = {**beside, **message.response_metadata}
    return message


def sum_of(events: list[GatewayEvent]) -> AIMessage:
    """The sum of a stream's chunks, as LangChain adds them up."""
    read = ChunkReader(PROVIDERS)
    chunks = [chunk for event in events if (chunk := read(event)) is not None]
    for chunk in chunks:
        chunk.message.response_metadata |= chunk.generation_info or {}
    total = add_ai_message_chunks(*(chunk.message for chunk in chunks))  # type: ignore[arg-type]
    message = message_chunk_to_message(total)
    assert isinstance(message, AIMessage)
    return message


def without_extras(message: AIMessage) -> dict[str, Any]:
    told = message.model_dump()
    # The community class's name for `model_name`, in its `llm_output` alone.
    told["response_metadata"].pop("model", None)
    return told


# The first draw makes tables of Unicode, which is slow on a machine that has to do.
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(answers())
def test_chunks_add_up_to_the_answer_in_one_piece(
    answer: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    """Text, calls, reasoning, usage and metadata are the same, however it is cut."""
    whole, told = answer
    events = [read_event(json.dumps(event).encode()) for event in told]

    in_one_piece = message_of(read_result(read_response(whole), PROVIDERS))
    assembled = message_of(read_result(assemble(events), PROVIDERS))
    added_up = sum_of(events)

    assert without_extras(added_up) == without_extras(in_one_piece)
    assert without_extras(assembled) == without_extras(in_one_piece)
    assert added_up.content_blocks == in_one_piece.content_blocks
    assert json.loads(json.dumps(added_up.response_metadata))
