"""An event loop whose time jumps: a wait of an hour is over at once, and in its order.

The code that runs on it is the real code, with its tasks, timeouts and waits. Nothing
may reach for a socket, since no time passes while bytes travel.
"""

from __future__ import annotations

import asyncio
import random  # noqa: TID251 - seeded
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from langchain_retryrouter import CircuitBreaker, RetryRouter, Route
from langchain_retryrouter.testing import FakeClock

T = TypeVar("T")


class _Jump(selectors.SelectSelector):
    """Says that the time is over instead of waiting for it."""

    now = 0.0

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(10 if timeout is None else 0)
        if not ready and timeout is None:
            msg = "everybody waits, and nothing is scheduled to wake them"
            raise RuntimeError(msg)
        self.now += 0 if ready else timeout or 0
        return ready


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


class VirtualClock(FakeClock):
    """The package's clock on the virtual loop, with seeded randomness."""

    def __init__(self, seed: int) -> None:
        super().__init__(random=iter(random.Random(seed).random, None))  # noqa: S311

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def time(self) -> float:
        return 1_800_000_000 + self.monotonic()

    async def asleep(self, seconds: float) -> None:
        await let_pass(seconds)


async def let_pass(seconds: float) -> None:
    """Let virtual seconds pass."""
    if seconds > 0:
        await asyncio.sleep(seconds)  # noqa: TID251 - a jump


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run on a loop with virtual time."""
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(main)


class ScriptedModel(GenericFakeChatModel):
    """A chat model whose requests are `send`: any coroutine function."""

    messages: Any = iter(())
    send: Any

    async def _agenerate(self, *_args: Any, **_kwargs: Any) -> ChatResult:
        await self.send()
        return ChatResult(generations=[ChatGeneration(message=AIMessage("answer"))])


def router(
    send: Callable[[], Awaitable[None]],
    clock: Any,
    breaker: CircuitBreaker | None = None,
    **fields: Any,
) -> RetryRouter:
    """A router over one model whose requests are `send`."""
    route = Route(model=ScriptedModel(send=send), breaker=breaker)
    return RetryRouter(routes=[route], clock=clock, breaker_settings=None, **fields)
