"""`bind_tools`: the tools that are sent, and the calls that come back."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from pydantic import BaseModel
from typing_extensions import TypedDict

from langchain_retryrouter import NotFoundError
from langchain_retryrouter.testing import Cut, ErrorEvent, FaultyGateway, Reset, Status
from tests.support.rule_responder import RuleResponder

from .conftest import GPT_4, Env, NewModel
from .frames import sum_of


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


@pytest.mark.parametrize(
    "choice",
    ["get_wether", {"type": "function", "function": {"name": "get_wether"}}],
    ids=["name", "dict"],
)
def test_a_choice_that_no_tool_has_is_refused(new_llm: NewModel, choice: Any) -> None:
    """A misspelt tool is refused by `bind_tools`, with the names of the tools."""
    with pytest.raises(ValueError, match="'get_wether', and the tools are 'get_weath"):
        new_llm().bind_tools([DICT], tool_choice=choice)


def test_a_choice_without_tools_or_of_a_wrong_type_is_refused(
    new_llm: NewModel,
) -> None:
    """A choice without tools, or of an unknown type, is an error."""
    for choice in ("any", "get_weather", True, {"type": "function"}):
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
    seen: list[str] = []

    class Seen(BaseCallbackHandler):
        def on_llm_new_token(self, token: Any, **_: Any) -> None:
            seen.append(token)

    llm = env.llm().bind_tools(
        [get_weather], strict=True, parallel_tool_calls=False, top_p=1
    )
    answer = env.invoke(llm, "get_weather('Rome')", {"callbacks": [Seen()]})

    assert env.gateway.requests[0].streaming
    assert sent(env.gateway)["parallel_tool_calls"] is False
    assert sent(env.gateway)["top_p"] == 1
    assert sent(env.gateway)["tools"][0]["function"]["strict"] is True
    assert seen == []
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
    attempts = answer.response_metadata["retryrouter"]["attempts"]
    assert len(attempts) == len(env.gateway.requests) == 2


def test_several_answers_with_tools_are_refused(env: Env) -> None:
    """`n=2` is refused with tools: their stream would mix the answers."""
    with pytest.raises(ValueError, match="n must be 1 in a call with tools"):
        env.invoke(env.llm(n=2).bind_tools([DICT]), "hi")

    assert env.gateway.requests == []


def test_an_unknown_model_in_a_call_with_tools_is_named_at_once(env: Env) -> None:
    """A call with tools streams inside, so its first attempt has the cause."""
    env.gateway.always(ErrorEvent("Model with name gpt-4-0613 does not exist"))

    with pytest.raises(NotFoundError, match="gpt-4-0613"):
        env.invoke(env.llm(models_priority_list=[GPT_4]).bind_tools([DICT]), "hi")

    assert len(env.gateway.requests) == 1


# --- functions, as they were before tools ---

FUNCTION = DICT["function"]


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_function_call_survives_streaming(env: Env, way: str) -> None:
    """A call with functions never streams, not even inside after an opaque 500."""
    env.gateway.script(Status(500))
    llm = env.llm().bind(functions=[FUNCTION], function_call={"name": "get_weather"})

    answer = getattr(env, way)(llm, "the weather in 'Oslo'")
    message = sum_of(answer) if way == "stream" else answer

    call = message.additional_kwargs["function_call"]
    assert call == {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    assert message.response_metadata["finish_reason"] == "function_call"
    assert message.response_metadata["model_name"] == "gpt-4-0613"
    assert message.usage_metadata
    assert [request.streaming for request in env.gateway.requests] == [False, False]
