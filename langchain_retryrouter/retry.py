"""Public names of the retry core, kept for imports of version 0.1.

They live in `policy` and `circuit_breaker`.
"""

from __future__ import annotations

from langchain_retryrouter.circuit_breaker import BreakerState, CircuitBreaker
from langchain_retryrouter.policy import RetryBudget, RetryPolicy, WorstCase

__all__ = ["BreakerState", "CircuitBreaker", "RetryBudget", "RetryPolicy", "WorstCase"]
