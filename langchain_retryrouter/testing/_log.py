"""What the server writes down, and how others wait for it.

One condition variable guards everything. The server's thread holds it for moments only;
nobody sleeps and polls.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .recorded_request import Outcome, RecordedRequest
    from .steps import Step


@dataclass(slots=True)
class Entry:
    """One request and what has become of it so far."""

    request: RecordedRequest
    step: Step | None = None
    outcome: Outcome = "pending"


class RequestLog:
    """The requests and the connections of one gateway."""

    def __init__(self, keep: int | None) -> None:
        """Start an empty log of the `keep` latest requests, None for all."""
        self._changed = threading.Condition()
        self._listeners: set[Callable[[], object]] = set()
        self._entries: deque[Entry] = deque(maxlen=keep)
        self._requests_begun = 0
        self._connections = 0
        self._open_connections = 0

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests as they stand now, oldest first."""
        with self._changed:
            return [
                replace(entry.request, step=entry.step, outcome=entry.outcome)
                for entry in self._entries
            ]

    @property
    def connections(self) -> int:
        """How many connections were ever accepted."""
        return self._connections

    @property
    def open_connections(self) -> int:
        """How many connections are open."""
        return self._open_connections

    def clear(self) -> None:
        """Forget the requests; numbers go on counting."""
        with self._changed:
            self._entries.clear()

    def connection_opened(self) -> int:
        """Count a connection; returns its number."""
        with self._changed:
            self._connections += 1
            self._open_connections += 1
            self._notify()
            return self._connections

    def connection_closed(self) -> None:
        """Count a connection that is gone."""
        with self._changed:
            self._open_connections -= 1
            self._notify()

    def next_number(self) -> int:
        """The number of the request that comes now. Only the server's thread asks."""
        self._requests_begun += 1
        return self._requests_begun

    def begin(self, request: RecordedRequest) -> Entry:
        """Write a request down."""
        entry = Entry(request)
        with self._changed:
            self._entries.append(entry)
            self._notify()
        return entry

    def end(self, entry: Entry, outcome: Outcome) -> None:
        """Write down how a request ended."""
        with self._changed:
            entry.outcome = outcome
            self._notify()

    def wait_for(self, predicate: Callable[[], bool], timeout: float) -> None:
        """Block until `predicate` holds.

        Raises:
            TimeoutError: It did not within `timeout` seconds; says what was seen.
        """
        with self._changed:
            if not self._changed.wait_for(predicate, timeout):
                raise TimeoutError(self._report(timeout))

    async def await_for(
        self,
        predicate: Callable[[], bool],
        timeout: float,  # noqa: ASYNC109 - the twin of `wait_for`
    ) -> None:
        """Wait until `predicate` holds, without blocking the event loop.

        Raises:
            TimeoutError: It did not within `timeout` seconds; says what was seen.
        """
        changed = asyncio.Event()
        listener = partial(asyncio.get_running_loop().call_soon_threadsafe, changed.set)
        with self._changed:
            self._listeners.add(listener)
        try:
            async with asyncio.timeout(timeout):
                while not predicate():
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            raise TimeoutError(self._report(timeout)) from None
        finally:
            with self._changed:
                self._listeners.discard(listener)

    def forget_locks(self) -> None:
        """Take new locks, after a fork that may have copied taken ones."""
        self._changed = threading.Condition()
        self._listeners = set()

    def _notify(self) -> None:
        self._changed.notify_all()
        for listener in self._listeners:
            listener()

    def _report(self, timeout: float) -> str:
        requests = self.requests
        seen = "".join(f"\n  {request}" for request in requests)
        counts = f"{self._open_connections} of {self._connections} connections open"
        return f"not so after {timeout} s; {counts}, {len(requests)} requests:{seen}"
