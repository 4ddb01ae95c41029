"""One call after another: what a call costs, sync and async, and what guards cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from benchmarks.speed import busy
from benchmarks.speed import contestants as who
from benchmarks.speed.busy import ServerShare
from benchmarks.speed.measure import Bar, Measurement, Section, interleaved
from benchmarks.speed.stub import StubServer

FAKE: Final = "langchain-core's fake chat model"
RAW: Final = "raw pooled call"
BOTH_FLOORS: Final = "langchain-core's fake chat model around a raw call"
CALLER: Final = "GPTRouter"
UNCOLLECTED: Final = "GPTRouter without the garbage collector"
GUARDED: Final = "GPTRouter with budget and breaker"
CHAT: Final = "langchain-openai ChatOpenAI"
PARTNER: Final = "langchain-openai OpenAI"
ROUTED: Final = "RetryRouter over ChatOpenAI"
FALLBACKS: Final = "ChatOpenAI.with_fallbacks"
ROUTED_FAKE: Final = "RetryRouter over the fake chat model"
FAKE_FALLBACKS: Final = "the fake chat model's with_fallbacks"
OURS: Final = "OpenAI"
OURS_CHAT: Final = "OpenAIChat"
COMMUNITY: Final = "langchain-community GPTRouter"
GATEWAY_SDK: Final = "gptrouter SDK"
SDK_COMPLETIONS: Final = "openai SDK, completions"
SDK_CHAT: Final = "openai SDK, chat"
LITELLM_ROUTER: Final = "LiteLLM Router"
LITELLM_CHAT: Final = "LiteLLM ChatLiteLLM"
CLIENT_A_CALL: Final = (COMMUNITY, GATEWAY_SDK)
"""They build an HTTP client for each call, which takes 20 ms: they do fewer."""


def sync_calls(server: StubServer, rounds: int, scale: float) -> Section:
    """`invoke`, again and again."""
    calls = max(20, round(300 * scale))
    url, share = server.url, ServerShare(server)
    bodies: dict[str, Callable[[], object]] = {
        RAW: who.raw_post(url),
        BOTH_FLOORS: who.invoker(who.fake_chat_around(who.raw_post(url))),
        **{name: who.invoker(model) for name, model in _models(url).items()},
        SDK_COMPLETIONS: who.openai_completion(url),
        SDK_CHAT: who.openai_chat(url),
        GATEWAY_SDK: who.gptrouter_sdk(url),
        LITELLM_ROUTER: who.litellm_router(url),
    }
    timed = {
        name: _timer(body, _calls_of(name, calls)) for name, body in bodies.items()
    }
    seen = interleaved(share.of(timed, RAW, CALLER), rounds)
    return Section("One call after another, sync", "µs", seen, _BARS, share.rounds())


def async_calls(server: StubServer, rounds: int, scale: float) -> Section:
    """`ainvoke`, again and again, in one event loop."""
    calls = max(20, round(300 * scale))
    url, share = server.url, ServerShare(server)
    with asyncio.Runner() as runner, who.aiohttp_session(runner) as call_state:
        around = who.async_fake_chat_around(lambda: who.raw_apost(call_state, url))
        bodies: dict[str, Callable[[], Awaitable[object]]] = {
            RAW: lambda: who.raw_apost(call_state, url),
            BOTH_FLOORS: who.ainvoker(around),
            **{name: who.ainvoker(model) for name, model in _models(url).items()},
            SDK_COMPLETIONS: who.async_openai_completion(url),
            SDK_CHAT: who.async_openai_chat(url),
            GATEWAY_SDK: who.async_gptrouter_sdk(url),
            LITELLM_ROUTER: who.async_litellm_router(url),
        }
        timed = {
            name: _atimer(runner, body, _calls_of(name, calls))
            for name, body in bodies.items()
        }
        seen = interleaved(share.of(timed, RAW, CALLER), rounds)
    return Section(
        "One call after another, async", "µs", seen, _ASYNC_BARS, share.rounds()
    )


def _models(url: str) -> dict[str, Any]:
    return {
        FAKE: who.fake_chat(),
        "langchain-core's fake LLM": who.fake_llm(),
        CALLER: who.gpt_router(url),
        GUARDED: who.guarded_gpt_router(url),
        OURS: who.our_openai(url),
        OURS_CHAT: who.our_openai_chat(url),
        ROUTED_FAKE: who.retry_router(who.fake_chat()),
        FAKE_FALLBACKS: who.fake_chat().with_fallbacks([who.fake_chat()]),
        "RetryRouter over GPTRouter": who.retry_router(who.gpt_router(url)),
        ROUTED: who.retry_router(who.chat_openai(url, max_retries=0)),
        PARTNER: who.partner_openai(url),
        CHAT: who.chat_openai(url),
        FALLBACKS: who.with_fallbacks(url),
        COMMUNITY: who.community_gpt_router(url),
        LITELLM_CHAT: who.litellm_chat(url),
    }


def _calls_of(name: str, calls: int) -> int:
    return max(5, calls // 20) if name in CLIENT_A_CALL else calls


# Without a server, whose noise is a multiple of what the two differ by.
_BY_THEMSELVES: Final = Bar(
    "RetryRouter over the fake, of the fake's with_fallbacks",
    ROUTED_FAKE,
    1.0,
    over=(FAKE_FALLBACKS,),
)
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
    _BY_THEMSELVES,
    *busy.bars(RAW, CALLER),
)
_ASYNC_BARS: Final = (
    Bar("GPTRouter.ainvoke, of its floor", CALLER, 1.3, over=(FAKE, RAW)),
    Bar("RetryRouter, async, of with_fallbacks", ROUTED, 1.0, over=(FALLBACKS,)),
    _BY_THEMSELVES,
    *busy.bars(RAW, CALLER),
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
