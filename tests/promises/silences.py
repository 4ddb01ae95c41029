"""Servers that keep one waiting, each in its own way, and who waits there."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI

from langchain_retryrouter import (
    GPTRouter,
    GPTRouterModel,
    OpenAI,
    OpenAIChat,
    RetryPolicy,
    RetryRouter,
)
from langchain_retryrouter.testing import (
    Drip,
    FaultyGateway,
    Raw,
    RecordedRequest,
    Silence,
    Stall,
    Step,
)
from tests.unit_tests.listeners import A_LONG_PROMPT, deaf, full, sipping

LONG: Final = 60.0
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ntransfer-encoding: chunked\r\n\r\n"


def headers_only(request: RecordedRequest) -> Step:
    """The beginning of an answer, and nothing behind it."""
    kind = b"text/event-stream" if request.streaming else b"application/json"
    return Raw(_HEAD % kind, close=False)


STEPS: Final[dict[str, Any]] = {
    "says nothing": Silence(LONG),
    "says headers only": headers_only,
    "drips bytes": Drip(0.02),
    "falls silent after a few tokens": Stall(2, LONG),
}
"""How a gateway keeps one waiting."""


@dataclass(frozen=True)
class Place:
    """Where one waits.

    Attributes:
        manner: What the server does.
        url: Its address.
        prompt: What it is asked.
    """

    manner: str
    url: str
    prompt: str = "hi"


@contextlib.contextmanager
def places() -> Iterator[list[Place]]:
    """All of them, as long as it takes."""
    with contextlib.ExitStack() as stack:
        found = [
            Place("takes no connection", stack.enter_context(full())),
            Place("reads nothing", stack.enter_context(deaf()), A_LONG_PROMPT),
            Place("reads in sips", stack.enter_context(sipping(0.01)), A_LONG_PROMPT),
        ]
        for manner, step in STEPS.items():
            gateway = stack.enter_context(FaultyGateway())
            gateway.always(step)
            found.append(Place(manner, gateway.url))
        yield found


class SlowModel(BaseChatModel):
    """Somebody's chat model, which takes its time and has no limit of its own."""

    @property
    def _llm_type(self) -> str:
        return "slow"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        del messages
        _may_end.wait(LONG)
        return ChatResult(generations=[ChatGeneration(message=AIMessage("late"))])

    def _stream(
        self, messages: list[BaseMessage], *_: Any, **__: Any
    ) -> Iterator[ChatGenerationChunk]:
        del messages
        yield ChatGenerationChunk(message=AIMessageChunk(content="a few tokens"))
        _may_end.wait(LONG)


_may_end = threading.Event()


def let_slow_models_wait() -> None:
    """From now on they are slow."""
    _may_end.clear()


def let_slow_models_end() -> None:
    """Nobody waits for them any longer."""
    _may_end.set()


def gateway_fields(place: Place) -> dict[str, Any]:
    """What a `GPTRouter` is made of; langchain-community's too."""
    return {
        "gpt_router_api_base": place.url,
        "gpt_router_api_key": "any",
    }


PRIORITY = [GPTRouterModel(name="gpt-4o", provider_name="chat_openai")]
COMPLETIONS = "gpt-3.5-turbo-instruct"


def models(place: Place, policy: RetryPolicy) -> dict[str, Callable[[], Any]]:
    """The models that wait at a place, by name; each made anew, with new breakers."""
    gateway: dict[str, Any] = {
        "models_priority_list": PRIORITY,
        **gateway_fields(place),
    }
    openai: dict[str, Any] = {"base_url": f"{place.url}/v1", "api_key": "any"}
    # Its clients are shared by the process: nobody's connection is left in them.
    foreign: dict[str, Any] = {**openai, "default_headers": {"connection": "close"}}
    ours: dict[str, Any] = {"retry_policy": policy}

    def routed(model: BaseChatModel) -> RetryRouter:
        return RetryRouter(routes=[model], **ours)

    return {
        "GPTRouter": lambda: GPTRouter(**gateway, **ours),
        "OpenAI": lambda: OpenAI(model=COMPLETIONS, **openai, **ours),
        "OpenAIChat": lambda: OpenAIChat(model="gpt-4o", **openai, **ours),
        "RetryRouter of GPTRouter": lambda: routed(GPTRouter(**gateway)),
        "RetryRouter of ChatOpenAI": lambda: routed(
            ChatOpenAI(model="gpt-4o", **foreign)
        ),
        "RetryRouter of a slow model": lambda: routed(SlowModel()),
    }
