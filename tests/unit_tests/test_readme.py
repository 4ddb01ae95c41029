"""The README keeps its word: every Python example in it runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from langchain_retryrouter.testing import FakeClock

_README = Path(__file__).parents[2] / "README.md"
_EXAMPLES = re.findall(
    r"^```python\n(.*?)^```", _README.read_text(), re.DOTALL | re.MULTILINE
)
_FIRST_SCREEN_LINES = 15


def _run(example: str) -> None:
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.usefixtures("no_real_waits")
@pytest.mark.parametrize("example", _EXAMPLES)
def test_every_example_runs(example: str) -> None:
    """A README example that does not run is a failing test."""
    _run(example)


def test_the_first_example_is_short_and_shows_retries(
    no_real_waits: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first example fits a screen, needs no key, and shows two faults survived."""
    _run(_EXAMPLES[0])
    printed = capsys.readouterr().out
    assert len(_EXAMPLES[0].splitlines()) <= _FIRST_SCREEN_LINES
    assert "'outcome': 'rate_limit'" in printed
    assert "'outcome': 'connection'" in printed
    assert "'outcome': 'ok'" in printed
    assert no_real_waits.sleeps[0] >= 1


def test_what_the_policy_example_says_is_what_it_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The comment beside `explain()` is its output, word for word."""
    example = next(text for text in _EXAMPLES if "policy.explain()" in text)
    _run(example)
    said = re.search(r"print\(policy\.explain\(\)\)  # (.*)", example)
    assert said is not None
    assert capsys.readouterr().out.strip() == said[1]
