"""The normal form of a twin: what is left when `async` and `await` are taken out.

Two twins are one program if their normal forms are equal. The form is the source text
that the syntax tree gives when

- `async def`, `async for`, `async with` and asynchronous comprehensions are plain ones,
  and `await x` is `x`;
- each asynchronous name is replaced by its sync sister's: the twins found in the
  package (`acall` by `call`), what has `Async` or `async_` in it (`AsyncRetrying` by
  `Retrying`), and the few of Python and LangChain below;
- the types of what is awaited are the types of what it gives: `Awaitable[T]` is `T`,
  and `AsyncGenerator[T, S]` is `Generator[T, S, None]`;
- `yield from x` is the loop that it stands for, and a comprehension that only collects
  is `list(x)`, as `[*x]` is, since async code cannot say either so short;
- docstrings are gone.

Nothing else is forgiven: another constant, a missing line, an argument left out, a
different order, a changed default are all differences.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

OTHERS = {
    "StopAsyncIteration": "StopIteration",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
    "aclose": "close",
    "aclosing": "closing",
    "agenerate_from_stream": "generate_from_stream",
    "aiter": "iter",
    "anext": "next",
    "aread": "read",
}


def normal_form(node: ast.AST, names: Mapping[str, str]) -> str:
    """The text that is equal for twins.

    Args:
        node: A function or class of either colour.
        names: Async names and their sync sisters, beside those above.
    """
    # A copy: a tree is changed by what walks over it.
    fresh = ast.parse(ast.unparse(node))
    normal = _Decolour({**OTHERS, **names}).visit(fresh)
    return ast.unparse(ast.fix_missing_locations(normal))


class _Decolour(ast.NodeTransformer):
    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def _name(self, name: str) -> str:
        return self._names.get(name, name).replace("Async", "").replace("async_", "")

    # --- names ---

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self._name(node.id), node.ctx)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        return ast.Attribute(node.value, self._name(node.attr), node.ctx)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        self.generic_visit(node)
        return ast.arg(self._name(node.arg), node.annotation)

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        self.generic_visit(node)
        return ast.keyword(node.arg and self._name(node.arg), node.value)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        # `cast("AsyncGenerator[T, None]", x)` writes a type as a string.
        if not isinstance(node.value, str) or "Async" not in node.value:
            return node
        try:
            typed = ast.parse(node.value, mode="eval")
        except SyntaxError:
            return node
        return ast.Constant(ast.unparse(self.visit(typed)))

    # --- colour ---

    def visit_Await(self, node: ast.Await) -> Any:
        return self.visit(node.value)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> Any:
        return self.visit(_recast(node, ast.FunctionDef))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.name = self._name(node.name)
        return _without_docstring(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        node.name = self._name(node.name)
        return _without_docstring(node)

    def visit_AsyncFor(self, node: ast.AsyncFor) -> Any:
        return self.visit(_recast(node, ast.For))

    def visit_AsyncWith(self, node: ast.AsyncWith) -> Any:
        return self.visit(_recast(node, ast.With))

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        self.generic_visit(node)
        node.is_async = 0
        return node

    # --- what async code can only say longer ---

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.value, ast.YieldFrom):
            return node
        return _loop_over(node.value.value)

    def visit_For(self, node: ast.For) -> ast.AST:
        self.generic_visit(node)
        match node:
            case ast.For(
                target=ast.Name(each),
                body=[ast.Expr(ast.Yield(ast.Name(given)))],
                orelse=[],
            ) if each == given:
                return _loop_over(node.iter)
        return node

    def visit_List(self, node: ast.List) -> ast.AST:
        self.generic_visit(node)
        match node.elts:
            case [ast.Starred(iterable)]:
                return _list_of(iterable)
        return node

    def visit_ListComp(self, node: ast.ListComp) -> ast.AST:
        self.generic_visit(node)
        match node:
            case ast.ListComp(
                elt=ast.Name(given),
                generators=[ast.comprehension(ast.Name(each), iterable, [])],
            ) if each == given:
                return _list_of(iterable)
        return node

    # --- types ---

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        match node:
            case ast.Subscript(ast.Name("Awaitable"), result):
                return result
            case ast.Subscript(ast.Name("Generator"), ast.Tuple([_, _] as parts)):
                node.slice = ast.Tuple([*parts, ast.Constant(None)], ast.Load())
        return node


def _recast(node: ast.AST, into: type[ast.AST]) -> ast.AST:
    return into(**dict(ast.iter_fields(node)))


def _without_docstring(node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
    match node.body:
        case [ast.Expr(ast.Constant(str())), *rest]:
            node.body = rest or [ast.Pass()]
    return node


def _loop_over(iterable: ast.expr) -> ast.For:
    each = "each"
    return ast.For(
        target=ast.Name(each, ast.Store()),
        iter=iterable,
        body=[ast.Expr(ast.Yield(ast.Name(each, ast.Load())))],
        orelse=[],
    )


def _list_of(iterable: ast.expr) -> ast.Call:
    return ast.Call(ast.Name("list", ast.Load()), [iterable], [])
