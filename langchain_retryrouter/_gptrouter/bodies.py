"""The bodies of open answers: read to the end, or event by event.

An iterator of events is over with the gateway's `end`, and raises if the body is over
before it: a clean end of the body proves nothing. Closing one gives its connection back
if its stream is over, and otherwise closes the connection at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from http.client import HTTPException
from typing import TYPE_CHECKING, Self

from langchain_retryrouter._gptrouter.borders import from_aiohttp, from_urllib3
from langchain_retryrouter._gptrouter.errors import GPT_ROUTER_ERRORS
from langchain_retryrouter._gptrouter.protocol import (
    EndReader,
    GatewayEvent,
    read_event,
)
from langchain_retryrouter._http.sse import EventTooLargeError, SSEParser
from langchain_retryrouter.errors import RetryRouterError, redact
from langchain_retryrouter.failures import FailureKind

if TYPE_CHECKING:
    from langchain_retryrouter._aiohttp import AnyAnswer
    from langchain_retryrouter._gptrouter.answers import Answer, Limit

_MAX_BODY_BYTES = 64 * 1024 * 1024
_READ_BYTES = 65_536
# Behind the last event comes a closing frame; it is taken off the wire, so that the
# connection can serve the next call, unless it lets itself be waited for.
_CLOSING_FRAME_SECONDS = 0.25


class _EventQueue:
    """What both twins think: bytes in, events out, and was that the end?"""

    def __init__(self) -> None:
        self._parser = SSEParser()
        self._end = EndReader()
        self._frames: Iterator[bytes] = iter(())
        self._is_whole = False
        self.is_over = False

    def feed(self, chunk: bytes) -> None:
        """Take in bytes, when all before are taken; none at all: the body is over."""
        if not chunk or self.is_over:
            self.is_over = True
            return
        self._frames = self._read(chunk)

    def take(self) -> GatewayEvent | None:
        """The next event; None if there is none yet."""
        try:
            frame = next(self._frames, None)
            if frame is None:
                return None
            event = read_event(frame)
        except RetryRouterError:
            self.is_over = True
            raise
        if event.event == "update":
            self._end.see(event)
        elif event.event == "end":
            self.stop(is_whole=self._end.is_finished)
        return event

    def stop(self, *, is_whole: bool = True) -> None:
        """Nothing more will be taken."""
        self._frames = iter(())
        self.is_over = True
        self._is_whole = is_whole

    def _read(self, chunk: bytes) -> Iterator[bytes]:
        try:
            for event in self._parser.feed(chunk):
                # The one named event, `end`, is the closing frame: it comes after
                # errors too, and its data is not JSON.
                if event.kind == b"message":
                    yield event.data
        except EventTooLargeError as error:
            raise GPT_ROUTER_ERRORS[FailureKind.MALFORMED](str(error)) from error

    def check_whole(self) -> None:
        """Raise if what was the last event was not the end."""
        if not self._is_whole:
            msg = "the stream ended before the answer was complete"
            raise GPT_ROUTER_ERRORS[FailureKind.INTERRUPTED](msg)


class SyncEvents:
    """The events of one open stream."""

    def __init__(self, response: Answer, limit: Limit, masked: redact) -> None:
        """Over an answer whose body has not been read, and is read within `limit`."""
        self._response = response
        self._limit = limit
        self._masked = masked
        self._queue = _EventQueue()

    def __iter__(self) -> Self:
        """Itself."""
        return self

    def __next__(self) -> GatewayEvent:
        """The next event, `end` included."""
        queue = self._queue
        with self._masked:
            while (event := queue.take()) is None:
                if queue.is_over:
                    queue.check_whole()
                    raise StopIteration
                queue.feed(_read_some(self._response))
        return event

    def abort(self) -> None:
        """Unblock, from another thread, a read under way; it then raises."""
        with contextlib.suppress(OSError):
            self._response.shutdown()

    def close(self) -> None:
        """Give the connection back if its stream is over, or else close it."""
        try:
            if self._queue.is_over:
                self._limit.due = time.monotonic() + _CLOSING_FRAME_SECONDS
                with contextlib.suppress(RetryRouterError):
                    read_all(self._response)
        finally:
            self._response.close()


class AsyncEvents:
    """Async twin of `SyncEvents`; ends early once `stop_signal` is set."""

    def __init__(
        self,
        response: AnyAnswer,
        masked: redact,
        stop_signal: asyncio.Event | None = None,
    ) -> None:
        """Over an answer whose body has not been read."""
        self._response = response
        self._masked = masked
        self._stop_signal = stop_signal
        self._queue = _EventQueue()

    def __aiter__(self) -> Self:
        """Itself."""
        return self

    async def __anext__(self) -> GatewayEvent:
        """The next event, `end` included."""
        queue = self._queue
        if self._stop_signal is not None and self._stop_signal.is_set():
            queue.stop()
        with self._masked:
            while (event := queue.take()) is None:
                if queue.is_over:
                    queue.check_whole()
                    raise StopAsyncIteration
                queue.feed(await _aread_some(self._response))
        return event

    async def aclose(self) -> None:
        """Give the connection back if its stream is over, or else close it."""
        try:
            if self._queue.is_over:
                with contextlib.suppress(RetryRouterError, TimeoutError):
                    async with asyncio.timeout(_CLOSING_FRAME_SECONDS):
                        await aread_all(self._response)
        finally:
            self._response.close()


def read_all(response: Answer) -> bytes:
    """The whole body."""
    body = bytearray()
    while piece := _read_some(response):
        body += piece
        _check_size(body)
    return bytes(body)


async def aread_all(response: AnyAnswer) -> bytes:
    """Async twin of `read_all`; its time is limited by the caller."""
    body = bytearray()
    while piece := await _aread_some(response):
        body += piece
        _check_size(body)
    return bytes(body)


def _read_some(response: Answer) -> bytes:
    from urllib3.exceptions import HTTPError  # noqa: PLC0415 - imported long since

    try:
        return response.read1(_READ_BYTES)
    except (HTTPError, HTTPException, OSError, ValueError) as error:
        raise from_urllib3(error) from error


async def _aread_some(response: AnyAnswer) -> bytes:
    from aiohttp import ClientError  # noqa: PLC0415 - imported long since

    try:
        return await response.content.readany()
    except (ClientError, OSError) as error:
        raise from_aiohttp(error) from error


def _check_size(body: bytearray) -> None:
    if len(body) > _MAX_BODY_BYTES:
        msg = f"the gateway's answer is larger than {_MAX_BODY_BYTES} bytes"
        raise GPT_ROUTER_ERRORS[FailureKind.MALFORMED](msg)
