"""Time limits of sync code: the caller waits no longer than the limit."""

import contextvars
import math
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from langchain_retryrouter import OpenAIChat, RetryPolicy, RetryRouter, RetryRouterError
from langchain_retryrouter._retry.hedging import HedgedSource
from langchain_retryrouter._retry.timeouts import (
    End,
    ThreadedStream,
    TimeLimitError,
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

LONG = 30.0
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
        until.wait(LONG)
    yield from range(2, 1000)


def worker_threads() -> int:
    return sum(one.name == "retryrouter-worker" for one in threading.enumerate())


def all_events(stream: ThreadedStream[object]) -> list[object]:
    """The events of a stream, which is then closed."""
    seen = []
    while not isinstance(event := stream.next(LONG), End):
        seen.append(event)
    stream.close()
    return seen


def test_the_worker_sees_the_callers_context_variables() -> None:
    """Tracers and logs find the caller's context in the worker thread."""
    _user.set("mine")
    assert run_with_timeout(LONG, _user.get) == "mine"
    stream = ThreadedStream(lambda: GeneratorSource(_user.get() for _ in range(1)))
    assert all_events(stream) == ["mine"]


@pytest.mark.parametrize("late", ["connection", "event"])
def test_what_comes_after_the_limit_is_closed(late: str) -> None:
    """Closing waits for nothing that is under way; the worker closes it later."""
    may_come = threading.Event()
    source = GeneratorSource(numbers(until=may_come))

    def connect() -> GeneratorSource:
        if late == "connection":
            may_come.wait(LONG)
        return source

    stream = ThreadedStream(connect)
    if late == "event":
        stream.next(LONG)
    with pytest.raises(TimeLimitError):
        stream.next(0.01)
    stream.close()
    assert not source.was_closed.is_set()
    may_come.set()
    assert source.was_closed.wait(LONG)


def test_threads_are_used_again() -> None:
    """Many calls and streams one after another need a thread or two."""
    before = worker_threads()
    for number in range(50):
        assert run_with_timeout(LONG, lambda: number) == number  # noqa: B023 - at once
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
    subprocess.run([sys.executable, "-c", code], check=True, timeout=LONG)


class HeldClock(FakeClock):
    """A clock whose waits last until they may end."""

    def __init__(self) -> None:
        super().__init__()
        self.may_end = threading.Event()

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self.may_end.wait(LONG)


@pytest.mark.usefixtures("heeds_ctrl_c")
@pytest.mark.parametrize("step", [Silence(LONG), Status(503)], ids=["silence", "503"])
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
    assert time.monotonic() - began < LONG / 2


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
        gateway.always(Silence(LONG))
        model: Any = gpt_router(gateway, "m", timeout=LONG)
        model = RetryRouter(routes=[model]) if is_router else model
        threading.Thread(target=interrupt, args=[gateway]).start()
        ask = getattr(model, method)
        with pytest.raises(KeyboardInterrupt):
            list(ask(["hi"] * 9, {"max_concurrency": 3}))
        threading.Event().wait(0.3)
        assert len(gateway.requests) == 3
    assert time.monotonic() - began < LONG / 2


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
        return may_end.wait(LONG)

    def events() -> Generator[object, None, None]:
        yield work()

    def ask() -> object:
        if way == "call":
            return run_with_timeout(LONG, work)
        source = GeneratorSource(events())
        if way == "stream":
            return ThreadedStream(lambda: source).next(LONG)
        race: Any = HedgedSource
        return next(iter(race(None, source, LONG, lambda: None, bool)))

    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            ask()
    finally:
        may_end.set()
    assert time.monotonic() - began < LONG / 2


@pytest.mark.parametrize("method", ["invoke", "stream"])
@pytest.mark.parametrize("step", [Silence(LONG), Stall(1, LONG)], ids=["all", "rest"])
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
        gateway.script(Stall(after=0, seconds=LONG), Answer("Hello"))
        model = gpt_router(gateway, "m")
        router = RetryRouter(routes=[model, model], retry_policy=policy)
        answer = getattr(router, method)("Hi")
        text = "".join(chunk.text for chunk in answer) if method == "stream" else ""
        assert (text or answer.text) == "Hello"
        gateway.wait_for(
            lambda gateway: all(one.outcome != "pending" for one in gateway.requests)
        )
