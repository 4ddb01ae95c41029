"""What the tests of rate limits share."""

from __future__ import annotations

import openai
import pytest


@pytest.fixture(scope="session", autouse=True)
def whole_http_library() -> None:
    """It imports a part of itself when first used, which an event loop has to wait for.

    Once in a process: whichever test comes first would be the one that blocks.
    """
    openai.DefaultHttpxClient().close()
