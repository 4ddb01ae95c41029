"""The arithmetic of the speed bench, and the page that it rewrites."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.speed.measure import (
    BEGIN,
    END,
    Bar,
    Section,
    bars_table,
)

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("bar", "seen", "holds"),
    [
        (Bar("", "ours", 3.0), 3.0, True),
        (Bar("", "ours", 2.9), 3.0, False),
        (Bar("", "ours", 3.0, side="≥"), 3.0, True),
        (Bar("", "ours", 3.1, side="≥"), 3.0, False),
        (Bar("", "ours", 2.0, minus="floor"), 2.0, True),
        (Bar("", "ours", 0.4, over="peer"), 0.375, True),  # Of the two rounds of both.
    ],
)
def test_a_bar_is_held_to_the_median_of_its_rounds(
    bar: Bar, seen: float, *, holds: bool
) -> None:
    """A ratio is taken round by round, and the limit itself is held."""
    rounds = {"ours": [2.0, 3.0, 100.0], "floor": [1.0] * 3, "peer": [4.0, 12.0]}
    assert bar.seen(rounds) == pytest.approx(seen)
    assert bar.holds(rounds) is holds


def test_a_missed_bar_shows() -> None:
    """The table says what was seen, what is promised, and that it was missed."""
    bars = (Bar("ours / peer", "ours", 0.5, "peer"),)
    table = bars_table([Section("", "µs", {"ours": [2.0], "peer": [2.5]}, bars)])
    assert "| ours / peer | 0.8 | ≤ 0.5 | **missed** |" in table


@pytest.mark.parametrize("name", ["performance.md", "failover.md"])
def test_the_pages_have_a_place_for_the_figures(name: str) -> None:
    """`make bench` and `make failover_bench` find the block that they rewrite."""
    page = (ROOT / "docs" / name).read_text()
    assert page.count(BEGIN) == page.count(END) == 1
