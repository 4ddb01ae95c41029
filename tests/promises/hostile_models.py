"""Who is asked, and how, by the tests with a hostile server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from langchain_core.tools import tool
from pydantic import SecretStr

from langchain_retryrouter import (
    AzureOpenAI,
    GPTRouter,
    GPTRouterEmbeddings,
    GPTRouterModel,
    OpenAI,
    OpenAIChat,
    RetryPolicy,
    RetryRouter,
)
from tests.unit_tests.conftest import Twin

Way: TypeAlias = Literal["invoke", "stream", "embed"]

KEY = "secret-key-of-this-test"
_MODELS = [GPTRouterModel(name="gpt-4o", provider_name="chat_openai")]
_VECTORS = [GPTRouterModel(name="embed-3", provider_name="openai_embeddings")]


@dataclass(frozen=True)
class Asked:
    """A class of the package, and one way to ask it."""

    name: str
    make: Callable[..., Any]
    way: Way

    @property
    def id(self) -> str:
        """Name and way."""
        return f"{self.name}.{self.way}"

    @property
    def is_openai(self) -> bool:
        """Whether it speaks OpenAI's protocol."""
        return "OpenAI" in self.name

    @property
    def is_streamed(self) -> bool:
        """Whether it asks for a stream, be it only inside."""
        return self.way == "stream" or "tools" in self.name

    def model(
        self, url: str, *, max_retries: int = 0, deadline: float | None = None
    ) -> Any:
        """One that asks the server at `url`."""
        return self.make(url, RetryPolicy(max_retries=max_retries, deadline=deadline))

    def ask(self, model: Any, twin: Twin) -> Any:
        """An answer, or the chunks of one."""
        if self.way == "embed":
            return twin.call(model, "embed_documents", ["one", "two"])
        if self.way == "stream":
            return twin.stream(model, "Hello?")
        return twin.invoke(model, "Hello?")


def _gpt_router(url: str, policy: RetryPolicy) -> Any:
    return GPTRouter(
        models_priority_list=_MODELS,
        gpt_router_api_base=url,
        gpt_router_api_key=SecretStr(KEY),
        retry_policy=policy,
    )


@tool
def add(one: int, other: int) -> int:
    """Add two numbers."""
    return one + other


def _with_tools(url: str, policy: RetryPolicy) -> Any:
    return _gpt_router(url, policy).bind_tools([add])


def _router(url: str, policy: RetryPolicy) -> Any:
    return RetryRouter(routes=[_gpt_router(url, policy)], retry_policy=policy)


def _embeddings(url: str, policy: RetryPolicy) -> Any:
    return GPTRouterEmbeddings(
        models_priority_list=_VECTORS,
        gpt_router_api_base=url,
        gpt_router_api_key=SecretStr(KEY),
        retry_policy=policy,
    )


def _open_ai(url: str, policy: RetryPolicy) -> Any:
    return OpenAI(base_url=f"{url}/v1", api_key=KEY, retry_policy=policy)


def _open_ai_chat(url: str, policy: RetryPolicy) -> Any:
    return OpenAIChat(base_url=f"{url}/v1", api_key=KEY, retry_policy=policy)


def _azure(url: str, policy: RetryPolicy) -> Any:
    return AzureOpenAI(
        azure_endpoint=url,
        api_key=KEY,
        azure_deployment="gpt-35-turbo-instruct",
        api_version="2024-10-21",
        retry_policy=policy,
    )


_BOTH: tuple[Way, ...] = ("invoke", "stream")
ASKED = [
    *(Asked("GPTRouter", _gpt_router, way) for way in _BOTH),
    Asked("GPTRouter with tools", _with_tools, "invoke"),
    Asked("GPTRouterEmbeddings", _embeddings, "embed"),
    *(Asked("RetryRouter", _router, way) for way in _BOTH),
    *(Asked("OpenAI", _open_ai, way) for way in _BOTH),
    *(Asked("OpenAIChat", _open_ai_chat, way) for way in _BOTH),
    *(Asked("AzureOpenAI", _azure, way) for way in _BOTH),
]
