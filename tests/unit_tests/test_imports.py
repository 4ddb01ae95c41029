"""The public names of the package, and which modules an import loads."""

import ast
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import langchain_retryrouter
from langchain_retryrouter import errors
from tests.support.models import NOWHERE, gpt_router

PACKAGE = Path(langchain_retryrouter.__file__).parent

PUBLIC = {
    *("APIConnectionError", "APITimeoutError", "AuthenticationError", "AzureOpenAI"),
    *("AttemptLog", "AttemptSummary", "SpendLimit", "SpendLimitError"),
    *("BaseOpenAI", "BreakerState", "CircuitBreaker", "CircuitBreakerSettings"),
    *("CircuitOpenError", "Clock", "ConflictError", "ContentFilterError"),
    *("ContextLengthError", "EmbeddingsRoute", "EmbeddingsRouter"),
    *("FailureAction", "FailureKind", "GPTRouter", "VectorSpaceError"),
    *("GPTRouterEmbeddings", "GPTRouterModel", "InvalidRequestError"),
    *("LengthLimitError", "MalformedResponseError", "NotFoundError", "OpenAI"),
    *("OpenAIChat", "RejectedAnswerError"),
    *("PermissionDeniedError", "QuotaExceededError", "RateLimit", "RateLimitError"),
    "RetryBudget",
    *("RetryEvent", "RetryPolicy", "RetryRouter", "RetryRouterError", "Route"),
    *("RoutingWorstCase", "ServerError", "StreamInterruptedError"),
    *("UnavailableError", "UnknownError", "UnsupportedOptionError", "WorstCase"),
    *("__version__", "should_retry"),
}
"""Every name that users may rely on: to remove one is to break their code."""


@cache
def modules_after(code: str) -> set[str]:
    """The modules that a fresh Python has loaded after `code`, on top of its own."""
    script = (
        f"import sys; own = set(sys.modules)\n{code}\nprint(*set(sys.modules) - own)"
    )
    command, environment = [sys.executable, "-c", script], dict(os.environ)
    environment["PYTHONPATH"] = str(PACKAGE.parent)
    return set(subprocess.check_output(command, env=environment, text=True).split())


def packages_after(code: str) -> set[str]:
    """The same, by their top names."""
    return {module.partition(".")[0] for module in modules_after(code)}


# --- names ---


def test_the_public_names() -> None:
    """The package has exactly these names, and `dir` shows no others."""
    assert set(langchain_retryrouter.__all__) == PUBLIC
    assert len(langchain_retryrouter.__all__) == len(PUBLIC)
    assert dir(langchain_retryrouter) == sorted(PUBLIC)
    assert set(errors.__all__) <= PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
def test_each_name_is_what_it_says(name: str) -> None:
    """Every public name leads to a class, or function, of that name, documented."""
    value = getattr(langchain_retryrouter, name)
    assert isinstance(value, type) or name == "should_retry"
    assert value.__name__ == name
    assert value.__doc__
    assert getattr(langchain_retryrouter, name) is value


@pytest.mark.parametrize("name", ["Nonsense", "completion_with_retry", "retry_router"])
def test_other_names_are_refused(name: str) -> None:
    """Any other name is an `AttributeError` that names it."""
    with pytest.raises(AttributeError, match=f"no attribute '{name}'"):
        getattr(langchain_retryrouter, name)


def test_type_checkers_see_the_same_names() -> None:
    """Names are lazy for Python and plain for a type checker: both are the same."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    checking = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(checking.test) == "TYPE_CHECKING"
    imported = {
        alias.name
        for node in checking.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == PUBLIC - {"__version__"}
    assert (PACKAGE / "py.typed").exists()


# --- cycles ---


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
    paths = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        paths[".".join(parts).removesuffix(".__init__")] = path
    graph: dict[str, set[str]] = {}
    for name, path in paths.items():
        targets = set(imports_of(ast.parse(path.read_text())))
        modules = {one if one in paths else one.rpartition(".")[0] for one in targets}
        graph[name] = modules & paths.keys() - {name, "langchain_retryrouter"}
    TopologicalSorter(graph).prepare()  # A CycleError names the cycle.


# --- costs ---

SDKS = {"openai", "gpt_router", "langchain_openai", "tiktoken"}
HTTP = {"aiohttp", "urllib3", "httpx", "httpx2", "httpcore", "h11", "requests"}
LANGCHAIN = {"langchain_core", "pydantic", "tenacity"}
GATEWAYS_MODELS = """
from langchain_retryrouter import GPTRouter, GPTRouterEmbeddings, GPTRouterModel
model = GPTRouterModel(name="gpt-4", provider_name="openai")
for cls in (GPTRouter, GPTRouterEmbeddings):
    cls(models_priority_list=[model], gpt_router_api_key="k")
"""
FROM = "from langchain_retryrouter import"


@pytest.mark.parametrize(
    ("code", "needed", "not_needed"),
    [
        (
            f"{FROM} CircuitBreaker, RetryBudget, RetryPolicy",
            set(),
            {*SDKS, *HTTP, *LANGCHAIN, "asyncio"},
        ),
        (f"{FROM} RateLimitError", {"langchain_core"}, {*SDKS, "aiohttp", "urllib3"}),
        (f"{FROM} OpenAI", set(), SDKS - {"openai"}),
        (GATEWAYS_MODELS, {"gpt_router"}, {*SDKS, "aiohttp"} - {"gpt_router"}),
        (
            "import langchain_retryrouter.testing",
            set(),
            {*SDKS, *LANGCHAIN, "pytest", "_pytest", "aiohttp"},
        ),
        ("import langchain_retryrouter.testing.fixtures", {"pytest"}, set()),
    ],
)
def test_imports_load_only_what_they_need(
    code: str, needed: set[str], not_needed: set[str]
) -> None:
    """A policy needs no LangChain, an error no SDK, and a model no other's SDK."""
    loaded = packages_after(code)
    assert loaded >= needed
    assert not loaded & not_needed


def test_the_package_itself_loads_nothing() -> None:
    """Importing it loads no SDK, no LangChain, no HTTP library, no other module."""
    modules = modules_after("import langchain_retryrouter")
    ours = {m for m in modules if m.startswith("langchain_retryrouter")}
    assert ours == {"langchain_retryrouter"}
    packages = {module.partition(".")[0] for module in modules}
    assert not packages & {*SDKS, *HTTP, *LANGCHAIN}


def test_a_gateways_models_add_no_http_library() -> None:
    """langchain-core itself loads urllib3, by way of requests; nothing is added."""
    without = packages_after("import langchain_core.language_models.chat_models")
    assert not (packages_after(GATEWAYS_MODELS) - without) & {"urllib3", "requests"}


def test_a_model_without_tools_does_not_load_their_code() -> None:
    """The code for tools and structured output is loaded with the first of them."""
    module = "langchain_retryrouter.chat_models._structured"
    assert module not in modules_after(GATEWAYS_MODELS)


@pytest.mark.parametrize("made", ["by its class", "from a pickle"])
def test_a_models_first_call_finds_its_code_loaded(made: str) -> None:
    """However a model was made, its first call imports none of our modules."""
    model = gpt_router(NOWHERE, "gpt-4")
    code = {
        "by its class": GATEWAYS_MODELS,
        "from a pickle": f"import pickle; pickle.loads({pickle.dumps(model)!r})",
    }[made]
    loaded = modules_after(code)
    assert "langchain_retryrouter.chat_models.gpt_router" in loaded
    assert loaded >= {"tenacity", "langchain_retryrouter._gptrouter.client"}
