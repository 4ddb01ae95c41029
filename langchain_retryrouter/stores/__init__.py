"""Where breakers, budgets and limits are shared: `MemoryStore` and `RedisStore`.

Give one store to all models that protect the same providers: `RetryRouter(store=...)`,
`GPTRouter(store=...)`, `OpenAI(store=...)`; or to a single `CircuitBreaker`,
`RetryBudget`, `RateLimit` or `SpendLimit`, with a `name`. Decisions stay local: a call
reads what this process knows, and a thread exchanges it with the other processes. The
page `docs/fleet.md` says what is shared.

The package's own classes know a store as the protocol `Store` of the module `_shared`,
which says how to write another kind of shared object.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from langchain_retryrouter._shared import PRESENCE, Record, Store

if TYPE_CHECKING:
    from langchain_retryrouter.stores.memory import MemoryStore
    from langchain_retryrouter.stores.redis import RedisStore

__all__ = ["MemoryStore", "RedisStore", "Scope"]

_MODULES: Final = {"MemoryStore": "memory", "RedisStore": "redis"}

KEPT: Final = 3_600_000
"""Milliseconds that a record is kept after its last change, and after any `_until`."""

logger = logging.getLogger(__name__)


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
    if value is None or isinstance(value, Store):
        return value
    if not isinstance(value, str):
        msg = (
            "store must be a RedisStore or MemoryStore of langchain_retryrouter.stores,"
            " or a URL such as 'redis://localhost:6379/0', not of type"
            f" {type(value).__name__}"
        )
        raise TypeError(msg)
    try:
        store = __getattr__("RedisStore")(value)
    except ValueError as error:
        raise TypeError(str(error)) from None
    store.closes_with_model = True
    return store


def close_made(store: Store | None) -> None:
    """Close a model's store, if the model has made it of a URL."""
    if store is not None and store.closes_with_model:
        store.close()


def call_listener(function: Callable[..., None], *args: Any) -> None:
    """Call what may run a user's `on_state_change`, and log what it raises."""
    try:
        function(*args)
    except Exception:  # Others are still to be notified; it may be another call.
        logger.exception("a listener failed")


@dataclass(frozen=True, slots=True)
class Scope:
    """Something that is shared: a breaker, a budget, a limit.

    Attributes:
        kind: "breaker", "budget", or what else is shared.
        name: The name under which it is shared.
        facts: What it is now. Of a breaker: `state`, `open_for`, `held_for`,
            `paused_for` and `lease_for` in seconds, `by` (the process that opened it),
            `why`, `prober` (the process that has the probe), `votes` (processes). Of
            a limit: what is left of `requests`, `tokens` and `input_tokens` and was
            leased to no process, each with its number `..._per_minute`; the `permits`
            that processes hold, and those that are `waiting`. Of money, whose name ends
            with its period: what all have `taken`, spent or leased. Of others: their
            fields; those that end in `_until` as seconds from now, under a name that
            ends in `_for`.
        processes: The processes that use it.
    """

    kind: str
    name: str
    facts: dict[str, Any]
    processes: tuple[str, ...]


def read_scope(kind: str, name: str, record: Record, now: int) -> Scope:
    """A record as a `Scope`."""
    facts: dict[str, Any] = {}
    # Besides, what single objects have said: it is in the sum.
    listed: dict[str, list[Any]] = {prefix: [] for prefix in "pvcwstu"}
    for field, value in sorted(record.items()):
        prefix, colon, who = field.partition(":")
        if colon and prefix in listed:
            if prefix != "p" or now - value <= PRESENCE:
                listed[prefix].append(value if prefix == "c" else who)
        elif field.endswith("_until"):
            facts[f"{field[:-6]}_for"] = max(0.0, (value - now) / 1000)
        else:
            facts[field] = value
    if kind == "breaker":
        opens, lease = facts.get("open_for"), facts.get("lease_for", 0.0)
        half_open = "half_open" if opens == 0 else "open"
        facts = {
            "state": "closed" if opens is None else half_open,
            "open_for": opens or 0.0,
            "held_for": facts.get("held_for", 0.0),
            "paused_for": facts.get("pause_for", 0.0),
            "lease_for": lease,
            "by": facts.get("by") if opens is not None else None,
            "why": facts.get("why") if opens is not None else None,
            "prober": facts.get("lease_by") if lease else None,
            "votes": listed["v"],
        }
    for hidden in ("at", "base"):
        facts.pop(hidden, None)
    if kind == "limit":
        facts |= {"permits": sum(listed["c"]), "waiting": listed["w"]}
    return Scope(kind, name, facts, tuple(listed["p"]))
