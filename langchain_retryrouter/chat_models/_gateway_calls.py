"""What makes a `GPTRouter`'s calls: loaded with the first model, not with its class.

Here stands what needs the `gptrouter` package, httpx with it, and tenacity: to import
these takes as long as a quarter of LangChain's chat models. `gpt_router`, where the
class stands, binds the names in `__all__`, and offers the public ones as its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Generator
from typing import Any

from gpt_router.models import ChunkedGenerationResponse, GenerationResponse
from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)

from langchain_retryrouter._callbacks import anotifier, notifier
from langchain_retryrouter._core.session import RetrySession
from langchain_retryrouter._drive import acall, astream, call, stream
from langchain_retryrouter._gateway_connection import GPTRouterModel
from langchain_retryrouter._gateway_plan import (
    plan_of,
    policy_of,
    take_metadata,
)
from langchain_retryrouter._gptrouter.messages import (
    ChunkReader,
    build_messages,
    read_result,
)
from langchain_retryrouter._gptrouter.options import (
    GatewayRequest,
    build_params,
    check_options,
)
from langchain_retryrouter._gptrouter.wire import EventReader, GatewayEvent
from langchain_retryrouter.chat_models._exchange import AsyncExchange, Exchange
from langchain_retryrouter.chat_models.gpt_router import GPTRouter

__all__ = [
    "ChunkReader",
    "acompletion_with_retry",
    "build_messages",
    "check_options",
    "completion_with_retry",
    "get_ordered_generation_requests",
    "read_result",
]


def get_ordered_generation_requests(
    models_priority_list: list[GPTRouterModel], **kwargs: Any
) -> list[GatewayRequest]:
    """What the SDK's client sends for a list of models: a request for each, in order.

    Args:
        models_priority_list: The models, the preferred one first.
        **kwargs: What the provider is asked, such as `messages` and `temperature`;
            `stream`, which is the gateway's to know, is left out.

    Raises:
        UnsupportedOptionError: For a value that no gateway takes, by its name.
    """
    kwargs.pop("stream", None)
    params = build_params(kwargs)
    return [
        GatewayRequest(
            model_name=model.name,
            provider_name=model.provider_name,
            order=order,
            prompt_params=params,
        )
        for order, model in enumerate(models_priority_list, start=1)
    ]


def completion_with_retry(
    llm: GPTRouter,
    models_priority_list: list[GPTRouterModel],
    run_manager: CallbackManagerForLLMRun | None = None,
    **kwargs: Any,
) -> GenerationResponse | Generator[ChunkedGenerationResponse, None, None]:
    """The gateway's answer, with retries that `run_manager` sees.

    Args:
        llm: The model whose client, policy, budget and breaker are used.
        models_priority_list: The models to ask, the preferred one first.
        run_manager: Told of each retry (`on_retry`) before its wait.
        **kwargs: What the provider is asked, such as `messages`, and what the gateway
            is told for its records, such as `tag`; with `stream=True` the answer is a
            generator of events.

    Returns:
        The answer; its `retryrouter` tells the attempts it took. With `stream=True`
        the events up to and with `end`; nothing is sent before the first `next`, and
        the call is repeated until its first token has been handed over.

    Raises:
        RetryRouterError: The last attempt's own error, with a note saying why there was
            no further one. A stream raises it from `next`.
        UnsupportedOptionError: For a value that no gateway takes, by its name.
        ValueError: For `n` above 1 with tools, which no stream can carry.
    """
    is_stream = bool(kwargs.pop("stream", False))
    settings = _take_settings(llm, kwargs)
    requests = get_ordered_generation_requests(models_priority_list, **kwargs)
    exchange = Exchange(llm.client, requests, **settings)
    plan = plan_of(llm, exchange)
    if is_stream:
        events = stream(plan, exchange.connect, EventReader, notifier(run_manager))
        return _with_ledger(events, plan.session)
    response = call(plan, exchange.send, notifier(run_manager))
    return exchange.signed(response, plan.session.ledger())


async def acompletion_with_retry(
    llm: GPTRouter,
    models_priority_list: list[GPTRouterModel],
    run_manager: AsyncCallbackManagerForLLMRun | None = None,
    **kwargs: Any,
) -> GenerationResponse | AsyncGenerator[ChunkedGenerationResponse, None]:
    """Async twin of `completion_with_retry`."""
    is_stream = bool(kwargs.pop("stream", False))
    settings = _take_settings(llm, kwargs)
    requests = get_ordered_generation_requests(models_priority_list, **kwargs)
    exchange = AsyncExchange(llm.client, requests, **settings)
    plan = plan_of(llm, exchange)
    if is_stream:
        events = astream(plan, exchange.connect, EventReader, anotifier(run_manager))
        return _awith_ledger(events, plan.session)
    response = await acall(plan, exchange.send, anotifier(run_manager))
    return exchange.signed(response, plan.session.ledger())


def _with_ledger(
    events: Generator[ChunkedGenerationResponse, None, None], session: RetrySession
) -> Generator[ChunkedGenerationResponse, None, None]:
    with contextlib.closing(events):
        for event in events:
            yield _signed_end(event, session)


async def _awith_ledger(
    events: AsyncGenerator[ChunkedGenerationResponse, None], session: RetrySession
) -> AsyncGenerator[ChunkedGenerationResponse, None]:
    async with contextlib.aclosing(events):
        async for event in events:
            yield _signed_end(event, session)


def _signed_end(
    event: ChunkedGenerationResponse, session: RetrySession
) -> ChunkedGenerationResponse:
    if event.event == "end" and isinstance(event, GatewayEvent):
        event.retryrouter = session.ledger()
    return event


def _take_settings(llm: GPTRouter, options: dict[str, Any]) -> dict[str, Any]:
    """How the gateway is asked; what `options` say of it is taken out of them."""
    max_retries = llm.gateway_max_retries
    if max_retries is None and policy_of(llm).max_retries:
        max_retries = 0  # One retry owner.
    told = {
        "gateway_timeout": llm.gateway_timeout,
        "gateway_max_retries": max_retries,
    }
    return {
        "options": told,
        "metadata": take_metadata(llm, options),
        "failover": llm.failover,
    }
