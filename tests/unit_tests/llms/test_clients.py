"""Connections: shared and pooled, one a process or event loop, closed in the end."""

import asyncio
import contextlib
import copy
import gc
import pickle
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from langchain_core.rate_limiters import InMemoryRateLimiter

from langchain_retryrouter import OpenAI, OpenAIChat, RetryPolicy, errors
from langchain_retryrouter.testing import (
    STUB_TEXT,
    FaultyGateway,
    HtmlPage,
    Reset,
    Status,
)
from tests.unit_tests.chat_models.relays import Proxy

from .conftest import KEY, Env, NewLLM, base_url, collect_garbage, in_loop


@pytest.fixture(scope="module", autouse=True)
def old_objects_frozen() -> None:
    """Leave what other modules' tests have left out of collections.

    httpx keeps an idle connection for 5 s, and a collection may take longer.
    """
    gc.freeze()


@pytest.mark.usefixtures("waits_for_bodies")
async def test_a_hundred_calls_use_one_connection(every: Env) -> None:
    """Calls and streams one after the other use one connection, failed ones too."""
    every.gateway.script(Status(503), HtmlPage(502), Status(429))
    llm = every.new(max_retries=3)
    for _ in range(50):
        assert await in_loop(every, llm, "invoke", "hi") == STUB_TEXT
        if every.is_async:
            chunks = [chunk async for chunk in llm.astream("hi")]
        else:
            chunks = await asyncio.to_thread(lambda: [*llm.stream("hi")])
        assert "".join(chunks) == STUB_TEXT
    assert len(every.gateway.requests) == 103
    assert every.gateway.connections == 1


def test_twenty_event_loops_one_after_the_other(
    new_any: NewLLM, gateway: FaultyGateway
) -> None:
    """Each `asyncio.run` has a client of its own, closed with its loop."""
    llm = new_any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(20):
            assert asyncio.run(llm.ainvoke("hi")) == STUB_TEXT
            gateway.wait_for(lambda g: g.open_connections == 0)
        collect_garbage()
    assert gateway.connections == 20


@pytest.mark.parametrize("with_clean_up", [True, False])
def test_no_event_loop_is_kept_alive(new_llm: NewLLM, with_clean_up: bool) -> None:
    """A model keeps no closed loop, even if it was closed without its clean-up."""
    llm = new_llm()
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []
    with warnings.catch_warnings():
        if not with_clean_up:  # The loop leaves a socket open.
            warnings.simplefilter("ignore", ResourceWarning)
        for _ in range(3):
            loop = asyncio.new_event_loop()
            loops.append(weakref.ref(loop))
            assert loop.run_until_complete(llm.ainvoke("hi")) == STUB_TEXT
            if with_clean_up:
                loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
            del loop
        assert asyncio.run(llm.ainvoke("hi")) == STUB_TEXT
        collect_garbage()
    assert [loop() for loop in loops] == [None] * 3


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


async def test_a_part_of_a_client_outlives_its_model(
    new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A part of a client can be used when the model is gone."""
    create = new_llm().client.with_raw_response.create
    acreate = new_llm().async_client.with_raw_response.create
    collect_garbage()
    answer = await asyncio.to_thread(create, model="m", prompt="hi")
    assert answer.headers["x-request-id"] == "req_000001"
    assert answer.parse().choices[0].text == STUB_TEXT
    assert gateway.open_connections == 1
    answer = await acreate(model="m", prompt="hi")
    assert answer.parse().choices[0].text == STUB_TEXT


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
    strict = ["-W", "error", "-W", "ignore::DeprecationWarning"]
    command = [sys.executable, *strict, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# Copies, pickles, forks.


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda llm: pickle.loads(pickle.dumps(llm)),
}


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("row", COPIES)
def test_a_model_can_be_copied(every: Env, row: str, used: bool) -> None:
    """A copy works, on the connections of the original, and may be closed by itself."""
    policy = RetryPolicy(max_retries=1, initial_delay=0)
    llm = every.new(clock=None, timeout=(1, 5), retry_policy=policy)
    if used:
        every.invoke(llm, "hi")
    again = COPIES[row](llm)
    every.gateway.script(Status(503))
    assert every.invoke(again, "hi") == STUB_TEXT
    assert again == llm
    assert again.client == llm.client
    assert again.client._client is llm.client._client  # noqa: SLF001
    every.call(again, "close")
    assert every.invoke(llm, "hi") == STUB_TEXT


def test_a_deep_copy_shares_what_was_handed_in(new_llm: NewLLM) -> None:
    """A user's HTTP client, clock and limiter are not data: a copy uses the same."""
    http_client = openai.DefaultHttpxClient()
    limiter = InMemoryRateLimiter(requests_per_second=1)
    llm = new_llm(http_client=http_client, rate_limiter=limiter)
    for again in (copy.deepcopy(llm), llm.model_copy()):
        assert again.http_client is http_client
        assert again.clock is llm.clock
        assert again.rate_limiter is limiter
    assert "rate_limiter" not in llm.model_dump()
    http_client.close()


# A user's own parts.


def test_the_sdks_resource_is_there(new_llm: NewLLM) -> None:
    """What the SDK's resource can do, `client` can, and nothing else."""
    client = new_llm().client
    assert client.with_streaming_response.create is not None
    with pytest.raises(AttributeError):
        _ = client.no_such_thing


def test_http_clients_that_cannot_be_used_are_refused(new_llm: NewLLM) -> None:
    """An HTTP client of the wrong kind, or beside a proxy, is refused at once."""
    proxy = "http://127.0.0.1:1"
    with pytest.raises(ValueError, match="http_client is for sync calls"):
        new_llm(http_client=openai.DefaultAsyncHttpxClient())
    with openai.DefaultHttpxClient() as http_client:
        with pytest.raises(ValueError, match="http_async_client must be"):
            new_llm(http_async_client=http_client)
        with pytest.raises(ValueError, match="openai_proxy would not be used"):
            new_llm(http_client=http_client, openai_proxy=proxy)


def test_a_proxy_s_refusal_is_not_the_provider_s(every: Env) -> None:
    """A proxy that opens no way to the provider is a connection that fails."""
    fields = base_url(type(every.new()), "https://provider.test")
    llm = every.new(**fields, openai_proxy=every.gateway.url, max_retries=0)
    with pytest.raises(errors.APIConnectionError) as caught:
        every.invoke(llm, "hi")
    assert caught.value.may_have_run is False


@pytest.mark.parametrize("by", ["field", "variable"])
def test_the_proxy_is_used(
    every: Env, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """`openai_proxy`, or `OPENAI_PROXY`, is where all requests go."""
    with Proxy() as proxy:
        fields = {"openai_proxy": proxy.url} if by == "field" else {}
        if by == "variable":
            monkeypatch.setenv("OPENAI_PROXY", proxy.url)
        with every.new(**fields) as llm:
            assert every.invoke(llm, "hi") == STUB_TEXT
        assert proxy.asked[0].startswith(f"POST {every.gateway.url}")


# The key may be a function.


@pytest.mark.parametrize("cls", [OpenAI, OpenAIChat])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_key_may_be_a_function(env: Env, cls: Any, is_async: bool) -> None:
    """A function, maybe an async one, is called for the key before each request."""
    keys = iter(["first", "second", "third"])

    async def key() -> str:
        return next(keys)

    llm = env.new(cls, api_key=key if is_async else lambda: next(keys))
    if is_async and not env.is_async:
        with pytest.raises(ValueError, match="the key is an async function"):
            env.invoke(llm, "hi")
        return
    env.invoke(llm, "hi")
    env.gateway.script(Reset())
    env.invoke(llm, "hi")
    sent = [r.headers["authorization"] for r in env.gateway.requests]
    assert sent == ["Bearer first", "Bearer second", "Bearer third"]


def test_errors_of_the_sdk_itself_pass(env: Env) -> None:
    """A wrong argument is the caller's `TypeError`, not a failure to be retried."""
    with pytest.raises(TypeError, match="no_such_option"):
        env.invoke(env.new(OpenAI), "hi", no_such_option=1)


# --- closing ---


async def test_with_closes_the_connections(every: Env) -> None:
    """After the `with` no connection is open, while the model still exists."""
    llm = every.new()
    with contextlib.ExitStack() as stack:
        if not every.is_async:
            stack.enter_context(llm)
        async with llm if every.is_async else contextlib.nullcontext():
            assert await in_loop(every, llm, "invoke", "hi") == STUB_TEXT
            assert every.gateway.open_connections == 1
    await every.gateway.await_for(lambda g: g.open_connections == 0)
    assert llm.client is not None


@pytest.mark.parametrize("closes", [True, False], ids=["closed", "collected"])
async def test_the_last_model_closes_the_client(env: Env, closes: bool) -> None:
    """A client is open until the last model that shares it is closed, or gone."""
    models = [env.new(), env.new(n=2)]
    await in_loop(env, models[0], "invoke", "hi")
    while models:
        assert await in_loop(env, models[-1], "invoke", "hi") == STUB_TEXT
        assert env.gateway.open_connections == env.gateway.connections == 1
        last = models.pop()
        if closes:
            await in_loop(env, last, "close")
        del last
        collect_garbage()
    while env.gateway.open_connections:  # A thread may hold the model for a moment.
        collect_garbage()
        with contextlib.suppress(TimeoutError):
            await env.gateway.await_for(lambda g: g.open_connections == 0, timeout=1)


async def test_a_closed_model_can_be_used_again(env: Env) -> None:
    """A call after `close` opens a new connection; one may close twice, or early."""
    llm = env.new()
    await in_loop(env, llm, "close")
    for number in range(1, 4):
        assert await in_loop(env, llm, "invoke", "hi") == STUB_TEXT
        assert env.gateway.connections == number
        await in_loop(env, llm, "close")
        await in_loop(env, llm, "close")
        await env.gateway.await_for(lambda g: g.open_connections == 0)


@pytest.mark.parametrize("part", ["http", "sdk"])
async def test_a_client_of_the_user_stays_open(env: Env, part: str) -> None:
    """The user's own HTTP or SDK client is used, and closed by nobody else."""
    mine: Any = {"headers": {"x-mine": "yes"}}
    sdk: Any = {"api_key": KEY, "base_url": env.gateway.openai_url, "max_retries": 0}
    async with openai.DefaultAsyncHttpxClient(**mine) as async_http:
        with openai.DefaultHttpxClient(**mine) as http:
            fields: Any = {"http_client": http, "http_async_client": async_http}
            if part == "sdk":
                client = openai.OpenAI(**sdk, http_client=http)
                async_client = openai.AsyncOpenAI(**sdk, http_client=async_http)
                fields = {"client": client, "async_client": async_client}
                fields = {name: one.completions for name, one in fields.items()}
            llm = env.new(**fields)
            env.gateway.script(Status(503))
            assert await in_loop(env, llm, "invoke", "hi") == STUB_TEXT
            assert await in_loop(env, env.new(), "invoke", "hi") == STUB_TEXT
            sent = [r.headers.get("x-mine") for r in env.gateway.requests]
            assert sent == ["yes", "yes", None]
            await in_loop(env, llm, "close")
            del llm
            collect_garbage()
            assert (http.is_closed, async_http.is_closed) == (False, False)
