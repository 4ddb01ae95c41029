"""A turnstile for each event loop: calls that come together pass a few at a time.

Five hundred calls that are gathered, or answered, together would take their steps in
one turn of the loop, and nothing else would run meanwhile: no other request, no timer.
So at most `AT_ONCE` of them pass from one turn to the next, in the order in which they
came; who is under way goes before who only begins, for it holds memory, and its answer
may be waiting. Who comes alone passes at once, without a turn of the loop.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from typing import Final

AT_ONCE: Final = 8
"""Calls that pass from one turn of a loop to the next: a few milliseconds' work."""


class _Crowd:
    """Who passes in this turn of a loop, and who waits for a later one.

    The loop's next turn holds on to it, and nobody else: it is gone with the crowd, or
    with a loop that is closed in the middle of one.
    """

    __slots__ = ("__weakref__", "_beginning", "_loop", "_passed", "_under_way")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._passed = 0
        self._under_way: deque[asyncio.Future[None]] = deque()
        self._beginning: deque[asyncio.Future[None]] = deque()
        loop.call_soon(self._turn)

    def queue(self, *, begins: bool) -> asyncio.Future[None] | None:
        """A place in the queue; None for who may pass now."""
        if self._passed < AT_ONCE:
            self._passed += 1
            return None
        turn = self._loop.create_future()
        (self._beginning if begins else self._under_way).append(turn)
        return turn

    def _turn(self) -> None:
        self._passed = 0
        for queue in (self._under_way, self._beginning):
            while queue and self._passed < AT_ONCE:
                turn = queue.popleft()
                if not turn.done():  # Cancelled, and its place is the next one's.
                    turn.set_result(None)
                    self._passed += 1
        if self._passed:
            self._loop.call_soon(self._turn)


# By the loop's id: a key that is the loop itself would not be kept weakly by a crowd
# that refers to it.
_crowds: weakref.WeakValueDictionary[int, _Crowd] = weakref.WeakValueDictionary()


async def enter() -> None:
    """Let a call begin, in its turn."""
    turn = _queue(begins=True)
    if turn is not None:
        await turn


async def go_on() -> None:
    """Let a call that is under way go on, in its turn."""
    turn = _queue(begins=False)
    if turn is not None:
        await turn


def _queue(*, begins: bool) -> asyncio.Future[None] | None:
    loop = asyncio.get_running_loop()
    crowd = _crowds.get(id(loop))
    if crowd is None:
        crowd = _crowds[id(loop)] = _Crowd(loop)
    return crowd.queue(begins=begins)
