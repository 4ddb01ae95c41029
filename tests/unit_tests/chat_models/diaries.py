"""Handlers that record the events of runs."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from tenacity import RetryCallState

from langchain_retryrouter.testing import FakeClock, FaultyGateway


class Diary:
    """Events of runs in order, and how many requests and waits came before each."""

    def __init__(self, gateway: FaultyGateway, clock: FakeClock) -> None:
        self.gateway = gateway
        self.clock = clock
        self.entries: list[tuple[str, UUID]] = []
        self.states: list[RetryCallState] = []
        self.requests: list[int] = []
        self.sleeps: list[int] = []

    def write(self, event: str, run_id: UUID) -> None:
        self.entries.append((event, run_id))

    def write_retry(self, state: RetryCallState, run_id: UUID) -> None:
        self.write("retry", run_id)
        self.states.append(state)
        self.requests.append(len(self.gateway.requests))
        self.sleeps.append(len(self.clock.sleeps))

    def of(self, event: str) -> list[UUID]:
        return [run_id for name, run_id in self.entries if name == event]

    @property
    def events(self) -> list[str]:
        return [name for name, _ in self.entries]


class Watcher(BaseCallbackHandler):
    """A sync handler that keeps a diary."""

    def __init__(self, diary: Diary) -> None:
        self.diary = diary

    def on_chat_model_start(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self.diary.write("start", run_id)

    def on_retry(self, retry_state: RetryCallState, *, run_id: UUID, **_: Any) -> None:
        self.diary.write_retry(retry_state, run_id)

    def on_llm_end(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self.diary.write("end", run_id)

    def on_llm_error(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self.diary.write("error", run_id)


class AsyncWatcher(AsyncCallbackHandler):
    """An async handler that keeps a diary, slowly."""

    def __init__(self, diary: Diary) -> None:
        self.diary = diary

    async def on_chat_model_start(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self.diary.write("start", run_id)

    async def on_retry(
        self, retry_state: RetryCallState, *, run_id: UUID, **_: Any
    ) -> None:
        for _turn in range(20):
            await FakeClock().asleep(1)
        self.diary.write_retry(retry_state, run_id)

    async def on_llm_end(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self.diary.write("end", run_id)

    async def on_llm_error(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self.diary.write("error", run_id)
