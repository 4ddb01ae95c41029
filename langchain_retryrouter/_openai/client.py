"""The openai SDK's clients, shared between models, and one request sent through them.

Models hold two `SDKResource`s, a sync and an async one: settings only, so that models
can be pickled, copied and forked. The SDK client behind a resource is made when it is
first used. Models with equal settings share one sync client a process and one async
client an event loop. The clients never retry: `_retry.engine` does.

An `SDKRequest` is sent through the SDK's public `create`, so that instrumentation that
wraps it sees every call. It takes the raw response and reads its JSON: the SDK's
response objects cost more than all other work on a chunk. What goes wrong is raised as
one of `_openai.errors`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import operator
import os
import socket
import sys
import urllib.request
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Hashable,
    Iterator,
    Mapping,
)
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import openai

from langchain_retryrouter._openai import protocol
from langchain_retryrouter._openai.errors import TypedErrors
from langchain_retryrouter._retry.engine import Attempt
from langchain_retryrouter._retry.timeouts import on_abort, run_with_timeout

_AZURE_VARIABLES: Final = ("AZURE_OPENAI_AD_TOKEN", "AZURE_OPENAI_API_KEY")
# Seconds that the end of a stream's body is waited for, to reuse its connection.
_DRAIN_TIMEOUT: Final = 0.1
# Seconds that a thread may wait longer for the headers of a stream than the engine.
_GRACE: Final = 0.5
# The time limits of the stream that is opened, from its headers on.
_stream_limits: ContextVar[Mapping[str, float | None]] = ContextVar(
    "langchain_retryrouter_stream_limits", default=MappingProxyType({})
)


# Settings.


@dataclass(frozen=True, eq=False)
class ClientSettings:
    """How to make an SDK client: its class, such as `AsyncOpenAI`, and arguments.

    Or why there is none, as what is `missing`.
    """

    sdk_class: str
    options: Mapping[str, Any] = field(repr=False)
    proxy: str | None = field(default=None, repr=False)
    http_client: Any = field(default=None, repr=False)
    missing: str = ""

    @property
    def is_async(self) -> bool:
        """Whether the client is async."""
        return self.sdk_class.startswith("Async")

    @property
    def secrets(self) -> set[str]:
        """The credentials in the settings, without those that functions return."""
        named = (self.options.get(name) for name in ("api_key", "azure_ad_token"))
        return {value for value in named if isinstance(value, str)}


def _frozen(value: Any) -> Hashable:
    """Something with a hash, equal for equal settings."""
    if isinstance(value, Mapping):
        return frozenset((str(name), _frozen(item)) for name, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    if hasattr(value, "as_dict"):  # A `Timeout`, which has no hash.
        return _frozen(value.as_dict())
    frozen: Hashable = value
    try:
        hash(value)
    except TypeError:
        frozen = id(value)
    return frozen


@dataclass(frozen=True)
class AsyncKey:
    """A function that returns the key, sync or async, as async SDK clients want it."""

    read: Callable[[], Any]

    async def __call__(self) -> str:
        key = self.read()
        return str(await key if inspect.isawaitable(key) else key)


# Making clients.


def _new_client(settings: ClientSettings) -> tuple[Any, Any]:
    """An SDK client that does not retry, and its HTTP client if we made it."""
    if settings.missing:
        raise ValueError(settings.missing)
    own = None if settings.http_client is not None else _new_http_client(settings)
    client = getattr(openai, settings.sdk_class)(
        **settings.options, http_client=own or settings.http_client, max_retries=0
    )
    # The SDK reads an empty variable, and would send a header without a value.
    client.organization = client.organization or None
    client.project = client.project or None
    return client, own


def _new_http_client(settings: ClientSettings) -> Any:
    def on_response(response: Any) -> None:
        # JSON is UTF-8 (RFC 8259); a server may name a charset that decodes no text.
        response.encoding = "utf-8"
        on_abort(functools.partial(_shut_down, response))
        response.request.extensions["timeout"].update(_stream_limits.get())

    async def aon_response(response: Any) -> None:
        response.encoding = "utf-8"

    is_async = settings.is_async
    options: dict[str, Any] = {
        "verify": _ssl_context(
            os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
        ),
        "proxy": settings.proxy,
        # A redirect would send the API key to another host.
        "follow_redirects": False,
        "event_hooks": {"response": [aon_response if is_async else on_response]},
    }
    if not is_async:
        return openai.DefaultHttpxClient(**options)
    proxies = (settings.proxy or "", *urllib.request.getproxies().values())
    # aiohttp's pool stays fast with many calls waiting, but speaks no SOCKS.
    if not any(proxy.startswith("socks") for proxy in proxies):
        # openai 2 needs `httpx-aiohttp` for it, its extra `aiohttp`.
        with contextlib.suppress(RuntimeError):
            return openai.DefaultAioHttpClient(**options)
    return openai.DefaultAsyncHttpxClient(**options)


@functools.lru_cache(maxsize=4)
def _ssl_context(*_certificates: str | None) -> Any:
    """The SSL context of all clients; to make one takes about 20 ms."""
    # `httpx`, or `httpx2` from openai 3 on.
    name = openai.DefaultHttpxClient.__base__.__module__.partition(".")[0]
    return sys.modules[name].create_ssl_context()


# Sharing clients.


class _Clients:
    """The SDK clients of all resources with equal settings.

    A sync client belongs to a process, since a forked one must make its own; an async
    client belongs to an event loop.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        # By identity: resources with equal settings are equal, and not the same.
        self._users = weakref.WeakValueDictionary[int, Any]()
        self._by_process: dict[int, Any] = {}
        self.by_loop = weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Any]()

    def get(self, user: SDKResource) -> Any:
        if id(user) not in self._users:
            self._users[id(user)] = user
        return self._get_async() if self.settings.is_async else self._get_sync()

    def has_others(self, user: SDKResource) -> bool:
        """Whether other resources use the client; `user` no longer does."""
        self._users.pop(id(user), None)
        return bool(self._users)

    def _get_sync(self) -> Any:
        client = self._by_process.get(os.getpid())
        if client is not None:
            return client
        # No lock, which a fork could leave locked: the first of two threads wins.
        made, http_client = _new_client(self.settings)
        client = self._by_process.setdefault(os.getpid(), made)
        if client is made and http_client is not None:
            # Closed with the SDK client: a part of it may outlive the model.
            weakref.finalize(client, http_client.close)
        return client

    def _get_async(self) -> Any:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # Only to look at.
            return _new_client(self.settings)[0]
        client = self.by_loop.get(loop)
        if client is None:
            # Open connections refer to their loop, so that weak keys are not enough.
            for known in [one for one in self.by_loop if one.is_closed()]:
                del self.by_loop[known]
            client, http_client = _new_client(self.settings)
            self.by_loop[loop] = client
            if http_client is not None:
                closer = _close_with_loop(weakref.ref(self), http_client)
                step = closer.__anext__()
                with contextlib.suppress(StopIteration):
                    step.send(None)  # Up to its `yield`; it awaits nothing.
                _closers[client] = closer
        return client

    def close(self) -> None:
        client = self._by_process.pop(os.getpid(), None)
        if client is not None and self.settings.http_client is None:
            client.close()

    async def aclose(self) -> None:
        client = self.by_loop.pop(asyncio.get_running_loop(), None)
        if client in _closers:
            await _closers.pop(client).aclose()


# What closes the HTTP client of each async SDK client that is in use.
_closers = weakref.WeakKeyDictionary[Any, AsyncGenerator[None]]()
_shared = weakref.WeakValueDictionary[Hashable, _Clients]()


async def _close_with_loop(
    clients: Callable[[], _Clients | None], http_client: Any
) -> AsyncGenerator[None]:
    """Close `http_client` in its own loop, when the loop ends or nothing refers to it.

    `asyncio.run` ends the unfinished async generators of its loop before it closes the
    loop: that is the one hook for clean-up in a loop that is about to end.
    """
    try:
        yield
    finally:
        if (owner := clients()) is not None:
            owner.by_loop.pop(asyncio.get_running_loop(), None)
        await http_client.aclose()


class SDKResource:
    """A resource of an SDK client, such as `client.completions`; settings only."""

    __slots__ = ("__weakref__", "_clients", "_path", "identity", "settings")

    def __init__(self, settings: ClientSettings, path: str) -> None:
        self.settings, self._path = settings, path
        frozen = _frozen(vars(settings))
        self.identity = (frozen, path)
        self._clients = _shared.setdefault(frozen, _Clients(settings))

    def __getattr__(self, name: str) -> Any:
        if name in SDKResource.__slots__ or name.startswith("__"):
            raise AttributeError(name)  # Asked by pickle and copy, before `__init__`.
        return getattr(self.sdk_resource(), name)

    def sdk_resource(self) -> Any:
        """The resource of the shared SDK client."""
        return operator.attrgetter(self._path)(self.sdk_client())

    def sdk_client(self) -> Any:
        """The shared SDK client."""
        return self._clients.get(self)

    def close(self) -> None:
        """Close the client's connections, unless other resources use it too."""
        if not self._clients.has_others(self):
            self._clients.close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop, as `close`."""
        if not self._clients.has_others(self):
            await self._clients.aclose()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.settings, self._path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SDKResource) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.settings.sdk_class}().{self._path}>"


# Requests.


def sdk_timeout(value: Any) -> Any:
    """A time limit in the SDK's form; a pair is for connecting and for reading."""
    if isinstance(value, list | tuple):
        connect, read = value
        return openai.Timeout(read, connect=connect)
    # It may be one of httpx, where the SDK uses its successor.
    return openai.Timeout(**value.as_dict()) if hasattr(value, "as_dict") else value


class SDKRequest:
    """A request that each attempt of a call sends anew.

    All attempts share an idempotency key, unless the request or the model has one: a
    gateway that stores such keys does the work of a repeated request once.
    """

    def __init__(
        self, resource: Any, request: Mapping[str, Any], unix_time: Callable[[], float]
    ) -> None:
        self._resource, self._unix_time = resource, unix_time
        self._request = dict(request)
        # None for a resource of the user's own, which need not be the SDK's.
        self._settings = (
            resource.settings if isinstance(resource, SDKResource) else None
        )
        self._is_ambiguous = False
        if self._settings is None:
            return
        options = self._settings.options
        headers = request.get("extra_headers") or {}
        names = (*headers, *(options.get("default_headers") or {}))
        if "idempotency-key" not in map(str.lower, names):
            key = f"retryrouter-{os.urandom(16).hex()}"
            self._request["extra_headers"] = {**headers, "Idempotency-Key": key}
        # Azure's client of openai 2 takes a token from the environment in addition to
        # the key or token provider that it was given. A request's header wins.
        self._is_ambiguous = (
            self._settings.sdk_class.endswith("AzureOpenAI")
            and "azure_ad_token" not in options
            and any(name in os.environ for name in _AZURE_VARIABLES)
        )

    def create(self, attempt: Attempt) -> Any:
        """The answer, a `SDKObject`; of a user's own resource, its own."""
        with self._typed_errors(attempt) as errors:
            prepared = self._prepared(attempt, self._token())
            return self._read(self._raw().create(**prepared), errors)

    async def acreate(self, attempt: Attempt) -> Any:
        with self._typed_errors(attempt) as errors:
            prepared = self._prepared(attempt, await self._atoken())
            return self._read(await self._raw().create(**prepared), errors)

    def open_stream(self, attempt: Attempt) -> SDKStream:
        """The stream, when its headers have come."""
        with self._typed_errors(attempt) as errors:
            prepared = self._prepared(attempt, self._token())
            is_own = self._settings is not None and self._settings.http_client is None
            if attempt.timeout is not None and is_own:
                # A thread that waits for headers must not outlive the attempt for long.
                limits = prepared["timeout"].as_dict()
                _stream_limits.set(limits)
                due, read = attempt.timeout + _GRACE, limits["read"]
                read = due if read is None else min(read, due)
                prepared["timeout"] = openai.Timeout(**{**limits, "read": read})
            stream = self._resource.create(**prepared)
            errors.response = getattr(stream, "response", None)
            if _is_document(errors.response):
                errors.response.read()
                protocol.check_document(errors.response)
        opened = SDKStream(stream, self._request, errors)
        on_abort(opened.abort)
        return opened

    async def aopen_stream(self, attempt: Attempt) -> SDKStream:
        with self._typed_errors(attempt) as errors:
            prepared = self._prepared(attempt, await self._atoken())
            stream = await self._resource.create(**prepared)
            errors.response = getattr(stream, "response", None)
            if _is_document(errors.response):
                await errors.response.aread()
                protocol.check_document(errors.response)
        return SDKStream(stream, self._request, errors)

    def _typed_errors(self, attempt: Attempt) -> TypedErrors:
        return TypedErrors(self._settings, self._unix_time, attempt.read_headers)

    def _raw(self) -> Any:
        """A resource of ours as one whose `create` gives the raw response."""
        if self._settings is None:
            return self._resource
        own = self._resource.sdk_resource()
        # Made anew: the SDK's keeps its first `create`; instrumentation may wrap it.
        return type(own.with_raw_response)(own)

    def _read(self, answer: Any, errors: TypedErrors) -> Any:
        # Instrumentation may hand over the SDK's parsed object.
        if self._settings is not None and hasattr(answer, "http_response"):
            errors.response = answer.http_response
            answer = protocol.read_response(answer.http_response)
        return protocol.checked_answer(answer, self._request)

    def _token(self) -> Any:
        """The Azure token of a provider, or an awaitable for it."""
        if self._settings is None or not self._is_ambiguous:
            return None
        provider = self._settings.options.get("azure_ad_token_provider")
        return None if provider is None else provider()

    async def _atoken(self) -> Any:
        token = self._token()
        return await token if inspect.isawaitable(token) else token

    def _prepared(self, attempt: Attempt, token: Any) -> dict[str, Any]:
        """The keyword arguments of `create` for this attempt."""
        prepared = dict(self._request)
        # A user's own client keeps its own limits: the engine enforces the attempt's.
        if attempt.timeout is not None and self._settings is not None:
            prepared.setdefault("timeout", self._resource.sdk_client().timeout)
        if "timeout" in prepared:
            prepared["timeout"] = sdk_timeout(prepared["timeout"])
        if attempt.timeout is not None and "timeout" in prepared:
            limits = openai.Timeout(prepared["timeout"]).as_dict()
            most = attempt.timeout
            for name, limit in limits.items():
                # A stream's is for the first token, a read timeout for each event.
                if not (name == "read" and prepared.get("stream")):
                    limits[name] = most if limit is None else min(limit, most)
            prepared["timeout"] = openai.Timeout(**limits)
        headers: dict[str, Any] = {}
        if self._settings is None:
            return prepared
        if attempt.number > 1:
            # The SDK would count its own retries, which are off.
            headers["x-stainless-retry-count"] = str(attempt.number - 1)
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        elif self._is_ambiguous:
            key = self._settings.options["api_key"]
            headers |= {"Authorization": openai.Omit(), "api-key": key}
        if headers:
            own_headers = prepared.get("extra_headers") or {}
            prepared["extra_headers"] = {**headers, **own_headers}
        return prepared


def _is_document(response: Any) -> bool:
    """Whether a response is a page or an answer, where a stream was asked for."""
    content_type = getattr(response, "headers", {}).get("content-type", "")
    return bool(content_type.startswith(("text/html", "application/json")))


# Streams.


class SDKStream:
    """The events of one attempt's stream, sync or async, as the client is.

    Errors are those of `_openai.errors`.
    """

    def __init__(
        self, stream: Any, request: Mapping[str, Any], errors: TypedErrors
    ) -> None:
        self._reader = protocol.StreamReader(protocol.expected_choices(request))
        self._stream = stream
        # The SDK's own stream is read as bytes. One that instrumentation wrapped, or
        # the user's own, hands over its chunks.
        self._response: Any = None
        self._parts: Any = stream
        self._read: Callable[[Any], Iterator[Any]] = self._reader.take
        if type(stream) in {openai.Stream, openai.AsyncStream}:
            response = self._response = stream.response
            is_sync = type(stream) is openai.Stream
            self._parts = response.iter_bytes() if is_sync else response.aiter_bytes()
            self._read = self._reader.feed
        self._errors = errors
        errors.response = self._response

    def _can_drain(self) -> bool:
        """Whether the rest of the body is worth reading, for the connection."""
        is_open = self._response is not None and not self._response.is_closed
        return is_open and self._reader.is_whole

    def __iter__(self) -> Iterator[protocol.ClassifiedChunk]:
        with self._errors:
            for part in self._parts:
                yield from self._read(part)
                if self._reader.is_done:
                    break
            if (end := self._reader.end_of_body()) is not None:
                yield end

    def close(self) -> None:
        """Release the connection: for another request, if the answer is whole."""
        try:
            if self._can_drain():
                with contextlib.suppress(Exception):
                    run_with_timeout(_DRAIN_TIMEOUT, lambda: list(self._parts))
        finally:
            self.abort()
            if self._response is not None:
                self._response.close()

    def abort(self) -> None:
        """Unblock, from another thread, a read under way; it then raises."""
        if self._response is None:
            if hasattr(self._stream, "close"):
                self._stream.close()
        else:
            _shut_down(self._response)

    async def __aiter__(self) -> AsyncIterator[protocol.ClassifiedChunk]:
        with self._errors:
            async for part in self._parts:
                for chunk in self._read(part):
                    yield chunk
                if self._reader.is_done:
                    break
            if (end := self._reader.end_of_body()) is not None:
                yield end

    async def aclose(self) -> None:
        """Async variant of `close`."""
        if self._response is None:
            names = [n for n in ("close", "aclose") if hasattr(self._stream, n)]
            closing = getattr(self._stream, names[0])() if names else None
            if inspect.isawaitable(closing):
                await closing
            return
        try:
            if self._can_drain():
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(_DRAIN_TIMEOUT):
                        async for _ in self._parts:
                            pass
        finally:
            await self._response.aclose()


def _shut_down(response: Any) -> None:
    """Interrupt, from another thread, a read under way; it then raises."""
    network = response.extensions.get("network_stream")
    connection = network and network.get_extra_info("socket")
    if connection is not None and not response.is_closed:
        with contextlib.suppress(OSError):  # It may be closed by now.
            # Not the method of an `SSLSocket`, which drops the TLS state that the other
            # thread reads with.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
