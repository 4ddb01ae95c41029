"""What the docs site must hold, beyond what its strict build checks."""

import re
import tomllib
from pathlib import Path
from typing import Any

import langchain_retryrouter
from langchain_retryrouter import RetryRouterError, otel, stores, testing
from langchain_retryrouter.failures import FAILURE_ACTIONS, FailureAction, FailureKind

_ROOT = Path(__file__).parents[3]
_DOCS = _ROOT / "docs"
_SETTINGS = tomllib.loads((_ROOT / "zensical.toml").read_text("utf-8"))
_NAVIGATION = _SETTINGS["project"]["nav"]
_WORDS = {
    FailureAction.RETRY: "the same route",
    FailureAction.FAILOVER: "the next route",
    FailureAction.RAISE: "the error is raised",
}


def _pages(navigation: list[dict[str, Any]]) -> list[str]:
    pages: list[str] = []
    for entry in navigation:
        for target in entry.values():
            pages += [target] if isinstance(target, str) else _pages(target)
    return pages


def _found(pattern: str) -> list[str]:
    """What a pattern finds in all pages."""
    text = "\n".join(page.read_text("utf-8") for page in _DOCS.rglob("*.md"))
    return re.findall(pattern, text, re.MULTILINE)


def _rows(page: str, first: str) -> dict[str, list[str]]:
    """The cells of the table whose first heading is `first`, by their first cell."""
    text = (_DOCS / page).read_text("utf-8")
    table = text.split(f"\n| {first} |")[1].split("\n\n")[0]
    cells = [line.strip("|").split(" | ") for line in table.splitlines()[2:]]
    return {name.strip(" `"): [cell.strip() for cell in rest] for name, *rest in cells}


def test_the_navigation_has_every_page_once() -> None:
    """A page that is not in the navigation is not found, and a missing one is dead."""
    pages = [str(page.relative_to(_DOCS)) for page in _DOCS.rglob("*.md")]
    assert sorted(_pages(_NAVIGATION)) == sorted(pages)


def test_the_api_pages_have_every_public_name_once() -> None:
    """The strict build does not notice a name that is missing or does not exist."""
    public = [
        f"{module.__name__}.{name}"
        for module in (langchain_retryrouter, otel, stores, testing)
        for name in module.__all__
        if name != "__version__"
    ]
    assert sorted(_found("^::: (.+)$")) == sorted(public)


def test_the_table_of_failures_is_that_of_the_code() -> None:
    """The page says of every kind of failure what a router does after it."""
    told = {kind: cells[1] for kind, cells in _rows("failures.md", "kind").items()}
    assert told.keys() == set(FailureKind)
    for kind, action in FAILURE_ACTIONS.items():
        assert told[kind].startswith(_WORDS[action]), kind


def test_the_table_of_errors_has_each_class_with_its_kind() -> None:
    """The page names every error class, and the kind by which the code treats it."""
    told = {
        name.split("`")[0]: cells[0].strip("`")
        for name, cells in _rows("errors.md", "error").items()
    }
    classes = {
        name: cls.kind.value
        for name in langchain_retryrouter.__all__
        if isinstance(cls := getattr(langchain_retryrouter, name), type)
        and issubclass(cls, RetryRouterError)
        and cls is not RetryRouterError
    }
    assert told == classes


def test_the_scorecard_of_the_readme_is_what_was_measured() -> None:
    """The README's figures are those of the pages that the benches write."""
    readme = (_ROOT / "README.md").read_text("utf-8").split("## Scorecard")[1]
    pages = [
        (_DOCS / name).read_text("utf-8") for name in ("failover.md", "answers.md")
    ]
    passed = re.findall(r"\*\*(\d+ of 16)\*\*", pages[0])
    answered = re.findall(r"^\| .* \| (\d+\.\d+ %) \| (\d+) \|", pages[1], re.MULTILINE)
    told = re.findall(r"(\d+ of 16) \| (\d+\.\d+ %) \| (\d+) \|", readme)
    assert [row[0] for row in told] == passed
    assert [row[1:] for row in told] == answered[:2] + answered[3:]


def test_an_included_file_has_no_relative_links() -> None:
    """Links of a file outside docs/ are dead on the page that includes it."""
    for name in _found(r'^--8<-- "(.+)"$'):
        text = (_ROOT / name).read_text("utf-8")
        assert re.findall(r"\]\((?!https://)[^)]*\)", text) == [], name


def test_every_file_that_a_page_names_exists() -> None:
    """A page names files of the repository by their path, since links would be dead."""
    folders = r"`((?:tests|benchmarks|examples|langchain_retryrouter)/[\w/.]+)`"
    assert [name for name in _found(folders) if not (_ROOT / name).exists()] == []


def test_the_overview_has_every_guide() -> None:
    """The first page says what each guide is for."""
    [guides] = [entry["Guides"] for entry in _NAVIGATION if "Guides" in entry]
    overview = (_DOCS / "README.md").read_text("utf-8")
    assert [page for page in _pages(guides) if f"({page})" not in overview] == []
