"""The page of the bench is what its data say, and every section is in it."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.speed.__main__ import SECTIONS
from benchmarks.speed.report import ProviderError, rewritten

_DOCS = Path(__file__).parents[3] / "docs"
_REPORT: ProviderError = json.loads((_DOCS / "performance.json").read_text())


def test_the_page_says_what_was_measured() -> None:
    """The tables of `docs/performance.md` are made, and never edited by hand."""
    page = (_DOCS / "performance.md").read_text()
    assert rewritten(page, _REPORT) == page


def test_every_section_was_measured() -> None:
    """No section of the bench is left out of the page."""
    assert [section["name"] for section in _REPORT["sections"]] == list(SECTIONS)
