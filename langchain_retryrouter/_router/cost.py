"""What a call along several routes may cost at the most, before anything runs.

The numbers are bounds: no call goes beyond them, and few come near. What a model does
within one attempt is counted as far as it is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from langchain_retryrouter._retry.call_state import FailureAction
from langchain_retryrouter.failures import FailureKind, is_retryable

if TYPE_CHECKING:
    from langchain_retryrouter.policy import RetryPolicy


_MILLION: Final = 1_000_000
_STEPS: Final = {
    FailureAction.RETRY: "repeated, then the next route",
    FailureAction.FAILOVER: "the next route at once",
    FailureAction.RAISE: "the end of the call",
}


@dataclass(frozen=True, slots=True)
class RouteCost:
    """What one attempt on a route costs at the most.

    Attributes:
        name: What the table calls the route.
        requests: Requests that its model sends.
        waited: Seconds that its model waits between them.
        input_price: Money for a million tokens of a prompt; None if unknown.
        output_price: Money for a million tokens of an answer; None if unknown.
        taken: Retries of the model's own that were turned off.
        complaints: What the model does that could not be changed.
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
    """What a call costs at the most, on a route or in all.

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
    """What a call along routes costs at the most; `str()` is a table of it.

    Attributes:
        routes: Each route's share, in the router's order.
        requests: Requests sent in all.
        waited: Seconds waited between them in all.
        seconds: Seconds until the caller has an answer or an error; None if nothing
            bounds a single attempt.
        first_token: Seconds until a stream's first token or an error; None if nothing
            bounds it.
        money: For all requests, if each is charged in full; None if it is not known.
        after: What follows each kind of failure, in effect.
    """

    routes: tuple[Cost, ...]
    requests: int
    waited: float
    seconds: float | None
    first_token: float | None
    money: float | None
    after: Mapping[FailureKind, FailureAction]

    def __str__(self) -> str:
        """A table of the routes, the limits of time, and what follows which failure."""
        total = Cost("in all", self.requests, self.waited, self.money)
        return "\n".join(
            [
                *_table([*self.routes, total]),
                "",
                f"an answer or an error: {_bound(self.seconds)}",
                f"a stream's first token: {_bound(self.first_token)}",
                "",
                *self._steps(),
            ]
        )

    def _steps(self) -> Iterator[str]:
        for step, words in _STEPS.items():
            kinds = [kind.value for kind in FailureKind if self.after[kind] is step]
            if kinds:
                yield f"{words}: {', '.join(kinds)}"


def worst_case(
    policy: RetryPolicy,
    route_costs: Sequence[RouteCost],
    after: Mapping[FailureKind, FailureAction],
    *,
    is_buffered: bool = False,
    is_taken_up: bool = False,
    input_tokens: int | None = None,
    output_tokens: int | None = None,
) -> RoutingWorstCase:
    """What a call costs at the most.

    Args:
        policy: The numbers; `max_retries` is a route's.
        fares: The routes.
        after: What follows each kind of failure.
        is_held_back: Whether a stream is repeated after its first token too, which its
            caller then sees no sooner than the end.
        is_taken_up: Whether a stream that broke after its first token is taken up by
            another attempt, whatever broke it.
        input_tokens: Tokens of the prompt, for the money.
        output_tokens: Tokens of an answer at the most, for the money.

    Raises:
        ValueError: If only one of the token counts is given, or one is below 0.
    """
    tokens = _checked(input_tokens, output_tokens)
    steps = {kind: _effect(kind, step, policy) for kind, step in after.items()}
    repeats = FailureAction.RETRY in steps.values()
    attempts = policy.max_attempts if repeats or is_taken_up else 1
    between = policy.explain().waited if repeats else 0.0
    limit = policy.deadline
    costs = tuple(
        Cost(
            name=route_cost.name,
            requests=attempts * route_cost.requests,
            waited=_at_most(between + attempts * route_cost.waited, limit),
            money=_money(route_cost, attempts, tokens),
            remark=_remark(route_cost),
        )
        for route_cost in route_costs
    )
    waited = _at_most(sum(cost.waited for cost in costs), limit)
    sums = [cost.money for cost in costs if cost.money is not None]
    silence = policy.first_token_timeout
    return RoutingWorstCase(
        routes=costs,
        requests=sum(cost.requests for cost in costs),
        waited=waited,
        seconds=limit,
        first_token=(
            limit
            if silence is None or is_buffered
            else _at_most(
                attempts * len(route_costs) * silence + between * len(route_costs),
                limit,
            )
        ),
        money=sum(sums) if len(sums) == len(costs) else None,
        after=steps,
    )


def _checked(
    input_tokens: int | None, output_tokens: int | None
) -> tuple[int, int] | None:
    if input_tokens is None and output_tokens is None:
        return None
    for name, value in (
        ("input_tokens", input_tokens),
        ("output_tokens", output_tokens),
    ):
        if value is None or value < 0:
            msg = (
                f"{name} must be a number of tokens, 0 or more, not {value!r}; money is"
                " told where both are given"
            )
            raise ValueError(msg)
    return input_tokens or 0, output_tokens or 0


def _effect(
    kind: FailureKind, step: FailureAction, policy: RetryPolicy
) -> FailureAction:
    """What a row comes to: what cannot be repeated is left for the next route."""
    can_repeat = policy.max_retries > 0 and is_retryable(kind)
    return (
        FailureAction.FAILOVER
        if step is FailureAction.RETRY and not can_repeat
        else step
    )


def _money(
    route_cost: RouteCost, attempts: int, tokens: tuple[int, int] | None
) -> float | None:
    if (
        tokens is None
        or route_cost.input_price is None
        or route_cost.output_price is None
    ):
        return None
    each = tokens[0] * route_cost.input_price + tokens[1] * route_cost.output_price
    return attempts * route_cost.requests * each / _MILLION


def _remark(route_cost: RouteCost) -> str:
    said = (
        [f"{route_cost.disabled_retries} turned off"]
        if route_cost.disabled_retries
        else []
    )
    return "; ".join([*said, *route_cost.warnings])


def _at_most(seconds: float, limit: float | None) -> float:
    return seconds if limit is None else min(seconds, limit)


def _bound(seconds: float | None) -> str:
    return "no bound" if seconds is None else f"within {seconds:.1f} s"


def _table(costs: Sequence[Cost]) -> Iterator[str]:
    has_money = any(cost.money is not None for cost in costs)
    rows = [["route", "requests", "waited", *(["money"] if has_money else []), ""]]
    for cost in costs:
        money = "?" if cost.money is None else f"{cost.money:.4f}"
        numbers = [str(cost.requests), f"{cost.waited:.1f} s"]
        rows.append([cost.name, *numbers, *([money] if has_money else []), cost.remark])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        name, *numbers, remark = row
        cells = [name.ljust(widths[0])]
        cells += [
            cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True)
        ]
        yield "  ".join([*cells, remark]).rstrip()
