"""The systems of the scorecard, each with the bench's budget.

That is 2 retries at the most, 30 s for a request or a silence, and one fallback; a
system's own settings beyond that stay at their defaults, save where it is said.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final, Literal, TypeAlias

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable
from langchain_openai import ChatOpenAI
from openai import DefaultAsyncHttpxClient, DefaultHttpxClient
from pydantic import SecretStr

from benchmarks.failover.evidence import BACKUP, PRIMARY, Reply
from benchmarks.failover.play import Contestant, Providers, System
from langchain_retryrouter import CircuitBreaker, RetryPolicy, RetryRouter, Route

Way: TypeAlias = Literal["astream", "stream", "ainvoke", "invoke"]

_RETRIES: Final = 2
_PATIENCE: Final = 30.0
_QUESTION: Final = "Say the sixty words."


def retry_router(
    way: Way = "astream", *, supports_prefill: bool = False, **fields: Any
) -> System:
    """`RetryRouter`, asked in one of its four ways.

    Its limits for a first token and for a silence are a third of what the bench allows.

    Args:
        way: The method by which it is called.
        supports_prefill: What is said of its routes.
        **fields: Of the router, beside the bench's.
    """

    def build(providers: Providers) -> Contestant:
        scale = providers.scale
        models = _chat_models(providers, max_retries=0)
        primary, backup = (
            Route(
                model=model,
                name=name,
                breaker=CircuitBreaker(
                    failure_threshold=3,
                    recovery_time=30 * scale,
                    clock=providers.clock,
                ),
                supports_prefill=supports_prefill,
            )
            for model, name in zip(models, (PRIMARY, BACKUP), strict=True)
        )
        router = RetryRouter(
            routes=[primary, backup],
            retry_policy=RetryPolicy(
                max_retries=_RETRIES,
                initial_delay=0.5 * scale,
                max_delay=8 * scale,
                first_token_timeout=10 * scale,
                stall_timeout=10 * scale,
                deadline=60 * scale,
            ),
            clock=providers.clock,
            **{"stream_recovery": "buffer", **fields},
        )
        return Contestant(asked(router, way), partial(aclose, models))

    return build


def with_fallbacks(providers: Providers) -> Contestant:
    """LangChain's own: `ChatOpenAI`, whose SDK retries, `.with_fallbacks`."""
    models = _chat_models(providers, max_retries=_RETRIES)
    model = models[0].with_fallbacks([models[1]])
    return Contestant(asked(model, "astream"), partial(aclose, models))


def litellm_router(providers: Providers) -> Contestant:
    """LiteLLM's `Router`, with a fallback for the primary's group."""
    # Not at the top: only the bench's own environment has it.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # Ask no other host.
    litellm: Any = importlib.import_module("litellm")
    litellm.suppress_debug_info = True

    def deployment(name: str, url: str) -> dict[str, Any]:
        params = {"model": f"openai/{name}", "api_base": url, "api_key": "any"}
        return {"model_name": name, "litellm_params": params}

    router = litellm.Router(
        model_list=[
            deployment(PRIMARY, providers.primary_url),
            deployment(BACKUP, providers.backup_url),
        ],
        fallbacks=[{PRIMARY: [BACKUP]}],
        num_retries=_RETRIES,
        timeout=_PATIENCE * providers.scale,
        stream_timeout=_PATIENCE * providers.scale,
    )

    async def ask() -> Reply:
        texts, model, usage = [], None, None
        chunks = await router.acompletion(
            model=PRIMARY,
            messages=[{"role": "user", "content": _QUESTION}],
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in chunks:
            texts += [choice.delta.content or "" for choice in chunk.choices]
            model = chunk.model or model
            usage = getattr(chunk, "usage", None) or usage
        return Reply("".join(texts), model, usage.prompt_tokens if usage else None)

    return Contestant(ask)


SYSTEMS: Final[dict[str, System]] = {
    "RetryRouter": retry_router(),
    "ChatOpenAI.with_fallbacks": with_fallbacks,
    "LiteLLM Router": litellm_router,
}
"""Those of the scorecard, by their names."""


def _chat_models(
    providers: Providers, *, max_retries: int
) -> tuple[ChatOpenAI, ChatOpenAI]:
    patience = _PATIENCE * providers.scale
    return (
        chat_model(PRIMARY, providers.primary_url, max_retries, patience),
        chat_model(BACKUP, providers.backup_url, max_retries, patience),
    )


def chat_model(name: str, url: str, max_retries: int, timeout: float) -> ChatOpenAI:
    """A model with clients of its own.

    Those that `ChatOpenAI` keeps for all models of one address would outlive the
    provider that has it, and be met again by the next one on its port. They read no
    certificates, which takes a while and serves nobody on the loopback.
    """
    return ChatOpenAI(
        model=name,
        base_url=url,
        api_key=SecretStr("any"),
        max_retries=max_retries,
        timeout=timeout,
        stream_usage=True,
        http_client=DefaultHttpxClient(verify=False),
        http_async_client=DefaultAsyncHttpxClient(verify=False),
    )


async def aclose(models: Iterable[ChatOpenAI]) -> None:
    """Close their connections, which outlive neither their loop nor their provider."""
    for model in models:
        await model.root_async_client.close()
        model.root_client.close()


def asked(
    model: Runnable[Any, BaseMessage], way: Way
) -> Callable[[], Awaitable[Reply]]:
    """What asks a LangChain model in one of its ways, and reads its answer."""

    async def astream() -> BaseMessage:
        return _joined([chunk async for chunk in model.astream(_QUESTION)])

    async def stream() -> BaseMessage:
        return _joined(await asyncio.to_thread(lambda: [*model.stream(_QUESTION)]))

    async def ainvoke() -> BaseMessage:
        return await model.ainvoke(_QUESTION)

    async def invoke() -> BaseMessage:
        return await asyncio.to_thread(model.invoke, _QUESTION)

    chosen = {
        "astream": astream,
        "stream": stream,
        "ainvoke": ainvoke,
        "invoke": invoke,
    }[way]

    async def ask() -> Reply:
        return _reply(await chosen())

    return ask


def _joined(chunks: list[Any]) -> BaseMessage:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return whole  # type: ignore[no-any-return] # a sum of chunks is one


def _reply(message: BaseMessage) -> Reply:
    usage = message.usage_metadata if isinstance(message, AIMessage) else None
    return Reply(
        str(message.text),
        message.response_metadata.get("model_name"),
        usage["input_tokens"] if usage else None,
    )
