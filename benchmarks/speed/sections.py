"""What is measured, section by section, each with its bars."""

from __future__ import annotations

import asyncio
import compileall
import gc
import itertools
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from langchain_core.language_models.fake_chat_models import FakeChatModel

import langchain_retryrouter
from benchmarks.speed import contestants as who
from benchmarks.speed.measure import Bar, Measurement, Section, interleaved
from benchmarks.speed.stub import StubServer

FAKE: Final = "langchain-core's fake chat model"
FLOOR: Final = "the fake chat model around a call of the HTTP library"
GPT_ROUTER: Final = "GPTRouter"
OPENAI: Final = "OpenAI"
ROUTED: Final = "RetryRouter over ChatOpenAI"
CHAT: Final = "langchain-openai ChatOpenAI"
WRAPPED: Final = "a chat model that only calls ChatOpenAI"
BARE: Final = "langchain-openai ChatOpenAI, max_retries=0"
PARTNER: Final = "langchain-openai OpenAI"
COMMUNITY: Final = "langchain-community GPTRouter"
LITELLM: Final = "LiteLLM Router"
FEW: Final = {COMMUNITY: 2}
"""langchain-community's GPTRouter builds an HTTP client for each call."""


def models(url: str, floor: Any) -> dict[str, Any]:
    """All contestants for calls."""
    return {
        FAKE: FakeChatModel(),
        FLOOR: floor,
        GPT_ROUTER: who.gpt_router(url),
        OPENAI: who.our_openai(url),
        ROUTED: who.routed(url),
        WRAPPED: who.wrapped(url),
        BARE: who.chat_openai(url, max_retries=0),
        CHAT: who.chat_openai(url),
        PARTNER: who.partner_openai(url),
        LITELLM: who.litellm_router(url),
        COMMUNITY: who.community_gpt_router(url),
    }


# --- one call after another ---


def sync_calls(server: StubServer, rounds: int, scale: float) -> Section:
    """`invoke`, again and again."""
    calls = max(10, round(300 * scale))
    timed = {
        name: _timed(who.invoker(model), 5 if name == COMMUNITY else calls)
        for name, model in models(server.url, who.Floor(url=server.url)).items()
    }
    bars = (
        Bar("GPTRouter.invoke / floor", GPT_ROUTER, 1.35, FLOOR),
        Bar("GPTRouter.invoke / ChatOpenAI", GPT_ROUTER, 0.45, CHAT),
        Bar("OpenAI.invoke / langchain-openai's OpenAI", OPENAI, 0.95, PARTNER),
        Bar("RetryRouter above the bare model, µs", ROUTED, 120, minus=BARE),
        Bar("RetryRouter / LiteLLM's Router", ROUTED, 0.4, LITELLM),
    )
    seen = interleaved(timed, rounds, few=FEW)
    return Section("One call after another, sync", "µs", seen, bars)


def async_calls(server: StubServer, rounds: int, scale: float) -> Section:
    """`ainvoke`, again and again, in one event loop."""
    calls = max(10, round(300 * scale))
    with asyncio.Runner() as runner, who.aiohttp_session(runner) as session:
        floor = who.AsyncFloor(url=server.url, session=session)
        timed = {
            name: _atimed(runner, who.ainvoker(one), 5 if name == COMMUNITY else calls)
            for name, one in models(server.url, floor).items()
        }
        seen = interleaved(timed, rounds, few=FEW)
    bars = (
        Bar("GPTRouter.ainvoke / floor", GPT_ROUTER, 1.5, FLOOR),
        Bar("OpenAI.ainvoke / langchain-openai's OpenAI", OPENAI, 0.9, PARTNER),
        Bar("RetryRouter above the bare model, async, µs", ROUTED, 120, minus=BARE),
        Bar("RetryRouter / LiteLLM's Router, async", ROUTED, 0.4, LITELLM),
    )
    return Section("One call after another, async", "µs", seen, bars)


def _timed(body: Callable[[], object], calls: int) -> Measurement:
    def measure() -> float:
        began = time.perf_counter()
        for _ in range(calls):
            body()
        return (time.perf_counter() - began) / calls * 1e6

    return measure


def _atimed(
    runner: asyncio.Runner, body: Callable[[], Awaitable[object]], calls: int
) -> Measurement:
    async def measure() -> float:
        began = time.perf_counter()
        for _ in range(calls):
            await body()
        return (time.perf_counter() - began) / calls * 1e6

    return lambda: runner.run(measure())


# --- streams ---


def sync_chunks(server: StubServer, rounds: int, scale: float) -> Section:
    """A long stream, read to its end."""
    tokens = max(200, round(10_000 * scale))
    url = server.at(tokens=tokens)

    def cpu(model: Any) -> Measurement:
        def measure() -> float:
            began = time.process_time()
            count = sum(1 for _ in model.stream(who.ASKED))
            _check_whole(count, tokens)
            return (time.process_time() - began) / tokens * 1e6

        return measure

    timed = {n: cpu(one) for n, one in _streams(url, who.Floor(url=url)).items()}
    title = f"A stream of {tokens:,} chunks, sync, CPU a chunk"
    return Section(title, "µs", interleaved(timed, rounds), _chunk_bars("sync"))


def async_chunks(server: StubServer, rounds: int, scale: float) -> Section:
    """Async variant of `sync_chunks`."""
    tokens = max(200, round(10_000 * scale))
    url = server.at(tokens=tokens)
    with asyncio.Runner() as runner, who.aiohttp_session(runner) as session:

        def cpu(model: Any) -> Measurement:
            async def measure() -> float:
                began, count = time.process_time(), 0
                async for _ in model.astream(who.ASKED):
                    count += 1
                _check_whole(count, tokens)
                return (time.process_time() - began) / tokens * 1e6

            return lambda: runner.run(measure())

        floor = who.AsyncFloor(url=url, session=session)
        timed = {name: cpu(one) for name, one in _streams(url, floor).items()}
        seen = interleaved(timed, rounds)
    title = f"A stream of {tokens:,} chunks, async, CPU a chunk"
    return Section(title, "µs", seen, _chunk_bars("async"))


def _streams(url: str, floor: Any) -> dict[str, Any]:
    # LiteLLM breaks off at the hundredth equal chunk, and cannot take part.
    chosen = (FLOOR, GPT_ROUTER, OPENAI, ROUTED, WRAPPED, CHAT, PARTNER)
    return {name: one for name, one in models(url, floor).items() if name in chosen}


def _check_whole(count: int, tokens: int) -> None:
    if count < tokens:
        msg = f"a stream of {tokens} chunks gave {count}"
        raise RuntimeError(msg)


def _chunk_bars(how: str) -> tuple[Bar, ...]:
    return (
        Bar(f"GPTRouter, a chunk / floor, {how}", GPT_ROUTER, 1.4, FLOOR),
        Bar(f"OpenAI, a chunk / langchain-openai's, {how}", OPENAI, 0.6, PARTNER),
    )


# --- many at once ---

DELAY_MS: Final = 50
POOLS: Final = itertools.count()
"""langchain-openai keeps a pool for each address, and httpx's pool is slow once it was
full: every contestant has its own address in each section."""


def five_hundred(server: StubServer, rounds: int, scale: float) -> Section:
    """500 calls in flight."""
    return _crowd(server, min(rounds, 3), max(20, round(500 * scale)), 500)


def two_thousand(server: StubServer, rounds: int, scale: float) -> Section:
    """2,000 calls in flight; httpx's pool takes minutes for them, so no peers."""
    return _crowd(server, min(rounds, 3), max(20, round(2_000 * scale)), 2_000)


def _crowd(server: StubServer, rounds: int, in_flight: int, full: int) -> Section:
    url, failed = server.at(delay_ms=DELAY_MS), [0.0]
    with asyncio.Runner() as runner, who.aiohttp_session(runner) as session:
        contestants: dict[str, Any] = {
            FLOOR: who.AsyncFloor(url=url, session=session),
            GPT_ROUTER: who.gpt_router(f"{url}/pool{next(POOLS)}"),
        }
        if full == 500:
            contestants |= {
                OPENAI: who.our_openai(f"{url}/pool{next(POOLS)}"),
                CHAT: who.chat_openai(f"{url}/pool{next(POOLS)}"),
                PARTNER: who.partner_openai(f"{url}/pool{next(POOLS)}"),
            }

        def rate(name: str, model: Any) -> Measurement:
            async def measure() -> float:
                began = time.perf_counter()
                calls = (model.ainvoke(who.ASKED) for _ in range(in_flight))
                answers = await asyncio.gather(*calls, return_exceptions=True)
                errors = sum(isinstance(one, BaseException) for one in answers)
                failed[0] += errors if name == GPT_ROUTER else 0
                return (in_flight - errors) / (time.perf_counter() - began)

            return lambda: runner.run(measure())

        timed = {name: rate(name, model) for name, model in contestants.items()}
        seen = interleaved(timed, rounds)
    seen["GPTRouter: calls that failed"] = failed
    what = f"{in_flight:,} at once"
    bars = [Bar(f"GPTRouter, {what}, failures", "GPTRouter: calls that failed", 0)]
    if full == 500:
        partner = f"OpenAI, {what} / langchain-openai's"
        bars += [
            Bar(f"GPTRouter, {what} / ChatOpenAI", GPT_ROUTER, 4, CHAT, side="≥"),
            Bar(partner, OPENAI, 2, PARTNER, side="≥"),
        ]
    title = f"{what}, {DELAY_MS} ms each at the server"
    return Section(title, "calls a second", seen, bars)


# --- import and memory ---


def imports(server: StubServer, rounds: int, scale: float) -> Section:
    """A fresh interpreter that imports one thing."""
    del server, scale
    # As pip does when it installs a package: here ours is used from its sources.
    compileall.compile_dir(Path(langchain_retryrouter.__file__).parent, quiet=1)
    ours = "from langchain_retryrouter import GPTRouter"
    floor = "import langchain_core.language_models.chat_models"

    def timed(statement: str) -> Measurement:
        return lambda: 1e3 * _seconds([sys.executable, "-c", statement])

    statements = (floor, ours, "import langchain_openai")
    seen = interleaved({one: timed(one) for one in statements}, rounds)
    bars = (Bar("import of GPTRouter / langchain-core's", ours, 1.15, floor),)
    return Section("Import", "ms", seen, bars)


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True)  # noqa: S603
    return time.perf_counter() - began


def memory(server: StubServer, rounds: int, scale: float) -> Section:
    """What many models with equal settings hold."""
    del rounds
    count = max(100, round(10_000 * scale))
    who.gpt_router(server.url).invoke(who.ASKED)
    gc.collect()
    tracemalloc.start()
    held = [who.gpt_router(server.url) for _ in range(count)]
    gc.collect()
    megabytes = tracemalloc.get_traced_memory()[0] / 1e6
    tracemalloc.stop()
    name = f"{len(held):,} models"
    return Section("Memory", "MB", {name: [megabytes]}, (Bar(f"{name}, MB", name, 60),))


SECTIONS: Final = {
    one.__name__: one
    for one in (
        *(sync_calls, async_calls, sync_chunks, async_chunks),
        *(five_hundred, two_thousand, imports, memory),
    )
}
