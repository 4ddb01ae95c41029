"""JSON of servers that cannot be trusted: read, or refused with a `ValueError`.

Python's reader raises RecursionError for what is nested too deeply, and what is nearly
as deep raises it later, when it is printed, copied or written. So depth is limited.
"""

from __future__ import annotations

import json
from typing import Any, Final

from pydantic_core import from_json

_COMPACT: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":")
)
MAX_DEPTH: Final = 100
"""How deep an answer may be nested; those of providers have a dozen levels."""


def write(document: Any) -> bytes:
    """`document` without spaces, in UTF-8.

    Raises:
        TypeError: If something in it is not JSON.
        ValueError: For `nan`, half of a surrogate pair, or a document in itself.
        RecursionError: If it is too deep for Python.
    """
    return _COMPACT.encode(document).encode()


def read(text: bytes | str) -> Any:
    """The document in `text`.

    Raises:
        ValueError: If it is not JSON, or nested deeper than `MAX_DEPTH`.
    """
    too_deep = f"it is nested more than {MAX_DEPTH} levels deep"
    try:
        document = json.loads(text)
    except RecursionError as error:
        raise ValueError(too_deep) from error
    if is_deep(document):
        raise ValueError(too_deep)
    return document


def read_quickly(text: bytes) -> Any:
    """What `read` gives, in less time.

    Raises:
        ValueError: As `read`.
    """
    try:
        document = from_json(text)
    except ValueError:
        # Slower, accepts halves of surrogate pairs, and says what it does not like.
        return read(text)
    # Brackets are counted in no time: most answers have too few to be deep.
    if text.count(b"{") + text.count(b"[") > MAX_DEPTH and is_deep(document):
        return read(text)
    return document


def is_deep(document: Any) -> bool:
    """Whether a document is nested deeper than `MAX_DEPTH`."""
    level = [document] if isinstance(document, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def cut(document: Any) -> Any:
    """A document that others have read, with "…" for what is nested too deeply."""

    def shorten(inner: Any, depth: int) -> Any:
        if not isinstance(inner, dict | list):
            return inner
        if not depth:
            return "…"
        if isinstance(inner, list):
            return [shorten(one, depth - 1) for one in inner]
        return {name: shorten(one, depth - 1) for name, one in inner.items()}

    return shorten(document, MAX_DEPTH) if is_deep(document) else document
