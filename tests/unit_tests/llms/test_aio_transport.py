"""Async requests through aiohttp: what its own manners would change, and must not."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from typing import Any

import pytest

from langchain_retryrouter import OpenAI, OpenAIChat, errors
from langchain_retryrouter._openai.clients.sharing import http_library
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Body,
    Cut,
    FaultyGateway,
    Raw,
    Stall,
)
from tests.unit_tests.chat_models.relays import Proxy
from tests.unit_tests.listeners import A_LONG_PROMPT, sipping

from .conftest import NewLLM

SHORT = 0.15


@pytest.fixture
def new_real_llm(new_llm: NewLLM) -> NewLLM:
    """Makes models on the machine's clock, which try once."""

    def new_real_llm(cls: Any = OpenAI, **fields: Any) -> Any:
        return new_llm(cls, **{"clock": None, "max_retries": 0, **fields})

    return new_real_llm


async def pause(seconds: float) -> None:
    await asyncio.to_thread(threading.Event().wait, seconds)


async def test_a_slow_listener_misses_nothing_that_came_before_a_break(
    new_real_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """Text that has arrived is handed over, though the connection is gone by now."""
    gateway.always(Cut(after=4))
    heard: list[str] = []

    async def listen() -> None:
        async for chunk in new_real_llm().astream("hi"):
            heard.append(chunk)
            if len(heard) == 1:
                await asyncio.to_thread(gateway.wait_for, is_over)
                await pause(SHORT)

    def is_over(gateway: FaultyGateway) -> bool:
        return gateway.open_connections == 0

    with pytest.raises(errors.APIConnectionError):
        await listen()
    assert len([text for text in heard if text]) == 4


async def test_a_listener_may_take_longer_than_the_server_may(
    new_real_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A limit for reads runs while somebody waits for bytes, and at no other time."""
    gateway.script(Stall(after=2, seconds=1.2))
    heard: list[str] = []
    async for chunk in new_real_llm(timeout=0.6).astream("hi"):
        heard.append(chunk)
        if len(heard) == 2:
            await pause(0.9)
    assert "".join(heard) == STUB_TEXT


@pytest.mark.parametrize("cls", [OpenAI, OpenAIChat])
def test_a_request_that_nobody_takes_has_its_limit(
    twin: Any, new_real_llm: NewLLM, cls: Any
) -> None:
    """A server that has stopped to read is noticed before the answer is due."""
    with sipping(pause=60) as url:
        llm = new_real_llm(cls, base_url=f"{url}/v1", timeout=SHORT)
        with pytest.raises(errors.APITimeoutError):
            twin.invoke(llm, 4 * A_LONG_PROMPT)


def test_a_long_request_arrives_whole(
    twin: Any, new_real_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """What is written in pieces is one request, of the length that was announced."""
    prompt = "\N{SNOWMAN} or two, " * 100_000
    assert twin.invoke(new_real_llm(), prompt) == STUB_TEXT
    (request,) = gateway.requests
    assert request.parameters["prompt"] == [prompt]
    assert request.headers["content-length"] == str(len(request.body))
    assert "transfer-encoding" not in request.headers


async def test_a_name_that_is_not_found_in_time_is_given_up(
    new_real_llm: NewLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To look a name up is a part of connecting, and has its limit."""

    async def never(*_: Any, **__: Any) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    llm = new_real_llm(base_url="http://nowhere.invalid/v1", timeout=(SHORT, 9))
    began = time.monotonic()
    with pytest.raises(errors.APITimeoutError) as caught:
        await llm.ainvoke("hi")
    assert time.monotonic() - began < 5
    assert not caught.value.may_have_run


@pytest.mark.parametrize(
    "reason", [b"", b" ", b" G\xc3\xbct", b" \xff\xfe"], ids=["no", "one", "utf", "odd"]
)
def test_the_words_behind_a_status_do_not_matter(
    twin: Any, new_real_llm: NewLLM, gateway: FaultyGateway, reason: bytes
) -> None:
    """Whatever a server calls its status, the answer is read."""
    body = b'{"choices":[{"index":0,"text":"yes","finish_reason":"stop"}]}'
    head = b"HTTP/1.1 200%s\r\ncontent-type: application/json\r\ncontent-length: %d"
    gateway.script(Raw(head % (reason, len(body)) + b"\r\n\r\n" + body))
    assert twin.invoke(new_real_llm(), "hi") == "yes"


def test_long_headers_are_read(
    twin: Any, new_real_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A header field as long as the HTTP library's own engine takes is no fault."""
    body = b'{"choices":[{"index":0,"text":"yes","finish_reason":"stop"}]}'
    headers = {"content-type": "application/json", "x-policy": "a" * 30_000}
    gateway.script(Body(body=body, headers=headers))
    assert twin.invoke(new_real_llm(), "hi") == "yes"


# Proxies.


def test_the_environment_names_a_proxy(
    twin: Any, new_real_llm: NewLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`HTTP_PROXY` is heeded, and so are its name and password."""
    with Proxy() as proxy:
        address = proxy.url.replace("//", "//user:p%40ss@")
        monkeypatch.setenv("HTTP_PROXY", address)
        assert twin.invoke(new_real_llm(), "hi") == STUB_TEXT
    credentials = base64.b64encode(b"user:p@ss").decode()
    assert proxy.fields[0]["proxy-authorization"] == f"Basic {credentials}"


def test_the_environment_names_exceptions(
    twin: Any, new_real_llm: NewLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`NO_PROXY` is heeded."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert twin.invoke(new_real_llm(), "hi") == STUB_TEXT


async def test_a_proxy_that_aiohttp_cannot_use_is_left_to_the_http_library(
    new_real_llm: NewLLM,
) -> None:
    """TLS to a proxy, and TLS through it, is what the HTTP library does itself."""
    llm = new_real_llm(openai_proxy="https://127.0.0.1:1")
    client = llm.async_client.client._client  # noqa: SLF001
    engine = client._transport_for_url(http_library().URL("https://x.test/"))  # noqa: SLF001
    assert type(engine) is http_library().AsyncHTTPTransport
