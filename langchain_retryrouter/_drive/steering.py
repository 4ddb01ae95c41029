"""What both twins think: one call's answers to the questions that tenacity asks.

Nothing here waits or awaits. `Steering` turns a failed attempt into a decision by way
of the session, and writes on the error that leaves what became of the call.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from tenacity import RetryCallState

from langchain_retryrouter._core.breaker import Refusal
from langchain_retryrouter._core.decision import GiveUp, Retry
from langchain_retryrouter._core.failure import FailureKind
from langchain_retryrouter._core.session import RetrySession
from langchain_retryrouter._drive.clock import SYSTEM_CLOCK, Clock
from langchain_retryrouter.errors import BASE_ERRORS, ErrorFamily, RetryRouterError

Notify: TypeAlias = Callable[[RetryCallState], None]
ANotify: TypeAlias = Callable[[RetryCallState], Awaitable[None]]

# How often a rate limiter is asked where it must not be let wait.
_BETWEEN_LOOKS = 0.1


class RateLimiter(Protocol):
    """What says when a request may be sent; LangChain's `BaseRateLimiter` is one."""

    def acquire(self, *, blocking: bool = True) -> bool:
        """Whether a request may be sent: now, or once the wait for it is over."""

    async def aacquire(self, *, blocking: bool = True) -> bool:
        """Async twin of `acquire`."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request about to be sent.

    Attributes:
        number: Counted from 1.
        timeout: Seconds it has until its answer, or a stream's first token; None for no
            limit beyond the transport's own.
    """

    number: int
    timeout: float | None = None


@dataclass(slots=True)
class Plan:
    """What a call is made of beside its request.

    Attributes:
        session: The call's state under its policy.
        errors: Which classes the caller's `except` clauses know.
        clock: What waits, and tells the time.
        route: What is asked, for the ledger; called before each attempt.
        learn: Told of each failure that will be followed by another attempt.
        is_held_back: Whether a stream is handed over only once its end is known to be
            good, so that all of it can be repeated.
        leaves_behind: Whether a failure that is final for its route may be followed by
            an attempt on another one.
    """

    session: RetrySession
    errors: ErrorFamily = field(default_factory=lambda: BASE_ERRORS)
    clock: Clock = SYSTEM_CLOCK
    route: Callable[[], str | None] = lambda: None
    learn: Callable[[RetryRouterError], None] = lambda _: None
    rate_limiter: RateLimiter | None = None
    leaves_behind: Callable[[RetryRouterError], bool] = lambda _: False
    is_held_back: bool = False


class Steering:
    """What both twins think: answers tenacity's questions out of the session."""

    def __init__(self, plan: Plan, *, is_stream: bool) -> None:
        self.session = plan.session
        self.errors = plan.errors
        self.clock = plan.clock
        self.rate_limiter = plan.rate_limiter
        self._route = plan.route
        self._learn = plan.learn
        self._leaves_behind = plan.leaves_behind
        self.is_held_back = plan.is_held_back
        self._is_stream = is_stream
        self._last_error: RetryRouterError | None = None
        self._is_over = False

    def begin(self) -> Attempt:
        """The next attempt, or the error that stands in its way."""
        remaining = self.session.remaining()
        if remaining is not None and remaining <= 0 and self._last_error is not None:
            self._stop("the deadline is over")
            raise self._last_error
        refusal = self.session.admit(self._route())
        if refusal is None:
            return Attempt(self.session.attempts, self._attempt_timeout(remaining))
        self._is_over = True
        if self._last_error is not None:
            self._stop("the circuit breaker is open")
            raise self._last_error
        raise self.errors[FailureKind.CIRCUIT_OPEN](
            _tell_refusal(refusal),
            retry_after=refusal.retry_after,
            may_have_run=False,
        )

    @property
    def has_deadline(self) -> bool:
        """Whether the call has one."""
        return self.session.policy.deadline is not None

    def wants_turn(self) -> bool:
        """Whether the next attempt would be sent, if a rate limiter lets it."""
        return not self.session.will_be_refused()

    def had_turn(self, turn: object) -> None:
        """Go on, unless the rate limiter said no after all its waiting."""
        if turn is False:
            self._stop("the rate limiter gave no turn")
            raise self._last_error or self.errors[FailureKind.RATE_LIMIT](
                "nothing was sent: the rate limiter gave no turn", may_have_run=False
            )

    def next_look(self) -> float:
        """Seconds until the rate limiter is asked again; an error if none are left."""
        remaining = self.session.remaining() or 0.0
        if remaining > 0:
            return min(_BETWEEN_LOOKS, remaining)
        self._stop("the deadline is over")
        raise self._last_error or self.errors[FailureKind.TIMEOUT](
            "nothing was sent: the rate limiter gave no turn within"
            f" {self.session.policy.deadline:g} s",
            may_have_run=False,
        )

    def should_retry(self, state: RetryCallState) -> bool:
        """Whether to send the request again; the one decision after a failure."""
        error = _error_of(state)
        if error is None or self._is_over:
            return False
        self._last_error = error
        error.route = self.session.route
        decision = self.session.failed(
            error.failure, is_left_behind=self._leaves_behind(error)
        )
        if not isinstance(decision, Retry):
            return False
        self._learn(error)
        return True

    def must_stop(self, state: RetryCallState) -> bool:
        """Whether what failed is not ours to repeat.

        Asked only where we said that it is, or where tenacity does not ask us: for its
        own `TryAgain`, which it would repeat for ever.
        """
        return _error_of(state) is None

    def delay(self, _state: RetryCallState) -> float:
        """Seconds to wait first."""
        decision = self.session.decision
        return decision.delay if isinstance(decision, Retry) else 0.0

    def check_deadline(self) -> None:
        """Raise the last error if its wait no longer fits: its report took too long."""
        if self.session.outlasted() and self._last_error is not None:
            self._is_over = True
            raise self._last_error

    def conclude(self, error: BaseException) -> None:
        """Write on an error that leaves what became of the call."""
        session = self.session
        if not isinstance(error, RetryRouterError):
            session.abandoned()
            return
        error.attempts = session.attempts
        if itinerary := session.itinerary():
            error.add_note(f"asked in turn: {itinerary}")
        reason = session.decision.reason if isinstance(session.decision, GiveUp) else ""
        if not reason:
            return
        attempts = (
            "1 attempt" if session.attempts == 1 else f"{session.attempts} attempts"
        )
        error.add_note(
            f"gave up after {attempts}, {session.waited:.1f} s waited: {reason}"
        )
        if session.owns_retries:
            # Whoever retries on top of us would multiply the load. With our own
            # retries off, we are not the one who retries, and hide nothing.
            error.is_retryable = False

    def broke_off(self, error: RetryRouterError) -> None:
        """A stream failed after its first token: nothing can be repeated."""
        self.session.broke_off(error.failure)
        error.route = self.session.route
        error.attempts = self.session.attempts
        error.add_note(
            f"not repeated: {len(error.delivered)} characters were delivered"
        )

    def timed_out(self, seconds: float) -> RetryRouterError:
        """The error for an attempt that outlasted its own limit."""
        what = "no first token" if self._is_stream else "no answer"
        return self.errors[FailureKind.TIMEOUT](f"{what} within {seconds:.3g} s")

    def _attempt_timeout(self, remaining: float | None) -> float | None:
        first_token = (
            self.session.policy.first_token_timeout if self._is_stream else None
        )
        limits = [limit for limit in (remaining, first_token) if limit is not None]
        return max(0.001, min(limits)) if limits else None

    def _stop(self, reason: str) -> None:
        self._is_over = True
        self.session.abandoned()
        self.session.decision = GiveUp(reason)


def _error_of(state: RetryCallState) -> RetryRouterError | None:
    error = state.outcome.exception() if state.outcome is not None else None
    return error if isinstance(error, RetryRouterError) else None


def _tell_refusal(refusal: Refusal) -> str:
    if not refusal.retry_after:
        why = "half open, and another call is trying right now"
    else:
        why = f"open for another {max(0.1, refusal.retry_after):.1f} s"
    return f"nothing was sent: the circuit breaker is {why}"


def snapshot(state: RetryCallState) -> RetryCallState:
    """The state of a failed attempt, safe to keep: tenacity reuses its own."""
    return copy.copy(state)
