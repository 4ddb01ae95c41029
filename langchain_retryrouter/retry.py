"""The retry core's public names: how often, at whose expense, and when not at all.

`RetryPolicy` is frozen and can be used everywhere. `RetryBudget` and `CircuitBreaker`
remember; hand one object to all the models that are to share what it remembers.
"""

from __future__ import annotations

from langchain_retryrouter._core.breaker import BreakerState, CircuitBreaker
from langchain_retryrouter._core.budget import RetryBudget
from langchain_retryrouter._core.policy import RetryPolicy, WorstCase

__all__ = ["BreakerState", "CircuitBreaker", "RetryBudget", "RetryPolicy", "WorstCase"]
