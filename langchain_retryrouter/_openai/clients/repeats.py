"""A request like one before, without composing it anew.

Between two requests to one endpoint nothing changes but the body and a key, yet the SDK
puts address and headers together for each: a third of what a call costs. So what it has
sent once is remembered, and sent again with another body, by the same HTTP client.

Only where nothing else can differ: with a fixed key, without options of the call, and
while nobody logs what the SDK does. All else goes through the SDK's `post`, and so does
a body that plain JSON cannot say.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import openai

from langchain_retryrouter import _json
from langchain_retryrouter._openai.clients.sharing import (
    STRAIGHT,
    http_client_of,
    http_library,
)

_OF_A_BODY: Final = frozenset({b"content-length"})
_KEY_OF_A_CALL: Final = frozenset({"Idempotency-Key"})
_OPTIONS: Final = frozenset({"headers", "security"})
_SDK_LOG: Final = logging.getLogger("openai")
# The SDK has no public name for how it makes an error; where this one is gone, nothing
# is remembered.
_MAKES_ERRORS: Final = "_make_status_error_from_response"


class _Composed(NamedTuple):
    """What the SDK made of a request, but for its body and its key."""

    identity: tuple[Any, ...]
    url: Any
    headers: list[tuple[bytes, bytes]]
    timeouts: Mapping[str, Any]


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
    known = _composed.setdefault(client, {})
    known[posted["path"], posted["stream"]] = _Composed(
        _identity(client),
        request.url,
        [
            (name, value)
            for name, value in request.headers.raw
            if name.lower() not in _OF_A_BODY | given
        ],
        dict(request.extensions["timeout"]),
    )


def repeated(client: Any, posted: Mapping[str, Any]) -> Any:
    """The HTTP library's request, if the SDK has composed one like it; else None.

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
    given = posted["options"].get("headers") or {}
    return http_library().Request(
        "POST",
        known.url,
        headers=[*known.headers, *((n.encode(), v.encode()) for n, v in given.items())],
        content=body,
        extensions={"timeout": dict(known.timeouts), STRAIGHT: not known.url.userinfo},
    )


def send(client: Any, request: Any, *, stream: bool) -> Any:
    """The response to a `repeated` request, as the SDK's `post` returns it.

    Raises:
        openai.OpenAIError: As `post` does.
    """
    with _sdk_errors(request):
        response = http_client_of(client).send(request, stream=stream)
    if not response.is_success:
        response.read()
    return _checked(client, response)


async def asend(client: Any, request: Any, *, stream: bool) -> Any:
    """Async twin of `send`."""
    with _sdk_errors(request):
        response = await http_client_of(client).send(request, stream=stream)
    if not response.is_success:
        await response.aread()
    return _checked(client, response)


@contextlib.contextmanager
def _sdk_errors(request: Any) -> Iterator[None]:
    http = http_library()
    try:
        yield
    except http.TimeoutException as error:
        raise openai.APITimeoutError(request=request) from error
    except http.RequestError as error:
        raise openai.APIConnectionError(request=request) from error


def _checked(client: Any, response: Any) -> Any:
    if not response.is_success:
        raise getattr(client, _MAKES_ERRORS)(response) from None
    return response


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
