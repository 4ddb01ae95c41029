"""Writes docs/integrations.md from the results of the matrix and the rows' models."""

from __future__ import annotations

import datetime as dt
import re
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Final

from langchain_retryrouter import RetryRouter
from tests.integrations.matrix import ask
from tests.integrations.rows import ROWS, Row
from tests.support.providers.server import Script, ScriptedProvider

_PAGE: Final = Path(__file__).parents[2] / "docs" / "integrations.md"
_ENDS: Final = ("finish_reason", "stop_reason", "stopReason", "done_reason", "status")
_RESULTS: Final = re.compile(r"(<!-- results.*?-->\n).*?(<!-- end)", re.DOTALL)
_HEAD: Final = """
| model | version | cells | wrong | its own retries in a router | its end | to know |
|---|---|---|---|---|---|---|
"""


def write_page(results: dict[tuple[str, str, str], bool]) -> None:
    """Write the page.

    Args:
        results: Whether a cell (row, column, method) is right.
    """
    rows = {name: row for name, row in ROWS.items() if row.is_installed}
    tried = Counter(row for row, _, _ in results)
    wrong = Counter(cell[0] for cell, is_right in results.items() if not is_right)
    lines = [_line(row, tried[name], wrong[name]) for name, row in rows.items()]
    faults = dict.fromkeys(column for _, column, _ in results)
    total = (
        f"{dt.datetime.now(dt.UTC).date()}, langchain-core {version('langchain-core')}:"
        f" {len(results)} cells, {wrong.total()} wrong. Faults: {'; '.join(faults)}."
    )
    text = "\n".join([total, _HEAD.rstrip("\n"), *lines, ""])
    page = _PAGE.read_text("utf-8")
    page = _RESULTS.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", page)
    _PAGE.write_text(page, "utf-8")


def _line(row: Row, tried: int, wrong: int) -> str:
    """One integration: what the router says of it, and what its answers name."""
    package = row.package.replace("_", "-")
    with ScriptedProvider(row.protocol, Script()) as provider:
        model = row.model(provider.url)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cost = RetryRouter(routes=[model]).routes[0].route_cost
        retries = "; ".join(cost.warnings) or (
            f"switched off: {cost.disabled_retries}"
            if cost.disabled_retries
            else "none"
        )
        names: set[str] = set()
        for method in row.methods:
            answer = ask(lambda: row.model(provider.url), method)
            names |= {name for name in _ENDS if answer.response_metadata.get(name)}
    ends = ", ".join(f"`{name}`" for name in sorted(names))
    cls = row.cls.partition(":")[2] + (f", {row.mode}" if row.mode else "")
    known = f"{package} {version(package)}"
    return f"| {cls} | {known} | {tried} | {wrong} | {retries} | {ends} | {row.notes} |"
