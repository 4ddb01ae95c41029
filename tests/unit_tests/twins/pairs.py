"""Finds the twins of the package: by their names, never by a list."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import langchain_retryrouter

PACKAGE = Path(langchain_retryrouter.__file__).parent
ROOMS = (
    "_aiohttp.py",
    "_callbacks.py",
    "_drive",
    "_gptrouter",
    "_openai",
    "chat_models",
    "embeddings",
    "llms",
)

Definition: TypeAlias = (
    ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.AnnAssign
)


@dataclass(frozen=True)
class Pair:
    """Two twins.

    Attributes:
        where: The module, with dots, and the class if they are methods.
        sync_name: The name of the one without `async`.
        async_name: The name of the other.
        sync: What the one is.
        asyn: What the other is.
    """

    where: str
    sync_name: str
    async_name: str
    sync: Definition
    asyn: Definition

    @property
    def name(self) -> str:
        """The sync twin's full name."""
        return f"{self.where}.{self.sync_name}"


def modules() -> dict[str, ast.Module]:
    """The syntax trees of the rooms that have twins."""
    files = [
        file
        for room in ROOMS
        for file in (
            PACKAGE.glob(room) if "." in room else (PACKAGE / room).rglob("*.py")
        )
    ]
    return {
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts): ast.parse(
            file.read_text()
        )
        for file in sorted(files)
    }


def sync_names(name: str) -> list[str]:
    """The names that the sync twin of `name` may have."""
    bare = name.lstrip("_")
    marks = name[: len(name) - len(bare)]
    if "Async" in bare:
        return [name.replace("Async", ""), name.replace("Async", "Sync")]
    if bare.startswith("async_"):
        return [marks + bare.removeprefix("async_"), marks + bare.removeprefix("a")]
    if bare[:1] == "a" or (bare[:1] == "A" and bare[1:2].isupper()):
        return [marks + bare[1:]]
    return []


def definitions(body: list[ast.stmt]) -> dict[str, Definition]:
    """What is defined in a module or class, by name."""
    named: dict[str, Definition] = {}
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                named[node.name] = node
            case ast.AnnAssign(ast.Name(name)):
                named[name] = node
    return named


def pairs() -> list[Pair]:
    """All twins: a module's functions, classes and types, and a class's methods."""
    return [p for where, tree in modules().items() for p in _pairs_in(where, tree.body)]


def _pairs_in(where: str, body: list[ast.stmt]) -> Iterator[Pair]:
    defined = definitions(body)
    for name, node in defined.items():
        sister = next((n for n in sync_names(name) if n in defined), None)
        if sister is not None:
            yield Pair(where, sister, name, defined[sister], node)
        elif isinstance(node, ast.ClassDef):
            yield from _pairs_in(f"{where}.{name}", node.body)


def coroutines() -> Iterator[tuple[str, str, ast.AsyncFunctionDef]]:
    """Every `async def` of the rooms: where it stands, its name, and the function."""
    for where, tree in modules().items():
        yield from _coroutines_in(where, tree)


def _coroutines_in(
    where: str, node: ast.AST
) -> Iterator[tuple[str, str, ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.AsyncFunctionDef(name):
                yield where, name, child
                yield from _coroutines_in(f"{where}.{name}", child)
            case ast.FunctionDef(name) | ast.ClassDef(name):
                yield from _coroutines_in(f"{where}.{name}", child)
            case _:
                yield from _coroutines_in(where, child)
