"""A call that is cancelled, left or interrupted leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random  # noqa: TID251 - seeded
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, Final, NoReturn

import pytest

from langchain_retryrouter import CircuitBreaker, RetryBudget, RetryPolicy
from langchain_retryrouter.testing import (
    Answer,
    Cut,
    Drip,
    FaultyGateway,
    RecordedRequest,
    Reset,
    Silence,
    SlowFirstToken,
    Stall,
    Status,
    Step,
    Truncate,
)
from tests.promises.conftest import Figures, Twin
from tests.promises.models import (
    FIVE,
    acall,
    ask,
    call,
    load_lazily_imported_modules,
    new_model,
)

FAULTS: Final[dict[str, tuple[Step, ...]]] = {
    "answers": (Answer(),),
    "drips": (Drip(0, 64),),
    "fails once": (Status(503), Answer()),
    "throttles once": (Status(429, {"retry-after": "0.01"}), Answer()),
    "resets once": (Reset(), Answer()),
    "truncates once": (Truncate(1), Answer()),
    "fails": (Status(503),),
    "cuts": (Cut(2),),
    "is silent": (Silence(60),),
    "is late": (SlowFirstToken(60),),
    "stalls": (Stall(2, 60),),
}
"""What becomes of the requests of one call; the last step is that of all others."""

WAYS: Final = ("cancel", "timeout", "sibling")
RETRY_COST: Final = 14
POLICY: Final = RetryPolicy(max_retries=2, initial_delay=0.02)
LOST: Final = "cancels that were lost"
LATER: Final = "requests sent after the cancel"
OPEN: Final = "requests that stay open after the cancel"
REFUSED: Final = "next calls of the same model that failed"
TOKENS: Final = "tokens of the retry budget lost"


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """Nothing is imported by the first call."""
    load_lazily_imported_modules()


class Script:
    """Answers each request as its prompt says, and counts the requests of a call."""

    def __init__(self) -> None:
        self.fault = "answers"
        self.requests = 0

    def __call__(self, request: RecordedRequest) -> Step:
        """The step for this request."""
        if b"next" in request.body:
            return Answer()
        self.requests += 1
        steps = FAULTS[self.fault]
        return steps[min(self.requests, len(steps)) - 1]

    def begin(self, fault: str) -> None:
        """Another call begins."""
        self.fault, self.requests = fault, 0


def guarded(name: str, gateway: FaultyGateway, **fields: Any) -> Any:
    """A model whose breaker is half-open: a lost probe would refuse all later calls."""
    breaker = CircuitBreaker(failure_threshold=1, recovery_time=0.001)
    once = RetryPolicy(max_retries=0)
    first = new_model(name, gateway, breaker=breaker, retry_policy=once)
    gateway.script(Status(500), Status(500))
    with contextlib.suppress(Exception):
        ask(first)
    gateway.script()
    let_breakers_recover()
    return new_model(name, gateway, breaker=breaker, retry_policy=POLICY, **fields)


def let_breakers_recover() -> None:
    """Wait until an open breaker of `guarded` is half-open."""
    threading.Event().wait(0.02)


async def turns_of_the_loop(number: int) -> None:
    """Let the event loop turn."""
    for _ in range(number):
        await asyncio.sleep(0)  # noqa: TID251 - not a wait


async def cancelled(running: asyncio.Task[Any], way: str) -> tuple[bool, float]:
    """Whether a cancelled task ended as one, and the CPU seconds until it was gone."""
    was_done = running.done()
    began = time.process_time()
    if way == "cancel":
        running.cancel()
    error: BaseException | None = None
    try:
        if way == "timeout":
            async with asyncio.timeout(0):
                await running
        elif way == "sibling":
            async with asyncio.TaskGroup() as group:
                group.create_task(_await(running))
                group.create_task(_fail())
        else:
            await running
    except BaseException as caught:  # noqa: BLE001 - looked at below
        error = caught
    ended = {
        "cancel": asyncio.CancelledError,
        "timeout": TimeoutError,
        "sibling": BaseExceptionGroup,
    }[way]
    # A call that is over before the cancel reaches it has lost nothing.
    is_lost = not was_done and not running.cancelled() and not isinstance(error, ended)
    return is_lost, time.process_time() - began


async def _await(running: asyncio.Task[Any]) -> None:
    await running


async def _fail() -> NoReturn:
    raise OSError


@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("small_heap")
@pytest.mark.parametrize("name", FIVE)
def test_a_cancelled_call_leaves_nothing(
    name: str, figures: Figures, *, is_long: bool
) -> None:
    """Wherever a call is cancelled, it is gone at once, and the next one is answered.

    Cancelled after a seeded number of turns of the event loop, before or after its
    request has come to the server.
    """
    rng = random.Random(name)  # noqa: S311
    found: dict[str, list[str]] = {w: [] for w in (LOST, LATER, OPEN, REFUSED, TOKENS)}
    slowest, count = 0.0, 1_000 if is_long else 16

    async def cancel(number: int, gateway: FaultyGateway, script: Script) -> float:
        fault, way = rng.choice(list(FAULTS)), rng.choice(WAYS)
        method, budget = rng.choice(("ainvoke", "astream")), RetryBudget()
        if rng.random() < 0.5:
            model = await asyncio.to_thread(guarded, name, gateway, budget=budget)
        else:
            model = new_model(name, gateway, retry_policy=POLICY, budget=budget)
        script.begin(fault)
        running = asyncio.create_task(acall(model, method, f"call {number}"))
        if rng.random() < 0.5:
            with contextlib.suppress(TimeoutError):
                await gateway.await_for(lambda _: script.requests > 0, timeout=1)
        await turns_of_the_loop(rng.randrange(120))
        story = f"{number}: {method}, {fault}, {way}"
        is_lost, seconds = await cancelled(running, way)
        seen = script.requests
        if is_lost:
            found[LOST].append(story)
        if (500 - budget.tokens) / RETRY_COST > max(0, seen - 1) + 1:
            found[TOKENS].append(story)
        await asyncio.to_thread(let_breakers_recover)
        try:
            await acall(model, "ainvoke", "next")
        except Exception as error:  # noqa: BLE001 - told with all others
            found[REFUSED].append(f"{story}: {error!r}")
        with contextlib.suppress(TimeoutError):
            await gateway.await_for(nothing_is_pending, timeout=1)
        if not nothing_is_pending(gateway):
            found[OPEN].append(story)
        if script.requests > seen + 1:  # One may have been on its way.
            found[LATER].append(story)
        return seconds

    with FaultyGateway(keep_requests=20) as gateway:
        script = Script()
        gateway.always(script)

        async def cancel_all() -> float:
            return max([await cancel(one, gateway, script) for one in range(count)])

        slowest = asyncio.run(cancel_all())
    told = [f"{what}: {story}" for what, stories in found.items() for story in stories]
    assert not told, "\n".join(told)
    for what, stories in found.items():
        figures.exactly(0, len(stories), what)
    figures.counted(count, "calls cancelled")
    figures.at_most(0.05, slowest, "CPU seconds until a cancelled task was gone")


def nothing_is_pending(gateway: FaultyGateway) -> bool:
    """Whether each request has been answered or left."""
    return all(request.outcome != "pending" for request in gateway.requests)


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize("fault", ["answers", "stalls"])
@pytest.mark.parametrize("way", ["break", "close"])
def test_a_stream_that_is_left_leaves_nothing(
    name: str, fault: str, way: str, twin: Twin, figures: Figures
) -> None:
    """A stream left by `break` or closed gives all back, without gc."""

    async def leave(model: Any) -> None:
        chunks = model.astream("call")
        async for _ in chunks:
            break
        if way == "close":
            await chunks.aclose()
        else:
            del chunks
            await turns_of_the_loop(40)

    with FaultyGateway() as gateway:
        script = Script()
        gateway.always(script)
        model = guarded(name, gateway)
        script.begin(fault)
        gc.disable()
        try:
            if twin.is_async:
                asyncio.run(leave(model))
            else:
                chunks = model.stream("call")
                next(chunks)
                if way == "close":
                    chunks.close()
                del chunks
            gateway.wait_for(nothing_is_pending, timeout=2)
        finally:
            gc.enable()
        let_breakers_recover()
        assert ask(model, "next")
    figures.counted(1, "streams left after their first token")


# --- a signal in sync code ---

PLACES: Final[dict[str, Step]] = {
    "waits for an answer": Silence(30),
    "waits for more of it": Stall(after=2, seconds=30),
    "backs off": Status(503, {"retry-after": "30"}),
}


class SignalError(BaseException):
    """What the handler raises; as a KeyboardInterrupt, it is not an Exception."""


@contextlib.contextmanager
def raising_handler() -> Iterator[None]:
    """Within it, SIGUSR1 raises where the main thread is."""

    def interrupt(*_: object) -> NoReturn:
        raise SignalError

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize("method", ["invoke", "stream"])
@pytest.mark.parametrize("place", PLACES)
def test_a_signal_ends_a_sync_call_where_it_waits(
    name: str, method: str, place: str, figures: Figures, *, is_long: bool
) -> None:
    """Ctrl-C in a read or a back-off is heeded at once, and nothing stays behind."""
    rng = random.Random(f"{name} {method} {place}")  # noqa: S311
    slowest, rounds = 0.0, 10 if is_long else 1
    with FaultyGateway() as gateway, raising_handler():
        # A router does not leave its first route for the sake of a wait.
        policy = RetryPolicy(max_retries=1, failover_after_wait=60)
        model = new_model(name, gateway, retry_policy=policy)
        for _ in range(rounds):
            gateway.reset_log()
            gateway.script(PLACES[place], PLACES[place])
            sent_at: list[float] = []
            after = rng.random() / 20

            def send(sent_at: list[float] = sent_at, after: float = after) -> None:
                gateway.wait_for(lambda gateway: bool(gateway.requests))
                threading.Event().wait(after)
                sent_at.append(time.monotonic())
                main = threading.main_thread().ident
                assert main is not None
                signal.pthread_kill(main, signal.SIGUSR1)

            sender = threading.Thread(target=send, daemon=True)
            sender.start()
            with pytest.raises(SignalError):
                call(model, method)
            slowest = max(slowest, time.monotonic() - sent_at[0])
            sender.join()
            gateway.script()
            gateway.wait_for(nothing_is_pending, timeout=2)
            assert len(gateway.requests) == 1
            assert call(model, method)
    figures.at_most(0.1, slowest, "seconds from a signal to the end of sync code")
    figures.counted(rounds, "sync calls ended by a signal")
