"""A request like one before, without composing it anew.

Between two requests to one endpoint nothing changes but the body and a key, yet the SDK
puts address and headers together for each: a third of what a call costs. So what it has
sent once is remembered, and sent again with another body, by the same HTTP client. An
async one is written to the wire as it is, and neither it nor an answer that is read
whole becomes one of the HTTP library's objects before somebody asks for one.

Only where nothing else can differ: with a fixed key, without options of the call, and
while nobody logs what the SDK does. All else goes through the SDK's `post`, and so does
a body that plain JSON cannot say.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

import openai

from langchain_retryrouter import _json
from langchain_retryrouter._http.heads import more_head, request_head
from langchain_retryrouter._openai.clients.bounded_bodies import CONTENT_ENCODING
from langchain_retryrouter._openai.clients.sharing import (
    STRAIGHT,
    http_client_of,
    http_library,
)

Header: TypeAlias = tuple[bytes, bytes]

_OF_A_BODY: Final = frozenset({b"content-length"})
_KEY_OF_A_CALL: Final = frozenset({"Idempotency-Key"})
_OPTIONS: Final = frozenset({"headers", "security"})
_OK, _REDIRECT = 200, 300
_SDK_LOG: Final = logging.getLogger("openai")
# The SDK has no public name for how it makes an error; where this one is gone, nothing
# is remembered.
_MAKES_ERRORS: Final = "_make_status_error_from_response"


class _Composed(NamedTuple):
    """What the SDK made of a request, but for its body and its key."""

    identity: tuple[Any, ...]
    url: Any
    headers: list[Header]
    head: bytes | None
    timeouts: Mapping[str, Any]


class Repeat:
    """A request like one before.

    Attributes:
        url: Where it goes, as the HTTP library has it.
        timeouts: The limits of its waits, by their names there.
        body: What it says.
    """

    __slots__ = ("_known", "_made", "_own_headers", "body", "timeouts", "url")

    def __init__(
        self, known: _Composed, own_headers: Mapping[str, str], body: bytes
    ) -> None:
        """With the headers that are its own."""
        self.url = known.url
        self.timeouts = known.timeouts
        self.body = body
        self._known = known
        self._own_headers = own_headers
        self._made: Any = None

    def for_library(self) -> Any:
        """The HTTP library's request, always the same."""
        if self._made is None:
            own = self._own_headers.items()
            self._made = http_library().Request(
                "POST",
                self.url,
                headers=[
                    *self._known.headers,
                    *((name.encode(), value.encode()) for name, value in own),
                ],
                content=self.body,
                extensions={
                    "timeout": dict(self.timeouts),
                    STRAIGHT: not self.url.userinfo,
                },
            )
        return self._made

    def message(self) -> bytes | None:
        """All that is written on the wire; None for what only the library can write."""
        if self._known.head is None:
            return None
        length = ("Content-Length", str(len(self.body)))
        try:
            head = more_head(self._known.head, [*self._own_headers.items(), length])
        except ValueError:
            return None
        return head + self.body


class AnswerHead(NamedTuple):
    """What stands before an answer's body."""

    status: int
    reason: str | None
    headers: Iterable[Header]

    def for_library(self) -> dict[str, Any]:
        """What the HTTP library's response is made of."""
        phrase = (self.reason or "").encode("ascii", "ignore")
        return {
            "status_code": self.status,
            "headers": self.headers,
            "extensions": {"http_version": b"HTTP/1.1", "reason_phrase": phrase},
        }


class WholeAnswer:
    """An answer to a `Repeat` that was read to its end.

    Attributes:
        content: Its body, unpacked.
        is_success: Whether its status says so.
    """

    __slots__ = ("_head", "_made", "_repeat", "content", "is_success")

    def __init__(self, repeat: Repeat, head: AnswerHead, content: bytes) -> None:
        """Of its parts."""
        self.content = content
        self.is_success = _OK <= head.status < _REDIRECT
        self._repeat = repeat
        self._head = head
        self._made: Any = None

    def for_library(self) -> Any:
        """The HTTP library's response, always the same."""
        if self._made is None:
            http = http_library()
            response = http.Response(
                **self._head.for_library(),
                stream=http.ByteStream(self.content),
                request=self._repeat.for_library(),
            )
            response.headers.pop(CONTENT_ENCODING, None)
            response.encoding = "utf-8"
            response.read()
            self._made = response
        return self._made


def library_s(answer: Any) -> Any:
    """The HTTP library's response, be it one or a `WholeAnswer`."""
    return answer.for_library() if isinstance(answer, WholeAnswer) else answer


_composed: weakref.WeakKeyDictionary[Any, dict[tuple[str, bool], _Composed]] = (
    weakref.WeakKeyDictionary()
)


def remember(client: Any, posted: Mapping[str, Any], response: Any) -> None:
    """Keep what the SDK has composed, if another request may be sent the same way.

    Args:
        client: The SDK client.
        posted: The keyword arguments of its `post`.
        response: What that has returned.
    """
    if not _is_plain(client, posted) or response.history:
        return
    given = {name.lower().encode() for name in posted["options"].get("headers", ())}
    request = response.request
    headers = [
        (name, value)
        for name, value in request.headers.raw
        if name.lower() not in _OF_A_BODY | given
    ]
    known = _composed.setdefault(client, {})
    known[posted["path"], posted["stream"]] = _Composed(
        _identity(client),
        request.url,
        headers,
        _head(request.url.raw_path, headers),
        dict(request.extensions["timeout"]),
    )


def _head(target: bytes, headers: list[Header]) -> bytes | None:
    try:
        told = [(name.decode(), value.decode()) for name, value in headers]
        return request_head("POST", target.decode(), told)
    except ValueError:
        return None


def repeated(client: Any, posted: Mapping[str, Any]) -> Repeat | None:
    """The request, if the SDK has composed one like it; else None.

    Args:
        client: The SDK client.
        posted: What would be the keyword arguments of its `post`.
    """
    known = _composed.get(client, {}).get((posted["path"], posted["stream"]))
    if known is None or not _is_plain(client, posted):
        return None
    if known.identity != _identity(client) or _SDK_LOG.isEnabledFor(logging.DEBUG):
        return None
    try:
        body = _json.write(posted["body"])
    except (TypeError, ValueError, RecursionError):
        return None
    return Repeat(known, posted["options"].get("headers") or {}, body)


def send(client: Any, repeat: Repeat, *, stream: bool) -> Any:
    """The response to a `repeated` request, as the SDK's `post` returns it.

    Raises:
        openai.OpenAIError: As `post` does.
    """
    with _sdk_errors(repeat.for_library):
        request = repeat.for_library()
        response = http_client_of(client).send(request, stream=stream)
    if not response.is_success:
        response.read()
    return _checked(client, response)


async def asend(client: Any, repeat: Repeat, *, stream: bool) -> Any:
    """Async twin of `send`; what is read whole may be a `WholeAnswer`."""
    with _sdk_errors(repeat.for_library):
        if not stream:
            answer = await http_client_of(client).ask(repeat)
            if answer is not None:
                return _checked(client, answer)
        request = repeat.for_library()
        response = await http_client_of(client).send(request, stream=stream)
    if not response.is_success:
        await response.aread()
    return _checked(client, response)


@contextlib.contextmanager
def _sdk_errors(request: Callable[[], Any]) -> Iterator[None]:
    http = http_library()
    try:
        yield
    except http.TimeoutException as error:
        raise openai.APITimeoutError(request=request()) from error
    except http.RequestError as error:
        raise openai.APIConnectionError(request=request()) from error


def _checked(client: Any, answer: Any) -> Any:
    if not answer.is_success:
        raise getattr(client, _MAKES_ERRORS)(library_s(answer)) from None
    return answer


def _is_plain(client: Any, posted: Mapping[str, Any]) -> bool:
    """Whether no more than the body and the call's key makes up a request."""
    options = posted["options"]
    return (
        http_client_of(client) is not None
        and options.keys() <= _OPTIONS
        and (options.get("headers") or {}).keys() <= _KEY_OF_A_CALL
        and hasattr(client, _MAKES_ERRORS)
    )


def _identity(client: Any) -> tuple[Any, ...]:
    """What somebody may have set anew on the SDK client."""
    return client.api_key, client.organization, client.base_url, client.timeout
