"""Our five classes of models, each over a gateway that fails on cue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from langchain_retryrouter import (
    AzureOpenAI,
    GPTRouter,
    GPTRouterModel,
    OpenAI,
    OpenAIChat,
    RetryPolicy,
    RetryRouter,
)
from langchain_retryrouter.testing import FakeClock, FaultyGateway

KEY: Final = "sk-any"

NewModel: TypeAlias = Callable[..., Any]
"""Makes a model of a gateway and a clock, with `max_retries` and `timeout`."""


def gpt_router(
    gateway: FaultyGateway, clock: FakeClock, *, max_retries: int, timeout: float
) -> GPTRouter:
    """The chat model of a GPTRouter gateway."""
    return GPTRouter(
        models_priority_list=[GPTRouterModel(name="gpt-4", provider_name="p")],
        gpt_router_api_base=gateway.url,
        gpt_router_api_key=SecretStr(KEY),
        clock=clock,
        max_retries=max_retries,
        timeout=timeout,
    )


def openai(gateway: FaultyGateway, clock: FakeClock, **fields: Any) -> OpenAI:
    """OpenAI's completions."""
    return OpenAI(base_url=gateway.openai_url, api_key=KEY, clock=clock, **fields)


def openai_chat(gateway: FaultyGateway, clock: FakeClock, **fields: Any) -> OpenAIChat:
    """OpenAI's chat completions, as an LLM."""
    return OpenAIChat(base_url=gateway.openai_url, api_key=KEY, clock=clock, **fields)


def azure_openai(
    gateway: FaultyGateway, clock: FakeClock, **fields: Any
) -> AzureOpenAI:
    """Azure's completions."""
    return AzureOpenAI(
        azure_endpoint=gateway.url,
        azure_deployment="my-deployment",
        api_version="2024-10-21",
        api_key=KEY,
        clock=clock,
        **fields,
    )


def retry_router(
    gateway: FaultyGateway, clock: FakeClock, *, max_retries: int, timeout: float
) -> RetryRouter:
    """Two routes, whose models would repeat by themselves if the router let them.

    Without breakers: those would hide a call that is made once too often.
    """
    fields: dict[str, Any] = {"max_retries": max_retries, "timeout": timeout}
    return RetryRouter(
        routes=[
            gpt_router(gateway, clock, **fields),
            ChatOpenAI(
                model="gpt-4o",
                base_url=gateway.openai_url,
                api_key=SecretStr(KEY),
                default_headers={"connection": "close"},
                **fields,
            ),
        ],
        retry_policy=RetryPolicy(max_retries=max_retries),
        breaker=None,
        clock=clock,
    )


CHAT_MODELS: Final[dict[str, NewModel]] = {
    "GPTRouter": gpt_router,
    "RetryRouter": retry_router,
}

LLMS: Final[dict[str, NewModel]] = {
    "OpenAI": openai,
    "OpenAIChat": openai_chat,
    "AzureOpenAI": azure_openai,
}

FIVE_MODELS: Final[dict[str, NewModel]] = {**CHAT_MODELS, **LLMS}
