"""The clock that lets time pass; the package's only calls of `sleep`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Protocol, runtime_checkable

from langchain_retryrouter._core.clock import SystemTime, TimeSource


@runtime_checkable
class Clock(TimeSource, Protocol):
    """A `TimeSource` that can also wait; `testing.FakeClock` is one."""

    def sleep(self, seconds: float, /) -> None:
        """Wait, blocking the thread."""

    def asleep(self, seconds: float, /) -> Awaitable[None]:
        """Wait, letting the event loop go on."""


class _SystemClock(SystemTime):
    # Methods, not the functions themselves: what looks for blocking calls in
    # coroutines replaces `time.sleep`, and would not see a reference taken before.
    def sleep(self, seconds: float, /) -> None:
        time.sleep(seconds)

    def asleep(self, seconds: float, /) -> Awaitable[None]:
        return asyncio.sleep(seconds)


SYSTEM_CLOCK: Clock = _SystemClock()
