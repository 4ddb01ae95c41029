"""What the LLMs ask for themselves: through the SDK, and back as plain data."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from langchain_retryrouter import OpenAI, OpenAIChat, errors
from langchain_retryrouter._openai import errors as named
from langchain_retryrouter.llms import openai as module
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Body,
    ErrorEvent,
    ErrorInOk,
    FaultyGateway,
    Status,
)

from .conftest import NewLLM

COMPLETION: dict[str, Any] = {"model": "m", "prompt": "hi"}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
REQUESTS = [(OpenAI, COMPLETION), (OpenAIChat, CHAT)]


@pytest.mark.parametrize(("cls", "request_"), REQUESTS)
def test_dicts_say_what_the_sdks_objects_say(
    twin: Any, new_llm: NewLLM, cls: Any, request_: dict[str, Any]
) -> None:
    """With `as_dicts` the same answer comes, as the JSON object that was sent."""
    llm = new_llm(cls)
    plain = twin.complete(module, llm, **request_, as_dicts=True)
    typed = twin.complete(module, llm, **request_)
    assert type(plain) is dict
    assert type(typed).__module__.startswith("openai.types.")
    moving = {"id", "created", "retryrouter"}
    assert {n: v for n, v in plain.items() if n not in moving} == {
        n: v
        for n, v in json.loads(typed.model_dump_json(exclude_unset=True)).items()
        if n not in moving
    }


@pytest.mark.parametrize(("cls", "request_"), REQUESTS)
def test_chunks_are_dicts_too(
    twin: Any, new_llm: NewLLM, cls: Any, request_: dict[str, Any]
) -> None:
    """With `as_dicts` the chunks of a stream are JSON objects, one with a ledger."""
    chunks = twin.complete(module, new_llm(cls), **request_, stream=True, as_dicts=True)
    assert {type(chunk) for chunk in chunks} == {dict}
    ends = [chunk for chunk in chunks if "retryrouter" in chunk]
    assert len(ends) == 1
    assert ends[0]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(("cls", "request_"), REQUESTS)
@pytest.mark.parametrize("stream", [False, True])
def test_both_ways_send_the_same_bytes(
    twin: Any,
    new_llm: NewLLM,
    gateway: FaultyGateway,
    cls: Any,
    request_: dict[str, Any],
    *,
    stream: bool,
) -> None:
    """Path, headers and body are the SDK's own, but for the order of the fields."""
    options: dict[str, Any] = {
        "temperature": 0.5,
        "seed": 1,
        "stop": ["é"],
        "extra_headers": {"x-mine": "1"},
        "extra_query": {"q": "1"},
        "extra_body": {"top_k": 2},
        "timeout": 7,
        "user": openai.omit,
        "n": openai.NOT_GIVEN,
        "stream": stream,
    }
    llm = new_llm(cls, default_headers={"x-yours": "2"}, organization="org")
    for as_dicts in (False, True):
        twin.complete(module, llm, **request_, **options, as_dicts=as_dicts)
    theirs, ours = gateway.requests
    assert (ours.method, ours.path, ours.query) == (
        theirs.method,
        theirs.path,
        theirs.query,
    )
    own = {"idempotency-key"}
    assert {n: v for n, v in ours.headers.items() if n not in own} == {
        n: v for n, v in theirs.headers.items() if n not in own
    }
    assert json.loads(ours.body) == json.loads(theirs.body)
    assert len(ours.body) == len(theirs.body)


@pytest.mark.parametrize("as_dicts", [True, False])
def test_extras_may_be_none(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway, *, as_dicts: bool
) -> None:
    """None in place of more headers, queries or properties is nothing more to send."""
    extras = dict.fromkeys(["extra_headers", "extra_query", "extra_body", "timeout"])
    llm = new_llm(default_query={"q": "1"})
    twin.complete(module, llm, **COMPLETION, **extras, as_dicts=as_dicts)
    (request,) = gateway.requests
    assert (request.query, request.payload) == ("q=1", COMPLETION)
    assert "x-stainless-read-timeout" not in request.headers


@pytest.mark.parametrize("method", ["invoke", "stream"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tempratur": 1}, "unexpected keyword argument 'tempratur'"),
        ({"model": openai.omit}, "misses the keyword argument 'model'"),
    ],
    ids=["unknown", "missing"],
)
def test_an_option_that_cannot_be_sent_is_an_error(
    twin: Any,
    any_model: Any,
    new_llm: NewLLM,
    gateway: FaultyGateway,
    method: str,
    options: dict[str, Any],
    message: str,
) -> None:
    """What `create` does not know, or misses, is a `TypeError`, as from the SDK."""
    with pytest.raises(TypeError, match=message):
        getattr(twin, method)(new_llm(any_model), "hi", **options)
    assert gateway.requests == []


# What servers send.


EVENTS = {"content-type": "text/event-stream"}


def sse(*lines: str) -> Body:
    """A stream of these lines."""
    return Body(headers=EVENTS, body="".join(lines))


def chunk(text: str, finish: str | None = None) -> str:
    """One event of a stream of completions."""
    choice = {"index": 0, "text": text, "finish_reason": finish}
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


STREAMS = {
    "comments": (sse(": hi\n\n", chunk("a"), ": hi\n\n", chunk("b", "stop")), "ab"),
    "no space": (sse(chunk("ab", "stop").replace("data: ", "data:")), "ab"),
    "carriage returns": (sse(chunk("ab", "stop").replace("\n", "\r\n")), "ab"),
    "other fields": (sse("event: x\nid: 1\nretry: 9\n", chunk("ab", "stop")), "ab"),
    "line separators": (sse('data: {"choices": [{"text": "a\u2028b", "finish_reason":'
                            ' "stop"}]}\n\n'), "a\u2028b"),
    "half a pair": (sse('data: {"choices": [{"text": "\\ud83e", "finish_reason":'
                        ' "stop"}]}\n\n'), "\ud83e"),
    "two lines": (sse('data: {"choices":\ndata: [{"text": "ab", "finish_reason":'
                      ' "stop"}]}\n\n'), "ab"),
    "nothing behind done": (sse(chunk("ab", "stop"), "data: [DONE]\n\n", "x"), "ab"),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_events_are_read_however_they_are_written(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway, name: str
) -> None:
    """Whatever the standard of server-sent events allows is read."""
    body, text = STREAMS[name]
    gateway.script(body)
    assert "".join(twin.stream(new_llm(max_retries=0), "hi")) == text


def test_half_a_pair_is_read_from_a_whole_answer(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A text that was cut inside an emoji is no reason to lose the answer."""
    body = b'{"choices": [{"text": "\\ud83e", "finish_reason": "length"}]}'
    gateway.script(Body(headers={"content-type": "application/json"}, body=body))
    assert twin.invoke(new_llm(max_retries=0), "hi") == "\ud83e"


@pytest.mark.parametrize(
    "body",
    [b"{", b"\xff", b'data: {"choices": [{"text": "\xff"}]}\n\n', b"data: x\n\n"],
    ids=repr,
)
@pytest.mark.parametrize("method", ["invoke", "stream"])
def test_what_is_no_json_is_malformed(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway, method: str, body: bytes
) -> None:
    """Broken JSON and broken UTF-8 are told, and never part of an answer."""
    gateway.always(Body(headers=EVENTS, body=body))
    with pytest.raises(named.OpenAIMalformedResponseError):
        getattr(twin, method)(new_llm(max_retries=0), "hi")


def test_an_event_without_end_is_malformed(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A server that never ends its event does not fill the memory."""
    gateway.always(Body(headers=EVENTS, body=b"data: " + b"x" * 17_000_000))
    with pytest.raises(
        named.OpenAIMalformedResponseError, match="of more than 16777216 bytes"
    ):
        twin.stream(new_llm(max_retries=0), "hi")


# The facts of an error that came inside a 200.

HEADERS = {"x-request-id": "req_7", "retry-after": "3"}
IN_A_200 = {
    "error": {"message": "Slow down.", "code": "rate_limit_exceeded", "type": "t"}
}


@pytest.mark.parametrize(
    "body",
    [json.dumps(IN_A_200), "<html>busy</html>", '{"choices": []}'],
    ids=["error", "page", "no choices"],
)
@pytest.mark.parametrize("method", ["invoke", "stream"])
def test_an_error_in_a_200_has_its_facts(
    twin: Any,
    any_model: Any,
    new_llm: NewLLM,
    gateway: FaultyGateway,
    method: str,
    body: str,
) -> None:
    """The request's id, the wait that is asked for and the attempts are there."""
    content_type = "text/html" if body.startswith("<") else "application/json"
    gateway.always(Body(headers={**HEADERS, "content-type": content_type}, body=body))
    with pytest.raises(errors.RetryRouterError) as caught:
        getattr(twin, method)(new_llm(any_model, max_retries=1), "hi")
    error: Any = caught.value
    assert (error.request_id, error.retry_after) == ("req_7", 3)
    assert error.attempts == len(gateway.requests) == 2
    assert error.response.status_code == 200
    assert str(error.request.url).startswith(gateway.url)


@pytest.mark.parametrize("as_dicts", [True, False])
def test_an_error_in_a_200_means_the_same_both_ways(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway, *, as_dicts: bool
) -> None:
    """Error bodies and error events have one meaning, whoever reads them."""
    llm = new_llm(max_retries=0)
    gateway.script(
        ErrorInOk("Slow down.", code="rate_limit_exceeded"),
        ErrorEvent("Slow down.", after=1, status=429),
    )
    with pytest.raises(named.OpenAIRateLimitError, match=r"^Slow down\."):
        twin.complete(module, llm, **COMPLETION, as_dicts=as_dicts)
    with pytest.raises(named.OpenAIRateLimitError, match=r"^Slow down\.") as caught:
        twin.complete(module, llm, **COMPLETION, stream=True, as_dicts=as_dicts)
    assert caught.value.delivered


def test_an_error_page_closes_nothing_else(
    new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """After an answer that was none, its connection is used again."""
    gateway.script(ErrorInOk("Slow down.", code="rate_limit_exceeded"), Status(503))
    assert new_llm().invoke("hi") == STUB_TEXT
    assert gateway.connections == 1
