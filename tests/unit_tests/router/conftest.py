"""Foreign models' HTTP libraries, loaded where a file may be read."""

from __future__ import annotations

import anthropic
import pytest


@pytest.fixture(scope="session", autouse=True)
def loaded() -> None:
    """The first client of a process imports its transport, in a coroutine or not."""
    anthropic.DefaultHttpxClient().close()
