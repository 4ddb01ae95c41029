"""Chat models at a gateway, with made-up keys."""

from collections.abc import Callable
from typing import Any, Final

from langchain_core.rate_limiters import BaseRateLimiter
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from langchain_retryrouter import GPTRouter, GPTRouterModel
from langchain_retryrouter.testing import FaultyGateway

KEY: Final = "sk-must-never-be-shown"
NOWHERE: Final = "http://127.0.0.1:1"
"""Nothing listens there, and nothing begins to: connections are refused."""
# A model's connections end with its answers, so that none outlives a test and its port.
CLOSE: Final = {"connection": "close"}


def _url(gateway: FaultyGateway | str) -> str:
    return gateway if isinstance(gateway, str) else gateway.url


def chat_openai(
    gateway: FaultyGateway | str,
    model: str = "gpt-4o",
    *,
    cls: type[ChatOpenAI] = ChatOpenAI,
    **fields: Any,
) -> ChatOpenAI:
    """langchain-openai's, or a subclass."""
    settings: dict[str, Any] = {
        "model": model,
        "base_url": f"{_url(gateway)}/v1",
        "api_key": SecretStr(KEY),
        "default_headers": CLOSE,
    }
    return cls(**{**settings, **fields})


def gpt_router(
    gateway: FaultyGateway | str,
    *names: str,
    provider: str = "chat_openai",
    **fields: Any,
) -> GPTRouter:
    """A `GPTRouter` of models with these names."""
    settings: dict[str, Any] = {
        "models_priority_list": [
            GPTRouterModel(name=name, provider_name=provider) for name in names
        ],
        "gpt_router_api_base": _url(gateway),
        "gpt_router_api_key": SecretStr(KEY),
    }
    return GPTRouter(**{**settings, **fields})


class Turns(BaseRateLimiter):
    """A limiter of LangChain, which gives a turn unless `ask()` is False."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self._ask = ask

    def acquire(self, *, blocking: bool = True) -> bool:
        del blocking
        return self._ask() is not False

    async def aacquire(self, *, blocking: bool = True) -> bool:
        return self.acquire(blocking=blocking)
