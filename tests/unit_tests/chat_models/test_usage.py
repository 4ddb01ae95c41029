"""Usage of tokens: read from answers and streams, and added up once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.load import dumps
from langchain_core.messages import (
    HumanMessage,
    trim_messages,
)

from langchain_retryrouter import GPTRouterModel
from langchain_retryrouter.testing import Answer, Body, Status, Usage

from .conftest import GPT_4, OTHER, Env
from .frames import END, event_stream, sum_of, update

DETAILED = {
    "prompt_tokens": 11,
    "completion_tokens": 5,
    "total_tokens": 16,
    "prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": None},
    "completion_tokens_details": {"reasoning_tokens": 3, "of_the_provider": 1},
    "cost": 0.5,
}
READ = {
    "input_tokens": 11,
    "output_tokens": 5,
    "total_tokens": 16,
    "input_token_details": {"cache_read": 8},
    "output_token_details": {"reasoning": 3},
}
COUNTED = {"input_tokens": 11, "output_tokens": 5, "total_tokens": 16}


def whole(meta: Any, choices: int = 1) -> Body:
    """An answer in one piece with this `meta`."""
    texts = [{"index": i, "text": "hi"} for i in range(choices)]
    body = {"id": "a", "model": "gpt-4-0613", "choices": texts, "meta": meta}
    return Body(200, {"content-type": "application/json"}, json.dumps(body))


def stream(usage: Any, **meta: Any) -> Body:
    """A stream with this usage."""
    data = {"model": "gpt-4-0613", "usage": usage, **meta}
    told = "data: " + json.dumps({"event": "meta", "data": data})
    return event_stream(update("hi", "stop"), told, END)


# --- read ---


@pytest.mark.parametrize("meta", [DETAILED, {"usage": DETAILED}])
def test_details_are_read_and_kept(env: Env, meta: Any) -> None:
    """Cached and reasoning tokens have LangChain's keys; the others are kept."""
    env.gateway.script(whole(meta), stream(DETAILED))

    invoked = env.invoke(env.llm(), "hi")
    streamed = sum_of(env.stream(env.llm(), "hi"))

    for message in (invoked, streamed):
        assert message.usage_metadata == READ
        assert message.response_metadata["token_usage"] == DETAILED


@pytest.mark.parametrize(
    ("told", "read"),
    [
        (None, None),
        ({}, None),
        (5, None),
        ("many", None),
        ([1], None),
        ({"usage": None}, None),
        ({"prompt_tokens": "11", "completion_tokens": 5.0}, COUNTED),
        ({"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": -1}, COUNTED),
        ({"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 0}, COUNTED),
        ({"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": "x"}, COUNTED),
        ({"prompt_tokens": True, "completion_tokens": False}, None),
        ({"prompt_tokens": -11, "completion_tokens": 1.5}, None),
        ({"prompt_tokens": "-11", "completion_tokens": "²"}, None),
        ({"prompt_tokens": 1e400, "completion_tokens": "9" * 5000}, None),
        ({"total_tokens": 16}, None),
        (
            {"completion_tokens": 5},
            {"input_tokens": 0, "output_tokens": 5, "total_tokens": 5},
        ),
        (
            {
                "prompt_tokens": 11,
                "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": "x", "audio_tokens": True},
                "completion_tokens_details": [1],
            },
            COUNTED,
        ),
    ],
)
def test_an_odd_count_is_no_count(
    env: Env, told: Any, read: dict[str, int] | None
) -> None:
    """Odd counts are left out, streamed or not, and the metadata is still JSON."""
    env.gateway.script(whole(told), whole({"usage": told}), stream(told))

    flat, nested = (env.invoke(env.llm(), "hi") for _ in range(2))
    streamed = sum_of(env.stream(env.llm(), "hi"))

    for message in (flat, nested, streamed):
        assert message.content == "hi"
        assert message.usage_metadata == read
        assert json.dumps(message.response_metadata)
        assert json.loads(dumps(message))["type"] == "constructor"


# --- added up ---


def test_several_choices_cost_once(env: Env) -> None:
    """The tokens of all choices, counted together, are on the first message only."""
    env.gateway.always(whole({"usage": DETAILED}, choices=3))

    result = env.generate(env.llm(n=3), [[HumanMessage("hi")]])

    messages = [generation.message for generation in result.generations[0]]
    assert [message.usage_metadata for message in messages] == [READ, None, None]
    assert result.llm_output["token_usage"] == DETAILED


def test_several_prompts_cost_their_sum(env: Env) -> None:
    """`generate` adds up counts at any depth, and skips answers without usage."""
    env.gateway.script(
        whole(DETAILED), whole(None), whole({**DETAILED, "tier": "b"}), whole({})
    )

    result = env.generate(env.llm(), [[HumanMessage("hi")]] * 4)

    assert result.llm_output["token_usage"] == {
        "prompt_tokens": 22,
        "completion_tokens": 10,
        "total_tokens": 32,
        "prompt_tokens_details": {"cached_tokens": 16, "audio_tokens": None},
        "completion_tokens_details": {"reasoning_tokens": 6, "of_the_provider": 2},
        "cost": 1.0,
        "tier": "b",
    }


@pytest.mark.parametrize("way", ["invoke", "streaming", "stream", "batch", "inside"])
def test_a_callback_counts_the_gateways_usage(env: Env, way: str) -> None:
    """`UsageMetadataCallbackHandler` counts the usage that the gateway sends."""
    usage = Answer(usage=Usage(prompt_tokens=20, completion_tokens=7))
    env.gateway.always(usage)
    counter = UsageMetadataCallbackHandler()
    config = {"callbacks": [counter]}

    if way == "inside":
        env.gateway.script(Status(500), usage, Status(500), usage)
    llm = env.llm(**({"streaming": True} if way == "streaming" else {}))
    if way == "batch":
        env.batch(llm, ["hi", "hi"], config=config)
    else:
        call = env.stream if way == "stream" else env.invoke
        for _ in range(2):
            call(llm, "hi", config=config)

    counted = {"input_tokens": 40, "output_tokens": 14, "total_tokens": 54}
    assert counter.usage_metadata == {"gpt-4-0613": counted}


@pytest.mark.parametrize("way", ["invoke", "streaming", "stream"])
def test_a_callback_counts_for_the_model_that_answered(env: Env, way: str) -> None:
    """After a failover inside the list, the usage is that of the second model."""
    env.gateway.script(Status(503))
    counter = UsageMetadataCallbackHandler()
    streaming = {"streaming": True} if way == "streaming" else {}
    llm = env.llm(models_priority_list=[GPT_4, OTHER], **streaming)

    call = env.stream if way == "stream" else env.invoke
    call(llm, "hi", config={"callbacks": [counter]})

    assert list(counter.usage_metadata) == [OTHER.name]


def test_usage_told_twice_counts_once(env: Env) -> None:
    """A second `meta` doubles neither the tokens nor the model's name."""
    told = 'data: {"event":"meta","data":{"model":"m","usage":{"prompt_tokens":3}}}'
    body = event_stream(update("hi", "stop"), told, update("", "stop"), told, END)
    env.gateway.script(body, Status(500), body)

    streamed = sum_of(env.stream(env.llm(), "hi"))
    inside = env.invoke(env.llm(), "hi")

    for message in (streamed, inside):
        assert message.usage_metadata == {
            "input_tokens": 3,
            "output_tokens": 0,
            "total_tokens": 3,
        }
        assert message.response_metadata["model_name"] == "m"
        assert message.response_metadata["finish_reason"] == "stop"


def test_a_model_without_a_name_is_the_one_asked_first(env: Env) -> None:
    """Azure's models have no name in a stream: that of the first model is used."""
    env.gateway.always(stream(DETAILED, model=None))
    other = GPTRouterModel(name="gpt-4", provider_name="azure_chat_openai")

    for models in ([other], [other, GPT_4]):
        metadata = env.ask("stream", models_priority_list=models).response_metadata
        assert metadata["model_name"] == "gpt-4"
        assert metadata["provider_name"] == "azure_chat_openai"


# --- counted before a call ---


def test_tokens_are_counted_offline(env: Env) -> None:
    """Texts, messages and tools have an approximate number, or a counter's own."""

    def look_up(word: str) -> str:
        """Look a word up."""
        return word

    llm = env.llm()
    history: list[Any] = [HumanMessage("x" * 400, id=str(i)) for i in range(5)]
    plain = llm.get_num_tokens_from_messages(history)
    assert llm.get_num_tokens("x" * 41) == 11
    assert 500 < plain < 540
    assert llm.get_num_tokens_from_messages(history, [look_up]) > plain
    kept = trim_messages(history, max_tokens=250, token_counter=llm, strategy="last")
    assert [message.id for message in kept] == ["3", "4"]

    own = env.llm(custom_get_token_ids=lambda text: [0] * len(text))
    assert own.get_num_tokens("x" * 41) == 41
    assert own.get_num_tokens_from_messages(history) > 2000
    assert not env.gateway.requests
