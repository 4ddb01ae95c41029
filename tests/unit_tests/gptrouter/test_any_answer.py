"""Answers of any content: cut into pieces anywhere, or with any JSON in any place."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, message_chunk_to_message

from langchain_retryrouter import GPTRouter, GPTRouterModel, RetryRouterError
from langchain_retryrouter.testing import Body, FakeClock, FaultyGateway, Status
from tests.support.models import gpt_router
from tests.unit_tests.chat_models.frames import event_stream, sum_of

MODELS = {"gpt-4": "chat_openai", "claude": "anthropic"}
# A gateway is not made anew for each example; the first draw makes tables of Unicode.
PROPERTY = settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


class Asked:
    """Reads scripted answers with a model of the gateway."""

    def __init__(self, gateway: FaultyGateway, llm: GPTRouter) -> None:
        self.gateway, self.llm = gateway, llm

    def whole(self, answer: Any) -> AIMessage:
        """The message of an answer in one piece."""
        self.gateway.always(Body(200, None, json.dumps(answer)))
        return self.llm.invoke("hi")

    def streamed(self, events: list[Any]) -> AIMessage:
        self.gateway.always(stream_of(events))
        message = message_chunk_to_message(sum_of(list(self.llm.stream("hi"))))
        assert isinstance(message, AIMessage)
        return message

    def inside(self, events: list[Any]) -> AIMessage:
        """The message of a stream inside `invoke`."""
        self.gateway.script(Status(500))
        self.gateway.always(stream_of(events))
        return self.llm.invoke("hi")


def stream_of(events: list[Any]) -> Body:
    return event_stream(*(f"data: {json.dumps(event)}" for event in events))


@pytest.fixture
def asked(faulty_gateway: FaultyGateway) -> Asked:
    models = [
        GPTRouterModel(name=name, provider_name=provider)
        for name, provider in MODELS.items()
    ]
    fields: dict[str, Any] = {"max_retries": 1, "clock": FakeClock()}
    llm = gpt_router(faulty_gateway, models_priority_list=models, **fields)
    return Asked(faulty_gateway, llm)


# --- cut anywhere ---

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
    model, citations = draw(st.sampled_from([*MODELS, "else"])), draw(CITATIONS)
    choice: dict[str, Any] = {
        "index": 0,
        "text": text,
        "finish_reason": reason,
        "reasoning_content": thought,
        "tool_calls": whole_calls or None,
    }
    source = {"providerId": "p", "modelId": "m"}
    whole: dict[str, Any] = {
        "id": "chatcmpl-1",
        "model": model,
        "choices": [choice],
        **source,
    }
    whole |= {"meta": {"usage": usage}, "citations": citations}
    return whole, [
        *({"event": "update", "id": "chatcmpl-1", "data": one} for one in updates),
        {"event": "meta", "data": {"model": model, "usage": usage}},
        {"event": "generation_source", "data": source, "citations": citations},
        {"event": "end", "data": "end"},
    ]


def told(message: AIMessage) -> dict[str, Any]:
    """All of a message except the id of its run and the attempts that it took."""
    written = message.model_dump(exclude={"id"})
    for name in ("retryrouter", "model"):
        written["response_metadata"].pop(name, None)
    return written


@PROPERTY
@given(answers())
def test_chunks_add_up_to_the_answer_in_one_piece(
    asked: Asked, answer: tuple[dict[str, Any], list[dict[str, Any]]]
) -> None:
    """Text, calls, reasoning, usage and metadata are the same, however it is cut."""
    whole, events = answer

    in_one_piece = asked.whole(whole)
    streamed = asked.streamed(events)

    assert told(streamed) == told(in_one_piece)
    assert told(asked.inside(events)) == told(in_one_piece)
    assert streamed.content_blocks == in_one_piece.content_blocks
    assert json.loads(json.dumps(streamed.response_metadata))


# --- any JSON ---

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
ANY = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


def some(**optional: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """An object with some of these keys."""
    return st.fixed_dictionaries({}, optional=optional)


USAGES = ANY | some(prompt_tokens=ANY, completion_tokens=ANY, total_tokens=ANY)
FUNCTIONS = ANY | some(name=ANY, arguments=ANY)
CALLS = ANY | some(index=ANY, id=ANY, function=FUNCTIONS)
SAID: dict[str, Any] = {
    "text": ANY,
    "finish_reason": ANY,
    "tool_calls": ANY | st.lists(CALLS, max_size=2),
    "function_call": FUNCTIONS,
    "reasoning_content": ANY,
    "citations": ANY | st.lists(ANY, max_size=2),
}
SOURCE: dict[str, Any] = {"model": ANY, "providerId": ANY, "modelId": ANY}
DATA = ANY | some(**SAID, usage=USAGES, **SOURCE)
KINDS = st.sampled_from(["update", "meta", "generation_source", "end", "error", "x"])
EVENTS = st.fixed_dictionaries(
    {"event": KINDS | ANY},
    optional={"data": DATA, "id": ANY, "provider": ANY, "message": ANY},
)
CHOICES = some(**SAID, index=st.just(0) | ANY, role=ANY, message=ANY | some(**SAID))
ANSWERS = some(
    id=ANY,
    choices=ANY | st.lists(ANY | CHOICES, max_size=2),
    meta=ANY | st.fixed_dictionaries({"usage": USAGES}),
    citations=ANY,
    **SOURCE,
)


def check(message: AIMessage) -> None:
    """All of a message can be written, and its blocks can be read."""
    assert json.dumps(message.response_metadata)
    assert json.loads(dumps(message))["type"] == "constructor"
    assert isinstance(message.content_blocks, list)


@PROPERTY
@given(st.lists(EVENTS, max_size=4))
def test_any_events_are_a_message_or_an_error(
    asked: Asked, events: list[dict[str, Any]]
) -> None:
    """Any JSON as events is a message, or an error of the package."""
    last = {"event": "update", "data": {"text": "", "finish_reason": "stop"}}
    events = [*events, last, {"event": "end", "data": "end"}]
    for read in (asked.streamed, asked.inside):
        with contextlib.suppress(RetryRouterError):
            check(read(events))


@PROPERTY
@given(ANSWERS)
def test_any_answer_is_a_message_or_an_error(
    asked: Asked, answer: dict[str, Any]
) -> None:
    """Any JSON object as an answer is a message, or an error of the package."""
    with contextlib.suppress(RetryRouterError):
        check(asked.whole(answer))
