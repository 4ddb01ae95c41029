"""GPTRouter's page: its tables, which no example runs, are compared with the code."""

from __future__ import annotations

import ast
import re

import pytest
from langchain_core.exceptions import ModelError

from langchain_retryrouter import GPTRouter, RetryPolicy
from langchain_retryrouter._gptrouter.connection import GatewayConnection
from langchain_retryrouter._gptrouter.errors import GPT_ROUTER_ERRORS
from langchain_retryrouter.chat_models.gpt_router import GatewayFields
from langchain_retryrouter.errors import BASE_ERRORS
from langchain_retryrouter.failures import is_retryable
from tests.unit_tests.docs.tables import DOCS, codes_in, rows_of

_PAGE = DOCS / "chat_models" / "gpt_router.md"
# The SDK's client, and the clock of tests, which the page shows at work.
_NOT_IN_THE_TABLE = {"client", "clock"}


_ERRORS = [row for row in rows_of(_PAGE, "Errors") if "UnsupportedOption" not in row[0]]
_FIELDS = rows_of(_PAGE, "Instantiation")


def test_every_error_has_a_row() -> None:
    """The table names each class of the tree once, and no other."""
    named = sorted(codes_in(row[0])[0] for row in _ERRORS)
    assert named == sorted(cls.__name__ for cls in BASE_ERRORS.values())


@pytest.mark.parametrize("row", _ERRORS, ids=lambda row: row[0])
def test_an_error_is_what_its_row_says(row: list[str]) -> None:
    """Whether it is repeated, and what else catches it, is so."""
    [name, *parents] = codes_in(row[0])
    ours = next(cls for cls in BASE_ERRORS.values() if cls.__name__ == name)
    raised = GPT_ROUTER_ERRORS[ours.kind]
    line = raised.__mro__

    assert (row[2] != "no") is is_retryable(ours.kind)
    assert set(parents) <= {cls.__name__ for cls in line}
    langchains = {cls.__name__ for cls in line if issubclass(cls, ModelError)}
    assert set(codes_in(row[3])) < langchains
    sdks = [c.__name__ for c in raised.__bases__ if "gpt_router.exc" in c.__module__]
    assert codes_in(row[4]) == sdks


def test_every_field_has_a_row() -> None:
    """The table names all fields that are ours, and no other."""
    named = [name for row in _FIELDS for name in codes_in(row[0])]
    other_names = {"api_key", "base_url", "timeout"}
    ours = {*GatewayConnection.__annotations__, *GatewayFields.__annotations__}
    fields = ours & {*GPTRouter.model_fields} - _NOT_IN_THE_TABLE
    assert sorted(named) == sorted(fields | other_names)


def test_the_defaults_are_those_of_the_fields() -> None:
    """A default that a row tells is the field's."""
    told = {
        codes_in(row[0])[0]: ast.literal_eval(row[1].strip("`"))
        for row in _FIELDS
        if re.fullmatch(r"[\d.]+|`(True|False|None|\{\})`", row[1])
    }
    fields = {name: GPTRouter.model_fields[name] for name in told}
    assert told == {
        name: field.get_default(call_default_factory=True)
        for name, field in fields.items()
    }
    assert len(told) >= 8


def test_the_defaults_of_the_policy_are_its_own() -> None:
    """The numbers and words of the policy's table are those of a fresh policy."""
    policy = RetryPolicy()
    for names, defaults, _ in rows_of(_PAGE, "The policy"):
        for name, told in zip(
            codes_in(names), defaults.replace("`", "").split(", "), strict=True
        ):
            value = None if told == "none" else ast.literal_eval(told.split()[0])
            assert (name, getattr(policy, name)) == (name, value)
