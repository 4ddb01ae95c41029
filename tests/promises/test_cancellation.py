"""Who leaves a call, by whatever door, leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random  # noqa: TID251 - seeded
import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from langchain_retryrouter.testing import FaultyGateway, Silence, Stall, Status, Step
from tests.promises.callers import (
    RETRY_COST,
    Caller,
    Script,
    callers,
    read,
    sync_callers,
    too_late,
)
from tests.promises.evidence import Evidence, Length, Promise
from tests.promises.interruptions import (
    MOMENTS,
    WAYS,
    Interruption,
    SiblingError,
    interrupted,
    one_turn,
    watched_tasks,
)
from tests.promises.signals import InterruptedBySignalError, Sender, raising
from tests.unit_tests.conftest import Twin

PROMISE = Promise(
    title="A cancel leaves nothing behind",
    number="task gone ≤ 50 ms; 0 later requests, 0 open connections, 0 permits lost",
    why=(
        "A task is cancelled, timed out, or loses a sibling, at a seeded one of all the"
        " places where `ainvoke` or `astream` waits, against a real server that"
        " answers, fails or falls silent; then the same model is asked again. What is"
        " measured is the time that the event loop worked until the task was gone, so"
        " that a machine busy with something else is no finding."
    ),
)
LOST = "cancels that were lost"
LATER = "requests sent after the cancel"
OPEN = "connections left open, with a request that nobody waits for"
STUCK = "breakers left without their probe's place"
TOKENS = "tokens of the retry budget lost"
REFUSED = "next calls of the same model that failed"
_NOTHING = (LOST, LATER, OPEN, STUCK, TOKENS, REFUSED)

ENDINGS: dict[str, type[BaseException]] = {
    "cancel": asyncio.CancelledError,
    "timeout": TimeoutError,
    "sibling": SiblingError,
}
_ON_THE_WAY = 3
"""Turns of the event loop that a timeout, or a sibling's failure, needs to be a cancel.

A call that is over by then was faster, and has lost nothing.
"""


PLACES: dict[str, Step] = {
    "silent": Silence(30),
    "stalls": Stall(after=2, seconds=30),
    "backs off": Status(503, {"retry-after": "30"}),
}
"""Where sync code waits: for an answer, for more of it, between two attempts."""

_GUARDED = ("silent", "stalls")
"""Where a breaker may stand by: it would heed the Retry-After, too."""

_MOST_TURNS = 40
"""Turns of the event loop in which whoever was cancelled must be gone."""


class Aftermath:
    """What was left of all calls."""

    def __init__(self) -> None:
        """Nothing, so far."""
        self.sent: list[Interruption] = []
        self.found: dict[str, list[str]] = {what: [] for what in _NOTHING}

    def take_down(self, evidence: Evidence) -> None:
        """Write down what was measured, and fail for whatever was found."""
        told = "\n".join(f"{what}: {w}" for what, w in self.found.items() if w)
        assert not told, told
        for what, found in self.found.items():
            evidence.exactly(0, len(found), what)
        assert len(self.sent) > 0
        worked = [one.cpu for one in self.sent]
        evidence.at_most(0.05, max(worked), "seconds to the task's end, the longest")
        evidence.at_most(
            0.05,
            statistics.median(one.wall_seconds for one in self.sent),
            "seconds to the task's end on the clock, the median",
        )
        turns = max(one.turns for one in self.sent)
        evidence.at_most(
            _MOST_TURNS, turns, "turns of the event loop to the task's end"
        )
        evidence.counted(len(self.sent), "calls cancelled")


class Experiment:
    """Calls that are cancelled one after the other, and what is found behind them."""

    def __init__(self, gateway: FaultyGateway, seed: int) -> None:
        """Against `gateway`."""
        self.aftermath = Aftermath()
        self.callers = callers(gateway)
        self._gateway = gateway
        self._script = Script()
        gateway.always(self._script)
        self._dice = random.Random(seed)  # noqa: S311 - no secret
        self._places: dict[tuple[str, str, str], int] = {}

    async def cancel(self, number: int) -> None:
        """Make a call, cancel it somewhere, and ask the same model again."""
        rng = self._dice
        caller = rng.choice(self.callers)
        fault, method = rng.choice(caller.faults), rng.choice(caller.methods)
        key = (caller.name, fault, method)
        interruption = Interruption(
            place=rng.randint(1, self._places.get(key, 25)),
            moment=rng.choice(MOMENTS),
            way=rng.choice(WAYS),
        )
        label = (
            f"call {number}, {key}, {interruption.way} at {interruption.place},"
            f" {interruption.moment}"
        )
        caller.half_open()
        tokens = caller.budget.tokens
        prompt = f"call {number} {fault}"
        call = partial(read if method == "astream" else ask, caller.model, prompt)
        came_to = await interrupted(call, interruption)
        self._places[key] = max(3, interruption.waits)
        if interruption.is_sent:
            self.aftermath.sent.append(interruption)
            self._check_ending(interruption, came_to, label)
        if caller.stuck():
            self.aftermath.found[STUCK].append(label)
        # One more than were seen may have been on their way, and are paid for.
        seen = self._script.requests[number]
        paid = (tokens - caller.budget.tokens) / RETRY_COST
        if paid > max(0, seen - 1 + caller.asks_together):
            self.aftermath.found[TOKENS].append(label)
        await self._check_behind(caller, number, label)

    def _check_ending(self, sent: Interruption, came_to: object, label: str) -> None:
        is_on_its_way = sent.way != "cancel" and sent.turns <= _ON_THE_WAY
        if not is_on_its_way and not isinstance(came_to, ENDINGS[sent.way]):
            self.aftermath.found[LOST].append(f"{label}: {came_to!r}")

    async def _check_behind(self, caller: Caller, number: int, label: str) -> None:
        gateway, found = self._gateway, self.aftermath.found
        try:
            await caller.model.ainvoke(f"next {number} answers")
        except Exception as error:  # noqa: BLE001 - told with all others
            found[REFUSED].append(f"{label}: {error!r}")
            return
        try:
            await gateway.await_for(_nobody_is_waited_for, timeout=1)
        except TimeoutError as error:
            found[OPEN].append(f"{label}: {error}")
        found[LATER] += too_late(gateway.requests, number)
        gateway.reset_log()

    async def come_to_rest(self) -> None:
        """Wait for what comes late, and see what stays open."""
        with contextlib.suppress(TimeoutError):
            await self._gateway.await_for(lambda gateway: bool(gateway.requests), 0.3)
        self.aftermath.found[LATER] += [str(one) for one in self._gateway.requests]
        left, most = self._gateway.open_connections, _IDLE
        if left > most:
            self.aftermath.found[OPEN].append(f"{left} connections, {most} are kept")


def _nobody_is_waited_for(gateway: FaultyGateway) -> bool:
    return all(request.outcome != "pending" for request in gateway.requests)


async def ask(model: Any, prompt: str) -> object:
    """The answer."""
    return await model.ainvoke(prompt)


_IDLE = 6
"""Connections that pools keep: of three HTTP clients, for two requests together."""


@pytest.mark.usefixtures("small_heap")
def test_whoever_is_cancelled_leaves_nothing(
    evidence: Evidence, length: Length
) -> None:
    """Wherever a call is cancelled, it is gone at once, and the next one succeeds."""
    with FaultyGateway() as gateway:
        experiment = Experiment(gateway, seed=20)

        async def run() -> None:
            asyncio.get_running_loop().set_task_factory(watched_tasks)
            for number in range(length.of(short=80, long=10_000)):
                await experiment.cancel(number)
            await experiment.come_to_rest()

        asyncio.run(run())
    experiment.aftermath.take_down(evidence)


# A stream that its reader leaves.


@pytest.mark.parametrize("way", ["break", "close"])
@pytest.mark.parametrize("fault", ["answers", "stalls"])
def test_a_stream_that_is_left_leaves_nothing(
    twin: Twin, evidence: Evidence, fault: str, way: str
) -> None:
    """A stream left by `break` or closed gives all back, without a garbage collection.

    But for a hedged one in sync code, whose connection goes with its next event.
    """
    script = Script()
    with FaultyGateway() as gateway, _no_garbage_collection():
        gateway.always(script)
        asked = [
            one
            for one in callers(gateway)
            # One that holds the stream back has nothing to be left at.
            if "buffering" not in one.name and (twin.is_async or not one.hedges)
        ]
        for number, caller in enumerate(asked):
            caller.half_open()
            prompt = f"call {number} {fault}"
            if twin.is_async:
                asyncio.run(_aleave(caller, prompt, way))
            else:
                _leave(caller, prompt, way)
            assert not caller.stuck(), f"{caller.name}: the probe's place is lost"
            gateway.wait_for(_nobody_is_waited_for, timeout=1)
    evidence.exactly(0, sum(one.stuck() for one in asked), STUCK)
    evidence.counted(len(asked), "streams left after their first token")


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _leave(caller: Caller, prompt: str, way: str) -> None:
    chunks = caller.model.stream(prompt)
    for _ in chunks:
        break
    if way == "close":
        chunks.close()


async def _aleave(caller: Caller, prompt: str, way: str) -> None:
    chunks = caller.model.astream(prompt)
    async for _ in chunks:
        break
    if way == "close":
        await chunks.aclose()
        return
    del chunks
    turns = 0
    while caller.stuck() and turns < _MOST_TURNS:
        await one_turn()
        turns += 1


# A signal in sync code.


@pytest.mark.parametrize("method", ["invoke", "stream"])
@pytest.mark.parametrize("fault", list(PLACES))
def test_a_signal_ends_sync_code_where_it_waits(
    evidence: Evidence, length: Length, fault: str, method: str
) -> None:
    """Ctrl-C in a read or a back-off is heeded at once, and nothing stays behind.

    Where code computes, Python gives no guarantee to anybody; where it waits, it does.
    """
    rng = random.Random(f"{fault} {method}")  # noqa: S311 - no secret
    slowest = 0.0
    with FaultyGateway() as gateway, raising():
        asked = sync_callers(gateway, is_guarded=fault in _GUARDED)
        for caller in asked * length.of(short=1, long=10):
            caller.half_open()
            gateway.script(PLACES[fault])
            sender = Sender(partial(gateway.wait_for, _has_request), rng.random() / 20)
            sender.start()
            with pytest.raises(InterruptedBySignalError):
                _ask_sync(caller.model, method)
            slowest = max(slowest, time.monotonic() - sender.sent_at)
            sender.join()
            gateway.script()
            gateway.wait_for(_nobody_is_waited_for, timeout=1)
            assert len(gateway.requests) == 1, f"{caller.name}: {gateway.requests}"
            assert not caller.stuck(), f"{caller.name}: the probe's place is lost"
            assert _ask_sync(caller.model, method)
            gateway.reset_log()
    evidence.at_most(0.05, slowest, "seconds from a signal to the end of sync code")
    evidence.counted(len(asked), "sync calls ended by a signal")


def _has_request(gateway: FaultyGateway) -> bool:
    return bool(gateway.requests)


def _ask_sync(model: Any, method: str) -> object:
    return list(model.stream("hi")) if method == "stream" else model.invoke("hi")
