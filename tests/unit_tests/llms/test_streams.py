"""Streams: an end that is an end, a connection that is freed, a watch over both."""

import asyncio
import json
import time
from typing import Any

import pytest

from langchain_retryrouter import OpenAIChat, RetryPolicy, errors
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK
from langchain_retryrouter.llms import openai as module
from langchain_retryrouter.llms.openai import completion_with_retry
from langchain_retryrouter.testing import Body, Cut, FaultyGateway, Raw, Stall, Truncate

from .conftest import EVENTS, Env, NewLLM, Recorder, choice, streamed

HEAD = (
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    "transfer-encoding: chunked\r\n\r\n"
)


def frame(data: str) -> str:
    """One event in one chunk of the body."""
    event = f"data: {data}\n\n"
    return f"{len(event.encode()):x}\r\n{event}\r\n"


def open_stream(*texts: str, finish: bool = True) -> str:
    """The head of a stream, and its events, without its end."""
    choices = [choice(text) for text in texts]
    if finish:
        choices.append(choice("", "stop"))
    return HEAD + "".join(frame(json.dumps({"choices": [one]})) for one in choices)


@pytest.mark.parametrize(
    "fault", [Truncate(2), Cut(2), Cut(2, "rst"), Stall(2, 60)], ids=str
)
def test_a_stream_that_breaks_is_an_error(every: Env, fault: Any) -> None:
    """A stream without its end is an error with what was delivered; no repetition."""
    every.gateway.script(fault)
    policy = RetryPolicy(stall_timeout=0.8)
    chunks: list[str] = []
    with pytest.raises(errors.StreamInterruptedError) as caught:
        every.stream(every.new(retry_policy=policy), "hi", into=chunks)
    assert "".join(chunks) == caught.value.delivered == "Hello from"
    assert caught.value.__notes__ == [
        "not retried: 10 characters were already delivered"
    ]
    assert len(every.gateway.requests) == 1


def test_streaming_inside_invoke_is_as_strict(every: Env, recorder: Recorder) -> None:
    """`invoke` with `streaming=True` raises for a truncated stream; callbacks know."""
    every.gateway.script(Truncate(2))
    llm = every.new(streaming=True, callbacks=[recorder])
    with pytest.raises(errors.StreamInterruptedError) as caught:
        every.invoke(llm, "hi")
    assert recorder.errors == [caught.value]
    assert "".join(recorder.tokens) == "Hello from"


@pytest.mark.parametrize(
    "beat",
    [
        *("data:", "data: ", ": keep-alive", "event: keep-alive\ndata:"),
        *("event: ping\ndata: 12:30", 'event: ping\ndata: {"type": "ping"}'),
    ],
)
def test_a_heartbeat_is_no_answer_and_no_error(env: Env, beat: str) -> None:
    """What only keeps the connection ends no stream, and completes none."""
    chunks = [
        json.dumps({"choices": [one]}) for one in (choice("a"), choice("", "stop"))
    ]
    begin, end = (f"{beat}\n\ndata: {chunk}\n\n" for chunk in chunks)
    env.gateway.script(Body(200, EVENTS, begin + end), Body(200, EVENTS, begin))
    assert "".join(env.stream(env.new(), "hi")) == "a"
    with pytest.raises(errors.StreamInterruptedError):
        env.stream(env.new(), "hi")


@pytest.mark.parametrize("junk", [b"<html>\r\n<hr>", b"\x81\x07", b":\x81"], ids=str)
def test_noise_before_an_event_is_an_error(env: Env, junk: bytes) -> None:
    """A proxy's page, or noise, before an event is an error, not an event less."""
    choices = [b'{"text":"a"}', b'{"text":"b"}', b'{"text":"","finish_reason":"stop"}']
    first, *others = [b'data: {"choices":[%b]}\n\n' % one for one in choices]
    env.gateway.script(Body(200, EVENTS, b"".join([first, junk, *others])))
    chunks: list[str] = []
    with pytest.raises(errors.MalformedResponseError) as caught:
        env.stream(env.new(), "hi", into=chunks)
    assert "".join(chunks) == caught.value.delivered == "a"


def test_an_end_of_one_choice_is_not_the_end(env: Env) -> None:
    """A stream of several choices is whole when each of them has its reason."""
    first, second = choice("a", "stop"), {**choice("b", "stop"), "index": 1}
    env.gateway.script(streamed(first, second), streamed(first))
    request: dict[str, Any] = {"model": "m", "prompt": ["x", "y"], "stream": True}
    assert len(env.complete(module, env.new(), **request)) == 2
    with pytest.raises(errors.StreamInterruptedError):
        env.complete(module, env.new(), **request)


@pytest.mark.parametrize(
    "ending",
    [
        frame("[DONE]") + "0\r\n\r\n",
        "0\r\n\r\n",
        frame('{"choices":[]}') + frame("[DONE]") + "0\r\n\r\n",
        frame('{"choices":[],"usage":null}') + "0\r\n\r\n",
        "",
    ],
    ids=["done", "no-done", "empty-choices", "null-usage", "cut-off"],
)
def test_whatever_follows_the_end_is_no_fault(env: Env, ending: str) -> None:
    """When every choice has its reason, the stream is whole, however it is closed."""
    env.gateway.script(Raw((open_stream("a", "b") + ending).encode()))
    assert "".join(env.stream(env.new(), "hi")) == "ab"
    assert len(env.gateway.requests) == 1


def test_a_null_and_an_empty_delta_are_no_token(env: Env) -> None:
    """Chat deltas without content, or with a null one, are empty texts."""
    env.gateway.script(
        streamed(
            {"delta": {"role": "assistant", "content": None}},
            {"delta": {}},
            {"delta": {"content": "yes"}},
            {"delta": {"content": None}, "finish_reason": "stop"},
        )
    )
    assert env.stream(env.new(OpenAIChat), "hi") == ["", "", "yes", ""]


@pytest.mark.parametrize(
    "event", ["7", "null", '"x"', "[]", '{"choices":[7]}', '{"choices":[{"text":7}]}']
)
def test_an_unexpected_event_is_an_error(env: Env, event: str) -> None:
    """JSON that is no chunk is malformed, before the first token and behind it."""
    whole = open_stream("a", finish=False) + frame(event)
    env.gateway.script(Raw((HEAD + frame(event)).encode()), Raw(whole.encode()))
    with pytest.raises(
        errors.MalformedResponseError, match="unexpected event"
    ) as caught:
        env.stream(env.new(), "hi")
    assert caught.value.delivered == "a"
    assert len(env.gateway.requests) == 2


# The connection.


@pytest.mark.parametrize("extra", [": bye\n\n", "data: [DONE]\n\n"])
async def test_a_body_is_read_to_its_end(
    new_llm: NewLLM, gateway: FaultyGateway, extra: str
) -> None:
    """What a server sends after `[DONE]` does not cost the connection."""
    ending = f"{frame('[DONE]')}{len(extra):x}\r\n{extra}\r\n0\r\n\r\n"
    step = Raw((open_stream("a") + ending).encode(), close=False)
    gateway.script(step, step, step, step)
    llm = new_llm()
    for _ in range(2):
        assert await asyncio.to_thread(lambda: [*llm.stream("hi")]) == ["a", ""]
    for _ in range(2):
        assert [chunk async for chunk in llm.astream("hi")] == ["a", ""]
    assert [request.connection for request in gateway.requests] == [1, 1, 2, 2]


def test_the_end_of_a_body_is_not_waited_for_long(env: Env) -> None:
    """A server that says `[DONE]` and never ends its body holds nobody up."""
    whole = open_stream("a") + frame("[DONE]")
    env.gateway.script(Raw(whole.encode(), close=False))
    began = time.monotonic()
    assert "".join(env.stream(env.new(), "hi")) == "a"
    assert time.monotonic() - began < 10
    env.gateway.wait_for(lambda g: g.open_connections == 0)


def test_a_stream_closed_early_frees_its_connection(
    any_model: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A caller who leaves a stream early gets no error and leaves no connection."""
    request: dict[str, Any] = {"model": "m", "stream": True, "prompt": "hi"}
    if any_model is OpenAIChat:
        request["messages"] = [request.pop("prompt")]
    llm = new_llm(any_model)
    for chunks in (llm.stream("hi"), completion_with_retry(llm, **request)):
        gateway.script(Stall(2, 60))
        assert next(chunks) is not None
        chunks.close()
        gateway.wait_for(lambda g: g.open_connections == 0)
        assert gateway.requests[-1].outcome == "client_left"


@pytest.mark.parametrize(
    ("timeout", "policy"),
    [((5, 0.6), RetryPolicy(first_token_timeout=5)), (None, RetryPolicy(deadline=1))],
    ids=["timeout", "deadline"],
)
def test_other_limits_hold_behind_the_first_token(
    every: Env, timeout: Any, policy: RetryPolicy
) -> None:
    """The model's `timeout` and the deadline hold after the first token too."""
    every.gateway.script(Stall(2, 60))
    llm = every.new(timeout=timeout, retry_policy=policy, clock=SYSTEM_CLOCK)
    with pytest.raises(errors.StreamInterruptedError) as caught:
        every.stream(llm, "hi")
    assert caught.value.delivered == "Hello from"
