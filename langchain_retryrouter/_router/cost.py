"""What a call along several routes may cost at most, before anything is sent.

The numbers are bounds: no call goes beyond them, and few come near. Retries of a
model's own are counted as far as they are known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from langchain_retryrouter.failures import FailureAction, FailureKind, is_retryable
from langchain_retryrouter.policy import RetryPolicy

_EFFECTS: Final = {
    FailureAction.RETRY: "repeated, then the next route",
    FailureAction.FAILOVER: "the next route at once",
    FailureAction.RAISE: "the end of the call",
}


@dataclass(frozen=True, slots=True)
class RouteCost:
    """What one attempt on a route costs at most.

    Attributes:
        name: What the table calls the route.
        requests: Requests that its model sends.
        waited: Seconds that its model waits between them.
        input_price: Money for a million tokens of a prompt; None if unknown.
        output_price: Money for a million tokens of an answer; None if unknown.
        disabled_retries: Retries of the model's own that were switched off.
        warnings: What the model does that could not be changed.
    """

    name: str
    requests: int = 1
    waited: float = 0.0
    input_price: float | None = None
    output_price: float | None = None
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
        money: For all requests, if each is charged in full; None if it is not known.
        after: What follows each kind of failure, in effect.
    """

    routes: tuple[Cost, ...]
    requests: int
    waited: float
    seconds: float | None
    first_token: float | None
    silent_route: float | None
    money: float | None
    after: Mapping[FailureKind, FailureAction]

    def __str__(self) -> str:
        """A table of the routes, the time limits, and what follows which failure."""
        total = Cost("in all", self.requests, self.waited, self.money)
        lines = [*_table([*self.routes, total]), ""]
        for what, seconds in (
            ("an answer or an error", self.seconds),
            ("a stream's first token", self.first_token),
            ("a silent route is left, without a stream", self.silent_route),
        ):
            limit = "no limit" if seconds is None else f"within {seconds:.1f} s"
            lines.append(f"{what}: {limit}")
        lines.append("")
        for action, effect in _EFFECTS.items():
            kinds = [kind.value for kind in FailureKind if self.after[kind] is action]
            if kinds:
                lines.append(f"{effect}: {', '.join(kinds)}")
        return "\n".join(lines)


def worst_case(
    policy: RetryPolicy,
    route_costs: Sequence[RouteCost],
    after: Mapping[FailureKind, FailureAction],
    *,
    is_buffered: bool = False,
    is_continued: bool = False,
    input_tokens: int | None = None,
    output_tokens: int | None = None,
) -> RoutingWorstCase:
    """What a call costs at most.

    Args:
        policy: The numbers; `max_retries` is a route's.
        route_costs: The routes.
        after: What follows each kind of failure.
        is_buffered: Whether a stream is handed over only at its end.
        is_continued: Whether a stream that broke after its first token is continued by
            another attempt, whatever broke it.
        input_tokens: Tokens of the prompt, for the money.
        output_tokens: Tokens of an answer at most, for the money.

    Raises:
        ValueError: If only one of the token counts is given, or one is below 0.
    """
    tokens = {"input_tokens": input_tokens, "output_tokens": output_tokens}
    for name, value in (
        tokens.items() if any(t is not None for t in tokens.values()) else ()
    ):
        if value is None or value < 0:
            msg = (
                f"{name} must be a number of tokens, 0 or more, not {value!r}; the"
                " money needs both counts"
            )
            raise ValueError(msg)
    effects = {
        kind: FailureAction.FAILOVER
        if action is FailureAction.RETRY
        and not (policy.max_retries and is_retryable(kind))
        else action
        for kind, action in after.items()
    }
    repeats = FailureAction.RETRY in effects.values()
    attempts = policy.max_attempts if repeats or is_continued else 1
    between = policy.explain().waited if repeats else 0.0

    def limited(seconds: float) -> float:
        return seconds if policy.deadline is None else min(seconds, policy.deadline)

    def money(cost: RouteCost) -> float | None:
        prices = (cost.input_price, cost.output_price)
        if input_tokens is None or output_tokens is None or None in prices:
            return None
        tokens = zip((input_tokens, output_tokens), prices, strict=True)
        each = sum(count * (price or 0.0) for count, price in tokens)
        return attempts * cost.requests * each / 1_000_000

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
    first_token = policy.deadline
    if policy.first_token_timeout is not None and not is_buffered:
        each = attempts * policy.first_token_timeout + between
        first_token = limited(len(costs) * each)
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
        money=sum(sums) if len(sums) == len(costs) else None,
        after=effects,
    )


def _table(costs: Sequence[Cost]) -> Iterator[str]:
    has_money = any(cost.money is not None for cost in costs)
    rows = [["route", "requests", "waited", *(["money"] if has_money else []), ""]]
    for cost in costs:
        money = "?" if cost.money is None else f"{cost.money:.4f}"
        numbers = [str(cost.requests), f"{cost.waited:.1f} s"]
        rows.append([cost.name, *numbers, *([money] if has_money else []), cost.remark])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *numbers, remark in rows:
        cells = [name.ljust(widths[0])]
        cells += [
            cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True)
        ]
        yield "  ".join([*cells, remark]).rstrip()
