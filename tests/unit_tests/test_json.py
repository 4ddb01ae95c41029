"""JSON that a server sends: read, or refused with a `ValueError`, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from langchain_retryrouter import _json

DEEPEST = _json.MAX_DEPTH


def nested(levels: int, opened: str = "[", closed: str = "]") -> bytes:
    return f"{opened * levels}{closed * levels}".encode()


@pytest.mark.parametrize("read", [_json.read, _json.read_quickly])
@pytest.mark.parametrize(
    "text",
    [
        b'{"a": [1, 2.5, null, true, "\xc3\xa4"]}',
        b'"' + b"[" * 1_000 + b'"',
        b"[" + b"[]," * 1_000 + b"[]]",
        nested(DEEPEST),
        b'{"half of a character": "\\ud800"}',
    ],
    ids=["plain", "brackets in a text", "wide", "as deep as may be", "half"],
)
def test_what_json_says_is_read(read: Any, text: bytes) -> None:
    """Every document that is not too deep is what Python's own reader makes of it."""
    assert read(text) == json.loads(text)


@pytest.mark.parametrize("read", [_json.read, _json.read_quickly])
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"<html>",
        b"\xff",
        nested(DEEPEST + 1),
        nested(100_000),
        b'{"a":' * 100_000,
        b"9" * 5_000,
    ],
    ids=["empty", "page", "no text", "too deep", "abyss", "objects", "digits"],
)
def test_what_cannot_be_read_is_a_value_error(read: Any, text: bytes) -> None:
    """No document makes a reader raise anything but a `ValueError`."""
    with pytest.raises(ValueError, match=r".+"):
        read(text)


def test_what_others_have_read_is_cut_to_the_same_depth() -> None:
    """What is too deep is left out, the rest stays, and nothing is changed in place."""
    document = {"kept": 1, "deep": json.loads(nested(900))}
    short = _json.cut(document)

    assert short["kept"] == 1
    assert not _json.is_deep(short["deep"])
    assert "…" in str(short)
    assert _json.is_deep(document)
    assert _json.cut(shallow := {"a": [1]}) is shallow


def test_what_we_write_is_compact_and_is_json() -> None:
    """Documents are written in UTF-8, without spaces, and without `nan`."""
    written = _json.write({"a": [1, "é"], "b": None})
    assert written == '{"a":[1,"é"],"b":null}'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        _json.write({"a": float("nan")})
