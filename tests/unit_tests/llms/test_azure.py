"""Azure: addresses, deployments, versions and identities."""

import asyncio
import functools
import warnings
from typing import Any

import pytest
from pydantic import ValidationError

from langchain_retryrouter import AzureOpenAI
from langchain_retryrouter.testing import STUB_TEXT, FaultyGateway

from .conftest import KEY, Env, NewLLM

PATH = "/openai/deployments/my-deployment/completions"
BEARER = ("authorization", "Bearer t")


@pytest.fixture
def new_azure(new_llm: NewLLM) -> NewLLM:
    """Makes models as `new_llm`, of `AzureOpenAI` and without a key."""
    return functools.partial(new_llm, AzureOpenAI, api_key=None)


@pytest.mark.parametrize(
    "fields",
    [{}, {"azure_deployment": None, "model": "my-deployment"}],
    ids=["deployment", "model"],
)
def test_a_deployment_is_asked(env: Env, fields: dict[str, Any]) -> None:
    """Endpoint, deployment or else model, and version make the address of a request."""
    assert env.invoke(env.new(AzureOpenAI, **fields), "hi") == STUB_TEXT
    (request,) = env.gateway.requests
    assert (request.path, request.query) == (PATH, "api-version=2024-10-21")
    assert request.headers["api-key"] == KEY
    assert "authorization" not in request.headers
    assert request.payload["model"] == "my-deployment"
    assert request.headers["user-agent"] == "langchain-retryrouter-python-azure-openai"


def test_the_environment_says_it_all(
    twin: Any, gateway: FaultyGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Endpoint, version and key may all come from Azure's variables, not OpenAI's."""
    for name, value in {
        "AZURE_OPENAI_ENDPOINT": gateway.url,
        "OPENAI_API_BASE": "http://127.0.0.1:1/v1",
        "OPENAI_BASE_URL": "http://127.0.0.1:1/v1",
        "OPENAI_API_VERSION": "2024-10-21",
        "AZURE_OPENAI_API_KEY": KEY,
        "OPENAI_API_KEY": "not-this",
    }.items():
        monkeypatch.setenv(name, value)
    llm = AzureOpenAI(azure_deployment="my-deployment")
    assert twin.invoke(llm, "hi") == STUB_TEXT
    assert gateway.requests[0].headers["api-key"] == KEY
    assert llm.openai_api_type == "azure"


def test_a_provider_is_asked_before_each_request(
    twin: Any, new_azure: NewLLM, gateway: FaultyGateway
) -> None:
    """A function for tokens is called for each request, by async calls as well."""
    tokens = iter(["first", "second"])
    llm = new_azure(azure_ad_token_provider=lambda: next(tokens))
    twin.invoke(llm, "hi")
    twin.invoke(llm, "hi")
    sent = [request.headers["authorization"] for request in gateway.requests]
    assert sent == ["Bearer first", "Bearer second"]


async def test_an_async_provider_is_for_async_calls(
    new_azure: NewLLM, gateway: FaultyGateway
) -> None:
    """An async provider is for async calls; alone, it leaves sync calls without one."""

    async def token() -> str:
        return "async"

    both = new_azure(
        azure_ad_async_token_provider=token, azure_ad_token_provider=lambda: "sync"
    )
    await both.ainvoke("hi")
    await asyncio.to_thread(both.invoke, "hi")
    sent = [request.headers["authorization"] for request in gateway.requests]
    assert sent == ["Bearer async", "Bearer sync"]

    alone = new_azure(azure_ad_async_token_provider=token)
    assert await alone.ainvoke("hi") == STUB_TEXT
    with pytest.raises(ValueError, match="no credentials for sync calls"):
        alone.invoke("hi")


@pytest.mark.parametrize(
    ("fields", "variables", "header"),
    [
        ({"api_key": KEY}, {"AZURE_OPENAI_AD_TOKEN": "t"}, ("api-key", KEY)),
        ({}, {"OPENAI_API_KEY": KEY}, ("api-key", KEY)),
        ({"azure_ad_token": "t"}, {"OPENAI_API_KEY": KEY}, BEARER),
        (
            {"azure_ad_token_provider": lambda: "t"},
            {"AZURE_OPENAI_AD_TOKEN": "other", "AZURE_OPENAI_API_KEY": KEY},
            BEARER,
        ),
        ({}, {"AZURE_OPENAI_AD_TOKEN": "t", "OPENAI_API_KEY": KEY}, BEARER),
        ({"azure_ad_token": "t", "api_key": KEY}, {}, BEARER),
    ],
    ids=["key", "openai-key", "token", "provider", "variables", "both"],
)
def test_one_identity_is_sent(
    twin: Any,
    new_azure: NewLLM,
    gateway: FaultyGateway,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    variables: dict[str, str],
    header: tuple[str, str],
) -> None:
    """One identity is used: the one given; then provider, token, key."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    twin.invoke(new_azure(**fields), "hi")
    sent = gateway.requests[0].headers
    identities = [(n, sent[n]) for n in ("api-key", "authorization") if n in sent]
    assert identities == [header]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "no credentials: pass api_key=.*AZURE_OPENAI_AD_TOKEN"),
        ({"api_key": KEY, "azure_endpoint": None}, "no address: pass azure_endpoint="),
        ({"api_key": KEY, "api_version": None}, "no API version: pass api_version="),
        (
            {"api_key": KEY, "base_url": "http://127.0.0.1:1/openai"},
            "openai_api_base and azure_endpoint are both given",
        ),
        (
            {"azure_ad_token": "t", "azure_ad_token_provider": lambda: "p"},
            "azure_ad_token_provider and azure_ad_token are both given",
        ),
    ],
    ids=["credentials", "address", "version", "two-addresses", "two-identities"],
)
def test_what_is_missing_is_said_at_once(
    new_azure: NewLLM, fields: dict[str, Any], message: str
) -> None:
    """Construction names what is missing, or given twice, and what to do."""
    with pytest.raises(ValidationError, match=message):
        new_azure(**fields)


@pytest.mark.parametrize(
    ("base", "deployment"),
    [
        ("{url}", "my-deployment"),
        ("{url}/", "my-deployment"),
        ("{url}/openai", "my-deployment"),
        ("{url}/openai/deployments/my-deployment", None),
        ("{url}/openai/deployments/my-deployment", "my-deployment"),
        ("{url}/openai/deployments/my-deployment", "another"),
    ],
)
def test_an_openai_address_is_made_one_of_azure(
    twin: Any,
    new_azure: NewLLM,
    gateway: FaultyGateway,
    base: str,
    deployment: str | None,
) -> None:
    """`base_url` of old code is completed with a warning, unless it is switched off."""
    url = base.format(url=gateway.url)
    fields = {"azure_endpoint": None, "azure_deployment": deployment, "api_key": KEY}
    complete = f"{gateway.url}/openai/deployments/my-deployment"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        llm = new_azure(**fields, base_url=url)
    assert llm.openai_api_base == complete
    assert len(caught) == (url != complete)
    for warning in caught:
        assert str(warning.message).startswith("openai_api_base")
        assert warning.filename.endswith("conftest.py")
    assert twin.invoke(llm, "hi") == STUB_TEXT
    assert gateway.requests[0].path == PATH
    same = new_azure(**fields, base_url=url, validate_base_url=False)
    assert same.openai_api_base == url


def test_a_host_says_nothing_of_the_path(new_azure: NewLLM) -> None:
    """Resources are often called "openai-...", or as their deployment."""
    base = "https://openai-my-deployment.openai.azure.com"
    with pytest.warns(UserWarning, match="openai_api_base"):
        llm = new_azure(api_key=KEY, azure_endpoint=None, base_url=base)
    assert llm.openai_api_base == f"{base}/openai/deployments/my-deployment"
