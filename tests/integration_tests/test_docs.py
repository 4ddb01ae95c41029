"""The examples of docs/ that need a package which the unit tests go without."""

from __future__ import annotations

from pathlib import Path

import pytest

from langchain_retryrouter.testing import FaultyGateway
from tests.unit_tests.conftest import no_real_waits
from tests.unit_tests.docs.conftest import reader
from tests.unit_tests.docs.pages import blocks_of, run

__all__ = ["no_real_waits", "reader"]

_ROOT = Path(__file__).parents[2]
_PAGES = [
    page
    for page in sorted((_ROOT / "docs").rglob("*.md"))
    if any(block.needs for block in blocks_of(page))
]


@pytest.mark.usefixtures("no_real_waits")
@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_a_page_runs_whole(page: Path, reader: FaultyGateway) -> None:
    """A page with examples that the unit tests leave out runs with all of them."""
    run(blocks_of(page), reader)
