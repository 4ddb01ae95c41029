"""The SDK's streams as `_drive` follows them: typed errors, connections let go.

`close` lets go at once while an answer is under way. Behind a whole one it first reads
what is left of the body, a few bytes that are mostly there already: the SDK stops at
`[DONE]`, and a connection whose response was not read to its end cannot be used again.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Self, TypeAlias

from langchain_retryrouter._openai import protocol as wire
from langchain_retryrouter._openai.errors import from_problem

# How long, and for how many reads, the end of a body is waited for.
_END_PATIENCE = 0.1
_END_READS = 16

# Within one of these, what goes wrong is raised as one of `errors.openai`.
_Errors: TypeAlias = Callable[[], contextlib.AbstractContextManager[None]]


class SDKStream:
    """One attempt's sync stream.

    Attributes:
        reader: What tells token and end; it has seen what was handed over.
    """

    def __init__(self, stream: Any, reader: wire.StreamReader, errors: _Errors) -> None:
        self.reader = reader
        self._stream = stream
        self._errors = errors
        _read_to_the_end(stream, reader, "SyncByteStream")

    def __iter__(self) -> Iterator[Any]:
        """The chunks; what goes wrong is one of `errors.openai`."""
        is_empty = True
        with self._errors():
            for chunk in self._stream:
                is_empty = False
                yield _readable(chunk)
            if is_empty:
                raise from_problem(wire.malformed("a stream without an event"))

    def close(self) -> None:
        """Let go of the connection at once."""
        close = getattr(self._stream, "close", None)
        if close is not None:
            close()

    def abort(self) -> None:
        """Unblock, from another thread, a read under way; it then raises."""
        connection = _socket_under(self._stream)
        if connection is None:
            self.close()
            return
        with contextlib.suppress(OSError):  # It may be closed by now.
            # Not the method of an `SSLSocket`: it drops the TLS state that the other
            # thread is reading with.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)


class AsyncSDKStream:
    """Async twin of `SDKStream`."""

    def __init__(self, stream: Any, reader: wire.StreamReader, errors: _Errors) -> None:
        self.reader = reader
        self._stream = stream
        self._errors = errors
        self._chunks = aiter(stream)
        self._is_empty = True
        _read_to_the_end(stream, reader, "AsyncByteStream")

    def __aiter__(self) -> Self:
        """The chunks; what goes wrong is one of `errors.openai`."""
        return self

    async def __anext__(self) -> Any:
        """The next chunk."""
        with self._errors():
            try:
                chunk = await anext(self._chunks)
            except StopAsyncIteration:
                if self._is_empty:
                    problem = wire.malformed("a stream without an event")
                    raise from_problem(problem) from None
                raise
            self._is_empty = False
            return _readable(chunk)

    async def aclose(self) -> None:
        """Let go of the connection at once."""
        close = getattr(self._stream, "close", None) or getattr(
            self._stream, "aclose", None
        )
        closing = None if close is None else close()
        if inspect.isawaitable(closing):
            await closing


def _readable(chunk: Any) -> Any:
    if not wire.is_chunk(chunk):
        raise from_problem(wire.malformed(f"an odd event: {wire.excerpt(chunk)}"))
    return chunk


def _socket_under(stream: Any) -> Any:
    extensions = getattr(getattr(stream, "response", None), "extensions", {})
    network = extensions.get("network_stream")
    return None if network is None else network.get_extra_info("socket")


# The end of a body.


def _read_to_the_end(stream: Any, reader: wire.StreamReader, interface: str) -> None:
    """Let closing `stream` read the end of its body first, when the answer is whole."""
    response: Any = getattr(stream, "response", None)
    library = type(response).__module__.partition(".")[0]
    if hasattr(sys.modules.get(library), interface):
        response.stream = _body_class(library, interface)(response, reader)


@functools.cache
def _body_class(library: str, interface: str) -> Any:
    """A body of ours that is one of the HTTP library's too, which insists on it."""
    own = _Body if interface == "SyncByteStream" else _ABody
    base = getattr(sys.modules[library], interface)
    return type("ReusableBody", (own, base), {})


class _Body:
    def __init__(self, response: Any, reader: wire.StreamReader) -> None:
        self._body = response.stream
        self._timeouts = response.request.extensions.get("timeout", {})
        self._reader = reader
        self._is_read = False

    def __iter__(self) -> Iterator[bytes]:
        # Each iteration goes on where the one before it stopped.
        yield from self._body
        self._is_read = True

    def close(self) -> None:
        try:
            if self._reader.is_whole and not self._is_read:
                self._timeouts["read"] = _END_PATIENCE
                with contextlib.suppress(Exception):
                    for _ in itertools.islice(self, _END_READS):
                        pass
        finally:
            self._body.close()


class _ABody:
    def __init__(self, response: Any, reader: wire.StreamReader) -> None:
        self._body = response.stream
        self._timeouts = response.request.extensions.get("timeout", {})
        self._reader = reader
        self._is_read = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._body:
            yield part
        self._is_read = True

    async def aclose(self) -> None:
        try:
            if self._reader.is_whole and not self._is_read:
                self._timeouts["read"] = _END_PATIENCE
                with contextlib.suppress(Exception):
                    reads = 0
                    async for _ in self:
                        reads += 1
                        if reads >= _END_READS:
                            break
        finally:
            await self._body.aclose()
