"""A signal whose handler raises, as Ctrl-C is one, sent to whoever waits."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

_SIGNAL = signal.SIGUSR1


class InterruptedBySignalError(BaseException):
    """What the handler raises; no `Exception`, as a KeyboardInterrupt is none."""


class Sender(threading.Thread):
    """Sends the signal to the main thread, a moment after something has come true."""

    def __init__(self, has_come: Callable[[], object], after: float) -> None:
        """Not yet under way.

        Args:
            has_come: Waits for what must come first.
            after: Seconds from then to the signal.
        """
        super().__init__(daemon=True)
        self._has_come = has_come
        self._after = after
        self.sent_at = 0.0

    def run(self) -> None:
        """Wait, and send it."""
        self._has_come()
        threading.Event().wait(self._after)
        self.sent_at = time.monotonic()
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, _SIGNAL)


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Within it, the signal raises where the main thread is."""

    def interrupt(*_: object) -> NoReturn:
        raise InterruptedBySignalError

    before = signal.signal(_SIGNAL, interrupt)
    try:
        yield
    finally:
        signal.signal(_SIGNAL, before)
