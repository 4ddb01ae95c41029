"""One call after another: what a call costs, sync and async, and what guards cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from benchmarks.speed import contestants as who
from benchmarks.speed.measure import Bar, Measurement, Section, interleaved
from benchmarks.speed.stub import StubServer

FAKE: Final = "langchain-core's fake chat model"
RAW: Final = "raw pooled call"
CALLER: Final = "GPTRouter"
GUARDED: Final = "GPTRouter with budget and breaker"
CHAT: Final = "langchain-openai ChatOpenAI"
PARTNER: Final = "langchain-openai OpenAI"
ROUTED: Final = "RetryRouter over ChatOpenAI"
FALLBACKS: Final = "ChatOpenAI.with_fallbacks"
OURS: Final = "OpenAI"
OURS_CHAT: Final = "OpenAIChat"


def sync_calls(server: StubServer, rounds: int, scale: float) -> Section:
    """`invoke`, again and again."""
    calls = max(20, round(300 * scale))
    models = _models(server.url)
    router = who.litellm_router(server.url)
    said = [{"role": "user", "content": who.ASKED}]
    raw, sdk, gateway = (
        who.raw_post(server.url),
        who.openai_sdk(server.url),
        who.gptrouter_sdk(server.url),
    )
    bodies: dict[str, Callable[[], object]] = {
        RAW: raw,
        **{name: who.invoker(model) for name, model in models.items()},
        "openai SDK, completions": lambda: sdk.completions.create(
            model="m", prompt=who.ASKED
        ),
        "openai SDK, chat": lambda: sdk.chat.completions.create(
            model="m",
            messages=said,  # type: ignore[arg-type] # a plain dict will do
        ),
        "gptrouter SDK": gateway,
        "LiteLLM Router": lambda: router.completion(model="m", messages=said),
        "LiteLLM ChatLiteLLM": who.invoker(who.litellm_chat(server.url)),
        "langchain-community GPTRouter": who.invoker(
            who.community_gpt_router(server.url)
        ),
    }
    slow = {"gptrouter SDK", "langchain-community GPTRouter"}
    timed = {
        name: _timer(body, max(5, calls // 20) if name in slow else calls)
        for name, body in bodies.items()
    }
    seen = interleaved(timed, rounds)
    return Section("One call after another, sync", "µs", seen, _BARS)


def async_calls(server: StubServer, rounds: int, scale: float) -> Section:
    """`ainvoke`, again and again, in one event loop."""
    calls = max(20, round(300 * scale))
    with asyncio.Runner() as runner, who.aiohttp_session(runner) as session:
        bodies: dict[str, Callable[[], Awaitable[object]]] = {
            RAW: lambda: who.raw_apost(session, server.url),
            **{name: who.ainvoker(m) for name, m in _models(server.url).items()},
        }
        timed = {name: _atimer(runner, b, calls) for name, b in bodies.items()}
        seen = interleaved(timed, rounds)
    return Section("One call after another, async", "µs", seen, _ASYNC_BARS)


def _models(url: str) -> dict[str, Any]:
    return {
        FAKE: who.fake_chat(),
        "langchain-core's fake LLM": who.fake_llm(),
        CALLER: who.gpt_router(url),
        GUARDED: who.guarded_gpt_router(url),
        OURS: who.our_openai(url),
        OURS_CHAT: who.our_openai_chat(url),
        "RetryRouter over GPTRouter": who.retry_router(who.gpt_router(url)),
        ROUTED: who.retry_router(who.chat_openai(url, max_retries=0)),
        PARTNER: who.partner_openai(url),
        CHAT: who.chat_openai(url),
        FALLBACKS: who.chat_openai(url, max_retries=0).with_fallbacks(
            [who.chat_openai(url, max_retries=0)]
        ),
    }


_BARS: Final = (
    Bar("GPTRouter.invoke, of its floor", CALLER, 1.3, over=(FAKE, RAW)),
    Bar("GPTRouter.invoke, of ChatOpenAI", CALLER, 0.5, over=(CHAT,)),
    Bar("OpenAI.invoke, of langchain-openai's OpenAI", OURS, 0.85, over=(PARTNER,)),
    Bar("OpenAIChat.invoke, of ChatOpenAI", OURS_CHAT, 0.85, over=(CHAT,)),
    Bar(
        "RetryRouter over one route, more than the bare model, µs",
        ROUTED,
        150,
        minus=CHAT,
    ),
    Bar(
        "RetryRouter over one route, of with_fallbacks", ROUTED, 1.0, over=(FALLBACKS,)
    ),
)
_ASYNC_BARS: Final = (
    Bar("GPTRouter.ainvoke, of its floor", CALLER, 1.3, over=(FAKE, RAW)),
    Bar("RetryRouter, async, of with_fallbacks", ROUTED, 1.0, over=(FALLBACKS,)),
)


def _timer(body: Callable[[], object], calls: int) -> Measurement:
    def measure() -> float:
        began = time.perf_counter()
        for _ in range(calls):
            body()
        return (time.perf_counter() - began) / calls * 1e6

    return measure


def _atimer(
    runner: asyncio.Runner, body: Callable[[], Awaitable[object]], calls: int
) -> Measurement:
    async def measure() -> float:
        began = time.perf_counter()
        for _ in range(calls):
            await body()
        return (time.perf_counter() - began) / calls * 1e6

    return lambda: runner.run(measure())
