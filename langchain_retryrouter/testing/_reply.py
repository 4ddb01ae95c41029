"""A healthy reply, in the pieces that a fault can get at.

Between the protocol files, which write these pieces, and `_plan.py`, which drops,
garbles or delays them. The framing of HTTP/1.1 is here too, since faults break it on
purpose. Nothing here knows a socket, a step or a protocol.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from .completion import Completion
    from .recorded_request import RecordedRequest
    from .steps import Step

Pairs: TypeAlias = tuple[tuple[str, str], ...]

JSON_HEADERS: Pairs = (("content-type", "application/json; charset=utf-8"),)
LAST_CHUNK = b"0\r\n\r\n"

_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_REASONS = {status.value: status.phrase for status in HTTPStatus}
_FIRST_BYTE_OF_SEVERAL = 0b1100_0000
_WITHOUT_BODY = {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}
_IDLE_SECONDS = 72  # GPTRouter's own, as recorded


@dataclass(frozen=True, slots=True)
class Whole:
    """A reply in one piece."""

    status: int
    headers: Pairs
    body: bytes


@dataclass(frozen=True, slots=True)
class Stream:
    """A reply in events."""

    headers: Pairs
    events: tuple[bytes, ...]
    """The events with content: what `after=N` counts."""
    preamble: bytes = b""
    """Sent with the headers, before the model is asked."""
    opening: tuple[bytes, ...] = ()
    """Events without content that precede the first one with content."""
    closing: tuple[bytes, ...] = ()
    """Finish reasons, usage, end marks."""
    farewell: bytes = b""
    """The last frame, which a stream can do without."""


Reply: TypeAlias = Whole | Stream


class Dialect(Protocol):
    """What a protocol file offers: the pieces of its replies."""

    def unknown_path(self, request: RecordedRequest, /) -> Step:
        """What is said to a path or a method that does not exist."""

    def is_authorized(self, request: RecordedRequest, api_key: str, /) -> bool:
        """Whether the request carries this key."""

    def refusal(self, request: RecordedRequest, /) -> Step | None:
        """How a request is turned down whatever the script says; None if sound."""

    def seen_by_model(self, request: RecordedRequest, /) -> RecordedRequest:
        """What of the request reaches the model that answers."""

    def vectors(self, request: RecordedRequest, /) -> Reply | None:
        """The healthy reply of an embeddings endpoint; None at all others."""

    def answer(self, request: RecordedRequest, completion: Completion, /) -> Reply:
        """The healthy reply that says `completion`."""

    def error(
        self,
        request: RecordedRequest,
        status: int,
        code: str | None,
        message: str | None,
        /,
    ) -> Whole:
        """The protocol's own reply for this status."""

    def unstreamed_error(
        self,
        request: RecordedRequest,
        message: str,
        status: int | None,
        code: str | None,
        /,
    ) -> Whole:
        """What becomes of an error inside a stream when there is no stream."""

    def error_event(
        self, message: str, status: int | None, code: str | None, /
    ) -> bytes:
        """The end of a stream that fails."""

    def error_in_ok(self, message: str, code: str | None, /) -> bytes:
        """The body of an error that comes with status 200."""


def reason(status: int) -> str:
    """The phrase for a status; proxies send statuses that have none."""
    return _REASONS.get(status, f"Status {status}")


def compact_json(value: Any) -> bytes:
    """JSON without white space, its text as raw UTF-8: what the real servers send."""
    return _compact(value).encode()


def sse(value: Any) -> bytes:
    """One server-sent event with JSON data."""
    return b"data: %b\n\n" % compact_json(value)


def head(status: int, headers: Iterable[tuple[str, str]], *, close: bool) -> bytes:
    """The status line and the header section, and what becomes of the connection."""
    fields = [f"HTTP/1.1 {status} {reason(status)}"]
    fields += [
        f"{name}: {value}" for name, value in headers if name.lower() != "connection"
    ]
    if close:
        fields.append("connection: close")
    else:
        fields.append(f"connection: keep-alive\r\nkeep-alive: timeout={_IDLE_SECONDS}")
    return "\r\n".join([*fields, "\r\n"]).encode("latin-1")


def whole_head(reply: Whole, *, close: bool) -> bytes:
    """The head of a reply whose body is sent by its length."""
    names = {name.lower() for name, _ in reply.headers}
    headers = reply.headers
    if "content-length" not in names and reply.status not in _WITHOUT_BODY:
        headers = (*headers, ("content-length", str(len(reply.body))))
    return head(reply.status, headers, close=close)


def chunked_head(status: int, headers: Pairs, *, close: bool) -> bytes:
    """The head of a reply whose body is sent in chunks."""
    return head(status, (*headers, ("transfer-encoding", "chunked")), close=close)


def chunk(data: bytes) -> bytes:
    """One chunk of a body; nothing for no data, since an empty chunk ends the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def split_inside_characters(data: bytes) -> Iterator[bytes]:
    """`data`, cut after the first byte of every character of several bytes."""
    start = 0
    for position, byte in enumerate(data):
        if byte >= _FIRST_BYTE_OF_SEVERAL:
            yield data[start : position + 1]
            start = position + 1
    yield data[start:]
