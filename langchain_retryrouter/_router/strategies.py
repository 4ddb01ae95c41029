"""The order in which a call asks its routes.

A strategy knows its routes by their position in the router's list. Its order is a
permutation of all of them: the first is asked, and the call fails over to the others in
turn. Health is not its concern: circuit breakers keep sick routes out. `RouteOrder`
puts tiers and conversations above the strategy. Time is passed in; random numbers come
from a seed, so that a run can be repeated.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

from langchain_retryrouter._retry.clock import new_rng
from langchain_retryrouter._router.route import Route
from langchain_retryrouter._shared import Locked, OneForAll, require

_MEMORY: Final = 60.0
_FAILED: Final = 2.0  # Times the slowest of the routes' latest answers.
# As long as providers keep a prompt in their caches at most, unless they are paid for.
_MOVED_FOR: Final = 3_600.0
_MOST_MOVED: Final = 10_000


class Strategy(Locked):
    """The order of the list: the first route, unless it fails."""

    def __init__(self, weights: Sequence[float], seed: int | None = None) -> None:
        """For as many routes as there are weights."""
        super().__init__()
        self._weights, self._count = weights, len(weights)
        self._random = new_rng(seed)

    def order(self, now: float) -> list[int]:
        """All routes, in the order in which they are to be asked at the time `now`."""
        del now
        return list(range(self._count))

    def measured(
        self, route: int, seconds: float, now: float, *, has_failed: bool = False
    ) -> None:
        """Most strategies do not use measured times."""


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
        with self._lock:
            chances = [self._random() for _ in self._weights]
        keys = [
            (False, -math.log1p(-random) / weight) if weight else (True, 0.0)
            for random, weight in zip(chances, self._weights, strict=True)
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

    def __init__(self, weights: Sequence[float], seed: int | None = None) -> None:
        super().__init__(weights, seed)
        self._costs = [0.0] * self._count
        self._stamps = [0.0] * self._count
        self._answered = [0.0] * self._count  # Seconds of the latest answers.

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

    def measured(
        self, route: int, seconds: float, now: float, *, has_failed: bool = False
    ) -> None:
        with self._lock:
            left = self._left(route, now)
            if has_failed:
                # A quick failure is not a quick answer: it counts as slow. Not by the
                # estimates: those of routes that fail in turn would double each time.
                seconds = max(seconds, _FAILED * max(self._answered))
            else:
                self._answered[route] = seconds
            faded = self._costs[route] * left
            self._costs[route] = (
                seconds if seconds > faded else faded + seconds * (1.0 - left)
            )
            self._stamps[route] = max(now, self._stamps[route])

    def _left(self, route: int, now: float) -> float:
        """The share of a route's estimate that has not faded, from 0 to 1."""
        return math.exp(-max(0.0, now - self._stamps[route]) / _MEMORY)


class _Balanced(_Weighted):
    """By turns according to weight; within a tier of "priority" or "round_robin".

    Smooth weighted round robin (nginx's, `ngx_http_upstream_round_robin.c`): each
    available route gains its weight, the richest leads, and pays what all have gained.
    The others follow in a draw by weight, so that the load of one that fails is spread.
    """

    @functools.cached_property
    def _gains(self) -> list[float]:
        # Processes that start together do not begin with the same route.
        return [self._random() * weight for weight in self._weights]

    def lead(self, routes: Sequence[int]) -> int:
        """The route that leads among those given."""
        with self._lock:
            for route in routes:
                self._gains[route] += self._weights[route]
            leader = max(routes, key=self._gains.__getitem__)
            self._gains[leader] -= sum(self._weights[route] for route in routes)
        return leader


STRATEGIES: Final[Mapping[str, type[Strategy]]] = {
    "priority": Strategy,
    "weighted": _Weighted,
    "least_latency": _LeastLatency,
    "round_robin": _RoundRobin,
}
"""The strategies, by the names that `RetryRouter.strategy` takes."""


class RouteOrder(OneForAll, Locked):
    """The order of a call: by tiers, and within them by conversation or by strategy."""

    def __init__(
        self,
        routes: Sequence[Route],
        strategy: str,
        *,
        seed: int | None,
        is_list: bool,
    ) -> None:
        """With `is_list`, routes without a tier or group keep the order of the list."""
        super().__init__()
        self._made = functools.partial(
            RouteOrder, routes, strategy, seed=seed, is_list=is_list
        )
        self._routes = routes
        weights = [route.weight for route in routes]
        is_met = any(weights) or strategy != "weighted"
        require("one weight at least", weights, "above 0", is_met=is_met)
        has_groups = any(route.group is not None for route in routes)
        is_fair = strategy == "round_robin"
        self._shares = [1.0] * len(routes) if is_fair else weights
        balances = has_groups and strategy in {"priority", "round_robin"}
        kind = _Balanced if balances else STRATEGIES[strategy]
        self.strategy = kind(self._shares, seed)
        # What the routes are sorted by before their strategy. A route without a tier
        # comes after all tiers that the list names before it.
        self._ranks: list[tuple[float, int, int]] = []
        # A route without a group is one of its own.
        self._groups: list[Hashable] = [
            object() if route.group is None else route.group for route in routes
        ]
        highest = -math.inf
        for route, group in zip(routes, self._groups, strict=True):
            if route.tier is not None:
                highest = max(highest, route.tier)
                self._ranks.append((route.tier, 0, 0))
            else:
                at = self._groups.index(group) if is_list else 0
                self._ranks.append((highest, 1, at))
        self._moved: dict[bytes, tuple[int, float]] = {}

    def order(
        self, now: float, is_open: Callable[[int], bool], conversation: bytes | None
    ) -> list[int]:
        """All routes in the order in which this call asks them."""
        order = self._home(now, is_open, conversation)
        if conversation is not None and self._moved:
            route, until = self._moved.get(conversation, (order[0], math.inf))
            if now < until:
                order.remove(route)
                order.insert(0, route)
        return order

    def served(self, conversation: bytes, route: int, now: float) -> None:
        """Remember the route of a conversation that is not on its first one."""
        home = self._home(now, lambda _: False, conversation)[0]
        with self._lock:
            self._moved.pop(conversation, None)
            if route != home:
                self._moved[conversation] = (route, now + _MOVED_FOR)
            if len(self._moved) > _MOST_MOVED:
                del self._moved[next(iter(self._moved))]

    def _home(
        self, now: float, is_open: Callable[[int], bool], conversation: bytes | None
    ) -> list[int]:
        ranks, strategy = self._ranks, self.strategy
        if conversation is None:
            order = strategy.order(now)
        else:
            order = self._pinned(conversation)
        order.sort(key=ranks.__getitem__)
        if conversation is None and isinstance(strategy, _Balanced):
            able = [r for r in order if self._shares[r] and not is_open(r)]
            first = [r for r in able if ranks[r] == ranks[able[0]]]
            if len(first) > 1:
                leader = strategy.lead(first)
                # Before its alternatives, of which the first may be held.
                at = next(p for p, r in enumerate(order) if ranks[r] == ranks[leader])
                order.remove(leader)
                order.insert(at, leader)
        # Each route is followed by its alternatives.
        first_of: dict[Hashable, int] = {}
        for at, route in enumerate(order):
            first_of.setdefault(self._groups[route], at)
        return sorted(order, key=lambda route: first_of[self._groups[route]])

    def _pinned(self, conversation: bytes) -> list[int]:
        """The order that a conversation has in every process.

        Weighted rendezvous hashing (Schindelhauer and Schomaker, "Weighted distributed
        hash tables", 2005): a route leads for a share of the conversations that is its
        weight's. A weight that is raised only moves conversations to that route. Weight
        0 comes after all.
        """
        scores = []
        for route in self._routes:
            name, weight = route.name.encode(), route.weight
            digest = blake2b(name, key=conversation, digest_size=8).digest()
            chance = (int.from_bytes(digest) + 0.5) / 2**64
            scores.append((not weight, -math.log(chance) / (weight or 1.0)))
        return sorted(range(len(scores)), key=scores.__getitem__)

    def __reduce__(self) -> tuple[Any, ...]:
        """The arguments it was made with: another process starts afresh."""
        return self._made, ()
