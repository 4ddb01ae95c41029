"""A purse for retries, shared by the calls of a process, so that an outage is not fed.

Retries are bought with tokens that successes earn back. When everything fails the
purse is empty after a few dozen retries, and from then on each call sends one request:
a sick provider sees the load of a healthy day, not a multiple of it.

The numbers are those of the AWS SDKs' standard retry mode ("Retry behavior", AWS SDKs
and Tools Reference Guide). This file does not know what a retry is sent to.
"""

from __future__ import annotations

import functools
import math
import sys
import threading
from dataclasses import dataclass, replace
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class WorstCase:
    """What a policy may cost at the most; `str()` says it in one sentence.

    Attributes:
        requests: Requests sent at the most.
        waited: Seconds waited between them at the most.
        seconds: Seconds until the caller has an answer or an error at the most; None
            if nothing bounds a single attempt.
    """

    requests: int
    waited: float
    seconds: float | None

    def __str__(self) -> str:
        """The worst case in one sentence."""
        requests = "1 request" if self.requests == 1 else f"{self.requests} requests"
        total = (
            "no bound on the time of an attempt"
            if self.seconds is None
            else f"over after {self.seconds:.1f} s"
        )
        return f"at most {requests}, {self.waited:.1f} s of waiting, {total}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often a failed attempt is repeated, and how long is waited in between.

    The first five names are those of LangChain's `ModelRetryMiddleware`.

    Attributes:
        max_retries: Further attempts after the first; 0 sends one request.
        initial_delay: Seconds: the longest wait before the first retry. Where
            1,000 clients failed at the same instant, the default keeps the busiest
            100 ms of their first retries below 12 % of them.
        max_delay: Seconds: the longest wait that back-off ever grows to.
        backoff_factor: What the wait is multiplied by from retry to retry; 0 keeps it
            at `initial_delay`.
        jitter: Whether to wait a random part of the back-off ("full jitter", AWS
            Architecture Blog, "Exponential Backoff And Jitter", 2015), so that clients
            which failed together do not come back together.
        max_retry_after: Seconds: a server that asks for more than this is not waited
            for; the call gives up at once.
        deadline: Seconds for the whole call with all attempts and waits; None for no
            limit. No wait is begun that cannot end in time.
        attempt_timeout: Seconds one attempt without a stream may take; None for no
            limit beyond the model's own timeout and the deadline. In a `RetryRouter`
            with a deadline, a route with others behind it then gets its share of what
            is left.
        failover_after_wait: Seconds: a `RetryRouter` with another route left does not
            wait longer than this; it asks that route at once.
        first_token_timeout: Seconds a stream may take from its request to its first
            token; None for no limit beyond the model's own timeout.
        stall_timeout: Seconds a stream may be silent between two events after that.

    Raises:
        ValueError: If a number is out of its range; the message names it.
    """

    max_retries: int = 2
    initial_delay: float = 1.5
    max_delay: float = 8.0
    backoff_factor: float = 2.0
    jitter: bool = True
    max_retry_after: float = 60.0
    deadline: float | None = None
    attempt_timeout: float | None = None
    first_token_timeout: float | None = None
    stall_timeout: float | None = None
    failover_after_wait: float = 3.0

    def __post_init__(self) -> None:
        """Refuse what no call could follow."""
        _check_retries(self.max_retries)
        for name in (
            "initial_delay",
            "max_delay",
            "backoff_factor",
            "max_retry_after",
            "failover_after_wait",
        ):
            _check_seconds(name, getattr(self, name), above_zero=False)
        for name in (
            "deadline",
            "attempt_timeout",
            "first_token_timeout",
            "stall_timeout",
        ):
            value = getattr(self, name)
            if value is not None:
                _check_seconds(name, value, above_zero=True)
        if not isinstance(self.jitter, bool):
            msg = f"jitter must be True or False, not {self.jitter!r}"
            raise ValueError(msg)  # noqa: TRY004 - pydantic reports ValueErrors

    @property
    def max_attempts(self) -> int:
        """Requests sent at the most, `max_retries + 1`; converted nowhere else."""
        return self.max_retries + 1

    def backoff(self, retry: int) -> float:
        """The longest wait in seconds before the `retry`-th retry (counted from 1)."""
        if not self.backoff_factor:
            return min(self.max_delay, self.initial_delay)
        try:
            grown = self.initial_delay * self.backoff_factor ** (retry - 1)
        except OverflowError:
            return self.max_delay if self.initial_delay else 0.0
        return min(self.max_delay, grown)

    def delay(self, retry: int, random: float, retry_after: float | None) -> float:
        """Seconds to wait before the `retry`-th retry.

        Without word from the server: full jitter, `chance x backoff(retry)`. With it:
        what it asked for, and with jitter the same random part of the back-off on top,
        since everybody it turned away was told the same number. A back-off that is too
        short for that is stretched to what the server asked for, up to 1 s.

        Args:
            retry: The retry that comes next, counted from 1.
            chance: A random number in `[0, 1)`.
            retry_after: Seconds the server asked for; None or 0 if it did not.
        """
        longest = self.backoff(retry)
        if not self.jitter:
            return max(longest, retry_after or 0.0)
        if not retry_after:
            return random * longest
        spread = max(longest, min(retry_after, 1.0))
        return retry_after + random * spread

    def explain(self, attempt_timeout: float | None = None) -> WorstCase:
        """What a call under this policy costs at the most, before anything runs.

        Args:
            attempt_timeout: Seconds a single attempt may take; None for the policy's.
        """
        if attempt_timeout is None:
            attempt_timeout = self.attempt_timeout
        waited = sum(
            self._longest_wait(retry) for retry in range(1, self.max_retries + 1)
        )
        seconds = (
            None
            if attempt_timeout is None
            else attempt_timeout * self.max_attempts + waited
        )
        if self.deadline is not None:
            waited = min(waited, self.deadline)
            seconds = min(math.inf if seconds is None else seconds, self.deadline)
        return WorstCase(requests=self.max_attempts, waited=waited, seconds=seconds)

    def _longest_wait(self, retry: int) -> float:
        # Waits grow with chance and with Retry-After, and end where these do.
        return self.delay(retry, 1.0, self.max_retry_after)


@functools.lru_cache(maxsize=128)
def effective_policy(given: RetryPolicy | None, max_retries: int) -> RetryPolicy:
    """The policy of a call, from what a model was given.

    Args:
        given: The model's `retry_policy`; None for the default numbers.
        max_retries: The model's own number of retries, which wins.
    """
    return replace(given or RetryPolicy(), max_retries=max_retries)


def _check_retries(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        msg = (
            f"max_retries must be a whole number, 0 or more, not {value!r}"
            " (0 sends one request and never repeats it)"
        )
        raise ValueError(msg)


def _check_seconds(name: str, value: Any, *, above_zero: bool) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= sys.float_info.max or (above_zero and not value):
        least = "more than 0" if above_zero else "0 or more"
        hint = "; leave it None for no limit" if above_zero else ""
        msg = f"{name} must be a finite number, {least}, not {value!r}{hint}"
        raise ValueError(msg)


class RetryBudget:
    """A token bucket that retries draw from; hand one object to all that share it.

    Thread-safe, and deliberately one object: a copy or deep copy of a model shares its
    budget. A pickle carries the numbers and the tokens left, but not the sharing.

    Args:
        capacity: Tokens in a full bucket, which is how it starts.
        retry_cost: Tokens a retry costs.
        throttled_cost: Tokens a retry costs after a 429, where the server is alive and
            pacing its clients.
        success_gain: Tokens each success gives back.

    Raises:
        ValueError: If a number is negative, not finite, or not a number.
    """

    def __init__(
        self,
        *,
        capacity: float = 500,
        retry_cost: float = 14,
        throttled_cost: float = 5,
        success_gain: float = 1,
    ) -> None:
        self._settings = {
            "capacity": capacity,
            "retry_cost": retry_cost,
            "throttled_cost": throttled_cost,
            "success_gain": success_gain,
        }
        for name, value in self._settings.items():
            _check_tokens(name, value)
        self._tokens = float(capacity)
        self._lock = threading.Lock()

    @property
    def tokens(self) -> float:
        """Tokens left."""
        return self._tokens

    def spend(self, *, throttled: bool = False) -> float | None:
        """The tokens taken for one retry; None and nothing taken if there are too few.

        Args:
            throttled: Whether the retry follows a rate limit.
        """
        cost = self._settings["throttled_cost" if throttled else "retry_cost"]
        with self._lock:
            if self._tokens < cost:
                return None
            self._tokens -= cost
        return cost

    def refund(self, tokens: float) -> None:
        """Put back what was taken for a retry that was never sent."""
        with self._lock:
            self._tokens = min(self._settings["capacity"], self._tokens + tokens)

    def succeeded(self) -> None:
        """Earn what a success gives back."""
        self.refund(self._settings["success_gain"])

    def __copy__(self) -> Self:
        """The same object: sharing is what a budget is for."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The same object: sharing is what a budget is for."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """The numbers and the tokens left; a lock cannot travel."""
        return _restore_budget, (type(self), self._settings, self._tokens)

    def __repr__(self) -> str:
        """Tokens left of how many."""
        capacity = self._settings["capacity"]
        return f"{type(self).__name__}({self._tokens:g} of {capacity:g} tokens)"


def _restore_budget(
    cls: type[RetryBudget], settings: dict[str, float], tokens: float
) -> RetryBudget:
    budget = cls(**settings)
    budget._tokens = tokens
    return budget


def _check_tokens(name: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= sys.float_info.max:
        msg = f"{name} must be a finite number of tokens, 0 or more, not {value!r}"
        raise ValueError(msg)
