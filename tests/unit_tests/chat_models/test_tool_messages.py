"""Calls of tools and functions that come back: read wherever a gateway puts them.

The rows are those of the table in `test_defect_table`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from langchain_retryrouter import MalformedResponseError
from langchain_retryrouter.testing import Answer, Body, FunctionCall, Status, ToolCall

from .conftest import Env
from .frames import END, event_stream, sum_of

WEATHER = ToolCall("get_weather", ('{"ci', 'ty": "', 'Paris"', "}"), id="call_0")
TIME = ToolCall("get_time", '{"zone": "CET"}', id="call_1")
PARSED = [
    {
        "type": "tool_call",
        "id": "call_0",
        "name": "get_weather",
        "args": {"city": "Paris"},
    },
    {"type": "tool_call", "id": "call_1", "name": "get_time", "args": {"zone": "CET"}},
]
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("get_weather", "get_time")
]
FUNCTION = {"name": "get_weather", "arguments": '{"city": "Paris"}'}


def piece(
    index: int | None = None,
    id: str | None = None,  # noqa: A002 - the wire's name
    name: str | None = None,
    arguments: str | None = None,
) -> dict[str, Any]:
    """One element of `tool_calls`; what is None is not there at all."""
    function = {"name": name, "arguments": arguments}
    call = {
        "index": index,
        "id": id,
        "function": {
            key: value for key, value in function.items() if value is not None
        },
    }
    return {key: value for key, value in call.items() if value is not None}


def said(finish_reason: str | None = None, **data: Any) -> str:
    """One update of a stream."""
    data = {"text": "", "finish_reason": finish_reason, **data}
    return "data: " + json.dumps({"event": "update", "data": data})


def stream_of(*pieces: dict[str, Any]) -> Body:
    """A stream in which each of these pieces is an event of its own."""
    updates = [said(tool_calls=[one]) for one in pieces]
    return event_stream(*updates, said("tool_calls"), END)


def whole(choice: dict[str, Any]) -> Body:
    """An answer that is not streamed, with one choice."""
    body = {"id": "a", "model": "m", "choices": [{"index": 0, **choice}]}
    return Body(200, {"content-type": "application/json"}, json.dumps(body))


# --- streamed ---


def test_c3_a_streamed_call_arrives(env: Env) -> None:
    """The chunks of a stream carry the pieces of its calls, and add up to the calls."""
    env.gateway.always(Answer("Let me see.", tool_calls=(WEATHER, TIME)))

    chunks = env.stream(env.llm(), "hi", tools=TOOLS)
    message = sum_of(chunks)

    pieces = [call for chunk in chunks for call in chunk.tool_call_chunks]
    assert [(one["index"], one["args"]) for one in pieces] == [
        (0, ""),
        *((0, part) for part in WEATHER.arguments),
        (1, ""),
        (1, '{"zone": "CET"}'),
    ]
    assert message.content == "Let me see."
    assert message.tool_calls == PARSED
    assert message.invalid_tool_calls == []


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param(
            [
                piece(0, "call_0", "get_weather", ""),
                piece(1, "call_1", "get_time", ""),
                piece(0, arguments='{"city": '),
                piece(1, arguments='{"zone": "CET"}'),
                piece(0, arguments='"Paris"}'),
            ],
            id="taking turns",
        ),
        pytest.param(
            [
                piece(None, "call_0", "get_weather", '{"city": '),
                piece(arguments='"Paris"}'),
                piece(None, "call_1", "get_time"),
                piece(arguments='{"zone": "CET"}'),
            ],
            id="without an index",
        ),
        pytest.param(
            [
                piece(None, "call_0", "get_weather", '{"city": '),
                piece(None, "call_1", "get_time", '{"zone": '),
                piece(None, "call_0", None, '"Paris"}'),
                piece(None, "call_1", None, '"CET"}'),
            ],
            id="an id with each piece and no index",
        ),
        pytest.param(
            [
                piece(0, "call_0", "get_weather", '{"city": '),
                piece(0, "call_0", "get_weather", '"Paris"}'),
                piece(1, "call_1", "get_time", '{"zone": "CET"}'),
            ],
            id="id and name with each piece",
        ),
        pytest.param(
            [
                piece(0, "call_0", "get_weather", '{"city": '),
                piece(0, "", "", '"Paris"}'),
                piece(1, "call_1", "get_time", '{"zone": "CET"}'),
            ],
            id="id and name empty",
        ),
        pytest.param(
            [
                piece(0, "call_0", "get_weather", '{"city": "Paris"}'),
                piece(0, "call_1", "get_time", '{"zone": "CET"}'),
            ],
            id="all calls have index 0",
        ),
        pytest.param(
            [
                piece(0, "call_0", "get_weather", '{"city": '),
                piece(0, arguments='"Paris"}'),
                piece(1, "call_1", "get_time", '{"zone": "CET"}'),
                piece(0, "call_0", "get_weather", '{"city": "Paris"}'),
                piece(1, "call_1", "get_time", '{"zone": "CET"}'),
            ],
            id="the whole calls again",
        ),
        pytest.param(
            [
                piece(3, "call_0", "get_", ""),
                piece(3, name="weather", arguments='{"city": "Paris"}'),
                piece(5, "call_1", "get_time", '{"zone": "CET"}'),
            ],
            id="odd indices and a name in two",
        ),
    ],
)
def test_pieces_find_their_call(env: Env, pieces: list[dict[str, Any]]) -> None:
    """However a gateway says which call a piece belongs to, the calls are whole."""
    env.gateway.script(stream_of(*pieces), Status(500), stream_of(*pieces))

    streamed = sum_of(env.stream(env.llm(), "hi"))
    inside = env.invoke(env.llm(), "hi")

    assert streamed.tool_calls == PARSED
    assert inside.tool_calls == PARSED


def test_calls_without_ids_are_told_apart_by_their_names(env: Env) -> None:
    """Without index and id each piece with a name is a call, and none is doubled."""
    pieces = [
        piece(None, None, "get_weather", '{"city": "Paris"}'),
        piece(None, None, "get_weather", '{"city": "Rome"}'),
        piece(None, None, "get_time"),
    ]
    env.gateway.script(
        stream_of(*pieces), stream_of(*({**one, "index": 0} for one in pieces))
    )

    for _ in range(2):
        calls = sum_of(env.stream(env.llm(), "hi")).tool_calls
        assert [(call["name"], call["args"], call["id"]) for call in calls] == [
            ("get_weather", {"city": "Paris"}, None),
            ("get_weather", {"city": "Rome"}, None),
            ("get_time", {}, None),
        ]


def test_a_streamed_function_call_adds_up(env: Env) -> None:
    """A gateway that streams `function_call` is understood, a name said twice too."""
    pieces = [
        {"name": "get_weather", "arguments": '{"city": '},
        {"name": "get_weather", "arguments": '"Paris"}'},
    ]
    updates = [said(function_call=one) for one in pieces]
    body = event_stream(*updates, said("function_call"), END)
    env.gateway.script(body, Status(500), body)

    streamed = sum_of(env.stream(env.llm(), "hi"))
    inside = env.invoke(env.llm(), "hi")

    assert streamed.additional_kwargs == {"function_call": FUNCTION}
    assert inside.additional_kwargs == {"function_call": FUNCTION}
    assert inside.response_metadata["finish_reason"] == "function_call"


# --- in one piece ---


def test_c4_a_function_call_is_where_langchain_openai_has_it(env: Env) -> None:
    """`function_call` of an answer is in `additional_kwargs`, its arguments a text."""
    call = FunctionCall(FUNCTION["name"], FUNCTION["arguments"])
    env.gateway.always(Answer(function_call=call, finish_reason="function_call"))

    message = env.invoke(env.llm(), "hi", functions=[TOOLS[0]["function"]])

    assert message.content == ""
    assert message.additional_kwargs == {"function_call": FUNCTION}
    assert message.tool_calls == []
    assert message.response_metadata["finish_reason"] == "function_call"


def test_an_empty_call_is_no_call(env: Env) -> None:
    """An element that says nothing is left out, streamed or not."""
    empty: list[Any] = [
        {},
        {"index": 0},
        {"id": "", "function": {"name": "", "arguments": ""}},
    ]
    env.gateway.script(whole({"text": "hi", "tool_calls": empty}), stream_of(*empty))

    assert env.invoke(env.llm(), "hi").tool_calls == []
    assert sum_of(env.stream(env.llm(), "hi")).tool_calls == []


WHOLE = [
    piece(None, "call_0", "get_weather", '{"city": "Paris"}'),
    piece(1, "call_1", "get_time", '{"zone": "CET"}'),
]


@pytest.mark.parametrize(
    "choice",
    [
        {"text": "", "tool_calls": WHOLE},
        {
            "text": None,
            "finish_reason": None,
            "tool_calls": WHOLE,
            "function_call": None,
        },
        {"message": {"role": "assistant", "content": None, "tool_calls": WHOLE}},
        {"text": None, "tool_calls": None, "message": {"tool_calls": WHOLE}},
    ],
)
def test_c2_tool_calls_of_an_answer_in_one_piece_are_read(
    env: Env, choice: dict[str, Any]
) -> None:
    """A gateway that does not drop the calls of an unstreamed answer is understood."""
    env.gateway.always(whole(choice))

    message = env.invoke(env.llm(), "hi")

    assert message.content == ""
    assert message.tool_calls == PARSED
    assert message.additional_kwargs == {}


def test_the_text_of_a_message_is_read(env: Env) -> None:
    """A choice as OpenAI has it, with its text in `message`, is understood."""
    message = {"content": "in a message", "function_call": FUNCTION}
    env.gateway.script(
        whole({"message": message}), whole({"text": "own", "message": message})
    )

    alone = env.invoke(env.llm(), "hi")
    beside = env.invoke(env.llm(), "hi")

    assert (alone.content, beside.content) == ("in a message", "own")
    assert alone.additional_kwargs == {"function_call": FUNCTION}


@pytest.mark.parametrize(
    "arguments", ['{"city": "Par', "Paris", "[1]", '"Paris"', "[" * 100_000]
)
def test_arguments_that_are_no_json_object_are_an_invalid_call(
    env: Env, arguments: str
) -> None:
    """A call that cannot be parsed is in `invalid_tool_calls`, with the reason."""
    call = piece(0, "call_0", "get_weather", arguments)
    env.gateway.script(
        whole({"text": "", "tool_calls": [call, WHOLE[1]]}),
        Status(500),
        stream_of(call, WHOLE[1]),
    )

    for _ in range(2):
        message = env.invoke(env.llm(), "hi")

        assert message.tool_calls == PARSED[1:]
        [invalid] = message.invalid_tool_calls
        assert (invalid["id"], invalid["name"]) == ("call_0", "get_weather")
        assert invalid["args"] == arguments
        assert invalid["error"]


@pytest.mark.parametrize(
    "choice",
    [
        {"text": "", "tool_calls": "get_weather"},
        {"text": "", "tool_calls": {"index": 0}},
        {"text": "", "tool_calls": ["get_weather"]},
        {"text": "", "tool_calls": [{"id": 5}]},
        {"text": "", "tool_calls": [{"function": "get_weather"}]},
        {"text": "", "tool_calls": [{"function": {"arguments": {"city": "Paris"}}}]},
        {"text": "", "function_call": "get_weather"},
        {"text": "", "function_call": {"name": 5}},
    ],
)
def test_calls_that_cannot_be_read_are_an_error(
    env: Env, choice: dict[str, Any]
) -> None:
    """A call that is none is an error and not an answer without it."""
    env.gateway.always(whole(choice))

    with pytest.raises(MalformedResponseError, match="not of its protocol"):
        env.invoke(env.llm(max_retries=0), "hi")


# --- answers with nulls ---
