"""The scorecard: what each system deserved in each scenario, as data and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from benchmarks.failover.evidence import Evidence
from benchmarks.failover.judge import Grade, judge
from benchmarks.failover.scenarios import SCENARIOS

Results: TypeAlias = Mapping[str, Mapping[str, Evidence]]
"""What was seen, by system and by scenario."""

Lines: TypeAlias = dict[str, dict[str, Any]]
"""By system and scenario, what `line` says; JSON-able."""


def lines(results: Results) -> Lines:
    """Each system's verdicts, with the numbers that they rest on."""
    return {
        system: {name: line(name, seen) for name, seen in of_system.items()}
        for system, of_system in results.items()
    }


def line(name: str, seen: Evidence) -> dict[str, Any]:
    """The verdict on one scenario, as JSON-able data."""
    verdict = judge(SCENARIOS[name], seen)
    return {
        "grade": verdict.grade.value,
        "broken": list(verdict.broken),
        "seconds": round(max(call.seconds for call in seen.calls), 2),
        "primary_attempts": len(seen.at_primary),
        "backup_attempts": len(seen.at_backup),
    }


def passes(of_system: Mapping[str, Mapping[str, Any]]) -> int:
    """How many scenarios a system has passed."""
    return sum(1 for one in of_system.values() if one["grade"] == Grade.PASS)


def table(results: Lines) -> str:
    """The scorecard in Markdown: grade, attempts at the primary, longest call."""
    names = next(iter(results.values()), {})
    head = ["", "fault at the primary", *results]
    rows = [[name, SCENARIOS[name].fault, *_cells(results, name)] for name in names]
    total = [f"**{passes(one)} of {len(names)}**" for one in results.values()]
    rows.append(["", "**passed**", *total])
    marks = ["---"] * len(head)
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, marks, *rows])


def _cells(results: Lines, name: str) -> Iterator[str]:
    for of_system in results.values():
        one = of_system[name]
        grade = one["grade"] if one["grade"] == Grade.PASS else f"**{one['grade']}**"
        yield f"{grade}, {one['primary_attempts']} att., {one['seconds']:.1f} s"


def objections(results: Lines) -> str:
    """What was held against a pass, one line each, as a Markdown list."""
    return "".join(
        f"- {system}, {name}: {'; '.join(_short(why) for why in one['broken'])}\n"
        for system, of_system in results.items()
        for name, one in of_system.items()
        if one["broken"]
    )


def _short(why: str, length: int = 120) -> str:
    said = " ".join(why.split())
    return said if len(said) <= length else f"{said[: length - 1]}…"
