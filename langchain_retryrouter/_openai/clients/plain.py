"""Requests that leave through the SDK and come back as plain data.

The SDK's `create` checks each parameter against its types on the way out, and makes an
object of each part of an answer, and of each chunk, on the way in: more than half of
what a call costs, and nearly all of what a chunk costs. The LLMs need neither. So the
SDK's `post` sends, which knows address, account, headers and Azure's paths, and hands
over the HTTP response; to read it is ours. What `create` does for a caller stays:
an option that it does not know, or that is missing, is a `TypeError`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Final, NamedTuple

import openai

from langchain_retryrouter import _json
from langchain_retryrouter._http.sse import EventTooLargeError, SSEParser
from langchain_retryrouter._openai import protocol as wire
from langchain_retryrouter._openai.clients import repeats
from langchain_retryrouter._openai.clients.sharing import Resource, http_library
from langchain_retryrouter._openai.errors import from_problem
from langchain_retryrouter.failures import FailureKind

_OPTIONS: Final = {
    "extra_headers": "headers",
    "extra_query": "params",
    "extra_body": "extra_json",
}
_LEFT_OUT: Final = (openai.NotGiven, openai.Omit)
_DONE: Final = b"[DONE]"


class PlainAnswer(dict[str, Any]):
    """An answer's JSON object, and the response that brought it."""

    __slots__ = ("_answer",)

    def __init__(self, data: Mapping[str, Any], answer: Any) -> None:
        """The parts of `data`, and what they came in."""
        super().__init__(data)
        self._answer = answer

    @property
    def response(self) -> Any:
        """The HTTP library's response."""
        return repeats.library_s(self._answer)


class _Parameters(NamedTuple):
    """What the SDK's `create` takes: all names, and those that it needs."""

    names: frozenset[str]
    required: frozenset[str]


def create(resource: Resource, **request: Any) -> Any:
    """What the SDK's `create` returns, as plain data.

    Args:
        resource: Whose `create` it would be.
        **request: The keyword arguments of `create`.

    Returns:
        A `PlainAnswer`; the text of a body that is no JSON object; or `PlainEvents`.

    Raises:
        TypeError: If an argument is unknown or missing.
    """
    response = _post(resource.client, _posted(resource, request))
    return PlainEvents(response) if request.get("stream") else _answer_in(response)


async def acreate(resource: Resource, **request: Any) -> Any:
    """Async twin of `create`."""
    response = await _apost(resource.client, _posted(resource, request))
    return AsyncPlainEvents(response) if request.get("stream") else _answer_in(response)


def _post(client: Any, posted: Mapping[str, Any]) -> Any:
    repeat = repeats.repeated(client, posted)
    if repeat is not None:
        return repeats.send(client, repeat, stream=posted["stream"])
    response = client.post(**posted)
    repeats.remember(client, posted, response)
    return response


async def _apost(client: Any, posted: Mapping[str, Any]) -> Any:
    repeat = repeats.repeated(client, posted)
    if repeat is not None:
        return await repeats.asend(client, repeat, stream=posted["stream"])
    response = await client.post(**posted)
    repeats.remember(client, posted, response)
    return response


class PlainEvents:
    """What the SDK's `Stream` is: the chunks of a stream, but as plain data.

    Attributes:
        response: What they are in.
    """

    def __init__(self, response: Any) -> None:
        self.response = response
        # Held on to: one that is dropped at `[DONE]` takes its connection along.
        self._parts = response.iter_bytes()

    def __iter__(self) -> Iterator[Any]:
        """The chunks, up to `[DONE]`."""
        parser = SSEParser()
        for part in self._parts:
            for data in _events_in(part, parser, self.response):
                if data.startswith(_DONE):
                    return
                yield _chunk_in(data, self.response)

    def close(self) -> None:
        """Let go of the connection."""
        self.response.close()
        self._parts.close()


class AsyncPlainEvents:
    """Async twin of `PlainEvents`."""

    def __init__(self, response: Any) -> None:
        self.response = response
        self._parts = response.aiter_bytes()

    async def __aiter__(self) -> AsyncIterator[Any]:
        """The chunks, up to `[DONE]`."""
        parser = SSEParser()
        async for part in self._parts:
            for data in _events_in(part, parser, self.response):
                if data.startswith(_DONE):
                    return
                yield _chunk_in(data, self.response)

    async def aclose(self) -> None:
        """Let go of the connection."""
        await self.response.aclose()
        await self._parts.aclose()


# What is sent.


def _posted(resource: Resource, request: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of the SDK's `post`."""
    sdk_class: Any = type(resource.sdk_resource)
    parameters = _parameters(sdk_class)
    if unknown := request.keys() - parameters.names:
        msg = f"create() got an unexpected keyword argument {min(unknown)!r}"
        raise TypeError(msg)
    given = {n: v for n, v in request.items() if not isinstance(v, _LEFT_OUT)}
    if missing := parameters.required - given.keys():
        msg = f"create() misses the keyword argument {min(missing)!r}"
        raise TypeError(msg)
    options: dict[str, Any] = {"security": {"bearer_auth": True}}
    if "timeout" in given:
        options["timeout"] = given.pop("timeout")
    for name, theirs in _OPTIONS.items():
        if (extra := given.pop(name, None)) is not None:
            options[theirs] = extra
    return {
        "path": resource.url,
        "cast_to": http_library().Response,
        "body": given,
        "options": options,
        "stream": bool(given.get("stream")),
    }


@functools.cache
def _parameters(sdk_class: Any) -> _Parameters:
    signature = inspect.signature(sdk_class.create)
    _, *parameters = signature.parameters.values()
    return _Parameters(
        frozenset(p.name for p in parameters),
        frozenset(p.name for p in parameters if p.default is p.empty),
    )


# What comes back.


def _answer_in(answer: Any) -> PlainAnswer:
    try:
        data = _json.read_quickly(answer.content)
    except ValueError:
        data = repeats.library_s(answer).text
    if not isinstance(data, dict):
        raise from_problem(wire.no_object(data), response=repeats.library_s(answer))
    return PlainAnswer(data, answer)


def _events_in(part: bytes, parser: SSEParser, response: Any) -> Iterator[bytes]:
    try:
        for event in parser.feed(part):
            yield event.data
    except EventTooLargeError as error:
        problem = wire.Problem(FailureKind.MALFORMED, str(error))
        raise from_problem(problem, response=response) from error


def _chunk_in(data: bytes, response: Any) -> Any:
    chunk = _read(data, response)
    if isinstance(chunk, dict) and (error := chunk.get("error")):
        raise from_problem(wire.reported(error), response=response)
    return chunk


def _read(data: bytes, response: Any) -> Any:
    try:
        return _json.read_quickly(data)
    except ValueError as error:
        problem = wire.malformed(f"an event that is not JSON: {error}")
        raise from_problem(problem, response=response) from error
