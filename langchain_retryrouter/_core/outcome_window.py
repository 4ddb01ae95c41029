"""How many of the latest calls failed, in a memory that does not grow with the calls.

Counts are kept in buckets of a tenth of the window, and leave with their bucket: what
is counted is between nine and ten tenths of the window old at the most. The time is
handed in, and a lock is the caller's matter.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

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
