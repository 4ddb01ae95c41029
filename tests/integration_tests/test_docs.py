"""The examples of docs/ and examples/ that the unit tests leave out."""

import runpy
from pathlib import Path

import pytest

from langchain_retryrouter.testing import FakeClock, FaultyGateway
from tests.unit_tests.conftest import no_real_waits
from tests.unit_tests.docs.conftest import reader
from tests.unit_tests.docs.pages import blocks_of, run

__all__ = ["no_real_waits", "reader"]

_ROOT = Path(__file__).parents[2]
_PAGES = [
    page
    for page in sorted((_ROOT / "docs").rglob("*.md"))
    if any(block.needs for block in blocks_of(page))
]


@pytest.mark.usefixtures("no_real_waits")
@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_a_page_runs_whole(page: Path, reader: FaultyGateway) -> None:
    """A page with examples that the unit tests leave out runs with all of them."""
    run(blocks_of(page), reader)


_EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_agent_gets_its_work_done(
    no_real_waits: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """The agent answers over two sick providers, and has used its tool once."""
    runpy.run_path(str(_EXAMPLES / "agent_with_failover.py"), run_name="__main__")
    _, _, conversation = capsys.readouterr().out.partition("human: ")
    assert conversation.splitlines() == [
        "What is the weather in Oslo?",
        "    gpt-4o: rate_limit",
        "    gpt-4o: connection",
        "    gpt-4o: ok",
        "ai: get_weather",
        "tool: It rains in Oslo",
        "    gpt-4o: quota",
        "    gpt-4.1: unavailable",
        "    gpt-4.1: ok",
        "ai: Take an umbrella: it rains in Oslo.",
    ]
    assert no_real_waits.sleeps[0] >= 1
