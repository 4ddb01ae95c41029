"""The routes of calls, and what their latest attempts say: `health()` of the routers.

Facts of attempts that were made anyway: nothing here sends. A report has kinds,
statuses and times, and never a key, a prompt or a provider's sentence.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from langchain_retryrouter._retry.clock import Clock
from langchain_retryrouter._shared import Locked, OneForAll
from langchain_retryrouter.circuit_breaker import BreakerState, CircuitBreaker
from langchain_retryrouter.failures import Failure, FailureKind

_LATEST: Final = 64
_SMOOTHING: Final = 0.2  # The weight of the latest attempt in the mean.
_MEMORY: Final = 60.0
MENDED_BY_HAND: Final = frozenset(
    {FailureKind.AUTHENTICATION, FailureKind.PERMISSION}
    | {FailureKind.NOT_FOUND, FailureKind.QUOTA}
)
"""Failures that no wait mends, and that no breaker counts."""


class RouteHealth(OneForAll, Locked):
    """The latest attempts on one route, of all calls; thread-safe."""

    def __init__(self) -> None:
        """No attempt so far."""
        super().__init__()
        self._seconds: deque[float] = deque(maxlen=_LATEST)
        self._mean = 0.0
        self._counts = {True: 0, False: 0}
        self._is_failing = False
        self._last_ok: float | None = None
        self._last_error: tuple[float, Failure] | None = None

    def note(self, failure: Failure | None, seconds: float, now: float) -> None:
        """An attempt is over: it failed, or its answer is whole."""
        with self._lock:
            self._counts[failure is None] += 1
            self._is_failing = failure is not None
            if failure is not None:
                self._last_error = (now, failure)
                return
            weight = _SMOOTHING if self._seconds else 1.0
            self._mean += weight * (seconds - self._mean)
            self._seconds.append(seconds)
            self._last_ok = now

    def report(
        self, name: str | None, breaker: CircuitBreaker | None, clock: Clock
    ) -> dict[str, Any]:
        """The route now, as JSON-able data."""
        now = clock.monotonic()
        state = BreakerState.CLOSED if breaker is None else breaker.state
        wait = 0.0 if breaker is None else breaker.retry_after
        with self._lock:
            error, seconds, ok = self._last_error, list(self._seconds), self._last_ok
            counts, mean, is_failing = dict(self._counts), self._mean, self._is_failing
        is_stuck = (
            error is not None
            and error[1].kind in MENDED_BY_HAND
            and now - error[0] < _MEMORY
            and is_failing
        )
        return {
            "name": name,
            "is_healthy": state is not BreakerState.OPEN and not is_stuck,
            "state": state.value,
            "open_for": round(wait, 3),
            "open_until": round(clock.time() + wait, 3) if wait else None,
            "answered": counts[True],
            "failed": counts[False],
            "last_answer_ago": None if ok is None else round(now - ok, 3),
            "last_error": error
            and {
                "kind": error[1].kind.value,
                "status_code": error[1].status_code,
                "ago": round(now - error[0], 3),
            },
            "latency": {
                "mean": round(mean, 6),
                "p50": round(statistics.median(seconds), 6),
            }
            if seconds
            else None,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process starts afresh."""
        return type(self), ()


@dataclass(frozen=True, slots=True)
class RouteState:
    """One route of a call, with its name in the attempt log if it has one.

    Routes of the same `group` are the same model with another key, account or region;
    those of the same `endpoint` differ by their keys only.
    """

    name: str | None
    breaker: CircuitBreaker | None = None
    health: RouteHealth | None = None
    group: Hashable = None
    endpoint: Hashable = None


def health_of(routes: Sequence[RouteState], clock: Clock) -> dict[str, Any]:
    """The report of a router with these routes."""
    reports = [
        route.health.report(route.name, route.breaker, clock)
        for route in routes
        if route.health is not None
    ]
    return {
        "is_healthy": any(report["is_healthy"] for report in reports),
        "routes": reports,
    }
