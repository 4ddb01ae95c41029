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
    async_session,
    ssl_context,
    sync_pool,
)
from langchain_retryrouter._version import __version__

if TYPE_CHECKING:
    import aiohttp
    import urllib3

    from langchain_retryrouter._gptrouter.answers import Answer, Limit

_HEADERS: Final = {
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
    within: float | None,
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

    from langchain_retryrouter._gptrouter.answers import (  # noqa: PLC0415
        Limit,
        read_within,
    )

    origin = request.origin
    due = None if within is None else time.monotonic() + within
    limit = Limit(silence=read, due=due)
    try:
        with read_within(limit):
            # Our connections give answers of a type that urllib3 does not know.
            answer: Any = sync_pool(origin).urlopen(
                "POST",
                _target(request.url, origin),
                body=request.body,
                headers={
                    "host": _host(origin),
                    "accept-encoding": "identity",
                    **_HEADERS,
                    "ws-secret": request.key,
                },
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
) -> aiohttp.ClientResponse:
    """Async twin of `send`; the time for all of it is limited by the caller."""
    import aiohttp  # noqa: PLC0415 - paid by the first async call

    origin, body = request.origin, request.body
    session = await async_session()
    try:
        return await session.post(
            request.url,
            # aiohttp warns of raw bytes that are large, and reads a file in pieces.
            data=body if len(body) <= _LARGE_BODY else io.BytesIO(body),
            headers={**_HEADERS, "ws-secret": request.key},
            timeout=aiohttp.ClientTimeout(sock_connect=connect, sock_read=read),
            allow_redirects=False,
            proxy=origin.proxy,
            ssl=ssl_context() if origin.scheme == "https" else True,
        )
    except (aiohttp.ClientError, OSError) as error:
        raise from_aiohttp(error) from error


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
