"""Play all scenarios to all systems, and write the scorecard.

    python -m benchmarks.failover [--speed 1]

Each system has a process and a provider of its own, in which the scenarios follow one
another. `--speed 10` lets time run ten times as fast, which the systems' own waits on
the event loop notice and LiteLLM's cooldowns do not; so only a run at 1 rewrites the
figures of `docs/failover.md`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.failover.play import play_all
from benchmarks.failover.scenarios import SCENARIOS, Grade, Seen, judge
from benchmarks.failover.systems import SYSTEMS
from benchmarks.peers import versions
from benchmarks.speed.measure import rewrite


def scorecard(results: dict[str, dict[str, Seen]]) -> str:
    """The table in Markdown, and the reasons against each pass."""
    passed = dict.fromkeys(results, 0)
    rows, reasons = [], []
    for name, scenario in SCENARIOS.items():
        row = [name, scenario.fault]
        for system, of_system in results.items():
            seen = of_system[name]
            grade, against = judge(scenario, seen)
            passed[system] += grade is Grade.PASS
            said = grade if grade is Grade.PASS else f"**{grade}**"
            longest = max(call.seconds for call in seen.calls)
            row.append(f"{said}, {len(seen.at_primary)} att., {longest:.1f} s")
            if against:
                why = " ".join("; ".join(against).split())
                reasons.append(f"- {system}, {name}: {why[:160]}\n")
        rows.append(row)
    total = [f"**{count} of {len(SCENARIOS)}**" for count in passed.values()]
    head = ["", "fault at the primary", *results]
    table = [head, ["---"] * len(head), *rows, ["", "**passed**", *total]]
    lines = "".join(f"| {' | '.join(row)} |\n" for row in table)
    return (
        f"{lines}\nEach cell has the grade, the attempts that the primary saw, and the"
        " seconds of the longest call.\nWhy not a pass:\n\n" + "".join(sorted(reasons))
    )


def main() -> None:
    """Run, print the scorecard, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speed", type=float, default=1.0, help="of time")
    scale = parser.parse_args().speed
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(SYSTEMS), mp_context=context) as processes:
        runs = {
            name: processes.submit(play_all, system, scale)
            for name, system in SYSTEMS.items()
        }
        card = scorecard({name: one.result() for name, one in runs.items()})
    measured = (
        f"{card}\nMeasured in {time.monotonic() - began:.0f} s with"
        f" {versions('langchain-core', 'openai')} on {os.cpu_count()} cores.\n"
    )
    print(measured)
    if scale == 1:
        rewrite(Path("docs/failover.md"), measured)


if __name__ == "__main__":
    main()
