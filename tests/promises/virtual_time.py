"""An event loop whose time jumps: a wait of an hour is over at once, and in its order.

The code that runs on it is the real code, with its tasks, timeouts and waits. Nothing
may reach for a socket, since no time passes while bytes travel.
"""

from __future__ import annotations

import asyncio
import random  # noqa: TID251 - seeded
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

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
    """An event loop that begins at 0 and is never late."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


class VirtualClock:
    """The package's clock on the virtual loop, with seeded randomness."""

    def __init__(self, seed: int) -> None:
        """The same numbers for the same seed."""
        self.random = random.Random(seed).random  # noqa: S311

    def monotonic(self) -> float:
        """Seconds since the loop began."""
        return asyncio.get_running_loop().time()

    def time(self) -> float:
        """Seconds since the epoch."""
        return 1_800_000_000 + self.monotonic()

    def sleep(self, seconds: float) -> None:
        """Refuse: nothing here may block."""
        raise NotImplementedError(seconds)

    async def asleep(self, seconds: float) -> None:
        """Wait on the loop."""
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

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        del messages, stop, run_manager, kwargs
        await self.send()
        return ChatResult(generations=[ChatGeneration(message=AIMessage("answer"))])
