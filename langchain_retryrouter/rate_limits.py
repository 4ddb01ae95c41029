"""`RateLimit`: requests and tokens a minute, and requests at the same time.

An attempt reserves what it is going to use before it is sent, and settles what it has
used when it is over. Those who have to wait stand in one queue, threads and tasks of
all event loops together. `_retry.engine` asks the limits of a call's routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Final, NamedTuple

from langchain_core.rate_limiters import BaseRateLimiter

from langchain_retryrouter._shared import (
    LIMIT,
    Clock,
    Reply,
    Shareable,
    Store,
    is_positive,
    is_whole,
    require,
)
from langchain_retryrouter.failures import Failure, FailureKind

_KINDS: Final = ("requests", "tokens", "input_tokens")
_MINUTE: Final = 60.0
_BURST: Final = 1.0  # Seconds of a limit that may be used at once after a pause.
_FIRST_OUTPUT: Final = 256  # Tokens of an answer before there was one.
_LEARNING: Final = 0.1  # The weight of the last answer in a running mean.
_ROUNDING: Final = 1e-6
_RECHECK: Final = 1.0  # Seconds after which a wait without a known end looks again ...
_FAKE_RECHECK: Final = 0.1  # ... and on a clock that cannot be interrupted.
_LONGEST_WAIT: Final = 86_400.0  # Seconds that threads can wait at once.
_LONGEST_HOLD: Final = 60.0  # Seconds that a server's headers can stop all requests.
_DECREASE: Final = 0.7  # Of the concurrency after a 429.
_LEASE_INTERVAL: Final = 0.1  # Seconds between two questions for more than there is.
_AHEAD: Final = 0.2  # Seconds of its own use that a process keeps in stock.
_LEASE_WAIT: Final = 0.005
_SLOW: Final = 0.02  # Seconds without a reply, after which the local share decides.
_OUTAGE: Final = 1.2  # Seconds of its share that a process owes for an outage.
_LOST: Final = 1.0  # Seconds after which a reply is not expected any more.
_TOKENS_PER_FILE: Final = 85  # As langchain-core counts a picture.


class Size(NamedTuple):
    """Of a request: its tokens, estimated, and the most of its answer, if limited."""

    prompt: int | None = None
    max_tokens: int | None = None


class ServerLimit(NamedTuple):
    """What an answer's headers say of one limit; None is what they do not say.

    `kind` is one of "requests", "tokens" and "input_tokens", `reset` are the seconds
    until all of it can be used again, and `window` those for which `limit` holds.
    """

    kind: str
    limit: float | None = None
    remaining: float | None = None
    reset: float | None = None
    window: float | None = None

    @property
    def rate(self) -> float | None:
        """What is allowed in a minute; None for a quota of an hour or a day."""
        window = self.window or _MINUTE
        if not self.limit or window > _MINUTE:
            return None
        return self.limit / window * _MINUTE


class RequestTooLargeError(ValueError):
    """A prompt has more tokens than the limit allows in a whole minute."""


class _TokenBucket:
    """Tokens that come back at a steady rate.

    A request is admitted if the bucket has what it costs, or is full; its whole cost is
    taken, so that the level may fall below 0. Of a shared bucket, this is the part that
    was leased to the process: the store is sent what it makes by itself, `made`.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self.configured = per_minute
        self.made = 0.0
        self.known = self.usage = 0.0  # `charged` at the last question; use a second.
        self.charged = 0.0  # In all, net of refunds.
        self.queued = 0.0  # What the waiting requests cost.
        self.read = now
        self.set_rate(per_minute)
        self.level = self.capacity

    def set_rate(self, per_minute: float) -> None:
        self.rate = min(per_minute, self.configured) / _MINUTE
        self.capacity = max(1.0, self.rate * _BURST)

    def refill(self, now: float, share: float) -> None:
        """Let tokens come back, at this share of the rate."""
        seconds, self.read = now - self.read, now
        if self.rate == math.inf:
            self.level = math.inf
        elif share:
            before, most = self.level, max(self.level, self.capacity * share, 1.0)
            gained = before + seconds * self.rate * share
            self.level = min(gained, most, self.capacity)
            if self.level != before:
                # After an outage of all, the others have theirs.
                owed = self.made + (self.level - before)
                self.made = min(owed, self.rate * share * _OUTAGE)

    def missing(self, cost: float, ahead: float = 0.0) -> float:
        """What has to come in before `cost` is admitted, after `ahead`."""
        return ahead + min(cost, self.capacity) - self.level


class Reservation:
    """A place in the queue of a limit, then what it has granted; closed once."""

    def __init__(
        self,
        limit: RateLimit,
        queue: deque[Reservation],
        size: Size,
        wake: Callable[[], object] = lambda: None,
    ) -> None:
        """Nothing is taken yet; `wake` is called when it is time to look again."""
        self._limit, self._wake = limit, wake
        self.queue = queue
        self.prompt = size.prompt
        self.costs = limit.costs_of(size)
        self.is_granted = self.is_closed = False
        self.charged: dict[str, float] = {}  # In all, by kind, when it was granted.
        self.since = 0.0
        self.requests = 1  # That the attempt was, in a model with attempts of its own.
        self.used: tuple[int, int] | None = None  # Tokens of the prompt and the answer.

    def wake(self) -> None:
        """Have the waiting thread or task look again."""
        with contextlib.suppress(RuntimeError):  # Its event loop is closed.
            self._wake()

    @property
    def is_adaptive(self) -> bool:
        """Whether the answer's headers count."""
        return self._limit.adaptive

    def observe(self, limits: Iterable[ServerLimit]) -> None:
        """Correct the limit by what the answer's headers say."""
        self._limit.observe(limits, self)

    def succeeded(self) -> None:
        """The answer is there, whole."""
        self._limit.close(self, dict(self.costs), has_answer=True)

    def failed(self, failure: Failure) -> None:
        """Give back what a failed attempt cannot have used."""
        actual = dict(self.costs)
        if not failure.may_have_run:
            # A refusal counts as a request, by OpenAI's and Anthropic's rules.
            was_sent = failure.status_code is not None
            actual = {"requests": self.costs["requests"]} if was_sent else {}
        if failure.kind is FailureKind.RATE_LIMIT and not self.is_closed:
            self._limit.slow_down(self, failure.retry_after)
        self._limit.close(self, actual)

    def cancelled(self) -> None:
        """The attempt was given up, and may have run."""
        self._limit.close(self, dict(self.costs))

    def unsent(self) -> None:
        """Leave the queue, or give back all: nothing was sent."""
        self._limit.close(self, {})


class RateLimit(Shareable):
    """Limits requests and tokens a minute, and requests at the same time.

    Before an attempt is sent, it reserves a request and the tokens that it will
    probably use; afterwards what it did not use is given back. A wait for a limit ends
    with the call's deadline, is in the attempt log as `limiter_wait`, and never counts
    as a failure of the provider. A `RetryRouter` asks its next route instead, if that
    is free earlier and the wait is longer than `failover_after_wait`.

    Those who wait are admitted in the order in which they came. At most one second's
    worth of a limit is used at once, so that no minute has more than 102 % of it.

    Give one object to all models that share the limit; copies of a model share it too.
    At several places of one call, it counts once for each attempt.
    Thread-safe, and usable from several event loops. A pickle, or a forked process, has
    the numbers alone and starts afresh.

    With a `store`, limits of the same `name` in all processes are one. Each process
    leases a part in the background, ahead of its use, so that a call seldom waits for
    the store. While the store is away, each process keeps to its share: the limit,
    divided by the processes that were last seen.

    Example:
        ```python
        from langchain_retryrouter import RateLimit

        limit = RateLimit(requests_per_minute=500, tokens_per_minute=200_000)
        limit.in_flight  # 0
        ```

    Args:
        requests_per_minute: Requests, retries included.
        tokens_per_minute: Tokens of prompts and answers.
        input_tokens_per_minute: Tokens of prompts alone.
        max_concurrency: Requests at the same time; a stream counts until its end.
        name: What it is shared under, and what errors call it.
        store: Where it is shared, a `stores.RedisStore` or `stores.MemoryStore`.
        strict: Whether to lease nothing ahead: the store is asked for each attempt that
            is about to be sent.
        adaptive: Whether to go below these numbers when the provider's rate limit
            headers ask for it. Where there are none, the concurrency falls with each
            429, and rises slowly with successes. Numbers that are not given are then
            those of the provider.
        clock: Tells the time and waits, such as `testing.FakeClock`.

    Raises:
        ValueError: A number is out of its range, or there is none; the message says so.
    """

    _operation = LIMIT

    def __init__(
        self,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        input_tokens_per_minute: float | None = None,
        max_concurrency: int | None = None,
        name: str = "",
        store: Store | None = None,
        adaptive: bool = False,
        strict: bool = False,
        clock: Clock | None = None,
    ) -> None:
        """Check the numbers; nothing is used yet."""
        numbers: dict[str, Any] = {
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "input_tokens_per_minute": input_tokens_per_minute,
            "max_concurrency": max_concurrency,
        }
        for number, value in numbers.items():
            allowed, is_met = "a finite number, more than 0", is_positive(value)
            if number == "max_concurrency":
                allowed = "a whole number, 1 or more"
                is_met = is_met and is_whole(value)
            is_met, advice = is_met or value is None, "; leave it out for no limit"
            require(number, value, allowed, is_met=is_met, advice=advice)
        flags = {"adaptive": adaptive, "strict": strict}
        for flag, value in flags.items():
            require(flag, value, "True or False", is_met=isinstance(value, bool))
        if not adaptive and all(value is None for value in numbers.values()):
            msg = (
                "RateLimit needs a limit, such as requests_per_minute=500 or"
                " max_concurrency=20; or adaptive=True to go by what the provider says"
            )
            raise ValueError(msg)
        super().__init__(name)
        self._settings = {**numbers, "name": name, **flags}
        self.adaptive = adaptive
        self.strict = strict
        self._clock = clock
        self._start()
        self._use(store)

    def _start(self) -> None:
        """Begin with full buckets, an empty queue, and nothing learned."""
        now = self._now()
        given = {kind: self._settings[f"{kind}_per_minute"] for kind in _KINDS}
        self._buckets = {
            kind: _TokenBucket(math.inf if number is None else number, now)
            for kind, number in given.items()
            if number is not None or self.adaptive
        }
        self._most = float(self._settings["max_concurrency"] or math.inf)
        self._concurrency = self._most
        self._queue: deque[Reservation] = deque()
        self._in_flight = 0
        self._is_granting = False
        self._held_until = -math.inf
        self._slowed = -math.inf
        self._has_headers = False
        # Running means of the tokens of prompts and answers, and of how many a prompt
        # has for one that was estimated.
        self._prompt: float | None = None
        self._output: float | None = None
        self._ratio = 1.0
        self._forget_store()

    def _forget_store(self) -> None:
        """Begin with nothing leased; what is in flight, and who waits, stays."""
        self._asked_at = -math.inf
        self._is_asking = self._is_starved = False
        self._processes, self._hungry = 1, 0
        is_leased = self._store is not None and self._most < math.inf
        self._permits = 1.0 if is_leased else math.inf
        self._peak = 0  # The most in flight since then.
        self._is_new = self._store is not None and not self.strict
        self._has_failed = False
        for bucket in self._buckets.values():
            bucket.made = 0.0
            if self._store is not None and bucket.rate < math.inf:
                bucket.level = min(bucket.level, 0.0)

    @property
    def in_flight(self) -> int:
        """Requests that were admitted and are not over."""
        return self._in_flight

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return sum(not one.is_closed for one in list(self._queue))

    @property
    def counts_tokens(self) -> bool:
        """Whether the size of a request makes a difference."""
        return len(self._buckets) > ("requests" in self._buckets)

    def available(self) -> dict[str, float]:
        """What can be used now: of "requests", "tokens", "input_tokens", as limited.

        Below 0 while more was used than the limit allows so far.
        """
        with self._lock:
            self._refill()
            buckets = self._buckets.items()
            return {kind: one.level for kind, one in buckets if one.level < math.inf}

    def as_rate_limiter(self) -> BaseRateLimiter:
        """This limit for any LangChain model's `rate_limiter=`.

        LangChain asks it once for each call, and tells it neither the tokens nor the
        end of the call. So the call counts as a request, and by the running mean of the
        tokens that this limit's other calls have used.

        Raises:
            ValueError: There is nothing but `max_concurrency` to limit.
        """
        if self._settings["max_concurrency"] is not None:
            msg = (
                "a LangChain rate limiter does not learn when a call is over, so"
                f" max_concurrency={self._settings['max_concurrency']!r} does not hold"
                " for it: use rate_limit= of a RetryRouter, a Route or a GPTRouter"
            )
            if not self._buckets:
                raise ValueError(msg)
            warnings.warn(msg, UserWarning, stacklevel=2)
        return _LangChainLimiter(self)

    # --- used by the package --------------------------------------------------------

    def costs_of(self, size: Size) -> dict[str, float]:
        """What a request of this size is expected to use.

        Raises:
            RequestTooLargeError: More than there is in a whole minute.
        """
        prompt = self._prompt or 0.0  # A mean says nothing about this request.
        if size.prompt is not None:
            prompt = size.prompt * self._ratio
            # Other prompts may have had more tokens than estimated, and not this one.
            least = min(prompt, size.prompt)
            for kind in ("tokens", "input_tokens"):
                bucket = self._buckets.get(kind)
                if bucket is not None and least > bucket.configured:
                    msg = (
                        f"the prompt has about {least:,.0f} tokens, and {self} allows"
                        f" {bucket.configured:,.0f} in a minute: shorten it, or raise"
                        f" {kind}_per_minute"
                    )
                    raise RequestTooLargeError(msg)
        known = [n for n in (self._output, size.max_tokens) if n is not None]
        output = min(known, default=_FIRST_OUTPUT)
        return {"requests": 1.0, "tokens": prompt + output, "input_tokens": prompt}

    def wait_for(self, size: Size) -> float:
        """Seconds until a request would be admitted; infinite if that is not known."""
        self._exchange()
        with self._lock:
            self._admit()
            return self._wait_for(self.costs_of(size), is_last=True)

    def try_reserve(self, size: Size) -> Reservation | None:
        """A reservation, if the request is admitted now, and no other one waits."""
        self._exchange()
        with self._lock:
            self._admit()
            wait = self._wait_for(self.costs_of(size), is_last=True)
            return None if wait > 0 else self.take(size)

    def take(self, size: Size) -> Reservation:
        """A reservation in any case: the request is sent, whatever there is."""
        with self._lock:
            try:
                one = Reservation(self, self._queue, size)
            except RequestTooLargeError:
                one = Reservation(self, self._queue, Size())
            return self._grant(one)

    def listen(self) -> Reservation:
        """One that costs nothing: what was reserved is settled by an outer call."""
        one = Reservation(self, deque(), Size())
        one.is_closed = True
        return one

    def reserve(self, size: Size, patience: float | None = None) -> Reservation | None:
        """A reservation after a wait of `patience` seconds at most, or else None."""
        event = threading.Event()
        place = self._new_place(size, event.set)
        try:
            for seconds in self._waits(place, patience):
                if self._clock is None:
                    event.wait(seconds)
                    event.clear()
                else:
                    self._clock.sleep(seconds)
        except BaseException:
            place.unsent()
            raise
        return place if place.is_granted else None

    async def areserve(
        self, size: Size, patience: float | None = None
    ) -> Reservation | None:
        """Async variant of `reserve`."""
        event = asyncio.Event()
        loop = asyncio.get_running_loop()
        wake = functools.partial(loop.call_soon_threadsafe, event.set)
        place = self._new_place(size, wake)
        try:
            for seconds in self._waits(place, patience):
                if self._clock is None:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(seconds):
                            await event.wait()
                    event.clear()
                else:
                    await self._clock.asleep(seconds)
        except BaseException:
            place.unsent()
            raise
        return place if place.is_granted else None

    def close(
        self, one: Reservation, actual: dict[str, float], *, has_answer: bool = False
    ) -> None:
        """Settle a reservation: give back the difference to what was used."""
        with self._lock:
            if one.is_closed or one.queue is not self._queue:
                return  # It may be that of the process that was forked.
            one.is_closed = True
            if not one.is_granted:  # It is taken out of the queue when its turn comes.
                for kind, bucket in self._buckets.items():
                    bucket.queued -= one.costs[kind]
                self._admit()
                return
            if one.used is not None and "tokens" in actual:
                used, output = one.used
                counted = {"tokens": float(used + output), "input_tokens": float(used)}
                if has_answer:
                    actual |= counted
                    self._learn(one.prompt, used, output)
                else:  # More may have come than the provider said.
                    actual |= {k: max(actual[k], n) for k, n in counted.items()}
            if "requests" in actual:
                actual["requests"] = float(one.requests)
            self._refill()
            self._charge(
                {kind: actual.get(kind, 0.0) - one.costs[kind] for kind in _KINDS}
            )
            self._in_flight -= 1
            if has_answer and self._concurrency < self._most:
                raised = self._concurrency + 1 / self._concurrency
                self._concurrency = min(self._most, raised)
            # What is given back goes to those who wait, before the buckets overflow.
            self._grant_waiting()
            self._refill()
            if self._queue:
                self._queue[0].wake()  # Its wait may be shorter now.

    def observe(
        self, limits: Iterable[ServerLimit], one: Reservation | None = None
    ) -> None:
        """Correct the levels and rates by what a server says, never upwards."""
        if not self.adaptive:
            return
        with self._lock:
            self._refill()
            # Of several limits of a kind, the lowest rate counts.
            for said in sorted(limits, key=lambda one: -(one.rate or math.inf)):
                self._has_headers = True
                self._correct(self._buckets[said.kind], said, one)
            self._admit()

    def slow_down(self, one: Reservation, retry_after: float | None) -> None:
        """A server has refused a request, since there were too many."""
        if not self.adaptive:
            return
        with self._lock:
            now = self._now()
            if retry_after:
                self._hold(retry_after)
            # Refusals of what was sent before the last decrease say nothing new.
            if not self._has_headers and one.since >= self._slowed:
                before = min(self._concurrency, self._in_flight)
                self._concurrency = max(1.0, math.floor(before * _DECREASE))
                self._slowed = now

    # --- with the lock --------------------------------------------------------------

    def _waits(
        self, place: Reservation, patience: float | None
    ) -> Generator[float, None, None]:
        """The seconds to wait at most, again and again, until it is granted or over."""
        end = math.inf if patience is None else self._now() + patience
        while True:
            self._exchange()
            with self._lock:
                self._admit()
                left = end - self._now()
                if place.is_granted or left <= 0:
                    break
                is_first = self._queue[0] is place
                seconds = self._wait_for(place.costs) if is_first else math.inf
            recheck = _RECHECK if self._clock is None else _FAKE_RECHECK
            if self._store is not None and is_first:
                recheck = _LEASE_INTERVAL
                seconds = min(seconds, recheck)
            yield min(recheck if seconds == math.inf else seconds, left, _LONGEST_WAIT)
        if not place.is_granted:
            place.unsent()

    def _new_place(self, size: Size, wake: Callable[[], object]) -> Reservation:
        with self._lock:
            place = Reservation(self, self._queue, size, wake)
            self._queue.append(place)
            for kind, bucket in self._buckets.items():
                bucket.queued += place.costs[kind]
        return place

    def _own_share(self) -> float:
        """The share of the limit that this process makes by itself; 0 if it leases."""
        if self._store is None:
            return 1.0
        is_slow = self._is_asking and self._now() - self._asked_at > _SLOW
        is_answering = self._store.is_up and not (is_slow or self._has_failed)
        return 0.0 if is_answering else 1 / self._processes

    def _refill(self) -> None:
        now, share = self._now(), self._own_share()
        for bucket in self._buckets.values():
            bucket.refill(now, share)

    def _admit(self) -> None:
        self._refill()
        self._grant_waiting()

    def _grant_waiting(self) -> None:
        """Grant what can be granted now, in the order of the queue."""
        if self._is_granting:
            return  # Closed by the garbage collector; the call below goes on.
        self._is_granting = True
        try:
            while self._queue:
                first = self._queue[0]
                if not (first.is_closed or first.is_granted):
                    if self._wait_for(first.costs) > 0:
                        break
                    for kind, bucket in self._buckets.items():
                        bucket.queued -= first.costs[kind]
                    self._grant(first)
                    first.wake()
                self._queue.popleft()
                if self._queue:
                    self._queue[0].wake()  # It is the first one now.
        finally:
            self._is_granting = False

    def _grant(self, one: Reservation) -> Reservation:
        self._charge(one.costs)
        one.charged = {kind: bucket.charged for kind, bucket in self._buckets.items()}
        self._in_flight += 1
        self._peak = max(self._peak, self._in_flight)
        one.since = self._now()
        one.is_granted = True
        return one

    def _charge(self, costs: Mapping[str, float]) -> None:
        for kind, bucket in self._buckets.items():
            bucket.level -= costs[kind]
            bucket.charged += costs[kind]

    def _wait_for(self, costs: Mapping[str, float], *, is_last: bool = False) -> float:
        """Seconds until a request is admitted, as the first or the last one."""
        ahead = len(self._queue) if is_last else 0
        share, leased = self._own_share(), math.inf
        permits = max(1.0, self._most / self._processes)
        if not share:
            if self._is_new and not (self._in_flight or ahead):
                return 0.0  # The first call does not wait for the store to answer.
            share, permits = 1 / (1 + self._hungry), self._permits
            if not self._is_starved:
                leased = _LEASE_WAIT  # So long a lease takes, if there is more.
        if self._in_flight + ahead + 1 > min(self._concurrency, permits):
            return leased if self._in_flight + ahead < self._concurrency else math.inf
        seconds = max(0.0, self._held_until - self._now())
        for kind, bucket in self._buckets.items():
            missing = bucket.missing(costs[kind], bucket.queued if is_last else 0.0)
            if missing > _ROUNDING:
                seconds = max(seconds, min(leased, missing / (bucket.rate * share)))
        return seconds

    def _hold(self, seconds: float) -> None:
        until = self._now() + min(seconds, _LONGEST_HOLD)
        self._held_until = max(self._held_until, until)

    def _correct(
        self, bucket: _TokenBucket, said: ServerLimit, one: Reservation | None
    ) -> None:
        if said.rate:
            bucket.set_rate(said.rate)
            bucket.level = min(bucket.level, bucket.capacity)
        if said.remaining is None:
            return
        # The server has not seen yet what was admitted after this request.
        charged = one.charged.get(said.kind, math.inf) if one is not None else math.inf
        after = max(0.0, bucket.charged - charged)
        bucket.level = min(bucket.level, said.remaining - after)
        if said.remaining or not said.reset:
            return
        # A bucket is full again after its window; and has something long before that.
        window = said.window or _MINUTE
        is_bucket = said.rate and math.isclose(said.reset, window, rel_tol=0.05)
        if not is_bucket:
            self._hold(said.reset)

    def _learn(self, estimated: int | None, prompt: int, output: int) -> None:
        weight = 1.0 if self._output is None else _LEARNING

        def mean(before: float | None, now: float) -> float:
            return (1 - weight) * (before or 0.0) + weight * now

        self._prompt = mean(self._prompt, prompt)
        self._output = mean(self._output, output)
        if estimated:
            self._ratio = mean(self._ratio, min(10.0, max(0.1, prompt / estimated)))

    def _now(self) -> float:
        return time.monotonic() if self._clock is None else self._clock.monotonic()

    # --- leases, called without the lock --------------------------------------------

    def refresh(self) -> None:
        """Give back what is not used, each second; called by the store."""
        self._exchange(is_due=True)

    def forked(self) -> None:
        """This is the child of a fork: it starts afresh."""
        super().forked()
        self._start()

    def _exchange(self, *, is_due: bool = False) -> None:
        """Ask the store for more, if it is time."""
        if (store := self._store) is None:
            return
        if not is_due:  # The store asks when it is due, and may be closed by now.
            store.wake()
        with self._lock:
            args = self._next_question(store, is_due=is_due)
        if args is not None:
            self._submit(args, functools.partial(self._take_reply, self._queue, args))

    def _next_question(self, store: Store, *, is_due: bool) -> list[Any] | None:
        """The arguments of the operation, if the store is to be asked."""
        now = self._now()
        since = now - self._asked_at
        if self._is_asking and since < _LOST:
            return None
        if self._is_starved and since < _LEASE_INTERVAL and not is_due:
            return None
        self._refill()
        first = next((one for one in self._queue if not one.is_closed), None)
        kinds: list[list[Any]] = []
        is_short = False
        for kind, bucket in self._buckets.items():
            if bucket.rate == math.inf:
                continue
            # What is kept for the next call of a process that has nothing to do.
            kept = 1.0 if kind == "requests" else (self._prompt or 0.0)
            if kind == "tokens":
                kept += self._output or 0.0
            if kept * self._processes > bucket.capacity:
                kept = 0.0
            ahead = max(kept, min(bucket.usage * _AHEAD, bucket.capacity))
            target = bucket.queued + (0.0 if self.strict else ahead)
            want = max(0.0, target - bucket.level)
            need = waiting = 0.0
            if first is not None:
                need = max(0.0, bucket.missing(first.costs[kind]))
                waiting = max(need, bucket.queued - bucket.level)
            is_short = is_short or want > target / 2 or need > 0
            surplus = max(0.0, bucket.level - 1.5 * target) if is_due else 0.0
            change = surplus - bucket.made
            # All processes together have half the burst: each keeps something, too.
            rate, capacity = bucket.rate / 1000, max(1.0, bucket.capacity / 2)
            want = max(want, need)
            kinds.append([kind, rate, capacity, change, want, need, waiting])
        needed = min(self._in_flight + self.waiting, self._most)
        if not (is_due or is_short or needed > self._permits):
            return None
        for kind, _, _, change, *_ in kinds:
            bucket = self._buckets[kind]
            bucket.level -= change + bucket.made  # The surplus.
            bucket.made = 0.0
            usage = (bucket.charged - bucket.known) / max(since, _LEASE_INTERVAL)
            bucket.usage = max(0.0, (bucket.usage + usage) / 2)
            bucket.known = bucket.charged
        wanted = min(max(needed, self._peak), self._most)
        self._peak = self._in_flight
        self._is_asking, self._asked_at = True, now
        most = 0 if self._most == math.inf else self._most
        process = f"{store.process}#{self.number}"
        return [process, most, wanted, needed, self._in_flight, kinds]

    def _take_reply(
        self, queue: deque[Reservation], args: list[Any], reply: Reply | None
    ) -> None:
        if queue is not self._queue:
            return  # This is the child of a fork.
        *_, needed, _, kinds = args
        with self._lock:
            self._refill()
            self._is_asking = self._is_new = False
            self._has_failed = reply is None
            if reply is None:
                self._is_starved = True  # Not to ask again at once.
                for kind, _, _, change, *_ in kinds:
                    self._buckets[kind].level += max(0.0, change)
                    self._buckets[kind].made -= min(0.0, change)
            else:
                _, self._processes, self._hungry, permits, *grants = reply
                self._is_starved = permits < needed and self._most < math.inf
                for (kind, _, _, _, want, *_), granted in zip(
                    kinds, grants, strict=True
                ):
                    self._buckets[kind].level += granted
                    self._is_starved |= granted < want
                if self._most < math.inf:
                    self._permits = permits
            self._grant_waiting()
            if self._queue:
                self._queue[0].wake()

    def __reduce__(self) -> tuple[Any, ...]:
        """The numbers and the store, since another process has its own clock."""
        given = {**self._settings, "name": self.name, "store": self._store}
        return functools.partial(type(self), **given), ()

    def __repr__(self) -> str:
        """What was given."""
        given = {n: v for n, v in self._settings.items() if v not in {None, "", False}}
        return f"{type(self).__name__}({', '.join(f'{n}={given[n]!r}' for n in given)})"


class _LangChainLimiter(BaseRateLimiter):
    """A `RateLimit` as LangChain's models ask it."""

    def __init__(self, limit: RateLimit) -> None:
        self._limit = limit

    def acquire(self, *, blocking: bool = True) -> bool:
        one = self._limit.reserve(Size(), None if blocking else 0)
        if one is not None:
            one.cancelled()  # Its end will not be known.
        return one is not None

    async def aacquire(self, *, blocking: bool = True) -> bool:
        one = await self._limit.areserve(Size(), None if blocking else 0)
        if one is not None:
            one.cancelled()
        return one is not None


def approximate_tokens(content: Any) -> int:
    """About one token for 4 characters of a prompt, or a request's JSON.

    A picture or a file inside it counts as a fixed number.
    """
    return -(-_characters(content) // 4)


def _characters(value: Any) -> int:
    if isinstance(value, str):
        is_file = value.startswith(("data:", "http://", "https://"))
        return 4 * _TOKENS_PER_FILE if is_file else len(value)
    if isinstance(value, int):
        return 4  # The id of a token.
    if isinstance(value, Mapping):
        return sum(
            4 * _TOKENS_PER_FILE if name == "data" else _characters(item)
            for name, item in value.items()
        )
    return sum(map(_characters, value)) if isinstance(value, list | tuple) else 0
