"""Foreign models at a `FaultyGateway`; they repeat nothing by themselves.

Each has HTTP clients of its own, since the integrations share theirs among all models
of an address, and `attempts.ask` closes them.
"""

from typing import Any, Final

import anthropic
import openai
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from langchain_retryrouter.testing import FaultyGateway

from .anthropic_wire import ANSWER, MODEL

OPENAI_KEY: Final = "sk-proj-0123456789abcdef"
ANTHROPIC_KEY: Final = "sk-ant-0123456789abcdef"


def chat_openai(
    gateway: FaultyGateway,
    timeout: float = 5.0,
    cls: type[ChatOpenAI] = ChatOpenAI,
    **fields: Any,
) -> ChatOpenAI:
    """`ChatOpenAI`, or a subclass, which asks for chat completions."""
    return cls(
        model="gpt-4o",
        api_key=SecretStr(OPENAI_KEY),
        base_url=gateway.openai_url,
        max_retries=0,
        timeout=timeout,
        http_client=openai.DefaultHttpxClient(),
        http_async_client=openai.DefaultAsyncHttpxClient(),
        **fields,
    )


def chat_anthropic(gateway: FaultyGateway, timeout: float = 5.0) -> ChatAnthropic:
    """`ChatAnthropic`, and a gateway that has an answer for it."""
    gateway.respond("/v1/messages", ANSWER)
    model = ChatAnthropic(
        model_name=MODEL,
        api_key=SecretStr(ANTHROPIC_KEY),
        base_url=gateway.url,
        max_retries=0,
        timeout=timeout,
        stop=None,
    )
    fields: dict[str, Any] = {
        "api_key": ANTHROPIC_KEY,
        "base_url": gateway.url,
        "max_retries": 0,
        "timeout": timeout,
    }
    vars(model)["_client"] = anthropic.Anthropic(**fields)
    vars(model)["_async_client"] = anthropic.AsyncAnthropic(**fields)
    return model
