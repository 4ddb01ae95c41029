"""LangChain's conventions over a failing gateway: caches, batches, chains, events."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.load import dumps, loads
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import RunnableBinding
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel

from langchain_retryrouter import (
    GPTRouter,
    StreamInterruptedError,
)
from langchain_retryrouter.testing import (
    Answer,
    Cut,
    FaultyGateway,
    Reset,
    Status,
)
from tests.support.rule_responder import RuleResponder
from tests.unit_tests.conftest import Twin

from .conftest import GPT_4, KEY, OTHER, Env


class Weather(BaseModel):
    """Get the weather in a city."""

    city: str


@pytest.fixture
def gateway() -> Iterator[FaultyGateway]:
    """A hosted gateway whose model answers by rules."""
    with FaultyGateway(answer=RuleResponder(), gptrouter="hosted") as gateway:
        yield gateway


def attempts_of(message: AIMessage) -> list[str]:
    attempt_log = message.response_metadata["retryrouter"]
    return [attempt["outcome"] for attempt in attempt_log["attempts"]]


# Caches.


def test_an_answer_out_of_a_cache_costs_nothing(env: Env) -> None:
    """A cached answer is not requested again, and has no attempts."""
    env.gateway.script(Status(503), Reset())
    llm = env.llm(cache=InMemoryCache())

    first = env.invoke(llm, "hi")
    again = env.invoke(llm, "hi")

    assert again.content == first.content
    assert attempts_of(first) == ["unavailable", "connection", "ok"]
    assert attempts_of(again) == []
    assert again.response_metadata["model_name"] == "gpt-4-0613"
    assert len(env.gateway.requests) == 3


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"temperature": 0.1}, {}),
        ({"models_priority_list": [OTHER]}, {}),
        ({"tag": "summaries"}, {}),
        ({}, {"temperature": 0.1}),
        ({}, {"model": OTHER.name}),
        ({}, {"stop": ["you"]}),
        ({}, {"tools": [convert_to_openai_tool(Weather)]}),
    ],
)
def test_calls_that_differ_do_not_share_a_cached_answer(
    env: Env, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    """Fields of the model and options of the call are part of the cache's key."""
    settings = {"cache": InMemoryCache(), "models_priority_list": [GPT_4, OTHER]}

    env.invoke(env.llm(**settings), "hi")
    env.invoke(env.llm(**{**settings, **fields}), "hi", **options)

    assert len(env.gateway.requests) == 2


# Rate limiters and batches.


class _Turnstile(BaseRateLimiter):
    """Lets every call through, and counts them."""

    def __init__(self) -> None:
        self.passed = 0

    def acquire(self, *, blocking: bool = True) -> bool:
        assert blocking
        self.passed += 1
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        return self.acquire(blocking=blocking)


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_rate_limiter_is_asked_once_a_call(env: Env, way: str) -> None:
    """LangChain's rate limiter counts calls, not their retries."""
    env.gateway.script(Status(503), Reset())
    limiter = _Turnstile()

    getattr(env, way)(env.llm(rate_limiter=limiter), "hi")

    assert limiter.passed == 1
    assert len(env.gateway.requests) == 3


# Streams.


@pytest.mark.parametrize(
    "fields", [{"disable_streaming": True}, {"streaming": False}], ids=str
)
@pytest.mark.parametrize("has_tools", [True, False])
def test_what_is_not_streamed_is_one_chunk(
    env: Env, fields: dict[str, Any], has_tools: bool
) -> None:
    """Without streaming a stream is one chunk, with tool calls, usage and attempts."""
    env.gateway.script(Reset(), Status(503))
    llm = env.llm(**fields)

    (chunk,) = env.stream(
        llm.bind_tools([Weather]) if has_tools else llm, "Weather('Oslo')"
    )

    assert isinstance(chunk, AIMessageChunk)
    assert chunk.chunk_position == "last"
    assert [call["args"] for call in chunk.tool_calls] == [{"city": "Oslo"}] * has_tools
    assert chunk.usage_metadata is not None
    assert attempts_of(chunk) == ["connection", "unavailable", "ok"]
    assert [request.streaming for request in env.gateway.requests] == [has_tools] * 3


def _events_v3(twin: Twin, llm: Any, into: list[Any]) -> None:
    async def follow() -> None:
        async for event in await llm.astream_events("one two three", version="v3"):
            into.append(event)  # noqa: PERF401 - what came before an error must be kept

    if twin.is_async:
        asyncio.run(follow())
        return
    for event in llm.stream_events("one two three", version="v3"):
        into.append(event)  # noqa: PERF402


def _text_of(events: list[Any]) -> str:
    deltas = [
        event["delta"] for event in events if event["event"] == "content-block-delta"
    ]
    return "".join(delta["text"] for delta in deltas)


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
def test_events_of_blocks_come_once(env: Env) -> None:
    """`stream_events` v3 has no events of failed attempts; a broken stream raises."""
    env.gateway.script(Reset(), Cut(after=0), Status(503), Answer(), Cut(after=2))
    events: list[Any] = []
    _events_v3(env, env.llm(), events)

    assert _text_of(events) == "You said: one two three"
    kinds = Counter(event["event"] for event in events)
    assert kinds["message-start"] == kinds["message-finish"] == 1
    assert len(env.gateway.requests) == 4

    events.clear()
    with pytest.raises(StreamInterruptedError) as caught:
        _events_v3(env, env.llm(), events)
    assert _text_of(events) == caught.value.delivered == "You said:"
    assert len(env.gateway.requests) == 5


# Serialization.


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
def test_a_model_with_tools_is_written_and_loaded(env: Env) -> None:
    """A model with bound tools is written without its key, and loaded again."""
    written = dumps(env.llm(max_retries=1).bind_tools([Weather], tool_choice="any"))
    assert KEY not in written
    loaded: Any = loads(
        written,
        allowed_objects=[GPTRouter, RunnableBinding],
        valid_namespaces=["langchain_retryrouter"],
        secrets_map={"GPT_ROUTER_API_KEY": KEY},
    )
    assert dumps(loaded) == written
    loaded.bound.clock = env.clock
    env.gateway.script(Status(503))

    answer = env.invoke(loaded, "Oslo")

    assert answer.tool_calls[0]["name"] == "Weather"
    assert attempts_of(answer) == ["unavailable", "ok"]
