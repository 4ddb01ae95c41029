"""`make fleet_bench`: sixteen processes and a provider that says when to come back.

Two providers are alternatives. One of them answers each request by a 429, or a 503. All
processes begin together, and make 10 calls each, one in half a second. Counted are the
requests that the sick provider gets, and the calls that are answered: by routers that
share what they know over a redis-server, and by the same without it.

    python -m benchmarks.fleet
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, Final, TypeAlias

from langchain_openai import ChatOpenAI

from langchain_retryrouter import RetryRouter, Route
from langchain_retryrouter.testing import FaultyGateway, Status, Step
from tests.support.redis_server import RedisServer

Ask: TypeAlias = Callable[[], object]
"""Makes one call."""

PROCESSES: Final = 16
CALLS: Final = 10
PAUSE: Final = 0.5
FAULTS: Final[dict[str, Step]] = {
    "429, `Retry-After: 120`": Status(429, {"retry-after": "120"}),
    "503": Status(503),
}


def retry_router(urls: list[str], redis: str | None) -> Ask:
    """Two routes of one tier."""
    router = RetryRouter(
        routes=[
            Route(
                model=ChatOpenAI(model="gpt-4o", base_url=url, api_key="any"),  # type: ignore[arg-type]
                name=f"provider-{number}",
                tier=0,
            )
            for number, url in enumerate(urls)
        ],
        store=redis,
    )
    return lambda: router.invoke("Hello?")


def litellm_router(urls: list[str], redis: str | None) -> Ask:
    """LiteLLM's `Router` with two deployments."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # Ask no other host.
    litellm: Any = importlib.import_module("litellm")
    litellm.suppress_debug_info = True
    models = [
        {
            "model_name": "gpt-4o",
            "litellm_params": {
                "model": "openai/gpt-4o",
                "api_base": url,
                "api_key": "any",
            },
        }
        for url in urls
    ]
    router = litellm.Router(model_list=models, redis_url=redis)
    messages = [{"role": "user", "content": "Hello?"}]
    return lambda: router.completion(model="gpt-4o", messages=messages)


SYSTEMS: Final[dict[str, Callable[[list[str], str | None], Ask]]] = {
    "RetryRouter": retry_router,
    "LiteLLM Router": litellm_router,
}


def work(system: str, urls: list[str], redis: str | None) -> None:
    """One process: say that it is ready, wait for the start, and make the calls."""
    ask = SYSTEMS[system](urls, redis)
    print("ready", flush=True)
    sys.stdin.readline()
    answered = 0
    for _ in range(CALLS):
        began = time.monotonic()
        try:
            ask()
            answered += 1
        except Exception as error:  # noqa: BLE001 - of any system
            print(f"{system}: {type(error).__name__}: {error}"[:200], file=sys.stderr)
        time.sleep(max(0.0, began + PAUSE - time.monotonic()))
    print(answered, flush=True)


def play(system: str, fault: Step, redis: str | None) -> str:
    """A cell: requests to the sick provider, and calls that were answered."""
    with FaultyGateway() as sick, FaultyGateway() as well:
        sick.always(fault)
        command = [sys.executable, "-m", "benchmarks.fleet", "--work", system]
        command += ["--urls", sick.openai_url, well.openai_url]
        command += ["--redis", redis] if redis else []
        workers = [
            subprocess.Popen(  # noqa: S603 - our own module
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(PROCESSES)
        ]
        for one in workers:
            assert one.stdout is not None
            one.stdout.readline()
        for one in workers:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        answered = sum(int(one.communicate()[0].split()[-1]) for one in workers)
        return f"{len(sick.requests)} / {answered}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--urls", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--redis", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work, given.urls, given.redis)
        return
    rows = [["", *FAULTS], ["---", *["--:"] * len(FAULTS)]]
    for system in SYSTEMS:
        for is_shared in (True, False):
            row = [f"{system}, {'with' if is_shared else 'without'} Redis"]
            for fault in FAULTS.values():
                with RedisServer() as server:
                    row.append(play(system, fault, server.url if is_shared else None))
            rows.append(row)
    packages = ("langchain-retryrouter", "langchain-openai", "litellm")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    measured = (
        "".join(f"| {' | '.join(row)} |\n" for row in rows)
        + f"\nMeasured with {versions}, Python {platform.python_version()}.\n"
    )
    print(measured)


if __name__ == "__main__":
    main()
