"""The chart of a run: a bar for each contestant, against the floor or the best peer.

An SVG by hand, without a library. It brings its own colours for light and for dark, and
writes each figure beside its bar, for those who do not see the colours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from xml.sax.saxutils import escape

from benchmarks.speed.report import Measured, ProviderError, Row

_WIDTH: Final = 960
_LEFT: Final = 300
_ROW, _HEAD, _GAP = 20, 34, 18
_BAR: Final = 520
_SHOWN: Final = ("calls", "acalls", "chunks", "achunks", "first", "afirst")
_OURS: Final = ("GPTRouter", "OpenAI", "RetryRouter")
_STYLE: Final = """
svg { font: 13px system-ui, sans-serif; }
.page { fill: #ffffff; } text { fill: #24292f; } .quiet { fill: #59636e; }
.title { font-size: 15px; font-weight: 600; }
.ours { fill: #0969da; } .theirs { fill: #8c959f; }
@media (prefers-color-scheme: dark) {
  .page { fill: #0d1117; } text { fill: #e6edf3; } .quiet { fill: #9198a1; }
  .ours { fill: #4493f8; } .theirs { fill: #656c76; }
}
"""


def draw(report: ProviderError) -> str:
    """An SVG document with a panel for each section of what one call or chunk costs."""
    y = 24.0
    parts: list[str] = []
    shown = (one for one in report["sections"] if one["name"] in _SHOWN)
    for section in shown:
        parts += _panel(section, y)
        y += _HEAD + _ROW * len(section["rows"]) + _GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y:.0f}"'
        f' role="img" aria-label="What calls and chunks cost">'
    )
    page = f'<rect class="page" width="{_WIDTH}" height="{y:.0f}"/>'
    return "\n".join([head, f"<style>{_STYLE}</style>", page, *parts, "</svg>\n"])


def _panel(section: Measured, y: float) -> Iterator[str]:
    title = f"{section['title']} ({section['unit']}, less is better)"
    yield f'<text class="title" x="20" y="{y:.0f}">{escape(title)}</text>'
    rows = sorted(section["rows"], key=lambda row: row["median"])
    # The slowest are off the scale: a bar that breaks off says so by its figure.
    longest = rows[min(len(rows) - 1, len(rows) * 3 // 4)]["median"] or 1.0
    for number, row in enumerate(rows):
        yield from _bar(row, longest, y + _HEAD - 12 + _ROW * number)


def _bar(row: Row, longest: float, y: float) -> Iterator[str]:
    width = max(2.0, min(1.0, row["median"] / longest) * _BAR)
    kind = "ours" if row["name"].startswith(_OURS) else "theirs"
    line = f'y="{y + 11:.0f}"'
    name, figure = escape(row["name"]), f"{row['median']:,.4g}"
    yield f'<text class="quiet" x="{_LEFT - 10}" {line} text-anchor="end">{name}</text>'
    at = f'x="{_LEFT}" y="{y:.0f}"'
    yield f'<rect class="{kind}" {at} width="{width:.1f}" height="13"/>'
    yield f'<text x="{_LEFT + width + 8:.1f}" {line}>{figure}</text>'
