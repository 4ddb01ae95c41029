"""Tools that are offered: what is bound, what is sent, and the message that returns."""

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
    """A gateway of the newer kind, with a model by rules behind it."""
    with FaultyGateway(answer=RuleResponder(), gptrouter="hosted") as gateway:
        yield gateway


def sent(gateway: FaultyGateway) -> dict[str, Any]:
    """What the provider was asked by the only request, messages aside."""
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
def test_c1_every_form_of_a_tool_is_offered_and_called(
    env: Env, given: Any, name: str
) -> None:
    """A function, class or dict goes out as OpenAI has it, and its call comes back."""
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
    """`tool_choice` takes what LangChain's other models take, and OpenAI is told."""
    env.invoke(env.llm().bind_tools([DICT, SEARCH], tool_choice=choice), "hi")

    assert sent(env.gateway).get("tool_choice") == expected
    assert sent(env.gateway)["tools"] == [DICT, SEARCH]


@pytest.mark.parametrize(
    "choice",
    ["get_wether", {"type": "function", "function": {"name": "get_wether"}}],
    ids=["name", "dict"],
)
def test_a_choice_that_no_tool_has_is_refused(new_llm: NewModel, choice: Any) -> None:
    """A misspelt tool is an error when it is bound, and lists the names there are."""
    with pytest.raises(ValueError, match="'get_wether', and the tools are 'get_weath"):
        new_llm().bind_tools([DICT], tool_choice=choice)


def test_what_cannot_be_bound_is_refused(new_llm: NewModel) -> None:
    """A call that no tool can be, and a choice of no known type, are errors."""
    for choice in ("any", "get_weather", True, {"type": "function"}):
        with pytest.raises(ValueError, match="and there are no tools"):
            new_llm().bind_tools([], tool_choice=choice)
    with pytest.raises(TypeError, match="a str, bool or dict, not 5"):
        new_llm().bind_tools([DICT], tool_choice=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("choice", [None, False, "auto", "none"])
def test_without_tools_nothing_is_said_of_them(env: Env, choice: Any) -> None:
    """An agent without tools binds an empty list, and providers refuse one."""
    llm = env.llm().bind_tools(
        [], tool_choice=choice, parallel_tool_calls=False, top_p=1
    )

    env.invoke(llm, "hi")

    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(sent(env.gateway))
    assert sent(env.gateway)["top_p"] == 1


def test_strictness_and_parallel_calls_are_sent_if_said(env: Env) -> None:
    """What is not said is left to the provider; what is said is told."""
    llm = env.llm().bind_tools(
        [get_weather], strict=True, parallel_tool_calls=False, top_p=1
    )

    env.invoke(llm, "hi")

    assert sent(env.gateway)["parallel_tool_calls"] is False
    assert sent(env.gateway)["top_p"] == 1
    assert sent(env.gateway)["tools"][0]["function"]["strict"] is True


def test_a_call_with_tools_streams_inside(env: Env) -> None:
    """The gateway sends tool calls in streams only, and the caller sees no stream."""
    seen: list[str] = []

    class Seen(BaseCallbackHandler):
        def on_llm_new_token(self, token: Any, **_: Any) -> None:
            seen.append(token)

    llm = env.llm().bind_tools([get_weather])
    answer = env.invoke(llm, "get_weather('Rome')", {"callbacks": [Seen()]})

    (request,) = env.gateway.requests
    assert request.streaming
    assert seen == []
    assert answer.tool_calls[0]["args"]["city"] == "Rome"
    assert answer.usage_metadata["total_tokens"] > 0


@pytest.mark.parametrize(
    "fault", [Status(429, {"retry-after": "1"}), Status(500), Reset(), Cut(after=1)]
)
def test_a_fault_does_not_double_a_tool_call(env: Env, fault: Any) -> None:
    """What an attempt brought before it failed is forgotten with it."""
    env.gateway.script(fault)
    llm = env.llm().bind_tools([get_weather], tool_choice="any")

    answer = env.invoke(llm, "the weather in 'Oslo' for 3 days")

    assert [call["args"] for call in answer.tool_calls] == [{"city": "Oslo", "days": 3}]
    attempts = answer.response_metadata["retryrouter"]["attempts"]
    assert len(attempts) == len(env.gateway.requests) == 2


def test_streamed_tool_calls_add_up(env: Env) -> None:
    """The chunks of a stream add up to the message of a call without one."""
    llm = env.llm().bind_tools([get_weather], tool_choice="get_weather")

    summed = sum_of(env.stream(llm, "the weather in 'Oslo'"))
    whole = env.invoke(llm, "the weather in 'Oslo'")

    (streamed,), (called,) = summed.tool_calls, whole.tool_calls
    assert {**streamed, "id": None} == {**called, "id": None}
    assert summed.usage_metadata == whole.usage_metadata


def test_several_answers_with_tools_are_refused(env: Env) -> None:
    """N answers would be interleaved in the stream that tool calls need."""
    with pytest.raises(ValueError, match="n must be 1 in a call with tools"):
        env.invoke(env.llm(n=2).bind_tools([DICT]), "hi")

    assert env.gateway.requests == []


def test_a_model_can_be_kept_from_streaming_with_tools(env: Env) -> None:
    """With `disable_streaming="tool_calling"` a stream is one chunk, calls and all."""
    llm = env.llm(disable_streaming="tool_calling").bind_tools(
        [get_weather], tool_choice="any"
    )

    (chunk,) = env.stream(llm, "the weather in 'Oslo'")

    assert chunk.tool_calls[0]["args"] == {"city": "Oslo"}
    assert len(env.gateway.requests) == 1


def test_an_unknown_model_in_a_call_with_tools_is_named_at_once(env: Env) -> None:
    """Since it streams inside, the first attempt is told the cause."""
    env.gateway.always(ErrorEvent("Model with name gpt-4-0613 does not exist"))

    with pytest.raises(NotFoundError, match="gpt-4-0613"):
        env.invoke(env.llm(models_priority_list=[GPT_4]).bind_tools([DICT]), "hi")

    assert len(env.gateway.requests) == 1


# --- functions, as they were before tools ---

FUNCTION = DICT["function"]


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_c4_a_function_call_survives_streaming(env: Env, way: str) -> None:
    """A stream would lose the call, so the answer comes in one piece."""
    llm = env.llm().bind(functions=[FUNCTION], function_call={"name": "get_weather"})

    answer = getattr(env, way)(llm, "the weather in 'Oslo'")
    message = sum_of(answer) if way == "stream" else answer

    call = message.additional_kwargs["function_call"]
    assert call == {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    assert message.response_metadata["finish_reason"] == "function_call"
    assert message.response_metadata["model_name"] == "gpt-4-0613"
    assert message.usage_metadata
    assert [request.streaming for request in env.gateway.requests] == [False]


def test_a_call_with_functions_never_streams_inside(env: Env) -> None:
    """Not even behind an opaque 500: the answer matters more than the cause."""
    env.gateway.script(Status(500))
    llm = env.llm().bind(functions=[FUNCTION], function_call={"name": "get_weather"})

    answer = env.invoke(llm, "the weather in 'Oslo'")

    assert answer.additional_kwargs["function_call"]["name"] == "get_weather"
    assert [request.streaming for request in env.gateway.requests] == [False, False]


def test_a_stream_with_functions_is_retried(env: Env) -> None:
    """A failed attempt behind such a stream is repeated like any other."""
    env.gateway.script(Reset(), Status(503))
    llm = env.llm().bind(functions=[FUNCTION])

    summed = sum_of(env.stream(llm, "get_weather('Oslo')"))

    assert "function_call" in summed.additional_kwargs
    attempts = summed.response_metadata["retryrouter"]["attempts"]
    assert [line["outcome"] for line in attempts] == ["connection", "unavailable", "ok"]
