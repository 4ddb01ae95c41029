"""`make answer_bench`: the same faulty calls through RetryRouter and its peers.

Two providers over real HTTP on this machine; a fault meets 30 % of the calls at the
primary and 3 % at the backup (`provider.FAULTS`). Half of the calls are `ainvoke`, half
`astream`. The answer is one fixed text: anything else that is returned as an answer
counts as wrong. A refusal that is raised as `ContentFilterError` counts as answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import statistics
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.answers.provider import ANSWER
from benchmarks.openai_server import running
from benchmarks.peers import Ask, asked, asked_litellm, chat_openai, litellm_router
from benchmarks.scaled_loop import ScaledClock, run
from langchain_retryrouter import ContentFilterError, RetryPolicy, RetryRouter


@dataclass
class Result:
    """What the calls of one system came to."""

    name: str
    answered: int = 0
    wrong: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    requests: int = 0

    def row(self, calls: int) -> str:
        """A row of the table."""
        cuts = statistics.quantiles(self.seconds, n=100)
        return (
            f"| {self.name} | {self.answered / calls:.2%} | {self.wrong}"
            f" | {cuts[49]:.1f} | {cuts[94]:.1f} | {cuts[98]:.1f}"
            f" | {self.requests / calls:.2f} |"
        )


def systems(urls: list[str], scale: float) -> dict[str, Callable[[], Ask]]:
    """The systems by name, made when they are asked."""
    places = dict(zip(("primary", "backup"), urls, strict=True))

    def router(**limits: float) -> Ask:
        routes = [chat_openai(*place) for place in places.items()]
        policy = {"retry_policy": RetryPolicy(**limits)} if limits else {}  # type: ignore[arg-type]
        return asked(RetryRouter(routes=routes, clock=ScaledClock(scale), **policy))

    def with_fallbacks() -> Ask:
        primary, backup = (chat_openai(*place) for place in places.items())
        return asked(primary.with_fallbacks([backup]))

    def by_litellm() -> Ask:
        params = [
            (name, {"model": f"openai/{name}", "api_base": url})
            for name, url in places.items()
        ]
        fallbacks = [{"primary": ["backup"]}]
        return asked_litellm(litellm_router(*params, fallbacks=fallbacks))

    return {
        "RetryRouter, defaults": router,
        "RetryRouter, limits of 10 s": lambda: router(
            attempt_timeout=10, first_token_timeout=10, stall_timeout=10
        ),
        "ChatOpenAI": lambda: asked(chat_openai("primary", urls[0])),
        "with_fallbacks": with_fallbacks,
        "LiteLLM Router": by_litellm,
    }


async def play(name: str, ask: Ask, calls: int, at_once: int) -> Result:
    """All calls of one system, `at_once` under way at a time."""
    result = Result(name)
    loop = asyncio.get_running_loop()
    gate = asyncio.Semaphore(at_once)

    async def one(number: int) -> None:
        async with gate:
            began = loop.time()
            try:
                async with asyncio.timeout(3600):
                    reply = await ask(f"call {number}", number % 2 == 0)
            except ContentFilterError:
                result.answered += 1
            except Exception as error:  # noqa: BLE001 - whatever a peer raises
                result.failures[type(error).__name__] += 1
            else:
                is_right = " ".join(reply.text.split()) == ANSWER
                result.answered += is_right
                result.wrong += not is_right
            result.seconds.append(loop.time() - began)

    async with asyncio.TaskGroup() as group:
        for number in range(calls):
            group.create_task(one(number))
    return result


async def _play_all(arguments: argparse.Namespace, urls: list[str]) -> None:
    """Every system on the same loop, one after another."""
    built = systems([f"{url}/v1" for url in urls], arguments.scale)
    for name, build in built.items():
        if arguments.only not in name:
            continue
        result = await play(name, build(), arguments.calls, arguments.at_once)
        for url in urls:
            with urllib.request.urlopen(f"{url}/log") as log:  # noqa: ASYNC210, S310
                result.requests += sum(json.load(log).values())
        print(result.row(arguments.calls), flush=True)
        if result.failures:
            print("   ", dict(result.failures), file=sys.stderr)


def main() -> None:
    """Play, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--scale", type=float, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)  # Of the failures that the bench counts.
    options = str(arguments.seed), str(arguments.scale)
    with running("benchmarks.answers.provider", *options) as urls:
        print(
            "| system | answered | wrong | median s | 95 % | 99 % | requests a call |"
        )
        print("|---|--:|--:|--:|--:|--:|--:|")
        run(_play_all(arguments, urls), arguments.scale)


if __name__ == "__main__":
    main()
