"""The scripts of examples/ run as they are, and print what they promise."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from langchain_retryrouter.testing import FakeClock
from tests.unit_tests.conftest import no_real_waits

__all__ = ["no_real_waits"]

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
