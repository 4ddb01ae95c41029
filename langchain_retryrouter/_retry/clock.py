"""Time and random numbers; the only calls of `sleep` in the package."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from langchain_retryrouter._shared import Clock

__all__ = ["SYSTEM_CLOCK", "Clock", "new_rng"]


class _SystemClock:
    # Bound once, since each call reads the clock at least twice.
    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)
    # Not `random.random`: workers of a program that calls `random.seed(42)` would all
    # get the same numbers, and come back together.
    random = staticmethod(random.SystemRandom().random)

    # Methods, since tools that look for blocking calls in coroutines replace
    # `time.sleep`, and would not see a reference to the function.
    def sleep(self, seconds: float, /) -> None:
        time.sleep(seconds)

    def asleep(self, seconds: float, /) -> Awaitable[None]:
        return asyncio.sleep(seconds)


SYSTEM_CLOCK: Clock = _SystemClock()


def new_rng(seed: int | None) -> Callable[[], float]:
    """A function that returns numbers in `[0, 1)`, the same ones for the same seed."""
    if seed is None:
        return SYSTEM_CLOCK.random
    return random.Random(seed).random  # noqa: S311 - not used for secrets
