"""Plays all scenarios to all systems, each system in a process of its own.

Not in `__main__.py`, which a spawned process does not import.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor
from typing import Final

from benchmarks.failover.evidence import Evidence
from benchmarks.failover.play import play
from benchmarks.failover.scenarios import SCENARIOS, Scenario
from benchmarks.failover.scorecard import Results
from benchmarks.failover.systems import SYSTEMS
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK

APART: Final = 0.5
"""Seconds from the start of one scenario to the start of the next."""


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
