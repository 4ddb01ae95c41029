"""The retry core's public names: how often, at whose expense, and when not at all.

`RetryPolicy` is frozen and can be used everywhere. `RetryBudget` and `CircuitBreaker`
remember; hand one object to all the models that are to share what it remembers.
"""

from __future__ import annotations

from langchain_retryrouter.circuit_breaker import BreakerState, CircuitBreaker
from langchain_retryrouter.policy import RetryBudget, RetryPolicy, WorstCase

__all__ = ["BreakerState", "CircuitBreaker", "RetryBudget", "RetryPolicy", "WorstCase"]
