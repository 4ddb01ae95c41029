"""Language models from LangChain that survive misbehaving providers.

The names below are loaded when first used: importing the package imports neither an SDK
nor LangChain.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from langchain_retryrouter._version import __version__

if TYPE_CHECKING:
    from langchain_retryrouter._gptrouter.connection import GPTRouterModel
    from langchain_retryrouter._retry.call_state import FailureAction
    from langchain_retryrouter._retry.clock import Clock
    from langchain_retryrouter._router.route import Route
    from langchain_retryrouter.chat_models.gpt_router import GPTRouter
    from langchain_retryrouter.chat_models.retry_router import RetryRouter
    from langchain_retryrouter.embeddings.gpt_router import GPTRouterEmbeddings
    from langchain_retryrouter.errors import (
        APIConnectionError,
        APITimeoutError,
        AuthenticationError,
        CircuitOpenError,
        ConflictError,
        ContentFilterError,
        ContextLengthError,
        InvalidRequestError,
        MalformedResponseError,
        NotFoundError,
        PermissionDeniedError,
        QuotaExceededError,
        RateLimitError,
        RetryRouterError,
        ServerError,
        StreamInterruptedError,
        UnavailableError,
        UnknownError,
        UnsupportedOptionError,
        should_retry,
    )
    from langchain_retryrouter.failures import FailureKind
    from langchain_retryrouter.llms.openai import (
        AzureOpenAI,
        BaseOpenAI,
        OpenAI,
        OpenAIChat,
    )
    from langchain_retryrouter.retry import CircuitBreaker, RetryBudget, RetryPolicy

__all__ = [
    "APIConnectionError",
    "APITimeoutError",
    "AuthenticationError",
    "AzureOpenAI",
    "BaseOpenAI",
    "CircuitBreaker",
    "CircuitOpenError",
    "Clock",
    "ConflictError",
    "ContentFilterError",
    "ContextLengthError",
    "FailureAction",
    "FailureKind",
    "GPTRouter",
    "GPTRouterEmbeddings",
    "GPTRouterModel",
    "InvalidRequestError",
    "MalformedResponseError",
    "NotFoundError",
    "OpenAI",
    "OpenAIChat",
    "PermissionDeniedError",
    "QuotaExceededError",
    "RateLimitError",
    "RetryBudget",
    "RetryPolicy",
    "RetryRouter",
    "RetryRouterError",
    "Route",
    "ServerError",
    "StreamInterruptedError",
    "UnavailableError",
    "UnknownError",
    "UnsupportedOptionError",
    "__version__",
    "should_retry",
]

_MODULES = {
    "Clock": "_retry.clock",
    "FailureAction": "_retry.call_state",
    "FailureKind": "failures",
    "GPTRouter": "chat_models.gpt_router",
    "GPTRouterEmbeddings": "embeddings.gpt_router",
    "GPTRouterModel": "chat_models.gpt_router",
    "RetryRouter": "chat_models.retry_router",
    "Route": "chat_models.retry_router",
    "AzureOpenAI": "llms.openai",
    "BaseOpenAI": "llms.openai",
    "OpenAI": "llms.openai",
    "OpenAIChat": "llms.openai",
    "CircuitBreaker": "retry",
    "RetryBudget": "retry",
    "RetryPolicy": "retry",
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
