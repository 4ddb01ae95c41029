"""Several calls side by side, their answers in order.

This file does not know what is asked or answered, nor that anything is repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

R = TypeVar("R")
T = TypeVar("T")


async def in_order(
    send: Callable[[R], Awaitable[T]], requests: list[R], at_once: int
) -> list[T]:
    """The answers to `requests` in their order; the first error that any of them has.

    Args:
        send: Answers one request.
        requests: All of them.
        at_once: How many may be under way together.
    """
    if len(requests) == 1:
        return [await send(requests[0])]
    gate = asyncio.Semaphore(at_once)

    async def run(request: R) -> T:
        async with gate:
            return await send(request)

    failed: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(request)) for request in requests]
    except BaseExceptionGroup as several:
        failed = several.exceptions[0]
    if failed is not None:
        raise failed  # Out here, so that the group does not become its context.
    return [task.result() for task in tasks]
