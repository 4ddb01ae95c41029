"""Keys that nothing but their form tells: in errors, and in configs."""

import time
import traceback
from typing import Final

import pytest
from pydantic import SecretStr

from langchain_retryrouter import (
    GPTRouter,
    GPTRouterModel,
    RetryRouter,
    RetryRouterError,
)
from langchain_retryrouter.testing import (
    ErrorEvent,
    ErrorInOk,
    FaultyGateway,
    Status,
)
from tests.support.models import chat_openai
from tests.unit_tests.conftest import Twin

SECRET: Final = "abcdefghijklmnopqrstuvwxyz0123456789"
TOKEN: Final = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"
# What stands before a key, the key, and what stands behind it.
KEYS: Final[dict[str, tuple[str, str, str]]] = {
    **{
        begin: ("", begin + SECRET, "")
        for begin in (
            *("sk-", "sk-proj-", "sk-ant-api03-", "sk-or-v1-", "pk-lf-", "rk_live_"),
            *("AIza", "csk-", "github_pat_", "ghp_", "gsk_", "hf_", "nvapi-"),
            *("pplx-", "r8_", "xai-", "ya29."),
        )
    },
    "of capitals": ("", f"sk-{'A' * 24}", ""),
    "of Amazon": ("", "AKIAIOSFODNN7EXAMPLE", ""),
    "of Amazon, for a while": ("", "ASIAIOSFODNN7EXAMPLE", ""),
    "a web token": ("", TOKEN, ""),
    "a login": ("https://", "user:hunter2secret", "@host/path"),
    "a password": ("redis://", ":hunter2secret", "@host/0"),
    "a signature": ("https://h/x?a=1&sig=", "AbCdEfGh%3D", "&b=2"),
    **{
        name: (f"https://h/x?{name}=", "hunter2secret", "")
        for name in ("key", "api_key", "api-key", "token", "access_token", "Signature")
    },
    "a bearer": ("Bearer ", "Xk3Xk3Xk3Xk3", ""),
    "a basic login": ("authorization: Basic ", "dXNlcjpodW50ZXIyc2VjcmV0", ""),
}
NAMES: Final = [
    *("gpt-4o-mini-2024-07-18", "xai-grok-4-1-fast-reasoning-0709"),
    *("hf_meta-llama-3.1-8B-Instruct", "us.anthropic.claude-sonnet-4-5-20250929-v1:0"),
    *("my-gpt-4o-deployment-in-eastus-2", "task-2024-of-a-long-name-1"),
    *("chatcmpl-9abcDEF0123456789abcdefGHIJK", "req_011CSHoEeqs5C35K2UUqR7Fy"),
    *("resp_67ccd2bed1ec8190b14f964abc054267", "msg_01XFDUDYJgAACzvnptvVoYEL"),
    *("123e4567-e89b-12d3-a456-426614174000", "d41d8cd98f00b204e9800998ecf8427e"),
    *("Basic JavaScript and PostgreSQL", "basic Python3.11-compatible code"),
    *("Basic authentication is off", "Bearer Token", "a Bearer authentication header"),
    *("https://host:443/v1/x?api-version=2024-10-21", "at http://a:80 by b@c.de"),
]


def router(gateway: FaultyGateway) -> RetryRouter:
    return RetryRouter(routes=[chat_openai(gateway)])


@pytest.mark.parametrize("row", KEYS)
def test_a_key_is_known_by_its_form(
    twin: Twin, gateway: FaultyGateway, row: str
) -> None:
    """A key of anybody that a provider quotes is not in the error or its traceback."""
    before, key, behind = KEYS[row]
    gateway.always(Status(401, message=f"not {before}{key}{behind} here"))
    with pytest.raises(RetryRouterError) as caught:
        twin.invoke(router(gateway), "hi")
    error = caught.value
    shown = (
        f"{error.body} {error.attempt_log} {''.join(traceback.format_exception(error))}"
    )
    assert f"not {before}***{behind} here" in str(error)
    assert key not in shown


@pytest.mark.parametrize("row", KEYS)
def test_a_gateway_s_error_shows_no_key_of_its_providers(
    twin: Twin, gateway: FaultyGateway, row: str
) -> None:
    """A gateway quotes its providers, who quote its key: no error shows that."""
    before, key, behind = KEYS[row]
    said = f"not {before}{key}{behind} here"
    llm = GPTRouter(
        models_priority_list=[
            GPTRouterModel(name="gpt-4", provider_name="chat_openai")
        ],
        gpt_router_api_base=gateway.url,
        gpt_router_api_key=SecretStr("the-gateway-s-own-key"),
        max_retries=0,
    )
    for ask, step in (
        (twin.invoke, Status(401, message=said)),
        (twin.invoke, ErrorInOk(said)),
        (twin.stream, ErrorEvent(said, status=401)),
    ):
        gateway.always(step)
        with pytest.raises(RetryRouterError) as caught:
            ask(llm, "hi")
        error = caught.value
        text = f"{error.body} {''.join(traceback.format_exception(error))}"
        assert f"not {before}***{behind} here" in str(error)
        assert key not in text


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_not_taken_for_a_key(gateway: FaultyGateway, name: str) -> None:
    """Names of models and deployments, ids, hashes and sentences stay as they are."""
    gateway.always(Status(401, message=f"not {name} here"))
    with pytest.raises(RetryRouterError, match="401") as caught:
        router(gateway).invoke("hi")
    assert f"not {name} here" in str(caught.value)


@pytest.mark.parametrize("row", KEYS)
def test_a_config_takes_no_key_of_any_form(row: str) -> None:
    """What is hidden in an error is refused in a config, under whatever name it is."""
    before, key, behind = KEYS[row]
    table = {"model": "openai:gpt-4o", "options": {"x": f"{before}{key}{behind}"}}
    with pytest.raises(ValueError, match=r"options\.x: a config must not") as refused:
        RetryRouter.from_config({"routes": [table]})
    assert key not in str(refused.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_takes_names(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No name is refused as if it were a key."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
    table = {"model": "openai:gpt-4o", "options": {"x": name}}
    assert RetryRouter.from_config({"routes": [table]}).routes[0].options["x"] == name


@pytest.mark.parametrize(
    "piece", ["sk-", "eyJ-", "eyJaaaaaaaaa.", "://:", "?key", "bearer ", "?-", "://a:b"]
)
def test_a_long_text_is_read_in_a_moment(gateway: FaultyGateway, piece: str) -> None:
    """No text of a provider is read again and again for what might be a key."""
    gateway.always(Status(401, message=piece * (10_000 // len(piece))))
    began = time.perf_counter()
    with pytest.raises(RetryRouterError):
        router(gateway).invoke("hi")
    assert time.perf_counter() - began < 5
