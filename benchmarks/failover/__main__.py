"""Play all scenarios to all systems, and write the scorecard.

    python -m benchmarks.failover [--scale 1.0]

Each system has a process and providers of its own, and goes through all scenarios at
once, since they spend their time waiting. A run in full length rewrites the figures of
`docs/failover.md`.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Final

from benchmarks.failover.run import run
from benchmarks.failover.scorecard import lines, objections, table
from benchmarks.speed.measure import rewrite

PACKAGES: Final = (
    "langchain-retryrouter",
    *("langchain-core", "langchain-openai", "openai", "litellm"),
)


def main() -> None:
    """Run, print the scorecard, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of all times")
    scale = parser.parse_args().scale
    if not 0 < scale <= 1:
        parser.error(f"--scale must be above 0 and up to 1, not {scale:g}")
    began = time.monotonic()
    scorecard = lines(run(scale))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    measured = (
        f"{table(scorecard)}\n"
        "Each cell has the grade, the attempts that the primary saw, and the seconds of"
        f" the longest call.\nReasons against a pass:\n\n{objections(scorecard)}\n"
        f"Measured in {time.monotonic() - began:.0f} s with {versions}, Python"
        f" {platform.python_version()} on {os.cpu_count()} cores.\n"
    )
    print(measured)
    if scale == 1:
        rewrite(Path("docs/failover.md"), measured)


if __name__ == "__main__":
    main()
