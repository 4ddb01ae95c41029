"""What all tests share."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

pytest_plugins = ["langchain_retryrouter.testing.fixtures"]

# A busy machine is no finding, and neither is the luck of one run: what may vary from
# run to run belongs to a search that somebody watches.
settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")
