"""Plugins and settings of all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

pytest_plugins = ["langchain_retryrouter.testing.fixtures"]

# The same examples in every run, on slow machines too.
settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")
