"""The same broken streams and bodies, heard by other libraries."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple

from gpt_router.client import GPTRouterClient
from gpt_router.models import GenerationParams, ModelGenerationRequest
from langchain_openai import OpenAI
from pydantic import SecretStr

from langchain_retryrouter.testing import FaultyGateway
from tests.promises.recordings import Protocol
from tests.promises.stream_listeners import chat_openai

Ask = Callable[[str], Any]


class Peer(NamedTuple):
    """Another library's way of asking.

    Attributes:
        name: What it is called.
        protocol: Whose recordings it can hear.
        path: Which endpoint an unstreamed answer comes from.
        stream: Asks for a stream, and hears all of it.
        invoke: Asks for the answer in one piece; None where a class before it does so.
    """

    name: str
    protocol: Protocol
    path: str
    stream: Ask
    invoke: Ask | None = None


def peers(gateway: FaultyGateway) -> Iterator[Peer]:
    """All that speak one of the two protocols, each left without retries."""
    chat = chat_openai(gateway)
    yield Peer(
        "ChatOpenAI",
        "chat",
        "/v1/chat/completions",
        lambda prompt: list(chat.stream(prompt)),
        chat.invoke,
    )
    llm = OpenAI(
        base_url=gateway.openai_url,
        api_key=SecretStr("k"),
        max_retries=0,
        default_headers={"connection": "close"},
    )
    yield Peer(
        "langchain-openai OpenAI",
        "completions",
        "/v1/completions",
        lambda prompt: list(llm.stream(prompt)),
        llm.invoke,
    )
    community = _community(gateway)
    yield Peer(
        "langchain-community GPTRouter",
        "gptrouter",
        _GENERATE,
        partial(_pieces_of, community),
        community.invoke,
    )
    sdk = GPTRouterClient(gateway.url, "k")
    yield Peer("gptrouter SDK", "gptrouter", _GENERATE, partial(_events_of, sdk))


_GENERATE: Final = "/api/v1/generate"


def _community(gateway: FaultyGateway) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = importlib.import_module("langchain_community.chat_models.gpt_router")
    model = module.GPTRouterModel(name="gpt-4", provider_name="p")
    return module.GPTRouter(
        models_priority_list=[model],
        gpt_router_api_base=gateway.url,
        gpt_router_api_key=SecretStr("k"),
        max_retries=1,  # Its number of attempts.
    )


def _pieces_of(model: Any, prompt: str) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return list(model.stream(prompt))


def _events_of(sdk: GPTRouterClient, prompt: str) -> list[Any]:
    asked = [
        ModelGenerationRequest(
            model_name="gpt-4",
            provider_name="p",
            order=1,
            prompt_params=GenerationParams(
                messages=[{"role": "user", "content": prompt}]
            ),
        )
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return list(sdk.generate(ordered_generation_requests=asked, is_stream=True))
