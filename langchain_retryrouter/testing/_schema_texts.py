"""Texts and numbers within the bounds of a JSON schema.

Pure. `nth` asks for another value than before, for arrays whose items must differ.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from uuid import UUID

from ._prompt_words import Number
from ._schema_joins import Schema

# The formats of JSON Schema that validators look at; any other says nothing to us.
_FORMATS: dict[str, Callable[[int], str]] = {
    "date": lambda nth: f"{2026 + nth}-01-31",
    "date-time": lambda nth: f"{2026 + nth}-01-31T12:00:00Z",
    "time": lambda nth: f"{nth % 24:02}:{nth // 24 % 60:02}:00Z",
    "duration": lambda nth: f"P{nth + 1}D",
    "email": lambda nth: f"user{nth}@example.com",
    "hostname": lambda nth: f"host{nth}.example.com",
    "ipv4": lambda nth: f"192.0.2.{nth % 256}",
    "ipv6": lambda nth: f"2001:db8::{nth % 65536:x}",
    "uri": lambda nth: f"https://example.com/{nth}",
    "uuid": lambda nth: str(UUID(int=nth, version=4)),
}


def text_fits(text: object, schema: Schema) -> bool:
    """Whether `text` is a text of this schema; a format fits only our own samples."""
    if not isinstance(text, str) or schema.get("format") in _FORMATS:
        return False
    if not schema.get("minLength", 0) <= len(text) <= schema.get("maxLength", math.inf):
        return False
    return "pattern" not in schema or bool(re.search(schema["pattern"], text))


def sample_of_format(schema: Schema, nth: int) -> str | None:
    """A text of the schema's format; None when it has none that is checked."""
    sample = _FORMATS.get(schema.get("format", ""))
    return sample(nth) if sample else None


def text_of_length(text: str, schema: Schema, nth: int) -> str:
    """`text`, repeated or cut until its length fits; numbered when `nth` is not 0."""
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    text = text or "text"
    ending = f" {nth + 1}" if nth else ""
    if most is not None and len(ending) > most:
        ending = chr(ord("a") + nth % 26)[:most]
    text *= max(1, math.ceil((least - len(ending)) / len(text)))
    room = None if most is None else most - len(ending)
    return text[:room] + ending


def number_fits(value: object, schema: Schema, *, whole: bool) -> bool:
    """Whether `value` is a number of this schema, an integer if `whole`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if whole and not isinstance(value, int):
        return False
    multiple = schema.get("multipleOf")
    return (
        value >= schema.get("minimum", -math.inf)
        and value <= schema.get("maximum", math.inf)
        and value > schema.get("exclusiveMinimum", -math.inf)
        and value < schema.get("exclusiveMaximum", math.inf)
        and (multiple is None or Fraction(str(value)) % Fraction(str(multiple)) == 0)
    )


def number_in_bounds(schema: Schema, nth: int, *, whole: bool) -> Number | None:
    """A number of this schema; None when there is none."""
    candidates = (
        _multiples(schema, nth, whole=whole)
        if whole or "multipleOf" in schema
        else _points(schema, nth)
    )
    for candidate in candidates:
        if number_fits(candidate, schema, whole=whole):
            return candidate
    return None


def _multiples(schema: Schema, nth: int, *, whole: bool) -> Iterator[Number]:
    step = Fraction(str(schema.get("multipleOf", 1)))
    if whole:
        step = Fraction(step.numerator)
    low, high = _least(schema), _greatest(schema)
    if low is not None:
        first = math.ceil(Fraction(low) / step)
        steps = [first + nth, first + nth + 1]
    elif high is not None:
        last = math.floor(Fraction(high) / step)
        steps = [1 + nth, last - nth, last - nth - 1]
    else:
        steps = [1 + nth]
    for count in steps:
        value = step * count
        yield int(value) if value.denominator == 1 else float(value)


def _points(schema: Schema, nth: int) -> Iterator[Number]:
    low, high = _least(schema), _greatest(schema)
    if low is not None and high is not None:
        yield low + (high - low) / (nth + 2)
        yield low / 2 + high / 2  # where the difference is more than a float can hold
        yield low
        yield math.nextafter(low, math.inf)
    elif low is not None:
        yield low + 1 + nth
        yield math.nextafter(low, math.inf)
    elif high is not None:
        yield high - 1 - nth
        yield math.nextafter(high, -math.inf)
    else:
        yield 1 + nth


def _least(schema: Schema) -> Number | None:
    bounds = [schema[key] for key in ("minimum", "exclusiveMinimum") if key in schema]
    return max(bounds, default=None)


def _greatest(schema: Schema) -> Number | None:
    bounds = [schema[key] for key in ("maximum", "exclusiveMaximum") if key in schema]
    return min(bounds, default=None)
