"""What is no failure of a model passes at once, and takes nothing with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, NoReturn

import pytest
import tenacity

from langchain_retryrouter._retry.engine import RetryContext, acall
from langchain_retryrouter._retry.streaming import ChunkInfo
from langchain_retryrouter.circuit_breaker import CircuitBreaker, Permit
from langchain_retryrouter.errors import UnavailableError
from langchain_retryrouter.policy import RetryBudget, RetryPolicy
from langchain_retryrouter.testing import FakeClock

from .engines import Drive, aopen, plan_for
from .scripted import END, ROLE, SILENCE, Script, Source, Witness, one_turn, token

HEL = token("Hel")
PASSING = [
    asyncio.CancelledError,
    KeyboardInterrupt,
    SystemExit,
    GeneratorExit,
    ValueError,
    TypeError,
    TimeoutError,
    ConnectionError,
    tenacity.TryAgain,
]
passing = pytest.mark.parametrize("passing", PASSING)


class Shared:
    """A budget, and a breaker whose one probe this call is."""

    def __init__(self, clock: FakeClock) -> None:
        """The breaker opened long ago."""
        self._clock = clock
        self.budget = RetryBudget()
        self.breaker = CircuitBreaker(failure_threshold=1, recovery_time=1, clock=clock)
        permit = self.breaker.admit()
        assert isinstance(permit, Permit)
        self.breaker.failed(permit)
        clock.advance(1)

    def plan(self) -> RetryContext:
        """The plan of a call that shares them."""
        return plan_for(self._clock, budget=self.budget, breaker=self.breaker)

    def check_given_back(self, *, tokens: float = 500) -> None:
        """The probe's place is free, and no token is missing."""
        answer = self.breaker.admit()
        assert isinstance(answer, Permit)
        assert answer.is_probe
        assert self.budget.tokens == tokens


@pytest.fixture
def shared(clock: FakeClock) -> Shared:
    """What the call has to give back."""
    return Shared(clock)


@passing
def test_from_a_request(
    drive: Drive, clock: FakeClock, shared: Shared, passing: type[BaseException]
) -> None:
    """Cancellation, exits and bugs leave unwrapped, at once, giving all back."""
    error, plan = passing("unwrapped"), shared.plan()
    script, witness = Script(error, "never sent"), Witness(clock)
    with pytest.raises(passing) as caught:
        drive.call(plan, script, witness)
    assert caught.value is error or passing is asyncio.CancelledError
    assert script.numbers == [1]
    assert witness.states == []
    assert clock.sleeps == []
    assert not hasattr(error, "__notes__")
    assert [record.outcome for record in plan.call_state.records] == ["cancelled"]
    shared.check_given_back()


@passing
def test_from_the_connecting_of_a_stream(
    drive: Drive, shared: Shared, passing: type[BaseException]
) -> None:
    """The same while a stream is being opened."""
    script = Script(passing("unwrapped"), "never sent")
    with pytest.raises(passing):
        drive.stream(shared.plan(), script)
    assert script.numbers == [1]
    shared.check_given_back()


@passing
@pytest.mark.parametrize("before", [(), (ROLE,), (ROLE, token("Hel"))])
def test_from_within_a_stream(
    drive: Drive,
    shared: Shared,
    passing: type[BaseException],
    before: tuple[object, ...],
) -> None:
    """The same while it is read, before and after the first token; and it is closed."""
    source = Source(*before, passing("unwrapped"), END)
    script, plan = Script(source, "never sent"), shared.plan()
    with pytest.raises(passing):
        drive.stream(plan, script)
    assert script.numbers == [1]
    assert source.closed == 1
    assert [record.outcome for record in plan.call_state.records] == ["cancelled"]
    shared.check_given_back()


@pytest.mark.parametrize("start", [Drive.call, Drive.stream])
def test_a_foreign_timeout_is_not_ours(
    drive: Drive, clock: FakeClock, start: Callable[..., object]
) -> None:
    """A `TimeoutError` out of a bug is not taken for one of our own limits."""
    limits = RetryPolicy(deadline=60, first_token_timeout=60, stall_timeout=60)
    sources: list[object] = [TimeoutError("a bug")]
    if start is Drive.stream:
        sources += [Source(TimeoutError("a bug")), Source(HEL, TimeoutError("a bug"))]
    for source in sources:
        script = Script(source, "never sent")
        with pytest.raises(TimeoutError, match=r"^a bug$"):
            start(drive, plan_for(clock, limits), script)
        assert script.numbers == [1]


@passing
def test_from_the_telling(
    drive: Drive, clock: FakeClock, passing: type[BaseException]
) -> None:
    """Who is told of a retry may be cancelled: it is neither sent nor paid for."""

    def leave() -> None:
        raise passing

    budget = RetryBudget()
    script, witness = Script(UnavailableError("1"), "never sent"), Witness(clock, leave)
    with pytest.raises(passing):
        drive.call(plan_for(clock, budget=budget), script, witness)
    assert script.numbers == [1]
    assert clock.sleeps == []
    assert budget.tokens == 500


class LeavingClock(FakeClock):
    """A clock whose waits somebody walks out of."""

    def __init__(self, leaving: type[BaseException]) -> None:
        """By raising `leaving`."""
        super().__init__()
        self._leaving = leaving

    def sleep(self, seconds: float) -> None:
        """Leave."""
        raise self._leaving(seconds)

    async def asleep(self, seconds: float) -> None:
        """Leave."""
        raise self._leaving(seconds)


@pytest.mark.parametrize("leaving", PASSING[:4])
def test_from_a_wait(drive: Drive, leaving: type[BaseException]) -> None:
    """Who leaves during the wait for a retry gets back what it cost."""
    budget, clock = RetryBudget(), LeavingClock(leaving)
    script = Script(UnavailableError("1"), "never sent")
    with pytest.raises(leaving):
        drive.call(plan_for(clock, budget=budget), script)
    assert script.numbers == [1]
    assert budget.tokens == 500


@pytest.mark.parametrize("start", [Drive.call, Drive.stream])
def test_a_bug_after_a_failure(
    drive: Drive, clock: FakeClock, start: Callable[..., object]
) -> None:
    """A bug in the second attempt leaves as it is; what was sent stays paid for."""
    budget = RetryBudget()
    script = Script(UnavailableError("1"), ZeroDivisionError("a bug"), "never sent")
    with pytest.raises(ZeroDivisionError, match=r"^a bug$") as caught:
        start(drive, plan_for(clock, budget=budget), script)
    assert not hasattr(caught.value, "__notes__")
    assert script.numbers == [1, 2]
    assert budget.tokens == 486


# --- cancellation as asyncio does it ------------------------------------------------


async def cancel_at_rest(coroutine: Coroutine[Any, Any, object]) -> None:
    """Run it in a task, let it come to rest, and cancel it there."""
    task = asyncio.create_task(coroutine)
    for _ in range(20):
        await one_turn()
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def never(*_: object) -> NoReturn:
    """Wait for what does not come."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError


async def read_all(
    events: AsyncGenerator[ChunkInfo, None], seen: list[ChunkInfo]
) -> None:
    """Read a stream to its end."""
    async with contextlib.aclosing(events):
        async for event in events:
            seen.append(event)  # noqa: PERF401 - what came before an error must be kept


async def test_cancelled_in_a_request(shared: Shared) -> None:
    """A task cancelled while its request is under way is over at once."""
    await cancel_at_rest(acall(shared.plan(), never))
    shared.check_given_back()


async def test_cancelled_in_a_telling(clock: FakeClock) -> None:
    """A task cancelled while a handler is slow sends no retry, and pays for none."""
    budget = RetryBudget()
    script = Script(UnavailableError("1"), "never sent")
    await cancel_at_rest(acall(plan_for(clock, budget=budget), script.asend, never))
    assert script.numbers == [1]
    assert budget.tokens == 500


class EndlessClock(FakeClock):
    """A clock whose waits do not end."""

    async def asleep(self, seconds: float) -> None:
        """Wait for ever."""
        del seconds
        await never()


async def test_cancelled_in_a_wait() -> None:
    """A task cancelled while it waits for its retry gets back what that cost."""
    budget = RetryBudget()
    script = Script(UnavailableError("1"), "never sent")
    await cancel_at_rest(acall(plan_for(EndlessClock(), budget=budget), script.asend))
    assert script.numbers == [1]
    assert budget.tokens == 500


@pytest.mark.parametrize("before", [(), (ROLE,), (ROLE, token("Hel"), token("lo"))])
async def test_cancelled_in_a_stream(
    shared: Shared, before: tuple[ChunkInfo, ...]
) -> None:
    """A task cancelled while it reads closes the stream, be there a token or not."""
    source, seen = Source(*before, SILENCE), list[ChunkInfo]()
    script, plan = Script(source, "never sent"), shared.plan()
    await cancel_at_rest(read_all(aopen(plan, script), seen))
    assert seen == (list(before) if len(before) > 1 else [])
    assert script.numbers == [1]
    assert source.closed == 1
    assert [record.outcome for record in plan.call_state.records] == ["cancelled"]
    shared.check_given_back()


async def test_cancelled_while_it_closes(shared: Shared) -> None:
    """Even if closing a stream is cancelled, the probe's place is given back."""
    source = Source(token("Hel"), token("lo"))
    source.aclose = never  # type: ignore[method-assign]
    events = aopen(shared.plan(), Script(source))
    assert await anext(events) == token("Hel")
    await cancel_at_rest(close(events))
    shared.check_given_back()


async def close(events: AsyncGenerator[ChunkInfo, None]) -> None:
    """Close it, as a task."""
    await events.aclose()


def test_a_close_that_breaks_keeps_nothing(drive: Drive, shared: Shared) -> None:
    """If closing a stream fails, that is seen, and the probe's place given back."""
    source = Source(token("Hel"), token("lo"), on_close=OSError("already gone"))
    with pytest.raises(OSError, match="already gone"):
        drive.stream(shared.plan(), Script(source), stop_after=1)
    shared.check_given_back()
