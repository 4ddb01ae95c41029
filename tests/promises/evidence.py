"""A promise, and the figures that a test has measured for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from typing_extensions import TypedDict

Bound: TypeAlias = Literal["≤", "≥", "=", ""]

US: Final = "langchain-retryrouter"


@dataclass(frozen=True)
class Promise:
    """What is promised; a constant `PROMISE` of each test module in this folder."""

    title: str
    """The promise in a few words: "A full outage is not amplified"."""

    number: str
    """Its number in words: "≤ 1.1 at 1,000 calls"."""

    why: str
    """What it spares its reader, and how it is measured, in a sentence or two."""


class Figure(TypedDict):
    """One figure, as it stands in `docs/promises.json`."""

    what: str
    system: str
    value: float
    bound: Bound
    bar: float | None


class Told(TypedDict):
    """A promise and what was measured for it, as it stands in `docs/promises.json`."""

    title: str
    number: str
    why: str
    test: str
    form: str
    figures: list[Figure]


@dataclass(frozen=True)
class Length:
    """Whether this is the short form or the long one."""

    is_long: bool

    def of(self, *, short: int, long: int) -> int:
        """How many there are in this run."""
        return long if self.is_long else short


class Evidence:
    """Takes down what a test has measured, and fails it where the number is missed.

    A figure taken down by several tests under the same words is one row of the page:
    the worst of them.
    """

    def __init__(self) -> None:
        self.figures: list[Figure] = []

    def at_most(self, bar: float, value: float, what: str) -> None:
        """Ours is `bar` or less."""
        self._ours(what, value, "≤", bar)
        assert value <= bar, f"{what}: {value:g}, where at most {bar:g} is promised"

    def at_least(self, bar: float, value: float, what: str) -> None:
        """Ours is `bar` or more."""
        self._ours(what, value, "≥", bar)
        assert value >= bar, f"{what}: {value:g}, where at least {bar:g} is promised"

    def exactly(self, bar: float, value: float, what: str) -> None:
        """Ours is `bar`."""
        self._ours(what, value, "=", bar)
        assert value == bar, f"{what}: {value:g}, where {bar:g} is promised"

    def counted(self, value: float, what: str) -> None:
        """How much was tried; the sum of all tests stands in the page."""
        self._ours(what, value, "", None)

    def peer(self, system: str, value: float, what: str) -> None:
        """What another library did in the same place; nothing is asked of it."""
        self.figures.append(
            Figure(what=what, system=system, value=value, bound="", bar=None)
        )

    def _ours(self, what: str, value: float, bound: Bound, bar: float | None) -> None:
        self.figures.append(
            Figure(what=what, system=US, value=value, bound=bound, bar=bar)
        )


def merged(figures: Iterable[Figure]) -> list[Figure]:
    """One figure for each thing measured and system, in the order of their coming."""
    rows: dict[tuple[str, str], Figure] = {}
    for figure in figures:
        key = (figure["what"], figure["system"])
        rows[key] = _worse(rows[key], figure) if key in rows else figure
    return list(rows.values())


def _worse(one: Figure, other: Figure) -> Figure:
    if one["bound"] == "" and one["system"] == US:
        return {**one, "value": one["value"] + other["value"]}
    pick = min if one["bound"] == "≥" else max
    return pick(one, other, key=lambda figure: figure["value"])


def told(promise: Promise, module: str, form: str, figures: Iterable[Figure]) -> Told:
    """A promise and all that was measured for it."""
    return Told(
        title=promise.title,
        number=promise.number,
        why=promise.why,
        test=module,
        form=form,
        figures=merged(figures),
    )
