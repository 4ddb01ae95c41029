"""Proxies, TLS and IPv6 between a model and its gateway."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from langchain_core.load import dumps

from langchain_retryrouter import (
    APIConnectionError,
    APITimeoutError,
    RetryRouterError,
    StreamInterruptedError,
)
from langchain_retryrouter._gptrouter.http import ssl_context
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Answer,
    Drip,
    FaultyGateway,
    SlowFirstToken,
    Stall,
    Status,
    Step,
)

from .conftest import Env
from .relays import Proxy, Relay

# --- proxies ---


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as proxy:
        yield proxy


def test_a_proxy_is_used(env: Env, proxy: Proxy) -> None:
    """Requests and streams go to the proxy of `proxy=`."""
    llm = env.llm(proxy=proxy.url)

    assert env.invoke(llm, "hi").content == STUB_TEXT
    assert env.stream(llm, "hi")

    line = f"POST {env.gateway.url}/api/v1/generate HTTP/1.1"
    assert proxy.asked == [line, line]
    assert [request.path for request in env.gateway.requests] == [
        "/api/v1/generate"
    ] * 2


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_the_environment_s_proxy_is_used(
    env: Env, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The proxy that the environment names is used, and `no_proxy` makes exceptions."""
    monkeypatch.setenv(name, proxy.url)
    assert env.invoke(env.llm(), "hi").content == STUB_TEXT
    assert len(proxy.asked) == 1

    monkeypatch.setenv("no_proxy", "example.com,127.0.0.1")
    assert env.invoke(env.llm(), "hi").content == STUB_TEXT
    assert len(proxy.asked) == 1

    assert env.invoke(env.llm(proxy=proxy.url), "hi").content == STUB_TEXT
    assert len(proxy.asked) == 2


def test_a_proxy_s_credentials_are_for_the_proxy(env: Env, proxy: Proxy) -> None:
    """User and password in the proxy's URL are sent to it, and shown nowhere."""
    url = proxy.url.replace("http://", "http://ann:p%40ss-word@")
    llm = env.llm(proxy=url)

    assert env.invoke(llm, "hi").content == STUB_TEXT

    assert proxy.fields[0]["proxy-authorization"] == "Basic YW5uOnBAc3Mtd29yZA=="
    assert "p%40ss-word" not in repr(llm) + dumps(llm)


def test_a_proxy_that_does_not_answer_is_no_connection(env: Env) -> None:
    """Without a connection to the proxy, the provider cannot have run the call."""
    with Proxy() as gone:
        url = gone.url

    with pytest.raises(APIConnectionError) as caught:
        env.invoke(env.llm(proxy=url, max_retries=1), "hi")

    assert caught.value.may_have_run is False
    assert caught.value.attempts == 2


# --- TLS and IPv6 ---


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The machine trusts the test's certificate authority."""
    bundle = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(bundle)
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    with fresh_context():
        yield


@contextlib.contextmanager
def fresh_context() -> Iterator[None]:
    """Make the SSL context of the process again, here and afterwards."""
    ssl_context.cache_clear()
    yield
    ssl_context.cache_clear()


def tls_for(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.fixture
def https(
    env: Env,
    authority: trustme.CA,
    trusted: None,  # noqa: ARG001
) -> Iterator[Relay]:
    """The address of the gateway behind TLS."""
    with Relay(env.gateway.url, tls=tls_for(authority, "127.0.0.1")) as relay:
        yield relay


def test_https_is_spoken(env: Env, https: Relay) -> None:
    """A gateway behind TLS answers, streams, and keeps its connection."""
    llm = env.llm(gpt_router_api_base=https.url)
    assert env.invoke(llm, "hi").content == STUB_TEXT
    assert len(env.stream(llm, "hi")) > 1
    if not env.is_async:
        assert https.connections == 1


def test_closing_a_stream_over_https_hangs_up(env: Env, https: Relay) -> None:
    """An early close is immediate over TLS too, and leaves nothing open."""
    env.gateway.always(Stall(after=1, seconds=60))
    llm = env.llm(gpt_router_api_base=https.url)

    async def leave() -> None:
        stream: Any = llm.astream("hi")
        await anext(stream)
        await stream.aclose()

    if env.is_async:
        asyncio.run(leave())
        gc.collect()  # A transport left open would warn here.
    else:
        stream: Any = llm.stream("hi")
        next(stream)
        stream.close()
    env.gateway.wait_for(lambda gateway: gateway.open_connections == 0, timeout=2)


@pytest.mark.parametrize(
    ("step", "limit"),
    [
        (Stall(after=1, seconds=60), {"stall_timeout": 0.4}),
        (SlowFirstToken(60), {"first_token_timeout": 0.4}),
        (Drip(seconds=0.02), {"deadline": 0.4}),
    ],
    ids=["stall", "first token", "drip"],
)
def test_limits_of_time_hold_over_https(
    env: Env, https: Relay, step: Step, limit: dict[str, float]
) -> None:
    """A limit of time ends a read of a TLS connection too."""
    env.gateway.always(step)
    policy = {"max_retries": 0, **limit}
    llm = env.llm(gpt_router_api_base=https.url, retry_policy=policy, clock=None)

    with pytest.raises((APITimeoutError, StreamInterruptedError)):
        env.stream(llm, "hi")


def test_https_through_a_proxy_is_a_tunnel(
    env: Env, https: Relay, proxy: Proxy
) -> None:
    """A proxy of https gets the address, and neither key nor prompt."""
    llm = env.llm(gpt_router_api_base=https.url, proxy=proxy.url)
    assert env.invoke(llm, "hi").content == STUB_TEXT

    [asked] = proxy.asked
    assert asked.startswith(f"CONNECT {https.url.removeprefix('https://')} HTTP/1.")
    assert "ws-secret" not in proxy.fields[0]


def test_an_unknown_authority_is_refused_and_not_retried(
    env: Env, authority: trustme.CA
) -> None:
    """A certificate of an unknown authority ends the call without request or retry."""
    with (
        fresh_context(),
        Relay(env.gateway.url, tls=tls_for(authority, "127.0.0.1")) as relay,
    ):
        llm = env.llm(gpt_router_api_base=relay.url)
        with pytest.raises(APIConnectionError, match=r"(?i)certificate") as caught:
            env.invoke(llm, "hi")

    assert relay.connections == 1
    assert env.gateway.requests == []
    assert caught.value.may_have_run is False
    assert caught.value.attempts == 1


@pytest.mark.usefixtures("trusted")
def test_a_certificate_for_another_name_is_refused(
    env: Env, authority: trustme.CA
) -> None:
    """A certificate for another host is refused."""
    with Relay(env.gateway.url, tls=tls_for(authority, "example.com")) as relay:
        llm = env.llm(gpt_router_api_base=relay.url)
        with pytest.raises(APIConnectionError, match=r"(?i)certificate"):
            env.invoke(llm, "hi")

    assert relay.connections == 1
    assert env.gateway.requests == []


def loopbacks() -> list[str]:
    """The loopback's addresses; containers often have no IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return ["127.0.0.1"]
    return ["127.0.0.1", "::1"]


@pytest.mark.parametrize("host", loopbacks())
def test_an_address_may_be_ipv4_or_ipv6(env: Env, host: str) -> None:
    """`http://[::1]:PORT` works like `http://127.0.0.1:PORT`."""
    with Relay(env.gateway.url, host=host) as relay:
        llm = env.llm(gpt_router_api_base=relay.url)
        assert env.invoke(llm, "hi").content == STUB_TEXT
        assert env.stream(llm, "hi")

    assert env.gateway.requests[0].headers["host"] == relay.url.removeprefix("http://")


def test_a_redirect_is_not_followed(env: Env) -> None:
    """A redirect is an error: following it would send the key to another host."""
    with FaultyGateway() as other:
        env.gateway.always(Status(307, {"location": f"{other.url}/api/v1/generate"}))
        for call in (env.invoke, env.stream):
            with pytest.raises(RetryRouterError) as caught:
                call(env.llm(), "hi")
            assert (caught.value.status_code, caught.value.attempts) == (307, 1)
        assert other.requests == []
        env.gateway.always(Answer())
