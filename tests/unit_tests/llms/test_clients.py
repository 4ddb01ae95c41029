"""Connections: shared and pooled, one a process or event loop, closed in the end."""

from __future__ import annotations

import asyncio
import copy
import gc
import multiprocessing
import pickle
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest

from langchain_retryrouter import AzureOpenAI, OpenAI, OpenAIChat, RetryPolicy, errors
from langchain_retryrouter.testing import (
    STUB_TEXT,
    FaultyGateway,
    HtmlPage,
    Reset,
    Status,
)

from .conftest import KEY, NewLLM


def collect_garbage() -> None:
    """Collect what is left over, and then what only that kept alive."""
    for _ in range(3):
        gc.collect()


def test_a_hundred_calls_use_one_connection(
    any_model: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """Calls one after the other use one connection, whatever their answer was."""
    gateway.script(Status(503), HtmlPage(502), Status(429))
    llm = new_llm(any_model, max_retries=3)
    for _ in range(100):
        assert llm.invoke("hi") == STUB_TEXT
    assert len(gateway.requests) == 103
    assert gateway.connections == 1


def test_a_hundred_async_calls_use_one_connection(
    any_model: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """Async variant of the test above, within one event loop."""
    gateway.script(Status(503), HtmlPage(502), Status(429))
    llm = new_llm(any_model, max_retries=3)

    async def call() -> None:
        for _ in range(100):
            assert await llm.ainvoke("hi") == STUB_TEXT

    asyncio.run(call())
    assert len(gateway.requests) == 103
    assert gateway.connections == 1


def test_twenty_event_loops_one_after_the_other(
    any_model: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """Each `asyncio.run` has a client of its own, closed with its loop."""
    llm = new_llm(any_model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(20):
            assert asyncio.run(llm.ainvoke("hi")) == STUB_TEXT
            gateway.wait_for(lambda g: g.open_connections == 0)
        collect_garbage()
    assert gateway.connections == 20


def test_no_event_loop_is_kept_alive(new_llm: NewLLM) -> None:
    """A model holds on to no event loop that is over."""
    llm = new_llm()
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def call() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await llm.ainvoke("hi")

    for _ in range(5):
        asyncio.run(call())
    collect_garbage()
    assert [loop() for loop in loops] == [None] * 5


def test_a_loop_that_is_closed_roughly_is_forgotten(new_llm: NewLLM) -> None:
    """A loop that was closed without its clean-up hinders no later one."""
    llm = new_llm()
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(llm.ainvoke("hi")) == STUB_TEXT
    loop.close()
    known = weakref.ref(loop)
    del loop
    with warnings.catch_warnings():
        # Python says so of the socket that the loop left open; nobody else could.
        warnings.simplefilter("ignore", ResourceWarning)
        assert asyncio.run(llm.ainvoke("hi")) == STUB_TEXT
        collect_garbage()
    assert known() is None


def test_two_event_loops_at_the_same_time(
    new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """Event loops in several threads use one model, and none another's connection."""
    llm = new_llm()

    def run(_: int) -> list[str]:
        async def calls() -> list[str]:
            return list(await asyncio.gather(*(llm.ainvoke("hi") for _ in range(5))))

        return asyncio.run(calls())

    with ThreadPoolExecutor(4) as threads:
        answers = [text for texts in threads.map(run, range(4)) for text in texts]
    assert answers == [STUB_TEXT] * 20
    assert len(gateway.requests) == 20


def test_threads_share_the_sync_client(new_llm: NewLLM) -> None:
    """Threads that begin together end up with one client."""
    llm = new_llm()
    gate = threading.Barrier(8)

    def client(_: int) -> Any:
        gate.wait()
        return llm.client._client  # noqa: SLF001 - the SDK's name

    with ThreadPoolExecutor(8) as threads:
        assert len({id(found) for found in threads.map(client, range(8))}) == 1


def test_models_with_equal_settings_share_a_client(
    new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """Equal settings make one client, whatever else the models differ in."""
    first = new_llm(temperature=0.1, default_query={"a": ["b"]}, timeout=(1, 2))
    second = new_llm(n=2, default_query={"a": ["b"]}, timeout=[1, 2])
    chat = new_llm(OpenAIChat, default_query={"a": ["b"]}, timeout=(1.0, 2.0))
    clients = [model.client._client for model in (first, second, chat)]  # noqa: SLF001
    assert clients[0] is clients[1] is clients[2]
    for model in (first, second, chat):
        model.invoke("hi")
    assert gateway.connections == 1


@pytest.mark.parametrize(
    "other",
    [
        {"api_key": "another"},
        {"base_url": "http://127.0.0.1:1/v1"},
        {"timeout": 3},
        {"organization": "org"},
        {"default_headers": {"x-a": "b"}},
        {"default_query": {"a": "b"}},
        {"openai_proxy": "http://127.0.0.1:2"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_models_with_other_settings_do_not(
    new_llm: NewLLM, other: dict[str, Any]
) -> None:
    """What makes another request makes another client."""
    first, second = new_llm(), new_llm(**other)
    assert first.client._client is not second.client._client  # noqa: SLF001
    assert first.client != second.client
    assert first.async_client != second.async_client


def test_the_last_model_closes_the_client(
    new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """When the last model that shares a client is gone, its connections are closed."""
    first, second = new_llm(), new_llm()
    first.invoke("hi")
    del first
    collect_garbage()
    assert gateway.open_connections == 1
    del second
    collect_garbage()
    gateway.wait_for(lambda g: g.open_connections == 0)


def test_the_last_model_closes_the_async_client(
    new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """Async variant of the test above, while the loop goes on."""

    async def call() -> None:
        llm = new_llm()
        await llm.ainvoke("hi")
        assert gateway.open_connections == 1
        del llm
        collect_garbage()
        await gateway.await_for(lambda g: g.open_connections == 0)

    asyncio.run(call())


def test_a_part_of_a_client_outlives_its_model(
    new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """Who holds on to a part of a client can use it when the model is gone."""
    create = new_llm().client.with_raw_response.create
    collect_garbage()
    assert create(model="m", prompt="hi").parse().choices[0].text == STUB_TEXT
    assert gateway.open_connections == 1

    async def call() -> None:
        create = new_llm().async_client.with_raw_response.create
        collect_garbage()
        answer = await create(model="m", prompt="hi")
        assert answer.parse().choices[0].text == STUB_TEXT

    asyncio.run(call())


def test_a_model_costs_nothing_until_it_is_used(gateway: FaultyGateway) -> None:
    """To construct a model makes no SSL context and no SDK client."""
    script = (
        "import ssl, sys\n"
        "from langchain_retryrouter.llms.openai import OpenAI, OpenAIChat\n"
        "def made(*_, **__): raise SystemExit('an SSL context was made')\n"
        "ssl.SSLContext.__new__ = made\n"
        "for cls in (OpenAI, OpenAIChat):\n"
        f"    repr(cls(api_key='{KEY}', base_url='{gateway.openai_url}'))\n"
        "assert 'tiktoken' not in sys.modules\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            script,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# Copies, pickles, forks.


@pytest.mark.parametrize("used", [False, True])
def test_a_model_can_be_pickled(
    twin: Any, any_model: Any, new_llm: NewLLM, gateway: FaultyGateway, *, used: bool
) -> None:
    """A pickled model works where it arrives, used before or not."""
    policy = RetryPolicy(max_retries=1, initial_delay=0)
    llm = new_llm(any_model, clock=None, timeout=(1, 5), retry_policy=policy)
    if used:
        twin.invoke(llm, "hi")
    again = pickle.loads(pickle.dumps(llm))
    gateway.script(Status(503))
    assert twin.invoke(again, "hi") == STUB_TEXT
    assert again.client == llm.client
    assert again.model_name == llm.model_name


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
def test_a_model_can_be_copied(
    twin: Any, any_model: Any, new_llm: NewLLM, copied: Any, *, used: bool
) -> None:
    """A copy works, on the connections of the original."""
    llm = new_llm(any_model)
    if used:
        twin.invoke(llm, "hi")
    again = copied(llm)
    assert twin.invoke(again, "hi") == STUB_TEXT
    assert again == llm
    assert again.client._client is llm.client._client  # noqa: SLF001


def test_a_deep_copy_shares_what_was_handed_in(new_llm: NewLLM) -> None:
    """A user's HTTP client and clock are not data: a deep copy uses the same."""
    http_client = openai.DefaultHttpxClient()
    llm = new_llm(http_client=http_client)
    again = copy.deepcopy(llm)
    assert again.http_client is http_client
    assert again.clock is llm.clock
    http_client.close()


def _ask(llm: Any, answers: Any) -> None:
    answers.put((llm.invoke("hi"), asyncio.run(llm.ainvoke("hi"))))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_model_survives_a_fork(new_llm: NewLLM, gateway: FaultyGateway) -> None:
    """A child process answers on connections of its own; the parent's stay usable."""
    llm = new_llm()
    assert llm.invoke("hi") == STUB_TEXT
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_ask, args=(llm, answers))
    child.start()
    assert answers.get() == (STUB_TEXT, STUB_TEXT)
    child.join()
    assert child.exitcode == 0
    assert llm.invoke("hi") == STUB_TEXT
    assert len({request.connection for request in gateway.requests}) == 3
    assert gateway.requests[0].connection == gateway.requests[-1].connection


# A user's own parts.


def test_the_sdks_resource_is_there(new_llm: NewLLM, gateway: FaultyGateway) -> None:
    """What the SDK's resource can do, `client` can: raw responses, its root client."""
    llm = new_llm()
    raw = llm.client.with_raw_response.create(model="m", prompt="hi")
    assert raw.headers["x-request-id"] == "req_000001"
    assert raw.parse().choices[0].text == STUB_TEXT
    assert str(llm.client._client.base_url) == f"{gateway.openai_url}/"  # noqa: SLF001
    assert llm.client._client.max_retries == 0  # noqa: SLF001
    assert llm.async_client._client.max_retries == 0  # noqa: SLF001
    with pytest.raises(AttributeError):
        _ = llm.client.no_such_thing


def test_an_http_client_of_the_user_is_used_and_left_open(
    new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A user's own HTTP client sends the requests, and is not ours to close."""
    http_client = openai.DefaultHttpxClient(headers={"x-mine": "yes"})
    with http_client:
        llm = new_llm(http_client=http_client)
        assert llm.invoke("hi") == STUB_TEXT
        assert gateway.requests[0].headers["x-mine"] == "yes"
        assert new_llm().invoke("hi") == STUB_TEXT
        assert "x-mine" not in gateway.requests[1].headers
        del llm
        collect_garbage()
        assert not http_client.is_closed


def test_an_async_http_client_of_the_user_is_used_and_left_open(
    new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """Async variant of the test above."""

    async def call() -> None:
        headers = {"x-mine": "yes"}
        async with openai.DefaultAsyncHttpxClient(headers=headers) as http_client:
            llm = new_llm(http_async_client=http_client)
            assert await llm.ainvoke("hi") == STUB_TEXT
            assert gateway.requests[0].headers["x-mine"] == "yes"
            del llm
            collect_garbage()
            assert not http_client.is_closed

    asyncio.run(call())


def test_http_clients_of_the_wrong_kind_are_refused(new_llm: NewLLM) -> None:
    """An async client for sync calls, or the other way round, is refused at once."""
    with pytest.raises(ValueError, match="http_client is for sync calls"):
        new_llm(http_client=openai.DefaultAsyncHttpxClient())
    with (
        openai.DefaultHttpxClient() as http_client,
        pytest.raises(ValueError, match="http_async_client must be an AsyncClient"),
    ):
        new_llm(http_async_client=http_client)


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer in place of the server that was asked."""
        self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        body = (
            b'{"choices":[{"index":0,"text":"by proxy","finish_reason":"stop",'
            b'"message":{"content":"by proxy"}}]}'
        )
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def proxy() -> Iterator[Any]:
    """A proxy on the loopback, which answers everything itself."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Proxy) as server:
        server.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("by", ["field", "variable"])
def test_the_proxy_is_used(
    twin: Any,
    any_model: Any,
    new_llm: NewLLM,
    gateway: FaultyGateway,
    proxy: Any,
    monkeypatch: pytest.MonkeyPatch,
    by: str,
) -> None:
    """`openai_proxy`, or `OPENAI_PROXY`, is where all requests go."""
    address = f"http://127.0.0.1:{proxy.server_address[1]}"
    fields = {"openai_proxy": address} if by == "field" else {}
    if by == "variable":
        monkeypatch.setenv("OPENAI_PROXY", address)
    assert twin.invoke(new_llm(any_model, **fields), "hi") == "by proxy"
    assert proxy.asked[0].startswith(gateway.url)
    assert gateway.requests == []


def test_a_proxy_beside_an_http_client_is_refused(new_llm: NewLLM) -> None:
    """A proxy that would not be used is refused."""
    with (
        openai.DefaultHttpxClient() as http_client,
        pytest.raises(ValueError, match="openai_proxy would not be used"),
    ):
        new_llm(http_client=http_client, openai_proxy="http://127.0.0.1:1")


# The key may be a function.


@pytest.mark.parametrize("cls", [OpenAI, OpenAIChat])
def test_a_key_may_be_a_function(
    twin: Any, cls: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A function that returns the key is asked before each request, sync and async."""
    keys = iter(["first", "second", "third"])
    llm = new_llm(cls, api_key=lambda: next(keys))
    twin.invoke(llm, "hi")
    gateway.script(Reset())
    twin.invoke(llm, "hi")
    sent = [request.headers["authorization"] for request in gateway.requests]
    assert sent == ["Bearer first", "Bearer second", "Bearer third"]


def test_an_async_key_is_awaited(new_llm: NewLLM, gateway: FaultyGateway) -> None:
    """An async function is a key for async calls; sync ones are told what to do."""

    async def key() -> str:
        return "from afar"

    llm = new_llm(api_key=key)
    assert asyncio.run(llm.ainvoke("hi")) == STUB_TEXT
    assert gateway.requests[0].headers["authorization"] == "Bearer from afar"
    with pytest.raises(ValueError, match="the key is an async function"):
        llm.invoke("hi")


def test_settings_show_no_key(new_llm: NewLLM) -> None:
    """What a model holds as its clients can be printed."""
    llm = new_llm(AzureOpenAI)
    assert repr(llm.client) == "<SDKResource AzureOpenAI().completions>"
    assert KEY not in repr(llm.client.settings)


def test_errors_of_the_sdk_itself_pass(twin: Any, new_llm: NewLLM) -> None:
    """A wrong argument is the caller's `TypeError`, not a failure to be retried."""
    with pytest.raises(TypeError, match="no_such_option"):
        twin.invoke(new_llm(OpenAI), "hi", no_such_option=1)


def test_a_lost_connection_is_replaced(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """After a connection broke, the next call has another one."""
    llm = new_llm(max_retries=0)
    gateway.script(Reset())
    with pytest.raises(errors.APIConnectionError):
        twin.invoke(llm, "hi")
    assert twin.invoke(llm, "hi") == STUB_TEXT
