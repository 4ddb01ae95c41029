"""What is known of a call before anything is sent: its routes' order and worst cost.

A strategy knows its routes by their position in the router's list. Its order is a
permutation of all of them: the first is asked, and the call fails over to the others in
turn. Health is not its concern: circuit breakers keep sick routes out. `RouteOrder`
puts tiers and conversations above the strategy. Time is passed in; random numbers come
from a seed, so that a run can be repeated.

Costs are bounds: no call goes beyond them, and few come near. Retries of a model's own
are counted as far as they are known.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from langchain_retryrouter._prices import Prices
from langchain_retryrouter._retry.clock import new_rng
from langchain_retryrouter._shared import OneForAll, is_number, watch_forks
from langchain_retryrouter.failures import FailureAction, FailureKind, is_retryable
from langchain_retryrouter.policy import RetryPolicy

_MEMORY: Final = 60.0
# As long as providers keep a prompt in their caches at most, unless they are paid for.
_MOVED_FOR: Final = 3_600.0
_MOST_MOVED: Final = 10_000
_EFFECTS: Final = {
    FailureAction.RETRY: "repeated, then the next route",
    FailureAction.FAILOVER: "the next route at once",
    FailureAction.RAISE: "the end of the call",
}


# --- order ----------------------------------------------------------------------------


class Strategy(OneForAll):
    """The order of the list: the first route, unless it fails."""

    def __init__(
        self, count: int, weights: Sequence[float] | None, seed: int | None
    ) -> None:
        self._count = count
        self._weights = weights
        self._seed = seed
        self._random = new_rng(seed)
        self._lock = threading.Lock()
        watch_forks(self)

    def order(self, now: float) -> list[int]:
        """All routes, in the order in which they are to be asked at the time `now`."""
        del now
        return list(range(self._count))

    def forked(self) -> None:
        """This is the child of a fork: a thread of the parent may have had the lock."""
        self._lock = threading.Lock()

    def measured(self, route: int, seconds: float, now: float) -> None:
        """Most strategies do not use measured times."""

    def __reduce__(self) -> tuple[Any, ...]:
        """The arguments it was made with: another process starts afresh."""
        return type(self), (self._count, self._weights, self._seed)


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
    "priority": Strategy,
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
    """A new strategy for so many routes; `weights` are for "weighted" alone.

    Raises:
        ValueError: All weights are 0.
    """
    if weights is not None and not any(weights):
        msg = f"one weight at least must be above 0, not {list(weights)!r}"
        raise ValueError(msg)
    return STRATEGIES[name](count, weights, seed)


class _Balanced(Strategy):
    """By turns according to weight; within a tier of "priority" or "round_robin".

    Smooth weighted round robin (nginx's, `ngx_http_upstream_round_robin.c`): each
    available route gains its weight, the richest leads, and pays what all have gained.
    The others follow in a draw by weight, so that the load of one that fails is spread.
    """

    def __init__(
        self, count: int, weights: Sequence[float] | None, seed: int | None
    ) -> None:
        super().__init__(count, weights, seed)
        self._draw = _Weighted(count, weights, seed)
        # Processes that start together do not begin with the same route.
        self._gains = [self._random() * weight for weight in weights or [1.0] * count]

    def lead(self, routes: Sequence[int]) -> int:
        """The route that leads among those given."""
        weights = self._weights or [1.0] * self._count
        with self._lock:
            for route in routes:
                self._gains[route] += weights[route]
            leader = max(routes, key=self._gains.__getitem__)
            self._gains[leader] -= sum(weights[route] for route in routes)
        return leader

    def order(self, now: float) -> list[int]:
        return self._draw.order(now)


class RoutePlace(NamedTuple):
    """What decides about the place of a route in the order of a call.

    `tier` is None for a route that has its place in the list, and `group` is what it
    has in common with its alternatives, if it has any.
    """

    name: str
    tier: int | None
    group: Hashable
    weight: float


class RouteOrder(OneForAll):
    """The order of a call: by tiers, and within them by conversation or by strategy.

    Args:
        places: The routes; a conversation is hashed with their names.
        strategy: A strategy's name.
        seed: Seed of the random strategies.
        is_list: Whether routes without a tier or group are asked in the list's order.
        by_conversation: Whether conversations are kept on their routes.
    """

    def __init__(
        self,
        places: Sequence[RoutePlace],
        strategy: str,
        *,
        seed: int | None = None,
        by_conversation: bool = False,
        is_list: bool = True,
    ) -> None:
        self._made = functools.partial(
            RouteOrder,
            places,
            strategy,
            seed=seed,
            by_conversation=by_conversation,
            is_list=is_list,
        )
        names, tiers, groups, weights = zip(*places, strict=True)
        self._names, self._groups, self._weights = names, groups, weights
        has_groups = any(group is not None for group in groups)
        self._is_plain = not has_groups and (is_list or not by_conversation)
        given = weights if strategy == "weighted" else None
        self._shares = [1.0] * len(names) if strategy == "round_robin" else weights
        if strategy in {"priority", "round_robin"} and has_groups:
            self.strategy: Strategy = _Balanced(len(names), self._shares, seed)
        else:
            self.strategy = new_strategy(strategy, len(names), weights=given, seed=seed)
        self._ranks = _ranks(tiers, groups, is_list=is_list)
        self._moved: dict[bytes, tuple[int, float]] = {}
        self._lock = threading.Lock()
        watch_forks(self)

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
            if route == home:
                return
            self._moved[conversation] = (route, now + _MOVED_FOR)
            while len(self._moved) > _MOST_MOVED:
                del self._moved[next(iter(self._moved))]

    def _home(
        self, now: float, is_open: Callable[[int], bool], conversation: bytes | None
    ) -> list[int]:
        if self._is_plain:
            return self.strategy.order(now)
        if conversation is not None:
            order = rendezvous(conversation, self._names, self._weights)
        else:
            order = self.strategy.order(now)
        order.sort(key=self._ranks.__getitem__)
        order = _together(order, self._groups)
        if conversation is None and isinstance(self.strategy, _Balanced):
            able = [r for r in order if self._shares[r] and not is_open(r)]
            first = [r for r in able if self._ranks[r] == self._ranks[able[0]]]
            if len(first) > 1:
                leader = self.strategy.lead(first)
                # Before its alternatives, of which the first may be held.
                rank = self._ranks[leader]
                place = next(p for p, r in enumerate(order) if self._ranks[r] == rank)
                order.remove(leader)
                order = _together(
                    [*order[:place], leader, *order[place:]], self._groups
                )
        return order

    def forked(self) -> None:
        """This is the child of a fork: a thread of the parent may have had the lock."""
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """The arguments it was made with: another process starts afresh."""
        return self._made, ()


def rendezvous(key: bytes, names: Sequence[str], weights: Sequence[float]) -> list[int]:
    """The routes in an order that is the same for a key in every process.

    Weighted rendezvous hashing (Schindelhauer and Schomaker, "Weighted distributed hash
    tables", 2005): a route leads for a share of the keys that is its weight's. A
    weight that is raised only moves keys to that route. Weight 0 comes after all.
    """
    scores = []
    for name, weight in zip(names, weights, strict=True):
        digest = blake2b(name.encode(), key=key, digest_size=8).digest()
        chance = (int.from_bytes(digest) + 0.5) / 2**64
        scores.append((not weight, -math.log(chance) / (weight or 1.0)))
    return sorted(range(len(names)), key=scores.__getitem__)


def _ranks(
    tiers: Sequence[int | None], groups: Sequence[Hashable], *, is_list: bool
) -> list[tuple[float, int, int]]:
    """What the routes are sorted by before their strategy.

    A route without a tier comes after all tiers that the list names before it.
    """
    ranks: list[tuple[float, int, int]] = []
    first_of: dict[Hashable, int] = {}
    highest = -math.inf
    for index, (tier, group) in enumerate(zip(tiers, groups, strict=True)):
        if tier is not None:
            highest = max(highest, tier)
            ranks.append((tier, 0, 0))
            continue
        place = index if group is None else first_of.setdefault(group, index)
        ranks.append((highest, 1, place if is_list else 0))
    return ranks


def _together(order: list[int], groups: Sequence[Hashable]) -> list[int]:
    """The order in which each route is followed by its alternatives."""
    first_of: dict[Hashable, int] = {}
    for place, route in enumerate(order):
        if groups[route] is not None:
            first_of.setdefault(groups[route], place)
    places = {
        route: first_of.get(groups[route], place) for place, route in enumerate(order)
    }
    return sorted(order, key=places.__getitem__)


# --- cost -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RouteCost:
    """What one attempt on a route costs at most.

    `waited` are seconds between its requests, `prices` what its tokens cost (None if
    unknown), `disabled_retries` are the model's own that were switched off, and
    `warnings` say what it does that could not be changed.
    """

    name: str
    requests: int = 1
    waited: float = 0.0
    prices: Prices | None = None
    disabled_retries: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cost:
    """What a call costs at most, on a route or in all.

    Attributes:
        name: The route.
        requests: Requests sent.
        waited: Seconds waited between them.
        money: For these requests, in the prices' currency; None if it is not known.
        remark: What became of the retries of the route's model.
    """

    name: str
    requests: int
    waited: float
    money: float | None = None
    remark: str = ""


@dataclass(frozen=True, slots=True)
class RoutingWorstCase:
    """What a call along routes costs at most; `str()` is a table of it.

    Attributes:
        routes: Each route's share, in the router's order.
        requests: Requests sent in all.
        waited: Seconds waited between them in all.
        seconds: Seconds until the caller has an answer or an error; None if nothing
            limits a single attempt.
        first_token: Seconds until a stream's first token or an error; None if nothing
            limits it.
        silent_route: Seconds that the first route costs a call without a stream if it
            accepts the request and never answers; None if nothing limits it.
        silent_stream: Seconds of silence after a stream's first token until it is left;
            None if nothing limits it.
        money: For all requests, if each is charged in full, or `max_cost` if that is
            less; None if it is not known.
        limits: The spend limits, and what is left of each.
        after: What follows each kind of failure, in effect.
    """

    routes: tuple[Cost, ...]
    requests: int
    waited: float
    seconds: float | None
    first_token: float | None
    silent_route: float | None
    silent_stream: float | None
    money: float | None
    after: Mapping[FailureKind, FailureAction]
    limits: tuple[str, ...] = ()

    def __str__(self) -> str:
        """A table of the routes, the time limits, and what follows which failure."""
        total = Cost("in all", self.requests, self.waited, self.money)
        has_money = any(cost.money is not None for cost in (*self.routes, total))
        rows = [["route", "requests", "waited", *(["money"] if has_money else []), ""]]
        for cost in (*self.routes, total):
            money = "?" if cost.money is None else f"{cost.money:.4f}"
            numbers = [str(cost.requests), f"{cost.waited:.1f} s"]
            numbers += [money] if has_money else []
            rows.append([cost.name, *numbers, cost.remark])
        first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for name, *numbers, remark in rows:
            cells = [n.rjust(w) for n, w in zip(numbers, others[:-1], strict=True)]
            lines.append("  ".join([name.ljust(first), *cells, remark]).rstrip())
        lines.append("")
        for what, seconds in (
            ("an answer or an error", self.seconds),
            ("a stream's first token", self.first_token),
            ("a silent route is left, without a stream", self.silent_route),
            ("a stream that falls silent is left", self.silent_stream),
        ):
            limit = "no limit" if seconds is None else f"within {seconds:.1f} s"
            lines.append(f"{what}: {limit}")
        lines += [*self.limits, ""]
        for action, effect in _EFFECTS.items():
            kinds = [
                kind.value for kind in FailureKind if self.after.get(kind) is action
            ]
            if kinds:
                lines.append(f"{effect}: {', '.join(kinds)}")
        return "\n".join(lines)


def check_counts(**counts: int | None) -> None:
    """Refuse counts of tokens that are no numbers, or not all given.

    Raises:
        ValueError: One is.
    """
    is_given = any(value is not None for value in counts.values())
    for name, value in counts.items() if is_given else ():
        if not is_number(value):
            msg = (
                f"{name} must be a number of tokens, 0 or more, not {value!r}; the"
                " money needs both counts"
            )
            raise ValueError(msg)


def worst_case(
    policy: RetryPolicy,
    route_costs: Sequence[RouteCost],
    after: Mapping[FailureKind, FailureAction],
    *,
    is_buffered: bool = False,
    is_continued: bool = False,
    input_tokens: int | None = None,
    output_tokens: int | None = None,
    max_cost: float | None = None,
) -> RoutingWorstCase:
    """What a call costs at most; see `RetryRouter.explain`."""
    tokens = {"input_tokens": input_tokens, "output_tokens": output_tokens}
    effects = {
        kind: FailureAction.FAILOVER
        if action is FailureAction.RETRY
        and not (policy.max_retries and is_retryable(kind))
        else action
        for kind, action in after.items()
    }
    # A route that was left is asked again before the call gives up.
    repeats = any(
        is_retryable(kind) and action is not FailureAction.RAISE
        for kind, action in effects.items()
    )
    attempts = policy.max_attempts if repeats or is_continued else 1
    between = policy.explain().waited if repeats else 0.0

    def limited(seconds: float) -> float:
        return seconds if policy.deadline is None else min(seconds, policy.deadline)

    def money(cost: RouteCost) -> float | None:
        if input_tokens is None or output_tokens is None or cost.prices is None:
            return None
        each = cost.prices.cost(tokens)
        return None if each is None else attempts * cost.requests * each

    costs = tuple(
        Cost(
            name=cost.name,
            requests=attempts * cost.requests,
            waited=limited(between + attempts * cost.waited),
            money=money(cost),
            remark="; ".join(
                [
                    *([f"{d} switched off"] if (d := cost.disabled_retries) else []),
                    *cost.warnings,
                ]
            ),
        )
        for cost in route_costs
    )
    sums = [cost.money for cost in costs if cost.money is not None]
    total = sum(sums) if len(sums) == len(costs) else None
    if max_cost is not None:
        total = max_cost if total is None else min(total, max_cost)
    first_token = policy.deadline
    if policy.first_token_timeout is not None and not is_buffered:
        limit = policy.first_token_timeout
        first_token = limited(sum(attempts * limit + between for cost in route_costs))
    silent_route = policy.attempt_timeout
    if silent_route is not None:
        silent_route = limited(silent_route)
    elif policy.deadline is not None:
        silent_route = policy.deadline / max(1, len(costs))
    return RoutingWorstCase(
        routes=costs,
        requests=sum(cost.requests for cost in costs),
        waited=limited(sum(cost.waited for cost in costs)),
        seconds=policy.deadline,
        first_token=first_token,
        silent_route=silent_route,
        silent_stream=(
            policy.deadline
            if policy.stall_timeout is None
            else limited(policy.stall_timeout)
        ),
        money=total,
        after=effects,
    )
