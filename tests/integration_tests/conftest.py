"""What the integration tests share: a tool for agents, and expensive servers."""

from collections.abc import Iterator

import pytest
from langchain_core.tools import BaseTool, tool

from langchain_retryrouter.testing import FaultyGateway
from tests.integration_tests.litellm_proxy import Proxy, running_proxy
from tests.support.redis_server import redis_server
from tests.unit_tests.conftest import Twin, twin

__all__ = ["Twin", "redis_server", "twin"]


@pytest.fixture
def cities() -> list[str]:
    """The city of each time that `get_weather` has run."""
    return []


@pytest.fixture
def get_weather(cities: list[str]) -> BaseTool:
    """A tool that records each of its runs."""

    @tool
    def get_weather(city: str) -> str:
        """Get the weather in a city."""
        cities.append(city)
        return f"It rains in {city}"

    return get_weather


@pytest.fixture(scope="session")
def _provider() -> Iterator[FaultyGateway]:
    with FaultyGateway() as gateway:
        yield gateway


@pytest.fixture(scope="session")
def litellm_proxy(
    _provider: FaultyGateway, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """LiteLLM's proxy in front of `provider`."""
    folder = tmp_path_factory.mktemp("litellm")
    with running_proxy(_provider.openai_url, folder) as proxy:
        yield proxy


@pytest.fixture
def provider(_provider: FaultyGateway) -> FaultyGateway:
    """The provider behind `litellm_proxy`, healthy until the test scripts it."""
    _provider.script()
    _provider.reset_log()
    return _provider
