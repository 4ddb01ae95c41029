"""Completion models: the gateway gives them one plain prompt, and drops the rest."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from langchain_retryrouter import (
    GPTRouterModel,
    InvalidRequestError,
    ServerError,
    UnsupportedOptionError,
)
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Answer,
    FaultyGateway,
    Status,
    ToolCall,
)

from .conftest import GPT_4, WAYS, Env
from .frames import END, event_stream

CLAUDE = GPTRouterModel(name="claude-2", provider_name="anthropic")
INSTRUCT = GPTRouterModel(name="gpt-3.5-turbo-instruct", provider_name="openai")
MISTRAL = GPTRouterModel(name="mistral-7b", provider_name="together_ai")
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object"}},
}
CALL = {"name": "get_weather", "args": {}, "id": "call_1", "type": "tool_call"}
ROUND_TRIP = [
    HumanMessage("The weather?"),
    AIMessage("", tool_calls=[CALL]),
    ToolMessage("sunny", tool_call_id="call_1"),
]
PICTURE = HumanMessage(
    [{"type": "text", "text": "?"}, {"type": "image", "url": "https://a/b.png"}]
)
# What a completion model would not be told: prompt, options of the call, and its name.
LOST: dict[str, tuple[Any, dict[str, Any], str]] = {
    "tools": ("hi", {"tools": [WEATHER]}, "tools"),
    "choice": ("hi", {"tools": [WEATHER], "tool_choice": "any"}, "tools, tool_choice"),
    "functions": ("hi", {"functions": [{"name": "f"}]}, "functions"),
    "result of a tool": (ROUND_TRIP, {}, "tool calls, tool results"),
    "call alone": (ROUND_TRIP[:2], {}, "tool calls"),
    "picture": ([PICTURE], {}, "content blocks"),
    "stop": ("hi", {"stop": ["END"]}, "stop"),
    "JSON": ("hi", {"response_format": {"type": "json_object"}}, "response_format"),
}


def ask(env: Env, llm: Any, prompt: Any, way: str, **options: Any) -> Any:
    """The answer by `invoke` or `stream`."""
    if way == "stream":
        first, *others = env.stream(llm, prompt, **options)
        return first.__add__(others)
    return env.invoke(llm, prompt, **options)


def attempts_of(answer: Any) -> list[tuple[str, str]]:
    lines = answer.response_metadata["retryrouter"]["attempts"]
    return [(line["route"], line["outcome"]) for line in lines]


def models_asked(env: Env) -> list[list[str]]:
    data = [request.payload["data"] for request in env.gateway.requests]
    return [[entry["modelName"] for entry in entries] for entries in data]


@pytest.mark.parametrize("way", ["invoke", "stream"])
@pytest.mark.parametrize("name", LOST)
def test_a_completion_model_is_skipped_if_it_would_not_be_told_all(
    env: Env, caplog: pytest.LogCaptureFixture, way: str, name: str
) -> None:
    """Neither we nor the gateway fail over to it; both logs say why."""
    prompt, options, lost = LOST[name]
    env.gateway.script(Status(503))
    llm = env.llm(models_priority_list=[CLAUDE, GPT_4, INSTRUCT])

    answer = ask(env, llm, prompt, way, **options)

    assert answer.content == STUB_TEXT
    assert models_asked(env) == [["gpt-4-0613"]] * 2
    assert attempts_of(answer) == [
        ("claude-2", "skipped"),
        ("gpt-3.5-turbo-instruct", "skipped"),
        ("gpt-4-0613", "unavailable"),
        ("gpt-4-0613", "ok"),
    ]
    reason = f"a completion model, which is not given {lost}"
    skipped = answer.response_metadata["retryrouter"]["attempts"][0]
    assert skipped["reason"] == reason
    assert f"claude-2 (anthropic) is skipped: it is {reason}" in caplog.messages


@pytest.mark.parametrize("way", ["invoke", "stream"])
@pytest.mark.parametrize("name", LOST)
def test_an_error_names_the_models_if_none_is_left(
    env: Env, way: str, name: str
) -> None:
    """A list of completion models only is a clear error, and nothing is sent."""
    prompt, options, lost = LOST[name]
    llm = env.llm(models_priority_list=[CLAUDE, INSTRUCT])

    with pytest.raises(UnsupportedOptionError) as caught:
        ask(env, llm, prompt, way, **options)

    told = f"is a completion model, which is not given {lost}"
    for model in ("claude-2 (anthropic)", "gpt-3.5-turbo-instruct (openai)"):
        assert f"{model} {told}" in str(caught.value)
    assert not env.gateway.requests


def test_several_answers_of_a_completion_model_are_refused(env: Env) -> None:
    """`n` above 1 would give one answer only."""
    with pytest.raises(UnsupportedOptionError, match="which is not given n"):
        env.ask("invoke", models_priority_list=[CLAUDE], n=2)

    other = env.llm(models_priority_list=[CLAUDE, GPT_4], n=2)
    generations = env.generate(other, [[HumanMessage("hi")]]).generations
    assert len(generations[0]) == 2
    assert models_asked(env) == [["gpt-4-0613"]]


def test_an_error_of_the_other_models_says_which_was_skipped(env: Env) -> None:
    """If all that can answer fail, the note lists the skipped model as well."""
    env.gateway.always(Status(503))
    llm = env.llm(models_priority_list=[GPT_4, CLAUDE], max_retries=1)

    with pytest.raises(ServerError) as caught:
        env.invoke(llm.bind_tools([WEATHER]), "hi")

    assert "claude-2 (skipped)" in caught.value.__notes__[0]
    assert models_asked(env) == [["gpt-4-0613"]] * 2


@pytest.mark.parametrize("way", WAYS)
def test_a_plain_prompt_fails_over_to_a_completion_model(
    env: Env, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    """Parts of text arrive as one text; an option that is lost is in the log, once."""
    env.gateway.always(Status(503), model=GPT_4.name)
    prompt = [HumanMessage([{"type": "text", "text": one} for one in ("a", "b")])]
    llm = env.llm(
        models_priority_list=[GPT_4, CLAUDE],
        temperature=0,
        streaming=way == "streaming invoke",
    )

    for _ in range(2):
        answer = ask(env, llm, prompt, way)
        assert attempts_of(answer)[-1] == ("claude-2", "ok")

    seen = env.gateway.requests[-1].payload["data"][0]["promptParams"]["messages"]
    assert seen == [{"role": "user", "content": "a\nb"}]
    told = "claude-2 (anthropic) is a completion model, which is not given temperature"
    assert caplog.messages.count(told) == 1


def test_the_defaults_are_no_reason_for_a_warning(
    env: Env, caplog: pytest.LogCaptureFixture
) -> None:
    """A completion model alone answers plain prompts, without a word in the log."""
    with caplog.at_level(logging.WARNING):
        assert env.ask("invoke", models_priority_list=[CLAUDE]).content == STUB_TEXT
    assert not caplog.messages


def test_a_model_can_be_said_to_take_messages(env: Env) -> None:
    """`is_chat` of a model replaces what is assumed of its provider."""
    env.gateway.always(Answer(tool_calls=(ToolCall("get_weather", "{}", id="c"),)))
    chat = GPTRouterModel(name="claude-3", provider_name="anthropic", is_chat=True)
    llm = env.llm(models_priority_list=[chat], gateway_max_retries=0)

    # The public gateway loses the tools nevertheless, which its answer shows.
    env.gateway.always(Answer("no tools here"))
    with pytest.raises(InvalidRequestError, match="claude-3 answers as a completion"):
        env.invoke(llm.bind_tools([WEATHER]), "hi")

    plain = GPTRouterModel(name="x-1", provider_name="mine", is_chat=False)
    with pytest.raises(UnsupportedOptionError, match=r"x-1 \(mine\) is a completion"):
        env.invoke(env.llm(models_priority_list=[plain]).bind_tools([WEATHER]), "hi")


def test_an_answer_shows_that_a_model_takes_messages(env: Env) -> None:
    """A newer gateway's `anthropic` is a chat model, once an answer has shown it."""
    with FaultyGateway(gptrouter="hosted") as hosted:
        llm = env.llm(models_priority_list=[CLAUDE], gpt_router_api_base=hosted.url)
        with pytest.raises(UnsupportedOptionError):
            env.invoke(llm.bind_tools([WEATHER]), "hi")

        env.invoke(llm, "hi")
        hosted.script(Answer(tool_calls=(ToolCall("get_weather", "{}", id="c"),)))
        answer = env.invoke(llm.bind_tools([WEATHER]), "hi")

    assert [call["name"] for call in answer.tool_calls] == ["get_weather"]


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_an_answer_shows_that_a_model_was_not_given_the_tools(
    env: Env, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    """A provider that is not known: nothing of its answer is used, the next is asked.

    Its updates have `model` and no `finish_reason`. Later calls do not ask it again.
    """
    data = '{"text":"Sunny, I guess","model":"mistral-7b"}'
    update = f'data: {{"event":"update","data":{data}}}'
    env.gateway.always(event_stream(update, END), model=MISTRAL.name)
    llm = env.llm(models_priority_list=[MISTRAL, GPT_4])

    answers = [ask(env, llm, "hi", way, tools=[WEATHER]) for _ in range(2)]

    assert [answer.content for answer in answers] == [STUB_TEXT] * 2
    assert attempts_of(answers[0]) == [
        ("mistral-7b", "invalid_request"),
        ("gpt-4-0613", "ok"),
    ]
    assert attempts_of(answers[1]) == [("mistral-7b", "skipped"), ("gpt-4-0613", "ok")]
    assert models_asked(env)[1:] == [["gpt-4-0613"]] * 2
    assert any("mistral-7b cannot answer" in line for line in caplog.messages)

    only = env.llm(models_priority_list=[MISTRAL])
    with pytest.raises(InvalidRequestError, match="without the tools of the request"):
        ask(env, only, "hi", way, tools=[WEATHER])
