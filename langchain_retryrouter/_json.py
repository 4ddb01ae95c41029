"""JSON that anybody may have sent: read, or refused with a `ValueError`; and our own.

Python's reader gives way in two more manners. It takes lists within lists as far as the
stack goes, and what is deeper than that is a `RecursionError`; what is nearly as deep
is one later, for whoever prints, copies or writes the answer. And an integer of more
than 4,300 digits is a `ValueError` of no class of its own. This file does not know what
is in a document.
"""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any, Final

from pydantic_core import from_json

_COMPACT: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":")
)
MAX_DEPTH: Final = 100
"""How deep an answer may be nested; those of providers have a dozen levels."""

_TOO_DEEP: Final = f"it is nested more than {MAX_DEPTH} levels deep"
_LEFT_OUT: Final = "…"


def write(document: Any) -> bytes:
    """`document` without spaces, in UTF-8.

    Raises:
        TypeError: If something in it is nothing that JSON has.
        ValueError: For a number that JSON has not, such as `nan`, half of a character,
            or a document that holds itself.
        RecursionError: If it is too deep for Python.
    """
    return _COMPACT.encode(document).encode()


def read(text: bytes | str) -> Any:
    """The document in `text`.

    Raises:
        ValueError: If it is no JSON, or too deep.
    """
    try:
        return _checked(text, json.loads(text))
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error


def read_quickly(text: bytes) -> Any:
    """What `read` gives, in less time.

    Raises:
        ValueError: As `read`.
    """
    try:
        document = from_json(text)
    except ValueError:
        # Slower, laxer with halves of surrogate pairs, and says what it does not like.
        return read(text)
    return _checked(text, document)


def _checked(text: bytes | str, document: Any) -> Any:
    # Brackets are counted in no time: most answers have fewer than would do.
    if isinstance(text, str):
        opened = text.count("{") + text.count("[")
    else:
        opened = text.count(b"{") + text.count(b"[")
    if opened > MAX_DEPTH and is_deep(document):
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
    """A document that somebody else has read, without what is too deep in it."""
    return _cut(document, MAX_DEPTH) if is_deep(document) else document


def _cut(document: Any, depth: int) -> Any:
    if not isinstance(document, dict | list):
        return document
    if not depth:
        return _LEFT_OUT
    if isinstance(document, list):
        return [_cut(inner, depth - 1) for inner in document]
    return {name: _cut(inner, depth - 1) for name, inner in document.items()}


def is_unreadable(error: BaseException) -> bool:
    """Whether `error` came out of Python's reader, whoever called it."""
    if not isinstance(error, ValueError | RecursionError):
        return False
    last: TracebackType | None = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    home = None if last is None else last.tb_frame.f_globals.get("__name__")
    return home == json.decoder.__name__
