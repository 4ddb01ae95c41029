"""Calls of a model that are made together begin a few at a time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import openai
import pytest
from langchain_core.callbacks import AsyncCallbackHandler

from langchain_retryrouter import (
    GPTRouter,
    GPTRouterModel,
    OpenAI,
    OpenAIChat,
    RetryRouter,
)
from langchain_retryrouter._retry import turnstile
from langchain_retryrouter._retry.turnstile import AT_ONCE
from langchain_retryrouter.testing import FaultyGateway

KEY: Any = "sk-the-key-of-the-tests"
MANY = 3 * AT_ONCE
ASKED = "hi"


class Beginnings(AsyncCallbackHandler):
    """Counts the runs that begin in each turn of the loop."""

    run_inline = True

    def __init__(self) -> None:
        """Counting turns until it is stopped."""
        self.by_turn: Counter[int] = Counter()
        self._turn = -1
        self._count()

    def _count(self) -> None:
        self._turn += 1
        self._next = asyncio.get_running_loop().call_soon(self._count)

    def stop(self) -> None:
        """Count no more."""
        self._next.cancel()

    async def on_chat_model_start(self, *_: Any, **__: Any) -> None:
        """One more, of a chat model."""
        self.by_turn[self._turn] += 1

    async def on_llm_start(self, *_: Any, **__: Any) -> None:
        """One more, of an LLM."""
        self.by_turn[self._turn] += 1


@pytest.fixture(autouse=True)
def watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The turnstile's clock stands still: nobody knows what a call takes."""
    monkeypatch.setattr(turnstile, "perf_counter", lambda: 0.0)


@pytest.fixture(autouse=True)
def whole_http_library() -> None:
    """It imports a part of itself when first used: not inside an event loop."""
    openai.DefaultHttpxClient().close()


def gpt_router(gateway: FaultyGateway) -> GPTRouter:
    models = [GPTRouterModel(name="gpt-4-0613", provider_name="chat_openai")]
    return GPTRouter(
        models_priority_list=models,
        gpt_router_api_base=gateway.url,
        gpt_router_api_key=KEY,
    )


def retry_router(gateway: FaultyGateway) -> RetryRouter:
    return RetryRouter(routes=[gpt_router(gateway)])


def openai_llm(gateway: FaultyGateway) -> OpenAI:
    return OpenAI(
        model="gpt-3.5-turbo-instruct", base_url=f"{gateway.url}/v1", api_key=KEY
    )


def openai_chat(gateway: FaultyGateway) -> OpenAIChat:
    return OpenAIChat(model="gpt-4o-mini", base_url=f"{gateway.url}/v1", api_key=KEY)


async def invoked(model: Any, config: Any) -> None:
    await model.ainvoke(ASKED, config)


async def streamed(model: Any, config: Any) -> None:
    assert [chunk async for chunk in model.astream(ASKED, config)]


@pytest.mark.parametrize(
    ("new_model", "ask"),
    [
        (gpt_router, invoked),
        (gpt_router, streamed),
        (retry_router, invoked),
        (retry_router, streamed),
        (openai_llm, invoked),
        (openai_chat, invoked),
    ],
)
async def test_few_calls_begin_in_one_turn(
    faulty_gateway: FaultyGateway,
    new_model: Callable[[FaultyGateway], Any],
    ask: Callable[[Any, Any], Any],
) -> None:
    """LangChain's own preparations, too, are made for a few calls in one turn."""
    model = new_model(faulty_gateway)
    await ask(model, None)
    seen = Beginnings()
    try:
        config = {"callbacks": [seen]}
        await asyncio.gather(*(ask(model, config) for _ in range(MANY)))
    finally:
        seen.stop()
    assert seen.by_turn.total() == MANY
    assert max(seen.by_turn.values()) <= AT_ONCE
