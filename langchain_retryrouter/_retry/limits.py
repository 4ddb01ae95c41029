"""The rate limits of a call, and the limits that the attempts around it hold."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Final

from langchain_retryrouter.rate_limits import (
    RateLimit,
    RequestTooLargeError,
    Reservation,
    Size,
)


class CallLimits:
    """The rate limits of a call's routes, and what its next attempt has reserved.

    `routes` has the limits of each route, `heard` those that only learn from the
    headers of its answers, and `reserved_at` is the position of the route on which
    something is reserved.
    """

    def __init__(
        self,
        routes: Sequence[Sequence[RateLimit]],
        heard: Sequence[Sequence[RateLimit]],
        size: Callable[[int], Size],
    ) -> None:
        self.routes = routes
        self.reserved_at: int | None = None
        self._heard = heard
        self._size = functools.cache(size)
        self._reserved: list[Reservation] = []

    def size(self, position: int) -> Size:
        """The size of the request on the route at a position, as far as it counts."""
        counts = any(limit.counts_tokens for limit in self.routes[position])
        return self._size(position) if counts else Size()

    def wait_for(self, position: int) -> float:
        """Seconds until the limits of a route are free; infinite if not known."""
        limits, size = self.routes[position], self.size(position)
        return max((limit.wait_for(size) for limit in limits), default=0.0)

    def waiting(self, position: int) -> int:
        """How many requests wait for the limits of a route."""
        return max((limit.waiting for limit in self.routes[position]), default=0)

    def try_reserve(self, position: int) -> bool:
        """Reserve what an attempt on a route needs, if its limits are free now."""
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
                return False
            reserved.append(one)
        self.keep(position, reserved)
        return True

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
        return reserved + [limit.listen() for limit in self._heard[position]]


# A call inside of an attempt of another call would wait for what that one holds.
HELD_LIMITS: Final[ContextVar[frozenset[object]]] = ContextVar(
    "held_limits", default=frozenset()
)
"""The rate and spend limits of the attempts around this code."""


def call_limits(
    routes: Sequence[Sequence[RateLimit]], size: Callable[[int], Size]
) -> CallLimits | None:
    """The rate limits of a call's routes, if there are any.

    Each counts once for an attempt, and all calls wait for them in the same order.
    `size` returns the size of the request on the route at a position.
    """
    if not any(routes):
        return None
    held = HELD_LIMITS.get()
    asked = [
        sorted({*limits} - held, key=lambda limit: limit.number) for limits in routes
    ]
    # The attempt around this code has waited for them, and does not see the headers.
    heard = [[one for one in {*limits} & held if one.adaptive] for limits in routes]
    return CallLimits(asked, heard, size) if any(asked + heard) else None
