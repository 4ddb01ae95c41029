"""A healthy answer, by every method of every class."""

from typing import Any

import pytest

from langchain_retryrouter import AzureOpenAI, OpenAI, OpenAIChat
from langchain_retryrouter.testing import STUB_TEXT, Answer, SplitCharacter, Usage

from .conftest import Env, Recorder, choice, events, outcomes, whole

CHAT_PROMPT = {"messages": [{"role": "user", "content": "hi"}]}


def test_generate_has_reason_and_usage(every: Env, streaming: bool) -> None:
    """An `LLMResult` has finish reason, usage, model, fingerprint and attempt log."""
    llm = every.new(streaming=streaming, stream_usage=streaming)
    result = every.generate(llm, ["hi"])
    ((generation,),) = result.generations
    assert generation.text == STUB_TEXT
    assert generation.generation_info == {"finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
    assert result.llm_output["token_usage"] == usage
    assert result.llm_output["model_name"] == llm.model_name
    (line,) = result.llm_output["retryrouter"]["attempts"]
    assert (line["attempt"], line["outcome"]) == (1, "ok")
    assert streaming or result.llm_output["system_fingerprint"] == "fp_stub"


@pytest.mark.parametrize("of_the_call", [False, True])
def test_n_answers_for_each_prompt(every: Env, of_the_call: bool) -> None:
    """Each prompt has `n` answers; the call's `n` goes before the model's."""
    llm, options = (every.new(), {"n": 2}) if of_the_call else (every.new(n=2), {})
    result = every.generate(llm, ["hi", "ho"], **options)
    assert [len(generations) for generations in result.generations] == [2, 2]
    assert result.llm_output["token_usage"]["completion_tokens"] == 20
    assert {request.payload["n"] for request in every.gateway.requests} == {2}


def test_choices_are_sorted_by_their_index(every: Env) -> None:
    """Choices that come in another order still belong to their own prompt."""
    choices = [{**choice(f"{index}", "stop"), "index": index} for index in (2, 0, 1)]
    every.gateway.script(whole(*choices))
    result = every.generate(every.new(n=3), ["hi"])
    assert [g.text for g in result.generations[0]] == ["0", "1", "2"]


def test_many_prompts_go_out_in_batches(completions: Env) -> None:
    """`batch_size` prompts go out in one request, and all answers come back."""
    prompts = [f"prompt {number}" for number in range(5)]
    result = completions.generate(completions.new(batch_size=2), prompts)
    assert len(result.generations) == 5
    assert [request.payload["prompt"] for request in completions.gateway.requests] == [
        prompts[:2],
        prompts[2:4],
        prompts[4],
    ]


def test_stop_is_sent(every: Env, streaming: bool) -> None:
    """`stop` reaches the provider; the call's goes before the model's."""
    for fields in ({}, {"model_kwargs": {"stop": ["from"]}}):
        llm = every.new(streaming=streaming, **fields)
        assert every.invoke(llm, "hi", stop=["stub"]) == "Hello from the "
        assert every.gateway.requests[-1].payload["stop"] == ["stub"]


def test_streaming_answers_every_prompt(every: Env) -> None:
    """`generate` with `streaming=True` answers all its prompts, one stream each."""
    result = every.generate(every.new(streaming=True), ["hi", "ho"])
    assert [g[0].text for g in result.generations] == [STUB_TEXT, STUB_TEXT]
    assert [request.streaming for request in every.gateway.requests] == [True, True]


def test_callbacks_hear_every_token(every: Env, recorder: Recorder) -> None:
    """With `streaming=True`, `invoke` tells callbacks of each token and its chunk."""
    llm = every.new(streaming=True, callbacks=[recorder])
    assert every.invoke(llm, "hi") == STUB_TEXT
    assert "".join(recorder.tokens) == STUB_TEXT
    assert all("logprobs" in facts for facts in recorder.token_facts)
    assert [facts["chunk"].text for facts in recorder.token_facts] == recorder.tokens


def test_the_last_chunk_has_usage_and_attempt_log(
    every: Env, recorder: Recorder
) -> None:
    """A stream's result has its usage, and its ledger once, in `generation_info`."""
    every.stream(every.new(stream_usage=True, callbacks=[recorder]), "hi")
    info = recorder.results[0].generations[0][0].generation_info or {}
    assert info["finish_reason"] == "stop"
    assert info["token_usage"]["total_tokens"] == 16
    assert outcomes(info["retryrouter"]) == ["ok"]


def test_stream_options_are_sent_with_streams_only(every: Env) -> None:
    """`stream_options`, the user's own too, is sent with streams only."""
    options = {"include_usage": True, "include_obfuscation": False}
    own = every.new(model_kwargs={"stream_options": options})
    for llm in (every.new(stream_usage=True), own, every.new()):
        every.invoke(llm, "hi")
        every.stream(llm, "hi")
    asked = [
        request.payload.get("stream_options") for request in every.gateway.requests
    ]
    assert asked == [None, {"include_usage": True}, None, options, None, None]


def test_usage_on_the_finish_chunk_counts_once(env: Env, recorder: Recorder) -> None:
    """Usage that grows from chunk to chunk is not added up."""
    chunks = [([choice("a")], 4), ([choice("b", "stop")], 5), ([], 5)]
    sent = [{"choices": c, "usage": {"total_tokens": count}} for c, count in chunks]
    env.gateway.script(events(*sent))
    assert "".join(env.stream(env.new(callbacks=[recorder]), "hi")) == "ab"
    info = recorder.results[0].generations[0][0].generation_info or {}
    assert info["token_usage"]["total_tokens"] == 5


def test_logprobs_of_completions(
    completions: Env, recorder: Recorder, streaming: bool
) -> None:
    """`logprobs` are in `generation_info`, and callbacks get those of each token."""
    llm = completions.new(logprobs=1, streaming=streaming, callbacks=[recorder])
    ((generation,),) = completions.generate(llm, ["hi"]).generations
    logprobs = generation.generation_info["logprobs"]
    assert "".join(logprobs["tokens"]) == STUB_TEXT
    assert len(logprobs["token_logprobs"]) == len(logprobs["tokens"]) == 5
    if streaming:
        told = [facts["logprobs"] for facts in recorder.token_facts]
        assert next(filter(None, told))["tokens"] == ["Hello"]


def test_logprobs_of_chat(env: Env, streaming: bool) -> None:
    """A chat model's `logprobs` are in `generation_info`, streamed or not."""
    llm = env.new(OpenAIChat, logprobs=True, streaming=streaming)
    ((generation,),) = env.generate(llm, ["hi"]).generations
    content = generation.generation_info["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == STUB_TEXT


TORN = "Grüße 日本語 🦊 \u2028 \u0085 end"


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (SplitCharacter(TORN), TORN),
        (Answer(text="", usage=Usage(1, 0)), ""),
        (Answer(usage=None), STUB_TEXT),
    ],
    ids=["characters in two pieces", "empty text", "no usage"],
)
def test_unusual_answers_are_answers(
    every: Env, streaming: bool, step: Any, text: str
) -> None:
    """A text in pieces, or without a word or usage, is an answer like others."""
    every.gateway.script(step)
    llm = every.new(streaming=streaming, stream_usage=streaming)
    result = every.generate(llm, ["hi"])
    assert result.generations[0][0].text == text
    has_usage = getattr(step, "usage", True) is not None
    assert bool(result.llm_output["token_usage"]) == has_usage
    assert len(every.gateway.requests) == 1


def test_a_null_text_is_an_empty_one(env: Env) -> None:
    """A null where the text should be, as some servers send it, is an empty text."""
    env.gateway.script(whole({"index": 0, "text": None, "finish_reason": "stop"}))
    assert env.invoke(env.new(), "hi") == ""


@pytest.mark.parametrize(
    ("cls", "field"),
    [(OpenAI, "n"), (AzureOpenAI, "n"), (OpenAI, "best_of"), (OpenAIChat, "n")],
)
def test_a_stream_of_several_answers_is_refused(env: Env, cls: Any, field: str) -> None:
    """`n` or `best_of` above 1 cannot be streamed: refused by model and by call."""
    several: dict[str, Any] = {field: 2}
    for attempt in (
        lambda: env.new(cls, streaming=True, **several),
        lambda: env.stream(env.new(cls), "hi", **several),
        lambda: env.stream(env.new(cls, **several), "hi"),
    ):
        with pytest.raises(ValueError, match=f"{field}=2 cannot be streamed"):
            attempt()
    assert env.gateway.requests == []


def test_what_is_not_set_is_not_sent(env: Env) -> None:
    """No null reaches the server: there are servers that take it for a zero."""
    env.invoke(env.new(max_tokens=None), "hi")
    assert env.gateway.requests[0].payload == {
        "model": "gpt-3.5-turbo-instruct",
        "prompt": "hi",
        "temperature": 0.7,
        "top_p": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "n": 1,
    }
    env.invoke(env.new(OpenAIChat), "hi")
    assert env.gateway.requests[1].payload == {"model": "gpt-3.5-turbo", **CHAT_PROMPT}


def test_every_parameter_is_sent(env: Env) -> None:
    """Each parameter that has a field reaches the server as it was given."""
    parameters = {
        "temperature": 0.1,
        "top_p": 0.2,
        "max_tokens": 7,
        "n": 2,
        "seed": 5,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.4,
        "logit_bias": {"50256": -100.0},
    }
    of_completions = {**parameters, "best_of": 3, "logprobs": 1}
    of_chat = {**parameters, "logprobs": True, "top_logprobs": 2}
    for cls, given, prompt in (
        (OpenAI, of_completions, {"prompt": "hi"}),
        (OpenAIChat, of_chat, CHAT_PROMPT),
    ):
        llm = env.new(cls, model="some-model", **given, extra_body={"top_k": 9})
        env.invoke(llm, "hi")
        expected = {**given, **prompt, "top_k": 9, "model": "some-model"}
        assert env.gateway.requests[-1].payload == expected
