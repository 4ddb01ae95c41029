"""JSON of servers that cannot be trusted: read, or refused with a `ValueError`.

Python's reader raises RecursionError for what is nested too deeply, and what is nearly
as deep raises it later, when it is printed, copied or written. So depth is limited.
`excerpt` quotes what cannot be read.
"""

from __future__ import annotations

import json
from typing import Any, Final

from pydantic_core import from_json

MAX_DEPTH: Final = 100
"""How deep an answer may be nested; those of providers have a dozen levels."""

_EXCERPT: Final = 200  # Characters.
_TOO_DEEP: Final = f"it is nested more than {MAX_DEPTH} levels deep"


def read(text: bytes | str) -> Any:
    """The document in `text`; a ValueError if it is not JSON, or nested too deeply."""
    if isinstance(text, str):
        text = text.encode("utf-8", "surrogatepass")
    try:
        document = from_json(text)
    except ValueError:
        try:  # Slower; it takes halves of surrogate pairs, and says what is wrong.
            document = json.loads(text)
        except RecursionError as error:
            raise ValueError(_TOO_DEEP) from error
    # Brackets are counted in no time: most answers have too few to be deep.
    if text.count(b"{") + text.count(b"[") > MAX_DEPTH and is_deep(document):
        raise ValueError(_TOO_DEEP)
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


def excerpt(text: bytes | str) -> str:
    """How a text begins, in one line, to be quoted."""
    start = text[: 4 * _EXCERPT]
    if isinstance(start, bytes):
        start = start.decode("utf-8", "replace")
    words = " ".join(start.split())
    is_whole = len(words) <= _EXCERPT and len(text) <= 4 * _EXCERPT
    return words if is_whole else f"{words[:_EXCERPT]}…"
