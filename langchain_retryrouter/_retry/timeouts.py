"""Time limits of sync code, and bounded concurrency.

A blocking read cannot be interrupted, and a socket's own timeout starts anew with every
byte. So sync work that has a time limit runs in a worker thread, and the caller waits
for its result no longer than the limit: `run_with_timeout` for one result,
`ThreadedStream` for the events of a stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
    Sequence,
)
from contextvars import ContextVar, copy_context
from functools import partial
from types import TracebackType
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from langchain_retryrouter.errors import APIConnectionError

logger = logging.getLogger(__name__)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
R = TypeVar("R")

# What a worker thread hands over: a value, or the error to raise.
Result: TypeAlias = tuple[R | None, BaseException | None]

_ABORTED = "the stream was aborted"
_MOST_IDLE = 64
_SIGNALS_HEARD = 0.05  # Seconds.
# The jobs of each idle worker. A forked process has none of its parent's threads.
_idle: list[queue.SimpleQueue[Callable[[], object]]] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)


class TimeLimitError(TimeoutError):
    """Sync work did not finish within its time limit."""


class EventSource(Protocol[T_co]):
    """One attempt's open stream."""

    def __iter__(self) -> Iterator[T_co]:
        """The events; an error of the provider is a `RetryRouterError`."""

    def close(self) -> None:
        """Release the connection at once."""


class AEventSource(Protocol[T_co]):
    """Async variant of `EventSource`."""

    def __aiter__(self) -> AsyncIterator[T_co]:
        """The events; an error of the provider is a `RetryRouterError`."""

    async def aclose(self) -> None:
        """Release the connection at once."""


class End:
    """What `next` returns instead of an event at the end of a stream."""


END = End()


class WorkerJob:
    """What a thread does, and what interrupts it if another thread gives it up."""

    __slots__ = ("_aborts", "is_given_up")

    def __init__(self) -> None:
        self._aborts: list[Callable[[], object]] = []
        self.is_given_up = False

    @property
    def is_abortable(self) -> bool:
        return bool(self._aborts)

    def on_abort(self, abort: Callable[[], object]) -> None:
        self._aborts.append(abort)
        if self.is_given_up:  # Asked after the append, so that none is overlooked.
            self.abort()

    def abort(self) -> None:
        self.is_given_up = True
        for abort in self._aborts:
            try:
                abort()
            except Exception:
                logger.exception("An attempt could not be aborted")


WORKER_JOB: ContextVar[WorkerJob | None] = ContextVar("worker_job", default=None)
"""The job that this thread works for."""


def on_abort(abort: Callable[[], object]) -> None:
    """Have `abort` called, by another thread, if the attempt under way is given up."""
    if (job := WORKER_JOB.get()) is not None:
        job.on_abort(abort)


def refuse_given_up() -> None:
    """Do nothing more in a thread whose caller has given it up.

    Raises:
        APIConnectionError: It has; no caller sees this.
    """
    if (job := WORKER_JOB.get()) is not None and job.is_given_up:
        msg = "the attempt was given up"
        raise APIConnectionError(msg)


def run_in_worker(work: Callable[[], object]) -> Callable[[], None]:
    """Run `work`, which must not raise, in a daemon thread; the result aborts it.

    It sees the caller's context variables. A `ThreadPoolExecutor` will not do: at exit
    the interpreter waits for its threads, also if one hangs in a read.
    """
    job = WorkerJob()
    on_abort(job.abort)
    context = copy_context()
    context.run(WORKER_JOB.set, job)
    try:
        jobs = _idle.pop()
    except IndexError:
        jobs = queue.SimpleQueue()
        threading.Thread(
            target=_run_jobs, args=(jobs,), name="retryrouter-worker", daemon=True
        ).start()
    jobs.put(partial(context.run, work))
    return job.abort


def _run_jobs(jobs: queue.SimpleQueue[Callable[[], object]]) -> None:
    while True:
        jobs.get()()
        if len(_idle) >= _MOST_IDLE:
            return
        _idle.append(jobs)


def _outcome(work: Callable[[], R]) -> Result[R]:
    """What `work` returns, or the error that it raises."""
    try:
        return work(), None
    except BaseException as error:  # noqa: BLE001 - raised by the caller
        return None, error


def take(results: queue.SimpleQueue[T], seconds: float | None) -> T:
    """The next of `results`, or `queue.Empty` after so many seconds.

    Only the main thread hears signals, and it is not woken by one that comes right
    before it waits, so it looks for them.
    """
    if seconds is not None:
        seconds = min(max(0.0, seconds), threading.TIMEOUT_MAX)
    if threading.current_thread() is not threading.main_thread():
        return results.get(timeout=seconds)
    ends = None if seconds is None else time.monotonic() + seconds
    while ends is None or ends - time.monotonic() > _SIGNALS_HEARD:
        with contextlib.suppress(queue.Empty):
            return results.get(timeout=_SIGNALS_HEARD)
    return results.get(timeout=max(0.0, ends - time.monotonic()))


def _receive(results: queue.SimpleQueue[Result[Any]], seconds: float | None) -> Any:
    """What a worker thread returns or raises within so many seconds."""
    try:
        result, error = take(results, seconds)
    except queue.Empty:
        msg = f"no result within {seconds:.3g} s"
        raise TimeLimitError(msg) from None
    if error is not None:
        try:
            raise error
        finally:
            del error  # Its traceback holds this frame.
    return result


def run_with_timeout(seconds: float, work: Callable[[], R]) -> R:
    """The result of `work`, which runs in a thread, and goes on there after a timeout.

    Raises:
        TimeLimitError: `work` did not finish in time.
    """
    results: queue.SimpleQueue[Result[R]] = queue.SimpleQueue()
    is_over = False

    def job() -> None:
        nonlocal is_over
        result = _outcome(work)
        is_over = True
        results.put(result)

    abort = run_in_worker(job)
    try:
        result: R = _receive(results, seconds)
    except BaseException:
        if not is_over:
            abort()
        raise
    return result


class DirectStream(Generic[T]):
    """A stream without time limits, read by the caller's own thread."""

    def __init__(self, connect: Callable[[], EventSource[T]]) -> None:
        """Nothing is connected yet."""
        self._connect = connect
        self._source: EventSource[T] | None = None
        self._events: Iterator[T] = iter(())
        self._job = WorkerJob()
        on_abort(self._job.abort)

    def next(self, seconds: float | None) -> T | End:
        """The next event, or `END`.

        After `seconds` the source is aborted, if it can be. Only what follows a whole
        answer has such a limit here, so an abort that comes too late does no harm.
        """
        if self._source is None:
            token = WORKER_JOB.set(self._job)
            try:
                self._source = self._connect()
                self._events = iter(self._source)
            finally:
                WORKER_JOB.reset(token)
        if seconds is None or not self._job.is_abortable:
            return next(self._events, END)
        timer = threading.Timer(seconds, self._job.abort)
        timer.daemon = True
        timer.start()
        try:
            return next(self._events, END)
        finally:
            timer.cancel()

    def close(self) -> None:
        """Close the source."""
        if self._source is not None:
            self._source.close()


class ThreadedStream(Generic[T]):
    """A stream whose events are read by a worker thread, one by one on demand.

    Any thread can close or abort it, even if its source is a generator, which cannot be
    closed while it runs.
    """

    def __init__(self, connect: Callable[[], EventSource[T]]) -> None:
        """Start the worker, which calls `connect`.

        It may return after its time limit, while the next attempt is under way; the
        stream that it opened is then closed.
        """
        self._connect = connect
        self._source: EventSource[T] | None = None
        self._demands: queue.SimpleQueue[End | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Result[T | End]] = queue.SimpleQueue()
        self._closed: queue.SimpleQueue[Result[object]] = queue.SimpleQueue()
        self._events: Iterator[T] | None = None
        self.is_reading = False
        self._is_closed = False
        self._abort = run_in_worker(self._serve)
        on_abort(self.abort)

    def next(self, seconds: float | None) -> T | End:
        """The next event, or `END`; the first one after connecting.

        Raises:
            APIConnectionError: Another thread aborted the stream.
            TimeLimitError: It took longer than `seconds`.
        """
        if self._is_closed:
            return END
        self.is_reading = True
        self._demands.put(None)
        event: T | End = _receive(self._results, seconds)
        return event

    def abort(self) -> None:
        """Unblock the thread that waits for an event, and the read under way."""
        self._results.put((None, APIConnectionError(_ABORTED)))
        self._abort()

    def close(self) -> None:
        """Close the source, and release the worker.

        Returns when the source is closed. A read that is under way is aborted, and then
        the worker thread closes the source as soon as the read has returned.
        """
        if self._is_closed:
            return
        self._is_closed = True
        if was_reading := self.is_reading:
            self.abort()
        self._demands.put(END)
        if not was_reading:
            _receive(self._closed, None)

    def _serve(self) -> None:
        """Answer each demand, and close the source."""
        while self._demands.get() is None:
            result = _outcome(self._read)
            self.is_reading = False
            self._results.put(result)
        self._results.put((END, None))  # For a demand that came too late.
        source = self._source
        self._closed.put((None, None) if source is None else _outcome(source.close))

    def _read(self) -> T | End:
        if self._events is None:
            self._source = self._connect()
            self._events = iter(self._source)
        # It may have been closed before there was a source to abort.
        return END if self._is_closed else next(self._events, END)


Request = TypeVar("Request")
Answer = TypeVar("Answer")


def run_bounded(
    send: Callable[[Request], Answer], requests: Sequence[Request], at_once: int
) -> Generator[tuple[int, Result[Answer]], None, None]:
    """The place and the result of each request as it comes; `send` runs in threads.

    After an error nothing more is sent. After Ctrl-C, or if the rest is not wanted, the
    requests under way are given up. A caller that takes its time delays none of them.
    """
    places = iter(range(len(requests)))
    ended: queue.SimpleQueue[tuple[int, Result[Answer]]] = queue.SimpleQueue()
    aborts: dict[int, Callable[[], None]] = {}
    context, lock = copy_context(), threading.RLock()
    begun, is_over = 0, False

    def start() -> None:
        nonlocal begun
        if (place := next(places, None)) is not None:
            job = partial(work, place)
            aborts[place] = context.copy().run(run_in_worker, job)
            begun += 1

    def work(place: int) -> None:
        nonlocal is_over
        result = _outcome(partial(send, requests[place]))
        with lock:
            del aborts[place]
            if result[1] is None and not is_over:
                _, error = _outcome(start)  # Such as one of a full machine.
                result = result if error is None else (None, error)
            is_over = is_over or result[1] is not None
        ended.put((place, result))

    try:
        with lock:
            for _ in range(min(at_once, len(requests))):
                start()
        taken = 0
        while taken < begun:
            yield take(ended, None)
            taken += 1
    except BaseException:  # Such as Ctrl-C, which only this thread sees.
        with lock:
            is_over = True
            left = [*aborts.values()]
        for abort in left:
            abort()
        raise


def gather_bounded(
    send: Callable[[Request], Answer], requests: Sequence[Request], at_once: int
) -> list[Answer]:
    """The results of all requests, in order.

    After an error nothing more is sent, the requests under way are waited for, and the
    first error is raised. `send` is called in threads if several are under way.
    """
    if min(len(requests), at_once) <= 1:
        return [send(request) for request in requests]
    answers: dict[int, Any] = {}
    errors: list[BaseException] = []
    for place, (answer, error) in run_bounded(send, requests, at_once):
        answers[place] = answer
        errors.extend([] if error is None else [error])
    if errors:
        raise errors[0]
    return [answers[place] for place in range(len(requests))]


async def agather_bounded(
    send: Callable[[Request], Awaitable[Answer]], requests: list[Request], at_once: int
) -> list[Answer]:
    """Async variant of `gather_bounded`; an error cancels the requests under way."""
    if len(requests) == 1:
        return [await send(requests[0])]
    semaphore = asyncio.Semaphore(at_once)

    async def run(request: Request) -> Answer:
        await semaphore.acquire()
        answer = await send(request)
        # Not after an error: the next request would begin before it is cancelled.
        semaphore.release()
        return answer

    failed: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(request)) for request in requests]
    except BaseExceptionGroup as several:
        failed = several.exceptions[0]
    if failed is not None:
        raise failed  # Out here, so that the group does not become its context.
    return [task.result() for task in tasks]


class reraise_lost_cancellation:  # noqa: N801 - used like a function, in `with`
    """Raise the `CancelledError` that the code inside swallowed.

    `asyncio.wait_for` of Python 3.11 loses a cancellation that comes together with its
    result, and langchain-openai reads each chunk of a stream by it. Without this, a
    cancelled call would go on, and be retried.

    Raises:
        asyncio.CancelledError: The task was cancelled inside, and the code went on.
    """

    __slots__ = ("_before", "_task")

    def __enter__(self) -> None:
        """Remember how often the task was cancelled before."""
        self._task = asyncio.current_task()
        self._before = self._cancellations()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Compare."""
        has_gone_on = error is None or isinstance(error, Exception)
        if has_gone_on and self._cancellations() > self._before:
            raise asyncio.CancelledError from error

    def _cancellations(self) -> int:
        return 0 if self._task is None else self._task.cancelling()
