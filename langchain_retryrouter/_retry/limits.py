"""The rate limits of a call, and the limits that the attempts around it hold."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Final

from langchain_retryrouter.rate_limits import (
    LimitListener,
    RateLimit,
    RequestTooLargeError,
    Reservation,
    Size,
)


class CallLimits:
    """The rate limits of a call's routes, and what its next attempt has reserved.

    `size` returns the size of the request on the route at a position, and `reserved_at`
    is the position of the route on which something is reserved.
    """

    def __init__(
        self,
        routes: Sequence[Sequence[RateLimit | LimitListener]],
        size: Callable[[int], Size],
    ) -> None:
        self.routes = routes
        self.size = size
        self.reserved_at: int | None = None
        self._reserved: list[Reservation] = []

    def wait_for(self, position: int) -> float:
        """Seconds until the limits of a route are free; infinite if not known.

        Raises:
            RequestTooLargeError: It never has.
        """
        limits, size = self.routes[position], self.size(position)
        return max((limit.wait_for(size) for limit in limits), default=0.0)

    def try_reserve(self, position: int) -> list[Reservation] | None:
        """What an attempt on a route reserves, if its limits are free now."""
        reserved: list[Reservation] = []
        size = self.size(position)
        for limit in self.routes[position]:
            try:
                one = limit.try_reserve(size)
            except RequestTooLargeError:
                one = None
            if one is None:
                for other in reserved:
                    other.unsent()
                return None
            reserved.append(one)
        return reserved

    def keep(self, position: int, reserved: list[Reservation]) -> None:
        """Keep what the next attempt has reserved."""
        self.drop()
        self._reserved, self.reserved_at = reserved, position

    def drop(self) -> None:
        """Give back what the next attempt has reserved: it is not sent."""
        for one in self._reserved:
            one.unsent()
        self._reserved, self.reserved_at = [], None

    def take(self, position: int) -> list[Reservation]:
        """What the attempt on a route has reserved; it is sent now."""
        if self.reserved_at != position:  # A breaker has opened in the meantime.
            self.drop()
            size = self.size(position)
            self._reserved = [limit.take(size) for limit in self.routes[position]]
        reserved, self._reserved, self.reserved_at = self._reserved, [], None
        return reserved


# A call inside of an attempt of another call would wait for what that one holds.
HELD_LIMITS: Final[ContextVar[frozenset[object]]] = ContextVar(
    "held_limits", default=frozenset()
)
"""The rate and spend limits of the attempts around this code."""


def call_limits(
    routes: Sequence[Sequence[RateLimit | LimitListener]], size: Callable[[int], Size]
) -> CallLimits | None:
    """The rate limits of a call's routes, if there are any.

    Each counts once for an attempt, and all calls wait for them in the same order.
    """
    held = HELD_LIMITS.get()
    found = [
        [
            LimitListener(one) if one in held and isinstance(one, RateLimit) else one
            for one in sorted({*limits}, key=lambda limit: limit.number)
            if one not in held or one.adaptive
        ]
        for limits in routes
    ]
    return CallLimits(found, size) if any(found) else None


def limits_of(
    limit: RateLimit | LimitListener, size: Callable[[], Size]
) -> CallLimits | None:
    """The rate limits of a call to one endpoint; `size` is asked if it counts."""
    measured = functools.cache(size if limit.counts_tokens else Size)
    return call_limits([[limit]], lambda _: measured())
