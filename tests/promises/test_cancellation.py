"""A call that is cancelled, left or interrupted leaves nothing behind."""

import asyncio
import contextlib
import gc
import math
import random  # noqa: TID251 - seeded
import signal
import threading
import time
from collections import Counter
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
from tests.promises.harness import FIVE, acall, call, new_model

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
ENDED: Final = {
    "cancel": asyncio.CancelledError,
    "timeout": TimeoutError,
    "sibling": BaseExceptionGroup,
}
"""What the caller sees of each way to cancel a call."""

POLICY: Final = RetryPolicy(max_retries=2, initial_delay=0.02)


class Script:
    """Answers each request as its prompt says, and counts the requests of a call."""

    def __init__(self, gateway: FaultyGateway) -> None:
        self.steps: tuple[Step, ...] = (Answer(),)
        self.requests = 0
        gateway.always(self)

    def __call__(self, request: RecordedRequest) -> Step:
        if b"next" in request.body:
            return Answer()
        self.requests += 1
        return self.steps[min(self.requests, len(self.steps)) - 1]

    def begin(self, fault: str) -> None:
        self.steps, self.requests = FAULTS[fault], 0


def guarded(name: str, gateway: FaultyGateway, **fields: Any) -> Any:
    """A model whose breaker is half-open: a lost probe would refuse all later calls."""
    breaker = CircuitBreaker(failure_threshold=1, recovery_time=0.001)
    once = RetryPolicy(max_retries=0)
    first = new_model(name, gateway, breaker=breaker, retry_policy=once)
    gateway.script(Status(500), Status(500))
    with contextlib.suppress(Exception):
        call(first)
    gateway.script()
    let_breakers_recover()
    return new_model(name, gateway, breaker=breaker, retry_policy=POLICY, **fields)


def let_breakers_recover() -> None:
    threading.Event().wait(0.02)


def nothing_is_pending(gateway: FaultyGateway) -> bool:
    return all(request.outcome != "pending" for request in gateway.requests)


async def turns_of_the_loop(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)  # noqa: TID251 - not a wait


async def cancelled(running: asyncio.Task[Any], way: str) -> tuple[bool, float]:
    """Whether a cancel was lost, and the CPU seconds until the task was gone."""

    async def wait_for_it() -> None:
        await running

    async def fail() -> NoReturn:
        raise OSError

    was_done, began = running.done(), time.process_time()
    error: BaseException | None = None
    try:
        if way == "timeout":
            async with asyncio.timeout(0):
                await running
        elif way == "sibling":
            async with asyncio.TaskGroup() as group:
                group.create_task(wait_for_it())
                group.create_task(fail())
        else:
            running.cancel()
            await running
    except BaseException as caught:  # noqa: BLE001 - looked at below
        error = caught
    # A call that is over before the cancel reaches it has lost nothing.
    is_heard = was_done or running.cancelled() or isinstance(error, ENDED[way])
    return not is_heard, time.process_time() - began


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FIVE)
def test_a_cancelled_call_leaves_nothing(
    name: str, figures: Figures, *, is_long: bool
) -> None:
    """Wherever a call is cancelled, it is gone at once, and the next one is answered.

    Cancelled after a seeded number of turns of the event loop, before or after its
    request has come to the server.
    """
    rng = random.Random(name)  # noqa: S311
    found, stories = Counter[str](), []
    count = 1_000 if is_long else 16

    async def cancel(number: int, gateway: FaultyGateway, script: Script) -> float:
        fault, way = rng.choice(list(FAULTS)), rng.choice(list(ENDED))
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
        is_lost, seconds = await cancelled(running, way)
        seen, left = script.requests, budget.tokens
        await asyncio.to_thread(let_breakers_recover)
        is_refused = False
        try:
            await acall(model, "ainvoke", "next")
        except Exception:  # noqa: BLE001 - told with all others
            is_refused = True
        with contextlib.suppress(TimeoutError):
            await gateway.await_for(nothing_is_pending)
        wrong = {
            "cancels that were lost": is_lost,
            # 14 tokens pay for a retry.
            "tokens of the retry budget lost": (500 - left) / 14 > max(1, seen),
            "next calls of the same model that failed": is_refused,
            "requests that stay open": not nothing_is_pending(gateway),
            # One may have been on its way.
            "requests sent after the cancel": script.requests > seen + 1,
            "tasks left behind": asyncio.all_tasks() != {asyncio.current_task()},
        }
        found.update({what: int(is_so) for what, is_so in wrong.items()})
        if any(wrong.values()):
            stories.append(f"{number}: {method}, {fault}, {way}: {wrong}")
        return seconds

    async def cancel_all(gateway: FaultyGateway) -> float:
        script = Script(gateway)
        return max([await cancel(one, gateway, script) for one in range(count)])

    with FaultyGateway(keep_requests=20) as gateway:
        gc.collect()
        gc.freeze()  # A full collection takes 0.2 s of a test run.
        slowest = asyncio.run(cancel_all(gateway))
        gc.unfreeze()
    assert not stories, "\n".join(stories)
    for what, number in found.items():
        figures.exactly(0, number, what)
    figures.counted(count, "calls cancelled")
    figures.timed(0.05, slowest, "CPU seconds until a cancelled task was gone")


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize("fault", ["answers", "stalls"])
@pytest.mark.parametrize("is_closed", [False, True], ids=["break", "close"])
def test_a_stream_that_is_left_leaves_nothing(
    name: str, fault: str, twin: Twin, figures: Figures, *, is_closed: bool
) -> None:
    """A stream left by `break` or closed gives all back, without gc."""

    async def leave(chunks: Any) -> None:
        await anext(chunks)
        if is_closed:
            await chunks.aclose()
        del chunks
        await turns_of_the_loop(40)

    with FaultyGateway() as gateway:
        script, model = Script(gateway), guarded(name, gateway)
        script.begin(fault)
        gc.disable()
        try:
            if twin.is_async:
                asyncio.run(leave(model.astream("call")))
            else:
                chunks = model.stream("call")
                next(chunks)
                if is_closed:
                    chunks.close()
                del chunks
            gateway.wait_for(nothing_is_pending)
        finally:
            gc.enable()
        let_breakers_recover()
        assert call(model, prompt="next")
    figures.counted(1, "streams left after their first token")


class SignalError(BaseException):
    """What the handler raises; as a KeyboardInterrupt, it is not an Exception."""


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize("method", ["invoke", "stream"])
@pytest.mark.parametrize(
    "place",
    [Silence(30), Stall(after=2, seconds=30), Status(503, {"retry-after": "30"})],
    ids=["waits for an answer", "waits for more of it", "backs off"],
)
def test_a_signal_ends_a_sync_call_where_it_waits(
    name: str, method: str, place: Step, figures: Figures, *, is_long: bool
) -> None:
    """Ctrl-C in a read or a back-off is heeded at once, and nothing stays behind."""
    rounds, sent_at = 10 if is_long else 1, list[float]()

    def interrupt(*_: object) -> NoReturn:
        raise SignalError

    def send(gateway: FaultyGateway, after: float) -> None:
        gateway.wait_for(lambda gateway: bool(gateway.requests))
        threading.Event().wait(after)
        sent_at.append(time.monotonic())
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    # A router waits for its first route, and needs no threads without limits.
    limits = ("attempt_timeout", "first_token_timeout", "stall_timeout")
    no_limits: Any = dict.fromkeys(limits, math.inf)
    policy = RetryPolicy(max_retries=1, failover_after_wait=60, **no_limits)
    with FaultyGateway() as gateway:
        model = new_model(name, gateway, retry_policy=policy)
        for number in range(rounds):
            gateway.reset_log()
            gateway.script(place, place)
            sender = threading.Thread(target=send, args=(gateway, 0.05 + number / 200))
            sender.start()
            with pytest.raises(SignalError):
                call(model, method)
            late = time.monotonic() - sent_at[-1]
            what = "seconds from a signal to the end of sync code"
            figures.timed(0.1, late, what)
            sender.join()
            gateway.script()
            gateway.wait_for(nothing_is_pending)
            assert len(gateway.requests) == 1
            assert call(model, method)
    signal.signal(signal.SIGUSR1, before)
    figures.counted(rounds, "sync calls ended by a signal")
