"""The clock that only the test moves."""

import asyncio
import copy
import threading
from collections.abc import Callable

import pytest

from langchain_retryrouter.testing import FakeClock


def _asleep(clock: FakeClock, seconds: float) -> None:
    asyncio.run(clock.asleep(seconds))


@pytest.mark.parametrize("wait", [FakeClock.sleep, _asleep])
def test_waiting(wait: Callable[..., None]) -> None:
    """A wait takes no time, moves the time by its length, and is recorded.

    `advance` moves the time only. The recorded waits cannot be changed.
    """
    clock = FakeClock(monotonic=5, unix_time=1_000)
    for seconds in (4.0, 0.0, 0.5):
        wait(clock, seconds)
    clock.advance(10)
    clock.sleeps.append(1.0)
    assert (clock.monotonic(), clock.time()) == (19.5, 1_014.5)
    assert clock.sleeps == [4.0, 0.0, 0.5]


@pytest.mark.parametrize("wait", [FakeClock.sleep, _asleep, FakeClock.advance])
@pytest.mark.parametrize("seconds", [-1e-9, float("nan"), float("inf")])
def test_time_does_not_go_back(
    fake_clock: FakeClock, seconds: float, wait: Callable[..., None]
) -> None:
    """Negative, infinite and undefined seconds are refused, and nothing moves."""
    with pytest.raises(ValueError, match=str(seconds)):
        wait(fake_clock, seconds)
    assert (fake_clock.monotonic(), fake_clock.sleeps) == (0, [])


async def test_an_async_wait_lets_others_run_once(fake_clock: FakeClock) -> None:
    """`asleep` gives the event loop one turn, as a real wait would at least."""
    turns: list[str] = []
    asyncio.get_running_loop().call_soon(turns.append, "other")
    await fake_clock.asleep(1)
    assert turns == ["other"]


def test_random_is_constant_or_a_series() -> None:
    """`random` is one number for ever, or numbers in the order they were given."""
    assert [FakeClock(random=0.25).random() for _ in range(3)] == [0.25] * 3
    clock = FakeClock(random=(0.0, 0.9, 1.0))
    assert [clock.random(), clock.random()] == [0.0, 0.9]
    for problem in (r"in \[0, 1\), not 1.0", "used up"):
        with pytest.raises(ValueError, match=problem):
            clock.random()


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *[("random", -0.1), ("random", 1.0), ("random", float("nan"))],
        *[("monotonic", float("nan")), ("unix_time", float("nan"))],
    ],
)
def test_impossible_numbers_are_refused(name: str, number: float) -> None:
    """A time must be finite, and a random number from 0 up to 1."""
    with pytest.raises(ValueError, match=str(number)):
        FakeClock(**{name: number})


def test_threads_and_copies_share_it(fake_clock: FakeClock) -> None:
    """No wait is lost when threads wait at once, or when copies of a model wait."""

    def wait() -> None:
        for _ in range(1_000):
            fake_clock.sleep(1)

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    copy.copy(fake_clock).sleep(1)
    copy.deepcopy(fake_clock).sleep(1)
    assert fake_clock.monotonic() == len(fake_clock.sleeps) == 4_002
