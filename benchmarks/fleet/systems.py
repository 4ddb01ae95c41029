"""The systems of `make fleet_bench`, and what one process of theirs does."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Final, TypeAlias

from benchmarks import peers
from langchain_retryrouter import RetryRouter, Route

Ask: TypeAlias = Callable[[], object]
"""Makes one call."""
CALLS: Final = 10
PAUSE: Final = 0.5


def retry_router(urls: list[str], redis: str | None) -> Ask:
    """Two routes of one tier."""
    routes = [
        Route(model=peers.chat_openai("gpt-4o", url), name=f"provider-{n}", tier=0)
        for n, url in enumerate(urls)
    ]
    router = RetryRouter(routes=routes, store=redis)
    return lambda: router.invoke("Hello?")


def litellm_router(urls: list[str], redis: str | None) -> Ask:
    """LiteLLM's `Router` with two deployments."""
    deployments = [
        ("gpt-4o", {"model": "openai/gpt-4o", "api_base": url}) for url in urls
    ]
    router = peers.litellm_router(*deployments, redis_url=redis)
    messages = [{"role": "user", "content": "Hello?"}]
    return lambda: router.completion(model="gpt-4o", messages=messages)


SYSTEMS: Final[dict[str, Callable[[list[str], str | None], Ask]]] = {
    "RetryRouter": retry_router,
    "LiteLLM Router": litellm_router,
}


def work(pipe: Connection, system: str, urls: list[str], redis: str | None) -> None:
    """One process: say that it is ready, wait for the start, and make the calls."""
    ask = SYSTEMS[system](urls, redis)
    pipe.send("ready")
    pipe.recv()
    answered = 0
    for _ in range(CALLS):
        began = time.monotonic()
        try:
            ask()
            answered += 1
        except Exception as error:  # noqa: BLE001 - of any system
            print(f"{system}: {type(error).__name__}: {error}"[:200], file=sys.stderr)
        time.sleep(max(0.0, began + PAUSE - time.monotonic()))
    pipe.send(answered)
