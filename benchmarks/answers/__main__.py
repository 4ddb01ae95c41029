"""`make answer_bench`: the same faulty calls through RetryRouter and its peers.

Two providers over real HTTP on this machine; a fault meets 30 % of the calls at the
primary and 3 % at the backup (`provider.FAULTS`). Half of the calls are `ainvoke`, half
`astream`. The answer is one fixed text: anything else that is returned as an answer
counts as wrong. A refusal that is raised as `ContentFilterError` counts as answered.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import logging
import os
import statistics
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from langchain_core.runnables import Runnable
from langchain_openai import ChatOpenAI

from benchmarks.answers.provider import ANSWER
from benchmarks.scaled_loop import ScaledClock, run
from langchain_retryrouter import ContentFilterError, RetryPolicy, RetryRouter

Ask: TypeAlias = Callable[[str, bool], Awaitable[str]]


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


def of_runnable(model: Runnable[Any, Any]) -> Ask:
    """Ask a chat model, streamed or not."""

    async def ask(prompt: str, is_stream: bool) -> str:  # noqa: FBT001
        if not is_stream:
            return str((await model.ainvoke(prompt)).text)
        return "".join([chunk.text async for chunk in model.astream(prompt)])

    return ask


def systems(urls: list[str], scale: float) -> dict[str, Callable[[], Ask]]:
    """The systems by name, made when they are asked."""

    def models() -> list[ChatOpenAI]:
        return [
            ChatOpenAI(model=name, base_url=url, api_key="any")  # type: ignore[arg-type]
            for name, url in zip(("primary", "backup"), urls, strict=True)
        ]

    def router(**fields: Any) -> Ask:
        return of_runnable(
            RetryRouter(routes=models(), clock=ScaledClock(scale), **fields)
        )

    def limited() -> Ask:
        limits = RetryPolicy(
            attempt_timeout=10, first_token_timeout=10, stall_timeout=10
        )
        return router(retry_policy=limits)

    def with_fallbacks() -> Ask:
        primary, backup = models()
        return of_runnable(primary.with_fallbacks([backup]))

    return {
        "RetryRouter, defaults": router,
        "RetryRouter, limits of 10 s": limited,
        "ChatOpenAI": lambda: of_runnable(models()[0]),
        "with_fallbacks": with_fallbacks,
        "LiteLLM Router": lambda: _litellm(urls),
    }


def _litellm(urls: list[str]) -> Ask:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm: Any = importlib.import_module("litellm")
    litellm.suppress_debug_info = True
    names = ("primary", "backup")
    router = litellm.Router(
        model_list=[
            {
                "model_name": name,
                "litellm_params": {
                    "model": f"openai/{name}",
                    "api_base": url,
                    "api_key": "any",
                },
            }
            for name, url in zip(names, urls, strict=True)
        ],
        fallbacks=[{"primary": ["backup"]}],
    )

    async def ask(prompt: str, is_stream: bool) -> str:  # noqa: FBT001
        messages = [{"role": "user", "content": prompt}]
        got = await router.acompletion(
            model="primary", messages=messages, stream=is_stream
        )
        if not is_stream:
            return got.choices[0].message.content or ""
        texts = [
            choice.delta.content or ""
            async for chunk in got
            for choice in chunk.choices
        ]
        return "".join(texts)

    return ask


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
                    text = await ask(f"call {number}", number % 2 == 0)
            except ContentFilterError:
                result.answered += 1
            except Exception as error:  # noqa: BLE001 - whatever a peer raises
                result.failures[type(error).__name__] += 1
            else:
                if " ".join(text.split()) == ANSWER:
                    result.answered += 1
                else:
                    result.wrong += 1
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
    scale = arguments.scale
    logging.disable(logging.CRITICAL)  # Of the failures that the bench counts.
    with subprocess.Popen(  # noqa: S603 - this module's own server
        [
            *(sys.executable, "-m", "benchmarks.answers.provider"),
            *("--seed", str(arguments.seed), "--scale", str(scale)),
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        urls = [
            f"http://127.0.0.1:{port}" for port in json.loads(server.stdout.readline())
        ]
        print(
            "| system | answered | wrong | median s | 95 % | 99 % | requests a call |"
        )
        print("|---|--:|--:|--:|--:|--:|--:|")
        try:
            run(_play_all(arguments, urls), scale)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
