"""What we weigh: building a model, importing us, and memory."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import subprocess
import sys
import time
import tracemalloc
from typing import Any, Final

from benchmarks.speed import contestants as who
from benchmarks.speed.calls import CALLER, CHAT, OURS, PARTNER
from benchmarks.speed.measure import Bar, Measurement, Section, interleaved
from benchmarks.speed.stub import StubServer
from langchain_retryrouter._gptrouter.errors import GPT_ROUTER_ERRORS
from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.engine import RetryContext, call
from langchain_retryrouter.retry import CircuitBreaker, RetryBudget, RetryPolicy

_MEGABYTE: Final = 1_000_000


# --- building -----------------------------------------------------------------------


def building(server: StubServer, rounds: int, scale: float) -> Section:
    """Another model with settings that were seen before."""
    del scale
    url = server.url
    built: list[Any] = [who.gpt_router(url), who.our_openai(url)]
    timed: dict[str, Measurement] = {
        CALLER: lambda: _ms(lambda: who.gpt_router(url)),
        OURS: lambda: _ms(lambda: who.our_openai(url)),
        CHAT: lambda: _ms(lambda: who.chat_openai(url)),
        PARTNER: lambda: _ms(lambda: who.partner_openai(url)),
        "openai SDK": lambda: _ms(lambda: who.openai_sdk(url)),
    }
    seen = interleaved(timed, rounds)
    del built
    bars = (
        Bar("GPTRouter, ms", CALLER, 1),
        Bar("OpenAI, ms", OURS, 1),
    )
    return Section("Building a second model with equal settings", "ms", seen, bars)


def _ms(build: Any) -> float:
    began = time.perf_counter()
    for _ in range(5):
        build()
    return (time.perf_counter() - began) / 5 * 1000


# --- the guards ---------------------------------------------------------------------


def _nothing(attempt: object = None) -> None:
    """A call that costs nothing."""
    del attempt


def guards(server: StubServer, rounds: int, scale: float) -> Section:
    """Retry, budget, breaker and ledger around a call that costs nothing."""
    del server
    calls = max(200, round(5_000 * scale))
    budget, breaker, policy = RetryBudget(), CircuitBreaker(), RetryPolicy()

    def guarded() -> float:
        began = time.process_time()
        for _ in range(calls):
            call_state = CallState(policy, budget=budget, breaker=breaker)
            call(RetryContext(call_state, errors=GPT_ROUTER_ERRORS), _nothing)
            call_state.attempt_log()
        return (time.process_time() - began) / calls * 1e6

    def bare() -> float:
        began = time.process_time()
        for _ in range(calls):
            _nothing()
        return (time.process_time() - began) / calls * 1e6

    seen = interleaved({"with all guards": guarded, "without": bare}, rounds)
    bars = (Bar("more than without, µs", "with all guards", 30, minus="without"),)
    return Section("Retry, budget, breaker and ledger, CPU a call", "µs", seen, bars)


# --- imports ------------------------------------------------------------------------

_OURS_IMPORT: Final = "from langchain_retryrouter import GPTRouter"
_FLOOR_IMPORT: Final = "import langchain_core.language_models.chat_models"
_HEAVY: Final = ("openai", "tiktoken", "aiohttp")
_ASK_HEAVY: Final = (
    f"{_OURS_IMPORT}; import sys; print(sum(name in sys.modules for name in {_HEAVY}))"
)


def imports(server: StubServer, rounds: int, scale: float) -> Section:
    """A fresh interpreter that imports one thing."""
    del server, scale
    statements = {
        _FLOOR_IMPORT: _FLOOR_IMPORT,
        _OURS_IMPORT: _OURS_IMPORT,
        "import langchain_openai": "import langchain_openai",
    }
    timed: dict[str, Measurement] = {
        name: functools.partial(_import_ms, statement)
        for name, statement in statements.items()
    }
    seen = interleaved(timed, rounds)
    heavy = float(subprocess.check_output([sys.executable, "-c", _ASK_HEAVY]))  # noqa: S603
    seen["heavy packages that GPTRouter's import loads"] = [heavy] * rounds
    bars = (
        Bar(
            "of langchain-core's chat models", _OURS_IMPORT, 1.15, over=(_FLOOR_IMPORT,)
        ),
        Bar(
            f"of {', '.join(_HEAVY)}",
            "heavy packages that GPTRouter's import loads",
            0,
        ),
    )
    return Section("Imports", "ms", seen, bars)


def _import_ms(statement: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)  # noqa: S603
    return (time.perf_counter() - began) * 1000


# --- memory -------------------------------------------------------------------------


def memory(server: StubServer, rounds: int, scale: float) -> Section:
    """What many models, and many open streams, hold."""
    del rounds
    models = max(100, round(10_000 * scale))
    streams = max(20, round(1_000 * scale))
    held = [_held_by_models(server.url, models)]
    opened = [asyncio.run(_held_by_streams(server.at(tokens=50), streams))]
    many, open_ = f"{models:,} models with equal settings", f"{streams:,} open streams"
    bars = (
        Bar(f"{many}, MB over one", many, 60),
        Bar(f"{open_}, MB", open_, 100),
    )
    return Section("Memory", "MB", {many: held, open_: opened}, bars)


def _held_by_models(url: str, count: int) -> float:
    who.gpt_router(url)
    gc.collect()
    tracemalloc.start()
    models = [who.gpt_router(url) for _ in range(count)]
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del models
    return held / _MEGABYTE


async def _held_by_streams(url: str, count: int) -> float:
    model = who.gpt_router(url)
    async for _ in model.astream(who.ASKED):
        pass
    gc.collect()
    tracemalloc.start()
    streams = [model.astream(who.ASKED) for _ in range(count)]
    await asyncio.gather(*(anext(stream) for stream in streams))
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    for stream in streams:
        with contextlib.suppress(RuntimeError):
            await stream.aclose()  # type: ignore[attr-defined]
    return held / _MEGABYTE
