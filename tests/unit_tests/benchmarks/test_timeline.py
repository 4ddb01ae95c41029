"""The picture of an outage: whole, valid, and with all that happened."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree as ET

from benchmarks.failover.evidence import (
    BACKUP,
    PRIMARY,
    TEXT,
    Attempt,
    Call,
    Evidence,
    Reply,
)
from benchmarks.failover.timeline import draw

_SVG = "{http://www.w3.org/2000/svg}"
_SEEN = Evidence(
    calls=(
        Call(0.0, 1.5, Reply(TEXT, BACKUP)),
        Call(4.0, 0.0, error="ServerError: <gone> & lost"),
        Call(64.0, 0.0, Reply(TEXT, PRIMARY)),
    ),
    attempts=(
        Attempt(0.0, PRIMARY, "503"),
        Attempt(0.5, PRIMARY, "503"),
        Attempt(1.5, BACKUP, "Answer"),
        Attempt(64.0, PRIMARY, "Answer"),
    ),
    breaker=((0.0, "closed"), (1.5, "open"), (31.5, "half_open"), (64.0, "closed")),
)


def _of_class(picture: ET.Element, name: str) -> list[ET.Element]:
    return [one for one in picture.iter() if name in one.get("class", "").split()]


def test_every_call_is_in_the_picture() -> None:
    """Each call is a mark that says when it was made, and who has answered it."""
    picture = ET.fromstring(draw({"ours": _SEEN, "<theirs> & co.": _SEEN}))  # noqa: S314
    titles = [call.findtext(f"{_SVG}title") for call in _of_class(picture, "call")]
    assert titles == 2 * [
        "call 1 at 0.0 s: gpt-backup",
        "call 2 at 4.0 s: nobody",
        "call 3 at 64.0 s: gpt-primary",
    ]


def test_marks_stand_where_their_time_is() -> None:
    """What came later stands further to the right, on one axis for all systems."""
    picture = ET.fromstring(draw({"ours": _SEEN}))  # noqa: S314
    attempts = [float(one.get("x1", "")) for one in _of_class(picture, "attempt")]
    calls = [one.get("cx") for one in _of_class(picture, "call")]
    assert attempts == sorted(set(attempts))
    assert len(attempts) == 3
    assert [float(calls[0] or ""), float(calls[2] or "")] == [attempts[0], attempts[2]]


def test_a_breaker_is_drawn_without_a_gap() -> None:
    """Its states fill the time from the first call to the end of the axis."""
    picture = ET.fromstring(draw({"ours": _SEEN}))  # noqa: S314
    states = _of_class(picture, "breaker")
    edges = [
        (float(one.get("x", "")), float(one.get("x", "")) + float(one.get("width", "")))
        for one in states
    ]
    for (_, end), (begin, _) in itertools.pairwise(edges):
        assert abs(end - begin) < 0.2
    assert [one.get("class") for one in states] == [
        "breaker closed",
        "breaker open",
        "breaker half_open",
        "breaker closed",
    ]


def test_a_system_without_a_breaker_has_no_lane_for_one() -> None:
    """Nothing is drawn that was not there."""
    seen = Evidence(_SEEN.calls, _SEEN.attempts)
    picture = ET.fromstring(draw({"theirs": seen}))  # noqa: S314
    assert _of_class(picture, "breaker") == []
    assert [text.text for text in picture.iter(f"{_SVG}text")].count("breaker") == 0


def test_it_is_readable_in_the_dark() -> None:
    """It brings its own page and its own colours for both."""
    picture = draw({"ours": _SEEN})
    assert "prefers-color-scheme: dark" in picture
    assert picture.count(".page {") == 2
