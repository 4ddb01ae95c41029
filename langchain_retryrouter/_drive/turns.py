"""Begins an attempt, when the rate limiter gives it its turn.

A limiter that many calls share may keep one waiting for long. So its turn comes before
the attempt, whose own time does not run meanwhile, and the call's deadline holds here
too: where there is one, the limiter is asked again and again instead of being let wait.
"""

from __future__ import annotations

from langchain_retryrouter._drive.steering import Attempt, RateLimiter, Steering
from langchain_retryrouter._drive.turnstile import go_on


def begin(steering: Steering) -> Attempt:
    """The next attempt, or the error that stands in its way."""
    if steering.rate_limiter is not None and steering.wants_turn():
        _take_turn(steering, steering.rate_limiter)
    return steering.begin()


async def abegin(steering: Steering) -> Attempt:
    """Async twin of `begin`."""
    if steering.rate_limiter is not None and steering.wants_turn():
        await _atake_turn(steering, steering.rate_limiter)
    await go_on()
    return steering.begin()


def _take_turn(steering: Steering, limiter: RateLimiter) -> None:
    if not steering.has_deadline:
        steering.had_turn(limiter.acquire(blocking=True))
        return
    while limiter.acquire(blocking=False) is False:
        steering.clock.sleep(steering.next_look())


async def _atake_turn(steering: Steering, limiter: RateLimiter) -> None:
    if not steering.has_deadline:
        steering.had_turn(await limiter.aacquire(blocking=True))
        return
    while await limiter.aacquire(blocking=False) is False:
        await steering.clock.asleep(steering.next_look())
