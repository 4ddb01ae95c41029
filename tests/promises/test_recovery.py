"""An outage is not made worse: no herd, no amplification, one probe, a quick recovery.

Crowds of real calls run on a virtual clock, through a RetryRouter with one route.
"""

import asyncio
import bisect
import contextlib
import random  # noqa: TID251 - what a program seeds, and the package does not use
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Final

import pytest

from langchain_retryrouter import (
    APIConnectionError,
    CircuitBreaker,
    CircuitOpenError,
    RateLimitError,
    RetryBudget,
    RetryRouterError,
    UnavailableError,
)
from langchain_retryrouter.testing import FakeClock, FaultyGateway, Silence, Status
from tests.promises.conftest import Figures
from tests.promises.harness import (
    VirtualClock,
    acall,
    call,
    let_pass,
    new_model,
    router,
    run,
)

CLIENTS: Final = 1_000
DOWN: Final = "the provider is down"


async def arrivals(retry_after: float | None, clock: VirtualClock) -> list[float]:
    """When the first retries come in, of calls that all failed at second 0."""
    came, sent = list[float](), iter(range(CLIENTS))

    async def send() -> None:
        if next(sent, None) is not None:
            await let_pass(1)
            raise RateLimitError(DOWN, status_code=429, retry_after=retry_after)
        came.append(clock.monotonic() - 1)

    asked = router(send, clock)
    await asyncio.gather(*(asked.ainvoke("hi") for _ in range(CLIENTS)))
    return sorted(came)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("told", "bar", "how"),
    [
        (None, 12, "no header"),
        (0.5, 15, "same Retry-After"),
        (20.0, 15, "same Retry-After"),
    ],
)
def test_a_crowd_that_failed_together_is_spread(
    told: float | None, bar: float, how: str, figures: Figures, *, is_long: bool
) -> None:
    """1,000 calls that fail at the same instant come back spread, and none early."""
    crowds = 30 if is_long else 1
    what = f"% of first retries in the busiest 100 ms, {how}"
    for seed in range(crowds):
        came = run(arrivals(told, VirtualClock(seed)))
        assert len(came) == CLIENTS
        busiest = max(
            number - bisect.bisect_left(came, at - 0.1)
            for number, at in enumerate(came, 1)
        )
        figures.at_most(bar, 100 * busiest / CLIENTS, what)
        early = sum(at < (told or 0) - 1e-6 for at in came)
        figures.exactly(0, early, "first retries before their Retry-After")
    figures.counted(crowds, "crowds of 1,000 calls")


def test_the_same_seed_everywhere_makes_no_herd() -> None:
    """Workers that all call `random.seed(42)` wait for different times."""
    state, waits = random.getstate(), set()
    with FaultyGateway() as gateway:
        model = new_model("GPTRouter", gateway)
        for _ in range(4):
            gateway.script(Status(503))
            random.seed(42)
            asyncio.run(acall(model))
            waits.add(round(gateway.requests[-1].at - gateway.requests[-2].at, 2))
    random.setstate(state)
    assert len(waits) > 1, waits


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("calls", "bar"), [(1_000, 1.1), (10_000, 1.02)])
def test_an_outage_is_not_amplified(
    calls: int, bar: float, figures: Figures, *, is_long: bool
) -> None:
    """With a shared RetryBudget a provider that is down is asked about once a call."""
    if calls > 1_000 and not is_long:
        calls, bar = 2_000, 1.1
    requests = 0

    async def send() -> None:
        nonlocal requests
        requests += 1
        await let_pass(0.1)
        raise UnavailableError(DOWN, status_code=503)

    async def call_all() -> list[Any]:
        asked = router(send, VirtualClock(1), budget=RetryBudget())
        made = (asked.ainvoke("hi") for _ in range(calls))
        return await asyncio.gather(*made, return_exceptions=True)

    assert all(isinstance(end, UnavailableError) for end in run(call_all()))
    figures.at_most(bar, requests / calls, f"requests a call, {calls:,} calls")


@pytest.mark.parametrize("kind", ["threads", "coroutines"])
def test_a_recovering_server_sees_one_request(
    kind: str, figures: Figures, *, is_long: bool
) -> None:
    """While the probe has no answer, all the other calls end without a request."""
    together, threads = threading.Barrier(50), ThreadPoolExecutor(50)

    async def ask_together(model: Any) -> object:
        if kind == "coroutines":
            return await acall(model)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            threads, lambda: (together.wait(), call(model))
        )

    async def meet(model: Any, gateway: FaultyGateway) -> tuple[int, list[Any]]:
        begun = [asyncio.create_task(ask_together(model)) for _ in range(50)]
        for end in islice(asyncio.as_completed(begun, timeout=20), 49):
            with contextlib.suppress(CircuitOpenError):
                await end
        await gateway.await_for(lambda gateway: gateway.requests != [])
        seen = len(gateway.requests)
        await asyncio.to_thread(gateway.stop)  # The probe is let go, and fails.
        return seen, await asyncio.gather(*begun, return_exceptions=True)

    for _ in range(20 if is_long else 2):
        clock = FakeClock()
        breaker = CircuitBreaker(failure_threshold=1, recovery_time=30, clock=clock)
        with FaultyGateway() as gateway:
            fields: dict[str, Any] = {"max_retries": 0, "clock": clock}
            model = new_model("GPTRouter", gateway, breaker=breaker, **fields)
            gateway.script(Status(503))
            with pytest.raises(UnavailableError):
                call(model)
            clock.advance(30)
            gateway.reset_log()
            gateway.always(Silence())
            seen, ends = asyncio.run(meet(model, gateway))
        figures.exactly(1, seen, "requests of 50 calls at a half-open breaker")
        assert all(isinstance(end, RetryRouterError) for end in ends)
        assert sum(isinstance(end, CircuitOpenError) for end in ends) == 49
    threads.shutdown()


OFFERED: Final = 70
BEGIN: Final = 5.0
END: Final = BEGIN + 30.0


def within(moments: list[float], begin: float) -> int:
    """How many of the sorted moments lie in this second."""
    return bisect.bisect_left(moments, begin + 1) - bisect.bisect_left(moments, begin)


async def live_through(
    how: str, queue_limit: int, watched: float, **fields: Any
) -> tuple[float, float]:
    """Seconds from the outage's end until goodput is back, and the busiest second.

    The server answers 100 requests a second in their order; for 30 s it refuses or
    hangs. A client waits for 2 s. The queue holds what the server can do in that time,
    or has no limit. Goodput is the answers of the last second; it is back at 95 % of
    what is offered. The busiest second is a multiple of what is offered.
    """
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Any](queue_limit)
    arrivals, answered = list[float](), list[float]()

    def is_out(sort: str) -> bool:
        return how == sort and BEGIN <= loop.time() < END

    async def send() -> None:
        arrivals.append(loop.time())
        if is_out("refuses") or queue.full():
            raise UnavailableError(DOWN, status_code=503)
        answer = loop.create_future()
        queue.put_nowait(answer)
        try:
            async with asyncio.timeout(2):
                await answer
        except TimeoutError as error:
            raise APIConnectionError(DOWN) from error

    async def answer_all() -> None:
        while True:
            answer = await queue.get()
            await let_pass(END - loop.time() if is_out("hangs") else 0)
            await let_pass(1 / 100)
            if not answer.done():  # Otherwise its client has left: work for nothing.
                answer.set_result(None)

    asked = router(send, **fields)

    async def call_at(moment: float) -> None:
        await let_pass(moment - loop.time())
        with contextlib.suppress(RetryRouterError):
            await asked.ainvoke(f"question at {moment}")
            answered.append(loop.time())

    working = loop.create_task(answer_all())
    calls = range(round(OFFERED * (END + watched)))
    await asyncio.gather(*(call_at(number / OFFERED) for number in calls))
    working.cancel()
    tenths = [END + tenth / 10 for tenth in range(round(10 * watched) + 1)]
    low = [at for at in tenths if within(answered, at - 1) < 0.95 * OFFERED]
    peak = max(within(arrivals, at) for at in arrivals)
    return max(low, default=END - 0.1) + 0.1 - END, peak / OFFERED


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("how", "queue_limit", "guards"),
    [
        ("refuses", 200, "budget"),
        ("hangs", 200, "budget"),
        ("hangs", 1_000_000, "breaker and budget"),
    ],
)
def test_the_service_is_back_soon(
    how: str, queue_limit: int, guards: str, figures: Figures, *, is_long: bool
) -> None:
    """After an outage the service is back within 5 s, and was never run over.

    A shared budget is enough where the server's queue has a limit; where it has none,
    a breaker with a short `recovery_time` is needed as well.
    """
    clock = VirtualClock(1)
    made: dict[str, Any] = {"budget": RetryBudget(), "clock": clock}
    if "breaker" in guards:
        made["breaker"] = CircuitBreaker(recovery_time=2, clock=clock)
    watched = 60 if is_long else 7
    back, peak = run(live_through(how, queue_limit, watched, **made))
    what = f"the server {how}, with {guards}"
    figures.at_most(5, back, f"seconds until goodput is back; {what}")
    figures.at_most(2, peak, f"busiest second, times what is offered; {what}")
