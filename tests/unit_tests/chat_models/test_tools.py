"""`bind_tools`: the tools that are sent, and the calls that come back."""

from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from pydantic import BaseModel
from typing_extensions import TypedDict

from langchain_retryrouter import (
    ContentFilterError,
    LengthLimitError,
    MalformedResponseError,
    RetryRouterError,
    StreamInterruptedError,
)
from langchain_retryrouter.testing import (
    Answer,
    Body,
    Cut,
    FaultyGateway,
    FunctionCall,
    Reset,
    Status,
    ToolCall,
)
from tests.support.rule_responder import RuleResponder

from .conftest import WAYS, Env, NewModel
from .frames import END, attempts_of, event, event_stream, sum_of, update, whole


def get_weather(city: str, days: int = 1) -> str:
    """Get the weather of a city.

    Args:
        city: Its name.
        days: How many days ahead.
    """
    return f"rain in {city} for {days} days"


@tool("get_weather")
def weather_tool(city: str) -> str:
    """Get the weather of a city."""
    return city


class GetWeather(BaseModel):
    """Get the weather of a city."""

    city: str


class Weather(TypedDict):
    """Get the weather of a city."""

    city: str


DICT = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
SEARCH = {"type": "web_search"}


@pytest.fixture
def gateway() -> Any:
    """A hosted gateway whose model answers by rules."""
    with FaultyGateway(answer=RuleResponder(), gptrouter="hosted") as gateway:
        yield gateway


def sent(gateway: FaultyGateway) -> dict[str, Any]:
    """The provider's options of the only request, without the messages."""
    (request,) = gateway.requests
    return {k: v for k, v in request.parameters.items() if k != "messages"}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        pytest.param(get_weather, "get_weather", id="function"),
        pytest.param(weather_tool, "get_weather", id="tool"),
        pytest.param(GetWeather, "GetWeather", id="pydantic"),
        pytest.param(Weather, "Weather", id="typed-dict"),
        pytest.param(DICT, "get_weather", id="dict"),
    ],
)
def test_every_form_of_a_tool_is_offered_and_called(
    env: Env, given: Any, name: str
) -> None:
    """A function, class or dict is sent in OpenAI's form, and its call comes back."""
    llm = env.llm().bind_tools([given], tool_choice="any")

    answer = env.invoke(llm, "What is the weather in 'Paris'?")

    assert type(answer) is AIMessage
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]["city"]) == (name, "Paris")
    assert call["id"]
    (offered,) = sent(env.gateway)["tools"]
    assert offered["function"]["name"] == name
    assert "city" in offered["function"]["parameters"]["properties"]
    assert answer.response_metadata["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("get_weather", {"type": "function", "function": {"name": "get_weather"}}),
        (DICT, DICT),
        (SEARCH, SEARCH),
        ("any", "required"),
        ("required", "required"),
        (True, "required"),
        ("auto", "auto"),
        ("none", "none"),
        (None, None),
        (False, None),
    ],
    ids=repr,
)
def test_the_choice_of_a_tool_is_sent(env: Env, choice: Any, expected: Any) -> None:
    """`tool_choice` takes the values of LangChain's other models, and is sent."""
    env.invoke(env.llm().bind_tools([DICT, SEARCH], tool_choice=choice), "hi")

    assert sent(env.gateway).get("tool_choice") == expected
    assert sent(env.gateway)["tools"] == [DICT, SEARCH]


def test_a_choice_that_no_tool_has_is_refused(new_llm: NewModel) -> None:
    """`bind_tools` refuses a misspelt tool, a choice without tools, and odd types."""
    misspelt = "'get_wether', and the tools are 'get_weath"
    for choice in ("get_wether", {**DICT, "function": {"name": "get_wether"}}):
        with pytest.raises(ValueError, match=misspelt):
            new_llm().bind_tools([DICT], tool_choice=choice)
    anything: list[Any] = ["any", "get_weather", True, {"type": "function"}]
    for choice in anything:
        with pytest.raises(ValueError, match="and there are no tools"):
            new_llm().bind_tools([], tool_choice=choice)
    with pytest.raises(TypeError, match="a str, bool or dict, not 5"):
        new_llm().bind_tools([DICT], tool_choice=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("choice", [None, False, "auto", "none"])
def test_an_empty_list_of_tools_is_not_sent(env: Env, choice: Any) -> None:
    """An agent without tools binds an empty list, which providers would refuse."""
    llm = env.llm().bind_tools(
        [], tool_choice=choice, parallel_tool_calls=False, top_p=1
    )

    env.invoke(llm, "hi")

    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(sent(env.gateway))
    assert sent(env.gateway)["top_p"] == 1


def test_a_call_with_tools_streams_inside(env: Env) -> None:
    """A call with tools streams inside, in which the gateway has tool calls."""
    llm = env.llm().bind_tools(
        [get_weather], strict=True, parallel_tool_calls=False, top_p=1
    )
    answer = env.invoke(llm, "get_weather('Rome')")

    assert env.gateway.requests[0].streaming
    assert sent(env.gateway)["parallel_tool_calls"] is False
    assert sent(env.gateway)["top_p"] == 1
    assert sent(env.gateway)["tools"][0]["function"]["strict"] is True
    assert answer.usage_metadata["total_tokens"] > 0
    streamed = sum_of(env.stream(llm, "get_weather('Rome')"))
    assert streamed.usage_metadata == answer.usage_metadata
    [one], [other] = answer.tool_calls, streamed.tool_calls
    assert one["args"]["city"] == "Rome"
    assert {**one, "id": None} == {**other, "id": None}


@pytest.mark.parametrize(
    "fault", [Status(429, {"retry-after": "1"}), Status(500), Reset(), Cut(after=1)]
)
def test_a_fault_does_not_double_a_tool_call(env: Env, fault: Any) -> None:
    """The pieces of a failed attempt are dropped with it."""
    env.gateway.script(fault)
    llm = env.llm().bind_tools([get_weather], tool_choice="any")

    answer = env.invoke(llm, "the weather in 'Oslo' for 3 days")

    assert [call["args"] for call in answer.tool_calls] == [{"city": "Oslo", "days": 3}]
    assert len(attempts_of(answer)) == len(env.gateway.requests) == 2


def test_several_answers_with_tools_are_refused(env: Env) -> None:
    """`n=2` is refused with tools: their stream would mix the answers."""
    with pytest.raises(ValueError, match="n must be 1 in a call with tools"):
        env.invoke(env.llm(n=2).bind_tools([DICT]), "hi")

    assert env.gateway.requests == []


# --- functions, as they were before tools ---

FUNCTION = DICT["function"]


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_function_call_survives_streaming(env: Env, way: str) -> None:
    """A call with functions never streams, not even inside after an opaque 500."""
    env.gateway.script(Status(500))
    llm = env.llm().bind(functions=[FUNCTION], function_call={"name": "get_weather"})

    message = env.message(way, llm, "the weather in 'Oslo'")

    call = message.additional_kwargs["function_call"]
    assert call == {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    assert message.response_metadata["finish_reason"] == "function_call"
    assert message.response_metadata["model_name"] == "gpt-4-0613"
    assert message.usage_metadata
    assert [request.streaming for request in env.gateway.requests] == [False, False]


def test_tools_beside_functions_stream_inside(env: Env) -> None:
    """A call with both is sent once, in a stream, where the calls of tools are."""
    env.gateway.always(Answer(tool_calls=(WEATHER,)))

    answer = env.invoke(env.llm(), "hi", functions=[FUNCTION], tools=[DICT])

    assert answer.tool_calls == PARSED[:1]
    assert [request.streaming for request in env.gateway.requests] == [True]


# --- calls in answers ---


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
CALLED = {"name": "get_weather", "arguments": '{"city": "Paris"}'}


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


def stream_of(*pieces: Any) -> Body:
    """A stream in which each of these pieces is an event of its own."""
    updates = [update(tool_calls=[one]) for one in pieces]
    return event_stream(*updates, update(finish_reason="tool_calls"), END)


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
    "another id with each piece": [
        piece(0, "call_0", "get_weather", CITY),
        piece(0, "call_x", None, PARIS),
        piece(1, "call_1", "get_time", '{"zone": '),
        piece(1, "call_y", "", '"CET"}'),
    ],
    "another id with each piece and no index": [
        piece(None, "call_0", "get_weather", CITY),
        piece(None, "call_x", None, PARIS),
        piece(None, "call_1", "get_time", ZONE),
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
    call = FunctionCall(CALLED["name"], CALLED["arguments"])
    updates = [
        update(function_call={"name": "get_weather", "arguments": part})
        for part in (CITY, PARIS)
    ]
    body = event_stream(*updates, update(finish_reason="function_call"), END)
    answer = Answer(function_call=call, finish_reason="function_call")
    env.gateway.script(body, Status(500), body, answer)

    streamed, inside = env.ask("stream"), env.ask("invoke")
    plain = env.invoke(env.llm(), "hi", functions=[TOOLS[0]["function"]])

    for message in (streamed, inside, plain):
        assert message.content == ""
        assert message.additional_kwargs == {"function_call": CALLED}
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
        {"message": {"content": "said", "tool_calls": WHOLE, "function_call": CALLED}},
        {"text": "said", "message": {"content": "other", "tool_calls": WHOLE}},
    ],
)
def test_an_answer_in_one_piece_is_read(env: Env, choice: dict[str, Any]) -> None:
    """Text and calls of an answer are read, also from OpenAI's `message`."""
    env.gateway.always(whole(choice))

    message = env.ask("invoke")

    assert message.content == ("said" if "said" in str(choice) else "")
    assert message.tool_calls == PARSED
    function = choice.get("message", {}).get("function_call")
    assert message.additional_kwargs.get("function_call") == function


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


@pytest.mark.parametrize("way", ["stream", "streaming invoke"])
@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("length", LengthLimitError),
        ("model_length", LengthLimitError),  # Mistral's.
        ("content_filter", ContentFilterError),
        ("tool_calls", MalformedResponseError),
    ],
)
def test_a_streamed_call_whose_arguments_were_cut_is_an_error(
    env: Env, way: str, reason: str, error: type[RetryRouterError]
) -> None:
    """LangChain would complete them, and an agent run its tool on half a path."""
    cut = piece(0, "call_0", "get_weather", '{"city": "/home/ada')
    frames = update(tool_calls=[cut]), update("", reason), update(), END
    env.gateway.always(event_stream(*frames))
    fields = {} if way == "stream" else {"streaming": True}
    llm = env.llm(**fields).bind_tools([get_weather])
    with pytest.raises(error, match="get_weather are not whole") as caught:
        env.message(way.rsplit(maxsplit=1)[-1], llm)
    assert (caught.value.code, caught.value.attempts) == ("invalid_tool_call", 1)
    [line] = (caught.value.attempt_log or {})["attempts"]
    assert line["outcome"] == caught.value.kind


@pytest.mark.parametrize("way", WAYS)
def test_a_stream_that_was_cut_inside_a_call_was_interrupted(
    env: Env, way: str
) -> None:
    """Without a finish reason an answer was cut, whether or not it calls a tool."""
    cut = piece(0, "call_0", "get_weather", '{"city": "/home/ada')
    env.gateway.always(event_stream(update(tool_calls=[cut]), END))
    fields = {} if way != "streaming invoke" else {"streaming": True}
    llm = env.llm(max_retries=0, **fields).bind_tools([get_weather])
    with pytest.raises(StreamInterruptedError):
        env.message(way.rsplit(maxsplit=1)[-1], llm)


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
    odd = event("update", choice)
    env.gateway.script(event_stream(odd, update("", "stop"), END), whole(choice))

    with pytest.raises(MalformedResponseError, match="not of the protocol"):
        env.ask("stream", max_retries=0)
    with pytest.raises(MalformedResponseError, match="not of its protocol"):
        env.ask("invoke", max_retries=0)


@pytest.mark.parametrize(
    "data",
    [
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
    rest = f"\n\n{update('', 'stop')}\n\n{END}\n\n".encode()
    headers = {"content-type": "text/event-stream"}
    env.gateway.script(Body(200, headers, b"data: " + data + rest))

    with pytest.raises(MalformedResponseError, match="not of the protocol"):
        env.ask("stream", max_retries=0)
