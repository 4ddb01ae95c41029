"""One call's requests to OpenAI: which policy they are under, and what sends them.

Between the drive, which says when, and the clients, which say how. What comes back is
what the SDK has for it, or plain data; what it means is not told here.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Generator, Mapping
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)

from langchain_retryrouter import _drive
from langchain_retryrouter._callbacks import anotifier, notifier
from langchain_retryrouter._core.policy import effective_policy
from langchain_retryrouter._core.session import RetrySession
from langchain_retryrouter._core.streaming import Signal
from langchain_retryrouter._drive import SYSTEM_CLOCK, Attempt, Plan
from langchain_retryrouter._openai import wire
from langchain_retryrouter._openai.clients import (
    AsyncSDKStream,
    SDKStream,
    acreate,
    aopen_stream,
    create,
    identified,
    open_stream,
)
from langchain_retryrouter.errors.openai import OPENAI_ERRORS
from langchain_retryrouter.llms._connection import OpenAIConnection


def answer(
    llm: OpenAIConnection,
    run_manager: CallbackManagerForLLMRun | None,
    request: Mapping[str, Any],
    *,
    as_dicts: bool,
) -> Any:
    """The answer to a request, repeated while the model's policy allows.

    Args:
        llm: The model.
        run_manager: Told of each retry.
        request: The keyword arguments of the SDK's `create`.
        as_dicts: Whether plain data will do.
    """
    plan = _plan(llm, request)
    wall = plan.clock.wall
    request = identified(llm.client, request)

    def send(attempt: Attempt) -> Any:
        client = llm.client
        return create(client, request, attempt, wall, as_dicts=as_dicts)

    found = _drive.call(plan, send, notifier(run_manager))
    return wire.attach_ledger(found, plan.session.ledger())


async def aanswer(
    llm: OpenAIConnection,
    run_manager: AsyncCallbackManagerForLLMRun | None,
    request: Mapping[str, Any],
    *,
    as_dicts: bool,
) -> Any:
    """Async twin of `answer`."""
    plan = _plan(llm, request)
    wall = plan.clock.wall
    request = identified(llm.async_client, request)

    async def send(attempt: Attempt) -> Any:
        client = llm.async_client
        return await acreate(client, request, attempt, wall, as_dicts=as_dicts)

    found = await _drive.acall(plan, send, anotifier(run_manager))
    return wire.attach_ledger(found, plan.session.ledger())


def stream(
    llm: OpenAIConnection,
    run_manager: CallbackManagerForLLMRun | None,
    request: Mapping[str, Any],
    *,
    as_dicts: bool,
) -> Generator[Any, None, None]:
    """The chunks of a stream that is repeated until its first token; as `answer`."""
    plan = _plan(llm, request)
    wall = plan.clock.wall
    request = identified(llm.client, request)
    source: SDKStream

    def connect(attempt: Attempt) -> SDKStream:
        nonlocal source
        client = llm.client
        source = open_stream(client, request, attempt, wall, as_dicts=as_dicts)
        return source

    def read(chunk: Any) -> Signal:
        return source.reader(chunk)

    chunks = _drive.stream(plan, connect, lambda: read, notifier(run_manager))
    with contextlib.closing(chunks):
        for chunk in chunks:
            ends = chunk is source.reader.ending
            yield wire.attach_ledger(chunk, plan.session.ledger()) if ends else chunk


async def astream(
    llm: OpenAIConnection,
    run_manager: AsyncCallbackManagerForLLMRun | None,
    request: Mapping[str, Any],
    *,
    as_dicts: bool,
) -> AsyncGenerator[Any, None]:
    """Async twin of `stream`."""
    plan = _plan(llm, request)
    wall = plan.clock.wall
    request = identified(llm.async_client, request)
    source: AsyncSDKStream

    async def connect(attempt: Attempt) -> AsyncSDKStream:
        nonlocal source
        client = llm.async_client
        source = await aopen_stream(client, request, attempt, wall, as_dicts=as_dicts)
        return source

    def read(chunk: Any) -> Signal:
        return source.reader(chunk)

    chunks = _drive.astream(plan, connect, lambda: read, anotifier(run_manager))
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            ends = chunk is source.reader.ending
            yield wire.attach_ledger(chunk, plan.session.ledger()) if ends else chunk


def _plan(llm: OpenAIConnection, request: Mapping[str, Any]) -> Plan:
    clock = llm.clock or SYSTEM_CLOCK
    session = RetrySession(
        effective_policy(llm.retry_policy, llm.max_retries),
        budget=llm.budget,
        breaker=llm.breaker,
        time=clock,
    )
    route = request.get("model") or llm.model_name
    return Plan(
        session,
        errors=OPENAI_ERRORS,
        clock=clock,
        route=lambda: route,
        rate_limiter=llm.rate_limiter,
    )
