"""LangChain's integrations as routes, against scripted servers of their providers.

`make integrations` runs the packages of `constraints/integrations.txt`; `.ci/run` runs
those that the development environment has. With `--write-page -k "test_cell and
[cohere-"` it is one integration: the results of runs with the same code add up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.integrations.matrix import cells, run_cell
from tests.integrations.rows import ROWS, Method

# They are the other packages'.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(("row", "column", "method"), cells())
def test_cell(
    row: str, column: str, method: Method, record_property: Callable[[str, Any], None]
) -> None:
    """A fault is answered by the backup, or by a typed error that says what it was."""
    record_property("cell", (row, column, method))
    assert run_cell(ROWS[row], column, method) == []
