"""Whether the end of a stream was an end.

A stream is retried until it is committed, that is until its first token has been handed
to the caller, and is whole only when its protocol says so. What an event means is the
business of the wire that reads it; it tells the guard with a `Signal`.
"""

from __future__ import annotations

from typing import NamedTuple


class Signal(NamedTuple):
    """What one event of a stream means.

    Attributes:
        text: Text that it adds to the answer.
        is_token: Whether it carries content: once handed over, nothing can be undone.
        is_end: Whether the protocol says with it that the answer is whole.
        is_last: Whether nothing worth reading follows.
    """

    text: str = ""
    is_token: bool = False
    is_end: bool = False
    is_last: bool = False


class StreamGuard:
    """Follows the stream of one attempt."""

    __slots__ = ("_parts", "is_over", "is_whole", "saw_token")

    def __init__(self) -> None:
        """Nothing has been seen yet."""
        self._parts: list[str] = []
        self.saw_token = False
        self.is_whole = False
        self.is_over = False

    def see(self, signal: Signal) -> None:
        """Take note of one event."""
        if signal.text:
            self._parts.append(signal.text)
        if signal.is_token:
            self.saw_token = True
        if signal.is_end:
            self.is_whole = True
        if signal.is_last:
            self.is_over = True

    @property
    def is_settled(self) -> bool:
        """Whether the first event worth handing over has come: a token, or the end."""
        return self.saw_token or self.is_whole

    @property
    def delivered(self) -> str:
        """All text seen so far."""
        return "".join(self._parts)
