"""Writes docs/integrations.md from the results of the matrix and the rows' models."""

from __future__ import annotations

import datetime as dt
import gc
import hashlib
import json
import os
import re
import subprocess
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Final

from langchain_retryrouter import RetryRouter
from tests.integrations.matrix import ask, cells
from tests.integrations.rows import ROWS, Row
from tests.support.providers.server import Script
from tests.support.providers.vertex import serve

_ROOT: Final = Path(__file__).parents[2]
_PAGE: Final = _ROOT / "docs" / "integrations.md"
_STORE: Final = _ROOT / ".venvs" / "integrations-results.json"
_ENDS: Final = ("finish_reason", "stop_reason", "stopReason", "done_reason", "status")
_RESULTS: Final = re.compile(r"(<!-- results.*?-->\n).*?(<!-- end)", re.DOTALL)
_HEAD: Final = """
| model | version | cells | wrong | its own retries in a router | its end | to know |
|---|---|---|---|---|---|---|
"""


def keep_results(new: dict[str, bool]) -> dict[tuple[str, str, str], bool]:
    """Whether a cell (row, column, method) is right, of all runs with the same code.

    So the cells can be tried in several runs, and a cell again alone. The results of
    another version of the package, the tests or an integration are dropped.
    """
    sources = [*_ROOT.glob("langchain_retryrouter/**/*.py")]
    sources += [
        Path(__file__).with_name(name)
        for name in ("matrix.py", "rows.py", "errors.json")
    ]
    sources += [*_ROOT.glob("tests/support/providers/*.py")]
    code = hashlib.sha256()
    for source in sorted(sources):
        code.update(source.read_bytes())
    installed = sorted({r.package for r in ROWS.values() if r.is_installed})
    code.update(repr([(name, version(name)) for name in installed]).encode())
    kept: dict[str, bool] = {}
    if _STORE.exists():
        stored = json.loads(_STORE.read_text("utf-8"))
        kept = stored["cells"] if stored["code"] == code.hexdigest() else {}
    kept |= new
    _STORE.write_text(json.dumps({"code": code.hexdigest(), "cells": kept}), "utf-8")
    return {tuple(cell.split("|")): right for cell, right in kept.items()}  # type: ignore[misc]


def write_page(results: dict[tuple[str, str, str], bool]) -> None:
    """Write the page.

    Args:
        results: Whether a cell (row, column, method) is right.
    """
    tried_rows = {row for row, _, _ in results}
    installed = {name: row for name, row in ROWS.items() if row.is_installed}
    rows = {name: row for name, row in installed.items() if name in tried_rows}
    others = [_name_of(row) for name, row in installed.items() if name not in rows]
    tried = Counter(row for row, _, _ in results)
    wrong = Counter(cell[0] for cell, is_right in results.items() if not is_right)
    # LiteLLM would fetch a list of prices when it is imported.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # They are the other packages'.
        lines = [_line(row, tried[name], wrong[name]) for name, row in rows.items()]
        gc.collect()  # Here, where what they leave open is no error.
    columns = {column for _, column, _ in results}
    faults = dict.fromkeys(one for _, one, _ in cells() if one in columns)
    total = (
        f"{dt.datetime.now(dt.UTC).date()}, langchain-core {version('langchain-core')}:"
        f" {len(results):,} of {len(cells()):,} cells tried with commit {_commit()},"
        f" {wrong.total()} wrong."
        f" Faults: {'; '.join(faults)}."
        + (f" Not tried with this code yet: {'; '.join(others)}." if others else "")
    )
    text = "\n".join([total, _HEAD.rstrip("\n"), *lines, ""])
    page = _PAGE.read_text("utf-8")
    page = _RESULTS.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", page)
    _PAGE.write_text(page, "utf-8")


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.check_output(command, cwd=_PAGE.parent, text=True).strip()


def _name_of(row: Row) -> str:
    return row.cls.partition(":")[2] + (f" ({row.mode})" if row.mode else "")


def _line(row: Row, tried: int, wrong: int) -> str:
    """One integration: what the router says of it, and what its answers name."""
    package = row.package.replace("_", "-")
    with serve(row.protocol, Script()) as provider:
        model = row.model(provider.url)
        cost = RetryRouter(routes=[model]).routes[0].status.cost
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
    known = f"{package} {version(package)}"
    columns = (_name_of(row), known, tried, wrong, retries, ends, row.notes)
    return f"| {' | '.join(map(str, columns))} |"
