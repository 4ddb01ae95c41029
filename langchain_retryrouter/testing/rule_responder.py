"""A model that follows rules: it calls tools, fills schemas, and says what it was told.

Pure. How a schema is filled is in `_schema_values.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import count, takewhile
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar
from urllib.parse import unquote
from uuid import UUID

from langchain_retryrouter.testing.responses import (
    Choice,
    Completion,
    FunctionCall,
    ToolCall,
    choices_for_each_prompt,
    completion_of,
    cut_at_stop,
    messages_of,
    prompts_of,
    split_words,
)

if TYPE_CHECKING:
    from langchain_retryrouter.testing.requests import RecordedRequest


Number: TypeAlias = int | float
_T = TypeVar("_T")

# A number stands for itself: the 2 of `tool2` and of `v1.2.3` is none.
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w]|\.\d)")
# An apostrophe inside a word is no quote.
_QUOTES = re.compile(
    r"(?<!\w)'(?P<single>[^']+)'(?!\w)|\"(?P<double>[^\"]+)\"|`(?P<tick>[^`]+)`"
    r"|“(?P<curly>[^”]+)”|「(?P<corner>[^」]+)」"
)


class PromptWords:
    """The values that a prompt mentions.

    Args:
        text: The prompt.
    """

    def __init__(self, text: str) -> None:
        """Find the numbers and the quotes of `text`."""
        self.text = text
        self.quotes = [
            next(filter(None, match.groups())) for match in _QUOTES.finditer(text)
        ]
        self.numbers = [_number(found) for found in _NUMBER.findall(text)]

    def mentions(self, name: str) -> bool:
        """Whether `name` stands in the text as a word; case does not matter."""
        return bool(_as_word(name).search(self.text))

    def take_number(self, fits: Callable[[Number], bool]) -> Number | None:
        """The first open number that fits, which is then used up."""
        return _take(self.numbers, fits)

    def take_quote(self, fits: Callable[[str], bool]) -> str | None:
        """The first open quote that fits, which is then used up."""
        return _take(self.quotes, fits)

    def open_values(self) -> tuple[list[Number], list[str]]:
        """The numbers and the quotes that are not used up, for `reopen`."""
        return self.numbers.copy(), self.quotes.copy()

    def reopen(self, values: tuple[list[Number], list[str]]) -> None:
        """Go back to the moment of `open_values`."""
        self.numbers, self.quotes = values


def positions(name: str, text: str) -> list[int]:
    """Where `name` stands in `text` as a word; case does not matter."""
    return [match.start() for match in _as_word(name).finditer(text)]


def _as_word(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)


def _number(text: str) -> Number:
    return float(text) if "." in text else int(text)


def _take(values: list[_T], fits: Callable[[_T], bool]) -> _T | None:
    found = next((value for value in values if fits(value)), None)
    if found is not None:
        values.remove(found)
    return found


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
    for factor in steps:
        value = step * factor
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


_RESULT_ROLES = {"tool", "function"}
_WORD = re.compile(r"[^\W\d_]{4,}")
# Words of four letters or more that say nothing about what a tool is for.
_EMPTY_WORDS = frozenset(
    _WORD.findall(
        "about does from have here into tell that them then there this they tool uses "
        "using value what when which with your"
    )
)
_FORCES_ANY = {"required", "any"}


@dataclass(frozen=True, slots=True)
class RuleResponder:
    """A model without a mind: the answer follows from the request by these rules.

    - Tools: `tool_choice` decides, be it `"none"`, `"required"` (or `"any"`), a tool's
      name or the object that names it. Where it is `"auto"` or missing, tools are
      called when the last message is the user's and speaks of them: those whose name
      stands in it, once for each time it is followed by a bracket; otherwise the one
      whose name and description share most words of four letters or more with it,
      words like `what` and `tool` aside.
      `"required"` calls the first tool when none is spoken of, and after the results
      of tools the first that has not been called. With `parallel_tool_calls: false` it
      is one call at most.
    - Arguments, and answers to `response_format`, are filled from the JSON schema.
      Numbers and quotes in the last user message are used in order where they fit:
      `What is magic_function(3)?` gives `{"input": 3}`. Properties that are not
      required are filled when the message mentions them.
    - `json_object` has the quotes in the message as its keys, or `"answer"`.
    - After the results of tools, they are quoted, so that a tool loop ends.
    - Anything else: what the user has said is said back.
    - `functions` and `function_call` are treated like `tools` and `tool_choice`.
    - `n`, `stop`, lists of prompts and `max_tokens` are honoured; a word is a token. An
      answer that is too long is cut, calls included, and its `finish_reason` is
      `"length"`.

    A request that no model could answer, such as one that forces an unknown tool or
    whose schema cannot be filled, raises a `ValueError`, which the gateway reports.
    """

    def __call__(self, request: RecordedRequest) -> Completion:
        """The answer to `request`."""
        limit = _token_limit(request)
        choices = [
            _within(limit, _choice(request, prompt)) for prompt in prompts_of(request)
        ]
        times = choices_for_each_prompt(request)
        return completion_of(
            request, tuple(choice for choice in choices for _ in range(times))
        )


def _choice(request: RecordedRequest, prompt: object) -> Choice:
    parameters = request.parameters
    messages = messages_of(request) or [{"role": "user", "content": prompt}]
    asked = _last_said_by_user(messages)
    words = PromptWords(_text_of(asked))
    results = _tool_results(messages)
    speaks_to_tools = messages[-1].get("role") == "user"
    tools, choice = _tools_of(parameters)
    said_to_tools = words.text if speaks_to_tools else ""
    chosen = _chosen_tools(tools, choice, said_to_tools, _called_already(messages))
    if parameters.get("parallel_tool_calls") is False or "functions" in parameters:
        chosen = chosen[:1]
    calls = [(tool["name"], _arguments(tool, words)) for tool in chosen]
    if calls and "tools" in parameters:
        return Choice(
            tool_calls=tuple(
                ToolCall(name, arguments, id=f"call_{request.number}_{position}")
                for position, (name, arguments) in enumerate(calls)
            ),
            finish_reason="tool_calls",
        )
    if calls:
        call = FunctionCall(*calls[0])
        return Choice(function_call=call, finish_reason="function_call")
    said = _said_of_results(results) if results else _said_back(asked)
    text = _formatted(said, parameters.get("response_format"), words)
    return Choice(cut_at_stop(text, parameters.get("stop")))


# What was said.


def _last_said_by_user(messages: list[dict[str, Any]]) -> Any:
    for message in reversed(messages):
        if message.get("role") == "user":
            return message.get("content")
    return None


def _tool_results(messages: list[dict[str, Any]]) -> list[str]:
    """What the tools have answered, when that is what was said last."""
    latest = takewhile(
        lambda message: message.get("role") in _RESULT_ROLES, reversed(messages)
    )
    return [_text_of(message.get("content")) for message in latest][::-1]


def _text_of(content: Any) -> str:
    """The text of a content: itself, its parts of text, or nothing."""
    if isinstance(content, str):
        # Half a surrogate pair can be asked in JSON, and not be answered in UTF-8.
        return content.encode(errors="replace").decode()
    parts = content if isinstance(content, list) else []
    texts = [_text_of_part(part) for part in parts]
    return " ".join(text for text in texts if text)


def _text_of_part(part: Any) -> str:
    if isinstance(part, Mapping):
        text = part.get("text")
        return _text_of(text) if isinstance(text, str) else ""
    return _text_of(str(part))


def _said_of_results(results: list[str]) -> str:
    return f"The tools said: {'; '.join(results)}"


def _said_back(content: Any) -> str:
    parts = content if isinstance(content, list) else []
    others = [
        f"[{part.get('type')}]"
        for part in parts
        if isinstance(part, Mapping) and "text" not in part
    ]
    return " ".join(["You said:", _text_of(content) or "nothing", *others])


# Tools.


def _tools_of(parameters: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Any]:
    """The functions that may be called, and what is said about the choice."""
    if "tools" in parameters:
        tools = [tool.get("function") for tool in parameters["tools"] or []]
        return [tool for tool in tools if tool], parameters.get("tool_choice")
    return parameters.get("functions") or [], parameters.get("function_call")


def _chosen_tools(
    tools: list[dict[str, Any]], choice: Any, said: str, called: set[str]
) -> list[dict[str, Any]]:
    if choice == "none":
        return []
    name = _named(choice)
    if name is not None:
        forced = [tool for tool in tools if tool["name"] == name]
        if not forced:
            known = [tool["name"] for tool in tools]
            msg = f"tool_choice asks for {name!r}, and the tools are {known}"
            raise ValueError(msg)
        return forced
    chosen = _called_by_name(tools, said) or _called_by_subject(tools, said)
    if chosen or not _is_forced(choice):
        return chosen
    if not tools:
        msg = f"tool_choice is {choice!r}, and there are no tools"
        raise ValueError(msg)
    # An agent whose answer is a call as well forces one until that call is made.
    new = [tool for tool in tools if tool["name"] not in called]
    return (new or tools)[:1]


def _called_already(messages: list[dict[str, Any]]) -> set[str]:
    """The names of the tools called since the user spoke."""
    since = takewhile(lambda message: message.get("role") != "user", reversed(messages))
    calls = [call for message in since for call in message.get("tool_calls") or []]
    names = ((call.get("function") or {}).get("name") for call in calls)
    return {name for name in names if isinstance(name, str)}


def _named(choice: Any) -> str | None:
    if isinstance(choice, str):
        return None if choice in {"auto", *_FORCES_ANY} else choice
    if not isinstance(choice, Mapping):
        return None
    name = choice.get("function", choice).get("name")
    return name if isinstance(name, str) else None


def _is_forced(choice: Any) -> bool:
    kind = choice.get("type") if isinstance(choice, Mapping) else choice
    return kind in _FORCES_ANY


def _called_by_name(tools: list[dict[str, Any]], said: str) -> list[dict[str, Any]]:
    """The tools whose names are said, in that order."""
    places: list[tuple[int, dict[str, Any]]] = []
    for tool in tools:
        found = positions(tool["name"], said)
        called = [at for at in found if said.startswith("(", at + len(tool["name"]))]
        places += [(at, tool) for at in called or found[:1]]
    return [tool for _, tool in sorted(places, key=lambda place: place[0])]


def _called_by_subject(tools: list[dict[str, Any]], said: str) -> list[dict[str, Any]]:
    """The one tool that shares most words with what is said; the first of equals."""
    words = _telling_words(said)
    shared = [len(words & _telling_words(_subject(tool))) for tool in tools]
    most = max(shared, default=0)
    return [tools[shared.index(most)]] if most else []


def _subject(tool: Mapping[str, Any]) -> str:
    return f"{tool['name']} {tool.get('description') or ''}"


def _telling_words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower())) - _EMPTY_WORDS


def _arguments(tool: Mapping[str, Any], words: PromptWords) -> tuple[str, ...]:
    arguments = value_for(tool.get("parameters") or {"type": "object"}, words)
    return split_words(_json(arguments))


# Texts.


def _formatted(said: str, response_format: Any, words: PromptWords) -> str:
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "json_schema":
        schema = response_format["json_schema"].get("schema")
        return _json(value_for(schema, words)) if schema else _json({"answer": said})
    if kind == "json_object":
        return _json(dict.fromkeys(words.quotes or ["answer"], said))
    return said


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# Length.


def _token_limit(request: RecordedRequest) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        limit = request.parameters.get(name)
        if limit is not None:
            return int(limit)
    return None


def _within(limit: int | None, choice: Choice) -> Choice:
    """`choice`, cut where the tokens end."""
    calls = [*choice.tool_calls, choice.function_call]
    pieces = [call.argument_pieces for call in calls if call]
    if limit is None or len(choice.pieces) + sum(map(len, pieces)) <= limit:
        return choice
    kept: list[ToolCall] = []
    left = limit
    for call in choice.tool_calls:
        if left > 0:
            kept.append(replace(call, arguments=call.argument_pieces[:left]))
        left -= len(call.argument_pieces)
    function_call = choice.function_call
    if function_call is not None:
        shorter = function_call.argument_pieces[:limit]
        function_call = replace(function_call, arguments=shorter) if limit else None
    return Choice(choice.pieces[:limit], tuple(kept), function_call, "length")
