"""The one question after each failure: try again, and when, or give up, and why?

A pure function from what is known to what to do. It takes nothing from a budget and
waits for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from langchain_retryrouter._core.failure import Failure
    from langchain_retryrouter._core.policy import RetryPolicy


@dataclass(frozen=True, slots=True)
class Retry:
    """Send the request again after `delay` seconds."""

    delay: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Let the error out.

    Attributes:
        reason: Why, in words for the error's note; empty where the failure is final by
            its own nature and the error says it all.
    """

    reason: str = ""


Decision: TypeAlias = Retry | GiveUp


@dataclass(frozen=True, slots=True)
class Situation:
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
    chance: float
    is_left_behind: bool = False


def decide(policy: RetryPolicy, situation: Situation) -> Decision:
    """What to do after a failed attempt."""
    failure = situation.failure
    if not failure.is_retryable and not situation.is_left_behind:
        told = failure.should_retry is False
        return GiveUp("the server said not to retry" if told else "")
    if situation.attempt >= policy.max_attempts:
        return GiveUp("no retries left" if policy.max_retries else "retries are off")
    if not failure.is_retryable:
        return Retry(0.0)  # Another route has no share in it, and owes no wait.
    retry_after = failure.retry_after
    if retry_after is not None and retry_after > policy.max_retry_after:
        return GiveUp(
            f"Retry-After of {retry_after:g} s is above max_retry_after"
            f" of {policy.max_retry_after:g} s"
        )
    delay = policy.delay(situation.attempt, situation.chance, retry_after)
    if situation.remaining is not None and delay >= situation.remaining:
        return GiveUp(
            f"a wait of {delay:.1f} s would outlast the deadline of"
            f" {policy.deadline:g} s"
        )
    return Retry(delay)
