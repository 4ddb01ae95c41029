"""Several calls side by side, their answers in order.

This file does not know what is asked or answered, nor that anything is repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import TypeVar, cast

R = TypeVar("R")
T = TypeVar("T")


def in_order(send: Callable[[R], T], requests: list[R], at_once: int) -> list[T]:
    """The answers to `requests` in their order; the first error that any of them has.

    After an error nothing more is sent; what is under way is waited for.

    Args:
        send: Answers one request; called from threads where several are under way.
        requests: All of them.
        at_once: How many may be under way together.
    """
    if min(len(requests), at_once) <= 1:
        return [send(request) for request in requests]
    errors: list[BaseException] = []

    def run(request: R) -> T | None:
        if errors:
            return None  # Nobody waits for it any longer.
        try:
            return send(request)
        except BaseException as error:
            errors.append(error)
            raise

    with ThreadPoolExecutor(min(len(requests), at_once)) as threads:
        try:
            answers = [
                threads.submit(copy_context().run, run, request) for request in requests
            ]
            wait(answers)
        except BaseException as error:  # Such as Ctrl-C, which only this thread hears.
            errors.append(error)
            raise
    if errors:
        raise errors[0]
    return [cast("T", answer.result()) for answer in answers]


async def ain_order(
    send: Callable[[R], Awaitable[T]], requests: list[R], at_once: int
) -> list[T]:
    """Async twin of `in_order`; what is under way at an error is cancelled."""
    if len(requests) == 1:
        return [await send(requests[0])]
    gate = asyncio.Semaphore(at_once)

    async def run(request: R) -> T:
        await gate.acquire()
        answer = await send(request)
        # Not after an error: who waits would have its turn before it is cancelled.
        gate.release()
        return answer

    failed: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(request)) for request in requests]
    except BaseExceptionGroup as several:
        failed = several.exceptions[0]
    if failed is not None:
        raise failed  # Out here, so that the group does not become its context.
    return [task.result() for task in tasks]
