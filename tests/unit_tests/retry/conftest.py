"""The sync and async engine, and a clock that only the test moves."""

from __future__ import annotations

import pytest

from langchain_retryrouter.testing import FakeClock
from tests.unit_tests.conftest import Twin

from .engines import Drive


@pytest.fixture
def drive(twin: Twin) -> Drive:
    """The sync engine, then the async one."""
    return Drive(is_async=twin.is_async)


@pytest.fixture
def clock() -> FakeClock:
    """A clock at zero."""
    return FakeClock()
