"""A purse for retries, shared by the calls of a process, so that an outage is not fed.

Retries are bought with tokens that successes earn back. When everything fails the
purse is empty after a few dozen retries, and from then on each call sends one request:
a sick provider sees the load of a healthy day, not a multiple of it.

The numbers are those of the AWS SDKs' standard retry mode ("Retry behavior", AWS SDKs
and Tools Reference Guide). This file does not know what a retry is sent to.
"""

from __future__ import annotations

import sys
import threading
from typing import Any, Self


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
