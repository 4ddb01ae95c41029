"""Play all scenarios to all systems, and write the scorecard.

    python -m benchmarks.failover [--scale 1.0]

Each system has a process and providers of its own, and goes through all scenarios at
once, since they spend their time waiting. A run in full length rewrites the figures of
`docs/failover.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import os
import platform
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Final

from benchmarks.failover.evidence import Evidence
from benchmarks.failover.play import play
from benchmarks.failover.scenarios import SCENARIOS, Scenario
from benchmarks.failover.scorecard import Results, lines, objections, table
from benchmarks.failover.systems import SYSTEMS
from benchmarks.speed.measure import rewrite
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK

APART: Final = 0.5
"""Seconds from the start of one scenario to the start of the next."""

PACKAGES: Final = (
    "langchain-retryrouter",
    *("langchain-core", "langchain-openai", "openai", "litellm"),
)


async def play_all(system: str, scale: float) -> dict[str, Evidence]:
    """One system in all scenarios."""
    # Imports and first connections take no scenario's time.
    for name in ("S03", "S16"):
        await play(SCENARIOS[name], SYSTEMS[system], scale=1.0)
    everybody = asyncio.Barrier(len(SCENARIOS))

    async def take_part(number: int, scenario: Scenario) -> Evidence:
        async def curtain() -> None:
            await everybody.wait()
            await SYSTEM_CLOCK.asleep(number * APART * scale)

        return await play(scenario, SYSTEMS[system], scale=scale, curtain=curtain)

    seen = await asyncio.gather(
        *(take_part(number, one) for number, one in enumerate(SCENARIOS.values()))
    )
    return dict(zip(SCENARIOS, seen, strict=True))


def run_system(system: str, scale: float) -> dict[str, Evidence]:
    """`play_all` in a process of its own."""
    warnings.simplefilter("ignore")  # The peers' deprecations.
    logging.disable(logging.CRITICAL)
    return asyncio.run(play_all(system, scale))


def run(scale: float) -> Results:
    """What is seen of all systems in all scenarios; `scale` multiplies all times."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(SYSTEMS), mp_context=context) as processes:
        runs = {name: processes.submit(run_system, name, scale) for name in SYSTEMS}
        return {name: one.result() for name, one in runs.items()}


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
