"""Foreign coroutines that lose a cancel: it is found behind them, and raised after all.

`asyncio.wait_for` of Python 3.11 loses one that comes together with its result, and
langchain-openai reads each chunk of a stream by it. A call would go on although its
task was cancelled, and be retried.
"""

from __future__ import annotations

import asyncio
from types import TracebackType


class _Heeding:
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


def heeding_cancels() -> _Heeding:
    """A cancel that comes while its body awaits leaves, whatever the body makes of it.

    Raises:
        asyncio.CancelledError: The body went on as if there had been none.
    """
    return _Heeding()


def _cancels_of(task: asyncio.Task[object] | None) -> int:
    return 0 if task is None else task.cancelling()
