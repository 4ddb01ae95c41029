"""What both HTTP clients read: events of a stream, and errors from below HTTP."""

from __future__ import annotations

import asyncio
import errno
import json
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from langchain_retryrouter.failures import Failure, FailureKind

# --- events ---------------------------------------------------------------------------

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
_BOM: Final = b"\xef\xbb\xbf"
_NAME: Final = re.compile(rb"[\w-]*")  # The name of a field; empty for a comment.


class ServerSentEvent(NamedTuple):
    """One event: its kind (`message` by default) and its data, lines joined."""

    kind: bytes
    data: bytes


class TooLargeError(ValueError):
    """An event or a body is larger than any answer needs."""


class SSEParser:
    r"""Turns chunks of bytes into events, however the network splits them.

    A pure parser of one stream (WHATWG HTML, section 9.2.6, "Interpreting an event
    stream") with two deliberate differences. Nothing is decoded: `data` stays bytes, so
    that invalid UTF-8 is an error of the JSON reader, and not a silent U+FFFD in an
    answer. And a line that no server writes, such as a proxy's page that runs into an
    event, is data too: if it were ignored, as the standard says, words of the event
    would be lost with it. An event without its blank line is incomplete, and not an
    event.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        # Not lists of pieces: a piece of two bytes would take fifty.
        self._pending = bytearray()  # Of a line that has not ended.
        self._data = bytearray()  # Each line with a line feed behind it.
        self._kind = b""
        self._size = 0
        self._is_first = True
        self._ends_in_cr = False  # A line feed that follows ends no further line.

    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """The events that `chunk` completes, parsed lazily: there may be hundreds.

        Take all of them before the next chunk is fed.
        """
        if not chunk:
            return
        if self._ends_in_cr:
            chunk = chunk.removeprefix(b"\n")
        self._ends_in_cr = chunk.endswith(b"\r")
        lines = chunk.splitlines()  # At `\n`, `\r\n` and `\r`, as these are bytes.
        rest = b"" if chunk.endswith((b"\n", b"\r")) or not lines else lines.pop()
        for tail in lines:
            self._count(tail)
            line = bytes(self._pending + tail) if self._pending else tail
            self._pending.clear()
            if self._is_first:
                self._is_first = False
                line = line.removeprefix(_BOM)
            field, _, value = line.partition(b":")
            if field == b"data":
                self._data += value.removeprefix(b" ")
                self._data += b"\n"
            elif line:
                self._take(line, field, value.removeprefix(b" "))
            else:
                kind, data = self._kind or b"message", bytes(self._data[:-1])
                has_event = bool(self._data)
                self._kind, self._size = b"", 0
                self._data.clear()
                if has_event:
                    yield ServerSentEvent(kind, data)
        if rest:
            self._count(rest)
            self._pending += rest

    def _take(self, line: bytes, field: bytes, value: bytes) -> None:
        """Take note of a line that is not data, as far as a server has written it."""
        if field == b"event":
            self._kind = value
            return
        if field == b"error":  # Not the standard's: llama.cpp's `error: {...}`.
            self._kind = field
            self._data += value
            self._data += b"\n"
            return
        # It would be ignored; data, if no server has written it.
        is_damaged = not _NAME.fullmatch(field)
        try:
            value.decode()
        except UnicodeDecodeError:
            is_damaged = True
        if is_damaged:
            self._data += line
            self._data += b"\n"

    def _count(self, piece: bytes) -> None:
        """Count each byte as it arrives: the limit is the same however it is split."""
        self._size += len(piece)
        if self._size > self._max:
            msg = f"one event of the stream is larger than {self._max} bytes"
            raise TooLargeError(msg)


# --- errors --------------------------------------------------------------------------


_CANNOT_CONNECT: Final = Failure(FailureKind.CONNECTION, may_have_run=False)
_CONNECT_TIMEOUT: Final = Failure(FailureKind.TIMEOUT, may_have_run=False)
_READ_TIMEOUT: Final = Failure(FailureKind.TIMEOUT)
_LOST: Final = Failure(FailureKind.CONNECTION)
_UNREADABLE: Final = Failure(FailureKind.MALFORMED)
_BAD_REQUEST: Final = Failure(FailureKind.INVALID_REQUEST, may_have_run=False)
# A header that cannot be written: the only one that people set is the API key.
_BAD_KEY: Final = Failure(FailureKind.AUTHENTICATION, may_have_run=False)
# A certificate that is wrong now is wrong in a second too.
_BAD_CERTIFICATE: Final = Failure(
    FailureKind.CONNECTION, may_have_run=False, should_retry=False
)

# What the exceptions of these libraries mean, by the name of their class or of the
# nearest base class. A name that means something else in another one has its library.
_LIBRARIES: Final = frozenset(
    {"aiohttp", "botocore", "http", "httpcore", "httpcore2", "httpx", "httpx2"}
    | {"requests", "urllib3"}
)
_BY_NAME: Final = {
    name: failure
    for failure, names in (
        (_CONNECT_TIMEOUT, "ConnectTimeout ConnectTimeoutError ConnectionTimeoutError"),
        (_CONNECT_TIMEOUT, "PoolTimeout EmptyPoolError"),
        (_READ_TIMEOUT, "Timeout TimeoutError TimeoutException"),
        (_READ_TIMEOUT, "ReadTimeoutError ServerTimeoutError"),
        (_CANNOT_CONNECT, "ConnectError ConnectionNotAvailable"),
        (_CANNOT_CONNECT, "botocore.SSLError urllib3.SSLError"),
        (_CANNOT_CONNECT, "ClientConnectorError EndpointConnectionError"),
        (_CANNOT_CONNECT, "ProxyError ProxyConnectionError ClientHttpProxyError"),
        # It is a ConnectTimeoutError by its class, and none by what happened.
        (_CANNOT_CONNECT, "NewConnectionError"),
        (_BAD_REQUEST, "InvalidURL InvalidSchema MissingSchema LocationValueError"),
        (_BAD_REQUEST, "NonHttpUrlClientError UnsupportedProtocol"),
        (_BAD_REQUEST, "LocalProtocolError ParamValidationError"),
        (_BAD_KEY, "requests.InvalidHeader NoCredentialsError PartialCredentialsError"),
        (_BAD_KEY, "CredentialRetrievalError TokenRetrievalError"),
        (_BAD_KEY, "UnauthorizedSSOTokenError"),
        (_UNREADABLE, "DecodeError DecodingError ContentDecodingError ParserError"),
        (_UNREADABLE, "ContentEncodingError ContentTypeError JSONDecodeError"),
        (_LOST, "RequestError RequestException NetworkError ProtocolError StreamError"),
        (_LOST, "HttpProcessingError botocore.HTTPClientError"),
        (_LOST, "aiohttp.ClientError http.HTTPException urllib3.HTTPError"),
    )
    for name in names.split()
}
_BUILTIN: Final = (
    ((json.JSONDecodeError, UnicodeDecodeError), _UNREADABLE),
    ((TimeoutError,), _READ_TIMEOUT),
    ((ConnectionRefusedError, socket.gaierror), _CANNOT_CONNECT),
    ((ConnectionError, ssl.SSLError, asyncio.IncompleteReadError), _LOST),
)
# An OSError without a class of its own. Others, such as a missing file, are not about
# the network.
_UNREACHABLE: Final = frozenset(
    {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
)
# The generated SDKs (OpenAI, Anthropic, Groq, ...) have these names for it, and copies
# of httpx_sse. They say less than the exception that they were raised from.
_BY_SDK_NAME: Final = {
    "APITimeoutError": _READ_TIMEOUT,
    "APIConnectionError": _LOST,
    "APIResponseValidationError": _UNREADABLE,
    "SSEError": _UNREADABLE,
}
# A client that was closed: nothing was sent.
_CLOSED: Final = re.compile(
    r"client has been closed|session is closed|different (?:event )?loop", re.IGNORECASE
)
# A connection of an event loop that is gone: its socket still sends the request.
CLOSED_LOOP: Final = "loop is closed"
# HTTP headers are ASCII or Latin-1; bodies are UTF-8.
_HEADER_ENCODINGS: Final = frozenset({"ascii", "latin-1", "latin1", "iso-8859-1"})
_DEEPEST: Final = 8  # A cause of a cause of ...
_HEADER: Final = re.compile(
    r"(?:illegal|invalid) header|header injection", re.IGNORECASE
)


def read_transport_error(error: BaseException) -> Failure | None:
    """What `error` says about the way to the provider; None if it says nothing.

    Of an exception that wraps another one, the more exact of the two counts.
    """
    step: BaseException | None = error
    for _ in range(_DEEPEST):
        for one in (step, *step.args) if step else ():
            if isinstance(one, ssl.SSLCertVerificationError):
                return _BAD_CERTIFICATE
        step = step and (step.__cause__ or step.__context__)
    if isinstance(error, UnicodeEncodeError):
        return _BAD_KEY if error.encoding in _HEADER_ENCODINGS else _BAD_REQUEST
    if isinstance(error, RuntimeError) and _CLOSED.search(str(error)):
        return _CANNOT_CONNECT
    if isinstance(error, RuntimeError) and CLOSED_LOOP in str(error):
        return _LOST
    found = _by_class(error)
    is_about_http = found is _BAD_REQUEST or isinstance(error, ValueError)
    if is_about_http and _HEADER.search(str(error)):
        return _BAD_KEY
    is_sdks = not _BY_SDK_NAME.keys().isdisjoint(
        cls.__name__ for cls in type(error).__mro__
    )
    # urllib, and urllib3's `MaxRetryError`, keep what they wrap in `reason`; requests
    # wraps the latter once more; urllib3's `ProtocolError` has it as an argument.
    reasons = [getattr(one, "reason", None) for one in (error, *error.args[:1])]
    for inner in (*reasons, *error.args[1:], error.__cause__):
        if not isinstance(inner, BaseException) or inner is error:
            continue
        inner_failure = read_transport_error(inner)
        # httpx-aiohttp says ConnectTimeout of a connection that was refused or reset.
        is_refused = found is _CONNECT_TIMEOUT and inner is error.__cause__
        # urllib3 says so of a connection through a proxy that is lost later, too.
        is_lost = inner_failure is _LOST and type(error).__name__ == "ProxyError"
        if inner_failure is not None and (
            found in {None, _LOST}
            or is_sdks
            or is_lost
            or (is_refused and inner_failure.kind is FailureKind.CONNECTION)
        ):
            return inner_failure
    return found


def hide_request(error: BaseException, hide: Callable[[str], str]) -> None:
    """Take the request's headers out of an exception of aiohttp's.

    An address with a secret, which the exception prints, becomes a text without it.
    """
    info: Any = vars(error).get("request_info")
    if hasattr(info, "headers") and hasattr(info, "_replace"):
        urls = {name: str(getattr(info, name, "")) for name in ("url", "real_url")}
        shown = {name: hide(url) for name, url in urls.items() if hide(url) != url}
        bare = info._replace(headers={}, **shown)
        vars(error)["request_info"] = bare
        error.args = tuple(bare if arg is info else arg for arg in error.args)


def _by_class(error: BaseException) -> Failure | None:
    for cls in type(error).__mro__:
        name, library = cls.__name__, cls.__module__.partition(".")[0]
        found = _BY_SDK_NAME.get(name)
        if library in _LIBRARIES:
            found = found or _BY_NAME.get(name) or _BY_NAME.get(f"{library}.{name}")
        # Hugging Face's InferenceTimeoutError is an HTTPError too.
        if found is not None and not (
            found is _LOST and isinstance(error, TimeoutError)
        ):
            return found
    for classes, failure in _BUILTIN:
        if isinstance(error, classes):
            return failure
    is_unreachable = isinstance(error, OSError) and error.errno in _UNREACHABLE
    return _CANNOT_CONNECT if is_unreachable else None
