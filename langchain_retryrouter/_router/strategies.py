"""The order in which the routes of a router are asked: four strategies.

A strategy knows its routes by their position in the router's list. Its order is a
permutation of all of them: the first is asked, and the call fails over to the others in
turn. Health is not its concern: circuit breakers keep sick routes out.

One strategy object is shared by a router and its copies, and by their threads. Time is
passed in; random numbers come from a seed, so that a run can be repeated.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

from langchain_retryrouter._retry.clock import new_rng

_MEMORY: Final = 60.0


class Strategy:
    """What all strategies have: a lock, random numbers, one object for all copies."""

    def __init__(
        self, count: int, weights: Sequence[float] | None, seed: int | None
    ) -> None:
        self._count = count
        self._weights = weights
        self._seed = seed
        self._random = new_rng(seed)
        self._lock = threading.Lock()

    def order(self, now: float) -> list[int]:
        """All routes, in the order in which they are to be asked."""
        raise NotImplementedError

    def measured(self, route: int, seconds: float, now: float) -> None:
        """Most strategies do not use measured times."""

    def __copy__(self) -> Self:
        """The same object: bound copies of a router share their strategy."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The same object: bound copies of a router share their strategy."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """The arguments it was made with: another process starts afresh."""
        return type(self), (self._count, self._weights, self._seed)


class _Priority(Strategy):
    """The order of the list: the first route, unless it fails."""

    def order(self, now: float) -> list[int]:
        del now
        return list(range(self._count))


class _RoundRobin(Strategy):
    """Each call begins one route further down the list."""

    _first = 0

    def order(self, now: float) -> list[int]:
        del now
        with self._lock:
            first = self._first
            self._first = (first + 1) % self._count
        return [*range(first, self._count), *range(first)]


class _Weighted(Strategy):
    """Random by weight, and then by weight again among the other routes.

    A route of weight 0 comes after all others. A draw without replacement is
    one sort by exponentially distributed keys (Efraimidis and Spirakis, "Weighted
    random sampling with a reservoir", 2006).
    """

    def order(self, now: float) -> list[int]:
        del now
        weights = self._weights or [1.0] * self._count
        with self._lock:
            chances = [self._random() for _ in weights]
        keys = [
            (False, -math.log1p(-random) / weight) if weight else (True, 0.0)
            for random, weight in zip(chances, weights, strict=True)
        ]
        return sorted(range(self._count), key=keys.__getitem__)


class _LeastLatency(Strategy):
    """The faster of two random routes first, the others by their estimates.

    The estimate is Finagle's "peak EWMA" of the time to the first token
    (`PeakEwma.scala` of twitter/finagle, which linkerd used as well): a slower answer
    raises it at once, a faster one lowers it gradually. It fades with time, so a route
    that is avoided because it was slow is asked again, the later the slower it was; a
    route without a measurement counts as the fastest, and so is tried. Two random
    choices (Mitzenmacher, "The power of two choices in randomized load balancing",
    2001) keep all callers from choosing the same route at once.

    The mean lifetime is a minute, where Finagle's default is ten seconds: an answer of
    a language model takes longer than most remote calls.
    """

    def __init__(
        self, count: int, weights: Sequence[float] | None, seed: int | None
    ) -> None:
        super().__init__(count, weights, seed)
        self._costs = [0.0] * self._count
        self._stamps = [0.0] * self._count

    def order(self, now: float) -> list[int]:
        with self._lock:
            costs = [
                cost * self._left(route, now) for route, cost in enumerate(self._costs)
            ]
            one, other = self._random(), self._random()
        ranked = sorted(range(self._count), key=costs.__getitem__)
        if self._count == 1:
            return ranked
        first = int(one * self._count)
        second = int(other * (self._count - 1))
        second += second >= first
        if costs[second] < costs[first]:
            first = second
        ranked.remove(first)
        return [first, *ranked]

    def measured(self, route: int, seconds: float, now: float) -> None:
        with self._lock:
            left = self._left(route, now)
            faded = self._costs[route] * left
            self._costs[route] = (
                seconds if seconds > faded else faded + seconds * (1.0 - left)
            )
            self._stamps[route] = max(now, self._stamps[route])

    def _left(self, route: int, now: float) -> float:
        """The share of a route's estimate that has not faded, from 0 to 1."""
        return math.exp(-max(0.0, now - self._stamps[route]) / _MEMORY)


STRATEGIES: Final[Mapping[str, type[Strategy]]] = {
    "priority": _Priority,
    "weighted": _Weighted,
    "least_latency": _LeastLatency,
    "round_robin": _RoundRobin,
}
"""The strategies, by the names that `RetryRouter.strategy` takes."""


def new_strategy(
    name: str,
    count: int,
    *,
    weights: Sequence[float] | None = None,
    seed: int | None = None,
) -> Strategy:
    """A new strategy.

    Args:
        name: One of `STRATEGIES`.
        count: How many routes there are.
        weights: A number of 0 or more for each route, for "weighted"; None for equal
            ones.
        seed: Makes the random strategies repeatable; None for random runs.

    Raises:
        ValueError: If the name is unknown, there is no route, or the weights are not
            usable, or are given to a strategy that does not use them.
    """
    if name not in STRATEGIES:
        known = ", ".join(repr(known) for known in STRATEGIES)
        msg = f"strategy must be one of {known}, not {name!r}"
        raise ValueError(msg)
    if count < 1:
        msg = f"a strategy needs one route or more, not {count}"
        raise ValueError(msg)
    if weights is not None:
        _check_weights(name, count, weights)
        weights = tuple(weights)
    return STRATEGIES[name](count, weights, seed)


def _check_weights(name: str, count: int, weights: Sequence[float]) -> None:
    if name != "weighted":
        msg = f"weights mean nothing to strategy {name!r}: use 'weighted', or none"
        raise ValueError(msg)
    if len(weights) != count:
        msg = f"weights must be one for each of {count} routes, not {len(weights)}"
        raise ValueError(msg)
    for weight in weights:
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 <= weight <= sys.float_info.max:
            msg = f"a weight must be a finite number, 0 or more, not {weight!r}"
            raise ValueError(msg)
    if not any(weights):
        msg = f"one weight at least must be above 0, not {list(weights)!r}"
        raise ValueError(msg)
