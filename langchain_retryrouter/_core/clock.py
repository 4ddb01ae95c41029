"""Where time and chance come from, and the only file of the core that reads them.

Everything else in the core is handed a `TimeSource`. Waiting is not a matter of this
file: a `TimeSource` tells the time, it does not let it pass.
"""

from __future__ import annotations

import random
import time
from typing import Protocol


class TimeSource(Protocol):
    """What the core must be told about the world."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""

    def wall(self) -> float:
        """Seconds since the Unix epoch, to read HTTP dates with."""

    def random(self) -> float:
        """A number in `[0, 1)`, for jitter."""


class SystemTime:
    """The machine's own clock and dice."""

    # Bound once: the healthy path reads the clock twice a call.
    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)
    random = staticmethod(random.random)
