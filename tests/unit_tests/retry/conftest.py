"""The sync and the async engine."""

from __future__ import annotations

import pytest

from tests.unit_tests.conftest import Twin

from .scripted import Engine


@pytest.fixture
def engine(twin: Twin) -> Engine:
    return Engine(is_async=twin.is_async)
