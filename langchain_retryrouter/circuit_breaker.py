"""A fuse: after enough failures nobody knocks for a while, then one tries.

Closed, it lets everything through. After `failure_threshold` retryable failures in a
row, or when too large a share of the latest calls failed, it opens and refuses; so it
does at once where a server asks for a long pause. After `recovery_time` it is
half-open: exactly one call, the probe, goes through. If the probe succeeds the breaker
closes, if it fails the breaker opens anew, and if it is abandoned the place is given
back.

Every admitted call holds a `Permit` and settles it once. A permit remembers the era it
was given in (an era ends with each opening and closing): a slow call that was admitted
before an outage says nothing about the time after it. The lock is held for a few
instructions, never across a call. Time and chance are handed in.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

_BUCKETS: Final = 10


@dataclass(slots=True)
class _Bucket:
    since: float
    calls: int = 0
    failures: int = 0


class OutcomeWindow:
    """The calls settled within the last `seconds`, and how many of them failed."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._buckets: deque[_Bucket] = deque()
        self.calls = 0
        self.failures = 0

    def add(self, now: float, *, has_failed: bool) -> None:
        """Count a call that was settled at the monotonic time `now`."""
        self._forget(now)
        bucket = self._newest(now)
        for counts in (bucket, self):
            counts.calls += 1
            counts.failures += has_failed

    def clear(self) -> None:
        """Forget everything."""
        self._buckets.clear()
        self.calls = self.failures = 0

    def _newest(self, now: float) -> _Bucket:
        # A thread that read the clock a little earlier counts where the latest did.
        width = self._seconds / _BUCKETS
        if not self._buckets or now >= self._buckets[-1].since + width:
            self._buckets.append(_Bucket(now))
        return self._buckets[-1]

    def _forget(self, now: float) -> None:
        while self._buckets and self._buckets[0].since <= now - self._seconds:
            old = self._buckets.popleft()
            self.calls -= old.calls
            self.failures -= old.failures


_LONGEST_HOLD: Final = 86_400.0
_LEFT_OUT: Final = {
    "failure_rate": None,
    "window": 60.0,
    "minimum_calls": 10,
    "recovery_jitter": 0.0,
}


class CircuitBreakerSettings(TypedDict, total=False):
    """The arguments of `CircuitBreaker`, for a class that makes several of them."""

    failure_threshold: int
    recovery_time: float
    failure_rate: float | None
    window: float
    minimum_calls: int
    recovery_jitter: float


class BreakerState(StrEnum):
    """What a breaker does with the next call."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to send one request; settled with exactly one of the breaker's verdicts."""

    generation: int
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

    A server that asks for a longer pause than the policy's `max_retry_after` opens it
    at once and for as long as it asked, a day at the most; one that asks for less
    keeps it open for at least so long, once it opens.

    Args:
        failure_threshold: Retryable failures in a row that open it.
        recovery_time: Seconds it stays open before one probe is let through.
        failure_rate: The share of the calls within `window` that opens it when they
            fail, above 0 and up to 1; None counts failures in a row only.
        window: Seconds that a call counts towards `failure_rate`; it is forgotten up
            to a tenth of them early, since calls are counted in ten steps.
        minimum_calls: Calls within `window` before `failure_rate` means anything.
        recovery_jitter: The share of `recovery_time`, from 0 to 1, of which a random
            part is added each time it opens, so that many processes do not probe
            together.

    Raises:
        ValueError: If a number is out of its range; the message names it.
    """

    def __init__(
        self,
        *,
        failure_threshold: int = 5,
        recovery_time: float = 30.0,
        failure_rate: float | None = None,
        window: float = 60.0,
        minimum_calls: int = 10,
        recovery_jitter: float = 0.0,
    ) -> None:
        _check_count("failure_threshold", failure_threshold)
        _check_seconds("recovery_time", recovery_time)
        if failure_rate is not None:
            _check_share("failure_rate", failure_rate, above_zero=True)
        _check_seconds("window", window)
        _check_count("minimum_calls", minimum_calls)
        _check_share("recovery_jitter", recovery_jitter, above_zero=False)
        self.failure_threshold = failure_threshold
        self.recovery_time = recovery_time
        self.failure_rate = failure_rate
        self.window = window
        self.minimum_calls = minimum_calls
        self.recovery_jitter = recovery_jitter
        self._lock = threading.Lock()
        self._failures = 0
        self._latest = OutcomeWindow(window)
        self._admitted_at = 0.0
        self._era = 0
        self._open_until: float | None = None
        self._probing = False

    def clone(self) -> Self:
        """Another breaker with the same numbers and a state of its own, closed."""
        return type(self)(**self._settings())

    def state(self, now: float) -> BreakerState:
        """What it would do with a call at the monotonic time `now`."""
        with self._lock:
            return self._state(now)

    def admit(self, now: float) -> Permit | Refusal:
        """Leave to send a request at the monotonic time `now`, or when to come back."""
        with self._lock:
            state = self._state(now)
            self._admitted_at = now
            if state is BreakerState.CLOSED:
                return Permit(generation=self._era, is_probe=False)
            if state is BreakerState.OPEN:
                return Refusal(retry_after=self._opens_in(now))
            if self._probing:
                return Refusal(retry_after=0.0)
            self._probing = True
            return Permit(generation=self._era, is_probe=True)

    def probe(self, now: float) -> Permit | Refusal:
        """Leave for one probe before `recovery_time` is over, one at a time.

        For a caller who has no other way: if everything is refused, the outage may be
        over, and one request finds out.
        """
        with self._lock:
            if self._state(now) is BreakerState.CLOSED:
                return Permit(generation=self._era, is_probe=False)
            if self._probing:
                return Refusal(retry_after=self._opens_in(now))
            self._probing = True
            return Permit(generation=self._era, is_probe=True)

    def succeeded(self, permit: Permit, now: float | None = None) -> None:
        """The provider answered, if only to say that the request was wrong.

        Args:
            permit: What the call was admitted with.
            now: The monotonic time; None for that of the last admission.
        """
        with self._lock:
            if permit.generation != self._era:
                return
            self._failures = 0
            if permit.is_probe:
                self._turn(open_until=None)
            elif self.failure_rate is not None:
                settled_at = self._admitted_at if now is None else now
                self._latest.add(settled_at, has_failed=False)

    def failed(
        self,
        permit: Permit,
        now: float,
        *,
        retry_after: float | None = None,
        random: float = 0.0,
    ) -> None:
        """The provider failed in a way that says something about its health.

        Args:
            permit: What the call was admitted with.
            now: The monotonic time.
            retry_after: Seconds that the server asked to be left alone: if it opens,
                then for no less.
            chance: A random number in `[0, 1)`, for `recovery_jitter`.
        """
        with self._lock:
            if permit.generation != self._era:
                return
            self._failures += 1
            if self.failure_rate is not None:
                self._latest.add(now, has_failed=True)
            if permit.is_probe or self._has_failed_enough():
                pause = max(self.recovery_time, _bounded(retry_after))
                self._turn(open_until=self._ending(now, pause, random))

    def open_for(self, now: float, seconds: float, *, random: float = 0.0) -> None:
        """Let nobody through for so long, since the server said so, then one probe.

        It opens whatever the threshold says. One that is open already stays so for as
        long as the longer of both demands.

        Args:
            now: The monotonic time.
            seconds: How long; more than a day is taken for a day, since a number that
                was misread must not shut a provider out for ever.
            chance: A random number in `[0, 1)`, for `recovery_jitter`.
        """
        with self._lock:
            pause = _bounded(seconds)
            if pause <= self._opens_in(now):
                return
            self._turn(open_until=self._ending(now, pause, random))

    def cancelled(self, permit: Permit) -> None:
        """Nobody waited for the outcome; a probe's place is free again."""
        with self._lock:
            if permit.generation == self._era and permit.is_probe:
                self._probing = False

    def _has_failed_enough(self) -> bool:
        if self._failures >= self.failure_threshold:
            return True
        latest = self._latest
        return (
            self.failure_rate is not None
            and latest.calls >= self.minimum_calls
            and latest.failures / latest.calls >= self.failure_rate
        )

    def _ending(self, now: float, pause: float, random: float) -> float:
        return now + pause + random * self.recovery_jitter * self.recovery_time

    def _turn(self, *, open_until: float | None) -> None:
        self._era += 1
        self._failures = 0
        self._latest.clear()
        self._probing = False
        self._open_until = open_until

    def _state(self, now: float) -> BreakerState:
        if self._open_until is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if self._opens_in(now) > 0 else BreakerState.HALF_OPEN

    def _opens_in(self, now: float) -> float:
        open_until = now if self._open_until is None else self._open_until
        return max(0.0, open_until - now)

    def _settings(self) -> dict[str, Any]:
        names = ("failure_threshold", "recovery_time", *_LEFT_OUT)
        return {name: getattr(self, name) for name in names}

    def __copy__(self) -> Self:
        """The same object: sharing is what a breaker is for."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The same object: sharing is what a breaker is for."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """The numbers; another process has its own clock, so it starts closed."""
        return _restore_breaker, (type(self), self._settings())

    def __repr__(self) -> str:
        """The numbers it was made with, the rarer ones where they were given."""
        numbers = ", ".join(
            f"{name}={value if isinstance(value, int) else format(value, 'g')}"
            for name, value in self._settings().items()
            if name not in _LEFT_OUT or value != _LEFT_OUT[name]
        )
        return f"{type(self).__name__}({numbers})"


def _restore_breaker(
    cls: type[CircuitBreaker], settings: dict[str, Any]
) -> CircuitBreaker:
    return cls(**settings)


def _bounded(seconds: float | None) -> float:
    """What a server asked for, as far as it can be meant; 0 where it cannot."""
    return min(seconds, _LONGEST_HOLD) if seconds is not None and seconds > 0 else 0.0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_count(name: str, value: Any) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < 1:
        msg = f"{name} must be a whole number, 1 or more, not {value!r}"
        raise ValueError(msg)


def _check_seconds(name: str, value: Any) -> None:
    if not _is_number(value) or not 0 < value <= sys.float_info.max:
        msg = f"{name} must be a finite number above 0, not {value!r}"
        raise ValueError(msg)


def _check_share(name: str, value: Any, *, above_zero: bool) -> None:
    if not _is_number(value) or not 0 <= value <= 1 or (above_zero and not value):
        least = "above 0 and up to 1" if above_zero else "from 0 to 1"
        msg = f"{name} must be a share {least}, not {value!r}"
        raise ValueError(msg)
