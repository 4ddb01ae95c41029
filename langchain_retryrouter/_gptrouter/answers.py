"""HTTP answers, read off a socket within a limit that holds for the whole of each.

A socket's own timeout starts anew with every byte, so a server that drips, be it its
headers, would never be caught by it. Here each read is given what is left.

An answer is http.client's, with its headers in a dict, and with urllib3's around it
only where a body is compressed: to read them as those of a mail, and through all of
urllib3's layers, is a quarter of what a call costs.

This file knows sockets and clocks; what is said is not its business. It imports
urllib3, so it is imported by the first sync call.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from urllib3 import HTTPResponse
from urllib3.connection import HTTPConnection

from langchain_retryrouter._http.heads import is_interim

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_HTTP_VERSIONS: Final = {10: "HTTP/1.0", 11: "HTTP/1.1"}
_WITHOUT_BODY: Final = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
# As much as http.client takes.
_MOST_HEADERS: Final = 100
_LONGEST_LINE: Final = 65_536
# More than any body can have.
_MOST_DIGITS: Final = 19
# More "I have got it", or hints of what comes, than any server needs to send.
_MOST_INTERIM: Final = 100


@dataclass(slots=True)
class Limit:
    """How long the reads of one answer may take; may be changed between two of them.

    Attributes:
        silence: Seconds without a byte; None for no limit.
        due: The monotonic time when all must have come; None for no limit.
    """

    silence: float | None = None
    due: float | None = None

    def left(self) -> float | None:
        """Seconds that the next read may take; None for no limit.

        Raises:
            TimeoutError: None are left.
        """
        if self.due is None:
            return self.silence
        left = self.due - time.monotonic()
        if left <= 0:
            msg = "the answer is overdue"
            raise TimeoutError(msg)
        return left if self.silence is None else min(left, self.silence)


_UNLIMITED: Final = Limit()
limit_here: ContextVar[Limit] = ContextVar(
    "langchain_retryrouter_limit", default=_UNLIMITED
)


@contextlib.contextmanager
def read_within(limit: Limit) -> Iterator[None]:
    """Answers that begin in here are read within `limit`, to their end."""
    token = limit_here.set(limit)
    try:
        yield
    finally:
        limit_here.reset(token)


class _TimedReader(io.RawIOBase):
    def __init__(self, sock: socket.socket, limit: Limit) -> None:
        self._sock = sock
        self._limit = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        self._sock.settimeout(self._limit.left())
        return self._sock.recv_into(buffer)


class _TimedSocket(NamedTuple):
    """A socket, as far as http.client's answers know one."""

    sock: socket.socket
    limit: Limit

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self.sock, self.limit))


class Headers:
    """An answer's headers (RFC 9112, section 5).

    Args:
        lines: The lines that they stand in.
    """

    def __init__(self, lines: Iterator[str]) -> None:
        """Read at once; a line that is no header is left out, as browsers do."""
        self._items: list[tuple[str, str]] = []
        for line in lines:
            name, colon, value = line.partition(":")
            if line[0] in " \t" and self._items:
                # A line folded in the old way: the one before goes on.
                before, told = self._items.pop()
                self._items.append((before, f"{told} {line.strip()}"))
            elif colon and name == name.strip():
                self._items.append((name, value.strip()))
        # The first of two, as http.client has it.
        self._by_name = {name.lower(): value for name, value in self._items[::-1]}

    def get(self, name: str) -> str | None:
        """The value of a header, whatever the case of its name; None for none."""
        return self._by_name.get(name.lower())

    def items(self) -> list[tuple[str, str]]:
        """All names and values, as they came."""
        return self._items


class TimedResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        source: Any = _TimedSocket(sock, limit_here.get())
        super().__init__(source, *args, **kwargs)

    def begin(self) -> None:
        """Read what stands before the body, and where that ends (RFC 9112, 6.3)."""
        version, status, reason = self._read_status()
        if not version.startswith("HTTP/1."):
            raise http.client.UnknownProtocol(version)
        is_old = version == "HTTP/1.0"
        self.version = 10 if is_old else 11
        self.code, self.status, self.reason = status, status, reason.strip()
        headers = Headers(self._header_lines())
        self.told = headers
        coding = (headers.get("transfer-encoding") or "").lower()
        self.chunked = coding == "chunked" and status not in _WITHOUT_BODY
        self.chunk_left = self.length = None
        if status in _WITHOUT_BODY:
            self.length = 0
        elif not self.chunked:
            self.length = _length_of(headers.get("content-length"))
        connection = (headers.get("connection") or "").lower()
        is_cut_off = "close" in connection or (is_old and "keep" not in connection)
        has_end = self.chunked or self.length is not None
        self.will_close = is_cut_off or not has_end

    def _read_status(self) -> tuple[str, int, str]:
        """The first status that is an answer; http.client passes by 100 alone."""
        for _ in range(_MOST_INTERIM):
            line: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]
            if not is_interim(line[1]):
                return line
            for _ in self._header_lines():
                pass
        msg = f"more than {_MOST_INTERIM} interim answers"
        raise http.client.HTTPException(msg)

    def _header_lines(self) -> Iterator[str]:
        for _ in range(_MOST_HEADERS + 1):
            line: bytes = self.fp.readline(_LONGEST_LINE + 1)
            if len(line) > _LONGEST_LINE:
                what = "header line"
                raise http.client.LineTooLong(what)
            if not line.endswith(b"\n"):
                raise http.client.IncompleteRead(line)
            text = line.decode("latin-1").rstrip("\r\n")
            if not text:
                return
            yield text
        msg = f"more than {_MOST_HEADERS} headers"
        raise http.client.HTTPException(msg)

    def read1(self, n: int = -1) -> bytes:
        """What has come of the body; nothing only at its end, of which it is sure.

        http.client's own takes a body that was cut for one that is over.
        """
        if self.chunked or self.isclosed():
            return super().read1(n)
        left = self.length
        if left == 0:
            self.close()
            return b""
        piece: bytes = self.fp.read1(n if left is None else min(n, left))
        if left is not None:
            if not piece:
                raise http.client.IncompleteRead(piece, left)
            self.length = left - len(piece)
        if not piece or self.length == 0:
            self.close()
        return piece


class Answer:
    """One answer, whose body is still to be read from its connection.

    Attributes:
        status: The HTTP status.
        headers: By name, of any case.
        version_string: Of HTTP; for urllib3's log.
        length_remaining: What is left of the body, where that is known; likewise.
    """

    def __init__(self, connection: HTTPConnection, response: TimedResponse) -> None:
        """Over an answer whose headers have been read."""
        self.status: int = response.status
        self.headers = response.told
        self.version_string = _HTTP_VERSIONS[response.version]
        self.length_remaining: int | None = response.length
        self._response = response
        self._lent: HTTPConnection | None = connection
        is_packed = self.headers.get("content-encoding") is not None
        self._body = _unpacked(response) if is_packed else response
        # What urllib3's pool writes on each answer that it gives out.
        self.retries: Any = None
        self._connection: Any = None
        self._pool: Any = None

    def read1(self, amount: int) -> bytes:
        """At most `amount` bytes, as soon as there are any; none at the body's end."""
        return self._body.read1(amount)

    def shutdown(self) -> None:
        """Unblock, from another thread, a read under way; the body is then cut.

        Raises:
            OSError: There is no connection any longer.
        """
        connection = self._lent
        if connection is not None and connection.sock is not None:
            connection.sock.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Give the connection back if the body was read to its end, or else close it.

        Once, however often it is called.
        """
        connection, self._lent = self._lent, None
        if connection is None:
            return
        is_reusable = self._response.isclosed() and not self._response.will_close
        self._response.close()
        if not is_reusable:
            connection.close()
        self._pool._put_conn(connection)  # noqa: SLF001 - as urllib3's answers do


def _length_of(told: str | None) -> int | None:
    if told is None:
        return None
    if told.isdecimal() and len(told) <= _MOST_DIGITS:
        return int(told)
    msg = f"content-length is {told[:100]!r}"
    raise http.client.HTTPException(msg)


def _unpacked(response: TimedResponse) -> HTTPResponse:
    return HTTPResponse(
        response,
        headers=dict(response.told.items()),
        status=response.status,
        preload_content=False,
        original_response=response,
    )
