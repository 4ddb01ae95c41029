"""Fixtures of the package itself, for all tests; they are public, so ours use them too."""

from __future__ import annotations

pytest_plugins = ["langchain_retryrouter.testing.fixtures"]
