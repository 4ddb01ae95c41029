"""The gateway's OpenAI side: its bytes, and what OpenAI's own client makes of them."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from langchain_retryrouter.testing import (
    STUB_TEXT,
    Answer,
    ErrorEvent,
    ErrorInOk,
    FaultyGateway,
    RecordedRequest,
    Status,
    Step,
    ToolCall,
    Usage,
)

from .wire_client import CHAT, COMPLETIONS, ask, chat, completion, post, request

_WORDS = ["Hello", " from", " the", " stub", " upstream"]
_AZURE = "/openai/deployments/my-deployment"
_VERSION = "?api-version=2024-10-21"
_AZURE_CHAT = f"{_AZURE}/chat/completions{_VERSION}"
_AZURE_TEXT = f"{_AZURE}/completions{_VERSION}"


@pytest.fixture
def client(gateway: FaultyGateway) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, which does not repeat anything."""
    url = gateway.openai_url
    with openai.OpenAI(base_url=url, api_key="k", max_retries=0) as client:
        yield client


_USAGE = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
_both = pytest.mark.parametrize("path", [CHAT, COMPLETIONS])


@pytest.mark.parametrize(
    ("path", "id_", "named", "said"),
    [
        (
            CHAT,
            "chatcmpl",
            {"object": "chat.completion", "model": "gpt-4o"},
            {"message": {"role": "assistant", "content": STUB_TEXT, "refusal": None}},
        ),
        (
            COMPLETIONS,
            "cmpl",
            {"object": "text_completion", "model": "instruct"},
            {"text": STUB_TEXT},
        ),
    ],
)
def test_an_answer(
    gateway: FaultyGateway, path: str, id_: str, named: Any, said: Any
) -> None:
    """A whole answer has OpenAI's fields, and always the same bytes."""
    reply = ask(gateway, path)
    assert reply.json == {
        **named,
        "id": f"{id_}-stub000001",
        "created": 1_700_000_001,
        "system_fingerprint": "fp_stub",
        "choices": [{"index": 0, "logprobs": None, "finish_reason": "stop", **said}],
        "usage": _USAGE,
    }
    assert reply.header("x-request-id") == ["req_000001"]


@_both
def test_a_stream(gateway: FaultyGateway, path: str) -> None:
    """A stream ends with a finish reason and `[DONE]`; a chat's opens with the role."""
    *events, done = ask(gateway, path, stream=True).events
    choices = [event["choices"][0] for event in events]
    said: list[Any] = [*_WORDS, ""]
    if path == CHAT:
        opening = {"role": "assistant", "content": "", "refusal": None}
        said = [opening, *({"content": word} for word in _WORDS), {}]
    assert [one["delta" if path == CHAT else "text"] for one in choices] == said
    reasons = [choice["finish_reason"] for choice in choices]
    assert reasons == [None] * (len(said) - 1) + ["stop"]
    assert all("usage" not in event for event in events)
    assert done == "[DONE]"


@pytest.mark.parametrize(
    ("asked", "choices", "tokens"),
    [
        ({"prompt": "a b", "n": 2}, 2, (12, 10)),
        ({"prompt": ["one", "two three"], "n": 3}, 6, (13, 30)),
        ({"prompt": [1, 2, 3]}, 1, (13, 5)),
        ({"prompt": [[1, 2], [3]]}, 2, (13, 10)),
        ({"prompt": []}, 1, (10, 5)),
        ({"prompt": "a", "n": 2, "best_of": 4}, 2, (11, 20)),
    ],
)
def test_choices_and_usage(
    gateway: FaultyGateway, asked: Any, choices: int, tokens: tuple[int, int]
) -> None:
    """Every prompt is counted once and answered `n` times; `best_of` costs as many."""
    answer = ask(gateway, COMPLETIONS, **asked).json
    assert [one["index"] for one in answer["choices"]] == list(range(choices))
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == tokens


def test_choices_of_a_stream_take_turns(gateway: FaultyGateway) -> None:
    """With `n=2` the events of both choices are interleaved and say whose they are."""
    gateway.script(Answer("a b"))
    *events, _ = ask(gateway, COMPLETIONS, stream=True, n=2).events
    seen = [(one["choices"][0]["index"], one["choices"][0]["text"]) for one in events]
    assert seen == [(0, "a"), (1, "a"), (0, " b"), (1, " b"), (0, ""), (1, "")]


@pytest.mark.parametrize(
    ("step", "stop", "text"),
    [
        (Answer(), "stub", "Hello from the "),
        (Answer(), [" the", "from"], "Hello "),
        (Answer(), ["nowhere"], STUB_TEXT),
        (Answer("a STOP b"), "STOP", "a STOP b"),
    ],
)
def test_stop(gateway: FaultyGateway, step: Answer, stop: object, text: str) -> None:
    """The earliest stop sequence ends the stub's text, and no text of a script."""
    gateway.script(step)
    answer = ask(gateway, COMPLETIONS, stop=stop).json
    assert answer["choices"][0]["text"] == text


@pytest.mark.parametrize(("asked", "top"), [(2, {"Hello": -0.25}), (0, None)])
def test_log_probabilities_of_a_completion(
    gateway: FaultyGateway, asked: int, top: object
) -> None:
    """Tokens, log probabilities and offsets go together, streamed or not."""
    whole = ask(gateway, COMPLETIONS, logprobs=asked).json
    logprobs = whole["choices"][0]["logprobs"]
    assert logprobs["tokens"] == _WORDS
    assert logprobs["text_offset"] == [0, 5, 10, 14, 19]
    assert (logprobs["top_logprobs"] or [None])[0] == top
    *events, _, _ = ask(gateway, COMPLETIONS, logprobs=asked, stream=True).events
    streamed = [event["choices"][0]["logprobs"] for event in events]
    assert [one["text_offset"] for one in streamed] == [[0], [5], [10], [14], [19]]


def test_log_probabilities_of_a_chat(gateway: FaultyGateway) -> None:
    """A chat has them if they are asked for: each token with its bytes."""
    (choice,) = ask(gateway, CHAT, logprobs=True).json["choices"]
    assert [one["token"] for one in choice["logprobs"]["content"]] == _WORDS
    assert bytes(choice["logprobs"]["content"][1]["bytes"]) == b" from"
    (choice,) = ask(gateway, CHAT, logprobs=False).json["choices"]
    assert choice["logprobs"] is None


def test_calls(gateway: FaultyGateway) -> None:
    """Calls come whole without streaming, and in pieces with it; ids are their own."""
    call = ToolCall("get_weather", ('{"city": ', '"Paris"}'), id="call_7")
    function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    gateway.always(Answer(tool_calls=(call,), function_call=call))
    (choice,) = ask(gateway, CHAT).json["choices"]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [{"id": "call_7", "type": "function", "function": function}],
        "function_call": function,
    }
    *events, _ = ask(gateway, CHAT, stream=True).events
    deltas = [event["choices"][0]["delta"] for event in events][1:-1]
    calls = [one["tool_calls"][0]["function"] for one in deltas[:3]]
    calls += [one["function_call"] for one in deltas[3:]]
    assert [one["arguments"] for one in calls] == ["", '{"city": ', '"Paris"}'] * 2
    gateway.script(Answer(tool_calls=(ToolCall("a"), call, ToolCall("b"))))
    (choice,) = ask(gateway, CHAT).json["choices"]
    assert choice["finish_reason"] == "tool_calls"
    ids = [one["id"] for one in choice["message"]["tool_calls"]]
    assert ids == ["call_0", "call_7", "call_2"]


@_both
def test_what_a_provider_leaves_out(gateway: FaultyGateway, path: str) -> None:
    """Finish reason and usage can be missing, streamed or not."""
    gateway.always(Answer(finish_reason=None, usage=None))
    whole = ask(gateway, path).json
    assert whole["choices"][0]["finish_reason"] is None
    assert "usage" not in whole
    asked = {"stream": True, "stream_options": {"include_usage": True}}
    streamed = ask(gateway, path, **asked)
    assert b'"finish_reason":"' not in streamed.body
    assert b'"usage":{' not in streamed.body
    assert streamed.events[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("step", "error", "code"),
    [
        (Status(400), openai.BadRequestError, None),
        (Status(404), openai.NotFoundError, "model_not_found"),
        (Status(429), openai.RateLimitError, "rate_limit_exceeded"),
        (Status(504), openai.InternalServerError, None),
        (Status(400, error_code="too_long"), openai.BadRequestError, "too_long"),
        (ErrorEvent("no", code="c"), openai.InternalServerError, "c"),
        (ErrorEvent("no", status=429, code="c"), openai.RateLimitError, "c"),
    ],
)
def test_the_sdk_knows_the_errors(
    gateway: FaultyGateway,
    client: openai.OpenAI,
    step: Step,
    error: type[openai.APIStatusError],
    code: str | None,
) -> None:
    """An error makes OpenAI's client raise the right class with its code."""
    gateway.script(step)
    with pytest.raises(error) as raised:
        client.completions.create(model="m", prompt="hi")
    assert raised.value.code == code
    assert raised.value.request_id == "req_000001"


def test_an_error_in_a_stream(gateway: FaultyGateway, client: openai.OpenAI) -> None:
    """An error inside a stream reaches OpenAI's client after what came before it."""
    gateway.script(ErrorEvent("overloaded", after=2, code="busy"))
    heard: list[str] = []
    events = client.completions.create(model="m", prompt="hi", stream=True)
    with pytest.raises(openai.APIError, match="overloaded"):
        heard.extend(event.choices[0].text for event in events)
    assert heard == _WORDS[:2]


def test_an_error_in_a_body(gateway: FaultyGateway) -> None:
    """`ErrorInOk` is a 200; `insufficient_quota` has a type of its own at OpenAI."""
    quota = "insufficient_quota"
    gateway.script(ErrorInOk("no", "bad"), Status(429, None, None, quota, "pay"))
    ok, limited = (ask(gateway, CHAT, stream=True) for _ in range(2))
    assert (ok.status, ok.json["error"]["code"]) == (200, "bad")
    assert limited.json["error"].items() >= {"message": "pay", "type": quota}.items()


@pytest.mark.parametrize(
    ("path", "payload", "status", "message"),
    [
        ("/v1/nope", {}, 404, "Invalid URL (POST /v1/nope)"),
        (CHAT, [], 400, "We could not parse the JSON body of your request."),
        (CHAT, {"messages": []}, 400, "you must provide a model parameter"),
        (CHAT, {"model": "m"}, 400, "Missing required parameter: 'messages'."),
    ],
)
def test_refusals(
    gateway: FaultyGateway, path: str, payload: Any, status: int, message: str
) -> None:
    """What OpenAI refuses by itself is refused without a script."""
    gateway.script(Status(418))
    reply = post(gateway, path, payload)
    assert (reply.status, reply.json["error"]["message"]) == (status, message)
    assert request(gateway, "GET", CHAT).status == 404


@pytest.mark.parametrize(
    "asked",
    [
        *({"n": "two"}, {"n": ["a"]}, {"stop": True}, {"stop": {}}, {"stream": {}}),
        *({"stream": ["a"]}, {"best_of": ""}, {"model": "half a fox \ud83e"}),
        *({"messages": True}, {"input": 5}, {"input": None}, {"dimensions": "8"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/v1/embeddings"])
def test_odd_parameters_are_no_error_of_the_script(
    gateway: FaultyGateway, path: str, asked: dict[str, Any]
) -> None:
    """What a request gets wrong is taken for not given, and `stop` raises nothing."""
    messages = [{"role": "user", "content": "hi"}]
    given = {"model": "m", "messages": messages, "prompt": "hi", "input": "hi"}
    reply = post(gateway, path, given | asked)
    is_refused = path == CHAT and asked == {"messages": True}
    assert reply.status == (400 if is_refused else 200)


def test_the_key_is_a_bearer_token() -> None:
    """OpenAI's key is taken from `authorization` alone."""
    with FaultyGateway(api_key="k") as gateway:
        good = post(gateway, CHAT, chat(), {"authorization": "Bearer k"})
        bad = post(gateway, CHAT, chat(), {"authorization": "Bearer x", "api-key": "k"})
    assert (good.status, bad.status) == (200, 401)
    assert bad.json["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("path", "payload"), [(_AZURE_CHAT, chat), (_AZURE_TEXT, completion)]
)
def test_azure(path: str, payload: Any) -> None:
    """Azure names the deployment in the path, and has its own header for the key.

    Its errors have a code and a message, and no type. It refuses a call without a
    version.
    """
    with FaultyGateway(api_key="k") as gateway:
        gateway.script(Status(418), Answer(), Answer(), model="my-deployment")
        replies = [
            post(gateway, path, payload(stream=stream), {"api-key": "k"})
            for stream in (False, False, True)
        ]
        refused = post(gateway, path, payload())
        old = post(gateway, path.partition("?")[0], payload(), {"api-key": "k"})
        assert gateway.requests[0].model == "my-deployment"
        assert gateway.requests[0].query == "api-version=2024-10-21"
    assert [reply.status for reply in replies] == [418, 200, 200]
    assert "prompt_filter_results" in replies[1].json
    assert replies[2].events[0]["choices"] == []
    assert replies[2].header("apim-request-id") == ["req_000003"]
    for error, code in ((replies[0], "418"), (refused, "401"), (old, "404")):
        assert error.json["error"].keys() == {"code", "message"}
        assert error.json["error"]["code"] == code


def test_what_the_gateway_answers() -> None:
    """`answer` may be a function of the request; what it leaves open is made up."""

    def answer(asked: RecordedRequest) -> Answer:
        text = asked.parameters["messages"][0]["content"]
        return Answer(text, model="other", id="my-id", usage=Usage(1, 2))

    with FaultyGateway(answer=answer) as gateway:
        gateway.script(Answer(), Answer(model="another"))
        answers = [ask(gateway, CHAT).json for _ in range(2)]
    for answered, model in zip(answers, ("other", "another"), strict=True):
        assert answered["choices"][0]["message"]["content"] == "hi"
        assert (answered["id"], answered["model"]) == ("my-id", model)
        assert answered["usage"]["total_tokens"] == 3
