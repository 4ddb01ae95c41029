"""Models and routers, asked in four ways."""

import asyncio
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig

from langchain_retryrouter import RetryPolicy, RetryRouter
from langchain_retryrouter.testing import FakeClock
from tests.unit_tests.conftest import Twin

MESSAGES: list[BaseMessage] = [HumanMessage("hi")]


@dataclass(frozen=True)
class Way:
    """A way to ask a model; there are four."""

    is_async: bool
    is_streaming: bool

    def __str__(self) -> str:
        """Such as `_astream`, the method that is called."""
        return f"_{'a' * self.is_async}{'stream' if self.is_streaming else 'generate'}"


WAYS = [Way(is_async=a, is_streaming=s) for a in (False, True) for s in (False, True)]
every_way = pytest.mark.parametrize("way", WAYS, ids=str)
"""Runs a test in each way."""


def ask(
    way: Way,
    model: BaseChatModel,
    messages: list[BaseMessage] = MESSAGES,
    **kwargs: Any,
) -> list[ChatGenerationChunk]:
    """The chunks of the answer, or its generations."""
    method = functools.partial(getattr(model, str(way)), messages, **kwargs)
    if way.is_async:
        return asyncio.run(_ask(way, method))
    answer = method()
    return list(answer if way.is_streaming else answer.generations)


async def _ask(way: Way, method: Any) -> list[ChatGenerationChunk]:
    if way.is_streaming:
        return [chunk async for chunk in method()]
    return list((await method()).generations)


def message_of(
    way: Way, runnable: Any, given: Any = "hi", config: RunnableConfig | None = None
) -> Any:
    """The answer by the public methods; of a stream, the sum of its chunks."""
    twin = Twin(way.is_async)
    if not way.is_streaming:
        return twin.invoke(runnable, given, config)
    first, *chunks = twin.stream(runnable, given, config)
    return sum(chunks, first)


def router_of(*models: Any, retries: int = 0, **fields: Any) -> RetryRouter:
    """A router of these models that waits for nothing, and has no breakers."""
    settings: dict[str, Any] = {
        "retry_policy": RetryPolicy(max_retries=retries),
        "breaker_settings": None,
        "clock": FakeClock(),
        **fields,
    }
    return RetryRouter(routes=list(models), **settings)


class Scripted(BaseChatModel):
    """Answers with one message, or streams chunks and then breaks if it is told to."""

    chunks: list[Any]
    llm_output: dict[str, Any] | None = None
    breaks: bool = False
    model: str = ""
    max_retries: int = 0
    sent: list[list[BaseMessage]] = []  # noqa: RUF012 - a field

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _get_ls_params(self, stop: Any = None, **kwargs: Any) -> Any:
        return {**super()._get_ls_params(stop, **kwargs), "ls_model_name": self.model}

    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        generations = [ChatGeneration(message=one) for one in self.chunks]
        return ChatResult(generations=generations, llm_output=self.llm_output)

    def _stream(
        self, messages: list[BaseMessage], *_: Any, **__: Any
    ) -> Iterator[ChatGenerationChunk]:
        self.sent.append(messages)
        for chunk in self.chunks:
            yield ChatGenerationChunk(message=chunk.model_copy(deep=True))
        if self.breaks:
            msg = "the connection broke"
            raise ConnectionResetError(msg)


class Odd(BaseChatModel):
    """Returns what it is given, one after the other, or raises it, or what it makes."""

    results: list[Any]
    asked: list[Any] = []  # noqa: RUF012 - a field

    @property
    def _llm_type(self) -> str:
        return "odd"

    def _generate(self, messages: Any, *_: Any, **options: Any) -> Any:
        self.asked.append(messages)
        result = self.results.pop(0) if len(self.results) > 1 else self.results[0]
        if callable(result):
            result = result(options)
        if isinstance(result, Exception):
            raise result
        return result


HELLO = ChatResult(generations=[ChatGeneration(message=AIMessage("Hello"))])


def text_of(way: Way, model: BaseChatModel) -> str:
    return "".join(part.text for part in ask(way, model))


def log_of(answer: Any) -> list[dict[str, Any]]:
    """The attempt log of a message, or of what `ask` returns."""
    message = answer[-1].message if isinstance(answer, list) else answer
    log: list[dict[str, Any]] = message.response_metadata["retryrouter"]["attempts"]
    return log


def outcomes(answer: Any) -> list[str]:
    return [line["outcome"] for line in log_of(answer)]


def of_package(package: str, cls: type, **facts: Any) -> Any:
    """A subclass that counts as one of this package, as far as its module tells."""
    facts = {"__module__": f"{package}.chat_models", **facts}
    return type("ChatModelOfATest", (cls,), facts)


def error_of(way: Way, model: BaseChatModel, **kwargs: Any) -> Exception:
    """The error of the attempt, as the integration raises it."""
    try:
        answer = ask(way, model, **kwargs)
    except Exception as error:  # noqa: BLE001 - it is what is looked at
        return error
    msg = f"{way} was to fail, and brought {answer}"
    raise AssertionError(msg)
