"""What breaks below HTTP, or in it, before an answer can be read; and where nobody is.

As in `faults`, the expectations are written down by hand.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import trustme

from langchain_retryrouter.testing import (
    FaultyGateway,
    Hangup,
    Raw,
    Reset,
    Silence,
    Step,
)
from tests.promises.faults import LOST, NO_ANSWER, TOO_LATE, Fault, Meaning, Ways
from tests.unit_tests.chat_models.relays import Relay

_SHORT: Final = 0.1
"""Seconds that a model waits for a server that will never say anything."""
_OK: Final = b"HTTP/1.1 200 OK\r\nconnection: close\r\n"
_HEAD: Final = _OK + b"content-type: application/json\r\n"
_STREAM: Final = _OK + b"content-type: text/event-stream\r\n"
_CHUNKED: Final = b"transfer-encoding: chunked\r\n\r\n"
_DOCUMENT: Final = b'{"choices": [], "id": "x"}'


def raw(
    name: str,
    data: bytes,
    meaning: Meaning = LOST,
    ways: Ways = "any",
    or_else: Meaning | None = None,
) -> Fault:
    """A row in which the server sends exactly these bytes, and hangs up."""
    return Fault(name, Raw(data), meaning, ways=ways, or_else=or_else)


def garbled(name: str, data: bytes) -> Fault:
    """A row that some HTTP libraries take for a broken connection, and some read."""
    return raw(name, data, LOST, or_else=NO_ANSWER)


BREAKAGES: Final = (
    Fault("reset before a byte", Reset(), LOST),
    Fault("closed without an answer", Hangup(), LOST),
    Fault("silence", Silence(), TOO_LATE, timeout=_SHORT),
    Fault(
        "silence behind the headers",
        Raw(_HEAD + b"content-length: 50\r\n\r\n", close=False),
        TOO_LATE,
        timeout=_SHORT,
    ),
    Fault(
        "silence within the headers",
        Raw(_HEAD, close=False),
        TOO_LATE,
        timeout=_SHORT,
    ),
    Fault(
        "silence in a stream's first event",
        Raw(_STREAM + _CHUNKED + b"5\r\ndata:\r\n", close=False),
        TOO_LATE,
        timeout=_SHORT,
        ways="stream",
    ),
    raw("closed within the status line", b"HTTP/1.1 20"),
    garbled("closed within the headers", _HEAD),
    raw("closed behind the headers", _HEAD + b"content-length: 50\r\n\r\n"),
    raw("a body that is too short", _HEAD + b"content-length: 50\r\n\r\n{}"),
    raw("a chunk that is too short", _HEAD + _CHUNKED + b'32\r\n{"error"'),
    raw("no last chunk", _HEAD + _CHUNKED + b"2\r\n{}\r\n"),
    raw("a chunk without a size", _HEAD + _CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n"),
    raw("a chunk of endless size", _HEAD + _CHUNKED + b"f" * 40 + b"\r\n{}"),
    raw("no stream behind a stream's headers", _STREAM + _CHUNKED, ways="stream"),
    raw("a status line of garbage", b"\x16\x03\x01\x02\x00 garbage\r\n\r\n"),
    raw("a status that is no number", b"HTTP/1.1 abc OK\r\n\r\n"),
    raw("a status of four digits", b"HTTP/1.1 2000 OK\r\ncontent-length: 0\r\n\r\n"),
    raw("another protocol", b"SSH-2.0-OpenSSH_9.6\r\n"),
    garbled("HTTP/0.9", b"<html>hi</html>\r\n"),
    garbled("HTTP/0.9, JSON", _DOCUMENT),
    raw("nothing but line ends", b"\r\n\r\n\r\n"),
    garbled("a header without a colon", _OK + b"no colon here\r\n\r\n{}"),
    garbled("a length that is no number", _HEAD + b"content-length: two\r\n\r\n{}"),
    garbled("a length below zero", _HEAD + b"content-length: -2\r\n\r\n{}"),
    garbled(
        "a header of a megabyte", _HEAD + b"x: " + b"x" * 1_000_000 + b"\r\n\r\n{}"
    ),
    garbled("a thousand headers", _HEAD + b"x: y\r\n" * 20_000 + b"\r\n{}"),
    garbled("an unasked upgrade", b"HTTP/1.1 101 Switching Protocols\r\n\r\n"),
    garbled("nothing but 100 Continue", b"HTTP/1.1 100 Continue\r\n\r\n"),
    garbled("nothing but early hints", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"),
    garbled(
        "a body that is cut by its length",
        _HEAD + b"content-length: 10\r\n\r\n" + _DOCUMENT,
    ),
    garbled(
        "a body that is no gzip",
        _HEAD + b"content-encoding: gzip\r\ncontent-length: 7\r\n\r\nnot zip",
    ),
)


# --- where nobody is who speaks HTTP ---

Nowhere: TypeAlias = Literal[
    "refused", "no such host", "TLS to a plain port", "an unknown authority"
]


@dataclass(frozen=True)
class NoServer(Step):
    """No step of a server: an address at which there is none."""

    where: Nowhere


NOWHERE: Final = (
    Fault("refused", NoServer("refused"), LOST, {"may_have_run": False}),
    Fault("no such host", NoServer("no such host"), LOST, {"may_have_run": False}),
    Fault("TLS to a plain port", NoServer("TLS to a plain port"), LOST),
    Fault("an unknown authority", NoServer("an unknown authority"), LOST),
)


@contextlib.contextmanager
def address_of(where: Nowhere, gateway: FaultyGateway) -> Iterator[str]:
    """Scheme, host and port at which there is no server for a client to talk to."""
    if where == "no such host":
        yield "http://retryrouter.invalid"
    elif where == "TLS to a plain port":
        yield gateway.url.replace("http:", "https:")
    elif where == "refused":
        with socket.socket() as disabled_retries:
            disabled_retries.bind(("127.0.0.1", 0))
            yield f"http://127.0.0.1:{disabled_retries.getsockname()[1]}"
    else:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
        with Relay(gateway.url, tls=tls) as relay:
            yield relay.url
