"""Foreign coroutines that lose a cancel: it is found behind them, and raised after all.

`asyncio.wait_for` of Python 3.11 loses one that comes together with its result, and
langchain-openai reads each chunk of a stream by it. A call would go on although its
task was cancelled, and be retried.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def heeding_cancels() -> Iterator[None]:
    """A cancel that comes while its body awaits leaves, whatever the body makes of it.

    Raises:
        asyncio.CancelledError: The body went on as if there had been none.
    """
    task = asyncio.current_task()
    before = _cancels_of(task)
    try:
        yield
    except Exception as error:
        if _cancels_of(task) > before:
            raise asyncio.CancelledError from error
        raise
    if _cancels_of(task) > before:
        raise asyncio.CancelledError


def _cancels_of(task: asyncio.Task[object] | None) -> int:
    return 0 if task is None else task.cancelling()
