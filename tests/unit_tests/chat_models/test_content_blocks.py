"""Standard content blocks of our answers, reasoning and citations among them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from langchain_retryrouter import StreamInterruptedError
from langchain_retryrouter.testing import Body, FaultyGateway, Status

from .conftest import WAYS, Env, NewModel
from .frames import END, event_stream, sum_of

CITED: list[Any] = [
    "https://example.com/a",
    "The Book",
    {
        "type": "url_citation",
        "url_citation": {
            "url": "https://example.com/b",
            "title": "B",
            "start_index": 0,
            "end_index": 4,
            "of_the_provider": 1,
        },
    },
    {"index": 1, "of_the_provider": True},
    5,
]
ANNOTATIONS = [
    {"type": "citation", "url": "https://example.com/a"},
    {"type": "citation", "title": "The Book"},
    {
        "type": "citation",
        "url": "https://example.com/b",
        "title": "B",
        "start_index": 0,
        "end_index": 4,
        "extras": {"of_the_provider": 1},
    },
    {"type": "non_standard_annotation", "value": {"index": 1, "of_the_provider": True}},
    {"type": "non_standard_annotation", "value": {"citation": 5}},
]
CALL = {"name": "f", "arguments": '{"a": 1}'}
BLOCKS = [
    {"type": "reasoning", "reasoning": "Hm, well."},
    {"type": "text", "text": "So it is.", "annotations": ANNOTATIONS},
    {"type": "tool_call", "id": "call_0", "name": "f", "args": {"a": 1}},
]


def event(kind: str, data: dict[str, Any], **rest: Any) -> str:
    return "data: " + json.dumps({"event": kind, "data": data, **rest})


def update(**data: Any) -> str:
    return event("update", {"text": "", "finish_reason": None, **data})


STREAM = event_stream(
    update(reasoning_content="Hm, "),
    update(thinking="well."),
    update(text="So it ", citations=CITED[:2]),
    update(text="is.", citations=CITED[1:4]),
    update(tool_calls=[{"index": 0, "id": "call_0", "function": {"name": "f"}}]),
    update(tool_calls=[{"index": 0, "function": {"arguments": '{"a": '}}]),
    update(tool_calls=[{"index": 0, "function": {"arguments": "1}"}}]),
    update(finish_reason="tool_calls"),
    event("meta", {"model": "m"}, citations=CITED[4:]),
    END,
)
CHOICE = {
    "index": 0,
    "text": "So it is.",
    "finish_reason": "tool_calls",
    "reasoning_content": "Hm, well.",
    "tool_calls": [{"id": "call_0", "function": CALL}],
    "citations": CITED[2:],
}
WHOLE = Body(
    200,
    {"content-type": "application/json"},
    json.dumps({"id": "a", "model": "m", "choices": [CHOICE], "citations": CITED[:2]}),
)


def without_index(blocks: list[Any]) -> list[Any]:
    return [{k: v for k, v in one.items() if k != "index"} for one in blocks]


def by_url(citations: list[Any]) -> list[str]:
    return sorted(map(repr, citations))


@pytest.mark.parametrize("output_version", ["v0", "v1"])
@pytest.mark.parametrize("way", [*WAYS, "inside"])
def test_an_answer_has_all_its_blocks(env: Env, way: str, output_version: str) -> None:
    """Reasoning, cited text and calls are blocks, streamed or not, in both versions."""
    streamed = way != "invoke"
    env.gateway.script(
        *[Status(500)] * (way == "inside"), STREAM if streamed else WHOLE
    )

    message = env.ask(way, output_version=output_version)

    blocks = [{**block} for block in message.content_blocks]
    if output_version == "v1":
        assert message.content == blocks
    else:
        assert message.content == "So it is."
    blocks, citations = without_index(blocks), message.response_metadata["citations"]
    if streamed:
        assert (blocks, citations) == (BLOCKS, CITED)
    else:  # The same sources in another order.
        assert by_url(blocks[1].pop("annotations")) == by_url(ANNOTATIONS)
        assert blocks == [BLOCKS[0], {"type": "text", "text": "So it is."}, BLOCKS[2]]
        assert by_url(citations) == by_url(CITED)
    assert message.text == "So it is."
    assert message.tool_calls == [BLOCKS[2]]


def test_each_chunk_has_its_blocks(env: Env) -> None:
    """The index of a chunk's block says which block it is added to."""
    env.gateway.always(STREAM)

    chunks = env.stream(env.llm(), "hi")

    seen = [block for chunk in chunks for block in chunk.content_blocks]
    assert [(block["type"], block["index"]) for block in seen] == [
        ("reasoning", "lc_rs_0"),
        ("reasoning", "lc_rs_0"),
        ("text", "lc_txt_0"),
        ("text", "lc_txt_0"),
        ("tool_call_chunk", "lc_tc_0"),
        ("tool_call_chunk", "lc_tc_0"),
        ("tool_call_chunk", "lc_tc_0"),
        ("text", "lc_txt_0"),
    ]
    assert seen[-1]["annotations"] == ANNOTATIONS


def test_a_v1_answer_can_be_sent_back(env: Env) -> None:
    """An answer in v1 form goes out again as text and calls, without reasoning."""
    env.gateway.script(STREAM)
    answer = sum_of(env.stream(env.llm(output_version="v1"), "hi"))

    env.invoke(env.llm(), [HumanMessage("hi"), answer])

    assert env.gateway.requests[-1].parameters["messages"][1:] == [
        {
            "role": "assistant",
            "content": "So it is.",
            "tool_calls": [{"id": "call_0", "type": "function", "function": CALL}],
        }
    ]


def test_a_stream_that_delivered_reasoning_is_not_retried(env: Env) -> None:
    """A stream whose reasoning the caller has seen is not retried."""
    env.gateway.always(event_stream(update(reasoning_content="Hm, ")))
    chunks: list[Any] = []

    with pytest.raises(StreamInterruptedError) as caught:
        env.stream(env.llm(), "hi", into=chunks)

    assert [chunk.additional_kwargs for chunk in chunks] == [
        {"reasoning_content": "Hm, "}
    ]
    assert caught.value.delivered == ""
    assert len(env.gateway.requests) == 1


UNREADABLE = {"id": "b", "function": {**CALL, "arguments": "no"}}
INVALID = {"type": "invalid_tool_call", "id": "b", "name": "f", "args": "no"}


def test_calls_without_an_id_and_unreadable_calls_are_blocks(env: Env) -> None:
    """A call without an id, or with arguments that are not JSON, is a block too."""
    calls = [{"function": CALL}, UNREADABLE]
    body = {"choices": [{"index": 0, "text": "", "tool_calls": calls}]}
    env.gateway.always(Status(200, None, body))

    call, invalid = env.ask("invoke").content_blocks

    assert call == {"type": "tool_call", "id": None, "name": "f", "args": {"a": 1}}
    assert invalid == {**invalid, **INVALID}


@pytest.mark.parametrize(
    ("said", "block"),
    [
        ({"reasoning": "Hm."}, {"type": "reasoning", "reasoning": "Hm."}),
        ({"tool_calls": [UNREADABLE]}, {**INVALID, "error": None}),
    ],
)
def test_a_sum_without_text_has_whole_blocks(
    env: Env, said: dict[str, Any], block: dict[str, Any]
) -> None:
    """The sum of a stream without text has the blocks of a whole message."""
    env.gateway.always(event_stream(update(**said), update(finish_reason="stop"), END))

    assert env.ask("stream").content_blocks == [block]


def test_events_of_a_stream_tell_the_blocks_apart(
    new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """LangChain's block events have reasoning, text with citations, and calls."""
    gateway.always(STREAM)

    events = list(new_llm().stream_events("hi", version="v3"))

    finished = [
        event["content"] for event in events if event["event"] == "content-block-finish"
    ]
    assert without_index(finished) == BLOCKS
