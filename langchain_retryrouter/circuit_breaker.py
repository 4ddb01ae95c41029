"""Circuit breaker: opens after repeated failures, then admits one probe.

Closed, it admits every call. After `failure_threshold` retryable failures in a row, or
if too large a share of the latest calls failed, it opens and refuses calls; so it does
at once if a server asks for a long pause. After `recovery_time` it is half open: one
call, the probe, is admitted. If the probe succeeds the breaker closes, if it fails the
breaker opens again, and if it is cancelled another call may be the probe.
"""

from __future__ import annotations

import functools
import math
import random  # noqa: TID251 - the default of `clock`
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from types import SimpleNamespace
from typing import Any, Final, Protocol, Self

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

_BUCKETS: Final = 10
_LONGEST_PAUSE: Final = 86_400.0
_MAX_SUSPECTS: Final = 1_000
_MAX: Final = sys.float_info.max
_FINITE: Final = "a finite number above 0"
_SHARE: Final = "a share above 0 and up to 1"
_PROBE_INTERVAL: Final = 0.1  # Seconds between two looks at another call's probe.


class BreakerState(StrEnum):
    """What a circuit breaker does with the next call."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class BreakerClock(Protocol):
    """Tells a circuit breaker the time; `testing.FakeClock` does."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""

    def random(self) -> float:
        """A number in `[0, 1)`, for jitter."""


_SYSTEM_CLOCK: Final[Any] = SimpleNamespace(
    monotonic=time.monotonic,
    # Not seeded by the program: workers with equal seeds would probe together.
    random=random.SystemRandom().random,
)


class CircuitBreakerSettings(TypedDict, total=False):
    """The numbers of a `CircuitBreaker`, for a class that makes several of them."""

    failure_threshold: int
    recovery_time: float
    failure_rate: float | None
    window: float
    minimum_calls: int
    recovery_jitter: float


_NUMBER: Final = int | float
_NUMBERS: Final[dict[str, tuple[Any, Any, Callable[[Any], bool], str]]] = {
    "failure_threshold": (5, int, lambda n: n >= 1, "a whole number, 1 or more"),
    "recovery_time": (30.0, _NUMBER, lambda n: 0 < n <= _MAX, _FINITE),
    "failure_rate": (None, _NUMBER | None, lambda n: n is None or 0 < n <= 1, _SHARE),
    "window": (60.0, _NUMBER, lambda n: 0 < n <= _MAX, _FINITE),
    "minimum_calls": (10, int, lambda n: n >= 1, "a whole number, 1 or more"),
    "recovery_jitter": (0.0, _NUMBER, lambda n: 0 <= n <= 1, "a share from 0 to 1"),
}
"""The numbers of a breaker: default, types, what is allowed, and this in words."""


@dataclass(frozen=True, slots=True)
class Permit:
    """Permission to send one request; a probe if the breaker was half open.

    A slow call that began before the breaker opened or closed, in an earlier
    `generation`, says nothing about the time after it.
    """

    generation: int
    is_probe: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """The breaker refuses a call, for so long; 0 while another call is the probe."""

    retry_after: float


class CircuitBreaker:
    """A circuit breaker; give one object to all models of the same provider.

    Only retryable failures count: a 400 says nothing about the provider's health. A
    `RetryRouter` counts the failures of one request that the request may have caused
    (500, 502, a lost connection, a malformed or interrupted answer) as one within
    `window`. Thread-safe. A copy or deep copy of a model shares its breaker. A pickle
    has the numbers alone: in another process the breaker starts closed, on the system's
    clock and without a listener.

    A server that asks for a longer pause than the policy's `max_retry_after` opens the
    breaker at once and for as long as it asked, a day at most; one that asks for less
    keeps it open for at least so long, once it opens.

    Example:
        ```python
        from langchain_retryrouter import CircuitBreaker


        def report(before, now):
            print(f"the provider's circuit breaker is {now}, it was {before}")


        breaker = CircuitBreaker(recovery_time=10, on_state_change=report)
        breaker.state  # BreakerState.CLOSED
        ```

    Args:
        failure_threshold: Retryable failures in a row that open it.
        recovery_time: Seconds it stays open before one probe is admitted.
        failure_rate: The share of the calls within `window` that opens it if they fail,
            above 0 and up to 1; None counts failures in a row only.
        window: Seconds that a call counts for `failure_rate`, in ten steps.
        minimum_calls: Calls within `window` before `failure_rate` means anything.
        recovery_jitter: The share of `recovery_time`, from 0 to 1, of which a random
            part is added each time it opens, so that many processes do not probe
            together.
        clock: Tells the time, such as `testing.FakeClock`; None for the system's.
        on_state_change: Called with the state before and the new state, in the thread
            of the call that caused it. It is half open when the probe is admitted. An
            exception leaves the call.

    Raises:
        ValueError: A number is out of its range; the message names it.
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
        clock: BreakerClock | None = None,
        on_state_change: Callable[[BreakerState, BreakerState], object] | None = None,
    ) -> None:
        """Check the numbers; the breaker starts closed."""
        if on_state_change is not None and not callable(on_state_change):
            msg = f"on_state_change must be a function, not {on_state_change!r}"
            raise ValueError(msg)
        self.failure_threshold = failure_threshold
        self.recovery_time = recovery_time
        self.failure_rate = failure_rate
        self.window = window
        self.minimum_calls = minimum_calls
        self.recovery_jitter = recovery_jitter
        for name, (_, types, is_allowed, allowed) in _NUMBERS.items():
            value = getattr(self, name)
            is_number = isinstance(value, types) and not isinstance(value, bool)
            if not (is_number and is_allowed(value)):
                msg = f"{name} must be {allowed}, not {value!r}"
                raise ValueError(msg)
        self._clock = clock or _SYSTEM_CLOCK
        self._on_state_change = on_state_change
        self._lock = threading.Lock()
        self._generation = 0
        self._failures = 0
        self._latest: deque[_Bucket] = deque()
        self._open_until: float | None = None
        self._held_until = 0.0  # The end of the pause that the server asked for.
        self._is_held = False  # Open since the server asked for it, not by failures.
        self._is_probing = False
        self._suspects: dict[int, float] = {}  # The last failure of each request.
        self._was_probed = False  # Within the pause that the server asked for.
        self._reported = BreakerState.CLOSED

    @property
    def state(self) -> BreakerState:
        """What it does with a call now."""
        with self._lock:
            return self._state()

    @property
    def is_open(self) -> bool:
        """Whether it refuses all calls now."""
        return self.state is BreakerState.OPEN

    @property
    def retry_after(self) -> float:
        """Seconds until a probe is admitted; 0 if it is not open."""
        if self._open_until is None:  # Without the lock, since nearly all calls ask.
            return 0.0
        with self._lock:
            return self._opens_in()

    # Used by the package. Each permit is settled once, by `succeeded`, `failed` or
    # `cancelled`.

    def admit(self) -> Permit | Refusal:
        """Permission to send a request, or a refusal."""
        return self._admit(is_early=False)

    def probe(self) -> Permit | Refusal:
        """Permission for a probe before the pause is over, one at a time.

        For a call that has no other route: the outage may be over already.
        """
        return self._admit(is_early=True)

    def _admit(self, *, is_early: bool) -> Permit | Refusal:
        with self._lock:
            state = self._state()
            if state is BreakerState.CLOSED:
                return Permit(self._generation, is_probe=False)
            if self._is_probing or (state is BreakerState.OPEN and not is_early):
                return Refusal(self._opens_in())
            self._is_probing = self._was_probed = True
            permit = Permit(self._generation, is_probe=True)
        try:
            self._report(BreakerState.HALF_OPEN)
        except BaseException:
            self.cancelled(permit)  # The listener's error ends the call.
            raise
        return permit

    def probe_wait(
        self, *, is_early: bool, is_first: bool = False, awaits_probe: bool = False
    ) -> float | None:
        """Seconds until `probe` may be asked; None if the call cannot wait for it.

        A pause that the server asked for is waited for, and so is another call's probe
        after it. A pause because of failures is not.

        Args:
            is_early: Whether a probe may come before the end of a pause that the
                server did not ask for.
            is_first: Whether the call has asked no route yet, since all refuse. Then
                one early probe may come in each pause.
            awaits_probe: Whether to wait for another call's probe in any pause.
        """
        if self._open_until is None:
            return 0.0
        with self._lock:
            held = max(0.0, self._held_until - self._clock.monotonic())
            if self._is_probing:
                return _PROBE_INTERVAL if self._is_held or awaits_probe else None
            if is_early and is_first and not self._was_probed:
                return 0.0
            return held if held or self._is_held or is_early else None

    def succeeded(self, permit: Permit) -> None:
        """The provider answered, even if only to refuse the request."""
        with self._lock:
            if permit.generation != self._generation:
                return
            self._failures = 0
            if not permit.is_probe:
                self._count(has_failed=False)
                return
            self._was_probed = False
            self._change(open_until=None)
        self._report(BreakerState.CLOSED)

    def failed(
        self,
        permit: Permit,
        *,
        retry_after: float | None = None,
        request: int | None = None,
    ) -> None:
        """The provider failed; `retry_after` is the pause that it asked for.

        `request` is a hash of the request, if it may be the cause of the failure. Its
        failures within `window` count as one, however often it is sent.
        """
        with self._lock:
            if permit.generation != self._generation:
                return
            if request is not None and not permit.is_probe:
                now = self._clock.monotonic()
                is_known = now - self._suspects.pop(request, -math.inf) < self.window
                self._suspects[request] = now
                if len(self._suspects) > _MAX_SUSPECTS:
                    del self._suspects[next(iter(self._suspects))]
                if is_known:
                    return
            self._failures += 1
            self._count(has_failed=True)
            if not (permit.is_probe or self._has_failed_enough()):
                return
            is_held = self._is_held and permit.is_probe and bool(retry_after)
            held = _bounded(retry_after)
            self._was_probed = permit.is_probe
            self._open(max(self.recovery_time, held), held, is_held=is_held)
        self._report(BreakerState.OPEN)

    def open_for(self, seconds: float) -> None:
        """Refuse calls for so long, since the server asked for it.

        A breaker that is open already stays open for the longer of both times. A day at
        most, since a misread number must not exclude a provider for ever.
        """
        with self._lock:
            held = _bounded(seconds)
            if held <= self._opens_in():
                until = self._clock.monotonic() + held
                self._held_until = max(self._held_until, until)
                return
            is_held = self._is_held or self._state() is BreakerState.CLOSED
            self._open(held, held, is_held=is_held)
        self._report(BreakerState.OPEN)

    def cancelled(self, permit: Permit) -> None:
        """The outcome of the call is not known; another call may be the probe."""
        with self._lock:
            if permit.generation == self._generation and permit.is_probe:
                self._is_probing = False

    def _state(self) -> BreakerState:
        if self._open_until is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if self._opens_in() > 0 else BreakerState.HALF_OPEN

    def _opens_in(self) -> float:
        if self._open_until is None:
            return 0.0
        return max(0.0, self._open_until - self._clock.monotonic())

    def _open(self, pause: float, held: float, *, is_held: bool) -> None:
        jitter = self._clock.random() * self.recovery_jitter * self.recovery_time
        now = self._clock.monotonic()
        self._change(open_until=now + pause + jitter)
        self._held_until, self._is_held = now + held, is_held

    def _change(self, *, open_until: float | None) -> None:
        self._generation += 1
        self._failures = 0
        self._latest.clear()
        self._is_probing = self._is_held = False
        self._held_until = 0.0
        self._open_until = open_until

    def _report(self, state: BreakerState) -> None:
        """Tell the listener, without the lock: it may ask for the state."""
        before, self._reported = self._reported, state
        if self._on_state_change is not None and before is not state:
            self._on_state_change(before, state)

    def _count(self, *, has_failed: bool) -> None:
        """Count a call for `failure_rate`."""
        if self.failure_rate is None:
            return
        now = self._clock.monotonic()
        while self._latest and self._latest[0].since <= now - self.window:
            self._latest.popleft()
        if not self._latest or now >= self._latest[-1].since + self.window / _BUCKETS:
            self._latest.append(_Bucket(now))
        self._latest[-1].calls += 1
        self._latest[-1].failures += has_failed

    def _has_failed_enough(self) -> bool:
        if self._failures >= self.failure_threshold:
            return True
        calls = sum(bucket.calls for bucket in self._latest)
        failures = sum(bucket.failures for bucket in self._latest)
        return (
            self.failure_rate is not None
            and calls >= self.minimum_calls
            and failures / calls >= self.failure_rate
        )

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _NUMBERS}

    def __copy__(self) -> Self:
        """The same object, which is to be shared."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The same object, which is to be shared."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """The numbers alone, since another process has its own clock."""
        return functools.partial(type(self), **self._settings()), ()

    def __repr__(self) -> str:
        """The two main numbers, and others that are not the default."""
        numbers = ", ".join(
            f"{name}={value if isinstance(value, int) else format(value, 'g')}"
            for name, value in self._settings().items()
            if name in {"failure_threshold", "recovery_time"}
            or value != _NUMBERS[name][0]
        )
        return f"{type(self).__name__}({numbers})"


@dataclass(slots=True)
class _Bucket:
    """Calls that ended within a tenth of the window."""

    since: float
    calls: int = 0
    failures: int = 0


def _bounded(seconds: float | None) -> float:
    """The pause that a server asked for, as far as it can be meant."""
    return min(seconds, _LONGEST_PAUSE) if seconds is not None and seconds > 0 else 0.0
