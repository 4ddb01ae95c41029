"""Reads the tables of a page, so that they can be compared with the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

DOCS: Final = Path(__file__).parents[3] / "docs"

_CODE = re.compile(r"`([^`]+)`")


def codes_in(cell: str) -> list[str]:
    """What stands in backticks."""
    return _CODE.findall(cell)


def rows_of(page: Path, heading: str) -> list[list[str]]:
    """The cells of the tables below a heading, without their heads."""
    _, _, below = page.read_text().partition(f"# {heading}\n")
    section = re.split(r"\n##+ ", below)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    is_rule = [set(line) <= set("|-") for line in lines]
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for at, line in enumerate(lines)
        if not is_rule[at] and not (at + 1 < len(lines) and is_rule[at + 1])
    ]
