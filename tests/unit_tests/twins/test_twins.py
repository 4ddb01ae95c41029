"""Sync and async are one program: the twins' syntax trees are compared, all of them."""

from __future__ import annotations

import ast
import difflib
import textwrap

import pytest

from .differences import ALONE, BY_LIBRARY, WRITTEN
from .normal_form import normal_form
from .pairs import PACKAGE, Pair, coroutines, pairs

PAIRS = pairs()
NAMES = {pair.async_name: pair.sync_name for pair in PAIRS}

COLOURED_ROOMS = (
    "_aiohttp.py",
    "_callbacks.py",
    "_drive/",
    "_gptrouter/bodies.py",
    "_gptrouter/pools.py",
    "_gptrouter/sending.py",
    "_gptrouter/transport.py",
    "_openai/clients/",
    "chat_models/",
    "embeddings/",
    "llms/",
    "testing/",
)
"""Where `async def` may stand; what thinks stands elsewhere, and serves both twins."""


def difference(pair: Pair) -> str:
    """What is left of two twins when what they share is taken away."""
    sync, asyn = (
        normal_form(twin, NAMES).splitlines() for twin in (pair.sync, pair.asyn)
    )
    lines = difflib.unified_diff(sync, asyn, lineterm="", n=0)
    return "\n".join(line for line in lines if line[:2] not in {"--", "++", "@@"})


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_twins_are_one_program(pair: Pair) -> None:
    """Two twins are equal but for colour, or differ exactly as is written down."""
    found = difference(pair)
    if pair.name in BY_LIBRARY:
        assert found, "no longer different: take it off the list"
    else:
        expected = WRITTEN[pair.name].lines if pair.name in WRITTEN else ""
        assert found == expected.strip("\n")


def test_the_twins_are_found() -> None:
    """A search that finds nothing would pass; these are certainly twins."""
    names = {pair.name for pair in PAIRS}
    assert len(names) == len(PAIRS) >= 30
    assert names >= {
        "_drive.calls.call",
        "_drive.streams.stream",
        "_gptrouter.bodies.SyncEvents",
        "_gptrouter.transport.GatewayClient.post",
        "chat_models._exchange.Exchange",
        "chat_models.gpt_router.GPTRouter._generate",
        "chat_models._gateway_calls.completion_with_retry",
        "embeddings._exchange.Exchange",
        "embeddings.gpt_router.GPTRouterEmbeddings.embed_documents",
        "llms.openai.completion_with_retry",
    }


def test_the_list_of_differences_is_true() -> None:
    """What is excused exists: an entry for twins that are gone is taken out."""
    assert set(WRITTEN) | set(BY_LIBRARY) <= {pair.name for pair in PAIRS}
    assert not set(WRITTEN) & set(BY_LIBRARY)


def test_no_coroutine_is_alone() -> None:
    """Every `async def` has a sync twin, or stands in one, or is excused."""
    twins = {f"{pair.where}.{pair.async_name}" for pair in PAIRS}
    alone = {
        f"{where}.{name}"
        for where, name, _ in coroutines()
        if not any(
            f"{where}.{name}.".startswith(f"{twin}.") for twin in {*twins, *ALONE}
        )
    }
    assert alone == set()
    assert {f"{where}.{name}" for where, name, _ in coroutines()} >= set(ALONE)


def test_only_some_rooms_have_a_colour() -> None:
    """`async def` stands only where somebody waits or talks; what thinks is shared."""
    coloured = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if any(
            isinstance(node, ast.AsyncFunctionDef)
            for node in ast.walk(ast.parse(file.read_text()))
        )
    }
    assert coloured
    assert {file for file in coloured if not file.startswith(COLOURED_ROOMS)} == set()


# --- the guard is guarded -----------------------------------------------------------


def form(source: str) -> str:
    """The normal form of code in which `aread` and `AStream` have sisters."""
    return normal_form(
        ast.parse(textwrap.dedent(source)), {"aread": "read", "AStream": "Stream"}
    )


ONE_PROGRAM = [
    ("def read(x): return x", "async def aread(x): return x"),
    ("def f(): return read()", "async def f(): return await aread()"),
    ("def f():\n  for x in y: g(x)", "async def f():\n  async for x in y: g(x)"),
    ("def f():\n  yield from y", "async def f():\n  async for x in y: yield x"),
    ("def f():\n  with a: b()", "async def f():\n  async with a: await b()"),
    (
        "def f(): return [g(x) for x in y]",
        "async def f(): return [g(x) async for x in y]",
    ),
    ("def f(): return h([*y])", "async def f(): return h([x async for x in y])"),
    ("def f(): return h(list(y))", "async def f(): return h([x async for x in y])"),
    ("def f(): return next(y)", "async def f(): return await anext(y)"),
    ("def f(): raise StopIteration", "async def f(): raise StopAsyncIteration"),
    (
        "def f(n: Callable[[], T]): n()",
        "async def f(n: Callable[[], Awaitable[T]]): await n()",
    ),
    ("def f() -> Iterator[T]: yield 1", "async def f() -> AsyncIterator[T]: yield 1"),
    (
        "def f() -> Generator[T, None, None]: yield 1",
        "async def f() -> AsyncGenerator[T, None]: yield 1",
    ),
    ("class Stream: pass", "class AStream:\n  '''Async twin of `Stream`.'''"),
    ("class B:\n  def __iter__(self): 1", "class B:\n  async def __aiter__(self): 1"),
    ("def f(): 'A.'; return 1", "async def f(): 'Async twin of `f`.'; return 1"),
    (
        "def f(): x = cast('Iterator[T]', y)",
        "async def f(): x = cast('AsyncIterator[T]', y)",
    ),
]


@pytest.mark.parametrize(("sync", "asyn"), ONE_PROGRAM)
def test_colour_alone_is_no_difference(sync: str, asyn: str) -> None:
    """What async code must say otherwise is the same program."""
    assert form(sync) == form(asyn)


TWO_PROGRAMS = [
    ("def f(): return read(1)", "async def f(): return await aread(2)"),
    ("def f(): return read(1)", "async def f(): return await aread()"),
    ("def f(): return read(a, b)", "async def f(): return await aread(b, a)"),
    ("def f(): return read(a=1)", "async def f(): return await aread(b=1)"),
    ("def f(): return read(x)", "async def f(): await aread(x)"),
    ("def f(x=1): return x", "async def f(x=2): return x"),
    ("def f(x: int): return x", "async def f(x: str): return x"),
    ("def f(*, x): return x", "async def f(x): return x"),
    ("def f():\n  a()\n  b()", "async def f():\n  await a()"),
    ("def f():\n  a()", "async def f():\n  await a()\n  await b()"),
    ("def f():\n  a()\n  b()", "async def f():\n  b()\n  a()"),
    ("def f():\n  if a: b()", "async def f():\n  if not a: await b()"),
    ("def f():\n  if a > b: c()", "async def f():\n  if a >= b: await c()"),
    (
        "def f():\n  try: a()\n  except (A, B): b()",
        "async def f():\n  try: await a()\n  except A: await b()",
    ),
    ("def f():\n  yield from y", "async def f():\n  async for x in y: yield g(x)"),
    (
        "def f(): return [x for x in y]",
        "async def f(): return [x async for x in y if x]",
    ),
    ("def f(): return h(y)", "async def f(): return h([x async for x in y])"),
    ("def f(): return close(y)", "async def f(): return await anext(y)"),
    ("@a\ndef f(): 1", "async def f(): 1"),
    (
        "class A:\n  def a(self): 1",
        "class A:\n  async def a(self): 1\n  def b(self): 1",
    ),
    ("class A(B): pass", "class A(C): pass"),
]


@pytest.mark.parametrize(("sync", "asyn"), TWO_PROGRAMS)
def test_every_other_difference_is_seen(sync: str, asyn: str) -> None:
    """A changed value, a lost line, another order: whatever is not colour is seen."""
    assert form(sync) != form(asyn)
