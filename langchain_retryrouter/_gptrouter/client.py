"""Bytes to the gateway and back: a `GPTRouterClient` with pooled connections.

The SDK's client opens a connection and an SSL context for each call, loses errors on
the way, and cannot see a stream's end; this one is a drop-in for it. One call is one
request: nothing here retries. What goes wrong comes out as one of `errors.gpt_router`.
The file does not know messages, policies, or runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from gpt_router.client import GPTRouterClient
from gpt_router.models import GPTRouterMetadata, ModelGenerationRequest
from pydantic import SecretStr

from langchain_retryrouter import _json
from langchain_retryrouter._gptrouter.bodies import (
    AsyncEvents,
    SyncEvents,
    aread_all,
    read_all,
)
from langchain_retryrouter._gptrouter.errors import GPT_ROUTER_ERRORS
from langchain_retryrouter._gptrouter.pools import origin_of
from langchain_retryrouter._gptrouter.protocol import (
    GatewayResponse,
    read_json,
    read_response,
    read_status_error,
)
from langchain_retryrouter._gptrouter.sending import Request, asend, send
from langchain_retryrouter._retry.clock import SystemTime
from langchain_retryrouter._retry.retry_after import read_advice
from langchain_retryrouter.errors import (
    RetryRouterError,
    UnsupportedOptionError,
    redact,
)
from langchain_retryrouter.failures import FailureKind

if TYPE_CHECKING:
    from langchain_retryrouter._aiohttp import AnyAnswer
    from langchain_retryrouter._gptrouter.answers import Answer, Limit


Timeout: TypeAlias = float | tuple[float, float] | None

_GENERATE = "/v1/generate"
_OK = 200
_NO_BODY = frozenset({202, 204})


class Response(Protocol):
    """An answer of either library, as far as it is looked at here."""

    status: int

    @property
    def headers(self) -> Any:
        """By name, of any case."""


class GatewayClient(GPTRouterClient):
    """A client of one gateway, usable wherever the SDK's `GPTRouterClient` is.

    Holds settings only; the connections belong to the process and the event loop. So it
    can be shared by threads and loops, forked, copied, and pickled (the pickle carries
    the key, or it would be of no use in a worker).

    Args:
        base_url: The gateway's address, with or without `/api` at its end.
        api_key: The key; never shown by `repr`.
        request_timeout: Seconds to connect, and to wait for bytes: one number, or a
            pair of both; None for no limit.
        stream_read_timeout: Seconds a stream may be silent; None for `request_timeout`.
        additional_metadata: Gateway metadata sent with every request.
        proxy: URL of a proxy; None for what the environment names now.

    Raises:
        ValueError: If address, proxy or key are such that nothing could be sent.
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
        """Settings only: nothing is opened."""
        self.base_url = base_url
        self._secret = api_key if isinstance(api_key, SecretStr) else SecretStr(api_key)
        # The SDK says `int` by accident of its default.
        self.request_timeout: Timeout = request_timeout  # type: ignore[assignment]
        self.stream_read_timeout: float | None = stream_read_timeout  # type: ignore[assignment]
        self.additional_metadata = additional_metadata
        root = base_url.rstrip("/").removesuffix("/api").rstrip("/")
        self._root = f"{root}/api"
        self._origin = origin_of(root, proxy)
        check_key(self._secret)
        self._masked = redact(self.api_key)

    @property
    def api_key(self) -> str:
        """The key, in the clear, for code written for the SDK's client."""
        return self._secret.get_secret_value()

    def __repr__(self) -> str:
        """The address; no key."""
        return f"{type(self).__name__}({self.base_url!r})"

    # --- generate -------------------------------------------------------------------

    def generate(  # type: ignore[override] # events that can be closed at once
        self,
        *,
        ordered_generation_requests: Sequence[ModelGenerationRequest],
        is_stream: bool = False,
        model_router_metadata: GPTRouterMetadata | None = None,
        **options: Any,
    ) -> GatewayResponse | SyncEvents:
        """One answer, or the events of one; one request, and no retry.

        Args:
            ordered_generation_requests: A request per model, the preferred one first.
            is_stream: Whether to answer with events, which are closed after use.
            model_router_metadata: Gateway metadata for this request.
            **options: `timeout`, seconds for the request, of a stream until its
                headers; `whole_within`, seconds for all of a stream; `gateway_timeout`
                and `gateway_max_retries`, what the gateway gives its provider.

        Raises:
            RetryRouterError: One of `errors.gpt_router`.
            UnsupportedOptionError: For any other option.
        """
        timeout = options.pop("timeout", None)
        whole_within = options.pop("whole_within", None)
        payload = self._payload(
            ordered_generation_requests, is_stream, model_router_metadata, options
        )
        if is_stream:
            return self.open_stream(_GENERATE, payload, timeout, whole_within)
        return _read_generation(self.post(_GENERATE, payload, timeout))

    async def agenerate(  # type: ignore[override] # the SDK forgot its streams
        self,
        *,
        ordered_generation_requests: Sequence[ModelGenerationRequest],
        is_stream: bool = False,
        model_router_metadata: GPTRouterMetadata | None = None,
        stop_stream_signal: asyncio.Event | None = None,
        **options: Any,
    ) -> GatewayResponse | AsyncEvents:
        """Async twin of `generate`; its time is limited by `asyncio.timeout`."""
        options.pop("timeout", None)
        options.pop("whole_within", None)
        payload = self._payload(
            ordered_generation_requests, is_stream, model_router_metadata, options
        )
        if is_stream:
            return await self.aopen_stream(_GENERATE, payload, stop_stream_signal)
        return _read_generation(await self.apost(_GENERATE, payload))

    def _payload(
        self,
        requests: Sequence[ModelGenerationRequest],
        is_stream: bool,  # noqa: FBT001 - the SDK's own name and position
        metadata: GPTRouterMetadata | None,
        options: dict[str, Any],
    ) -> dict[str, Any]:
        payload: dict[str, Any] = {
            "stream": is_stream,
            # Without nulls: the gateway would turn `max_tokens: null` into 0.
            "data": [r.model_dump(exclude_none=True, by_alias=True) for r in requests],
        }
        payload = self.add_metadata_info(payload, metadata)
        timeout = options.pop("gateway_timeout", None)
        if timeout is not None:
            payload["timeout"] = max(1, round(timeout * 1000))
        max_retries = options.pop("gateway_max_retries", None)
        if max_retries is not None:
            payload["maxRetries"] = max_retries
        if options:
            names = ", ".join(map(repr, sorted(options)))
            msg = f"the gateway client cannot carry {names}"
            raise UnsupportedOptionError(msg)
        return payload

    def add_metadata_info(
        self,
        payload: dict[str, Any],
        model_router_metadata: GPTRouterMetadata | None = None,
    ) -> dict[str, Any]:
        """The payload with the client's metadata, and over it that of the call.

        What the call does not say is left as the client has it: the SDK's own merging
        would write the call's nulls over it.
        """
        merged: dict[str, Any] = {}
        for metadata in (self.additional_metadata, model_router_metadata):
            if metadata is not None:
                merged |= metadata.model_dump(exclude_none=True)
        if not merged:
            return {**payload, "metadata": {}}
        told = GPTRouterMetadata(**merged)
        return {**super().add_metadata_info(payload, told), "metadata": merged}

    # --- one request ----------------------------------------------------------------

    def post(
        self, path: str, payload: Mapping[str, Any], timeout: float | None = None
    ) -> dict[str, Any] | None:
        """The JSON object the gateway answers with; None for an answer without a body.

        Args:
            path: The endpoint, such as `/v1/generate`.
            payload: The request's body.
            timeout: Seconds for all of it, within the client's own timeout.

        Raises:
            RetryRouterError: One of `errors.gpt_router`.
        """
        with self._masked:
            response, _ = self._send(path, payload, timeout)
            try:
                body = read_all(response)
            finally:
                response.close()
            return _read_answer(response, body)

    async def apost(
        self, path: str, payload: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Async twin of `post`."""
        with self._masked:
            response = await self._asend(path, payload)
            try:
                body = await aread_all(response)
            finally:
                response.close()
            return _read_answer(response, body)

    def open_stream(
        self,
        path: str,
        payload: Mapping[str, Any],
        timeout: float | None = None,
        whole_within: float | None = None,
    ) -> SyncEvents:
        """The gateway's events, as they come.

        Args:
            path: The endpoint.
            payload: The request's body.
            timeout: Seconds until the answer's headers, within the client's own.
            whole_within: Seconds until the last event; None for no limit.

        Raises:
            RetryRouterError: One of `errors.gpt_router`.
        """
        began = time.monotonic()
        read_timeout = self.stream_read_timeout
        with self._masked:
            response, limit = self._send(path, payload, timeout, read_timeout)
            if _is_event_stream(response):
                # The headers have come; from here on who reads says how long it takes.
                limit.due = None if whole_within is None else began + whole_within
                return SyncEvents(response, limit, self._masked)
            try:
                body = read_all(response)
            finally:
                response.close()
            raise _not_a_stream(response, body)

    async def aopen_stream(
        self,
        path: str,
        payload: Mapping[str, Any],
        stop_signal: asyncio.Event | None = None,
    ) -> AsyncEvents:
        """Async twin of `open_stream`; ends early once `stop_signal` is set."""
        with self._masked:
            response = await self._asend(path, payload, self.stream_read_timeout)
            if _is_event_stream(response):
                return AsyncEvents(response, self._masked, stop_signal)
            try:
                body = await aread_all(response)
            finally:
                response.close()
            raise _not_a_stream(response, body)

    # --- what the SDK's other methods, embeddings and images, are built on ----------

    def _api_call(
        self, *, path: str, method: str, payload: dict[str, Any], **_: Any
    ) -> Any:
        del method  # All endpoints are POST.
        return self.post(path, payload)

    async def _async_api_call(
        self, *, path: str, method: str, payload: dict[str, Any], **_: Any
    ) -> Any:
        del method
        return await self.apost(path, payload)

    def _send(
        self,
        path: str,
        payload: Mapping[str, Any],
        timeout: float | None,
        read_timeout: float | None = None,
    ) -> tuple[Answer, Limit]:
        connect, read = _split_timeout(self.request_timeout, read_timeout)
        return send(
            self._request(path, payload), _smaller(connect, timeout), read, timeout
        )

    async def _asend(
        self,
        path: str,
        payload: Mapping[str, Any],
        read_timeout: float | None = None,
    ) -> AnyAnswer:
        connect, read = _split_timeout(self.request_timeout, read_timeout)
        return await asend(self._request(path, payload), connect, read)

    def _request(self, path: str, payload: Mapping[str, Any]) -> Request:
        return Request(self._origin, self._root + path, self.api_key, _encode(payload))


def check_key(key: SecretStr) -> None:
    """Refuse a key that no HTTP header can carry.

    Raises:
        ValueError: Without the key in it, which the HTTP libraries would show.
    """
    plain = key.get_secret_value()
    if not (plain.isascii() and plain.isprintable()):
        msg = (
            "the key holds a line end or another character that no HTTP header can"
            " carry; if it was read from a file, strip it"
        )
        raise ValueError(msg)


def _encode(payload: Mapping[str, Any]) -> bytes:
    try:
        return _json.write(payload)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"the request cannot be written as JSON: {error}"
        raise UnsupportedOptionError(msg) from error


def _split_timeout(
    timeout: Timeout, read_timeout: float | None
) -> tuple[float | None, float | None]:
    connect, read = timeout if isinstance(timeout, tuple) else (timeout, timeout)
    return connect, read if read_timeout is None else read_timeout


def _smaller(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _read_generation(data: dict[str, Any] | None) -> GatewayResponse:
    if data is None:
        msg = "the gateway took the request and sent no answer"
        raise GPT_ROUTER_ERRORS[FailureKind.MALFORMED](msg)
    return read_response(data)


def _read_answer(response: Response, body: bytes) -> dict[str, Any] | None:
    if response.status == _OK:
        return read_json(body, _OK)
    if response.status in _NO_BODY:
        return None
    raise _status_error(response, body)


def _is_event_stream(response: Response) -> bool:
    kind = response.headers.get("content-type") or ""
    return response.status == _OK and kind.lower().startswith("text/event-stream")


def _not_a_stream(response: Response, body: bytes) -> RetryRouterError:
    if response.status != _OK:
        return _status_error(response, body)
    told = body[:200].decode("utf-8", "replace")
    return GPT_ROUTER_ERRORS[FailureKind.MALFORMED](
        f"the gateway answered without a stream of events: {told!r}", status_code=_OK
    )


def _status_error(response: Response, body: bytes) -> RetryRouterError:
    headers = response.headers
    advice = read_advice(list(headers.items()), unix_time=SystemTime.time())
    request_id = headers.get("x-request-id")
    return read_status_error(response.status, body, advice, request_id)
