"""`make fleet_bench`: sixteen processes and a provider that says when to come back.

Two providers are alternatives. One of them answers each request by a 429, or a 503. All
processes begin together, and make 10 calls each, one in half a second. Counted are the
requests that the sick provider gets, and the calls that are answered: by routers that
share what they know over a redis-server, and by the same without it.

    python -m benchmarks.fleet
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from typing import Final

from benchmarks.fleet.systems import SYSTEMS, work
from benchmarks.peers import versions
from langchain_retryrouter.testing import FaultyGateway, Status, Step
from tests.support.redis_server import RedisServer

PROCESS: Final = multiprocessing.get_context("forkserver")
PROCESS.set_forkserver_preload(["benchmarks.fleet.systems", "litellm"])
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # Ask no other host.
PROCESSES: Final = 16
FAULTS: Final[dict[str, Step]] = {
    "429, `Retry-After: 120`": Status(429, {"retry-after": "120"}),
    "503": Status(503),
}


def play(system: str, fault: Step, redis: str | None) -> str:
    """A cell: requests to the sick provider, calls that were answered, and seconds."""
    with FaultyGateway() as sick, FaultyGateway() as well:
        sick.always(fault)
        urls, pipes = [sick.openai_url, well.openai_url], []
        for _ in range(PROCESSES):
            pipe, other = PROCESS.Pipe()
            given = (other, system, urls, redis)
            PROCESS.Process(target=work, args=given, daemon=True).start()
            pipes.append(pipe)
        for pipe in pipes:
            pipe.recv()
        began = time.monotonic()
        for pipe in pipes:
            pipe.send("go")
        answered = sum(pipe.recv() for pipe in pipes)
        seconds = time.monotonic() - began
        return f"{len(sick.requests)} / {answered} / {seconds:.0f} s"


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(f"| requests / answered / seconds | {' | '.join(FAULTS)} |")
    print(f"|---{'|--:' * len(FAULTS)}|")
    for system in SYSTEMS:
        for is_shared in (True, False):
            row = [f"{system}, {'with' if is_shared else 'without'} Redis"]
            for fault in FAULTS.values():
                with RedisServer() as server:
                    row.append(play(system, fault, server.url if is_shared else None))
            print(f"| {' | '.join(row)} |", flush=True)
    print(f"\nMeasured with {versions()}.")


if __name__ == "__main__":
    main()
