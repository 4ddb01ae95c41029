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
import queue
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor, wait
from contextvars import copy_context
from types import TracebackType
from typing import Generic, Protocol, TypeVar, cast, runtime_checkable

from langchain_retryrouter.errors import APIConnectionError

logger = logging.getLogger(__name__)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
R = TypeVar("R")

_ABORTED = "the stream was aborted"


class TimeLimitError(TimeoutError):
    """Sync work did not finish within its time limit."""


class EventSource(Protocol[T_co]):
    """One attempt's open stream."""

    def __iter__(self) -> Iterator[T_co]:
        """The events; an error of the provider is a `RetryRouterError`."""

    def close(self) -> None:
        """Release the connection at once."""


@runtime_checkable
class Abortable(Protocol):
    """What a source over a socket has, and one over a generator has not."""

    def abort(self) -> None:
        """Unblock, from another thread, a read under way; the read then raises."""


class AEventSource(Protocol[T_co]):
    """Async variant of `EventSource`."""

    def __aiter__(self) -> AsyncIterator[T_co]:
        """The events; an error of the provider is a `RetryRouterError`."""

    async def aclose(self) -> None:
        """Release the connection at once."""


class End:
    """What `next` returns instead of an event at the end of a stream."""


END = End()


class Worker:
    """A daemon thread that runs functions one after another.

    They run in a copy of the context that the worker was made in, so that tracers and
    logs see the caller's context variables. It is not a `ThreadPoolExecutor`, since the
    interpreter waits at exit for an executor's threads, also if one hangs in a read.
    """

    def __init__(self) -> None:
        """Start the thread."""
        self.is_busy = False
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._context = copy_context()
        threading.Thread(
            target=_run_jobs, args=(self._jobs,), name="retryrouter-worker", daemon=True
        ).start()
        # Also for a worker that is collected without a `stop`.
        self._finalizer = weakref.finalize(self, self._jobs.put, None)

    def submit(self, work: Callable[[], R]) -> Future[R]:
        """Run `work` when all work before it is done."""
        future: Future[R] = Future()

        def job() -> None:
            with contextlib.suppress(InvalidStateError):  # The caller gave it up.
                try:
                    result = self._context.run(work)
                except BaseException as error:  # noqa: BLE001 - raised by `result`
                    self.is_busy = False
                    future.set_exception(error)
                else:
                    self.is_busy = False
                    future.set_result(result)

        self.is_busy = True
        self._jobs.put(job)
        return future

    def stop(self) -> None:
        """End the thread when all work before this is done."""
        self._finalizer()


def _run_jobs(jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # It holds the worker.


def result_within(seconds: float | None, future: Future[R]) -> R:
    """The result of `future`.

    Raises:
        TimeLimitError: It is not there within so many seconds.
    """
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():  # In the last moment; or the error is the work's own.
            return future.result()
        msg = f"no result within {seconds:.3g} s"
        raise TimeLimitError(msg) from None


def run_with_timeout(seconds: float | None, work: Callable[[], R]) -> R:
    """The result of `work`, which has so many seconds to finish.

    Args:
        seconds: The limit; None for no limit, and then there is no thread either.
        work: Goes on in its thread after a timeout; its result is then dropped.

    Raises:
        TimeLimitError: `work` did not finish in time.
    """
    if seconds is None:
        return work()
    worker = Worker()
    try:
        return result_within(seconds, worker.submit(work))
    finally:
        worker.stop()


class DirectStream(Generic[T]):
    """A stream without time limits, read by the caller's own thread."""

    def __init__(self, connect: Callable[[], EventSource[T]]) -> None:
        """Nothing is connected yet.

        Args:
            connect: Opens the stream.
        """
        self._connect = connect
        self._source: EventSource[T] | None = None
        self._events: Iterator[T] = iter(())

    def open(self, _seconds: float | None) -> None:
        """Connect."""
        self._source = self._connect()
        self._events = iter(self._source)

    def next(self, seconds: float | None) -> T | End:
        """The next event, or `END`.

        Args:
            seconds: When to abort the source, if it can be aborted. Only what follows a
                whole answer has such a limit here, so an abort that comes too late does
                no harm.
        """
        if seconds is None or not isinstance(self._source, Abortable):
            return next(self._events, END)
        timer = threading.Timer(seconds, self._source.abort)
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

    It is an `EventSource` itself that any thread can close or abort, even if its own
    source is a generator, which cannot be closed while it runs.
    """

    def __init__(self, connect: Callable[[], EventSource[T]]) -> None:
        """Start the thread.

        Args:
            connect: Opens the stream, in the worker thread. It may return after its
                time limit, while the next attempt is under way; the stream that it
                opened is then closed.
        """
        self._connect = connect
        self._worker = Worker()
        self._source: EventSource[T] | None = None
        self._events: Iterator[T] = iter(())
        self._pending: Future[object] = Future()
        self._is_closed = False

    def open(self, seconds: float | None) -> None:
        """Connect, if that has not been done.

        Raises:
            TimeLimitError: It took longer than `seconds`.
        """
        result_within(seconds, self.submit(lambda _: None))

    def next(self, seconds: float | None) -> T | End:
        """The next event, or `END`.

        Raises:
            APIConnectionError: Another thread aborted the stream.
            TimeLimitError: It took longer than `seconds`.
        """
        return result_within(seconds, self.submit(lambda events: next(events, END)))

    def __iter__(self) -> Iterator[T]:
        """The events, without a limit."""
        while not isinstance(event := self.next(None), End):
            yield event

    @property
    def is_reading(self) -> bool:
        """Whether the worker thread is connecting, reading or closing."""
        return self._worker.is_busy

    def submit(self, read: Callable[[Iterator[T]], R]) -> Future[R]:
        """Let the worker thread `read` some of the events."""

        def work() -> R:
            if self._source is None:
                self._source = self._connect()
                self._events = iter(self._source)
            if self._is_closed:  # Before there was a source to abort.
                raise APIConnectionError(_ABORTED)
            return read(self._events)

        future = self._worker.submit(work)
        self._pending = cast("Future[object]", future)
        return future

    def abort(self) -> None:
        """Unblock the thread that waits for an event, and the read under way."""
        with contextlib.suppress(InvalidStateError):
            self._pending.set_exception(APIConnectionError(_ABORTED))
        try:
            if isinstance(self._source, Abortable):
                self._source.abort()
        except Exception:
            logger.exception("A stream could not be aborted")

    def close(self) -> None:
        """Close the source, and end the thread.

        Returns when the source is closed. A read that is under way is aborted, and then
        the worker thread closes the source as soon as the read has returned.
        """
        if self._is_closed:
            return
        self._is_closed = True
        was_reading = self.is_reading
        if was_reading:
            self.abort()
        closed = self._worker.submit(self._close_source)
        self._worker.stop()
        if not was_reading:
            closed.result()

    def _close_source(self) -> None:
        if self._source is not None:
            self._source.close()


Request = TypeVar("Request")
Result = TypeVar("Result")


def gather_bounded(
    send: Callable[[Request], Result], requests: list[Request], at_once: int
) -> list[Result]:
    """The results of all requests, in order.

    After an error nothing more is sent, and the requests under way are waited for.

    Args:
        send: Sends one request; called in threads if several are under way.
        requests: All of them.
        at_once: Requests under way together at most.

    Raises:
        Exception: The first error of any request.
    """
    if min(len(requests), at_once) <= 1:
        return [send(request) for request in requests]
    errors: list[BaseException] = []

    def run(request: Request) -> Result | None:
        if errors:
            return None
        try:
            return send(request)
        except BaseException as error:
            errors.append(error)
            raise

    with ThreadPoolExecutor(min(len(requests), at_once)) as threads:
        try:
            answers = [
                threads.submit(copy_context().run, run, request) for request in requests
            ]
            wait(answers)
        except BaseException as error:  # Such as Ctrl-C, which only this thread sees.
            errors.append(error)
            raise
    if errors:
        raise errors[0]
    return [cast("Result", answer.result()) for answer in answers]


async def agather_bounded(
    send: Callable[[Request], Awaitable[Result]], requests: list[Request], at_once: int
) -> list[Result]:
    """Async variant of `gather_bounded`; an error cancels the requests under way."""
    if len(requests) == 1:
        return [await send(requests[0])]
    semaphore = asyncio.Semaphore(at_once)

    async def run(request: Request) -> Result:
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
