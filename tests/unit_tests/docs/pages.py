"""Runs the Python of a page as its reader would: what README and docs/ are held to.

A page is read from top to bottom. Its Python blocks run in that order in one namespace;
one with a bare `await` runs in an event loop, as it would in a notebook. Every Python
block runs, and a block of another language does not. Beside this there are three signs:

- An `output` block is what the Python block above it prints, word for word; `...`
  stands for what is another each time.
- `<!-- server: Status(429), Answer("Paris") -->`, which no reader sees, lets the server
  behind the page take these steps of `langchain_retryrouter.testing` while the Python
  block below runs, which must use them all.
- `<!-- needs: langchain -->` says that the Python block below imports a package which
  the unit tests go without; they leave the block out, and the integration tests run it.
"""

from __future__ import annotations

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

from markdown_it import MarkdownIt
from markdown_it.token import Token

from langchain_retryrouter import testing
from langchain_retryrouter.testing import FaultyGateway

_SIGN = re.compile(r"<!--\s*(?P<name>server|needs):(?P<said>.*?)-->", re.DOTALL)
_FIELDS = {"server": "steps", "needs": "needs"}
_OTHER_NAMES = {"py", "python3", "Python"}


@dataclasses.dataclass(frozen=True)
class Block:
    """A Python block, where its code begins, and what the signs around it say."""

    path: Path
    line: int
    code: str
    steps: str = ""
    needs: str = ""
    output: str | None = None

    def __str__(self) -> str:
        """The place, as editors take it."""
        return f"{self.path.name}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    """The Python blocks of a page, from top to bottom.

    Raises:
        ValueError: A sign stands where it means nothing, or a block that looks like
            Python would not be run.
    """
    blocks: list[Block] = []
    signs: dict[str, str] = {}
    above = ""
    for token in MarkdownIt().parse(path.read_text()):
        place = f"{path.name}:{token.map[0] + 1}" if token.map else path.name
        if token.type == "html_block" and (found := _SIGN.search(token.content)):
            field = _FIELDS[found["name"]]
            _refuse(field in signs, f"{place}: no Python block comes after the other")
            signs[field] = found["said"].strip()
        elif token.type == "fence":
            language = _language_of(token, place)
            if language == "python":
                blocks.append(Block(path, _first_line(token), token.content, **signs))
                signs = {}
            elif language == "output":
                _refuse(above != "python", f"{place}: no Python block stands above it")
                blocks[-1] = dataclasses.replace(blocks[-1], output=token.content)
            above = language
    _refuse(signs, f"{path.name}: no Python block comes after the last sign")
    return blocks


def _language_of(fence: Token, place: str) -> str:
    language = fence.info.strip()
    _refuse(language in _OTHER_NAMES, f"{place}: the language is spelled `python`")
    return language


def _first_line(fence: Token) -> int:
    return (fence.map or [0])[0] + 2


def _refuse(is_wrong: object, why: str) -> None:
    if is_wrong:
        raise ValueError(why)


def run(blocks: Iterable[Block], gateway: FaultyGateway) -> None:
    """Run blocks that build upon each other, with `gateway` behind them.

    Raises:
        AssertionError: A block printed, or the server did, not what the page says.
        Exception: What a block raised; the traceback names the page's line.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with asyncio.Runner() as runner:
        for block in blocks:
            steps = eval(f"[{block.steps}]", dict(vars(testing)))  # noqa: S307
            gateway.reset_log()
            gateway.script(*steps)
            printed = _printed_by(block, namespace, runner)
            disabled_retries = [request.step for request in gateway.requests]
            assert disabled_retries[: len(steps)] == steps, (
                f"{block}: the server did {disabled_retries}"
            )
            if block.output is not None:
                _compare(block, block.output, printed)


def _printed_by(block: Block, namespace: dict[str, Any], runner: asyncio.Runner) -> str:
    # As many lines above it as in the page, so that tracebacks tell the page's line.
    source = "\n" * (block.line - 1) + block.code
    code = compile(
        source,
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


def _compare(block: Block, said: str, printed: str) -> None:
    # The last line of a block in a page always has its end.
    printed = printed if printed.endswith("\n") else f"{printed}\n"
    checker, ellipsis = doctest.OutputChecker(), doctest.ELLIPSIS
    if not checker.check_output(said, printed, ellipsis):
        example = doctest.Example(block.code, said)
        difference = checker.output_difference(example, printed, ellipsis)
        msg = f"{block} prints something else.\n{difference}"
        raise AssertionError(msg)
