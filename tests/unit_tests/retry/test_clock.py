"""The system's clock and random numbers."""

from __future__ import annotations

import random  # noqa: TID251 - a program may seed it, the package does not use it
import time

from langchain_retryrouter._retry.clock import SystemTime, new_rng


def test_the_system_clock_has_the_systems_time() -> None:
    """Waits are measured on the monotonic clock, HTTP dates against Unix time."""
    clock = SystemTime()
    before, unix_before = time.monotonic(), time.time()  # noqa: TID251 - to compare
    assert before <= clock.monotonic() <= time.monotonic()
    assert unix_before <= clock.time() <= time.time()  # noqa: TID251 - to compare


def test_random_numbers_differ() -> None:
    """Jitter needs different numbers in `[0, 1)`."""
    numbers = [SystemTime().random() for _ in range(1_000)]
    assert all(0 <= number < 1 for number in numbers)
    assert len(set(numbers)) > 990


def test_a_seed_of_the_program_does_not_matter() -> None:
    """Programs that call `random.seed(42)` get different jitter all the same."""
    for rng in (SystemTime.random, new_rng()):
        runs = []
        for _ in range(2):
            random.seed(42)
            runs.append([rng() for _ in range(5)])
        assert runs[0] != runs[1]


def test_a_seed_makes_numbers_repeatable() -> None:
    """Two generators are alike if, and only if, they have the same seed."""
    seven, same, eight, none, other = (
        tuple(rng() for _ in range(5)) for rng in map(new_rng, (7, 7, 8, None, None))
    )
    assert seven == same
    assert len({seven, eight, none, other}) == 4
    assert all(0 <= number < 1 for number in (*seven, *eight, *none))
