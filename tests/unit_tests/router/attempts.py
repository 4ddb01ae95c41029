"""One attempt at a model, as a router makes it, in four ways."""

import asyncio
import functools
from dataclasses import dataclass
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.outputs import ChatGenerationChunk

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


def error_of(way: Way, model: BaseChatModel, **kwargs: Any) -> Exception:
    """The error of the attempt, as the integration raises it."""
    try:
        answer = ask(way, model, **kwargs)
    except Exception as error:  # noqa: BLE001 - it is what is looked at
        return error
    msg = f"{way} was to fail, and brought {answer}"
    raise AssertionError(msg)
