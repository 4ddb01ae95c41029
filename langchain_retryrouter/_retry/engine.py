"""One request, repeated while the policy allows: `call` and its twin `acall`."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, TypeVar

from tenacity import AsyncRetrying, RetryCallState, Retrying

from langchain_retryrouter._retry.call_state import CallState, Retry, Stop
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK, Clock
from langchain_retryrouter._retry.turnstile import go_on
from langchain_retryrouter.circuit_breaker import Refusal
from langchain_retryrouter.errors import BASE_ERRORS, ErrorFamily, RetryRouterError
from langchain_retryrouter.failures import FailureKind

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
class RetryContext:
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

    call_state: CallState
    errors: ErrorFamily = field(default_factory=lambda: BASE_ERRORS)
    clock: Clock = SYSTEM_CLOCK
    route: Callable[[], str | None] = lambda: None
    on_failure: Callable[[RetryRouterError], None] = lambda _: None
    rate_limiter: RateLimiter | None = None
    should_failover: Callable[[RetryRouterError], bool] = lambda _: False
    is_buffered: bool = False


class RetryController:
    """What both twins think: answers tenacity's questions out of the session."""

    def __init__(self, plan: RetryContext, *, is_stream: bool) -> None:
        self.call_state = plan.call_state
        self.errors = plan.errors
        self.clock = plan.clock
        self.rate_limiter = plan.rate_limiter
        self._route = plan.route
        self._learn = plan.on_failure
        self._leaves_behind = plan.should_failover
        self.is_buffered = plan.is_buffered
        self._is_stream = is_stream
        self._last_error: RetryRouterError | None = None
        self._is_over = False

    def begin(self) -> Attempt:
        """The next attempt, or the error that stands in its way."""
        remaining = self.call_state.remaining()
        if remaining is not None and remaining <= 0 and self._last_error is not None:
            self._stop("the deadline is over")
            raise self._last_error
        refusal = self.call_state.admit(self._route())
        if refusal is None:
            return Attempt(self.call_state.attempts, self._attempt_timeout(remaining))
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
        return self.call_state.policy.deadline is not None

    def wants_turn(self) -> bool:
        """Whether the next attempt would be sent, if a rate limiter lets it."""
        return not self.call_state.will_be_refused()

    def had_turn(self, turn: object) -> None:
        """Go on, unless the rate limiter said no after all its waiting."""
        if turn is False:
            self._stop("the rate limiter gave no turn")
            raise self._last_error or self.errors[FailureKind.RATE_LIMIT](
                "nothing was sent: the rate limiter gave no turn", may_have_run=False
            )

    def next_look(self) -> float:
        """Seconds until the rate limiter is asked again; an error if none are left."""
        remaining = self.call_state.remaining() or 0.0
        if remaining > 0:
            return min(_BETWEEN_LOOKS, remaining)
        self._stop("the deadline is over")
        raise self._last_error or self.errors[FailureKind.TIMEOUT](
            "nothing was sent: the rate limiter gave no turn within"
            f" {self.call_state.policy.deadline:g} s",
            may_have_run=False,
        )

    def should_retry(self, state: RetryCallState) -> bool:
        """Whether to send the request again; the one decision after a failure."""
        error = _error_of(state)
        if error is None or self._is_over:
            return False
        self._last_error = error
        error.route = self.call_state.route
        decision = self.call_state.failed(
            error.failure, will_failover=self._leaves_behind(error)
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
        decision = self.call_state.decision
        return decision.delay if isinstance(decision, Retry) else 0.0

    def check_deadline(self) -> None:
        """Raise the last error if its wait no longer fits: its report took too long."""
        if self.call_state.deadline_exceeded() and self._last_error is not None:
            self._is_over = True
            raise self._last_error

    def finalize_error(self, error: BaseException) -> None:
        """Write on an error that leaves what became of the call."""
        call_state = self.call_state
        if not isinstance(error, RetryRouterError):
            call_state.cancelled()
            return
        error.attempts = call_state.attempts
        if routes_tried := call_state.routes_tried():
            error.add_note(f"asked in turn: {routes_tried}")
        reason = (
            call_state.decision.reason if isinstance(call_state.decision, Stop) else ""
        )
        if not reason:
            return
        attempts = (
            "1 attempt"
            if call_state.attempts == 1
            else f"{call_state.attempts} attempts"
        )
        error.add_note(
            f"gave up after {attempts}, {call_state.waited:.1f} s waited: {reason}"
        )
        if call_state.retries_enabled:
            # Whoever retries on top of us would multiply the load. With our own
            # retries off, we are not the one who retries, and hide nothing.
            error.is_retryable = False

    def stream_interrupted(self, error: RetryRouterError) -> None:
        """A stream failed after its first token: nothing can be repeated."""
        self.call_state.stream_interrupted(error.failure)
        error.route = self.call_state.route
        error.attempts = self.call_state.attempts
        error.add_note(
            f"not repeated: {len(error.delivered)} characters were delivered"
        )

    def timed_out(self, seconds: float) -> RetryRouterError:
        """The error for an attempt that outlasted its own limit."""
        what = "no first token" if self._is_stream else "no answer"
        return self.errors[FailureKind.TIMEOUT](f"{what} within {seconds:.3g} s")

    def _attempt_timeout(self, remaining: float | None) -> float | None:
        first_token = (
            self.call_state.policy.first_token_timeout if self._is_stream else None
        )
        limits = [limit for limit in (remaining, first_token) if limit is not None]
        return max(0.001, min(limits)) if limits else None

    def _stop(self, reason: str) -> None:
        self._is_over = True
        self.call_state.cancelled()
        self.call_state.decision = Stop(reason)


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


def begin(controller: RetryController) -> Attempt:
    """The next attempt, or the error that stands in its way."""
    if controller.rate_limiter is not None and controller.wants_turn():
        _take_turn(controller, controller.rate_limiter)
    return controller.begin()


async def abegin(controller: RetryController) -> Attempt:
    """Async twin of `begin`."""
    if controller.rate_limiter is not None and controller.wants_turn():
        await _atake_turn(controller, controller.rate_limiter)
    await go_on()
    return controller.begin()


def _take_turn(controller: RetryController, limiter: RateLimiter) -> None:
    if not controller.has_deadline:
        controller.had_turn(limiter.acquire(blocking=True))
        return
    while limiter.acquire(blocking=False) is False:
        controller.clock.sleep(controller.next_look())


async def _atake_turn(controller: RetryController, limiter: RateLimiter) -> None:
    if not controller.has_deadline:
        controller.had_turn(await limiter.aacquire(blocking=True))
        return
    while await limiter.aacquire(blocking=False) is False:
        await controller.clock.asleep(controller.next_look())


T = TypeVar("T")


def call(
    plan: RetryContext, send: Callable[[Attempt], T], notify: Notify | None = None
) -> T:
    """The result of `send`, repeated while the plan's policy allows.

    Args:
        plan: The call's session, errors and clock.
        send: Sends one request; what it raises decides what happens next.
        notify: Told of each retry before its wait.

    Raises:
        RetryRouterError: The last attempt's own error, with a note saying why there was
            no further one.
    """
    controller = RetryController(plan, is_stream=False)
    result = retrying(plan, controller, lambda: send(begin(controller)), notify)
    plan.call_state.succeeded()
    return result


async def acall(
    plan: RetryContext,
    send: Callable[[Attempt], Awaitable[T]],
    notify: ANotify | None = None,
) -> T:
    """Async twin of `call`."""
    controller = RetryController(plan, is_stream=False)
    result = await aretrying(plan, controller, lambda: _asend(controller, send), notify)
    plan.call_state.succeeded()
    await go_on()
    return result


async def _asend(
    controller: RetryController, send: Callable[[Attempt], Awaitable[T]]
) -> T:
    attempt = await abegin(controller)
    if attempt.timeout is None:
        return await send(attempt)
    try:
        async with asyncio.timeout(attempt.timeout) as limit:
            return await send(attempt)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise controller.timed_out(attempt.timeout) from error


def retrying(
    plan: RetryContext,
    controller: RetryController,
    attempt: Callable[[], T],
    notify: Notify | None,
) -> T:
    """What `attempt` gives: its first run, or one of those that tenacity adds to it.

    The loop takes over at the first failure. Of most calls there is none, and they are
    not charged for one.
    """
    began = time.monotonic()
    failed: list[RetryRouterError] = []
    try:
        try:
            return attempt()
        except RetryRouterError as error:
            failed.append(error)
        return _repeating(plan, controller, notify, began)(_replayed(failed, attempt))
    except BaseException as error:
        controller.finalize_error(error)
        raise


async def aretrying(
    plan: RetryContext,
    controller: RetryController,
    attempt: Callable[[], Awaitable[T]],
    notify: ANotify | None,
) -> T:
    """Async twin of `retrying`."""
    began = time.monotonic()
    failed: list[RetryRouterError] = []
    try:
        try:
            return await attempt()
        except RetryRouterError as error:
            failed.append(error)
        await go_on()
        return await _arepeating(plan, controller, notify, began)(
            _areplayed(failed, attempt)
        )
    except BaseException as error:
        controller.finalize_error(error)
        raise


def _repeating(
    plan: RetryContext, controller: RetryController, notify: Notify | None, began: float
) -> Retrying:
    """The loop of tenacity's for a call that began at `began` on tenacity's clock."""

    def before(state: RetryCallState) -> None:
        state.start_time = began

    def before_sleep(state: RetryCallState) -> None:
        if notify is not None:
            notify(snapshot(state))

    def sleep(seconds: float) -> None:
        controller.check_deadline()
        plan.clock.sleep(seconds)

    return Retrying(
        retry=controller.should_retry,
        stop=controller.must_stop,
        wait=controller.delay,
        before=before,
        before_sleep=before_sleep,
        sleep=sleep,
        reraise=True,
    )


def _arepeating(
    plan: RetryContext,
    controller: RetryController,
    notify: ANotify | None,
    began: float,
) -> AsyncRetrying:
    """Async twin of `_repeating`."""

    def before(state: RetryCallState) -> None:
        state.start_time = began

    async def before_sleep(state: RetryCallState) -> None:
        if notify is not None:
            await notify(snapshot(state))

    async def sleep(seconds: float) -> None:
        controller.check_deadline()
        await plan.clock.asleep(seconds)

    return AsyncRetrying(
        retry=controller.should_retry,
        stop=controller.must_stop,
        wait=controller.delay,
        before=before,
        before_sleep=before_sleep,
        sleep=sleep,
        reraise=True,
    )


def _replayed(
    failed: list[RetryRouterError], attempt: Callable[[], T]
) -> Callable[[], T]:
    """`attempt`, whose first run has `failed` already; the list is emptied."""

    def run() -> T:
        if failed:
            raise failed.pop()  # Kept here it would keep itself, by its traceback.
        return attempt()

    return run


def _areplayed(
    failed: list[RetryRouterError], attempt: Callable[[], Awaitable[T]]
) -> Callable[[], Awaitable[T]]:
    """Async twin of `_replayed`; `async def`, since tenacity asks whether it is."""

    async def run() -> T:
        if failed:
            raise failed.pop()
        return await attempt()

    return run
