"""The short and the long form, and the table of figures that a run prints."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.promises.harness import load_lazily_imported_modules
from tests.unit_tests.conftest import Twin, clean_environment, no_blocking_calls, twin

__all__ = ["Figures", "Twin", "clean_environment", "no_blocking_calls", "twin"]


class Figures(list[tuple[str, str, float, float]]):
    """What one test has measured (figure, relation, value, bar); a bar must hold."""

    def exactly(self, bar: float, value: float, what: str) -> None:
        """Fail if `value` is not `bar`."""
        self.append((what, "=", value, bar))
        assert value == bar, f"{what}: {value:g}, and {bar:g} is promised"

    def at_most(self, bar: float, value: float, what: str) -> None:
        """Fail if `value` is more than `bar`."""
        self.append((what, "≤", value, bar))
        assert value <= bar, f"{what}: {value:g}, and at most {bar:g} is promised"

    def counted(self, number: float, what: str) -> None:
        """Note how much was tried; the numbers of all tests are added up."""
        self.append((what, "+", number, 0))

    def peer(self, value: float, what: str) -> None:
        """Note what langchain-openai's ChatOpenAI does in the same place."""
        self.append((f"{what}  (ChatOpenAI)", "", value, 0))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--long`."""
    parser.addoption("--long", action="store_true", help="the long form of each test")


@pytest.fixture(scope="session", autouse=True)
def _loaded() -> None:
    """Import what the first call of a process imports, which blocks an event loop."""
    load_lazily_imported_modules()


@pytest.fixture
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether this run takes the long form."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Iterator[Figures]:
    """Where a test notes its figures."""
    noted = Figures()
    yield noted
    request.node.user_properties.append(("figures", list(noted)))


class _Table:
    """The figures of all tests, also from the processes of pytest-xdist."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], tuple[str, float, float]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        promise = report.nodeid.partition(".py::")[0].rpartition("test_")[2]
        noted = dict(report.user_properties) if report.when == "teardown" else {}
        for what, relation, value, bar in noted.get("figures", ()):  # type: ignore[attr-defined]
            before = self.rows.get((promise, what), ("", 0, 0))[1]
            total = before + value if relation == "+" else max(before, value)
            self.rows[promise, what] = (relation, total, bar)


_TABLE = pytest.StashKey[_Table]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin the table."""
    config.stash[_TABLE] = _Table()
    config.pluginmanager.register(config.stash[_TABLE], "promises")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the table."""
    form = "long" if config.getoption("--long") else "short"
    terminalreporter.section(f"promises, {form} form: figure, promised, what")
    for (promise, what), row in sorted(config.stash[_TABLE].rows.items()):
        relation, value, bar = row
        promised = f"{relation} {bar:g}" if relation in {"=", "≤"} else ""
        figure = f"{value:,.0f}" if value == int(value) else f"{value:,.3g}"
        terminalreporter.write_line(f"{promise:<19}{figure:>11}  {promised:<9} {what}")
