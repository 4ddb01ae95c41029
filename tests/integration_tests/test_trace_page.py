"""The page of `retryrouter trace --html` in a real browser, headless Chromium."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from langchain_retryrouter import cli

CALLS = 10_000
HOSTILE = "</script><script>document.title='owned'</script><!--<img src=x onerror=a()>"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--virtual-time-budget=10000", "--dump-dom"),
)


def log_of(number: int) -> dict[str, Any]:
    """Call `number`: every 10th fails over, every 100th fails on a hostile route."""
    is_bad, is_slow = number % 100 == 0, number % 10 == 0
    route = HOSTILE if is_bad else "backup" if is_slow else "first"
    outcome = "server_error" if is_bad else "ok"
    last = {"outcome": outcome, "seconds": 0.5, "wait": 0.0, "route": route}
    lines: list[dict[str, Any]] = [{"attempt": 1, "began": 0.0, **last}]
    if is_slow:
        first = {"outcome": "timeout", "seconds": 2.0, "wait": 1.0, "route": "first"}
        lines = [{"attempt": 1, **first}, {"attempt": 2, "began": 3.0, **last}]
    return {"route": route, "attempts": lines, "cost": 0.001 * (1 + is_slow)}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of many calls."""
    folder = tmp_path_factory.mktemp("page")
    file, html = folder / "calls.jsonl", folder / "calls.html"
    lines = (json.dumps(log_of(number)) for number in range(1, CALLS + 1))
    file.write_text("\n".join(lines), encoding="utf-8")
    assert cli.main(["trace", str(file), "--html", str(html)]) == 0
    return html


def dom(page: Path, folder: Path, **filters: str) -> str:
    """The page's elements after its script has run, with filters in the address."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "this test needs Chromium: apt-get install -y chromium"
    ran = subprocess.run(
        [
            *(chromium, *FLAGS, f"--user-data-dir={folder}"),
            f"{page.as_uri()}#{urlencode(filters)}",
        ],
        capture_output=True,
        timeout=120,
        check=True,
    )
    whole = ran.stdout.decode()
    # Without the script and its data, which the page has as well.
    return re.sub(r"<script.*?</script>", "", whole, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("filters", "found", "answered"),
    [
        ({}, 10_000, 9_900),
        ({"outcome": "timeout"}, 1_000, 900),
        ({"route": HOSTILE}, 100, 0),
        ({"text": "ONERROR"}, 100, 0),
        ({"seconds": "3.5"}, 1_000, 900),
        ({"cost": "0.002", "outcome": "ok"}, 900, 900),
        ({"text": "nothing like that"}, 0, 0),
    ],
    ids=str,
)
def test_the_page_shows_what_its_filters_leave(
    page: Path, tmp_path: Path, filters: dict[str, str], found: int, answered: int
) -> None:
    """Of 10,000 calls those that fit are counted and drawn; names stay text."""
    shown = dom(page, tmp_path, **filters)
    summary = f"{found:,} of 10,000 calls, {answered:,} answered"
    assert summary in shown
    assert shown.count("<article>") == min(100, found)
    assert "<title>Attempts</title>" in shown
    assert "<img" not in shown
    if HOSTILE in filters.values():
        assert HOSTILE[:30] in unescape(shown)


def test_the_page_loads_nothing(page: Path) -> None:
    """The file names no address, and its policy forbids the browser to load any."""
    html = page.read_text("utf-8")
    assert html.count("</script>") == 2
    html = re.sub(r'(?<=json">).*?(?=</script>)', "", html)
    assert "default-src 'none'" in html
    assert not re.search(
        r"https?://|url\(|<link|\bsrc=|import\b", html.split("@")[0][:9000]
    )
