"""Answers that are read up to a size, packed or not, error pages included.

The SDK reads an answer, or an error page, to its end, whatever that takes: a server
that goes on sending takes all memory, and one that packs zeros takes it with a few
packets. Here the body of each response is counted as it comes, and behind its packing,
since a thousand bytes fit into one.

An answer may have `MAX_ANSWER_BYTES`. A stream has no size of its own, an answer may be
long; each of its events may have `MAX_EVENT_BYTES`.

Only responses of the HTTP clients that we make: a user's own client is left as it is.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any, Final

from langchain_retryrouter._http.sse import MAX_EVENT_BYTES
from langchain_retryrouter._openai import protocol as wire
from langchain_retryrouter._openai.errors import from_problem

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
ACCEPTED_ENCODINGS: Final = "gzip, deflate"
"""What is asked for, and unpacked: by the standard library, piece by piece."""
CONTENT_ENCODING: Final = "content-encoding"
"""The header that says how an answer is packed."""

_PIECE: Final = 65_536
_OK: Final = 200
_DOCUMENTS: Final = ("text/html", "application/json")
_EVENT_ENDS: Final = (b"\n\n", b"\n\r\n", b"\r\r")
_WINDOW_BITS: Final = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_NO_HEADER: Final = -15  # Some servers send `deflate` without zlib's own frame.

_is_whole: ContextVar[bool] = ContextVar(
    "langchain_retryrouter_is_whole", default=False
)


@contextlib.contextmanager
def whole_answers() -> Iterator[None]:
    """What is answered in here is read to its end, even if it calls itself a stream."""
    token = _is_whole.set(True)
    try:
        yield
    finally:
        _is_whole.reset(token)


def bound(response: Any) -> None:
    """Let no more be read of a response than an answer may have."""
    _put_between(response, "SyncByteStream")


async def abound(response: Any) -> None:
    """Async twin of `bound`."""
    _put_between(response, "AsyncByteStream")


async def aread_bounded(
    next_part: Callable[[], Awaitable[bytes]], encoding: str
) -> bytes:
    """All of an answer's body, unpacked.

    Args:
        next_part: Gives its parts, as they come; nothing at its end.
        encoding: What its header says of its packing.
    """
    gauge = _Gauge(_unpacker_for(encoding), by_event=False)
    body = bytearray()
    while part := await next_part():
        for piece in gauge.take(part):
            body += piece
    return bytes(body) + gauge.rest()


def _put_between(response: Any, interface: str) -> None:
    library = type(response).__module__.partition(".")[0]
    kind = response.headers.get("content-type", "")
    is_stream = response.status_code == _OK and not kind.startswith(_DOCUMENTS)
    # Unpacked in the place of the HTTP library.
    encoding = response.headers.pop(CONTENT_ENCODING, "")
    unpacker = _unpacker_for(encoding)
    gauge = _Gauge(unpacker, by_event=is_stream and not _is_whole.get())
    # JSON is UTF-8 (RFC 8259), and a charset may name what decodes nothing, or no text.
    response.encoding = "utf-8"
    response.stream = _body_class(library, interface)(response.stream, gauge)


@functools.cache
def _body_class(library: str, interface: str) -> Any:
    """A body of ours that is one of the HTTP library's too, which insists on it."""
    own = _Body if interface == "SyncByteStream" else _ABody
    base = getattr(sys.modules[library], interface)
    return type("BoundedBody", (own, base), {})


class _Body:
    def __init__(self, body: Any, gauge: _Gauge) -> None:
        self._body = body
        self._gauge = gauge

    def __iter__(self) -> Iterator[bytes]:
        for part in self._body:
            yield from self._gauge.take(part)
        yield self._gauge.rest()

    def close(self) -> None:
        self._body.close()


class _ABody:
    def __init__(self, body: Any, gauge: _Gauge) -> None:
        self._body = body
        self._gauge = gauge

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._body:
            for piece in self._gauge.take(part):
                yield piece
        yield self._gauge.rest()

    async def aclose(self) -> None:
        await self._body.aclose()


# What both twins think.


class _Gauge:
    """Unpacks and counts what comes; raises where it is too much."""

    def __init__(self, unpacker: _Unpacker | None, *, by_event: bool) -> None:
        self._unpacker = unpacker
        self._by_event = by_event
        self._size = 0
        self._last = b""
        # Of what nobody waits for, small pieces are joined: each costs fifty bytes.
        self._held = bytearray()

    def take(self, part: bytes) -> Iterator[bytes]:
        """What is to be handed on of a part of the body."""
        for piece in (part,) if self._unpacker is None else self._unpacker.take(part):
            if self._by_event:
                self._count_event(piece)
                yield piece
                continue
            self._count(len(piece))
            self._held += piece
            if len(self._held) >= _PIECE:
                yield self.rest()

    def rest(self) -> bytes:
        """What is still held."""
        rest = bytes(self._held)
        self._held.clear()
        return rest

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > MAX_ANSWER_BYTES:
            what = f"an answer of more than {MAX_ANSWER_BYTES} bytes"
            raise from_problem(wire.malformed(what))

    def _count_event(self, piece: bytes) -> None:
        # An event may end between two pieces.
        seen = self._last + piece
        self._last = seen[-2:]
        end = max(seen.rfind(mark) for mark in _EVENT_ENDS)
        self._size = self._size + len(piece) if end < 0 else len(seen) - end
        if self._size > MAX_EVENT_BYTES:
            what = f"an event of more than {MAX_EVENT_BYTES} bytes"
            raise from_problem(wire.malformed(what))


class _Unpacker:
    """Undoes one encoding, in pieces: a packet may hold a thousand of them."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._packed = zlib.decompressobj(_WINDOW_BITS[encoding])
        self._may_lack_header = encoding == "deflate"

    def take(self, part: bytes) -> Iterator[bytes]:
        while piece := self._unpack(part):
            yield piece
            part = self._packed.unconsumed_tail

    def _unpack(self, part: bytes) -> bytes:
        try:
            piece = self._packed.decompress(part, _PIECE)
        except zlib.error as error:
            if not self._may_lack_header:
                what = f"what is no {self._encoding}, and says it is: {error}"
                raise from_problem(wire.malformed(what)) from error
            self._packed = zlib.decompressobj(_NO_HEADER)
            self._may_lack_header = False
            return self._unpack(part)
        self._may_lack_header = self._may_lack_header and not piece
        return piece


def _unpacker_for(encoding: str) -> _Unpacker | None:
    told = encoding.lower().split(",")
    encodings = [name.strip() for name in told if name.strip() not in {"", "identity"}]
    if not encodings:
        return None
    if len(encodings) > 1 or encodings[0] not in _WINDOW_BITS:
        what = f"an answer packed as {', '.join(encodings)!r}, which nobody asked for"
        raise from_problem(wire.malformed(what))
    return _Unpacker(encodings[0])
