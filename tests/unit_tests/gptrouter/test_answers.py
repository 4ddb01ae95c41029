"""How an answer stands on the wire: read as HTTP says, or refused."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import threading
from collections.abc import Iterator
from typing import Protocol

import pytest
from pydantic import SecretStr

from langchain_retryrouter import _aiohttp, errors
from langchain_retryrouter._gptrouter.client import GatewayClient
from langchain_retryrouter._gptrouter.pools import close_sync_pools
from langchain_retryrouter._http.heads import request_head

BODY = b'{"id":"1"}'
SAID = {"id": "1"}
LENGTH = b"content-length: %d\r\n" % len(BODY)
CHUNKED = b"transfer-encoding: chunked\r\n"


def answer(headers: bytes, body: bytes = BODY, version: bytes = b"1.1") -> bytes:
    return b"HTTP/%b 200 OK\r\n%b\r\n%b" % (version, headers, body)


def chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


class Told:
    """What the server got, connection by connection."""

    def __init__(self) -> None:
        self.connections: list[list[bytes]] = []

    @property
    def requests(self) -> list[bytes]:
        return [request for requests in self.connections for request in requests]


@contextlib.contextmanager
def saying(said: bytes, *, hangs_up: bool = False) -> Iterator[tuple[str, Told]]:
    """The address of a server that says so much to each request, and what it was told.

    With `hangs_up` it closes the connection after it.
    """
    told = Told()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(connection: socket.socket, requests: list[bytes]) -> None:
            with connection, contextlib.suppress(OSError):
                while request := _request(connection):
                    requests.append(request)
                    connection.sendall(said)
                    if hangs_up:
                        return

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    connection.settimeout(10)
                    told.connections.append([])
                    arguments = (connection, told.connections[-1])
                    threading.Thread(target=serve, args=arguments, daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", told
        finally:
            close_sync_pools()
            listener.shutdown(socket.SHUT_RDWR)


def _request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (some := connection.recv(65_536)):
            return b""
        data += some
    head, _, body = data.partition(b"\r\n\r\n")
    (length,) = [
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    ]
    while len(body) < length:
        body += connection.recv(65_536)
    return head + b"\r\n\r\n" + body


class Ask(Protocol):
    def __call__(self, url: str, text: str = "hi", /) -> object:
        """What the server said to `text`."""


def sync_ask(url: str, text: str = "hi") -> object:
    client = GatewayClient(url, SecretStr("any"), request_timeout=5)
    return client.post("/v1/generate", {"text": text})


@pytest.fixture(params=["sync", "async", "async by aiohttp's session"])
def ask(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Ask]:
    """Each way in which a request goes out and its answer comes back."""
    if request.param == "sync":
        yield sync_ask
        return
    if request.param != "async":
        monkeypatch.setattr(_aiohttp, "CAN_POST_LEANLY", False)
    with asyncio.Runner() as runner:

        def async_ask(url: str, text: str = "hi") -> object:
            client = GatewayClient(url, SecretStr("any"), request_timeout=5)
            return runner.run(client.apost("/v1/generate", {"text": text}))

        yield async_ask


@pytest.mark.parametrize(
    "said",
    [
        answer(LENGTH),
        answer(LENGTH.upper()),
        answer(b"content-length:%d\r\n" % len(BODY)),
        answer(CHUNKED, chunks(BODY) + b"0\r\n\r\n"),
        answer(CHUNKED, chunks(BODY[:3], BODY[3:]) + b"0\r\nx-trailer: 1\r\n\r\n"),
        answer(CHUNKED, b"a;name=value\r\n" + BODY + b"\r\n0\r\n\r\n"),
        answer(b"connection: keep-alive\r\n" + LENGTH, version=b"1.0"),
        answer(b"x-folded: one\r\n two\r\n" + LENGTH),
        answer(LENGTH).replace(b"\r\n", b"\n"),
    ],
)
def test_a_connection_whose_answer_was_read_to_its_end_is_used_again(
    ask: Ask, said: bytes
) -> None:
    """However the end of a body is told, the next request goes out on the same wire."""
    with saying(said) as (url, told):
        assert [ask(url), ask(url), ask(url)] == [SAID] * 3
        assert [len(requests) for requests in told.connections] == [3]


@pytest.mark.parametrize(
    ("said", "hangs_up"),
    [
        (answer(b"connection: close\r\n" + LENGTH), False),
        (answer(b"Connection: Keep-Alive, Close\r\n" + LENGTH), False),
        (answer(LENGTH, version=b"1.0"), False),
        (answer(b""), True),
    ],
)
def test_a_connection_that_ends_with_its_answer_is_not_used_again(
    ask: Ask,
    said: bytes,
    hangs_up: bool,
) -> None:
    """Where the server says that it hangs up, the next request has a new connection."""
    with saying(said, hangs_up=hangs_up) as (url, told):
        assert [ask(url), ask(url)] == [SAID] * 2
        assert [len(requests) for requests in told.connections] == [1, 1]


@pytest.mark.parametrize(
    "said",
    [
        answer(LENGTH, BODY[:4]),
        answer(CHUNKED, chunks(BODY)),
        answer(CHUNKED, chunks(BODY)[:-6]),
        answer(CHUNKED, b"many\r\n"),
        answer(LENGTH).partition(b"h: 10")[0],
        b"HTTP/1.1 200 OK\r\n",
        answer(b"content-length: ten\r\n"),
        answer(b"content-length: -5\r\n"),
        answer(b"content-length: %b\r\n" % (b"9" * 5000)),
        answer(b"x: 1\r\n" * 200 + LENGTH),
        answer(b"x: " + b"1" * 70_000 + b"\r\n" + LENGTH),
        b"SSH-2.0-OpenSSH_9\r\n",
        b"",
    ],
)
def test_an_answer_that_is_cut_or_no_http_is_a_broken_connection(
    ask: Ask, said: bytes
) -> None:
    """What cannot be an answer is never taken for one, however it begins."""
    with saying(said, hangs_up=True) as (url, _):
        with pytest.raises(errors.APIConnectionError) as caught:
            ask(url)
        assert caught.value.may_have_run


def test_a_sync_answer_without_a_body_has_none_whatever_its_headers_say() -> None:
    """A 204 ends with its headers, and its connection is used again."""
    said = answer(CHUNKED, b"").replace(b"200 OK", b"204 No Content")
    with saying(said) as (url, told):
        assert [sync_ask(url), sync_ask(url)] == [None] * 2
        assert [len(requests) for requests in told.connections] == [2]


@pytest.mark.parametrize(
    "said",
    [
        answer(CHUNKED + LENGTH, chunks(BODY) + b"0\r\n\r\n"),
        answer(b"no header\r\n: nor this\r\nname : nor that\r\n" + LENGTH),
    ],
)
def test_a_sync_answer_may_have_headers_that_are_none(said: bytes) -> None:
    """Of odd headers urllib3's users never heard, so they hear of none now."""
    with saying(said) as (url, told):
        assert [sync_ask(url), sync_ask(url)] == [SAID] * 2
        assert [len(requests) for requests in told.connections] == [2]


def test_a_sync_answer_in_another_language_is_refused() -> None:
    """Where HTTP/2 was agreed on by nobody, what comes is not read as HTTP/1."""
    with (
        saying(answer(LENGTH, version=b"2.0")) as (url, _),
        pytest.raises(errors.APIConnectionError, match="HTTP/2"),
    ):
        sync_ask(url)


def test_a_compressed_answer_is_unpacked(ask: Ask) -> None:
    """A proxy that compresses although nobody asked it to does not cost the answer."""
    packed = gzip.compress(BODY)
    headers = b"content-encoding: gzip\r\ncontent-length: %d\r\n" % len(packed)
    with saying(answer(headers, packed)) as (url, told):
        assert [ask(url), ask(url)] == [SAID] * 2
        assert [len(requests) for requests in told.connections] == [2]


def test_a_stream_that_is_left_takes_its_connection_with_it() -> None:
    """What is still on the wire of a stream is never read as the next call's answer."""
    event = b'data: {"event":"update","data":{"text":"x","finish_reason":null}}\n\n'
    headers = b"content-type: text/event-stream\r\n" + CHUNKED
    with saying(answer(headers, chunks(event, event))) as (url, told):
        client = GatewayClient(url, SecretStr("any"), request_timeout=5)
        events = client.open_stream("/v1/generate", {})
        assert next(events).data["text"] == "x"
        events.close()
        events.close()  # Twice does no harm.
        with contextlib.closing(client.open_stream("/v1/generate", {})) as others:
            next(others)
        assert [len(requests) for requests in told.connections] == [1, 1]


@pytest.mark.parametrize("text", ["", "x" * 70_000, "ü" * 1_000_000])
def test_a_request_of_any_size_arrives_whole(ask: Ask, text: str) -> None:
    """A request is one message with one length, whether written at once or not."""
    with saying(answer(LENGTH)) as (url, told):
        ask(url, text)
        ask(url, text)
        one, other = told.requests
    head, _, body = one.partition(b"\r\n\r\n")
    assert one == other
    assert b"content-length: %d" % len(body) in head.lower()
    assert text in body.decode() or "\\u" in body.decode()


def test_a_request_says_what_http_asks_for(ask: Ask) -> None:
    """The `Host` comes first and names the port; nothing is said twice."""
    with saying(answer(LENGTH)) as (url, told):
        ask(url)
        lines = told.requests[0].partition(b"\r\n\r\n")[0].decode().split("\r\n")
    names = [line.partition(":")[0].lower() for line in lines[1:]]
    assert lines[0] == "POST /api/v1/generate HTTP/1.1"
    assert lines[1].lower() == f"host: {url.removeprefix('http://')}"
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/a\r\nx: 1", {}),
        ("/", {"x": "1\r\ny: 2"}),
        ("/", {"x\n": "1"}),
        ("/", {"x": "\u2028"}),
        ("/", {"x": "\x00"}),
    ],
)
def test_a_line_that_would_end_early_is_refused(
    target: str, headers: dict[str, str]
) -> None:
    """Nobody writes a header of their own by way of an address or a value."""
    with pytest.raises(ValueError, match="no request can carry"):
        request_head("POST", target, headers.items())


def test_the_aiohttp_in_use_is_as_we_know_it() -> None:
    """An aiohttp whose inside has changed costs speed, and is seen here first."""
    assert _aiohttp.CAN_POST_LEANLY
