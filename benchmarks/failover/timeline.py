"""The timeline of an outage as a picture: calls, attempts, and the breaker's state.

An SVG by hand, without a library. It brings its own colours for light and for dark, and
says everything in shape or place as well, for those who do not see the colours.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Final
from xml.sax.saxutils import escape

from benchmarks.failover.evidence import PRIMARY, Attempt, Call, Evidence
from benchmarks.failover.scenarios import OUTAGE, attempts_in_the_outage

_WIDTH: Final = 960
_LEFT, _RIGHT = 112, 24
_TOP, _BOTTOM = 88, 60
_LANE, _BETWEEN = 26, 44
_STEP: Final = 10
"""Seconds from mark to mark of the axis."""

_STYLE: Final = """
svg { font: 13px system-ui, sans-serif; }
.page { fill: #ffffff; } text { fill: #24292f; } .quiet { fill: #59636e; }
.title { font-size: 17px; font-weight: 600; } .name { font-weight: 600; }
.outage { fill: #cf222e; opacity: 0.08; } .axis { stroke: #59636e; opacity: 0.35; }
.primary { fill: #0969da; } .backup { fill: none; stroke: #bc4c00; stroke-width: 2.2; }
.lost { stroke: #cf222e; stroke-width: 2.4; }
.refused { stroke: #cf222e; stroke-width: 2; }
.answered { stroke: #0969da; stroke-width: 2; }
.closed { fill: #1a7f37; opacity: 0.35; } .open { fill: #cf222e; opacity: 0.6; }
.half_open { fill: #bf8700; }
@media (prefers-color-scheme: dark) {
  .page { fill: #0d1117; } text { fill: #e6edf3; } .quiet { fill: #9198a1; }
  .outage { fill: #f85149; opacity: 0.13; } .axis { stroke: #9198a1; }
  .primary { fill: #4493f8; } .backup { stroke: #f0883e; } .lost { stroke: #f85149; }
  .refused { stroke: #f85149; } .answered { stroke: #4493f8; }
  .closed { fill: #3fb950; } .open { fill: #f85149; } .half_open { fill: #d29922; }
}
"""


def draw(timelines: Mapping[str, Evidence]) -> str:
    """An SVG document with a panel for each system, all over one axis of time."""
    ends = [
        call.began + call.seconds for seen in timelines.values() for call in seen.calls
    ]
    return _Picture(max(ends, default=0.0)).draw(timelines)


class _Picture:
    def __init__(self, end: float) -> None:
        self._end = max(OUTAGE, end) + 2
        self._y = float(_TOP)

    def draw(self, timelines: Mapping[str, Evidence]) -> str:
        panels = [
            part for name, seen in timelines.items() for part in self._panel(name, seen)
        ]
        bottom = self._y - _BETWEEN / 2
        height = bottom + _BOTTOM
        box = f'viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{_TITLE}"'
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
            f"<style>{_STYLE}</style>",
            f'<rect class="page" width="{_WIDTH}" height="{height:.0f}"/>',
            _text(_LEFT, 28, _TITLE, "title"),
            *_key(48),
            *self._axis(bottom),
            *panels,
            "</svg>",
        ]
        return "\n".join(parts) + "\n"

    def _x(self, seconds: float) -> float:
        share = min(max(seconds, 0.0), self._end) / self._end
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def _axis(self, bottom: float) -> Iterator[str]:
        left, right = self._x(0), self._x(OUTAGE)
        yield (
            f'<rect class="outage" x="{left:.1f}" y="{_TOP - 20}" '
            f'width="{right - left:.1f}" height="{bottom - _TOP + 20:.1f}"/>'
        )
        for seconds in range(0, int(self._end) + 1, _STEP):
            x = self._x(seconds)
            yield _line("axis", x, _TOP - 20, x, bottom)
            yield _text(x, bottom + 18, f"{seconds} s", "quiet", "middle")
        note = f"the primary answers 503 for {OUTAGE:g} s, then it is well again"
        yield _text(left, bottom + 40, note, "quiet")

    def _panel(self, name: str, seen: Evidence) -> Iterator[str]:
        count = attempts_in_the_outage(seen)
        told = f"{name}: {count} attempts at the primary while it is down"
        yield _text(_LEFT, self._y, told, "name")
        yield from self._lane("calls", map(self._call, itertools.count(1), seen.calls))
        yield from self._lane("attempts", map(self._attempt, seen.at_primary))
        if seen.breaker:
            yield from self._lane("breaker", self._breaker(seen))
        self._y += _BETWEEN

    def _lane(self, label: str, marks: Iterator[str]) -> Iterator[str]:
        self._y += _LANE
        yield _text(_LEFT - 14, self._y + 4, label, "quiet", "end")
        yield from marks

    def _call(self, number: int, call: Call) -> str:
        x, y = self._x(call.began), self._y
        by = (call.reply.model if call.reply else None) or "nobody"
        title = f"<title>call {number} at {call.began:.1f} s: {escape(by)}</title>"
        if not call.is_whole:
            cross = f"M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"
            return f'<path class="call lost" d="{cross}">{title}</path>'
        kind = "primary" if by.endswith(PRIMARY) else "backup"
        return (
            f'<circle class="call {kind}" cx="{x:.1f}" cy="{y:.1f}" r="5.5">'
            f"{title}</circle>"
        )

    def _attempt(self, attempt: Attempt) -> str:
        x, y = self._x(attempt.at), self._y
        kind = "refused" if attempt.did == "503" else "answered"
        top = y - 8 if kind == "refused" else y - 3
        return _line(f"attempt {kind}", x, top, x, y + 8)

    def _breaker(self, seen: Evidence) -> Iterator[str]:
        ends = [at for at, _ in seen.breaker[1:]] + [self._end]
        for (at, state), end in zip(seen.breaker, ends, strict=True):
            x, width = self._x(at), max(1.5, self._x(end) - self._x(at))
            yield (
                f'<rect class="breaker {escape(state)}" x="{x:.1f}" '
                f'y="{self._y - 6:.1f}" width="{width:.1f}" height="12">'
                f"<title>{escape(state)} from {at:.1f} s</title></rect>"
            )


_TITLE: Final = "20 calls, one every 4 s, through an outage"


def _key(y: float) -> Iterator[str]:
    left = _LEFT
    yield f'<circle class="primary" cx="{left + 6}" cy="{y}" r="5.5"/>'
    yield _text(left + 18, y + 4, "answered by the primary", "quiet")
    yield f'<circle class="backup" cx="{left + 206}" cy="{y}" r="5.5"/>'
    yield _text(left + 218, y + 4, "by the backup", "quiet")
    yield _line("refused", left + 340, y - 8, left + 340, y + 8)
    yield _text(left + 350, y + 4, "attempt refused", "quiet")
    for at, state, label in (
        (480, "closed", "breaker closed"),
        (624, "open", "open"),
        (704, "half_open", "half-open"),
    ):
        box = f'x="{left + at}" y="{y - 6}" width="18" height="12"'
        yield f'<rect class="{state}" {box}/>'
        yield _text(left + at + 24, y + 4, label, "quiet")


def _text(x: float, y: float, said: str, kind: str, anchor: str = "start") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{escape(said)}</text>"
    )


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return (
        f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" '
        f'y2="{y2:.1f}"/>'
    )
