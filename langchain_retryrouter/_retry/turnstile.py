"""A turnstile for each event loop: calls that come together pass a few at a time.

Five hundred calls that are gathered, or answered, together would take their steps in
one turn of the loop, and nothing else would run meanwhile: no other request, no timer.
So only a few of them pass from one turn to the next, in the order in which they came;
who is under way goes before who only begins, for it holds memory, and its answer may be
waiting. Who comes alone passes at once, without a turn of the loop.

How many pass is a matter of time: together they take half as long as all else that the
loop does in a turn, or half a millisecond where there is little else. That is short on
purpose. The fewer calls have begun, the fewer objects the garbage collector has to look
at again and again, which would cost a call among 2,000 as much as all its other steps.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from time import perf_counter
from typing import Final

AT_ONCE: Final = 4
"""Calls that pass in a turn of the loop, as long as nobody knows what they take."""

# Seconds that the calls of one turn take together; one call passes in any case.
_LEAST: Final = 0.0005
_MOST: Final = 0.01


class _Crowd:
    """Who passes in this turn of a loop, and who waits for a later one.

    The loop's next turn holds on to it, and nobody else: it is gone with the crowd, or
    with a loop that is closed in the middle of one.
    """

    __slots__ = (
        "__weakref__",
        "_at_once",
        "_beginning",
        "_loop",
        "_passed",
        "_released_at",
        "_started_at",
        "_under_way",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # Who passed before it stood may all have passed in this turn.
        self._passed = AT_ONCE
        self._at_once = AT_ONCE
        self._released_at = self._started_at = 0.0
        self._under_way: deque[asyncio.Future[None]] = deque()
        self._beginning: deque[asyncio.Future[None]] = deque()
        loop.call_soon(self._turn)

    def queue(self, *, begins: bool) -> asyncio.Future[None] | None:
        """A place in the queue; None for who may pass now."""
        if self._passed < self._at_once:
            self._passed += 1
            return None
        turn = self._loop.create_future()
        (self._beginning if begins else self._under_way).append(turn)
        return turn

    def _turn(self) -> None:
        self._passed = 0
        if self._under_way or self._beginning:
            self._released_at = perf_counter()
            self._loop.call_soon(self._start)
            self._release()
            self._loop.call_soon(self._end, self._passed)
        if self._passed:
            self._loop.call_soon(self._turn)

    def _release(self) -> None:
        for queue in (self._under_way, self._beginning):
            while queue and self._passed < self._at_once:
                turn = queue.popleft()
                if not turn.done():  # Cancelled, and its place is the next one's.
                    turn.set_result(None)
                    self._passed += 1

    # The loop runs what it is given in the order in which it is given. So between these
    # two are the steps of those who were released, and nothing else.

    def _start(self) -> None:
        self._started_at = perf_counter()

    def _end(self, passed: int) -> None:
        theirs = perf_counter() - self._started_at
        others = self._started_at - self._released_at
        fair = min(max(others / 2, _LEAST), _MOST)
        if passed and theirs > 0:
            fitting = int(fair * passed / theirs)
            self._at_once = max(1, min(fitting, 2 * self._at_once))


# Who passed while there was no crowd, in one turn or in many: to ask the loop when its
# turn is over costs more than to let four pass.
_alone: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, int] = (
    weakref.WeakKeyDictionary()
)
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
    if crowd is not None:
        return crowd.queue(begins=begins)
    passed = _alone.get(loop, 0) + 1
    if passed == AT_ONCE:
        _crowds[id(loop)] = _Crowd(loop)
        passed = 0
    _alone[loop] = passed
    return None
