"""Measure, print the tables, and write them down.

    python -m benchmarks.speed [--scale 1.0] [--rounds 9] [--only calls ...]

A run in full length rewrites the sections that it measured in `docs/performance.*`. The
exit code is 1 where a bar was missed.
"""

from __future__ import annotations

import argparse
import os
import platform
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Final

from benchmarks.speed import calls, crowds, footprint, growth, streams
from benchmarks.speed.chart import draw
from benchmarks.speed.measure import Section
from benchmarks.speed.report import ProviderError, measured, of_section, write
from benchmarks.speed.stub import StubServer, running

SECTIONS: Final[dict[str, Callable[[StubServer, int, float], Section]]] = {
    "calls": calls.sync_calls,
    "acalls": calls.async_calls,
    "chunks": streams.sync_chunks,
    "achunks": streams.async_chunks,
    "first": streams.first_token,
    "afirst": streams.async_first_token,
    "crowd500": crowds.crowd(500),
    "crowd2000": crowds.crowd(2_000),
    "guards": footprint.guards,
    "building": footprint.building,
    "imports": footprint.imports,
    "memory": footprint.memory,
    "growth_calls": growth.calls,
    "growth_chunks": growth.chunks,
    "growth_in_flight": growth.in_flight,
}
_PACKAGES: Final = (
    "langchain-retryrouter",
    "langchain-core",
    "langchain-openai",
    "langchain-community",
    "openai",
    "gptrouter",
    "litellm",
    "aiohttp",
    "urllib3",
)


def main() -> None:
    """Run the sections, one after another, against one server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of all lengths")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # The peers' deprecations are not ours to show.
    report = ProviderError(
        python=platform.python_version(),
        cores=os.cpu_count() or 1,
        versions={name: metadata.version(name) for name in _PACKAGES},
        sections=[],
    )
    with running() as server:
        for name in arguments.only:
            section = SECTIONS[name](server, arguments.rounds, arguments.scale)
            report["sections"].append(of_section(name, section))
            print(measured(report["sections"][-1]), flush=True)
            if arguments.scale == 1:  # A run that is broken off keeps what it has.
                write(report, draw, Path("docs"), list(SECTIONS))
    missed = [
        f"{section['title']}: {bar['what']}"
        for section in report["sections"]
        for bar in section["bars"]
        if not bar["holds"]
    ]
    print(f"{len(missed)} bars missed", *missed, sep="\n  ")
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
