"""LangChain's own unit tests of chat models, asked of a router."""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.unit_tests import ChatModelUnitTests
from pydantic import SecretStr

from langchain_retryrouter import GPTRouter, RetryRouter

from .conftest import GPT_4

NOWHERE = "http://127.0.0.1:1"
"""Where nobody listens: nothing is sent."""


class TwoProviders(RetryRouter):
    """A router as an application may have it: what it is told goes to its models.

    A router itself has no temperature and no `max_tokens`, which the tests give to
    whatever they make.
    """

    def __init__(self, **settings: Any) -> None:
        settings = {"api_key": SecretStr("sk"), **settings}
        gateway = GPTRouter(
            models_priority_list=[GPT_4], gpt_router_api_base=NOWHERE, **settings
        )
        openai = ChatOpenAI(model="gpt-4o", base_url=NOWHERE, **settings)
        super().__init__(routes=[gateway, openai])

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Not by its fields: it takes other arguments."""
        return False


class TestRetryRouter(ChatModelUnitTests):
    """What LangChain expects of every chat model.

    Two tests have nothing to ask: a router reads no variable of the environment, and
    LangChain reads the classes of its own list of packages only, where it is not given
    others, as in `tests/unit_tests/config/test_to_config.py`.
    """

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        """The class under test, with models that take the tests' settings."""
        return TwoProviders
