"""One request on its way: urllib3 carries it for sync, aiohttp for async.

What comes back is an answer whose headers have been read, or one of the gateway's
errors. The file knows sockets, and not what is said over them.
"""

from __future__ import annotations

import functools
import io
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from langchain_retryrouter._gptrouter.borders import from_aiohttp, from_urllib3
from langchain_retryrouter._gptrouter.pools import (
    PORTS,
    Origin,
    async_pool,
    ssl_context,
    sync_pool,
)
from langchain_retryrouter._http.heads import SMALL_BODY, request_head
from langchain_retryrouter._version import __version__

if TYPE_CHECKING:
    import ssl

    import aiohttp
    import urllib3
    from yarl import URL

    from langchain_retryrouter._aiohttp import AnyAnswer, LeanPosts
    from langchain_retryrouter._gptrouter.answers import Answer, Limit

_HEADERS: Final = {
    "accept-encoding": "identity",
    "content-type": "application/json",
    "user-agent": f"langchain-retryrouter/{__version__}",
}
_LARGE_BODY: Final = 1024 * 1024


class Request(NamedTuple):
    """What is sent, and where.

    Attributes:
        origin: Whose connection carries it.
        url: The endpoint.
        key: The gateway's key.
        body: JSON.
    """

    origin: Origin
    url: str
    key: str
    body: bytes


def send(
    request: Request,
    connect: float | None,
    read: float | None,
    run_with_timeout: float | None,
) -> tuple[Answer, Limit]:
    """The answer up to its body, and the limit within which that is read.

    Args:
        request: What is sent.
        connect: Seconds to connect; None for no limit.
        read: Seconds without a byte.
        within: Seconds for all of it.

    Raises:
        RetryRouterError: One of `errors.gpt_router`.
    """
    import urllib3  # noqa: PLC0415 - paid by the first sync call

    from langchain_retryrouter._gptrouter.answers import Limit, read_within

    origin = request.origin
    due = None if run_with_timeout is None else time.monotonic() + run_with_timeout
    limit = Limit(silence=read, due=due)
    try:
        with read_within(limit):
            # Our connections give answers of a type that urllib3 does not know.
            answer: Any = sync_pool(origin).urlopen(
                "POST",
                _target(request.url, origin),
                body=request.body,
                headers=_headers(request),
                timeout=_connecting_within(connect),
                retries=_no_retries(),
                redirect=False,  # The key follows nobody to another host.
                assert_same_host=False,  # A proxy is told the whole URL.
                preload_content=False,
            )
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise from_urllib3(error) from error
    return answer, limit


async def asend(
    request: Request, connect: float | None, read: float | None
) -> AnyAnswer:
    """Async twin of `send`; the time for all of it is limited by the caller."""
    import aiohttp  # noqa: PLC0415 - paid by the first async call

    session, posts = await async_pool()
    limits = _limits(connect, read)
    is_short = len(request.body) <= SMALL_BODY and request.origin.proxy is None
    try:
        if posts is not None and is_short:
            return await _post_leanly(posts, request, limits)
        return await _post_by_session(session, request, limits)
    except (aiohttp.ClientError, OSError) as error:
        raise from_aiohttp(error) from error


async def _post_leanly(
    posts: LeanPosts, request: Request, limits: aiohttp.ClientTimeout
) -> AnyAnswer:
    origin = request.origin
    headers = {**_headers(request), "content-length": str(len(request.body))}
    head = request_head("POST", _target(request.url, origin), headers.items())
    url, ssl = _url(request.url), _certificates(origin)
    return await posts.post(url, head + request.body, limits, ssl)


async def _post_by_session(
    session: aiohttp.ClientSession, request: Request, limits: aiohttp.ClientTimeout
) -> AnyAnswer:
    body = request.body
    return await session.post(
        request.url,
        # aiohttp warns of raw bytes that are large, and reads a file in pieces.
        data=body if len(body) <= _LARGE_BODY else io.BytesIO(body),
        headers=_headers(request),
        timeout=limits,
        allow_redirects=False,
        proxy=request.origin.proxy,
        ssl=_certificates(request.origin),
    )


def _headers(request: Request) -> dict[str, str]:
    return {"host": _host(request.origin), **_HEADERS, "ws-secret": request.key}


def _certificates(origin: Origin) -> ssl.SSLContext | bool:
    return ssl_context() if origin.scheme == "https" else True


@functools.lru_cache(maxsize=64)
def _limits(connect: float | None, read: float | None) -> aiohttp.ClientTimeout:
    import aiohttp  # noqa: PLC0415 - imported by the caller

    return aiohttp.ClientTimeout(sock_connect=connect, sock_read=read)


@functools.lru_cache(maxsize=64)
def _url(url: str) -> URL:
    from yarl import URL  # noqa: PLC0415 - loaded with aiohttp

    return URL(url)


@functools.cache
def _no_retries() -> urllib3.Retry:
    import urllib3  # noqa: PLC0415 - imported by the caller

    return urllib3.Retry(total=False, redirect=False)


@functools.lru_cache(maxsize=64)
def _connecting_within(seconds: float | None) -> urllib3.Timeout:
    import urllib3  # noqa: PLC0415 - imported by the caller

    return urllib3.Timeout(connect=seconds, read=None)


@functools.lru_cache(maxsize=64)
def _host(origin: Origin) -> str:
    """What stands in the `Host` header (RFC 9110, section 7.2)."""
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    if not host.isascii():
        host = host.encode("idna").decode()
    is_usual = origin.port == PORTS[origin.scheme]
    return host if is_usual else f"{host}:{origin.port}"


@functools.lru_cache(maxsize=64)
def _target(url: str, origin: Origin) -> str:
    """What stands in the request line: a proxy of plain HTTP is told the whole URL."""
    if origin.proxy and origin.scheme == "http":
        return url
    return urlsplit(url)._replace(scheme="", netloc="").geturl()
