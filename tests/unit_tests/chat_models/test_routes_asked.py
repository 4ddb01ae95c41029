"""A route's model is asked below its public methods, and answers as it does by them.

The models are in memory: what is under test is between two methods of one object.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.rate_limiters import BaseRateLimiter
from pydantic import PrivateAttr

from langchain_retryrouter import RetryRouter
from tests.unit_tests.conftest import Twin


class _Model(BaseChatModel):
    """Answers whole, and in chunks where it is told to stream."""

    streaming: bool = False
    _asked: int = PrivateAttr(0)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        del messages, stop, run_manager, kwargs
        return self.answer("whole")

    def answer(self, text: str) -> ChatResult:
        self._asked += 1
        message = AIMessage(text, response_metadata={"model_name": "m"})
        generation = ChatGeneration(
            message=message, generation_info={"finish_reason": "stop"}
        )
        return ChatResult(generations=[generation], llm_output={"id": "resp-1"})

    def _stream(self, *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        for text in ("in ", "chunks"):
            yield ChatGenerationChunk(message=AIMessageChunk(content=text))

    @property
    def asked(self) -> int:
        """How often it was asked."""
        return self._asked

    @property
    def _llm_type(self) -> str:
        return "in-memory"


class _WithoutRun(_Model):
    """Its `_generate` is not told of the run, and takes no further options."""

    def _generate(  # type: ignore[override] # as LangChain allows
        self, messages: list[BaseMessage], stop: list[str] | None = None
    ) -> ChatResult:
        del messages, stop
        return self.answer("without a run")

    async def _agenerate(  # type: ignore[override]
        self, messages: list[BaseMessage], stop: list[str] | None = None
    ) -> ChatResult:
        return self._generate(messages, stop)


class _Gate(BaseRateLimiter):
    """Admits every request, and counts them."""

    passed = 0

    def acquire(self, *, blocking: bool = True) -> bool:
        assert blocking
        self.passed += 1
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        return self.acquire(blocking=blocking)


MODELS = [
    pytest.param(_Model(), id="plain"),
    pytest.param(_Model(streaming=True), id="streaming"),
    pytest.param(_Model(output_version="v1"), id="blocks"),
    pytest.param(_WithoutRun(), id="without a run"),
]


@pytest.mark.parametrize("model", MODELS)
def test_a_route_answers_as_its_model_does(twin: Twin, model: _Model) -> None:
    """Content and metadata are what the model's own `invoke` gives, to the letter."""
    own = twin.invoke(model, "hi")

    answer = twin.invoke(RetryRouter(routes=[model]), "hi")

    metadata = dict(answer.response_metadata)
    assert metadata.pop("retryrouter")["route"] == type(model).__name__
    assert metadata == own.response_metadata
    assert answer.content == own.content
    assert answer.usage_metadata == own.usage_metadata


def test_a_cache_for_all_answers_for_a_route_too(twin: Twin) -> None:
    """`set_llm_cache` holds for each model, so that a route is asked once."""
    model = _Model()
    router = RetryRouter(routes=[model], cache=False)
    set_llm_cache(InMemoryCache())
    try:
        answers = [twin.invoke(router, "hi") for _ in range(3)]
    finally:
        set_llm_cache(None)

    assert [answer.content for answer in answers] == ["whole"] * 3
    assert model.asked == 1


def test_a_cache_that_is_refused_is_not_asked(twin: Twin) -> None:
    """`cache=False` of a route holds against the cache for all."""
    model = _Model(cache=False)
    router = RetryRouter(routes=[model], cache=False)
    set_llm_cache(InMemoryCache())
    try:
        for _ in range(3):
            twin.invoke(router, "hi")
    finally:
        set_llm_cache(None)

    assert model.asked == 3


def test_a_limiter_that_comes_later_is_asked(twin: Twin) -> None:
    """What a model may be given after it was made a route is looked at in each call."""
    model, gate = _Model(), _Gate()
    router = RetryRouter(routes=[model])
    twin.invoke(router, "hi")

    model.rate_limiter = gate
    twin.invoke(router, "hi")

    assert gate.passed == 1
