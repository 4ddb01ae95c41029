"""What the gateway writes down, and waiting for it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from contextlib import ExitStack, closing
from urllib.parse import urlsplit

import pytest

from langchain_retryrouter.testing import (
    Answer,
    FaultyGateway,
    Hangup,
    Silence,
    SlowFirstToken,
    Stall,
    Status,
)

from .wire_client import (
    CHAT,
    COMPLETIONS,
    GENERATE,
    chat,
    completion,
    connect,
    generate,
    post,
    posted,
    read_to_end,
    read_until,
    request,
    statuses,
)


def test_the_log_has_everything(faulty_gateway: FaultyGateway) -> None:
    """A request is recorded with all that a test may want to know about it."""
    before = time.monotonic()
    payload = generate(stream=True)
    post(faulty_gateway, f"{GENERATE}?a=b", payload, {"X-Trace": "t", "WS-Secret": "k"})
    (seen,) = faulty_gateway.requests
    assert before <= seen.at <= time.monotonic()
    assert (seen.number, seen.connection) == (1, 1)
    assert (seen.method, seen.path, seen.query) == ("POST", GENERATE, "a=b")
    assert (seen.headers["x-trace"], seen.headers["ws-secret"]) == ("t", "k")
    assert json.loads(seen.body) == seen.json == payload
    assert (seen.model, seen.streaming) == ("gpt-4-0613", True)
    assert (seen.step, seen.outcome) == (Answer(), "sent")
    assert "POST /api/v1/generate gpt-4-0613" in str(seen)


def test_repeated_headers_are_joined(faulty_gateway: FaultyGateway) -> None:
    """Both values of a repeated header are in the log."""
    with closing(connect(faulty_gateway)) as connection:
        connection.putrequest("GET", "/")
        connection.putheader("x-a", "1")
        connection.putheader("X-A", "2")
        connection.endheaders()
        connection.getresponse().read()
    assert faulty_gateway.requests[0].headers["x-a"] == "1, 2"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[1]"])
def test_a_body_that_is_no_object(faulty_gateway: FaultyGateway, body: bytes) -> None:
    """A body that cannot be read says so when asked, and has no model."""
    request(faulty_gateway, "POST", CHAT, body)
    (seen,) = faulty_gateway.requests
    assert (seen.model, seen.streaming, dict(seen.payload)) == (None, False, {})
    if body != b"[1]":
        with pytest.raises(ValueError, match="request 1 is not JSON"):
            _ = seen.json


def test_snapshots_do_not_change(faulty_gateway: FaultyGateway) -> None:
    """What was read from the log stays as it was."""
    faulty_gateway.script(Hangup())
    with posted(faulty_gateway, CHAT, chat()) as client:
        read_to_end(client)
    seen = faulty_gateway.requests
    faulty_gateway.reset_log()
    seen.append(seen[0])
    assert seen[0].outcome == "faulted"
    assert faulty_gateway.requests == []


def test_numbers_go_on_after_a_reset_of_the_log(faulty_gateway: FaultyGateway) -> None:
    """No two requests and no two connections ever have the same number."""
    statuses(faulty_gateway, 2)
    faulty_gateway.reset_log()
    statuses(faulty_gateway, 1)
    (seen,) = faulty_gateway.requests
    assert (seen.number, seen.connection) == (3, 3)
    assert faulty_gateway.connections == 3


@pytest.mark.parametrize(("keep", "numbers"), [(None, [1, 2, 3]), (2, [2, 3]), (0, [])])
def test_the_log_can_be_kept_short(keep: int | None, numbers: list[int]) -> None:
    """A load test need not hold every request in memory."""
    with FaultyGateway(keep_requests=keep) as gateway:
        assert statuses(gateway, 3) == [200] * 3
        assert [seen.number for seen in gateway.requests] == numbers


def test_connections_are_counted(faulty_gateway: FaultyGateway) -> None:
    """Connections are counted when they come and when they go; requests know theirs."""
    with ExitStack() as stack:
        kept = [stack.enter_context(closing(connect(faulty_gateway))) for _ in range(2)]
        for connection in (*kept, *kept):
            connection.request("POST", CHAT, json.dumps(chat()))
            assert connection.getresponse().read()
        assert faulty_gateway.connections == faulty_gateway.open_connections == 2
        assert [seen.connection for seen in faulty_gateway.requests] == [1, 2, 1, 2]
    faulty_gateway.wait_for(lambda seen: seen.open_connections == 0)
    assert faulty_gateway.connections == 2


def test_a_connection_without_a_request_is_seen(faulty_gateway: FaultyGateway) -> None:
    """Waiting for a connection does not need a request on it."""
    waiting = threading.Event()
    port = urlsplit(faulty_gateway.url).port

    def connect_now() -> None:
        waiting.wait(5)
        clients.append(socket.create_connection(("127.0.0.1", port), 5))

    def is_open(gateway: FaultyGateway) -> bool:
        waiting.set()
        return gateway.open_connections == 1

    clients: list[socket.socket] = []
    thread = threading.Thread(target=connect_now)
    thread.start()
    before = time.monotonic()
    faulty_gateway.wait_for(is_open, timeout=15)
    assert time.monotonic() - before < 10  # it was told, and did not only look at last
    thread.join()
    clients[0].close()
    assert faulty_gateway.requests == []


def test_who_has_the_answer_finds_it_in_the_log(faulty_gateway: FaultyGateway) -> None:
    """The outcome is written down before the client can have the end of the answer."""
    with closing(connect(faulty_gateway)) as connection:
        for _ in range(300):
            connection.request("POST", CHAT, json.dumps(chat()))
            connection.getresponse().read()
            assert faulty_gateway.requests[-1].outcome == "sent"


def test_a_wait_does_not_come_back(
    faulty_gateway: FaultyGateway, caplog: pytest.LogCaptureFixture
) -> None:
    """The wait of a client that has left ends there, and does not go on to answer."""
    faulty_gateway.script(Stall(1, 0.05), SlowFirstToken(0.1))
    with posted(faulty_gateway, CHAT, chat(stream=True)) as client:
        read_until(client, b"Hello")
    assert statuses(faulty_gateway, 1) == [200]
    outcomes = [seen.outcome for seen in faulty_gateway.requests]
    assert outcomes == ["client_left", "sent"]
    assert caplog.records == []


def test_pipelined_requests_are_answered_in_order(
    faulty_gateway: FaultyGateway,
) -> None:
    """Requests that are sent before the answers have come are answered one by one."""
    faulty_gateway.script(Stall(1, 0.01), Answer("second"), Answer("third"))
    body = json.dumps(chat()).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n"
    with posted(faulty_gateway, CHAT, chat(stream=True)) as client:
        client.sendall((head.encode() + body) * 2)
        response = read_until(client, b"third")
    order = [response.index(text) for text in (b"upstream", b"second", b"third")]
    assert order == sorted(order)
    assert [seen.outcome for seen in faulty_gateway.requests] == ["sent"] * 3


def test_a_client_that_leaves_is_noted(faulty_gateway: FaultyGateway) -> None:
    """An answer that the client did not take to its end is not called sent."""
    faulty_gateway.script(Answer(("x" * 20_000_000,)))
    with posted(faulty_gateway, CHAT, chat()) as client:
        client.recv(1)
    faulty_gateway.wait_for(lambda seen: seen.requests[0].outcome == "client_left")


def test_a_big_answer_arrives(faulty_gateway: FaultyGateway) -> None:
    """An answer that the kernel takes in many bits arrives whole, streamed or not."""
    text = "word " * 400_000
    faulty_gateway.always(Answer((text, text)))
    whole = post(faulty_gateway, COMPLETIONS, completion())
    streamed = post(faulty_gateway, COMPLETIONS, completion(stream=True))
    assert whole.json["choices"][0]["text"] == text * 2
    assert streamed.events[1]["choices"][0]["text"] == text
    assert streamed.events[-1] == "[DONE]"
    assert [seen.outcome for seen in faulty_gateway.requests] == ["sent", "sent"]


def test_what_is_not_http(faulty_gateway: FaultyGateway) -> None:
    """Bytes that are no request get a 400 and an end, and the gateway lives on."""
    port = urlsplit(faulty_gateway.url).port
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert read_to_end(client).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert statuses(faulty_gateway, 1) == [200]


def test_a_client_that_asks_before_it_sends(faulty_gateway: FaultyGateway) -> None:
    """A client that waits for leave to send its body gets it."""
    with closing(connect(faulty_gateway)) as connection:
        body = json.dumps(chat()).encode()
        connection.putrequest("POST", CHAT)
        connection.putheader("content-length", str(len(body)))
        connection.putheader("expect", "100-continue")
        connection.endheaders()
        assert connection.sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.send(body)
        assert connection.getresponse().status == 200


def test_waiting_for_something(faulty_gateway: FaultyGateway) -> None:
    """`wait_for` ends as soon as what it waits for is there."""
    faulty_gateway.script(Silence())
    with posted(faulty_gateway, CHAT, chat()):
        faulty_gateway.wait_for(lambda seen: len(seen.requests) == 1)
        assert faulty_gateway.requests[0].outcome == "pending"


def test_waiting_in_vain(faulty_gateway: FaultyGateway) -> None:
    """A wait that is in vain says what was seen in the meantime."""
    faulty_gateway.script(Status(503))
    statuses(faulty_gateway, 1, model="my-model")
    faulty_gateway.wait_for(lambda seen: seen.open_connections == 0)
    with pytest.raises(TimeoutError) as raised:
        faulty_gateway.wait_for(lambda seen: len(seen.requests) == 2, timeout=0.01)
    assert "after 0.01 s; 0 of 1 connections open, 1 requests" in str(raised.value)
    assert "my-model, Status(code=503" in str(raised.value)


async def test_waiting_in_a_coroutine(faulty_gateway: FaultyGateway) -> None:
    """`await_for` lets the event loop run, in which the request is made."""
    _, writer = await asyncio.open_connection(
        "127.0.0.1", urlsplit(faulty_gateway.url).port
    )
    writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    await faulty_gateway.await_for(lambda seen: len(seen.requests) == 1)
    writer.close()
    await writer.wait_closed()
    await faulty_gateway.await_for(lambda seen: seen.open_connections == 0)
    await faulty_gateway.await_for(lambda _: True)
    with pytest.raises(TimeoutError, match="1 requests:\n  #1"):
        await faulty_gateway.await_for(lambda _: False, timeout=0.01)
