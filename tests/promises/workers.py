"""Models that are handed to copies, processes, threads and loops; what is done there.

What a worker process calls stands in a module that it can import.
"""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable, Iterable
from typing import Any, Final

import cloudpickle
from pydantic import SecretStr

from langchain_retryrouter import (
    AzureOpenAI,
    CircuitBreaker,
    GPTRouter,
    GPTRouterEmbeddings,
    GPTRouterModel,
    OpenAI,
    OpenAIChat,
    RetryBudget,
    RetryPolicy,
    RetryRouter,
)
from langchain_retryrouter.testing import STUB_TEXT, FaultyGateway
from langchain_retryrouter.testing.gptrouter_api import stub_embedding
from tests.promises.faults import KEY

_MODELS: Final = [GPTRouterModel(name="gpt-4", provider_name="openai")]


def _parts() -> dict[str, Any]:
    """Policy, budget and breaker, which travel with their model."""
    return {
        "retry_policy": RetryPolicy(max_retries=1, initial_delay=0),
        "budget": RetryBudget(),
        "breaker": CircuitBreaker(),
    }


def _gateway(gateway: FaultyGateway) -> dict[str, Any]:
    return {
        "models_priority_list": _MODELS,
        "gpt_router_api_base": gateway.url,
        "gpt_router_api_key": SecretStr(KEY),
        **_parts(),
    }


def models(gateway: FaultyGateway) -> dict[str, Any]:
    """One of each public class, all of one server."""
    key: dict[str, Any] = {"api_key": SecretStr(KEY), **_parts()}
    return {
        "GPTRouter": GPTRouter(**_gateway(gateway)),
        "GPTRouterEmbeddings": GPTRouterEmbeddings(**_gateway(gateway)),
        "OpenAI": OpenAI(base_url=gateway.openai_url, **key),
        "OpenAIChat": OpenAIChat(base_url=gateway.openai_url, **key),
        "AzureOpenAI": AzureOpenAI(
            azure_endpoint=gateway.url,
            azure_deployment="mine",
            api_version="2024-10-21",
            **key,
        ),
        "RetryRouter": RetryRouter(
            routes=[
                GPTRouter(**_gateway(gateway)).model_copy(update={"max_retries": 0})
            ],
            **_parts(),
        ),
    }


NAMES: Final = (
    "GPTRouter",
    "OpenAI",
    "GPTRouterEmbeddings",
    "OpenAIChat",
    "AzureOpenAI",
    "RetryRouter",
)
"""What `models` makes."""

COPIED: Final[dict[str, Callable[[Any], Any]]] = {
    "pickle": lambda one: pickle.loads(pickle.dumps(one)),
    "cloudpickle": lambda one: pickle.loads(cloudpickle.dumps(one)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "model_copy": lambda one: one.model_copy(),
}


def asked(model: Any) -> bool:
    """Whether a sync call of `model` brings the right answer."""
    if isinstance(model, GPTRouterEmbeddings):
        return model.embed_query("hi") == stub_embedding("hi")
    return _text(model.invoke("hi")) == STUB_TEXT


async def aasked(model: Any) -> bool:
    """Whether an async call does."""
    if isinstance(model, GPTRouterEmbeddings):
        return await model.aembed_query("hi") == stub_embedding("hi")
    return _text(await model.ainvoke("hi")) == STUB_TEXT


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else str(answer.content)


def failures(model: Any) -> int:
    """How many of three calls fail: sync, async, and async in another loop."""
    return sum(
        not works
        for works in (
            asked(model),
            asyncio.run(aasked(model)),
            asyncio.run(aasked(model)),
        )
    )


CALLS: Final = 3
"""How many calls `failures` makes."""


def failures_of(models: Iterable[Any]) -> int:
    """How many of the calls of all these models fail; called in another process."""
    return sum(map(failures, models))
