"""What the package offers, and what importing it costs."""

from __future__ import annotations

import ast
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

import langchain_retryrouter
from langchain_retryrouter import GPTRouter, GPTRouterModel, errors

PACKAGE = Path(langchain_retryrouter.__file__).parent

PUBLIC = {
    "APIConnectionError",
    "APITimeoutError",
    "AuthenticationError",
    "AzureOpenAI",
    "BaseOpenAI",
    "BreakerState",
    "CircuitBreaker",
    "CircuitBreakerSettings",
    "CircuitOpenError",
    "Clock",
    "ConflictError",
    "ContentFilterError",
    "ContextLengthError",
    "FailureAction",
    "FailureKind",
    "GPTRouter",
    "GPTRouterEmbeddings",
    "GPTRouterModel",
    "InvalidRequestError",
    "MalformedResponseError",
    "NotFoundError",
    "OpenAI",
    "OpenAIChat",
    "PermissionDeniedError",
    "QuotaExceededError",
    "RateLimitError",
    "RetryBudget",
    "RetryEvent",
    "RetryPolicy",
    "RetryRouter",
    "RetryRouterError",
    "Route",
    "RoutingWorstCase",
    "ServerError",
    "StreamInterruptedError",
    "UnavailableError",
    "UnknownError",
    "UnsupportedOptionError",
    "WorstCase",
    "__version__",
    "should_retry",
}
"""Every name that users may rely on: to remove one is to break their code."""


def modules_after(code: str) -> set[str]:
    """The modules that a fresh Python has loaded after `code`, on top of its own."""
    script = (
        f"import sys, json; own = set(sys.modules)\n{code}\n"
        "print(json.dumps(sorted(set(sys.modules) - own)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return set(json.loads(ran.stdout))


def packages_after(code: str) -> set[str]:
    """The same, by their top names."""
    return {module.partition(".")[0] for module in modules_after(code)}


# --- names --------------------------------------------------------------------------


def test_the_public_names() -> None:
    """The package has exactly these names, and `dir` shows no others."""
    assert set(langchain_retryrouter.__all__) == PUBLIC
    assert len(langchain_retryrouter.__all__) == len(PUBLIC)
    assert dir(langchain_retryrouter) == sorted(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
def test_each_name_is_what_it_says(name: str) -> None:
    """Every public name leads to a class, or function, of that name, documented."""
    value = getattr(langchain_retryrouter, name)
    assert isinstance(value, type) or name == "should_retry"
    assert value.__name__ == name
    assert value.__doc__
    assert getattr(langchain_retryrouter, name) is value


def test_the_version_is_one() -> None:
    """The version is a plain number, and it is written in one place."""
    parts = langchain_retryrouter.__version__.split(".")
    assert len(parts) == 3
    assert all(part[:1].isdigit() for part in parts)
    named = [
        file.name
        for file in PACKAGE.rglob("*.py")
        if "__version__ =" in file.read_text()
    ]
    assert named == ["__init__.py"]


@pytest.mark.parametrize("name", ["Nonsense", "completion_with_retry", "retry_router"])
def test_no_name_is_made_up(name: str) -> None:
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


def test_every_error_is_offered() -> None:
    """Every error that a call can raise is imported from the package."""
    assert set(errors.__all__) <= PUBLIC


# --- costs --------------------------------------------------------------------------

SDKS = {"openai", "gpt_router", "langchain_openai", "tiktoken"}
HTTP = {"aiohttp", "urllib3", "httpx", "httpx2", "httpcore", "h11", "requests"}


def test_the_package_itself_costs_nothing() -> None:
    """Importing it loads no SDK, no LangChain, no HTTP library, no other module."""
    modules = modules_after("import langchain_retryrouter")
    ours = {m for m in modules if m.startswith("langchain_retryrouter")}
    assert ours == {"langchain_retryrouter"}
    packages = {module.partition(".")[0] for module in modules}
    assert not packages & {*SDKS, *HTTP, "langchain_core", "pydantic", "tenacity"}


@pytest.mark.parametrize("name", ["RetryPolicy", "RetryBudget", "CircuitBreaker"])
def test_a_policy_needs_no_langchain(name: str) -> None:
    """Policies and breakers are imported without LangChain."""
    loaded = packages_after(f"from langchain_retryrouter import {name}")
    assert not loaded & {
        *SDKS,
        *HTTP,
        "langchain_core",
        "pydantic",
        "tenacity",
        "asyncio",
    }


def test_an_error_needs_no_sdk() -> None:
    """Importing an error does not import the SDK that it came from."""
    loaded = packages_after("from langchain_retryrouter import RateLimitError")
    assert not loaded & {*SDKS, "aiohttp", "urllib3"}
    assert "langchain_core" in loaded


LANGCHAINS_OWN = "import langchain_core.language_models.chat_models"
GATEWAY_MODEL = """
from langchain_retryrouter import GPTRouter, GPTRouterModel
model = GPTRouterModel(name="gpt-4", provider_name="openai")
GPTRouter(models_priority_list=[model], gpt_router_api_key="k")
"""
GATEWAY_EMBEDDINGS = GATEWAY_MODEL.replace(
    "GPTRouter,", "GPTRouterEmbeddings,"
).replace("GPTRouter(", "GPTRouterEmbeddings(")


@pytest.mark.parametrize("made", ["by its class", "from a pickle"])
def test_a_models_first_call_finds_its_code_loaded(made: str) -> None:
    """However a model was made, its first call imports none of our modules."""
    model = GPTRouter(
        models_priority_list=[GPTRouterModel(name="gpt-4", provider_name="openai")],
        gpt_router_api_key=SecretStr("k"),
    )
    code = {
        "by its class": GATEWAY_MODEL,
        "from a pickle": f"import pickle; pickle.loads({pickle.dumps(model)!r})",
    }[made]
    loaded = modules_after(code)
    assert "langchain_retryrouter.chat_models.gpt_router" in loaded
    assert loaded >= {"tenacity", "langchain_retryrouter._gptrouter.client"}


@pytest.mark.parametrize("code", [GATEWAY_MODEL, GATEWAY_EMBEDDINGS])
def test_the_gateways_model_needs_no_openai(code: str) -> None:
    """A gateway's model never imports openai, and HTTP libraries at its first call."""
    loaded = packages_after(code)
    assert "gpt_router" in loaded
    assert not loaded & {"openai", "langchain_openai", "tiktoken", "aiohttp"}
    # langchain-core itself loads urllib3, by way of requests; we add nothing to it.
    assert not (loaded - packages_after(LANGCHAINS_OWN)) & {"urllib3", "requests"}


def test_the_openai_models_need_no_gateway() -> None:
    """An OpenAI model does not import the gateway's SDK."""
    loaded = packages_after("from langchain_retryrouter import OpenAI")
    assert not loaded & {"gpt_router", "langchain_openai", "tiktoken"}


def test_the_gateway_for_tests_needs_no_pytest() -> None:
    """`FaultyGateway` serves demos as well as tests: only its fixtures need pytest."""
    loaded = packages_after("import langchain_retryrouter.testing")
    assert not loaded & {*SDKS, "pytest", "_pytest", "langchain_core"}
    assert "pytest" in packages_after("import langchain_retryrouter.testing.fixtures")
