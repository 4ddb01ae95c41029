"""A chat model that fails so many times before each answer, and no more than that.

What retries in it is `_drive`, and what announces its runs is
`RetryVisibleChatModel`, as in the real ones.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, Field

from langchain_retryrouter._callbacks import (
    RetryVisibleChatModel,
    anotifier,
    notifier,
    run_manager_of,
)
from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.engine import Attempt, RetryContext, acall, call
from langchain_retryrouter._retry.streaming import ChunkInfo, astream, stream
from langchain_retryrouter.errors import UnavailableError
from langchain_retryrouter.policy import RetryPolicy
from langchain_retryrouter.testing import FakeClock

EVENTS = [
    ChunkInfo("Hel", is_token=True),
    ChunkInfo("lo", is_token=True),
    ChunkInfo(is_end=True, is_last=True),
]


class Events:
    """A stream of `EVENTS`, sync and async."""

    def __iter__(self) -> Iterator[ChunkInfo]:
        """Yield them."""
        yield from EVENTS

    async def __aiter__(self) -> AsyncIterator[ChunkInfo]:
        """Yield them."""
        for event in EVENTS:
            yield event

    def abort(self) -> None:
        """Nothing blocks."""

    def close(self) -> None:
        """Nothing is open."""

    async def aclose(self) -> None:
        """Nothing is open."""


class FlakyChatModel(RetryVisibleChatModel):
    """A chat model whose every call fails `failures` times first."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    failures: int = 2
    streaming: bool = False
    clock: FakeClock = Field(default_factory=FakeClock)
    inner: Any = None
    """What is asked, if anything, while an answer is being fetched."""

    @property
    def _llm_type(self) -> str:
        return "flaky"

    def _plan(self) -> RetryContext:
        policy = RetryPolicy(max_retries=9)
        return RetryContext(CallState(policy, time=self.clock), clock=self.clock)

    def _fail(self, attempt: Attempt) -> None:
        if attempt.number <= self.failures:
            msg = f"failure {attempt.number}"
            raise UnavailableError(msg)

    def _connect(self, attempt: Attempt) -> Events:
        if self.inner is not None:
            self.inner()
        self._fail(attempt)
        return Events()

    async def _aconnect(self, attempt: Attempt) -> Events:
        if self.inner is not None:
            await self.inner()
        self._fail(attempt)
        return Events()

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        del messages, stop, kwargs
        call(self._plan(), self._connect, notifier(run_manager))
        return ChatResult(generations=[ChatGeneration(message=AIMessage("Hello"))])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        del messages, stop, kwargs
        await acall(self._plan(), self._aconnect, anotifier(run_manager))
        return ChatResult(generations=[ChatGeneration(message=AIMessage("Hello"))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        del messages, stop, kwargs
        told = notifier(run_manager_of(self, run_manager, CallbackManagerForLLMRun))
        for event in stream(self._plan(), self._connect, lambda: _as_it_is, told):
            yield ChatGenerationChunk(message=AIMessageChunk(content=event.text))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        del messages, stop, kwargs
        told = anotifier(
            run_manager_of(self, run_manager, AsyncCallbackManagerForLLMRun)
        )
        async for event in astream(
            self._plan(), self._aconnect, lambda: _as_it_is, told
        ):
            yield ChatGenerationChunk(message=AIMessageChunk(content=event.text))


def _as_it_is(signal: ChunkInfo) -> ChunkInfo:
    return signal
