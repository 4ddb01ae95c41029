"""Handlers that record the runs of chat models, and a model that fails at first.

The model retries with the package's engine and announces its runs as
`RetryVisibleChatModel`, as the real ones do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeAlias
from uuid import UUID

from langchain_core.callbacks import (
    AsyncCallbackHandler,
    AsyncCallbackManagerForLLMRun,
    BaseCallbackHandler,
    CallbackManagerForLLMRun,
)
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig
from pydantic import ConfigDict, Field
from tenacity import RetryCallState

from langchain_retryrouter import RetryPolicy, UnavailableError
from langchain_retryrouter._callbacks import (
    RetryVisibleChatModel,
    anotifier,
    notifier,
    run_manager_of,
)
from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.engine import Attempt, RetryContext, acall, call
from langchain_retryrouter._retry.streaming import ChunkInfo, astream, stream
from langchain_retryrouter.testing import FakeClock
from tests.unit_tests.conftest import Twin
from tests.unit_tests.retry.scripted import END, Source, one_turn, token

Way: TypeAlias = Callable[[Twin, "FlakyChatModel", RunnableConfig], Any]


class SyncHandler(BaseCallbackHandler):
    """Records the runs of models, and their retries."""

    def __init__(self) -> None:
        self.chains: list[UUID] = []
        self.starts: list[UUID] = []
        self.ends: list[UUID] = []
        self.parents: dict[UUID, UUID | None] = {}
        self.tags: dict[UUID, list[str]] = {}
        self.retries: list[tuple[UUID, int]] = []
        self.retry_parents: set[UUID | None] = set()
        self.retry_tags: list[list[str]] = []

    def check_two_retries(self) -> UUID:
        """There was one run with two retries; its id."""
        (run_id,) = self.starts
        assert self.retries == [(run_id, 1), (run_id, 2)]
        return run_id

    def on_chain_start(self, *_: Any, run_id: UUID, **__: Any) -> Any:
        self.chains.append(run_id)

    def on_chat_model_start(self, *_: Any, run_id: UUID, **kwargs: Any) -> Any:
        self.starts.append(run_id)
        self.parents[run_id] = kwargs["parent_run_id"]
        self.tags[run_id] = sorted(kwargs["tags"] or [])

    def on_retry(
        self, retry_state: RetryCallState, *, run_id: UUID, **kwargs: Any
    ) -> Any:
        self.retries.append((run_id, retry_state.attempt_number))
        self.retry_parents.add(kwargs["parent_run_id"])
        self.retry_tags.append(sorted(kwargs["tags"]))

    def on_llm_end(self, *_: Any, run_id: UUID, **__: Any) -> Any:
        self.ends.append(run_id)


class AsyncHandler(SyncHandler, AsyncCallbackHandler):
    """Records the same, slowly: a handler that is not awaited records too late."""

    async def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
        super().on_chain_start(*args, **kwargs)

    async def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        super().on_chat_model_start(*args, **kwargs)

    async def on_retry(self, *args: Any, **kwargs: Any) -> None:
        for _ in range(20):
            await one_turn()
        super().on_retry(*args, **kwargs)

    async def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        super().on_llm_end(*args, **kwargs)


HANDLERS: list[type[SyncHandler]] = [SyncHandler, AsyncHandler]


class FlakyChatModel(RetryVisibleChatModel):
    """A chat model whose every call fails `failures` times before it answers.

    Attributes:
        inner: Called, if given, before each attempt of a stream.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    failures: int = 2
    streaming: bool = False
    clock: FakeClock = Field(default_factory=FakeClock)
    inner: Any = None

    @property
    def _llm_type(self) -> str:
        return "flaky"

    def _context(self) -> RetryContext:
        policy = RetryPolicy(max_retries=9)
        return RetryContext(CallState(policy, time=self.clock), clock=self.clock)

    def _connect(self, attempt: Attempt, *, is_asked: bool = False) -> Source:
        if self.inner is not None and not is_asked:
            self.inner()
        if attempt.number <= self.failures:
            msg = f"failure {attempt.number}"
            raise UnavailableError(msg)
        return Source(token("Hel"), token("lo"), END)

    async def _aconnect(self, attempt: Attempt) -> Source:
        if self.inner is not None:
            await self.inner()
        return self._connect(attempt, is_asked=True)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        del messages, stop, kwargs
        call(self._context(), self._connect, notifier(run_manager))
        return ChatResult(generations=[ChatGeneration(message=AIMessage("Hello"))])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        del messages, stop, kwargs
        await acall(self._context(), self._aconnect, anotifier(run_manager))
        return ChatResult(generations=[ChatGeneration(message=AIMessage("Hello"))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        del messages, stop, kwargs
        notify = notifier(run_manager_of(self, run_manager, CallbackManagerForLLMRun))
        for event in stream(self._context(), self._connect, _classifier, notify):
            yield ChatGenerationChunk(message=AIMessageChunk(content=event.text))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        del messages, stop, kwargs
        manager = run_manager_of(self, run_manager, AsyncCallbackManagerForLLMRun)
        notify = anotifier(manager)
        async for event in astream(
            self._context(), self._aconnect, _classifier, notify
        ):
            yield ChatGenerationChunk(message=AIMessageChunk(content=event.text))


def _classifier() -> Callable[[ChunkInfo], ChunkInfo]:
    return lambda chunk: chunk


WAYS: dict[str, Way] = {
    "invoke": lambda twin, model, config: twin.invoke(model, "hi", config),
    "invoke, streaming=True": lambda twin, model, config: twin.invoke(
        model.model_copy(update={"streaming": True}), "hi", config
    ),
    "invoke, stream=True": lambda twin, model, config: twin.invoke(
        model.bind(stream=True), "hi", config
    ),
    "stream": lambda twin, model, config: twin.stream(model, "hi", config),
    "batch": lambda twin, model, config: twin.batch(model, ["hi"], config),
    "generate": lambda twin, model, config: twin.generate(
        model,
        [[AIMessage("hi")]],
        callbacks=config.get("callbacks"),
        tags=config.get("tags"),
        run_id=config.get("run_id"),
    ),
    "a bound model": lambda twin, model, config: twin.stream(
        model.bind(anything=1), "hi", config
    ),
    "a configured model": lambda twin, model, config: twin.stream(
        model.with_config(config), "hi"
    ),
}
"""All ways in which LangChain lets a chat model be called."""
