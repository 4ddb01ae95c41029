"""A server of limited capacity on a virtual clock, and a crowd that goes on asking it.

The server works through a queue, one request after the other. It cannot see that a
client has left, so a request whose client lost patience still costs it the full work:
that is what keeps a server down after the outage that began it (Bronson et al.,
"Metastable Failures in Distributed Systems", HotOS 2021).
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from tests.promises.virtual_time import let_pass, run

CAPACITY: Final = 100
"""Requests a second that the server can answer."""
OFFERED: Final = 70
"""Calls a second that the crowd begins, evenly spaced."""
PATIENCE: Final = 2.0
"""Seconds a client waits for an answer."""
BEGIN: Final = 5.0
"""When the outage begins; before that all is well."""

How: TypeAlias = Literal["refuses", "hangs"]


class Refused(Exception):  # noqa: N818 - what the server says, as a 503
    """The server is down, or its queue is full."""


@dataclass
class Outage:
    """What befalls the server.

    Attributes:
        how: Whether it refuses each request, or takes it and stands still.
        queue: Requests that it lets wait; it refuses those that come on top.
        watched: Seconds that are watched after it.
        seconds: How long it lasts.
    """

    how: How
    queue: int
    watched: float
    seconds: float = 30.0

    @property
    def end(self) -> float:
        """When it is over."""
        return BEGIN + self.seconds

    def holds(self, now: float) -> bool:
        """Whether it lasts at `now`."""
        return BEGIN <= now < self.end


@dataclass
class Server:
    """What answers, in order, at its own pace."""

    outage: Outage
    arrivals: list[float] = field(default_factory=list)
    """When each request came."""

    def __post_init__(self) -> None:
        """Begin with an empty queue."""
        self._queue: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue(
            self.outage.queue
        )

    async def ask(self) -> None:
        """Send one request, and wait for its answer.

        Raises:
            Refused: The server turned it down.
            TimeoutError: It did not answer within `PATIENCE`.
        """
        loop = asyncio.get_running_loop()
        self.arrivals.append(loop.time())
        if self.outage.how == "refuses" and self.outage.holds(loop.time()):
            raise Refused
        answer: asyncio.Future[None] = loop.create_future()
        try:
            self._queue.put_nowait(answer)
        except asyncio.QueueFull:
            raise Refused from None
        async with asyncio.timeout(PATIENCE):
            await answer

    async def work(self) -> None:
        """Answer one request after the other, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            answer = await self._queue.get()
            if self.outage.how == "hangs" and self.outage.holds(loop.time()):
                await let_pass(self.outage.end - loop.time())
            await let_pass(1 / CAPACITY)
            if not answer.done():  # Otherwise its client has left: work for nothing.
                answer.set_result(None)


Client: TypeAlias = Callable[[Server], Awaitable[None]]
"""Makes one call; raises where it gives up."""


@dataclass(frozen=True)
class Course:
    """What was seen of an outage.

    Attributes:
        answered: When each call that was answered had its answer.
        arrivals: When each request came to the server.
        outage: What befell the server.
    """

    answered: list[float]
    arrivals: list[float]
    outage: Outage

    @property
    def recovered_after(self) -> float:
        """Seconds from the outage's end until goodput is back, and stays so.

        Goodput is the answers of the last second; it is back at 95 % of what is
        offered. As long as was watched, if it never came back.
        """
        last = 0.0
        for tenth in range(round(10 * self.outage.watched) + 1):
            now = self.outage.end + tenth / 10
            if _within(self.answered, now - 1, now) < 0.95 * OFFERED:
                last = (tenth + 1) / 10
        return min(last, self.outage.watched)

    @property
    def peak(self) -> float:
        """The most requests within any second, as a multiple of what is offered."""
        busiest = max(_within(self.arrivals, at, at + 1) for at in self.arrivals)
        return busiest / OFFERED


def _within(moments: list[float], begin: float, end: float) -> int:
    return bisect.bisect_left(moments, end) - bisect.bisect_left(moments, begin)


def live_through(outage: Outage, new_client: Callable[[], Client]) -> Course:
    """Let a crowd call a server before, during and after an outage.

    Args:
        outage: What befalls the server.
        new_client: Makes what each call is made with, on the loop that it runs on.
    """
    return run(_live_through(outage, new_client))


async def _live_through(outage: Outage, new_client: Callable[[], Client]) -> Course:
    loop = asyncio.get_running_loop()
    server, client = Server(outage), new_client()
    answered: list[float] = []

    async def call(at: float) -> None:
        await let_pass(at - loop.time())
        try:
            await client(server)
        except Exception:  # noqa: BLE001 - whatever a peer gives up with
            return
        answered.append(loop.time())

    working = loop.create_task(server.work())
    calls = range(round(OFFERED * (outage.end + outage.watched)))
    await asyncio.gather(*(call(number / OFFERED) for number in calls))
    working.cancel()
    return Course(answered, server.arrivals, outage)
