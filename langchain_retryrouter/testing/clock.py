"""A clock that only the test moves."""

from __future__ import annotations

import math
import threading
import types
from collections.abc import Generator, Iterable
from itertools import repeat

from langchain_retryrouter._shared import OneForAll, is_number, require


class FakeClock(OneForAll):
    """A clock for tests: time, waiting and random numbers under the test's control.

    Waiting moves the time forward at once and is recorded in `sleeps`, so that back-off
    is tested without sleeping. Threads may share it, and so do the copies of a model.

    Example:
        ```python
        clock = FakeClock(random=0.0)
        clock.sleep(4.0)
        assert clock.sleeps == [4.0]
        ```
    """

    def __init__(
        self,
        *,
        monotonic: float = 0.0,
        unix_time: float = 1_800_000_000.0,
        random: float | Iterable[float] = 0.5,
    ) -> None:
        """Start the clock.

        Args:
            monotonic: The result of `monotonic` at the start, in seconds.
            unix_time: The result of `time` at the start, in seconds since the Unix
                epoch.
            random: The result of `random`: always this number, or these in order.

        Raises:
            ValueError: A time is not finite, or a number is outside `[0, 1)`.
        """
        times = {"monotonic": monotonic, "unix_time": unix_time}
        for name, value in times.items():
            require(name, value, "a finite number", is_met=math.isfinite(value))
        self._monotonic, self._unix_time = monotonic, unix_time
        if not isinstance(random, Iterable):
            random = repeat(_in_unit_interval(random))
        self._numbers = iter(random)
        self._sleeps: list[float] = []
        self._lock = threading.Lock()

    @property
    def sleeps(self) -> list[float]:
        """The seconds of every wait so far, in order."""
        with self._lock:
            return list(self._sleeps)

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        return self._monotonic

    def time(self) -> float:
        """Seconds since the Unix epoch."""
        return self._unix_time

    def random(self) -> float:
        """The next number in `[0, 1)`.

        Raises:
            ValueError: The given numbers are used up, or this one is not in `[0, 1)`.
        """
        with self._lock:
            number = next(self._numbers, None)
        if number is None:
            msg = "FakeClock: the numbers given as random= are used up, give more"
            raise ValueError(msg)
        return _in_unit_interval(number)

    def advance(self, seconds: float) -> None:
        """Move the time forward by `seconds` without a wait.

        Raises:
            ValueError: `seconds` is negative or not finite.
        """
        allowed, is_met = "a finite number, 0 or more", is_number(seconds)
        require("seconds", seconds, allowed, is_met=is_met)
        with self._lock:
            self._monotonic += seconds
            self._unix_time += seconds

    def sleep(self, seconds: float) -> None:
        """Move the time forward as `advance` does, and record the wait."""
        self.advance(seconds)
        with self._lock:
            self._sleeps.append(seconds)

    async def asleep(self, seconds: float) -> None:
        """Do what `sleep` does, and let the other tasks run once."""
        self.sleep(seconds)
        await _one_turn_of_the_loop()


def _in_unit_interval(number: float) -> float:
    require("random", number, "in [0, 1)", is_met=0 <= number < 1)
    return number


@types.coroutine
def _one_turn_of_the_loop() -> Generator[None, None, None]:
    # What asyncio.sleep(0) does, but never counted as a real wait.
    yield
