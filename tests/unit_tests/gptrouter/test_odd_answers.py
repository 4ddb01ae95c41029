"""Any JSON in place of the gateway's answer is read, or is an error of its class."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.load import dumps
from langchain_core.messages import BaseMessage

from langchain_retryrouter import RetryRouterError
from langchain_retryrouter._gptrouter.messages import ChunkReader, assemble, read_result
from langchain_retryrouter._gptrouter.protocol import (
    EventReader,
    read_event,
    read_response,
)

PROVIDERS = {"gpt-4": "chat_openai"}


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
