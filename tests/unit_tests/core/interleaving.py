"""Two threads in one function, between any two of its lines, without luck."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


def interleavings(prepare: Callable[[], Callable[[], T]]) -> Iterator[list[T]]:
    """What two calls of one thing give, for each line where the second may cut in.

    A call that finds a lock taken waits until the first is over; one that finds none
    runs to its end right there, in the middle of the first.

    Args:
        prepare: Makes the thing anew, and gives the call that both threads make.
    """
    for line in count():
        results = _cut_in_at(line, prepare())
        if len(results) < 2:
            assert line > 1
            return
        yield results


def _cut_in_at(line: int, call: Callable[[], T]) -> list[T]:
    results: list[T] = []
    lines = count()
    other = threading.Thread(target=lambda: results.append(call()))

    def trace(frame: FrameType, event: str, _value: Any) -> Any:
        if "langchain_retryrouter" not in frame.f_code.co_filename:
            return None
        if event == "line" and next(lines) == line:
            other.start()
            other.join(0.02)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        results.append(call())
    finally:
        sys.settrace(before)
    if other.ident is not None:
        other.join()
    return results
