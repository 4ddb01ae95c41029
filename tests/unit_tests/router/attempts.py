"""One attempt at a foreign model, as a router makes it, and what its error means."""

import asyncio
import functools
from dataclasses import dataclass
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.outputs import ChatGenerationChunk

from langchain_retryrouter._providers.errors import name_failure
from langchain_retryrouter.errors import RetryRouterError

WALL = 1_800_000_000.0
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
    """The chunks of the answer, or its generations. The model's clients are closed."""
    method = functools.partial(getattr(model, str(way)), messages)
    if way.is_async:
        return asyncio.run(_ask(way, model, method, **kwargs))
    try:
        answer = method(**kwargs)
        return list(answer if way.is_streaming else answer.generations)
    finally:
        for client in _clients(model, "http_client", "_client"):
            client.close()


async def _ask(
    way: Way, model: BaseChatModel, method: Any, **kwargs: Any
) -> list[ChatGenerationChunk]:
    try:
        if way.is_streaming:
            return [chunk async for chunk in method(**kwargs)]
        return list((await method(**kwargs)).generations)
    finally:
        for client in _clients(model, "http_async_client", "_async_client"):
            await (getattr(client, "aclose", None) or client.close)()


def _clients(model: BaseChatModel, *names: str) -> list[Any]:
    """The clients that `ChatOpenAI` or `ChatAnthropic` send with, in routes as well."""
    models = [model, *(route.model for route in getattr(model, "routes", ()))]
    found = [
        next(filter(None, (getattr(one, name, None) for name in names)), None)
        for one in models
    ]
    return [client for client in found if client is not None]


def failure(way: Way, model: BaseChatModel, **kwargs: Any) -> RetryRouterError | None:
    """What the attempt's error means."""
    raised = error_of(way, model, **kwargs)
    return name_failure(raised, WALL)


def error_of(way: Way, model: BaseChatModel, **kwargs: Any) -> Exception:
    """The error of the attempt, as the integration raises it."""
    try:
        answer = ask(way, model, **kwargs)
    except Exception as error:  # noqa: BLE001 - it is what is looked at
        return error
    msg = f"{way} was to fail, and brought {answer}"
    raise AssertionError(msg)
