"""The model that follows rules, over real HTTP: tools, schemas, texts and lengths."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from langchain_retryrouter.testing import FaultyGateway, RuleResponder

from .wire_client import CHAT, COMPLETIONS, GENERATE, chat, completion, generate, post

_INTEGER = {"type": "integer"}
_TEXT = {"type": "string"}


def _function(name: str, about: str = "", **properties: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
    }
    return {"name": name, "description": about, "parameters": parameters}


def _tool(name: str, about: str = "", **properties: Any) -> dict[str, Any]:
    return {"type": "function", "function": _function(name, about, **properties)}


_TOOLS = [
    _tool("magic_function", "Apply magic to an input.", input=_INTEGER),
    _tool("get_weather", "Get the weather at a location.", location=_TEXT),
    _tool("now"),
]


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@pytest.fixture
def gateway() -> Iterator[FaultyGateway]:
    with FaultyGateway(responder=RuleResponder()) as gateway:
        yield gateway


def _choice(gateway: FaultyGateway, said: Any, **parameters: Any) -> dict[str, Any]:
    """The first choice of a chat completion, after this last message of the user."""
    messages = said if isinstance(said, list) else [_user(said)]
    answer = post(gateway, CHAT, chat(messages=messages, **parameters))
    assert answer.status == 200, answer.body
    choice = answer.json["choices"][0]
    assert isinstance(choice, dict)
    return choice


def _calls(gateway: FaultyGateway, said: Any, **parameters: Any) -> list[Any]:
    """The tool calls: names and arguments."""
    choice = _choice(gateway, said, **{"tools": _TOOLS, **parameters})
    calls = choice["message"].get("tool_calls", [])
    assert choice["finish_reason"] == ("tool_calls" if calls else "stop")
    assert (choice["message"]["content"] is None) == bool(calls)
    return [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in calls
    ]


def _text(gateway: FaultyGateway, said: Any, **parameters: Any) -> Any:
    return _choice(gateway, said, **parameters)["message"]["content"]


# Tools.


@pytest.mark.parametrize(
    ("said", "calls"),
    [
        ("What is magic_function(3)?", [("magic_function", {"input": 3})]),
        ("Use magic_function on 4.", [("magic_function", {"input": 4})]),
        ("It is NOW or never", [("now", {})]),
        ("I know", []),
        ("How is the weather in 'Rome'?", [("get_weather", {"location": "Rome"})]),
        ("Weather?", [("get_weather", {"location": "Weather?"})]),
        ("Apply something to an input", [("magic_function", {"input": 1})]),
        ("What is that, at your place?", []),
        ("Hello!", []),
        (
            "magic_function(1) and now() and magic_function(2)",
            [
                ("magic_function", {"input": 1}),
                ("now", {}),
                ("magic_function", {"input": 2}),
            ],
        ),
        (
            "magic_function(5); magic_function is great",
            [("magic_function", {"input": 5})],
        ),
    ],
)
def test_which_tools_are_called(
    gateway: FaultyGateway, said: str, calls: list[Any]
) -> None:
    """Named tools are called in order, else the one with most words in common."""
    assert _calls(gateway, said) == calls
    assert _calls(gateway, said, tool_choice="auto") == calls


@pytest.mark.parametrize(
    ("choice", "said", "names"),
    [
        ("none", "magic_function(3)", []),
        ("required", "Hello!", ["magic_function"]),
        ("any", "Hello!", ["magic_function"]),
        ({"type": "any"}, "Hello!", ["magic_function"]),
        ("required", "now", ["now"]),
        ("get_weather", "magic_function(3)", ["get_weather"]),
        ({"type": "tool", "name": "now"}, "magic_function(3)", ["now"]),
        ({"type": "function", "function": {"name": "now"}}, "Hello!", ["now"]),
    ],
)
def test_tool_choice(
    gateway: FaultyGateway, choice: object, said: str, names: list[str]
) -> None:
    """A tool choice forces a call, the call of one tool, or none."""
    calls = _calls(gateway, said, tool_choice=choice)
    assert [name for name, _ in calls] == names


def test_one_call_at_a_time(gateway: FaultyGateway) -> None:
    """Without parallel calls it is the first one that was asked for."""
    said = "now() and magic_function(2)"
    calls = _calls(gateway, said, parallel_tool_calls=False)
    assert calls == [("now", {})]
    assert len(_calls(gateway, said, parallel_tool_calls=True)) == 2


def test_calls_have_ids_of_their_own(gateway: FaultyGateway) -> None:
    """No id comes twice, be it in one answer or in the next."""
    ids = [
        call["id"]
        for _ in range(2)
        for call in _choice(gateway, "now() now()", tools=_TOOLS)["message"][
            "tool_calls"
        ]
    ]
    assert len(set(ids)) == 4


def test_a_tool_loop_ends(gateway: FaultyGateway) -> None:
    """After the results of tools they are quoted, unless a call is forced."""
    asked = _user("magic_function(3) and now()")
    message = _choice(gateway, [asked], tools=_TOOLS)["message"]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": content}
        for call, content in zip(
            message["tool_calls"],
            ["5", [{"type": "text", "text": "noon"}]],
            strict=True,
        )
    ]
    history = [asked, message, *results]
    assert _calls(gateway, history) == []
    assert _text(gateway, history, tools=_TOOLS) == "The tools said: 5; noon"
    assert _calls(gateway, history, tool_choice="now") == [("now", {})]
    assert _calls(gateway, [*history, _user("now")]) == [("now", {})]


def test_a_loop_of_forced_calls_goes_through_the_tools(gateway: FaultyGateway) -> None:
    """What is forced after a result is another call, so that an agent can end."""
    history = [_user("Hello!")]
    for tool in [*_TOOLS, _TOOLS[0]]:
        answer = _choice(gateway, history, tools=_TOOLS, tool_choice="required")
        (call,) = answer["message"]["tool_calls"]
        assert call["function"]["name"] == tool["function"]["name"]
        result = {"role": "tool", "tool_call_id": call["id"], "content": "5"}
        history += [answer["message"], result]


@pytest.mark.parametrize("roles", [["system"], ["user", "assistant"]])
def test_only_the_user_asks_for_tools(gateway: FaultyGateway, roles: list[str]) -> None:
    """The words of a system prompt or of an assistant call no tool."""
    messages = [{"role": role, "content": "now()"} for role in roles]
    assert _calls(gateway, messages) == []
    assert _calls(gateway, messages, tool_choice="required") != []


def test_functions_are_called_like_tools(gateway: FaultyGateway) -> None:
    """A call in the older form has the same name and the same arguments."""
    functions = [tool["function"] for tool in _TOOLS]
    choice = _choice(gateway, "magic_function(3)", functions=functions)
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {
        "name": "magic_function",
        "arguments": '{"input": 3}',
    }
    named = _choice(
        gateway, "Hello!", functions=functions, function_call={"name": "now"}
    )
    assert named["message"]["function_call"]["name"] == "now"
    nothing = _choice(gateway, "now", functions=functions, function_call="none")
    assert nothing["finish_reason"] == "stop"
    messages = [_user("now"), {"role": "function", "name": "now", "content": "noon"}]
    assert _text(gateway, messages, functions=functions) == "The tools said: noon"


@pytest.mark.parametrize("path", [CHAT, GENERATE])
def test_streamed_calls(gateway: FaultyGateway, path: str) -> None:
    """A stream carries the arguments in pieces, which make the same call together."""
    messages = [_user("What is the weather in 'San Francisco'?")]
    make = chat if path == CHAT else generate
    payload = make(stream=True, messages=messages, tools=_TOOLS)
    events = [
        one for one in post(gateway, path, payload).events if isinstance(one, dict)
    ]
    if path == CHAT:
        updates = [event["choices"][0]["delta"] for event in events]
    else:
        updates = [event["data"] for event in events if event["event"] == "update"]
    deltas = [one["tool_calls"][0] for one in updates if "tool_calls" in one]
    pieces = [delta["function"]["arguments"] for delta in deltas]
    assert deltas[0]["function"]["name"] == "get_weather"
    assert len(pieces) > 2
    assert json.loads("".join(pieces)) == {"location": "San Francisco"}


# Schemas.


def test_json_schema(gateway: FaultyGateway) -> None:
    """An answer in a schema is filled like the arguments of a tool."""
    schema = _function("", setup=_TEXT, rating=_INTEGER)["parameters"]
    wanted = {"type": "json_schema", "json_schema": {"name": "Joke", "schema": schema}}
    text = _text(gateway, "Rate 'a cat' with 5", response_format=wanted)
    assert json.loads(text) == {"setup": "a cat", "rating": 5}
    called = _calls(gateway, "now", response_format=wanted)
    assert called == [("now", {})]


@pytest.mark.parametrize(
    ("said", "keys"),
    [("with 'setup' and 'punchline' keys", ["setup", "punchline"]), ("hi", ["answer"])],
)
@pytest.mark.parametrize(
    "wanted", [{"type": "json_object"}, {"type": "json_schema", "json_schema": {}}]
)
def test_json_object(
    gateway: FaultyGateway, said: str, keys: list[str], wanted: dict[str, Any]
) -> None:
    """A JSON object has the keys that are quoted; without a schema it is any object."""
    keys = keys if wanted["type"] == "json_object" else ["answer"]
    answer = json.loads(_text(gateway, said, response_format=wanted))
    assert answer == dict.fromkeys(keys, f"You said: {said}")


# Texts.


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("hi there", "You said: hi there"),
        ("", "You said: nothing"),
        (None, "You said: nothing"),
        ("half a fox \ud83e", "You said: half a fox ?"),
        (
            [
                {"type": "text", "text": "Look:"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
                {"type": "thinking", "thinking": "hm"},
                {"type": "text", "text": "nice?"},
                "yes",
            ],
            "You said: Look: nice? yes [image_url] [thinking]",
        ),
    ],
)
def test_what_was_said_is_said_back(
    gateway: FaultyGateway, content: object, text: str
) -> None:
    """Without tools and formats the answer shows what the model was given."""
    assert _text(gateway, [_user(content)]) == text
    history = [_user("before"), _user(content), {"role": "assistant", "content": "x"}]
    assert _text(gateway, history, response_format={"type": "text"}) == text


def test_nobody_said_anything(gateway: FaultyGateway) -> None:
    """A conversation without a user gets an answer too."""
    assert _text(gateway, [{"role": "system", "content": "s"}]) == "You said: nothing"
    assert _text(gateway, []) == "You said: nothing"


def test_lists_of_prompts(gateway: FaultyGateway) -> None:
    """Every prompt is answered by itself, `n` times; tokens are taken as numbers."""
    payload = completion(prompt=["a", "b"], n=2)
    answer = post(gateway, COMPLETIONS, payload).json
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (0, "You said: a"),
        (1, "You said: a"),
        (2, "You said: b"),
        (3, "You said: b"),
    ]
    assert answer["usage"] == {
        "prompt_tokens": 12,
        "completion_tokens": 12,
        "total_tokens": 24,
    }
    tokens = post(gateway, COMPLETIONS, completion(prompt=[1, 2])).json
    assert tokens["choices"][0]["text"] == "You said: 1 2"


def test_a_prompt_through_gptrouter(gateway: FaultyGateway) -> None:
    """GPTRouter's completion models are asked by a prompt, without messages."""
    payload = generate(prompt="hi")
    del payload["data"][0]["promptParams"]["messages"]
    answer = post(gateway, GENERATE, payload).json
    assert answer["choices"][0]["text"] == "You said: hi"
    assert answer["meta"]["usage"]["total_tokens"] == 14


@pytest.mark.parametrize("stop", ["there", ["x", "there"]])
def test_stop(gateway: FaultyGateway, stop: object) -> None:
    """A text ends before the first stop, for its natural reason."""
    choice = _choice(gateway, "hi there", stop=stop)
    assert choice["message"]["content"] == "You said: hi "
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_text_that_is_too_long(gateway: FaultyGateway, name: str) -> None:
    """A text is cut after so many words, and its finish reason says so."""
    for limit, text, reason in [
        (3, "You said: hi", "length"),
        (4, "You said: hi there", "stop"),
        (0, "", "length"),
        (None, "You said: hi there", "stop"),
    ]:
        choice = _choice(gateway, "hi there", **{name: limit})
        assert choice["message"]["content"] == text
        assert choice["finish_reason"] == reason


@pytest.mark.parametrize(
    ("limit", "arguments"),
    [
        (0, []),
        (1, ['{"input":']),
        (2, ['{"input": 1}']),
        (3, ['{"input": 1}', '{"input":']),
    ],
)
def test_calls_that_are_too_long(
    gateway: FaultyGateway, limit: int, arguments: list[str]
) -> None:
    """Calls are cut in the middle of their arguments, as providers cut them."""
    said = "magic_function(1) magic_function(2)"
    choice = _choice(gateway, said, tools=_TOOLS, max_tokens=limit)
    calls = choice["message"].get("tool_calls", [])
    assert [call["function"]["arguments"] for call in calls] == arguments
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize(("limit", "arguments"), [(0, None), (1, '{"input":')])
def test_a_function_call_that_is_too_long(
    gateway: FaultyGateway, limit: int, arguments: str | None
) -> None:
    """The call of a function is cut like that of a tool."""
    functions = [_TOOLS[0]["function"]]
    choice = _choice(
        gateway, "magic_function(1)", functions=functions, max_tokens=limit
    )
    call = choice["message"].get("function_call", {})
    assert call.get("arguments") == arguments
    assert choice["finish_reason"] == "length"


# What no model could answer.


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"tools": _TOOLS, "tool_choice": "other"}, "'other'"),
        ({"tools": [], "tool_choice": "required"}, "there are no tools"),
        (
            {"tools": [_tool("now", at={"type": "never"})], "tool_choice": "any"},
            "'never'",
        ),
    ],
)
def test_what_cannot_be_answered(parameters: dict[str, Any], named: str) -> None:
    """A request that makes no sense is an error of the gateway that names the cause."""
    gateway = FaultyGateway(responder=RuleResponder())
    gateway.start()
    reply = post(gateway, CHAT, chat(**parameters))
    with pytest.raises(ExceptionGroup) as raised:
        gateway.stop()
    assert reply.status == 500
    assert named in reply.body.decode()
    assert raised.group_contains(ValueError)
