"""Two JSON schemas in one, which accepts what both accept.

Pure. For `allOf`, and for what stands beside `$ref`, `anyOf` and `oneOf`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, Final, TypeAlias

Schema: TypeAlias = Mapping[str, Any]

LARGER: Final = frozenset(
    {"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}
)
"""Of two such bounds the larger one holds."""
SMALLER: Final = frozenset(
    {"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"}
)
"""Of two such bounds the smaller one holds."""

_NOTHING: Final[dict[str, Any]] = {"enum": []}


def merged_schema(one: Schema, other: Any) -> dict[str, Any]:
    """A schema that asks for what both ask for; `other` may be `true` or `false`."""
    if other is False:
        return _NOTHING
    merged = dict(one)
    if not isinstance(other, Mapping):
        return merged
    for key, value in other.items():
        merged[key] = _joined(key, merged[key], value) if key in merged else value
    return _NOTHING if _is_contradiction(one, merged) else merged


def _is_contradiction(one: Schema, merged: Schema) -> bool:
    """Whether the one value that is accepted is not accepted after all."""
    if "const" not in merged:
        return False
    value = merged["const"]
    return value != one.get("const", value) or value not in merged.get("enum", [value])


def _joined(key: str, one: Any, other: Any) -> Any:
    if key in LARGER:
        return max(one, other)
    if key in SMALLER:
        return min(one, other)
    # What is not in the table is a comment, or cannot differ and still be filled.
    join = _JOINS.get(key)
    return join(one, other) if join else other


def _both_lists(one: list[Any], other: list[Any]) -> list[Any]:
    return [*one, *other]


def _both_schemas(one: Any, other: Any) -> Schema:
    return {"allOf": [one, other]}


def _both_properties(one: Schema, other: Schema) -> Schema:
    shared = one.keys() & other
    both = {name: _both_schemas(one[name], other[name]) for name in shared}
    return {**one, **other, **both}


def _every_pair(one: list[Any], other: list[Any]) -> list[Any]:
    return [_both_schemas(first, second) for first in one for second in other]


def _in_both(one: list[Any], other: list[Any]) -> list[Any]:
    return [option for option in one if option in other]


def _types_in_both(one: Any, other: Any) -> list[str]:
    first, second = ([kind] if isinstance(kind, str) else kind for kind in (one, other))
    kinds = _in_both(first, second)
    # An integer is a number.
    for some, rest in ((first, second), (second, first)):
        if "integer" in some and "number" in rest and "integer" not in kinds:
            kinds.append("integer")
    return kinds


def _both_patterns(one: str, other: str) -> str:
    return rf"^(?=[\s\S]*(?:{one}))(?=[\s\S]*(?:{other}))"


def _common_multiple(one: float, other: float) -> float:
    first, second = Fraction(str(one)), Fraction(str(other))
    common = math.lcm(
        first.numerator * second.denominator, second.numerator * first.denominator
    )
    multiple = Fraction(common, first.denominator * second.denominator)
    return int(multiple) if multiple.denominator == 1 else float(multiple)


def _either(one: object, other: object) -> bool:
    return bool(one or other)


_JOINS: Mapping[str, Callable[[Any, Any], Any]] = {
    "additionalProperties": _both_schemas,
    "allOf": _both_lists,
    "anyOf": _every_pair,
    "enum": _in_both,
    "items": _both_schemas,
    "multipleOf": _common_multiple,
    "oneOf": _every_pair,
    "pattern": _both_patterns,
    "properties": _both_properties,
    "required": _both_lists,
    "type": _types_in_both,
    "uniqueItems": _either,
}
