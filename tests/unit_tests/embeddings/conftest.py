"""Embeddings of a gateway that fails on cue, on a clock nobody waits for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from langchain_retryrouter import GPTRouterEmbeddings, GPTRouterModel
from langchain_retryrouter.testing import FakeClock, FaultyGateway

KEY = "sk-the-key-of-the-tests"
SMALL = GPTRouterModel(name="text-embedding-3-small", provider_name="openai_embeddings")
AT_AZURE = GPTRouterModel(
    name="text-embedding-3-small", provider_name="azure_openai_embeddings"
)
ADA = GPTRouterModel(name="text-embedding-ada-002", provider_name="openai_embeddings")


class NewEmbeddings(Protocol):
    """Makes embeddings of the test's gateway, with these fields besides."""

    def __call__(self, **fields: Any) -> GPTRouterEmbeddings:
        """The embeddings."""


@pytest.fixture
def gateway() -> Iterator[FaultyGateway]:
    """The gateway behind the embeddings of a test; the public one has none."""
    with FaultyGateway(gptrouter="hosted") as gateway:
        yield gateway


@pytest.fixture
def clock(fake_clock: FakeClock) -> FakeClock:
    """The clock of the embeddings of a test: waits are written down, and over."""
    return fake_clock


@pytest.fixture
def new_embeddings(gateway: FaultyGateway, clock: FakeClock) -> NewEmbeddings:
    """Makes embeddings of the test's gateway, on the test's clock."""

    def new_embeddings(**fields: Any) -> GPTRouterEmbeddings:
        settings: dict[str, Any] = {
            "models_priority_list": [SMALL],
            "gpt_router_api_base": gateway.url,
            "gpt_router_api_key": KEY,
            "clock": clock,
        }
        return GPTRouterEmbeddings(**{**settings, **fields})

    return new_embeddings


def vectors_in(*vectors: object) -> dict[str, Any]:
    """The JSON of an answer with these vectors."""
    return {"choices": [{"embedding": vector} for vector in vectors]}


def texts_of(gateway: FaultyGateway) -> list[list[str]]:
    """Of each request, the texts it carried."""
    return [request.parameters["input"] for request in gateway.requests]
