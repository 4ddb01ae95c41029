"""LangChain's own unit tests of chat models, all of them."""

import warnings
from typing import Any

import pytest
from langchain_core._api import LangChainBetaWarning
from langchain_core.language_models import BaseChatModel
from langchain_core.load import load
from langchain_openai import ChatOpenAI
from langchain_tests.unit_tests import ChatModelUnitTests
from pydantic import SecretStr

from langchain_retryrouter import GPTRouter, GPTRouterModel, RetryRouter
from tests.support.models import NOWHERE, gpt_router

from .conftest import GPT_4


class TestGPTRouter(ChatModelUnitTests):
    """What LangChain expects of every chat model.

    Tools, structured output and a call's own model are tested where a class has them,
    as it has: nothing is said of them here.
    """

    @pytest.fixture(autouse=True)
    def loadable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let `load` make our class, which is not in LangChain's own list."""

        def load_ours(*args: Any, **kwargs: Any) -> Any:
            assert kwargs.pop("allowed_objects") == "all"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", LangChainBetaWarning)
                return load(*args, allowed_objects=[GPTRouter], **kwargs)

        monkeypatch.setattr("langchain_tests.unit_tests.chat_models.load", load_ours)

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return GPTRouter

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """The address is one where nothing listens: no test sends a request."""
        return {
            "models_priority_list": [GPT_4],
            "gpt_router_api_base": NOWHERE,
            "api_key": SecretStr("sk"),
        }

    @property
    def init_from_env_params(
        self,
    ) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        """Variables, other arguments, and the fields that both together must give."""
        variables = {
            "GPT_ROUTER_API_KEY": "sk-of-the-environment",
            "GPT_ROUTER_API_BASE": "http://127.0.0.1:2",
        }
        found = {
            "gpt_router_api_key": "sk-of-the-environment",
            "gpt_router_api_base": "http://127.0.0.1:2",
        }
        return variables, {"models_priority_list": [GPT_4]}, found


def test_a_trace_names_the_model_that_is_asked_first() -> None:
    """LangSmith gets the first model of the list, or of the call's own list."""
    llm = gpt_router(NOWHERE, GPT_4.name)
    other = GPTRouterModel(name="gpt-4o", provider_name="chat_openai")

    assert llm._get_ls_params() == {  # noqa: SLF001 - LangChain asks it
        "ls_provider": "gptrouter",
        "ls_model_name": "gpt-4-0613",
        "ls_model_type": "chat",
        "ls_temperature": 0.7,
        "ls_max_tokens": 256,
    }
    params = llm._get_ls_params(  # noqa: SLF001
        models_priority_list=[other], temperature=0.1
    )
    assert params["ls_model_name"] == "gpt-4o"
    assert params["ls_temperature"] == 0.1


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
    others, as in `tests/unit_tests/config/test_config.py`.
    """

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        """The class under test, with models that take the tests' settings."""
        return TwoProviders
