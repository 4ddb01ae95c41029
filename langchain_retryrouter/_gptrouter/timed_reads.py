"""urllib3 connections that hold a limit for the whole of a request and its answer.

A socket's own timeout starts anew with every byte, so a server that drips, be it its
headers, would never be caught by it. Here each read and write is given what is
left. http.client has a place for this, the class that a connection reads its answers
with.

This file knows sockets and clocks; what is read is not its business. It imports
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
from typing import TYPE_CHECKING, Any, NamedTuple

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


@dataclass(slots=True)
class Limit:
    """How long the reads of one answer may take; may be changed between two of them.

    Attributes:
        silence: Seconds without a byte; None for no limit.
        due: The monotonic time when all must have come; None for no limit.
    """

    silence: float | None = None
    due: float | None = None
    _reader: io.BufferedReader | None = None

    def reader(self, sock: socket.socket) -> io.BufferedReader:
        """What reads an answer from `sock` within the limit."""
        self._reader = io.BufferedReader(_TimedReader(sock, self))
        return self._reader

    def let_go(self) -> None:
        """Close what was opened for an answer that urllib3 could make nothing of."""
        if self._reader is not None:
            self._reader.close()

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


_limit: ContextVar[Limit | None] = ContextVar(
    "langchain_retryrouter_limit", default=None
)


@contextlib.contextmanager
def read_within(limit: Limit) -> Iterator[None]:
    """Answers that begin in here are read within `limit`, to their end."""
    token = _limit.set(limit)
    try:
        yield
    finally:
        _limit.reset(token)


class _Timed(NamedTuple):
    """A socket, as far as http.client's answers know one."""

    sock: socket.socket
    limit: Limit

    def makefile(self, _mode: str) -> io.BufferedReader:
        return self.limit.reader(self.sock)


class _TimedReader(io.RawIOBase):
    def __init__(self, sock: socket.socket, limit: Limit) -> None:
        self._sock = sock
        self._limit = limit
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        self._sock.settimeout(self._limit.left())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


# More "I have got it", or hints of what comes, than any server needs to send.
_MOST_INTERIM = 100


class _TimedResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        limit = _limit.get()
        source = sock if limit is None else _Timed(sock, limit)
        super().__init__(source, *args, **kwargs)  # type: ignore[arg-type]

    def _read_status(self) -> tuple[str, int, str]:
        """The first status that is an answer; http.client passes by 100 alone."""
        for _ in range(_MOST_INTERIM):
            line: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]
            is_interim = line[1] // 100 == 1
            if not is_interim or line[1] == http.HTTPStatus.SWITCHING_PROTOCOLS:
                return line
            http.client.parse_headers(self.fp)
        msg = f"more than {_MOST_INTERIM} interim answers"
        raise http.client.HTTPException(msg)


class _TimedConnection(HTTPConnection):
    response_class = _TimedResponse

    def send(self, data: Any) -> None:
        limit = _limit.get()
        if limit is not None:
            if self.sock is None:
                self.connect()
            # Else headers and body would each have the time that connecting may take.
            self.sock.settimeout(limit.left())
        super().send(data)


class _TimedHTTPSConnection(_TimedConnection, HTTPSConnection):
    pass


def timed(pool: HTTPConnectionPool) -> HTTPConnectionPool:
    """The pool, whose connections read as `read_within` says."""
    is_secure = isinstance(pool, HTTPSConnectionPool)
    pool.ConnectionCls = _TimedHTTPSConnection if is_secure else _TimedConnection
    return pool
