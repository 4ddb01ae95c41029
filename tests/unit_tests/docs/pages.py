"""Runs the Python blocks of a Markdown page, from top to bottom, in one namespace.

A block with a bare `await` runs in an event loop, as in a notebook. Three marks matter:

- An `output` block is what the Python block above it prints, word for word; `...`
  stands for text that changes from run to run.
- `<!-- server: Status(429), Answer("Paris") -->` is invisible on the page. The server
  behind the page plays these steps of `langchain_retryrouter.testing` while the next
  Python block runs, and that block must use them all.
- `<!-- needs: langchain -->` says that the next Python block imports a package that the
  unit tests do not install; the integration tests run it. `<!-- needs: keys -->` in the
  README says that the block reads keys from the environment; the test has false ones.
"""

import ast
import asyncio
import contextlib
import dataclasses
import doctest
import inspect
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from langchain_retryrouter import testing
from langchain_retryrouter.testing import FaultyGateway

_FENCE_OR_MARK = re.compile(
    r"^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$"
    r"|^<!-- (?P<mark>server|needs): (?P<text>.*?) -->$",
    re.DOTALL | re.MULTILINE,
)


@dataclasses.dataclass
class Block:
    """A Python block, its first line in the page, and the marks above it."""

    path: Path
    line: int
    code: str
    server: str = ""
    needs: str = ""
    output: str | None = None

    def __str__(self) -> str:
        """The place, in the form that editors understand."""
        return f"{self.path.name}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    """The Python blocks of a page, from top to bottom."""
    text = path.read_text()
    blocks: list[Block] = []
    marks: dict[str, str] = {}
    language = ""
    for found in _FENCE_OR_MARK.finditer(text):
        line = text.count("\n", 0, found.start()) + 2
        if found["mark"]:
            marks[found["mark"]] = found["text"]
            continue
        above, language = language, found["language"]
        assert language not in {"py", "python3"}, f"{path.name}:{line}: write `python`"
        if language == "python":
            blocks.append(Block(path, line, found["code"], **marks))
            marks = {}
        elif language == "output":
            assert above == "python", f"{path.name}:{line}: no Python block above"
            blocks[-1].output = found["code"]
    assert not marks, f"{path.name}: no Python block after the mark {marks}"
    return blocks


def run(blocks: Iterable[Block], gateway: FaultyGateway) -> None:
    """Run blocks that build upon each other, with `gateway` as their provider.

    Raises:
        AssertionError: The output or the server's steps differ from the page.
        Exception: The block's own exception; its traceback names the page's line.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with asyncio.Runner() as runner:
        for block in blocks:
            steps = eval(f"[{block.server}]", dict(vars(testing)))  # noqa: S307
            gateway.reset_log()
            gateway.script(*steps)
            printed = _run_block(block, namespace, runner)
            played = [request.step for request in gateway.requests][: len(steps)]
            assert played == steps, f"{block}: the server played {played}"
            if block.output is not None:
                _compare(block, block.output, printed)


def _run_block(block: Block, namespace: dict[str, Any], runner: asyncio.Runner) -> str:
    # Empty lines before the code give tracebacks the line numbers of the page.
    code = compile(
        "\n" * (block.line - 1) + block.code,
        str(block.path),
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        dont_inherit=True,
    )
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        result = eval(code, namespace)  # noqa: S307
        if inspect.iscoroutine(result):
            runner.run(result)
    return printed.getvalue()


def _compare(block: Block, expected: str, printed: str) -> None:
    printed = printed if printed.endswith("\n") else f"{printed}\n"
    checker = doctest.OutputChecker()
    if not checker.check_output(expected, printed, doctest.ELLIPSIS):
        example = doctest.Example(block.code, expected)
        difference = checker.output_difference(example, printed, doctest.ELLIPSIS)
        msg = f"{block} prints something else.\n{difference}"
        raise AssertionError(msg)
