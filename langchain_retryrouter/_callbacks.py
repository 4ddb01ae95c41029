"""Tells LangChain's callback handlers of retries.

langchain-core gives the run manager of a call to `_generate`, but calls `_stream` and
`_astream` of a chat model without one, so handlers would not see retries of streams.
`RetryVisibleChatModel` puts the run manager into a context variable before, and
`run_manager_of` takes it out in `_stream`.

In `stream` the run does not exist yet at that time. So its id is chosen and its
callbacks are configured here; langchain-core configures them again and keeps the same
handlers.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import os
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForChainRun,
    AsyncCallbackManagerForLLMRun,
    BaseCallbackHandler,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.callbacks.manager import ahandle_event, handle_event
from langchain_core.language_models.base import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import RunnableConfig, ensure_config
from langchain_core.runnables.config import get_config_list
from langchain_core.tracers.base import AsyncBaseTracer, BaseTracer
from langchain_core.utils.uuid import uuid7
from pydantic import Field

from langchain_retryrouter._retry.call_log import AttemptRecord, CallObserver
from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.timeouts import gather_bounded, run_bounded
from langchain_retryrouter._shared import require
from langchain_retryrouter.errors import BASE_ERRORS

if TYPE_CHECKING:
    from tenacity import RetryCallState

    from langchain_retryrouter._retry.engine import LimiterWait

logger = logging.getLogger(__name__)

T = TypeVar("T")

AnyRunManager = CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun
_RunManager = TypeVar(
    "_RunManager", CallbackManagerForLLMRun, AsyncCallbackManagerForLLMRun
)


# A model, and the run manager of the run that it serves.
_run: ContextVar[tuple[BaseChatModel | None, AnyRunManager | None]]
_run = ContextVar("langchain_retryrouter_run", default=(None, None))


def run_manager_of(
    model: BaseChatModel, given: _RunManager | None, kind: type[_RunManager]
) -> _RunManager | None:
    """The run manager that the caller gave, or else that of the run of `model`."""
    served, run_manager = _run.get()
    if served is not model:
        return given
    _run.set((None, None))  # The next call may be one without a run.
    return run_manager if given is None and isinstance(run_manager, kind) else given


@dataclass(slots=True)
class Notifier:
    """Tells the handlers of a run, if there is one; what they raise is logged."""

    run_manager: CallbackManagerForLLMRun | None

    def __call__(self, state: RetryCallState) -> None:
        """Call `on_retry` of each handler, before the wait."""
        for single in _for_each_handler(self.run_manager):
            with _logged("on_retry"):
                single.on_retry(state)

    def limiter_wait(self, wait: LimiterWait) -> None:
        """Send the handlers the custom event `rate_limit_wait`."""
        for single in _for_each_handler(self.run_manager):
            with _logged("on_custom_event"):
                _tell_wait(handle_event, single, wait)


@dataclass(slots=True)
class AsyncNotifier:
    """Async variant of `Notifier`; awaited, so that handlers run before the wait."""

    run_manager: AsyncCallbackManagerForLLMRun | None

    async def __call__(self, state: RetryCallState) -> None:
        """Call `on_retry` of each handler, before the wait."""
        for single in _for_each_handler(self.run_manager):
            with _logged("on_retry"):
                await single.on_retry(state)

    async def limiter_wait(self, wait: LimiterWait) -> None:
        """Send the handlers the custom event `rate_limit_wait`."""
        for single in _for_each_handler(self.run_manager):
            with _logged("on_custom_event"):
                await _tell_wait(ahandle_event, single, wait)


@contextlib.contextmanager
def _logged(method: str) -> Iterator[None]:
    try:
        yield
    except Exception:
        logger.warning("A callback handler failed in %s", method, exc_info=True)


def _tell_wait(
    handle: Callable[..., T], run_manager: AnyRunManager, wait: LimiterWait
) -> T:
    """What LangChain's `handle_event` or `ahandle_event` makes of a wait."""
    data = {"limit": wait.limit.name, "route": wait.route, "seconds": wait.seconds}
    facts = {n: getattr(run_manager, n, None) for n in ("run_id", "tags", "metadata")}
    handlers = getattr(run_manager, "handlers", [])
    event = ("on_custom_event", "ignore_custom_event", "rate_limit_wait")
    return handle(handlers, *event, data, **facts)


def observe_run(
    call_state: CallState, run: AnyRunManager | None, *, trace_attempts: bool | None
) -> None:
    """Tell the observers of a call which run it serves, and maybe trace its attempts.

    If `trace_attempts` is None, those tracers see attempts that would lose `on_retry`:
    LangSmith's drop the events of runs where they export by OpenTelemetry.
    """
    call_state.run = run
    if run is None or trace_attempts is False:
        return
    # A caller's own run manager need not have more than `on_retry`.
    handlers = getattr(run, "handlers", [])
    if trace_attempts is None:
        modes = ("otel", "hybrid")
        handlers = [
            one
            for one in handlers
            if getattr(getattr(one, "client", None), "tracing_mode", "") in modes
        ]
    if handlers:
        call_state.observers.append(_AttemptRuns(run, handlers))


def name_served(run: AnyRunManager, params: Mapping[str, Any]) -> None:
    """Name the model that answered in the run that tracers see."""
    for handler in run.handlers:
        if isinstance(handler, BaseTracer | AsyncBaseTracer):
            traced = handler.run_map.get(str(run.run_id))
            if traced is not None:
                # A new dict: the old one may be that of other runs, too.
                metadata = {**(traced.extra.get("metadata") or {}), **params}
                traced.extra["metadata"] = metadata


class _AttemptRuns(CallObserver):
    """A run for each attempt, below the run of the call.

    Runs of chains, since LangSmith adds up the tokens of models' runs. They have no
    prompt, and of errors only the kind.
    """

    def __init__(self, run: AnyRunManager, handlers: list[BaseCallbackHandler]) -> None:
        is_async = isinstance(run, AsyncCallbackManagerForLLMRun)
        new = AsyncCallbackManager if is_async else CallbackManager
        self._manager = new(handlers=[], parent_run_id=run.run_id)
        self._manager.set_handlers(handlers)
        self._manager.add_tags(run.inheritable_tags)
        self._manager.add_metadata(run.inheritable_metadata)
        self._runs: dict[int, Any] = {}
        self._later: list[Callable[[], Awaitable[Any]]] = []  # What is to be awaited.

    def attempt_began(self, record: AttemptRecord) -> None:
        number, manager = record.number or 0, self._manager
        inputs = {"attempt": number, "route": record.route}
        name = f"attempt {number}: {record.route or 'default'}"
        if isinstance(manager, CallbackManager):
            self._runs[number] = manager.on_chain_start(None, inputs, name=name)
            return
        start, run_id = manager.on_chain_start, uuid7()
        # Known before it starts: if the call is cancelled meanwhile, it is ended.
        self._runs[number] = AsyncCallbackManagerForChainRun(
            run_id=run_id,
            handlers=manager.handlers,
            inheritable_handlers=manager.inheritable_handlers,
            parent_run_id=manager.parent_run_id,
            tags=manager.tags,
        )
        self._later.append(lambda: start(None, inputs, run_id, name=name))

    def attempt_ended(self, record: AttemptRecord) -> None:
        run = self._runs.pop(record.number or 0, None)
        if run is None:
            return  # Its end has been reported already.
        report = functools.partial(run.on_chain_end, record.as_dict())
        if (failure := record.failure) is not None:
            status = failure.status_code
            said = failure.kind.value + ("" if status is None else f", status {status}")
            error = BASE_ERRORS[failure.kind](said)
            report = functools.partial(run.on_chain_error, error)
        if isinstance(self._manager, CallbackManager):
            report()
        else:
            self._later.append(report)

    async def flush(self) -> None:
        while self._later:
            await self._later.pop(0)()


def _for_each_handler(run_manager: _RunManager | None) -> Iterator[_RunManager]:
    """One run manager for each handler, since a failing one would stop the others."""
    if run_manager is None:
        return
    for handler in getattr(run_manager, "handlers", [None]):
        single = run_manager
        if handler is not None:
            single = copy.copy(run_manager)
            single.handlers = [handler]
        yield single


class RetryVisibleChatModel(BaseChatModel):
    """A chat model whose `_stream` and `_astream` find the run that they serve.

    A cached answer has no attempts.
    """

    trace_attempts: bool | None = Field(default=None, exclude=True, repr=False)
    """Whether callback handlers see each attempt as a run below the call's. None: only
    LangSmith's tracer does, where it exports by OpenTelemetry and loses retries."""

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """The chunks of the answer; see `BaseChatModel.stream`."""
        config = ensure_config(config)
        run_manager = self._open_run(config, CallbackManager, CallbackManagerForLLMRun)
        chunks: Any = super().stream(input, config, stop=stop, **kwargs)
        with contextlib.closing(chunks):
            token = _run.set((self, run_manager))
            try:
                first = next(chunks, None)
            finally:
                _run.reset(token)
            if first is not None:
                yield _as_chunk(first)
                yield from chunks

    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """The chunks of the answer; see `BaseChatModel.astream`."""
        config = ensure_config(config)
        run_manager = self._open_run(
            config, AsyncCallbackManager, AsyncCallbackManagerForLLMRun
        )
        chunks: Any = super().astream(input, config, stop=stop, **kwargs)
        async with contextlib.aclosing(chunks):
            token = _run.set((self, run_manager))
            try:
                first = await anext(chunks, None)
            finally:
                _run.reset(token)
            if first is not None:
                yield _as_chunk(first)
                async for chunk in chunks:
                    yield chunk

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """The answers; see `Runnable.batch`. After Ctrl-C nothing more is sent."""
        asked = self._asked(inputs, config, kwargs, return_exceptions=return_exceptions)
        return gather_bounded(*asked)

    def batch_as_completed(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> Iterator[tuple[int, Any]]:
        """The answers with their places; see `Runnable.batch_as_completed`."""
        asked = self._asked(inputs, config, kwargs, return_exceptions=return_exceptions)
        failed: BaseException | None = None
        for place, (answer, error) in run_bounded(*asked):
            failed = failed or error
            if failed is None:
                yield place, answer
        if failed is not None:
            raise failed

    def _asked(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None,
        options: dict[str, Any],
        *,
        return_exceptions: bool,
    ) -> tuple[Callable[[Any], Any], list[Any], int]:
        """How a batch is sent: each request, in which form, and how many at once."""

        def send(request: tuple[LanguageModelInput, RunnableConfig]) -> Any:
            try:
                return self.invoke(*request, **options)
            except Exception as error:
                if return_exceptions:
                    return error
                raise

        configs = get_config_list(config, len(inputs))
        requests = list(zip(inputs, configs, strict=True))
        most = configs[0].get("max_concurrency") if configs else None
        if most is None:
            # As many as the pools of `concurrent.futures`, which LangChain uses, have.
            most = min(32, (os.cpu_count() or 1) + 4)
        require("max_concurrency", most, "1 or more", is_met=most > 0)
        return send, requests, most

    def _should_stream(
        self,
        *,
        async_api: bool,
        run_manager: AnyRunManager | None = None,
        **kwargs: Any,
    ) -> bool:
        # Asked with the run manager just before `invoke` calls `_stream` without it.
        streams = super()._should_stream(
            async_api=async_api, run_manager=run_manager, **kwargs
        )
        if streams and run_manager is not None:
            _run.set((self, run_manager))
        return streams

    def _convert_cached_generations(
        self, cache_val: list[Generation]
    ) -> list[ChatGeneration]:
        """What a cache has, with an attempt log that is empty: nothing was sent."""
        generations = super()._convert_cached_generations(cache_val)
        for generation in generations:
            metadata = generation.message.response_metadata
            log = metadata.get("retryrouter", {})
            log = {**log, "attempts": []}
            log.pop("cost_is_estimate", None)  # Nothing costs nothing.
            if "cost" in log:
                log["cost"] = 0.0
            # A new dict: the caller who was given the answer before has the old one.
            generation.message.response_metadata = {**metadata, "retryrouter": log}
        return generations

    def _open_run(
        self,
        config: RunnableConfig,
        managers: type[CallbackManager | AsyncCallbackManager],
        kind: type[_RunManager],
    ) -> _RunManager:
        """The run manager of a run that has not started, whose id `config` gets."""
        config["callbacks"] = callbacks = managers.configure(
            config.get("callbacks"),
            self.callbacks,
            self.verbose,
            config.get("tags"),
            self.tags,
        )
        config["run_id"] = run_id = config.get("run_id") or uuid7()
        return kind(
            run_id=run_id,
            handlers=callbacks.handlers,
            inheritable_handlers=callbacks.inheritable_handlers,
            parent_run_id=callbacks.parent_run_id,
            tags=callbacks.tags,
            metadata={**callbacks.metadata, **(config.get("metadata") or {})},
        )


def _as_chunk(message: AIMessage) -> AIMessageChunk:
    """A chunk of a stream.

    With `disable_streaming` or `streaming=False`, langchain-core yields a message
    instead, whose tool calls its own parsers then lose.
    """
    if isinstance(message, AIMessageChunk):
        return message
    return AIMessageChunk(**message.model_dump(exclude={"type"}), chunk_position="last")
