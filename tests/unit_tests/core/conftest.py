"""What tests of thread safety share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture
def restless_threads() -> Iterator[None]:
    """Threads take turns as often as they can, so that a gap in a lock is found."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)
