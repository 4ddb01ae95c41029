"""The speed bench's arithmetic: rounds, bars, and what is written down of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.speed import contestants as who
from benchmarks.speed.busy import ServerShare, bars
from benchmarks.speed.chart import draw
from benchmarks.speed.growth import above, further_chunks
from benchmarks.speed.measure import Bar, Section, Slow, interleaved
from benchmarks.speed.report import (
    Measured,
    ProviderError,
    of_section,
    rewritten,
    write,
)
from benchmarks.speed.stub import running

_PAGE = """\
# Performance

<!-- measured: rewritten by the bench -->
what an earlier run has measured
<!-- end of what is measured -->

The end.
"""


def _says(log: list[str], what: str) -> Callable[[], float]:
    def measure() -> float:
        log.append(what)
        return float(len(log))

    return measure


def test_rounds_are_interleaved() -> None:
    """All warm up, and all run in each round, slow ones in the first rounds only."""
    log: list[str] = []
    slow = Slow(_says(log, "slow"), rounds=1, warm_up=_says(log, "warm-up"))
    seen = interleaved({"a": _says(log, "a"), "b": slow, "c": _says(log, "c")}, 2)
    assert log == ["a", "warm-up", "c", "a", "slow", "c", "a", "c"]
    assert seen == {"a": [4.0, 7.0], "b": [5.0], "c": [6.0, 8.0]}


def test_a_ratio_is_of_rounds_that_both_ran_in() -> None:
    """A slow peer's few rounds are held against ours of the same rounds."""
    rounds = {"ours": [2.0, 3.0, 100.0], "peer": [4.0, 12.0], "floor": [1.0, 1.0, 1.0]}
    assert Bar("", "ours", 1, over=("peer",)).seen(rounds) == pytest.approx(0.375)
    assert Bar("", "ours", 1).seen(rounds) == 3.0
    assert Bar("", "ours", 1, minus="floor").seen(rounds) == 2.0
    assert Bar("", "ours", 1, over=("peer", "floor"), minus="floor").seen(
        rounds
    ) == pytest.approx((1 / 5 + 2 / 13) / 2)


@pytest.mark.parametrize(
    ("side", "limit", "holds"),
    [("≤", 2.0, True), ("≤", 1.9, False), ("≥", 2.0, True), ("≥", 2.1, False)],
)
def test_a_bar_has_a_side(side: str, limit: float, holds: bool) -> None:
    """At most is at most, at least is at least, and the limit itself is held."""
    bar = Bar("", "ours", limit, side="≤" if side == "≤" else "≥")
    assert bar.holds({"ours": [2.0]}) is holds


def test_the_first_chunk_is_not_spread_over_the_others() -> None:
    """What a call costs by itself is no cost of its chunks, however few there are."""
    streams = {1: [100.0], 10: [100.0 + 9 * 7], 1_000: [100.0 + 999 * 7]}
    assert further_chunks("x", streams) == {
        "x, a stream of 1": [100.0],
        "x, each further chunk of 10": [7.0],
        "x, each further chunk of 1,000": [7.0],
    }


def test_what_is_ours_lies_above_the_floors() -> None:
    """The floors are subtracted round by round, all of them."""
    rows = {"GPTRouter, a": [9.0, 8.0], "fake, a": [1.0, 2.0], "raw, a": [3.0, 3.0]}
    assert above(rows, "own", ("fake", "raw"), ["a"]) == {"own, a": [5.0, 3.0]}


def _measured(name: str, figure: float) -> Measured:
    section = Section(
        f"Title of {name}",
        "µs",
        {"GPTRouter": [figure, figure + 2], "a peer": [50.0]},
        (Bar("of the peer", "GPTRouter", 0.5, ("a peer",)), Bar("beside", "lag", 1)),
        beside={"lag": [1.0]},
    )
    return of_section(name, section)


def _report(*sections: Measured) -> ProviderError:
    return ProviderError(
        python="3", cores=2, versions={"x": "1"}, sections=list(sections)
    )


def test_a_section_says_how_often_it_was_measured() -> None:
    """A row has rounds and spread, and a bar may be about what was seen beside."""
    told = _measured("calls", 10)
    ours, peer = told["rows"]
    assert ours == {
        "name": "GPTRouter",
        "rounds": 2,
        "median": 11,
        "low": 10,
        "high": 12,
    }
    assert peer["rounds"] == 1
    assert [one["name"] for one in told["beside"]] == ["lag"]
    assert [(bar["seen"], bar["holds"]) for bar in told["bars"]] == [
        (0.2, True),
        (1.0, True),
    ]
    page = rewritten(_PAGE, _report(told))
    assert "| GPTRouter | 11 | 10 – 12 | 2 |" in page  # noqa: RUF001
    assert "an earlier run" not in page
    assert page.startswith("# Performance\n")
    assert page.endswith("\nThe end.\n")


def test_a_page_without_a_place_for_it_is_refused() -> None:
    """What is measured is never lost without a word."""
    with pytest.raises(ValueError, match="the page needs the lines"):
        rewritten("# Title\n", _report())


def test_a_run_of_some_sections_keeps_the_others(tmp_path: Path) -> None:
    """Old figures stay until there are new ones, or the bench has no such section."""
    (tmp_path / "performance.md").write_text(_PAGE)
    old = _report(_measured("gone", 1), _measured("growth", 2), _measured("calls", 3))
    (tmp_path / "performance.json").write_text(json.dumps(old))
    write(_report(_measured("calls", 4)), draw, tmp_path, ["calls", "first", "growth"])
    told: ProviderError = json.loads((tmp_path / "performance.json").read_text())
    assert [(one["name"], one["rows"][0]["low"]) for one in told["sections"]] == [
        ("calls", 4),
        ("growth", 2),
    ]
    assert rewritten(_PAGE, told) == (tmp_path / "performance.md").read_text()
    assert "Title of calls" in (tmp_path / "performance.svg").read_text()
    assert "Title of growth" not in (tmp_path / "performance.svg").read_text()


def test_the_server_is_asked_how_busy_it_is() -> None:
    """Its share is that of its own process while it serves, without the warm-up."""
    with running() as server:
        post = who.raw_post(server.url)

        def calls() -> float:
            return float(sum(len(post()) > 0 for _ in range(200)))

        share = ServerShare(server)
        seen = interleaved(share.of({"raw": calls, "other": calls}, "raw"), rounds=2)
    assert seen == {"raw": [200.0, 200.0], "other": [200.0, 200.0]}
    (shares,) = share.rounds().values()
    assert len(shares) == 2
    assert all(0 < one < 100 for one in shares)
    assert [bar.figure for bar in bars("raw")] == list(share.rounds())
