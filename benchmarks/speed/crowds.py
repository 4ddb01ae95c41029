"""Many calls at once: how many a second, and whether the event loop stands still."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.speed import contestants as who
from benchmarks.speed.calls import CALLER, CHAT, FAKE, OURS, PARTNER, RAW
from benchmarks.speed.measure import Bar, Measurement, Rounds, Section, interleaved
from benchmarks.speed.stub import StubServer

_DELAY_MS: Final = 50
_BEAT: Final = 0.002
_SMALL: Final = 500

Body = Callable[[], Awaitable[object]]


def crowd(in_flight: int) -> Callable[[StubServer, int, float], Section]:
    """The section for so many calls at once."""

    def section(server: StubServer, rounds: int, scale: float) -> Section:
        # httpx's pool is quadratic: 2,000 at once are a minute of ChatOpenAI's.
        most = 5 if in_flight <= _SMALL else 1
        return _crowd(server, min(rounds, most), max(20, round(in_flight * scale)))

    return section


def _crowd(server: StubServer, rounds: int, in_flight: int) -> Section:
    url = server.at(delay_ms=_DELAY_MS)
    with asyncio.Runner() as runner, who.aiohttp_session(runner) as session:
        bodies: dict[str, Body] = {
            RAW: lambda: who.raw_apost(session, url),
            **{name: who.ainvoker(model) for name, model in _models(url).items()},
        }
        watch = _Watch(runner, server, in_flight)
        timed = {name: watch.over(name, body) for name, body in bodies.items()}
        rates = interleaved(timed, rounds)
    beside = {
        f"{FAKE}: longest stall, ms": watch.stalls[FAKE][-rounds:],
        f"{CALLER}: longest stall, ms": watch.stalls[CALLER][-rounds:],
        f"{CALLER}: connections": watch.busy[CALLER][-rounds:],
        f"{CHAT}: longest stall, ms": watch.stalls[CHAT][-rounds:],
    }
    return Section(
        f"{in_flight:,} calls at once, {_DELAY_MS} ms each at the server",
        "calls a second",
        rates | beside,
        _bars(in_flight),
    )


def _models(url: str) -> dict[str, Any]:
    return {
        FAKE: who.fake_chat(),
        CALLER: who.gpt_router(url),
        OURS: who.our_openai(url),
        CHAT: who.chat_openai(url),
        PARTNER: who.partner_openai(url),
    }


def _bars(in_flight: int) -> tuple[Bar, ...]:
    bars = (
        Bar("GPTRouter, of ChatOpenAI", CALLER, 6, over=(CHAT,), side="≥"),
        Bar("GPTRouter, longest stall, ms", f"{CALLER}: longest stall, ms", 50),
        Bar("GPTRouter, connections", f"{CALLER}: connections", who.CONNECTIONS),
    )
    if in_flight > _SMALL:
        return bars
    return (
        *bars,
        Bar("OpenAI, of langchain-openai's OpenAI", OURS, 3, over=(PARTNER,), side="≥"),
    )


@dataclass
class _Watch:
    """What is seen beside the time while a crowd is served."""

    runner: asyncio.Runner
    server: StubServer
    in_flight: int
    stalls: Rounds = field(default_factory=dict)
    busy: Rounds = field(default_factory=dict)

    def over(self, name: str, body: Body) -> Measurement:
        """Calls a second, of one crowd."""

        def measure() -> float:
            self.server.busiest()
            rate, stall = self.runner.run(_rate_and_stall(body, self.in_flight))
            self.stalls.setdefault(name, []).append(stall)
            self.busy.setdefault(name, []).append(self.server.busiest())
            return rate

        return measure


async def _rate_and_stall(body: Body, in_flight: int) -> tuple[float, float]:
    longest = [0.0]
    heart = asyncio.create_task(_beat(longest))
    await asyncio.sleep(_BEAT)
    began = time.perf_counter()
    await asyncio.gather(*(body() for _ in range(in_flight)))
    seconds = time.perf_counter() - began
    heart.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await heart
    return in_flight / seconds, longest[0] * 1000


async def _beat(longest: list[float]) -> None:
    """Notes by how much the loop is late at the worst."""
    while True:
        due = time.perf_counter() + _BEAT
        await asyncio.sleep(_BEAT)
        longest[0] = max(longest[0], time.perf_counter() - due)
