"""Whether a call or a chunk costs the same, however many there were or are.

Two things tell whose growth it is: langchain-core's own fake model beside ours, which
keeps all chunks of a stream until the end, and the same without Python's garbage
collector, which walks again and again through all that is alive.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from benchmarks.speed import contestants as who
from benchmarks.speed.calls import CALLER, FAKE, RAW, UNCOLLECTED
from benchmarks.speed.measure import (
    Bar,
    Measurement,
    Rounds,
    Section,
    collector,
    interleaved,
)
from benchmarks.speed.stub import StubServer

ABOVE_FAKE: Final = f"{CALLER} above the fake"
_CHUNKS: Final = (10, 1_000, 20_000)
_AT_ONCE: Final = (1, 100, 2_000)
_DELAY_MS: Final = 20
_CROWD_ROUNDS: Final = 5


# --- calls, one after another -------------------------------------------------------


def calls(server: StubServer, rounds: int, scale: float) -> Section:
    """The same call again and again, once through: the tenth of them at either end."""
    del rounds
    most = max(2_000, round(100_000 * scale))
    router = who.gpt_router(server.url)
    router.invoke(who.ASKED)
    spent = [_cpu_of_calls(router, most // 10) for _ in range(10)]
    first, last = f"{CALLER}, the first tenth", f"{CALLER}, the last tenth"
    return Section(
        f"Growth from 1 to {most:,} calls, CPU a call",
        "µs",
        {first: [spent[0]], last: [spent[-1]]},
        (Bar(f"{last}, of the first", last, 1.1, over=(first,)),),
    )


def _cpu_of_calls(router: Any, number: int) -> float:
    began = time.process_time()
    for _ in range(number):
        router.invoke(who.ASKED)
    return (time.process_time() - began) / number * 1e6


# --- chunks -------------------------------------------------------------------------


def chunks(server: StubServer, rounds: int, scale: float) -> Section:
    """A stream of one chunk, and what each further one of longer streams adds to it."""
    del scale
    ours = {n: who.gpt_router(server.at(tokens=n)) for n in (1, *_CHUNKS)}
    fakes = {n: who.fake_chat_stream(n) for n in (1, *_CHUNKS)}
    seen = interleaved(
        {
            _of(name, length): _cpu_of_streams(name, model, max(1, 3_000 // length))
            for name, models in ((FAKE, fakes), (CALLER, ours), (UNCOLLECTED, ours))
            for length, model in models.items()
        },
        rounds,
    )
    rows: Rounds = {}
    for name in (FAKE, CALLER, UNCOLLECTED):
        rows |= further_chunks(name, {n: seen[_of(name, n)] for n in ours})
    rows |= above(rows, ABOVE_FAKE, (FAKE,), [_further(n) for n in _CHUNKS])
    some, most = _further(1_000), _further(20_000)
    return Section(
        "Growth from 10 to 20,000 chunks, CPU a chunk",
        "µs",
        rows,
        (
            _flat(CALLER, most, _further(10)),
            _flat(CALLER, most, some),
            _flat(ABOVE_FAKE, most, some),
            _flat(UNCOLLECTED, most, some),
        ),
    )


def further_chunks(name: str, streams: dict[int, list[float]]) -> Rounds:
    """What chunks cost beyond the first one, which has the cost of the call with it.

    Args:
        name: Whose streams.
        streams: What whole streams took, by their length.
    """
    alone = streams[1]
    return {f"{name}, a stream of 1": alone} | {
        f"{name}, {_further(length)}": [
            (whole - first) / (length - 1)
            for whole, first in zip(wholes, alone, strict=True)
        ]
        for length, wholes in streams.items()
        if length > 1
    }


def _further(length: int) -> str:
    return f"each further chunk of {length:,}"


def _of(name: str, length: int) -> str:
    return f"{name}, {length}"


def _cpu_of_streams(name: str, model: Any, streams: int) -> Measurement:
    def measure() -> float:
        with collector(on=name != UNCOLLECTED):
            began = time.process_time()
            for _ in range(streams):
                for _ in model.stream(who.ASKED):
                    pass
            return (time.process_time() - began) / streams * 1e6

    return measure


# --- calls in flight ----------------------------------------------------------------


def in_flight(server: StubServer, rounds: int, scale: float) -> Section:
    """Waves of calls that all wait as long; one alone pays for waking up as well."""
    del scale
    url = server.at(delay_ms=_DELAY_MS)
    ours = who.ainvoker(who.gpt_router(url))
    with asyncio.Runner() as runner, who.aiohttp_session(runner) as call_state:
        bodies: dict[str, Callable[[], Awaitable[object]]] = {
            RAW: lambda: who.raw_apost(call_state, url),
            FAKE: who.ainvoker(who.slow_fake_chat(_DELAY_MS)),
            CALLER: ours,
            UNCOLLECTED: ours,
        }
        timed = {
            f"{name}, {_flying(number)}": _cpu_of_waves(runner, name, body, number)
            for name, body in bodies.items()
            for number in _AT_ONCE
        }
        rows = interleaved(timed, min(rounds, _CROWD_ROUNDS))
    some, most = _flying(100), _flying(2_000)
    return Section(
        "Growth from 1 to 2,000 calls in flight, CPU a call",
        "µs",
        rows,
        (
            _flat(CALLER, most, _flying(1)),
            _flat(CALLER, most, some),
            _flat(UNCOLLECTED, most, some),
        ),
    )


def _flying(number: int) -> str:
    return f"{number:,} in flight"


def _cpu_of_waves(
    runner: asyncio.Runner,
    name: str,
    body: Callable[[], Awaitable[object]],
    number: int,
) -> Measurement:
    waves = max(2, min(100, 4_000 // number))

    async def wave() -> None:
        await asyncio.gather(*(body() for _ in range(number)))

    async def measure() -> float:
        await wave()  # Opens the connections.
        with collector(on=name != UNCOLLECTED):
            began = time.process_time()
            for _ in range(waves):
                await wave()
            return (time.process_time() - began) / (waves * number) * 1e6

    return lambda: runner.run(measure())


# --- whose growth it is -------------------------------------------------------------


def above(
    rows: Rounds, name: str, floors: Sequence[str], whats: Sequence[str]
) -> Rounds:
    """What of ours lies above the floors, round by round."""
    return {
        f"{name}, {what}": [
            figure - sum(below)
            for figure, *below in zip(
                rows[f"{CALLER}, {what}"],
                *(rows[f"{floor}, {what}"] for floor in floors),
                strict=True,
            )
        ]
        for what in whats
    }


def _flat(name: str, most: str, some: str) -> Bar:
    """At most a tenth more where there is more of it."""
    what = f"{name}: {most}, of {some}"
    return Bar(what, f"{name}, {most}", 1.1, over=(f"{name}, {some}",))
