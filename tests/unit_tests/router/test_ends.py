"""What is a token and what is an end, by table and in chunks of real integrations."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from langchain_retryrouter import GPTRouter, GPTRouterModel
from langchain_retryrouter._providers.finish_reasons import (
    ChunkReader,
    finish_reason_in,
    has_finish_reason,
    reports_finish_reason,
)
from langchain_retryrouter._retry.streaming import ChunkInfo, StreamGuard
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Answer,
    FaultyGateway,
    MissingDone,
    Step,
    ToolCall,
    Truncate,
)

from .anthropic_wire import END, TEXT, after_the_beginning
from .attempts import WAYS, Way, ask
from .models import chat_anthropic, chat_openai

STREAMING = [way for way in WAYS if way.is_streaming]


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"finish_reason": "stop"}, "stop"),
        ({"finish_reason": "STOP"}, "STOP"),
        ({"finish_reason": "length", "model_name": "m"}, "length"),
        ({"stop_reason": "end_turn", "stop_sequence": None}, "end_turn"),
        ({"stopReason": "tool_use"}, "tool_use"),
        ({"done": True, "done_reason": "stop"}, "stop"),
        ({"object": "response", "status": "completed"}, "completed"),
        (
            {
                "object": "response",
                "status": "incomplete",
                "incomplete_details": {"reason": "max_output_tokens"},
            },
            "max_output_tokens",
        ),
        ({"object": "response", "status": "in_progress"}, None),
        ({"object": "response", "status": "failed"}, None),
        ({"status": "completed"}, None),
        ({"done": False, "done_reason": None}, None),
        ({"stop_reason": None}, None),
        ({"finish_reason": ""}, None),
        ({"finish_reason": "error"}, None),
        ({"finish_reason": "FINISH_REASON_UNSPECIFIED"}, None),
        ({"model_provider": "openai"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_where_a_reason_stands(facts: dict[str, Any], reason: str | None) -> None:
    """Each integration's name for the reason is known, wherever it puts the facts."""
    message = AIMessage("", response_metadata=facts)
    assert finish_reason_in(message) == reason
    assert finish_reason_in(ChatGeneration(message=message)) == reason
    bare = ChatGeneration(message=AIMessage(""), generation_info=facts)
    assert finish_reason_in(bare) == reason


@pytest.mark.parametrize(
    ("chunk", "text", "is_token"),
    [
        (AIMessageChunk(content=""), "", False),
        (AIMessageChunk(content="word"), "word", True),
        (AIMessageChunk(content=[]), "", False),
        (AIMessageChunk(content=[{"type": "text", "text": "", "index": 0}]), "", False),
        (
            AIMessageChunk(
                content=[
                    {"type": "text", "text": "", "id": "msg_1", "phase": "final_answer"}
                ]
            ),
            "",
            False,
        ),
        (
            AIMessageChunk(content=[{"type": "text", "text": "a", "index": 0}]),
            "a",
            True,
        ),
        (AIMessageChunk(content=[{"type": "thinking", "thinking": "hm"}]), "", True),
        (
            AIMessageChunk(content=[{"type": "thinking", "thinking": "", "index": 0}]),
            "",
            False,
        ),
        (
            AIMessageChunk(content=[{"type": "reasoning", "id": "rs", "summary": []}]),
            "",
            False,
        ),
        (AIMessageChunk(content=["", "word"]), "word", True),
        (
            AIMessageChunk(
                content="",
                tool_call_chunks=[
                    {
                        "name": "f",
                        "args": "",
                        "id": "1",
                        "index": 0,
                        "type": "tool_call_chunk",
                    }
                ],
            ),
            "",
            True,
        ),
        (
            AIMessageChunk(content="", additional_kwargs={"refusal": "I will not"}),
            "",
            True,
        ),
        (AIMessageChunk(content="", additional_kwargs={"refusal": None}), "", False),
        (
            AIMessageChunk(
                content="", additional_kwargs={"function_call": {"name": "f"}}
            ),
            "",
            True,
        ),
        (
            AIMessageChunk(content="", response_metadata={"model_provider": "openai"}),
            "",
            False,
        ),
    ],
    ids=repr,
)
def test_what_is_a_token(chunk: AIMessageChunk, text: str, is_token: bool) -> None:
    """A chunk commits its route only when it holds something to be read."""
    signal = ChunkReader()(ChatGenerationChunk(message=chunk))
    assert signal == ChunkInfo(text=text, is_token=is_token)


def guard_over(way: Way, model: Any) -> StreamGuard:
    """What a guard has seen when the stream is over."""
    guard, read = StreamGuard(), ChunkReader()
    for chunk in ask(way, model):
        guard.see(read(chunk))
    assert guard.is_whole == (read.finish_reason is not None)
    return guard


@pytest.mark.parametrize("way", STREAMING, ids=str)
@pytest.mark.parametrize(
    ("step", "is_whole"),
    [(Answer(), True), (MissingDone(), True), (Truncate(after=3), False)],
    ids=repr,
)
def test_a_truncated_stream_of_chat_openai_is_known(
    way: Way, step: Step, is_whole: bool
) -> None:
    """A clean end of the body without a finish reason is no success."""
    with FaultyGateway() as gateway:
        gateway.script(step)
        model = chat_openai(gateway)
        assert reports_finish_reason(model)
        guard = guard_over(way, model)
    assert guard.is_whole is is_whole
    assert STUB_TEXT.startswith(guard.delivered)
    assert (guard.delivered == STUB_TEXT) is is_whole


@pytest.mark.parametrize("way", STREAMING, ids=str)
def test_a_call_of_a_tool_is_a_whole_answer(way: Way) -> None:
    """A stream that only calls a tool has a token and an end, and no text."""
    with FaultyGateway() as gateway:
        call = ToolCall("f", "{}", id="call_1")
        gateway.script(Answer(text="", tool_calls=(call,)))
        guard = guard_over(way, chat_openai(gateway))
    assert (guard.saw_token, guard.is_whole, guard.delivered) == (True, True, "")


@pytest.mark.parametrize("way", STREAMING, ids=str)
@pytest.mark.parametrize(
    ("events", "is_whole"), [(TEXT + END, True), (TEXT, False)], ids=["whole", "cut"]
)
def test_a_truncated_stream_of_chat_anthropic_is_known(
    way: Way, events: str, is_whole: bool
) -> None:
    """A stream of Anthropic's is whole when its `message_delta` has come."""
    with FaultyGateway() as gateway:
        gateway.script(after_the_beginning(events))
        model = chat_anthropic(gateway)
        assert reports_finish_reason(model)
        guard = guard_over(way, model)
    assert (guard.is_whole, guard.delivered) == (is_whole, "Hello.")


@pytest.mark.parametrize("way", STREAMING, ids=str)
def test_chat_anthropic_without_usage(way: Way) -> None:
    """A missing reason counts as a cut if the installed version passes reasons on."""
    with FaultyGateway() as gateway:
        gateway.script(after_the_beginning(TEXT, END))
        model = chat_anthropic(gateway)
        model.stream_usage = False
        assert reports_finish_reason(model) is guard_over(way, model).is_whole


class OwnStream(ChatOpenAI):
    """A subclass that streams in its own way."""

    def _stream(self, *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        return iter(())

    async def _astream(self, *_: Any, **__: Any) -> AsyncIterator[ChatGenerationChunk]:
        return
        yield


class OwnName(ChatOpenAI):
    """A subclass that leaves the streaming alone, as many integrations do."""


def test_who_tells_the_end() -> None:
    """Only where the stream's own code is known does a missing reason mean a cut."""
    key = SecretStr("any")
    own = GPTRouterModel(name="gpt-4o", provider_name="openai")
    router = GPTRouter(models_priority_list=[own], gpt_router_api_key=key)
    assert reports_finish_reason(ChatOpenAI(model="gpt-4o", api_key=key))
    assert reports_finish_reason(OwnName(model="gpt-4o", api_key=key))
    assert not reports_finish_reason(
        router
    )  # It raises by itself where the end is missing.
    assert not reports_finish_reason(OwnStream(model="gpt-4o", api_key=key))
    assert not reports_finish_reason(GenericFakeChatModel(messages=iter(())))


@pytest.mark.parametrize(
    ("reasons", "llm_output", "is_named"),
    [
        (["stop"], None, True),
        (["stop", "length"], {}, True),
        ([None], {"stop_reason": "end_turn"}, True),
        ([None], {"stop_reason": None}, False),
        ([None], None, False),
        (["stop", None], {"stop_reason": "end_turn"}, False),
        ([None, "stop"], {}, False),
    ],
)
def test_a_result_may_name_the_end_of_its_only_answer(
    reasons: list[str | None], llm_output: dict[str, Any] | None, is_named: bool
) -> None:
    """Anthropic's reason is in `llm_output`, which says nothing of one in several."""
    generations = [
        ChatGeneration(
            message=AIMessage("Hi"), generation_info={"finish_reason": reason}
        )
        for reason in reasons
    ]
    result = ChatResult(generations=generations, llm_output=llm_output)
    assert has_finish_reason(result) is is_named
