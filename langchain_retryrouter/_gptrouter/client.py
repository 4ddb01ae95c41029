"""`GatewayClient`: requests to a gateway over pooled connections, and typed errors.

The SDK's client opens a connection and an SSL context for each call, loses errors, and
cannot see the end of a stream; this one stands in its place. One call is one request:
nothing here retries. It knows neither LangChain's messages nor retry policies.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import (
    AsyncGenerator,
    Callable,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, Final, NoReturn, TypeAlias, cast

import urllib3
from gpt_router.client import GPTRouterClient
from gpt_router.models import GPTRouterMetadata, ModelGenerationRequest
from pydantic import SecretStr

from langchain_retryrouter import __version__, _http, _json
from langchain_retryrouter._gptrouter import http, protocol
from langchain_retryrouter._gptrouter.errors import GPT_ROUTER_ERRORS
from langchain_retryrouter._retry.timeouts import on_abort
from langchain_retryrouter.errors import RetryRouterError, UnsupportedOptionError, mask
from langchain_retryrouter.failures import FailureKind

ReadHeaders: TypeAlias = Callable[[Mapping[str, str]], object]
Timeout: TypeAlias = float | tuple[float, float] | None

_GENERATE: Final = "/v1/generate"
_OK: Final = 200
# The public gateway answers a larger body with an opaque 500, or cuts the connection.
_MAX_REQUEST_BYTES: Final = 1024 * 1024


class GatewayClient(GPTRouterClient):
    """A client of one gateway, usable wherever the SDK's `GPTRouterClient` is.

    It holds settings, and what answers have shown of the gateway's models, `observed`;
    the connections belong to the process and the event loop. So it can be shared by
    threads and loops, forked, copied, and pickled (the pickle has the key, which a
    worker needs). The SDK's methods for images and system-one, which are not
    overridden, send by the SDK's own means.

    The arguments are the SDK's. `request_timeout` are seconds to connect and to wait
    for bytes, one number or a pair; None for no limit. `proxy` is the URL of a proxy;
    None for what the environment names now.

    Raises:
        ValueError: If nothing could be sent with this address, proxy or key.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | SecretStr,
        request_timeout: Timeout = 60,
        stream_read_timeout: float | None = None,
        additional_metadata: GPTRouterMetadata | None = None,
        *,
        proxy: str | None = None,
    ) -> None:
        self.base_url = base_url
        self._secret = api_key if isinstance(api_key, SecretStr) else SecretStr(api_key)
        # The SDK says `int`, the type of its default, for both.
        self.request_timeout = cast("Any", request_timeout)
        self.stream_read_timeout = cast("Any", stream_read_timeout)
        self.additional_metadata = additional_metadata
        self.observed = protocol.ObservedModels()
        root = base_url.rstrip("/").removesuffix("/api").rstrip("/")
        self._root = f"{root}/api"
        self._origin = http.find_origin(root, proxy)
        check_key(self._secret)

    @property
    def api_key(self) -> str:
        """The key in plain text, for code written for the SDK's client."""
        return self._secret.get_secret_value()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    def generate(  # type: ignore[override] # a stream that can be aborted
        self,
        *,
        ordered_generation_requests: Sequence[ModelGenerationRequest],
        is_stream: bool = False,
        model_router_metadata: GPTRouterMetadata | None = None,
        timeout: float | None = None,
        read_headers: ReadHeaders | None = None,
        **options: Any,
    ) -> protocol.GatewayResponse | EventStream:
        """One answer, or the events of one; one request, without retries.

        The arguments are the SDK's; a stream is sent for with its first event, and has
        to be closed. `timeout` are seconds to connect and without a byte, if less than
        the client's. `read_headers` is called with the headers of the answer. The
        options `gateway_timeout`, in seconds, and
        `gateway_max_retries` are what the gateway gives its provider.

        Raises:
            RetryRouterError: One of `errors.GPT_ROUTER_ERRORS`.
        """
        requests, metadata = ordered_generation_requests, model_router_metadata
        payload = self._payload(requests, metadata, options, is_stream=is_stream)
        if is_stream:
            return EventStream(self, _GENERATE, payload, timeout, read_headers)
        answer = self.post(_GENERATE, payload, timeout, read_headers)
        return protocol.read_response(answer)

    async def agenerate(  # type: ignore[override] # the SDK does not mention streams
        self,
        *,
        ordered_generation_requests: Sequence[ModelGenerationRequest],
        is_stream: bool = False,
        model_router_metadata: GPTRouterMetadata | None = None,
        stop_stream_signal: asyncio.Event | None = None,
        **options: Any,
    ) -> protocol.GatewayResponse | AsyncGenerator[protocol.GatewayEvent, None]:
        """Async variant of `generate`; a stream ends once the signal is set."""
        limit, reader = options.pop("timeout", None), options.pop("read_headers", None)
        requests, metadata = ordered_generation_requests, model_router_metadata
        payload = self._payload(requests, metadata, options, is_stream=is_stream)
        if is_stream:
            return self.aevents(_GENERATE, payload, limit, reader, stop_stream_signal)
        answer = await self.apost(_GENERATE, payload, limit, reader)
        return protocol.read_response(answer)

    def _payload(
        self,
        requests: Sequence[ModelGenerationRequest],
        metadata: GPTRouterMetadata | None,
        options: dict[str, Any],
        *,
        is_stream: bool,
    ) -> dict[str, Any]:
        payload: dict[str, Any] = {
            "stream": is_stream,
            # Without nulls: the gateway would turn `max_tokens: null` into 0.
            "data": [r.model_dump(exclude_none=True, by_alias=True) for r in requests],
        }
        payload = self.add_metadata_info(payload, metadata)
        if (seconds := options.pop("gateway_timeout", None)) is not None:
            payload["timeout"] = max(1, round(seconds * 1000))
        if (retries := options.pop("gateway_max_retries", None)) is not None:
            payload["maxRetries"] = retries
        if options:
            names = ", ".join(map(repr, sorted(options)))
            msg = f"the gateway client has no option {names}"
            raise UnsupportedOptionError(msg)
        return payload

    def add_metadata_info(
        self,
        payload: dict[str, Any],
        model_router_metadata: GPTRouterMetadata | None = None,
    ) -> dict[str, Any]:
        """The payload with the client's metadata, overridden by that of the call.

        What the call leaves unset is taken from the client: the SDK's own merging would
        overwrite it with the call's nulls.
        """
        merged: dict[str, Any] = {}
        for metadata in (self.additional_metadata, model_router_metadata):
            if metadata is not None:
                merged |= metadata.model_dump(exclude_none=True)
        if not merged:
            return {**payload, "metadata": {}}
        complete = super().add_metadata_info(payload, GPTRouterMetadata(**merged))
        return {**complete, "metadata": merged}

    # --- one request ----------------------------------------------------------------

    def post(
        self,
        path: str,
        payload: Mapping[str, Any],
        timeout: float | None = None,
        read_headers: ReadHeaders | None = None,
    ) -> dict[str, Any] | None:
        """The JSON object of the answer; None for an answer without a body."""
        request = self.build_request(path, payload, timeout, read_headers)
        try:
            response = http.post(request)
            on_abort(functools.partial(_shut_down, response))
            with contextlib.closing(response):
                body = http.read_body(response)
            return protocol.read_answer(response.status, response.headers, body)
        except Exception as error:
            self.raise_typed(error, request)
            raise

    async def apost(
        self,
        path: str,
        payload: Mapping[str, Any],
        limit: float | None = None,
        read_headers: ReadHeaders | None = None,
    ) -> dict[str, Any] | None:
        """Async variant of `post`; `limit` is its `timeout`."""
        request = self.build_request(path, payload, limit, read_headers)
        try:
            async with http.apost(request) as response:
                body = await http.aread_body(response)
            return protocol.read_answer(response.status, response.headers, body)
        except Exception as error:
            self.raise_typed(error, request)
            raise

    async def aevents(
        self,
        path: str,
        payload: Mapping[str, Any],
        limit: float | None = None,
        read_headers: ReadHeaders | None = None,
        stop_signal: asyncio.Event | None = None,
    ) -> AsyncGenerator[protocol.GatewayEvent, None]:
        """The events of one stream, `end` included; async variant of `EventStream`."""
        request = self.build_request(path, payload, limit, read_headers, is_stream=True)
        try:
            async with http.apost(request) as response:
                if not _is_event_stream(response.status, response.headers):
                    body = await http.aread_body(response)
                    _raise_no_stream(response.status, response.headers, body)
                parser = _EventParser()
                try:
                    while not parser.is_over:
                        for event in parser.feed(await response.content.readany()):
                            yield event
                            if stop_signal is not None and stop_signal.is_set():
                                return
                finally:
                    if parser.is_over:
                        await http.adrain(response)
        except Exception as error:
            self.raise_typed(error, request)
            raise

    def build_request(
        self,
        path: str,
        payload: Mapping[str, Any],
        timeout: float | None,
        read_headers: ReadHeaders | None = None,
        *,
        is_stream: bool = False,
    ) -> http.Request:
        """What is sent; a stream's `timeout`, for its first token, is not for reads."""
        limits = cast("Timeout", self.request_timeout)
        connect, read = limits if isinstance(limits, tuple) else (limits, limits)
        if timeout is not None:
            connect = timeout if connect is None else min(connect, timeout)
            if not is_stream:
                read = timeout if read is None else min(read, timeout)
        if is_stream and self.stream_read_timeout is not None:
            read = self.stream_read_timeout
        headers = {
            "accept-encoding": "identity",
            "content-type": "application/json",
            "user-agent": f"langchain-retryrouter/{__version__}",
            "ws-secret": self.api_key,
        }
        try:
            body = _json.write(payload)
        except (TypeError, ValueError, RecursionError) as error:
            msg = f"the request cannot be written as JSON: {error}"
            raise UnsupportedOptionError(msg) from error
        url = self._root + path
        return http.Request(
            self._origin, url, headers, body, connect, read, read_headers
        )

    def raise_typed(self, error: Exception, request: http.Request) -> None:
        """Raise an exception of the HTTP libraries as ours; do nothing with others.

        The key is taken out of the texts of both. A failure of the gateway at a body
        that the public one never accepts is not retried.
        """
        mask([self.api_key], error)
        typed = _type_error(error)
        failed = error if typed is None else typed
        size = len(request.body)
        if (
            isinstance(failed, RetryRouterError)
            and failed.kind in {FailureKind.SERVER_ERROR, FailureKind.CONNECTION}
            and size > _MAX_REQUEST_BYTES
        ):
            failed.should_retry = False
            failed.add_note(
                f"not retried: the request has {size:,} bytes, and the public gateway"
                f" fails above {_MAX_REQUEST_BYTES:,}; shorten it, or give large"
                " pictures by their URL"
            )
        if typed is not None:
            raise typed from error

    def close(self) -> None:
        """Close the idle sync connections to the gateway; later calls open new ones."""
        http.close_connections(self._origin)

    async def aclose(self) -> None:
        """Close the async connections of the running event loop, once they are idle."""
        await http.aclose_connections()


def _shut_down(response: urllib3.BaseHTTPResponse) -> None:
    """Interrupt, from another thread, a read under way; it then raises."""
    # It may have been read to its end, or be closed.
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        response.shutdown()


class EventStream:
    """The events of one stream, `end` included; sent for with the first event."""

    def __init__(
        self,
        client: GatewayClient,
        path: str,
        payload: Mapping[str, Any],
        timeout: float | None = None,
        read_headers: ReadHeaders | None = None,
    ) -> None:
        self._client = client
        self._request = client.build_request(
            path, payload, timeout, read_headers, is_stream=True
        )
        self._response: urllib3.BaseHTTPResponse | None = None
        self._events = self._read()

    def __iter__(self) -> Iterator[protocol.GatewayEvent]:
        return self._events

    def __next__(self) -> protocol.GatewayEvent:
        return next(self._events)

    def abort(self) -> None:
        """Interrupt, from another thread, a read under way; it then raises."""
        if self._response is not None:
            _shut_down(self._response)

    def close(self) -> None:
        """Give the connection back if the stream is over, and else close it."""
        self._events.close()

    def _read(self) -> Generator[protocol.GatewayEvent, None, None]:
        try:
            response = self._response = http.post(self._request)
            on_abort(self.abort)
            with contextlib.closing(response):
                if not _is_event_stream(response.status, response.headers):
                    body = http.read_body(response)
                    _raise_no_stream(response.status, response.headers, body)
                parser = _EventParser()
                try:
                    while not parser.is_over:
                        yield from parser.feed(response.read1(http.READ_BYTES))
                finally:
                    if parser.is_over:
                        http.drain(response)
        except Exception as error:
            self._client.raise_typed(error, self._request)
            raise


class _EventParser:
    """The bytes of one stream to events."""

    def __init__(self) -> None:
        self._parser = _http.SSEParser()
        self.is_over = False

    def feed(self, chunk: bytes) -> Iterator[protocol.GatewayEvent]:
        """The events that `chunk` completes; no bytes are the end of the body."""
        if not chunk:
            self.is_over = True
            raise protocol.interrupted()
        try:
            for frame in self._parser.feed(chunk):
                # The one frame with a name, `end`, closes the stream: it comes after
                # errors too, and its data is not JSON.
                if frame.kind != b"message":
                    continue
                event = protocol.read_event(frame.data)
                self.is_over = event.event == "end"
                yield event
                if self.is_over:
                    return
        except _http.EventTooLargeError as error:
            self.is_over = True
            raise protocol.malformed(str(error)) from error
        except RetryRouterError:
            self.is_over = True
            raise


def check_key(key: SecretStr) -> None:
    """Refuse a key that no header can carry, without it in the error."""
    plain = key.get_secret_value()
    if not (plain.isascii() and plain.isprintable()):
        msg = (
            "the key holds a line end or another character that no HTTP header can"
            " carry; if it was read from a file, strip it"
        )
        raise ValueError(msg)


def _is_event_stream(status: int, headers: Mapping[str, str]) -> bool:
    kind = headers.get("content-type") or ""
    return status == _OK and kind.lower().startswith("text/event-stream")


def _raise_no_stream(status: int, headers: Mapping[str, str], body: bytes) -> NoReturn:
    """Raise the error for an answer that is not a stream of events."""
    if status != _OK:
        protocol.read_answer(status, headers, body)
    what = repr(protocol.excerpt(body)) if body else "no body"
    msg = f"the gateway answered {status} without a stream of events: {what}"
    raise protocol.malformed(msg, status)


def _type_error(error: Exception) -> RetryRouterError | None:
    """An exception of an HTTP library as one of ours; None if it is not from there."""
    if isinstance(error, RetryRouterError):
        return None
    if isinstance(error, http.ResponseTooLargeError):
        return protocol.malformed(str(error))
    _http.drop_request_headers(error)
    failure = _http.read_transport_error(error)
    if failure is None:
        return None
    reason: BaseException = error
    while nested := [arg for arg in reason.args if isinstance(arg, BaseException)]:
        reason = nested[-1]
    if isinstance(reason.__cause__, OSError):
        reason = reason.__cause__  # urllib3 puts its own object before the message.
    text = str(reason).split(": <")[0] or type(reason).__name__
    if failure.kind is FailureKind.TIMEOUT:
        missed = "whole answer from" if failure.may_have_run else "connection to"
        message = f"no {missed} the gateway in time"
    elif failure.kind is FailureKind.CONNECTION and not failure.may_have_run:
        message = f"no connection to the gateway: {text}"
    else:
        message = f"the connection to the gateway broke: {text}"
    return GPT_ROUTER_ERRORS[failure.kind](
        message, may_have_run=failure.may_have_run, should_retry=failure.should_retry
    )
