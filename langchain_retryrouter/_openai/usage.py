"""Token counts of several answers, added up. Pure: plain data in and out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_MOST: Final = 2**63 - 1  # What is more is no count, and too much for many a reader.


def counted(usage: Any) -> dict[str, Any]:
    """What an answer says about its tokens; empty where that is no object."""
    return usage if isinstance(usage, dict) else {}


def has_count(usage: Any) -> bool:
    """Whether anything was counted; LiteLLM sends zeros where it has not."""
    return isinstance(usage, Mapping) and any(
        isinstance(count, int | float) and count for count in usage.values()
    )


def add_usage(total: dict[str, Any], usage: Mapping[str, Any]) -> dict[str, Any]:
    """`total` and `usage` added up, details such as cached tokens included.

    What is no number, or none that could be a count, is left out.
    """
    added = dict(total)
    for name, count in usage.items():
        before = added.get(name)
        if isinstance(count, Mapping):
            added[name] = add_usage(before if isinstance(before, dict) else {}, count)
        elif _is_count(count):
            added[name] = (0 if isinstance(before, dict | None) else before) + count
    return added


def _is_count(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value <= _MOST


def update_token_usage(
    keys: set[str], response: dict[str, Any], token_usage: dict[str, Any]
) -> None:
    """Add what `response["usage"]` says about `keys` to `token_usage`, in place."""
    usage = response.get("usage") or {}
    for key in keys.intersection(usage):
        token_usage[key] = token_usage.get(key, 0) + (usage[key] or 0)
