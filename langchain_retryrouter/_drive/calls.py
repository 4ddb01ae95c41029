"""One request, repeated while the policy allows: `call` and its twin `acall`."""

from __future__ import annotations

import asyncio
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
    def before_sleep(state: RetryCallState) -> None:
        if notify is not None:
            notify(snapshot(state))

    def sleep(seconds: float) -> None:
        steering.check_deadline()
        plan.clock.sleep(seconds)

    driver = Retrying(
        retry=steering.should_retry,
        stop=steering.must_stop,
        wait=steering.delay,
        before_sleep=before_sleep,
        sleep=sleep,
        reraise=True,
    )
    try:
        return driver(attempt)
    except BaseException as error:
        steering.conclude(error)
        raise


async def aretrying(
    plan: Plan,
    steering: Steering,
    attempt: Callable[[], Awaitable[T]],
    notify: ANotify | None,
) -> T:
    async def before_sleep(state: RetryCallState) -> None:
        if notify is not None:
            await notify(snapshot(state))

    async def sleep(seconds: float) -> None:
        steering.check_deadline()
        await plan.clock.asleep(seconds)

    async def run() -> T:
        return await attempt()

    driver = AsyncRetrying(
        retry=steering.should_retry,
        stop=steering.must_stop,
        wait=steering.delay,
        before_sleep=before_sleep,
        sleep=sleep,
        reraise=True,
    )
    try:
        return await driver(run)
    except BaseException as error:
        steering.conclude(error)
        raise
