"""Who is measured: we, the peers, and the floors below which nobody can be."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import os
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final

import aiohttp
import openai
import urllib3
from gpt_router.client import GPTRouterClient
from gpt_router.models import GenerationParams, ModelGenerationRequest
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.language_models.fake_chat_models import (
    FakeChatModel,
    FakeListChatModel,
)
from langchain_core.outputs import ChatResult
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
_SAID: Final[Any] = [{"role": "user", "content": ASKED}]
_GENERATION: Final = ModelGenerationRequest(
    model_name=MODEL,
    provider_name="chat_openai",
    order=1,
    prompt_params=GenerationParams(messages=_SAID),
)
HEADERS: Final = {"content-type": "application/json", "ws-secret": "any"}


def fake_chat() -> FakeChatModel:
    """LangChain's own share of a chat call."""
    return FakeChatModel()


def fake_chat_around(post: Callable[[], object]) -> FakeChatModel:
    """The same, with a raw call inside: both floors in one, none of our code."""

    class Around(FakeChatModel):
        def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
            post()
            return super()._generate(*args, **kwargs)

    return Around()


def async_fake_chat_around(post: Callable[[], Awaitable[object]]) -> FakeChatModel:
    """Async twin of `fake_chat_around`."""

    class Around(FakeChatModel):
        async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
            await post()
            return await super()._agenerate(*args, **kwargs)

    return Around()


def slow_fake_chat(delay_ms: int) -> FakeChatModel:
    """The same, that waits as if for a server."""

    class SlowFake(FakeChatModel):
        async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
            await asyncio.sleep(delay_ms / 1000)
            return await super()._agenerate(*args, **kwargs)

    return SlowFake()


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
    quiet_litellm()
    package: Any = importlib.import_module("langchain_litellm")  # Takes seconds.
    return package.ChatLiteLLM(
        model=f"openai/{MODEL}", api_base=f"{url}/v1", api_key="any"
    )


def litellm_router(url: str) -> Callable[[], object]:
    """A call of LiteLLM's own router."""
    router = _litellm_router(url)
    return lambda: router.completion(model=MODEL, messages=_SAID)


def async_litellm_router(url: str) -> Callable[[], Awaitable[object]]:
    """Async twin of `litellm_router`."""
    router = _litellm_router(url)
    return lambda: router.acompletion(model=MODEL, messages=_SAID)


def _litellm_router(url: str) -> Any:
    quiet_litellm()
    litellm: Any = importlib.import_module("litellm")  # Takes seconds.
    params = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "any"}
    return litellm.Router(model_list=[{"model_name": MODEL, "litellm_params": params}])


def quiet_litellm() -> None:
    """LiteLLM talks to the terminal, and asks GitHub for prices, of its own accord."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # Read by its import.
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

    call_state = runner.run(opened())
    try:
        yield call_state
    finally:
        runner.run(call_state.close())


async def raw_apost(call_state: aiohttp.ClientSession, url: str) -> bytes:
    """Async twin of `raw_post`, through aiohttp."""
    path = f"{url}/api/v1/generate"
    async with call_state.post(path, json=BODY, headers=HEADERS) as response:
        return await response.read()


async def raw_alines(
    call_state: aiohttp.ClientSession, url: str
) -> AsyncIterator[bytes]:
    """Async twin of `raw_lines`, through aiohttp."""
    body = {**BODY, "stream": True}
    path = f"{url}/api/v1/generate"
    async with call_state.post(path, json=body, headers=HEADERS) as response:
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
    """A call of the gptrouter package's own client."""
    client = GPTRouterClient(base_url=url, api_key="any")
    return lambda: client.generate(ordered_generation_requests=[_GENERATION])


def async_gptrouter_sdk(url: str) -> Callable[[], Awaitable[object]]:
    """Async twin of `gptrouter_sdk`."""
    client = GPTRouterClient(base_url=url, api_key="any")
    return lambda: client.agenerate(ordered_generation_requests=[_GENERATION])


def with_fallbacks(url: str) -> Any:
    """ChatOpenAI with another one behind it."""
    return chat_openai(url, max_retries=0).with_fallbacks(
        [chat_openai(url, max_retries=0)]
    )


def openai_sdk(url: str) -> openai.OpenAI:
    """The openai package's own client."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key="any")


def openai_completion(url: str) -> Callable[[], object]:
    """A call of the openai SDK to completions."""
    client = openai_sdk(url)
    return lambda: client.completions.create(model=MODEL, prompt=ASKED)


def openai_chat(url: str) -> Callable[[], object]:
    """A call of the openai SDK to chat completions."""
    client = openai_sdk(url)
    return lambda: client.chat.completions.create(model=MODEL, messages=_SAID)


def async_openai_completion(url: str) -> Callable[[], Awaitable[object]]:
    """Async twin of `openai_completion`."""
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any")
    return lambda: client.completions.create(model=MODEL, prompt=ASKED)


def async_openai_chat(url: str) -> Callable[[], Awaitable[object]]:
    """Async twin of `openai_chat`."""
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any")
    return lambda: client.chat.completions.create(model=MODEL, messages=_SAID)
