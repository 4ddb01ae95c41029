"""RetryRouter's page: its tables, which no example runs, are compared with the code."""

from __future__ import annotations

import ast
import re
from typing import Any, get_args

import pytest
from langchain_core.language_models.chat_models import BaseChatModel
from pydantic import BaseModel

from langchain_retryrouter._retry.call_state import FAILURE_ACTIONS, FailureAction
from langchain_retryrouter._router.call import _SAID_ALOUD
from langchain_retryrouter._router.route import Route
from langchain_retryrouter._router.strategies import STRATEGIES
from langchain_retryrouter.chat_models.retry_router import RetryRouter
from langchain_retryrouter.failures import FailureKind, classify
from tests.unit_tests.docs.tables import DOCS, codes_in, rows_of

_PAGE = DOCS / "chat_models" / "retry_router.md"
_STEPS = {
    "the same route": FailureAction.RETRY,
    "the next route": FailureAction.FAILOVER,
    "an end": FailureAction.RAISE,
}
_FAILURES = {
    FailureKind(codes_in(name)[0]): (when, then)
    for name, when, then in rows_of(_PAGE, "What follows a failure")
}


def test_what_follows_which_failure_is_the_routers_table() -> None:
    """Each kind of failure has one row, and it is that of `FAILURE_ACTIONS`."""
    told = {kind: _STEPS[then.split(",")[0]] for kind, (_, then) in _FAILURES.items()}
    assert told == FAILURE_ACTIONS
    assert len(rows_of(_PAGE, "What follows a failure")) == len(FailureKind)


@pytest.mark.parametrize("kind", _FAILURES, ids=str)
def test_the_statuses_of_a_row_are_of_its_kind(kind: FailureKind) -> None:
    """A status that a row names means what the row says."""
    # "or" tells of a status that its body makes another kind of.
    statuses = re.findall(r"(?<!or )\b\d{3}\b", _FAILURES[kind][0])
    assert [classify(int(status)) for status in statuses] == [kind] * len(statuses)


def test_the_warnings_are_those_that_are_given() -> None:
    """A row promises a warning in the log where there is one, and nowhere else."""
    told = {kind for kind, (_, then) in _FAILURES.items() if "a warning" in then}
    assert told == _SAID_ALOUD


@pytest.mark.parametrize(
    ("cls", "heading", "inherited"),
    [(RetryRouter, "Instantiation", BaseChatModel), (Route, "Routes", BaseModel)],
    ids=["router", "route"],
)
def test_every_field_has_a_row(
    cls: type[BaseModel], heading: str, inherited: type[BaseModel]
) -> None:
    """The table names all fields that are ours, and tells their defaults."""
    rows = rows_of(_PAGE, heading)
    named = [name for row in rows for name in codes_in(row[0])]
    assert sorted(named) == sorted(set(cls.model_fields) - set(inherited.model_fields))
    told = {
        name: ast.literal_eval(row[1].strip("`"))
        for row in rows
        if re.fullmatch(r"""[\d.]+|`(None|False|\{\}|"\w+")`""", row[1])
        for name in codes_in(row[0])
    }
    assert told == {name: _default(cls, name) for name in told}
    assert len(told) >= 5


def test_the_breakers_numbers_are_its_own() -> None:
    """How soon a route is passed by, and for how long, is what a router does."""
    breaker = _default(RetryRouter, "breaker")
    page = _PAGE.read_text()
    assert f"opens after {breaker.failure_threshold} failures" in page
    assert (
        f"after {breaker.failure_threshold} retryable failures in a row the route is"
        f" passed by for {breaker.recovery_time:g} s"
    ) in page


@pytest.mark.parametrize(
    ("heading", "values"),
    [
        ("Streams", get_args(RetryRouter.model_fields["stream_recovery"].annotation)),
        ("Strategies", tuple(STRATEGIES)),
    ],
    ids=["streams", "strategies"],
)
def test_every_value_of_a_setting_has_a_row(
    heading: str, values: tuple[str, ...]
) -> None:
    """A table of a setting names each of its values."""
    rows = rows_of(_PAGE, heading)
    named = [ast.literal_eval(codes_in(row[0])[0]) for row in rows]
    assert sorted(named) == sorted(values)


def _default(cls: type[BaseModel], name: str) -> Any:
    return cls.model_fields[name].get_default(call_default_factory=True)
