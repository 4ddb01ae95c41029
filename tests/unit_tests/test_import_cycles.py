"""No module imports itself through others, not even inside a function."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import langchain_retryrouter

PACKAGE = Path(langchain_retryrouter.__file__).parent


def imports_of(tree: ast.AST) -> Iterator[str]:
    """All names that are imported, at any level but under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        yield from imports_of(node)


def test_there_are_no_import_cycles() -> None:
    """import-linter's layers do not see cycles inside a layer or inside functions."""
    graph: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        graph[".".join(parts).removesuffix(".__init__")] = set()
    for name, needed in graph.items():
        path = PACKAGE.parent.joinpath(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for target in imports_of(ast.parse(file.read_text())):
            module = target if target in graph else target.rpartition(".")[0]
            needed.update({module} & graph.keys() - {name, "langchain_retryrouter"})
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        cycle = " -> ".join(error.args[1])
        msg = f"import cycle: {cycle}"
        raise AssertionError(msg) from None
