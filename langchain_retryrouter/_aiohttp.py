"""aiohttp, as both rooms that send with it need it: answers that hang up, lean posts.

aiohttp closes a connection politely: over TLS it says goodbye and waits for the other
side, which may be a server that has stalled, or a loop that is about to end. aiohttp
closes answers itself where a call is cancelled before its headers have come, so it is
given `PromptResponse` to make them with.

What it does for a request before the first byte is written (merging headers, cookies,
redirects, tracing, a task that writes the body) costs as much as the exchange itself.
`LeanPosts` has it connect, and parse, and does the rest by itself.

It imports aiohttp, so it is imported by the first async call.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from langchain_retryrouter._http.heads import is_interim

_Certificates: TypeAlias = Any

# Whose requests are kept; a gateway has a handful.
_MOST_ADDRESSES: Final = 64


class PromptResponse(aiohttp.ClientResponse):
    """An answer whose `close` does not wait."""

    def close(self) -> None:
        """Hang up, unless the answer was read to its end and its connection is free."""
        if self.connection is not None:
            _hang_up(self.connection)
        super().close()


class LeanAnswer:
    """An answer up to its body: of aiohttp's `ClientResponse` what we use of one.

    Attributes:
        status: The HTTP status.
        reason: What it is called.
        headers: By name, of any case.
        raw_headers: As they came.
        content: The body.
        connection: What carries it, until the body is over or closed.
    """

    def __init__(
        self,
        message: RawResponseMessage,
        content: aiohttp.StreamReader,
        connection: Connection,
    ) -> None:
        """Over a body that gives its connection back at its end."""
        self.status = message.code
        self.reason = message.reason
        self.headers = message.headers
        self.raw_headers = message.raw_headers
        self.content = content
        self.connection = connection
        content.on_eof(connection.release)

    def close(self) -> None:
        """Hang up, unless the body was read to its end and its connection is free."""
        _hang_up(self.connection)


AnyAnswer: TypeAlias = aiohttp.ClientResponse | LeanAnswer


class LeanPosts:
    """POST requests over the connections of a session, each in one write.

    No cookies, redirects, tracing, or proxies: a session that has them is asked itself.

    Args:
        session: Whose connections are used.
        **reading: How its answers are read: `auto_decompress`, and the limits of lines.
    """

    def __init__(self, session: aiohttp.ClientSession, **reading: Any) -> None:
        """Nothing is opened."""
        self._session = session
        self._reading: Mapping[str, Any] = {"read_until_eof": True, **reading}
        self._requests: dict[tuple[URL, _Certificates], aiohttp.ClientRequest] = {}

    async def post(
        self,
        url: URL,
        message: bytes,
        limits: aiohttp.ClientTimeout,
        ssl: _Certificates,
    ) -> LeanAnswer:
        """The answer to a request, up to its body.

        Args:
            url: Where it goes.
            message: All of the request, its head included.
            limits: Its `connect`, `sock_connect` and `sock_read`; the rest is the
                caller's.
            ssl: What is made of certificates, in aiohttp's terms.

        Raises:
            aiohttp.ClientError: What the session would raise.
            TimeoutError: Likewise.
        """
        asked = self._asked(url, ssl)
        connector = self._session.connector
        if connector is None:
            msg = "Session is closed"
            raise aiohttp.ClientConnectionError(msg)
        try:
            connection = await connector.connect(asked, traces=[], timeout=limits)
        except TimeoutError as error:
            msg = f"Connection timeout to host {url}"
            raise aiohttp.ConnectionTimeoutError(msg) from error
        try:
            protocol = self._write(connection, message, limits.sock_read)
            head, body = await protocol.read()
            while is_interim(head.code):
                head, body = await protocol.read()
        except HttpProcessingError as error:
            _hang_up(connection)
            raise aiohttp.ClientResponseError(
                asked.request_info, (), status=error.code, message=error.message
            ) from error
        except BaseException:
            _hang_up(connection)
            raise
        return LeanAnswer(head, body, connection)

    def _write(
        self, connection: Connection, message: bytes, read_timeout: float | None
    ) -> ResponseHandler:
        protocol, transport = connection.protocol, connection.transport
        if protocol is None or transport is None or transport.is_closing():
            msg = "Cannot write to closing transport"
            raise aiohttp.ClientConnectionResetError(msg)
        protocol.set_response_params(read_timeout=read_timeout, **self._reading)
        transport.write(message)
        protocol.start_timeout()
        return protocol

    def _asked(self, url: URL, ssl: _Certificates) -> aiohttp.ClientRequest:
        """What the connector is told of a request: by whom to connect, and how."""
        asked = self._requests.get((url, ssl))
        if asked is None:
            if len(self._requests) >= _MOST_ADDRESSES:
                self._requests.clear()
            asked = self._requests[url, ssl] = aiohttp.ClientRequest(
                "POST",
                url,
                loop=asyncio.get_running_loop(),
                session=self._session,
                ssl=ssl,
            )
        return asked


def _hang_up(connection: Connection) -> None:
    if connection.transport is not None:
        connection.transport.abort()
    connection.close()


def _has(function: Any, *names: str) -> bool:
    return set(names) <= inspect.signature(function).parameters.keys()


def _is_as_known() -> bool:
    """Whether aiohttp has what `LeanPosts` uses, some of which it does not document."""
    return (
        _has(aiohttp.BaseConnector.connect, "req", "traces", "timeout")
        and _has(aiohttp.ClientRequest.__init__, "loop", "session", "ssl")
        and _has(ResponseHandler.set_response_params, "read_timeout", "read_until_eof")
        and hasattr(ResponseHandler, "start_timeout")
        and hasattr(aiohttp.StreamReader, "on_eof")
        and {"code", "reason", "headers", "raw_headers"} <= {*dir(RawResponseMessage)}
    )


CAN_POST_LEANLY: Final = _is_as_known()
