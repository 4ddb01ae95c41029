"""`SpendLimit`: money that may be spent in an hour, a day or a month.

An attempt reserves what it may cost before it is sent, and settles what it has cost
when it is over. `_router/costs.py` asks the limits of a call's routes.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import weakref
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NamedTuple, Self, TypeAlias

from langchain_retryrouter._retry.clock import SYSTEM_CLOCK, Clock

Period: TypeAlias = Literal["minute", "hour", "day", "month"]

_SECONDS: Final = {"minute": 60.0, "hour": 3600.0, "day": 86400.0}
_ROUNDING: Final = 1e-12


class Price(NamedTuple):
    """What an attempt is likely to cost, and the most it can, as far as is known."""

    estimate: float
    most: float


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a limit cannot pay for an attempt now.

    `wait` are the seconds until it can: 0 if attempts in flight hold money that they
    may give back, infinite for never.
    """

    reason: str
    wait: float


@dataclass(slots=True)
class SpendReservation:
    """The money of one attempt; settled once."""

    limit: SpendLimit
    began: float
    most: float

    def settle(self, cost: float) -> None:
        """The attempt is over, and cost so much."""
        self.limit.settle(self, cost)


class SpendLimit:
    """Money that the attempts of one or more routers may cost in a period.

    Give one object to all that share it: `RetryRouter(spend_limit=...)`, or
    `Route(spend_limit=...)` for one provider's. An attempt that would go beyond the
    limit is not sent: the next route is asked, or a `SpendLimitError` says when the
    period ends. Money in flight counts with the most that it can come to, so that
    callers at the same time overrun the limit by the under-estimate of one attempt at
    most. What an answer costs at most is known from `max_tokens`, or the model's
    profile; without both it is assumed, from the answers before.

    Thread-safe, for threads and event loops together. Copies of a model share it; a
    pickle has the numbers, and what was spent.

    Example:
        ```python
        from langchain_retryrouter import SpendLimit

        daily = SpendLimit(20, per="day")
        daily.left
        ```

    Args:
        amount: Money, in the currency of the routes' prices (US dollars if they come
            from `genai-prices`).
        per: The period: "minute", "hour", "day" or "month", in UTC, or seconds.
        name: What errors call it.
        clock: Tells the time, such as `testing.FakeClock`; None for the system's.

    Raises:
        ValueError: If a value is out of its range.
    """

    def __init__(
        self,
        amount: float,
        per: Period | float = "day",
        *,
        name: str = "",
        clock: Clock | None = None,
    ) -> None:
        """Nothing is spent so far."""
        if not is_positive(amount):
            msg = f"amount must be a finite number, more than 0, not {amount!r}"
            raise ValueError(msg)
        if per not in {*_SECONDS, "month"} and not is_positive(per):
            msg = f"per must be one of {[*_SECONDS, 'month']}, or seconds, not {per!r}"
            raise ValueError(msg)
        if not isinstance(name, str):
            msg = f"name must be a string, not {name!r}"
            raise ValueError(msg)  # noqa: TRY004 - pydantic reports ValueErrors
        self.amount, self.per, self.name = float(amount), per, name
        self._clock = clock
        self._began, self._ends = 0.0, -math.inf
        self._spent = 0.0
        self._held = 0.0  # What attempts in flight may come to.
        self._in_flight = 0
        self.start()

    def start(self) -> None:
        """Make a new lock: that of a forked process may be held for ever."""
        self._lock = threading.RLock()
        _limits.add(self)

    @property
    def spent(self) -> float:
        """Money that attempts of this period have cost so far."""
        with self._lock:
            self._roll()
            return self._spent

    @property
    def left(self) -> float:
        """Money that is neither spent nor held by attempts in flight."""
        with self._lock:
            self._roll()
            return max(0.0, self.amount - self._spent - self._held)

    @property
    def resets_in(self) -> float:
        """Seconds until the next period."""
        with self._lock:
            self._roll()
            return self._ends - self._now()

    def reserve(self, price: Price) -> SpendReservation | Shortage:
        """Money for an attempt, if it is there."""
        with self._lock:
            self._roll()
            left = self.amount - self._spent
            if price.estimate > left - self._held + _ROUNDING:
                return self._shortage(price, left)
            # Those who come now see what this one may come to.
            one = SpendReservation(self, self._began, max(price))
            self._held += one.most
            self._in_flight += 1
            return one

    def settle(self, one: SpendReservation, cost: float) -> None:
        """Count what an attempt has cost, in the period in which it began."""
        with self._lock:
            self._roll()
            if one.began == self._began and one.most >= 0:
                self._held = max(0.0, self._held - one.most)
                self._in_flight -= 1
                self._spent += cost
            one.most = -1.0  # A second time changes nothing.

    def _shortage(self, price: Price, left: float) -> Shortage:
        is_held = price.estimate <= left and self._in_flight > 0
        is_too_large = price.estimate > self.amount
        ends = self._ends - self._now()
        reason = (
            f"an attempt may cost {price.estimate:.4g}, and {self} has"
            f" {max(0.0, left - self._held):.4g} left"
        )
        if is_held:
            count = self._in_flight
            reason += (
                f": {count} attempt{'s' * (count != 1)} in flight may take the rest"
            )
        if is_too_large:
            return Shortage(f"{reason}, which is never enough", math.inf)
        return Shortage(
            f"{reason}; it resets in {ends:.0f} s", 0.0 if is_held else ends
        )

    def _roll(self) -> None:
        """Begin the next period if this one is over."""
        now = self._now()
        if self._began <= now < self._ends:
            return
        if self.per == "month":
            day = datetime.fromtimestamp(now, UTC)
            first = datetime(day.year, day.month, 1, tzinfo=UTC)
            following = (first + timedelta(days=32)).replace(day=1)
            self._began, self._ends = first.timestamp(), following.timestamp()
        else:
            seconds = _SECONDS.get(str(self.per)) or float(self.per)
            self._began = now // seconds * seconds
            self._ends = self._began + seconds
        self._spent, self._held, self._in_flight = 0.0, 0.0, 0

    def _now(self) -> float:
        return (self._clock or SYSTEM_CLOCK).time()

    def __copy__(self) -> Self:
        """The same object, which is to be shared."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The same object, which is to be shared."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """The numbers and what was spent, without the clock and what is in flight."""
        with self._lock:
            state = {**vars(self), "_clock": None, "_held": 0.0, "_in_flight": 0}
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore them."""
        vars(self).update(state)
        self.start()

    def __repr__(self) -> str:
        """The amount, the period and the name."""
        name = f", name={self.name!r}" if self.name else ""
        return f"{type(self).__name__}({self.amount:g}, per={self.per!r}{name})"


def is_positive(value: Any) -> bool:
    """Whether `value` is a finite number above 0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value <= sys.float_info.max


_limits: weakref.WeakSet[SpendLimit] = weakref.WeakSet()


def _forked() -> None:
    for limit in list(_limits):
        limit.start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
