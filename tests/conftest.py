"""Plugins and settings of all tests."""

import pytest
from hypothesis import HealthCheck, settings

from langchain_retryrouter.testing import FaultyGateway

pytest_plugins = ["langchain_retryrouter.testing.fixtures"]

# The same examples in every run, on slow machines too.
settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")


@pytest.fixture
def gateway(faulty_gateway: FaultyGateway) -> FaultyGateway:
    """The gateway behind the models of a test."""
    return faulty_gateway
