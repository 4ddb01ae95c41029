"""The retry loop of one request: `call` and `acall`.

tenacity runs the loop; `RetryController` answers its questions from the call's
`CallState`. Streams are in `streaming.py`, time limits of sync code in `timeouts.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field
from typing import (
    Any,
    NamedTuple,
    NoReturn,
    Protocol,
    TypeAlias,
    TypeVar,
    runtime_checkable,
)

from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception

from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.limits import CallLimits
from langchain_retryrouter._retry.retry_after import Headers
from langchain_retryrouter._retry.timeouts import (
    TimeLimitError,
    on_abort,
    run_with_timeout,
)
from langchain_retryrouter.circuit_breaker import Refusal
from langchain_retryrouter.errors import BASE_ERRORS, ErrorFamily, RetryRouterError
from langchain_retryrouter.failures import FailureAction, FailureKind
from langchain_retryrouter.policy import Retry, RetryEvent, Stop
from langchain_retryrouter.rate_limits import (
    RateLimit,
    RequestTooLargeError,
    Reservation,
    Size,
)

Notify: TypeAlias = Callable[[RetryCallState], None]
ANotify: TypeAlias = Callable[[RetryCallState], Awaitable[None]]

T = TypeVar("T")

# Seconds between two questions to a rate limiter whose own wait knows no deadline.
_RATE_LIMITER_INTERVAL = 0.1
_A_MOMENT = 0.01


class RateLimiter(Protocol):
    """Decides when a request may be sent; LangChain's `BaseRateLimiter` is one."""

    def acquire(self, *, blocking: bool = True) -> bool:
        """Whether a request may be sent: now, or when the wait for it is over."""

    async def aacquire(self, *, blocking: bool = True) -> bool:
        """Async variant of `acquire`."""


class LimiterWait(NamedTuple):
    """A wait for a rate limit; `seconds` is None if its end is not known."""

    limit: RateLimit
    size: Size
    patience: float | None
    route: str | None
    seconds: float | None

    @property
    def is_long(self) -> bool:
        """Whether it is more than the time that a store takes to answer."""
        return self.seconds is None or self.seconds > _A_MOMENT


Step: TypeAlias = float | bool | LimiterWait
"""Before an attempt: wait for so many seconds; ask the rate limiter, which may block
or not; or reserve."""


@runtime_checkable
class WaitListener(Protocol):
    """A `Notify` or `ANotify` that takes waits for rate limits, too."""

    def limiter_wait(self, wait: LimiterWait) -> Any:
        """Called before the wait, and awaited if it is async."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request about to be sent, whose answer or first token is due in `timeout`.

    `read_headers` is called with the headers of the answer; None if they make no
    difference.
    """

    number: int
    timeout: float | None = None
    read_headers: Callable[[Headers], object] | None = None


@dataclass(slots=True)
class RetryContext:
    """What a call consists of besides its request.

    Attributes:
        errors: The classes of the errors that the engine raises itself.
        route: Returns the model that the next attempt asks, for the attempt log.
        asked: Returns the model that a failed attempt has asked, or None if that is
            not known, where `route` may be wrong.
        on_failure: Called with each failure that another attempt follows.
        rate_limiter: Asked before each attempt.
        should_failover: Whether an error that is final for its model may be followed
            by an attempt on another one.
        action: Returns what to do after an error instead of the action for its kind;
            None for that one.
        on_last: Called with the last event of a stream, once its answer is complete.
        is_buffered: Whether a stream is handed over only when its end is known to be
            good, so that all of it can be repeated.
        ends_call: Whether the call is over when the engine is; otherwise the caller
            calls `CallState.end`.
    """

    call_state: CallState
    errors: ErrorFamily = field(default_factory=lambda: BASE_ERRORS)
    route: Callable[[], str | None] = lambda: None
    asked: Callable[[RetryRouterError], str | None] | None = None
    on_failure: Callable[[RetryRouterError], None] = lambda _: None
    rate_limiter: RateLimiter | None = None
    should_failover: Callable[[RetryRouterError], bool] = lambda _: False
    action: Callable[[RetryRouterError], FailureAction | None] = lambda _: None
    on_last: Callable[[Any], object] | None = None
    is_buffered: bool = False
    ends_call: bool = True

    def end(self, error: BaseException | None = None) -> None:
        """Tell the call's observers that it is over."""
        if self.ends_call:
            self.call_state.end(error)

    async def aend(self, error: BaseException | None = None) -> None:
        """Async variant of `end`, which observers may await before."""
        try:
            await self.call_state.flush()
        finally:
            self.end(error)  # Also if the task is cancelled just now.


class RetryController:
    """Retry decisions of one call, shared by the sync and async engine."""

    def __init__(self, context: RetryContext, *, is_stream: bool) -> None:
        self.context = context
        self.call_state = context.call_state
        self.is_stream = is_stream
        self._last_error: RetryRouterError | None = None
        self._may_have_run = False  # What any failed attempt says.
        self._is_over = False
        self._turn_at: int | None = None  # The route whose rate limiter has agreed.

    def begin(self) -> Generator[Step, Any, Attempt]:
        """Begin the next attempt, when pauses and rate limits admit it.

        Each step that is yielded is to be done, and its result to be sent.

        Raises:
            RetryRouterError: There is none, since the deadline is over or all circuit
                breakers are open: the last attempt's error, or a `CircuitOpenError`.
        """
        state = self.call_state
        state.open()
        while not self._is_over:
            while wait := state.hold_wait():
                yield wait
            while not (state.is_reserved or state.will_be_refused()):
                yield from self._reserve()
                yield from self._take_turn()
            if state.limits is None and self.context.rate_limiter is not None:
                yield from self._take_turn()
            if self._last_error is not None and state.remaining() <= 0:
                self._stop("the deadline is over")
            refusal = state.admit(self.context.route())
            if refusal is None:
                self._turn_at = None
                timeout = state.attempt_timeout(is_stream=self.is_stream)
                return Attempt(state.attempts, timeout, state.header_reader())
            wait = state.wait_after(refusal)
            if not wait:
                self._refuse(refusal)
            yield wait
        reason = "the call was given up"
        self._stop(reason, reason)

    def _refuse(self, refusal: Refusal) -> NoReturn:
        """Raise the last error, or one that says what refuses the first attempt."""
        if self._last_error is not None:
            self._stop(refusal.reason or "the circuit breaker is open")
        self._is_over = True
        kind, wait = FailureKind.CIRCUIT_OPEN, refusal.retry_after
        asked_for: float | None = wait
        if refusal.reason:
            kind, reason = FailureKind.SPEND_LIMIT, refusal.reason
            asked_for = wait if 0 < wait < math.inf else None
        elif wait:
            reason = f"the circuit breaker is open for another {max(0.1, wait):.1f} s"
        else:
            is_probed = "and another call is trying right now"
            reason = f"the circuit breaker is half open, {is_probed}"
        why = f" ({refusal.why})" if refusal.why else ""
        msg = f"nothing was sent: {reason}{why}"
        raise self.context.errors[kind](msg, retry_after=asked_for, may_have_run=False)

    def _take_turn(self) -> Generator[Step, Any, None]:
        """Ask the rate limiter, once for an attempt."""
        state, clock = self.call_state, self.call_state.clock
        if (
            self.context.rate_limiter is None
            or self._turn_at == state.position
            or state.will_be_refused()
        ):
            return
        began, deadline = clock.monotonic(), state.policy.deadline
        if deadline is None:
            if (yield True) is False:
                reason = "the rate limiter gave no turn"
                self._stop(reason, reason, FailureKind.RATE_LIMIT)
        else:
            while (yield False) is False:
                remaining = state.remaining()
                if remaining <= 0:
                    why = f"the rate limiter gave no turn within {deadline:g} s"
                    self._stop("the deadline is over", why)
                yield min(_RATE_LIMITER_INTERVAL, remaining)
        state.waited_for_limiter(clock.monotonic() - began)
        self._turn_at = state.position

    def _reserve(self) -> Generator[Step, Any, None]:
        """Reserve what the next attempt needs, on the route that is free first."""
        state, clock = self.call_state, self.call_state.clock
        began, has_waited = clock.monotonic(), False
        while not state.is_reserved and (limits := state.limits) is not None:
            state.skip_refused()
            seconds = self._choose_route(limits, is_patient=not has_waited)
            if limits.try_reserve(state.position):
                state.waited_for_limiter(has_waited * (clock.monotonic() - began))
                return
            size = limits.size(state.position)
            others = len(state.candidates()) > 1
            route = state.next_route or self.context.route()
            known = None if seconds == math.inf else seconds
            taken: list[Reservation] = []
            try:
                for limit in limits.routes[state.position]:
                    left = self._patience(limit, seconds, began)
                    if others and not has_waited:
                        left = min(left, state.policy.failover_after_wait)
                    patience = None if left == math.inf else left
                    one = yield LimiterWait(limit, size, patience, route, known)
                    if one is None:
                        break
                    taken.append(one)
                else:
                    limits.keep(state.position, taken)
                    state.waited_for_limiter(clock.monotonic() - began)
                    taken = []
                    return
            finally:
                for one in taken:
                    one.unsent()
            has_waited = True

    def _choose_route(self, limits: CallLimits, *, is_patient: bool) -> float:
        """Go to the route that is asked next; the seconds until it is free.

        That is the first one that is free soon, or else the one that is free first.
        """
        state = self.call_state
        waits: dict[int, float] = {}
        for position in state.candidates():
            try:
                waits[position] = limits.wait_for(position)
            except RequestTooLargeError as error:
                too_large = error
        if not waits:
            refusal = self.context.errors[FailureKind.RATE_LIMIT](
                f"nothing was sent: {too_large}", may_have_run=False, should_retry=False
            )
            state.tell("limited", route=state.next_route)
            self._stop("the request is larger than the rate limit", error=refusal)
        soon = state.policy.failover_after_wait if is_patient else 0.0
        first = next((one for one, wait in waits.items() if wait <= soon), None)
        chosen = min(waits, key=lambda one: waits[one]) if first is None else first
        if chosen != state.position:
            wait = waits.get(state.position)
            reason = (
                "the request is larger than its rate limit"
                if wait is None
                else "its rate limit is used up"
                if wait == math.inf
                else f"its rate limit is used up for {wait:.1f} s"
            )
            state.spill_over(chosen, reason)
        return waits[chosen]

    def _patience(self, limit: RateLimit, seconds: float, began: float) -> float:
        """Seconds that a limit may be waited for; infinite without a deadline."""
        remaining = self.call_state.remaining()
        # What is in flight may give something back, and shorten the wait.
        is_known = seconds < math.inf and not (limit.in_flight or limit.is_shared)
        if remaining <= 0 or (is_known and seconds > remaining):
            waited = self.call_state.clock.monotonic() - began
            needs = f", and needs {seconds:.1f} s more" if seconds < math.inf else ""
            why = (
                f"the rate limit {limit} gave no turn within {waited:.1f} s{needs};"
                f" the deadline is {self.call_state.policy.deadline:g} s"
            )
            self.call_state.tell("limited", route=self.call_state.next_route)
            self._stop("the deadline is over", why)
        return remaining

    def should_retry(self, error: BaseException) -> bool:
        """Whether to send the request again; the one decision after a failure."""
        if not isinstance(error, RetryRouterError) or self._is_over:
            return False
        self._last_error = error
        self._may_have_run = self._may_have_run or error.may_have_run
        self._name_route(error)
        decision = self.call_state.failed(
            error.failure,
            will_failover=self.context.should_failover(error),
            action=self.context.action(error),
        )
        if not isinstance(decision, Retry):
            return False
        self.context.on_failure(error)
        return True

    def should_stop(self, state: RetryCallState) -> bool:
        """Whether to stop although `should_retry` did not say so.

        tenacity repeats its own `TryAgain` for ever without asking `should_retry`.
        """
        error = state.outcome.exception() if state.outcome is not None else None
        return not isinstance(error, RetryRouterError)

    def delay(self, _state: RetryCallState | None = None) -> float:
        """Seconds to wait before the next attempt."""
        decision = self.call_state.decision
        return decision.delay if isinstance(decision, Retry) else 0.0

    def call_hook(self) -> None:
        """Call the policy's hook for the failure that another attempt follows."""
        policy, error = self.call_state.policy, self._last_error
        if error is None or (policy.on_retry is None and policy.on_failover is None):
            return
        next_route = self.call_state.next_route or self.context.route()
        is_same = next_route == error.route
        hook = policy.on_retry if is_same else policy.on_failover
        if hook is not None:
            number, delay = self.call_state.attempt, self.delay()
            hook(RetryEvent(number, error.route, error.kind, error, delay, next_route))

    def abandon(self) -> None:
        """Make no further attempt: the thread that asked waits for none."""
        self._is_over = True

    def begin_wait(self, seconds: float) -> None:
        """A wait begins, unless a slow listener used up the time for it."""
        if self.call_state.deadline_exceeded() and self._last_error is not None:
            self._is_over = True
            raise self._last_error
        self.call_state.waits(seconds)

    def finalize_error(self, error: BaseException) -> None:
        """Write into an error that leaves the call what became of the call."""
        state = self.call_state
        state.cancelled()  # A hook may have ended the call before a retry.
        if not isinstance(error, RetryRouterError):
            return
        error.attempts, error.attempt_log = state.attempts, state.attempt_log()
        error.may_have_run = error.may_have_run or self._may_have_run
        if routes_tried := state.routes_tried():
            error.add_note(f"asked in turn: {routes_tried}")
        reason = state.decision.reason if isinstance(state.decision, Stop) else ""
        if reason:
            attempts = f"{state.attempts} attempt" + "s" * (state.attempts != 1)
            error.add_note(
                f"gave up after {attempts}, {state.waited:.1f} s waited: {reason}"
            )
            if state.retries_enabled:
                # A caller that retried as well would multiply the load.
                error.is_retryable = False

    def stream_interrupted(self, error: RetryRouterError) -> None:
        """A stream failed after its first token: nothing can be repeated."""
        self.call_state.stream_interrupted(error.failure)
        self._name_route(error)
        error.attempts = self.call_state.attempts
        error.attempt_log = self.call_state.attempt_log()
        error.add_note(
            f"not repeated: {len(error.delivered)} characters were delivered"
        )

    def _name_route(self, error: RetryRouterError) -> None:
        """Write the model that was asked into the error and the attempt log."""
        if self.context.asked is not None:
            self.call_state.name_route(self.context.asked(error))
        error.route = self.call_state.route

    def timed_out(self, attempt: Attempt) -> RetryRouterError:
        """The error for an attempt that exceeded its own limit."""
        missing = "first token" if self.is_stream else "answer"
        return self.context.errors[FailureKind.TIMEOUT](
            f"no {missing} within {attempt.timeout or 0.0:.3g} s"
        )

    def _stop(
        self,
        reason: str,
        why: str = "",
        kind: FailureKind = FailureKind.TIMEOUT,
        error: RetryRouterError | None = None,
    ) -> NoReturn:
        """Raise the last error, or one that says why nothing was sent at all."""
        self._is_over = True
        self.call_state.cancelled()
        self.call_state.decision = Stop(reason)
        raise (
            self._last_error
            or error
            or self.context.errors[kind](f"nothing was sent: {why}", may_have_run=False)
        )


def begin(controller: RetryController, notify: Notify | None = None) -> Attempt:
    """Wait for what the next attempt needs, and begin it."""
    context = controller.context
    answer: Any = None
    with contextlib.closing(controller.begin()) as steps:
        while not isinstance(step := _next_step(steps, answer), Attempt):
            answer = None
            if isinstance(step, LimiterWait):
                if step.is_long and isinstance(notify, WaitListener):
                    notify.limiter_wait(step)
                answer = step.limit.reserve(step.size, step.patience)
            elif not isinstance(step, bool):
                context.call_state.clock.sleep(step)
            elif context.rate_limiter is not None:
                answer = context.rate_limiter.acquire(blocking=step)
    return step


async def abegin(controller: RetryController, notify: ANotify | None = None) -> Attempt:
    """Async variant of `begin`."""
    context = controller.context
    answer: Any = None
    with contextlib.closing(controller.begin()) as steps:
        while not isinstance(step := _next_step(steps, answer), Attempt):
            answer = None
            if isinstance(step, LimiterWait):
                if step.is_long and isinstance(notify, WaitListener):
                    await notify.limiter_wait(step)
                answer = await step.limit.areserve(step.size, step.patience)
            elif not isinstance(step, bool):
                await context.call_state.clock.asleep(step)
            elif context.rate_limiter is not None:
                answer = await context.rate_limiter.aacquire(blocking=step)
    return step


def _next_step(steps: Generator[Step, Any, Attempt], answer: Any) -> Step | Attempt:
    """The step that follows; apart, since a limiter may raise a StopIteration too."""
    try:
        return steps.send(answer)
    except StopIteration as begun:
        attempt: Attempt = begun.value
        return attempt


def call(
    context: RetryContext, send: Callable[[Attempt], T], notify: Notify | None = None
) -> T:
    """The result of `send`, repeated while the call's policy allows.

    If there is a time limit, `send` runs in a worker thread, and may return after the
    limit. `notify` is called before each wait.

    Raises:
        RetryRouterError: The last attempt's own error, with a note that says why there
            was no further attempt.
    """
    controller = RetryController(context, is_stream=False)
    state = context.call_state

    def attempt() -> T:
        attempt = begin(controller, notify)

        def send_attached() -> T:
            if not (state.observers or state.held_by):
                return send(attempt)
            with state.attach(attempt.number):
                return send(attempt)

        if attempt.timeout is None:
            return send_attached()
        try:
            return run_with_timeout(attempt.timeout, send_attached)
        except TimeLimitError as error:
            raise controller.timed_out(attempt) from error

    result = run(controller, attempt, notify)
    if context.ends_call:
        state.end(None)
    return result


async def acall(
    context: RetryContext,
    send: Callable[[Attempt], Awaitable[T]],
    notify: ANotify | None = None,
) -> T:
    """Async variant of `call`."""
    controller = RetryController(context, is_stream=False)
    state = context.call_state

    async def attempt() -> T:
        attempt = await abegin(controller, notify)
        await state.flush()
        with state.attach(attempt.number):
            try:
                async with asyncio.timeout(attempt.timeout) as limit:
                    return await send(attempt)
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise controller.timed_out(attempt) from error

    result = await arun(controller, attempt, notify)
    await context.aend()
    return result


def run(
    controller: RetryController, attempt: Callable[[], T], notify: Notify | None
) -> T:
    """The result of the first attempt that succeeds."""
    on_abort(controller.abandon)

    def before_sleep(state: RetryCallState) -> None:
        controller.call_hook()
        if notify is not None:
            notify(copy.copy(state))  # tenacity reuses its own.

    def sleep(seconds: float) -> None:
        controller.begin_wait(seconds)
        controller.call_state.clock.sleep(seconds)

    retrying = Retrying(
        retry=retry_if_exception(controller.should_retry),
        stop=controller.should_stop,
        wait=controller.delay,
        before_sleep=before_sleep,
        sleep=sleep,
        reraise=True,
    )
    try:
        result = retrying(attempt)
        if not controller.is_stream:
            controller.call_state.succeeded(is_over=True)
    except BaseException as error:
        controller.finalize_error(error)
        controller.context.end(error)
        raise
    return result


async def arun(
    controller: RetryController,
    attempt: Callable[[], Awaitable[T]],
    notify: ANotify | None,
) -> T:
    """Async variant of `run`."""

    async def before_sleep(state: RetryCallState) -> None:
        await controller.call_state.flush()
        controller.call_hook()
        if notify is not None:
            await notify(copy.copy(state))

    async def sleep(seconds: float) -> None:
        controller.begin_wait(seconds)
        await controller.call_state.clock.asleep(seconds)

    retrying = AsyncRetrying(
        retry=retry_if_exception(controller.should_retry),
        stop=controller.should_stop,
        wait=controller.delay,
        before_sleep=before_sleep,
        sleep=sleep,
        reraise=True,
    )
    try:
        result: T = await retrying(attempt)
        if not controller.is_stream:
            controller.call_state.succeeded(is_over=True)
    except BaseException as error:
        controller.finalize_error(error)
        await controller.context.aend(error)
        raise
    return result
