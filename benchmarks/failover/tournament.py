"""All systems through all scenarios, side by side.

Each system has a process of its own, with providers of its own, and goes through all
scenarios at once: they spend their time waiting. All hear the same script.
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

_APART: Final = 0.5
"""Seconds from one scenario's beginning to the next one's."""


async def _play_all(system: str, scale: float) -> dict[str, Evidence]:
    # What is imported, compiled or looked up first costs no scenario its time.
    for name in ("S03", "S16"):
        await play(SCENARIOS[name], SYSTEMS[system], scale=1.0)
    everybody = asyncio.Barrier(len(SCENARIOS))

    async def take_part(number: int, scenario: Scenario) -> Evidence:
        async def curtain() -> None:
            await everybody.wait()
            await SYSTEM_CLOCK.asleep(number * _APART * scale)

        return await play(scenario, SYSTEMS[system], scale=scale, curtain=curtain)

    seen = await asyncio.gather(
        *(take_part(number, one) for number, one in enumerate(SCENARIOS.values()))
    )
    return dict(zip(SCENARIOS, seen, strict=True))


def _run_system(system: str, scale: float) -> dict[str, Evidence]:
    warnings.simplefilter("ignore")  # The peers' deprecations are not ours to show.
    logging.disable(logging.CRITICAL)
    return asyncio.run(_play_all(system, scale))


def run(scale: float) -> Results:
    """What is seen of all systems in all scenarios.

    Args:
        scale: What all times are multiplied by.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(SYSTEMS), mp_context=context) as processes:
        runs = {name: processes.submit(_run_system, name, scale) for name in SYSTEMS}
        return {name: run.result() for name, run in runs.items()}
