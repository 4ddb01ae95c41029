"""Answers: their text, usage and metadata, whole, streamed, or odd in some place."""

import json
import warnings
from typing import Any

import pytest
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.load import dumps
from langchain_core.messages import HumanMessage, trim_messages
from pydantic import ValidationError

from langchain_retryrouter import (
    ContentFilterError,
    GPTRouterModel,
    MalformedResponseError,
    RetryRouter,
    StreamInterruptedError,
)
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Answer,
    Body,
    Status,
    Usage,
)

from .conftest import GPT_4, OTHER, WAYS, Env
from .frames import (
    END,
    FAREWELL,
    attempts_of,
    event,
    event_stream,
    sum_of,
    update,
    whole,
)

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


def test_two_choices_in_a_stream_are_refused(env: Env) -> None:
    """A stream with `n=2`, whose choices cannot be told apart, is refused unsent."""
    with pytest.raises(ValidationError, match="n must be 1 in a stream"):
        env.llm(streaming=True, n=2)
    for llm in (env.llm(n=2), env.llm().bind(n=2)):
        with pytest.raises(ValueError, match="n must be 1 in a stream"):
            env.stream(llm, "hi")

    assert env.gateway.requests == []


@pytest.mark.parametrize("ending", ["", "/", "/api", "/api/"])
def test_the_address_may_end_with_api_or_a_slash(env: Env, ending: str) -> None:
    """With or without `/api`, with or without a slash, it is the same endpoint."""
    env.invoke(env.llm(gpt_router_api_base=env.gateway.url + ending), "hi")

    assert env.gateway.requests[0].path == "/api/v1/generate"


# --- after a retry ---


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
        failed, answered = attempts_of(message)
        assert (failed["outcome"], failed["status_code"]) == ("server_error", 500)
        assert failed["wait"] > 0
        assert answered["outcome"] == "ok"
        assert metadata["model_name"] == "gpt-4-0613"
        assert metadata["provider_name"] == "chat_openai"
        assert metadata["finish_reason"] == "stop"


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
    "told",
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
def test_gaps_in_a_stream_are_tolerated(env: Env, told: dict[str, Any]) -> None:
    """Nulls, odd ids and keys of a provider's own do not cost a stream its answer."""
    odd = "data: " + json.dumps({"event": "update", **told})
    env.gateway.script(event_stream(odd, update("Hi", "stop"), END, FAREWELL))

    answer = env.ask("stream", max_retries=0)

    assert answer.content == "Hi"
    assert answer.tool_calls == []


def test_frames_may_have_names(env: Env) -> None:
    """An event counts whatever its frame is called; what is no event is left out."""
    frames = update("Hi", "stop"), END
    named = [f"event: {json.loads(one[6:])['event']}\n{one}" for one in frames]
    beat = ['event: ping\ndata: {"type": "ping"}', "event: ping\ndata: still here"]
    env.gateway.script(event_stream(*beat, *named, FAREWELL))

    assert env.ask("stream", max_retries=0).content == "Hi"


@pytest.mark.parametrize("way", WAYS[1:])
@pytest.mark.parametrize("beat", ["data:", "data: ", 'data: {"type": "ping"}'])
def test_a_heartbeat_without_a_name_is_left_out(env: Env, beat: str, way: str) -> None:
    """Neither an event without data nor an unnamed ping ends a good stream."""
    frames = update("Hel"), beat, update("lo", "stop"), beat, END, beat
    env.gateway.script(event_stream(beat, *frames, FAREWELL))

    assert env.ask(way, max_retries=0).content == "Hello"


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["Hi \ud83d", "\ude00!"], "Hi 😀!"),
        (["\ud83d", "\ude00\ud83d", "\ude00"], "😀😀"),
        (["Hi \ud83d", "", None, "\ude00 é"], "Hi 😀 é"),
    ],
)
@pytest.mark.parametrize("way", WAYS[1:])
def test_halves_of_a_character_are_joined(
    env: Env, way: str, pieces: list[Any], text: str
) -> None:
    """A server in JavaScript may cut an emoji in two; the history can be sent again."""
    updates = [update(piece) for piece in pieces]
    env.gateway.script(event_stream(*updates, update("", "stop"), END))
    answer = env.ask(way, max_retries=0)
    assert answer.content == text

    env.invoke(env.llm(), [HumanMessage("hi"), answer, HumanMessage("more")])
    assert env.gateway.requests[-1].parameters["messages"][1]["content"] == text


@pytest.mark.parametrize("way", WAYS[1:])
def test_halves_in_a_call_and_in_thoughts_are_joined(env: Env, way: str) -> None:
    """Each text of an answer has its own half, whatever comes between the two."""
    begin = {"name": "look", "arguments": '{"at": "c\ud83d'}
    updates = [
        update("a\ud83d", reasoning_content="b\ud83d"),
        update(tool_calls=[{"index": 0, "id": "c", "function": begin}]),
        update(
            "\ude00", tool_calls=[{"index": 0, "function": {"arguments": '\ude00"}'}}]
        ),
        update(reasoning_content="\ude00"),
    ]
    env.gateway.script(event_stream(*updates, update("", "tool_calls"), END))
    answer = env.ask(way, max_retries=0)
    assert answer.content == "a😀"
    assert answer.additional_kwargs["reasoning_content"] == "b😀"
    assert [call["args"] for call in answer.tool_calls] == [{"at": "c😀"}]


def test_half_a_character_without_its_other_half_is_kept(env: Env) -> None:
    """Nothing of an answer is lost, and each chunk has what came with it."""
    frames = update("a\ud83d"), update("b"), update("c\ud83d", "stop"), END
    env.gateway.script(event_stream(*frames))
    chunks = env.stream(env.llm(max_retries=0), "hi")
    texts = [chunk.content for chunk in chunks if chunk.content]
    assert texts == ["a", "\ud83db", "c\ud83d"]


@pytest.mark.parametrize("model", [5, True, ["gpt-4"], {"name": "gpt-4"}], ids=str)
def test_a_models_name_that_is_no_text_is_not_used(env: Env, model: Any) -> None:
    """Metadata of a wrong type neither costs a stream its answer nor ends it."""
    meta = event("meta", {"model": model})
    env.gateway.script(event_stream(update("hi", "stop"), meta, END))
    answer = env.ask("stream", models_priority_list=[GPT_4, OTHER])
    assert answer.response_metadata["model_name"] == GPT_4.name

    odd = event("update", {"text": " there", "model": model})
    env.gateway.script(event_stream(update("hi"), odd, END))
    with pytest.raises(StreamInterruptedError):
        env.ask("stream")


@pytest.mark.parametrize("way", WAYS)
def test_one_of_two_providers_of_a_model_is_not_named(env: Env, way: str) -> None:
    """No answer tells which of them it was, and a wrong name would be believed."""
    both = [
        GPTRouterModel(name="gpt-4", provider_name=name)
        for name in ("chat_openai", "azure_chat_openai")
    ]
    metadata = env.ask(way, models_priority_list=both).response_metadata
    assert metadata["model_name"] == "gpt-4"
    assert "provider_name" not in metadata


@pytest.mark.parametrize("content", [["The ", "end."], [{"text": "The end."}]])
def test_a_message_may_have_parts(env: Env, content: list[Any]) -> None:
    """Mistral's and Databricks' thoughts stand beside the text, in a list."""
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}
    env.gateway.script(whole({"message": {"content": [thought, *content]}}))
    message = env.ask("invoke")
    assert message.text == "The end."
    assert message.additional_kwargs["reasoning_content"] == "Hm."


@pytest.mark.parametrize("way", [*WAYS, "inside"])
def test_a_refusal_is_kept_and_is_none_of_a_routers_answers(env: Env, way: str) -> None:
    """OpenAI's models refuse beside the text, which a caller has to see."""
    refused = {"content": None, "refusal": "I cannot."}
    step = whole({"message": refused, "finish_reason": "stop"})
    if way != "invoke":
        pieces = [update(refusal=piece) for piece in ("I ", "cannot.")]
        step = event_stream(*pieces, update(finish_reason="stop"), END)
    env.gateway.script(*[Status(500)] * (way == "inside"), step)
    answer = env.ask(way)
    assert (answer.text, answer.additional_kwargs["refusal"]) == ("", "I cannot.")
    if way != "inside":
        env.gateway.script(step)
        fields = {"streaming": True} if way == "streaming invoke" else {}
        router = RetryRouter(routes=[env.llm(**fields)])
        with pytest.raises(ContentFilterError, match="I cannot"):
            env.message(way, router)


def test_a_choice_without_anything_is_no_answer(env: Env) -> None:
    """An answer that lacks its text may not be trusted to be an empty one."""
    env.gateway.always(whole({"finish_reason": "stop"}))
    with pytest.raises(MalformedResponseError):
        env.ask("invoke")


CLAUDE = GPTRouterModel(name="claude-2", provider_name="anthropic")
AZURE = GPTRouterModel(name="gpt-4", provider_name="azure_chat_openai")
DONE = {"text": "Hi", "finish_reason": "stop"}
OF_MINE = event("update", DONE, provider="mine")


@pytest.mark.parametrize(
    ("models", "said", "meta", "names"),
    [
        # An update with `model` is a completion model's: it is finished, and named.
        (
            [GPT_4, CLAUDE],
            event("update", {"text": "Hi", "model": "claude-2.1"}),
            None,
            ("claude-2.1", "anthropic"),
        ),
        # A `provider` beside the data is that of a model that is not listed.
        ([GPT_4, AZURE], OF_MINE, "else", ("else", "mine")),
        ([GPT_4, AZURE], OF_MINE, GPT_4.name, (GPT_4.name, "chat_openai")),
        # Azure's models have no name in a stream: that of the first model is used.
        ([AZURE], event("update", DONE), None, (AZURE.name, "azure_chat_openai")),
        (
            [AZURE, GPT_4],
            event("update", DONE),
            None,
            (AZURE.name, "azure_chat_openai"),
        ),
    ],
)
def test_a_stream_names_its_model_and_provider(
    env: Env, models: Any, said: str, meta: str | None, names: tuple[str, str]
) -> None:
    """Names are those that the answer says, else what the list has for them."""
    env.gateway.always(event_stream(said, event("meta", {"model": meta}), END))

    answer = env.ask("stream", models_priority_list=models)

    assert answer.content == "Hi"
    metadata = answer.response_metadata
    assert (metadata["model_name"], metadata["provider_name"]) == names


# --- usage ---


PAIR = {"prompt_tokens": 11, "completion_tokens": 5}
COUNTED = {"input_tokens": 11, "output_tokens": 5, "total_tokens": 16}
DETAILED = {
    **PAIR,
    "total_tokens": 16,
    "prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": None},
    "completion_tokens_details": {"reasoning_tokens": 3, "of_the_provider": 1},
    "cost": 0.5,
}
READ = {
    **COUNTED,
    "input_token_details": {"cache_read": 8},
    "output_token_details": {"reasoning": 3},
}
ODD_DETAILS = {
    "prompt_tokens_details": {"cached_tokens": "x", "audio_tokens": True},
    "completion_tokens_details": [1],
}


def counted(meta: Any, choices: int = 1) -> Body:
    return whole(*[{"text": "hi"}] * choices, model="gpt-4-0613", meta=meta)


def stream(usage: Any, **meta: Any) -> Body:
    data = {"model": "gpt-4-0613", "usage": usage, **meta}
    return event_stream(update("hi", "stop"), event("meta", data), END)


# --- read ---


@pytest.mark.parametrize("meta", [DETAILED, {"usage": DETAILED}])
def test_details_are_read_and_kept(env: Env, meta: Any) -> None:
    """Cached and reasoning tokens have LangChain's keys; the others are kept."""
    env.gateway.script(counted(meta), stream(DETAILED))

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
        *(({**PAIR, "total_tokens": total}, COUNTED) for total in (-1, 0, "x")),
        ({"prompt_tokens": True, "completion_tokens": False}, None),
        ({"prompt_tokens": -11, "completion_tokens": 1.5}, None),
        ({"prompt_tokens": "-11", "completion_tokens": "²"}, None),
        ({"prompt_tokens": 1e400, "completion_tokens": "9" * 5000}, None),
        ({"total_tokens": 16}, None),
        ({"completion_tokens": 5}, {**COUNTED, "input_tokens": 0, "total_tokens": 5}),
        ({**PAIR, **ODD_DETAILS}, COUNTED),
    ],
)
def test_an_odd_count_is_no_count(
    env: Env, told: Any, read: dict[str, int] | None
) -> None:
    """Odd counts are left out, streamed or not, and the metadata is still JSON."""
    env.gateway.script(counted(told), counted({"usage": told}), stream(told))

    flat, nested = (env.invoke(env.llm(), "hi") for _ in range(2))
    streamed = sum_of(env.stream(env.llm(), "hi"))

    for message in (flat, nested, streamed):
        assert message.content == "hi"
        assert message.usage_metadata == read
        assert json.dumps(message.response_metadata)
        assert json.loads(dumps(message))["type"] == "constructor"


# --- added up ---


def test_several_choices_cost_once(env: Env) -> None:
    """The tokens of all choices are on the first message, and on the result."""
    env.gateway.always(counted({"usage": DETAILED}, choices=3))

    result = env.generate(env.llm(n=3), [[HumanMessage("hi")]])

    messages = [generation.message for generation in result.generations[0]]
    assert [message.content for message in messages] == ["hi"] * 3
    assert [message.usage_metadata for message in messages] == [READ, None, None]
    assert result.llm_output["token_usage"] == DETAILED
    assert result.llm_output["model_name"] == "gpt-4-0613"


def test_several_prompts_cost_their_sum(env: Env) -> None:
    """`generate` adds up counts at any depth, and skips answers without usage."""
    metas: list[Any] = [DETAILED, None, {**DETAILED, "tier": "b"}, {}]
    env.gateway.script(*map(counted, metas))

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


@pytest.mark.parametrize("way", WAYS)
def test_a_callback_counts_for_the_model_that_answered(env: Env, way: str) -> None:
    """`UsageMetadataCallbackHandler` counts what the second model has used."""
    usage = Answer(usage=Usage(prompt_tokens=20, completion_tokens=7))
    env.gateway.script(Status(503), usage)
    counter = UsageMetadataCallbackHandler()

    env.ask(way, models_priority_list=[GPT_4, OTHER], callbacks=[counter])

    read = {"input_tokens": 20, "output_tokens": 7, "total_tokens": 27}
    assert counter.usage_metadata == {OTHER.name: read}


def test_usage_told_twice_counts_once(env: Env) -> None:
    """A second `meta` doubles neither the tokens nor the model's name."""
    told = event("meta", {"model": "m", "usage": {"prompt_tokens": 3}})
    body = event_stream(update("hi", "stop"), told, update("", "stop"), told, END)
    env.gateway.script(body, Status(500), body)

    streamed = sum_of(env.stream(env.llm(), "hi"))
    inside = env.invoke(env.llm(), "hi")

    for message in (streamed, inside):
        usage = {"input_tokens": 3, "output_tokens": 0, "total_tokens": 3}
        assert message.usage_metadata == usage
        assert message.response_metadata["model_name"] == "m"
        assert message.response_metadata["finish_reason"] == "stop"


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
