"""The GPTRouter side, byte for byte against exchanges with the real server."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import pytest

from langchain_retryrouter.testing import (
    Answer,
    ErrorEvent,
    ErrorInOk,
    FaultyGateway,
    FunctionCall,
    HtmlPage,
    RecordedRequest,
    Status,
    Step,
    ToolCall,
    Usage,
)
from langchain_retryrouter.testing._gptrouter_api import stub_embedding

from .wire_client import CHAT, GENERATE, Capture, Reply, ask, generate, post

Edition = Literal["public", "hosted"]

_WEATHER = ('{"ci', 'ty": "', 'Paris"', "}")
_TOOL_CALLS = (ToolCall("get_weather", _WEATHER),)
_FUNCTION_CALL = FunctionCall("get_weather", _WEATHER)
_LINES = ("line1\n", "\nline3", "\r\n", "data: not-json\n", "\n\nend")
_OTHER_MODEL = "gpt-3.5-turbo-1106"
_SCHEMA = {"type": "object", "properties": {"input": {"type": "integer"}}}
_JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "M", "schema": _SCHEMA}}


def _echo(name: str) -> str:
    """What the recorded model said when it was asked to repeat its request."""
    answer = Capture.load(name).reply
    if answer.body.startswith(b"{"):
        text = answer.json["choices"][0]["text"]
    else:
        text = answer.events[-4]["data"]["text"]
    assert isinstance(text, str)
    return text


_ANSWERS = {
    "01_nonstream_ok": Answer(),
    "02_stream_ok": Answer(),
    "03_stream_n2": Answer("Hello from", usage=Usage(12, 4)),
    "04_nonstream_n2": Answer("Hello from"),
    "05_nonstream_tool": Answer(tool_calls=_TOOL_CALLS, usage=Usage(11, 5)),
    "06_stream_tool": Answer(tool_calls=_TOOL_CALLS, usage=Usage(10, 0)),
    "07_nonstream_function": Answer(
        function_call=FunctionCall("get_weather", '{"city": "Paris"}'),
        usage=Usage(11, 5),
    ),
    "08_stream_function": Answer(function_call=_FUNCTION_CALL, usage=Usage(10, 0)),
    "10_nonstream_empty": Answer(""),
    "11_stream_empty": Answer("", usage=Usage(10, 0)),
    "20_completion_prompt_only_nonstream": Answer(),
    "21_completion_prompt_only_stream": Answer(),
    "22_azure_nonstream": Answer(),
    "44_unknown_params_stream": Answer(
        (_echo("44_unknown_params_stream"),), usage=Usage(10, 58)
    ),
    "50_extra_top_level": Answer(),
    "51_stop": Answer(_echo("51_stop"), usage=Usage(11, 1)),
    "52_stop_string": Answer(_echo("52_stop_string"), usage=Usage(11, 1)),
    "a0_fallback_first_unavailable_nonstream": Answer(model=_OTHER_MODEL),
    "a0_fallback_first_unavailable_stream": Answer(model=_OTHER_MODEL),
    "a5_order_reversed": Answer(),
    "a8_newlines_stream": Answer(_LINES, usage=Usage(10, 12)),
    "b5_types_coerced": Answer(_echo("b5_types_coerced"), usage=Usage(11, 1)),
}

_FAILURES: dict[str, Step] = {
    "33_unknown_provider_stream": ErrorEvent("Provider with name nope does not exist"),
    "60_up429_default_nonstream": ErrorEvent("stub upstream error 429", status=429),
    "60_up429_default_stream": ErrorEvent("stub upstream error 429", status=429),
    "65_up400_stream": ErrorEvent("stub upstream error 400", status=400),
    "67_uptimeout_stream": ErrorEvent("Request timed out."),
    "80_mid_cut_stream": ErrorEvent("Premature close", after=2),
    # Once the first event is out, the server passes on the message alone.
    "80_mid_errchunk_stream": ErrorEvent("stub mid-stream error", 2, 500, "code"),
    "80_mid_rst_stream": ErrorEvent("read ECONNRESET", after=2),
    "90_ratelimit_user_nonstream_11": Status(
        429,
        {
            "x-ratelimit-limit": "10",
            "x-ratelimit-remaining": "0",
            "x-ratelimit-reset": "86400",
            "retry-after": "86400",
        },
    ),
    "a2_all_unavailable_nonstream": ErrorEvent("No models available"),
    "a2_all_unavailable_stream": ErrorEvent("No models available"),
}

_REFUSALS = """
    12_completion_model_nonstream 30_noauth_nonstream 30_noauth_stream
    31_wrongkey_nonstream 31_wrongkey_stream 32_bearer_garbage_nonstream
    37_missing_data_nonstream 37_missing_data_stream 38_empty_data_nonstream
    38_empty_data_stream 39_missing_order_stream 40_bad_role_stream
    41_missing_promptParams_stream 42_no_messages_nonstream 42_no_messages_stream
    43_function_call_string_stream 45_malformed_json 46_wrong_content_type 48_get 49_404
    a6_unauth_ratelimit_01 b10_edit_image_404 b15_developer_role
    b1t_assistant_content_missing b4_response_format_json_schema
    b4s_response_format_json_schema_stream b7_embeddings_404 b8_embeddings_v2_404
"""

# They say how the connection or the body is sent, not what is answered.
_FRAMING = {"date", "connection", "keep-alive", "content-length", "transfer-encoding"}


def _replay(gateway: FaultyGateway, name: str) -> None:
    """Send the recorded request, and compare the response with the recorded one."""
    capture = Capture.load(name)
    reply = capture.send(gateway)
    assert reply.body == capture.reply.body
    assert reply.status == capture.reply.status
    assert _headers(reply) == _headers(capture.reply)


def _headers(reply: Reply) -> set[tuple[str, str]]:
    fields = {(name.lower(), value) for name, value in reply.headers}
    return {(name, value) for name, value in fields if name not in _FRAMING}


# Against the recordings.


@pytest.mark.parametrize("name", [*_ANSWERS, *_FAILURES])
def test_recorded_answers(name: str) -> None:
    """An answer, or a failure behind the server, has the bytes of the real server's."""
    with FaultyGateway(answer=Answer(id=Capture.load(name).id)) as gateway:
        step = _FAILURES.get(name) or replace(_ANSWERS[name], id=Capture.load(name).id)
        gateway.script(step)
        _replay(gateway, name)


@pytest.mark.parametrize("name", _REFUSALS.split())
def test_recorded_refusals(name: str) -> None:
    """What the real server refuses by itself is refused without a script."""
    with FaultyGateway(api_key="ws-secret-local") as gateway:
        gateway.script(Status(418))
        _replay(gateway, name)
        post(gateway, GENERATE, generate(), {"ws-secret": "ws-secret-local"})
        assert gateway.requests[-1].step == Status(418)  # no step was used up before


class _Recorder:
    """A model that keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[RecordedRequest] = []

    def __call__(self, request: RecordedRequest) -> Answer:
        self.shown.append(request)
        return Answer()


_SHOWN = """
    44_unknown_params_nonstream 44_unknown_params_stream 51_stop 52_stop_string
    b13_many_messages_only_system b14_function_msg b1_tool_roundtrip b2_multimodal
    b3_response_format_json_object b5_types_coerced
"""


@pytest.mark.parametrize("name", _SHOWN.split())
def test_the_model_sees_what_the_recorded_one_saw(name: str) -> None:
    """The public server's model sees the parameters that the recorded model saw."""
    capture, model = Capture.load(name), _Recorder()
    with FaultyGateway(answer=model) as gateway:
        capture.send(gateway)
    (shown,) = model.shown
    seen = {**shown.parameters, "model": shown.model, "stream": shown.streaming}
    assert seen == json.loads(_echo(name))


# What the public server drops and refuses.

_DROPPED: dict[str, Any] = {
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "seed": 1,
    "reasoning_effort": "low",
    "brand_new": None,
}


@pytest.mark.parametrize("stream", [False, True])
def test_the_public_server_drops_parameters(stream: bool) -> None:
    """The log keeps the request as it came, whatever the model sees of it."""
    model = _Recorder()
    with FaultyGateway(answer=model) as gateway:
        said = [{"role": "user", "content": "half a fox \ud83e"}]
        parameters = {"temperature": "0.5", "top_p": "hot", "stop": ["a"], **_DROPPED}
        payload = generate(stream=stream, messages=said, **parameters)
        payload["data"].append({**payload["data"][0], "order": 2})
        post(gateway, GENERATE, payload)
        (recorded,) = gateway.requests
    (shown,) = model.shown
    coerced = {"temperature": 0.5, "top_p": "hot", "stop": "a"}
    assert shown.parameters == {"messages": said, **coerced}
    assert shown.payload["data"][1] == payload["data"][1]
    assert recorded.json == payload


@pytest.mark.parametrize("path", [GENERATE, CHAT])
def test_the_hosted_server_and_openai_drop_nothing(path: str) -> None:
    """Through the hosted server, and without a server between, all is seen."""
    model = _Recorder()
    with FaultyGateway(answer=model, gptrouter="hosted") as gateway:
        ask(gateway, path, **_DROPPED)
        assert gateway.requests[0].gptrouter == "hosted"
        assert model.shown[0].json == gateway.requests[0].json
    assert _DROPPED.items() <= model.shown[0].parameters.items()


@pytest.mark.parametrize("provider", ["anthropic", "openai"])
def test_completion_models_get_a_text(provider: str) -> None:
    """Of messages, the public server's completion models are given a text only."""
    model = _Recorder()
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None},
        {"role": "tool", "content": "5"},
        {"role": "user", "content": parts},
    ]
    payload = generate(messages=messages, tools=[], stop="a", max_tokens=7, n=2)
    payload["data"][0]["providerName"] = provider
    with FaultyGateway(answer=model) as gateway:
        post(gateway, GENERATE, payload)
    assert model.shown[0].parameters == {
        "prompt": "Be kind.\n\nHuman: hi\n\nAssistant: null"
        "\n\nHuman: [object Object],[object Object]\n\nAssistant:",
        "max_tokens": 7,
    }


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"providerName": "cohere"}, "Stream not supported for provider cohere"),
        ({"promptParams": {"prompt": "hi"}}, "/messages"),
    ],
)
def test_streams_that_the_public_server_refuses(
    gateway: FaultyGateway, entry: dict[str, Any], problem: str
) -> None:
    """Nothing of cohere's is streamed, and a chat model needs messages."""
    error, *_ = _events(gateway, **entry)
    assert problem in error["message"]
    assert "role" not in _answer(gateway, providerName="cohere")["choices"][0]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("edition", ["public", "hosted"])
@pytest.mark.parametrize(
    ("given", "editions"),
    [
        (_JSON_SCHEMA, ["hosted"]),
        ({"type": "grammar"}, []),
        ("json", ["public", "hosted"]),
        (None, ["public", "hosted"]),
    ],
)
def test_response_formats(
    given: object, editions: list[str], edition: Edition, stream: bool
) -> None:
    """Unknown formats are refused before the model sees them; a text is ignored."""
    model = _Recorder()
    with FaultyGateway(answer=model, gptrouter=edition) as gateway:
        reply = ask(gateway, GENERATE, stream=stream, response_format=given)
    if edition in editions:
        assert b"upstream" in reply.body
    elif stream:
        assert "/response_format/type" in reply.events[0]["message"]
    else:
        assert reply.status == 500
    assert len(model.shown) == (edition in editions)


def test_a_body_over_one_mebibyte_is_too_much(gateway: FaultyGateway) -> None:
    """A body over the real server's limit gets a 500 and a closed connection."""
    big = [{"role": "user", "content": "x" * 1024 * 1024}]
    reply = ask(gateway, GENERATE, messages=big)
    assert (reply.status, reply.json) == (500, {"error": "Something went wrong"})
    assert reply.header("connection") == ["close"]


# Models and providers.


def _request(stream: bool, entry: dict[str, Any]) -> dict[str, Any]:
    payload = generate(stream=stream)
    payload["data"][0] |= entry
    return payload


def _answer(gateway: FaultyGateway, **entry: Any) -> Any:
    """The answer of the model that `entry` describes."""
    return post(gateway, GENERATE, _request(stream=False, entry=entry)).json


def _events(gateway: FaultyGateway, **entry: Any) -> list[Any]:
    """The streamed answer of the model that `entry` describes."""
    return post(gateway, GENERATE, _request(stream=True, entry=entry)).events


def test_ids(gateway: FaultyGateway) -> None:
    """Each answer, model and provider has an id; models and providers keep theirs."""
    names = ["claude", "gemini", "claude"]
    first, other, again = (_answer(gateway, modelName=name) for name in names)
    assert [one["id"][-1] for one in (first, other, again)] == ["1", "2", "3"]
    assert first["modelId"] == again["modelId"] != other["modelId"]
    by_id = {"modelName": None, "providerName": None}
    named = _answer(gateway, **by_id, modelId="m-1", providerId="p-1")
    assert (named["modelId"], named["providerId"]) == ("m-1", "p-1")
    assert gateway.requests[-1].model == "m-1"


def test_streams_of_completion_models(gateway: FaultyGateway) -> None:
    """A completion model's updates name it, have no finish reason, and may be none."""
    claude = {"providerName": "anthropic", "modelName": "claude-2"}
    gateway.script(Answer(), Answer(""))
    first, *_, meta, _, _, _ = _events(gateway, **claude)
    assert first["data"] == {"text": "Hello", "model": "claude-2"}
    assert meta["data"].keys() == {"text", "usage"}
    assert _events(gateway, **claude)[0]["event"] == "meta"


def test_streams_of_azure(gateway: FaultyGateway) -> None:
    """An Azure stream begins with an update without finish reason, and names no model.

    The gateway makes it of Azure's first chunk, whose `choices` are empty.
    """
    gateway.script(Answer(), ErrorEvent("no"))
    azure = "azure_chat_openai"
    first, second, *_, meta, _, _, _ = _events(gateway, providerName=azure)
    assert first == {"id": "", "event": "update", "data": {"text": ""}}
    assert second["data"] == {"text": "", "finish_reason": None}
    assert (meta["event"], "model" in meta["data"]) == ("meta", False)
    assert _events(gateway, providerName=azure)[0]["event"] == "error"


# Contents.


@pytest.mark.parametrize("edition", ["public", "hosted"])
@pytest.mark.parametrize("content", [None, [{"type": "text", "text": "hi there"}]])
def test_usage_of_streams(content: object, edition: Edition) -> None:
    """The public server leaves usage out of streams where a content is not a text."""
    messages = [{"role": "user", "content": content}]
    with FaultyGateway(gptrouter=edition) as gateway:
        whole = ask(gateway, GENERATE, messages=messages).json
        streamed = ask(gateway, GENERATE, stream=True, messages=messages)
    usage = streamed.events[-4]["data"].get("usage", {})
    assert whole["meta"]["usage"]["completion_tokens"] == 5
    tokens = 12 if content is None else 14
    assert usage.get("total_tokens") == (None if edition == "public" else tokens)


def test_what_a_provider_leaves_out(gateway: FaultyGateway) -> None:
    """Usage goes with it; without streaming a missing finish reason becomes a text."""
    gateway.always(Answer(usage=None, finish_reason=None))
    whole, streamed = _answer(gateway), ask(gateway, GENERATE, stream=True)
    assert (whole["meta"], whole["choices"][0]["finish_reason"]) == ({}, "")
    assert "usage" not in streamed.events[-4]["data"]
    assert b'"finish_reason":"' not in streamed.body


_CALL = ToolCall("magic", '{"input": 3}', id="call_1")
_FUNCTION = {"name": "magic", "arguments": '{"input": 3}'}
_TOOL = {"id": "call_1", "type": "function", "function": _FUNCTION}


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("dropped", {}),
        ("tool_calls", {"tool_calls": [_TOOL]}),
        ("function_call", {"function_call": _FUNCTION}),
    ],
)
def test_the_place_of_unstreamed_calls(place: Any, said: dict[str, Any]) -> None:
    """Tool calls are dropped, unless the answer, or a step for it, says where they go.

    A `function_call` holds one call: two are refused, not halved.
    """
    with FaultyGateway(answer=Answer(tool_calls=(_CALL,))) as gateway:
        gateway.script(Answer(unstreamed_calls=place))
        (choice,) = _answer(gateway)["choices"]
    found = {key: choice[key] for key in choice if key.endswith(("calls", "_call"))}
    assert (found, choice["finish_reason"]) == (said, "tool_calls")
    for calls, other in (((_CALL, _CALL), None), ((_CALL,), _CALL)):
        with pytest.raises(ValueError, match="2 calls do not fit"):
            Answer("", ..., ..., calls, other, unstreamed_calls="function_call")


def test_citations(gateway: FaultyGateway) -> None:
    """Citations stand next to the choices and in them, where a step gives some."""
    about = {"url": "https://example.com/1"}
    gateway.script(Answer(citations=("a", "b"), choice_citations=(about,)))
    cited, plain = _answer(gateway), _answer(gateway)
    assert cited["citations"] == ["a", "b"]
    assert cited["choices"][0]["citations"] == [about]
    assert "citations" not in plain.keys() | plain["choices"][0].keys()


# Errors.

_OPAQUE = {"error": "Something went wrong"}


@pytest.mark.parametrize(
    ("step", "status", "body"),
    [
        (Status(403), 403, {"message": "Forbidden"}),
        (Status(520), 520, _OPAQUE),
        (Status(499), 499, {"message": "Status 499"}),
        (Status(400, None, None, "b", "no"), 400, {"message": "no", "code": "b"}),
        (ErrorInOk("no", "bad"), 200, {"error": "no", "code": "bad"}),
        (ErrorInOk("no"), 200, {"error": "no"}),
    ],
)
def test_error_bodies(
    gateway: FaultyGateway, step: Step, status: int, body: object
) -> None:
    """An error that is in no recording has a body of the same form."""
    gateway.script(step)
    reply = ask(gateway, GENERATE)
    assert (reply.status, reply.json) == (status, body)


def test_an_error_event_can_have_a_code(gateway: FaultyGateway) -> None:
    """Before the first event, status and code are part of an error event."""
    gateway.script(ErrorEvent("no", status=429, code="insufficient_quota"))
    event, *ends = _events(gateway)
    quota = {"message": "429 no", "code": "insufficient_quota"}
    assert event == {"event": "error", **quota}
    assert ends == ["Stream closed", "Stream closed"]


@pytest.mark.parametrize(
    ("field", "value"), [("gptrouter", "private"), ("port", -1), ("port", 65_536)]
)
def test_impossible_settings_are_refused(field: str, value: Any) -> None:
    """An edition or a port that does not exist is named at once."""
    with pytest.raises(ValueError, match=f"{field} must be .*, not {value!r}"):
        FaultyGateway(**{field: value})


# The hosted gateway's embeddings.

_V1, _V2 = f"{GENERATE}/embeddings", f"{GENERATE}/embeddings-v2"
_vectors = pytest.mark.parametrize("path", [_V1, _V2])


@pytest.fixture
def hosted() -> Iterator[FaultyGateway]:
    with FaultyGateway(gptrouter="hosted") as gateway:
        yield gateway


def _entry(*texts: Any, **fields: Any) -> dict[str, Any]:
    """A model's entry in a request to `_V1`."""
    entry = {"modelName": "small", "providerName": "openai_embeddings", "order": 1}
    return {**entry, "promptParams": {"input": list(texts)}, **fields}


def _asking(path: str, *texts: Any) -> dict[str, Any]:
    """The request for vectors that `path` takes."""
    if path == _V1:
        return {"data": [_entry(*texts)]}
    return {"input": list(texts), "modelName": "small"}


@_vectors
def test_each_text_has_its_vector(hosted: FaultyGateway, path: str) -> None:
    """The answer has a vector for each text, in order, and always the same."""
    reply = post(hosted, path, _asking(path, "a", "Łódź", "a"))
    first, second, third = (choice["embedding"] for choice in reply.json["choices"])
    assert first == third == stub_embedding("a")
    assert second == stub_embedding("Łódź") != first
    assert hosted.requests[0].model == "small"
    assert len({number for number in first if -1 <= number <= 1}) == 8


@_vectors
def test_scripts_hold_for_vectors(hosted: FaultyGateway, path: str) -> None:
    """Scripts and `respond` hold for embeddings as well."""
    hosted.script(HtmlPage(502))
    hosted.script(Status(429), model="small")
    replies = [post(hosted, path, _asking(path, "a")) for _ in range(3)]
    assert [reply.status for reply in replies] == [429, 502, 200]
    hosted.respond(path, {"choices": []})
    assert post(hosted, path, _asking(path, "a")).json == {"choices": []}


@pytest.mark.parametrize(
    ("path", "payload"),
    [
        (_V1, {}),
        (_V1, {"data": []}),
        (_V1, {"data": ["a"]}),
        (_V1, {"data": [_entry("a"), _entry("a", order=None)]}),
        (_V1, {"data": [_entry("a", modelName=None)]}),
        (_V1, {"data": [_entry("a", providerName="")]}),
        (_V1, {"data": [_entry("a", promptParams=None)]}),
        (_V1, {"data": [_entry()]}),
        (_V1, {"data": [_entry("a", "")]}),
        (_V1, _asking(_V2, "a")),
        (_V2, {"input": ["a"]}),
        (_V2, {"input": [], "modelName": "small"}),
        (_V2, {"input": [""], "modelName": "small"}),
        (_V2, {"input": ["a"], "modelName": 1}),
        (_V2, _asking(_V1, "a")),
    ],
)
def test_malformed_embedding_requests(
    hosted: FaultyGateway, path: str, payload: object
) -> None:
    """A request of the wrong shape is an opaque 500, and takes no step of a script."""
    hosted.script(Status(418))
    reply = post(hosted, path, payload)
    assert (reply.status, reply.json) == (500, _OPAQUE)
    assert post(hosted, path, _asking(path, "a")).status == 418
