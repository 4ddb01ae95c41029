"""Limits of time, against servers that really drip.

The limits are a tenth of a second or so: nothing here can be shown on a fake clock.
"""

import asyncio
import contextlib
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from langchain_retryrouter import OpenAI, OpenAIChat, RetryPolicy, errors
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Drip,
    FaultyGateway,
    Raw,
    Silence,
    Stall,
)
from tests.unit_tests.chat_models.relays import Proxy, Relay
from tests.unit_tests.conftest import Twin

from .conftest import NewLLM

SHORT = 0.15


@pytest.fixture
def new_hasty_llm(new_llm: NewLLM) -> NewLLM:
    """Makes models on the machine's clock, which give up at once."""

    def new_hasty_llm(cls: Any = OpenAI, **fields: Any) -> Any:
        policy = RetryPolicy(deadline=SHORT, max_retries=0)
        return new_llm(cls, **{"clock": None, "retry_policy": policy, **fields})

    return new_hasty_llm


def ends_in_time(call: Callable[[], object]) -> None:
    """Check that a call ends at its deadline, with the error that says so."""
    began = time.monotonic()
    with pytest.raises(errors.APITimeoutError):
        call()
    assert SHORT <= time.monotonic() - began < 10


@pytest.mark.parametrize("cls", [OpenAI, OpenAIChat])
@pytest.mark.parametrize("fault", [Drip(seconds=0.005), Silence()], ids=str)
def test_a_server_that_does_not_answer_in_time_is_left(
    twin: Any,
    new_hasty_llm: NewLLM,
    gateway: FaultyGateway,
    cls: Any,
    fault: Any,
    method: str,
) -> None:
    """An answer has one limit, and not one for each byte; then nothing reads on."""
    gateway.always(fault)
    ends_in_time(lambda: getattr(twin, method)(new_hasty_llm(cls, timeout=60), "hi"))
    gateway.wait_for(lambda g: g.open_connections == 0, timeout=30)


def test_a_stream_may_be_silent_for_longer_than_its_first_token_takes(
    new_hasty_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """The limit of the headers is none of the events that follow the first token."""
    gateway.script(Stall(after=2, seconds=1.6))
    llm = new_hasty_llm(retry_policy=RetryPolicy(first_token_timeout=0.8))
    assert "".join(llm.stream("hi")) == STUB_TEXT


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_an_answer_that_ctrl_c_gives_up_is_cut_off(
    new_hasty_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """No thread goes on to read an answer that the caller no longer waits for."""

    def interrupt(_: object) -> Raw:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return Raw("HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n", close=False)

    gateway.script(interrupt)
    llm = new_hasty_llm(retry_policy=RetryPolicy(attempt_timeout=60))
    with pytest.raises(KeyboardInterrupt):
        llm.invoke("hi")
    gateway.wait_for(lambda g: g.open_connections == 0)


def test_an_error_page_that_drips_ends_at_the_deadline(
    twin: Any, new_hasty_llm: NewLLM, method: str, monkeypatch: Any
) -> None:
    """A refusal is read within the same limit as an answer, and then cut off."""
    was_cut_off = threading.Event()

    def drip(_: Relay, client: socket.socket) -> None:
        client.recv(65536)
        head = b"HTTP/1.1 503 Busy\r\ncontent-type: text/html\r\n"
        client.sendall(head + b"content-length: 100000\r\n\r\n")
        with contextlib.suppress(OSError):
            while not was_cut_off.wait(0.02):
                client.sendall(b" ")
        was_cut_off.set()

    monkeypatch.setattr(Relay, "serve", drip)
    with Relay("http://127.0.0.1:0") as server:
        llm = new_hasty_llm(base_url=server.url)
        ends_in_time(lambda: getattr(twin, method)(llm, "hi"))
        assert was_cut_off.wait(30)


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """What a server of an authority needs that the machine trusts."""
    authority = trustme.CA()
    bundle = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(bundle)
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.mark.parametrize("way", ["tls", "proxy", "tls behind a proxy"])
def test_the_limit_holds_on_every_way_to_a_server(
    twin: Twin,
    new_hasty_llm: NewLLM,
    gateway: FaultyGateway,
    tls: ssl.SSLContext,
    way: str,
) -> None:
    """TLS and proxies make connections of their own, under the same limit."""
    with Relay(gateway.url, tls=tls) as relay, Proxy() as proxy:
        fields: dict[str, Any] = {}
        if "tls" in way:
            fields["base_url"] = f"{relay.url}/v1"
        if "proxy" in way:
            fields["openai_proxy"] = proxy.url
        patient = new_hasty_llm(retry_policy=RetryPolicy(deadline=5), **fields)
        assert asked_once(twin, patient, relay, proxy) == STUB_TEXT
        gateway.always(Drip(seconds=0.01))
        llm = new_hasty_llm(**fields)
        ends_in_time(lambda: asked_once(twin, llm, relay, proxy))


def asked_once(twin: Twin, llm: OpenAI, *relays: Relay) -> str:
    """The model's answer, before its connections are closed.

    Over TLS that takes the server's consent, and so a moment, before Python 3.12.8
    (python/cpython#118960): a loop that ends earlier leaves a socket open.
    """
    if not twin.is_async:
        with llm:
            return llm.invoke("hi")

    async def ask() -> str:
        try:
            async with llm:
                return await llm.ainvoke("hi")
        finally:
            for relay in relays:
                await asyncio.to_thread(relay.drain)
            for _ in range(10):  # What has come by now, the loop reads and closes.
                await asyncio.sleep(0)  # noqa: TID251 - it takes no time

    return asyncio.run(ask())
