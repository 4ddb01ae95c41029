"""Measure, print the tables, and write them into `docs/performance.md`.

    python -m benchmarks.speed [--scale 1.0] [--rounds 7] [--only sync_calls ...]

Only a whole run in full length rewrites the page. The exit code is 1 where a bar was
missed.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path

from benchmarks.peers import versions
from benchmarks.speed.measure import bars_table, figures_table, rewrite
from benchmarks.speed.sections import SECTIONS
from benchmarks.speed.stub import running

PEERS = ("langchain-core", "langchain-community", "openai", "aiohttp", "urllib3")


def main() -> None:
    """Run the sections, one after another, against one server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of all lengths")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # The peers' deprecations.
    began = time.perf_counter()
    sections = []
    with running() as server:
        for name in arguments.only:
            section = SECTIONS[name](server, arguments.rounds, arguments.scale)
            sections.append(section)
            print(figures_table(section), flush=True)
    seconds = time.perf_counter() - began
    made = (
        f"Measured in {seconds:.0f} s with {versions(*PEERS)} on"
        f" {os.cpu_count()} cores.\n"
    )
    measured = "\n".join(
        [bars_table(sections), made, *(figures_table(one) for one in sections)]
    )
    print(bars_table(sections), made, sep="\n")
    if arguments.scale == 1 and set(arguments.only) == set(SECTIONS):
        rewrite(Path("docs/performance.md"), measured)
    missed = [b.name for one in sections for b in one.bars if not b.holds(one.rounds)]
    print(f"{len(missed)} bars missed", *missed, sep="\n  ")
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
