"""A call with a deadline is over at its deadline, whatever a server does."""

from __future__ import annotations

import asyncio
import contextlib
import random  # noqa: TID251 - seeded
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, NamedTuple

import pytest

from langchain_retryrouter import (
    APITimeoutError,
    RateLimitError,
    RetryPolicy,
    StreamInterruptedError,
    UnavailableError,
)
from langchain_retryrouter.testing import (
    Drip,
    FakeClock,
    FaultyGateway,
    Silence,
    SlowFirstToken,
    Stall,
    Status,
    Step,
)
from tests.promises.conftest import Figures, Twin
from tests.promises.models import (
    FIVE,
    METHODS,
    acall,
    call,
    load_lazily_imported_modules,
    new_model,
)
from tests.unit_tests.listeners import full

AT_ONCE: Final = 5
"""Calls under way together: few, since each of them takes the processor too."""

LATE: Final = "seconds from the deadline to the end of a call, the latest"
MANNERS: Final[dict[str, Step]] = {
    "says nothing": Silence(30),
    "sends headers only": SlowFirstToken(30),
    "stops in the middle": Stall(2, 30),
    "drips bytes": Drip(0.05, 1),
    "fails at once": Status(503, {"retry-after": "0"}),
}


class Place(NamedTuple):
    """A server, and how it keeps its callers waiting."""

    manner: str
    url: str
    prompt: str = "hi"
    drop_connections: Callable[[], object] = bool


def drop_all(listener: socket.socket) -> None:
    """Reset the connections that nobody has read from."""
    listener.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """Nothing is imported by the first call."""
    load_lazily_imported_modules()


@contextlib.contextmanager
def places() -> Iterator[list[Place]]:
    """Servers that do not answer in time; the last two do not even accept or read."""
    with contextlib.ExitStack() as stack:
        found = []
        for manner, step in MANNERS.items():
            gateway = stack.enter_context(FaultyGateway(keep_requests=0))
            gateway.always(step)
            found.append(Place(manner, gateway.url))
        deaf = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        found.append(
            Place("never reads", url, "x" * 5_000_000, partial(drop_all, deaf))
        )
        found.append(Place("never accepts", stack.enter_context(full())))
        yield found


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("small_heap")
@pytest.mark.parametrize("method", METHODS)
def test_a_call_is_over_at_its_deadline(
    method: str, figures: Figures, *, is_long: bool
) -> None:
    """A call is over at its deadline, be the server silent, stalled, deaf or full.

    How late it is counts from the end of a bare wait that began beside it, so that a
    busy machine is not a finding.
    """
    deadline = 1.0 if is_long else 0.3
    policy = RetryPolicy(deadline=deadline, max_retries=5, initial_delay=0.05)
    count = 0
    with places() as found:
        for place in found:
            models = [new_model(name, place.url, retry_policy=policy) for name in FIVE]
            # To write a long request takes the processor: it is alone.
            alone = [[one] for one in (models if is_long else models[:2])]
            for together in [models] if len(place.prompt) < 1_000 else alone:
                ends = wait_together(together, method, place, deadline)
                for name, late, error in ends:
                    story = f"{method} of {name}, server {place.manner}: {error!r}"
                    assert isinstance(error, ENDS), story
                    assert late <= 0.1, f"{late:.3f} s late: {story}"
                    figures.at_most(0.1, max(0.0, late), LATE)
                count += len(ends)
    figures.counted(count, "calls that waited in vain")


# A server that fails at once may have the last word before the time is up.
ENDS: Final = (APITimeoutError, StreamInterruptedError, UnavailableError)


def wait_together(
    models: list[Any], method: str, place: Place, deadline: float
) -> list[tuple[str, float, BaseException | None]]:
    """The class of each model, how late its call ended, and with which error."""
    if method.startswith("a"):
        return asyncio.run(await_together(models, method, place, deadline))

    def timed(model: Any) -> tuple[float, BaseException | None]:
        began = time.monotonic()
        try:
            call(model, method, place.prompt)
        except Exception as error:  # noqa: BLE001 - looked at by the test
            return time.monotonic() - began, error
        return time.monotonic() - began, None

    with ThreadPoolExecutor(AT_ONCE + 1) as threads:
        began = time.monotonic()
        running = [threads.submit(timed, model) for model in models]
        threading.Event().wait(deadline)
        bare = time.monotonic() - began
        ends = [one.result() for one in running]
    return late(models, ends, max(bare, deadline))


async def await_together(
    models: list[Any], method: str, place: Place, deadline: float
) -> list[tuple[str, float, BaseException | None]]:
    """Async variant of `wait_together`."""

    async def timed(model: Any) -> tuple[float, BaseException | None]:
        began = time.monotonic()
        try:
            await acall(model, method, place.prompt)
        except Exception as error:  # noqa: BLE001 - looked at by the test
            return time.monotonic() - began, error
        return time.monotonic() - began, None

    async def bare_wait() -> float:
        began = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                await asyncio.get_running_loop().create_future()
        return time.monotonic() - began

    waiting = asyncio.create_task(bare_wait())
    ends = await asyncio.gather(*(timed(one) for one in models))
    due = max(await waiting, deadline)
    # aiohttp closes a connection when all bytes are written, or the server is gone.
    place.drop_connections()
    await asyncio.to_thread(threading.Event().wait, 0.1)
    return late(models, ends, due)


def late(
    models: list[Any], ends: list[Any], due: float
) -> list[tuple[str, float, BaseException | None]]:
    """Each model's class, and its end counted from when it was due."""
    return [
        (type(model).__name__, seconds - due, error)
        for model, (seconds, error) in zip(models, ends, strict=True)
    ]


class WatchfulClock(FakeClock):
    """A clock that counts the waits which would reach the end of a call's time."""

    def __init__(self, end: float, **settings: Any) -> None:
        """For a call that begins at 0."""
        super().__init__(**settings)
        self.end = end
        self.hopeless = 0

    def sleep(self, seconds: float) -> None:
        """Wait, and look at the wait."""
        # To end with the deadline is to end in time, but for the rounding of floats.
        self.hopeless += self.monotonic() + seconds > self.end + 1e-9
        super().sleep(seconds)

    async def asleep(self, seconds: float) -> None:
        """Wait, and look at the wait."""
        self.hopeless += self.monotonic() + seconds > self.end + 1e-9
        await super().asleep(seconds)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FIVE)
def test_no_wait_begins_that_cannot_end(
    name: str, twin: Twin, figures: Figures, *, is_long: bool
) -> None:
    """Whatever a server asks for, a wait that would outlast the deadline is not begun.

    On a fake clock, which the server moves while it makes up its mind.
    """
    waits = 0
    with FaultyGateway(keep_requests=0) as gateway:
        for seed in range(300 if is_long else 10):
            rng = random.Random(f"{name} {seed}")  # noqa: S311
            clock = WatchfulClock(2, random=iter(rng.random, None))

            def refuse(
                _: object, rng: random.Random = rng, clock: FakeClock = clock
            ) -> Step:
                clock.advance(rng.choice([0, 0.01, 0.3, 1.2]))
                asked = rng.choice(["0", "0.2", "1", "1.9", "2", "30"])
                return rng.choice([Status(503), Status(429, {"retry-after": asked})])

            gateway.always(refuse)
            policy = RetryPolicy(
                deadline=2,
                max_retries=20,
                initial_delay=rng.choice([0.05, 0.4, 3]),
                jitter=rng.random() < 0.5,
            )
            model = new_model(name, gateway, retry_policy=policy, clock=clock)
            with pytest.raises((UnavailableError, RateLimitError, APITimeoutError)):
                twin.invoke(model, "hi")
            assert not clock.hopeless, f"seed {seed}: waits of {clock.sleeps}"
            waits += len(clock.sleeps)
    figures.exactly(0, 0, "waits begun that would have outlasted the deadline")
    figures.counted(waits, "waits begun, and over in time")
