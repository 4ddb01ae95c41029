"""Sixteen faults, three systems, one run: the scorecard, from the providers' own log.

python -m benchmarks.failover [--scale 1.0] [--out docs]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from benchmarks.failover.scorecard import Lines, Results, lines, objections, table
from benchmarks.failover.timeline import draw
from benchmarks.failover.tournament import run

_PACKAGES = ("langchain-retryrouter", "langchain-core", "langchain-openai")
_PEERS = ("openai", "litellm")


def _report(results: Results, scale: float) -> dict[str, object]:
    return {
        "scale": scale,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "versions": {name: metadata.version(name) for name in (*_PACKAGES, *_PEERS)},
        "scorecard": lines(results),
        "S15": {system: asdict(seen["S15"]) for system, seen in results.items()},
    }


def _write(results: Results, scale: float, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    report = json.dumps(_report(results, scale), indent=1, ensure_ascii=False)
    (folder / "failover.json").write_text(f"{report}\n")
    timelines = {system: seen["S15"] for system, seen in results.items()}
    (folder / "failover_timeline.svg").write_text(draw(timelines))


def _print(scorecard: Lines, seconds: float) -> None:
    print(table(scorecard))
    print("each: grade, attempts that the primary saw, seconds of the longest call\n")
    print(objections(scorecard))
    print(f"{seconds:.0f} s")


def main() -> None:
    """Run, print the scorecard, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiplies all times (default: 1)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder (default: docs for a run in full length, else .benchmarks)",
    )
    arguments = parser.parse_args()
    if not 0 < arguments.scale <= 1:
        parser.error(f"--scale must be above 0 and up to 1, not {arguments.scale:g}")
    folder = arguments.out or Path("docs" if arguments.scale == 1 else ".benchmarks")
    began = time.monotonic()
    results = run(arguments.scale)
    _write(results, arguments.scale, folder)
    _print(lines(results), time.monotonic() - began)


if __name__ == "__main__":
    main()
