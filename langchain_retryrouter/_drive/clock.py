"""The clock that lets time pass; the package's only calls of `sleep`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable

from langchain_retryrouter._core.clock import Clock, SystemTime

__all__ = ["SYSTEM_CLOCK", "Clock"]


class _SystemClock(SystemTime):
    # Methods, not the functions themselves: what looks for blocking calls in
    # coroutines replaces `time.sleep`, and would not see a reference taken before.
    def sleep(self, seconds: float, /) -> None:
        time.sleep(seconds)

    def asleep(self, seconds: float, /) -> Awaitable[None]:
        return asyncio.sleep(seconds)


SYSTEM_CLOCK: Clock = _SystemClock()
