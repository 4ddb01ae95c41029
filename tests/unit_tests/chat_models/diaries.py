"""Handlers that write down what they are told, and when."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult
from tenacity import RetryCallState

from langchain_retryrouter.testing import FakeClock, FaultyGateway


class Diary:
    """What was told, in order, and what had happened in the world by then."""

    def __init__(self, gateway: FaultyGateway, clock: FakeClock) -> None:
        self.gateway = gateway
        self.clock = clock
        self.entries: list[tuple[str, UUID]] = []
        self.states: list[RetryCallState] = []
        self.requests: list[int] = []
        self.sleeps: list[int] = []

    def write(self, what: str, run_id: UUID) -> None:
        self.entries.append((what, run_id))

    def write_retry(self, state: RetryCallState, run_id: UUID) -> None:
        self.write("retry", run_id)
        self.states.append(state)
        self.requests.append(len(self.gateway.requests))
        self.sleeps.append(len(self.clock.sleeps))

    def of(self, what: str) -> list[UUID]:
        return [run_id for told, run_id in self.entries if told == what]


class Watcher(BaseCallbackHandler):
    """A sync handler that keeps a diary."""

    def __init__(self, diary: Diary) -> None:
        self.diary = diary

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002
        messages: list[list[BaseMessage]],  # noqa: ARG002
        *,
        run_id: UUID,
        **_: Any,
    ) -> None:
        self.diary.write("start", run_id)

    def on_retry(self, retry_state: RetryCallState, *, run_id: UUID, **_: Any) -> None:
        self.diary.write_retry(retry_state, run_id)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:  # noqa: ARG002
        self.diary.write("end", run_id)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:  # noqa: ARG002
        self.diary.write("error", run_id)


class AsyncWatcher(AsyncCallbackHandler):
    """An async handler that keeps a diary, slowly."""

    def __init__(self, diary: Diary) -> None:
        self.diary = diary

    async def on_chat_model_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002
        messages: list[list[BaseMessage]],  # noqa: ARG002
        *,
        run_id: UUID,
        **_: Any,
    ) -> None:
        self.diary.write("start", run_id)

    async def on_retry(
        self, retry_state: RetryCallState, *, run_id: UUID, **_: Any
    ) -> None:
        for _turn in range(20):
            await FakeClock().asleep(1)
        self.diary.write_retry(retry_state, run_id)

    async def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:  # noqa: ARG002
        self.diary.write("end", run_id)

    async def on_llm_error(
        self,
        error: BaseException,  # noqa: ARG002
        *,
        run_id: UUID,
        **_: Any,
    ) -> None:
        self.diary.write("error", run_id)
