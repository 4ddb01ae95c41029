"""Rounds in which every contestant runs once, and bars held to them."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Rounds: TypeAlias = dict[str, list[float]]
"""What each contestant took, round by round."""

Measurement: TypeAlias = Callable[[], float]


@dataclass(frozen=True)
class Bar:
    """What a figure, or a ratio of two, must be.

    Attributes:
        what: The bar in words.
        figure: The names whose figures are added up.
        over: The names it is divided by the sum of; none: the figure itself is held.
        limit: Where the bar is.
        side: Whether it may be at most so much, or must be at least so much.
        minus: A name whose figure is subtracted first.
    """

    what: str
    figure: str
    limit: float
    over: Sequence[str] = ()
    side: Literal["≤", "≥"] = "≤"
    minus: str | None = None

    def seen(self, rounds: Rounds) -> float:
        """The figure: the median of what the rounds gave, each for itself."""
        return statistics.median(
            self._of_round({name: values[number] for name, values in rounds.items()})
            for number in range(len(rounds[self.figure]))
        )

    def holds(self, rounds: Rounds) -> bool:
        """Whether the figure is on the right side."""
        seen = self.seen(rounds)
        return seen <= self.limit if self.side == "≤" else seen >= self.limit

    def _of_round(self, values: Mapping[str, float]) -> float:
        figure = values[self.figure] - (values[self.minus] if self.minus else 0.0)
        return figure / sum(values[name] for name in self.over) if self.over else figure


@dataclass(frozen=True)
class Section:
    """One thing measured, in one unit.

    Attributes:
        title: What was measured.
        unit: Of the figures.
        rounds: The figures.
        bars: What is promised of them.
    """

    title: str
    unit: str
    rounds: Rounds
    bars: Sequence[Bar] = ()


def interleaved(contestants: Mapping[str, Measurement], rounds: int) -> Rounds:
    """Each contestant's figures; once around is for warming up and is thrown away."""
    seen: Rounds = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, measurement in contestants.items():
            gc.collect()
            figure = measurement()
            if number:
                seen[name].append(figure)
    return seen
