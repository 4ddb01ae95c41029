"""What all cells share: no settings of the machine, and fast TLS contexts."""

from __future__ import annotations

from pathlib import Path

import certifi
import pytest

from tests.integrations.report import keep_results, write_page
from tests.unit_tests.conftest import ENVIRONMENT

_results: dict[str, bool] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-page",
        action="store_true",
        help="docs/integrations.md, of all cells that were tried with the same code",
    )


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note each cell, also those of the worker processes."""
    cell = dict(report.user_properties).get("cell")
    if report.when == "call" and cell is not None:
        _results["|".join(map(str, cell))] = report.passed  # type: ignore[call-overload]


def pytest_sessionfinish(session: pytest.Session) -> None:
    is_worker = hasattr(session.config, "workerinput")
    if session.config.getoption("--write-page") and not is_worker:
        write_page(keep_results(_results))


@pytest.fixture(scope="session")
def _one_authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first certificate of the usual list: reading all takes longer than a cell."""
    path = tmp_path_factory.mktemp("tls") / "authority.pem"
    first, end, _ = (
        Path(certifi.where()).read_text("utf-8").partition("END CERTIFICATE-----")
    )
    path.write_text(f"{first}{end}\n", "utf-8")
    return path


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, _one_authority: Path) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    # LiteLLM would fetch a list of prices when it is imported.
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(name, str(_one_authority))
