"""LangChain's own tests for embeddings, all of them, over a real server."""

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.embeddings import Embeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from langchain_retryrouter import GPTRouterEmbeddings
from langchain_retryrouter.testing import FaultyGateway

from .conftest import KEY, SMALL


class TestUnit(EmbeddingsUnitTests):
    """What LangChain expects of all embeddings at construction."""

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return GPTRouterEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        """The address is one where nothing listens: no test sends a request."""
        return {
            "models_priority_list": [SMALL],
            "gpt_router_api_base": "http://127.0.0.1:1",
            "gpt_router_api_key": KEY,
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
        return variables, {"models_priority_list": [SMALL]}, found


class _OverAGateway(EmbeddingsIntegrationTests):
    """What LangChain expects of all embeddings in use."""

    endpoint: str

    @pytest.fixture(autouse=True)
    def served(self) -> Iterator[None]:
        with FaultyGateway(gptrouter="hosted") as gateway:
            self.url = gateway.url
            yield

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return GPTRouterEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        """Fields for the gateway of the test."""
        return {
            "models_priority_list": [SMALL],
            "gpt_router_api_base": self.url,
            "gpt_router_api_key": KEY,
            "endpoint": self.endpoint,
        }


class TestV1(_OverAGateway):
    endpoint = "v1"


class TestV2(_OverAGateway):
    endpoint = "v2"
