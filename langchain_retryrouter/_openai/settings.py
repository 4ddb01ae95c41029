"""What an SDK client is made of, and what a request's time limits come to.

Pure: nothing here opens a connection. `ClientSettings` are compared by value, so that
models with equal settings can share one client, and are all that a pickle needs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import openai

_PARTS: Final = ("connect", "read", "write", "pool")
_SECRET_NAME: Final = re.compile("auth|key|token|secret|cookie|password", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class ClientSettings:
    """How to make an SDK client.

    Attributes:
        sdk_class: `OpenAI` or `AzureOpenAI`; the async client is its sister.
        options: The keyword arguments of that class.
        proxy: The address of a proxy that all requests take.
        http_client: An HTTP client of the user's own: never closed.
    """

    sdk_class: str
    options: Mapping[str, Any] = field(repr=False)
    proxy: str | None = field(default=None, repr=False)
    http_client: Any = field(default=None, repr=False)

    @property
    def identity(self) -> Hashable:
        """Equal for settings that make equal clients."""
        return _frozen((self.sdk_class, self.options, self.proxy, self.http_client))

    def __eq__(self, other: object) -> bool:
        """Whether both make equal clients."""
        if not isinstance(other, ClientSettings):
            return NotImplemented
        return self.identity == other.identity

    def __hash__(self) -> int:
        """Equal for equal settings."""
        return hash(self.identity)


def _frozen(value: Any) -> Hashable:
    if isinstance(value, Mapping):
        items = [(str(name), _frozen(item)) for name, item in value.items()]
        return tuple(sorted(items, key=lambda item: item[0]))
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    if hasattr(value, "as_dict"):  # The HTTP libraries' Timeout, which has no hash.
        return _frozen(value.as_dict())
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value  # type: ignore[no-any-return]


def check_timeout(value: Any) -> Any:
    """`value`, if it is a time limit that can be kept.

    Raises:
        ValueError: If it is neither seconds, nor a pair of them, nor a `Timeout`.
    """
    if value is None or _is_seconds(value) or hasattr(value, "as_dict"):
        return value
    is_pair = isinstance(value, list | tuple) and len(value) == len(("connect", "read"))
    if is_pair and all(_is_seconds(part) for part in value):
        return tuple(value)
    msg = (
        "request_timeout must be seconds above 0, or a pair of them for connecting and"
        f" for reading, or None for the SDK's own, not {value!r}"
    )
    raise ValueError(msg)


def _is_seconds(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def sdk_timeout(value: Any) -> Any:
    """A time limit as the SDK takes it; a pair is for connecting and for reading."""
    if isinstance(value, list | tuple):
        connect, read = value
        return openai.Timeout(read, connect=connect)
    return value


def part_of(value: Any, name: str) -> float | None:
    """The part `connect`, `read`, `write` or `pool` of a limit as the SDK takes it."""
    part = value.as_dict().get(name) if hasattr(value, "as_dict") else value
    return part if part is None else float(part)


def limited(value: Any, limit: float) -> openai.Timeout:
    """A time limit with no part longer than `limit` seconds.

    Args:
        value: What the request has without it, as the SDK takes it.
        limit: Seconds.
    """
    own = {name: part_of(value, name) for name in _PARTS}
    return openai.Timeout(
        **{
            name: limit if part is None else min(limit, part)
            for name, part in own.items()
        }
    )


def without_secrets(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that, by their names, may be shown."""
    return {
        name: value for name, value in headers.items() if not _SECRET_NAME.search(name)
    }


def without_password(address: str) -> str:
    """An address without the name and the password that it may have."""
    return re.sub(r"(?<=//)[^/@]*@", "", address)
