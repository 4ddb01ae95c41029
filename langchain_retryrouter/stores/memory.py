"""`MemoryStore`: what is shared within one process."""

from __future__ import annotations

import time
import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final

from langchain_retryrouter._shared import (
    Clock,
    Locked,
    OneForAll,
    Operation,
    Record,
    Reply,
    Shareable,
    process_name,
)
from langchain_retryrouter.stores import KEPT, Scope, call_listener, read_scope

_BEGIN: Final = 1_000_000_000  # Milliseconds: no time is near 0, where records begin.


class MemoryStore(OneForAll, Locked):
    """Shares breakers, budgets and limits of the same name within this process.

    For several models of one provider in one process, and for tests: it decides by the
    same rules as `RedisStore`, at once, without threads. A copy of a model shares it; a
    pickle of it is an empty store.

    Args:
        clock: Tells the time, such as `testing.FakeClock`; None for the system's.
    """

    closes_with_model = False
    is_up = True

    def __init__(self, *, clock: Clock | None = None) -> None:
        """The store starts empty."""
        super().__init__()
        self._monotonic = clock.monotonic if clock is not None else time.monotonic
        self.process = process_name()
        self._records = defaultdict[tuple[str, str], Record](dict)
        self._expires: dict[tuple[str, str], float] = {}
        self._watched = defaultdict[tuple[str, str], weakref.WeakSet[Shareable]](
            weakref.WeakSet
        )
        self._refresh_at = 0.0

    def wake(self) -> None:
        """Ask all that is shared what it has to send, once a second."""
        if self._monotonic() < self._refresh_at:
            return
        with self._lock:
            self._refresh_at = self._monotonic() + 1.0
            watched = [one for ones in self._watched.values() for one in ones]
        for one in watched:
            call_listener(one.refresh)

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
        key = operation.name, name
        with self._lock:
            now = self._expire()
            record = self._records[key]
            reply = operation.run(record, now, args)
            ends = [at for field, at in record.items() if field.endswith("_until")]
            self._expires[key] = max([now, *ends]) + KEPT
            watched = list(self._watched[key]) if reply[0] == 1 else []
        if on_reply is not None:
            on_reply(reply)
        for one in watched:
            call_listener(one.learned, reply)
        return True

    def watch(self, shareable: Shareable) -> None:
        """Keep it informed of its record, and tell it what is known."""
        with self._lock:
            self._watched[shareable.record].add(shareable)
        shareable.refresh()

    def snapshot(self) -> list[Scope]:
        """All that is shared now, in the order of kinds and names."""
        with self._lock:
            now = self._expire()
            return [
                read_scope(kind, name, record, now)
                for (kind, name), record in sorted(self._records.items())
            ]

    def _expire(self) -> int:
        """Forget records that were not used for too long; the time now."""
        now = _BEGIN + int(self._monotonic() * 1000)
        for key in [key for key, at in self._expires.items() if at <= now]:
            del self._records[key], self._expires[key]
        return now

    def __reduce__(self) -> tuple[Any, ...]:
        """An empty store: another process has its own."""
        return type(self), ()

    def __repr__(self) -> str:
        """The number of records."""
        return f"{type(self).__name__}({len(self._records)} records)"
