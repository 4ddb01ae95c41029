"""Answers that are JSON, and not quite the gateway's: read, or refused with a type.

What carries the answer (text, finish reason, calls) must be what it should be; what
stands beside it (ids, models, usage) is left out where it is odd, since the answer was
paid for.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.load import dumps
from langchain_core.messages import AIMessageChunk, BaseMessage

from langchain_retryrouter import MalformedResponseError, RetryRouterError
from langchain_retryrouter._gptrouter.messages import ChunkReader, assemble, read_result
from langchain_retryrouter._gptrouter.protocol import (
    EventReader,
    read_event,
    read_json,
    read_response,
)

PROVIDERS = {"gpt-4": "chat_openai"}


def event(kind: str, data: Any, **rest: Any) -> bytes:
    return json.dumps({"event": kind, "data": data, **rest}).encode()


@pytest.mark.parametrize(
    "data",
    [
        "text",
        None,
        ["text"],
        {"text": 5},
        {"text": {"nested": "text"}},
        {"text": "x", "finish_reason": 5},
        {"text": "x", "tool_calls": {"index": 0}},
        {"text": "x", "tool_calls": ["call"]},
        {"text": "x", "tool_calls": [{"index": "first"}]},
        {"text": "x", "tool_calls": [{"index": 0, "id": 7}]},
        {"text": "x", "tool_calls": [{"index": 0, "function": "f"}]},
        {"text": "x", "tool_calls": [{"index": 0, "function": {"arguments": {}}}]},
        {"text": "x", "function_call": "f"},
        {"text": "x", "function_call": {"arguments": {}}},
    ],
)
def test_an_update_that_cannot_be_read_is_an_error(data: Any) -> None:
    """An update without readable content is refused: its text would be lost."""
    with pytest.raises(MalformedResponseError, match="not of the protocol"):
        read_event(event("update", data))


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"text": None, "finish_reason": None},
        {"text": "x", "tool_calls": None},
        {"text": "x", "tool_calls": []},
        {"text": "x", "tool_calls": [{"index": 0, "function": None}]},
        {"text": "x", "of_the_provider": {"anything": [1, 2]}},
    ],
)
def test_an_update_may_have_nulls_and_more(data: dict[str, Any]) -> None:
    """Nulls mean that there is nothing; keys of the provider's own are handed on."""
    assert read_event(event("update", data)).data == data


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"5",
        b"[]",
        b"{}",
        b'{"event":null}',
        b'{"event":5,"data":{}}',
        b'{"event":"update"',
        b"\xff",
        b'{"event":"update","data":{"text":"\xff"}}',
        b"[" * 200_000,
    ],
)
def test_what_is_no_event_is_an_error(body: bytes) -> None:
    """Data that is no JSON object with an event's name is refused, whatever it is."""
    with pytest.raises(MalformedResponseError, match="not of the protocol"):
        read_event(body)


def test_ids_that_are_no_text_are_left_out() -> None:
    """An id that is a number does not cost the answer."""
    odd = read_event(event("update", {"text": "x"}, id=5, provider={"name": "p"}))

    assert (odd.id, odd.provider, odd.data) == (None, None, {"text": "x"})


@pytest.mark.parametrize(
    "usage",
    [
        None,
        5,
        "many",
        [1],
        {},
        {"prompt_tokens": None},
        {"prompt_tokens": "many"},
        {"prompt_tokens": 1.5},
    ],
)
def test_usage_that_cannot_be_read_is_left_out(usage: Any) -> None:
    """Usage that is odd or absent does not cost the answer, streamed or not."""
    read = ChunkReader(PROVIDERS)
    chunk = read(read_event(event("meta", {"usage": usage})))
    assert chunk is not None
    assert isinstance(chunk.message, AIMessageChunk)
    assert chunk.message.usage_metadata is None

    answer = {"choices": [{"index": 0, "text": "x"}], "meta": {"usage": usage}}
    [generation] = read_result(read_response(answer), PROVIDERS).generations
    assert generation.message.usage_metadata is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "body", [b"{", b"\xff", b"[1]", b'"text"', b"", b"[" * 200_000]
)
def test_a_body_that_is_no_json_object_is_an_error(body: bytes) -> None:
    """A 200 whose body is no JSON object says what it is instead."""
    with pytest.raises(MalformedResponseError) as caught:
        read_json(body, 200)

    assert caught.value.status_code == 200
    assert len(str(caught.value)) < 300


# --- anything at all ---

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
COUNTS = st.fixed_dictionaries(
    {},
    optional={f"{name}_tokens": ANYTHING for name in ("prompt", "completion", "total")},
)
FUNCTIONS = st.fixed_dictionaries(
    {}, optional={"name": ANYTHING, "arguments": ANYTHING}
)
CALLS = st.fixed_dictionaries(
    {}, optional={"index": ANYTHING, "id": ANYTHING, "function": ANYTHING | FUNCTIONS}
)
SAID = {
    "text": ANYTHING,
    "tool_calls": ANYTHING | st.lists(ANYTHING | CALLS, max_size=2),
    "function_call": ANYTHING | FUNCTIONS,
    "reasoning_content": ANYTHING,
    "citations": ANYTHING | st.lists(ANYTHING, max_size=2),
}
DATA = ANYTHING | st.fixed_dictionaries(
    {},
    optional={
        **SAID,
        "finish_reason": ANYTHING,
        "model": ANYTHING,
        "usage": ANYTHING | COUNTS,
        "providerId": ANYTHING,
        "modelId": ANYTHING,
    },
)
KINDS = st.sampled_from(["update", "meta", "generation_source", "end", "error", "x"])
EVENTS = st.fixed_dictionaries(
    {"event": KINDS | ANYTHING},
    optional={"data": DATA, "id": ANYTHING, "provider": ANYTHING, "message": ANYTHING},
)
CHOICES = st.fixed_dictionaries(
    {},
    optional={
        **SAID,
        "index": st.just(0) | ANYTHING,
        "finish_reason": ANYTHING,
        "role": ANYTHING,
        "message": ANYTHING | st.fixed_dictionaries({}, optional=SAID),
    },
)
ANSWERS = st.fixed_dictionaries(
    {},
    optional={
        "id": ANYTHING,
        "model": ANYTHING,
        "choices": ANYTHING | st.lists(ANYTHING | CHOICES, max_size=2),
        "meta": ANYTHING | st.fixed_dictionaries({"usage": ANYTHING | COUNTS}),
        "providerId": ANYTHING,
        "modelId": ANYTHING,
        "citations": ANYTHING,
    },
)


def check_message(message: BaseMessage) -> None:
    """All of a message can be written, and its blocks can be read."""
    assert json.dumps(message.response_metadata)
    assert json.loads(dumps(message))["type"] == "constructor"
    assert isinstance(message.content_blocks, list)


# The first draw makes tables of Unicode, which is slow on a machine that has to do.
UNHURRIED = settings(suppress_health_check=[HealthCheck.too_slow])


@UNHURRIED
@given(st.lists(EVENTS, max_size=4))
def test_any_events_add_up_or_are_refused(events: list[dict[str, Any]]) -> None:
    """Whatever JSON comes as events, there is a message, or one of our errors."""
    reader = EventReader()
    with contextlib.suppress(RetryRouterError):
        read = [read_event(json.dumps(one).encode()) for one in events]
        for one in read:
            reader(one)
        to_chunk = ChunkReader(PROVIDERS)
        chunks = [chunk for one in read if (chunk := to_chunk(one))]
        for chunk in chunks[1:]:
            chunks[0] += chunk
        for chunk in chunks:
            check_message(chunk.message)
        check_message(read_result(assemble(read), PROVIDERS).generations[0].message)


@UNHURRIED
@given(ANSWERS)
def test_any_answer_is_read_or_refused(answer: dict[str, Any]) -> None:
    """Whatever JSON object comes as an answer, it is read, or one of our errors."""
    with contextlib.suppress(RetryRouterError):
        result = read_result(read_response(answer), PROVIDERS)
        assert json.dumps(result.llm_output)
        for generation in result.generations:
            check_message(generation.message)
