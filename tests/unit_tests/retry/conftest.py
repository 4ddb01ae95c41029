"""The sync and the async engine."""

import pytest

from langchain_retryrouter.testing import FakeClock
from tests.unit_tests.conftest import Twin

from .scripted import Engine


@pytest.fixture
def engine(twin: Twin, clock: FakeClock) -> Engine:
    return Engine(twin.is_async, clock)
