"""README and docs/: every Python example runs, every link leads somewhere."""

import re
from pathlib import Path

import pytest

from langchain_retryrouter.testing import FaultyGateway
from tests.unit_tests.docs.pages import Block, blocks_of, run

_ROOT = Path(__file__).parents[3]
_README = _ROOT / "README.md"
_DOCS = sorted((_ROOT / "docs").rglob("*.md"))
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def _name_of(path: Path) -> str:
    return str(path.relative_to(_ROOT))


@pytest.mark.usefixtures("no_real_waits")
@pytest.mark.parametrize("page", _DOCS, ids=_name_of)
def test_every_page_runs(page: Path, reader: FaultyGateway) -> None:
    """The examples of a page run one after the other and print what it shows."""
    run([block for block in blocks_of(page) if not block.needs], reader)


@pytest.mark.usefixtures("no_real_waits")
@pytest.mark.parametrize("block", blocks_of(_README), ids=str)
def test_every_readme_example_runs(
    block: Block, request: pytest.FixtureRequest
) -> None:
    """An example of the README can be copied alone, without keys unless it says so."""
    with_keys = block.needs == "keys"
    run([block], request.getfixturevalue("reader" if with_keys else "faulty_gateway"))


@pytest.mark.parametrize("page", [*sorted(_ROOT.glob("*.md")), *_DOCS], ids=_name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    """A relative link names an existing file and, if given, a heading in it."""
    links = _LINK.findall(_FENCE.sub("", page.read_text()))
    dead = [link for link in links if "://" not in link and not _leads(page, link)]
    assert dead == []


def _leads(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = (page.parent / name if name else page).resolve()
    # The docs site has no other files: a page names them by their path.
    is_there = target.exists() and (
        page not in _DOCS or _ROOT / "docs" in target.parents
    )
    return is_there and (not anchor or anchor in _anchors(target))


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(
        r"^#+ (.+)$", _FENCE.sub("", page.read_text()), flags=re.MULTILINE
    )
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }
