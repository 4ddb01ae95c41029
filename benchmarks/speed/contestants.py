"""Who is measured: we, the peers, and the floors below which nobody can be."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final

import aiohttp
import openai
import urllib3
from gpt_router.client import GPTRouterClient
from gpt_router.models import ModelGenerationRequest
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.language_models.fake_chat_models import (
    FakeChatModel,
    FakeListChatModel,
)
from pydantic import SecretStr

from benchmarks.speed.stub import MODEL
from langchain_retryrouter import (
    CircuitBreaker,
    GPTRouter,
    GPTRouterModel,
    OpenAI,
    OpenAIChat,
    RetryBudget,
    RetryRouter,
)

KEY: Final = SecretStr("any")
ASKED: Final = "hi"
CONNECTIONS: Final = 1000
"""That our own async pool opens at the most."""
_MODELS: Final = [GPTRouterModel(name=MODEL, provider_name="chat_openai")]

BODY: Final = {
    "stream": False,
    "data": [
        {
            "modelName": MODEL,
            "providerName": "chat_openai",
            "order": 1,
            "promptParams": {
                "messages": [{"role": "user", "content": ASKED}],
                "temperature": 0.7,
                "n": 1,
            },
        }
    ],
    "metadata": {},
    "maxRetries": 0,
}
HEADERS: Final = {"content-type": "application/json", "ws-secret": "any"}


def fake_chat() -> FakeChatModel:
    """LangChain's own share of a chat call."""
    return FakeChatModel()


def fake_chat_stream(tokens: int) -> FakeListChatModel:
    """LangChain's own share of a chat stream; a chunk is a letter."""
    return FakeListChatModel(responses=["x" * tokens])


def fake_llm() -> FakeListLLM:
    """LangChain's own share of a call to an LLM."""
    return FakeListLLM(responses=["Hello from the stub upstream"])


def gpt_router(url: str, **fields: Any) -> GPTRouter:
    """Ours, over the gateway."""
    return GPTRouter(
        models_priority_list=_MODELS,
        gpt_router_api_base=url,
        gpt_router_api_key=KEY,
        **fields,
    )


def guarded_gpt_router(url: str) -> GPTRouter:
    """Ours, with everything that may say no."""
    return gpt_router(url, budget=RetryBudget(), breaker=CircuitBreaker())


def our_openai(url: str) -> OpenAI:
    """Ours, over OpenAI's completions."""
    return OpenAI(model=MODEL, base_url=f"{url}/v1", api_key=KEY)


def our_openai_chat(url: str) -> OpenAIChat:
    """Ours, an LLM over OpenAI's chat completions."""
    return OpenAIChat(model=MODEL, base_url=f"{url}/v1", api_key=KEY)


def retry_router(model: Any) -> RetryRouter:
    """Ours, over one route."""
    return RetryRouter(routes=[model])


def chat_openai(url: str, **fields: Any) -> Any:
    """langchain-openai's chat model."""
    from langchain_openai import ChatOpenAI  # noqa: PLC0415 - slow to import

    return ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key=KEY, **fields)


def partner_openai(url: str) -> Any:
    """langchain-openai's LLM."""
    from langchain_openai import OpenAI as Partner  # noqa: PLC0415 - as above

    return Partner(model=MODEL, base_url=f"{url}/v1", api_key=KEY)


def community_gpt_router(url: str) -> Any:
    """langchain-community's chat model over the gateway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It says that it is being sunset.
        from langchain_community.chat_models import gpt_router as community  # noqa: PLC0415

        return community.GPTRouter(
            models_priority_list=[
                community.GPTRouterModel(name=MODEL, provider_name="chat_openai")
            ],
            gpt_router_api_base=url,
            gpt_router_api_key=KEY,
        )


def litellm_chat(url: str) -> Any:
    """LiteLLM as a LangChain chat model."""
    from langchain_litellm import ChatLiteLLM  # noqa: PLC0415 - seconds to import

    quiet_litellm()
    return ChatLiteLLM(model=f"openai/{MODEL}", api_base=f"{url}/v1", api_key="any")


def litellm_router(url: str) -> Any:
    """LiteLLM's own router."""
    import litellm  # noqa: PLC0415 - seconds to import

    quiet_litellm()
    params = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "any"}
    return litellm.Router(model_list=[{"model_name": "m", "litellm_params": params}])


def quiet_litellm() -> None:
    """LiteLLM speaks on its own account, to the terminal."""
    logging.getLogger("LiteLLM").setLevel(logging.ERROR)
    logging.getLogger("LiteLLM Router").setLevel(logging.ERROR)


def raw_post(url: str) -> Callable[[], bytes]:
    """The same bytes through urllib3's pool, and nothing else."""
    pool = urllib3.connectionpool.connection_from_url(url)
    path = f"{urllib3.util.parse_url(url).path or ''}/api/v1/generate"
    body = json.dumps(BODY, separators=(",", ":")).encode()

    def post() -> bytes:
        return pool.urlopen("POST", path, body, HEADERS).data

    return post


def raw_lines(url: str) -> Callable[[], Iterator[bytes]]:
    """The lines of the same stream through urllib3's pool, and nothing else."""
    pool = urllib3.connectionpool.connection_from_url(url)
    path = f"{urllib3.util.parse_url(url).path or ''}/api/v1/generate"
    body = json.dumps({**BODY, "stream": True}, separators=(",", ":")).encode()

    def lines() -> Iterator[bytes]:
        response = pool.urlopen("POST", path, body, HEADERS, preload_content=False)
        rest = b""
        for piece in response.stream(65_536):
            *whole, rest = (rest + piece).split(b"\n")
            yield from whole
        response.release_conn()

    return lines


@contextlib.contextmanager
def aiohttp_session(runner: asyncio.Runner) -> Iterator[aiohttp.ClientSession]:
    """A session in the runner's event loop, with as many connections as ours."""

    async def opened() -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        return aiohttp.ClientSession(connector=connector)

    session = runner.run(opened())
    try:
        yield session
    finally:
        runner.run(session.close())


async def raw_apost(session: aiohttp.ClientSession, url: str) -> bytes:
    """Async twin of `raw_post`, through aiohttp."""
    path = f"{url}/api/v1/generate"
    async with session.post(path, json=BODY, headers=HEADERS) as response:
        return await response.read()


async def raw_alines(session: aiohttp.ClientSession, url: str) -> AsyncIterator[bytes]:
    """Async twin of `raw_lines`, through aiohttp."""
    body = {**BODY, "stream": True}
    path = f"{url}/api/v1/generate"
    async with session.post(path, json=body, headers=HEADERS) as response:
        rest = b""
        async for piece in response.content.iter_any():
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line


def invoker(model: Any) -> Callable[[], object]:
    """A call of `model`."""
    return lambda: model.invoke(ASKED)


def ainvoker(model: Any) -> Callable[[], Awaitable[object]]:
    """Async twin of `invoker`."""
    return lambda: model.ainvoke(ASKED)


def gptrouter_sdk(url: str) -> Callable[[], object]:
    """The gptrouter package's own client."""
    client = GPTRouterClient(base_url=url, api_key="any")
    request = ModelGenerationRequest(
        model_name=MODEL,
        provider_name="chat_openai",
        order=1,
        prompt_params={"messages": [{"role": "user", "content": ASKED}]},
    )
    return lambda: client.generate(ordered_generation_requests=[request])


def openai_sdk(url: str) -> openai.OpenAI:
    """The openai package's own client."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key="any")


def async_openai_sdk(url: str) -> openai.AsyncOpenAI:
    """Async twin of `openai_sdk`."""
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any")
