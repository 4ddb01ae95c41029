"""Blocking code that cannot be interrupted, made to end in time: a thread of its own.

What is not ours to abort, such as another integration's model, can only be left alone:
its thread goes on until its own time limit, and nobody waits for it. So a thread is
spent only where there is a limit to keep.
"""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

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


def within(seconds: float | None, work: Callable[[], T]) -> T:
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


class PumpedSource(Generic[T]):
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
