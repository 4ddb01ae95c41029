"""Blocking code that is made to end in time, by leaving it to a thread of its own."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import pytest

from langchain_retryrouter import APIConnectionError
from langchain_retryrouter._retry.timeouts import ThreadedStream, run_with_timeout

FAR = 30.0
_whose: contextvars.ContextVar[str] = contextvars.ContextVar("whose", default="nobody")


def test_what_is_in_time_is_returned() -> None:
    """A result, or an error, comes out as if there were no thread."""
    assert run_with_timeout(None, lambda: 1) == 1
    assert run_with_timeout(FAR, lambda: 2) == 2
    with pytest.raises(KeyError, match="a"):
        run_with_timeout(FAR, lambda: {"b": 1}["a"])


def test_what_is_late_is_left_alone() -> None:
    """Nobody waits longer than the limit, and the work ends unattended."""
    may_end, has_ended = threading.Event(), threading.Event()

    def work() -> None:
        may_end.wait(FAR)
        has_ended.set()

    with pytest.raises(TimeoutError, match=r"no answer within 0\.01 s"):
        run_with_timeout(0.01, work)
    may_end.set()
    assert has_ended.wait(FAR)


def test_the_thread_knows_whose_work_it_does() -> None:
    """Context variables of the caller, such as a tracer's, are seen in the thread."""
    _whose.set("mine")
    assert run_with_timeout(FAR, _whose.get) == "mine"

    def events() -> Generator[str, None, None]:
        yield _whose.get()

    assert list(ThreadedStream(events())) == ["mine"]


def test_a_thread_that_was_left_keeps_no_process_alive() -> None:
    """Unattended work ends with the program, and has a name in its dumps."""
    thread = run_with_timeout(FAR, threading.current_thread)
    assert thread is not threading.current_thread()
    assert thread.daemon
    assert thread.name == "retryrouter-call"


def test_events_come_in_order_and_end() -> None:
    """What the generator yields is what comes out, far beyond what is read ahead."""
    source = ThreadedStream(number for number in range(1000))
    assert list(source) == list(range(1000))


def test_an_error_comes_where_it_was_met() -> None:
    """The events before it are handed over first."""

    def events() -> Generator[int, None, None]:
        yield 1
        msg = "broken"
        raise ValueError(msg)

    disabled_retries = iter(ThreadedStream(events()))
    assert next(disabled_retries) == 1
    with pytest.raises(ValueError, match="broken"):
        next(disabled_retries)


def test_a_wait_can_be_aborted_from_another_thread() -> None:
    """Whoever waits for an event is freed at once, with an error of ours."""
    may_end = threading.Event()

    def events() -> Generator[int, None, None]:
        yield 1
        may_end.wait(FAR)

    source = ThreadedStream(events())
    disabled_retries = iter(source)
    assert next(disabled_retries) == 1
    source.abort()
    with pytest.raises(
        APIConnectionError, match=r"^the stream was left, since its time was up$"
    ):
        next(disabled_retries)
    source.close()
    may_end.set()


def test_who_waits_for_a_source_that_is_left_is_told_the_end() -> None:
    """A thread that reads on behalf of whoever closed it is not kept for ever."""
    may_end = threading.Event()

    def events() -> Generator[int, None, None]:
        may_end.wait(FAR)
        yield 1

    source = ThreadedStream(events())
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(list, source)
        source.close()
        assert waiting.result(FAR) == []
        may_end.set()


def test_a_source_that_is_left_closes_its_generator() -> None:
    """The thread stops reading, and ends what it reads from."""
    was_closed = threading.Event()

    def events() -> Generator[int, None, None]:
        try:
            yield from range(1_000_000)
        finally:
            was_closed.set()

    source = ThreadedStream(events())
    assert next(iter(source)) == 0
    source.close()
    assert was_closed.wait(FAR)
