"""An outage is not made worse: no herd, no amplification, one probe, a quick recovery.

Crowds of real calls run on a virtual clock, through a RetryRouter with one route.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import random  # noqa: TID251 - what a program seeds, and the package does not use
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, Literal

import pytest

from langchain_retryrouter import (
    APIConnectionError,
    CircuitBreaker,
    CircuitOpenError,
    RateLimitError,
    RetryBudget,
    RetryRouter,
    RetryRouterError,
    Route,
    UnavailableError,
)
from langchain_retryrouter.testing import FakeClock, FaultyGateway, Silence, Status
from tests.promises.conftest import Figures
from tests.promises.models import aask, ask, new_model
from tests.promises.virtual_time import ScriptedModel, VirtualClock, let_pass, run

CLIENTS: Final = 1_000
DOWN: Final = "the provider is down"


def router(
    send: Callable[[], Awaitable[None]],
    clock: Any,
    breaker: CircuitBreaker | None = None,
    **fields: Any,
) -> RetryRouter:
    """A router over one model whose requests are `send`."""
    route = Route(model=ScriptedModel(send=send), breaker=breaker)
    return RetryRouter(routes=[route], clock=clock, breaker_settings=None, **fields)


# --- no herd ---


def busiest(moments: Iterable[float]) -> float:
    """Per cent of the moments within one 100 ms, wherever it begins."""
    ends = sorted(moments)
    most, first = 0, 0
    for last, end in enumerate(ends):
        while end - ends[first] > 0.1:
            first += 1
        most = max(most, last - first + 1)
    return 100 * most / len(ends)


async def arrivals(
    retry_after: float | None, clock: VirtualClock, clients: int = CLIENTS
) -> list[float]:
    """When the first retries come in, of calls that all failed at second 0."""
    came: list[float] = []
    seen = 0

    async def send() -> None:
        nonlocal seen
        seen += 1
        if seen <= clients:
            await let_pass(1)
            raise RateLimitError(DOWN, status_code=429, retry_after=retry_after)
        came.append(clock.monotonic() - 1)

    asked = router(send, clock)
    await asyncio.gather(*(asked.ainvoke("hi") for _ in range(clients)))
    return came


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("told", "bar", "what"),
    [
        (None, 12, "% of first retries in the busiest 100 ms, no header"),
        (0.5, 15, "% of first retries in the busiest 100 ms, same Retry-After"),
        (20.0, 15, "% of first retries in the busiest 100 ms, same Retry-After"),
    ],
)
def test_a_crowd_that_failed_together_is_spread(
    told: float | None, bar: float, what: str, figures: Figures, *, is_long: bool
) -> None:
    """1,000 calls that fail at the same instant come back spread, and none early."""
    crowds = 30 if is_long else 1
    for seed in range(crowds):
        came = run(arrivals(told, VirtualClock(seed)))
        assert len(came) == CLIENTS
        figures.at_most(bar, busiest(came), what)
        early = sum(at < (told or 0) - 1e-6 for at in came)
        figures.exactly(0, early, "first retries before their Retry-After")
    figures.counted(crowds, "crowds of 1,000 calls")


def test_the_same_seed_everywhere_makes_no_herd() -> None:
    """Workers that all call `random.seed(42)` wait for different times."""
    waits = []
    with FaultyGateway() as gateway:
        model = new_model("GPTRouter", gateway)

        async def ask_after_seeding() -> float:
            gateway.script(Status(503))
            random.seed(42)
            await aask(model)
            first, second = gateway.requests[-2:]
            return second.at - first.at

        state = random.getstate()
        waits = [asyncio.run(ask_after_seeding()) for _ in range(4)]
        random.setstate(state)
    assert len({round(wait, 2) for wait in waits}) > 1, waits


# --- an outage is not amplified ---


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

    async def call_all() -> None:
        asked = router(send, VirtualClock(1), budget=RetryBudget())
        calls_made = (asked.ainvoke("hi") for _ in range(calls))
        ends = await asyncio.gather(*calls_made, return_exceptions=True)
        assert all(isinstance(end, UnavailableError) for end in ends)

    run(call_all())
    figures.at_most(bar, requests / calls, f"requests a call, {calls:,} calls")


def test_threads_and_loops_share_a_budget(figures: Figures, *, is_long: bool) -> None:
    """Two models, threads and event loops share one budget; the server counts."""
    calls, budget = 1_000 if is_long else 200, RetryBudget()

    def fail(model: Any) -> None:
        with pytest.raises(UnavailableError):
            ask(model)

    async def fail_together(model: Any) -> None:
        errors = await asyncio.gather(
            *(aask(model) for _ in range(calls // 4)), return_exceptions=True
        )
        assert all(isinstance(error, UnavailableError) for error in errors)

    with FaultyGateway() as gateway:
        gateway.always(Status(503))
        for name in ("GPTRouter", "OpenAI"):
            model = new_model(name, gateway, budget=budget, clock=FakeClock())
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(fail, [model] * (calls // 4)))
            asyncio.run(fail_together(model))
        # A budget of 500 tokens buys 35 retries at 14 each, however many calls.
        figures.exactly(calls + 35, len(gateway.requests), "requests over HTTP")


# --- one probe ---

CALLS: Final = 50


def in_threads(model: Any, gateway: FaultyGateway) -> tuple[int, int]:
    """Call from threads; the calls refused, and the requests that came meanwhile."""
    together = threading.Barrier(CALLS)

    def call() -> object:
        together.wait()
        return ask(model)

    with ThreadPoolExecutor(CALLS) as pool:
        calls = [pool.submit(call) for _ in range(CALLS)]
        first = list(islice(as_completed(calls, timeout=20), CALLS - 1))
        gateway.wait_for(lambda gateway: gateway.requests != [])
        seen = len(gateway.requests)
        gateway.stop()  # The probe is let go, and fails.
    return sum(isinstance(call.exception(), CircuitOpenError) for call in first), seen


def in_coroutines(model: Any, gateway: FaultyGateway) -> tuple[int, int]:
    """The same with the coroutines of one event loop."""

    async def all_together() -> tuple[int, int]:
        calls = [asyncio.create_task(aask(model)) for _ in range(CALLS)]
        refused = 0
        for call in islice(asyncio.as_completed(calls, timeout=20), CALLS - 1):
            with contextlib.suppress(CircuitOpenError):
                await call
                refused -= 1
            refused += 1
        await gateway.await_for(lambda gateway: gateway.requests != [])
        seen = len(gateway.requests)
        await asyncio.to_thread(gateway.stop)
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(end, RetryRouterError) for end in ends)
        return refused, seen

    return asyncio.run(all_together())


@pytest.mark.parametrize("arrive", [in_threads, in_coroutines])
def test_a_recovering_server_sees_one_request(
    arrive: Callable[[Any, FaultyGateway], tuple[int, int]],
    figures: Figures,
    *,
    is_long: bool,
) -> None:
    """While the probe has no answer, all the other calls end without a request."""
    for _ in range(20 if is_long else 2):
        clock = FakeClock()
        breaker = CircuitBreaker(failure_threshold=1, recovery_time=30, clock=clock)
        fields: dict[str, Any] = {"max_retries": 0, "breaker": breaker, "clock": clock}
        with FaultyGateway() as gateway:
            model = new_model("GPTRouter", gateway, **fields)
            gateway.script(Status(503))
            with pytest.raises(UnavailableError):
                ask(model)
            clock.advance(30)
            gateway.reset_log()
            gateway.always(Silence())
            refused, seen = arrive(model, gateway)
        figures.exactly(1, seen, f"requests of {CALLS} calls at a half-open breaker")
        assert refused == CALLS - 1


# --- recovery ---

OFFERED: Final = 70
CAPACITY: Final = 100
PATIENCE: Final = 2.0
BEGIN: Final = 5.0
OUTAGE: Final = 30.0
END: Final = BEGIN + OUTAGE


@dataclass
class Server:
    """Answers 100 requests a second in their order; for 30 s it refuses or hangs.

    A client waits for 2 s. The queue holds what the server can do in that time, or has
    no limit.
    """

    how: Literal["refuses", "hangs"]
    queue_limit: int
    arrivals: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin with an empty queue."""
        self.queue: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue(
            self.queue_limit
        )

    def is_out(self) -> bool:
        """Whether the outage is under way."""
        return BEGIN <= asyncio.get_running_loop().time() < END

    async def ask(self) -> None:
        """Send one request, and wait for its answer."""
        loop = asyncio.get_running_loop()
        self.arrivals.append(loop.time())
        answer: asyncio.Future[None] = loop.create_future()
        if (self.how == "refuses" and self.is_out()) or self.queue.full():
            raise UnavailableError(DOWN, status_code=503)
        self.queue.put_nowait(answer)
        try:
            async with asyncio.timeout(PATIENCE):
                await answer
        except TimeoutError as error:
            raise APIConnectionError(DOWN) from error

    async def work(self) -> None:
        """Answer one request after the other, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            answer = await self.queue.get()
            if self.how == "hangs" and self.is_out():
                await let_pass(END - loop.time())
            await let_pass(1 / CAPACITY)
            if not answer.done():  # Otherwise its client has left: work for nothing.
                answer.set_result(None)


async def live_through(
    server: Server, watched: float, **fields: Any
) -> tuple[float, float]:
    """Seconds from the outage's end until goodput is back, and the busiest second.

    Goodput is the answers of the last second; it is back at 95 % of what is offered.
    The busiest second is a multiple of what is offered.
    """
    loop = asyncio.get_running_loop()
    answered: list[float] = []
    asked = router(server.ask, **fields)

    async def call(at: float) -> None:
        await let_pass(at - loop.time())
        with contextlib.suppress(RetryRouterError):
            await asked.ainvoke("hi")
            answered.append(loop.time())

    working = loop.create_task(server.work())
    calls = range(round(OFFERED * (END + watched)))
    await asyncio.gather(*(call(number / OFFERED) for number in calls))
    working.cancel()
    back = 0.0
    for tenth in range(round(10 * watched) + 1):
        now = END + tenth / 10
        if within(answered, now - 1, now) < 0.95 * OFFERED:
            back = (tenth + 1) / 10
    peak = max(within(server.arrivals, at, at + 1) for at in server.arrivals)
    return back, peak / OFFERED


def within(moments: list[float], begin: float, end: float) -> int:
    """How many of the sorted moments lie between these two."""
    return bisect.bisect_left(moments, end) - bisect.bisect_left(moments, begin)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("how", "queue_limit", "guards"),
    [
        ("refuses", 200, {"budget"}),
        ("hangs", 200, {"budget"}),
        ("hangs", 1_000_000, {"budget", "breaker"}),
    ],
)
def test_the_service_is_back_soon(
    how: Literal["refuses", "hangs"],
    queue_limit: int,
    guards: set[str],
    figures: Figures,
    *,
    is_long: bool,
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
    back, peak = run(live_through(Server(how, queue_limit), watched, **made))
    what = f"the server {how}, with {' and '.join(sorted(guards))}"
    figures.at_most(5, back, f"seconds until goodput is back; {what}")
    figures.at_most(2, peak, f"busiest second, times what is offered; {what}")
