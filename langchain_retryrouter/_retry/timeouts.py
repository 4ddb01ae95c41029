"""Foreign coroutines that lose a cancel: it is found behind them, and raised after all.

`asyncio.wait_for` of Python 3.11 loses one that comes together with its result, and
langchain-openai reads each chunk of a stream by it. A call would go on although its
task was cancelled, and be retried.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import threading
from collections.abc import Awaitable, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from types import TracebackType
from typing import Generic, TypeVar, cast

from langchain_retryrouter.errors import APIConnectionError

T = TypeVar("T")

# Events that are read ahead of whoever takes them.
_AHEAD = 64


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Over:
    """Nothing more comes."""


class _Aborted:
    """Somebody has lost patience."""


def run_with_timeout(seconds: float | None, work: Callable[[], T]) -> T:
    """The result of `work`, waited for no longer than `seconds`; None: as it takes.

    Raises:
        TimeoutError: It was not there in time; `work` goes on unattended.
    """
    if seconds is None:
        return work()
    results: queue.SimpleQueue[T | _Raised] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put(work())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            results.put(_Raised(error))

    start_thread(run)
    try:
        result = results.get(timeout=seconds)
    except queue.Empty:
        msg = f"no answer within {seconds:.3g} s"
        raise TimeoutError(msg) from None
    if isinstance(result, _Raised):
        raise result.error
    return result


class ThreadedStream(Generic[T]):
    """The events of a generator, read by a thread; a source that can be aborted."""

    def __init__(self, events: Generator[T, None, None]) -> None:
        """Begin to read.

        Args:
            events: Not begun yet; run, and closed, by the thread.
        """
        self._pumped: queue.SimpleQueue[T | _Raised | _Over | _Aborted] = (
            queue.SimpleQueue()
        )
        self._room = threading.Semaphore(_AHEAD)
        self._is_left = False
        self._events = events
        start_thread(self._pump)

    def __iter__(self) -> Iterator[T]:
        """The events.

        Raises:
            APIConnectionError: It was aborted. Else whatever the generator raised.
        """
        while not isinstance(event := self._pumped.get(), _Over):
            if isinstance(event, _Raised):
                raise event.error
            if isinstance(event, _Aborted):
                msg = "the stream was left, since its time was up"
                raise APIConnectionError(msg)
            yield event
            self._room.release()

    def close(self) -> None:
        """Leave the thread to itself: it ends with the event that it waits for."""
        self._is_left = True
        self._room.release()
        self._pumped.put(_Over())  # For a thread that waits on this one's behalf.

    def abort(self) -> None:
        """Unblock whoever waits for an event."""
        self._pumped.put(_Aborted())

    def _pump(self) -> None:
        try:
            with contextlib.closing(self._events) as events:
                for event in events:
                    self._room.acquire()
                    if self._is_left:
                        return
                    self._pumped.put(event)
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._pumped.put(_Raised(error))
        else:
            self._pumped.put(_Over())


def start_thread(work: Callable[[], None]) -> None:
    """Run `work` in a daemon thread, in the context of the caller."""
    # With the caller's context variables, by which tracers and logs know whose work
    # it is.
    context = contextvars.copy_context()
    threading.Thread(
        target=context.run, args=(work,), name="retryrouter-call", daemon=True
    ).start()


R = TypeVar("R")
Result = TypeVar("Result")


def gather_bounded(
    send: Callable[[R], Result], requests: list[R], at_once: int
) -> list[Result]:
    """The answers to `requests` in their order; the first error that any of them has.

    After an error nothing more is sent; what is under way is waited for.

    Args:
        send: Answers one request; called from threads where several are under way.
        requests: All of them.
        at_once: How many may be under way together.
    """
    if min(len(requests), at_once) <= 1:
        return [send(request) for request in requests]
    errors: list[BaseException] = []

    def run(request: R) -> Result | None:
        if errors:
            return None  # Nobody waits for it any longer.
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
        except BaseException as error:  # Such as Ctrl-C, which only this thread hears.
            errors.append(error)
            raise
    if errors:
        raise errors[0]
    return [cast("Result", answer.result()) for answer in answers]


async def agather_bounded(
    send: Callable[[R], Awaitable[Result]], requests: list[R], at_once: int
) -> list[Result]:
    """Async twin of `gather_bounded`; what is under way at an error is cancelled."""
    if len(requests) == 1:
        return [await send(requests[0])]
    gate = asyncio.Semaphore(at_once)

    async def run(request: R) -> Result:
        await gate.acquire()
        answer = await send(request)
        # Not after an error: who waits would have its turn before it is cancelled.
        gate.release()
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


class _ReraiseLostCancellation:
    __slots__ = ("_before", "_task")

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._before = _cancels_of(self._task)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        has_gone_on = error is None or isinstance(error, Exception)
        if has_gone_on and _cancels_of(self._task) > self._before:
            raise asyncio.CancelledError from error


def reraise_lost_cancellation() -> _ReraiseLostCancellation:
    """A cancel that comes while its body awaits leaves, whatever the body makes of it.

    Raises:
        asyncio.CancelledError: The body went on as if there had been none.
    """
    return _ReraiseLostCancellation()


def _cancels_of(task: asyncio.Task[object] | None) -> int:
    return 0 if task is None else task.cancelling()
