"""What one call learns: its attempts, its waits, and the decision after each failure.

A session belongs to one call and one thread of control; budget and breaker may be
shared. It never waits and never sends: `_drive` asks it before each attempt (`admit`),
tells it how the attempt went (`succeeded`, `failed`, `abandoned`), and obeys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_retryrouter._core.breaker import BreakerState, Permit, Refusal
from langchain_retryrouter._core.clock import SystemTime
from langchain_retryrouter._core.decision import (
    Decision,
    GiveUp,
    Retry,
    Situation,
    decide,
)
from langchain_retryrouter._core.failure import FailureKind, is_retryable

if TYPE_CHECKING:
    from langchain_retryrouter._core.breaker import CircuitBreaker
    from langchain_retryrouter._core.budget import RetryBudget
    from langchain_retryrouter._core.clock import TimeSource
    from langchain_retryrouter._core.failure import Failure
    from langchain_retryrouter._core.policy import RetryPolicy

_SYSTEM_TIME = SystemTime()


@dataclass(slots=True)
class AttemptRecord:
    """One line of a call's ledger.

    Attributes:
        number: The attempt, counted from 1; None for a route that was passed by, since
            its breaker was open.
        route: The model that was asked, where the call knows it.
        outcome: `ok`, `abandoned`, or the kind of the failure.
        seconds: How long the attempt took.
        status_code: The HTTP status of a failed answer.
        wait: Seconds waited after it, 0 if nothing followed.
    """

    number: int | None
    route: str | None = None
    outcome: str = "pending"
    seconds: float = 0.0
    status_code: int | None = None
    wait: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """The line as JSON-able data; what does not apply is left out."""
        line: dict[str, Any] = {
            "outcome": self.outcome,
            "seconds": round(self.seconds, 6),
            "wait": round(self.wait, 6),
        }
        if self.number is not None:
            line = {"attempt": self.number, **line}
        if self.route is not None:
            line["route"] = self.route
        if self.status_code is not None:
            line["status_code"] = self.status_code
        return line


class RetrySession:
    """The state of one call under a policy.

    Args:
        policy: The numbers.
        budget: Where retries are bought; None for no limit.
        breaker: What may refuse to send at all; None to always send.
        time: Clock and dice.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        budget: RetryBudget | None = None,
        breaker: CircuitBreaker | None = None,
        time: TimeSource = _SYSTEM_TIME,
    ) -> None:
        self.policy = policy
        self.records: list[AttemptRecord] = []
        self.decision: Decision | None = None
        self._budget = budget
        self._breaker = breaker
        self._time = time
        self._permit: Permit | None = None
        self._record = AttemptRecord(None, outcome="")  # until the first is sent
        self._spent = 0.0
        self._began = self._now = time.monotonic()

    @property
    def attempts(self) -> int:
        """Attempts sent so far."""
        return len(self.records)

    @property
    def attempt(self) -> int:
        """The number of the attempt under way, counted from 1; 0 before the first."""
        return self._record.number or 0

    @property
    def attempts_here(self) -> int:
        """Attempts sent so far that count against the policy's retries."""
        return self.attempts

    @property
    def owns_retries(self) -> bool:
        """Whether whoever retries on top of this call would multiply its load."""
        return self.policy.max_retries > 0

    @property
    def route(self) -> str | None:
        """The model that the last attempt asked, where the call knows it."""
        return self._record.route

    @property
    def waited(self) -> float:
        """Seconds of waiting that were scheduled so far."""
        return sum(record.wait for record in self.records)

    def remaining(self) -> float | None:
        """Seconds until the deadline, below 0 after it; None if there is none."""
        if self.policy.deadline is None:
            return None
        return self._began + self.policy.deadline - self._time.monotonic()

    def itinerary(self) -> str:
        """The routes asked and what became of each; empty if there was only one."""
        if len({record.route for record in self.records}) <= 1:
            return ""
        return ", ".join(
            f"{record.route} ({record.outcome})" for record in self.records
        )

    def ledger(self) -> dict[str, Any]:
        """The call so far, as JSON-able data."""
        return {"attempts": [record.as_dict() for record in self.records]}

    def will_be_refused(self, delay: float = 0.0) -> bool:
        """Whether the breaker would let nothing through `delay` seconds from now."""
        if self._breaker is None:
            return False
        then = self._time.monotonic() + delay
        return self._breaker.state(then) is BreakerState.OPEN

    def admit(self, route: str | None = None) -> Refusal | None:
        """Begin the next attempt; a refusal if the breaker lets nothing through."""
        self._now = self._time.monotonic()
        if self._breaker is not None:
            verdict = self._breaker.admit(self._now)
            if isinstance(verdict, Refusal):
                self._give_back()
                return verdict
            self._permit = verdict
        self._spent = 0.0  # The retry that was paid for is being sent.
        self._record = AttemptRecord(number=self.attempts + 1, route=route)
        self.records.append(self._record)
        return None

    def succeeded(self) -> None:
        """The attempt under way brought the whole answer."""
        now = self._close_record("ok")
        if self._budget is not None:
            self._budget.succeeded()
        if self._breaker is not None and self._permit is not None:
            self._breaker.succeeded(self._permit, now)
            self._permit = None

    def failed(self, failure: Failure, *, is_left_behind: bool = False) -> Decision:
        """The attempt under way failed; what to do now.

        Args:
            failure: What went wrong.
            is_left_behind: Whether the next attempt would ask another route, and the
                one that failed no more.
        """
        now = self._close_record(failure.kind.value, failure.status_code)
        self._tell_breaker(failure, now)
        self.decision = self._what_now(failure, is_left_behind=is_left_behind)
        if isinstance(self.decision, Retry):
            self._record.wait = self.decision.delay
        return self.decision

    def broke_off(self, failure: Failure) -> None:
        """The attempt under way failed after its first token; it cannot be repeated."""
        now = self._close_record(failure.kind.value, failure.status_code)
        self._tell_breaker(failure, now)
        self.decision = GiveUp("part of the answer was already delivered")

    def abandoned(self) -> None:
        """Nobody waits for the call any longer; give back what it still holds."""
        if self._record.outcome == "pending":
            self._close_record("abandoned")
        if self._breaker is not None and self._permit is not None:
            self._breaker.abandoned(self._permit)
            self._permit = None
        self._give_back()

    def outlasted(self) -> GiveUp | None:
        """Whether the coming wait no longer fits, since whoever watched was slow."""
        remaining = self.remaining()
        if remaining is None or not isinstance(self.decision, Retry):
            return None
        if self.decision.delay < remaining:
            return None
        self._record.wait = 0.0
        self._give_back()
        self.decision = GiveUp(f"the deadline of {self.policy.deadline:g} s is over")
        return self.decision

    def _what_now(self, failure: Failure, *, is_left_behind: bool) -> Decision:
        return self._afford(
            failure, self._decide(failure, is_left_behind=is_left_behind)
        )

    def _decide(self, failure: Failure, *, is_left_behind: bool) -> Decision:
        decision = decide(
            self.policy,
            Situation(
                failure=failure,
                attempt=self.attempts_here,
                remaining=self.remaining(),
                chance=self._time.random(),
                is_left_behind=is_left_behind,
            ),
        )
        if isinstance(decision, Retry) and self.will_be_refused(decision.delay):
            return GiveUp("the circuit breaker is open")
        return decision

    def _afford(self, failure: Failure, decision: Decision) -> Decision:
        throttled = failure.kind is FailureKind.RATE_LIMIT
        if isinstance(decision, Retry) and not self._can_pay(throttled=throttled):
            return GiveUp("retry budget empty")
        return decision

    def _can_pay(self, *, throttled: bool = False) -> bool:
        """Buy a retry; whether that was possible, or there is no budget to respect."""
        if self._budget is None:
            return True
        spent = self._budget.spend(throttled=throttled)
        self._spent = spent or 0.0
        return spent is not None

    def _give_back(self) -> None:
        if self._budget is not None and self._spent:
            self._budget.refund(self._spent)
        self._spent = 0.0

    def _tell_breaker(self, failure: Failure, now: float) -> None:
        if self._breaker is None or self._permit is None:
            return
        retry_after = failure.retry_after
        # By its kind: `x-should-retry: false` is no word on the provider's health.
        if is_retryable(failure.kind):
            chance = self._time.random()
            self._breaker.failed(
                self._permit, now, retry_after=retry_after, chance=chance
            )
            if retry_after is not None and retry_after > self.policy.max_retry_after:
                # Nobody waits for so long, so nobody has to ask in the meantime.
                self._breaker.hold(now, retry_after, chance=chance)
        else:
            # A provider that finds fault with the request is alive.
            self._breaker.succeeded(self._permit, now)
        self._permit = None

    def _close_record(self, outcome: str, status_code: int | None = None) -> float:
        now = self._time.monotonic()
        self._record.outcome = outcome
        self._record.status_code = status_code
        self._record.seconds = now - self._now
        return now
