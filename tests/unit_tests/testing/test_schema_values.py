"""Values for JSON schemas; pydantic wrote the schemas and judges the values."""

from __future__ import annotations

import json
import math
from datetime import date, datetime, time, timedelta
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, create_model

from langchain_retryrouter.testing.rule_responder import (
    PromptWords,
    UnfillableSchemaError,
    value_for,
)

# Random types, such as people put into the arguments of a tool. They are made at run
# time, hence no types to a type checker.

_list: Any = list
_set: Any = set
_dict: Any = dict
_tuple: Any = tuple


def _bounded(kind: Any, bounds: dict[str, Any]) -> Any:
    return Annotated[kind, Field(**bounds)]


@st.composite
def _whole_numbers(draw: st.DrawFn) -> Any:
    low = draw(st.integers(-1000, 1000))
    high = low + draw(st.integers(50, 1000))
    bounds: list[dict[str, Any]] = [
        {},
        {"ge": low},
        {"gt": low},
        {"le": high},
        {"lt": high},
        {"ge": low, "le": high},
        {"gt": low, "lt": high},
        {"gt": low, "lt": high, "multiple_of": draw(st.integers(1, 24))},
        {"multiple_of": draw(st.integers(1, 24))},
        {"lt": high, "multiple_of": draw(st.integers(1, 24))},
    ]
    return _bounded(int, draw(st.sampled_from(bounds)))


@st.composite
def _floats(draw: st.DrawFn) -> Any:
    low, high = sorted(
        draw(st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=2, unique=True))
    )
    bounds: list[dict[str, Any]] = [
        {},
        {"ge": low},
        {"gt": low},
        {"le": high},
        {"lt": high},
        {"ge": low, "le": high},
        {"gt": low, "le": high},
        {"gt": low, "multiple_of": draw(st.sampled_from([0.25, 0.5, 2.0]))},
    ]
    return _bounded(float, draw(st.sampled_from(bounds)))


@st.composite
def _texts(draw: st.DrawFn) -> Any:
    least = draw(st.integers(0, 30))
    most = least + draw(st.integers(0, 30))
    bounds: list[dict[str, Any]] = [{}, {"min_length": least}, {"max_length": most}]
    bounds.append({"min_length": least, "max_length": most})
    return _bounded(str, draw(st.sampled_from(bounds)))


_NAMES = st.sampled_from(["city", "limit", "unit", "name", "when", "who", "tags"])
_LITERALS = st.lists(
    st.one_of(st.text("abc", min_size=1, max_size=3), st.integers(0, 9)),
    min_size=1,
    unique=True,
).map(lambda values: Literal[tuple(values)])
_FIXED = [bool, type(None), Any, datetime, date, time, timedelta, UUID]
_FIXED += [IPv4Address, IPv6Address]
_SIMPLE = st.one_of(
    _whole_numbers(), _floats(), _texts(), _LITERALS, st.sampled_from(_FIXED)
)
_HASHABLE = st.sampled_from([int, str, float, UUID, date, datetime, timedelta])


@st.composite
def _models(draw: st.DrawFn, types: st.SearchStrategy[Any]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for name in draw(st.lists(_NAMES, min_size=1, unique=True)):
        kind = draw(types)
        fields[name] = draw(st.sampled_from([(kind, ...), (kind | None, None)]))
    config = ConfigDict(extra=draw(st.sampled_from(["ignore", "forbid"])))
    return create_model("Model", __config__=config, **fields)


def _containers(types: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    sizes = st.tuples(st.integers(0, 3), st.integers(0, 3)).map(
        lambda pair: {"min_length": pair[0], "max_length": sum(pair)}
    )
    return st.one_of(
        _models(types),
        types.map(lambda kind: _list[kind]),
        st.builds(lambda kind, size: _bounded(_list[kind], size), types, sizes),
        st.builds(lambda kind, size: _bounded(_set[kind], size), _HASHABLE, sizes),
        st.builds(lambda kind, size: _bounded(_dict[str, kind], size), types, sizes),
        st.builds(lambda one, other: _tuple[one, other], types, types),
        st.builds(lambda one, other: one | other, types, types),
    )


_TYPES = st.recursive(_SIMPLE, _containers, max_leaves=6)
_PROMPTS = st.one_of(
    st.text(),
    st.lists(
        st.sampled_from(["3", "-40", "1.5", "'a b'", '"c"', "city", "limit", "who"])
    ).map(" ".join),
)


def _accepted(kind: Any, prompt: str) -> Any:
    """The value for the type's schema, which the type must accept, strictly."""
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    value = value_for(adapter.json_schema(), PromptWords(prompt))
    adapter.validate_json(json.dumps(value), strict=True)
    return value


# A busy machine is no defect.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_models(_TYPES), _PROMPTS)
def test_values_are_valid(model: type[BaseModel], prompt: str) -> None:
    """Whatever the schema and the prompt, the value is one that the schema accepts."""
    _accepted(model, prompt)


_ANY: dict[str, Any] = {}
_INTEGER = {"type": "integer"}
_HUGE = math.nextafter(1e300, math.inf)


class _Colour(Enum):
    RED = "red"
    BLUE = "blue"


class _Tree(BaseModel):
    name: str
    children: list[_Tree]
    parent: _Tree | None
    twin: _Tree | None = None


class _Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=7, le=9)


class _Dog(BaseModel):
    kind: Literal["dog"]


class _Home(BaseModel):
    pet: Annotated[_Cat | _Dog, Field(discriminator="kind")]
    colour: Annotated[_Colour, Field(description="of the door")]


def test_a_schema_within_itself_has_an_end() -> None:
    """A recursive schema is filled once, not for ever."""
    tree = _accepted(_Tree, "'oak'")
    assert tree == {"name": "oak", "children": [], "parent": None}


def test_enums_and_unions() -> None:
    """An enum takes the value that the prompt mentions, a union its first branch."""
    home = _accepted(_Home, "A BLUE door")
    assert home == {"pet": {"kind": "cat", "lives": 7}, "colour": "blue"}
    assert _accepted(_Home, "A door")["colour"] == "red"


@pytest.mark.parametrize(
    ("kind", "prompt", "value"),
    [
        (tuple[int, int], "What is 1 + 2?", [1, 2]),
        (tuple[int, int], "3-4", [3, 4]),
        (tuple[float, int], "-1.5 and 2.", [-1.5, 2]),
        (tuple[int, float], "1.5, then 2", [2, 1.5]),
        (list[int], "Add 3, 4 and 5", [3, 4, 5]),
        (list[str], "'a' and \"b\"", ["a", "b"]),
        (list[str], "none quoted", ["none quoted"]),
        (int, "tool2 of v1.2.3", 1),
        (Annotated[int, Field(gt=-1000, lt=1000)], "5000 or 7", 7),
        (str, "it's 'here', isn't it", "here"),
        (str, "a customer named '你好啊集团' (Hello Group)", "你好啊集团"),
        (tuple[str, str], "from 'here' there", ["here", "from 'here' there"]),
        (Annotated[str, Field(pattern="^[A-Z]{3}$")], "from JFK to LHR", "JFK"),
        (Annotated[str, Field(pattern="^a+$", examples=["aa"])], "hi", "aa"),
        (Annotated[int, Field(json_schema_extra={"default": 9})], "hi", 9),
        (Annotated[int, Field(json_schema_extra={"default": 9})], "take 4", 4),
        (set[Annotated[str, Field(max_length=1)]], "'a' 'b' 'a'", ["a", "b", "c"]),
        (Annotated[str, Field(max_length=3)], "hello", "hel"),
        (Annotated[str, Field(min_length=3, max_length=5)], "hi", "hihi"),
        (Annotated[str, Field(max_length=3)], "either 'hello' or 'hi'", "hi"),
        (_bounded(str, {"json_schema_extra": {"default": None}}), "hi", "hi"),
        (_bounded(int, {"json_schema_extra": {"default": 1.5}}), "hi", 1),
        (_bounded(int, {"json_schema_extra": {"default": True}}), "yes", 1),
        (UUID, "'not one'", "00000000-0000-4000-8000-000000000000"),
        (bool, "", True),
        (str, "", "text"),
    ],
)
def test_values_come_from_the_prompt(kind: Any, prompt: str, value: object) -> None:
    """Numbers and quotes of the prompt are used in order, where they fit."""
    assert _accepted(kind, prompt) == value


def test_what_is_not_required_is_filled_when_it_is_mentioned() -> None:
    """A property that is not required is left out, unless the prompt speaks of it."""
    model = create_model("M", limit=(int, 10), city=(str, "Rome"))
    assert _accepted(model, "whatever") == {}
    assert _accepted(model, "a limit of 4") == {"limit": 4}


def test_a_branch_that_fails_gives_its_values_back() -> None:
    """What a branch took from the prompt is there for the next branch."""
    never = _bounded(str, {"pattern": "z"})
    first = create_model("A", x=(int, ...), y=(never, ...))
    second = create_model("B", x=(int, ...), z=(int, ...))
    assert _accepted(first | second, "1 and 2") == {"x": 1, "z": 2}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({}, "hi 4"),
        (True, "hi 4"),
        ({"properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"a": 4}),
        ({"required": ["b"]}, {"b": "hi 4"}),
        ({"minItems": 2}, ["hi 4", "hi 4"]),
        ({"minimum": 3}, 4),
        ({"type": ["null", "integer"]}, 4),
        ({"type": "null"}, None),
        ({"anyOf": [{"type": "null"}, {"type": "integer"}]}, 4),
        ({"oneOf": [{"const": None}, True]}, "hi 4"),
        ({"const": {"a": 1}}, {"a": 1}),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"const": 1}}}, 1),
        ({"$ref": "#/definitions/x%20y", "definitions": {"x y": {"const": 2}}}, 2),
        ({"anyOf": [{"$ref": "#/anyOf/1"}, {"const": 3}]}, 3),
        (
            {"minProperties": 1, "additionalProperties": {"type": "integer"}},
            {"key_0": 4},
        ),
        ({"minProperties": 1, "properties": {"a": False, "b": {"const": 1}}}, {"b": 1}),
        (
            {"required": ["key_0"], "minProperties": 2},
            {"key_0": "hi 4", "key_1": "hi 4"},
        ),
        ({"maxProperties": 1, "properties": {"hi": _ANY, "4": _ANY}}, {"hi": "hi 4"}),
        ({"type": "number", "exclusiveMinimum": 1e300}, _HUGE),
        ({"type": "number", "exclusiveMaximum": -1e300}, -_HUGE),
    ],
)
def test_schemas_that_pydantic_does_not_write(schema: Any, value: object) -> None:
    """Types may be left out or listed, references may point anywhere in the schema."""
    assert value_for(schema, PromptWords("hi 4")) == value


@pytest.mark.parametrize(
    ("parts", "value"),
    [
        ([{"type": "integer"}, {"minimum": 7}, {"minimum": 5}], 7),
        ([{"type": "integer", "maximum": -7}, {"maximum": -5}], -7),
        ([{"type": "number"}, {"type": "integer", "minimum": 5}], 5),
        ([{"type": ["null", "string"]}, {"type": ["integer", "null"]}], None),
        ([{"multipleOf": 6}, {"multipleOf": 8}], 24),
        ([{"type": "number", "multipleOf": 0.5}, {"multipleOf": 0.75}], 1.5),
        ([{"enum": [1, 2, 3]}, {"enum": [2, 4]}], 2),
        ([{"enum": [1, 2, 3]}, {"const": 3}], 3),
        ([{"pattern": "^h"}, {"pattern": "i$", "minLength": 2}], "hi"),
        ([{"items": {"minimum": 8}}, {"items": {"type": "integer"}}], [8]),
        (
            [{"minItems": 2, "uniqueItems": True}, {"uniqueItems": False}],
            ["hi 4", "hi 4 2"],
        ),
        (
            [
                {"properties": {"a": {"minimum": 8}}, "required": ["a"]},
                {"properties": {"a": {"type": "integer"}, "b": {}}, "required": ["b"]},
            ],
            {"a": 8, "b": "hi 4"},
        ),
        (
            [
                {"anyOf": [{"const": 1}, {"const": 2}]},
                {"anyOf": [{"const": 2}, {"const": 3}]},
            ],
            2,
        ),
        ([True, {"const": 1}], 1),
        ([{"$ref": "#/$defs/a"}, {"minimum": 6}], 6),
    ],
)
def test_schemas_that_are_joined(parts: list[Any], value: object) -> None:
    """A value of `allOf` is one that each part accepts."""
    schema = {"allOf": parts, "$defs": {"a": {"$ref": "#/$defs/b"}, "b": _INTEGER}}
    assert value_for(schema, PromptWords("hi 4")) == value


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "integer"}, {"type": "string"}],
        [{"const": 1}, {"const": 2}],
        [{"enum": [1]}, {"const": 2}],
        [{"anyOf": [{"const": 1}]}, {"oneOf": [{"const": 2}]}],
        [{}, False],
    ],
)
def test_schemas_that_cannot_be_joined(parts: list[Any]) -> None:
    """Parts that contradict each other accept nothing, which is said."""
    with pytest.raises(UnfillableSchemaError):
        value_for({"allOf": parts}, PromptWords("hi"))


def test_a_schema_within_its_own_parts_has_an_end() -> None:
    """A reference inside `allOf` is followed once, too."""
    child = {"anyOf": [{"allOf": [{"$ref": "#"}], "title": "child"}, {"type": "null"}]}
    schema = {"properties": {"child": child}, "required": ["child"]}
    value = value_for(schema, PromptWords("hi"))
    assert value == {"child": {"child": None}}


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        (False, "false"),
        ({"type": "text"}, "'text'"),
        ({"enum": []}, "enum"),
        ({"anyOf": []}, "branches"),
        ({"$ref": "#"}, "contains itself"),
        ({"$ref": "#/$defs/gone"}, "#/$defs/gone is not in the schema"),
        ({"$ref": "https://example.com/s.json"}, "is not in the schema"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no number"),
        ({"type": "number", "minimum": 3, "exclusiveMaximum": 3}, "no number"),
        ({"type": "string", "pattern": "^[0-9]+z$"}, "give it a default, or examples"),
        ({"items": {"const": 1}, "minItems": 2, "uniqueItems": True}, "different"),
        ({"required": ["a"], "additionalProperties": False}, "false"),
        ({"allOf": [False]}, "enum"),
    ],
)
def test_what_cannot_be_filled_is_said(schema: Any, named: str) -> None:
    """A schema that these rules cannot fill is an error that names the part."""
    with pytest.raises(UnfillableSchemaError) as raised:
        value_for(schema, PromptWords("hi"))
    assert named in str(raised.value)


def test_a_reference_that_only_names_itself() -> None:
    """Items that are defined by nothing but themselves are an error, not a hang."""
    with pytest.raises(UnfillableSchemaError, match="contains itself"):
        value_for({"items": {"$ref": "#/items"}}, PromptWords(""))
