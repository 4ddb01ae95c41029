"""One request, repeated while the policy allows: `call` and its twin `acall`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, Retrying

from langchain_retryrouter._drive.steering import (
    ANotify,
    Attempt,
    Notify,
    Plan,
    Steering,
    snapshot,
)
from langchain_retryrouter._drive.turns import abegin, begin
from langchain_retryrouter._drive.turnstile import go_on
from langchain_retryrouter.errors import RetryRouterError

T = TypeVar("T")


def call(plan: Plan, send: Callable[[Attempt], T], notify: Notify | None = None) -> T:
    """The result of `send`, repeated while the plan's policy allows.

    Args:
        plan: The call's session, errors and clock.
        send: Sends one request; what it raises decides what happens next.
        notify: Told of each retry before its wait.

    Raises:
        RetryRouterError: The last attempt's own error, with a note saying why there was
            no further one.
    """
    steering = Steering(plan, is_stream=False)
    result = retrying(plan, steering, lambda: send(begin(steering)), notify)
    plan.session.succeeded()
    return result


async def acall(
    plan: Plan,
    send: Callable[[Attempt], Awaitable[T]],
    notify: ANotify | None = None,
) -> T:
    """Async twin of `call`."""
    steering = Steering(plan, is_stream=False)
    result = await aretrying(plan, steering, lambda: _asend(steering, send), notify)
    plan.session.succeeded()
    await go_on()
    return result


async def _asend(steering: Steering, send: Callable[[Attempt], Awaitable[T]]) -> T:
    attempt = await abegin(steering)
    if attempt.timeout is None:
        return await send(attempt)
    try:
        async with asyncio.timeout(attempt.timeout) as limit:
            return await send(attempt)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise steering.timed_out(attempt.timeout) from error


def retrying(
    plan: Plan, steering: Steering, attempt: Callable[[], T], notify: Notify | None
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
        return _repeating(plan, steering, notify, began)(_replayed(failed, attempt))
    except BaseException as error:
        steering.conclude(error)
        raise


async def aretrying(
    plan: Plan,
    steering: Steering,
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
        return await _arepeating(plan, steering, notify, began)(
            _areplayed(failed, attempt)
        )
    except BaseException as error:
        steering.conclude(error)
        raise


def _repeating(
    plan: Plan, steering: Steering, notify: Notify | None, began: float
) -> Retrying:
    """The loop of tenacity's for a call that began at `began` on tenacity's clock."""

    def before(state: RetryCallState) -> None:
        state.start_time = began

    def before_sleep(state: RetryCallState) -> None:
        if notify is not None:
            notify(snapshot(state))

    def sleep(seconds: float) -> None:
        steering.check_deadline()
        plan.clock.sleep(seconds)

    return Retrying(
        retry=steering.should_retry,
        stop=steering.must_stop,
        wait=steering.delay,
        before=before,
        before_sleep=before_sleep,
        sleep=sleep,
        reraise=True,
    )


def _arepeating(
    plan: Plan, steering: Steering, notify: ANotify | None, began: float
) -> AsyncRetrying:
    """Async twin of `_repeating`."""

    def before(state: RetryCallState) -> None:
        state.start_time = began

    async def before_sleep(state: RetryCallState) -> None:
        if notify is not None:
            await notify(snapshot(state))

    async def sleep(seconds: float) -> None:
        steering.check_deadline()
        await plan.clock.asleep(seconds)

    return AsyncRetrying(
        retry=steering.should_retry,
        stop=steering.must_stop,
        wait=steering.delay,
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
