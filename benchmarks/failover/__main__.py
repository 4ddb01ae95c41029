"""Sixteen faults, three systems, one run: the scorecard, from the providers' own log.

python -m benchmarks.failover [--scale 1.0] [--out docs]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.failover.scorecard import Results, history, lines, measured, rewritten
from benchmarks.failover.timeline import draw
from benchmarks.failover.tournament import run

_PACKAGES = (
    "langchain-retryrouter",
    "langchain-core",
    "langchain-openai",
    "openai",
    "litellm",
)


def _report(results: Results, scale: float, seconds: float) -> dict[str, Any]:
    return {
        "scale": scale,
        "seconds": round(seconds, 1),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "scorecard": lines(results),
        "S15": {system: history(seen["S15"]) for system, seen in results.items()},
    }


def _write(report: dict[str, Any], picture: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = json.dumps(report, indent=1, ensure_ascii=False)
    (folder / "failover.json").write_text(f"{data}\n")
    (folder / "failover_timeline.svg").write_text(picture)
    page = folder / "failover.md"
    if page.exists():
        page.write_text(rewritten(page.read_text(), report))


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
    report = _report(results, arguments.scale, time.monotonic() - began)
    picture = draw({system: seen["S15"] for system, seen in results.items()})
    _write(report, picture, folder)
    print(measured(report))


if __name__ == "__main__":
    main()
