"""Where breakers, budgets and limits are shared: `MemoryStore` and `RedisStore`.

Give one store to all models that protect the same providers: `RetryRouter(store=...)`,
`GPTRouter(store=...)`, `OpenAI(store=...)`; or to a single `CircuitBreaker`,
`RetryBudget` or `RateLimit`, with a `name`. Decisions stay local: a call reads what
this process knows, and a thread exchanges it with the other processes. The page
`docs/fleet.md` says what is shared.

The package's own classes know a store as the protocol `Store` of the module `_shared`,
which says how to write another kind of shared object.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from langchain_retryrouter._shared import Store
    from langchain_retryrouter.stores._scopes import Scope
    from langchain_retryrouter.stores.memory import MemoryStore
    from langchain_retryrouter.stores.redis import RedisStore

__all__ = ["MemoryStore", "RedisStore", "Scope"]

_MODULES: Final = {"MemoryStore": "memory", "RedisStore": "redis", "Scope": "_scopes"}


def __getattr__(name: str) -> Any:
    """Load a store when it is used (PEP 562)."""
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def as_store(value: Any) -> Any:
    """A model's `store`: a store as it is, and a `RedisStore` of a URL.

    Raises:
        TypeError: It is something else. Not a ValueError, which pydantic would show
            together with the URL and its password.
    """
    if isinstance(value, str):
        try:
            store = __getattr__("RedisStore")(value)
        except ValueError as error:
            raise TypeError(str(error)) from None
        store.closes_with_model = True
        return store
    if value is None or (hasattr(value, "submit") and hasattr(value, "watch")):
        return value
    msg = (
        "store must be a RedisStore or MemoryStore of langchain_retryrouter.stores, or"
        f" a URL such as 'redis://localhost:6379/0', not of type {type(value).__name__}"
    )
    raise TypeError(msg)


def close_made(store: Store | None) -> None:
    """Close a model's store, if the model has made it of a URL."""
    if store is not None and store.closes_with_model:
        store.close()
