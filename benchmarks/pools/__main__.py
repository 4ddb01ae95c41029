"""`make pool_bench`: three keys for one model, through RetryRouter and its peers.

A provider on this machine answers by the key. First two of the three keys are
exhausted, each time in another way: 10 calls of `ainvoke`, one after the other. Then
all keys are well: 50 conversations of 4 turns, which are pinned by 3 processes without
a common store. Each system has a process of its own, and its defaults, but for what its
name says.

    python -m benchmarks.pools [--write]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeAlias

from langchain_core.runnables import Runnable

from benchmarks import peers
from benchmarks.speed.measure import rewrite, table
from langchain_retryrouter import RetryRouter, Route
from langchain_retryrouter.testing import (
    Answer,
    FaultyGateway,
    RecordedRequest,
    Status,
    Step,
)

Ask: TypeAlias = Callable[[str, str], Awaitable[None]]
"""Sends one turn: of a conversation, with a text."""

KEYS: Final = ("sk-account-0001", "sk-account-0002", "sk-account-0003")
CALLS: Final = 10
CONVERSATIONS: Final = 50
TURNS: Final = 4
PROCESSES: Final = 3
FAULTS: Final[dict[str, Step]] = {
    "401": Status(401),
    "403": Status(403),
    "429 `insufficient_quota`": Status(429, error_code="insufficient_quota"),
    "429, `Retry-After: 5`": Status(429, {"retry-after": "5"}),
    "429 without a header": Status(429),
}


# --- the systems ----------------------------------------------------------------------


def asked(model: Runnable[Any, Any]) -> Ask:
    """Asks a LangChain model."""

    async def ask(conversation: str, text: str) -> None:
        await model.ainvoke(text, {"configurable": {"thread_id": conversation}})

    return ask


def retry_router(url: str, **fields: Any) -> Ask:
    """A pool of the three keys."""
    model = peers.chat_openai("gpt-4o", url)
    return asked(RetryRouter(routes=Route.pool(model, api_keys=list(KEYS)), **fields))


def with_fallbacks(url: str) -> Ask:
    """LangChain's own, over a model for each key."""
    first, *others = (peers.chat_openai("gpt-4o", url, key) for key in KEYS)
    return asked(first.with_fallbacks(others))


def litellm_router(url: str, **fields: Any) -> Ask:
    """LiteLLM's `Router` with a deployment for each key."""
    params = {"model": "openai/gpt-4o", "api_base": url}
    deployments = [("gpt-4o", {**params, "api_key": key}) for key in KEYS]
    router = peers.litellm_router(*deployments, **fields)

    async def ask(conversation: str, text: str) -> None:
        await router.acompletion(
            model="gpt-4o",
            messages=[{"role": "user", "content": text}],
            metadata={"session_id": conversation},
        )

    return ask


SYSTEMS: Final[dict[str, Callable[[str], Ask]]] = {
    "RetryRouter": retry_router,
    'RetryRouter, `affinity="conversation"`': lambda url: retry_router(
        url, affinity="conversation"
    ),
    "ChatOpenAI.with_fallbacks": with_fallbacks,
    "LiteLLM Router": litellm_router,
    "LiteLLM Router, `session_affinity`": lambda url: litellm_router(
        url,
        optional_pre_call_checks=["session_affinity"],
        session_affinity_repin_on_failover=True,
    ),
}


# --- the runs -------------------------------------------------------------------------


def key_of(request: RecordedRequest) -> str:
    """The key of a request."""
    return request.headers.get("authorization", "").removeprefix("Bearer ")


async def exhausted(system: str, fault: Step) -> str:
    """A cell: what the calls came to while two keys are exhausted."""
    async with FaultyGateway(answer=Answer("Hi.")) as gateway:
        gateway.always(lambda asked: fault if key_of(asked) in KEYS[:2] else Answer())
        ask = SYSTEMS[system](gateway.openai_url)
        answered, longest = 0, 0.0
        for number in range(CALLS):
            began = time.monotonic()
            try:
                await ask(f"c{number}", "Hello")
                answered += 1
            except Exception as error:  # noqa: BLE001 - of any system
                print(f"{system}: {type(error).__name__}", file=sys.stderr)
            longest = max(longest, time.monotonic() - began)
        wasted = sum(key_of(request) != KEYS[2] for request in gateway.requests)
    return f"{answered}, {wasted}, {longest:.1f} s"


async def pinned(system: str) -> tuple[list[str], float]:
    """The route of each conversation, and the share of turns that stayed there."""
    pins, stayed = [], 0
    async with FaultyGateway(answer=Answer("Hi.")) as gateway:
        ask = SYSTEMS[system](gateway.openai_url)
        turns: dict[int, list[str]] = {n: [] for n in range(CONVERSATIONS)}
        for turn in range(TURNS):
            for number in range(CONVERSATIONS):
                await ask(f"conversation-{number}", f"turn {turn} of {number}")
                turns[number] += map(key_of, gateway.requests)
                gateway.reset_log()
        for keys in turns.values():
            pins.append(keys[0])
            stayed += sum(key == keys[0] for key in keys[1:])
    return pins, stayed / (CONVERSATIONS * (TURNS - 1))


def play(system: str) -> list[str]:
    """A row of the table."""
    cells = [asyncio.run(exhausted(system, fault)) for fault in FAULTS.values()]
    others = [in_a_process("--pins", system) for _ in range(PROCESSES)]
    agreed = sum(
        len(set(pins)) == 1 for pins in zip(*(p for p, _ in others), strict=True)
    )
    stayed = others[0][1]
    return [system, *cells, f"{stayed:.0%}", f"{agreed / CONVERSATIONS:.0%}"]


def in_a_process(option: str, system: str) -> Any:
    """What this module prints with an option."""
    command = [sys.executable, "-m", "benchmarks.pools", option, system]
    printed = subprocess.run(  # noqa: S603 - our own module
        command, stdout=subprocess.PIPE, check=True
    ).stdout
    return json.loads(printed.splitlines()[-1])


def main() -> None:
    """Print the table; with `--write`, write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pins", help=argparse.SUPPRESS)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="into docs/routing.md")
    given = parser.parse_args()
    if given.pins:
        print(json.dumps(asyncio.run(pinned(given.pins))))
        return
    if given.row:
        print(json.dumps(play(given.row)))
        return
    with ThreadPoolExecutor(len(SYSTEMS)) as threads:
        rows = list(threads.map(lambda one: in_a_process("--row", one), SYSTEMS))
    head = ["", *FAULTS, "turns that stayed", "pinned alike"]
    measured = f"{table(head, rows)}\nMeasured with {peers.versions()}.\n"
    print(measured)
    if given.write:
        rewrite(Path("docs/routing.md"), measured)


if __name__ == "__main__":
    main()
