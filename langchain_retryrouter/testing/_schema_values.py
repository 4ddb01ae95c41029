"""A value for any JSON schema that pydantic and tool makers write.

Pure. What is looked at: `type`, `enum`, `const`, `default`, `examples`, `properties`,
`required`, `additionalProperties`, `items`, `prefixItems`, `anyOf`, `oneOf`, `allOf`,
`$ref` inside the schema, and the bounds of objects, arrays, texts and numbers. Other
keywords are taken as comments. The values are the prompt's where they fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from typing import Any
from urllib.parse import unquote

from ._prompt_words import PromptWords
from ._schema_joins import LARGER, SMALLER, Schema, merged_schema
from ._schema_texts import (
    number_fits,
    number_in_bounds,
    sample_of_format,
    text_fits,
    text_of_length,
)

_TRIES_FOR_DIFFERENT_ITEMS = 64
_OF_OBJECTS = {"properties", "required", "additionalProperties", "minProperties"}
_OF_ARRAYS = {"items", "prefixItems", "minItems", "maxItems", "uniqueItems"}
_OF_NUMBERS = {"multipleOf", *(key for key in LARGER | SMALLER if "imum" in key)}


class UnfillableSchemaError(ValueError):
    """No value was found for a schema; says for which part, and what would help."""


def value_for(schema: Any, words: PromptWords) -> Any:
    """A value that `schema` accepts.

    Properties that are not required are left out, unless the prompt mentions them.

    Raises:
        UnfillableSchemaError: There is none, or it takes more than these rules.
    """
    return _Filler(schema, words).value(schema)


class _Filler:
    def __init__(self, root: Any, words: PromptWords) -> None:
        self._root = root
        self._words = words
        self._open_references: list[str] = []

    def value(self, schema: Any, nth: int = 0) -> Any:
        """A value for `schema`; another one for another `nth`, where there are more."""
        if schema is False:
            msg = "nothing is accepted by the schema `false`"
            raise UnfillableSchemaError(msg)
        if not isinstance(schema, Mapping):
            schema = {}
        if "$ref" in schema:
            rest = {key: schema[key] for key in schema if key != "$ref"}
            with self._referred(schema["$ref"]) as target:
                return self.value(merged_schema(rest, target), nth)
        if "allOf" in schema:
            return self._all_of(schema, nth)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                rest = {name: schema[name] for name in schema if name != key}
                return self._first_of(
                    [merged_schema(rest, branch) for branch in schema[key]], nth
                )
        return self._plain(schema, nth)

    def _plain(self, schema: Schema, nth: int) -> Any:
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._choice(schema["enum"], nth)
        kinds = _kinds(schema)
        if len(kinds) != 1:
            return self._first_of([{**schema, "type": kind} for kind in kinds], nth)
        return self._of_kind(kinds[0], schema, nth)

    def _of_kind(self, kind: str, schema: Schema, nth: int) -> Any:
        makers: dict[str, Callable[[Schema, int], Any]] = {
            "object": self._object,
            "array": self._array,
            "string": self._text,
            "number": self._number,
            "integer": partial(self._number, whole=True),
            "boolean": lambda _schema, nth: nth % 2 == 0,
            "null": lambda _schema, _nth: None,
        }
        if kind not in makers:
            msg = f"the type {kind!r} of {schema} is none of JSON's"
            raise UnfillableSchemaError(msg)
        return makers[kind](schema, nth)

    def _all_of(self, schema: Schema, nth: int) -> Any:
        merged = {key: schema[key] for key in schema if key != "allOf"}
        with ExitStack() as references:
            for part in schema["allOf"]:
                asked = part
                while isinstance(asked, Mapping) and "$ref" in asked:
                    rest = {key: asked[key] for key in asked if key != "$ref"}
                    referred = self._referred(asked["$ref"])
                    asked = merged_schema(rest, references.enter_context(referred))
                merged = merged_schema(merged, asked)
            return self.value(merged, nth)

    def _choice(self, options: list[Any], nth: int) -> Any:
        if not options:
            msg = "an `enum` without any value accepts nothing"
            raise UnfillableSchemaError(msg)
        if nth == 0:
            for option in options:
                if isinstance(option, str) and self._words.mentions(option):
                    return option
        return options[nth % len(options)]

    def _first_of(self, branches: list[Any], nth: int) -> Any:
        """The value of the first branch that has one; a null comes last."""
        branches = sorted(branches, key=_is_null)
        turn = nth % len(branches) if branches else 0
        why = f"none of {len(branches)} branches accepts anything"
        for branch in branches[turn:] + branches[:turn]:
            open_values = self._words.open_values()
            try:
                return self.value(branch, nth)
            except UnfillableSchemaError as error:
                self._words.reopen(open_values)
                why = str(error)
        raise UnfillableSchemaError(why)

    # Objects and arrays.

    def _object(self, schema: Schema, nth: int) -> dict[str, Any]:
        properties: Mapping[str, Any] = schema.get("properties", {})
        required = schema.get("required", [])
        additional = schema.get("additionalProperties", True)
        filled: dict[str, Any] = {}
        room = schema.get("maxProperties", math.inf) - len(required)
        for name in dict.fromkeys([*properties, *required]):
            if name in required:
                filled[name] = self.value(properties.get(name, additional), nth)
            elif room > 0 and self._words.mentions(name):
                filled |= self._if_possible(name, properties[name], nth)
                room -= name in filled
        least = schema.get("minProperties", 0)
        for name, part in properties.items():
            if len(filled) < least and name not in filled:
                filled |= self._if_possible(name, part, nth)
        others = (name for name in map("key_{}".format, count()) if name not in filled)
        while len(filled) < least:
            filled[next(others)] = self.value(additional, nth)
        return filled

    def _if_possible(self, name: str, schema: Any, nth: int) -> dict[str, Any]:
        try:
            return {name: self._first_of([schema], nth)}
        except UnfillableSchemaError:
            return {}

    def _array(self, schema: Schema, nth: int) -> list[Any]:
        first: list[Any] = schema.get("prefixItems", [])
        rest = schema.get("items", True)
        least = schema.get("minItems", 0)
        most = schema.get("maxItems")
        wanted = max(least, len(first) or self._open_values_for(rest))
        wanted = wanted if most is None else min(wanted, most)
        different = bool(schema.get("uniqueItems"))
        items: list[Any] = []
        try:
            while len(items) < wanted:
                part = first[len(items)] if len(items) < len(first) else rest
                items.append(self._item(part, items if different else [], nth))
        except UnfillableSchemaError:
            if len(items) < least:
                raise
        return items

    def _open_values_for(self, items: Any) -> int:
        """How many items the prompt offers; one when it has none of their type."""
        kind = next(iter(_kinds(self._resolved(items))), None)
        numbers, quotes = self._words.open_values()
        if kind in {"integer", "number"}:
            return max(1, len(numbers))
        return max(1, len(quotes)) if kind == "string" else 1

    def _item(self, schema: Any, taken: list[Any], nth: int) -> Any:
        for more in range(_TRIES_FOR_DIFFERENT_ITEMS + len(taken)):
            value = self._first_of([schema], nth + more)
            if value not in taken:
                return value
        msg = f"no more than {len(taken)} different items are found for {schema}"
        raise UnfillableSchemaError(msg)

    # Texts and numbers.

    def _number(self, schema: Schema, nth: int, *, whole: bool = False) -> int | float:
        said = self._words.take_number(
            lambda number: number_fits(number, schema, whole=whole)
        )
        if said is not None:
            return said
        if nth == 0:
            for value in _suggestions(schema):
                if number_fits(value, schema, whole=whole):
                    return value  # type: ignore[no-any-return]
        number = number_in_bounds(schema, nth, whole=whole)
        if number is None:
            msg = f"no number is found within the bounds of {schema}"
            raise UnfillableSchemaError(msg)
        return number

    def _text(self, schema: Schema, nth: int) -> str:
        said = self._words.take_quote(lambda quote: text_fits(quote, schema))
        if said is not None:
            return said
        sample = sample_of_format(schema, nth)
        if sample is not None:
            return sample
        suggestions = _suggestions(schema) if nth == 0 else []
        made = text_of_length(self._words.text, schema, nth)
        words = self._words.text.split() if "pattern" in schema else []
        for text in (*suggestions, made, *words[nth:]):
            if text_fits(text, schema):
                return text  # type: ignore[no-any-return]
        msg = f"no text is found for {schema}: give it a default, or examples"
        raise UnfillableSchemaError(msg)

    # References.

    @contextmanager
    def _referred(self, reference: str) -> Iterator[Any]:
        """What `reference` points to; not twice inside itself, as that has no end."""
        if reference in self._open_references:
            msg = f"{reference} contains itself"
            raise UnfillableSchemaError(msg)
        self._open_references.append(reference)
        try:
            yield self._target(reference)
        finally:
            self._open_references.pop()

    def _target(self, reference: str) -> Any:
        if not reference.startswith("#"):
            msg = f"{reference} is not in the schema"
            raise UnfillableSchemaError(msg)
        target = self._root
        for step in unquote(reference).removeprefix("#").split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            try:
                target = target[int(name) if isinstance(target, list) else name]
            except (KeyError, IndexError, TypeError, ValueError):
                msg = f"{reference} is not in the schema"
                raise UnfillableSchemaError(msg) from None
        return target

    def _resolved(self, schema: Any) -> Any:
        """`schema` without a reference at its top."""
        seen: set[str] = set()
        while isinstance(schema, Mapping) and "$ref" in schema:
            reference = schema["$ref"]
            if reference in seen:
                msg = f"{reference} contains itself"
                raise UnfillableSchemaError(msg)
            seen.add(reference)
            rest = {key: schema[key] for key in schema if key != "$ref"}
            schema = merged_schema(rest, self._target(reference))
        return schema


def _suggestions(schema: Schema) -> list[Any]:
    default = [schema["default"]] if "default" in schema else []
    return default + list(schema.get("examples", []))


def _kinds(schema: Any) -> list[str]:
    """The types a schema accepts, null last; guessed from its keywords if not said."""
    if not isinstance(schema, Mapping):
        return ["string"]
    kinds = schema.get("type")
    if isinstance(kinds, str):
        return [kinds]
    if isinstance(kinds, list):
        return sorted(kinds, key=lambda kind: kind == "null")
    if _OF_OBJECTS & schema.keys():
        return ["object"]
    if _OF_ARRAYS & schema.keys():
        return ["array"]
    return ["number"] if _OF_NUMBERS & schema.keys() else ["string"]


def _is_null(schema: Any) -> bool:
    if not isinstance(schema, Mapping):
        return False
    return schema.get("type") == "null" or ("const", None) in schema.items()
