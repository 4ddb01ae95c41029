"""Many calls, two in a hundred of which meet a fault: nothing hangs or grows."""

import asyncio
import gc
import random  # noqa: TID251 - seeded
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from langchain_retryrouter import (
    CircuitBreaker,
    RetryBudget,
    RetryPolicy,
    RetryRouterError,
    UnavailableError,
)
from langchain_retryrouter.testing import (
    Answer,
    Cut,
    FakeClock,
    FaultyGateway,
    Hangup,
    HtmlPage,
    Reset,
    Status,
    Step,
    Truncate,
)
from tests.promises.conftest import Figures, Twin
from tests.promises.harness import (
    FIVE,
    VirtualClock,
    call,
    let_pass,
    new_model,
    router,
    run,
)

FAULTS: Final = 0.02
STEPS: Final[tuple[Step, ...]] = (
    *(Status(429, {"retry-after": "3"}), Status(500), Status(503), Status(400)),
    *(HtmlPage(), Reset(), Hangup(), Cut(after=1), Truncate(after=1)),
)


def held() -> tuple[int, int]:
    """Blocks of memory that Python holds for objects in use, and resident pages."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return sys.getallocatedblocks(), pages


def note_drift(
    figures: Figures, before: tuple[int, int], where: str, *, is_long: bool
) -> None:
    what = ["number of objects drifts"]
    if is_long:  # A machine that is short of memory takes some of a process.
        what.append("resident memory drifts")
    for now, then, subject in zip(held(), before, what, strict=False):
        drift = abs(100 * (now / then - 1))
        figures.at_most(2, drift, f"% that the {subject}, {where}")


@pytest.mark.timeout(3600)
def test_calls_on_a_virtual_clock(figures: Figures, *, is_long: bool) -> None:
    """Eight tasks call a router at once, through faults and outages, for hours."""
    calls, rng = 100_000 if is_long else 1_000, random.Random(1)  # noqa: S311
    policy = RetryPolicy(max_retries=2, deadline=60)
    late, attempts = [0.0], list[int]()

    async def send() -> None:
        await let_pass(min(120.0, 0.3 * rng.paretovariate(1.1)))
        if rng.random() < FAULTS:
            raise UnavailableError(str(FAULTS), retry_after=rng.choice([None, 0, 3]))

    async def soak(number: int) -> None:
        clock = VirtualClock(number)
        guards: dict[str, Any] = {"breaker": CircuitBreaker(clock=clock)}
        guards |= {"budget": RetryBudget(), "retry_policy": policy}
        asked, left = router(send, clock, **guards), iter(range(number))

        async def keep_calling() -> None:
            for _ in left:
                began = clock.monotonic()
                try:
                    await asked.ainvoke("hi")
                except RetryRouterError as error:
                    attempts.append(error.attempts)
                late[0] = max(late[0], clock.monotonic() - began - 60)
                await let_pass(rng.expovariate(1))

        await asyncio.gather(*(keep_calling() for _ in range(8)))

    run(soak(calls // 10))
    before = held()
    run(soak(calls - calls // 10))
    note_drift(figures, before, "on a virtual clock", is_long=is_long)
    assert max(attempts, default=0) <= policy.max_retries + 1
    assert len(attempts) < 0.1 * calls
    figures.at_most(1e-6, late[0], "seconds past a deadline")
    figures.counted(calls, "calls on a virtual clock")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FIVE)
def test_calls_over_http(
    name: str, twin: Twin, figures: Figures, *, is_long: bool
) -> None:
    """The real models over HTTP keep neither calls nor sockets."""
    calls, rng = 4_000 if is_long else 60, random.Random(name)  # noqa: S311
    clock, attempts = FakeClock(random=iter(rng.random, None)), list[int]()
    methods = ("ainvoke", "astream") if twin.is_async else ("invoke", "stream")
    with FaultyGateway(keep_requests=0) as gateway:
        gateway.always(
            lambda _: rng.choice(STEPS) if rng.random() < FAULTS else Answer()
        )
        breaker = CircuitBreaker(clock=clock)
        guards: dict[str, Any] = {"budget": RetryBudget(), "breaker": breaker}
        model = new_model(name, gateway, clock=clock, **guards)
        for number in range(calls):
            if number == calls // 4:
                before = held()
            try:
                assert call(model, rng.choice(methods))
            except RetryRouterError as error:
                attempts.append(error.attempts)
                clock.advance(60)
        if is_long:
            note_drift(figures, before, "over HTTP", is_long=True)
        figures.at_most(8, gateway.open_connections, "connections open in the end")
    assert max(attempts, default=0) <= 6
    assert len(attempts) < 0.1 * calls
    figures.counted(calls, "calls over HTTP")
