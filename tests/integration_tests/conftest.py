"""What the integration tests share: both twins, and servers that are expensive."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from langchain_retryrouter.testing import FaultyGateway
from tests.integration_tests.litellm_proxy import Proxy, running_proxy
from tests.unit_tests.conftest import SURROUNDINGS, Twin, twin

__all__ = ["Twin", "twin"]


@pytest.fixture(autouse=True)
def no_surroundings(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key, address, proxy or tracing of the machine, except for a live test."""
    if request.node.get_closest_marker("live") is None:
        for name in SURROUNDINGS:
            monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def _provider() -> Iterator[FaultyGateway]:
    with FaultyGateway() as gateway:
        yield gateway


@pytest.fixture(scope="session")
def litellm_proxy(
    _provider: FaultyGateway, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """LiteLLM's proxy, in front of `provider`."""
    folder = tmp_path_factory.mktemp("litellm")
    with running_proxy(_provider.openai_url, folder) as proxy:
        yield proxy


@pytest.fixture
def provider(_provider: FaultyGateway) -> FaultyGateway:
    """The provider behind `litellm_proxy`: well, until the test says otherwise."""
    _provider.script()
    _provider.reset_log()
    return _provider
