"""An event loop on which time passes faster: at a scale of 20, 20 s take 1 s.

Every wait and time limit of asyncio code goes through the loop's clock:
`asyncio.sleep`, `asyncio.timeout`, anyio's, and so those of the openai SDK, httpx and
aiohttp. The sockets are real. Computing is not faster: 1 ms of it counts as 20.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _ScaledSelector(selectors.DefaultSelector):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self._scale = scale

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(None if timeout is None else timeout / self._scale)


class ScaledLoop(asyncio.SelectorEventLoop):
    """A loop whose seconds are `scale` times shorter than real ones."""

    def __init__(self, scale: float) -> None:
        """Seconds of this loop are `1 / scale` real seconds."""
        super().__init__(_ScaledSelector(scale))
        self._scale = scale

    def time(self) -> float:
        """The loop's clock, in its own seconds."""
        return time.monotonic() * self._scale


class ScaledClock:
    """The same clock for `RetryRouter(clock=...)`."""

    def __init__(self, scale: float) -> None:
        """Seconds of this clock are `1 / scale` real seconds."""
        self._scale = scale
        self._began = time.time()

    def monotonic(self) -> float:
        """Seconds of the scaled clock."""
        return time.monotonic() * self._scale

    def time(self) -> float:
        """Seconds since the Unix epoch, running fast since the clock was made."""
        return self._began + (time.time() - self._began) * self._scale

    def random(self) -> float:
        """A number in `[0, 1)`; the system's, so that calls do not move together."""
        return float.fromhex("0x1p-53") * (time.perf_counter_ns() * 2654435761 % 2**53)

    def sleep(self, seconds: float, /) -> None:
        """Block for scaled seconds."""
        time.sleep(seconds / self._scale)

    async def asleep(self, seconds: float, /) -> None:
        """Wait for scaled seconds; the loop is scaled already."""
        await asyncio.sleep(seconds)


def run(main: Coroutine[Any, Any, T], scale: float) -> T:
    """The result of `main` on a scaled loop."""
    with asyncio.Runner(loop_factory=lambda: ScaledLoop(scale)) as runner:
        return runner.run(main)
