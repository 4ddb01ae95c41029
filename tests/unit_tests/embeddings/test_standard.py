"""LangChain's own tests for embeddings, all of them, over a real server."""

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from langchain_retryrouter import EmbeddingsRouter, GPTRouterEmbeddings
from langchain_retryrouter.testing import FaultyGateway

from .conftest import KEY, SMALL

MODELS = {"models_priority_list": [SMALL]}
FAKE = DeterministicFakeEmbedding(size=8)


class TestUnit(EmbeddingsUnitTests):
    """What LangChain expects of all embeddings at construction."""

    embeddings_class = GPTRouterEmbeddings
    # At the address nothing listens: no test sends a request.
    embedding_model_params: ClassVar = {
        **MODELS,
        "gpt_router_api_base": "http://127.0.0.1:1",
        "gpt_router_api_key": KEY,
    }
    # Variables, other arguments, and the fields that both together must give.
    init_from_env_params: ClassVar = (
        {"GPT_ROUTER_API_KEY": "sk-env", "GPT_ROUTER_API_BASE": "http://127.0.0.1:2"},
        MODELS,
        {"gpt_router_api_key": "sk-env", "gpt_router_api_base": "http://127.0.0.1:2"},
    )


class TestRouterUnit(EmbeddingsUnitTests):
    embeddings_class = EmbeddingsRouter
    embedding_model_params: ClassVar = {"routes": [FAKE]}


class TestRouter(EmbeddingsIntegrationTests):
    """What LangChain expects of all embeddings in use; two routes without a network."""

    embeddings_class = EmbeddingsRouter
    embedding_model_params: ClassVar = {"routes": [FAKE, FAKE], "space": "fake"}


class _OverAGateway(EmbeddingsIntegrationTests):
    endpoint: str
    embeddings_class = GPTRouterEmbeddings

    @pytest.fixture(autouse=True)
    def served(self) -> Iterator[None]:
        with FaultyGateway(gptrouter="hosted") as gateway:
            self.url = gateway.url
            yield

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        """Fields for the gateway of the test."""
        given = {"gpt_router_api_base": self.url, "gpt_router_api_key": KEY}
        return {**MODELS, **given, "endpoint": self.endpoint}


class TestV1(_OverAGateway):
    endpoint = "v1"


class TestV2(_OverAGateway):
    endpoint = "v2"
