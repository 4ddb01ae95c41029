"""The engine, sync and async, behind one interface for tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, replace
from typing import Any

from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.clock import Clock
from langchain_retryrouter._retry.engine import RetryContext, acall, call
from langchain_retryrouter._retry.streaming import ChunkInfo, astream, stream
from langchain_retryrouter.policy import RetryPolicy

from .scripted import Script, Witness


@dataclass(frozen=True)
class Drive:
    """Runs a call through `call`/`stream`, or through `acall`/`astream`."""

    is_async: bool

    def call(
        self, plan: RetryContext, script: Script, witness: Witness | None = None
    ) -> Any:
        """The result of the call."""
        if self.is_async:
            told = witness.anotify if witness else None
            return asyncio.run(acall(plan, script.asend, told))
        return call(plan, script.send, witness.notify if witness else None)

    def stream(
        self,
        plan: RetryContext,
        script: Script,
        witness: Witness | None = None,
        *,
        into: list[ChunkInfo] | None = None,
        stop_after: int | None = None,
    ) -> list[ChunkInfo]:
        """The events of the stream; those before an error are found in `into`.

        Closed after `stop_after` events, if that is given.
        """
        seen: list[ChunkInfo] = [] if into is None else into
        if self.is_async:
            asyncio.run(_afollow(aopen(plan, script, witness), seen, stop_after))
        else:
            _follow(open_(plan, script, witness), seen, stop_after)
        return seen


def open_(
    plan: RetryContext, script: Script, witness: Witness | None = None
) -> Generator[ChunkInfo, None, None]:
    """A sync stream, not begun."""
    told = witness.notify if witness else None
    return stream(plan, script.send, lambda: lambda signal: signal, told)


def aopen(
    plan: RetryContext, script: Script, witness: Witness | None = None
) -> AsyncGenerator[ChunkInfo, None]:
    """An async stream, not begun."""
    told = witness.anotify if witness else None
    return astream(plan, script.asend, lambda: lambda signal: signal, told)


def _follow(
    events: Generator[ChunkInfo, None, None],
    seen: list[ChunkInfo],
    stop_after: int | None,
) -> None:
    with contextlib.closing(events):
        for event in events:
            seen.append(event)
            if len(seen) == stop_after:
                return


async def _afollow(
    events: AsyncGenerator[ChunkInfo, None],
    seen: list[ChunkInfo],
    stop_after: int | None,
) -> None:
    async with contextlib.aclosing(events):
        async for event in events:
            seen.append(event)
            if len(seen) == stop_after:
                return


def plan_for(
    clock: Clock,
    policy: RetryPolicy | None = None,
    *,
    jitter: bool = False,
    **parts: Any,
) -> RetryContext:
    """A call's plan; `budget` and `breaker` are its session's, the rest its own."""
    shared = {name: parts.pop(name, None) for name in ("budget", "breaker")}
    policy = policy or RetryPolicy()
    # A row of waits that is easy to reckon with: 0.5, 1, 2, 4, 8.
    initial_delay = min(policy.initial_delay, 0.5)
    policy = replace(policy, jitter=jitter, initial_delay=initial_delay)
    return RetryContext(CallState(policy, time=clock, **shared), clock=clock, **parts)
