"""Answers: their text, usage and metadata, whole, streamed, or odd in some place."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumps
from langchain_core.messages import HumanMessage
from langchain_core.outputs import LLMResult

from langchain_retryrouter import GPTRouterModel, StreamInterruptedError
from langchain_retryrouter.testing import STUB_TEXT, Answer, ErrorEvent, Status

from .conftest import GPT_4, OTHER, WAYS, Env
from .frames import END, FAREWELL, event_stream, sum_of, text_of, update

# In a stream the gateway sends an estimate of its own.
INPUT_TOKENS = {"invoke": 11, "stream": 8, "streaming invoke": 8}


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_has_text_usage_and_json_metadata(env: Env, way: str) -> None:
    """An answer has text, usage, the model's name, and metadata that JSON can carry."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = env.ask(way)

    assert answer.content == STUB_TEXT
    tokens = INPUT_TOKENS[way]
    usage = {"input_tokens": tokens, "output_tokens": 5, "total_tokens": tokens + 5}
    assert answer.usage_metadata == usage
    metadata = answer.response_metadata
    assert metadata["token_usage"]["total_tokens"] == tokens + 5
    assert metadata["model_name"] == "gpt-4-0613"
    assert metadata["provider_name"] == "chat_openai"
    assert metadata["model_id"].startswith("631b2d96-")
    assert metadata["provider_id"].startswith("7dc8712a-")
    assert metadata["finish_reason"] == "stop"
    assert json.loads(json.dumps(metadata)) == metadata
    written = json.loads(dumps(answer))
    assert written["type"] == "constructor"
    assert written["kwargs"]["response_metadata"] == metadata


class Ends(BaseCallbackHandler):
    """Keeps the results of `on_llm_end`."""

    def __init__(self) -> None:
        self.results: list[LLMResult] = []

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        self.results.append(response)


def test_two_choices_are_two_generations_with_usage(env: Env) -> None:
    """`n=2` gives two generations; the result and the callback have the usage."""
    ends = Ends()

    result = env.generate(env.llm(n=2), [[HumanMessage("hi")]], callbacks=[ends])

    assert [generation.text for generation in result.generations[0]] == [STUB_TEXT] * 2
    usage = {"completion_tokens": 10, "prompt_tokens": 11, "total_tokens": 21}
    assert result.llm_output["token_usage"] == usage
    assert result.llm_output["model_name"] == "gpt-4-0613"
    [told] = ends.results
    assert told.llm_output is not None
    assert told.llm_output["token_usage"] == usage


def test_two_choices_in_a_stream_are_refused(env: Env) -> None:
    """A stream with `n=2`, whose choices cannot be told apart, is refused unsent."""
    for llm in (env.llm(n=2), env.llm().bind(n=2)):
        with pytest.raises(ValueError, match="n must be 1 in a stream"):
            env.stream(llm, "hi")

    assert env.gateway.requests == []


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\r"])
def test_unicode_line_ends_are_text(env: Env, character: str) -> None:
    """Characters that Unicode calls line ends stay in the text, in streams too."""
    pieces = (f"one{character}", f"{character}two", "three")
    env.gateway.always(Answer(pieces))

    assert text_of(env.stream(env.llm(), "hi")) == "".join(pieces)
    assert env.invoke(env.llm(), "hi").content == "".join(pieces)


@pytest.mark.parametrize("ending", ["", "/", "/api", "/api/"])
def test_the_address_may_end_with_api_or_a_slash(env: Env, ending: str) -> None:
    """With or without `/api`, with or without a slash, it is the same endpoint."""
    env.invoke(env.llm(gpt_router_api_base=env.gateway.url + ending), "hi")

    assert env.gateway.requests[0].path == "/api/v1/generate"


# --- after a retry ---


def attempts_of(answer: Any) -> list[str]:
    attempts = answer.response_metadata["retryrouter"]["attempts"]
    return [attempt["outcome"] for attempt in attempts]


@pytest.mark.parametrize("way", [*WAYS, "n=2"])
def test_metadata_has_the_attempts(env: Env, way: str) -> None:
    """`response_metadata` lists each attempt of the call, in JSON."""
    env.gateway.script(Status(500))
    if way == "n=2":
        result = env.generate(env.llm(n=2), [[HumanMessage("hi")]])
        messages = [generation.message for generation in result.generations[0]]
    else:
        messages = [env.ask(way)]

    for message in messages:
        metadata = message.response_metadata
        assert json.loads(json.dumps(metadata)) == metadata
        failed, answered = metadata["retryrouter"]["attempts"]
        assert (failed["outcome"], failed["status_code"]) == ("server_error", 500)
        assert failed["wait"] > 0
        assert answered["outcome"] == "ok"
        assert metadata["model_name"] == "gpt-4-0613"
        assert metadata["provider_name"] == "chat_openai"
        assert metadata["finish_reason"] == "stop"


def test_an_answer_that_streamed_inside_is_like_any_other(env: Env) -> None:
    """After an opaque 500 the attempt streams inside; the caller sees no difference."""
    env.gateway.script(Status(500))
    inside, whole = env.ask("invoke"), env.ask("invoke")

    asked = [request.streaming for request in env.gateway.requests]
    assert asked == [False, True, False]
    assert inside.content == whole.content
    own = {"retryrouter", "id", "token_usage"}  # A stream's usage is an estimate.
    assert set(inside.response_metadata) == set(whole.response_metadata)
    for name in set(whole.response_metadata) - own:
        assert inside.response_metadata[name] == whole.response_metadata[name], name


def test_a_broken_stream_inside_is_repeated(env: Env) -> None:
    """A stream inside has delivered nothing to the caller, so it can be repeated."""
    env.gateway.script(Status(500), ErrorEvent("Premature close", after=2))

    answer = env.ask("invoke")

    assert answer.content == STUB_TEXT
    assert attempts_of(answer) == ["server_error", "interrupted", "ok"]


# --- odd answers ---


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({"text": None, "finish_reason": "stop"}, ""),
        ({"text": "Hi", "finish_reason": None}, "Hi"),
        ({"text": "Hi", "finish_reason": ""}, "Hi"),
        ({"text": "Hi"}, "Hi"),
    ],
)
@pytest.mark.parametrize(
    "rest",
    [
        {"id": "1", "model": "gpt-4-0613"},
        {"id": None, "model": None, "meta": {"usage": {"prompt_tokens": "many"}}},
        {},
    ],
    ids=["whole", "odd", "bare"],
)
def test_gaps_in_an_answer_are_tolerated(
    env: Env, choice: dict[str, Any], rest: dict[str, Any], text: str
) -> None:
    """Nulls and gaps beside the text do not throw away an answer that was paid for."""
    answer = {"choices": [{"index": 0, **choice}], **rest}
    env.gateway.always(Status(200, None, answer))

    message = env.ask("invoke", max_retries=0)

    assert message.content == text
    assert ("finish_reason" in message.response_metadata) is (text == "")


@pytest.mark.parametrize(
    "event",
    [
        {"data": {}},
        {"data": {"text": None, "finish_reason": None}},
        {"data": {"text": "", "tool_calls": None}},
        {"data": {"text": "", "tool_calls": []}},
        {"data": {"text": "", "tool_calls": [{"index": 0, "function": None}]}},
        {"data": {"text": "", "of_the_provider": {"anything": [1, 2]}}},
        {"data": {"text": ""}, "id": 5, "provider": {"name": "p"}},
    ],
)
def test_gaps_in_a_stream_are_tolerated(env: Env, event: dict[str, Any]) -> None:
    """Nulls, odd ids and keys of a provider's own do not cost a stream its answer."""
    odd = "data: " + json.dumps({"event": "update", **event})
    env.gateway.script(event_stream(odd, update("Hi", "stop"), END, FAREWELL))

    answer = env.ask("stream", max_retries=0)

    assert answer.content == "Hi"
    assert answer.tool_calls == []


def test_an_event_of_several_data_lines_is_joined(env: Env) -> None:
    """The `data` lines of one event are one event."""
    split = (
        'data: {"event":"update",\ndata: "data":{"text":"Hello",\n'
        'data: "finish_reason":"stop"}}'
    )
    env.gateway.script(event_stream(split, END, FAREWELL))

    assert env.ask("stream").content == "Hello"


@pytest.mark.parametrize("model", [5, True, ["gpt-4"], {"name": "gpt-4"}], ids=str)
def test_a_models_name_that_is_no_text_is_not_used(env: Env, model: Any) -> None:
    """Metadata of a wrong type neither costs a stream its answer nor ends it."""
    meta = "data: " + json.dumps({"event": "meta", "data": {"model": model}})
    data = {"text": " there", "model": model}
    odd = "data: " + json.dumps({"event": "update", "data": data})
    env.gateway.script(event_stream(update("hi", "stop"), meta, END))
    answer = env.ask("stream", models_priority_list=[GPT_4, OTHER])
    assert answer.response_metadata["model_name"] == GPT_4.name

    env.gateway.script(event_stream(update("hi"), odd, END))
    with pytest.raises(StreamInterruptedError):
        env.ask("stream")


def test_a_completion_model_names_itself_and_its_provider(env: Env) -> None:
    """An update with `model` is a completion model's: it is finished, and named."""
    env.gateway.always(
        event_stream(
            'data: {"event":"update","data":{"text":"Hi","model":"claude-2.1"}}',
            'data: {"event":"meta","data":{"text":"Hi"}}',
            END,
        )
    )
    models = [GPT_4, GPTRouterModel(name="claude-2", provider_name="anthropic")]

    answer = env.ask("stream", models_priority_list=models)

    assert answer.content == "Hi"
    assert answer.response_metadata["model_name"] == "claude-2.1"
    assert answer.response_metadata["provider_name"] == "anthropic"


def test_a_provider_of_a_chunk_is_used_if_the_models_name_tells_none(env: Env) -> None:
    """A `provider` beside the data is the provider of a model that is not listed."""
    data = {"text": "hi", "finish_reason": "stop"}
    text = "data: " + json.dumps(
        {"event": "update", "data": data, "provider": "anthropic"}
    )
    azure = GPTRouterModel(name="gpt-4o", provider_name="azure_chat_openai")
    llm = env.llm(models_priority_list=[GPT_4, azure])

    for model, provider in (("else", "anthropic"), ("gpt-4-0613", "chat_openai")):
        meta = "data: " + json.dumps({"event": "meta", "data": {"model": model}})
        env.gateway.script(event_stream(text, meta, END))
        answer = sum_of(env.stream(llm, "hi"))
        assert answer.response_metadata["provider_name"] == provider


def test_a_provider_that_cannot_stream_is_left(env: Env) -> None:
    """A provider without streams is asked once, and the list's next model answers."""
    cohere = GPTRouterModel(name="command", provider_name="cohere")

    answer = env.ask("stream", models_priority_list=[cohere, GPT_4])

    assert answer.content == STUB_TEXT
    asked = [len(request.payload["data"]) for request in env.gateway.requests]
    assert asked == [2, 1]
