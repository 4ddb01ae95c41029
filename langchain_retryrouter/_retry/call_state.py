"""The state of one call: its attempts, and the decision after each failure.

`policy.decide` is the pure decision about one route. `CallState` adds what the call
shares or remembers: budget, circuit breakers, deadline, and the routes that a
`RetryRouter` has. The engine asks it; nothing here waits or sends. Its attempt log and
its observers are in `call_log.py`, its rate limits in `limits.py`.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from langchain_retryrouter._prices import tokens_of, usage_of
from langchain_retryrouter._retry.call_log import (
    AttemptRecord,
    CallLog,
    CallObserver,
    Subject,
    guarded,
    requests_in,
)
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK, Clock
from langchain_retryrouter._retry.health import RouteState
from langchain_retryrouter._retry.limits import CallLimits
from langchain_retryrouter._retry.retry_after import Headers, read_limits
from langchain_retryrouter.circuit_breaker import (
    LEASE_POLL,
    BreakerState,
    CircuitBreaker,
    Permit,
    Refusal,
)
from langchain_retryrouter.failures import (
    Failure,
    FailureAction,
    FailureKind,
    is_retryable,
)
from langchain_retryrouter.policy import (
    Decision,
    Retry,
    RetryBudget,
    RetryPolicy,
    Stop,
    decide,
)

OBSERVERS: Final[list[Callable[[CallState], CallObserver | None]]] = []
"""Make an observer of each call that begins, or None; usually there are none."""

_BROKE_OFF: Final = Stop("part of the answer was already delivered")
# A key that was refused while another one was not is left alone for so many seconds.
_REFUSED_HOLD = 300.0
_RATE_LIMIT_HOLD = 5.0  # Without `Retry-After`; LiteLLM's default.
_A_WAIT = 0.001  # Seconds: less is the time that it takes to ask.
_MONEY_INTERVAL = 0.05  # Seconds between two questions to a `SpendLimit`.
_FIRST_ATTEMPT = 0.05  # Seconds that it has if the deadline is over before it.
# One prompt may make any server fail so, and the server answers others all the while.
_MAYBE_THE_REQUESTS = frozenset(
    {FailureKind.SERVER_ERROR, FailureKind.MALFORMED, FailureKind.INTERRUPTED}
)
# What says nothing about a key, but about its provider.
_PROVIDERS_OWN = _MAYBE_THE_REQUESTS | frozenset(
    {FailureKind.UNAVAILABLE, FailureKind.CONFLICT, FailureKind.CONNECTION}
)
# What a server said for all processes, if they share the breaker.
_SAID = {
    FailureKind.QUOTA: "the quota is used up",
    FailureKind.AUTHENTICATION: "the key was refused",
    FailureKind.PERMISSION: "the key was refused",
}


@dataclass(slots=True)
class _RouteUse:
    """What one call has done on one of its routes."""

    sent: int = 0  # Attempts.
    moved_on: int = 0  # Attempts that only concern a key.
    not_before: float = 0.0  # When a wait that it needs is over.
    refused: FailureKind | None = None  # How its key was refused.
    is_left: bool = False  # It failed for good.
    is_spared: bool = False  # Another key of an endpoint that was silent.
    is_silent: bool = False  # Its last attempt timed out.
    was_probed: bool = False  # The call has passed its open breaker.
    was_skipped: bool = False  # The attempt log says so.
    was_full: bool = False  # Its rate limits were; another route was chosen.


class CallState(CallLog):
    """The state of one call, along `routes` or to one endpoint with a `breaker`.

    The deadline counts from `began`, by default from now. `max_retries` counts for each
    route, `actions` are for a call with routes,
    `request_hash` returns the same number for the same request, `describe` what the
    route at a position asks, for observers, and `limits` are the rate limits of the
    routes, by their position. So are `spend_limits`; `reserve` asks those.

    Attributes:
        routes: The routes; a single one without a name for a call without routes.
        position: The place of the route of the current or next attempt.
        decision: What followed the last failure.
        is_raised: Whether the last failure is for the caller to see.
    """

    _has_begun = False

    def __init__(
        self,
        policy: RetryPolicy,
        routes: Sequence[RouteState] | None = None,
        *,
        budget: RetryBudget | None = None,
        breaker: CircuitBreaker | None = None,
        time: Clock = SYSTEM_CLOCK,
        began: float | None = None,
        actions: Mapping[FailureKind, FailureAction] | None = None,
        request_hash: Callable[[], int | None] = lambda: None,
        describe: Callable[[int], Subject] = lambda _: Subject("chat", ""),
        limits: CallLimits | None = None,
        reserve: Callable[[int, int], Refusal | None] | None = None,
        spend_limits: Sequence[Sequence[object]] = (),
    ) -> None:
        super().__init__(time, describe, has_routes=routes is not None)
        self._began = time.monotonic()
        if limits is not None:
            self.held_by += (limits.routes,)
        if any(spend_limits):
            self.held_by += (spend_limits,)
        self.policy = policy
        began = self._began if began is None else began
        self._ends_at = began + (policy.deadline or math.inf)
        self.routes = [RouteState(None, breaker)] if routes is None else routes
        self.budget = budget
        self.limits = limits
        self._limiter_wait = 0.0  # Before the next attempt.
        self.position = 0
        self.decision: Decision | None = None
        self.is_raised = False
        self._actions = actions or {}
        self._request_hash = request_hash
        self._reserve_money = reserve
        self._uses: defaultdict[int, _RouteUse] = defaultdict(_RouteUse)
        self._is_interrupted = False  # Whether part of an answer was delivered.
        self._awaits_probe = False  # Whether the last resort waits for another probe.
        self._is_last_resort = False  # Whether the next attempt is one.
        self._held = 0.0  # Seconds waited in `hold_wait`.
        self._hedge: AttemptRecord | None = None
        self._spent = 0.0
        self._counted: set[int] = set()  # Breakers at which this call counted.

    def __del__(self) -> None:
        """A call that was lost, as by a loop that is closed before a stream is."""
        if self._has_begun:
            self.cancelled()

    def open(self) -> None:
        """The call begins, or goes on with the next pass of a stream."""
        if self._has_begun:
            return
        self._has_begun = True
        for new in OBSERVERS:
            observer = guarded(new, self)
            self.observers += [] if observer is None else [observer]
        is_priced = self.limits is not None or self.prices is not None
        self.wants_facts = bool(self.observers) or is_priced
        for record in self.records:
            self._tell_skipped(record)

    def answered(self, number: int, **facts: Any) -> None:
        """Tell observers, and rate limits, what the answer of an attempt says."""
        sent, usage = self._sent_attempt(number), facts.get("usage")
        if isinstance(usage, Mapping):
            facts["usage"] = sent.usage = usage = usage_of(usage)
            counts = tokens_of(usage) if sent.reservations else None
            # No prompt has no tokens: 0 says nothing, but of an answer from a cache.
            if counts is not None and (any(counts) or "total_cost" in usage):
                for one in sent.reservations:
                    one.used = counts
        for observer in self.observers:
            guarded(observer.answered, number, facts)

    @property
    def elapsed(self) -> float:
        """Seconds since the call was made."""
        return self.clock.monotonic() - self._began

    @property
    def next_route(self) -> str | None:
        """The route of the next attempt; None for a call without routes."""
        return self.routes[self.position].name

    @property
    def retries_enabled(self) -> bool:
        """Whether a caller's own retries would multiply with this call's attempts."""
        return self.policy.max_retries > 0 or len(self.routes) > 1

    def remaining(self) -> float:
        """Seconds until the deadline, below 0 after it; infinite if there is none."""
        if self.policy.deadline is None:
            return math.inf
        return self._ends_at - self.clock.monotonic()

    def attempt_timeout(self, *, is_stream: bool) -> float | None:
        """Seconds until the answer, or the first token, of the current attempt is due.

        A route without a limit of its own gets its share of what is left of the
        deadline, so that a silent one leaves time for the others.
        """
        policy, limit = self.policy, self.remaining()
        own = policy.first_token_timeout if is_stream else policy.attempt_timeout
        if own is not None:
            limit = min(own, limit)
        elif limit < math.inf:
            later = range(self.position + 1, len(self.routes))
            asked = [self.position, *(p for p in later if not self._is_open(p))]
            # Of the keys of an endpoint that is silent only one is waited for.
            limit /= len({self.routes[p].endpoint or p for p in asked})
        else:
            return None
        return limit if limit > 0 else _FIRST_ATTEMPT

    def will_be_refused(self) -> bool:
        """Whether the circuit breakers would refuse an attempt now."""
        is_refused = self._is_open(self.position) and self._next_open() is None
        return is_refused and not self._is_last_resort

    def hold_wait(self) -> float:
        """Seconds to wait before `admit`, since servers asked for a pause everywhere.

        Or since the store has not yet said which process probes. 0 if a route may be
        asked now, or if waiting would take longer than the deadline or
        `max_retry_after` allows.
        """
        if not self.has_routes:
            breaker = self.routes[0].breaker
            if breaker is None or not breaker.is_shared:
                return 0.0
            wait, pause = breaker.lease_wait(), breaker.pause
            if wait is None and breaker.retry_after > pause:
                return 0.0  # After the pause it would refuse the call.
            return self._spread(pause) if wait is None else wait
        for position in range(self.position, len(self.routes)):
            breaker = self.routes[position].breaker
            if breaker is not None and not self._is_used_up(position):
                if wait := breaker.lease_wait():
                    return wait
                if wait is not None:
                    break
        shortest = math.inf
        for position in self._from_here(is_last_resort=self._is_last_resort):
            wait = self._wait_for(position, awaits_probe=self._awaits_probe)
            if wait == 0:
                return 0.0
            shortest = min(shortest, math.inf if wait is None else wait)
        if shortest == math.inf:
            return 0.0
        breaker = self.routes[self.position].breaker
        if breaker is not None and breaker.pause:
            return self._spread(shortest)
        return self._held_for(shortest)

    def _spread(self, pause: float) -> float:
        """The wait for a pause that all processes know of."""
        if not pause:
            return 0.0
        wait = self.policy.delay(1, self.clock.random(), pause)
        return self._held_for(wait) or self._held_for(pause)

    def _held_for(self, wait: float) -> float:
        """A wait, as far as the call has the time for it, or else 0."""
        if wait >= self.remaining() or self._held + wait > self.policy.max_retry_after:
            return 0.0
        self._held += wait
        if wait:
            self.waits(wait)
        return wait

    def wait_after(self, refusal: Refusal) -> float:
        """Seconds until `admit`, which has refused, is asked again; 0 for never.

        A server may have asked for a pause while the call waited for its limits; and
        money that other attempts hold may be left over.
        """
        if not refusal.reason:
            return self.hold_wait()
        if refusal.is_asked:
            return max(0.0, min(LEASE_POLL, self.remaining()))
        return 0.0 if refusal.retry_after else self._held_for(_MONEY_INTERVAL)

    def admit(self, route: str | None = None) -> Refusal | None:
        """Begin the next attempt, on the first route whose breaker permits it.

        If all refuse, the one that opens first gets a probe: the outage may be over. If
        that is refused too, the earliest refusal is returned.
        """
        refusals: dict[int, Refusal] = {}
        is_last_resort, self._is_last_resort = self._is_last_resort, False
        for position in self._from_here(is_last_resort=is_last_resort):
            attempt = self._begin(position, route, as_probe=is_last_resort)
            if isinstance(attempt, AttemptRecord):
                self.position, self._current = position, attempt
                return None
            refusals[position] = attempt
            if attempt.is_asked and self.remaining() > 0:
                self._is_last_resort = is_last_resort
                return attempt  # Not the next route, before the store has answered.
            is_held = bool(attempt.reason) and not attempt.retry_after
            if self.has_routes and not is_held:
                self._skip_once(position, attempt.reason)
        for position in sorted(refusals, key=lambda p: refusals[p].retry_after):
            if self.has_routes and self._wait_for(position) == 0:
                attempt = self._begin(position, route, as_probe=True)
                if isinstance(attempt, AttemptRecord):
                    self.position, self._current = position, attempt
                    return None
        self._refund()
        first = min(refusals.values(), key=lambda refusal: refusal.retry_after)
        if not first.reason or len(refusals) == 1:
            return first
        names = {self.routes[p].name: one.reason for p, one in refusals.items()}
        said = (f"{name}: {reason}" for name, reason in names.items() if reason)
        return replace(first, reason="; ".join(said))

    def begins_to_answer(self) -> None:
        """The first token of the current attempt has come.

        It ends a probe: other calls are not refused until a long answer is whole, or
        until its caller has read it.
        """
        attempt = self._current
        breaker, permit = self.routes[attempt.position].breaker, attempt.permit
        if breaker is not None and permit is not None and permit.is_probe:
            attempt.permit = breaker.probe_answers(permit)
            self.tell("breaker", route=attempt.route, now=breaker.state)

    def succeeded(self, *, is_over: bool = False) -> None:
        """The current attempt brought a complete answer.

        Its rate limits are settled if it is over: the usage of a stream, and the end of
        its connection, come after the answer.
        """
        if self.budget is not None:
            self.budget.succeeded()
        self._close_record(self._current, "ok")
        self._release(self._current, None)
        if is_over:
            self._cancel(self._current)
        # Hold the keys that were refused, now that another route has answered. A 403
        # may be the request's fault, unless another key of the group had none.
        answered = self.routes[self.position].group
        for position, use in self._uses.items():
            kind, group = use.refused, self.routes[position].group
            if kind is None or group is None or position == self.position:
                continue
            if kind is not FailureKind.PERMISSION or group == answered:
                self._hold(position, _REFUSED_HOLD, _SAID[kind])

    def failed(
        self,
        failure: Failure,
        *,
        will_failover: bool = False,
        action: FailureAction | None = None,
    ) -> Decision:
        """The current attempt failed; the decision is also kept in `decision`.

        `will_failover` is whether the next attempt of a call without routes would ask
        another model; a call with routes takes `action` instead of that for the kind.
        """
        self.settle_hedge(has_won=False)
        self._settle(self._current, failure)
        self.decision = self._decide(failure, action, will_failover=will_failover)
        if isinstance(self.decision, Retry):
            self._current.wait = self.decision.delay
        return self.decision

    def stream_interrupted(self, failure: Failure) -> None:
        """The current attempt failed after its first token; it is not repeated."""
        self._settle(self._current, failure)
        self._is_interrupted = True
        self.decision = _BROKE_OFF

    @property
    def broke_off(self) -> bool:
        """Whether the last attempt failed after its first token."""
        return self.decision is _BROKE_OFF

    def name_route(self, name: str | None) -> None:
        """Correct the model that the current attempt asks; None if it is not known."""
        record = self._current
        record.reason = None if name else f"{record.route} or another of the list"
        record.route = name

    def cancelled(self) -> None:
        """The call is over: release permits and budget tokens that it still holds."""
        self.settle_hedge(has_won=False)
        self._cancel(self._current)
        self._refund()

    def stop_if_late(self) -> bool:
        """Stop if the coming wait no longer fits, since a listener took its time."""
        decision = self.decision
        if not isinstance(decision, Retry) or decision.delay < self.remaining():
            return False
        self._current.wait = 0.0
        self._refund()
        self.decision = Stop(f"the deadline of {self.policy.deadline:g} s is over")
        return True

    def failover(self) -> bool:
        """Move on to the next route that may be asked; False if there is none."""
        following = self._next_open()
        end = len(self.routes) if following is None else following
        for position in range(self.position + 1, end):
            if self._is_open(position):
                self._skip_once(position)
        if following is None:
            return False
        self.position = following
        return True

    def candidates(self) -> list[int]:
        """The routes that may be asked next, the current one first."""
        full = (p for p in range(self.position) if self._uses[p].was_full)
        earlier = (p for p in full if not (self._is_used_up(p) or self._is_open(p)))
        others = () if self._is_last_resort else (*earlier, *self._later_open())
        return [self.position, *others]

    def spill_over(self, position: int, reason: str) -> None:
        """Go to another route, since the rate limits of those before it are full."""
        for skipped in [one for one in self.candidates() if one < position]:
            self.tell("limited", route=self.routes[skipped].name)
            self._record_skipped(skipped, reason)
            self._uses[skipped].was_full = True
        self.position = position

    def waited_for_limiter(self, seconds: float) -> None:
        """A rate limit or limiter has let the next attempt wait for so long."""
        if seconds >= _A_WAIT:
            self._limiter_wait += seconds

    @property
    def is_reserved(self) -> bool:
        """Whether the next attempt has what it reserves, as far as it has limits."""
        return self.limits is None or self.limits.reserved_at == self.position

    def header_reader(self) -> Callable[[Headers], None] | None:
        """What takes the headers of the current attempt's answer, if they count."""
        if self.limits is None:
            return None
        return functools.partial(self.read_headers, self.attempts)

    def read_headers(self, number: int, headers: Any) -> None:
        """Correct the rate limits by the headers of an attempt's answer, if there."""
        reserved = self._sent_attempt(number).reservations
        adaptive = [one for one in reserved if one.is_adaptive]
        if not (adaptive and isinstance(headers, Mapping)):
            return
        texts = {str(name): str(value) for name, value in headers.items()}
        if limits := read_limits(texts, unix_time=self.clock.time()):
            for one in adaptive:
                one.observe(limits)

    def sent_inside(self, number: int, log: Mapping[str, Any] | None) -> None:
        """An attempt was a call with attempts of its own: each is a request."""
        count = requests_in(log)
        for one in self._sent_attempt(number).reservations:
            one.requests = max(one.requests, count)

    def resent(self, number: int, failure: Failure) -> None:
        """An attempt sends its request again: one more for the rate limits."""
        for one in self._sent_attempt(number).reservations:
            one.requests += 1
        super().resent(number, failure)

    def _sent_attempt(self, number: int) -> AttemptRecord:
        """The attempt of this number, if it is under way or the latest; or an empty."""
        for sent in (self._current, self._hedge):
            if sent is not None and sent.number == number:
                return sent
        return AttemptRecord(None)

    def skip_refused(self) -> None:
        """Move on past routes whose breakers are open, if another one is not."""
        if self._is_last_resort:
            return  # It is probed: the others have failed, or asked for a pause.
        while self._is_open(self.position) and self._next_open() is not None:
            self._skip_once(self.position)
            self.position += 1

    def resume(self) -> bool:
        """Move on to a route that continues an interrupted stream; False for none."""
        self.decision = None  # What follows may be refused, and breaks nothing off.
        return self.remaining() > 0 and (self.failover() or self._resort() is not None)

    def hedge(self, may_send: Callable[[int], bool]) -> int | None:
        """Begin an attempt on the next open route while the current one goes on.

        It is paid for from the budget like a retry, since it is additional load.
        `may_send` is asked whether its route's rate limiter admits it. The place of the
        route; None if there is none that does, or the budget is empty.
        """
        position = self._next_open()
        if position is None or not self._pay(throttled=False):
            return None
        attempt: AttemptRecord | Refusal | None = None
        is_free = self.limits is None or self.limits.try_reserve(position)
        if is_free and may_send(position):
            attempt = self._begin(position, None)
        if not isinstance(attempt, AttemptRecord):
            self._refund()
            return None
        self._hedge = attempt
        self.tell("hedge_began", route=attempt.route)
        return position

    def ends_call(self, failure: Failure | None) -> bool:
        """Whether a failure is raised by its kind, whichever route is left."""
        kind = None if failure is None else failure.kind
        return kind is not None and self._actions.get(kind) is FailureAction.RAISE

    def settle_hedge(self, *, has_won: bool, failure: Failure | None = None) -> None:
        """Go on with the attempt that `hedge` began, if it has won, or the other one.

        `failure` is how the loser failed; None if it was cancelled.
        """
        hedge, self._hedge = self._hedge, None
        if hedge is None:
            return
        loser = hedge
        if has_won:
            loser, self._current, self.position = self._current, hedge, hedge.position
        if failure is None:
            self._cancel(loser)
        else:
            self._settle(loser, failure)
        self.tell("hedge_settled", has_won=has_won, route=self.route)

    def _decide(
        self, failure: Failure, action: FailureAction | None, *, will_failover: bool
    ) -> Decision:
        if not self.has_routes:
            return self._decide_here(failure, will_failover=will_failover)
        chosen = action or self._actions[failure.kind]
        if chosen is FailureAction.RAISE:
            self.is_raised = True
            return Stop()
        stop, position = Stop(), self.position
        use = self._uses[position]
        use.is_silent = failure.kind is FailureKind.TIMEOUT
        if use.is_silent:
            # Not waited for with the other keys of its endpoint if there is another.
            keys = {key for key in self._same_endpoint(position) if key != position}
            if keys and any(p not in keys for p in self._later_open()):
                for key in keys:
                    self._uses[key].is_spared = self._uses[key].is_silent = True
        pause = failure.retry_after or 0.0
        if chosen is FailureAction.FAILOVER and not use.is_silent:
            pause = max(pause, self.policy.backoff(use.sent))
        use.not_before = self.clock.monotonic() + pause
        if failure.kind in _SAID:
            use.refused = failure.kind
            use.moved_on += 1
        is_limited = failure.kind is FailureKind.RATE_LIMIT and action is None
        use.moved_on += is_limited
        if is_limited and self._next_has_same("group"):
            self._hold(position, failure.retry_after or _RATE_LIMIT_HOLD)
        elif chosen is FailureAction.RETRY:
            use.moved_on -= is_limited
            if action is not None and not failure.is_retryable:
                # The caller asked for it: wait as after any error of the server.
                kind = FailureKind.SERVER_ERROR
                failure = replace(failure, kind=kind, should_retry=None)
            decision = self._decide_here(failure, will_failover=False)
            is_left = isinstance(decision, Stop) or self.position != position
            if is_left and failure.kind is not FailureKind.REJECTED:
                # Its wait was too long for now; it is not asked again without it.
                pause = max(pause, self.policy.backoff(use.sent))
                use.not_before = self.clock.monotonic() + pause
            if isinstance(decision, Retry):
                if failure.kind in _PROVIDERS_OWN and self._next_has_same("endpoint"):
                    self.failover()
                return decision
            stop = decision
        use.is_left = use.is_left or not failure.is_retryable
        if self.remaining() <= 0:
            return Stop(f"the deadline of {self.policy.deadline:g} s is over")
        if self.failover():
            return Retry(0.0)
        delay = self._resort()
        if delay is not None:
            return Retry(delay)
        has_repeated = failure.is_retryable and self.attempts > 1
        if len(self.routes) == 1 and (stop.reason or not has_repeated):
            return stop
        return Stop(", ".join(filter(None, (stop.reason, "no route left"))))

    def _next_has_same(self, attribute: str) -> bool:
        """Whether the next open route is of the same `group`, or `endpoint`."""
        following = self._next_open()
        own = getattr(self.routes[self.position], attribute)
        if following is None or own is None:
            return False
        return bool(getattr(self.routes[following], attribute) == own)

    def _same_endpoint(self, position: int) -> list[int]:
        """The routes that differ from this one by their keys only, and this one."""
        endpoint = self.routes[position].endpoint
        if endpoint is None:
            return [position]
        return [p for p, one in enumerate(self.routes) if one.endpoint == endpoint]

    def _attempts_at(self, position: int) -> int:
        """Attempts that count for `max_retries`: those of an endpoint's keys together.

        An outage of the provider is not asked about with every key.
        """
        keys = self._same_endpoint(position)
        sent = self._uses[position].sent
        if len(keys) == 1:
            return sent
        uses = [self._uses[key] for key in keys]
        return max(sent, sum(use.sent - use.moved_on for use in uses))

    def _hold(self, position: int, seconds: float, why: str = "") -> None:
        breaker = self.routes[position].breaker
        if breaker is not None:
            breaker.open_for(seconds, why)
            name = self.routes[position].name
            self.tell("breaker", route=name, now=BreakerState.OPEN)

    def _decide_here(self, failure: Failure, *, will_failover: bool) -> Decision:
        """The decision about another attempt on the same route."""
        decision = decide(
            self.policy,
            failure,
            attempt=self._attempts_at(self.position),
            remaining=self.remaining(),
            random=self.clock.random(),
            will_failover=will_failover,
        )
        if isinstance(decision, Stop):
            return decision
        if self._is_open(self.position, decision.delay):
            return Stop("the circuit breaker is open")
        limit, asked = self.policy.failover_after_wait, failure.retry_after
        if decision.delay > limit and self.has_routes:
            if self._next_open() is None:
                other = self._resort(shorter_than=decision.delay)
                if other is not None:
                    return Retry(other)
            elif asked and asked <= limit:
                # The server asked for less: only the jitter on top is too long.
                jitter = max(limit - asked, min(asked, 1.0))
                decision = Retry(asked + self.clock.random() * jitter)
            else:
                if asked:
                    self._hold(self.position, asked)  # For other calls, too.
                return Stop("the wait is longer than failover_after_wait")
        if not self._pay(throttled=failure.kind is FailureKind.RATE_LIMIT):
            return Stop("retry budget empty")
        return decision

    def _resort(self, *, shorter_than: float = math.inf) -> float | None:
        """Go back to a route that has attempts left, before the call gives up.

        It was left since its answer did not come or broke off, the wait was long, or
        its breaker is open; a breaker that stays open is passed once. Where the server
        asked for a pause, it is waited for.

        The seconds to wait before the attempt; None if there is no such route. It is
        asked with the wait that the call has to make otherwise, on the current route.
        """
        # An outage of all routes is not waited for. But if one route failed for good,
        # or the caller has the beginning of the answer, another one's may be over. And
        # a route that was not asked yet is probed, if need be after another call.
        uses = [self._uses[position] for position in range(len(self.routes))]
        is_early = self._is_interrupted or any(use.is_left for use in uses)
        if all(use.is_silent for use in uses) and not is_early:
            return None  # A second round of silence would be as slow.
        waits: list[tuple[float, bool, int]] = []
        for position, use in enumerate(uses):
            is_current = position == self.position and shorter_than < math.inf
            soon = self.policy.failover_after_wait
            was_probed = use.was_probed and self._is_open(position, soon)
            if is_current or was_probed or self._is_used_up(position):
                continue
            is_probed = is_early or not use.sent
            wait = self._wait_for(position, is_early=is_probed, awaits_probe=is_probed)
            if wait is None or wait > self.policy.max_retry_after:
                continue
            if wait > LEASE_POLL:
                wait = self.policy.delay(1, self.clock.random(), wait)
            waits.append((wait, position == self.position, position))
        wait, _, position = min(waits, default=(math.inf, False, 0))
        if wait >= min(shorter_than, self.remaining()):
            return None
        failures = (r.failure for r in reversed(self.records) if r.position == position)
        last = next((failure for failure in failures if failure is not None), None)
        throttled = last is not None and last.kind is FailureKind.RATE_LIMIT
        use = uses[position]
        if use.sent and not self._pay(throttled=throttled):
            return None
        use.was_probed = use.was_probed or self._is_open(position)
        self.position, self._is_last_resort = position, True
        self._awaits_probe = is_early or not use.sent
        return wait

    def _wait_for(
        self, position: int, *, is_early: bool = True, awaits_probe: bool = False
    ) -> float | None:
        """Seconds until a route can be asked, by a probe if need be; None if never."""
        asked = self._uses[position].not_before - self.clock.monotonic()
        breaker = self.routes[position].breaker
        if breaker is None:
            return max(0.0, asked)
        held = breaker.probe_wait(
            is_early=is_early, is_first=not self.attempts, awaits_probe=awaits_probe
        )
        return None if held is None else max(0.0, asked, held)

    def _is_used_up(self, position: int) -> bool:
        """Whether this call does not ask a route again."""
        retries, use = self.policy.max_retries, self._uses[position]
        # Another key of an endpoint is tried once at least, but none twice for that.
        is_spent = self._attempts_at(position) > max(retries, 1)
        return use.is_left or use.is_spared or is_spent or use.sent > retries

    def _begin(
        self, position: int, route: str | None, *, as_probe: bool = False
    ) -> AttemptRecord | Refusal:
        """Begin an attempt on a route, if its breaker and the money permit it."""
        state = self.routes[position]
        permit: Permit | Refusal | None = None
        if state.breaker is not None:
            permit = state.breaker.admit(is_early=as_probe)
        if isinstance(permit, Refusal):
            return permit
        if self._reserve_money is not None:
            refusal = self._reserve_money(position, self.attempts + 1)
            if refusal is not None:
                if state.breaker is not None and permit is not None:
                    state.breaker.cancelled(permit)
                return refusal
        if permit is not None and permit.is_probe:
            self.tell("breaker", route=state.name or route, now=BreakerState.HALF_OPEN)
        self.attempts += 1
        record = AttemptRecord(self.attempts, state.name or route)
        record.began, record.position, record.permit = self.elapsed, position, permit
        record.limiter_wait, self._limiter_wait = self._limiter_wait, 0.0
        if self.limits is not None:
            record.reservations = self.limits.take(position)
        self._spent = 0.0  # The retry that was paid for is sent.
        self.records.append(record)
        self._uses[position].sent += 1
        for observer in self.observers:
            guarded(observer.attempt_began, record)
        return record

    def _from_here(self, *, is_last_resort: bool) -> Iterator[int]:
        """The current route, and those after it unless this is the last resort."""
        yield self.position
        for position in range(self.position + 1, len(self.routes)):
            if not (is_last_resort or self._is_used_up(position)):
                yield position

    def _later_open(self) -> Iterator[int]:
        """The routes after the current one that may be asked now."""
        for position in range(self.position + 1, len(self.routes)):
            if not (self._is_used_up(position) or self._is_open(position)):
                yield position

    def _next_open(self) -> int | None:
        return next(self._later_open(), None)

    def _is_open(self, position: int, delay: float = 0.0) -> bool:
        """Whether the breaker of a route will refuse attempts after `delay` seconds."""
        breaker = self.routes[position].breaker
        if breaker is None:
            return False
        # A call to a single endpoint waits for a short pause.
        is_paused = self.has_routes and breaker.pause > delay
        return is_paused or breaker.retry_after > delay

    def _skip_once(self, position: int, reason: str = "") -> None:
        use = self._uses[position]
        if not use.was_skipped:
            use.was_skipped = True
            self._record_skipped(position, reason)

    def _record_skipped(self, position: int, reason: str) -> None:
        outcome = "skipped" if reason else FailureKind.CIRCUIT_OPEN.value
        record = AttemptRecord(None, self.routes[position].name, outcome)
        record.reason, record.began = reason or None, self.elapsed
        self.records.append(record)
        self._tell_skipped(record)

    def _settle(self, attempt: AttemptRecord, failure: Failure) -> None:
        self._close_record(attempt, failure.kind.value, failure)
        for one in attempt.reservations:
            one.failed(failure)
        self._release(attempt, failure)

    def _release(self, attempt: AttemptRecord, failure: Failure | None) -> None:
        """Settle the permit of an attempt that has failed, or else succeeded."""
        breaker, permit = self.routes[attempt.position].breaker, attempt.permit
        if breaker is None or permit is None:
            return
        attempt.permit = None
        before: BreakerState | None = None
        if self.observers:
            before = BreakerState.HALF_OPEN if permit.is_probe else breaker.state
        if failure is None:
            breaker.succeeded(permit)
        else:
            self._settle_permit(breaker, permit, failure)
        if before is not None and (now := breaker.state) is not before:
            self.tell("breaker", route=attempt.route, now=now)

    def _settle_permit(
        self, breaker: CircuitBreaker, permit: Permit, failure: Failure
    ) -> None:
        kind, retry_after = failure.kind, failure.retry_after
        if kind is FailureKind.UNKNOWN:
            breaker.cancelled(permit)  # It says nothing about the provider.
            return
        if breaker.is_shared and self.has_routes and kind in _SAID:
            # All processes leave a route whose server refuses the key or the quota.
            if permit.is_probe:
                breaker.failed(permit, retry_after=retry_after)
            elif kind is FailureKind.PERMISSION:
                breaker.succeeded(permit)
                breaker.refused(self._request_hash())  # It may be the request's fault.
            else:
                breaker.cancelled(permit)
                pause = max(breaker.recovery_time, retry_after or 0.0)
                breaker.open_for(pause, _SAID[kind])
            return
        # By its kind: `x-should-retry: false` says nothing about the provider's health.
        if not is_retryable(kind) or kind is FailureKind.REJECTED:
            breaker.succeeded(permit)  # A provider that refuses a request is alive.
            return
        if id(breaker) in self._counted:
            # Attempts of the same call are not independent evidence.
            breaker.cancelled(permit)
        else:
            self._counted.add(id(breaker))
            # A prompt may take any server longer than the limit, or to its end.
            is_suspect = kind in _MAYBE_THE_REQUESTS or (
                kind in {FailureKind.CONNECTION, FailureKind.TIMEOUT}
                and failure.may_have_run
            )
            request = self._request_hash() if is_suspect else None
            breaker.failed(permit, retry_after=retry_after, request=request)
        if retry_after is not None and retry_after > self.policy.max_retry_after:
            # No call waits for so long, so no call has to ask in the meantime.
            breaker.open_for(retry_after)
        elif retry_after and breaker.is_shared:
            breaker.pause_for(retry_after)

    def _cancel(self, attempt: AttemptRecord) -> None:
        if attempt.outcome == "pending":
            self._close_record(attempt, "cancelled")
        for one in attempt.reservations:
            (one.succeeded if attempt.outcome == "ok" else one.cancelled)()
        breaker, permit = self.routes[attempt.position].breaker, attempt.permit
        if breaker is not None and permit is not None:
            attempt.permit = None
            breaker.cancelled(permit)

    def _close_record(
        self, attempt: AttemptRecord, outcome: str, failure: Failure | None = None
    ) -> None:
        attempt.outcome, attempt.failure = outcome, failure
        attempt.seconds = self.elapsed - attempt.began
        health = self.routes[attempt.position].health
        if health is not None and outcome != "cancelled":  # Which says nothing.
            health.note(failure, attempt.seconds, self.clock.monotonic())
        for observer in self.observers:
            guarded(observer.attempt_ended, attempt)

    def _pay(self, *, throttled: bool) -> bool:
        """Take the price of an attempt from the budget; False if it is too low."""
        if self.budget is None:
            return True
        spent = self.budget.spend(throttled=throttled)
        self._spent = spent or 0.0
        return spent is not None

    def _refund(self) -> None:
        if self.budget is not None and self._spent:
            self.budget.refund(self._spent)
        self._spent = 0.0
        if self.limits is not None:
            self.limits.drop()
