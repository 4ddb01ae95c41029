"""The drive once each way, and a clock that only the test moves."""

from __future__ import annotations

import pytest

from langchain_retryrouter.testing import FakeClock
from tests.unit_tests.conftest import Twin

from .engines import Drive


@pytest.fixture
def drive(twin: Twin) -> Drive:
    """The drive, once each way."""
    return Drive(is_async=twin.is_async)


@pytest.fixture
def clock() -> FakeClock:
    """A clock at zero; no wait is shortened by chance."""
    return FakeClock()
