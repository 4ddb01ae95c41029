"""One request, sent once; what goes wrong leaves as one of `errors.openai`.

The `resource` is whatever has the SDK's `create`: one of ours, the SDK's own, or
somebody's object.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import openai

from langchain_retryrouter._openai import protocol as wire
from langchain_retryrouter._openai.clients import plain
from langchain_retryrouter._openai.clients.bounded_bodies import whole_answers
from langchain_retryrouter._openai.clients.sharing import Resource
from langchain_retryrouter._openai.clients.streams import AsyncSDKStream, SDKStream
from langchain_retryrouter._openai.clients.timed_reads import read_within
from langchain_retryrouter._openai.errors import from_page, from_problem, typed_errors
from langchain_retryrouter._openai.protocol import limited, part_of, sdk_timeout

_IDEMPOTENCY_KEY: Final = "Idempotency-Key"
_DOCUMENTS: Final = ("text/html", "application/json")


class Attempt(Protocol):
    """What is known about the attempt a request is sent for."""

    @property
    def number(self) -> int:
        """Counted from 1."""

    @property
    def timeout(self) -> float | None:
        """Seconds it has; None to leave the caller's own time limit."""


def identified(resource: Any, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The request with a key that all its attempts share, unless it has one.

    A gateway that keeps such keys does the work of a repeated request once.
    """
    if not isinstance(resource, Resource):
        return request
    headers = request.get("extra_headers") or {}
    for name in (*headers, *resource.default_headers):
        if name.lower() == _IDEMPOTENCY_KEY.lower():
            return request
    key = f"retryrouter-{uuid.uuid4()}"
    return {**request, "extra_headers": {**headers, _IDEMPOTENCY_KEY: key}}


def create(
    resource: Any,
    request: Mapping[str, Any],
    attempt: Attempt,
    unix_time: Callable[[], float],
    *,
    as_dicts: bool = False,
) -> Any:
    """The answer to one request.

    Args:
        resource: What has the SDK's `create`.
        request: Its keyword arguments.
        attempt: Which attempt it is, and how long it may take.
        unix_time: The seconds since the Unix epoch, to read an HTTP date with.
        as_dicts: Whether plain data will do, where `resource` is one of ours.
    """
    with (
        typed_errors(unix_time, resource),
        read_within(attempt.timeout),
        whole_answers(),
    ):
        send = _creator(plain.create, resource, as_dicts=as_dicts)
        answer = send(**_prepared(resource, request, attempt))
        return _checked(answer, request)


async def acreate(
    resource: Any,
    request: Mapping[str, Any],
    attempt: Attempt,
    unix_time: Callable[[], float],
    *,
    as_dicts: bool = False,
) -> Any:
    """Async twin of `create`."""
    with typed_errors(unix_time, resource), whole_answers():
        send = _creator(plain.acreate, resource, as_dicts=as_dicts)
        answer = await send(**_prepared(resource, request, attempt))
        return _checked(answer, request)


def open_stream(
    resource: Any,
    request: Mapping[str, Any],
    attempt: Attempt,
    unix_time: Callable[[], float],
    *,
    as_dicts: bool = False,
) -> SDKStream:
    """The stream that one request opens, once its headers are there.

    Args:
        resource: What has the SDK's `create`.
        request: Its keyword arguments, `stream=True` among them.
        attempt: Which attempt it is, and how long its first token may take.
        unix_time: The seconds since the Unix epoch, to read an HTTP date with.
        as_dicts: Whether plain data will do, where `resource` is one of ours.
    """
    with typed_errors(unix_time, resource), read_within(attempt.timeout):
        send = _creator(plain.create, resource, as_dicts=as_dicts)
        stream = send(**_prepared(resource, request, attempt))
        if (page := _page_in(stream)) is not None:
            page.read()
            raise from_page(page)
    _be_patient(stream, resource, request, attempt)
    reader = wire.StreamReader(wire.expected_choices(request))
    errors = functools.partial(typed_errors, unix_time, resource)
    return SDKStream(stream, reader, errors)


async def aopen_stream(
    resource: Any,
    request: Mapping[str, Any],
    attempt: Attempt,
    unix_time: Callable[[], float],
    *,
    as_dicts: bool = False,
) -> AsyncSDKStream:
    """Async twin of `open_stream`."""
    with typed_errors(unix_time, resource):
        send = _creator(plain.acreate, resource, as_dicts=as_dicts)
        stream = await send(**_prepared(resource, request, attempt))
        if (page := _page_in(stream)) is not None:
            await page.aread()
            raise from_page(page)
    _be_patient(stream, resource, request, attempt)
    reader = wire.StreamReader(wire.expected_choices(request))
    errors = functools.partial(typed_errors, unix_time, resource)
    return AsyncSDKStream(stream, reader, errors)


def _creator(
    plain_create: Callable[..., Any], resource: Any, *, as_dicts: bool
) -> Callable[..., Any]:
    if as_dicts and isinstance(resource, Resource):
        return functools.partial(plain_create, resource)
    return resource.create  # type: ignore[no-any-return]


def _prepared(
    resource: Any, request: Mapping[str, Any], attempt: Attempt
) -> dict[str, Any]:
    prepared = dict(request)
    if "timeout" in request:
        prepared["timeout"] = sdk_timeout(request["timeout"])
    if attempt.timeout is not None:
        own = _timeout_of(resource, request)
        prepared["timeout"] = limited(own, attempt.timeout)
    if attempt.number > 1 and isinstance(resource, Resource):
        # The SDK would count its own retries, of which there are none.
        headers = {"x-stainless-retry-count": str(attempt.number - 1)}
        prepared["extra_headers"] = {**headers, **(request.get("extra_headers") or {})}
    return prepared


def _timeout_of(resource: Any, request: Mapping[str, Any]) -> Any:
    """The time limit a request has without us, the caller's or the client's."""
    if "timeout" in request:
        return sdk_timeout(request["timeout"])
    client = getattr(resource, "_client", None)
    return getattr(client, "timeout", openai.DEFAULT_TIMEOUT)


def _be_patient(
    stream: Any, resource: Any, request: Mapping[str, Any], attempt: Attempt
) -> None:
    """Give the events their own time again: the attempt's was for the headers."""
    response = getattr(stream, "response", None)
    if attempt.timeout is None or response is None:
        return
    timeouts = response.request.extensions.get("timeout", {})
    timeouts["read"] = part_of(_timeout_of(resource, request), "read")


def _page_in(stream: Any) -> Any:
    """The response, if it is a document where a stream was asked for."""
    response = getattr(stream, "response", None)
    content_type = getattr(response, "headers", {}).get("content-type", "")
    return response if content_type.startswith(_DOCUMENTS) else None


def _checked(answer: Any, request: Mapping[str, Any]) -> Any:
    problem = wire.problem_of(answer, wire.expected_choices(request))
    if problem is not None:
        response = answer.response if isinstance(answer, plain.PlainAnswer) else None
        raise from_problem(problem, response=response)
    return answer
