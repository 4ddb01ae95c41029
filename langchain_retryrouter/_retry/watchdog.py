"""Cuts a blocking read short: one thread that calls `abort` when a read is overdue.

Sync code cannot be interrupted from outside, and a socket's own timeout starts anew
with every byte, so a server that drips would never be caught by it. The thread starts
with the first read that has a limit, and serves the whole process.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Watch:
    """One stream under watch.

    A limit that moves further away does not wake the thread; it looks again when the
    old one was due. So to follow a stream costs an assignment an event, not a switch
    of threads.
    """

    __slots__ = ("_abort", "_lock", "due", "has_fired", "is_watched")

    def __init__(self, abort: Callable[[], None]) -> None:
        """Under no limit yet."""
        self._abort = abort
        self._lock = threading.Lock()
        self.due = math.inf
        self.has_fired = False
        self.is_watched = False

    def expect_within(self, seconds: float | None) -> None:
        """The next event is due within `seconds`; None: whenever it comes."""
        if seconds is None:
            return
        self.due = time.monotonic() + seconds
        watchdog = _watchdog()
        # Read after `due` was written: see `_Watchdog._sort` for the other side.
        if not self.is_watched or self.due < watchdog.next_look:
            watchdog.look_at(self)

    def pause(self) -> bool:
        """The event came, and the caller may take his time; False if it came too late.

        A watch that has not fired by now does not fire until the next limit.
        """
        with self._lock:
            self.due = math.inf
        return not self.has_fired

    def end(self) -> None:
        """The stream is over: nothing will be aborted, and nothing is kept."""
        self.pause()
        if self.is_watched:
            _watchdog().forget(self)

    def fire(self) -> None:
        """Unblock the reader, unless the event came after all."""
        with self._lock:
            if self.due > time.monotonic():
                return
            self.has_fired = True
            try:
                self._abort()
            except Exception:
                # The thread serves all streams; one that cannot be aborted stays alone.
                logger.exception("A stream that was overdue could not be aborted")


class _Watchdog:
    def __init__(self) -> None:
        self.pid = os.getpid()
        self.next_look = math.inf
        self._watches: set[Watch] = set()
        self._changed = threading.Condition()
        self._is_running = False

    def look_at(self, watch: Watch) -> None:
        with self._changed:
            watch.is_watched = True
            self._watches.add(watch)
            self._changed.notify()
            if not self._is_running:
                threading.Thread(
                    target=self._run, name="retryrouter-watchdog", daemon=True
                ).start()
                self._is_running = True

    def forget(self, watch: Watch) -> None:
        with self._changed:
            watch.is_watched = False
            self._watches.discard(watch)

    def _run(self) -> None:
        while True:
            with self._changed:
                overdue = self._sort(time.monotonic())
                if not overdue:
                    left = max(0.0, self.next_look - time.monotonic())
                    self._changed.wait(min(left, threading.TIMEOUT_MAX))
            for watch in overdue:
                watch.fire()

    def _sort(self, now: float) -> list[Watch]:
        """Let go of what has no limit any more; what is overdue comes back."""
        overdue = []
        self.next_look = math.inf
        for watch in list(self._watches):
            if watch.due <= now or math.isinf(watch.due):
                # In this order, so that a limit set meanwhile is seen by one of us.
                watch.is_watched = False
                if watch.due > now and not math.isinf(watch.due):
                    watch.is_watched = True
                else:
                    self._watches.discard(watch)
                    if watch.due <= now:
                        overdue.append(watch)
                    continue
            self.next_look = min(self.next_look, watch.due)
        return overdue


_current = _Watchdog()


def _watchdog() -> _Watchdog:
    """This process's watchdog; a fork leaves the parent's thread behind."""
    global _current  # noqa: PLW0603 - one thread a process is the point
    if _current.pid != os.getpid():
        _current = _Watchdog()
    return _current
