"""Fixtures of the package itself; they are public, so our tests use them too."""

from __future__ import annotations

pytest_plugins = ["langchain_retryrouter.testing.fixtures"]
