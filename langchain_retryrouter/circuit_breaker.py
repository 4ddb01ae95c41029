"""Circuit breaker: opens after repeated failures, then admits one probe.

Closed, it admits every call. After `failure_threshold` retryable failures in a row, or
if too large a share of the latest calls failed, it opens and refuses calls; so it does
at once if a server asks for a long pause. After `recovery_time` it is half open: one
call, the probe, is admitted. If it is answered, or the first token of a stream comes,
the breaker closes; if it fails the breaker opens again, and if it is cancelled another
call may be the probe.
"""

from __future__ import annotations

import functools
import math
import random  # noqa: TID251 - the default of `clock`
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from types import SimpleNamespace
from typing import Any, Final

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from langchain_retryrouter._shared import (
    BREAKER,
    MOST_SECONDS,
    Clock,
    Reply,
    Shareable,
    Store,
    is_hook,
    is_number,
    is_positive,
    is_whole,
    require,
)

_BUCKETS: Final = 10
_LONGEST_PAUSE: Final = 86_400.0
_MAX_SUSPECTS: Final = 1_000
_PROBE_INTERVAL: Final = 0.1  # Seconds between two looks at another call's probe.
_LEASE: Final = 5.0  # Seconds that a probe has for all, unless it is renewed.
_SAME_PAUSE: Final = 0.05  # Seconds by which many answers of one moment differ.
_REPAIRED: Final = 1.0  # Seconds after which a store has answered, if ever.
_LEASE_WAIT: Final = 0.25  # Seconds that a call waits for a busy store's answer.
_ASKED: Final = "the server asked for it"
_FELT: Final = "several processes failed there"

LEASE_POLL: Final = 0.002
"""Seconds between two looks at the store's answer about a probe."""


class BreakerState(StrEnum):
    """What a circuit breaker does with the next call."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


_SYSTEM_CLOCK: Final[Any] = SimpleNamespace(
    monotonic=time.monotonic,
    # Not seeded by the program: workers with equal seeds would probe together.
    random=random.SystemRandom().random,
)


class CircuitBreakerSettings(TypedDict, total=False):
    """The numbers of a `CircuitBreaker`, for a class that makes several of them."""

    failure_threshold: int
    recovery_time: float
    failure_rate: float | None
    window: float
    minimum_calls: int
    recovery_jitter: float
    quorum: int


@dataclass(frozen=True, slots=True)
class Permit:
    """Permission to send one request; a probe if the breaker was half open.

    A slow call that began before the breaker opened or closed, in an earlier
    `generation`, says nothing about the time after it.
    """

    generation: int
    is_probe: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """An attempt is refused, for so long; 0 while another call is the probe.

    `why` is what the server said, if all processes know it, and `reason` what
    refuses the attempt, if that is not the breaker. `is_asked` is whether the store
    says in a moment if it may be sent.
    """

    retry_after: float
    why: str = ""
    reason: str = ""
    is_asked: bool = False


class CircuitBreaker(Shareable):
    """A circuit breaker; give one object to all models of the same provider.

    Only retryable failures count: a 400 says nothing about the provider's health. A
    `RetryRouter` counts the failures of one request that the request may have caused
    (500, 502, a timeout, a lost connection, a malformed or interrupted answer) as one
    within `window`. Thread-safe. A copy or deep copy of a model shares its breaker. A
    pickle has the numbers alone: in another process the breaker starts closed, on the
    system's clock and without a listener.

    A server that asks for a longer pause than the policy's `max_retry_after` opens the
    breaker at once and for as long as it asked, a day at most; one that asks for less
    keeps it open for at least so long, once it opens.

    With a `store`, breakers of the same `name` in other processes know what a server
    said: a pause that it asked for, a used up quota, a refused key. What a process felt
    is a vote: the breaker opens for all when `quorum` processes have opened theirs
    within `window`, or all if there are fewer; each one's own opens at once. After
    `recovery_time` one process probes for all. What is known is read here, without the
    store; while the store is away, each process decides alone. See `docs/fleet.md`.

    Example:
        ```python
        from langchain_retryrouter import CircuitBreaker


        def report(before, now):
            print(f"the provider's circuit breaker is {now}, it was {before}")


        breaker = CircuitBreaker(recovery_time=10, on_state_change=report)
        breaker.state  # BreakerState.CLOSED
        ```

    Args:
        failure_threshold: Retryable failures in a row that open it.
        recovery_time: Seconds it stays open before one probe is admitted.
        failure_rate: The share of the calls within `window` that opens it if they fail,
            above 0 and up to 1; None counts failures in a row only.
        window: Seconds that a call counts for `failure_rate`, in ten steps.
        minimum_calls: Calls within `window` before `failure_rate` means anything.
        recovery_jitter: The share of `recovery_time`, from 0 to 1, of which a random
            part is added each time it opens, so that many processes do not probe
            together.
        quorum: Processes that must have failed to open it for all, if it is shared.
        name: What it is shared under; the same in all processes.
        store: Where it is shared, a `stores.RedisStore` or `stores.MemoryStore`.
        clock: Tells the time, such as `testing.FakeClock`; None for the system's.
        on_state_change: Called with the state before and the new state, in the thread
            of the call that caused it, or of the store. It is half open when the probe
            is admitted. An exception leaves the call.

    Raises:
        ValueError: A number is out of its range; the message names it.
    """

    _operation = BREAKER
    _kind = "breaker"

    def __init__(
        self,
        *,
        failure_threshold: int = 5,
        recovery_time: float = 30.0,
        failure_rate: float | None = None,
        window: float = 60.0,
        minimum_calls: int = 10,
        recovery_jitter: float = 0.0,
        quorum: int = 2,
        name: str = "",
        store: Store | None = None,
        clock: Clock | None = None,
        on_state_change: Callable[[BreakerState, BreakerState], object] | None = None,
    ) -> None:
        """Check the numbers; the breaker starts closed."""
        allowed, is_met = "a function that is not async", is_hook(on_state_change)
        require("on_state_change", on_state_change, allowed, is_met=is_met)
        super().__init__(name)
        self.failure_threshold = failure_threshold
        self.recovery_time = recovery_time
        self.failure_rate = failure_rate
        self.window = window
        self.minimum_calls = minimum_calls
        self.recovery_jitter = recovery_jitter
        self.quorum = quorum
        for number in ("failure_threshold", "minimum_calls", "quorum"):
            value = getattr(self, number)
            is_met = is_whole(value) and value >= 1
            require(number, value, "a whole number, 1 or more", is_met=is_met)
        for number in ("recovery_time", "window"):
            value = getattr(self, number)
            is_met = is_positive(value)
            require(number, value, "a finite number above 0", is_met=is_met)
        share = failure_rate
        is_met = share is None or (is_positive(share) and share <= 1)
        require("failure_rate", share, "a share above 0 and up to 1", is_met=is_met)
        share = recovery_jitter
        is_met = is_number(share) and share <= 1
        require("recovery_jitter", share, "a share from 0 to 1", is_met=is_met)
        self._clock = clock or _SYSTEM_CLOCK
        self._on_state_change = on_state_change
        self._generation = 0
        self._failures = 0
        self._latest: deque[_Bucket] = deque()
        self._open_until: float | None = None
        self._held_until = 0.0  # The end of the pause that the server asked for.
        self._is_held = False  # Open since the server asked for it, not by failures.
        self._is_probing = False
        self._suspects: dict[int, float] = {}  # The last failure of each request.
        self._was_probed = False  # Within the pause that the server asked for.
        self._why = ""
        self._paused_until = 0.0  # The end of a pause in which it is not open.
        self._reported = BreakerState.CLOSED
        self._shared = _Shared()
        self._use(store)

    @property
    def state(self) -> BreakerState:
        """What it does with a call now."""
        if (until := self._open_until) is None:
            return BreakerState.CLOSED
        is_open = self._left_until(until) > 0
        return BreakerState.OPEN if is_open else BreakerState.HALF_OPEN

    @property
    def is_open(self) -> bool:
        """Whether it refuses all calls now."""
        return self.state is BreakerState.OPEN

    @property
    def retry_after(self) -> float:
        """Seconds until a probe is admitted; 0 if it is not open."""
        # Without the lock, since nearly all calls ask.
        return 0.0 if (until := self._open_until) is None else self._left_until(until)

    # Used by the package. Each permit is settled once, by `succeeded`, `failed` or
    # `cancelled`.

    def admit(self, *, is_early: bool = False) -> Permit | Refusal:
        """Permission to send a request, or a refusal.

        Args:
            is_early: Whether it may be a probe before the pause is over, one at a time.
                For a call that has no other route: the outage may be over already.
        """
        self._wake()
        with self._lock:
            answer = self._decide(is_early=is_early)
        if self._store is not None and isinstance(answer, Refusal):
            self._send()
            with self._lock:  # The store may have answered at once.
                answer = self._decide(is_early=is_early)
        if isinstance(answer, Permit) and answer.is_probe:
            try:
                self._report(BreakerState.HALF_OPEN)
            except BaseException:
                self.cancelled(answer)  # The listener's error ends the call.
                raise
        return answer

    def _decide(self, *, is_early: bool) -> Permit | Refusal:
        state = self.state
        if state is BreakerState.CLOSED:
            if pause := self.pause:
                return Refusal(pause, _ASKED)
            return Permit(self._generation, is_probe=False)
        if (
            self._is_probing
            or (state is BreakerState.OPEN and not is_early)
            or self._lease_wait(is_early=is_early) != 0
        ):
            return Refusal(self.retry_after, self._why)
        self._is_probing = self._was_probed = True
        return Permit(self._generation, is_probe=True)

    def probe_wait(
        self, *, is_early: bool, is_first: bool = False, awaits_probe: bool = False
    ) -> float | None:
        """Seconds until a probe may be admitted; None if the call cannot wait for it.

        A pause that the server asked for is waited for, and so is another call's probe
        after it. A pause because of failures is not.

        Args:
            is_early: Whether a probe may come before the end of a pause that the
                server did not ask for.
            is_first: Whether the call has asked no route yet, since all refuse. Then
                one early probe may come in each pause.
            awaits_probe: Whether to wait for another call's probe in any pause.
        """
        if self._open_until is None:
            return self.pause
        with self._lock:
            held = self._left_until(self._held_until)
            is_probing = self._is_probing
            if is_early and is_first and not self._was_probed:
                wait: float | None = 0.0
            else:
                wait = held if held or self._is_held or is_early else None
            if wait == 0 and not is_probing:
                lease = self._lease_wait(is_early=True)
                is_probing, wait = lease is None, lease
            if is_probing:
                wait = _PROBE_INTERVAL if self._is_held or awaits_probe else None
        self._send()
        return wait

    def lease_wait(self) -> float | None:
        """Seconds until the store has said who probes; None if this breaker refuses.

        0 if there is nothing to wait for.
        """
        if self._open_until is None:
            return None if self.pause else 0.0
        with self._lock:
            if self._is_probing or self.retry_after > 0:
                return None
            wait = self._lease_wait(is_early=False)
        self._send()
        return wait

    def succeeded(self, permit: Permit) -> None:
        """The provider answered, even if only to refuse the request."""
        with self._lock:
            if permit.generation != self._generation:
                return
            if not permit.is_probe:
                self._count(has_failed=False)
                return
            self._close()
        self._report(BreakerState.CLOSED)

    def probe_answers(self, permit: Permit) -> Permit:
        """The first token of a probe's answer has come; the permit for the rest of it.

        The breaker closes, and the next failure opens it again.
        """
        with self._lock:
            if permit.generation != self._generation:
                return permit
            self._close()
            self._failures = self.failure_threshold - 1
            rest = Permit(self._generation, is_probe=False)
        self._report(BreakerState.CLOSED)
        return rest

    def failed(
        self,
        permit: Permit,
        *,
        retry_after: float | None = None,
        request: int | None = None,
    ) -> None:
        """The provider failed; `retry_after` is the pause that it asked for.

        `request` is a hash of the request, if it may be the cause of the failure. Its
        failures within `window` count as one, however often it is sent.
        """
        with self._lock:
            if permit.generation != self._generation:
                return
            if request is not None and not permit.is_probe:
                now = self._clock.monotonic()
                is_known = now - self._suspects.pop(request, -math.inf) < self.window
                self._suspects[request] = now
                if len(self._suspects) > _MAX_SUSPECTS:
                    del self._suspects[next(iter(self._suspects))]
                if is_known:
                    return
            has_failed_enough = self._count(has_failed=True)
            if not (permit.is_probe or has_failed_enough):
                return
            is_held = self._is_held and permit.is_probe and bool(retry_after)
            held = _bounded(retry_after)
            self._was_probed = permit.is_probe
            self._open(max(self.recovery_time, held), held, is_held=is_held)
            if not (permit.is_probe and self._tell_probe("failed")):
                self._vote(self._me(), _FELT)
        self._report(BreakerState.OPEN)

    def open_for(self, seconds: float, why: str = "") -> None:
        """Refuse calls for so long, since the server asked for it.

        A breaker that is open already stays open for the longer of both times. A day at
        most, since a misread number must not exclude a provider for ever. `why` is
        what the server said instead, if it asked for no pause.
        """
        with self._lock:
            held = _bounded(seconds)
            if held <= self.retry_after:
                until = self._clock.monotonic() + held
                self._held_until = max(self._held_until, until)
                is_new = not self._shared.is_open
                state = self._reported
            else:
                is_open = self.state is not BreakerState.CLOSED
                is_held = not why and (self._is_held or not is_open)
                self._open(held, 0.0 if why else held, is_held=is_held)
                self._why = why
                is_new, state = True, BreakerState.OPEN
            if is_new:
                self._tell("hold", _ms(held), int(not why), why or _ASKED)
        self._report(state)

    def cancelled(self, permit: Permit) -> None:
        """The outcome of the call is not known; another call may be the probe."""
        with self._lock:
            if permit.generation == self._generation and permit.is_probe:
                self._is_probing = False
                self._tell_probe("cancelled")
        self._send()

    # --- what is shared ---

    @property
    def pause(self) -> float:
        """Seconds that a server asked for, after which no probe is needed."""
        return self._left_until(self._paused_until) if self._paused_until else 0.0

    def pause_for(self, seconds: float) -> None:
        """Refuse calls for so long in all processes, and then admit all of them."""
        with self._lock:
            held = _bounded(seconds)
            if held > self.pause + _SAME_PAUSE:
                self._paused_until = self._clock.monotonic() + held
                self._tell("pause", _ms(held))
        self._send()

    def refused(self, request: int | None) -> None:
        """The server refused the key for this request, which may be the reason.

        Two such requests open the breaker for all.
        """
        with self._lock:
            if self.state is BreakerState.CLOSED:
                voter = f"{self._me()}:{request}"
                self._vote(voter, "the key was refused", is_felt=False)
        self._send()

    def _me(self) -> str:
        return self._store.process if self._store is not None else ""

    def _tell(self, action: str, *args: Any) -> None:
        """Note what other processes shall know; `_send` sends it without the lock."""
        if self._store is not None:
            me = f"{self._store.process}#{self.number}"
            self._shared.outbox.append([action, me, *args])

    def _vote(self, voter: str, why: str, *, is_felt: bool = True) -> None:
        pause = _ms(self.retry_after or self.recovery_time)
        window, quorum = _ms(self.window), self.quorum if is_felt else 2
        self._tell("vote", voter, pause, window, quorum, int(is_felt), why)

    def _tell_probe(self, outcome: str) -> bool:
        """Tell the store how its probe ended; False if the probe is our own affair."""
        shared = self._shared
        if not shared.lease:
            if outcome == "succeeded":
                self._tell("retract", self._me())
                if shared.is_open:  # It was away.
                    self._tell("close", shared.generation)
            return False
        args = [shared.lease]
        if outcome == "failed":
            held = self._left_until(self._held_until)
            args += [_ms(self.retry_after), _ms(held)]
        self._tell(outcome, *args)
        shared.lease, shared.lease_ends = 0, 0.0
        return True

    def _lease_wait(self, *, is_early: bool) -> float | None:
        """Seconds until the store says whether this process may probe for all.

        0 if it may, or has to decide alone; None if another one probes.
        """
        shared, store = self._shared, self._store
        if store is None or not shared.is_open or not store.is_up:
            return 0.0
        now = self._clock.monotonic()
        if now < shared.lease_ends:  # Of the lease that it has, or of its own decision.
            return 0.0
        if shared.asked_at is not None:
            if now < shared.asked_at + _REPAIRED:
                return LEASE_POLL if now < shared.asked_at + _LEASE_WAIT else None
            # The store's thread hangs, say while it looks up DNS.
            shared.unanswered += 1
            if shared.unanswered > 1:
                shared.asked_at, shared.lease_ends = None, now + _LEASE
                return 0.0
        if now < shared.denied_until:
            return None
        shared.lease, shared.asked_at = 0, now
        lease, why = _ms(_LEASE), self._why
        self._tell("probe", shared.generation, int(is_early), lease, why)
        return LEASE_POLL

    def _send(self) -> None:
        """Submit what is waiting, without the lock: the store may answer at once."""
        outbox = self._shared.outbox
        while outbox:
            with self._lock:
                args = outbox.popleft() if outbox else None
            if args is not None:
                self._submit(args, functools.partial(self._replied, args[0]))

    def _replied(self, action: str, reply: Reply | None) -> None:
        shared = self._shared
        if reply is not None:
            self.learned(reply)
        with self._lock:
            if action == "probe":
                now = self._clock.monotonic()
                shared.asked_at = None
                # One question that is lost is asked again; then it decides alone.
                shared.unanswered = shared.unanswered + 1 if reply is None else 0
                if (reply and reply[5]) or shared.unanswered > 1:
                    shared.lease = int(reply[5]) if reply else 0
                    shared.lease_ends = now + _LEASE
                elif reply is not None:
                    shared.denied_until = now + _PROBE_INTERVAL
                    self._was_probed = self._was_probed or self.retry_after > 0
            elif reply is None and action not in {"see", "renew"}:
                shared.has_unsent = True

    def refresh(self) -> None:
        """Ask the store what is new, each second, and send what it does not know."""
        shared = self._shared
        with self._lock:
            if shared.lease and self._is_probing:
                shared.lease_ends = self._clock.monotonic() + _LEASE
                self._tell("renew", shared.lease, _ms(_LEASE))
            elif shared.lease:  # The call that asked for it went another way.
                self._tell_probe("cancelled")
            else:
                self._tell("see")
            if shared.has_unsent:
                shared.has_unsent = False
                left = _ms(self.retry_after)
                held = _ms(self._left_until(self._held_until))
                if held:
                    self._tell("hold", held, 1, _ASKED)
                elif left and not shared.is_open and self._why:
                    self._tell("hold", left, 0, self._why)
                elif left and not shared.is_open:
                    self._vote(self._me(), _FELT)
                elif self._open_until is None and shared.is_open:
                    self._tell("close", shared.generation)
                if pause := _ms(self.pause):
                    self._tell("pause", pause)
        self._send()

    def learned(self, reply: Reply) -> None:
        """Take over what is known of the provider in all processes."""
        shared = self._shared
        _, generation, opens, held, pause, *_, why = reply
        state: BreakerState | None = None
        with self._lock:
            now = self._clock.monotonic()
            if pause > 0:
                self._paused_until = max(self._paused_until, now + pause / 1000)
            if generation > shared.generation:
                was_open, shared.is_open = shared.is_open, opens >= 0
                shared.generation, shared.lease = generation, 0
                shared.lease_ends = shared.denied_until = 0.0
                if opens >= 0:
                    until, own = now + opens / 1000, self._open_until
                    if own is None or was_open or own < until:
                        self._change(open_until=until)
                    self._held_until = now + max(0, held) / 1000
                    self._is_held, self._why = held > 0, why
                    state = BreakerState.OPEN
                elif was_open and self._open_until is not None:
                    self._was_probed = False
                    self._change(open_until=None)
                    state = BreakerState.CLOSED
            elif generation < shared.generation and opens < 0:  # It was emptied.
                if shared.is_open and (left := _ms(self.retry_after)):
                    held = _ms(self._left_until(self._held_until))
                    self._tell("restore", shared.generation, left, held, self._why)
                elif self._open_until is None:
                    shared.is_open = False
        if state is not None:
            self._report(state)
        self._send()

    def forked(self) -> None:
        """This is the child of a fork: the probe, if there is one, is the parent's."""
        super().forked()
        self._is_probing = False
        self._shared = _Shared(self._shared.generation, is_open=self._shared.is_open)

    def _left_until(self, moment: float) -> float:
        return max(0.0, moment - self._clock.monotonic())

    def _open(self, pause: float, held: float, *, is_held: bool) -> None:
        jitter = self._clock.random() * self.recovery_jitter * self.recovery_time
        now = self._clock.monotonic()
        self._change(open_until=now + pause + jitter)
        self._held_until, self._is_held = now + held, is_held

    def _close(self) -> None:
        """The probe has succeeded."""
        self._was_probed = False
        self._tell_probe("succeeded")
        self._change(open_until=None)

    def _change(self, *, open_until: float | None) -> None:
        self._generation += 1
        self._failures = 0
        self._latest.clear()
        self._is_probing = self._is_held = False
        self._held_until = 0.0
        self._open_until = open_until
        self._why = ""

    def _report(self, state: BreakerState) -> None:
        """Tell the listener, without the lock: it may ask for the state."""
        self._send()
        before, self._reported = self._reported, state
        if self._on_state_change is not None and before is not state:
            self._on_state_change(before, state)

    def _count(self, *, has_failed: bool) -> bool:
        """Count a call; whether enough calls have failed to open the breaker."""
        self._failures = self._failures + 1 if has_failed else 0
        has_row = self._failures >= self.failure_threshold
        if self.failure_rate is None:
            return has_row
        now = self._clock.monotonic()
        while self._latest and self._latest[0].since <= now - self.window:
            self._latest.popleft()
        if not self._latest or now >= self._latest[-1].since + self.window / _BUCKETS:
            self._latest.append(_Bucket(now))
        self._latest[-1].calls += 1
        self._latest[-1].failures += has_failed
        if has_row or not has_failed:
            return has_row
        calls = sum(bucket.calls for bucket in self._latest)
        failures = sum(bucket.failures for bucket in self._latest)
        return calls >= self.minimum_calls and failures / calls >= self.failure_rate

    def _settings(self) -> dict[str, Any]:
        names = CircuitBreakerSettings.__annotations__
        return {name: getattr(self, name) for name in names}

    def __reduce__(self) -> tuple[Any, ...]:
        """The numbers alone, since another process has its own clock; and the store."""
        shared: dict[str, Any] = {}
        if self._store is not None:
            shared = {"name": self.name, "store": self._store}
        return functools.partial(type(self), **self._settings(), **shared), ()

    def __repr__(self) -> str:
        """The two main numbers, and others that are not the default."""
        default = CircuitBreaker()
        numbers = ", ".join(
            f"{name}={value if isinstance(value, int) else format(value, 'g')}"
            for name, value in self._settings().items()
            if name in {"failure_threshold", "recovery_time"}
            or value != getattr(default, name)
        )
        return f"{type(self).__name__}({numbers})"


@dataclass(slots=True)
class _Shared:
    """What a shared breaker knows of the others, and has not sent to them yet."""

    generation: int = 0
    is_open: bool = False  # For all, and not just here.
    lease: int = 0  # The number of the probe that the store has given us.
    lease_ends: float = 0.0
    asked_at: float | None = None
    denied_until: float = 0.0
    unanswered: int = 0
    has_unsent: bool = False
    outbox: deque[list[Any]] = field(default_factory=deque)


@dataclass(slots=True)
class _Bucket:
    """Calls that ended within a tenth of the window."""

    since: float
    calls: int = 0
    failures: int = 0


def _ms(seconds: float) -> int:
    return math.ceil(min(seconds, MOST_SECONDS) * 1000)


def _bounded(seconds: float | None) -> float:
    """The pause that a server asked for, as far as it can be meant."""
    return min(seconds, _LONGEST_PAUSE) if seconds is not None and seconds > 0 else 0.0
