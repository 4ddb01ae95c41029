"""What a stream's guard remembers of the events it saw."""

from __future__ import annotations

import pytest

from langchain_retryrouter._retry.streaming import ChunkInfo, StreamGuard

ROLE = ChunkInfo()
TOKEN = ChunkInfo(text="Hello", is_token=True)
CALL = ChunkInfo(is_token=True)
END = ChunkInfo(is_end=True)
LAST = ChunkInfo(is_last=True)


def guard_after(*signals: ChunkInfo) -> StreamGuard:
    """A guard that saw these signals."""
    guard = StreamGuard()
    for signal in signals:
        guard.see(signal)
    return guard


@pytest.mark.parametrize(
    ("signals", "facts"),
    [
        # saw_token, is_whole, is_over, is_settled
        ([], (False, False, False, False)),
        ([ROLE], (False, False, False, False)),
        ([ROLE, TOKEN], (True, False, False, True)),
        ([CALL], (True, False, False, True)),
        ([TOKEN, ROLE], (True, False, False, True)),
        ([TOKEN, END], (True, True, False, True)),
        ([END], (False, True, False, True)),
        ([TOKEN, LAST], (True, False, True, True)),
        ([LAST], (False, False, True, False)),
        ([TOKEN, END, ROLE, LAST], (True, True, True, True)),
        ([ChunkInfo("x", is_token=True, is_end=True, is_last=True)], (True,) * 4),
    ],
)
def test_what_a_guard_knows(signals: list[ChunkInfo], facts: tuple[bool, ...]) -> None:
    """Token, wholeness and end are remembered, whatever else comes after them."""
    guard = guard_after(*signals)
    seen = (guard.saw_token, guard.is_whole, guard.is_over, guard.is_settled)
    assert seen == facts


def test_delivered_is_the_text_in_order() -> None:
    """All text is kept, in the order it came."""
    parts = ["Hel", "", "lo", "\u2028", " you"]
    guard = guard_after(*(ChunkInfo(text=part, is_token=bool(part)) for part in parts))
    assert guard.delivered == "Hello\u2028 you"


def test_nothing_delivered_is_an_empty_text() -> None:
    """Before the first text there is nothing that a caller could have."""
    assert guard_after(ROLE, CALL).delivered == ""
