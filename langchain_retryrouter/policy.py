"""How often and how patiently calls are retried: `RetryPolicy` and `RetryBudget`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from langchain_retryrouter._shared import (
    BUDGET,
    Reply,
    Shareable,
    Store,
    is_hook,
    is_number,
    is_positive,
    is_whole,
    require,
)
from langchain_retryrouter.failures import Failure, FailureKind


@dataclass(frozen=True, slots=True)
class RetryEvent:
    """A failed attempt that another one follows, as hooks of a policy see it.

    Attributes:
        attempt: The number of the failed attempt, counted from 1.
        route: The model that failed, if the call knows it.
        kind: What the failure means.
        error: The error of the attempt.
        delay: Seconds until the next attempt.
        next_route: The model that is asked next.
    """

    attempt: int
    route: str | None
    kind: FailureKind
    error: Exception
    delay: float
    next_route: str | None


@dataclass(frozen=True, slots=True)
class WorstCase:
    """What a call costs at most; `str()` says it in one sentence.

    Attributes:
        requests: Requests sent.
        waited: Seconds waited between them.
        seconds: Seconds until the caller has an answer or an error; None if a single
            attempt has no limit.
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


LIMITS: Final = ("attempt_timeout", "first_token_timeout", "stall_timeout")
"""The limits of a `RetryPolicy` for which a class may have defaults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often a failed attempt is repeated, and how long the waits are.

    The first five names are those of LangChain's `ModelRetryMiddleware`. A policy is
    immutable and can be shared; without hooks it can be pickled and written as JSON.

    Attributes:
        max_retries: Attempts after the first; 0 sends one request.
        initial_delay: Seconds: the longest wait before the first retry. With the
            default, 1,000 clients that failed at the same instant send at most 12 % of
            their first retries within any 100 ms.
        max_delay: Seconds: the longest wait that back-off grows to.
        backoff_factor: Multiplies the wait from retry to retry; 0 keeps it at
            `initial_delay`.
        jitter: Whether to wait a random part of the back-off ("full jitter", AWS
            Architecture Blog, "Exponential Backoff And Jitter", 2015), so that clients
            that failed together do not come back together.
        max_retry_after: Seconds: if a server asks for a longer wait, the call gives up
            at once.
        deadline: Seconds for the whole call with all attempts and waits; None for no
            limit. No wait begins that cannot end in time.
        attempt_timeout: Seconds for one attempt without a stream. None: the class's
            default (`RetryRouter`: 300 s; `EmbeddingsRouter`: 60 s; in both the route's
            share of the deadline if that is less; otherwise no limit). `math.inf`: no
            limit.
        failover_after_wait: Seconds: a `RetryRouter` that has another route left does
            not wait longer than this; it asks that route at once. What counts is the
            wait that the server asks for, without the jitter on top.
        first_token_timeout: Seconds from a stream's request to its first token. None:
            60 s in a `RetryRouter`, or its share of the deadline if that is less;
            otherwise no limit. `math.inf`: no limit.
        stall_timeout: Seconds between two events of a stream after that. None: 60 s in
            a `RetryRouter`, otherwise no limit. `math.inf`: no limit.
        on_retry: Called before the wait for another attempt on the same model. An
            exception that it raises ends the call.
        on_failover: Called instead of `on_retry` if another model or route is next.

    Raises:
        ValueError: A value is out of its range; the message names it.
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
    on_retry: Callable[[RetryEvent], object] | None = None
    on_failover: Callable[[RetryEvent], object] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        retries = self.max_retries
        require(
            "max_retries",
            retries,
            "a whole number, 0 or more",
            is_met=is_whole(retries),
            advice=" (0 sends one request and never repeats it)",
        )
        for name in (
            "initial_delay",
            "max_delay",
            "backoff_factor",
            "max_retry_after",
            "failover_after_wait",
        ):
            value = getattr(self, name)
            allowed = "a finite number, 0 or more"
            require(name, value, allowed, is_met=is_number(value))
        for name in ("deadline", *LIMITS):
            value = getattr(self, name)
            none = "math.inf" if name in LIMITS else "leave it None"
            require(
                name,
                value,
                "a finite number, more than 0",
                is_met=value is None
                or is_positive(value)
                or (value == math.inf and name in LIMITS),
                advice=f"; {none} for no limit",
            )
        is_flag = isinstance(self.jitter, bool)
        require("jitter", self.jitter, "True or False", is_met=is_flag)
        for name in ("on_retry", "on_failover"):
            hook = getattr(self, name)
            require(name, hook, "a function that is not async", is_met=is_hook(hook))

    @property
    def max_attempts(self) -> int:
        """Requests sent at most: `max_retries + 1`."""
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

        Without Retry-After: full jitter, `random x backoff(retry)`. With it: never less
        than the server asked for, and with jitter a random part of the back-off on top,
        since the server asked all its clients for the same time. A back-off shorter
        than that time is lengthened to it, up to 1 s.

        Args:
            retry: The retry that comes next, counted from 1.
            random: A random number in `[0, 1)`.
            retry_after: Seconds that the server asked for; None or 0 if it did not.
        """
        longest = self.backoff(retry)
        if not self.jitter:
            return max(longest, retry_after or 0.0)
        if not retry_after:
            return random * longest
        spread = max(longest, min(retry_after, 1.0))
        return retry_after + random * spread

    def explain(self, attempt_timeout: float | None = None) -> WorstCase:
        """What a call costs at most, before anything is sent.

        Args:
            attempt_timeout: Seconds a single attempt may take; None for the policy's.

        Raises:
            ValueError: `attempt_timeout` is not above 0.
        """
        if attempt_timeout is None:
            attempt_timeout = self.attempt_timeout
        if attempt_timeout == math.inf:
            attempt_timeout = None
        is_met = attempt_timeout is None or is_positive(attempt_timeout)
        require("attempt_timeout", attempt_timeout, "seconds above 0", is_met=is_met)
        # Waits grow with the random number and with Retry-After.
        waited = sum(
            self.delay(retry, 1.0, self.max_retry_after)
            for retry in range(1, self.max_attempts)
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


@dataclass(frozen=True, slots=True)
class Retry:
    """Send the request again after `delay` seconds."""

    delay: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Raise the error.

    Attributes:
        reason: The reason, for the error's note; empty if the kind of failure is the
            reason.
    """

    reason: str = ""


Decision: TypeAlias = Retry | Stop


def decide(
    policy: RetryPolicy,
    failure: Failure,
    *,
    attempt: int,
    remaining: float,
    random: float,
    will_failover: bool = False,
) -> Decision:
    """Whether to try again after a failed attempt, and after how many seconds.

    `attempt` counts from 1 on its route, `remaining` are seconds until the deadline,
    and `will_failover` is whether the next attempt would ask another model.
    """
    if not failure.is_retryable and not will_failover:
        refused = failure.should_retry is False
        return Stop("the server said not to retry" if refused else "")
    if attempt >= policy.max_attempts:
        return Stop("no retries left" if policy.max_retries else "retries are off")
    if not failure.is_retryable:
        return Retry(0.0)  # The other model is not overloaded, so there is no wait.
    retry_after = failure.retry_after
    if retry_after is not None and retry_after > policy.max_retry_after:
        return Stop(
            f"Retry-After of {retry_after:g} s is above max_retry_after"
            f" of {policy.max_retry_after:g} s"
        )
    delay = policy.delay(attempt, random, retry_after)
    if failure.kind is FailureKind.REJECTED:
        delay = 0.0  # The server is well: it answered.
    if delay >= remaining:
        return Stop(
            f"a wait of {delay:.1f} s would outlast the deadline of"
            f" {policy.deadline:g} s"
        )
    return Retry(delay)


@functools.lru_cache(maxsize=128)
def with_limits(
    policy: RetryPolicy, defaults: tuple[float | None, float | None, float | None]
) -> RetryPolicy:
    """A policy with a class's own defaults for the `LIMITS` that it leaves open."""
    given = {name: getattr(policy, name) for name in LIMITS}
    limits: dict[str, Any] = {}
    for name, default in zip(LIMITS, defaults, strict=True):
        limit = default if given[name] is None else given[name]
        limits[name] = None if limit == math.inf else limit
    return policy if limits == given else replace(policy, **limits)


@functools.lru_cache(maxsize=128)
def resolve_policy(
    retry_policy: RetryPolicy | None,
    max_retries: int | None,
    default_max_retries: int = 2,
) -> RetryPolicy:
    """The policy of a model that has the arguments `retry_policy` and `max_retries`.

    Raises:
        ValueError: Both were given, and contradict each other. Equal numbers do not:
            LangChain makes copies of a model from all its fields.
    """
    if retry_policy is None:
        retries = default_max_retries if max_retries is None else max_retries
        return RetryPolicy(max_retries=retries)
    if max_retries is not None and max_retries != retry_policy.max_retries:
        msg = (
            f"max_retries={max_retries} and a retry_policy with max_retries="
            f"{retry_policy.max_retries} are both given: give one of them;"
            " max_retries=n is short for retry_policy=RetryPolicy(max_retries=n)"
        )
        raise ValueError(msg)
    return with_limits(retry_policy, (None, None, None))


class RetryBudget(Shareable):
    """Token bucket, shared by calls, models and processes: limits retries in outages.

    Retries take tokens, and successes give some back. When everything fails, the bucket
    is empty after a few dozen retries, and each call sends one request: the provider
    gets the load of a healthy day and not a multiple of it. The numbers are those of
    the AWS SDKs' standard retry mode ("Retry behavior", AWS SDKs and Tools Reference
    Guide).

    Give one object to all models that share it; copies of a model share it too.
    Thread-safe. A pickle has the numbers and the tokens left.

    With a `store`, budgets of the same `name` in other processes are one bucket. Each
    takes its tokens at once and tells the others; until the store has answered, it
    takes no more than one process's share of them. While the store is away, each
    process has the tokens that were left.

    Args:
        capacity: Tokens in a full bucket, which is how it starts.
        retry_cost: Tokens a retry costs.
        throttled_cost: Tokens a retry costs after a 429, where the server is alive.
        success_gain: Tokens each success gives back.
        name: What it is shared under; the same in all processes.
        store: Where it is shared, a `stores.RedisStore` or `stores.MemoryStore`.

    Raises:
        ValueError: If a number is negative, not finite, or not a number.
    """

    _operation = BUDGET
    _kind = "budget"

    def __init__(
        self,
        *,
        capacity: float = 500,
        retry_cost: float = 14,
        throttled_cost: float = 5,
        success_gain: float = 1,
        name: str = "",
        store: Store | None = None,
    ) -> None:
        """Check the numbers; the bucket starts full."""
        self._settings = {
            "capacity": capacity,
            "retry_cost": retry_cost,
            "throttled_cost": throttled_cost,
            "success_gain": success_gain,
        }
        for number, value in self._settings.items():
            allowed = "a finite number of tokens, 0 or more"
            require(number, value, allowed, is_met=is_number(value))
        super().__init__(name)
        self._tokens = float(capacity)
        self._unsent = 0.0  # Taken (below 0) or given, and in no message so far.
        self._message = 0  # The number of the last message to the store.
        self._sent = 0.0  # What that one said, if the store may not know it.
        self._is_asking = False  # Whether its answer may still come.
        self._taken = 0.0  # What was taken since its last answer.
        self._processes = 1
        self._use(store)

    @property
    def tokens(self) -> float:
        """Tokens left, as far as this process knows."""
        return max(0.0, self._tokens)

    def spend(self, *, throttled: bool = False) -> float | None:
        """Take the tokens for one retry; None, and nothing taken, if there are too few.

        Args:
            throttled: Whether the retry follows a rate limit.
        """
        cost = self._settings["throttled_cost" if throttled else "retry_cost"]
        store = self._store
        self._wake()
        with self._lock:
            if self._tokens < cost:
                return None
            if store is not None and store.is_up:
                share = self._tokens / self._processes
                if self._taken and self._taken + cost > share:
                    return None
                self._taken += cost
            self._tokens -= cost
            self._unsent -= cost
        self.refresh()
        return cost

    def refund(self, tokens: float) -> None:
        """Put back the tokens of a retry that was not sent."""
        capacity = self._settings["capacity"]
        if self._tokens >= capacity:
            return
        with self._lock:
            given = min(capacity - self._tokens, tokens)
            self._tokens += given
            self._unsent += given  # It is sent within a second.

    def succeeded(self) -> None:
        """Add the tokens for a success."""
        self.refund(self._settings["success_gain"])

    # Called by the store.

    def learned(self, reply: Reply) -> None:
        """Take over what all processes have left."""
        _, tokens, self._processes = reply
        with self._lock:
            self._tokens = tokens + self._sent + self._unsent

    def forked(self) -> None:
        """This is the child of a fork: what is not sent is the parent's."""
        super().forked()
        self._unsent = self._sent = self._taken = 0.0
        self._is_asking = False

    def refresh(self) -> None:
        """Tell the store what it does not know, at once or each second.

        What was not answered is sent again under the same number, since the store may
        know it already; the rest waits for that.
        """
        store = self._store
        with self._lock:
            if store is None or self._is_asking:
                return
            self._is_asking, capacity = True, self._settings["capacity"]
            if self._unsent and not self._sent:
                # While the store was away, others had their own tokens.
                self._sent = max(-capacity, min(capacity, self._unsent))
                self._unsent = 0.0
                self._message += 1
            me = f"{store.process}#{self.number}"
            known = self._tokens - self._sent - self._unsent
            args = [me, self._message, capacity, self._sent, known]

        def on_reply(reply: Reply | None) -> None:
            with self._lock:
                self._is_asking = False
                if reply is not None:
                    self._sent = 0.0
                    self._taken = -min(0.0, self._unsent)
                is_left = reply is not None and self._unsent < 0
            if reply is not None:
                self.learned(reply)
            if is_left:  # What was taken in between is said at once.
                self.refresh()

        self._submit(args, on_reply)

    def __reduce__(self) -> tuple[Any, ...]:
        """The numbers, the tokens left, and the store."""
        settings: dict[str, Any] = {**self._settings, "name": self.name}
        if self._store is not None:
            settings["store"] = self._store
        return functools.partial(type(self), **settings), (), {"_tokens": self._tokens}

    def __repr__(self) -> str:
        """The tokens left and the capacity."""
        capacity = self._settings["capacity"]
        return f"{type(self).__name__}({self.tokens:g} of {capacity:g} tokens)"
