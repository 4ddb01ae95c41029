"""Mutated answers: seeded, so that the number of an input is all that it takes.

What is mutated are answers as they are when all goes well, and errors as providers send
them. Half of the mutations know bytes only; the others know JSON, also within a stream,
and put any value in the place of any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random  # noqa: TID251 - every input has dice of its own, by its seed
from typing import Any, Final, TypeAlias

Mutation: TypeAlias = Callable[[Random, bytes, Sequence[bytes]], bytes]

_HUGE: Final = 10**400
_ODD: Final[tuple[Any, ...]] = (
    None,
    True,
    False,
    0,
    -1,
    7,
    0.5,
    -0.0,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    _HUGE,
    -_HUGE,
    "",
    "x",
    "-1",
    "429",
    "1e400",
    "9" * 5_000,
    "٣",
    "²",
    "\x00",
    "\ud800",
    "a\udfffb",
    "\u2028",
    '{"a": 1}',
    "error",
    "end",
    "stop",
    [],
    {},
    [None],
    [[]],
    ["x"],
    [{}],
    [0, "x"],
    {"a": None},
    {"error": {"code": "9" * 5_000, "message": ["x"]}},
    {"": {"": []}},
)
_KEYS: Final = (
    "choices",
    "code",
    "content",
    "data",
    "delta",
    "embedding",
    "error",
    "event",
    "finish_reason",
    "function_call",
    "index",
    "message",
    "meta",
    "provider_specific_fields",
    "reasoning_content",
    "refusal",
    "text",
    "tool_calls",
    "type",
    "usage",
)
_TOKENS: Final = (
    b"null",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 5_000,
    b'"',
    b"\\",
    b"\\ud800",
    b"\\u0000",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\n",
    b"\r",
    b"\n\n",
    b"\r\n\r\n",
    b"\xef\xbb\xbf",
    b"\xff",
    b"\xed\xa0\x80",
    b"\x00",
    b"data: ",
    b"data:",
    b"event: end\n",
    b"data: [DONE]\n\n",
    b": comment\n",
)
# Deeper than pydantic follows, and deeper than Python follows.
_DEPTHS: Final = (200, 300, 700, 1_500)
_PREFIX: Final = b"data: "


def mutated(seed: int, corpus: Sequence[bytes]) -> tuple[bytes, Random]:
    """Input number `seed`, and dice for all that is done with it."""
    dice = Random(seed)  # noqa: S311 - nothing secret is drawn
    body = dice.choice(corpus)
    for _ in range(dice.choice((0, 1, 1, 1, 2, 3))):
        body = dice.choice(_MUTATIONS)(dice, body, corpus)
    return body, dice


def split(dice: Random, body: bytes) -> list[bytes]:
    """`body` in parts, as a network might cut it."""
    if dice.random() < 0.05:
        return [body[at : at + 1] for at in range(len(body))]
    cuts = sorted(dice.randrange(len(body) + 1) for _ in range(dice.randrange(6)))
    return [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]


# Of bytes.


def _flip(dice: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    flipped = bytearray(body)
    for _bit in range(dice.randrange(1, 4) if flipped else 0):
        flipped[dice.randrange(len(flipped))] ^= 1 << dice.randrange(8)
    return bytes(flipped)


def _truncate(dice: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    return body[: dice.randrange(len(body) + 1)]


def _cut_out(dice: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _stretch(dice, body)
    return body[:start] + body[end:]


def _repeat(dice: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _stretch(dice, body)
    return body[:end] + body[start:end] + body[end:]


def _splice(dice: Random, body: bytes, corpus: Sequence[bytes]) -> bytes:
    other = dice.choice(corpus)
    start, end = _stretch(dice, body)
    other_start, other_end = _stretch(dice, other)
    return body[:start] + other[other_start:other_end] + body[end:]


def _insert_token(dice: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _stretch(dice, body)
    end = start if dice.random() < 0.5 else end
    return body[:start] + dice.choice(_TOKENS) + body[end:]


def _noise(dice: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _stretch(dice, body)
    return body[:start] + dice.randbytes(dice.randrange(20)) + body[end:]


def _stretch(dice: Random, body: bytes) -> tuple[int, int]:
    start = dice.randrange(len(body) + 1)
    return start, min(len(body), start + dice.randrange(40))


# Of JSON.


def _replace(dice: Random, document: Any) -> Any:
    """Any value by any other."""
    holder, key = _place(dice, document)
    if holder is None:
        return _value(dice, document)
    holder[key] = _value(dice, document)
    return document


def _drop(dice: Random, document: Any) -> Any:
    holder, key = _place(dice, document)
    if holder is not None:
        del holder[key]
    return document


def _add(dice: Random, document: Any) -> Any:
    """A field that means something elsewhere, or one more of a list."""
    holder, _ = _place(dice, document)
    if isinstance(holder, dict):
        holder[dice.choice(_KEYS)] = _value(dice, document)
    elif isinstance(holder, list):
        holder.insert(dice.randrange(len(holder) + 1), _value(dice, document))
    return document


def _wrap(dice: Random, document: Any) -> Any:
    holder, key = _place(dice, document)
    if holder is None:
        return [document]
    holder[key] = dice.choice(([holder[key]], {dice.choice(_KEYS): holder[key]}))
    return document


def _value(dice: Random, document: Any) -> Any:
    chance = dice.random()
    if chance < 0.25:
        holder, key = _place(dice, document)
        return document if holder is None else json.loads(json.dumps(holder[key]))
    if chance < 0.27:
        return _deep(dice)
    return dice.choice(_ODD)


def _deep(dice: Random) -> Any:
    nested: Any = []
    as_dict = dice.random() < 0.5
    for _ in range(dice.choice(_DEPTHS[:3])):
        nested = {"a": nested} if as_dict else [nested]
    return nested


def _place(dice: Random, document: Any) -> tuple[Any, Any]:
    """A place in a document, every depth as likely as it can be; None for its root."""
    holder: Any = None
    key: Any = None
    inner = document
    while isinstance(inner, dict | list) and inner:
        if holder is not None and dice.random() < 0.25:
            break
        holder = inner
        key = dice.choice(list(inner)) if isinstance(inner, dict) else None
        key = dice.randrange(len(inner)) if key is None else key
        inner = inner[key]
    return holder, key


_STRUCTURAL: Final = (_replace, _replace, _replace, _drop, _add, _wrap)


def _restructure(dice: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    """Another structure of the body, or of one event of a stream."""
    lines = body.split(b"\n")
    told = [at for at, line in enumerate(lines) if line.startswith(_PREFIX + b"{")]
    if not told:
        return _changed(dice, body)
    at = dice.choice(told)
    lines[at] = _PREFIX + _changed(dice, lines[at].removeprefix(_PREFIX))
    return b"\n".join(lines)


def _changed(dice: Random, text: bytes) -> bytes:
    try:
        document = json.loads(text)
        changed = dice.choice(_STRUCTURAL)(dice, document)
        return json.dumps(changed).encode()
    except (ValueError, RecursionError):
        return text


def _sink(dice: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    """A value far down, deeper than any reader goes."""
    at = body.find(b":", dice.randrange(len(body) + 1)) + 1
    depth = dice.choice(_DEPTHS) if dice.random() < 0.2 else 1
    opened, closed = dice.choice(((b"[", b"]"), (b'{"a":', b"}")))
    return body[:at] + opened * depth + b"0" + closed * depth + b"," + body[at:]


_MUTATIONS: Final[tuple[Mutation, ...]] = (
    _flip,
    _truncate,
    _cut_out,
    _repeat,
    _splice,
    _insert_token,
    _noise,
    _sink,
    *(_restructure,) * 10,
)
