"""What was measured: as JSON-able data, and as the tables of `docs/performance.md`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from typing_extensions import TypedDict

from benchmarks.speed.measure import Rounds, Section

_BEGIN: Final = "<!-- measured: rewritten by the bench -->\n"
_END: Final = "<!-- end of what is measured -->\n"


class Row(TypedDict):
    """What one contestant took: the median of its rounds, and the spread."""

    name: str
    rounds: int
    median: float
    low: float
    high: float


class Verdict(TypedDict):
    """What a bar asks, and what was seen."""

    what: str
    seen: float
    side: str
    limit: float
    holds: bool


class Measured(TypedDict):
    """One section; `name` is what the command line calls it."""

    name: str
    title: str
    unit: str
    rows: list[Row]
    beside: list[Row]
    bars: list[Verdict]


class ProviderError(TypedDict):
    """What each section has measured last, as it stands in `docs/performance.json`."""

    python: str
    cores: int
    versions: dict[str, str]
    sections: list[Measured]


def of_section(name: str, section: Section) -> Measured:
    """A section, as data."""
    return Measured(
        name=name,
        title=section.title,
        unit=section.unit,
        rows=_rows(section.rounds),
        beside=_rows(section.beside),
        bars=[
            Verdict(
                what=bar.what,
                seen=round(bar.seen(section.seen), 3),
                side=bar.side,
                limit=bar.limit,
                holds=bar.holds(section.seen),
            )
            for bar in section.bars
        ],
    )


def _rows(rounds: Rounds) -> list[Row]:
    return [
        Row(
            name=name,
            rounds=len(values),
            median=round(statistics.median(values), 3),
            low=round(min(values), 3),
            high=round(max(values), 3),
        )
        for name, values in rounds.items()
    ]


def measured(section: Measured) -> str:
    """A section in Markdown."""
    lines = [f"### {section['title']}\n\n"]
    lines += _figures(f"median, {section['unit']}", section["rows"])
    if section["beside"]:
        lines += ["\n", *_figures("median", section["beside"])]
    if section["bars"]:
        verdicts = [
            [
                bar["what"],
                f"{bar['side']} {bar['limit']:g}",
                _number(bar["seen"]),
                "held" if bar["holds"] else "**missed**",
            ]
            for bar in section["bars"]
        ]
        lines += ["\n", *_table(["bar", "", "seen", ""], verdicts)]
    return "".join(lines)


def overview(report: ProviderError) -> str:
    """All bars in one table, and what was measured with."""
    rows = [
        [
            section["title"],
            bar["what"],
            f"{bar['side']} {bar['limit']:g}",
            _number(bar["seen"]),
            "held" if bar["holds"] else "**missed**",
        ]
        for section in report["sections"]
        for bar in section["bars"]
    ]
    versions = [f"{name} {number}" for name, number in report["versions"].items()]
    return "".join(
        [
            *_table(["measured", "bar", "", "seen", ""], rows),
            f"\nMeasured with {', '.join(versions)},",
            f" Python {report['python']} on {report['cores']} cores.\n",
        ]
    )


def rewritten(page: str, report: ProviderError) -> str:
    """The page, with what this run has measured.

    Raises:
        ValueError: The page has no place for it.
    """
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        msg = f"the page needs the lines {_BEGIN.strip()!r} and {_END.strip()!r}"
        raise ValueError(msg)
    tables = "\n".join(measured(section) for section in report["sections"])
    return f"{before}{_BEGIN}\n{overview(report)}\n{tables}\n{_END}{after}"


def write(
    report: ProviderError,
    draw: Callable[[ProviderError], str],
    folder: Path,
    names: Sequence[str],
) -> None:
    """Write the data, the picture, and the page; what was not measured now is kept.

    Args:
        report: What was measured now.
        draw: Makes the picture.
        folder: Where `performance.md` stands.
        names: Of all sections there are, in their order; others are dropped.
    """
    told: ProviderError = json.loads((folder / "performance.json").read_text())
    every = {one.get("name"): one for one in (*told["sections"], *report["sections"])}
    report = {**report, "sections": [every[name] for name in names if name in every]}
    data = json.dumps(report, indent=1, ensure_ascii=False)
    (folder / "performance.json").write_text(f"{data}\n")
    (folder / "performance.svg").write_text(draw(report))
    page = folder / "performance.md"
    page.write_text(rewritten(page.read_text(), report))


def _figures(head: str, rows: list[Row]) -> list[str]:
    return _table(
        ["", head, "lowest to highest", "rounds"],
        [
            [row["name"], _number(row["median"]), _spread(row), str(row["rounds"])]
            for row in rows
        ],
    )


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    marks = ["---"] + ["--:"] * (len(head) - 1)
    return [f"| {' | '.join(row)} |\n" for row in [head, marks, *rows]]


def _spread(row: Row) -> str:
    return f"{_number(row['low'])} – {_number(row['high'])}"  # noqa: RUF001


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004
