"""How the scenarios are played here: shortened, and with nothing cold."""

from __future__ import annotations

import asyncio
from typing import get_args

import pytest

from benchmarks.failover.play import play
from benchmarks.failover.scenarios import SCENARIOS
from benchmarks.failover.systems import Way, retry_router

SCALE = 0.2
"""What the bench's seconds are multiplied by: its 10 s for a first token are 2 s."""


@pytest.fixture(scope="session", autouse=True)
def _warmed_up() -> None:
    """What is imported, compiled or connected first costs no scenario its time."""
    for way in get_args(Way):
        asyncio.run(play(SCENARIOS["S03"], retry_router(way), scale=1.0))
