"""What the public GPTRouter keeps from its model, and what the hosted one takes."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest

from langchain_retryrouter.testing import (
    Answer,
    Choice,
    Completion,
    FaultyGateway,
    FunctionCall,
    RecordedRequest,
    RuleResponder,
    StubResponder,
    ToolCall,
)

from .wire_client import CHAT, GENERATE, Capture, Reply, chat, generate, post, request

_SCHEMA = {
    "type": "object",
    "properties": {"input": {"type": "integer"}},
    "required": ["input"],
}
_TOOL = {"type": "function", "function": {"name": "magic", "parameters": _SCHEMA}}
_JSON_SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "Magic", "schema": _SCHEMA},
}
_CALL = ToolCall("magic", '{"input": 3}', id="call_1")
_FUNCTION = {"name": "magic", "arguments": '{"input": 3}'}
# What the public server is known to drop, and one that nobody has heard of.
_DROPPED: dict[str, Any] = {
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "seed": 1,
    "thinking": {"type": "enabled"},
    "raw_event": True,
    "reasoning_effort": "low",
    "web_search_options": {},
    "output_config": {},
    "brand_new": None,
}

# The model behind the recorded server was asked to repeat its request.
_ECHOES = [
    "44_unknown_params_nonstream",
    "44_unknown_params_stream",
    "51_stop",
    "52_stop_string",
    "b13_many_messages_only_system",
    "b14_function_msg",
    "b1_tool_roundtrip",
    "b2_multimodal",
    "b3_response_format_json_object",
    "b5_types_coerced",
]


class _Watcher:
    """A model that keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[RecordedRequest] = []

    def __call__(self, request: RecordedRequest) -> Completion:
        self.shown.append(request)
        return StubResponder()(request)


def _echoed(reply: Reply) -> dict[str, Any]:
    """The request as it came to the recorded model."""
    if reply.body.startswith(b"{"):
        text = reply.json["choices"][0]["text"]
    else:
        text = reply.events[-4]["data"]["text"]
    echoed = json.loads(text)
    assert isinstance(echoed, dict)
    return echoed


@pytest.mark.parametrize("name", _ECHOES)
def test_the_model_is_shown_what_the_recorded_one_was(name: str) -> None:
    """The public server's model sees the parameters that the recorded model saw."""
    capture = Capture.load(name)
    watcher = _Watcher()
    with FaultyGateway(responder=watcher) as gateway:
        request(
            gateway, capture.method, capture.path, capture.request_body, capture.headers
        )
    (shown,) = watcher.shown
    seen = {**shown.parameters, "model": shown.model, "stream": shown.streaming}
    assert seen == _echoed(capture.reply)


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_public_server_drops(stream: bool) -> None:
    """The log keeps the request as it came, whatever the model is shown of it."""
    watcher = _Watcher()
    with FaultyGateway(responder=watcher) as gateway:
        said = [{"role": "user", "content": "half a fox \ud83e"}]
        payload = generate(stream=stream, temperature=0.5, messages=said, **_DROPPED)
        payload["data"].append({**payload["data"][0], "order": 2})
        post(gateway, GENERATE, payload)
        (recorded,) = gateway.requests
    (shown,) = watcher.shown
    assert shown.parameters.keys() == {"messages", "temperature"}
    assert (shown.number, shown.streaming, shown.model) == (1, stream, recorded.model)
    assert shown.payload["data"][1] == payload["data"][1]
    assert recorded.json == payload


def test_what_cannot_be_coerced_stays() -> None:
    """A parameter that is no number reaches the model as it was sent."""
    watcher = _Watcher()
    parameters: dict[str, Any] = {
        "temperature": "hot",
        "stop": ["a", "b"],
        "top_p": "0.25",
    }
    with FaultyGateway(responder=watcher) as gateway:
        post(gateway, GENERATE, generate(**parameters))
    seen = watcher.shown[0].parameters
    assert {name: seen[name] for name in parameters} == {**parameters, "top_p": 0.25}


@pytest.mark.parametrize("payload", [generate(**_DROPPED), chat(**_DROPPED)])
def test_the_hosted_server_and_openai_drop_nothing(payload: dict[str, Any]) -> None:
    """Through the hosted server, and without a server between, all is seen."""
    watcher = _Watcher()
    with FaultyGateway(responder=watcher, gptrouter="hosted") as gateway:
        post(gateway, GENERATE if "data" in payload else CHAT, payload)
        assert gateway.requests[0].gptrouter == "hosted"
    (shown,) = watcher.shown
    assert shown.json == payload
    assert _DROPPED.items() <= shown.parameters.items()


@pytest.mark.parametrize(
    ("edition", "calls"), [("public", 0), ("hosted", 1)], ids=["public", "hosted"]
)
def test_a_forced_tool(edition: Literal["public", "hosted"], calls: int) -> None:
    """Only the hosted server's model can be forced to call a tool."""
    with FaultyGateway(responder=RuleResponder(), gptrouter=edition) as gateway:
        payload = generate(stream=True, tools=[_TOOL], tool_choice="required")
        reply = post(gateway, GENERATE, payload)
    assert reply.body.count(b'"name":"magic"') == calls


@pytest.mark.parametrize("stream", [False, True])
def test_json_schema(stream: bool) -> None:
    """The hosted server takes a JSON schema, which the public one refuses."""
    payload = generate(stream=stream, response_format=_JSON_SCHEMA)
    with FaultyGateway(responder=RuleResponder(), gptrouter="hosted") as gateway:
        hosted = post(gateway, GENERATE, payload)
    with FaultyGateway(responder=RuleResponder()) as gateway:
        public = post(gateway, GENERATE, payload)
    assert _echoed(hosted) == {"input": 1}
    if stream:
        assert public.events[0]["event"] == "error"
        assert "/response_format/type" in public.events[0]["message"]
    else:
        assert public.status == 500


@pytest.mark.parametrize("stream", [False, True])
def test_a_refused_request_reaches_no_model(stream: bool) -> None:
    """What the server turns down by itself is never shown to the model."""
    watcher = _Watcher()
    with FaultyGateway(responder=watcher) as gateway:
        payload = generate(stream=stream, response_format=_JSON_SCHEMA)
        post(gateway, GENERATE, payload)
        post(gateway, GENERATE, generate(stream=stream))
    assert [shown.number for shown in watcher.shown] == [2]


def test_the_hosted_server_has_formats_it_does_not_know() -> None:
    """A format of another kind is refused by both servers."""
    with FaultyGateway(gptrouter="hosted") as gateway:
        payload = generate(response_format={"type": "grammar"})
        assert post(gateway, GENERATE, payload).status == 500


@pytest.mark.parametrize(
    "content", [None, [{"type": "text", "text": "hi there"}]], ids=["null", "parts"]
)
def test_usage_of_streams(content: object) -> None:
    """Usage is missing in the public server's streams where content is not a text."""
    messages = [{"role": "user", "content": content}]
    payload = generate(stream=True, messages=messages)
    with FaultyGateway(gptrouter="hosted") as gateway:
        usage = post(gateway, GENERATE, payload).events[-4]["data"]["usage"]
    with FaultyGateway() as gateway:
        assert "usage" not in post(gateway, GENERATE, payload).events[-4]["data"]
    words = 0 if content is None else 2
    assert usage == {
        "prompt_tokens": 7 + words,
        "completion_tokens": 5,
        "total_tokens": 12 + words,
    }


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (Answer(tool_calls=(_CALL,)), {}),
        (
            Answer(tool_calls=(_CALL, _CALL), unstreamed_calls="tool_calls"),
            {
                "tool_calls": [
                    {"id": "call_1", "type": "function", "function": _FUNCTION},
                    {"id": "call_1", "type": "function", "function": _FUNCTION},
                ]
            },
        ),
        (
            Answer(tool_calls=(_CALL,), unstreamed_calls="function_call"),
            {"function_call": _FUNCTION},
        ),
        (
            Answer(
                function_call=FunctionCall("magic"), unstreamed_calls="function_call"
            ),
            {"function_call": {"name": "magic", "arguments": "{}"}},
        ),
    ],
    ids=["dropped", "tool_calls", "function_call", "already there"],
)
@pytest.mark.parametrize("edition", ["public", "hosted"])
def test_the_place_of_unstreamed_calls(
    edition: Literal["public", "hosted"], step: Answer, said: dict[str, Any]
) -> None:
    """Without a stream tool calls are dropped, unless the step says where they go."""
    with FaultyGateway(gptrouter=edition) as gateway:
        gateway.script(step)
        (choice,) = post(gateway, GENERATE, generate()).json["choices"]
    calls = {
        key: choice[key] for key in ("tool_calls", "function_call") if key in choice
    }
    assert calls == said


def test_a_place_for_the_calls_of_the_responder() -> None:
    """A step gives the calls of the responder a place too."""
    with FaultyGateway(responder=RuleResponder(), gptrouter="hosted") as gateway:
        gateway.always(Answer(unstreamed_calls="tool_calls"))
        payload = generate(tools=[_TOOL], tool_choice="required")
        (choice,) = post(gateway, GENERATE, payload).json["choices"]
    assert choice["tool_calls"][0]["function"] == {
        "name": "magic",
        "arguments": '{"input": 1}',
    }
    assert choice["finish_reason"] == "tool_calls"


def test_two_calls_do_not_fit_into_one() -> None:
    """A `function_call` holds one call: two are refused, not halved."""
    with pytest.raises(ValueError, match="2 calls do not fit"):
        Choice(tool_calls=(_CALL, _CALL), unstreamed_calls="function_call")
    with pytest.raises(ValueError, match="2 calls do not fit"):
        Choice(
            tool_calls=(_CALL,),
            function_call=FunctionCall("f"),
            unstreamed_calls="function_call",
        )


def test_citations(faulty_gateway: FaultyGateway) -> None:
    """Citations stand beside the choices and in them, where a step gives some."""
    about = {"url": "https://example.com/1"}
    faulty_gateway.script(Answer(citations=("a", "b"), choice_citations=(about,)))
    cited, plain = (post(faulty_gateway, GENERATE, generate()).json for _ in range(2))
    assert cited["citations"] == ["a", "b"]
    assert cited["choices"][0]["citations"] == [about]
    assert "citations" not in plain
    assert "citations" not in plain["choices"][0]


def test_an_edition_that_does_not_exist() -> None:
    """A name that is neither of the two is refused at once."""
    with pytest.raises(ValueError, match="gptrouter is 'private'"):
        FaultyGateway(gptrouter="private")  # type: ignore[arg-type]
