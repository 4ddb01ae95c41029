"""Fixtures for pytest; importing `langchain_retryrouter.testing` does not import them.

Put this into your top `conftest.py`:

    pytest_plugins = ["langchain_retryrouter.testing.fixtures"]
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from langchain_retryrouter.testing.clock import FakeClock
from langchain_retryrouter.testing.server import FaultyGateway


@pytest.fixture
def faulty_gateway() -> Iterator[FaultyGateway]:
    """A running `FaultyGateway`, one for each test."""
    with FaultyGateway() as gateway:
        yield gateway


@pytest.fixture
def fake_clock() -> FakeClock:
    """A `FakeClock` at zero, whose random numbers are all 0.5."""
    return FakeClock()
