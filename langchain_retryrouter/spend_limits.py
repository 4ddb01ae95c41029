"""`SpendLimit`: money that may be spent in an hour, a day or a month.

An attempt reserves what it may cost before it is sent, and settles what it has cost
when it is over. `_router/costs.py` asks the limits of a call's routes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from langchain_retryrouter._retry.clock import SYSTEM_CLOCK, Clock
from langchain_retryrouter._shared import (
    MOST_SECONDS,
    SPEND,
    Locked,
    Reply,
    Shareable,
    Store,
    is_positive,
    numbers,
    require,
)
from langchain_retryrouter.circuit_breaker import Refusal

Period: TypeAlias = Literal["minute", "hour", "day", "month"]

_SECONDS: Final = {"minute": 60.0, "hour": 3600.0, "day": 86400.0}
_ROUNDING: Final = 1e-12
_ASK_AGAIN: Final = 1.0  # Seconds until a store that had no more is asked again.
_LEASE_WAIT: Final = 0.25  # Seconds for which no other route is asked meanwhile.
_LOST: Final = 1.0  # Seconds after which a reply is not waited for any more.
_PARTS: Final = 50  # Of a process's share, which are leased one by one.


class Price(NamedTuple):
    """What an attempt is likely to cost, and the most it can, as far as is known."""

    estimate: float
    most: float


@dataclass(slots=True)
class SpendReservation:
    """The money of one attempt; settled once, with the estimate if it is lost."""

    limit: SpendLimit
    period: object  # None once it is settled.
    estimate: float
    most: float

    def settle(self, cost: float) -> None:
        """The attempt is over, and cost so much."""
        self.limit.settle(self, cost)

    def __del__(self) -> None:
        """Settle what is lost, as in an event loop that was closed too early."""
        if self.period is not None:
            self.settle(self.estimate)


class SpendLimit(Shareable):
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

    With a `store`, limits of the same `name` and period in all processes are one. Each
    process leases its money in the background, in parts of a fiftieth of its share, or
    what one attempt needs, and gives back what it does not use, also when the store is
    closed, and at the end of the program; if it was killed, it counts with what it had
    in use after two minutes. Only an attempt that needs more waits for the store. Each
    process may overrun its lease by the under-estimate of one attempt, which it charges
    to the others at once. While the store is away, a process has its lease, and its
    share of what was left. Periods are those of the processes' clocks.

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
        name: What errors call it, and what it is shared under.
        store: Where it is shared, a `stores.RedisStore` or `stores.MemoryStore`.
        clock: Tells the time, such as `testing.FakeClock`; None for the system's.

    Raises:
        ValueError: If a value is out of its range.
    """

    _operation = SPEND

    def __init__(
        self,
        amount: float,
        per: Period | float = "day",
        *,
        name: str = "",
        store: Store | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Nothing is spent so far."""
        finite = "a finite number, more than 0"
        require("amount", amount, finite, is_met=is_positive(amount))
        periods = [*_SECONDS, "month"]
        is_period = per in periods or is_positive(per)
        require("per", per, f"one of {periods}, or seconds", is_met=is_period)
        super().__init__(name)
        self.amount, self.per = float(amount), per
        self._clock = clock or SYSTEM_CLOCK
        self._processes = 1
        self._held = 0.0  # What attempts in flight may come to.
        self._begin(self._clock.time())
        self._use(store)

    @property
    def spent(self) -> float:
        """Money that attempts of this period have cost so far.

        With a store, what other processes have leased counts as spent.
        """
        self._wake()
        with self._lock:
            self._roll()
            return self._others + self._spent

    @property
    def left(self) -> float:
        """Money that is neither spent nor held by attempts in flight."""
        self._wake()
        with self._lock:
            self._roll()
            return max(0.0, self.amount - self._others - self._spent - self._held)

    @property
    def resets_in(self) -> float:
        """Seconds until the next period."""
        with self._lock:
            self._roll()
            return self._ends - self._clock.time()

    def reserve(self, price: Price) -> SpendReservation | Refusal:
        """Money for an attempt, or why there is none, and for how many seconds.

        That is 0 if attempts in flight hold money that they may give back, and infinite
        if there is never enough.
        """
        self._wake()
        with self._lock:
            one = self._take(price)
            if one is None:
                asks, needed = self._may_lease(price), price.estimate
            else:
                spare = self._leased - self._spent - self._held
                asks, needed = spare < self._chunk() / 2, 0.0
        if asks and self._store is not None and self._store.is_up:
            self._tell(needed=needed)
        if one is not None:
            return one
        with self._lock:  # A `MemoryStore` has answered.
            return self._take(price) or self._refusal(price)

    def _take(self, price: Price) -> SpendReservation | None:
        self._roll()
        if price.estimate > self._has() - self._spent - self._held + _ROUNDING:
            return None
        # Those who come now see what this one may come to.
        one = SpendReservation(self, self._period, price.estimate, max(price))
        self._held += one.most
        self._in_flight += 1
        self._was_used = True
        return one

    def _may_lease(self, price: Price) -> bool:
        """Whether the store may have what an attempt needs, as far as is known."""
        was_refused = self._refused_at >= self._clock.time() - _ASK_AGAIN
        is_sent = self._message is not None
        may_lease = self._is_answering() and (is_sent or not was_refused)
        return may_lease and price.estimate <= self.amount

    def _refusal(self, price: Price) -> Refusal:
        if self._may_lease(price):
            is_asked = self._clock.monotonic() - self._sent_at < _LEASE_WAIT
            return Refusal(0.0, reason=f"{self} is asked for money", is_asked=is_asked)
        left = self._has() - self._spent
        reason = (
            f"an attempt may cost {price.estimate:.4g}; {self} has only"
            f" {max(0.0, left - self._held):.4g} left"
        )
        wait = self._ends - self._clock.time()
        ends = f"; it resets in {wait:.0f} s"
        if price.estimate <= left and (count := self._in_flight):
            attempts = f"{count} attempt{'s' * (count != 1)} in flight"
            wait, reason = 0.0, f"{reason}: {attempts} may take the rest"
        if price.estimate > self.amount:
            wait, ends = math.inf, ", which is never enough"
        return Refusal(wait, reason=reason + ends)

    def _has(self) -> float:
        """The money of this process: all of it, or its lease.

        While the store is away also its share of what was left.
        """
        if self._store is None:
            return self.amount
        if self._is_answering():
            return self._leased
        left = max(0.0, self.amount - self._others - self._leased)
        return self._leased + left / self._processes

    def _is_answering(self) -> bool:
        """Whether the store is there, and does what it is asked."""
        if self._store is None or not self._store.is_up or self._has_failed:
            return False
        return self._message is None or not self._is_lost()

    def _is_lost(self) -> bool:
        """Whether the last message is not answered any more."""
        return self._clock.monotonic() - self._sent_at >= _LOST

    def settle(self, one: SpendReservation, cost: float) -> None:
        """Count what an attempt has cost, in the period in which it began."""
        with self._lock:
            self._roll()
            if one.period is self._period:
                self._held = max(0.0, self._held - one.most)
                self._in_flight -= 1
                self._spent += cost
            one.period = None
            excess = self._spent - self._leased
        if excess > _ROUNDING:
            self._tell()

    def _roll(self) -> None:
        """Begin the next period if this one is over."""
        now = self._clock.time()
        # A clock that was set back, by less than a period, does not give money back.
        if not 2 * self._began - self._ends <= now < self._ends:
            self._begin(now)

    def _begin(self, now: float) -> None:
        """Begin the period of a time, in which nothing is spent so far."""
        if self.per == "month":
            day = datetime.fromtimestamp(now, UTC)
            first = datetime(day.year, day.month, 1, tzinfo=UTC)
            following = (first + timedelta(days=32)).replace(day=1)
            self._began, self._ends = first.timestamp(), following.timestamp()
        else:
            seconds = _SECONDS.get(str(self.per)) or float(self.per)
            self._began = now // seconds * seconds
            self._ends = self._began + seconds
        self._spent = 0.0
        self._forget_attempts()
        self._forget_store()

    def _forget_attempts(self) -> None:
        """Begin with nothing in flight; what was counts nowhere any more."""
        self._period = object()
        self._held, self._in_flight = 0.0, 0

    # --- over a store ---

    @property
    def record(self) -> tuple[str, str]:
        """The kind and the name of its record: each period has one of its own."""
        per, names = self.per, {value: name for name, value in _SECONDS.items()}
        period = per if isinstance(per, str) else names.get(per, f"{float(per)} s")
        return self._operation.name, f"{self.name} per {period}"

    def _forget_store(self) -> None:
        self.number = next(numbers)  # What it had under the old one stays counted.
        self._leased = self._others = 0.0
        self._message: object = None  # The one that is not answered yet.
        self._has_failed = self._was_used = False
        self._sent_at = -math.inf
        self._refused_at = -math.inf  # When the store had no more.

    def _chunk(self) -> float:
        return self.amount / _PARTS / self._processes

    def _tell(self, *, kept: float = math.inf, needed: float | None = None) -> None:
        """Say what this has in total, unless the last message is not answered yet.

        It gives back what is neither in use nor `kept`. With `needed` it asks for so
        much more than it has spent and holds, and a part ahead.
        """
        with self._lock:
            store = self._store
            if store is None or not (self._message is None or self._is_lost()):
                return
            used = self._spent + self._held
            total = max(self._spent, min(self._leased, used + kept))
            more = 0.0
            if needed is not None:
                used += needed
                more = max(used - total, self._chunk())
            self._leased = min(self._leased, total)
            self._has_failed = self._has_failed or self._message is not None
            self._message = message = object()
            self._sent_at = self._clock.monotonic()
            args = self._args(store, total, more, used)

        def on_reply(reply: Reply | None) -> None:
            with self._lock:
                self._has_failed = reply is None
                if self._message is not message:
                    return  # Its period is over, or this has left.
                self._message = None
                if reply is not None:
                    self._leased = total + reply[1]
                    if reply[1] < more - _ROUNDING:
                        self._refused_at = self._clock.time()
            if reply is not None:
                self.learned(reply)

        self._submit(args, on_reply)

    def _args(
        self, store: Store, total: float, more: float, used: float, has_left: int = 0
    ) -> list[Any]:
        me, left = f"{store.process}#{self.number}", self._ends - self._clock.time()
        ends = int(1000 * min(left, MOST_SECONDS))
        window = [self._began, ends, self.amount]
        return [me, *window, total, more, used, has_left]

    def refresh(self) -> None:
        """Give back what is not used, each second, and ask what the others have."""
        with self._lock:
            self._roll()
            kept = self._chunk() if self._was_used else 0.0
            self._was_used = False
        self._tell(kept=kept)

    def learned(self, reply: Reply) -> None:
        """Take over what all processes have."""
        _, _, taken, processes, window = reply
        with self._lock:
            self._processes = max(1, processes)
            if window == self._ends:  # It has begun by another process's clock.
                self._begin(window)
            if window == self._began:
                self._others = max(0.0, taken - self._leased)

    def leave(self) -> None:
        """Give back what is neither spent nor held; the rest is as others' from now on.

        What attempts in flight will cost is not known any more: they count with the
        most that they can come to.
        """
        with self._lock:
            self._roll()
            store, total = self._store, self._spent + self._held
            has_nothing = max(self._leased, total) == 0.0
            if store is None or not store.is_up or has_nothing:
                return  # What was spent without the store is said when it is back.
            args = self._args(store, total, 0.0, total, has_left=1)
            self._start_over(total)
        self._submit(args, lambda _: None)  # This may be collected now.

    def _start_over(self, taken: float) -> None:
        """Begin with nothing: what this has `taken` is as others' from now on."""
        others = self._others + taken
        self._spent = 0.0
        self._forget_attempts()
        self._forget_store()
        self._others = others

    def __del__(self) -> None:
        """Give back the lease."""
        if self._store is not None:
            self.leave()

    def forked(self) -> None:
        """This is the child of a fork: the parent keeps the attempts and the lease."""
        super().forked()
        if self._store is None:
            self._forget_attempts()
        else:
            self._start_over(max(self._leased, self._spent + self._held))

    def __getstate__(self) -> dict[str, Any]:
        """The numbers and what was spent, without the clock."""
        with self._lock:
            return {n: v for n, v in vars(self).items() if n not in {"_lock", "_clock"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore them; the attempts and the lease stay where they are."""
        vars(self).update(state, _clock=SYSTEM_CLOCK)
        Locked.__init__(self)
        self.forked()
        if self._store is not None:
            self._store.watch(self)

    def __repr__(self) -> str:
        """The amount, the period and the name."""
        name = f", name={self.name!r}" if self.name else ""
        return f"{type(self).__name__}({self.amount:g}, per={self.per!r}{name})"
