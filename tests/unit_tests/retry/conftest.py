"""The sync and async engine, and a clock that only the test moves."""

from __future__ import annotations

import pytest

from langchain_retryrouter.testing import FakeClock
from tests.unit_tests.conftest import Twin

from .scripted import Engine


@pytest.fixture
def engine(twin: Twin) -> Engine:
    """Run the test twice: with the sync engine, and with the async one."""
    return Engine(is_async=twin.is_async)


@pytest.fixture
def clock() -> FakeClock:
    """A clock at zero."""
    return FakeClock()
