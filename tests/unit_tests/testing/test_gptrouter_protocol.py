"""The GPTRouter side against exchanges with the real server, byte for byte."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from langchain_retryrouter.testing import (
    Answer,
    Completion,
    ErrorEvent,
    ErrorInOk,
    FaultyGateway,
    FunctionCall,
    RecordedRequest,
    Status,
    Step,
    StubResponder,
    ToolCall,
    Usage,
)

from .wire_client import GENERATE, Capture, generate, post, request

_WEATHER = ('{"ci', 'ty": "', 'Paris"', "}")
_TOOL_CALLS = (ToolCall("get_weather", _WEATHER),)
_FUNCTION_CALL = FunctionCall("get_weather", _WEATHER)
_LINES = ("line1\n", "\nline3", "\r\n", "data: not-json\n", "\n\nend")
_OTHER_MODEL = "gpt-3.5-turbo-1106"


def _echo(name: str) -> str:
    """What the recorded provider said when it was asked to repeat its request."""
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
    "80_mid_errchunk_stream": ErrorEvent("stub mid-stream error", after=2),
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

_REFUSALS = [
    "12_completion_model_nonstream",
    "30_noauth_nonstream",
    "30_noauth_stream",
    "31_wrongkey_nonstream",
    "31_wrongkey_stream",
    "32_bearer_garbage_nonstream",
    "37_missing_data_nonstream",
    "37_missing_data_stream",
    "38_empty_data_nonstream",
    "38_empty_data_stream",
    "39_missing_order_stream",
    "40_bad_role_stream",
    "41_missing_promptParams_stream",
    "42_no_messages_nonstream",
    "42_no_messages_stream",
    "43_function_call_string_stream",
    "45_malformed_json",
    "46_wrong_content_type",
    "48_get",
    "49_404",
    "a6_unauth_ratelimit_01",
    "b10_edit_image_404",
    "b15_developer_role",
    "b1t_assistant_content_missing",
    "b4_response_format_json_schema",
    "b4s_response_format_json_schema_stream",
    "b7_embeddings_404",
    "b8_embeddings_v2_404",
]

# They say how the connection or the body is sent, not what is answered.
_FRAMING = {"date", "connection", "keep-alive", "content-length", "transfer-encoding"}


def _replay(gateway: FaultyGateway, capture: Capture) -> None:
    """Send the recorded request, and compare the response with the recorded one."""
    reply = request(
        gateway, capture.method, capture.path, capture.request_body, capture.headers
    )
    assert reply.body == capture.reply.body
    assert reply.status == capture.reply.status
    assert _said(reply.headers) == _said(capture.reply.headers)


def _said(headers: list[tuple[str, str]]) -> set[tuple[str, str]]:
    fields = {(name.lower(), value) for name, value in headers}
    return {(name, value) for name, value in fields if name not in _FRAMING}


@pytest.mark.parametrize("name", _ANSWERS)
def test_recorded_answers(faulty_gateway: FaultyGateway, name: str) -> None:
    """A healthy answer has the bytes of the real server's."""
    capture = Capture.load(name)
    faulty_gateway.script(replace(_ANSWERS[name], id=capture.id))
    _replay(faulty_gateway, capture)


@pytest.mark.parametrize("name", _FAILURES)
def test_recorded_failures(name: str) -> None:
    """A failure behind the server has the bytes that the real one makes of it."""
    capture = Capture.load(name)

    def responder(request: RecordedRequest) -> Completion:
        return replace(StubResponder()(request), id=capture.id)

    with FaultyGateway(responder=responder) as gateway:
        gateway.script(_FAILURES[name])
        _replay(gateway, capture)


@pytest.mark.parametrize("name", _REFUSALS)
def test_recorded_refusals(name: str) -> None:
    """What the real server turns down by itself is turned down without a script."""
    with FaultyGateway(api_key="ws-secret-local") as gateway:
        gateway.script(Status(418))
        _replay(gateway, Capture.load(name))
        post(gateway, GENERATE, generate(), {"ws-secret": "ws-secret-local"})
        assert gateway.requests[-1].step == Status(418)  # no step was used up before


def test_a_bearer_token_is_a_key_too() -> None:
    """The key is taken from either of the two headers that the real server reads."""
    with FaultyGateway(api_key="k") as gateway:
        secret = post(gateway, GENERATE, generate(), {"ws-secret": "k"})
        bearer = post(gateway, GENERATE, generate(), {"authorization": "Bearer k"})
    assert (secret.status, bearer.status) == (200, 200)


def test_a_body_over_one_mebibyte_is_too_much(faulty_gateway: FaultyGateway) -> None:
    """A body over the real server's limit gets a 500 and a closed connection."""
    big = [{"role": "user", "content": "x" * 1024 * 1024}]
    reply = post(faulty_gateway, GENERATE, generate(messages=big))
    assert (reply.status, reply.json) == (500, {"error": "Something went wrong"})
    assert reply.header("connection") == ["close"]


def test_the_id_counts_requests(faulty_gateway: FaultyGateway) -> None:
    """Every answer has an id of its own, so that two of them cannot be mixed up."""
    replies = [post(faulty_gateway, GENERATE, generate()) for _ in range(2)]
    assert [reply.json["id"] for reply in replies] == [
        "chatcmpl-stub000001",
        "chatcmpl-stub000002",
    ]


def test_unknown_models_get_ids_of_their_own(faulty_gateway: FaultyGateway) -> None:
    """Every model and every provider has an id, and it is always the same."""
    payloads = [generate(), generate()]
    for payload, name in zip(payloads, ["claude", "gemini"], strict=True):
        payload["data"][0]["modelName"] = name
    first, other, again = (
        post(faulty_gateway, GENERATE, payload).json["modelId"]
        for payload in (*payloads, payloads[0])
    )
    assert first == again
    assert first != other


def test_a_model_can_be_named_by_its_id(faulty_gateway: FaultyGateway) -> None:
    """A request may name provider and model by their ids."""
    payload = generate()
    payload["data"][0] = {
        "modelId": "m-1",
        "providerId": "p-1",
        "order": 1,
        "promptParams": payload["data"][0]["promptParams"],
    }
    answer = post(faulty_gateway, GENERATE, payload).json
    assert (answer["modelId"], answer["providerId"]) == ("m-1", "p-1")
    assert faulty_gateway.requests[0].model == "m-1"


def test_the_lowest_order_comes_first(faulty_gateway: FaultyGateway) -> None:
    """`order` decides which model is asked, not the position in the list."""
    payload = generate()
    second = payload["data"][0] | {"modelName": "second", "order": 2}
    payload["data"] = [second, payload["data"][0]]
    assert post(faulty_gateway, GENERATE, payload).json["model"] == "gpt-4-0613"
    assert faulty_gateway.requests[0].model == "gpt-4-0613"


@pytest.mark.parametrize("content", [None, [{"type": "text", "text": "hi"}]])
def test_stream_usage_is_missing_where_the_tokenizer_throws(
    faulty_gateway: FaultyGateway, content: object
) -> None:
    """A stream has no usage when a message's content is null or a list of parts."""
    messages = [{"role": "user", "content": content}]
    streamed = post(faulty_gateway, GENERATE, generate(stream=True, messages=messages))
    whole = post(faulty_gateway, GENERATE, generate(messages=messages))
    assert "usage" not in streamed.events[-4]["data"]
    assert whole.json["meta"]["usage"]["completion_tokens"] == 5


def test_usage_can_be_left_out(faulty_gateway: FaultyGateway) -> None:
    """`usage=None` is a provider that says nothing about it."""
    faulty_gateway.always(Answer(usage=None))
    assert post(faulty_gateway, GENERATE, generate()).json["meta"] == {}
    streamed = post(faulty_gateway, GENERATE, generate(stream=True))
    assert streamed.events[-4]["event"] == "meta"
    assert "usage" not in streamed.events[-4]["data"]


def test_a_finish_reason_can_be_left_out(faulty_gateway: FaultyGateway) -> None:
    """`finish_reason=None` is a provider that stopped without saying so."""
    faulty_gateway.always(Answer(finish_reason=None))
    (choice,) = post(faulty_gateway, GENERATE, generate()).json["choices"]
    streamed = post(faulty_gateway, GENERATE, generate(stream=True))
    assert choice["finish_reason"] is None
    assert [one for one in streamed.events if one == "Stream closed"]
    assert b'"finish_reason":"' not in streamed.body


def test_a_completion_model_streams_its_own_way(faulty_gateway: FaultyGateway) -> None:
    """A completion model's stream names the model, without finish reason and usage."""
    payload = generate(stream=True)
    payload["data"][0] |= {"providerName": "openai", "modelName": "instruct"}
    events = post(faulty_gateway, GENERATE, payload).events
    assert events[0]["data"] == {"text": "Hello", "model": "instruct"}
    assert "finish_reason" not in json.dumps(events)
    assert "usage" not in json.dumps(events)


def test_an_azure_stream_does_not_name_its_model(faulty_gateway: FaultyGateway) -> None:
    """The meta event of an Azure stream has no model."""
    payload = generate(stream=True)
    payload["data"][0]["providerName"] = "azure_chat_openai"
    meta = post(faulty_gateway, GENERATE, payload).events[-4]
    assert meta["event"] == "meta"
    assert "model" not in meta["data"]


def test_line_separators_are_not_escaped(faulty_gateway: FaultyGateway) -> None:
    """U+2028, U+2029 and U+0085 go out as they are, as on the real server."""
    text = "a\u2028b\u2029c\u0085d"
    faulty_gateway.always(Answer(text))
    for stream in (False, True):
        reply = post(faulty_gateway, GENERATE, generate(stream=stream))
        assert text.encode() in reply.body


@pytest.mark.parametrize(
    ("step", "status", "body"),
    [
        (Status(401), 401, {"message": "Unauthorized"}),
        (Status(403), 403, {"message": "Forbidden"}),
        (
            Status(404),
            404,
            {
                "message": f"Route POST:{GENERATE} not found",
                "error": "Not Found",
                "statusCode": 404,
            },
        ),
        (
            Status(429),
            429,
            {"message": "You've reached a limit on preview generations"},
        ),
        (Status(500), 500, {"error": "Something went wrong"}),
        (Status(503), 503, {"error": "Something went wrong"}),
        (Status(520), 520, {"error": "Something went wrong"}),
        (Status(499), 499, {"message": "Status 499"}),
        (Status(400, message="no"), 400, {"message": "no"}),
        (
            Status(400, error_code="bad", message="no"),
            400,
            {"message": "no", "code": "bad"},
        ),
        (ErrorInOk("no", "bad"), 200, {"error": "no", "code": "bad"}),
        (ErrorInOk("no"), 200, {"error": "no"}),
        (ErrorEvent("no", status=429), 500, {"error": "Something went wrong"}),
    ],
)
def test_error_bodies(
    faulty_gateway: FaultyGateway, step: Step, status: int, body: object
) -> None:
    """Without a body of its own, an error has the one of the real server."""
    faulty_gateway.script(step)
    reply = post(faulty_gateway, GENERATE, generate())
    assert (reply.status, reply.json) == (status, body)


def test_an_error_event_can_have_a_code(faulty_gateway: FaultyGateway) -> None:
    """`code` is part of the event when it is given."""
    faulty_gateway.script(ErrorEvent("no", status=429, code="insufficient_quota"))
    event, *ends = post(faulty_gateway, GENERATE, generate(stream=True)).events
    assert event == {
        "event": "error",
        "message": "429 no",
        "code": "insufficient_quota",
    }
    assert ends == ["Stream closed", "Stream closed"]
