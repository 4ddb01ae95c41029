"""Handlers that write down what they see of the runs of chat models."""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from tenacity import RetryCallState


class Diary:
    """What a handler saw of the runs of chat models."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.starts: list[UUID] = []
        self.parents: dict[UUID, UUID | None] = {}
        self.tags: dict[UUID, list[str]] = {}
        self.chains: list[UUID] = []
        self.ends: list[UUID] = []
        self.retries: list[tuple[UUID, int]] = []
        self.retry_parents: set[UUID | None] = set()
        self.retry_tags: list[list[str]] = []

    def start(self, run_id: UUID, parent: UUID | None, tags: list[str] | None) -> None:
        """A run of a model began."""
        self.starts.append(run_id)
        self.parents[run_id] = parent
        self.tags[run_id] = sorted(tags or [])

    def retry(self, state: RetryCallState, run_id: UUID, facts: dict[str, Any]) -> None:
        """A run is about to try again."""
        self.retries.append((run_id, state.attempt_number))
        self.retry_parents.add(facts["parent_run_id"])
        self.retry_tags.append(sorted(facts["tags"]))


class SyncHandler(BaseCallbackHandler):
    """Keeps a diary."""

    def __init__(self) -> None:
        """Nothing written yet."""
        self.diary = Diary()

    def on_chain_start(self, *_: Any, run_id: UUID, **__: Any) -> None:
        """A chain began."""
        self.diary.chains.append(run_id)

    def on_chat_model_start(
        self,
        *_: Any,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        **__: Any,
    ) -> None:
        """A run of a model began."""
        self.diary.start(run_id, parent_run_id, tags)

    def on_retry(
        self, retry_state: RetryCallState, *, run_id: UUID, **kwargs: Any
    ) -> None:
        """A run is about to try again."""
        self.diary.retry(retry_state, run_id, kwargs)

    def on_llm_end(self, *_: Any, run_id: UUID, **__: Any) -> None:
        """A run of a model ended well."""
        self.diary.ends.append(run_id)


class AsyncHandler(AsyncCallbackHandler):
    """Keeps a diary, slowly: what nobody awaits is not written down in time."""

    def __init__(self) -> None:
        """Nothing written yet."""
        self.diary = Diary()

    async def on_chain_start(self, *_: Any, run_id: UUID, **__: Any) -> None:
        """A chain began."""
        self.diary.chains.append(run_id)

    async def on_chat_model_start(
        self,
        *_: Any,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        **__: Any,
    ) -> None:
        """A run of a model began."""
        self.diary.start(run_id, parent_run_id, tags)

    async def on_retry(
        self, retry_state: RetryCallState, *, run_id: UUID, **kwargs: Any
    ) -> None:
        """A run is about to try again."""
        for _ in range(20):
            await one_turn()
        self.diary.retry(retry_state, run_id, kwargs)

    async def on_llm_end(self, *_: Any, run_id: UUID, **__: Any) -> None:
        """A run of a model ended well."""
        self.diary.ends.append(run_id)


async def one_turn() -> None:
    """Let the other tasks run once."""
    await asyncio.sleep(0)  # noqa: TID251 - a turn of the loop, and no wait


class LoudHandler(SyncHandler):
    """Breaks in `on_retry`, and asks LangChain to let that out."""

    raise_error = True

    def on_retry(
        self, retry_state: RetryCallState, *, run_id: UUID, **kwargs: Any
    ) -> None:
        """Take note, and break."""
        super().on_retry(retry_state, run_id=run_id, **kwargs)
        msg = "this handler is broken"
        raise RuntimeError(msg)


class InlineHandler(LoudHandler):
    """As loud, and run in the event loop's own thread."""

    run_inline = True


Handler: TypeAlias = SyncHandler | AsyncHandler
HANDLERS: list[type[Handler]] = [SyncHandler, AsyncHandler]
