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

from langchain_retryrouter.stores._scopes import Scope
from langchain_retryrouter.stores.memory import MemoryStore
from langchain_retryrouter.stores.redis import RedisStore

__all__ = ["MemoryStore", "RedisStore", "Scope"]
