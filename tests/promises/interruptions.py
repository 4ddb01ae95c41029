"""Ends a call at the n-th place where it waits, and watches how it goes.

The places are those of all tasks that the call is made of: each time one of them gives
control back to the event loop counts. So a cancel lands between any two steps of a
call, and not only where it happens to rest for long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Generator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Moment: TypeAlias = Literal["at once", "a turn later", "with what it waited for"]
"""When a call is ended, once it waits at the chosen place.

"with what it waited for" is the turn of the event loop in which the wait is over: the
cancel and the result arrive together.
"""

Way: TypeAlias = Literal["cancel", "timeout", "sibling"]
"""By what: the task's `cancel`, `asyncio.timeout`, or a task of its group that failed.
"""

MOMENTS: tuple[Moment, ...] = ("at once", "a turn later", "with what it waited for")
NEVER = 1_000_000
_AT_THE_LATEST = 0.015
"""Seconds after which a call that waits for long is ended, wherever it is."""

_interruption: ContextVar[Interruption | None] = ContextVar(
    "interruption", default=None
)


WAYS: tuple[Way, ...] = ("cancel", "cancel", "timeout", "sibling")
"""With a plain cancel twice as often as with each of the others."""


async def one_turn() -> None:
    """Let the event loop turn once."""
    await asyncio.sleep(0)  # noqa: TID251 - a turn of the loop, and no wait


class SiblingError(Exception):
    """A task beside the call has failed."""


@dataclass(slots=True)
class Interruption:
    """Where a call is to be ended, and what became of it."""

    place: int = NEVER
    moment: Moment = "at once"
    way: Way = "cancel"
    end: Callable[[], object] | None = None
    """What ends it; the task's own `cancel` if nothing else."""
    waits: int = 0
    """Places that the call has come by."""
    turns: int = 0
    """Turns of the event loop between the end and the task's own."""
    cpu: float = 0.0
    """Seconds that the thread worked in between."""
    wall_seconds: float = 0.0
    """Seconds that went by in between."""
    is_sent: bool = False
    _task: asyncio.Task[Any] | None = None
    _began: tuple[float, float] = field(default=(0.0, 0.0))

    def waiting(self, awaited: Any) -> None:
        """One of the call's tasks is about to wait for `awaited`."""
        self.waits += 1
        if self.waits != self.place:
            return
        loop = asyncio.get_running_loop()
        if self.moment == "with what it waited for" and awaited is not None:
            awaited.add_done_callback(lambda _: self.send())
        elif self.moment == "a turn later":
            loop.call_soon(loop.call_soon, self.send)
        else:
            loop.call_soon(self.send)

    def watch(self, task: asyncio.Task[Any]) -> None:
        """End this task."""
        self._task = task
        task.add_done_callback(self._over)

    def send(self) -> None:
        """End it now, unless that was done before."""
        if self.is_sent or self._task is None or self._task.done():
            return
        self.is_sent = True
        self._began = (time.perf_counter(), time.thread_time())
        (self.end or self._task.cancel)()
        self._turn()

    def _turn(self) -> None:
        if self._task is not None and not self._task.done():
            self.turns += 1
            asyncio.get_running_loop().call_soon(self._turn)

    def _over(self, _: asyncio.Task[Any]) -> None:
        if self.is_sent:
            self.wall_seconds = time.perf_counter() - self._began[0]
            self.cpu = time.thread_time() - self._began[1]


class _Steps:
    """A coroutine, awaited step by step."""

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], interruption: Interruption
    ) -> None:
        self._coroutine = coroutine
        self._interruption = interruption

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[Any], Any] = self._coroutine.send
        argument: Any = None
        while True:
            try:
                awaited = step(argument)
            except StopIteration as over:
                return over.value
            self._interruption.waiting(awaited)
            try:
                argument, step = (yield awaited), self._coroutine.send
            except BaseException as error:  # noqa: BLE001 - handed on
                argument, step = error, self._coroutine.throw


def watched_tasks(
    loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
) -> asyncio.Task[Any]:
    """A task factory: whatever tasks a call makes, their waits are the call's."""
    interruption = _interruption.get()
    if interruption is None:
        return asyncio.Task(coroutine, loop=loop, **options)
    steps = _step_by_step(coroutine, interruption)
    task = asyncio.Task(steps, loop=loop, **options)
    # One that is cancelled before its first step never comes to the coroutine within.
    task.add_done_callback(lambda _: coroutine.close())
    return task


async def _step_by_step(
    coroutine: Coroutine[Any, Any, Any], interruption: Interruption
) -> Any:
    return await _Steps(coroutine, interruption)


async def interrupted(
    call: Callable[[], Coroutine[Any, Any, object]], interruption: Interruption
) -> object:
    """What the call came to, ended as `interruption` says: a result, or an error."""
    way = {"cancel": _plain, "timeout": _timeout, "sibling": _beside_a_failing_task}
    token = _interruption.set(interruption)
    try:
        task = asyncio.create_task(way[interruption.way](call, interruption))
    finally:
        _interruption.reset(token)
    interruption.watch(task)
    latest = asyncio.get_running_loop().call_later(_AT_THE_LATEST, interruption.send)
    await asyncio.wait({task})
    latest.cancel()
    if task.cancelled():
        return asyncio.CancelledError()
    return task.exception() or task.result()


async def _plain(
    call: Callable[[], Coroutine[Any, Any, object]], _: Interruption
) -> object:
    return await call()


async def _timeout(
    call: Callable[[], Coroutine[Any, Any, object]], interruption: Interruption
) -> object:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        interruption.end = lambda: limit.reschedule(loop.time())
        return await call()


async def _beside_a_failing_task(
    call: Callable[[], Coroutine[Any, Any, object]], interruption: Interruption
) -> object:
    fails = asyncio.Event()
    interruption.end = fails.set

    async def fail() -> None:
        await fails.wait()
        raise SiblingError

    try:
        async with asyncio.TaskGroup() as group:
            sibling = group.create_task(fail())
            answer = await group.create_task(call())
            sibling.cancel()
    except* SiblingError as errors:
        raise SiblingError from errors
    return answer
