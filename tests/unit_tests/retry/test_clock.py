"""The machine's own clock and random numbers, as the core is told of them."""

from __future__ import annotations

import random  # noqa: TID251 - what a program seeds, and we do not throw
import time

from langchain_retryrouter._retry.clock import SystemTime, new_rng


def test_monotonic_is_the_machines_monotonic_clock() -> None:
    """Waits and deadlines are reckoned on a clock that nobody can set back."""
    before = time.monotonic()
    told = SystemTime().monotonic()
    assert before <= told <= time.monotonic()


def test_time_is_unix_time() -> None:
    """HTTP dates are read against the seconds since 1970."""
    before = time.time()  # noqa: TID251 - what `time` is compared with
    told = SystemTime().time()
    assert before <= told <= time.time()  # noqa: TID251 - as above


def test_random_numbers_differ() -> None:
    """The system gives different numbers in `[0, 1)`, as jitter needs them."""
    numbers = [SystemTime().random() for _ in range(1_000)]
    assert all(0 <= number < 1 for number in numbers)
    assert len(set(numbers)) > 990


def test_a_programs_seed_does_not_matter() -> None:
    """Programs that call `random.seed(42)` get different jitter all the same."""
    for rng in (SystemTime.random, new_rng()):
        runs = []
        for _ in range(2):
            random.seed(42)
            runs.append([rng() for _ in range(5)])
        assert runs[0] != runs[1]


def test_a_seed_makes_numbers_repeatable() -> None:
    """A seed makes a run repeatable; without one, no two are alike."""
    runs = [
        [throw() for throw in [new_rng(seed)] * 5] for seed in (7, 7, 8, None, None)
    ]
    assert runs[0] == runs[1]
    assert len({tuple(run) for run in runs}) == 4
    assert all(0 <= number < 1 for run in runs for number in run)
