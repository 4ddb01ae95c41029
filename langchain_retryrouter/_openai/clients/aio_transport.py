"""aiohttp under the SDK's async client, where the HTTP library's own engine was.

That one looks at each of its connections for each request, so that 500 calls at once
take longer than 500 calls one after another, and parses in Python what aiohttp parses
in C. All above the bytes stays the HTTP library's: redirects, decoding, which proxy
serves which address. What goes wrong is one of its errors, since that is what the SDK,
and we, tell by.

It imports aiohttp, so it is imported by the first async call.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import aiohttp
import openai
from multidict import CIMultiDict
from yarl import URL

from langchain_retryrouter._aiohttp import (
    CAN_POST_LEANLY,
    AnyAnswer,
    LeanPosts,
    PromptResponse,
)
from langchain_retryrouter._openai.clients.bounded_bodies import (
    CONTENT_ENCODING,
    abound,
    aread_bounded,
)
from langchain_retryrouter._openai.clients.repeats import (
    AnswerHead,
    Repeat,
    WholeAnswer,
)
from langchain_retryrouter._openai.clients.sharing import STRAIGHT, http_library

_Seconds: TypeAlias = float | None

_LOG: Final = logging.getLogger(http_library().__name__)

# What is larger is written in pieces, each of which has the request's time for a write.
# aiohttp buffers less than that without waiting for the server to take it.
_PIECE: Final = 65_536
# As much as the HTTP library's own engine takes.
_MOST_HEADER_BYTES: Final = 100 * 1024
_MOST_HEADERS: Final = 1024
_READING: Final[Mapping[str, Any]] = {
    "auto_decompress": False,
    "max_line_size": _MOST_HEADER_BYTES,
    "max_field_size": _MOST_HEADER_BYTES,
    "max_headers": _MOST_HEADERS,
}
_ITS_OWN_HEADERS: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_NO_HEADERS: Final[Any] = MappingProxyType({})
_OUR_HOOKS: Final = {"request": [], "response": [abound]}
_SCHEMES: Final = ("http", "https")
_PROXY_AUTHORIZATION: Final = "Proxy-Authorization"


@functools.cache
def client_class() -> Any:
    """The SDK's own class of an async HTTP client, with aiohttp under it."""

    class AioClient(openai.DefaultAsyncHttpxClient):
        async def ask(self, repeat: Repeat) -> WholeAnswer | None:
            """The answer to `repeat`; None for what only `send` sends as it ought."""
            if (
                self.is_closed
                or repeat.url.userinfo
                or self.event_hooks != _OUR_HOOKS
                or _LOG.isEnabledFor(logging.INFO)
            ):
                return None
            engine = self._transport_for_url(repeat.url)
            return await engine.ask(repeat) if isinstance(engine, _Transport) else None

        async def send(
            self, request: Any, *, stream: bool = False, **options: Any
        ) -> Any:
            goes_straight = request.extensions.get(STRAIGHT) and not self.is_closed
            if goes_straight and not _LOG.isEnabledFor(logging.INFO):
                engine = self._transport_for_url(request.url)
                return await _straight(engine, request, self.event_hooks, stream=stream)
            return await super().send(request, stream=stream, **options)

        # The two places where the HTTP library makes its engines, by keyword arguments.
        def _init_transport(self, **settings: Any) -> Any:  # type: ignore[override]
            return _transport_class()(settings["verify"], settings["limits"])

        def _init_proxy_transport(  # type: ignore[override]
            self, proxy: Any, **settings: Any
        ) -> Any:
            if proxy.url.scheme != "http":
                # SOCKS, which aiohttp does not speak, and TLS within TLS.
                return super()._init_proxy_transport(proxy, **settings)
            return _transport_class()(settings["verify"], settings["limits"], proxy)

    return AioClient


async def _straight(
    engine: Any, request: Any, hooks: Mapping[str, list[Any]], *, stream: bool
) -> Any:
    """What `send` does, but for what these requests and our clients never have."""
    for hook in hooks["request"]:
        await hook(request)
    answer = await engine.handle_async_request(request)
    answer.request = request
    try:
        for hook in hooks["response"]:
            await hook(answer)
        if not stream:
            await answer.aread()
    except BaseException:
        await answer.aclose()
        raise
    return answer


@functools.cache
def _transport_class() -> Any:
    base = http_library().AsyncBaseTransport
    return type("AioTransport", (_Transport, base), {})


class _Transport:
    """Sends the requests of one client, by one aiohttp session.

    Args:
        verify: The SSL context.
        limits: The HTTP library's `Limits`.
        proxy: Its `Proxy`, an `http://` one.
    """

    def __init__(self, verify: Any, limits: Any, proxy: Any = None) -> None:
        """Nothing is opened before the first request, which has an event loop."""
        self._verify = verify
        self._limits = limits
        self._proxy = None if proxy is None else URL(str(proxy.url))
        self._proxy_headers = _proxy_headers(proxy)
        self._session: aiohttp.ClientSession | None = None
        self._posts: LeanPosts | None = None

    async def ask(self, repeat: Repeat) -> WholeAnswer | None:
        """The answer to `repeat`; None for one that is not written in one piece."""
        is_short = len(repeat.body) <= _PIECE and self._proxy is None
        message = repeat.message() if is_short and CAN_POST_LEANLY else None
        if message is None:
            return None
        if self._posts is None:
            self._posts = LeanPosts(self._opened(), **_READING)
        asked, waits = repeat.for_library, repeat.timeouts
        with _named_errors(asked):
            url, limits = _url_of(repeat.url), _limits(waits)
            answer = await self._posts.post(url, message, limits, ssl=True)
        try:
            body = _Body(answer, asked, waits)
            packing = answer.headers.get(CONTENT_ENCODING, "")
            content = await aread_bounded(body.next_part, packing)
        finally:
            answer.close()
        return WholeAnswer(repeat, _head_of(answer), content)

    async def handle_async_request(self, request: Any) -> Any:
        """The answer to `request`, its body still to be read."""
        timeouts = request.extensions.get("timeout", {})
        body = await request.aread()
        with _named_errors(lambda: request):
            answer = await self._send(self._opened(), request, body, timeouts)
        return http_library().Response(
            **_head_of(answer).for_library(),
            stream=_body_class()(answer, lambda: request, timeouts),
        )

    async def _send(
        self,
        session: aiohttp.ClientSession,
        request: Any,
        body: bytes,
        timeouts: Mapping[str, _Seconds],
    ) -> aiohttp.ClientResponse:
        url = _url_of(request.url)
        headers = CIMultiDict(
            (name.decode("ascii"), value.decode("latin-1"))
            for name, value in request.headers.raw
        )
        if self._proxy is not None and url.scheme == "http":
            headers.extend(self._proxy_headers)
        async with asyncio.timeout(None) as patience:
            return await session.request(
                request.method,
                url,
                headers=headers,
                data=_in_pieces(body, patience, timeouts.get("write")) or None,
                timeout=_limits(timeouts),
                proxy=self._proxy,
                proxy_headers=self._proxy_headers if self._proxy else None,
                allow_redirects=False,
            )

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = self._open_session()
        return self._session

    def _open_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            response_class=PromptResponse,
            # It keeps idle connections for 15 seconds, in place of 5: a handshake for
            # each burst of calls would cost more than the calls.
            connector=_Connector(
                ssl=self._verify, limit=self._limits.max_connections or 0
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            # The HTTP library says which proxy, and all that is sent.
            trust_env=False,
            skip_auto_headers=_ITS_OWN_HEADERS,
            timeout=aiohttp.ClientTimeout(total=None),
            **_READING,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()


class _Connector(aiohttp.TCPConnector):
    """Connects within `sock_connect` as a whole, the look-up of the name included."""

    async def _create_connection(self, req: Any, traces: Any, limits: Any) -> Any:
        async with asyncio.timeout(limits.sock_connect):
            return await super()._create_connection(req, traces, limits)


# What is sent.


def _url_of(url: Any) -> URL:
    """Where a request goes, without a name and a password: those became a header."""
    if url.scheme not in _SCHEMES:
        said = (
            f"the unsupported protocol {url.scheme!r}" if url.scheme else "no protocol"
        )
        msg = f"the address has {said}: it must begin with http:// or https://"
        raise http_library().UnsupportedProtocol(msg)
    return _url(url.raw_scheme, url.raw_host, url.port, url.raw_path)


@functools.lru_cache(maxsize=64)
def _url(scheme: bytes, host: bytes, port: int | None, target: bytes) -> URL:
    name = f"[{host.decode()}]" if b":" in host else host.decode()
    authority = name if port is None else f"{name}:{port}"
    address = f"{scheme.decode()}://{authority}{target.decode()}"
    return URL(address, encoded=True)


def _limits(timeouts: Mapping[str, _Seconds]) -> aiohttp.ClientTimeout:
    connect, read, pool = map(timeouts.get, ("connect", "read", "pool"))
    return _client_timeout(connect, read, pool)


@functools.lru_cache(maxsize=64)
def _client_timeout(
    connect: _Seconds, read: _Seconds, pool: _Seconds
) -> aiohttp.ClientTimeout:
    """The limits as aiohttp has them: its `connect` is the wait for a place as well."""
    waiting = None if connect is None or pool is None else connect + pool
    return aiohttp.ClientTimeout(
        total=None, connect=waiting, sock_connect=connect, sock_read=read
    )


def _in_pieces(body: bytes, patience: asyncio.Timeout, seconds: _Seconds) -> Any:
    return body if len(body) <= _PIECE else _pieces(body, patience, seconds)


async def _pieces(
    body: bytes, patience: asyncio.Timeout, seconds: _Seconds
) -> AsyncIterator[bytes]:
    for at in range(0, len(body), _PIECE):
        _be_patient(patience, seconds)
        yield body[at : at + _PIECE]
    _be_patient(patience, None)


def _be_patient(patience: asyncio.Timeout, seconds: _Seconds) -> None:
    due = None if seconds is None else asyncio.get_running_loop().time() + seconds
    with contextlib.suppress(RuntimeError):  # Over: the answer came before the end.
        patience.reschedule(due)


def _proxy_headers(proxy: Any) -> dict[str, str]:
    if proxy is None or proxy.auth is None:
        return {}
    credentials = base64.b64encode(":".join(proxy.auth).encode()).decode()
    return {_PROXY_AUTHORIZATION: f"Basic {credentials}"}


# What comes back.


def _head_of(answer: AnyAnswer) -> AnswerHead:
    return AnswerHead(answer.status, answer.reason, answer.raw_headers)


@functools.cache
def _body_class() -> Any:
    base = http_library().AsyncByteStream
    return type("AioBody", (_Body, base), {})


class _Body:
    """The body of an answer.

    Each wait for more of it is limited by what `timeouts` says at that time. aiohttp's
    own limit would go on while nobody waits.
    """

    def __init__(
        self,
        answer: AnyAnswer,
        asked: Callable[[], Any],
        timeouts: Mapping[str, _Seconds],
    ) -> None:
        self._answer = answer
        self._asked = asked
        self._timeouts = timeouts
        connection = answer.connection
        if connection is not None and connection.protocol is not None:
            connection.protocol.read_timeout = None
            connection.protocol.start_timeout()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while part := await self.next_part():
                yield part
        except BaseException:
            # Who cancels a read does not always close what was read from.
            self._answer.close()
            raise

    async def next_part(self) -> bytes:
        """What has come of it, as soon as that is anything; nothing at its end."""
        content = self._answer.content
        # aiohttp's other methods put an error before what came ahead of it.
        part = content._read_nowait(-1)  # noqa: SLF001 - see above
        if part or content.at_eof():
            return part
        with _named_errors(self._asked):
            async with asyncio.timeout(self._timeouts.get("read")):
                return await content.readany()

    async def aclose(self) -> None:
        """Let go of the connection at once; one whose answer is over is kept."""
        self._answer.close()


# What goes wrong.

# Read from top to bottom: what stands above is a special case of what stands below.
_ERRORS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (aiohttp.ConnectionTimeoutError, "ConnectTimeout"),
    (aiohttp.ClientConnectorError, "ConnectError"),
    (aiohttp.ClientHttpProxyError, "ProxyError"),
    (aiohttp.ServerDisconnectedError, "RemoteProtocolError"),
    (aiohttp.ClientPayloadError, "RemoteProtocolError"),
    (aiohttp.ClientResponseError, "RemoteProtocolError"),
    (aiohttp.InvalidURL, "UnsupportedProtocol"),
    (TimeoutError, "ReadTimeout"),
    (aiohttp.ClientError, "ReadError"),
    (OSError, "ReadError"),
    # A header that cannot be written.
    (ValueError, "LocalProtocolError"),
)
_EXPECTED: Final = tuple(cls for cls, _ in _ERRORS)


@contextlib.contextmanager
def _named_errors(request: Callable[[], Any]) -> Iterator[None]:
    """Within it, what goes wrong is raised as the HTTP library would."""
    try:
        yield
    except _EXPECTED as error:
        if isinstance(error, aiohttp.ClientResponseError):
            # It holds the request's headers, the key among them, and shows them.
            bare = error.request_info._replace(headers=_NO_HEADERS)
            error.request_info, error.args = bare, (bare, error.history)
        name = next(name for cls, name in _ERRORS if isinstance(error, cls))
        raise getattr(http_library(), name)(str(error), request=request()) from error
