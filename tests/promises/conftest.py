"""The short and the long form, and the table of figures that a run prints."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import openai
import pytest

from langchain_retryrouter.testing import FaultyGateway
from tests.promises.harness import ALL, call, new_model
from tests.support.redis_server import redis_server
from tests.unit_tests.conftest import Twin, no_blocking_calls, twin

__all__ = ["Figures", "Twin", "no_blocking_calls", "redis_server", "twin"]


class Figures(list[tuple[str, str, float, float]]):
    """What one test has measured (figure, relation, value, bar); a bar must hold."""

    def __init__(self, *, is_long: bool) -> None:
        super().__init__()
        self._slack = 1 if is_long else 10

    def timed(self, bar: float, value: float, what: str) -> None:
        """At most so much real time; ten times as much in the short form.

        That one runs beside other tests, on machines that have other things to do.
        """
        self.at_most(self._slack * bar, value, what)

    def exactly(self, bar: float, value: float, what: str) -> None:
        self.append((what, "=", value, bar))
        assert value == bar, f"{what}: {value:g}, and {bar:g} is promised"

    def at_most(self, bar: float, value: float, what: str) -> None:
        self.append((what, "≤", value, bar))
        assert value <= bar, f"{what}: {value:g}, and at most {bar:g} is promised"

    def at_least(self, bar: float, value: float, what: str) -> None:
        self.append((what, "≥", value, bar))
        assert value >= bar, f"{what}: {value:g}, and at least {bar:g} is promised"

    def counted(self, number: float, what: str) -> None:
        """Note how much was tried; the numbers of all tests are added up."""
        self.append((what, "+", number, 0))

    def peer(self, value: float, what: str) -> None:
        """Note what langchain-openai's ChatOpenAI does in the same place."""
        self.append((f"{what}  (ChatOpenAI)", "", value, 0))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="the long form of each test")


@pytest.fixture(scope="session", autouse=True)
def _loaded() -> None:
    """The first call of a process reads files, which blocks an event loop."""
    openai.DefaultHttpxClient().close()
    with FaultyGateway(gptrouter="hosted") as gateway:
        for name in ALL:
            call(new_model(name, gateway))


@pytest.fixture
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether this run takes the long form."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def figures(request: pytest.FixtureRequest, *, is_long: bool) -> Iterator[Figures]:
    """Where a test notes its figures."""
    noted = Figures(is_long=is_long)
    yield noted
    request.node.user_properties.append(("figures", list(noted)))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the table of figures, also of the processes of pytest-xdist."""
    form = "long" if config.getoption("--long") else "short"
    terminalreporter.section(f"promises, {form} form: figure, promised, what")
    rows: dict[tuple[str, str], tuple[str, float, float]] = {}
    for report in chain.from_iterable(terminalreporter.stats.values()):
        if not isinstance(report, pytest.TestReport) or report.when != "teardown":
            continue
        promise = report.nodeid.partition(".py::")[0].rpartition("test_")[2]
        noted: Any = dict(report.user_properties).get("figures", ())
        for what, relation, value, bar in noted:
            before = rows.get((promise, what), ("", 0, 0))[1]
            total = before + value if relation == "+" else max(before, value)
            if relation == "≥":
                total = min(before, value) if (promise, what) in rows else value
            rows[promise, what] = (relation, total, bar)
    for (promise, what), (relation, value, bar) in sorted(rows.items()):
        promised = f"{relation} {bar:g}" if relation in {"=", "≤", "≥"} else ""
        figure = f"{value:,.0f}" if value == int(value) else f"{value:,.3g}"
        terminalreporter.write_line(f"{promise:<13}{figure:>11}  {promised:<9} {what}")
