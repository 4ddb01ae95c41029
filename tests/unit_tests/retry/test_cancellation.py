"""Cancellation, exits and bugs pass unchanged, and nothing is left behind."""

import asyncio
import contextlib
import gc
import operator
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import tenacity
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.rate_limiters import BaseRateLimiter

from langchain_retryrouter import (
    APIConnectionError,
    BreakerState,
    CircuitBreaker,
    RateLimit,
    RetryBudget,
    RetryPolicy,
    RetryRouter,
    Route,
)
from langchain_retryrouter._retry.engine import RetryContext
from langchain_retryrouter._retry.hedging import AHedgedSource, HedgedSource
from langchain_retryrouter._retry.streaming import ChunkInfo
from langchain_retryrouter._retry.timeouts import ThreadedStream, on_abort
from langchain_retryrouter.circuit_breaker import Permit
from langchain_retryrouter.failures import Failure
from langchain_retryrouter.testing import FakeClock
from tests.unit_tests.conftest import Twin

from .scripted import (
    END,
    ROLE,
    Engine,
    Outcome,
    Recorder,
    Script,
    Source,
    Start,
    aopen,
    calls_and_streams,
    context_for,
    failures,
    happen,
    one_turn,
    opened,
    outcomes,
    token,
)

HEL, LO = token("Hel"), token("lo")
FOREIGN = [
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
foreign = pytest.mark.parametrize("foreign", FOREIGN)


class Shared:
    """A budget, and a breaker whose one probe a call is; it must give both back."""

    def __init__(self, clock: FakeClock, policy: RetryPolicy) -> None:
        self.budget = RetryBudget()
        self.breaker = opened(clock)
        self.context: RetryContext = context_for(
            clock, policy, budget=self.budget, breaker=self.breaker
        )

    def check_given_back(self, *, has_answered: bool = False) -> None:
        """The breaker admits another call, and no token is missing."""
        permit = self.breaker.admit()
        assert isinstance(permit, Permit)
        assert permit.is_probe is not has_answered  # A first token ends a probe.
        assert self.budget.tokens == 500


@pytest.fixture(params=[None, 60], ids=["no limits", "limits"])
def shared(clock: FakeClock, request: pytest.FixtureRequest) -> Shared:
    """Without time limits, and with some, which no foreign `TimeoutError` is."""
    names = ("deadline", "first_token_timeout", "stall_timeout")
    return Shared(clock, RetryPolicy(**dict.fromkeys(names, request.param)))


@foreign
def test_from_a_request(
    engine: Engine, shared: Shared, foreign: type[BaseException]
) -> None:
    """A foreign exception of a request is raised at once, without a note."""
    error = foreign("unwrapped")
    script, recorder = Script(error, "not sent"), Recorder()
    with pytest.raises(foreign) as caught:
        engine.call(shared.context, script, recorder)
    assert caught.value is error or foreign is asyncio.CancelledError
    assert not hasattr(error, "__notes__")
    assert (script.numbers, recorder.states, engine.clock.sleeps) == ([1], [], [])
    assert outcomes(shared.context) == ["cancelled"]
    shared.check_given_back()


@foreign
@pytest.mark.parametrize("before", [None, (), (ROLE,), (ROLE, HEL)])
def test_from_a_stream(
    engine: Engine,
    shared: Shared,
    foreign: type[BaseException],
    before: tuple[object, ...] | None,
) -> None:
    """A stream that is being opened or read is closed, with and without a token."""
    error = foreign("unwrapped")
    source = Source(*(before or ()), error, END)
    script = Script(error if before is None else source, "not sent")
    with pytest.raises(foreign):
        engine.stream(shared.context, script)
    assert script.numbers == [1]
    assert source.closed == (before is not None)
    assert outcomes(shared.context) == ["cancelled"]
    shared.check_given_back(has_answered=HEL in (before or ()))


class LeavingClock(FakeClock):
    """A clock whose waits are left by an exception."""

    def __init__(self, leaving: type[BaseException]) -> None:
        super().__init__()
        self._leaving = leaving

    def sleep(self, seconds: float) -> None:
        raise self._leaving(seconds)


@foreign
@pytest.mark.parametrize("place", ["on_retry", "wait"])
def test_before_a_retry(
    engine: Engine, foreign: type[BaseException], place: str
) -> None:
    """A retry that an exception prevents is neither sent nor paid for."""

    def leave() -> None:
        if place == "on_retry":
            raise foreign

    clock, budget = LeavingClock(foreign), RetryBudget()
    script, recorder = Script(*failures(1), "not sent"), Recorder(leave)
    with pytest.raises(foreign):
        engine.call(context_for(clock, budget=budget), script, recorder)
    assert (script.numbers, budget.tokens) == ([1], 500)


@calls_and_streams
def test_a_bug_after_a_failure(engine: Engine, start: Start) -> None:
    """A bug in the second attempt passes unchanged; a retry that was sent is paid."""
    budget = RetryBudget()
    script = Script(*failures(1), ZeroDivisionError("a bug"), "not sent")
    with pytest.raises(ZeroDivisionError, match=r"^a bug$") as caught:
        start(engine, engine.context(budget=budget), script)
    assert not hasattr(caught.value, "__notes__")
    assert (script.numbers, budget.tokens) == ([1, 2], 486)


def test_a_close_that_fails_is_raised(engine: Engine, shared: Shared) -> None:
    """If closing a stream fails, the permit is given back all the same."""
    source = Source(HEL, LO, on_close=OSError("already gone"))
    with pytest.raises(OSError, match="already gone"):
        engine.stream(shared.context, Script(source), stop_after=1)
    shared.check_given_back(has_answered=True)


class BrokenLimiter(BaseRateLimiter):
    """A rate limiter with a bug."""

    def acquire(self, *, blocking: bool = True) -> bool:
        raise KeyError(blocking)

    async def aacquire(self, *, blocking: bool = True) -> bool:
        raise KeyError(blocking)


@pytest.mark.parametrize("method", ["invoke", "stream"])
@pytest.mark.parametrize("bug", ["listener of a breaker", "limiter of a hedge"])
def test_a_bug_keeps_no_permit(twin: Twin, bug: str, method: str) -> None:
    """What a function of the caller raises leaves the call, which holds nothing."""
    limit = RateLimit(max_concurrency=1)
    if bug == "listener of a breaker":
        clock = FakeClock()

        def listen(_: BreakerState, now: BreakerState) -> None:
            if now is BreakerState.CLOSED:
                raise KeyError

        breaker = CircuitBreaker(clock=clock, on_state_change=listen)
        breaker.open_for(1)
        clock.advance(1)
        model = FakeListChatModel(responses=["hello"])
        routes = [Route(model=model, breaker=breaker, rate_limit=limit)]
    else:
        method, limiter = "stream", BrokenLimiter()
        broken = FakeListChatModel(responses=["hello"], rate_limiter=limiter)
        slow = FakeListChatModel(responses=["hello"], sleep=1.0)
        routes = [Route(model=slow), Route(model=broken, rate_limit=limit)]
    router = RetryRouter(routes=routes, hedge_after=0.01)
    with pytest.raises(KeyError):
        getattr(twin, method)(router, "hi")
    assert limit.in_flight == 0


# --- cancellation as asyncio does it ---


async def cancel_at_rest(coroutine: Coroutine[Any, Any, object]) -> None:
    """Run it in a task until it waits, and cancel it there."""
    task = asyncio.create_task(coroutine)
    for _ in range(20):
        await one_turn()
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_while_it_closes(shared: Shared) -> None:
    """If the closing of a stream is cancelled, the permit is given back."""

    async def forever() -> None:
        await asyncio.get_running_loop().create_future()

    source = Source(HEL, LO)
    source.aclose = forever  # type: ignore[method-assign]
    events = aopen(shared.context, Script(source))
    assert await anext(events) == HEL

    async def close() -> None:
        await events.aclose()

    await cancel_at_rest(close())
    shared.check_given_back(has_answered=True)


# --- models that swallow a cancellation ---


async def swallow(_: object = None) -> bool:
    """Waits to be cancelled, and goes on as if that had not happened."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.get_running_loop().create_future()
    return True


class Swallowing(FakeListChatModel):
    """Answers or fails after a cancellation."""

    responses: list[str] = ["an answer"]  # noqa: RUF012 - a field
    error: Exception | None = None

    async def _swallow(self) -> None:
        await swallow()
        if self.error is not None:
            raise self.error

    async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
        await self._swallow()
        return await super()._agenerate(*args, **kwargs)

    async def _astream(
        self, *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        await self._swallow()
        async for chunk in super()._astream(*args, **kwargs):
            yield chunk


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("first", "accept"),
    [
        (Swallowing(), None),
        (Swallowing(error=ValueError("an error")), None),
        (FakeListChatModel(responses=["an answer"]), swallow),
    ],
    ids=["answers", "fails", "accepts"],
)
async def test_a_lost_cancellation_is_raised_again(
    first: FakeListChatModel, accept: Any, *, is_stream: bool
) -> None:
    """A cancelled call ends as cancelled, and asks nobody, whatever was done.

    `asyncio.timeout` cancels as well. A task that cleans up may call a model again.
    """
    answer = FakeListChatModel(responses=["cleaned up", "not asked"])
    router = RetryRouter(routes=[first, answer], accept=accept)

    async def call(model: Any = router) -> str:
        if is_stream:
            return "".join([chunk.text async for chunk in model.astream("hi")])
        return str((await model.ainvoke("hi")).text)

    async def clean_up() -> str:
        try:
            return await call()
        except asyncio.CancelledError:
            return await call(RetryRouter(routes=[answer]))

    await cancel_at_rest(call())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await call()
    assert answer.i == 0
    task = asyncio.create_task(clean_up())
    for _ in range(20):
        await one_turn()
    task.cancel()
    assert await task == "cleaned up"


BON = token("Bon")

LONG = 5.0
SOON = 0.01


class FakeStream:
    """A stream that is silent until it may speak, or is closed."""

    def __init__(self, *events: Outcome, silent: bool = False) -> None:
        """An exception among the events is raised in its place."""
        self._events = events
        self._may_speak = threading.Event()
        self.was_opened, self.was_closed = threading.Event(), threading.Event()
        self.closed = self.aborted = self.read = 0
        if not silent:
            self.speak()

    def speak(self) -> None:
        self._may_speak.set()

    def _read(self) -> Iterator[ChunkInfo]:
        for event in () if self.closed else self._events:
            self.read += 1
            yield happen(event)

    def __iter__(self) -> Iterator[ChunkInfo]:
        on_abort(self.abort)
        self.was_opened.set()
        assert self._may_speak.wait(LONG), "the silence was not ended"
        yield from self._read()

    async def __aiter__(self) -> AsyncIterator[ChunkInfo]:
        self.was_opened.set()
        while not self._may_speak.is_set():
            await one_turn()
        for event in self._read():
            yield event
            await one_turn()

    def abort(self) -> None:
        self.aborted += 1
        self.speak()

    def close(self) -> None:
        self.closed += 1
        self.was_closed.set()
        self.speak()

    async def aclose(self) -> None:
        await one_turn()
        self.close()


@dataclass
class FakeHedge:
    """A hedge, by a second stream if there is one, that records how it was settled."""

    second: Any
    after: float = SOON
    begun: int = 0
    settled: list[tuple[bool, Failure | None]] = field(default_factory=list)

    def begin(self) -> Any:
        self.begun += 1
        return self.second

    def settle_hedge(self, *, has_won: bool, failure: Failure | None) -> None:
        self.settled.append((has_won, failure))

    def ends_call(self, _failure: Failure | None) -> bool:
        return False

    def attach(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def race(self, first: Any, kind: Any = HedgedSource) -> Any:
        parts = (self, first, self.after, self.begin)
        return kind(*parts, operator.attrgetter("is_token"))

    def arace(self, first: Any) -> Any:
        return self.race(first, AHedgedSource)


def test_nothing_is_read_ahead(twin: Twin) -> None:
    """After the first content an event is read when the caller asks for it."""
    first, counts = FakeStream(ROLE, HEL, LO, END), list[int]()
    hedge = FakeHedge(None, after=LONG)

    async def read() -> None:
        async with contextlib.aclosing(hedge.arace(first)) as events:
            async for _ in events:
                counts.append(first.read)

    if twin.is_async:
        asyncio.run(read())
    else:
        with contextlib.closing(hedge.race(first)) as events:
            counts += [first.read for _ in events]
    assert counts == [2, 2, 3, 4]


# --- leaving ---


@pytest.mark.parametrize("has_second", [True, False])
def test_a_wait_can_be_aborted_from_another_thread(*, has_second: bool) -> None:
    """The reader gets an error at once, and the streams are aborted."""
    first, second = FakeStream(HEL, silent=True), FakeStream(BON, silent=True)
    hedge = FakeHedge(
        second if has_second else None, after=SOON if has_second else LONG
    )
    source = hedge.race(first)
    stream = ThreadedStream(lambda: source)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(stream.next, None)
        assert (second if has_second else first).was_opened.wait(LONG)
        stream.abort()
        with pytest.raises(APIConnectionError, match="the stream was aborted"):
            waiting.result(LONG)
    stream.close()
    assert first.was_closed.wait(LONG)
    assert (first.aborted > 0, second.aborted > 0) == (True, has_second)


def test_nothing_begins_after_an_abort() -> None:
    """A race that was aborted opens no second stream."""
    first, hedge = FakeStream(HEL, silent=True), FakeHedge(FakeStream(BON))
    source = hedge.race(first)
    source.abort()
    threading.Timer(4 * SOON, first.speak).start()
    assert list(source) == [HEL]
    assert hedge.begun == 0
    source.close()


async def test_closing_goes_on_when_its_task_is_cancelled() -> None:
    """A stream is closed although the task that closes it is cancelled meanwhile."""
    first = FakeStream(HEL, LO)
    source = FakeHedge(None, after=LONG).arace(first)
    assert await anext(aiter(source)) == HEL
    task = asyncio.create_task(source.aclose())
    await one_turn()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert first.was_closed.is_set()


async def test_a_cancelled_task_closes_both() -> None:
    """A task that is cancelled while both are silent leaves no stream and no task."""
    first, second = FakeStream(HEL, silent=True), FakeStream(BON, silent=True)
    source = FakeHedge(second).arace(first)

    async def read_one() -> None:
        await anext(aiter(source))

    task = asyncio.create_task(read_one())
    while not second.was_opened.is_set():
        await one_turn()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await source.aclose()
    assert first.was_closed.wait(LONG)
    assert second.was_closed.wait(LONG)
    assert asyncio.all_tasks() == {asyncio.current_task()}


class SlowToLeave(FakeStream):
    """A silent stream whose reader, when cancelled, waits until `may_go`, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__(silent=True)
        self._error = error
        self.may_go, self.is_leaving = asyncio.Event(), False
        self.is_running = False

    async def __aiter__(self) -> AsyncIterator[ChunkInfo]:
        """Yield nothing."""
        self.is_running = True
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.is_leaving = True
            await self.may_go.wait()
            if self._error is not None:
                raise self._error from None
            raise
        finally:
            self.is_running = False
        yield HEL

    async def aclose(self) -> None:
        """As an async generator, it cannot be closed while it is running."""
        assert not self.is_running
        await super().aclose()


@pytest.mark.parametrize("goes", [True, False])
async def test_a_cancellation_while_the_loser_leaves_is_kept(*, goes: bool) -> None:
    """The task ends as cancelled, and does not wait for a loser that will not go."""
    loser, winner = SlowToLeave(), FakeStream(BON)
    source = FakeHedge(winner, after=0).arace(loser)

    async def read_one() -> None:
        async with contextlib.aclosing(source):
            await anext(aiter(source))

    task = asyncio.create_task(read_one())
    while not loser.is_leaving:
        await one_turn()
    task.cancel()
    if goes:
        loser.may_go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(20):
        await one_turn()
    assert (loser.closed, winner.closed) == (1, 1)


async def test_an_error_of_a_loser_that_leaves_is_ignored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is neither raised nor reported nor logged."""
    loser, hedge = SlowToLeave(ValueError("late")), FakeHedge(FakeStream(BON, END))
    loser.may_go.set()
    async with contextlib.aclosing(hedge.arace(loser)) as source:
        assert [event async for event in source] == [BON, END]
    assert hedge.settled == [(True, None)]
    assert loser.was_closed.wait(LONG)
    del loser, hedge, source
    for _ in range(20):
        await one_turn()
    gc.collect()
    assert caplog.records == []
