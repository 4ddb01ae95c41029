"""The connections of the process: urllib3 for sync, aiohttp for async.

Models with equal settings share one pool, and one SSL context for all. A sync pool
belongs to its process: after a fork the child opens connections of its own, since two
processes on one socket read each other's answers. An async session belongs to its event
loop, is held weakly by it, and is closed by it: when the loop shuts down its async
generators (`asyncio.run` does), the session goes too, so that a script with twenty
`asyncio.run` in a row neither fails nor leaks.

aiohttp and urllib3 are imported by the first call that needs them.
"""

from __future__ import annotations

import asyncio
import functools
import os
import ssl
import threading
import urllib.request
import weakref
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    import aiohttp
    import urllib3

    from langchain_retryrouter._aiohttp import LeanPosts


class Origin(NamedTuple):
    """Where a pool leads; equal origins share their connections.

    Attributes:
        scheme: `http` or `https`.
        host: Name or address, an IPv6 address without brackets.
        port: Its port.
        proxy: URL of the proxy in between, if any.
    """

    scheme: str
    host: str
    port: int
    proxy: str | None


PORTS = {"http": 80, "https": 443}
# Connections that are kept; more are opened on demand, and closed after use.
_KEPT = 100
# The async limit is one of sockets in use, not of calls: further calls queue for one.
_ASYNC_LIMIT = 1000

_lock = threading.Lock()
_pools: dict[tuple[int, Origin], urllib3.HTTPConnectionPool] = {}
_sessions: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopSession] = (
    weakref.WeakKeyDictionary()
)


def origin_of(url: str, proxy: str | None) -> Origin:
    """The origin of `url`, through `proxy` or else the one the environment names.

    The environment is read as the standard library reads it: `http_proxy`,
    `https_proxy`, `all_proxy`, and `no_proxy` for the exceptions.

    Raises:
        ValueError: If no request could be sent to `url`, or through the proxy.
    """
    scheme, host, port = check_address(url)
    proxy = proxy or _environment_proxy(scheme, host, port)
    if proxy is not None:
        _check_proxy(proxy)
    return Origin(scheme, host, port, proxy)


def check_address(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a gateway's address.

    Raises:
        ValueError: If no request could be sent there.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        msg = f"{url!r} is no address: {error}"
        raise ValueError(msg) from error
    is_bare = not (parts.query or parts.fragment) and url.split() == [url]
    if parts.scheme not in PORTS or not parts.hostname or not is_bare:
        msg = (
            "the gateway's address must be http:// or https:// with a host, and maybe a"
            f" port and a path, not {url!r}"
        )
        raise ValueError(msg)
    return parts.scheme, parts.hostname, port or PORTS[parts.scheme]


def _check_proxy(proxy: str) -> None:
    # Its scheme is all that is named: a proxy's URL may hold a password.
    parts = urlsplit(proxy)
    if parts.scheme not in PORTS or not parts.hostname:
        msg = (
            "the proxy must be http:// or https:// with a host, not"
            f" {parts.scheme or 'something without a scheme'!r}; one that the"
            " environment names is switched off by `no_proxy`"
        )
        raise ValueError(msg)


def _environment_proxy(scheme: str, host: str, port: int) -> str | None:
    proxies = urllib.request.getproxies()
    found = proxies.get(scheme) or proxies.get("all")
    if not found or urllib.request.proxy_bypass(f"{host}:{port}"):
        return None
    return found


@functools.cache
def ssl_context() -> ssl.SSLContext:
    """The one SSL context: the system's certificates, host names checked.

    Building one costs 13 to 32 ms, which is why it is never built per model or call.
    """
    return ssl.create_default_context()


def sync_pool(origin: Origin) -> urllib3.HTTPConnectionPool:
    """This process's pool of connections to `origin`; threads share it."""
    key = (os.getpid(), origin)
    pool = _pools.get(key)
    if pool is None:
        with _lock:
            pool = _pools.get(key) or _open_pool(origin)
            _pools[key] = pool
    return pool


def _open_pool(origin: Origin) -> urllib3.HTTPConnectionPool:
    import urllib3  # noqa: PLC0415 - paid by the first sync call

    from langchain_retryrouter._gptrouter.connections import timed

    settings: dict[str, Any] = {"maxsize": _KEPT, "retries": False}
    if origin.scheme == "https":
        settings["ssl_context"] = ssl_context()
    manager = (
        urllib3.ProxyManager(
            origin.proxy, proxy_headers=_proxy_headers(origin.proxy), **settings
        )
        if origin.proxy
        else urllib3.PoolManager(**settings)
    )
    pool = manager.connection_from_host(origin.host, origin.port, origin.scheme)
    return timed(pool)


def _proxy_headers(proxy: str) -> dict[str, str]:
    """The proxy's own credentials, which aiohttp reads from its URL by itself."""
    from urllib3.util import make_headers  # noqa: PLC0415 - imported by the caller

    parts = urlsplit(proxy)
    if parts.username is None:
        return {}
    user, password = unquote(parts.username), unquote(parts.password or "")
    return dict(make_headers(proxy_basic_auth=f"{user}:{password}"))


class AsyncPool(NamedTuple):
    """An event loop's connections.

    Attributes:
        session: aiohttp's own way to them.
        posts: The short one, for what is small and goes straight to its host; None
            where aiohttp is not as we know it.
    """

    session: aiohttp.ClientSession
    posts: LeanPosts | None


class _LoopSession:
    """One event loop's aiohttp session, closed when the loop is."""

    def __init__(self) -> None:
        self.pool: AsyncPool | None = None
        self._lifetime: AsyncGenerator[None, None] | None = None

    async def open(self) -> AsyncPool:
        if self.pool is None or self.pool.session.closed:
            self.pool = _open_pool_of_loop()
            # An async generator that has begun is closed by `shutdown_asyncgens`.
            self._lifetime = _close_with_loop(self.pool.session)
            await anext(self._lifetime)
        return self.pool


async def _close_with_loop(
    session: aiohttp.ClientSession,
) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        # A session holds its loop: kept here, it would keep the loop for ever.
        _sessions.pop(asyncio.get_running_loop(), None)
        await session.close()


def _open_pool_of_loop() -> AsyncPool:
    import aiohttp  # noqa: PLC0415 - paid by the first async call

    from langchain_retryrouter._aiohttp import (
        CAN_POST_LEANLY,
        LeanPosts,
        PromptResponse,
    )

    session = aiohttp.ClientSession(
        response_class=PromptResponse,
        connector=aiohttp.TCPConnector(limit=_ASYNC_LIMIT, limit_per_host=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        # Environment proxies are ours to read; `trust_env` would read `.netrc` too and
        # send what it finds there.
        trust_env=False,
        timeout=aiohttp.ClientTimeout(total=None),
        skip_auto_headers=("User-Agent", "Accept-Encoding"),
    )
    return AsyncPool(session, LeanPosts(session) if CAN_POST_LEANLY else None)


async def async_pool() -> AsyncPool:
    """The running event loop's connections."""
    loop = asyncio.get_running_loop()
    held = _sessions.get(loop)
    if held is None:
        _forget_closed_loops()
        held = _sessions[loop] = _LoopSession()
    return await held.open()


def _forget_closed_loops() -> None:
    """Let go of loops that were closed without a shutdown of their generators."""
    for reference in _sessions.keyrefs():
        loop = reference()
        if loop is not None and loop.is_closed():
            _sessions.pop(loop, None)


def close_sync_pools() -> None:
    """Close this process's idle sync connections; later calls open new ones."""
    with _lock:
        own = [key for key in _pools if key[0] == os.getpid()]
        pools = [_pools.pop(key) for key in own]
    for pool in pools:
        pool.close()
