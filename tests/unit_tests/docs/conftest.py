"""The environment that the pages of docs/ assume."""

from collections.abc import Iterator

import pytest

from langchain_retryrouter.testing import FaultyGateway


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyGateway]:
    """A local provider, with its address and any key in the environment."""
    # The hosted gateway: the public one gives no tools to the pages' Claude.
    with FaultyGateway(gptrouter="hosted") as gateway:
        for name, value in {
            "ANTHROPIC_API_KEY": "any",
            "OPENAI_API_KEY": "any",
            "OPENAI_BASE_URL": gateway.openai_url,
            "AZURE_OPENAI_API_KEY": "any",
            "AZURE_OPENAI_ENDPOINT": gateway.url,
            "OPENAI_API_VERSION": "2024-10-21",
            "GPT_ROUTER_API_KEY": "any",
            "GPT_ROUTER_API_BASE": gateway.url,
        }.items():
            monkeypatch.setenv(name, value)
        yield gateway
