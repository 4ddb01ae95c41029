"""Foreign coroutines that lose a cancel."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from langchain_retryrouter._retry.timeouts import reraise_lost_cancellation

from .scripted import one_turn


async def deaf(result: str | Exception) -> str:
    """Wait to be cancelled, and go on as if it had not been."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.get_running_loop().create_future()
    if isinstance(result, Exception):
        raise result
    return result


async def heeded(result: str | Exception) -> str:
    """The same, within `reraise_lost_cancellation`."""
    with reraise_lost_cancellation():
        return await deaf(result)


@pytest.mark.parametrize(
    "result", ["an answer", ValueError("an error")], ids=["answer", "error"]
)
async def test_a_cancel_that_was_lost_leaves(result: str | Exception) -> None:
    """Whatever a cancelled coroutine comes to, its task is cancelled."""
    task = asyncio.create_task(heeded(result))
    await one_turn()
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    if isinstance(result, Exception):
        assert caught.value.__cause__ is result


async def test_a_timeout_that_was_lost_is_one() -> None:
    """A limit around it holds too: `asyncio.timeout` cancels the task itself."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await heeded("an answer")


async def test_a_cancel_of_before_is_somebody_elses() -> None:
    """Who was cancelled before, and goes on cleaning up, may still await."""

    async def cleaning_up() -> str:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            with reraise_lost_cancellation():
                await one_turn()
        return "cleaned up"

    task = asyncio.create_task(cleaning_up())
    await one_turn()
    task.cancel()
    assert await task == "cleaned up"


async def test_a_limit_inside_is_the_bodys_own() -> None:
    """A timeout that the body set itself, and dealt with, is no cancel of the task."""
    with reraise_lost_cancellation(), pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.get_running_loop().create_future()


async def test_errors_and_results_pass() -> None:
    """Where nobody cancels, nothing is changed."""
    with reraise_lost_cancellation():
        await one_turn()
    error = KeyError("its own")
    with pytest.raises(KeyError) as caught, reraise_lost_cancellation():
        raise error
    assert caught.value is error
