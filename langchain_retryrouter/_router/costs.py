"""What the attempts of one call cost, and may cost.

`CallCosts` prices the lines of an attempt log. If the call has a `max_cost`, or its
routes a `SpendLimit`, it also reserves an estimate before each attempt, and settles it
by what the attempt has cost.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from langchain_core.messages.utils import count_tokens_approximately

from langchain_retryrouter._prices import FixedPrices, cost_of_attempt, tokens_of
from langchain_retryrouter._retry.call_log import AttemptRecord, requests_in
from langchain_retryrouter._retry.limits import HELD_LIMITS
from langchain_retryrouter._router.outcomes import RouteAttempt
from langchain_retryrouter._router.preflight import ModelRequest
from langchain_retryrouter._router.route import Route
from langchain_retryrouter._shared import is_positive, require
from langchain_retryrouter.circuit_breaker import Refusal
from langchain_retryrouter.errors import SpendLimitError
from langchain_retryrouter.spend_limits import Price, SpendLimit, SpendReservation

_MOST_OUTPUT: Final = 4096  # Tokens of an answer at most, where nothing says it.
_LEARNING: Final = 0.2  # The weight of the last answer in the mean.
_ROUNDING: Final = 1e-12
_MARGIN: Final = 3  # Tokens of a prompt at most, as a multiple of the estimate.


OutputSizes: TypeAlias = dict[str, tuple[float, int]]
"""By route: how many tokens its answers have, in the mean and at most."""


class CallCosts:
    """The money of one call."""

    def __init__(
        self,
        routes: Sequence[Route],
        request: ModelRequest,
        attempts: Mapping[int, RouteAttempt],
        outputs: OutputSizes,
        max_cost: float | None,
        limit: SpendLimit | None,
    ) -> None:
        """Before the first of `attempts`; `limit` is that of all routes together.

        A `max_cost` in the options of the call is taken out of them.

        Raises:
            ValueError: `max_cost` makes no sense, or a route has no known price.
        """
        asked = request.options.pop("max_cost", None)
        if asked is not None:
            max_cost = asked
            finite = "a finite number, more than 0"
            require("max_cost", asked, finite, is_met=is_positive(asked))
            for route in routes:
                if route.prices is None:
                    raise ValueError(no_price(route))
        self._routes = routes
        self._request = request
        self._attempts = attempts
        self._outputs = outputs
        self._max_cost = max_cost
        held = HELD_LIMITS.get()
        # Each once, and none that pays for the attempt that this call is a part of.
        self.limits = [
            [
                one
                for one in dict.fromkeys((limit, route.spend_limit))
                if one is not None and one not in held
            ]
            for route in routes
        ]
        # Whether an attempt may be refused since it is too expensive.
        self.is_limited = max_cost is not None or any(self.limits)
        # By the number of the attempt: its estimate, then its cost.
        self._costs: dict[int, float] = {}
        self._reserved: dict[int, list[SpendReservation]] = {}
        # What requests may have cost that an attempt had to send again.
        self._lost: dict[int, float] = {}

    def price(self, record: AttemptRecord) -> tuple[float, bool] | None:
        """What an attempt cost, and whether that is an estimate; None if not known."""
        if record.number is None:
            return None
        attempt = self._attempts.get(record.number)
        facts: Mapping[str, Any] = {} if attempt is None else attempt.facts
        received = None if attempt is None else attempt.received
        route, usage = self._routes[record.position], facts.get("usage")
        prices, estimate = route.prices, None
        inside = facts.get("inside")
        # Of one request the route's own prices say more than the list of the model.
        is_once = route.subject.sends and requests_in(inside) == 1
        is_priced = isinstance(prices, FixedPrices) and is_once
        lost = self._lost.get(record.number, 0.0)
        if inside and "cost" in inside and not is_priced:
            is_estimate = bool(inside.get("cost_is_estimate") or lost)
            return inside["cost"] + lost, is_estimate
        if prices is not None and not usage:
            mean, _ = self._output_of(route)
            output = round(mean) if received is None else -(-received // 4)
            asked, _ = self._max_tokens(record.position)
            output = output if asked is None else min(output, asked)
            estimate = {"input_tokens": self._prompt[0], "output_tokens": output}
        priced = cost_of_attempt(prices, record.failure, usage, estimate)
        return (priced[0] + lost, True) if priced is not None and lost else priced

    def cost_of(self, record: AttemptRecord) -> float | None:
        """The money of an attempt that is over, for observers."""
        priced = self.price(record)
        return None if priced is None else priced[0]

    @functools.cached_property
    def _prompt(self) -> tuple[int, int]:
        """Tokens of the prompt, approximately, and at most."""
        offered = self._request.options.get("tools")
        tools = json.dumps(offered, default=str) if offered else ""
        texts = [tools, *(message.text for message in self._request.messages)]
        # Beyond ASCII a character has more tokens: about one for 4 bytes.
        extra = sum(len(text.encode("utf-8", "replace")) - len(text) for text in texts)
        about = count_tokens_approximately(self._request.messages)
        about += -(-(len(tools) + extra) // 4)
        return about, _MARGIN * about

    def _output_of(self, route: Route) -> tuple[float, int]:
        """The tokens of a route's answers; 0 before the first one."""
        return self._outputs.get(route.name, (0.0, 0))

    def _max_tokens(self, position: int) -> tuple[int | None, int]:
        """The most tokens that a request asks for, and that an answer can have."""
        route = self._routes[position]
        asked = route.max_tokens_of(self._request.options)
        known = asked or (route.model.profile or {}).get("max_output_tokens")
        _, longest = self._output_of(route)
        return asked, known or max(_MOST_OUTPUT, 2 * longest)

    def _price_of(self, position: int) -> Price:
        """What an attempt on a route may cost.

        Raises:
            ValueError: Its prices are not known.
        """
        route = self._routes[position]
        prices, (about, most) = route.prices, self._prompt
        asked, longest = self._max_tokens(position)
        mean, _ = self._output_of(route)
        options = {**route.options, **self._request.options}
        n = options.get("n", getattr(route.model, "n", None))
        answers = n if type(n) is int and n > 1 else 1
        costs, likely = [], asked or min(round(mean), longest)
        for read, written in ((about, likely), (most, longest)):
            tokens = {"input_tokens": read, "output_tokens": answers * written}
            cost = None if prices is None else prices.cost(tokens)
            if cost is None:
                raise ValueError(no_price(route))
            costs.append(cost)
        return Price(*costs)

    def reserve(self, position: int, number: int) -> Refusal | None:
        """Reserve money for an attempt; why there is none."""
        price = self._price_of(position)
        if self._max_cost is not None:
            left = self._max_cost - sum((*self._costs.values(), *self._lost.values()))
            if price.estimate > left + _ROUNDING:
                reason = (
                    f"an attempt may cost {price.estimate:.4g}; only"
                    f" {max(0, left):.4g} of max_cost={self._max_cost:g} is left"
                )
                return Refusal(math.inf, reason=reason)
        reserved: list[SpendReservation] = []
        for limit in self.limits[position]:
            one = limit.reserve(price)
            if isinstance(one, Refusal):
                for other in reserved:
                    other.settle(0.0)
                return one
            reserved.append(one)
        self._costs[number], self._reserved[number] = price.estimate, reserved
        return None

    def send_again(self, position: int, number: int) -> None:
        """Count a request of an attempt as lost, and reserve money for another one.

        It may have been answered, and then the provider charges for it.

        Raises:
            SpendLimitError: There is no money for another one.
        """
        if self._routes[position].prices is None:
            return
        try:
            price = self._price_of(position)
        except ValueError:  # No limit needs it: it would have been refused.
            return
        self._lost[number] = self._lost.get(number, 0.0) + price.estimate
        if not self.is_limited:
            return
        del self._costs[number]
        for one in self._reserved.pop(number):
            one.settle(price.estimate)
        if (refusal := self.reserve(position, number)) is not None:
            msg = f"the request is not sent again: {refusal.reason}"
            raise SpendLimitError(msg)

    def settle(self, records: Sequence[AttemptRecord]) -> None:
        """Count what the attempts that are over cost, or else their estimates."""
        for record in records:
            number = record.number or 0
            if record.outcome == "pending" or number not in self._reserved:
                continue
            attempt = self._attempts.get(number)
            usage = None if attempt is None else attempt.facts.get("usage")
            if usage and (tokens := tokens_of(usage)):
                route = self._routes[record.position].name
                mean, most = self._outputs.get(route, (tokens[1], 0))
                mean += _LEARNING * (tokens[1] - mean)
                self._outputs[route] = mean, max(tokens[1], most)
            cost = self.cost_of(record)
            if cost is None:
                cost = self._costs[number]
            else:
                # What was lost is settled already.
                cost = max(0.0, cost - self._lost.get(number, 0.0))
            self._costs[number] = cost
            for one in self._reserved.pop(number):
                one.settle(cost)


def no_price(route: Route) -> str:
    """What to do about a route whose costs are not known."""
    return (
        f"route {route.name!r} has no known price, so that its cost cannot be limited:"
        " give Route(input_price=..., output_price=...), for a million tokens each, or"
        ' pip install "langchain-retryrouter[prices]" if its model is a public one'
    )
