"""Plugins and settings of all tests."""

import gc
import os
import re
from pathlib import Path

import certifi
import pytest
from hypothesis import HealthCheck, settings

from langchain_retryrouter.testing import FaultyGateway

pytest_plugins = ["langchain_retryrouter.testing.fixtures"]

# The same examples in every run, on slow machines too.
settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def frozen_modules() -> None:
    """Leave modules and tests out of garbage collections: they take 0.5 s of each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first certificate of the usual list."""
    path = tmp_path_factory.mktemp("tls") / "authority.pem"
    every = Path(certifi.where()).read_text("utf-8")
    first, end, _ = every.partition("END CERTIFICATE-----")
    path.write_text(f"{first}{end}\n", "utf-8")
    return path


_OF_THE_MACHINE = re.compile(
    r"(GPT_ROUTER|(AZURE_)?OPENAI|ANTHROPIC|LANGCHAIN|LANGSMITH)_.*|.*_PROXY",
    re.IGNORECASE,
)


@pytest.fixture(autouse=True)
def clean_environment(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, one_authority: Path
) -> None:
    """Hide keys, addresses, proxies and tracing of the machine, but for a live test.

    A new HTTP client reads one certificate; to read all takes most of a test.
    """
    if request.node.get_closest_marker("live") is None:
        for name in filter(_OF_THE_MACHINE.fullmatch, list(os.environ)):
            monkeypatch.delenv(name)
        for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
            monkeypatch.setenv(name, str(one_authority))


@pytest.fixture
def gateway(faulty_gateway: FaultyGateway) -> FaultyGateway:
    """The gateway behind the models of a test."""
    return faulty_gateway
