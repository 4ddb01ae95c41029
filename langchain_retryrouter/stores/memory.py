"""`MemoryStore`: what is shared within one process."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final, Protocol

from langchain_retryrouter._shared import (
    NAMES,
    OneForAll,
    Operation,
    Record,
    Reply,
    Watcher,
    process_name,
    watch_forks,
)
from langchain_retryrouter.stores import (
    Scope,
    call_listener,
    expiry,
    read_scope,
)

_BEGIN: Final = 1_000_000_000  # Milliseconds: no time is near 0, where records begin.


class _Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""


class MemoryStore(OneForAll):
    """Shares breakers, budgets and limits of the same name within this process.

    For several models of one provider in one process, and for tests: it decides by the
    same rules as `RedisStore`, at once, without threads. A copy of a model shares it; a
    pickle of it is an empty store.

    Args:
        clock: Tells the time, such as `testing.FakeClock`; None for the system's.
    """

    closes_with_model = False
    is_up: Final = True

    def __init__(self, *, clock: _Clock | None = None) -> None:
        """The store starts empty."""
        self._monotonic = clock.monotonic if clock is not None else time.monotonic
        self.process = process_name()
        self._lock = threading.RLock()
        self._records: dict[tuple[str, str], Record] = {}
        self._refresh_at = -math.inf
        self._expires: dict[tuple[str, str], int] = {}
        self._watchers: defaultdict[tuple[str, str], weakref.WeakSet[Any]] = (
            defaultdict(weakref.WeakSet)
        )
        watch_forks(self)

    def forked(self) -> None:
        """This is the child of a fork: a thread may have had a lock."""
        self._lock = threading.RLock()

    def wake(self) -> None:
        """Ask the watchers what they have to send, once a second."""
        if self._monotonic() < self._refresh_at:
            return
        with self._lock:
            self._refresh_at = self._monotonic() + 1.0
            watchers = [one for ones in self._watchers.values() for one in ones]
        for watcher in watchers:
            call_listener(watcher.refresh)

    def close(self) -> None:
        """Nothing has to be closed."""

    def submit(
        self,
        operation: Operation,
        name: str,
        args: list[Any],
        on_reply: Callable[[Reply | None], None] | None = None,
    ) -> bool:
        """Run an operation now."""
        key = (operation.name, name)
        with self._lock:
            now = self._now()
            self._expire(now)
            record = self._records.setdefault(key, {})
            reply = operation.apply(record, now, args)
            self._expires[key] = expiry(record, now)
            watchers = list(self._watchers.get(key, ())) if reply[0] == 1 else ()
        if on_reply is not None:
            on_reply(reply)
        for watcher in watchers:
            call_listener(watcher.learned, reply)
        return True

    def watch(self, operation: Operation, name: str, watcher: Watcher) -> None:
        """Keep `watcher` informed of the record, and tell it what is known."""
        with self._lock:
            self._watchers[operation.name, name].add(watcher)
        watcher.refresh()

    def snapshot(self) -> list[Scope]:
        """All that is shared now, in the order of kinds and names."""
        with self._lock:
            now = self._now()
            self._expire(now)
            records = sorted(self._records.items())
            return [
                read_scope(kind, name, record, now)
                for (kind, name), record in records
                if kind != NAMES.name
            ]

    def _now(self) -> int:
        return _BEGIN + int(self._monotonic() * 1000)

    def _expire(self, now: int) -> None:
        for key in [key for key, at in self._expires.items() if at <= now]:
            del self._records[key], self._expires[key]

    def __reduce__(self) -> tuple[Any, ...]:
        """An empty store: another process has its own."""
        return type(self), ()

    def __repr__(self) -> str:
        """The number of records."""
        return f"{type(self).__name__}({len(self._records)} records)"
