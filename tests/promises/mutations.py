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
    rng = Random(seed)  # noqa: S311 - nothing secret is drawn
    body = rng.choice(corpus)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        body = rng.choice(_MUTATIONS)(rng, body, corpus)
    return body, rng


def split(rng: Random, body: bytes) -> list[bytes]:
    """`body` in parts, as a network might cut it."""
    if rng.random() < 0.05:
        return [body[at : at + 1] for at in range(len(body))]
    cuts = sorted(rng.randrange(len(body) + 1) for _ in range(rng.randrange(6)))
    return [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]


# Of bytes.


def _flip(rng: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    flipped = bytearray(body)
    for _bit in range(rng.randrange(1, 4) if flipped else 0):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def _truncate(rng: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    return body[: rng.randrange(len(body) + 1)]


def _cut_out(rng: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _stretch(rng, body)
    return body[:start] + body[end:]


def _repeat(rng: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _stretch(rng, body)
    return body[:end] + body[start:end] + body[end:]


def _splice(rng: Random, body: bytes, corpus: Sequence[bytes]) -> bytes:
    other = rng.choice(corpus)
    start, end = _stretch(rng, body)
    other_start, other_end = _stretch(rng, other)
    return body[:start] + other[other_start:other_end] + body[end:]


def _insert_token(rng: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _stretch(rng, body)
    end = start if rng.random() < 0.5 else end
    return body[:start] + rng.choice(_TOKENS) + body[end:]


def _noise(rng: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _stretch(rng, body)
    return body[:start] + rng.randbytes(rng.randrange(20)) + body[end:]


def _stretch(rng: Random, body: bytes) -> tuple[int, int]:
    start = rng.randrange(len(body) + 1)
    return start, min(len(body), start + rng.randrange(40))


# Of JSON.


def _replace(rng: Random, document: Any) -> Any:
    """Any value by any other."""
    holder, key = _place(rng, document)
    if holder is None:
        return _value(rng, document)
    holder[key] = _value(rng, document)
    return document


def _drop(rng: Random, document: Any) -> Any:
    holder, key = _place(rng, document)
    if holder is not None:
        del holder[key]
    return document


def _add(rng: Random, document: Any) -> Any:
    """A field that means something elsewhere, or one more of a list."""
    holder, _ = _place(rng, document)
    if isinstance(holder, dict):
        holder[rng.choice(_KEYS)] = _value(rng, document)
    elif isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), _value(rng, document))
    return document


def _wrap(rng: Random, document: Any) -> Any:
    holder, key = _place(rng, document)
    if holder is None:
        return [document]
    holder[key] = rng.choice(([holder[key]], {rng.choice(_KEYS): holder[key]}))
    return document


def _value(rng: Random, document: Any) -> Any:
    random = rng.random()
    if random < 0.25:
        holder, key = _place(rng, document)
        return document if holder is None else json.loads(json.dumps(holder[key]))
    if random < 0.27:
        return _deep(rng)
    return rng.choice(_ODD)


def _deep(rng: Random) -> Any:
    nested: Any = []
    as_dict = rng.random() < 0.5
    for _ in range(rng.choice(_DEPTHS[:3])):
        nested = {"a": nested} if as_dict else [nested]
    return nested


def _place(rng: Random, document: Any) -> tuple[Any, Any]:
    """A place in a document, every depth as likely as it can be; None for its root."""
    holder: Any = None
    key: Any = None
    inner = document
    while isinstance(inner, dict | list) and inner:
        if holder is not None and rng.random() < 0.25:
            break
        holder = inner
        key = rng.choice(list(inner)) if isinstance(inner, dict) else None
        key = rng.randrange(len(inner)) if key is None else key
        inner = inner[key]
    return holder, key


_STRUCTURAL: Final = (_replace, _replace, _replace, _drop, _add, _wrap)


def _restructure(rng: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    """Another structure of the body, or of one event of a stream."""
    lines = body.split(b"\n")
    told = [at for at, line in enumerate(lines) if line.startswith(_PREFIX + b"{")]
    if not told:
        return _changed(rng, body)
    at = rng.choice(told)
    lines[at] = _PREFIX + _changed(rng, lines[at].removeprefix(_PREFIX))
    return b"\n".join(lines)


def _changed(rng: Random, text: bytes) -> bytes:
    try:
        document = json.loads(text)
        changed = rng.choice(_STRUCTURAL)(rng, document)
        return json.dumps(changed).encode()
    except (ValueError, RecursionError):
        return text


def _sink(rng: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    """A value far down, deeper than any reader goes."""
    at = body.find(b":", rng.randrange(len(body) + 1)) + 1
    depth = rng.choice(_DEPTHS) if rng.random() < 0.2 else 1
    opened, closed = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
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
