"""Rounds in which every contestant runs once, and bars held to them."""

from __future__ import annotations

import contextlib
import gc
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Rounds: TypeAlias = dict[str, list[float]]
"""What each contestant took, round by round; slow ones run in the first rounds only."""

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
        """The median of what the rounds gave that all of its names ran in."""
        names = (self.figure, *self.over, *([self.minus] if self.minus else []))
        by_round = zip(*(rounds[name] for name in names), strict=False)
        return statistics.median(
            self._of_round(dict(zip(names, values, strict=True))) for values in by_round
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
        beside: What was seen beside them, each in the unit that its name says.
    """

    title: str
    unit: str
    rounds: Rounds
    bars: Sequence[Bar] = ()
    beside: Rounds = field(default_factory=dict)

    @property
    def seen(self) -> Rounds:
        """All figures that a bar may be about."""
        return self.rounds | self.beside


@dataclass(frozen=True)
class Slow:
    """A contestant that runs in fewer rounds than the others.

    Attributes:
        measure: Its measurement.
        rounds: That it runs in, at the most: the first ones.
        warm_up: What it does instead to warm up.
    """

    measure: Measurement
    rounds: int
    warm_up: Measurement


def interleaved(contestants: Mapping[str, Measurement | Slow], rounds: int) -> Rounds:
    """Each contestant's figures; once around is for warming up and is thrown away."""
    for one in contestants.values():
        _figure(one.warm_up if isinstance(one, Slow) else one)
    seen: Rounds = {name: [] for name in contestants}
    for number in range(rounds):
        for name, one in contestants.items():
            if not isinstance(one, Slow):
                seen[name].append(_figure(one))
            elif number < one.rounds:
                seen[name].append(_figure(one.measure))
    return seen


def _figure(measurement: Measurement) -> float:
    gc.collect()
    return measurement()


@contextlib.contextmanager
def collector(*, on: bool) -> Iterator[None]:
    """Python's garbage collector, at work or not for as long as the block lasts."""
    if not on:
        gc.disable()
    try:
        yield
    finally:
        gc.enable()
