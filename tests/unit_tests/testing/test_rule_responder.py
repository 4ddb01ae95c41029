"""The model that follows rules, over real HTTP: tools, schemas and texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from langchain_retryrouter.testing import FaultyGateway
from tests.support.rule_responder import RuleResponder

from .wire_client import CHAT, chat, post


def _tool(name: str, about: str = "", **properties: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
    }
    function = {"name": name, "description": about, "parameters": parameters}
    return {"type": "function", "function": function}


_TOOLS = [
    _tool("magic", "Apply magic to an input.", input={"type": "integer"}),
    _tool("get_weather", "The weather at a location.", location={"type": "string"}),
    _tool("now"),
]


@pytest.fixture
def gateway() -> Iterator[FaultyGateway]:
    with FaultyGateway(answer=RuleResponder()) as gateway:
        yield gateway


def _answer(gateway: FaultyGateway, said: Any, **parameters: Any) -> dict[str, Any]:
    messages = said if isinstance(said, list) else [{"role": "user", "content": said}]
    reply = post(gateway, CHAT, chat(messages=messages, **parameters))
    assert reply.status == 200, reply.body
    message: dict[str, Any] = reply.json["choices"][0]["message"]
    return message


def _calls(gateway: FaultyGateway, said: Any, **parameters: Any) -> list[Any]:
    message = _answer(gateway, said, **{"tools": _TOOLS, **parameters})
    calls = [call["function"] for call in message.get("tool_calls", [])]
    return [(call["name"], json.loads(call["arguments"])) for call in calls]


@pytest.mark.parametrize(
    ("said", "choice", "calls"),
    [
        ("What is magic(3)?", "auto", [("magic", {"input": 3})]),
        ("Is the weather in 'Rome'?", None, [("get_weather", {"location": "Rome"})]),
        ("now and magic 4", "auto", [("now", {}), ("magic", {"input": 4})]),
        ("Hello!", "auto", []),
        ("magic(3)", "none", []),
        ("Hello!", "required", [("magic", {"input": 1})]),
        ("magic(3)", {"type": "function", "function": {"name": "now"}}, [("now", {})]),
    ],
)
def test_which_tools_are_called(
    gateway: FaultyGateway, said: str, choice: Any, calls: list[Any]
) -> None:
    """`tool_choice` decides, else the names and subjects in the user's message."""
    assert _calls(gateway, said, tool_choice=choice) == calls


def test_one_call_at_a_time(gateway: FaultyGateway) -> None:
    """Without parallel calls the first tool is called alone."""
    assert _calls(gateway, "now magic", parallel_tool_calls=False) == [("now", {})]


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_loop_of_calls_ends(gateway: FaultyGateway, choice: str) -> None:
    """Results are quoted; where a call is forced, each tool is called once."""
    history: list[Any] = [{"role": "user", "content": "magic(3)"}]
    names = []
    for _ in range(3):
        message = _answer(gateway, history, tools=_TOOLS, tool_choice=choice)
        if "tool_calls" not in message:
            assert message["content"] == "The tools said: 5"
            break
        (call,) = message["tool_calls"]
        names.append(call["function"]["name"])
        result = {"role": "tool", "tool_call_id": call["id"], "content": "5"}
        history += [message, result]
    assert names == (["magic"] if choice == "auto" else ["magic", "get_weather", "now"])


def test_schemas_are_filled_from_the_prompt(gateway: FaultyGateway) -> None:
    """Quotes and numbers fill the places of a schema, the rest is made up."""
    schema = {
        "$defs": {"Kind": {"enum": ["dry", "wet"]}},
        "properties": {
            "place": {"type": "string"},
            "kind": {"$ref": "#/$defs/Kind"},
            "degrees": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "hours": {"type": "array", "items": {"type": "number"}},
            "day": {"type": "string", "format": "date"},
            "note": {"type": "string"},
        },
        "required": ["place", "kind", "degrees", "hours", "day"],
    }
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    said = "It is wet in 'Oslo', 7 degrees from 8 to 9.5"
    assert json.loads(_answer(gateway, said, response_format=wanted)["content"]) == {
        "place": "Oslo",
        "kind": "wet",
        "degrees": 7,
        "hours": [8, 9.5],
        "day": "2026-01-31",
    }


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({}, "You said: tell 'a'"),
        ({"stop": ["x", " 'a"]}, "You said: tell"),
        ({"response_format": {"type": "json_object"}}, '{"a": "You said: tell \'a\'"}'),
    ],
)
def test_texts_are_repeated(
    gateway: FaultyGateway, parameters: dict[str, Any], text: str
) -> None:
    """Without a tool or a schema the answer repeats what the user said."""
    assert _answer(gateway, "tell 'a'", **parameters)["content"] == text
