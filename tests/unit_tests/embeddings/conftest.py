"""Embeddings of a gateway that fails as scripted, on a clock that does not wait."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest

from langchain_retryrouter import GPTRouterEmbeddings, GPTRouterModel
from langchain_retryrouter.testing import FakeClock, FaultyGateway
from tests.unit_tests.conftest import Twin

KEY = "sk-the-key-of-the-tests"
SMALL = GPTRouterModel(name="text-embedding-3-small", provider_name="openai_embeddings")
AT_AZURE = GPTRouterModel(
    name="text-embedding-3-small", provider_name="azure_openai_embeddings"
)
ADA = GPTRouterModel(name="text-embedding-ada-002", provider_name="openai_embeddings")


# Makes embeddings of the test's gateway, with the fields that are given.
NewEmbeddings: TypeAlias = Callable[..., GPTRouterEmbeddings]


@dataclass(frozen=True)
class Env(Twin):
    """The gateway and the clock of a test, and sync or async calls of embeddings."""

    gateway: FaultyGateway
    clock: FakeClock
    embeddings: NewEmbeddings

    def embed(self, embeddings: Any, texts: Any) -> Any:
        """The vectors of a list of texts, or the vector of one text."""
        name = "embed_query" if isinstance(texts, str) else "embed_documents"
        return self.call(embeddings, name, texts)


@pytest.fixture
def env(
    twin: Twin,
    gateway: FaultyGateway,
    fake_clock: FakeClock,
    new_embeddings: NewEmbeddings,
) -> Env:
    """Run the test twice: with sync calls, and with async calls."""
    return Env(twin.is_async, gateway, fake_clock, new_embeddings)


@pytest.fixture
def gateway() -> Iterator[FaultyGateway]:
    """A gateway with embeddings, which the public one does not have."""
    with FaultyGateway(gptrouter="hosted") as gateway:
        yield gateway


@pytest.fixture
def new_embeddings(gateway: FaultyGateway, fake_clock: FakeClock) -> NewEmbeddings:
    """Makes embeddings of the test's gateway, on the test's clock."""
    settings: dict[str, Any] = {
        "models_priority_list": [SMALL],
        "gpt_router_api_base": gateway.url,
        "gpt_router_api_key": KEY,
        "clock": fake_clock,
    }
    return lambda **fields: GPTRouterEmbeddings(**{**settings, **fields})


def vectors_in(*vectors: object) -> dict[str, Any]:
    """The JSON of an answer with these vectors."""
    return {"choices": [{"embedding": vector} for vector in vectors]}


def texts_of(gateway: FaultyGateway) -> list[list[str]]:
    """Of each request, the texts it carried."""
    return [request.parameters["input"] for request in gateway.requests]
