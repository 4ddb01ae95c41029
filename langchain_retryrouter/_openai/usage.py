"""Token counts of several answers, added up. Pure: plain data in and out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def add_usage(total: dict[str, Any], usage: Mapping[str, Any]) -> dict[str, Any]:
    """`total` and `usage` added up, details such as cached tokens included."""
    added = dict(total)
    for name, count in usage.items():
        if isinstance(count, Mapping):
            added[name] = add_usage(added.get(name) or {}, count)
        elif isinstance(count, int | float) and not isinstance(count, bool):
            added[name] = (added.get(name) or 0) + count
    return added


def update_token_usage(
    keys: set[str], response: dict[str, Any], token_usage: dict[str, Any]
) -> None:
    """Add what `response["usage"]` says about `keys` to `token_usage`, in place."""
    usage = response.get("usage") or {}
    for key in keys.intersection(usage):
        token_usage[key] = token_usage.get(key, 0) + (usage[key] or 0)
