"""HTTP to a gateway: urllib3 for sync calls, aiohttp for async calls.

`post` and `apost` send one request and give the library's own response, its body not
yet read. Connections are shared by all models of one address: in sync code by the
threads of a process, in async code by the tasks of an event loop. Redirects are never
followed, since they would send the API key to another host. Exceptions are those of the
libraries, which `_http.read_transport_error` reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import io
import os
import socket
import ssl
import sys
import time
import urllib.request
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.connection import HTTPConnection

from langchain_retryrouter._http import TooLargeError
from langchain_retryrouter._retry.timeouts import on_abort

if TYPE_CHECKING:
    import aiohttp

_SCHEMES: Final = ("http", "https")
_MAX_BODY_BYTES: Final = 64 * 1024 * 1024
READ_BYTES: Final = 65_536
# Of one server: sync connections that are kept, and async ones that are open; further
# async calls wait for a free one. urllib3 warns of each connection that it cannot keep.
_CONNECTIONS: Final = 1000
# The network may forget a connection that is silent, and say so to neither end. Probes
# keep it known while an answer is awaited, and find out before it is used again.
_KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (
            ("TCP_KEEPIDLE", 60),
            ("TCP_KEEPINTVL", 10),
            ("TCP_KEEPCNT", 3),
        )
        if hasattr(socket, name)
    ),
)
# How long the rest of a body may take that is only read to reuse its connection.
_DRAIN_SECONDS: Final = 0.25
_FIRST_FINAL: Final = 200  # Of the statuses; lower ones are interim.
_LONGEST_HEADER: Final = 65_536  # Bytes.
# Pythons whose TLS connections stay open if the server does not agree to close them
# (python/cpython#118960); aiohttp closes them if asked, and warns on other Pythons.
_LEAKS_TLS: Final = sys.version_info < (3, 12, 8) or sys.version_info[:3] == (3, 13, 0)
# aiohttp warns about larger bodies that are given as bytes.
_LARGE_BODY: Final = 1024 * 1024


class Origin(NamedTuple):
    """A server, and the URL of a proxy for it; equal origins share connections."""

    scheme: str
    netloc: str
    proxy: str | None


class Request(NamedTuple):
    """A POST request; `connect` and `read` are seconds, the latter without a byte.

    Of those, the headers of a sync response may take `read_first`. `read_headers` is
    called with the headers of the response.
    """

    origin: Origin
    url: str
    headers: Mapping[str, str]
    body: bytes
    connect: float | None
    read: float | None
    read_first: float | None
    read_headers: Callable[[Mapping[str, str]], object] | None = None


def find_origin(url: str, proxy: str | None) -> Origin:
    """The origin of `url`, reached by `proxy` or else by the environment's proxy.

    The environment is read as the standard library reads it: `http_proxy`,
    `https_proxy`, `all_proxy`, and `no_proxy` for the exceptions.
    """
    # It may have a password, or be the key.
    given = repr(url) if "://" in url and "@" not in url else "the one that is given"
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError as error:
        why = "" if "@" in url else f": {error}"
        msg = f"the gateway's address cannot be {given}{why}"
        raise ValueError(msg) from None
    is_plain = not (parts.query or parts.fragment) and url.split() == [url]
    if parts.scheme not in _SCHEMES or not parts.hostname or not is_plain:
        msg = (
            "the gateway's address must be http:// or https:// with a host, and maybe a"
            f" port and a path, not {given}"
        )
        raise ValueError(msg)
    if not proxy:
        proxies = urllib.request.getproxies()
        proxy = proxies.get(parts.scheme) or proxies.get("all")
        if proxy and urllib.request.proxy_bypass(f"{parts.hostname}:{port}"):
            proxy = None
    if proxy:
        # The message names only the scheme: a proxy's URL may hold a password.
        by = urlsplit(proxy)
        if by.scheme not in _SCHEMES or not by.hostname:
            msg = (
                "the proxy must be http:// or https:// with a host, not"
                f" {by.scheme or 'something without a scheme'!r}; a proxy that the"
                " environment names is switched off by `no_proxy`"
            )
            raise ValueError(msg)
    return Origin(parts.scheme, parts.netloc.rpartition("@")[2], proxy or None)


def login_in(url: str) -> str | None:
    """The user and the password in `url`, with a colon between; None without."""
    parts = urlsplit(url)
    if parts.username is None:
        return None
    return f"{unquote(parts.username)}:{unquote(parts.password or '')}"


@functools.cache
def ssl_context() -> ssl.SSLContext:
    """The one SSL context: the system's certificates, host names checked.

    Building one takes 13 to 32 ms, so it is not built for each model or call.
    """
    return ssl.create_default_context()


# --- sync ---------------------------------------------------------------------------

_NO_RETRIES: Final = urllib3.Retry(total=False, redirect=False)
# By process as well, since two processes on one socket read each other's responses.
_pools: dict[tuple[int, Origin], urllib3.HTTPConnectionPool | urllib3.ProxyManager] = {}


def post(request: Request) -> urllib3.BaseHTTPResponse:
    """Send a request; the response, its body unread, has to be closed."""
    origin = request.origin
    key = (os.getpid(), origin)
    pool = _pools.get(key)
    if pool is None:
        pool = _pools.setdefault(key, _new_pool(origin))
    root = "" if origin.proxy else f"{origin.scheme}://{origin.netloc}"
    response = pool.urlopen(
        "POST",
        request.url[len(root) :],
        headers=request.headers,
        body=request.body,
        timeout=urllib3.Timeout(connect=request.connect, read=request.read_first),
        retries=_NO_RETRIES,
        redirect=False,
        preload_content=False,
    )

    def interrupt() -> None:
        """Interrupt, from another thread, a read under way; it then raises."""
        # It may have been read to its end, or be closed.
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            response.shutdown()

    on_abort(interrupt)
    if response.status < _FIRST_FINAL and response.connection:
        # http.client takes a 103 for the answer: the next request on the connection
        # would be given the answer to this one.
        response.connection.close()
    if request.read != request.read_first and (opened := _socket_of(response)):
        opened.settimeout(request.read)
    if request.read_headers is not None:
        request.read_headers(response.headers)
    return response


def _new_pool(origin: Origin) -> urllib3.HTTPConnectionPool | urllib3.ProxyManager:
    options = [*HTTPConnection.default_socket_options, *_KEEPALIVE]
    settings: dict[str, Any] = {"maxsize": _CONNECTIONS, "socket_options": options}
    if origin.scheme == "https":
        settings["ssl_context"] = ssl_context()
    if origin.proxy is None:
        root = f"{origin.scheme}://{origin.netloc}"
        return urllib3.connection_from_url(root, **settings)
    # aiohttp reads them from the URL; urllib3 does not.
    credentials = urllib3.make_headers(proxy_basic_auth=login_in(origin.proxy))
    return urllib3.ProxyManager(origin.proxy, proxy_headers=credentials, **settings)


def _socket_of(response: urllib3.BaseHTTPResponse) -> socket.socket | None:
    return getattr(response.connection, "sock", None)


def read_body(response: urllib3.BaseHTTPResponse) -> bytes:
    body = response.read(_MAX_BODY_BYTES + 1)
    _check_size(body)
    return body


def drain(response: urllib3.BaseHTTPResponse) -> None:
    """Read what soon comes of a body's rest, so that its connection can be reused."""
    opened = _socket_of(response)
    if opened is None:
        return  # The body has been read.
    with contextlib.suppress(urllib3.exceptions.HTTPError, OSError):
        opened.settimeout(_DRAIN_SECONDS)
        end = time.monotonic() + _DRAIN_SECONDS
        while response.read1(READ_BYTES) and time.monotonic() < end:
            pass


def close_connections(origin: Origin) -> None:
    """Close the process's idle connections to `origin`; calls under way finish."""
    # The last call that holds it closes it.
    _pools.pop((os.getpid(), origin), None)


# --- async --------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class _LoopSession:
    """The aiohttp session of one event loop, and how many calls use it."""

    session: aiohttp.ClientSession
    calls: int = 0
    is_retired: bool = False
    lifetime: AsyncGenerator[_LoopSession, None] | None = None


_sessions: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopSession]
_sessions = weakref.WeakKeyDictionary()


@functools.cache
def _aiohttp() -> Any:
    """The package, loaded with the first async call: it takes 0.1 s."""
    return importlib.import_module("aiohttp")


@contextlib.asynccontextmanager
async def apost(request: Request) -> AsyncIterator[aiohttp.ClientResponse]:
    """Async variant of `post`; the response is closed when the `async with` ends."""
    current = await _session_of_loop()
    current.calls += 1
    try:
        body, limits = request.body, _aiohttp().ClientTimeout
        response = await current.session.post(
            request.url,
            headers=request.headers,
            data=body if len(body) <= _LARGE_BODY else io.BytesIO(body),
            timeout=limits(sock_connect=request.connect, sock_read=request.read),
            allow_redirects=False,
            proxy=request.origin.proxy,
            ssl=ssl_context() if request.origin.scheme == "https" else True,
        )
        try:
            if request.read_headers is not None:
                request.read_headers(response.headers)
            yield response
        finally:
            connection = response.connection
            if connection is not None and connection.transport is not None:
                # The body has not been read to its end. Over TLS, `close` would wait
                # for the server's consent.
                connection.transport.abort()
            response.close()
    finally:
        current.calls -= 1
        if current.is_retired and not current.calls:
            await current.session.close()


async def _session_of_loop() -> _LoopSession:
    loop = asyncio.get_running_loop()
    current = _sessions.get(loop)
    if current is None:
        # A generator that has begun is closed by `loop.shutdown_asyncgens`, which
        # `asyncio.run` calls, and the session with it.
        lifetime = _open_session()
        current = _sessions[loop] = await anext(lifetime)
        current.lifetime = lifetime
        # Other threads have loops of their own, and may be here at the same time.
        for other in [reference() for reference in _sessions.keyrefs()]:
            if other is not None and other.is_closed():
                left = _sessions.pop(other, None)
                if left is not None:
                    await left.session.close()
    return current


async def _open_session() -> AsyncGenerator[_LoopSession, None]:
    aiohttp = _aiohttp()
    connector = aiohttp.TCPConnector(
        limit=_CONNECTIONS,
        enable_cleanup_closed=_LEAKS_TLS,
        socket_factory=_new_socket,
    )
    session = aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        # It would read `.netrc` as well, and send what it finds there.
        trust_env=False,
        timeout=aiohttp.ClientTimeout(total=None),
        # As in sync answers: some servers' policies are longer than 8 kB.
        max_line_size=_LONGEST_HEADER,
        max_field_size=_LONGEST_HEADER,
    )
    current = _LoopSession(session)
    try:
        yield current
    finally:
        # A session refers to its loop: kept here, it would keep the loop alive.
        loop = asyncio.get_running_loop()
        if _sessions.get(loop) is current:
            del _sessions[loop]
        await session.close()


def _new_socket(address: tuple[Any, ...]) -> socket.socket:
    new = socket.socket(*address[:3])
    for option in _KEEPALIVE:
        new.setsockopt(*option)
    return new


async def aread_body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        _check_size(body)
    return bytes(body)


async def adrain(response: aiohttp.ClientResponse) -> None:
    with contextlib.suppress(_aiohttp().ClientError, OSError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            while await response.content.readany():
                pass


async def aclose_connections() -> None:
    """Close the running event loop's connections; calls under way keep theirs."""
    current = _sessions.pop(asyncio.get_running_loop(), None)
    if current is not None:
        current.is_retired = True
        if not current.calls:
            await current.session.close()


def _check_size(body: bytes | bytearray) -> None:
    if len(body) > _MAX_BODY_BYTES:
        msg = f"the response is larger than {_MAX_BODY_BYTES} bytes"
        raise TooLargeError(msg)
