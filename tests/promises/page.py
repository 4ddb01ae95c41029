"""`docs/promises.md`: nothing but what `docs/promises.json` says, in readable form."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from typing_extensions import TypedDict

from tests.promises.evidence import US, Figure, Told

_HEAD = """\
# Promises, with their numbers

What this package promises when providers misbehave, what was measured, and which test
measures it. Everything runs on loopback or on a virtual clock.

```bash
make promises   # the short form, as it runs for each change
make prove      # the long form, with the peers beside us; rewrites this page
```

Where a peer stands in a row, it went through the same test in the same run.
"""


class ProviderError(TypedDict):
    """What was measured last of each promise, as it stands in `docs/promises.json`."""

    python: str
    cores: int
    versions: dict[str, str]
    promises: list[Told]


def read(folder: Path) -> ProviderError:
    """The report that the page was written from."""
    report: ProviderError = json.loads((folder / "promises.json").read_text())
    return report


def write(report: ProviderError, folder: Path) -> None:
    """Write the report and the page of it; what it does not speak of is kept."""
    clone = {one["test"]: one for one in report["promises"]}
    held = {one["test"]: one for one in read(folder)["promises"]} | clone
    report = {**report, "promises": [held[test] for test in sorted(held)]}
    data = json.dumps(report, indent=1, ensure_ascii=False)
    (folder / "promises.json").write_text(f"{data}\n")
    (folder / "promises.md").write_text(page(report))


def page(report: ProviderError) -> str:
    """The page, in Markdown."""
    overview = _rows(
        ["promise", "number", "test"],
        [[_link(one), one["number"], f"`{one['test']}`"] for one in report["promises"]],
    )
    sections = [
        f"## {one['title']}\n\n{one['why']}\n\nPromised: {one['number']}.\n\n"
        + _figures(one["figures"])
        for one in report["promises"]
    ]
    versions = [f"{name} {number}" for name, number in report["versions"].items()]
    foot = (
        "Measured in the long form, with"
        f" {', '.join(versions)}, Python {report['python']}"
        f" on {report['cores']} cores.\n"
    )
    return "\n".join([_HEAD, overview, *sections, "---\n", foot])


def table(report: ProviderError) -> str:
    """What was measured, for a terminal."""
    lines: list[str] = []
    for one in report["promises"]:
        lines.append(f"{one['title']}: {one['number']}")
        for figure in one["figures"]:
            bar = f"  ({figure['bound']} {_number(figure['bar'])})" * _is_bound(figure)
            value = _number(figure["value"])
            lines.append(f"  {figure['system']:<24} {figure['what']}: {value}{bar}")
    return "\n".join(lines)


def _figures(figures: Sequence[Figure]) -> str:
    peers = list(dict.fromkeys(f["system"] for f in figures if f["system"] != US))
    by_name = {(f["what"], f["system"]): f for f in figures}
    names = dict.fromkeys(f["what"] for f in figures)
    rows: list[list[str]] = []
    for what in names:
        of_row = [by_name.get((what, system)) for system in [US, *peers]]
        rows.append([what, _bar(of_row[0]), *(_value(figure) for figure in of_row)])
    return _rows(["measured", "promised", US, *peers], rows)


def _bar(figure: Figure | None) -> str:
    if figure is None or not _is_bound(figure):
        return ""
    return f"{figure['bound']} {_number(figure['bar'])}"


def _is_bound(figure: Figure) -> bool:
    return figure["bar"] is not None


def _value(figure: Figure | None) -> str:
    return "" if figure is None else _number(figure["value"])


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3g}"


def _link(one: Told) -> str:
    kept = (sign for sign in one["title"].lower() if sign.isalnum() or sign in " -")
    return f"[{one['title']}](#{''.join(kept).replace(' ', '-')})"


def _rows(head: list[str], rows: list[list[str]]) -> str:
    return "".join(_lines(head, rows))


def _lines(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    for row in [head, ["---"] * len(head), *rows]:
        yield f"| {' | '.join(row)} |\n"
