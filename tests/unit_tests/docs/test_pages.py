"""The guard of the pages is guarded too: each way a page can lie is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from langchain_retryrouter.testing import FakeClock, FaultyGateway
from tests.unit_tests.docs.pages import blocks_of, run


def _page(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text)
    return path


_TWO_STEPS = """\
<!-- server: Status(503), Answer("Paris") -->
```python
from langchain_retryrouter import OpenAI
llm = OpenAI()
"""


@pytest.fixture
def gateway(
    faulty_gateway: FaultyGateway,
    no_real_waits: FakeClock,  # noqa: ARG001 - the pages' retries wait
    monkeypatch: pytest.MonkeyPatch,
) -> FaultyGateway:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    monkeypatch.setenv("OPENAI_BASE_URL", faulty_gateway.openai_url)
    return faulty_gateway


def test_an_honest_page_passes(tmp_path: Path, gateway: FaultyGateway) -> None:
    """Names last from block to block, `await` works, the server does as it is told."""
    page = _page(
        tmp_path,
        f"{_TWO_STEPS}print(llm.invoke('?'))\n```\n\n```output\nParis\n```\nText.\n\n"
        "```python\nprint(await llm.ainvoke('?'))\n```\n```output\nHello...\n```\n",
    )
    run(blocks_of(page), gateway)


def test_a_block_that_fails_fails_with_the_line_of_the_page(
    tmp_path: Path, gateway: FaultyGateway
) -> None:
    """What an example raises comes out, and says where in the page that was."""
    page = _page(tmp_path, "# Title\n\n```python\nx = 1\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run(blocks_of(page), gateway)
    last = caught.traceback[-1]
    assert (Path(last.path), last.lineno + 1) == (page, 5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(
            "```python\nprint(1)\n```\n```output\n2\n```\n",
            "page.md:2 prints something else",
            id="another-output",
        ),
        pytest.param(
            f"{_TWO_STEPS}OpenAI(max_retries=0).batch(['?'], return_exceptions=True)"
            "\n```\n",
            "the server did",
            id="a-step-is-left",
        ),
        pytest.param(
            "<!-- server: Reset() -->\n```python\n1\n```\n",
            "the server did",
            id="nobody-asked",
        ),
    ],
)
def test_a_page_that_says_something_else_fails(
    tmp_path: Path, gateway: FaultyGateway, text: str, says: str
) -> None:
    """An output or a server's behaviour that does not happen is a failure."""
    with pytest.raises(AssertionError, match=says):
        run(blocks_of(_page(tmp_path, text)), gateway)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("```py\n1\n```\n", "spelled `python`", id="py"),
        pytest.param(
            "1. x\n\n   ```python3\n   1\n   ```\n", "spelled", id="in-a-list"
        ),
        pytest.param("```output\n1\n```\n", "no Python block stands", id="output"),
        pytest.param(
            "```python\n1\n```\n```bash\nls\n```\n```output\n1\n```\n",
            "no Python block stands",
            id="output-of-bash",
        ),
        pytest.param("<!-- server: Reset() -->\n", "no Python block", id="script"),
        pytest.param("<!-- needs: x -->\n", "no Python block", id="needs"),
        pytest.param(
            "<!-- server: Reset() -->\n\n<!-- server: Reset() -->\n```python\n1\n```\n",
            "page.md:3",
            id="two-scripts",
        ),
    ],
)
def test_a_sign_that_would_mean_nothing_is_refused(
    tmp_path: Path, text: str, says: str
) -> None:
    """A block that looks like Python and would not run, or a lost sign, is an error."""
    with pytest.raises(ValueError, match=says):
        blocks_of(_page(tmp_path, text))


def test_blocks_in_lists_are_run(tmp_path: Path) -> None:
    """An indented block is a block."""
    (block,) = blocks_of(_page(tmp_path, "1. x\n\n   ```python\n   y = 1\n   ```\n"))
    assert (block.code, block.line) == ("y = 1\n", 4)


def test_a_block_tells_what_it_needs_and_what_its_server_does(tmp_path: Path) -> None:
    """A sign is the next block's alone, and two different ones may stand above it."""
    signs = "<!-- needs: langchain -->\n<!-- server: Reset() -->\n"
    block = "```python\n1\n```\n"
    first, second = blocks_of(_page(tmp_path, f"{signs}{block}{block}"))
    assert (first.needs, first.steps) == ("langchain", "Reset()")
    assert (second.needs, second.steps) == ("", "")
