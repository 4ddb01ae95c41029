"""The failover page shows what the bench has written down, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks.failover.scenarios import SCENARIOS
from benchmarks.failover.scorecard import passes, rewritten

_DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def report() -> Any:
    return json.loads((_DOCS / "failover.json").read_text())


@pytest.fixture(scope="module")
def page() -> str:
    return (_DOCS / "failover.md").read_text()


def test_the_page_says_what_was_measured(report: Any, page: str) -> None:
    """Scorecard and versions are, word for word, those of the last run."""
    assert report["scale"] == 1
    assert set(report["scorecard"]["RetryRouter"]) == set(SCENARIOS)
    assert rewritten(page, report) == page


def test_a_page_without_a_place_for_it_is_refused(report: Any) -> None:
    """What is measured is never lost without a word."""
    with pytest.raises(ValueError, match="the page needs the lines"):
        rewritten("# Title\n", report)


def test_the_picture_is_of_that_run(report: Any) -> None:
    """The timeline has every call of the run, and no other."""
    picture = ET.parse(_DOCS / "failover_timeline.svg").getroot()  # noqa: S314
    drawn = [one for one in picture.iter() if one.get("class", "").startswith("call")]
    assert len(drawn) == sum(len(seen["calls"]) for seen in report["S15"].values())
    told = " ".join(text.text or "" for text in picture.iter())
    for system, of_system in report["scorecard"].items():
        count = of_system["S15"]["primary_attempts_in_the_outage"]
        assert f"{system}: {count} attempts at the primary" in told


def test_the_promise_is_kept(report: Any) -> None:
    """All sixteen are passed, and a sick provider is asked 4 times for 15 calls."""
    ours = report["scorecard"]["RetryRouter"]
    assert passes(ours) == len(SCENARIOS)
    assert ours["S15"]["primary_attempts_in_the_outage"] <= 4
