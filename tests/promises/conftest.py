"""What the tests of the promises share, and where their figures go."""

from __future__ import annotations

import gc
import importlib
import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.promises.evidence import Evidence, Figure, Length, Promise, told
from tests.promises.page import ProviderError, table, write
from tests.unit_tests.conftest import (
    Twin,
    no_blocking_calls,
    no_surroundings,
    twin,
)

__all__ = ["Twin", "no_blocking_calls", "no_surroundings", "twin"]

_DOCS = Path(__file__).parents[2] / "docs"
_PACKAGES = (
    "langchain-retryrouter",
    "langchain-core",
    "langchain-openai",
    "langchain-community",
    "gptrouter",
    "openai",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say how long this run may be, and whether the page is written from it."""
    promises = parser.getgroup("promises")
    promises.addoption(
        "--long", action="store_true", help="the long form, with the peers beside us"
    )
    promises.addoption(
        "--page", action="store_true", help="rewrite docs/promises.md and its data"
    )


@pytest.fixture
def length(request: pytest.FixtureRequest) -> Length:
    """The short form, or the long one."""
    return Length(is_long=request.config.getoption("--long"))


@pytest.fixture
def evidence(request: pytest.FixtureRequest) -> Iterator[Evidence]:
    """Where a test takes down what it has measured."""
    disabled_retries = Evidence()
    yield disabled_retries
    request.node.user_properties.append(("figures", disabled_retries.figures))


@pytest.fixture
def small_heap() -> Iterator[None]:
    """What the test run has loaded is not looked through in the middle of a call.

    A full collection of it takes a fifth of a second, which is no call's.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Ledger:
    """Gathers the figures of all tests, from other processes too."""

    def __init__(self) -> None:
        self._figures: dict[str, list[Figure]] = {}
        self._broken: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        module = report.nodeid.partition("::")[0]
        if report.failed:
            self._broken.add(module)
        if report.when != "teardown":
            return
        for name, figures in report.user_properties:
            if name == "figures" and isinstance(figures, list):
                self._figures.setdefault(module, []).extend(figures)

    def report(self, *, is_long: bool) -> ProviderError:
        form = "long" if is_long else "short"
        return ProviderError(
            python=platform.python_version(),
            cores=os.cpu_count() or 1,
            versions={name: version(name) for name in _PACKAGES},
            promises=[
                told(_promise_of(module), module, form, figures)
                for module, figures in sorted(self._figures.items())
                if module not in self._broken
            ],
        )


def _promise_of(module: str) -> Promise:
    name = module.removesuffix(".py").replace("/", ".")
    promise = importlib.import_module(name).PROMISE
    assert isinstance(promise, Promise)
    return promise


_LEDGER = pytest.StashKey[_Ledger]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin the ledger, in the process that prints and not in its workers."""
    if not hasattr(config, "workerinput"):
        config.stash[_LEDGER] = _Ledger()
        config.pluginmanager.register(config.stash[_LEDGER], "promises")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the table; where it was asked for, write what held into the page."""
    is_long = config.getoption("--long")
    report = config.stash[_LEDGER].report(is_long=is_long)
    terminalreporter.section(f"promises, {'long' if is_long else 'short'} form")
    terminalreporter.write_line(table(report))
    if config.getoption("--page"):
        write(report, _DOCS)
        terminalreporter.write_line("written: docs/promises.md, docs/promises.json")
