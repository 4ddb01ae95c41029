"""Finds the run manager of a call, and tells its handlers of each retry.

langchain-core hands the run manager to `_generate`, but calls a chat model's `_stream`
and `_astream` without one, from `stream`/`astream` and from the streaming branch of
`_generate_with_cache`. Nobody would see a retry in there. `RetryVisibleChatModel`
closes the gap: it announces the run in a context variable for as long as it takes the
stream to start, and `run_manager_of` finds it.

For `stream` the run does not exist yet when we are asked. So its id is chosen here, the
callbacks are configured here, and both are handed down; langchain-core configures them
again and keeps the handlers, or copies that share the same runs.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models.base import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatResult
from langchain_core.runnables import RunnableConfig, ensure_config
from langchain_core.utils.uuid import uuid7

if TYPE_CHECKING:
    from tenacity import RetryCallState

    from langchain_retryrouter._retry.engine import ANotify, Notify

logger = logging.getLogger(__name__)

AnyRunManager = CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun
_RunManager = TypeVar(
    "_RunManager", CallbackManagerForLLMRun, AsyncCallbackManagerForLLMRun
)
_Method = TypeVar("_Method", bound=Callable[..., Any])


class _Run(NamedTuple):
    model: BaseChatModel
    run_manager: AnyRunManager


_run: ContextVar[_Run | None] = ContextVar("langchain_retryrouter_run", default=None)


@contextlib.contextmanager
def _announced(
    model: BaseChatModel, run_manager: AnyRunManager | None
) -> Iterator[None]:
    if run_manager is None:
        yield
        return
    token = _run.set(_Run(model, run_manager))
    try:
        yield
    finally:
        _run.reset(token)


def run_manager_of(
    model: BaseChatModel, given: _RunManager | None, kind: type[_RunManager]
) -> _RunManager | None:
    """The run manager of the call `model` is in: the one given, or the one announced.

    Args:
        model: The model asking; a run announced for another one is not its own.
        given: What langchain-core, or a user, handed over.
        kind: The twin's class of run manager; one of the other kind is of no use.
    """
    run = _run.get()
    if given is not None or run is None or run.model is not model:
        return given
    return run.run_manager if isinstance(run.run_manager, kind) else None


def notifier(run_manager: CallbackManagerForLLMRun | None) -> Notify | None:
    """What tells every handler of a retry, whatever the others do; None for none."""
    if run_manager is None:
        return None

    def notify(state: RetryCallState) -> None:
        for single in _one_by_one(run_manager):
            try:
                single.on_retry(state)
            except Exception:
                logger.warning("A callback handler failed in on_retry", exc_info=True)

    return notify


def anotifier(run_manager: AsyncCallbackManagerForLLMRun | None) -> ANotify | None:
    """Async twin of `notifier`: awaited, so that the event comes before the wait."""
    if run_manager is None:
        return None

    async def notify(state: RetryCallState) -> None:
        for single in _one_by_one(run_manager):
            try:
                await single.on_retry(state)
            except Exception:
                logger.warning("A callback handler failed in on_retry", exc_info=True)

    return notify


def _one_by_one(run_manager: _RunManager) -> Iterator[_RunManager]:
    """A run manager per handler: one that raises would keep the event from the rest."""
    handlers = getattr(run_manager, "handlers", None)
    if not isinstance(handlers, list):
        # A stand-in that a caller wrote; it knows `on_retry` and no more.
        yield run_manager
        return
    for handler in handlers:
        yield type(run_manager)(
            run_id=run_manager.run_id,
            handlers=[handler],
            inheritable_handlers=[],
            parent_run_id=run_manager.parent_run_id,
            tags=run_manager.tags,
            metadata=run_manager.metadata,
        )


def inspected_once(method: _Method) -> _Method:
    """A method that langchain-core inspects before each call, inspected now.

    `inspect.signature` makes a signature anew whenever it is asked for one, unless the
    function has it already.
    """
    vars(method)["__signature__"] = inspect.signature(method)
    return method


class RetryVisibleChatModel(BaseChatModel):
    """A chat model whose `_stream` and `_astream` can find the run they belong to."""

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """The chunks of the answer; see `BaseChatModel.stream`."""
        config = ensure_config(config)
        callbacks = CallbackManager.configure(
            config.get("callbacks"),
            self.callbacks,
            self.verbose,
            config.get("tags"),
            self.tags,
        )
        run_manager = _open_run(config, callbacks, CallbackManagerForLLMRun)
        chunks = cast(
            "Generator[AIMessageChunk, None, None]",
            super().stream(input, config, stop=stop, **kwargs),
        )
        with contextlib.closing(chunks):
            with _announced(self, run_manager):
                first = next(chunks, None)
            if first is not None:
                yield _as_chunk(first)
                yield from chunks

    async def astream(
        self,
        input: LanguageModelInput,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """The chunks of the answer; see `BaseChatModel.astream`."""
        config = ensure_config(config)
        callbacks = AsyncCallbackManager.configure(
            config.get("callbacks"),
            self.callbacks,
            self.verbose,
            config.get("tags"),
            self.tags,
        )
        run_manager = _open_run(config, callbacks, AsyncCallbackManagerForLLMRun)
        chunks = cast(
            "AsyncGenerator[AIMessageChunk, None]",
            super().astream(input, config, stop=stop, **kwargs),
        )
        async with contextlib.aclosing(chunks):
            with _announced(self, run_manager):
                first = await anext(chunks, None)
            if first is not None:
                yield _as_chunk(first)
                async for chunk in chunks:
                    yield chunk

    def _generate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with _announced(self, run_manager):
            return super()._generate_with_cache(
                messages, stop=stop, run_manager=run_manager, **kwargs
            )

    async def _agenerate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with _announced(self, run_manager):
            return await super()._agenerate_with_cache(
                messages, stop=stop, run_manager=run_manager, **kwargs
            )


def _as_chunk(message: AIMessage) -> AIMessageChunk:
    """`message` as what a stream is made of.

    Where nothing is streamed, by `disable_streaming` or `streaming=False`, a whole
    message comes from langchain-core, whose own parsers then lose its tool calls.
    """
    if isinstance(message, AIMessageChunk):
        return message
    return AIMessageChunk(**message.model_dump(exclude={"type"}), chunk_position="last")


def _open_run(
    config: RunnableConfig,
    callbacks: CallbackManager | AsyncCallbackManager,
    kind: type[_RunManager],
) -> _RunManager:
    """Settle in `config` which run this will be; its run manager, before it starts."""
    run_id = config.get("run_id") or uuid7()
    config["callbacks"] = callbacks
    config["run_id"] = run_id
    return kind(
        run_id=run_id,
        handlers=callbacks.handlers,
        inheritable_handlers=callbacks.inheritable_handlers,
        parent_run_id=callbacks.parent_run_id,
        tags=callbacks.tags,
        metadata=callbacks.metadata,
    )
