"""The retry loop of one request: `call` and `acall`.

tenacity runs the loop; `RetryController` answers its questions from the call's
`CallState`. Streams are in `streaming.py`, time limits of sync code in `timeouts.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, NoReturn, TypeAlias, TypeVar

from langchain_core.rate_limiters import BaseRateLimiter
from tenacity import (
    AsyncRetrying,
    RetryAction,
    RetryCallState,
    Retrying,
    retry_if_exception,
)

from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.limits import CallLimits
from langchain_retryrouter._retry.retry_after import Headers
from langchain_retryrouter._retry.timeouts import (
    WORKER_JOB,
    TimeLimitError,
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
)

Notify: TypeAlias = Callable[[RetryCallState], None]
ANotify: TypeAlias = Callable[[RetryCallState], Awaitable[None]]

T = TypeVar("T")

Step: TypeAlias = tuple[Callable[[], Any], Callable[[], Awaitable[Any]]]
"""What is to be done before an attempt: by sync code, and by async code."""

# Seconds between two questions to a rate limiter that must not block.
_RATE_LIMITER_INTERVAL = 0.1
_A_MOMENT = 0.01  # Seconds that a store may take to answer: no wait to report.


class LimiterWait(NamedTuple):
    """A wait for a rate limit; `seconds` is None if its end is not known."""

    limit: RateLimit
    route: str | None
    seconds: float | None


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
        rate_limiters: What is asked before an attempt on each route.
        should_failover: Whether an error that is final for its model may be followed
            by an attempt on another one.
        action: Returns what to do after an error instead of the action for its kind;
            None for that one.
        on_last: Called with the last event of a stream, once its answer is complete.
        is_buffered: Whether a stream is handed over only when its end is known to be
            good, so that all of it can be repeated.
        ends_call: Whether the call is over when the engine is; otherwise the caller
            calls `CallState.end`.
        continues: The error of a stream that broke off, which the next attempt goes on
            with: listeners hear of it as of one that an attempt follows.
    """

    call_state: CallState
    errors: ErrorFamily = field(default_factory=lambda: BASE_ERRORS)
    route: Callable[[], str | None] = lambda: None
    asked: Callable[[RetryRouterError], str | None] | None = None
    on_failure: Callable[[RetryRouterError], None] = lambda _: None
    rate_limiters: Sequence[BaseRateLimiter | None] = ()
    should_failover: Callable[[RetryRouterError], bool] = lambda _: False
    action: Callable[[RetryRouterError], FailureAction | None] = lambda _: None
    on_last: Callable[[Any], object] | None = None
    is_buffered: bool = False
    ends_call: bool = True
    continues: RetryRouterError | None = None

    def end(self, error: BaseException | None = None) -> None:
        """Tell the call's observers that it is over."""
        if self.ends_call:
            self.call_state.end(error)

    async def aend(self, error: BaseException | None = None) -> None:
        """Async variant of `end`; a task that is cancelled tells the observers, too."""
        try:
            if self.call_state.observers:
                await asyncio.shield(self.call_state.flush())
        finally:
            self.end(error)


class RetryController:
    """Retry decisions of one call, shared by the sync and async engine.

    `notify` is called before each wait; it may have a method `limiter_wait` that is
    called before a wait for a rate limit. Both are awaited if the call is async.
    """

    def __init__(
        self, context: RetryContext, notify: Any = None, *, is_stream: bool
    ) -> None:
        self.context = context
        self.call_state = context.call_state
        self.notify = notify
        self.is_stream = is_stream
        self._last_error: RetryRouterError | None = None
        self._may_have_run = False  # What any failed attempt says.
        self._is_over = False
        self._turn_at: int | None = None  # The route whose rate limiter has agreed.
        if (job := WORKER_JOB.get()) is not None:
            job.on_abort(self._abandon)

    def _abandon(self) -> None:
        """Make no further attempt: the thread that asked waits for none."""
        self._is_over = True

    def begin(self) -> Generator[Step | Attempt, Any, None]:
        """Begin the next attempt, when pauses and rate limits admit it.

        Each step that is yielded is to be done, and its result to be sent; the last one
        is the attempt. What observers await before it does not count in its time.

        Raises:
            RetryRouterError: There is none, since the deadline is over or all circuit
                breakers are open: the last attempt's error, or a `CircuitOpenError`.
        """
        state = self.call_state
        state.open()
        while not self._is_over:
            while wait := state.hold_wait():
                yield self._wait(wait)
            if state.limits is not None or any(self.context.rate_limiters):
                yield from self._pass_limits()
            if (self._last_error or self.context.continues) and state.remaining() <= 0:
                reason = "the deadline is over"
                self._stop(reason, reason)
            refusal = state.admit(self.context.route())
            if refusal is None:
                self._turn_at = None
                if state.observers:
                    yield (lambda: None), state.flush
                timeout = state.attempt_timeout(is_stream=self.is_stream)
                yield Attempt(state.attempts, timeout, state.header_reader())
                return
            wait = state.wait_after(refusal)
            if not wait:
                self._refuse(refusal)
            yield self._wait(wait)
        reason = "the call was given up"
        self._stop(reason, reason)

    def _wait(self, seconds: float) -> Step:
        clock = self.call_state.clock
        return partial(clock.sleep, seconds), partial(clock.asleep, seconds)

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
            is_probed = "another call is probing the provider"
            reason = f"the circuit breaker is half open; {is_probed}"
        why = f" ({refusal.why})" if refusal.why else ""
        msg = f"nothing was sent: {reason}{why}"
        raise self.context.errors[kind](msg, retry_after=asked_for, may_have_run=False)

    def _pass_limits(self) -> Generator[Step, Any, None]:
        """Wait for the rate limits and the rate limiter of the next route."""
        while not self.call_state.will_be_refused():
            yield from self._reserve()
            yield from self._take_turn()
            if self.call_state.is_reserved:
                return

    def _take_turn(self) -> Generator[Step, Any, None]:
        """Ask the rate limiter of the next route, once for an attempt.

        It may block if there is no deadline and no other route. A route that lets the
        call wait for longer than `failover_after_wait` is left for the next one.
        """
        state, clock = self.call_state, self.call_state.clock
        policy = state.policy
        may_block = policy.deadline is None and len(state.routes) == 1
        began = since = clock.monotonic()
        if not any(self.context.rate_limiters):
            return
        while not (self._turn_at == state.position or state.will_be_refused()):
            state.skip_refused()
            has_turn = True
            if (limiter := self.context.rate_limiters[state.position]) is not None:
                acquire = partial(limiter.acquire, blocking=may_block)
                aacquire = partial(limiter.aacquire, blocking=may_block)
                has_turn = (yield acquire, aacquire) is not False  # None admits.
            if has_turn:
                state.waited_for_limiter(clock.monotonic() - began)
                self._turn_at = state.position
                return
            now = clock.monotonic()
            if now - since >= policy.failover_after_wait and state.failover():
                since = now
                continue
            reason = "the rate limiter did not admit the request"
            if may_block:
                self._stop(reason, reason, FailureKind.RATE_LIMIT)
            remaining = state.remaining()
            if remaining <= 0:
                why = f"{reason} within {policy.deadline:g} s"
                self._stop("the deadline is over", why)
            yield self._wait(min(_RATE_LIMITER_INTERVAL, remaining))

    def _reserve(self) -> Generator[Step, Any, None]:
        """Reserve what the next attempt needs, on the route that is free first."""
        state, clock = self.call_state, self.call_state.clock
        began, waits = clock.monotonic(), 0
        while not state.is_reserved and (limits := state.limits) is not None:
            state.skip_refused()
            seconds = self._choose_route(limits, is_patient=not waits)
            free_at = clock.monotonic() + seconds
            if limits.try_reserve(state.position):
                state.waited_for_limiter(clock.monotonic() - began if waits else 0.0)
                return
            size = limits.size(state.position)
            others = len(state.candidates()) > 1
            route = state.next_route or self.context.route()
            known = None if seconds == math.inf else seconds
            tell = getattr(self.notify, "limiter_wait", None)
            taken: list[Reservation] = []
            try:
                for limit in limits.routes[state.position]:
                    left = self._patience(limit, free_at, began)
                    if tell is not None and seconds > _A_MOMENT:
                        telling = partial(tell, LimiterWait(limit, route, known))
                        yield telling, telling
                        # The listener may have taken its time.
                        left = self._patience(limit, free_at, began)
                    if others:
                        # Another route may be free then; each look costs the place in
                        # the queue, so there are ever fewer.
                        soon = state.policy.failover_after_wait
                        left = min(left, 2**waits * max(1.0, soon) if waits else soon)
                    patience = None if left == math.inf else left
                    one = yield (
                        partial(limit.reserve, size, patience),
                        partial(limit.areserve, size, patience),
                    )
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
            waits += 1

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
        if first is None:
            first = min(waits, key=lambda one: (waits[one], limits.waiting(one)))
        chosen = first
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

    def _patience(self, limit: RateLimit, free_at: float, began: float) -> float:
        """Seconds that a limit may be waited for; infinite without a deadline."""
        state, now = self.call_state, self.call_state.clock.monotonic()
        remaining, seconds = state.remaining(), max(0.0, free_at - now)
        # What is in flight may give something back, and shorten the wait.
        is_known = seconds < math.inf and not (limit.in_flight or limit.is_shared)
        if remaining <= 0 or (is_known and seconds > remaining):
            needs = f", and needs {seconds:.1f} s more" if seconds < math.inf else ""
            waited = f"within {now - began:.1f} s"
            why = (
                f"the rate limit {limit} did not admit the request {waited}{needs};"
                f" the deadline is {state.policy.deadline:g} s"
            )
            state.tell("limited", route=state.next_route)
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
        """Whether to stop in any case: tenacity repeats its own `TryAgain` for ever."""
        error = state.outcome.exception() if state.outcome is not None else None
        return not isinstance(error, RetryRouterError)

    def tenacity_rules(self) -> dict[str, Any]:
        """What tenacity's sync and async loop have in common."""
        return {
            "retry": retry_if_exception(self.should_retry),
            "stop": self.should_stop,
            "wait": self.delay,
            "reraise": True,
        }

    def delay(self, _state: RetryCallState | None = None) -> float:
        """Seconds to wait before the next attempt."""
        decision = self.call_state.decision
        return decision.delay if isinstance(decision, Retry) else 0.0

    def continued(self, retrying: Any) -> RetryCallState | None:
        """What listeners hear of a stream that the next attempt continues."""
        if (error := self.context.continues) is None:
            return None
        state = RetryCallState(retrying, None, (), {})
        state.attempt_number = self.call_state.attempts
        state.next_action = RetryAction(0.0)
        state.set_exception((type(error), error, error.__traceback__))
        return state

    def call_hook(self) -> None:
        """Call the policy's hook for the failure that another attempt follows."""
        policy = self.call_state.policy
        error = self._last_error or self.context.continues
        if error is None or (policy.on_retry is None and policy.on_failover is None):
            return
        next_route = self.call_state.next_route or self.context.route()
        is_same = next_route == error.route
        hook = policy.on_retry if is_same else policy.on_failover
        if hook is not None:
            number, delay = self.call_state.attempt, self.delay()
            hook(RetryEvent(number, error.route, error.kind, error, delay, next_route))

    def begin_wait(self, seconds: float) -> None:
        """A wait begins, unless a slow listener used up the time for it."""
        if self.call_state.stop_if_late() and self._last_error is not None:
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
            error.add_note(f"routes tried: {routes_tried}")
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
            f"not retried: {len(error.delivered)} characters were already delivered"
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
    controller = RetryController(context, notify, is_stream=False)
    state = context.call_state

    def send_in_time(attempt: Attempt) -> T:
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

    result = run(controller, send_in_time)
    if context.ends_call:
        state.end(None)
    return result


async def acall(
    context: RetryContext,
    send: Callable[[Attempt], Awaitable[T]],
    notify: ANotify | None = None,
) -> T:
    """Async variant of `call`."""
    controller = RetryController(context, notify, is_stream=False)

    async def send_in_time(attempt: Attempt) -> T:
        with context.call_state.attach(attempt.number):
            try:
                async with asyncio.timeout(attempt.timeout) as limit:
                    return await send(attempt)
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise controller.timed_out(attempt) from error

    result = await arun(controller, send_in_time)
    await context.aend()
    return result


def begin(controller: RetryController) -> Attempt:
    """Wait for what the next attempt needs, and begin it."""
    answer: Any = None
    with contextlib.closing(controller.begin()) as steps:
        while not isinstance(step := steps.send(answer), Attempt):
            answer = step[0]()
    return step


async def abegin(controller: RetryController) -> Attempt:
    """Async variant of `begin`."""
    answer: Any = None
    with contextlib.closing(controller.begin()) as steps:
        while not isinstance(step := steps.send(answer), Attempt):
            answer = await step[1]()
    return step


def run(controller: RetryController, send: Callable[[Attempt], T]) -> T:
    """The result of the first attempt that succeeds."""

    def attempt() -> T:
        return send(begin(controller))

    def before_sleep(state: RetryCallState) -> None:
        controller.call_hook()
        if controller.notify is not None:
            controller.notify(copy.copy(state))  # tenacity reuses its own.

    def sleep(seconds: float) -> None:
        controller.begin_wait(seconds)
        controller.call_state.clock.sleep(seconds)

    rules = controller.tenacity_rules()
    retrying = Retrying(**rules, before_sleep=before_sleep, sleep=sleep)
    try:
        if (state := controller.continued(retrying)) is not None:
            before_sleep(state)
        result = retrying(attempt)
        if not controller.is_stream:
            controller.call_state.succeeded(is_over=True)
    except BaseException as error:
        controller.finalize_error(error)
        controller.context.end(error)
        raise
    return result


async def arun(
    controller: RetryController, send: Callable[[Attempt], Awaitable[T]]
) -> T:
    """Async variant of `run`."""

    async def attempt() -> T:
        return await send(await abegin(controller))

    async def before_sleep(state: RetryCallState) -> None:
        await controller.call_state.flush()
        controller.call_hook()
        if controller.notify is not None:
            await controller.notify(copy.copy(state))

    async def sleep(seconds: float) -> None:
        controller.begin_wait(seconds)
        await controller.call_state.clock.asleep(seconds)

    rules = controller.tenacity_rules()
    retrying = AsyncRetrying(**rules, before_sleep=before_sleep, sleep=sleep)
    try:
        if (state := controller.continued(retrying)) is not None:
            await before_sleep(state)
        result: T = await retrying(attempt)
        if not controller.is_stream:
            controller.call_state.succeeded(is_over=True)
    except BaseException as error:
        controller.finalize_error(error)
        await controller.context.aend(error)
        raise
    return result
