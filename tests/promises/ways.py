"""The ways through LangChain to a model, and `completion_with_retry` beside them."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from langchain_core._api import LangChainBetaWarning
from langchain_core.callbacks import AsyncCallbackManager, CallbackManager
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig

from langchain_retryrouter import RetryRouterError
from langchain_retryrouter.chat_models import gpt_router
from langchain_retryrouter.llms import openai
from tests.promises.five_models import CHAT_MODELS
from tests.unit_tests.conftest import Twin

Way = Callable[[Twin, Any, RunnableConfig], object]


def chain(llm: Any) -> Runnable[Any, Any]:
    """The model in an LCEL chain."""
    one: Runnable[Any, Any] = ChatPromptTemplate(["{question}"]) | llm
    return one | StrOutputParser()


def generate(twin: Twin, llm: Any, config: RunnableConfig) -> object:
    """`generate`, which takes messages or a text."""
    is_chat = hasattr(llm, "bind_tools")
    return twin.generate(llm, [[HumanMessage("hi")] if is_chat else "hi"], **config)


def batch(twin: Twin, llm: Any, config: RunnableConfig) -> object:
    """Two calls at once of a chat model; an LLM may make one of two prompts."""
    prompts = ["one", "two"] if hasattr(llm, "bind_tools") else ["one"]
    answers = twin.batch(llm, prompts, config, return_exceptions=True)
    failed = [answer for answer in answers if isinstance(answer, RetryRouterError)]
    if failed:
        raise failed[0]
    return answers


def stream_events(twin: Twin, llm: Any, config: RunnableConfig) -> object:
    """`astream_events` v2, and its sync twin, which is v3 and only for chat models."""

    async def read() -> list[Any]:
        return [one async for one in llm.astream_events("hi", config, version="v2")]

    if twin.is_async:
        return asyncio.run(read())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LangChainBetaWarning)
        return list(llm.stream_events("hi", config, version="v3"))


def complete(twin: Twin, llm: Any, config: RunnableConfig, *, stream: bool) -> object:
    """`completion_with_retry` with the run manager of a run just begun."""
    messages = [{"role": "user", "content": "hi"}]
    manager: Any = _begun(twin, config["callbacks"])
    if isinstance(llm, gpt_router.GPTRouter):
        models = llm.models_priority_list
        ask: dict[str, Any] = {"messages": messages, "stream": stream}
        return twin.complete(gpt_router, llm, models, manager, **ask)
    is_chat = isinstance(llm, openai.OpenAIChat)
    prompt = {"messages": messages} if is_chat else {"prompt": "hi"}
    ask = {"model": "m", "stream": stream, **prompt}
    return twin.complete(openai, llm, manager, **ask)


def _begun(twin: Twin, handlers: Any) -> object:
    if not twin.is_async:
        return CallbackManager(handlers).on_llm_start({}, ["hi"])[0]

    async def begin() -> object:
        return (await AsyncCallbackManager(handlers).on_llm_start({}, ["hi"]))[0]

    return asyncio.run(begin())


def streaming(llm: Any) -> Any:
    """The model with its field `streaming` on."""
    return llm.model_copy(update={"streaming": True})


WAYS: Final[dict[str, Way]] = {
    "invoke": lambda twin, llm, config: twin.invoke(llm, "hi", config),
    "batch": batch,
    "generate": generate,
    "chain invoke": lambda twin, llm, config: twin.invoke(chain(llm), "hi", config),
    "chain batch": lambda twin, llm, config: twin.batch(chain(llm), ["hi"], config),
}
STREAMS: Final[dict[str, Way]] = {
    "stream": lambda twin, llm, config: twin.stream(llm, "hi", config),
    "chain stream": lambda twin, llm, config: twin.stream(chain(llm), "hi", config),
    "stream events": stream_events,
}
OF_PROVIDERS: Final[dict[str, Way]] = {
    "streaming invoke": lambda twin, llm, config: twin.invoke(
        streaming(llm), "hi", config
    ),
    "completion": partial(complete, stream=False),
    "completion stream": partial(complete, stream=True),
}


def ways_of(twin: Twin, model: str) -> dict[str, Way]:
    """The ways that there are for a model."""
    ways = WAYS | STREAMS | (OF_PROVIDERS if model != "RetryRouter" else {})
    if not twin.is_async and model not in CHAT_MODELS:
        del ways["stream events"]
    return ways
