r"""Server-sent events out of bytes, however the network splits them.

A pure parser (WHATWG HTML, section 9.2.6, "Interpreting an event stream") with three
deliberate differences. Lines end at `\n` or `\r\n` only: the gateway does not escape
U+2028, U+2029 and U+0085 inside JSON, so what Unicode calls a line end must not split a
line. Nothing is decoded: `data` stays bytes, so that invalid UTF-8 is an error of the
JSON reader, and not a silent U+FFFD in an answer. And a line that no server writes,
such as a proxy's page that runs into an event, is data too: if it were ignored, as the
standard says, words of the event would be lost with it.

An event without its blank line is incomplete, and not an event.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
_BOM: Final = b"\xef\xbb\xbf"
_NAME: Final = re.compile(rb"[\w-]*")  # The name of a field; empty for a comment.


class ServerSentEvent(NamedTuple):
    """One event: its kind (`message` by default) and its data, lines joined."""

    kind: bytes
    data: bytes


class EventTooLargeError(ValueError):
    """A single event is larger than any answer needs."""


class SSEParser:
    """Turns chunks of bytes into events; one parser for one stream.

    Args:
        max_event_bytes: Bytes of one unfinished event that are held at the most.
    """

    __slots__ = ("_data", "_is_first", "_kind", "_max", "_pending", "_size")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        """At the start of a stream."""
        self._max = max_event_bytes
        # Not lists of pieces: a piece of two bytes would take fifty.
        self._pending = bytearray()  # Of a line that has not ended.
        self._data = bytearray()  # Each line with a line feed behind it.
        self._kind = b""
        self._size = 0
        self._is_first = True

    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """The events that `chunk` completes, parsed lazily: there may be hundreds.

        Take all of them before the next chunk is fed.

        Raises:
            EventTooLargeError: If an event grows beyond `max_event_bytes`.
        """
        *lines, rest = chunk.split(b"\n")
        for tail in lines:
            self._grow(len(tail))
            line = bytes(self._pending + tail) if self._pending else tail
            self._pending.clear()
            event = self._take(line.removesuffix(b"\r"))
            if event is not None:
                yield event
        if rest:
            self._pending += rest
            self._grow(len(rest))

    def _take(self, line: bytes) -> ServerSentEvent | None:
        if self._is_first:
            self._is_first = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data += value
            self._data += b"\n"
        elif field == b"event":
            self._kind = value
        elif _is_damaged(field, value):
            self._data += line
            self._data += b"\n"
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        kind = self._kind
        self._kind, self._size = b"", 0
        if not self._data:
            return None
        self._data.pop()
        data = bytes(self._data)
        self._data.clear()
        return ServerSentEvent(kind or b"message", data)

    def _grow(self, size: int) -> None:
        # Each byte is counted once as it arrives, so that the limit does not depend on
        # how the stream is split.
        self._size += size
        if self._size > self._max:
            msg = f"one event of the stream is larger than {self._max} bytes"
            raise EventTooLargeError(msg)


def _is_damaged(field: bytes, value: bytes) -> bool:
    """Whether a line that would be ignored was not written by a server."""
    if not _NAME.fullmatch(field):
        return True
    try:
        value.decode()
    except UnicodeDecodeError:
        return True
    return False
