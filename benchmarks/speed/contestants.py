"""What is measured: our models, their peers, and the floors below them.

A floor is langchain-core's fake chat model with the public call of the same HTTP
library inside: urllib3's `urlopen`, aiohttp's `session.post`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final

import aiohttp
import urllib3
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import FakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI
from langchain_openai import OpenAI as PartnerOpenAI
from pydantic import SecretStr

from benchmarks import peers
from benchmarks.speed.stub import MODEL
from langchain_retryrouter import GPTRouter, GPTRouterModel, OpenAI, RetryRouter

KEY: Final = SecretStr("any")
ASKED: Final = "hi"
INSTRUCT: Final = "gpt-3.5-turbo-instruct"
"""Not a chat model, for which our OpenAI would make an OpenAIChat."""
MESSAGES: Final = [{"role": "user", "content": ASKED}]
HEADERS: Final = {"content-type": "application/json", "ws-secret": "any"}
PATH: Final = "/api/v1/generate"
PROMPT: Final = {"messages": MESSAGES, "temperature": 0.7, "n": 1}
ENTRY: Final = {"modelName": MODEL, "providerName": "chat_openai", "order": 1}
BODY: Final = {"stream": False, "data": [{**ENTRY, "promptParams": PROMPT}]}


# --- ours ---


def gpt_router(url: str) -> GPTRouter:
    """GPTRouter over the stub."""
    return GPTRouter(
        models_priority_list=[GPTRouterModel(name=MODEL, provider_name="chat_openai")],
        gpt_router_api_base=url,
        gpt_router_api_key=KEY,
    )


def our_openai(url: str) -> OpenAI:
    """This package's OpenAI."""
    return OpenAI(model=INSTRUCT, base_url=f"{url}/v1", api_key=KEY)


def routed(url: str) -> RetryRouter:
    """RetryRouter over one healthy ChatOpenAI."""
    return RetryRouter(routes=[chat_openai(url, max_retries=0)])


# --- peers ---


class Wrapper(BaseChatModel):
    """A chat model that only calls another one, by LangChain's public methods."""

    model: BaseChatModel

    @property
    def _llm_type(self) -> str:
        return "wrapper"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        return _result(self.model.invoke(messages))

    async def _agenerate(
        self, messages: list[BaseMessage], *_: Any, **__: Any
    ) -> ChatResult:
        return _result(await self.model.ainvoke(messages))

    def _stream(
        self, messages: list[BaseMessage], *_: Any, **__: Any
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in self.model.stream(messages):
            yield ChatGenerationChunk(message=chunk)

    async def _astream(
        self, messages: list[BaseMessage], *_: Any, **__: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        async for chunk in self.model.astream(messages):
            yield ChatGenerationChunk(message=chunk)


def _result(message: AIMessage) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=message)])


def wrapped(url: str) -> Wrapper:
    """The wrapper around a bare ChatOpenAI, as RetryRouter has it."""
    return Wrapper(model=chat_openai(url, max_retries=0))


def chat_openai(url: str, **fields: Any) -> ChatOpenAI:
    """langchain-openai's chat model."""
    return peers.chat_openai(MODEL, f"{url}/v1", **fields)


def partner_openai(url: str) -> PartnerOpenAI:
    """langchain-openai's LLM."""
    return PartnerOpenAI(model=INSTRUCT, base_url=f"{url}/v1", api_key=KEY)


def community_gpt_router(url: str) -> Any:
    """langchain-community's chat model over the same gateway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package: Any = importlib.import_module(
            "langchain_community.chat_models.gpt_router"
        )
        model = package.GPTRouterModel(name=MODEL, provider_name="chat_openai")
        return package.GPTRouter(
            models_priority_list=[model],
            gpt_router_api_base=url,
            gpt_router_api_key=KEY,
        )


def litellm_router(url: str) -> Any:
    """LiteLLM's Router over one deployment."""
    for name in ("LiteLLM", "LiteLLM Router"):
        logging.getLogger(name).setLevel(logging.ERROR)
    params = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1"}
    return peers.litellm_router((MODEL, params))


def invoker(model: Any) -> Callable[[], object]:
    """A sync call of a LangChain model, or of LiteLLM's Router."""
    if hasattr(model, "completion"):
        return lambda: model.completion(model=MODEL, messages=MESSAGES)
    return lambda: model.invoke(ASKED)


def ainvoker(model: Any) -> Callable[[], Awaitable[object]]:
    """Async variant of `invoker`."""
    if hasattr(model, "acompletion"):
        return lambda: model.acompletion(model=MODEL, messages=MESSAGES)
    return lambda: model.ainvoke(ASKED)


# --- floors ---


class Floor(FakeChatModel):
    """langchain-core's fake chat model around the public calls of urllib3."""

    url: str
    _pool: Any = None

    def _open(self, *, stream: bool) -> Any:
        if self._pool is None:
            self._pool = urllib3.PoolManager()
        body = json.dumps({**BODY, "stream": stream}).encode()
        url = f"{self.url}{PATH}"
        return self._pool.urlopen(
            "POST", url, body=body, headers=HEADERS, preload_content=not stream
        )

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        json.loads(self._open(stream=False).data)
        return super()._generate(*args, **kwargs)

    def _stream(self, *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        response, rest = self._open(stream=True), b""
        for piece in response.stream(65_536):
            *lines, rest = (rest + piece).split(b"\n")
            yield from map(_chunk, filter(_is_data, lines))
        response.release_conn()


class AsyncFloor(FakeChatModel):
    """langchain-core's fake chat model around the public calls of aiohttp."""

    url: str
    session: Any

    async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
        url = f"{self.url}{PATH}"
        async with self.session.post(url, json=BODY, headers=HEADERS) as response:
            json.loads(await response.read())
        return super()._generate(*args, **kwargs)

    async def _astream(self, *_: Any, **__: Any) -> AsyncIterator[ChatGenerationChunk]:
        body, rest = {**BODY, "stream": True}, b""
        url = f"{self.url}{PATH}"
        async with self.session.post(url, json=body, headers=HEADERS) as response:
            async for piece in response.content.iter_any():
                *lines, rest = (rest + piece).split(b"\n")
                for line in filter(_is_data, lines):
                    yield _chunk(line)


def _is_data(line: bytes) -> bool:
    return line.startswith(b"data: {")


def _chunk(line: bytes) -> ChatGenerationChunk:
    json.loads(line[6:])
    return ChatGenerationChunk(message=AIMessageChunk(content="word "))


@contextlib.contextmanager
def aiohttp_session(runner: asyncio.Runner) -> Iterator[aiohttp.ClientSession]:
    """A session in the runner's event loop, with as many connections as ours."""

    async def opened() -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=1_000)
        return aiohttp.ClientSession(connector=connector)

    session = runner.run(opened())
    try:
        yield session
    finally:
        runner.run(session.close())
