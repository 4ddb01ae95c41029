"""LangChain's integrations as routes, against scripted servers of their providers.

`make integrations` runs the packages of `constraints/integrations.txt`; `.ci/run` runs
those that the development environment has.
"""

from __future__ import annotations

import pytest

from tests.integrations.matrix import COLUMNS, METHODS, Method, run_cell
from tests.integrations.rows import ROWS

pytestmark = pytest.mark.filterwarnings("ignore")  # They are the other packages'.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize(
    "row", [name for name, row in ROWS.items() if row.is_installed]
)
def test_cell(row: str, column: str, method: Method) -> None:
    """A fault is answered by the backup, or by a typed error that says what it was."""
    assert run_cell(ROWS[row], column, method) == []
