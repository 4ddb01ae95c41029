"""SDK clients that are made when first used, shared, and never retry.

What a model holds as `client` and `async_client` are resources that know their settings
only: they pickle, copy and fork. The SDK client behind them is one a process, or one a
running event loop, for all models with equal settings, and is closed with the last of
them, or with its loop. An HTTP client of the user's own is never closed.

Who closes a resource early lets go of the client, and the last one closes it. A request
after that takes hold of it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import sys
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, ClassVar, Final

import openai

from langchain_retryrouter._openai.clients.bounded_bodies import (
    ACCEPTED_ENCODINGS,
    abound,
    bound,
)
from langchain_retryrouter._openai.clients.timed_reads import watch
from langchain_retryrouter._openai.protocol import ClientSettings

_HOOKS: Final[Mapping[str, dict[str, list[Any]]]] = {
    "": {"request": [watch], "response": [bound]},
    "Async": {"response": [abound]},
}

STRAIGHT: Final = "straight"
"""The extension of a request that needs neither authentication, nor cookies, nor
redirects of the HTTP library: an eighth of what an async call costs."""


def _new_client(settings: ClientSettings, prefix: str = "") -> tuple[Any, Any]:
    """An SDK client that leaves the retrying to us, and its HTTP client if it is ours.

    Args:
        settings: What to make it of.
        prefix: `Async`, or nothing.
    """
    own = None
    if settings.http_client is None:
        # Not left to the SDK: its own would, once collected, close itself in whichever
        # event loop happens to run, and takes no proxy.
        options: dict[str, Any] = {
            "verify": _ssl_context(*_certificates()),
            "event_hooks": _HOOKS[prefix],
            "headers": {"accept-encoding": ACCEPTED_ENCODINGS},
            # The key follows nobody to another host; nor does what a server wants to
            # be told again concern the other models that share this client.
            "follow_redirects": False,
            "cookies": CookieJar(DefaultCookiePolicy(allowed_domains=())),
        }
        if settings.proxy is not None:
            options["proxy"] = settings.proxy
        own = _http_client_class(prefix)(**options)
    sdk_class = getattr(openai, prefix + settings.sdk_class)
    http_client = own or settings.http_client
    client = sdk_class(**settings.options, http_client=http_client, max_retries=0)
    if settings.sdk_class == "AzureOpenAI":
        _keep_to_one_identity(client, settings.options)
    elif own is not None and isinstance(settings.options.get("api_key"), str):
        _fixed[client] = own
    return client, own


# The HTTP clients of SDK clients that send each request to the same address, with the
# same key.
_fixed: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def http_client_of(client: Any) -> Any:
    """The HTTP client that we made for an SDK client whose headers stay the same."""
    return _fixed.get(client)


def _http_client_class(prefix: str) -> Any:
    if not prefix:
        return openai.DefaultHttpxClient
    # aiohttp is paid for by the first async call.
    from langchain_retryrouter._openai.clients import aio_transport

    return aio_transport.client_class()


def _keep_to_one_identity(client: Any, options: Mapping[str, Any]) -> None:
    """Undo what openai 2 takes from Azure's variables beside what it is given."""
    client.api_key = options.get("api_key", "")
    client._azure_ad_token = options.get("azure_ad_token")  # noqa: SLF001 - see above


def _certificates() -> tuple[str | None, ...]:
    """The variables by which certificates are found."""
    return tuple(os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"))


@functools.lru_cache(maxsize=4)
def _ssl_context(*_certificates: str | None) -> Any:
    """What all clients share, since it is nearly all that one costs: about 20 ms."""
    return http_library().create_ssl_context()


@functools.cache
def http_library() -> Any:
    """The HTTP library that the SDK itself uses: httpx up to openai 2, then httpx2."""
    (name,) = {
        base.__module__
        for base in openai.DefaultHttpxClient.__mro__
        if base.__module__ in {"httpx", "httpx2"}
    }
    return sys.modules[name]


class _Shared:
    """What both twins know of a client that is shared: whose it is."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        # By identity: two resources with equal settings are equal, and two holders.
        self._holders: weakref.WeakValueDictionary[int, Resource] = (
            weakref.WeakValueDictionary()
        )

    def hold(self, resource: Resource) -> None:
        """`resource` uses the client."""
        if id(resource) not in self._holders:
            self._holders[id(resource)] = resource

    def let_go(self, resource: Resource) -> bool:
        """`resource` uses it no longer; whether nobody does."""
        self._holders.pop(id(resource), None)
        return not self._holders


class _SharedClient(_Shared):
    """The sync SDK client of all models with equal settings."""

    def __init__(self, settings: ClientSettings) -> None:
        super().__init__(settings)
        self._by_process: dict[int, Any] = {}

    def get(self) -> Any:
        """This process's client. A fork leaves its parent's sockets alone."""
        client = self._by_process.get(os.getpid())
        if client is not None:
            return client
        # No lock, which a fork could leave locked: of two threads one is just faster.
        made, http_client = _new_client(self._settings)
        client = self._by_process.setdefault(os.getpid(), made)
        if client is made and http_client is not None:
            # With the SDK client, not with us: somebody may hold on to a part of it.
            _closers[client] = weakref.finalize(client, http_client.close)
        return client

    def close(self) -> None:
        """Close this process's client."""
        client = self._by_process.pop(os.getpid(), None)
        if client in _closers:
            _closers.pop(client)()


# What closes the HTTP client of each sync SDK client, where it is ours.
_closers: weakref.WeakKeyDictionary[Any, weakref.finalize[Any, Any]] = (
    weakref.WeakKeyDictionary()
)


class _SharedAsyncClient(_Shared):
    """The async SDK clients of all models with equal settings."""

    def __init__(self, settings: ClientSettings) -> None:
        super().__init__(settings)
        self._by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = (
            weakref.WeakKeyDictionary()
        )

    def get(self) -> Any:
        """The running loop's client; outside of one, a client only to look at."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return _new_client(self._settings, "Async")[0]
        client = self._by_loop.get(loop)
        if client is None:
            self._forget_closed_loops()
            client, http_client = _new_client(self._settings, "Async")
            self._by_loop[loop] = client
            _keepers[client] = _started(_keeper(weakref.ref(self), http_client))
        return client

    async def aclose(self) -> None:
        """Close the running loop's client."""
        client = self._by_loop.pop(asyncio.get_running_loop(), None)
        if client in _keepers:
            await _keepers.pop(client).aclose()

    def leave_loop(self) -> None:
        """Let go of the running loop, which is about to end."""
        self._by_loop.pop(asyncio.get_running_loop(), None)

    def _forget_closed_loops(self) -> None:
        # An open connection holds on to its loop, so the weak key alone does not do.
        for reference in self._by_loop.keyrefs():
            loop = reference()
            if loop is not None and loop.is_closed():
                self._by_loop.pop(loop, None)


# What closes the HTTP client of each async SDK client, as long as that one is used.
_keepers: weakref.WeakKeyDictionary[Any, AsyncGenerator[None]] = (
    weakref.WeakKeyDictionary()
)


async def _keeper(
    shared: Callable[[], _SharedAsyncClient | None], http_client: Any
) -> AsyncGenerator[None]:
    """Closes `http_client` in its own loop: when nobody uses it, or when the loop ends.

    An event loop ends its unfinished async generators before it closes, which is the
    one hook there is to clean up in it; `asyncio.run` and `asyncio.Runner` use it. A
    generator that is collected is ended by its loop, too.
    """
    try:
        yield
    finally:
        owner = shared()
        if owner is not None:
            owner.leave_loop()
        if http_client is not None:
            await http_client.aclose()


def _started(keeper: AsyncGenerator[None]) -> AsyncGenerator[None]:
    with contextlib.suppress(StopIteration):
        # Up to its `yield`, where nothing is awaited: a step needs no `await`.
        keeper.__anext__().send(None)
    return keeper


class Resource:
    """A resource of an SDK client, such as `client.completions`; settings only."""

    __slots__ = ("__weakref__", "_path", "_settings", "_shared")
    _shared_class: ClassVar[type[_SharedClient | _SharedAsyncClient]]
    _registry: ClassVar[weakref.WeakValueDictionary[ClientSettings, Any]]
    _shared: Any

    def __init__(self, settings: ClientSettings, path: str) -> None:
        self._settings = settings
        self._path = path
        made = self._shared_class(settings)
        self._shared = self._registry.setdefault(settings, made)

    def __getattr__(self, name: str) -> Any:
        """Whatever the SDK's own resource has, such as `create`."""
        if name in Resource.__slots__ or name.startswith("__"):
            raise AttributeError(name)  # Asked by pickle and copy, before there is one.
        return getattr(self.sdk_resource, name)

    @property
    def client(self) -> Any:
        """The SDK client that is shared."""
        self._shared.hold(self)
        return self._shared.get()

    @property
    def sdk_resource(self) -> Any:
        """The SDK's own resource."""
        resource = self.client
        for step in self._path.split("."):
            resource = getattr(resource, step)
        return resource

    @property
    def url(self) -> str:
        """Where its requests go, behind the address of the API."""
        return "/" + self._path.replace(".", "/")

    @property
    def default_headers(self) -> Mapping[str, str]:
        """The headers that the settings put into every request."""
        return self._settings.options.get("default_headers") or {}

    def __reduce__(self) -> tuple[Any, ...]:
        """The settings, key included; the client is made anew where they arrive."""
        return type(self), (self._settings, self._path)

    def __eq__(self, other: object) -> bool:
        """Whether both send the same way."""
        if not isinstance(other, Resource):
            return NotImplemented
        return self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        """Equal for equal resources."""
        return hash((self._settings, self._path))

    def __repr__(self) -> str:
        """Whose resource it is, without the key."""
        return f"<{type(self).__name__} {self._settings.sdk_class}().{self._path}>"


class SDKResource(Resource):
    """A resource of a sync SDK client."""

    __slots__ = ()
    _shared_class: ClassVar = _SharedClient
    _registry: ClassVar = weakref.WeakValueDictionary()

    def close(self) -> None:
        """Close the client's connections, unless others use it too."""
        if self._shared.let_go(self):
            self._shared.close()


class AsyncSDKResource(Resource):
    """A resource of an async SDK client."""

    __slots__ = ()
    _shared_class: ClassVar = _SharedAsyncClient
    _registry: ClassVar = weakref.WeakValueDictionary()

    async def aclose(self) -> None:
        """Async twin of `close`: those of the running event loop."""
        if self._shared.let_go(self):
            await self._shared.aclose()


@dataclass(frozen=True)
class AsyncKey:
    """A function that returns the key, as async SDK clients want it; equal by function.

    Attributes:
        read: The function, sync or async.
    """

    read: Callable[[], Any]

    async def __call__(self) -> str:
        """The key."""
        key = self.read()
        return str(await key if inspect.isawaitable(key) else key)


class MissingResource:
    """Stands where there are no credentials for this twin; says so when it is used."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __getattr__(self, name: str) -> Any:
        """Nothing.

        Raises:
            ValueError: Says what is missing.
        """
        if name.startswith("_"):
            raise AttributeError(name)
        raise ValueError(self._reason)
