"""The attempts of a call: the lines of its log, and the observers that see it happen.

`CallState` is a `CallLog` that decides. `otel.py` and LangChain's callbacks observe
calls by a `CallObserver`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

from langchain_retryrouter._prices import (
    Prices,
    cost_of_attempt,
    write_costs,
)
from langchain_retryrouter._retry.clock import Clock
from langchain_retryrouter._retry.limits import HELD_LIMITS
from langchain_retryrouter.circuit_breaker import Permit
from langchain_retryrouter.failures import Failure
from langchain_retryrouter.rate_limits import Reservation

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(slots=True)
class AttemptRecord:
    """One line of a call's attempt log.

    `number` counts from 1; None for a route that was skipped, since its circuit breaker
    was open, or it cannot take the request for a `reason`. `route` is None where it is
    not known which one was asked; `reason` then says which ones may be. `outcome` is
    `pending`, `ok`, `cancelled`, `skipped`, or the kind of the failure. `wait` are the
    seconds waited after it, 0 if no attempt followed; `began` those from the call's
    start to its own; `limiter_wait` those that it waited for its rate limits before.

    While it is under way it holds the `permit` of the breaker of its route, and
    `reservations` at its rate limits.
    """

    number: int | None
    route: str | None = None
    outcome: str = "pending"
    seconds: float = 0.0
    wait: float = 0.0
    reason: str | None = None
    began: float = 0.0
    limiter_wait: float = 0.0
    position: int = 0
    failure: Failure | None = None
    usage: Mapping[str, Any] | None = None
    permit: Permit | None = None
    reservations: Sequence[Reservation] = ()

    def as_dict(self) -> dict[str, Any]:
        """The line as JSON-able data, without what does not apply."""
        line: dict[str, Any] = {
            "outcome": self.outcome,
            "began": round(self.began, 6),
            "seconds": round(self.seconds, 6),
            "wait": round(self.wait, 6),
        }
        if self.number is not None:
            line = {"attempt": self.number, **line}
        if self.route is not None or self.reason is not None:
            line["route"] = self.route
        if self.failure is not None and self.failure.status_code is not None:
            line["status_code"] = self.failure.status_code
        if self.reason is not None:
            line["reason"] = self.reason
        if self.limiter_wait:
            line["limiter_wait"] = round(self.limiter_wait, 6)
        return line


class Subject(NamedTuple):
    """What an attempt asks, in the words of OpenTelemetry's conventions.

    `sends` is whether it is one request, and not a call that has attempts of its own.
    """

    operation: str
    provider: str
    model: str | None = None
    sends: bool = True


class CallObserver:
    """Sees what happens in one call; its methods do nothing by default.

    The threads that work for the call run them, in order. What they raise is logged.
    """

    def attempt_began(self, record: AttemptRecord) -> None:
        """An attempt begins."""

    def resent(self, number: int, failure: Failure) -> None:
        """An attempt sends its request again in another form, after this failure."""

    def answered(self, number: int, facts: Mapping[str, Any]) -> None:
        """What an answer says of itself: `usage`, `model`, `finish_reasons`."""

    def attempt_ended(self, record: AttemptRecord) -> None:
        """An attempt is over; called again if its end turns out to be another one."""

    def waits(self, seconds: float) -> None:
        """A wait begins."""

    def happened(self, event: str, facts: Mapping[str, Any]) -> None:
        """One of `breaker`, `skipped`, `hedge_began`, `hedge_settled`, `continued`.

        Or `limited`: a full rate limit keeps a request from its route.
        """

    def ended(self, error: BaseException | None) -> None:
        """The call is over; nothing is called after this."""

    def attach(self, number: int) -> Callable[[], object] | None:
        """Make an attempt current in this thread or task, until the result is called.

        It is done around all code that sends the attempt's request.
        """

    async def flush(self) -> None:
        """Awaited by async calls after each of the others, for observers that await."""


@dataclass(eq=False, repr=False)
class CallLog:
    """The attempt log of one call, and its observers.

    Attributes:
        clock: Tells the time.
        describe: Returns what the route at a position asks, for observers.
        has_routes: Whether the call is one of a router.
        records: The attempt log.
        attempts: Attempts sent so far, on all routes.
        observers: What sees the call.
        wants_facts: Whether it makes a difference what answers say of themselves.
        run: LangChain's run manager of the call, for observers.
        prices: What the tokens of each model cost, for a call that has no routes.
        cost_of: Returns the money of an attempt, for a call that has routes.
        held_by: The limits that an attempt holds, by the position of its route.
    """

    clock: Clock
    describe: Callable[[int], Subject]
    has_routes: bool
    records: list[AttemptRecord] = field(default_factory=list)
    attempts: int = 0
    observers: list[CallObserver] = field(default_factory=list)
    wants_facts: bool = False
    run: Any = None
    prices: Mapping[str | None, Prices | None] | None = None
    cost_of: Callable[[AttemptRecord], float | None] | None = None
    held_by: tuple[Sequence[Sequence[object]], ...] = ()
    _current: AttemptRecord = field(  # Nothing is sent.
        default_factory=partial(AttemptRecord, None, outcome="cancelled")
    )

    @property
    def attempt(self) -> int:
        """The number of the current attempt, counted from 1; 0 before the first."""
        return self._current.number or 0

    @property
    def route(self) -> str | None:
        """The model that the current attempt asks, if the call knows it."""
        return self._current.route

    @property
    def waited(self) -> float:
        """Seconds of waiting scheduled so far."""
        return sum(record.wait for record in self.records)

    def attempt_log(self) -> dict[str, Any]:
        """The call so far, as JSON-able data; a call with routes names the latest."""
        log: dict[str, Any] = {"route": self.route} if self.has_routes else {}
        log["attempts"] = [record.as_dict() for record in self.records]
        if self.prices is not None:
            write_costs(log, [self._cost_of(record) for record in self.records])
        return log

    def routes_tried(self) -> str:
        """The routes asked and their outcomes; empty if there was only one."""
        routes = [record.route or record.reason for record in self.records]
        if len(set(routes)) <= 1:
            return ""
        return ", ".join(
            f"{route} ({record.outcome})"
            for route, record in zip(routes, self.records, strict=True)
        )

    def money_of(self, record: AttemptRecord) -> float | None:
        """The money of an attempt that is over, for observers; None if not known."""
        if self.cost_of is not None:
            return self.cost_of(record)
        cost = self._cost_of(record)
        return None if cost is None else cost[0]

    def _cost_of(self, record: AttemptRecord) -> tuple[float, bool] | None:
        if record.number is None or self.prices is None:
            return None
        prices = self.prices.get(record.route)
        return cost_of_attempt(prices, record.failure, record.usage)

    # --- observers ---

    def tell(self, event: str, **facts: Any) -> None:
        """Tell the observers that something `happened`."""
        for observer in self.observers:
            guarded(observer.happened, event, facts)

    def resent(self, number: int, failure: Failure) -> None:
        """Tell the observers that an attempt sends its request again."""
        for observer in self.observers:
            guarded(observer.resent, number, failure)

    def waits(self, seconds: float) -> None:
        """Tell the observers that a wait begins."""
        for observer in self.observers:
            guarded(observer.waits, seconds)

    def end(self, error: BaseException | None) -> None:
        """The call is over, by this error if there is one."""
        observers, self.observers = self.observers, []
        for observer in observers:
            guarded(observer.ended, error)
        self.cost_of = None  # It holds the call.

    def attach(self, number: int | None = None) -> contextlib.ExitStack:
        """Make an attempt, or else the latest, current in a `with` block."""
        number = self.attempts if number is None else number
        undo = contextlib.ExitStack()
        for observer in self.observers:
            if (detach := guarded(observer.attach, number)) is not None:
                undo.callback(guarded, detach)
        if self.held_by:
            at = next(r.position for r in reversed(self.records) if r.number == number)
            held = HELD_LIMITS.get().union(*(limits[at] for limits in self.held_by))
            undo.callback(HELD_LIMITS.reset, HELD_LIMITS.set(held))
        return undo

    async def flush(self) -> None:
        """Let the observers await what they have to."""
        for observer in self.observers:
            try:
                await observer.flush()
            except Exception:
                logger.warning(_FAILED, exc_info=True)

    def _tell_skipped(self, record: AttemptRecord) -> None:
        self.tell("skipped", route=record.route, reason=record.reason or record.outcome)


_FAILED = "An observer of a call failed"


def guarded(function: Callable[..., T], *args: Any) -> T | None:
    """What an observer returns; one that fails does not fail the call."""
    try:
        return function(*args)
    except Exception:
        logger.warning(_FAILED, exc_info=True)
        return None


def requests_in(log: Mapping[str, Any] | None) -> int:
    """How many requests an attempt log tells of."""
    return sum(
        (requests_in(line["inside"]) if line.get("inside") else 1)
        + line.get("resent", 0)
        for line in (log or {}).get("attempts", ())
        if "attempt" in line
    )
