"""What an exception from below HTTP means, whichever library raised it.

A library that nobody has imported cannot have raised anything: classes are looked up in
`sys.modules`, and nothing is imported.
"""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import ssl
import sys
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from langchain_retryrouter.failures import FailureKind


class Transport(NamedTuple):
    """What an exception below HTTP means, and whether the request may have run."""

    kind: FailureKind
    may_have_run: bool


def _not_sent(kind: FailureKind) -> Transport:
    return Transport(kind, may_have_run=False)


def _lost(kind: FailureKind) -> Transport:
    return Transport(kind, may_have_run=True)


_HTTPX: Final = ("httpx", "httpx2")
_AIOHTTP: Final = ("aiohttp",)
_REQUESTS: Final = ("requests.exceptions",)
_URLLIB3: Final = ("urllib3.exceptions",)
_BOTOCORE: Final = ("botocore.exceptions",)

# Read from top to bottom: what stands above is a special case of what stands below.
_BY_LIBRARY: Final = (
    (_HTTPX, ("ConnectTimeout", "PoolTimeout"), _not_sent(FailureKind.TIMEOUT)),
    (_HTTPX, ("TimeoutException",), _lost(FailureKind.TIMEOUT)),
    (_HTTPX, ("ConnectError", "ProxyError"), _not_sent(FailureKind.CONNECTION)),
    # A wrong address, or a header that cannot be written, now or later.
    (
        _HTTPX,
        ("UnsupportedProtocol", "LocalProtocolError", "InvalidURL"),
        _not_sent(FailureKind.INVALID_REQUEST),
    ),
    (_HTTPX, ("DecodingError",), _lost(FailureKind.MALFORMED)),
    (_HTTPX, ("RequestError",), _lost(FailureKind.CONNECTION)),
    (_AIOHTTP, ("ConnectionTimeoutError",), _not_sent(FailureKind.TIMEOUT)),
    (_AIOHTTP, ("ServerTimeoutError",), _lost(FailureKind.TIMEOUT)),
    (_AIOHTTP, ("ClientConnectorError",), _not_sent(FailureKind.CONNECTION)),
    (
        _AIOHTTP,
        ("InvalidURL", "NonHttpUrlClientError"),
        _not_sent(FailureKind.INVALID_REQUEST),
    ),
    (_AIOHTTP, ("ContentTypeError",), _lost(FailureKind.MALFORMED)),
    (_AIOHTTP, ("ClientError",), _lost(FailureKind.CONNECTION)),
    (_REQUESTS, ("ConnectTimeout",), _not_sent(FailureKind.TIMEOUT)),
    (_REQUESTS, ("Timeout",), _lost(FailureKind.TIMEOUT)),
    (_REQUESTS, ("ProxyError",), _not_sent(FailureKind.CONNECTION)),
    (
        _REQUESTS,
        ("InvalidURL", "MissingSchema", "InvalidSchema", "InvalidHeader"),
        _not_sent(FailureKind.INVALID_REQUEST),
    ),
    (
        _REQUESTS,
        ("JSONDecodeError", "ContentDecodingError"),
        _lost(FailureKind.MALFORMED),
    ),
    (_REQUESTS, ("RequestException",), _lost(FailureKind.CONNECTION)),
    # Connection refused, and no such host, are a ConnectTimeoutError there.
    (_URLLIB3, ("NewConnectionError",), _not_sent(FailureKind.CONNECTION)),
    (
        _URLLIB3,
        ("ConnectTimeoutError", "EmptyPoolError"),
        _not_sent(FailureKind.TIMEOUT),
    ),
    (_URLLIB3, ("TimeoutError",), _lost(FailureKind.TIMEOUT)),
    (_URLLIB3, ("ProxyError",), _not_sent(FailureKind.CONNECTION)),
    (_URLLIB3, ("LocationValueError",), _not_sent(FailureKind.INVALID_REQUEST)),
    (_URLLIB3, ("DecodeError",), _lost(FailureKind.MALFORMED)),
    (_URLLIB3, ("HTTPError",), _lost(FailureKind.CONNECTION)),
    (_BOTOCORE, ("ConnectTimeoutError",), _not_sent(FailureKind.TIMEOUT)),
    (_BOTOCORE, ("ReadTimeoutError",), _lost(FailureKind.TIMEOUT)),
    (
        _BOTOCORE,
        ("EndpointConnectionError", "ProxyConnectionError"),
        _not_sent(FailureKind.CONNECTION),
    ),
    (_BOTOCORE, ("HTTPClientError",), _lost(FailureKind.CONNECTION)),
    (("http.client",), ("HTTPException",), _lost(FailureKind.CONNECTION)),
)

_BUILTIN: Final = (
    ((json.JSONDecodeError, UnicodeDecodeError), _lost(FailureKind.MALFORMED)),
    ((TimeoutError,), _lost(FailureKind.TIMEOUT)),
    (
        (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError),
        _not_sent(FailureKind.CONNECTION),
    ),
    (
        (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError),
        _lost(FailureKind.CONNECTION),
    ),
)

# An OSError without a class of its own. Others, such as a missing file, are no
# provider's.
_NO_WAY_THERE: Final = frozenset(
    {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
)


def transport_of(error: BaseException) -> Transport | None:
    """What `error` says about the way to the provider; None if it says nothing."""
    reason = _reason_in(error)
    if reason is not None and (told := transport_of(reason)):
        return told
    for modules, names, transport in _BY_LIBRARY:
        if isinstance(error, tuple(_classes(modules, names))):
            return transport
    for classes, transport in _BUILTIN:
        if isinstance(error, classes):
            return transport
    if isinstance(error, OSError) and error.errno in _NO_WAY_THERE:
        return _not_sent(FailureKind.CONNECTION)
    return None


def _reason_in(error: BaseException) -> BaseException | None:
    """What really happened, of an exception that only wraps it.

    urllib, and urllib3's `MaxRetryError`, keep it in `reason`; requests wraps the
    latter once more.
    """
    inner = error.args[0] if error.args else None
    found = (getattr(wrapper, "reason", None) for wrapper in (error, inner))
    return next((one for one in found if isinstance(one, BaseException)), None)


def _classes(
    modules: Iterable[str], names: Iterable[str]
) -> Iterator[type[BaseException]]:
    """The classes of these names, of each library that somebody has imported."""
    for module in filter(None, map(sys.modules.get, modules)):
        for name in names:
            if found := getattr(module, name, None):
                yield found
