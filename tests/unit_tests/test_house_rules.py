"""Rules of this house that no linter knows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_TESTS = sorted((_ROOT / "tests").rglob("test_*.py"))
_PACKAGE = sorted((_ROOT / "langchain_retryrouter").rglob("*.py"))
_MAX_LINES = 470
_VAGUE = {"utils", "helpers", "manager", "common"}

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def _tests_in(path: Path) -> Iterator[_Function]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, _Function) and node.name.startswith("test_"):
            yield node


def _lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_every_test_says_which_rule_it_protects() -> None:
    """A test without a docstring protects nobody knows what."""
    silent = [
        f"{path.relative_to(_ROOT)}:{test.lineno} {test.name}"
        for path in _TESTS
        for test in _tests_in(path)
        if not ast.get_docstring(test)
    ]
    assert silent == []


def test_nothing_is_skipped_or_expected_to_fail() -> None:
    """A test that does not run is no test."""
    marks = ("mark.skip", "mark.xfail", "pytest.skip(", "pytest.xfail(", "mark.flaky")
    own = Path(__file__).name
    skipped = [
        f"{path.relative_to(_ROOT)}: {mark}"
        for path in _TESTS
        for mark in marks
        if path.name != own and mark in path.read_text()
    ]
    assert skipped == []


def test_a_file_has_one_subject() -> None:
    """A file of the package that outgrows its size has two subjects."""
    grown = {
        str(path.relative_to(_ROOT)): lines
        for path in _PACKAGE
        if (lines := _lines_of(path)) > _MAX_LINES
    }
    assert grown == {}


def test_no_room_has_a_vague_name() -> None:
    """A module is named by its subject, in the field's words."""
    names = {part for path in _PACKAGE for part in path.stem.strip("_").split("_")}
    assert names & _VAGUE == set()
