"""The HTTP library of the SDK, loaded where a file may be read."""

from __future__ import annotations

import openai
import pytest


@pytest.fixture(scope="session", autouse=True)
def whole_http_library() -> None:
    """The first client of a process imports a part of it, in a coroutine or not."""
    openai.DefaultHttpxClient().close()
