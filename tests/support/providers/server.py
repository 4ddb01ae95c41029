"""A provider that fails on cue, whatever its protocol: the faults of the transport.

`Protocol` is what one provider's bodies look like, `Script` what goes wrong with them,
and `ScriptedProvider` a server on the loopback that does so with every request.
"""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self

import trustme

Reply = Literal["text", "tool"]

TEXT: Final = ("Hello ", "from sick.")
"""The text of a healthy answer; a cut one ends between the two."""
TOOL: Final = "delete_files"
ARGUMENTS: Final = ('{"path": "/srv/a/cac', 'he", "recursive": false}')
"""The arguments of a healthy call; a cut one has the first half."""
USAGE: Final = (11, 7)
"""Tokens of the prompt and of the answer."""

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_PAGE: Final = b"<!doctype html><html><body><h1>Bad Gateway</h1></body></html>"


class Error(NamedTuple):
    """An error as a provider writes it; `wait` is what its body or headers ask for."""

    status: int
    body: Any
    headers: Mapping[str, str] = {}
    wait: float | None = None


def whole_text() -> str:
    return "".join(TEXT)


def whole_arguments() -> dict[str, Any]:
    arguments: dict[str, Any] = json.loads("".join(ARGUMENTS))
    return arguments


def sse(event: Any, name: str = "") -> bytes:
    """One server-sent event; a text is its data as it is."""
    data = event if isinstance(event, str) else json.dumps(event)
    return (f"event: {name}\n" * bool(name) + f"data: {data}\n\n").encode()


def typed_sse(event: dict[str, Any]) -> bytes:
    """One server-sent event with the name that its data have as `type`."""
    return sse(event, event["type"])


@dataclass(frozen=True, slots=True)
class Protocol:
    """The bodies of one provider's API.

    Attributes:
        whole: The body of a whole answer.
        events: The events of a stream: up to where a cut one ends, and the others.
        error: The body of an error, of a status and a sentence.
        frame: The bytes of an event.
        event: The bytes of an error inside a stream; None: the body of one in a frame.
        is_stream: Whether a request (path, body) asks for a stream.
        stream_type: The content type of streams.
        error_headers: Headers of an error, of its body.
        headers: Headers of a whole answer.
        is_tls: Whether its client takes https only.
        is_grpc: Whether it is no HTTP/1.1: see `vertex`.
        is_setup: Whether a path is asked when the client is made: it gets an empty
            object, and is not counted.
    """

    whole: Callable[[Reply], Any]
    events: Callable[[Reply], tuple[list[Any], list[Any]]]
    error: Callable[[int, str], Any]
    frame: Callable[[Any], bytes] = sse
    event: Callable[[str], bytes] | None = None
    is_stream: Callable[[str, Any], bool] = lambda _, body: bool(body.get("stream"))
    stream_type: str = "text/event-stream"
    error_headers: Callable[[Any], dict[str, str]] = lambda _: {}
    headers: Mapping[str, str] = field(default_factory=dict)
    is_tls: bool = False
    is_grpc: bool = False
    is_setup: Callable[[str], bool] = lambda _: False


How = Literal[
    "answer", "error", "body", "reset", "hangup", "silence", "head", "cut", "fin",
    "rst", "stall", "event", "first event", "empty",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Script:
    """What the server does with each request.

    `error`, `body` and `empty` are whole HTTP answers; `reset`, `hangup` and `silence`
    come before the first byte, `head` after the headers, and the others after the first
    half of the body.
    """

    how: How = "answer"
    reply: Reply = "text"
    error: Error | None = None
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


def html(status: int) -> Error:
    return Error(status, _PAGE, {"content-type": "text/html"})


@functools.cache
def tls() -> tuple[ssl.SSLContext, str]:
    """What a server on the loopback needs, and the file with its authority."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    path = Path(tempfile.mkdtemp()) / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    return context, str(path)


class ScriptedProvider:
    """A server of one protocol that does the same with every request."""

    def __init__(self, protocol: Protocol, script: Script) -> None:
        """Listen on a free port; `requests` collects the bodies that came."""
        self.requests: list[Any] = []
        self._protocol = protocol
        self._script = script
        self._over = threading.Event()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        scheme = "https" if protocol.is_tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        """It serves already."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it, and every connection that is left."""
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in tuple(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(OSError):
                connection, _ = self._listener.accept()
                threading.Thread(
                    target=self._serve, args=(connection,), daemon=True
                ).start()

    def _serve(self, connection: socket.socket) -> None:
        if self._protocol.is_tls:
            try:
                connection = tls()[0].wrap_socket(connection, server_side=True)
            except OSError:
                return
        self._open.add(connection)
        with contextlib.suppress(OSError), connection:
            request = _read_request(connection)
            if request is not None and self._protocol.is_setup(request[0]):
                connection.sendall(_head(200, {"content-length": "2"}) + b"{}")
            elif request is not None:
                self.requests.append(request[1])
                self._answer(connection, *request)
        self._open.discard(connection)

    def _answer(self, connection: socket.socket, path: str, body: Any) -> None:
        how = self._script.how
        if how == "silence":
            self._over.wait()
        elif how == "reset":
            reset(connection)
        elif how != "hangup":
            for piece in self._pieces(path, body):
                connection.sendall(piece)
            if how in {"head", "stall"}:
                self._over.wait()
            elif how == "rst":
                reset(connection)

    def _pieces(self, path: str, request: Any) -> Iterator[bytes]:
        """The bytes of one HTTP answer."""
        script, protocol, how = self._script, self._protocol, self._script.how
        if script.error is not None:
            error = script.error
            body = error.body if isinstance(error.body, bytes) else _json(error.body)
            headers = {
                "content-type": "application/json",
                **protocol.error_headers(error.body),
                **error.headers,
                **script.headers,
            }
            yield _head(error.status, {**headers, "content-length": str(len(body))})
            yield body
        elif how == "body":
            length = str(len(script.body))
            yield _head(
                200, {"content-type": script.content_type, "content-length": length}
            )
            yield script.body
        elif protocol.is_stream(path, request):
            yield from self._stream()
        else:
            body = _json(protocol.whole(script.reply))
            if how in {"event", "first event"}:
                body = _json(protocol.error(500, "The server had an error"))
            sent = (
                body[: len(body) // 2]
                if how in {"cut", "fin", "rst", "stall"}
                else body
            )
            sent = b"" if how in {"head", "empty"} else sent
            length = str(len(sent if how in {"cut", "empty"} else body))
            headers = {"content-type": "application/json", "content-length": length}
            yield _head(200, {**headers, **protocol.headers})
            yield sent

    def _stream(self) -> Iterator[bytes]:
        protocol, how = self._protocol, self._script.how
        first, rest = protocol.events(self._script.reply)
        events = {"answer": [*first, *rest]}.get(how, first)
        if how in {"head", "empty", "first event"}:
            events = []
        frames = [protocol.frame(one) for one in events]
        if how in {"event", "first event"}:
            said = "The server had an error"
            body = protocol.error(500, said)
            frames += [protocol.event(said) if protocol.event else protocol.frame(body)]
        headers = {"content-type": protocol.stream_type, "transfer-encoding": "chunked"}
        yield _head(200, headers)
        for frame in frames:
            yield b"%x\r\n%s\r\n" % (len(frame), frame)
        if how not in {"head", "fin", "rst", "stall"}:
            yield b"0\r\n\r\n"


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Scripted", "connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def _json(body: Any) -> bytes:
    return json.dumps(body).encode()


def reset(connection: socket.socket) -> None:
    """Let the connection end by a reset when it is closed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


def _read_request(connection: socket.socket) -> tuple[str, Any] | None:
    """The path and the body of one request; None if the client went away."""
    stream = connection.makefile("rb")
    line = stream.readline().split()
    if not line:
        return None
    headers = {}
    while header := stream.readline().strip():
        name, _, value = header.partition(b":")
        headers[name.lower()] = value.strip()
    if headers.get(b"expect", b"").lower() == b"100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = b""
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        while size := int(stream.readline(), 16):
            body += stream.read(size)
            stream.readline()
        stream.readline()
    else:
        body = stream.read(int(headers.get(b"content-length", 0)))
    try:
        return line[1].decode(), json.loads(body or b"{}")
    except ValueError:
        return line[1].decode(), {"raw": body}
