"""The short and the long form, and the table of figures that a run prints."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.unit_tests.conftest import (
    Twin,
    clean_environment,
    no_blocking_calls,
    twin,
)

__all__ = ["Twin", "clean_environment", "no_blocking_calls", "twin"]


@dataclass
class Figures:
    """What one test has measured, and the bars that it had to hold."""

    rows: list[tuple[str, str, str, float, float | None]] = field(default_factory=list)

    def exactly(self, bar: float, value: float, what: str) -> None:
        """Note a figure that must be `bar`, and fail if it is not."""
        self.rows.append((what, "=", "", value, bar))
        assert value == bar, f"{what}: {value:g}, and {bar:g} is promised"

    def at_most(self, bar: float, value: float, what: str) -> None:
        """Note a figure that must not exceed `bar`, and fail if it does."""
        self.rows.append((what, "≤", "", value, bar))
        assert value <= bar, f"{what}: {value:g}, and at most {bar:g} is promised"

    def counted(self, number: float, what: str) -> None:
        """Note how much was tried; the numbers of all tests are added up."""
        self.rows.append((what, "", "", number, None))

    def peer(self, name: str, value: float, what: str) -> None:
        """Note what another package does in the same place."""
        self.rows.append((what, "", name, value, None))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--long`."""
    parser.addoption("--long", action="store_true", help="the long form of each test")


@pytest.fixture
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether this run takes the long form."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Iterator[Figures]:
    """Where a test notes its figures."""
    noted = Figures()
    yield noted
    request.node.user_properties.append(("figures", noted.rows))


@pytest.fixture
def small_heap() -> Iterator[None]:
    """Keep full garbage collections, which take 0.2 s of a test run, out of timings."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Table:
    """Gathers the figures of all tests, also from the processes of pytest-xdist."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, str], tuple[str, float, float | None]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        promise = report.nodeid.partition("::")[0].rpartition("test_")[2]
        if report.when != "teardown":
            return
        for name, rows in report.user_properties:
            for row in rows if isinstance(rows, list) and name == "figures" else ():
                self._take(promise.removesuffix(".py"), *row)

    def _take(self, promise: str, *row: Any) -> None:
        what, relation, peer, value, bar = row
        key = (promise, what, peer)
        _, before, _ = self._rows.get(key, (relation, value, bar))
        is_count = not relation and not peer
        value = before + value if is_count and key in self._rows else max(before, value)
        self._rows[key] = (relation, value, bar)

    def lines(self) -> Iterator[str]:
        for (promise, what, peer), (relation, value, bar) in sorted(self._rows.items()):
            promised = "" if bar is None else f"{relation} {bar:g}"
            subject = f"  ({peer})" if peer else ""
            figure = f"{value:,.0f}" if value == int(value) else f"{value:,.3g}"
            yield f"{promise:<19}{figure:>11}  {promised:<9} {what}{subject}"


_TABLE = pytest.StashKey[_Table]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin the table, in the process that prints and not in its workers."""
    if not hasattr(config, "workerinput"):
        config.stash[_TABLE] = _Table()
        config.pluginmanager.register(config.stash[_TABLE], "promises")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the table."""
    form = "long" if config.getoption("--long") else "short"
    terminalreporter.section(f"promises, {form} form: figure, promised, what")
    for line in config.stash[_TABLE].lines():
        terminalreporter.write_line(line)
