"""Streams: the CPU that a chunk costs, and how soon the first one is there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

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
    LITELLM_CHAT,
    OURS,
    OURS_CHAT,
    PARTNER,
)
from benchmarks.speed.measure import Bar, Measurement, Section, interleaved
from benchmarks.speed.stub import StubServer

LINES: Final = "raw lines of the stream"
_EQUAL_CHUNKS: Final = 100

Source = Callable[[], Iterator[object]]
AsyncSource = Callable[[], AsyncIterator[object]]


def sync_chunks(server: StubServer, rounds: int, scale: float) -> Section:
    """A long stream, read to its end."""
    tokens = max(200, round(20_000 * scale))
    timed = {
        name: _cpu(source, tokens)
        for name, source in _sources(server.at(tokens=tokens), tokens).items()
    }
    return Section(
        f"A stream of {tokens:,} tokens, sync, CPU a token",
        "µs",
        interleaved(timed, rounds),
        _CHUNK_BARS,
    )


def async_chunks(server: StubServer, rounds: int, scale: float) -> Section:
    """Async twin of `sync_chunks`."""
    tokens = max(200, round(20_000 * scale))
    with asyncio.Runner() as runner, who.aiohttp_session(runner) as call_state:
        sources = _async_sources(call_state, server.at(tokens=tokens), tokens)
        timed = {name: _acpu(runner, s, tokens) for name, s in sources.items()}
        seen = interleaved(timed, rounds)
    return Section(
        f"A stream of {tokens:,} tokens, async, CPU a token", "µs", seen, _CHUNK_BARS
    )


def first_token(server: StubServer, rounds: int, scale: float) -> Section:
    """From the call of `stream` to its first chunk."""
    streams, share = max(10, round(100 * scale)), ServerShare(server)
    timed = {
        name: _first(source, _streams_of(name, streams))
        for name, source in _sources(server.at(tokens=5), 5).items()
    }
    seen = interleaved(share.of(timed, LINES, CALLER), rounds)
    return Section("First token, sync", "µs", seen, _FIRST_TOKEN_BARS, share.rounds())


def async_first_token(server: StubServer, rounds: int, scale: float) -> Section:
    """Async twin of `first_token`."""
    streams, share = max(10, round(100 * scale)), ServerShare(server)
    with asyncio.Runner() as runner, who.aiohttp_session(runner) as call_state:
        timed = {
            name: _afirst(runner, source, _streams_of(name, streams))
            for name, source in _async_sources(
                call_state, server.at(tokens=5), 5
            ).items()
        }
        seen = interleaved(share.of(timed, LINES, CALLER), rounds)
    return Section("First token, async", "µs", seen, _FIRST_TOKEN_BARS, share.rounds())


def _streams_of(name: str, streams: int) -> int:
    return max(5, streams // 10) if name in CLIENT_A_CALL else streams


def _sources(url: str, tokens: int) -> dict[str, Source]:
    models = _models(url, tokens)
    return {LINES: who.raw_lines(url)} | {
        name: _streamer(model) for name, model in models.items()
    }


def _async_sources(
    call_state: aiohttp.ClientSession, url: str, tokens: int
) -> dict[str, AsyncSource]:
    models = _models(url, tokens)
    return {LINES: lambda: who.raw_alines(call_state, url)} | {
        name: _astreamer(model) for name, model in models.items()
    }


def _models(url: str, tokens: int) -> dict[str, Any]:
    return {
        FAKE: who.fake_chat_stream(tokens),
        CALLER: who.gpt_router(url),
        OURS: who.our_openai(url),
        OURS_CHAT: who.our_openai_chat(url),
        PARTNER: who.partner_openai(url),
        CHAT: who.chat_openai(url),
        COMMUNITY: who.community_gpt_router(url),
        # It breaks off at the hundredth equal chunk, as a model that has lost its way.
        **({LITELLM_CHAT: who.litellm_chat(url)} if tokens < _EQUAL_CHUNKS else {}),
    }


_CHUNK_BARS: Final = (
    Bar("GPTRouter, of its floor", CALLER, 1.4, over=(FAKE, LINES)),
    Bar("OpenAI, of langchain-openai's OpenAI", OURS, 0.45, over=(PARTNER,)),
)
_FIRST_TOKEN_BARS: Final = (
    Bar("GPTRouter, of its floor", CALLER, 1.3, over=(FAKE, LINES)),
    *busy.bars(LINES, CALLER),
)


def _streamer(model: Any) -> Source:
    return lambda: model.stream(who.ASKED)


def _astreamer(model: Any) -> AsyncSource:
    return lambda: model.astream(who.ASKED)


def _cpu(source: Source, tokens: int) -> Measurement:
    def measure() -> float:
        began = time.process_time()
        seen = sum(1 for _ in source())
        _check_whole(seen, tokens)
        return (time.process_time() - began) / tokens * 1e6

    return measure


def _acpu(runner: asyncio.Runner, source: AsyncSource, tokens: int) -> Measurement:
    async def measure() -> float:
        began = time.process_time()
        seen = 0
        async for _ in source():
            seen += 1
        _check_whole(seen, tokens)
        return (time.process_time() - began) / tokens * 1e6

    return lambda: runner.run(measure())


def _check_whole(seen: int, tokens: int) -> None:
    if seen < tokens:
        msg = f"a stream of {tokens} tokens gave {seen} pieces"
        raise RuntimeError(msg)


def _first(source: Source, streams: int) -> Measurement:
    def measure() -> float:
        seconds = 0.0
        for _ in range(streams):
            began = time.perf_counter()
            chunks = source()
            next(chunks)
            seconds += time.perf_counter() - began
            for _ in chunks:
                pass
        return seconds / streams * 1e6

    return measure


def _afirst(runner: asyncio.Runner, source: AsyncSource, streams: int) -> Measurement:
    async def measure() -> float:
        seconds = 0.0
        for _ in range(streams):
            began = time.perf_counter()
            chunks = source()
            await anext(chunks)
            seconds += time.perf_counter() - began
            async for _ in chunks:
                pass
        return seconds / streams * 1e6

    return lambda: runner.run(measure())
