"""Several routes to one answer: repeat on this one, go on to the next, or end it here?

What follows a failure is one table, `AFTER`. A `RoutingSession` walks a call along its
routes by it; to `_drive` it is a session like `RetrySession`. Retries are a route's,
and are bought from the budget; going on to another route is no retry, since it puts no
load on the one that is sick. The deadline is the whole call's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from langchain_retryrouter._core.breaker import BreakerState, Refusal
from langchain_retryrouter._core.clock import SystemTime
from langchain_retryrouter._core.decision import Decision, GiveUp, Retry
from langchain_retryrouter._core.failure import FailureKind
from langchain_retryrouter._core.session import AttemptRecord, RetrySession

if TYPE_CHECKING:
    from langchain_retryrouter._core.breaker import CircuitBreaker, Permit
    from langchain_retryrouter._core.budget import RetryBudget
    from langchain_retryrouter._core.clock import TimeSource
    from langchain_retryrouter._core.failure import Failure
    from langchain_retryrouter._core.policy import RetryPolicy


class Step(StrEnum):
    """What follows a failure."""

    REPEAT = "repeat"
    """The same route again after its wait; the next, once its retries are gone."""
    NEXT = "next"
    """The next route at once."""
    END = "end"
    """Nothing: what is wrong with the request is wrong on every route."""


AFTER: Final[Mapping[FailureKind, Step]] = {
    # It passes, mostly within seconds.
    FailureKind.RATE_LIMIT: Step.REPEAT,
    FailureKind.UNAVAILABLE: Step.REPEAT,
    FailureKind.SERVER_ERROR: Step.REPEAT,
    FailureKind.CONFLICT: Step.REPEAT,
    FailureKind.CONNECTION: Step.REPEAT,
    FailureKind.INTERRUPTED: Step.REPEAT,
    FailureKind.MALFORMED: Step.REPEAT,
    # Time is what has run out; another try here would take as long again.
    FailureKind.TIMEOUT: Step.NEXT,
    # Here it will not pass; elsewhere are another key, purse, model and context.
    FailureKind.QUOTA: Step.NEXT,
    FailureKind.AUTHENTICATION: Step.NEXT,
    FailureKind.PERMISSION: Step.NEXT,
    FailureKind.NOT_FOUND: Step.NEXT,
    FailureKind.CONTEXT_OVERFLOW: Step.NEXT,
    FailureKind.CIRCUIT_OPEN: Step.NEXT,
    # A refusal is an answer, and not to be routed around.
    FailureKind.INVALID_REQUEST: Step.END,
    FailureKind.CONTENT_FILTER: Step.END,
}
"""What follows each kind of failure, while there are retries, time and routes left."""

_SYSTEM_TIME = SystemTime()


@dataclass(frozen=True, slots=True)
class Door:
    """One route as a session sees it.

    Attributes:
        name: What the ledger calls it.
        breaker: What may refuse to let through; None to always pass.
    """

    name: str
    breaker: CircuitBreaker | None = None


@dataclass(slots=True)
class _UnderWay:
    """An attempt that has been sent, and what the session holds for it."""

    record: AttemptRecord
    permit: Permit | None
    breaker: CircuitBreaker | None
    began: float
    position: int


class RoutingSession(RetrySession):
    """The state of one call that has several routes.

    Args:
        policy: The numbers; `max_retries` is a route's.
        doors: The routes, in the order in which they are asked.
        budget: Where retries are bought; None for no limit.
        time: Clock and dice.
        after: What follows each kind of failure.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        doors: Sequence[Door],
        *,
        budget: RetryBudget | None = None,
        time: TimeSource = _SYSTEM_TIME,
        after: Mapping[FailureKind, Step] = AFTER,
    ) -> None:
        super().__init__(policy, budget=budget, time=time)
        self._doors = doors
        self._after = after
        self._sent = [0] * len(doors)
        self._told: set[int] = set()
        self._rival: _UnderWay | None = None
        self.position = 0

    @property
    def owns_retries(self) -> bool:
        """Whether whoever retries on top of this call would multiply its load."""
        return super().owns_retries or len(self._doors) > 1

    @property
    def attempts_here(self) -> int:
        """Attempts sent so far on the route under way."""
        return self._sent[self.position]

    @property
    def attempts(self) -> int:
        """Attempts sent so far, on all routes."""
        return sum(self._sent)

    def admit(self, route: str | None = None) -> Refusal | None:
        """Begin the next attempt on the first route that lets it through."""
        del route  # It is this session that knows.
        refusals: list[Refusal] = []
        while self.position < len(self._doors):
            door = self._doors[self.position]
            self._breaker = door.breaker
            refusal = super().admit(door.name)
            if refusal is None:
                self._sent[self.position] += 1
                return None
            refusals.append(refusal)
            self._pass_by(door)
        return min(refusals, key=lambda refusal: refusal.retry_after)

    def go_on(self) -> bool:
        """Leave the route under way for the next one that is open; False if none is."""
        position = self._next_open()
        until = len(self._doors) if position is None else position
        for passed in range(self.position + 1, until):
            if self._is_closed(passed) and passed not in self._told:
                self._told.add(passed)
                self._note_closed(self._doors[passed])
        if position is None:
            return False
        self.position = position
        return True

    def _next_open(self) -> int | None:
        """The next route that lets through, and may be asked once more."""
        for position in range(self.position + 1, len(self._doors)):
            has_attempts = self._sent[position] < self.policy.max_attempts
            if has_attempts and not self._is_closed(position):
                return position
        return None

    def _is_closed(self, position: int) -> bool:
        breaker = self._doors[position].breaker
        now = self._time.monotonic()
        return breaker is not None and breaker.state(now) is BreakerState.OPEN

    def hedge(self) -> int | None:
        """Begin an attempt on the next open route beside the one that is under way.

        It is bought from the budget like a retry, since it is load on top.

        Returns:
            The route's position; None if there is none, or the budget is too low.
        """
        mine, position = self._under_way(), self._next_open()
        if position is None:
            return None
        if self._budget is not None and self._budget.spend(throttled=False) is None:
            return None
        self.position = position
        if self.admit() is None:
            self._rival = self._under_way()
        self._go_back_to(mine)
        return None if self._rival is None else self._rival.position

    def settle_hedge(self, *, has_won: bool, failure: Failure | None = None) -> None:
        """One of two attempts is the call's from here on.

        Args:
            has_won: Whether it is the one that was begun by `hedge`.
            failure: How the other one failed; None if it was left alone.
        """
        if self._rival is None:
            return
        mine, rival = self._under_way(), self._rival
        self._rival = None
        self._go_back_to(mine if has_won else rival)
        if failure is None:
            super().abandoned()
        else:
            now = self._close_record(failure.kind.value, failure.status_code)
            self._tell_breaker(failure, now)
        self._go_back_to(rival if has_won else mine)

    def abandoned(self) -> None:
        """Nobody waits for the call any longer; give back what it still holds."""
        self.settle_hedge(has_won=False)
        super().abandoned()

    def _under_way(self) -> _UnderWay:
        return _UnderWay(
            self._record, self._permit, self._breaker, self._now, self.position
        )

    def _go_back_to(self, attempt: _UnderWay) -> None:
        self._record = attempt.record
        self._permit = attempt.permit
        self._breaker = attempt.breaker
        self._now = attempt.began
        self.position = attempt.position

    def resume(self) -> bool:
        """Whether a call that broke off may be taken up: on the next route, or here.

        Here it is a retry, and is bought like one.
        """
        remaining = self.remaining()
        if remaining is not None and remaining <= 0:
            return False
        if self.go_on():
            return True
        return self.attempts_here < self.policy.max_attempts and self._can_pay()

    def _what_now(self, failure: Failure, *, is_left_behind: bool) -> Decision:
        del is_left_behind
        step = self._after[failure.kind]
        if step is Step.END:
            return GiveUp()
        decision: Decision = GiveUp()
        if step is Step.REPEAT:
            decision = super()._what_now(failure, is_left_behind=False)
        if isinstance(decision, Retry):
            return decision
        remaining = self.remaining()
        if remaining is not None and remaining <= 0:
            return GiveUp(f"the deadline of {self.policy.deadline:g} s is over")
        if self.go_on():
            return Retry(0.0)
        reason = decision.reason
        if len(self._doors) > 1:
            reason = f"{reason}, no route left" if reason else "no route left"
        return GiveUp(reason)

    def _pass_by(self, door: Door) -> None:
        self._note_closed(door)
        self.position += 1

    def _note_closed(self, door: Door) -> None:
        line = AttemptRecord(None, door.name, FailureKind.CIRCUIT_OPEN.value)
        self.records.append(line)

    def served_by(self) -> str | None:
        """The route of the attempt that the call is on."""
        return self.route

    def ledger(self) -> dict[str, Any]:
        """The call so far, as JSON-able data."""
        return {"route": self.served_by(), **super().ledger()}
