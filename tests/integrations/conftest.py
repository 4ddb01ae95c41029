"""What all cells share: no settings of the machine."""

from __future__ import annotations

import pytest

from tests.integrations.report import keep_results, write_page

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


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # LiteLLM would fetch a list of prices when it is imported.
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
