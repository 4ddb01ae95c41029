"""The systems of the scorecard, each with the bench's budget.

That is 2 retries, 30 s for a request or a silence, and one fallback; everything else is
left at the system's defaults. A `RetryRouter` gets none of these numbers: it has its
own defaults, or the limits that its name says.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, TypeAlias

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from benchmarks.scaled_loop import ScaledClock
from langchain_retryrouter import RetryPolicy, RetryRouter

Way: TypeAlias = Literal["astream", "stream", "ainvoke", "invoke"]


@dataclass(frozen=True)
class Reply:
    """A whole answer, as the system handed it to its caller."""

    text: str
    model: str = ""
    has_usage: bool = False


Ask: TypeAlias = Callable[[bool], Awaitable[Reply]]
"""Asks a system once, for a stream or not."""

System: TypeAlias = Callable[[str, float, list[str]], Ask]
"""Makes a system of: the provider's address, the scale of time, the models in order."""

_RETRIES: Final = 2
_PATIENCE: Final = 30.0
_QUESTION: Final = "Say the sixty words."


def chat_model(name: str, url: str, **fields: Any) -> ChatOpenAI:
    """A model of the provider at `url`."""
    key = SecretStr("any")
    base_url = f"{url}/v1"
    return ChatOpenAI(
        model=name, base_url=base_url, api_key=key, stream_usage=True, **fields
    )


def retry_router(url: str, scale: float, names: list[str], **limits: float) -> Ask:
    """`RetryRouter` with its defaults, or with these limits of a policy."""
    policy = {"retry_policy": RetryPolicy(**limits)} if limits else {}  # type: ignore[arg-type]
    routes = [chat_model(name, url) for name in names]
    return asked(RetryRouter(routes=routes, clock=ScaledClock(scale), **policy))


def sync_retry_router(url: str, scale: float, names: list[str]) -> Ask:
    """The same with limits of 10 s in a thread, whose seconds are made shorter."""
    policy = RetryPolicy(
        initial_delay=1.5 / scale,
        max_delay=8 / scale,
        failover_after_wait=3 / scale,
        attempt_timeout=10 / scale,
        first_token_timeout=10 / scale,
        stall_timeout=10 / scale,
    )
    routes = [chat_model(name, url) for name in names]
    breakers: Any = {"failure_threshold": 3, "recovery_time": 10 / scale}
    return asked(
        RetryRouter(routes=routes, retry_policy=policy, breaker_settings=breakers),
        is_sync=True,
    )


def with_fallbacks(url: str, _scale: float, names: list[str]) -> Ask:
    """LangChain's own: `ChatOpenAI`, whose SDK retries, `.with_fallbacks`."""
    first, *others = (
        chat_model(name, url, max_retries=_RETRIES, timeout=_PATIENCE) for name in names
    )
    return asked(first.with_fallbacks(others) if others else first)


def litellm_router(url: str, _scale: float, names: list[str]) -> Ask:
    """LiteLLM's `Router`, with a fallback for all failures and for long prompts."""
    # Not at the top: only the bench's own environment has it.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # Ask no other host.
    litellm: Any = importlib.import_module("litellm")
    litellm.suppress_debug_info = True
    groups = ("primary", "fallback")
    shared = {"api_base": f"{url}/v1", "api_key": "any"}
    to_fallback = [{"primary": ["fallback"]}] if names[1:] else []
    router = litellm.Router(
        model_list=[
            {
                "model_name": group,
                "litellm_params": {"model": f"openai/{name}"} | shared,
            }
            for group, name in zip(groups, names, strict=False)
        ],
        fallbacks=to_fallback,
        context_window_fallbacks=to_fallback,
        num_retries=_RETRIES,
        timeout=_PATIENCE,
    )

    async def ask(is_stream: bool) -> Reply:  # noqa: FBT001
        request = {"role": "user", "content": _QUESTION}
        options = {"stream_options": {"include_usage": True}} if is_stream else {}
        got = await router.acompletion(
            model="primary", messages=[request], stream=is_stream, **options
        )
        if not is_stream:
            return Reply(got.choices[0].message.content or "", got.model or "")
        texts, model, has_usage = [], "", False
        async for chunk in got:
            texts += [choice.delta.content or "" for choice in chunk.choices]
            model = chunk.model or model
            has_usage = has_usage or bool(getattr(chunk, "usage", None))
        return Reply("".join(texts), model, has_usage)

    return ask


SYSTEMS: Final[dict[str, System]] = {
    "RetryRouter, defaults": retry_router,
    "RetryRouter, limits of 10 s": partial(
        retry_router, first_token_timeout=10, stall_timeout=10
    ),
    "ChatOpenAI.with_fallbacks": with_fallbacks,
    "LiteLLM Router": litellm_router,
}
"""Those of the scorecard, by their names."""


def asked(model: Runnable[Any, Any], *, is_sync: bool = False) -> Ask:
    """Asks a LangChain model, and reads its answer."""

    def stream() -> list[Any]:
        return list(model.stream(_QUESTION))

    async def chunks() -> list[Any]:
        if is_sync:
            return await asyncio.to_thread(stream)
        return [chunk async for chunk in model.astream(_QUESTION)]

    async def ask(is_stream: bool) -> Reply:  # noqa: FBT001
        message: Any
        if is_stream:
            first, *rest = await chunks()
            message = sum(rest, first)
        elif is_sync:
            message = await asyncio.to_thread(model.invoke, _QUESTION)
        else:
            message = await model.ainvoke(_QUESTION)
        return _reply(message)

    return ask


def _reply(message: BaseMessage) -> Reply:
    usage = message.usage_metadata if isinstance(message, AIMessage) else None
    model = message.response_metadata.get("model_name", "")
    return Reply(str(message.text), model, has_usage=bool(usage))
