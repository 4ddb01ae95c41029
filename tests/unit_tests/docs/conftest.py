"""The environment that the pages of docs/ assume."""

from __future__ import annotations

import pytest

from langchain_retryrouter.testing import FaultyGateway


@pytest.fixture
def reader(
    faulty_gateway: FaultyGateway, monkeypatch: pytest.MonkeyPatch
) -> FaultyGateway:
    """A local provider, with its address and any key in the environment."""
    for name, value in {
        "OPENAI_API_KEY": "any",
        "OPENAI_BASE_URL": faulty_gateway.openai_url,
        "AZURE_OPENAI_API_KEY": "any",
        "AZURE_OPENAI_ENDPOINT": faulty_gateway.url,
        "OPENAI_API_VERSION": "2024-10-21",
        "GPT_ROUTER_API_KEY": "any",
        "GPT_ROUTER_API_BASE": faulty_gateway.url,
    }.items():
        monkeypatch.setenv(name, value)
    return faulty_gateway
