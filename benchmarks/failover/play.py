"""Plays scenarios to a system: calls it, and reads the provider's log."""

from __future__ import annotations

import asyncio
import json
import logging
import urllib.request
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.failover.scenarios import SCENARIOS, Attempt, Call, Scenario, Seen
from benchmarks.failover.systems import System
from benchmarks.openai_server import running
from benchmarks.peers import Ask
from benchmarks.scaled_loop import run

_QUESTION = "Say the sixty words."
_PROBE_LIMIT = 10.0


def play_all(
    system: System,
    scale: float,
    scenarios: Sequence[str] = tuple(SCENARIOS),
    **how: Any,
) -> dict[str, Seen]:
    """What is seen of one system, in this process, which has its own provider.

    Args:
        system: Who is called.
        scale: By which the time of the loop and of the provider runs faster.
        scenarios: Their names; all by default, one after another on the same loop.
        **how: Of `play`.
    """
    warnings.simplefilter("ignore")  # The peers' deprecations.
    logging.disable(logging.CRITICAL)
    # S03 is played once more before, so that imports take no scenario's time.
    played = [SCENARIOS[name] for name in ("S03", *scenarios)]
    with running("benchmarks.failover.provider", str(scale)) as [url]:
        seen = run(play(played, system, url, scale, **how), scale)
    return {name: seen[name] for name in scenarios}


async def play(
    scenarios: Iterable[Scenario],
    system: System,
    url: str,
    scale: float,
    *,
    is_stream: bool = True,
    retry_after: str = "2",
) -> dict[str, Seen]:
    """What is seen of `system` in each scenario.

    Args:
        scenarios: What is played.
        system: Who is called.
        url: Of the provider.
        scale: As in `play_all`.
        is_stream: Whether answers are streamed.
        retry_after: What S01 sends; a system that does not scale its time needs less.
    """
    healthy = system(url, scale, ["fb-ok"])
    seen = {}
    for one in scenarios:
        await asyncio.to_thread(_fetch, f"{url}/reset", {"retry_after": retry_after})
        ask = system(url, scale, [f"fb-{one.name.lower()}", one.fallback])
        calls = await _calls(one, ask, is_stream=is_stream)
        log = await asyncio.to_thread(_fetch, f"{url}/log")
        probe = await _call(healthy, 0.0, _PROBE_LIMIT, is_stream=False)
        attempts = tuple(Attempt(**entry) for entry in log)
        seen[one.name] = Seen(tuple(calls), attempts, probe)
    return seen


def _fetch(url: str, body: dict[str, str] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(url, data) as response:  # noqa: S310 - our own server
        return json.load(response)


async def _calls(scenario: Scenario, ask: Ask, *, is_stream: bool) -> list[Call]:
    loop = asyncio.get_running_loop()
    start, calls = loop.time(), []
    for number in range(scenario.calls):
        await asyncio.sleep(start + number * scenario.pace - loop.time())
        call = await _call(ask, start, scenario.limit, is_stream=is_stream)
        calls.append(call)
    return calls


async def _call(ask: Ask, start: float, limit: float, *, is_stream: bool) -> Call:
    loop = asyncio.get_running_loop()
    began, error, reply = loop.time(), None, None
    timer = asyncio.timeout(limit)
    try:
        async with timer:
            reply = await ask(_QUESTION, is_stream)
    except Exception as caught:  # noqa: BLE001 - whatever a system raises is its answer
        if not timer.expired():
            error = f"{type(caught).__name__}: {caught}"
    seconds = loop.time() - began
    if reply is None:
        return Call(began - start, seconds, error=error)
    return Call(began - start, seconds, reply.text, reply.model, reply.has_usage)
