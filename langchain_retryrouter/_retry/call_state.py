"""Several routes to one answer: repeat on this one, go on to the next, or end it here?

What follows a failure is one table, `FAILURE_ACTIONS`. A `RoutedCallState` walks a call
along its routes by it; to `_drive` it is a session like `CallState`. Retries are a route's,
and are bought from the budget; going on to another route is no retry, since it puts no
load on the one that is sick. The deadline is the whole call's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from langchain_retryrouter._retry.clock import SystemTime
from langchain_retryrouter.circuit_breaker import BreakerState, Permit, Refusal
from langchain_retryrouter.failures import FailureKind, is_retryable

if TYPE_CHECKING:
    from langchain_retryrouter._retry.clock import TimeSource
    from langchain_retryrouter.circuit_breaker import CircuitBreaker
    from langchain_retryrouter.failures import Failure
    from langchain_retryrouter.policy import RetryBudget, RetryPolicy


@dataclass(frozen=True, slots=True)
class Retry:
    """Send the request again after `delay` seconds."""

    delay: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Let the error out.

    Attributes:
        reason: Why, in words for the error's note; empty where the failure is final by
            its own nature and the error says it all.
    """

    reason: str = ""


Decision: TypeAlias = Retry | Stop


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """What is known when an attempt has failed.

    Attributes:
        failure: What went wrong.
        attempt: Which attempt it was, counted from 1.
        remaining: Seconds left until the deadline; None if there is none.
        chance: A random number in `[0, 1)` for jitter.
        is_left_behind: Whether the next attempt would ask another route, and this one
            no more.
    """

    failure: Failure
    attempt: int
    remaining: float | None
    random: float
    will_failover: bool = False


def decide(policy: RetryPolicy, situation: FailedAttempt) -> Decision:
    """What to do after a failed attempt."""
    failure = situation.failure
    if not failure.is_retryable and not situation.will_failover:
        told = failure.should_retry is False
        return Stop("the server said not to retry" if told else "")
    if situation.attempt >= policy.max_attempts:
        return Stop("no retries left" if policy.max_retries else "retries are off")
    if not failure.is_retryable:
        return Retry(0.0)  # Another route has no share in it, and owes no wait.
    retry_after = failure.retry_after
    if retry_after is not None and retry_after > policy.max_retry_after:
        return Stop(
            f"Retry-After of {retry_after:g} s is above max_retry_after"
            f" of {policy.max_retry_after:g} s"
        )
    delay = policy.delay(situation.attempt, situation.random, retry_after)
    if situation.remaining is not None and delay >= situation.remaining:
        return Stop(
            f"a wait of {delay:.1f} s would outlast the deadline of"
            f" {policy.deadline:g} s"
        )
    return Retry(delay)


_SYSTEM_TIME = SystemTime()


@dataclass(slots=True)
class AttemptRecord:
    """One line of a call's ledger.

    Attributes:
        number: The attempt, counted from 1; None for a route that was passed by, since
            its breaker was open.
        route: The model that was asked, where the call knows it.
        outcome: `ok`, `cancelled`, or the kind of the failure.
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


class CallState:
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
        self._counted: set[int] = set()  # Breakers that this call was counted at.
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
    def retries_enabled(self) -> bool:
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

    def attempt_timeout(self, *, is_stream: bool) -> float | None:
        """Seconds until the answer, or the first token, of the attempt just begun."""
        policy = self.policy
        own = policy.first_token_timeout if is_stream else policy.attempt_timeout
        limits = [limit for limit in (own, self.remaining()) if limit is not None]
        return max(0.001, min(limits)) if limits else None

    def routes_tried(self) -> str:
        """The routes asked and what became of each; empty if there was only one."""
        if len({record.route for record in self.records}) <= 1:
            return ""
        return ", ".join(
            f"{record.route} ({record.outcome})" for record in self.records
        )

    def attempt_log(self) -> dict[str, Any]:
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
            final_error = self._breaker.admit(self._now)
            if isinstance(final_error, Refusal):
                self._give_back()
                return final_error
            self._permit = final_error
        self._start_record(route)
        return None

    def _start_record(self, route: str | None) -> None:
        self._spent = 0.0  # The retry that was paid for is being sent.
        self._record = AttemptRecord(number=self.attempts + 1, route=route)
        self.records.append(self._record)

    def succeeded(self) -> None:
        """The attempt under way brought the whole answer."""
        now = self._close_record("ok")
        if self._budget is not None:
            self._budget.succeeded()
        if self._breaker is not None and self._permit is not None:
            self._breaker.succeeded(self._permit, now)
            self._permit = None

    def failed(
        self,
        failure: Failure,
        *,
        will_failover: bool = False,
        action: FailureAction | None = None,
    ) -> Decision:
        """The attempt under way failed; what to do now.

        Args:
            failure: What went wrong.
            will_failover: Whether the next attempt would ask another model, and the
                one that failed no more.
            action: What the caller wants to follow, whatever the kind of the failure.
        """
        now = self._close_record(failure.kind.value, failure.status_code)
        self._record_outcome(failure, now)
        self.decision = self._what_now(
            failure, will_failover=will_failover, action=action
        )
        if isinstance(self.decision, Retry):
            self._record.wait = self.decision.delay
        return self.decision

    def stream_interrupted(self, failure: Failure) -> None:
        """The attempt under way failed after its first token; it cannot be repeated."""
        now = self._close_record(failure.kind.value, failure.status_code)
        self._record_outcome(failure, now)
        self.decision = Stop("part of the answer was already delivered")

    def cancelled(self) -> None:
        """Nobody waits for the call any longer; give back what it still holds."""
        if self._record.outcome == "pending":
            self._close_record("abandoned")
        if self._breaker is not None and self._permit is not None:
            self._breaker.cancelled(self._permit)
            self._permit = None
        self._give_back()

    def deadline_exceeded(self) -> Stop | None:
        """Whether the coming wait no longer fits, since whoever watched was slow."""
        remaining = self.remaining()
        if remaining is None or not isinstance(self.decision, Retry):
            return None
        if self.decision.delay < remaining:
            return None
        self._record.wait = 0.0
        self._give_back()
        self.decision = Stop(f"the deadline of {self.policy.deadline:g} s is over")
        return self.decision

    def _what_now(
        self, failure: Failure, *, will_failover: bool, action: FailureAction | None
    ) -> Decision:
        del action  # There is one route: the kind decides.
        return self._afford(failure, self._decide(failure, will_failover=will_failover))

    def _decide(self, failure: Failure, *, will_failover: bool) -> Decision:
        decision = decide(
            self.policy,
            FailedAttempt(
                failure=failure,
                attempt=self.attempts_here,
                remaining=self.remaining(),
                random=self._time.random(),
                will_failover=will_failover,
            ),
        )
        if isinstance(decision, Retry) and self.will_be_refused(decision.delay):
            return Stop("the circuit breaker is open")
        return decision

    def _afford(self, failure: Failure, decision: Decision) -> Decision:
        throttled = failure.kind is FailureKind.RATE_LIMIT
        if isinstance(decision, Retry) and not self._can_pay(throttled=throttled):
            return Stop("retry budget empty")
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

    def _record_outcome(self, failure: Failure, now: float) -> None:
        if self._breaker is None or self._permit is None:
            return
        retry_after = failure.retry_after
        # By its kind: `x-should-retry: false` is no word on the provider's health.
        if failure.kind is FailureKind.UNKNOWN:
            self._breaker.cancelled(self._permit)  # It says nothing about the provider.
        elif is_retryable(failure.kind):
            random = self._time.random()
            if id(self._breaker) in self._counted:
                # The attempts of one call are no independent evidence.
                self._breaker.cancelled(self._permit)
            else:
                self._counted.add(id(self._breaker))
                self._breaker.failed(
                    self._permit, now, retry_after=retry_after, random=random
                )
            if retry_after is not None and retry_after > self.policy.max_retry_after:
                # Nobody waits for so long, so nobody has to ask in the meantime.
                self._breaker.open_for(now, retry_after, random=random)
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


class FailureAction(StrEnum):
    """What follows a failure."""

    RETRY = "retry"
    """The same route again after its wait; the next, once its retries are gone."""
    FAILOVER = "failover"
    """The next route at once."""
    RAISE = "raise"
    """Nothing: what is wrong with the request is wrong on every route."""


FAILURE_ACTIONS: Final[Mapping[FailureKind, FailureAction]] = {
    # It passes, mostly within seconds.
    FailureKind.RATE_LIMIT: FailureAction.RETRY,
    FailureKind.UNAVAILABLE: FailureAction.RETRY,
    FailureKind.SERVER_ERROR: FailureAction.RETRY,
    FailureKind.CONFLICT: FailureAction.RETRY,
    FailureKind.CONNECTION: FailureAction.RETRY,
    FailureKind.INTERRUPTED: FailureAction.RETRY,
    FailureKind.MALFORMED: FailureAction.RETRY,
    # Time is what has run out; another try here would take as long again.
    FailureKind.TIMEOUT: FailureAction.FAILOVER,
    # Here it will not pass; elsewhere are another key, purse, model and context.
    FailureKind.QUOTA: FailureAction.FAILOVER,
    FailureKind.AUTHENTICATION: FailureAction.FAILOVER,
    FailureKind.PERMISSION: FailureAction.FAILOVER,
    FailureKind.NOT_FOUND: FailureAction.FAILOVER,
    FailureKind.CONTEXT_OVERFLOW: FailureAction.FAILOVER,
    FailureKind.CIRCUIT_OPEN: FailureAction.FAILOVER,
    FailureKind.UNKNOWN: FailureAction.FAILOVER,
    # Most real 4xx concern one route: its key, region, model, limits or parameters.
    FailureKind.INVALID_REQUEST: FailureAction.FAILOVER,
    # A refusal is an answer, and not to be routed around.
    FailureKind.CONTENT_FILTER: FailureAction.RAISE,
}
"""What follows each kind of failure, while there are retries, time and routes left."""

_ROUTING_TIME = SystemTime()


@dataclass(frozen=True, slots=True)
class RouteState:
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


class RoutedCallState(CallState):
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
        route_states: Sequence[RouteState],
        *,
        budget: RetryBudget | None = None,
        time: TimeSource = _ROUTING_TIME,
        after: Mapping[FailureKind, FailureAction] = FAILURE_ACTIONS,
    ) -> None:
        super().__init__(policy, budget=budget, time=time)
        self._doors = route_states
        self._after = after
        self._sent = [0] * len(route_states)
        self._told: set[int] = set()
        self._rival: _UnderWay | None = None
        self.position = 0

    @property
    def retries_enabled(self) -> bool:
        """Whether whoever retries on top of this call would multiply its load."""
        return super().retries_enabled or len(self._doors) > 1

    @property
    def attempts_here(self) -> int:
        """Attempts sent so far on the route under way."""
        return self._sent[self.position]

    @property
    def attempts(self) -> int:
        """Attempts sent so far, on all routes."""
        return sum(self._sent)

    def admit(self, route: str | None = None) -> Refusal | None:
        """Begin the next attempt on the first route that lets it through.

        If all refuse, the one that opens first gets a probe: the outage may be over.
        """
        del route  # It is this state that knows.
        refusals: dict[int, Refusal] = {}
        while self.position < len(self._doors):
            route_state = self._doors[self.position]
            self._breaker = route_state.breaker
            refusal = super().admit(route_state.name)
            if refusal is None:
                self._sent[self.position] += 1
                return None
            refusals[self.position] = refusal
            self._pass_by(route_state)
        if self.attempts == 0:
            for position in sorted(refusals, key=lambda p: refusals[p].retry_after):
                if self._probe(position):
                    return None
        return min(refusals.values(), key=lambda refusal: refusal.retry_after)

    def _probe(self, position: int) -> bool:
        breaker = self._doors[position].breaker
        permit = breaker.probe(self._time.monotonic()) if breaker is not None else None
        if not isinstance(permit, Permit):
            return False
        self.position, self._breaker, self._permit = position, breaker, permit
        self._start_record(self._doors[position].name)
        self._sent[position] += 1
        return True

    def attempt_timeout(self, *, is_stream: bool) -> float | None:
        """Seconds until the answer, or the first token, of the attempt just begun.

        A route without a limit of its own gets its share of what is left of the
        deadline, so that a silent one leaves time for the others.
        """
        limit = super().attempt_timeout(is_stream=is_stream)
        policy = self.policy
        own = policy.first_token_timeout if is_stream else policy.attempt_timeout
        if limit is None or own is not None:
            return limit
        later = range(self.position + 1, len(self._doors))
        others = sum(not self._is_closed(position) for position in later)
        return limit / (1 + others)

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
        self._breaker = self._doors[position].breaker
        return True

    def skip_refused(self) -> None:
        """Pass by routes whose breakers are open, if there is one that is not."""
        while self._is_closed(self.position) and self._next_open() is not None:
            self._pass_by(self._doors[self.position])

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
            super().cancelled()
        else:
            now = self._close_record(failure.kind.value, failure.status_code)
            self._record_outcome(failure, now)
        self._go_back_to(rival if has_won else mine)

    def cancelled(self) -> None:
        """Nobody waits for the call any longer; give back what it still holds."""
        self.settle_hedge(has_won=False)
        super().cancelled()

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

    def _what_now(
        self, failure: Failure, *, will_failover: bool, action: FailureAction | None
    ) -> Decision:
        del will_failover
        step = action or self._after[failure.kind]
        if step is FailureAction.RAISE:
            return Stop()
        decision: Decision = Stop()
        if step is FailureAction.RETRY:
            if action is not None and not failure.is_retryable:
                # The caller asked for it: wait as after any error of the server.
                failure = replace(
                    failure, kind=FailureKind.SERVER_ERROR, should_retry=None
                )
            decision = self._decide(failure, will_failover=False)
            if (
                isinstance(decision, Retry)
                and decision.delay > self.policy.failover_after_wait
                and self._next_open() is not None
            ):
                self._leave_alone(failure)
            else:
                decision = self._afford(failure, decision)
                if isinstance(decision, Retry):
                    return decision
        remaining = self.remaining()
        if remaining is not None and remaining <= 0:
            return Stop(f"the deadline of {self.policy.deadline:g} s is over")
        if self.go_on():
            return Retry(0.0)
        reason = decision.reason if isinstance(decision, Stop) else ""
        if len(self._doors) > 1:
            reason = f"{reason}, no route left" if reason else "no route left"
        return Stop(reason)

    def _leave_alone(self, failure: Failure) -> None:
        """Keep other calls from a route that asked for a long pause."""
        breaker = self._doors[self.position].breaker
        if breaker is not None and failure.retry_after:
            now = self._time.monotonic()
            breaker.open_for(now, failure.retry_after, random=self._time.random())

    def _pass_by(self, route_state: RouteState) -> None:
        self._note_closed(route_state)
        self.position += 1

    def _note_closed(self, route_state: RouteState) -> None:
        line = AttemptRecord(None, route_state.name, FailureKind.CIRCUIT_OPEN.value)
        self.records.append(line)

    def served_by(self) -> str | None:
        """The route of the attempt that the call is on."""
        return self.route

    def attempt_log(self) -> dict[str, Any]:
        """The call so far, as JSON-able data."""
        return {"route": self.served_by(), **super().attempt_log()}
