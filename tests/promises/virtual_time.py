"""An event loop whose time jumps: a wait of an hour is over at once, and in its order.

What runs on it is the real code, with its tasks, timeouts and waits; only the clock is
not. Nothing may reach for a socket, since no time passes while bytes travel.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from tests.promises.rng import seeded

T = TypeVar("T")

_OTHER_THREADS: Final = 10.0


class _Jump(selectors.SelectSelector):
    """Says that the time is over instead of waiting for it."""

    now = 0.0

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        # Without a timer, only another thread can wake somebody: that takes real time.
        ready = super().select(_OTHER_THREADS if timeout is None else 0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            msg = "everybody waits, and nothing is scheduled to wake them"
            raise RuntimeError(msg)
        self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that begins at 0 and is never late."""

    def __init__(self) -> None:
        """Begin at 0."""
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        """Seconds since the beginning."""
        return self._jump.now


class VirtualClock:
    """The package's clock on a `VirtualLoop`, with seeded dice."""

    def __init__(self, seed: int) -> None:
        """Begin with dice that fall alike for the same `seed`."""
        self.random = seeded(seed).random

    def monotonic(self) -> float:
        """Seconds since the loop began."""
        return asyncio.get_running_loop().time()

    def time(self) -> float:
        """Seconds since the Unix epoch, in January 2027."""
        return 1_800_000_000.0 + self.monotonic()

    def sleep(self, seconds: float, /) -> None:
        """Refuse: a thread that waits would stop everybody."""
        msg = f"nothing may block on a virtual loop, not even for {seconds:g} s"
        raise RuntimeError(msg)

    async def asleep(self, seconds: float, /) -> None:
        """Wait, while the others go on."""
        await let_pass(seconds)


async def let_pass(seconds: float) -> None:
    """Let so much virtual time pass for the task that asks."""
    await asyncio.sleep(seconds)  # noqa: TID251 - on a loop that does not wait


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """What `coroutine` returns, in no time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)
