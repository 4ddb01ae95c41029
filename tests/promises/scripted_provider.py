"""A provider in memory, on a clock of its own: what `_drive` drives, call after call.

It fails 2 % of its requests, and all of them while it is out; its answers have the
latencies of a language model's, with their long tail. What a caller may rely on is
checked where it happens: here, as the requests come in and the waits begin.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from random import Random  # noqa: TID251 - one die for the whole run, by its seed
from typing import Final, TypeAlias

from tenacity import RetryCallState

from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.engine import Attempt, RetryContext, acall, call
from langchain_retryrouter._retry.streaming import ChunkInfo, astream, stream
from langchain_retryrouter.circuit_breaker import BreakerState, CircuitBreaker, Permit
from langchain_retryrouter.errors import BASE_ERRORS, RetryRouterError
from langchain_retryrouter.failures import FailureKind
from langchain_retryrouter.policy import RetryBudget, RetryPolicy

FAULTS: Final = 0.02
TOKEN: Final = ChunkInfo(text="x", is_token=True)
END: Final = ChunkInfo(is_end=True, is_last=True)
_LATE: Final = "no answer in time"
_OUTAGE: Final = 0.001
_MOST_SECONDS: Final = 120.0
_KINDS: Final = (
    FailureKind.RATE_LIMIT,
    FailureKind.RATE_LIMIT,
    FailureKind.UNAVAILABLE,
    FailureKind.SERVER_ERROR,
    FailureKind.TIMEOUT,
    FailureKind.CONNECTION,
    FailureKind.MALFORMED,
    FailureKind.INVALID_REQUEST,
    FailureKind.QUOTA,
)
_STATES: Final = frozenset(BreakerState)
# Whole calls are under a deadline; a stream's would take a thread that watches it.
_POLICIES: Final = (
    RetryPolicy(max_retries=2, deadline=60.0),
    RetryPolicy(max_retries=0),
    RetryPolicy(max_retries=4, max_retry_after=10.0, deadline=600.0),
)
_STREAM_POLICIES: Final = (RetryPolicy(), RetryPolicy(max_retries=4))

Outcome: TypeAlias = str | None
"""The kind of the failure that left a call; None for a whole answer."""


class VirtualClock:
    """A clock that waiting moves on, and that remembers nothing."""

    def __init__(self, rng: Random) -> None:
        self.now = 0.0
        self.random = rng.random

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_800_000_000.0 + self.now

    def sleep(self, seconds: float, /) -> None:
        assert seconds >= 0
        self.now += seconds

    async def asleep(self, seconds: float, /) -> None:
        self.sleep(seconds)
        await asyncio.sleep(0)  # noqa: TID251 - a turn of the loop, and no wait


class Provider:
    """What is called, and what has been seen of it.

    Attributes:
        in_flight: Requests and streams that have begun, and not ended.
        requests: Requests that have come in.
        latest: Seconds past its deadline that a call took at the most. While calls are
            under way together, time passes for all of them; it is not looked at then.
    """

    def __init__(self, seed: int) -> None:
        self._dice = Random(seed)  # noqa: S311 - nothing secret is drawn
        self.clock = VirtualClock(self._dice)
        self.budget = RetryBudget()
        self.breaker = CircuitBreaker(recovery_time=30.0, recovery_jitter=0.1)
        self._out_until = 0.0
        self.in_flight = 0
        self.requests = 0
        self.latest = 0.0

    def call(self) -> Outcome:
        """One sync call, whole or as a stream."""
        with self._checked() as (plan, outcome):
            if plan.call_state.policy.deadline is None:
                for _ in stream(plan, self._connect, _reader, self._notified(plan)):
                    pass
            else:
                call(plan, self._send, self._notified(plan))
        return outcome[0] if outcome else None

    async def acall(self) -> Outcome:
        """Async twin of `call`; others have their turn first."""
        await asyncio.sleep(0)  # noqa: TID251 - a turn of the loop, and no wait
        with self._checked() as (plan, outcome):
            notify = self._anotified(plan)
            if plan.call_state.policy.deadline is None:
                async for _ in astream(plan, self._aconnect, _reader, notify):
                    pass
            else:
                await acall(plan, self._asend, notify)
        return outcome[0] if outcome else None

    def check_end(self) -> None:
        """Nothing is under way, and no probe's place is taken for good."""
        assert self.in_flight == 0, self.in_flight
        self.clock.now += 1e6
        assert isinstance(self.breaker.admit(self.clock.now), Permit)

    @contextlib.contextmanager
    def _checked(self) -> Iterator[tuple[RetryContext, list[str]]]:
        """A call's plan, and what becomes of it; afterwards nothing is amiss."""
        clock, rng = self.clock, self._dice
        clock.now += rng.expovariate(1.0)  # Seconds between two calls.
        streams = rng.random() < 0.5
        policy = rng.choice(_STREAM_POLICIES if streams else _POLICIES)
        call_state = CallState(
            policy, budget=self.budget, breaker=self.breaker, time=clock
        )
        outcome: list[str] = []
        told: list[int] = []
        began = clock.now
        try:
            yield RetryContext(call_state, errors=BASE_ERRORS, clock=clock), outcome
        except RetryRouterError as error:
            outcome.append(error.kind)
            told.append(error.attempts)
        assert told in ([], [call_state.attempts]), (told, call_state.records)
        assert call_state.attempts <= policy.max_retries + 1, call_state.records
        assert 0 <= self.budget.tokens <= 500, self.budget.tokens
        assert self.breaker.state(clock.now) in _STATES
        assert all(record.outcome != "pending" for record in call_state.records)
        if policy.deadline is not None and not self.in_flight:
            self.latest = max(self.latest, clock.now - began - policy.deadline)
        is_answered = call_state.attempts and call_state.records[-1].outcome == "ok"
        assert bool(is_answered) is not bool(outcome), (call_state.records, outcome)

    def _notified(self, plan: RetryContext) -> Callable[[RetryCallState], None]:
        """Looks at each wait before it begins."""
        began = self.clock.now

        def notify(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            assert isinstance(error, RetryRouterError)
            wait, policy = state.upcoming_sleep, plan.call_state.policy
            assert wait >= (error.retry_after or 0.0), (wait, error.retry_after)
            assert wait <= max(policy.max_delay, policy.max_retry_after) + 1.0, wait
            if policy.deadline is not None:
                assert self.clock.now + wait < began + policy.deadline

        return notify

    def _anotified(
        self, plan: RetryContext
    ) -> Callable[[RetryCallState], Awaitable[None]]:
        notify = self._notified(plan)

        async def anotify(state: RetryCallState) -> None:
            notify(state)

        return anotify

    # Requests.

    def _arrive(self) -> RetryRouterError | None:
        """A request comes in; what will be wrong with its answer."""
        self.requests += 1
        rng, clock = self._dice, self.clock
        if rng.random() < _OUTAGE:
            self._out_until = clock.now + rng.uniform(10.0, 60.0)
        if rng.random() >= FAULTS and clock.now >= self._out_until:
            return None
        kind = rng.choice(_KINDS)
        if kind is FailureKind.RATE_LIMIT:
            asked = rng.choice((None, 0.0, 0.2, 3.0, 30.0, 90.0))
            return BASE_ERRORS[kind]("429", status_code=429, retry_after=asked)
        return BASE_ERRORS[kind](kind)

    def _answer(
        self, failure: RetryRouterError | None, limit: float | None = None
    ) -> str:
        seconds = min(_MOST_SECONDS, 0.3 * self._dice.paretovariate(1.1))
        if limit is not None and seconds > limit:
            self.clock.now += limit
            raise BASE_ERRORS[FailureKind.TIMEOUT](_LATE)
        self.clock.now += seconds
        if failure is not None:
            raise failure
        return "answer"

    def _send(self, attempt: Attempt) -> str:
        with self._under_way():
            return self._answer(self._arrive(), attempt.timeout)

    async def _asend(self, attempt: Attempt) -> str:
        with self._under_way():
            failure = self._arrive()
            await asyncio.sleep(0)  # noqa: TID251 - a turn of the loop, and no wait
            return self._answer(failure, attempt.timeout)

    def _connect(self, _attempt: Attempt) -> _Source:
        return _Source(self)

    async def _aconnect(self, _attempt: Attempt) -> _Source:
        return _Source(self)

    @contextlib.contextmanager
    def _under_way(self) -> Iterator[None]:
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def _events(self) -> Iterator[ChunkInfo]:
        failure = self._arrive()
        breaks_off = failure is not None and self._dice.random() < 0.5
        if failure is None or breaks_off:
            yield ChunkInfo()
            yield TOKEN
        self._answer(failure)
        yield TOKEN
        yield END


class _Source:
    """One attempt's stream."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._events = provider._events()  # noqa: SLF001 - two halves of one thing
        self._is_open = True
        provider.in_flight += 1

    def __iter__(self) -> Iterator[ChunkInfo]:
        return self._events

    async def __aiter__(self) -> AsyncIterator[ChunkInfo]:
        for event in self._events:
            await asyncio.sleep(0)  # noqa: TID251 - a turn of the loop, and no wait
            yield event

    def abort(self) -> None:
        """Nothing blocks."""

    def close(self) -> None:
        self._provider.in_flight -= self._is_open
        self._is_open = False

    async def aclose(self) -> None:
        self.close()


def _reader() -> Callable[[ChunkInfo], ChunkInfo]:
    return _same


def _same(signal: ChunkInfo) -> ChunkInfo:
    return signal
