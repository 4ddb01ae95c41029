"""`GatewayClient`: requests to a gateway over pooled connections, and typed errors.

The SDK's client opens a connection and an SSL context for each call, loses errors, and
cannot see the end of a stream; this one stands in its place. One call is one request:
nothing here retries. It knows neither LangChain's messages nor retry policies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import (
    AsyncGenerator,
    Callable,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, Final, TypeAlias, TypeVar, cast
from urllib.parse import urlsplit

import urllib3
from gpt_router.client import GPTRouterClient
from gpt_router.models import GPTRouterMetadata, ModelGenerationRequest
from pydantic import SecretStr

from langchain_retryrouter import __version__, _http
from langchain_retryrouter._gptrouter import http, protocol
from langchain_retryrouter._gptrouter.protocol import GPT_ROUTER_ERRORS, SDK_KINDS
from langchain_retryrouter._providers.errors import hide_secrets
from langchain_retryrouter.errors import RetryRouterError, UnsupportedOptionError
from langchain_retryrouter.failures import FailureKind

T = TypeVar("T")
ReadHeaders: TypeAlias = Callable[[Mapping[str, str]], object]
Timeout: TypeAlias = float | tuple[float, float] | None

_OK: Final = 200
# The public gateway answers a larger body with an opaque 500, or cuts the connection.
_MAX_REQUEST_BYTES: Final = 1024 * 1024
_GRACE_SECONDS: Final = 0.5
_ENCODER: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":")
)


class GatewayClient(GPTRouterClient):
    """A client of one gateway, usable wherever the SDK's `GPTRouterClient` is.

    It holds settings, and what answers have shown of the gateway's models, `observed`;
    the connections belong to the process and the event loop. So it can be shared by
    threads and loops, forked, copied, and pickled, with the key, which a worker needs.
    The SDK's methods that are not overridden send by the SDK's own means.

    The arguments are the SDK's. `request_timeout` are seconds to connect and to wait
    for bytes, one number or a pair; None for no limit. `proxy` is the URL of a proxy;
    None for what the environment names now.

    Raises:
        ValueError: If nothing could be sent with this address or proxy.
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
        self.origin = http.find_origin(root, proxy)
        host, path = self.origin.netloc, urlsplit(root).path
        self._root = f"{self.origin.scheme}://{host}{path}/api"
        self._login = urllib3.make_headers(basic_auth=http.login_in(root))

    @property
    def api_key(self) -> str:
        """The key in plain text, for code written for the SDK's client."""
        return self._secret.get_secret_value()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    def generate(
        self,
        *,
        ordered_generation_requests: Sequence[ModelGenerationRequest],
        is_stream: bool = False,
        model_router_metadata: GPTRouterMetadata | None = None,
        **options: Any,
    ) -> protocol.GatewayResponse | Generator[protocol.GatewayEvent, None, None]:
        """One answer, or the events of one; one request, without retries.

        The arguments are the SDK's; a stream, whose last event is `end`, is sent for
        with its first event, and has to be closed. The options are `timeout`, seconds
        to connect and without a byte, if less than the client's; `read_headers`, called
        with the headers of the answer; and what the gateway gives its provider:
        `gateway_timeout`, in seconds, and `gateway_max_retries`.

        Raises:
            RetryRouterError: One of `errors.GPT_ROUTER_ERRORS`.
        """
        requests, metadata = ordered_generation_requests, model_router_metadata
        request = self._generation(requests, metadata, is_stream=is_stream, **options)
        if is_stream:
            return self._events(request)
        return self.post(request, protocol.read_response)

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
        requests, metadata = ordered_generation_requests, model_router_metadata
        request = self._generation(requests, metadata, is_stream=is_stream, **options)
        if is_stream:
            return self._aevents(request, stop_stream_signal)
        return await self.apost(request, protocol.read_response)

    def _generation(
        self,
        requests: Sequence[ModelGenerationRequest],
        metadata: GPTRouterMetadata | None,
        *,
        is_stream: bool,
        timeout: float | None = None,
        read_headers: ReadHeaders | None = None,
        gateway_timeout: float | None = None,
        gateway_max_retries: int | None = None,
    ) -> http.Request:
        payload: dict[str, Any] = {
            "stream": is_stream,
            # Without nulls: the gateway would turn `max_tokens: null` into 0.
            "data": [r.model_dump(exclude_none=True, by_alias=True) for r in requests],
        }
        payload = self.add_metadata_info(payload, metadata)
        if gateway_timeout is not None:
            payload["timeout"] = max(1, round(gateway_timeout * 1000))
        if gateway_max_retries is not None:
            payload["maxRetries"] = gateway_max_retries
        return self.build_request(
            "/v1/generate", payload, timeout, read_headers, is_stream=is_stream
        )

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

    def post(self, request: http.Request, read: Callable[[dict[str, Any]], T]) -> T:
        """What `read` makes of the JSON object of the answer."""
        with self._typed_errors(request):
            with contextlib.closing(http.post(request)) as response:
                body = http.read_body(response)
            return read(protocol.read_answer(response.status, response.headers, body))

    async def apost(
        self, request: http.Request, read: Callable[[dict[str, Any]], T]
    ) -> T:
        """Async variant of `post`."""
        with self._typed_errors(request):
            async with http.apost(request) as response:
                body = await http.aread_body(response)
            return read(protocol.read_answer(response.status, response.headers, body))

    def _events(
        self, request: http.Request
    ) -> Generator[protocol.GatewayEvent, None, None]:
        """The events of one stream, `end` included.

        Closing it gives the connection back if the stream is over, and else closes it.
        """
        with (
            self._typed_errors(request),
            contextlib.closing(http.post(request)) as response,
        ):
            if not _is_event_stream(response.status, response.headers):
                body = http.read_body(response)
                protocol.raise_no_stream(response.status, response.headers, body)
            parser = _EventParser()
            try:
                while not parser.is_over:
                    yield from parser.feed(response.read1(http.READ_BYTES))
            finally:
                if parser.is_over:
                    http.drain(response)

    async def _aevents(
        self, request: http.Request, stop_signal: asyncio.Event | None
    ) -> AsyncGenerator[protocol.GatewayEvent, None]:
        """Async variant of `_events`."""
        with self._typed_errors(request):
            async with http.apost(request) as response:
                if not _is_event_stream(response.status, response.headers):
                    body = await http.aread_body(response)
                    protocol.raise_no_stream(response.status, response.headers, body)
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

    def build_request(
        self,
        path: str,
        payload: Mapping[str, Any],
        timeout: float | None,
        read_headers: ReadHeaders | None = None,
        *,
        is_stream: bool = False,
    ) -> http.Request:
        """What is sent; the `timeout` of a stream, for its first token, limits no read.

        Raises:
            UnsupportedOptionError: If the payload cannot be written as JSON.
        """
        limits = cast("Timeout", self.request_timeout)
        connect, read = limits if isinstance(limits, tuple) else (limits, limits)
        if is_stream and self.stream_read_timeout is not None:
            read = self.stream_read_timeout
        connect, read_first = _shorter(connect, timeout), _shorter(read, timeout)
        if not is_stream:
            read = read_first
        elif timeout is not None:
            # Later than the engine, whose error says more, gives the attempt up: only
            # so that the thread that reads does not outlive it for long.
            read_first = _shorter(read, timeout + _GRACE_SECONDS)
        headers = {
            "accept-encoding": "identity",
            "content-type": "application/json",
            "user-agent": f"langchain-retryrouter/{__version__}",
            "ws-secret": self.api_key,
            **self._login,
        }
        try:
            body = _ENCODER.encode(payload).encode()
        except (TypeError, ValueError, RecursionError) as error:
            msg = f"the request cannot be written as JSON: {error}"
            raise UnsupportedOptionError(msg) from error
        url = self._root + path
        return http.Request(
            self.origin, url, headers, body, connect, read, read_first, read_headers
        )

    @contextlib.contextmanager
    def _typed_errors(self, request: http.Request) -> Iterator[None]:
        """Raise exceptions of the HTTP libraries as ours.

        Keys are taken out of the texts of both. A failure of the gateway at a body
        that the public one never accepts is not retried.
        """
        try:
            yield
        except Exception as error:
            hide_secrets(error, [self.api_key])
            typed = error if isinstance(error, RetryRouterError) else _type_error(error)
            if typed is None:
                raise
            size = len(request.body)
            its_own = {FailureKind.SERVER_ERROR, FailureKind.CONNECTION}
            if typed.kind in its_own and size > _MAX_REQUEST_BYTES:
                typed.should_retry = False
                typed.add_note(
                    f"not retried: the request has {size:,} bytes, and the public"
                    f" gateway fails above {_MAX_REQUEST_BYTES:,}; shorten it, or give"
                    " large pictures by their URL"
                )
            if typed is error:
                raise
            raise typed from error


# Half of a character above U+FFFF, which servers in JavaScript may cut in two.
_FIRST_HALVES: Final = ("\ud800", "\udbff")


class _EventParser:
    """The bytes of one stream to events, with the halves of characters joined."""

    def __init__(self) -> None:
        self._parser = _http.SSEParser()
        # Of characters that the next piece of a text ends, by the text.
        self._halves: dict[Any, str] = {}
        self.is_over = False

    def feed(self, chunk: bytes) -> Iterator[protocol.GatewayEvent]:
        """The events that `chunk` completes; no bytes are the end of the body."""
        try:
            if not chunk:
                raise protocol.interrupted()
            for frame in self._parser.feed(chunk):
                event = protocol.read_event(frame.data, frame.kind)
                if event is None:
                    continue
                # A half is only ever written as an escape, from `\ud800` on.
                may_be_cut = self._halves or b"\\ud" in frame.data.lower()
                if may_be_cut and event.event == "update":
                    self._join_halves(event.data)
                self.is_over = event.event == "end"
                yield event
                if self.is_over:
                    return
        except (_http.TooLargeError, RetryRouterError):
            self.is_over = True
            raise

    def _join_halves(self, update: dict[str, Any]) -> None:
        """Keep half of a character for the next update, unless this is the last."""
        low, high = _FIRST_HALVES
        for holder, name, key in _texts_in(update):
            if not isinstance(holder.get(name), str):
                continue
            text = self._halves.pop(key, "") + holder[name]
            units = text.encode("utf-16", "surrogatepass")
            text = units.decode("utf-16", "surrogatepass")
            if low <= text[-1:] <= high and not update.get("finish_reason"):
                self._halves[key] = text[-1:]
                text = text[:-1]
            holder[name] = text


def _texts_in(update: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Where an update may have a piece of a text, and what tells the texts apart."""
    for name in ("text", *protocol.REASONING):
        yield update, name, name
    yield update.get("function_call") or {}, "arguments", "function_call"
    for call in update.get("tool_calls") or ():
        yield call.get("function") or {}, "arguments", call.get("index")


def _shorter(limit: float | None, other: float | None) -> float | None:
    return min((one for one in (limit, other) if one is not None), default=None)


def _is_event_stream(status: int, headers: Mapping[str, str]) -> bool:
    kind = headers.get("content-type") or ""
    return status == _OK and kind.lower().startswith("text/event-stream")


def _type_error(error: Exception) -> RetryRouterError | None:
    """An exception of an HTTP library as one of ours; None if it is not from there."""
    if isinstance(error, _http.TooLargeError):
        return protocol.malformed(str(error))
    failure = _http.read_transport_error(error)
    if failure is None:
        return None
    reason: BaseException = error
    while nested := [arg for arg in reason.args if isinstance(arg, BaseException)]:
        reason = nested[-1]
    cause = reason.__cause__
    # urllib3 puts its own object before the message, aiohttp a status of its own.
    if cause and (isinstance(cause, OSError) or hasattr(cause, "message")):
        reason = cause
    said = getattr(reason, "message", None) or str(reason).split(": <")[0]
    text = said or type(reason).__name__
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


class SDKClient:
    """A client of the SDK's own kind, with the interface and the errors of ours."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.observed = protocol.ObservedModels()

    def generate(
        self, *, is_stream: bool, **options: Any
    ) -> protocol.Response | Generator[protocol.Event, None, None]:
        """One answer, or the events of one."""
        known = _sdk_options(options)
        if is_stream:
            return self._events(known)
        with _typed_sdk_errors(self._client):
            response: protocol.Response = self._client.generate(
                is_stream=False, **known
            )
        return response

    async def agenerate(
        self, *, is_stream: bool, **options: Any
    ) -> protocol.Response | AsyncGenerator[protocol.Event, None]:
        """Async variant of `generate`."""
        known = _sdk_options(options)
        if is_stream:
            return self._aevents(known)
        with _typed_sdk_errors(self._client):
            response: protocol.Response = await self._client.agenerate(
                is_stream=False, **known
            )
        return response

    def _events(self, options: dict[str, Any]) -> Generator[protocol.Event, None, None]:
        """The SDK's events, with the `end` that its client drops.

        So the end of the body has to do for it; the reader still needs a finish reason.
        """
        with _typed_sdk_errors(self._client):
            yield from self._client.generate(is_stream=True, **options)
        yield protocol.GatewayEvent(event="end", data={})

    async def _aevents(
        self, options: dict[str, Any]
    ) -> AsyncGenerator[protocol.Event, None]:
        with _typed_sdk_errors(self._client):
            events = await self._client.agenerate(is_stream=True, **options)
            try:
                async for event in events:
                    yield event
            finally:
                if isinstance(events, AsyncGenerator):
                    await events.aclose()
        yield protocol.GatewayEvent(event="end", data={})


def _sdk_options(options: dict[str, Any]) -> dict[str, Any]:
    names = ("ordered_generation_requests", "model_router_metadata")
    return {name: options[name] for name in names if options[name] is not None}


@contextlib.contextmanager
def _typed_sdk_errors(client: Any) -> Iterator[None]:
    try:
        yield
    except RetryRouterError:
        raise
    except Exception as error:
        hide_secrets(error, [str(getattr(client, "api_key", ""))])
        kinds = [kind for cls, kind in SDK_KINDS.items() if isinstance(error, cls)]
        if not kinds:
            raise
        raise GPT_ROUTER_ERRORS[kinds[0]](str(error)) from error
