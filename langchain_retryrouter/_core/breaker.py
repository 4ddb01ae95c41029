"""A fuse: after enough failures in a row nobody knocks for a while, then one tries.

Closed, it lets everything through. After `failure_threshold` retryable failures in a
row it opens and refuses. After `recovery_time` it is half-open: exactly one call, the
probe, goes through. If the probe succeeds the breaker closes, if it fails the breaker
opens anew, and if it is abandoned the place is given back.

Every admitted call holds a `Permit` and settles it once. A permit remembers the era it
was given in (an era ends with each opening and closing): a slow call that was admitted
before an outage says nothing about the time after it. The lock is held for a few
instructions, never across a call. The time is handed in.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self


class BreakerState(StrEnum):
    """What a breaker does with the next call."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to send one request; settled with exactly one of the breaker's verdicts."""

    era: int
    is_probe: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """The breaker lets nothing through.

    Attributes:
        retry_after: Seconds until it may; 0 while another call's probe is under way.
    """

    retry_after: float


class CircuitBreaker:
    """A circuit breaker; hand one object to every model of the same provider.

    Counts retryable failures only: a 400 says nothing about the provider's health.
    Thread-safe, and deliberately one object: a copy or deep copy of a model shares its
    breaker. A pickle carries the numbers, and starts closed.

    Args:
        failure_threshold: Retryable failures in a row that open it.
        recovery_time: Seconds it stays open before one probe is let through.

    Raises:
        ValueError: If `failure_threshold` is below 1, or `recovery_time` is not a
            finite number above 0.
    """

    def __init__(
        self, *, failure_threshold: int = 5, recovery_time: float = 30.0
    ) -> None:
        _check_settings(failure_threshold, recovery_time)
        self.failure_threshold = failure_threshold
        self.recovery_time = recovery_time
        self._lock = threading.Lock()
        self._failures = 0
        self._era = 0
        self._opened_at: float | None = None
        self._probing = False

    def state(self, now: float) -> BreakerState:
        """What it would do with a call at the monotonic time `now`."""
        with self._lock:
            return self._state(now)

    def admit(self, now: float) -> Permit | Refusal:
        """Leave to send a request at the monotonic time `now`, or when to come back."""
        with self._lock:
            state = self._state(now)
            if state is BreakerState.CLOSED:
                return Permit(era=self._era, is_probe=False)
            if state is BreakerState.OPEN:
                return Refusal(retry_after=self._opens_in(now))
            if self._probing:
                return Refusal(retry_after=0.0)
            self._probing = True
            return Permit(era=self._era, is_probe=True)

    def succeeded(self, permit: Permit) -> None:
        """The provider answered, if only to say that the request was wrong."""
        with self._lock:
            if permit.era != self._era:
                return
            self._failures = 0
            if permit.is_probe:
                self._turn(opened_at=None)

    def failed(self, permit: Permit, now: float) -> None:
        """The provider failed in a way that says something about its health."""
        with self._lock:
            if permit.era != self._era:
                return
            self._failures += 1
            if permit.is_probe or self._failures >= self.failure_threshold:
                self._turn(opened_at=now)

    def abandoned(self, permit: Permit) -> None:
        """Nobody waited for the outcome; a probe's place is free again."""
        with self._lock:
            if permit.era == self._era and permit.is_probe:
                self._probing = False

    def _turn(self, *, opened_at: float | None) -> None:
        self._era += 1
        self._failures = 0
        self._probing = False
        self._opened_at = opened_at

    def _state(self, now: float) -> BreakerState:
        if self._opened_at is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if self._opens_in(now) > 0 else BreakerState.HALF_OPEN

    def _opens_in(self, now: float) -> float:
        opened_at = now if self._opened_at is None else self._opened_at
        return max(0.0, opened_at + self.recovery_time - now)

    def __copy__(self) -> Self:
        """The same object: sharing is what a breaker is for."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The same object: sharing is what a breaker is for."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """The numbers; another process has its own clock, so it starts closed."""
        return _restore_breaker, (
            type(self),
            self.failure_threshold,
            self.recovery_time,
        )

    def __repr__(self) -> str:
        """The numbers it was made with."""
        return (
            f"{type(self).__name__}(failure_threshold={self.failure_threshold},"
            f" recovery_time={self.recovery_time:g})"
        )


def _restore_breaker(
    cls: type[CircuitBreaker], failure_threshold: int, recovery_time: float
) -> CircuitBreaker:
    return cls(failure_threshold=failure_threshold, recovery_time=recovery_time)


def _check_settings(failure_threshold: Any, recovery_time: Any) -> None:
    whole = isinstance(failure_threshold, int) and not isinstance(
        failure_threshold, bool
    )
    if not whole or failure_threshold < 1:
        msg = (
            "failure_threshold must be a whole number, 1 or more, not"
            f" {failure_threshold!r}"
        )
        raise ValueError(msg)
    number = isinstance(recovery_time, int | float) and not isinstance(
        recovery_time, bool
    )
    if not number or not 0 < recovery_time <= sys.float_info.max:
        msg = f"recovery_time must be a finite number above 0, not {recovery_time!r}"
        raise ValueError(msg)
