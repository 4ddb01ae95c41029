"""Sync requests and answers that are limited as a whole, error pages included.

The HTTP library's own limit starts anew with every read and write, so a server that
drips, or takes a long request in sips, would never be caught by it. It tells, by its
`trace` extension, of each connection that it opens; such a connection is taught to give
each read and write what is left of the request's time.

Only connections of the HTTP clients that we make: a user's own client is left as it is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Final

_OPENED: Final = (".connect_tcp.complete", ".start_tls.complete")
_SENDING: Final = ".send_request_headers.started"
_TO_A_PROXY: Final = b"CONNECT"
_PIECE: Final = 65_536

_due: ContextVar[float | None] = ContextVar("langchain_retryrouter_due", default=None)


@contextlib.contextmanager
def read_within(seconds: float | None) -> Iterator[None]:
    """All must be sent and have come within so many seconds, None for no limit.

    A read or write that comes too late raises a `TimeoutError`.
    """
    token = _due.set(None if seconds is None else time.monotonic() + seconds)
    try:
        yield
    finally:
        _due.reset(token)


def watch(request: Any) -> None:
    """Ask the HTTP library to tell of the connection that it opens for `request`."""
    request.extensions["trace"] = _told


def _told(event: str, info: Mapping[str, Any]) -> None:
    if event.endswith(_OPENED):
        _teach(info["return_value"])
    elif event.endswith(_SENDING) and info["request"].method != _TO_A_PROXY:
        # Connected: what else there is to tell would only take time.
        info["request"].extensions.pop("trace", None)


def _teach(connection: Any) -> None:
    read, write = connection.read, connection.write

    def read_in_time(max_bytes: int, timeout: float | None = None) -> bytes:
        found: bytes = read(max_bytes, _left(timeout))
        return found

    def write_in_time(buffer: bytes, timeout: float | None = None) -> None:
        # In pieces: a server that takes them slowly gets the limit anew for each.
        for at in range(0, len(buffer), _PIECE):
            write(buffer[at : at + _PIECE], _left(timeout))

    connection.read, connection.write = read_in_time, write_in_time


def _left(timeout: float | None) -> float | None:
    """Seconds for the next piece, within the HTTP library's own `timeout`."""
    due = _due.get()
    if due is None:
        return timeout
    left = due - time.monotonic()
    if left <= 0:
        msg = "the answer is overdue"
        raise TimeoutError(msg)
    return left if timeout is None else min(timeout, left)
