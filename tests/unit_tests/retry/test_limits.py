"""Time limits of calls and streams, in threads and in event loops; buffered streams.

The time is real here, and short, since a socket has no clock to hand in.
"""

import asyncio
import contextvars
import math
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from langchain_retryrouter import (
    APIConnectionError,
    APITimeoutError,
    FailureKind,
    OpenAIChat,
    RetryBudget,
    RetryPolicy,
    RetryRouter,
    RetryRouterError,
    StreamInterruptedError,
    UnavailableError,
)
from langchain_retryrouter._gptrouter.protocol import GPT_ROUTER_ERRORS
from langchain_retryrouter._retry import streaming
from langchain_retryrouter._retry.call_log import CallObserver
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK
from langchain_retryrouter._retry.engine import Attempt, RetryContext, acall
from langchain_retryrouter._retry.hedging import HedgedSource
from langchain_retryrouter._retry.streaming import ChunkInfo
from langchain_retryrouter._retry.timeouts import (
    End,
    ThreadedStream,
    TimeLimitError,
    on_abort,
    run_with_timeout,
)
from langchain_retryrouter.policy import LIMITS
from langchain_retryrouter.testing import (
    Answer,
    FakeClock,
    FaultyGateway,
    Silence,
    Stall,
    Status,
    Step,
)
from tests.support.models import gpt_router
from tests.unit_tests.stores.conftest import eventually

from .scripted import (
    END,
    ROLE,
    SILENCE,
    WHOLE,
    Engine,
    Recorder,
    Script,
    Source,
    Start,
    answer_for,
    aopen,
    calls_and_streams,
    context_for,
    failures,
    happen,
    open_,
    outcomes,
    token,
)

HEL, LO = token("Hel"), token("lo")
TIMEOUT = GPT_ROUTER_ERRORS[FailureKind.TIMEOUT]

SHORT = 0.1
DEADLINE = 0.25  # Enough for a busy machine to start a loop and read the first token.
LONG = 100.0  # More than a test may take.


def limited(*, buffered: bool = False, **policy: Any) -> RetryContext:
    """A context on the system clock, without back-off, with one retry."""
    numbers = {"initial_delay": 0.0, "max_retries": 1, **policy}
    return context_for(
        SYSTEM_CLOCK,
        RetryPolicy(**numbers),
        errors=GPT_ROUTER_ERRORS,
        is_buffered=buffered,
    )


class SlowSource(Source):
    """A source that takes a moment over each event but the first."""

    def __iter__(self) -> Iterator[ChunkInfo]:
        for event in super().__iter__():
            yield event
            SYSTEM_CLOCK.sleep(SHORT)

    async def __aiter__(self) -> AsyncIterator[ChunkInfo]:
        async for event in super().__aiter__():
            yield event
            await SYSTEM_CLOCK.asleep(SHORT)


# --- before the first token ---


@pytest.mark.parametrize("seconds", [10, 70])
def test_the_first_token_has_the_time_that_connecting_left(
    clock: FakeClock, seconds: float
) -> None:
    """The limit counts from the attempt's beginning, also on a clock far from zero."""

    def connect() -> Source:
        clock.advance(seconds)
        return source

    def slow_token() -> ChunkInfo:
        SYSTEM_CLOCK.sleep(SHORT)
        return HEL

    source = Source(ROLE, slow_token, END)
    clock.advance(1_000)
    context = context_for(clock, RetryPolicy(first_token_timeout=60, max_retries=0))
    events = open_(context, Script(connect))
    if seconds < 60:
        assert list(events) == [ROLE, HEL, END]
        return
    with pytest.raises(APITimeoutError, match="no first token within 60 s"):
        list(events)
    assert source.was_closed()


class LateSource(Source):
    """A source that goes on in the moment in which its read is cut."""

    def __iter__(self) -> Iterator[ChunkInfo]:
        on_abort(self._aborted.set)
        assert self._aborted.wait(LONG)
        for event in self._events:
            yield happen(event)


def test_a_token_in_the_last_moment_is_dropped() -> None:
    """Nothing of a stream that was cut is delivered, so that it can be retried."""
    late = LateSource(HEL, APIConnectionError("the connection was shut down"))
    context = limited(first_token_timeout=SHORT)
    assert list(open_(context, Script(late, Source(LO, END)))) == [LO, END]
    assert late.was_closed()
    assert outcomes(context) == ["timeout", "ok"]


# --- after it ---


def test_a_slow_caller_is_not_a_stall(engine: Engine) -> None:
    """The time that the caller takes over an event is not the server's silence."""
    context = limited(stall_timeout=SHORT, first_token_timeout=SHORT)
    script, expected = Script(Source(HEL, LO, END)), [HEL, LO, END]

    async def read() -> None:
        events = aopen(context, script)
        for event in expected:
            assert await anext(events) == event
            await SYSTEM_CLOCK.asleep(2 * SHORT)
        assert [event async for event in events] == []

    if engine.is_async:
        asyncio.run(read())
        return
    events = open_(context, script)
    for event in expected:
        assert next(events) == event
        SYSTEM_CLOCK.sleep(2 * SHORT)
    assert list(events) == []


@pytest.mark.parametrize("limit", [None, "stall_timeout", "deadline"])
def test_silence_after_the_end_is_not_waited_for(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, limit: str | None
) -> None:
    """A server that neither sends usage nor closes does not hold up a whole answer."""
    monkeypatch.setattr(streaming, "_AFTER_THE_END", LONG if limit else SHORT)
    source = Source(HEL, WHOLE, SILENCE)
    limits: dict[str, Any] = {limit: DEADLINE} if limit else {}
    context = limited(**limits)
    assert engine.stream(context, Script(source)) == [HEL, WHOLE]
    assert source.was_closed()
    assert outcomes(context) == ["ok"]


def test_the_limit_after_the_end_does_not_hold_before_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token may take longer than what follows the end of the answer."""
    monkeypatch.setattr(streaming, "_AFTER_THE_END", SHORT / 4)
    script = Script(SlowSource(HEL, LO, END))
    assert engine.stream(limited(stall_timeout=LONG), script) == [HEL, LO, END]


# --- buffered streams ---


def test_a_buffered_stream_that_fails_delivers_nothing(engine: Engine) -> None:
    """The error does not name text as delivered that the caller has not seen."""
    seen: list[ChunkInfo] = []
    context = engine.context(RetryPolicy(max_retries=0), is_buffered=True)
    with pytest.raises(StreamInterruptedError) as caught:
        engine.stream(context, Script(Source(HEL, LO)), into=seen)
    assert seen == []
    assert str(caught.value) == (
        "the stream ended before the answer was complete, after 5 characters"
    )


@pytest.mark.parametrize(
    "limits",
    [
        {"first_token_timeout": 10 * SHORT},
        {"stall_timeout": 10 * SHORT, "first_token_timeout": 60},
    ],
)
def test_the_limits_of_a_buffered_stream_are_not_for_the_whole_answer(
    engine: Engine, limits: dict[str, Any]
) -> None:
    """The first token's limit ends with it, and a stall is one silence."""
    events = [HEL, *[LO] * 11, END]
    context = limited(buffered=True, **limits)
    assert engine.stream(context, Script(SlowSource(*events), "not sent")) == events


def test_the_deadline_of_a_buffered_stream_is_named(engine: Engine) -> None:
    """The error names the limit that ended the answer."""
    source = Source(HEL, SILENCE)
    with pytest.raises(TIMEOUT) as caught:
        engine.stream(limited(buffered=True, deadline=DEADLINE), Script(source))
    assert str(caught.value) == "the deadline of 0.25 s is over"
    assert source.was_closed()


# --- the deadline ---


def test_no_wait_begins_that_would_outlast_the_deadline(engine: Engine) -> None:
    """When the next wait would reach the deadline, the error comes out at once.

    The deadline is the limit of the first attempt, and shrinks with each.
    """

    def slow() -> UnavailableError:
        engine.clock.advance(3)
        return UnavailableError("503")

    script, recorder, budget = Script(*[slow] * 3), Recorder(), RetryBudget()
    policy = RetryPolicy(deadline=9, max_retries=5)
    with pytest.raises(UnavailableError) as caught:
        engine.call(engine.context(policy, budget=budget), script, recorder)
    # 3 + 0.5 + 3 + 1 leave 1.5 s, in which the third attempt takes its 3.
    assert script.timeouts == [9, 5.5, 1.5]
    assert engine.clock.sleeps == [0.5, 1.0]
    assert engine.clock.monotonic() == 10.5
    assert len(recorder.states) == 2
    assert caught.value.__notes__ == [
        (
            "gave up after 3 attempts, 1.5 s waited:"
            " a wait of 2.0 s would outlast the deadline of 9 s"
        )
    ]
    assert caught.value.is_retryable is False
    assert budget.tokens == 500 - 28


class LateClock(FakeClock):
    """A clock whose waits take longer than they should, as on a busy machine."""

    def __init__(self, late: float) -> None:
        super().__init__()
        self._late = late

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self.advance(self._late)


@calls_and_streams
@pytest.mark.parametrize(
    ("late", "handler", "note"),
    [
        (4.5, 0, "0.5 s waited: the deadline is over"),
        (10, 0, "0.5 s waited: the deadline is over"),
        (0, 4.8, "0.0 s waited: the deadline of 5 s is over"),
    ],
)
def test_after_the_deadline_nothing_is_sent(
    engine: Engine, start: Start, late: float, handler: float, note: str
) -> None:
    """A wait or an `on_retry` that took too long ends the call; the retry is refunded.

    After such an `on_retry` the wait does not begin.
    """
    (error,), budget, clock = failures(1), RetryBudget(), LateClock(late)
    script = Script(error, "not sent")
    context = context_for(clock, RetryPolicy(deadline=5), budget=budget)
    with pytest.raises(UnavailableError) as caught:
        start(engine, context, script, Recorder(lambda: clock.advance(handler)))
    assert caught.value is error
    assert caught.value.__notes__ == [f"gave up after 1 attempt, {note}"]
    assert clock.sleeps == ([] if handler else [0.5])
    assert (script.numbers, budget.tokens) == ([1], 500)


@calls_and_streams
def test_a_late_attempt_gets_what_is_left(engine: Engine, start: Start) -> None:
    """As long as anything is left of the deadline, the next attempt is sent."""
    script = Script(*failures(1), answer_for(start))
    start(engine, context_for(LateClock(4), RetryPolicy(deadline=5)), script)
    assert script.timeouts == [5, 0.5]


@calls_and_streams
def test_an_attempt_gets_what_a_slow_observer_leaves(
    engine: Engine, start: Start
) -> None:
    """What is awaited at the beginning of an attempt counts for the deadline."""

    class Slow(CallObserver):
        def attempt_began(self, *_: Any) -> None:
            engine.clock.advance(0 if engine.is_async else 4)

        async def flush(self) -> None:
            engine.clock.advance(4)

    script, context = Script(answer_for(start)), engine.context(RetryPolicy(deadline=5))
    context.call_state.observers.append(Slow())
    start(engine, context, script)
    assert script.timeouts == [1]


def test_the_first_attempt_is_always_sent(engine: Engine) -> None:
    """If the deadline is over before anything ran, the attempt gets a moment."""
    script, context = Script("hello"), engine.context(RetryPolicy(deadline=1))
    engine.clock.advance(5)

    async def answer_at_once(attempt: Attempt) -> Any:
        return script.send(attempt)

    if engine.is_async:
        assert asyncio.run(acall(context, answer_at_once)) == "hello"
    else:
        assert engine.call(context, script) == "hello"
    assert script.timeouts == [0.05]


@pytest.mark.parametrize(
    ("limits", "call", "stream"),
    [
        ({}, None, None),
        ({"deadline": 9}, 9, 9),
        ({"first_token_timeout": 2}, None, 2),
        ({"deadline": 9, "first_token_timeout": 2}, 9, 2),
        ({"deadline": 1, "first_token_timeout": 2}, 1, 1),
        ({"stall_timeout": 3}, None, None),
    ],
)
def test_the_limit_of_an_attempt(
    engine: Engine, limits: Any, call: Any, stream: Any
) -> None:
    """A call has until the deadline, the first token of a stream perhaps less."""
    for start, limit in ((Engine.call, call), (Engine.stream, stream)):
        script = Script(answer_for(start))
        start(engine, engine.context(RetryPolicy(**limits)), script)
        assert script.timeouts == [limit]


PATIENCE = 30.0
_user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")


class GeneratorSource:
    """A source over a generator, which cannot be aborted."""

    def __init__(self, events: Generator[object, None, None]) -> None:
        self._events = events
        self.was_closed = threading.Event()

    def __iter__(self) -> Iterator[object]:
        return self._events

    def close(self) -> None:
        self._events.close()
        self.was_closed.set()


def numbers(*, until: threading.Event | None = None) -> Generator[object, None, None]:
    """Yield a number, and others when `until` is set."""
    yield 1
    if until is not None:
        until.wait(PATIENCE)
    yield from range(2, 1000)


def worker_threads() -> int:
    return sum(one.name == "retryrouter-worker" for one in threading.enumerate())


def all_events(stream: ThreadedStream[object]) -> list[object]:
    """The events of a stream, which is then closed."""
    seen = []
    while not isinstance(event := stream.next(PATIENCE), End):
        seen.append(event)
    stream.close()
    return seen


def test_the_worker_sees_the_callers_context_variables() -> None:
    """Tracers and logs find the caller's context in the worker thread."""
    _user.set("mine")
    assert run_with_timeout(PATIENCE, _user.get) == "mine"
    stream = ThreadedStream(lambda: GeneratorSource(_user.get() for _ in range(1)))
    assert all_events(stream) == ["mine"]


@pytest.mark.parametrize("late", ["connection", "event"])
def test_what_comes_after_the_limit_is_closed(late: str) -> None:
    """Closing waits for nothing that is under way; the worker closes it later."""
    may_come = threading.Event()
    source = GeneratorSource(numbers(until=may_come))

    def connect() -> GeneratorSource:
        if late == "connection":
            may_come.wait(PATIENCE)
        return source

    stream = ThreadedStream(connect)
    if late == "event":
        stream.next(PATIENCE)
    with pytest.raises(TimeLimitError):
        stream.next(0.01)
    stream.close()
    assert not source.was_closed.is_set()
    may_come.set()
    assert source.was_closed.wait(PATIENCE)


def test_threads_are_used_again() -> None:
    """Many calls and streams one after another need a thread or two."""
    before = worker_threads()
    for number in range(50):
        assert run_with_timeout(PATIENCE, lambda: number) == number  # noqa: B023 - at once
        assert len(all_events(ThreadedStream(lambda: GeneratorSource(numbers())))) > 1
    assert worker_threads() <= max(before, 1) + 3


@pytest.mark.parametrize(
    "script",
    [
        """
        assert run_with_timeout(30, os.getpid) == os.getpid()
        if child := os.fork():
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        assert run_with_timeout(30, os.getpid) == os.getpid()
        """,
        """
        try:
            run_with_timeout(0.01, threading.Event().wait)
        except TimeLimitError:
            sys.exit(0)
        """,
    ],
    ids=["fork", "exit"],
)
def test_a_process_forks_and_ends(script: str) -> None:
    """A forked process starts threads of its own; a hung read blocks no exit."""
    imports = "from langchain_retryrouter._retry.timeouts import *\n"
    code = "import os, sys, threading\n" + imports + textwrap.dedent(script)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)


class HeldClock(FakeClock):
    """A clock whose waits last until they may end."""

    def __init__(self) -> None:
        super().__init__()
        self.may_end = threading.Event()

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self.may_end.wait(PATIENCE)


@pytest.mark.usefixtures("heeds_ctrl_c")
@pytest.mark.parametrize(
    "step", [Silence(PATIENCE), Status(503)], ids=["silence", "503"]
)
def test_ctrl_c_does_not_wait_for_requests_in_threads(step: Step) -> None:
    """A call that sends several prompts at once ends at once, and retries none."""
    clock, began = HeldClock(), time.monotonic()
    waits = 3 if isinstance(step, Status) else 0

    def interrupt(gateway: FaultyGateway) -> None:
        eventually(lambda: (len(gateway.requests), len(clock.sleeps)) == (4, waits))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with FaultyGateway() as gateway:
        key, url = SecretStr("any"), gateway.openai_url
        model = OpenAIChat(base_url=url, api_key=key, clock=clock)
        model.invoke("first, since it reads files")
        gateway.always(step)
        threading.Thread(target=interrupt, args=[gateway]).start()
        with pytest.raises(KeyboardInterrupt):
            model.generate(["one", "two", "three"])
        clock.may_end.set()
        threading.Event().wait(0.3)
        assert len(gateway.requests) == 4
    assert time.monotonic() - began < PATIENCE / 2


@pytest.mark.usefixtures("heeds_ctrl_c")
@pytest.mark.parametrize("is_router", [False, True])
@pytest.mark.parametrize("method", ["batch", "batch_as_completed"])
def test_ctrl_c_ends_a_batch(method: str, *, is_router: bool) -> None:
    """Nothing is waited for, what waits is not sent, and nothing is retried."""
    began = time.monotonic()

    def interrupt(gateway: FaultyGateway) -> None:
        eventually(lambda: len(gateway.requests) == 3)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with FaultyGateway() as gateway:
        gateway.always(Silence(PATIENCE))
        model: Any = gpt_router(gateway, "m", timeout=PATIENCE)
        model = RetryRouter(routes=[model]) if is_router else model
        threading.Thread(target=interrupt, args=[gateway]).start()
        ask = getattr(model, method)
        with pytest.raises(KeyboardInterrupt):
            list(ask(["hi"] * 9, {"max_concurrency": 3}))
        threading.Event().wait(0.3)
        assert len(gateway.requests) == 3
    assert time.monotonic() - began < PATIENCE / 2


def test_a_batch_is_answered_as_by_langchain() -> None:
    """In order or as it comes, with errors in their places, or the first of them."""
    with FaultyGateway() as gateway:
        model = gpt_router(gateway, "m", max_retries=0)
        gateway.script(Status(400), Answer("b"))
        one: Any = {"max_concurrency": 1}
        error, answer = model.batch(["1", "2"], one, return_exceptions=True)
        assert (type(error).__name__[-19:], answer.text) == ("InvalidRequestError", "b")
        gateway.script(Answer("c"), Status(400))
        configs: Any = [{"run_name": "c"}, {"run_name": "d"}]
        found = dict(
            model.batch_as_completed(["1", "2"], configs, return_exceptions=True)
        )
        assert sorted(found) == [0, 1]
        gateway.always(Status(400))
        for method in (model.batch, model.batch_as_completed):
            with pytest.raises(RetryRouterError):
                list(method(["1", "2", "3"]))
        assert (model.batch([]), list(model.batch_as_completed([]))) == ([], [])
        for method in (model.batch, model.batch_as_completed):
            with pytest.raises(ValueError, match="max_concurrency"):
                list(method(["1", "2"], {"max_concurrency": 0}))


def test_a_slow_reader_delays_no_request_of_a_batch() -> None:
    """The next request is sent when one is answered, not when its answer is read."""
    with FaultyGateway() as gateway:
        model = gpt_router(gateway, "m")
        found = model.batch_as_completed(["hi"] * 5, {"max_concurrency": 2})
        next(found)
        eventually(lambda: len(gateway.requests) == 5)
        assert len(list(found)) == 4


@pytest.mark.usefixtures("heeds_ctrl_c")
@pytest.mark.parametrize("way", ["call", "stream", "hedge"])
def test_a_signal_that_does_not_wake_its_caller_is_heard(way: str) -> None:
    """One that another thread receives interrupts no wait; the caller looks for it."""
    may_end = threading.Event()

    def work() -> object:
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        return may_end.wait(PATIENCE)

    def events() -> Generator[object, None, None]:
        yield work()

    def ask() -> object:
        if way == "call":
            return run_with_timeout(PATIENCE, work)
        source = GeneratorSource(events())
        if way == "stream":
            return ThreadedStream(lambda: source).next(PATIENCE)
        race: Any = HedgedSource
        return next(iter(race(None, source, PATIENCE, lambda: None, bool)))

    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            ask()
    finally:
        may_end.set()
    assert time.monotonic() - began < PATIENCE / 2


@pytest.mark.parametrize("method", ["invoke", "stream"])
@pytest.mark.parametrize(
    "step", [Silence(PATIENCE), Stall(1, PATIENCE)], ids=["all", "rest"]
)
def test_a_call_inside_of_an_attempt_that_is_given_up_sends_nothing_more(
    method: str, step: Step
) -> None:
    """A router that is the route of another one does not go on behind its back."""
    seconds: list[Any] = [0.5, math.inf]
    short, none = (
        RetryPolicy(max_retries=0, **dict.fromkeys(LIMITS, one)) for one in seconds
    )
    with FaultyGateway() as silent, FaultyGateway() as other:
        silent.always(step)
        inner = RetryRouter(
            routes=[gpt_router(silent, "m"), gpt_router(other, "m")],
            retry_policy=none,
            stream_recovery="continue",
        )
        with pytest.raises(RetryRouterError):
            list(getattr(RetryRouter(routes=[inner], retry_policy=short), method)("hi"))
        threading.Event().wait(0.3)
        assert (len(silent.requests), len(other.requests)) == (1, 0)


@pytest.mark.parametrize("method", ["invoke", "stream"])
def test_an_attempt_that_is_given_up_is_aborted(method: str) -> None:
    """A route that falls silent in its answer keeps no connection and no thread."""
    policy = RetryPolicy(attempt_timeout=1, first_token_timeout=1, stall_timeout=5)
    with FaultyGateway() as gateway:
        gateway.script(Stall(after=0, seconds=PATIENCE), Answer("Hello"))
        model = gpt_router(gateway, "m")
        router = RetryRouter(routes=[model, model], retry_policy=policy)
        answer = getattr(router, method)("Hi")
        text = "".join(chunk.text for chunk in answer) if method == "stream" else ""
        assert (text or answer.text) == "Hello"
        gateway.wait_for(
            lambda gateway: all(one.outcome != "pending" for one in gateway.requests)
        )
