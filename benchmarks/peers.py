"""The chat models that benches compare, and one way to ask them all."""

from __future__ import annotations

import asyncio
import importlib
import os
import platform
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeAlias

from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable
from langchain_openai import ChatOpenAI
from pydantic import SecretStr


@dataclass(frozen=True)
class Reply:
    """A whole answer, as the system handed it to its caller."""

    text: str
    model: str = ""
    has_usage: bool = False


Ask: TypeAlias = Callable[[str, bool], Awaitable[Reply]]
"""Asks a question, for a stream or not."""


def chat_openai(name: str, url: str, key: str = "any", **fields: Any) -> ChatOpenAI:
    """langchain-openai's chat model of the provider at `url`."""
    return ChatOpenAI(model=name, base_url=url, api_key=SecretStr(key), **fields)


def asked(model: Runnable[Any, Any], *, is_sync: bool = False) -> Ask:
    """Asks a LangChain model, and reads its answer."""

    async def chunks(question: str) -> list[Any]:
        if is_sync:
            return await asyncio.to_thread(lambda: list(model.stream(question)))
        return [chunk async for chunk in model.astream(question)]

    async def ask(question: str, is_stream: bool) -> Reply:  # noqa: FBT001
        message: Any
        if is_stream:
            first, *rest = await chunks(question)
            message = sum(rest, first)
        elif is_sync:
            message = await asyncio.to_thread(model.invoke, question)
        else:
            message = await model.ainvoke(question)
        usage = message.usage_metadata if isinstance(message, AIMessage) else None
        model_name = message.response_metadata.get("model_name", "")
        return Reply(str(message.text), model_name, has_usage=bool(usage))

    return ask


def litellm_router(*deployments: tuple[str, Mapping[str, Any]], **fields: Any) -> Any:
    """LiteLLM's `Router` over deployments: a name, and the parameters of the model."""
    # Not at the top: only the bench's own environment has it.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # Ask no other host.
    litellm: Any = importlib.import_module("litellm")
    litellm.suppress_debug_info = True
    models = [
        {"model_name": name, "litellm_params": {"api_key": "any", **params}}
        for name, params in deployments
    ]
    return litellm.Router(model_list=models, **fields)


def asked_litellm(router: Any) -> Ask:
    """Asks LiteLLM's `Router` for the model `primary`."""

    async def ask(question: str, is_stream: bool) -> Reply:  # noqa: FBT001
        options = {"stream_options": {"include_usage": True}} if is_stream else {}
        got = await router.acompletion(
            model="primary",
            messages=[{"role": "user", "content": question}],
            stream=is_stream,
            **options,
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


def versions(*packages: str) -> str:
    """The versions of the package, of these peers, and of Python."""
    names = ("langchain-retryrouter", "langchain-openai", *packages, "litellm")
    known = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return f"{known}, Python {platform.python_version()}"
