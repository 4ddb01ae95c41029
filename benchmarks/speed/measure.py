"""Rounds in which every contestant runs once, and the bars that ratios are held to."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

BEGIN: Final = "<!-- measured: rewritten by the bench -->\n"
END: Final = "<!-- end of what is measured -->\n"

Rounds: TypeAlias = dict[str, list[float]]
"""The figure of each contestant, round by round; slow ones skip later rounds."""

Measurement: TypeAlias = Callable[[], float]


@dataclass(frozen=True)
class Bar:
    """What a figure, or a ratio of two, must be.

    Attributes:
        name: What is held, in words.
        figure: The contestant that is held.
        limit: The bar.
        over: What its figure is divided by, round by round; None for the figure itself.
        minus: A contestant whose figure is subtracted first.
        side: Whether it may be at most so much, or must be at least so much.
    """

    name: str
    figure: str
    limit: float
    over: str | None = None
    minus: str | None = None
    side: Literal["≤", "≥"] = "≤"

    def seen(self, rounds: Rounds) -> float:
        """The median over the rounds in which all of its contestants ran."""
        names = [one for one in (self.figure, self.over, self.minus) if one]
        values = zip(*(rounds[name] for name in names), strict=False)
        return statistics.median(
            self._of_round(dict(zip(names, one, strict=True))) for one in values
        )

    def holds(self, rounds: Rounds) -> bool:
        """Whether the figure is on the right side."""
        seen = self.seen(rounds)
        return seen <= self.limit if self.side == "≤" else seen >= self.limit

    def _of_round(self, values: Mapping[str, float]) -> float:
        figure = values[self.figure] - (values[self.minus] if self.minus else 0.0)
        return figure / values[self.over] if self.over else figure


@dataclass(frozen=True)
class Section:
    """One thing that was measured, in one unit."""

    title: str
    unit: str
    rounds: Rounds
    bars: Sequence[Bar] = ()


def interleaved(
    contestants: Mapping[str, Measurement], rounds: int, *, few: Mapping[str, int] = {}
) -> Rounds:
    """The figures of all contestants; a first round warms up and is thrown away.

    Args:
        contestants: Their measurements.
        rounds: In each of them every contestant runs once, so that whatever else the
            machine is doing hits all of them.
        few: For slow contestants, how many rounds they run in.
    """
    seen: Rounds = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, measure in contestants.items():
            if number <= few.get(name, rounds):
                gc.collect()
                figure = measure()
                seen[name] += [figure] if number else []
    return seen


def bars_table(sections: Sequence[Section]) -> str:
    """All bars: what was seen, and whether it was held."""
    rows = [
        [
            bar.name,
            _number(bar.seen(section.rounds)),
            f"{bar.side} {bar.limit:g}",
            "held" if bar.holds(section.rounds) else "**missed**",
        ]
        for section in sections
        for bar in section.bars
    ]
    return table(["bar", "seen", "aim", ""], rows)


def figures_table(section: Section) -> str:
    """The figures of all contestants of a section."""
    rows = [
        [
            name,
            _number(statistics.median(values)),
            f"{_number(min(values))} to {_number(max(values))}",
        ]
        for name, values in section.rounds.items()
    ]
    head = [section.title, f"median, {section.unit}", "lowest to highest"]
    return table(head, rows)


def rewrite(page: Path, measured: str) -> None:
    """Put what was measured between the two marks of a page.

    Raises:
        ValueError: The page does not have the marks.
    """
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        msg = f"{page} needs the lines {BEGIN.strip()!r} and {END.strip()!r}"
        raise ValueError(msg)
    page.write_text(f"{before}{BEGIN}\n{measured}\n{END}{after}")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    marks = ["---"] + ["--:"] * (len(head) - 1)
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, marks, *rows])


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
