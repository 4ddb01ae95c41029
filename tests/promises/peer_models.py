"""What others make of the same provider: models of the packages beside us."""

from __future__ import annotations

from typing import Any, Final

from langchain_community.chat_models import gpt_router as community_gpt_router
from langchain_community.llms import openai as community_openai
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from langchain_retryrouter.testing import FaultyGateway, Status

KEY: Final = "sk-any"
# A connection that outlives its test would be the next one's, whose port is the same.
_CLOSE: Final = {"connection": "close"}

DOWN_FOR_NOW: Final = Status(503, {"retry-after-ms": "1"})
"""A fault after which the SDK's own retries come at once, as they do when told to."""


def chat_openai(gateway: FaultyGateway, max_retries: int) -> ChatOpenAI:
    """langchain-openai's; its SDK repeats."""
    return ChatOpenAI(
        model="gpt-4o",
        base_url=gateway.openai_url,
        api_key=SecretStr(KEY),
        max_retries=max_retries,
        default_headers=_CLOSE,
    )


def old_openai(gateway: FaultyGateway, max_retries: int) -> Any:
    """langchain-community's; its SDK repeats, before its own retries could."""
    return community_openai.OpenAI(
        base_url=gateway.openai_url,
        api_key=KEY,
        max_retries=max_retries,
        default_headers=_CLOSE,
    )


def old_gpt_router(gateway: FaultyGateway, max_retries: int) -> Any:
    """langchain-community's; it repeats, and waits 4 s each time, whatever it is told.

    Its `max_retries` is the number of attempts.
    """
    model = community_gpt_router.GPTRouterModel(name="gpt-4", provider_name="p")
    return community_gpt_router.GPTRouter(
        models_priority_list=[model],
        gpt_router_api_base=gateway.url,
        gpt_router_api_key=SecretStr(KEY),
        max_retries=max_retries + 1,
    )
