"""A call with a deadline is over at its deadline, whatever a server does."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random  # noqa: TID251 - seeded
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
from tests.promises.models import FIVE, METHODS, acall, call, new_model
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
    count = 0
    with places() as found:
        for place in found:
            models = [new_model(name, place.url, retry_policy=policy) for name in FIVE]
            groups = [models]
            if place.listener:  # To write a long request takes the processor: alone.
                groups = [[one] for one in (models if is_long else models[:2])]
            for group in groups:
                for late, error in ends_of(group, method, place, deadline):
                    story = f"{method}, server {place.manner}: {error!r}"
                    assert isinstance(error, ENDS), story
                    figures.at_most(
                        0.1,
                        max(0.0, late),
                        "seconds from the deadline to the end of a call, the latest",
                    )
                    count += 1
    figures.counted(count, "calls that waited in vain")


def ends_of(
    models: list[Any], method: str, place: Place, deadline: float
) -> list[tuple[float, Exception | None]]:
    """How late each call ended, and with which error.

    It counts from the end of a bare wait that began beside the calls, so that a busy
    machine is not a finding.
    """

    async def timed(model: Any) -> tuple[float, Exception | None]:
        began = time.monotonic()
        try:
            await acall(model, method, place.prompt)
        except Exception as error:  # noqa: BLE001 - looked at by the test
            return time.monotonic() - began, error
        return time.monotonic() - began, None

    def timed_in_thread(model: Any) -> tuple[float, Exception | None]:
        began = time.monotonic()
        try:
            call(model, method, place.prompt)
        except Exception as error:  # noqa: BLE001 - looked at by the test
            return time.monotonic() - began, error
        return time.monotonic() - began, None

    async def all_at_once() -> list[tuple[float, Exception | None]]:
        async def bare_wait() -> float:
            began = time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline):
                    await asyncio.get_running_loop().create_future()
            return max(time.monotonic() - began, deadline)

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

    if method.startswith("a"):
        return asyncio.run(all_at_once())
    with ThreadPoolExecutor(len(models) + 1) as threads:
        running = [threads.submit(timed_in_thread, model) for model in models]
        began = time.monotonic()
        threading.Event().wait(deadline)
        due = max(time.monotonic() - began, deadline)
        return [(one.result()[0] - due, one.result()[1]) for one in running]


class WatchfulClock(FakeClock):
    """Counts the waits that would end after second 2."""

    hopeless = 0

    def sleep(self, seconds: float) -> None:
        self.hopeless += self.monotonic() + seconds > 2 + 1e-9  # Floats are rounded.
        super().sleep(seconds)

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FIVE)
def test_no_wait_begins_that_cannot_end(
    name: str, twin: Twin, figures: Figures, *, is_long: bool
) -> None:
    """Whatever a server asks for, a wait that would outlast the deadline is not begun.

    On a fake clock, which the server moves while it makes up its mind.
    """
    waits = hopeless = 0
    with FaultyGateway(keep_requests=0) as gateway:
        for seed in range(300 if is_long else 10):
            rng = random.Random(f"{name} {seed}")  # noqa: S311
            clock = WatchfulClock(random=iter(rng.random, None))

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
            hopeless += clock.hopeless
            waits += len(clock.sleeps)
    figures.exactly(0, hopeless, "waits begun that would have outlasted the deadline")
    figures.counted(waits, "waits begun, and over in time")
