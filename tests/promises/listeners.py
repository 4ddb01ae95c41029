"""Handlers of every temper, and what they heard of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from tenacity import RetryCallState

from langchain_retryrouter.testing import FakeClock, FaultyGateway


@dataclass(frozen=True)
class Heard:
    """One event of a run."""

    what: str
    run_id: UUID
    attempt: int = 0
    requests: int = 0
    """How many had been sent when all that had to be done with the event was done."""


class World(NamedTuple):
    """What goes on around a handler."""

    gateway: FaultyGateway
    clock: FakeClock


class Listener(BaseCallbackHandler):
    """A sync handler that remembers."""

    def __init__(self, world: World) -> None:
        """Nothing was heard yet."""
        self.heard: list[Heard] = []
        self.world = world

    def _hear(self, what: str, run_id: UUID, attempt: int = 0) -> None:
        requests = len(self.world.gateway.requests)
        self.heard.append(Heard(what, run_id, attempt, requests))

    def on_chat_model_start(self, *_: Any, run_id: UUID, **__: Any) -> None:
        """A chat model's run begins."""
        self._hear("start", run_id)

    def on_llm_start(self, *_: Any, run_id: UUID, **__: Any) -> None:
        """An LLM's run begins."""
        self._hear("start", run_id)

    def on_retry(self, retry_state: RetryCallState, *, run_id: UUID, **_: Any) -> None:
        """An attempt failed, and another one follows."""
        self._hear("retry", run_id, retry_state.attempt_number)

    def on_llm_end(self, *_: Any, run_id: UUID, **__: Any) -> None:
        """The run brought an answer."""
        self._hear("end", run_id)

    def on_llm_error(self, *_: Any, run_id: UUID, **__: Any) -> None:
        """The run failed."""
        self._hear("error", run_id)


class AsyncListener(AsyncCallbackHandler):
    """The same as coroutines, each of them slow where that is asked."""

    def __init__(self, world: World, turns: int = 0) -> None:
        """With so many turns of the event loop before anything is remembered."""
        self.heard: list[Heard] = []
        self.world = world
        self._turns = turns

    async def _hear(self, what: str, run_id: UUID, attempt: int = 0) -> None:
        for _ in range(self._turns):
            await FakeClock().asleep(1)
        requests = len(self.world.gateway.requests)
        self.heard.append(Heard(what, run_id, attempt, requests))

    async def on_chat_model_start(self, *_: Any, run_id: UUID, **__: Any) -> None:
        """A chat model's run begins."""
        await self._hear("start", run_id)

    async def on_llm_start(self, *_: Any, run_id: UUID, **__: Any) -> None:
        """An LLM's run begins."""
        await self._hear("start", run_id)

    async def on_retry(
        self, retry_state: RetryCallState, *, run_id: UUID, **_: Any
    ) -> None:
        """An attempt failed, and another one follows."""
        await self._hear("retry", run_id, retry_state.attempt_number)

    async def on_llm_end(self, *_: Any, run_id: UUID, **__: Any) -> None:
        """The run brought an answer."""
        await self._hear("end", run_id)

    async def on_llm_error(self, *_: Any, run_id: UUID, **__: Any) -> None:
        """The run failed."""
        await self._hear("error", run_id)


class SlowListener(Listener):
    """Takes half a minute for each retry, of the model's own clock."""

    def on_retry(self, retry_state: RetryCallState, *, run_id: UUID, **_: Any) -> None:
        """Remember, and take one's time."""
        self.world.clock.sleep(30)
        super().on_retry(retry_state, run_id=run_id)


class RaisingListener(Listener):
    """Remembers each retry, and fails."""

    raise_error = True

    def on_retry(self, retry_state: RetryCallState, *, run_id: UUID, **_: Any) -> None:
        """Remember, and fail."""
        super().on_retry(retry_state, run_id=run_id)
        msg = "the handler is broken"
        raise RuntimeError(msg)


class AsyncRaisingListener(AsyncListener):
    """The same as a coroutine."""

    raise_error = True

    async def on_retry(
        self, retry_state: RetryCallState, *, run_id: UUID, **_: Any
    ) -> None:
        """Remember, and fail."""
        await super().on_retry(retry_state, run_id=run_id)
        msg = "the handler is broken"
        raise RuntimeError(msg)


AnyListener = Listener | AsyncListener

# Turns of the event loop within which a request is sent, several times over.
_SLOW: Final = 300

TEMPERS: Final[dict[str, Callable[[World], list[AnyListener]]]] = {
    "sync": lambda world: [Listener(world)],
    "async": lambda world: [AsyncListener(world)],
    "slow": lambda world: [SlowListener(world), AsyncListener(world, turns=_SLOW)],
    "raising": lambda world: [RaisingListener(world), AsyncRaisingListener(world)],
}


def of_every_temper(world: World) -> list[AnyListener]:
    """All of them on one call, those that fail before those that do not."""
    return [one for new in reversed(TEMPERS.values()) for one in new(world)]


def retries_in(heard: Iterable[Heard]) -> int:
    """How many retries were heard of."""
    return sum(event.what == "retry" for event in heard)


def misplaced_in(heard: list[Heard], *, end: str | None) -> int:
    """In how many runs retries were not heard of where they belong.

    They are counted up, between the run's two ends, and each is over before the next
    request is sent.

    Args:
        heard: Everything that one handler heard.
        end: What each run should end with; None if nobody tells its end.
    """
    runs = {event.run_id for event in heard}
    wrong = 0
    for run_id in runs:
        run = [event for event in heard if event.run_id == run_id]
        numbers = range(1, retries_in(run) + 1)
        whole = [("start", 0), *(("retry", number) for number in numbers)]
        whole += [(end, 0)] if end else []
        is_whole = [(event.what, event.attempt) for event in run] == whole
        # Of runs at the same time, nobody can tell whose request it was.
        is_early = len(runs) > 1 or all(
            event.requests == event.attempt for event in run if event.what == "retry"
        )
        wrong += not (is_whole and is_early)
    return wrong
