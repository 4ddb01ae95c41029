"""Many calls at once: how many a second, and whether the event loop stands still."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Final

import aiohttp

from benchmarks.speed import busy
from benchmarks.speed import contestants as who
from benchmarks.speed.busy import ServerShare
from benchmarks.speed.calls import (
    CALLER,
    CHAT,
    CLIENT_A_CALL,
    COMMUNITY,
    FAKE,
    FALLBACKS,
    GATEWAY_SDK,
    LITELLM_CHAT,
    LITELLM_ROUTER,
    OURS,
    PARTNER,
    RAW,
    SDK_CHAT,
    UNCOLLECTED,
)
from benchmarks.speed.measure import (
    Bar,
    Measurement,
    Rounds,
    Section,
    Slow,
    collector,
    interleaved,
)
from benchmarks.speed.stub import StubServer

_DELAY_MS: Final = 50
_BEAT: Final = 0.002
_SMALL: Final = 500
_ROUNDS: Final = 5
_STALL, _BUSY, _FAILED = "longest stall, ms", "connections in use", "calls that failed"
_SHOWN: Final = {
    *(f"{name}: {_STALL}" for name in (FAKE, RAW, CALLER, UNCOLLECTED, CHAT)),
    f"{CALLER}: {_BUSY}",
    f"{CALLER}: {_FAILED}",
}
# Their crowds take from seconds to minutes, so they run in fewer rounds. For each call
# httpx's pool looks at every connection, so it is at its best while it has few: these
# warm up with few calls, and of 2,000 at once only their first crowd is counted.
_SLOW: Final = {
    *(CHAT, FALLBACKS, PARTNER, SDK_CHAT, LITELLM_ROUTER, LITELLM_CHAT),
    *CLIENT_A_CALL,
}

# httpx's pool can take minutes for 2,000 at once: ChatOpenAI stands for all who go
# through it. Those with a client for each call need 20 ms of CPU a call, and would run
# into their own timeout of a minute.
_NOT_SO_MANY: Final = {FALLBACKS, PARTNER, SDK_CHAT, *CLIENT_A_CALL}
_WARM_UP: Final = 20

# langchain-openai keeps a pool of connections for each address, and a pool that another
# crowd has filled is a slow one: everybody gets an address of his own in each crowd.
_POOLS: Final = itertools.count()

Body = Callable[[], Awaitable[object]]


def crowd(in_flight: int) -> Callable[[StubServer, int, float], Section]:
    """The section for so many calls at once."""

    def section(server: StubServer, rounds: int, scale: float) -> Section:
        return _crowd(server, min(rounds, _ROUNDS), in_flight, scale)

    return section


def _crowd(server: StubServer, rounds: int, full: int, scale: float) -> Section:
    in_flight = max(20, round(full * scale))
    url = server.at(delay_ms=_DELAY_MS)
    with asyncio.Runner() as runner, who.aiohttp_session(runner) as call_state:
        bodies = _bodies(url, call_state)
        if full > _SMALL:
            bodies = {n: b for n, b in bodies.items() if n not in _NOT_SO_MANY}
        watch, share = _Watch(runner, server), ServerShare(server)
        timed = {name: watch.over(name, b, in_flight) for name, b in bodies.items()}
        slow = {
            name: Slow(
                timed[name],
                rounds=_rounds_of_slow(name, full),
                warm_up=watch.over(name, bodies[name], _WARM_UP),
            )
            for name in bodies
            if name in _SLOW
        }
        rates = interleaved({**share.of(timed, RAW, CALLER), **slow}, rounds)
    return Section(
        f"{in_flight:,} calls at once, {_DELAY_MS} ms each at the server",
        "calls a second",
        rates,
        _bars(full),
        watch.rounds() | share.rounds(),
    )


def _rounds_of_slow(name: str, in_flight: int) -> int:
    if in_flight > _SMALL:
        return 1
    return 2 if name in CLIENT_A_CALL else 3


def _bodies(url: str, call_state: aiohttp.ClientSession) -> dict[str, Body]:
    own = (f"{url}/pool{number}" for number in _POOLS)
    models = {
        FAKE: who.fake_chat(),
        CALLER: who.gpt_router(next(own)),
        UNCOLLECTED: who.gpt_router(next(own)),
        OURS: who.our_openai(next(own)),
        PARTNER: who.partner_openai(next(own)),
        CHAT: who.chat_openai(next(own)),
        FALLBACKS: who.with_fallbacks(next(own)),
        COMMUNITY: who.community_gpt_router(next(own)),
        LITELLM_CHAT: who.litellm_chat(next(own)),
    }
    return {
        RAW: lambda: who.raw_apost(call_state, url),
        **{name: who.ainvoker(model) for name, model in models.items()},
        SDK_CHAT: who.async_openai_chat(next(own)),
        GATEWAY_SDK: who.async_gptrouter_sdk(next(own)),
        LITELLM_ROUTER: who.async_litellm_router(next(own)),
    }


def _bars(in_flight: int) -> tuple[Bar, ...]:
    bars = (
        Bar("GPTRouter, of ChatOpenAI", CALLER, 6, over=(CHAT,), side="≥"),
        Bar("GPTRouter, longest stall, ms", f"{CALLER}: {_STALL}", 50),
        Bar("GPTRouter, connections in use", f"{CALLER}: {_BUSY}", who.CONNECTIONS),
        Bar("GPTRouter, calls that failed", f"{CALLER}: {_FAILED}", 0),
        *busy.bars(RAW, CALLER),
    )
    if in_flight > _SMALL:
        return bars
    return (
        *bars,
        Bar("OpenAI, of langchain-openai's OpenAI", OURS, 3, over=(PARTNER,), side="≥"),
    )


class _Watch:
    """What is seen beside the time while a crowd is served."""

    def __init__(self, runner: asyncio.Runner, server: StubServer) -> None:
        self._runner = runner
        self._server = server
        self._seen: Rounds = {}

    def over(self, name: str, body: Body, in_flight: int) -> Measurement:
        """Calls a second, of one crowd; those that failed were no calls."""

        def measure() -> float:
            self._server.busiest()
            with collector(on=name != UNCOLLECTED):
                rate, stall, failed = self._runner.run(_serve(body, in_flight))
            for what, figure in (
                (_STALL, stall),
                (_BUSY, self._server.busiest()),
                (_FAILED, failed),
            ):
                self._seen.setdefault(f"{name}: {what}", []).append(figure)
            return rate

        return measure

    def rounds(self) -> Rounds:
        """What is worth a row: of those that a bar is about, and whoever failed."""
        return {
            name: figures[1:]
            for name, figures in self._seen.items()
            if name in _SHOWN or (name.endswith(_FAILED) and any(figures[1:]))
        }


async def _serve(body: Body, in_flight: int) -> tuple[float, float, int]:
    """Calls a second, the longest stall in ms, and how many calls failed."""
    longest = [0.0]
    heart = asyncio.create_task(_beat(longest))
    await asyncio.sleep(_BEAT)
    began = time.perf_counter()
    calls = (body() for _ in range(in_flight))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    seconds = time.perf_counter() - began
    heart.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await heart
    failed = sum(isinstance(answer, BaseException) for answer in answers)
    return (in_flight - failed) / seconds, longest[0] * 1000, failed


async def _beat(longest: list[float]) -> None:
    """Notes by how much the loop is late at the worst."""
    while True:
        due = time.perf_counter() + _BEAT
        await asyncio.sleep(_BEAT)
        longest[0] = max(longest[0], time.perf_counter() - due)
