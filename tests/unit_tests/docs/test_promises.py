"""The page of promises is what a run measured, and leaves no promise out."""

from __future__ import annotations

from pathlib import Path

from tests.promises.page import page, read

_ROOT = Path(__file__).parents[3]
_DOCS = _ROOT / "docs"


def test_the_page_says_what_was_measured() -> None:
    """`docs/promises.md` is made from its data, and never edited by hand."""
    assert (_DOCS / "promises.md").read_text() == page(read(_DOCS))


def test_every_promise_is_in_the_page() -> None:
    """Each file of tests/promises has its place, and no other does."""
    files = (_ROOT / "tests" / "promises").glob("test_*.py")
    tests = [one["test"] for one in read(_DOCS)["promises"]]
    assert tests == sorted(str(file.relative_to(_ROOT)) for file in files)


def test_no_promise_is_without_a_figure() -> None:
    """A promise has a number that was measured, and the long form measured it."""
    for one in read(_DOCS)["promises"]:
        assert one["form"] == "long"
        assert any(figure["bar"] is not None for figure in one["figures"])
