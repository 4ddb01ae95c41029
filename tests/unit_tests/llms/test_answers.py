"""A healthy answer, by every method of every class."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate

from langchain_retryrouter import OpenAI, OpenAIChat
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Answer,
    Body,
    FaultyGateway,
    MissingDone,
    SplitCharacter,
    Usage,
)

from .conftest import NewLLM, Recorder


def test_invoke_gives_the_text(twin: Any, any_model: Any, new_llm: NewLLM) -> None:
    """`invoke` gives the answer's text, on every class and both ways."""
    assert twin.invoke(new_llm(any_model), "hi") == STUB_TEXT


def test_stream_gives_the_text_in_pieces(
    twin: Any, any_model: Any, new_llm: NewLLM
) -> None:
    """`stream` gives the text as it comes, token by token."""
    chunks = twin.stream(new_llm(any_model), "hi")
    assert "".join(chunks) == STUB_TEXT
    assert [chunk for chunk in chunks if chunk] == [
        "Hello",
        " from",
        " the",
        " stub",
        " upstream",
    ]


def test_batch_gives_the_texts_in_order(
    twin: Any, any_model: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """`batch` answers each prompt, in the order of the prompts."""
    gateway.always(Answer(text=_echo))
    prompts = [f"prompt {number}" for number in range(3)]
    llm = new_llm(any_model, batch_size=1)
    assert twin.batch(llm, prompts) == [f"said: {prompt}" for prompt in prompts]


def _echo(request: Any) -> str:
    payload = request.payload
    if "messages" in payload:
        return f"said: {payload['messages'][-1]['content']}"
    return f"said: {payload['prompt']}"


@pytest.mark.parametrize("streaming", [False, True])
def test_generate_has_reason_and_usage(
    twin: Any, any_model: Any, new_llm: NewLLM, *, streaming: bool
) -> None:
    """An `LLMResult` says why the answer ended, what it cost, and who gave it."""
    llm = new_llm(any_model, streaming=streaming, stream_usage=streaming)
    result = twin.generate(llm, ["hi"])
    ((generation,),) = result.generations
    assert generation.text == STUB_TEXT
    assert generation.generation_info == {"finish_reason": "stop", "logprobs": None}
    assert result.llm_output["token_usage"] == {
        "prompt_tokens": 11,
        "completion_tokens": 5,
        "total_tokens": 16,
    }
    assert result.llm_output["model_name"] == llm.model_name
    (line,) = result.llm_output["retryrouter"]["attempts"]
    assert (line["attempt"], line["outcome"]) == (1, "ok")


def test_the_fingerprint_is_kept_in_both_twins(
    twin: Any, any_model: Any, new_llm: NewLLM
) -> None:
    """`system_fingerprint` is in the result, sync and async."""
    result = twin.generate(new_llm(any_model), ["hi"])
    assert result.llm_output["system_fingerprint"] == "fp_stub"


def test_n_answers_for_each_prompt(
    twin: Any, any_model: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """With `n`, each prompt has its `n` generations, and usage is added up."""
    result = twin.generate(new_llm(any_model, n=2), ["hi", "ho"])
    assert [len(generations) for generations in result.generations] == [2, 2]
    assert result.llm_output["token_usage"]["completion_tokens"] == 20
    assert {request.payload["n"] for request in gateway.requests} == {2}


def test_n_may_be_given_to_the_call(twin: Any, any_model: Any, new_llm: NewLLM) -> None:
    """An option of the call goes before the model's own field."""
    result = twin.generate(new_llm(any_model), ["hi"], n=3)
    assert [len(generations) for generations in result.generations] == [3]


def test_choices_are_sorted_by_their_index(
    twin: Any, any_model: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """Choices that come in another order still belong to their own prompt."""
    choices = [
        {
            "index": index,
            "text": f"{index}",
            "message": {"role": "assistant", "content": f"{index}"},
            "finish_reason": "stop",
        }
        for index in (2, 0, 1)
    ]
    body = {"id": "x", "object": "o", "created": 1, "model": "m", "choices": choices}
    gateway.respond("/v1/completions", body)
    gateway.respond("/v1/chat/completions", body)
    gateway.respond("/openai/deployments/my-deployment/completions", body)
    result = twin.generate(new_llm(any_model, n=3), ["hi"])
    assert [g.text for g in result.generations[0]] == ["0", "1", "2"]


def test_many_prompts_go_out_in_batches(
    twin: Any, completions_model: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """`batch_size` prompts go out in one request, and all answers come back."""
    prompts = [f"prompt {number}" for number in range(5)]
    result = twin.generate(new_llm(completions_model, batch_size=2), prompts)
    assert len(result.generations) == 5
    assert [request.payload["prompt"] for request in gateway.requests] == [
        prompts[:2],
        prompts[2:4],
        prompts[4],
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_stop_is_sent(
    twin: Any,
    any_model: Any,
    new_llm: NewLLM,
    gateway: FaultyGateway,
    *,
    streaming: bool,
) -> None:
    """`stop` reaches the provider, streaming or not."""
    llm = new_llm(any_model, streaming=streaming)
    assert twin.invoke(llm, "hi", stop=["stub"]) == "Hello from the "
    assert gateway.requests[-1].payload["stop"] == ["stub"]


def test_two_stops_are_one_too_many(
    twin: Any, any_model: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A `stop` for the model beside one for the call is refused; nothing is sent."""
    llm = new_llm(any_model, model_kwargs={"stop": ["a"]})
    with pytest.raises(ValueError, match="`stop` is given both"):
        twin.invoke(llm, "hi", stop=["b"])
    assert gateway.requests == []


def test_streaming_answers_every_prompt(
    twin: Any, any_model: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """`generate` with `streaming=True` answers all its prompts, one stream each."""
    result = twin.generate(new_llm(any_model, streaming=True), ["hi", "ho"])
    assert [g[0].text for g in result.generations] == [STUB_TEXT, STUB_TEXT]
    assert [request.streaming for request in gateway.requests] == [True, True]


def test_callbacks_hear_every_token(
    twin: Any, any_model: Any, new_llm: NewLLM, recorder: Recorder
) -> None:
    """With `streaming=True`, `invoke` tells callbacks of each token and its chunk."""
    llm = new_llm(any_model, streaming=True, callbacks=[recorder])
    assert twin.invoke(llm, "hi") == STUB_TEXT
    assert "".join(recorder.tokens) == STUB_TEXT
    assert all("logprobs" in facts for facts in recorder.token_facts)
    assert [facts["chunk"].text for facts in recorder.token_facts] == recorder.tokens


def test_the_last_chunk_has_usage_and_attempt_log(
    twin: Any, any_model: Any, new_llm: NewLLM, recorder: Recorder
) -> None:
    """A stream's result has its usage, and its ledger once, in `generation_info`."""
    llm = new_llm(any_model, stream_usage=True, callbacks=[recorder])
    twin.stream(llm, "hi")
    ((generation,),) = recorder.results[0].generations
    info = generation.generation_info
    assert info is not None
    assert info["finish_reason"] == "stop"
    assert info["token_usage"]["total_tokens"] == 16
    assert [line["outcome"] for line in info["retryrouter"]["attempts"]] == ["ok"]


def test_usage_is_asked_for_only_in_streams(
    twin: Any, any_model: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """`stream_options` is sent with streams alone: OpenAI refuses it elsewhere."""
    llm = new_llm(any_model, stream_usage=True)
    twin.invoke(llm, "hi")
    twin.stream(llm, "hi")
    twin.stream(new_llm(any_model), "hi")
    asked = [request.payload.get("stream_options") for request in gateway.requests]
    assert asked == [None, {"include_usage": True}, None]


def test_stream_options_of_the_user_are_kept(
    twin: Any, any_model: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """`stream_options` that the user gives are sent as they are, in streams."""
    options = {"include_usage": True, "include_obfuscation": False}
    llm = new_llm(any_model, model_kwargs={"stream_options": options})
    twin.stream(llm, "hi")
    twin.invoke(llm, "hi")
    asked = [request.payload.get("stream_options") for request in gateway.requests]
    assert asked == [options, None]


def test_usage_on_the_finish_chunk_counts_once(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway, recorder: Recorder
) -> None:
    """Usage that grows from chunk to chunk, as some servers tell it, is no sum."""

    def event(tokens: int, *choices: str) -> str:
        usage = f'"usage":{{"completion_tokens":{tokens},"total_tokens":{tokens + 3}}}'
        return f'{{"choices":[{",".join(choices)}],{usage}}}'

    events = [
        event(1, '{"index":0,"text":"a","finish_reason":null}'),
        event(2, '{"index":0,"text":"b","finish_reason":"stop"}'),
        event(2),
        "[DONE]",
    ]
    body = "".join(f"data: {event}\n\n" for event in events)
    gateway.script(Body(200, {"content-type": "text/event-stream"}, body))
    assert "".join(twin.stream(new_llm(callbacks=[recorder]), "hi")) == "ab"
    info = recorder.results[0].generations[0][0].generation_info
    assert info is not None
    assert info["token_usage"]["total_tokens"] == 5


@pytest.mark.parametrize("streaming", [False, True])
def test_logprobs_of_completions(
    twin: Any,
    completions_model: Any,
    new_llm: NewLLM,
    *,
    streaming: bool,
) -> None:
    """`logprobs` is sent, and what comes is in `generation_info`, streamed or not."""
    llm = new_llm(completions_model, logprobs=1, streaming=streaming)
    ((generation,),) = twin.generate(llm, ["hi"]).generations
    logprobs = generation.generation_info["logprobs"]
    assert "".join(logprobs["tokens"]) == STUB_TEXT
    assert len(logprobs["token_logprobs"]) == len(logprobs["tokens"]) == 5


@pytest.mark.parametrize("streaming", [False, True])
def test_logprobs_of_chat(twin: Any, new_llm: NewLLM, *, streaming: bool) -> None:
    """A chat model's `logprobs` are in `generation_info`, streamed or not."""
    llm = new_llm(OpenAIChat, logprobs=True, streaming=streaming)
    ((generation,),) = twin.generate(llm, ["hi"]).generations
    content = generation.generation_info["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == STUB_TEXT


def test_callbacks_hear_logprobs(
    twin: Any, new_llm: NewLLM, recorder: Recorder
) -> None:
    """The callbacks are told of each token's log probability."""
    twin.stream(new_llm(logprobs=1, callbacks=[recorder]), "hi")
    first = recorder.token_facts[0]["logprobs"]
    assert first["tokens"] == ["Hello"]


@pytest.mark.parametrize("streaming", [False, True])
def test_characters_torn_apart_are_whole_again(
    twin: Any,
    any_model: Any,
    new_llm: NewLLM,
    gateway: FaultyGateway,
    *,
    streaming: bool,
) -> None:
    """A character that comes in two pieces is one character."""
    text = "Grüße 日本語 🦊 \u2028 \u0085 end"
    gateway.script(SplitCharacter(text))
    assert twin.invoke(new_llm(any_model, streaming=streaming), "hi") == text


def test_a_missing_done_is_no_fault(
    twin: Any, any_model: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A stream that is whole needs no `[DONE]`."""
    gateway.script(MissingDone())
    assert "".join(twin.stream(new_llm(any_model), "hi")) == STUB_TEXT
    assert len(gateway.requests) == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_an_empty_answer_is_an_answer(
    twin: Any,
    any_model: Any,
    new_llm: NewLLM,
    gateway: FaultyGateway,
    *,
    streaming: bool,
) -> None:
    """A model that says nothing, and says that it is done, has answered."""
    gateway.script(Answer(text="", usage=Usage(1, 0)))
    assert twin.invoke(new_llm(any_model, streaming=streaming), "hi") == ""
    assert len(gateway.requests) == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_missing_usage_is_no_fault(
    twin: Any,
    any_model: Any,
    new_llm: NewLLM,
    gateway: FaultyGateway,
    *,
    streaming: bool,
) -> None:
    """An answer without usage has empty usage, and nothing else is wrong with it."""
    gateway.script(Answer(usage=None))
    llm = new_llm(any_model, streaming=streaming, stream_usage=True)
    result = twin.generate(llm, ["hi"])
    assert result.generations[0][0].text == STUB_TEXT
    assert result.llm_output["token_usage"] == {}


def test_a_null_text_is_an_empty_one(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A null where the text should be, as some servers send it, is an empty text."""
    choice = {"index": 0, "text": None, "finish_reason": "stop", "logprobs": None}
    gateway.respond("/v1/completions", {"id": "x", "choices": [choice]})
    assert twin.invoke(new_llm(), "hi") == ""


def test_a_chain_of_prompt_model_and_parser(
    twin: Any, any_model: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """The models work in an LCEL chain, invoked, streamed and batched."""
    prompt = PromptTemplate.from_template("Say {word}")
    chain = prompt | new_llm(any_model) | StrOutputParser()
    assert twin.invoke(chain, {"word": "a"}) == STUB_TEXT
    assert "".join(twin.stream(chain, {"word": "b"})) == STUB_TEXT
    assert twin.batch(chain, [{"word": "c"}, {"word": "d"}]) == [STUB_TEXT] * 2
    assert len(gateway.requests) >= 3


@pytest.mark.parametrize("field", ["n", "best_of"])
def test_a_stream_of_several_answers_is_refused(
    twin: Any, completions_model: Any, new_llm: NewLLM, field: str
) -> None:
    """`n` or `best_of` above 1 cannot be streamed: refused by model and by call."""
    with pytest.raises(ValueError, match=f"{field}=2 cannot be streamed"):
        new_llm(completions_model, streaming=True, **{field: 2})
    with pytest.raises(ValueError, match=f"{field}=2 cannot be streamed"):
        twin.stream(new_llm(completions_model), "hi", **{field: 2})
    with pytest.raises(ValueError, match=f"{field}=2 cannot be streamed"):
        twin.stream(new_llm(completions_model, **{field: 2}), "hi")


def test_a_chat_stream_of_several_answers_is_refused(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """`n` above 1 cannot be streamed by a chat model either."""
    with pytest.raises(ValueError, match="n=2 cannot be streamed"):
        new_llm(OpenAIChat, streaming=True, n=2)
    with pytest.raises(ValueError, match="n=2 cannot be streamed"):
        twin.stream(new_llm(OpenAIChat), "hi", n=2)
    assert gateway.requests == []


def test_best_of_is_sent_when_it_says_something(
    twin: Any, completions_model: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """`best_of` is sent above 1 only: Azure's models do not know it."""
    twin.invoke(new_llm(completions_model), "hi")
    twin.invoke(new_llm(completions_model, best_of=3), "hi")
    assert [r.payload.get("best_of") for r in gateway.requests] == [None, 3]


def test_what_is_not_set_is_not_sent(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """No null reaches the server: there are servers that take it for a zero."""
    twin.invoke(new_llm(max_tokens=None), "hi")
    assert gateway.requests[0].payload == {
        "model": "gpt-3.5-turbo-instruct",
        "prompt": "hi",
        "temperature": 0.7,
        "top_p": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "n": 1,
    }
    twin.invoke(new_llm(OpenAIChat), "hi")
    assert gateway.requests[1].payload == {
        "model": "gpt-3.5-turbo",
        "messages": [{"role": "user", "content": "hi"}],
    }


def test_every_parameter_is_sent(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """Each parameter that has a field reaches the server as it was given."""
    parameters = {
        "temperature": 0.1,
        "max_tokens": 7,
        "top_p": 0.2,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.4,
        "n": 2,
        "seed": 5,
        "logit_bias": {"50256": -100.0},
    }
    given = {**parameters, "best_of": 3, "logprobs": 1}
    twin.invoke(new_llm(OpenAI, **given, extra_body={"top_k": 9}), "hi")
    assert gateway.requests[0].payload == {
        **given,
        "top_k": 9,
        "model": "gpt-3.5-turbo-instruct",
        "prompt": "hi",
    }
    chat = {**parameters, "logprobs": True, "top_logprobs": 2}
    twin.invoke(new_llm(OpenAIChat, **chat, extra_body={"top_k": 9}), "hi")
    assert gateway.requests[1].payload == {
        **chat,
        "top_k": 9,
        "model": "gpt-3.5-turbo",
        "messages": [{"role": "user", "content": "hi"}],
    }
