"""Two streams for one, in async code: who is cancelled meanwhile, leaves both."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest

from langchain_retryrouter._retry.hedging import AHedgedSource
from langchain_retryrouter._retry.streaming import AEventSource
from langchain_retryrouter.errors import RetryRouterError

from .scripted import one_turn


class Saying:
    """A stream that says one word when it is let, and is slow to go."""

    def __init__(self, word: str) -> None:
        """Silent so far."""
        self._word = word
        self.may_speak, self.may_go = asyncio.Event(), asyncio.Event()
        self.is_leaving, self.is_closed = False, False

    async def __aiter__(self) -> AsyncIterator[str]:
        """The word; whoever leaves before it waits for `may_go`."""
        try:
            await self.may_speak.wait()
        except asyncio.CancelledError:
            self.is_leaving = True
            await self.may_go.wait()
            raise
        yield self._word

    async def aclose(self) -> None:
        """Closed."""
        self.is_closed = True


class Asked:
    """A hedge that asks `rival`."""

    after = 0.0

    def __init__(self, rival: Saying) -> None:
        """Not asked yet."""
        self._rival = rival

    def begin(self) -> AEventSource[str]:
        """Ask."""
        return self._rival

    def settle(self, *, has_won: bool, error: RetryRouterError | None) -> None:
        """Nothing to remember."""


async def turns(count: int = 20) -> None:
    """Let the other tasks come to rest."""
    for _ in range(count):
        await one_turn()


async def first_word(source: AHedgedSource[str]) -> str:
    """What is heard first; both are left behind it, as `_drive` does."""
    try:
        return await anext(aiter(source))
    finally:
        await source.aclose()


async def test_a_cancel_is_kept_while_the_loser_goes() -> None:
    """A task cancelled while the loser of its race is leaving is cancelled."""
    loser, winner = Saying("late"), Saying("first")
    winner.may_speak.set()
    task = asyncio.create_task(
        first_word(AHedgedSource(loser, Asked(winner), says=bool))
    )
    while not loser.is_leaving:
        await one_turn()

    task.cancel()
    loser.may_go.set()

    with pytest.raises(asyncio.CancelledError):
        await task
    await turns()
    assert (loser.is_closed, winner.is_closed) == (True, True)


async def test_who_is_slow_to_go_keeps_nobody() -> None:
    """A loser that will not go keeps no cancelled task from going."""
    loser, winner = Saying("late"), Saying("first")
    winner.may_speak.set()
    task = asyncio.create_task(
        first_word(AHedgedSource(loser, Asked(winner), says=bool))
    )
    while not loser.is_leaving:
        await one_turn()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turns()
    assert (loser.is_closed, winner.is_closed) == (True, True)


async def test_an_error_that_nobody_waited_for_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The loser may fail while it is being left: that is nobody's error any more."""

    class Failing(Saying):
        async def __aiter__(self) -> AsyncIterator[str]:
            try:
                async for word in super().__aiter__():
                    yield word
            except asyncio.CancelledError:
                raise RuntimeError from None

    loser, winner = Failing("late"), Saying("first")
    winner.may_speak.set()
    loser.may_go.set()
    assert await first_word(AHedgedSource(loser, Asked(winner), says=bool)) == "first"
    del loser, winner
    await turns()
    gc.collect()
    assert caplog.records == []
