"""Calls of tools and functions in answers, wherever a gateway puts them."""

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
    {"type": "tool_call", "id": "call_0", "name": "get_weather"}
    | {"args": {"city": "Paris"}},
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
    """One element of `tool_calls`, without the keys that are None."""
    function = {"name": name, "arguments": arguments}
    function = {key: value for key, value in function.items() if value is not None}
    call = {"index": index, "id": id, "function": function}
    return {key: value for key, value in call.items() if value is not None}


def said(finish_reason: str | None = None, **data: Any) -> str:
    """One update of a stream."""
    data = {"text": "", "finish_reason": finish_reason, **data}
    return "data: " + json.dumps({"event": "update", "data": data})


def stream_of(*pieces: Any) -> Body:
    """A stream in which each of these pieces is an event of its own."""
    updates = [said(tool_calls=[one]) for one in pieces]
    return event_stream(*updates, said("tool_calls"), END)


def whole(choice: dict[str, Any]) -> Body:
    """An answer that is not streamed, with one choice."""
    body = {"id": "a", "model": "m", "choices": [{"index": 0, **choice}]}
    return Body(200, {"content-type": "application/json"}, json.dumps(body))


# --- streamed ---


def test_a_streamed_call_arrives(env: Env) -> None:
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


CITY, PARIS, WHOLE_CITY = '{"city": ', '"Paris"}', '{"city": "Paris"}'
ZONE = '{"zone": "CET"}'
IN_PIECES = {
    "taking turns": [
        piece(0, "call_0", "get_weather", ""),
        piece(1, "call_1", "get_time", ""),
        piece(0, arguments=CITY),
        piece(1, arguments=ZONE),
        piece(0, arguments=PARIS),
    ],
    "without an index": [
        piece(None, "call_0", "get_weather", CITY),
        piece(arguments=PARIS),
        piece(None, "call_1", "get_time"),
        piece(arguments=ZONE),
    ],
    "an id with each piece and no index": [
        piece(None, "call_0", "get_weather", CITY),
        piece(None, "call_1", "get_time", '{"zone": '),
        piece(None, "call_0", None, PARIS),
        piece(None, "call_1", None, '"CET"}'),
    ],
    "id and name with each piece": [
        piece(0, "call_0", "get_weather", CITY),
        piece(0, "call_0", "get_weather", PARIS),
        piece(1, "call_1", "get_time", ZONE),
    ],
    "id and name empty": [
        piece(0, "call_0", "get_weather", CITY),
        piece(0, "", "", PARIS),
        piece(1, "call_1", "get_time", ZONE),
    ],
    "all calls have index 0": [
        piece(0, "call_0", "get_weather", WHOLE_CITY),
        piece(0, "call_1", "get_time", ZONE),
    ],
    "the whole calls again": [
        piece(0, "call_0", "get_weather", CITY),
        piece(0, arguments=PARIS),
        piece(1, "call_1", "get_time", ZONE),
        piece(0, "call_0", "get_weather", WHOLE_CITY),
        piece(1, "call_1", "get_time", ZONE),
    ],
    "odd indices and a name in two": [
        piece(3, "call_0", "get_", ""),
        piece(3, name="weather", arguments=WHOLE_CITY),
        piece(5, "call_1", "get_time", ZONE),
    ],
}


@pytest.mark.parametrize("name", IN_PIECES)
def test_pieces_are_added_to_their_call(env: Env, name: str) -> None:
    """However a gateway tells which call a piece belongs to, the calls are whole."""
    body = stream_of(*IN_PIECES[name])
    env.gateway.script(body, Status(500), body)

    assert env.ask("stream").tool_calls == PARSED
    assert env.ask("invoke").tool_calls == PARSED


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
        calls = env.ask("stream").tool_calls
        assert [(call["name"], call["args"], call["id"]) for call in calls] == [
            ("get_weather", {"city": "Paris"}, None),
            ("get_weather", {"city": "Rome"}, None),
            ("get_time", {}, None),
        ]


def test_a_function_call_is_in_additional_kwargs(env: Env) -> None:
    """`function_call` is read from answers and streams, also with a repeated name."""
    call = FunctionCall(FUNCTION["name"], FUNCTION["arguments"])
    updates = [
        said(function_call={"name": "get_weather", "arguments": part})
        for part in (CITY, PARIS)
    ]
    body = event_stream(*updates, said("function_call"), END)
    answer = Answer(function_call=call, finish_reason="function_call")
    env.gateway.script(body, Status(500), body, answer)

    streamed, inside = env.ask("stream"), env.ask("invoke")
    plain = env.invoke(env.llm(), "hi", functions=[TOOLS[0]["function"]])

    for message in (streamed, inside, plain):
        assert message.content == ""
        assert message.additional_kwargs == {"function_call": FUNCTION}
        assert message.tool_calls == []
        assert message.response_metadata["finish_reason"] == "function_call"


# --- in one piece ---


def test_an_empty_call_is_left_out(env: Env) -> None:
    """An element of `tool_calls` without content is left out, streamed or not."""
    empty: list[Any] = [
        {},
        {"index": 0},
        {"id": "", "function": {"name": "", "arguments": ""}},
    ]
    env.gateway.script(whole({"text": "hi", "tool_calls": empty}), stream_of(*empty))

    assert env.ask("invoke").tool_calls == []
    assert env.ask("stream").tool_calls == []


WHOLE = [
    piece(None, "call_0", "get_weather", WHOLE_CITY),
    piece(1, "call_1", "get_time", ZONE),
]


@pytest.mark.parametrize(
    "choice",
    [
        {"text": "", "tool_calls": WHOLE},
        {"text": None, "finish_reason": None, "tool_calls": WHOLE}
        | {"function_call": None},
        {"message": {"role": "assistant", "content": None, "tool_calls": WHOLE}},
        {"text": None, "tool_calls": None, "message": {"tool_calls": WHOLE}},
    ],
)
def test_calls_of_an_answer_in_one_piece_are_read(
    env: Env, choice: dict[str, Any]
) -> None:
    """Tool calls of an answer that is not streamed are read, also from `message`."""
    env.gateway.always(whole(choice))

    message = env.ask("invoke")

    assert message.content == ""
    assert message.tool_calls == PARSED
    assert message.additional_kwargs == {}


def test_the_text_of_a_message_is_read(env: Env) -> None:
    """A choice as OpenAI has it, with its text in `message`, is read."""
    message = {"content": "in a message", "function_call": FUNCTION}
    env.gateway.script(
        whole({"message": message}), whole({"text": "own", "message": message})
    )

    alone, beside = env.ask("invoke"), env.ask("invoke")

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
        message = env.ask("invoke")

        assert message.tool_calls == PARSED[1:]
        [invalid] = message.invalid_tool_calls
        assert (invalid["id"], invalid["name"]) == ("call_0", "get_weather")
        assert invalid["args"] == arguments
        assert invalid["error"]


# --- what cannot be read ---


@pytest.mark.parametrize(
    "choice",
    [
        {"text": 5},
        {"text": {"nested": "text"}},
        {"text": "x", "finish_reason": 5},
        {"text": "", "tool_calls": "get_weather"},
        {"text": "", "tool_calls": {"index": 0}},
        {"text": "", "tool_calls": ["get_weather"]},
        {"text": "", "tool_calls": [{"index": "first"}]},
        {"text": "", "tool_calls": [{"id": 5}]},
        {"text": "", "tool_calls": [{"function": "get_weather"}]},
        {"text": "", "tool_calls": [{"function": {"arguments": {"city": "Paris"}}}]},
        {"text": "", "function_call": "get_weather"},
        {"text": "", "function_call": {"name": 5}},
        {"text": "", "function_call": {"arguments": {}}},
    ],
)
def test_content_that_cannot_be_read_is_an_error(
    env: Env, choice: dict[str, Any]
) -> None:
    """Text or calls of a wrong type are an error, not an answer without them."""
    update = "data: " + json.dumps({"event": "update", "data": choice})
    env.gateway.script(event_stream(update, said("stop"), END), whole(choice))

    with pytest.raises(MalformedResponseError, match="not of the protocol"):
        env.ask("stream", max_retries=0)
    with pytest.raises(MalformedResponseError, match="not of its protocol"):
        env.ask("invoke", max_retries=0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"5",
        b"[]",
        b"{}",
        b'{"event":null}',
        b'{"event":5,"data":{}}',
        b'{"event":"update"',
        b'{"event":"update","data":"text"}',
        b'{"event":"update","data":null}',
        b'{"event":"update","data":["text"]}',
        b"\xff",
        b'{"event":"update","data":{"text":"\xff"}}',
        b"[" * 200_000,
    ],
    ids=lambda data: repr(data[:40]),
)
def test_an_event_that_cannot_be_read_is_an_error(env: Env, data: bytes) -> None:
    """An event that is not a JSON object of the protocol is an error."""
    rest = f"\n\n{said('stop')}\n\n{END}\n\n".encode()
    headers = {"content-type": "text/event-stream"}
    env.gateway.script(Body(200, headers, b"data: " + data + rest))

    with pytest.raises(MalformedResponseError, match="not of the protocol"):
        env.ask("stream", max_retries=0)
