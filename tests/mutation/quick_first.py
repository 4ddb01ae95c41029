"""A plugin for the run of a mutant: it makes one cheap, and decides nothing."""

from __future__ import annotations

import functools
import gc
import json
from pathlib import Path

import pytest

# Written by mutmut before the first mutant, and found where it runs the tests.
_STATS = Path("mutmut-stats.json")


@functools.cache
def _seconds() -> dict[str, float]:
    seconds: dict[str, float] = json.loads(_STATS.read_text())["duration_by_test"]
    return seconds


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first: a mutant is done with at the first test that fails."""
    if _STATS.exists():
        items.sort(key=lambda item: _seconds().get(item.nodeid, 0.0))


def pytest_sessionfinish() -> None:
    """What was imported for all mutants is not searched for garbage in each."""
    gc.freeze()
