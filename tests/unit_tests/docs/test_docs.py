"""README and docs/ keep their word: every Python example runs, every link leads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from langchain_retryrouter.testing import FakeClock, FaultyGateway
from tests.unit_tests.docs.pages import Block, blocks_of, run

_ROOT = Path(__file__).parents[3]
_README = _ROOT / "README.md"
_DOCS = sorted((_ROOT / "docs").rglob("*.md"))
_LINKED = [*sorted(_ROOT.glob("*.md")), *_DOCS]
_FIRST_SCREEN_LINES = 15


def _name_of(path: Path) -> str:
    return str(path.relative_to(_ROOT))


@pytest.mark.usefixtures("no_real_waits")
@pytest.mark.parametrize("page", _DOCS, ids=_name_of)
def test_every_page_runs(page: Path, reader: FaultyGateway) -> None:
    """The examples of a page run one after the other, and print what it says."""
    run([block for block in blocks_of(page) if not block.needs], reader)


@pytest.mark.usefixtures("no_real_waits")
@pytest.mark.parametrize("block", blocks_of(_README), ids=str)
def test_every_example_of_the_readme_runs(
    block: Block, faulty_gateway: FaultyGateway
) -> None:
    """An example of the README can be copied alone, to a machine with no keys."""
    run([block], faulty_gateway)


def test_the_first_example_is_short_and_shows_retries(
    no_real_waits: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first example fits a screen, needs no key, and shows two faults survived."""
    first = blocks_of(_README)[0]
    assert len(first.code.splitlines()) <= _FIRST_SCREEN_LINES
    exec(first.code, {})
    printed = capsys.readouterr().out
    assert "'outcome': 'rate_limit'" in printed
    assert "'outcome': 'connection'" in printed
    assert "'outcome': 'ok'" in printed
    assert no_real_waits.sleeps[0] >= 1


def test_what_the_policy_example_says_is_what_it_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The comment beside `explain()` is its output, word for word."""
    code = next(b.code for b in blocks_of(_README) if "policy.explain()" in b.code)
    exec(code, {})
    said = re.search(r"print\(policy\.explain\(\)\)  # (.*)", code)
    assert said is not None
    assert capsys.readouterr().out.strip() == said[1]


@pytest.mark.parametrize("page", _LINKED, ids=_name_of)
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    """A relative link names a file that is there, and a heading that is in it."""
    dead = [link for link in _links_in(page) if not _leads_somewhere(page, link)]
    assert dead == []


def _links_in(page: Path) -> Iterator[str]:
    for token in _inline(page):
        for child in token.children or ():
            href = str(child.attrGet("href") or "")
            if href and "://" not in href:
                yield href


def _leads_somewhere(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    if not target.exists():
        return False
    return not anchor or anchor in {_anchor(token) for token in _inline(target)}


def _anchor(heading: Token) -> str:
    """What GitHub makes of a heading."""
    words = re.sub(r"[^\w\- ]", "", heading.content.lower())
    return words.replace(" ", "-")


def _inline(page: Path) -> list[Token]:
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(page.read_text())
    return [token for token in tokens if token.type == "inline"]
