"""A gateway for each test of the test kit."""

from __future__ import annotations

import pytest

from langchain_retryrouter.testing import FaultyGateway


@pytest.fixture
def gateway(faulty_gateway: FaultyGateway) -> FaultyGateway:
    """The gateway of the pytest plugin, by a shorter name."""
    return faulty_gateway
