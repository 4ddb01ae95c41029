"""What real servers do: errors in unusual places, early ends, refused parameters."""

import json
from typing import Any

import openai
import pytest

from langchain_retryrouter import (
    CircuitBreaker,
    MalformedResponseError,
    OpenAI,
    OpenAIChat,
    RetryBudget,
    RetryPolicy,
    RetryRouterError,
    errors,
)
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK
from langchain_retryrouter.testing import STUB_TEXT, Answer, Body, Raw
from tests.unit_tests.conftest import Twin

from .conftest import JSON, Env, choice, outcomes, own_clients, streamed, whole


def test_half_a_surrogate_is_the_callers_error(every: Env, method: str) -> None:
    """Text that UTF-8 cannot encode is refused at once; nothing is counted."""
    budget = RetryBudget(capacity=20)
    breaker = CircuitBreaker(failure_threshold=1)
    llm = every.new(budget=budget, breaker=breaker)
    with pytest.raises(errors.UnsupportedOptionError, match=r"cannot be sent.*ud83d"):
        getattr(every, method)(llm, "cut \ud83d here")
    assert every.gateway.requests == []
    assert budget.tokens == 20
    assert every.invoke(llm, "hi") == STUB_TEXT


FAILED = [
    choice("half an", "error"),
    choice("half an", "network_error"),
    choice("half an", "ABORT"),
    choice("half an", error={"code": 502, "message": "Upstream failed."}),
]


@pytest.mark.parametrize(
    "failed", FAILED, ids=["reason", "network", "capitals", "choice"]
)
def test_an_answer_that_a_provider_broke_off_is_an_error(
    every: Env, failed: dict[str, Any]
) -> None:
    """A gateway's `finish_reason: "error"`, or an error in a choice, is an error."""
    every.gateway.script(whole(failed))
    assert every.invoke(every.new(), "hi") == STUB_TEXT
    every.gateway.script(streamed({**failed, "text": "", "delta": {}}))
    assert "".join(every.stream(every.new(), "hi")) == STUB_TEXT
    assert len(every.gateway.requests) == 4
    every.gateway.script(streamed(choice("one "), failed))
    with pytest.raises(errors.ServerError) as caught:
        every.stream(every.new(), "hi")
    assert caught.value.delivered == "one "


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": {"message": "json: cannot unmarshal array into Go struct"}}),
        (400, {"error": "'prompt' field must be a string"}),
        (422, {"error": {"message": "invalid type: sequence, expected a string"}}),
        (422, {"detail": [{"loc": ["prompt"], "msg": "should be a valid string"}]}),
    ],
    ids=["ollama", "lmstudio", "deepseek", "pydantic"],
)
def test_prompts_go_one_by_one_where_a_list_is_refused(
    completions: Env, status: int, body: Any
) -> None:
    """A server that takes only strings gets strings, in later calls at once."""
    completions.gateway.script(Body(status, JSON, json.dumps(body)))
    llm = completions.new(batch_size=2)
    for _ in range(2):
        result = completions.generate(llm, ["a", "b", "c"])
        assert [g[0].text for g in result.generations] == [STUB_TEXT] * 3
    first, *others = (
        request.payload["prompt"] for request in completions.gateway.requests
    )
    assert (first, sorted(others)) == (["a", "b"], [*"aabbcc"])


@pytest.mark.parametrize(
    ("message", "is_split"),
    [("Too hot.", False), ("Invalid type for 'user': expected a string.", True)],
)
def test_another_refusal_of_a_list_is_raised(
    completions: Env, message: str, is_split: bool
) -> None:
    """After a refusal of something else, later calls send lists as before."""
    refusal = Body(400, JSON, json.dumps({"error": {"message": message}}))
    completions.gateway.always(refusal)
    llm = completions.new()
    with pytest.raises(errors.InvalidRequestError, match=message):
        completions.generate(llm, ["a", "b"], user=1)
    completions.gateway.always(Answer())
    completions.generate(llm, ["a", "b"])
    prompts = [request.payload["prompt"] for request in completions.gateway.requests]
    assert prompts[0] == prompts[-1] == ["a", "b"]
    assert (len(prompts) > 2) == is_split


def test_none_takes_a_parameter_out(every: Env, method: str) -> None:
    """An option of None is no null in the request, and not the model's own value."""
    llm = every.new(max_tokens=9, temperature=0.5)
    getattr(every, method)(llm, "hi", max_tokens=None, temperature=None, seed=None)
    (request,) = every.gateway.requests
    assert not {"max_tokens", "temperature", "seed"} & request.payload.keys()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-5-mini", "max_completion_tokens"),
        ("o3", "max_completion_tokens"),
        ("ft:gpt-5-nano:org::id", "max_completion_tokens"),
        ("gpt-10.1-mini", "max_completion_tokens"),
        ("gpt-4o", "max_tokens"),
        ("gpt-3.5-turbo", "max_tokens"),
        ("llama3", "max_tokens"),
    ],
)
def test_a_limit_of_tokens_has_the_name_that_the_model_wants(
    env: Env, model: str, name: str
) -> None:
    """Reasoning models refuse `max_tokens`, other servers know only that name."""
    for max_tokens, limits in ((9, {name: 9}), (-1, {}), (None, {})):
        llm = env.new(OpenAIChat, model=model, max_tokens=max_tokens)
        env.invoke(llm, "hi")
        payload = env.gateway.requests[-1].payload
        assert {key: payload[key] for key in payload if "tokens" in key} == limits


def test_the_calls_limit_of_tokens_goes_before_the_models(
    env: Env, method: str
) -> None:
    """Both names mean one limit: either of a call replaces either of the model."""
    one, other = {"max_tokens": 5}, {"max_completion_tokens": 7}
    rows: list[Any] = [
        ({"max_tokens": 9}, other, other),
        ({"max_tokens": 9}, {"max_completion_tokens": None}, {}),
        ({"model_kwargs": {"max_completion_tokens": 9}}, one, one),
        ({"model_kwargs": {"max_completion_tokens": 9}}, {"max_tokens": -1}, {}),
    ]
    for fields, options, limits in rows:
        getattr(env, method)(env.new(OpenAIChat, **fields), "hi", **options)
        payload = env.gateway.requests[-1].payload
        assert {key: payload[key] for key in payload if "tokens" in key} == limits
    with pytest.raises(ValueError, match="max_tokens and max_completion_tokens"):
        getattr(env, method)(env.new(OpenAIChat), "hi", **one, **other)


@pytest.mark.parametrize("label", ["application/json", "text/html", "text/plain"])
def test_a_stream_with_another_label_is_one(env: Env, label: str) -> None:
    """Events are read as a stream, whatever a server calls their type."""
    sent = streamed(choice("a"), choice("b", "stop"))
    env.gateway.script(Body(200, {"content-type": label}, sent.body))
    assert env.stream(env.new(max_retries=0), "hi") == ["a", "b"]


def test_the_message_at_the_end_of_a_stream_is_not_read_again(env: Env) -> None:
    """A whole message behind its deltas, as MiniMax sends it, adds no text."""
    whole = {"message": {"content": "one two"}, "finish_reason": "stop"}
    deltas = [{"delta": {"content": "one "}}, {"delta": {"content": "two"}}]
    env.gateway.script(streamed(*deltas, whole), streamed(whole))
    llm = env.new(OpenAIChat, max_retries=0)
    assert "".join(env.stream(llm, "hi")) == "one two"
    assert "".join(env.stream(llm, "hi")) == "one two"


def test_a_message_in_parts_is_their_texts(env: Env) -> None:
    """Of parts, as reasoning models of Mistral and Databricks send, texts are kept."""
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "a"}, "b"]
    said = {"message": {"content": parts}, "delta": {"content": parts}}
    sent = {**said, "finish_reason": "stop"}
    env.gateway.script(whole(sent), streamed(sent))
    llm = env.new(OpenAIChat, max_retries=0)
    assert env.invoke(llm, "hi") == "".join(env.stream(llm, "hi")) == "ab"


# Ends that come too early.


@pytest.mark.parametrize("first", ["stop", None])
def test_a_reason_in_every_chunk_is_not_an_end(every: Env, first: Any) -> None:
    """A token after the end takes the end back: `[DONE]` then ends the stream."""
    chunks = [("one ", first), ("two ", "stop"), ("three", "stop")]
    every.gateway.script(streamed(*(choice(*chunk) for chunk in chunks)))
    result = every.generate(every.new(streaming=True), ["hi"])
    (only,) = result.generations[0]
    assert only.text == "one two three"
    assert only.generation_info["finish_reason"] == "stop"
    assert outcomes(result.llm_output["retryrouter"]) == ["ok"]


def unfinished(*texts: str, close: bool) -> Raw:
    """A stream that names a reason with each text, and never comes to its end."""
    chunks = [{"choices": [choice(text, "stop")]} for text in texts]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    return Raw(f"{head}content-length: 9999\r\n\r\n{body}".encode(), close=close)


def test_a_cut_after_an_early_end_is_a_cut(every: Env) -> None:
    """Once an end was taken back, a broken connection is an error."""
    every.gateway.script(unfinished("one ", "two ", close=True))
    with pytest.raises(errors.StreamInterruptedError) as caught:
        every.stream(every.new(), "hi")
    assert caught.value.delivered == "one two "


def test_silence_after_an_early_end_is_no_end(every: Env) -> None:
    """A reason that comes with the first token may be early: more may follow it."""
    step = unfinished("one ", close=False)
    every.gateway.script(step, streamed(choice("one", "stop")))
    llm = every.new(retry_policy=RetryPolicy(stall_timeout=0.6), clock=SYSTEM_CLOCK)
    with pytest.raises(errors.StreamInterruptedError) as caught:
        every.stream(llm, "hi")
    assert caught.value.delivered == "one "
    assert "".join(every.stream(llm, "hi")) == "one"


# Instrumentation.


@pytest.mark.parametrize("cls", [OpenAI, OpenAIChat])
@pytest.mark.parametrize("wraps", [False, True])
def test_instrumentation_sees_every_call(
    env: Env, cls: Any, monkeypatch: pytest.MonkeyPatch, streaming: bool, wraps: bool
) -> None:
    """A wrapper around the SDK's `create` sees each attempt of a call.

    It may return the SDK's objects, or wrap its streams.
    """
    path = openai.resources.chat.completions if cls is OpenAIChat else None
    home: Any = path or openai.resources.completions
    owner = home.AsyncCompletions if env.is_async else home.Completions
    create = owner.create
    seen: list[dict[str, Any]] = []

    async def awrap(answer: Any) -> Any:
        answer = await answer
        return (chunk async for chunk in answer) if streaming else answer.parse()

    def wrapper(self: Any, **kwargs: Any) -> Any:
        seen.append(kwargs)
        answer = create(self, **kwargs)
        if not wraps:
            return answer
        if env.is_async:
            return awrap(answer)
        return (chunk for chunk in answer) if streaming else answer.parse()

    llm = env.new(cls, streaming=streaming)
    env.invoke(llm, "hi")  # Before there is a wrapper.
    monkeypatch.setattr(owner, "create", wrapper)
    env.gateway.script(Body(503, JSON, "{}"))
    assert env.invoke(llm, "hi") == STUB_TEXT
    assert len(seen) == 2
    assert {kwargs.get("stream", False) for kwargs in seen} == {streaming}


# --- odd parts of a good answer ---


def counted(usage: str) -> Body:
    """An answer with this `usage`."""
    message = '{"message": {"content": "Hello"}, "finish_reason": "stop"}'
    return Body(200, JSON, f'{{"choices": [{message}], "usage": {usage}}}')


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ("7", {}),
        ('"7"', {}),
        ("[1]", {}),
        ('{"total_tokens": -1, "a": 1e999, "b": NaN, "c": "x"}', {}),
        (f'{{"total_tokens": 1{"0" * 400}, "cost": 0.5}}', {"cost": 0.5}),
        ('{"details": {"cached": 2, "odd": -2}}', {"details": {"cached": 2}}),
    ],
)
def test_what_is_no_count_is_left_out(
    env: Env, usage: str, expected: dict[str, Any]
) -> None:
    """An answer that was paid for is not lost over an odd number beside it."""
    env.gateway.script(counted(usage))
    result = env.generate(env.new(OpenAIChat), ["hi"])
    assert result.generations[0][0].text == "Hello"
    assert result.llm_output["token_usage"] == expected


def test_counts_are_added_up(env: Env) -> None:
    """Counts and their details are added over the prompts, also of two forms."""
    first = '{"a": {"b": 1}, "c": 1, "e": {"f": 1}}'
    second = '{"a": 2, "c": {"d": 3}, "e": {"f": 1}}'
    env.gateway.script(counted(first), counted(second))
    result = env.generate(env.new(OpenAIChat, batch_size=1), ["hi", "ho"])
    assert result.llm_output["token_usage"] == {"a": 2, "c": {"d": 3}, "e": {"f": 2}}


def test_unexpected_probabilities_do_not_keep_chunks_apart(env: Env) -> None:
    """Probabilities that cannot be joined are left out of a stream; its text is not."""
    told = [{"tokens": ["a"], "odd": 1}, ["a"], 7, {"tokens": ["b"], "odd": "x"}]
    chunks = [choice("a", logprobs=one) for one in told]
    env.gateway.script(streamed(*chunks, choice("", "stop")))
    (only,) = env.generate(env.new(streaming=True), ["hi"]).generations[0]
    assert only.text == "aaaa"
    assert only.generation_info["logprobs"] == {"tokens": ["a", "b"]}


def test_half_a_character_in_an_object_of_the_user(twin: Twin) -> None:
    """The SDK's objects may hold what cannot be written: a typed error, or the text."""
    facts: dict[str, Any] = {"choices": [{"message": {"content": "a"}}], "\ud800": 1}
    answer = openai.types.chat.ChatCompletion.construct(**facts)
    llm = OpenAIChat(**own_clients(lambda **_: answer), max_retries=0)
    try:
        assert twin.invoke(llm, "hi") == "a"
    except RetryRouterError as error:  # By some versions of pydantic.
        with pytest.raises(MalformedResponseError, match="cannot be read"):
            raise error from None
