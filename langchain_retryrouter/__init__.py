"""Language models from LangChain that survive misbehaving providers.

The names below are loaded when first used: importing the package imports neither an SDK
nor LangChain.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from langchain_retryrouter._gptrouter.connection import GPTRouterModel
    from langchain_retryrouter._retry.clock import Clock
    from langchain_retryrouter._router.preflight import RoutingWorstCase
    from langchain_retryrouter._router.route import Route
    from langchain_retryrouter.attempt_log import AttemptLog, AttemptSummary
    from langchain_retryrouter.chat_models.gpt_router import GPTRouter
    from langchain_retryrouter.chat_models.retry_router import RetryRouter
    from langchain_retryrouter.circuit_breaker import (
        BreakerState,
        CircuitBreaker,
        CircuitBreakerSettings,
    )
    from langchain_retryrouter.embeddings.gpt_router import GPTRouterEmbeddings
    from langchain_retryrouter.embeddings.router import (
        EmbeddingsRoute,
        EmbeddingsRouter,
    )
    from langchain_retryrouter.errors import (
        APIConnectionError,
        APITimeoutError,
        AuthenticationError,
        CircuitOpenError,
        ConflictError,
        ContentFilterError,
        ContextLengthError,
        InvalidRequestError,
        LengthLimitError,
        MalformedResponseError,
        NotFoundError,
        PermissionDeniedError,
        QuotaExceededError,
        RateLimitError,
        RejectedAnswerError,
        RetryRouterError,
        ServerError,
        SpendLimitError,
        StreamInterruptedError,
        UnavailableError,
        UnknownError,
        UnsupportedOptionError,
        VectorSpaceError,
        should_retry,
    )
    from langchain_retryrouter.failures import FailureAction, FailureKind
    from langchain_retryrouter.llms.openai import (
        AzureOpenAI,
        BaseOpenAI,
        OpenAI,
        OpenAIChat,
    )
    from langchain_retryrouter.policy import (
        RetryBudget,
        RetryEvent,
        RetryPolicy,
        WorstCase,
    )
    from langchain_retryrouter.rate_limits import RateLimit
    from langchain_retryrouter.spend_limits import SpendLimit

__all__ = [
    "APIConnectionError",
    "APITimeoutError",
    "AttemptLog",
    "AttemptSummary",
    "AuthenticationError",
    "AzureOpenAI",
    "BaseOpenAI",
    "BreakerState",
    "CircuitBreaker",
    "CircuitBreakerSettings",
    "CircuitOpenError",
    "Clock",
    "ConflictError",
    "ContentFilterError",
    "ContextLengthError",
    "EmbeddingsRoute",
    "EmbeddingsRouter",
    "FailureAction",
    "FailureKind",
    "GPTRouter",
    "GPTRouterEmbeddings",
    "GPTRouterModel",
    "InvalidRequestError",
    "LengthLimitError",
    "MalformedResponseError",
    "NotFoundError",
    "OpenAI",
    "OpenAIChat",
    "PermissionDeniedError",
    "QuotaExceededError",
    "RateLimit",
    "RateLimitError",
    "RejectedAnswerError",
    "RetryBudget",
    "RetryEvent",
    "RetryPolicy",
    "RetryRouter",
    "RetryRouterError",
    "Route",
    "RoutingWorstCase",
    "ServerError",
    "SpendLimit",
    "SpendLimitError",
    "StreamInterruptedError",
    "UnavailableError",
    "UnknownError",
    "UnsupportedOptionError",
    "VectorSpaceError",
    "WorstCase",
    "__version__",
    "should_retry",
]

_MODULES = {
    name: module
    for module, names in {
        "_retry.clock": "Clock",
        "_router.preflight": "RoutingWorstCase",
        "attempt_log": "AttemptLog AttemptSummary",
        "chat_models.gpt_router": "GPTRouter GPTRouterModel",
        "chat_models.retry_router": "RetryRouter Route",
        "circuit_breaker": "BreakerState CircuitBreaker CircuitBreakerSettings",
        "embeddings.gpt_router": "GPTRouterEmbeddings",
        "embeddings.router": "EmbeddingsRoute EmbeddingsRouter",
        "failures": "FailureAction FailureKind",
        "llms.openai": "AzureOpenAI BaseOpenAI OpenAI OpenAIChat",
        "spend_limits": "SpendLimit",
        "policy": "RetryBudget RetryEvent RetryPolicy WorstCase",
        "rate_limits": "RateLimit",
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module (PEP 562)."""
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)
