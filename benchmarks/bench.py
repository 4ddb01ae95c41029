"""What a call costs through us and through others, side by side in one run.

Ratios count, not milliseconds: every round runs each contestant once, so that whatever
the machine is doing meanwhile hits all of them. The server runs in a process of its
own. Peers are the real packages; one that is not installed is left out by name.

    python -m benchmarks.bench [--rounds 7] [--calls 150]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import urllib3
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from pydantic import SecretStr

from langchain_retryrouter import GPTRouter, GPTRouterModel, OpenAI
from langchain_retryrouter.testing import FaultyGateway

Contestant = Callable[[], object]

_MODELS = [GPTRouterModel(name="gpt-4-0613", provider_name="chat_openai")]
_BODY = json.dumps(
    {
        "stream": False,
        "data": [
            {
                "modelName": "gpt-4-0613",
                "providerName": "chat_openai",
                "order": 1,
                "promptParams": {"messages": [{"role": "user", "content": "hi"}]},
            }
        ],
    }
).encode()


def _serve(port: Any, stop: Any) -> None:
    with FaultyGateway(keep_requests=0) as gateway:
        port.send(gateway.url)
        stop.wait()


@contextlib.contextmanager
def _server() -> Iterator[str]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    stop = context.Event()
    process = context.Process(target=_serve, args=(theirs, stop))
    process.start()
    try:
        yield ours.recv()
    finally:
        stop.set()
        process.join()


def _contestants(url: str) -> dict[str, Contestant]:
    router = GPTRouter(
        models_priority_list=_MODELS,
        gpt_router_api_base=url,
        gpt_router_api_key=SecretStr("key"),
    )
    llm = OpenAI(base_url=f"{url}/v1", api_key=SecretStr("key"))
    fake = FakeListChatModel(responses=["Hello from the stub upstream"])
    pool = urllib3.connectionpool.connection_from_url(url)
    contestants: dict[str, Contestant] = {
        "fake chat model (LangChain's own share)": lambda: fake.invoke("hi"),
        "raw urllib3, pooled": lambda: (
            pool.urlopen("POST", "/api/v1/generate", _BODY).data
        ),
        "GPTRouter.invoke": lambda: router.invoke("hi"),
        "GPTRouter.stream": lambda: list(router.stream("hi")),
        "OpenAI.invoke": lambda: llm.invoke("hi"),
    }
    return contestants | dict(_peers(url))


def _peers(url: str) -> Iterator[tuple[str, Contestant]]:
    try:
        from langchain_community.chat_models import gpt_router as community  # noqa: PLC0415
    except ImportError:
        print("left out, not installed: langchain-community")
    else:
        theirs = community.GPTRouter(
            models_priority_list=[
                community.GPTRouterModel(name="gpt-4-0613", provider_name="chat_openai")
            ],
            gpt_router_api_base=url,
            gpt_router_api_key=SecretStr("key"),
        )
        yield "langchain-community GPTRouter.invoke", lambda: theirs.invoke("hi")
    try:
        import langchain_openai  # noqa: PLC0415
    except ImportError:
        print("left out, not installed: langchain-openai")
    else:
        llm = langchain_openai.OpenAI(base_url=f"{url}/v1", api_key=SecretStr("key"))
        yield "langchain-openai OpenAI.invoke", lambda: llm.invoke("hi")
        chat = langchain_openai.ChatOpenAI(
            base_url=f"{url}/v1", api_key=SecretStr("key")
        )
        yield "langchain-openai ChatOpenAI.invoke", lambda: chat.invoke("hi")


def _time(contestant: Contestant, calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        contestant()
    return (time.perf_counter() - began) / calls * 1e6


async def _atime(router: GPTRouter, at_once: int) -> float:
    await router.ainvoke("hi")
    began = time.perf_counter()
    await asyncio.gather(*(router.ainvoke("hi") for _ in range(at_once)))
    return at_once / (time.perf_counter() - began)


def main() -> None:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=150)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # The peers' deprecations are not ours to show.
    with _server() as url:
        contestants = _contestants(url)
        for contestant in contestants.values():
            _time(contestant, 10)  # Warm-up.
        seen: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(arguments.rounds):
            for name, contestant in contestants.items():
                seen[name].append(_time(contestant, arguments.calls))
        router = GPTRouter(
            models_priority_list=_MODELS,
            gpt_router_api_base=url,
            gpt_router_api_key=SecretStr("key"),
        )
        concurrent = asyncio.run(_atime(router, 500))
    _report(seen)
    print(f"\nGPTRouter.ainvoke, 500 at once: {concurrent:,.0f} calls a second")


def _report(seen: dict[str, list[float]]) -> None:
    medians = {name: statistics.median(times) for name, times in seen.items()}
    floor = sum(list(medians.values())[:2])
    print(
        f"{'one call after another':<42}{'median µs':>10}{'spread':>14}{'x floor':>9}"
    )
    for name, times in seen.items():
        spread = f"{min(times):,.0f}-{max(times):,.0f}"
        ratio = medians[name] / floor
        print(f"{name:<42}{medians[name]:>10,.0f}{spread:>14}{ratio:>9.2f}")
    print("floor: LangChain's own share plus the raw call, the first two lines")


if __name__ == "__main__":
    main()
