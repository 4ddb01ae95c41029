"""The clock that lets time pass; the package's only calls of `sleep`."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, runtime_checkable


class TimeSource(Protocol):
    """What the core must be told about the world."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""

    def time(self) -> float:
        """Seconds since the Unix epoch, to read HTTP dates with."""

    def random(self) -> float:
        """A number in `[0, 1)`, for jitter."""


@runtime_checkable
class Clock(TimeSource, Protocol):
    """A `TimeSource` that can also wait; `testing.FakeClock` is one."""

    def sleep(self, seconds: float, /) -> None:
        """Wait, blocking the thread."""

    def asleep(self, seconds: float, /) -> Awaitable[None]:
        """Wait, letting the event loop go on."""


class SystemTime:
    """The machine's own clock and dice."""

    # Bound once: the healthy path reads the clock twice a call.
    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)
    # Not `random.random`: workers of a program that calls `random.seed(42)` would all
    # throw the same numbers, and come back together.
    random = staticmethod(random.SystemRandom().random)


def new_rng(seed: int | None = None) -> Callable[[], float]:
    """Dice of one's own: numbers in `[0, 1)`, the same ones for the same seed.

    Args:
        seed: Where to begin; None for a beginning that nobody can foretell.
    """
    if seed is None:
        # The system's, since a generator of one's own goes on alike in forked workers.
        return random.SystemRandom().random
    return random.Random(seed).random  # noqa: S311 - nothing secret is drawn


class _SystemClock(SystemTime):
    # Methods, not the functions themselves: what looks for blocking calls in
    # coroutines replaces `time.sleep`, and would not see a reference taken before.
    def sleep(self, seconds: float, /) -> None:
        time.sleep(seconds)

    def asleep(self, seconds: float, /) -> Awaitable[None]:
        return asyncio.sleep(seconds)


SYSTEM_CLOCK: Clock = _SystemClock()
