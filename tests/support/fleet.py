"""Real processes that share a store: a fork server that has the package loaded.

`Worker.call("name", ...)` runs a function of this module in the worker, and returns its
result; `send` and `receive` are its halves, so that many workers can run at once.
"""

import asyncio
import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, Final

from langchain_retryrouter import (
    CircuitBreaker,
    RateLimit,
    RetryBudget,
    RetryPolicy,
    RetryRouter,
    RetryRouterError,
    Route,
)
from langchain_retryrouter._shared import Reply
from langchain_retryrouter.rate_limits import Size
from langchain_retryrouter.stores import RedisStore
from tests.support.models import NOWHERE, gpt_router

CONTEXT: Final = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.support.fleet"])


class Worker:
    """One process of a fleet."""

    def __init__(self) -> None:
        self._pipe, other = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_serve, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def send(self, name: str, *args: Any) -> None:
        """Begin a function of this module."""
        self._pipe.send((name, args))

    def receive(self, timeout: float = 600) -> Any:
        assert self._pipe.poll(timeout), "a worker does not answer"
        result = self._pipe.recv()
        if isinstance(result, BaseException):
            raise result
        return result

    def call(self, name: str, *args: Any) -> Any:
        self.send(name, *args)
        return self.receive()


@contextlib.contextmanager
def fleet(count: int) -> Iterator[list[Worker]]:
    """So many workers, killed at the end."""
    workers = [Worker() for _ in range(count)]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()


def each(workers: list[Worker], name: str, *args: Any) -> list[Any]:
    """Run a function in all workers at once; their results."""
    for worker in workers:
        worker.send(name, *args)
    return [worker.receive() for worker in workers]


def _serve(pipe: Connection) -> None:
    os.nice(10)  # Elsewhere Redis and the provider have machines of their own.
    with contextlib.suppress(EOFError):
        while True:
            name, args = pipe.recv()
            try:
                result = globals()[name](*args)
            except Exception as error:  # noqa: BLE001 - it is raised in the test
                result = error
            pipe.send(result)


# --- what workers do ------------------------------------------------------------------

_here: dict[str, Any] = {}


def _router(
    gateway: str, breaker: CircuitBreaker | None = None, **fields: Any
) -> RetryRouter:
    model = gpt_router(gateway, "gpt-4", provider="p")
    route = Route(model=model, name="provider", breaker=breaker)
    return RetryRouter(routes=[route], breaker_settings=None, **fields)


def _load() -> None:
    """Load what a first call loads, once for all workers."""
    with contextlib.suppress(RetryRouterError):
        _router(NOWHERE, retry_policy=RetryPolicy(max_retries=0)).invoke("hi")


_load()


class Listening(CircuitBreaker):
    """Notes when it learns that a server has asked for a pause of some length."""

    def learned(self, reply: Reply) -> None:
        """Note the time, by the length in whole seconds."""
        now = time.monotonic()
        super().learned(reply)
        if reply[2] > 0:
            _here.setdefault("told", {}).setdefault(round(reply[2] / 1000), now)


def listen(url: str) -> bool:
    """Join a breaker that notes what it learns."""
    store = RedisStore(url, namespace="listen")
    _here["listening"] = Listening(name="provider", store=store)
    return True


def announce(seconds: int) -> float:
    """Say that the server has asked for a pause; the time of it."""
    now = time.monotonic()
    _here["listening"].open_for(seconds)
    return now


def told() -> dict[int, float]:
    """When each pause was learned."""
    return dict(_here.get("told", {}))


def join(
    url: str, gateway: str, settings: dict[str, Any] | None, policy: dict[str, Any]
) -> bool:
    """Make a router over one gateway, which shares its breaker and its budget."""
    breaker = None if settings is None else CircuitBreaker(**settings)
    _here["breaker"], _here["budget"] = breaker, RetryBudget()
    _here["router"] = _router(
        gateway,
        breaker,
        store=RedisStore(url, namespace="fleet"),
        budget=_here["budget"],
        retry_policy=RetryPolicy(**policy),
    )
    return True


def skew(seconds: float) -> bool:
    """Let this process's clock be wrong."""
    right = time.time  # noqa: TID251 - this one is made wrong
    time.time = lambda: right() + seconds  # noqa: TID251
    return True


def ask(count: int, at: float = 0.0) -> list[str]:
    """So many calls in a row, from a moment on: "ok", or the errors' kinds."""
    time.sleep(max(0.0, at - time.monotonic()))  # noqa: TID251 - all begin together
    return [_ask() for _ in range(count)]


def ask_for(seconds: float) -> list[tuple[float, str]]:
    """Calls in a row for so long; when each ended, and how."""
    ends, deadline = [], time.monotonic() + seconds
    while time.monotonic() < deadline:
        end = _ask()
        ends.append((time.monotonic(), end))
        time.sleep(0.01)  # noqa: TID251 - a worker has other things to do
    return ends


def _ask() -> str:
    try:
        _here["router"].invoke("hi")
    except RetryRouterError as error:
        return error.kind.value
    return "ok"


def state() -> tuple[str, float]:
    """The state of the worker's breaker, and the tokens of its budget."""
    return _here["breaker"].state.value, _here["budget"].tokens


def limit(url: str, numbers: dict[str, Any]) -> bool:
    store = RedisStore(url, namespace="limits")
    _here["limit"] = RateLimit(name="shared", store=store, **numbers)
    return True


def admit_for(begin: float, end: float, wanted: float) -> list[float]:
    """Want so many requests a second until a moment; when each was admitted."""
    return asyncio.run(_admit_for(begin, end, wanted))


async def _admit_for(begin: float, end: float, wanted: float) -> list[float]:
    shared: RateLimit = _here["limit"]
    admitted: list[float] = []

    async def one() -> None:
        reserved = await shared.areserve(Size(), 2.0)
        if reserved is not None:
            admitted.append(time.monotonic())
            reserved.succeeded()

    calls: set[asyncio.Task[None]] = set()
    due = begin
    while due < end:
        await asyncio.sleep(max(0.0, due - time.monotonic()))  # noqa: TID251 - arrivals
        calls.add(task := asyncio.create_task(one()))
        task.add_done_callback(calls.discard)
        due += 1 / wanted
    for task in list(calls):
        task.cancel()
    return [at for at in admitted if at < end]
