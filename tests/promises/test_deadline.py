"""A call with a deadline is over at its deadline, whatever a server does."""

import asyncio
import contextlib
import gc
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import pytest

from langchain_retryrouter import (
    APITimeoutError,
    RetryPolicy,
    StreamInterruptedError,
    UnavailableError,
)
from langchain_retryrouter.testing import (
    Drip,
    FaultyGateway,
    Silence,
    SlowFirstToken,
    Stall,
    Status,
    Step,
)
from tests.promises.conftest import Figures
from tests.promises.harness import FIVE, METHODS, acall, call, new_model
from tests.unit_tests.listeners import full

MANNERS: Final[dict[str, Step]] = {
    "says nothing": Silence(30),
    "sends headers only": SlowFirstToken(30),
    "stops in the middle": Stall(2, 30),
    "drips bytes": Drip(0.05, 1),
    "fails at once": Status(503, {"retry-after": "0"}),
}
# A server that fails at once may have the last word before the time is up.
ENDS: Final = (APITimeoutError, StreamInterruptedError, UnavailableError)


class Place(NamedTuple):
    manner: str
    url: str
    prompt: str = "hi"
    listener: socket.socket | None = None


@contextlib.contextmanager
def places() -> Iterator[list[Place]]:
    """Servers that do not answer in time; the last two do not even read or accept."""
    with contextlib.ExitStack() as stack:
        found = []
        for manner, step in MANNERS.items():
            gateway = stack.enter_context(FaultyGateway(keep_requests=0))
            gateway.always(step)
            found.append(Place(manner, gateway.url))
        deaf = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        found.append(Place("never reads", url, "x" * 5_000_000, deaf))
        found.append(Place("never accepts", stack.enter_context(full())))
        gc.collect()
        gc.freeze()  # A full collection takes 0.2 s of a test run.
        yield found
        gc.unfreeze()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", METHODS)
def test_a_call_is_over_at_its_deadline(
    method: str, figures: Figures, *, is_long: bool
) -> None:
    """A call is over at its deadline, be the server silent, stalled, deaf or full."""
    deadline = 1.0 if is_long else 0.3
    policy = RetryPolicy(deadline=deadline, max_retries=5, initial_delay=0.05)
    what = "seconds from the deadline to the end of a call, the latest"
    with places() as found:
        for place in found:
            models = [new_model(name, place.url, retry_policy=policy) for name in FIVE]
            groups = [models]
            if place.listener:  # To write a long request takes the processor: alone.
                groups = [[one] for one in (models if is_long else models[:2])]
            for group in groups:
                for late, error in ends_of(group, method, place, deadline):
                    assert isinstance(error, ENDS), (method, place.manner, error)
                    figures.timed(0.1, max(0.0, late), what)
                figures.counted(len(group), "calls that waited in vain")


def ends_of(
    models: list[Any], method: str, place: Place, deadline: float
) -> list[tuple[float, Exception | None]]:
    """How late each call ended, and with which error.

    It counts from the end of a bare wait that began beside the calls, so that a busy
    machine is not a finding.
    """

    async def timed(model: Any) -> tuple[float, Exception | None]:
        began, error = time.monotonic(), None
        try:
            if method.startswith("a"):
                await acall(model, method, place.prompt)
            else:
                await asyncio.to_thread(call, model, method, place.prompt)
        except Exception as caught:  # noqa: BLE001 - looked at by the test
            error = caught
        return time.monotonic() - began, error

    async def bare_wait() -> float:
        began = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                await asyncio.get_running_loop().create_future()
        return max(time.monotonic() - began, deadline)

    async def all_at_once() -> list[tuple[float, Exception | None]]:
        waiting = asyncio.create_task(bare_wait())
        ends = await asyncio.gather(*(timed(one) for one in models))
        due = await waiting
        if place.listener:  # aiohttp keeps what it has to write until the server goes.
            place.listener.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                while True:
                    place.listener.accept()[0].close()
            await asyncio.to_thread(threading.Event().wait, 0.1)
        return [(seconds - due, error) for seconds, error in ends]

    return asyncio.run(all_at_once())
