"""Connections: kept, shared, closed at once, and safe over threads, loops and processes.

The gateway counts connections and says on which of them a request came.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import logging
import multiprocessing
import os
import pickle
import socket
import ssl
import traceback
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trustme
from langchain_core.load import dumps
from langchain_core.runnables import ConfigurableField

from langchain_retryrouter import (
    APIConnectionError,
    AuthenticationError,
    CircuitBreaker,
    GPTRouter,
    RetryBudget,
    RetryRouterError,
    ServerError,
)
from langchain_retryrouter._gptrouter import pools
from langchain_retryrouter.chat_models import gpt_router
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Answer,
    Body,
    Cut,
    ErrorEvent,
    FaultyGateway,
    HtmlPage,
    Raw,
    Reset,
    Silence,
    Stall,
    Status,
    Step,
)

from .conftest import GPT_4, KEY, NewModel
from .relays import Proxy, Relay

MESSAGES = [{"role": "user", "content": "hi"}]


def left(gateway: FaultyGateway) -> bool:
    """Whether the client of the last request has closed its connection."""
    return bool(gateway.requests) and gateway.requests[-1].outcome == "client_left"


# --- kept ---


def test_a_hundred_calls_use_one_connection(
    new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """A hundred calls one after another, streams among them, use one connection."""
    llm = new_llm()

    for number in range(50):
        assert llm.invoke(str(number)).content == STUB_TEXT
        list(llm.stream(str(number)))

    assert len(gateway.requests) == 100
    assert gateway.connections == 1


async def test_a_hundred_calls_of_one_loop_use_one_connection(
    new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """So do a hundred calls within one event loop."""
    llm = new_llm()

    for number in range(50):
        assert (await llm.ainvoke(str(number))).content == STUB_TEXT
        [chunk async for chunk in llm.astream(str(number))]

    assert len(gateway.requests) == 100
    assert gateway.connections == 1


FAILURES: list[Step] = [
    Status(503),
    Status(401),
    HtmlPage(502),
    ErrorEvent("500 oops"),
    ErrorEvent("401 wrong key", after=2),
    Body(200, {"content-type": "text/event-stream"}, "data: nonsense\n\n"),
]


def test_a_failed_answer_gives_its_connection_back(
    new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """After an error status, or an error in a stream, the connection serves the next."""
    llm = new_llm(max_retries=0)

    for step in FAILURES:
        gateway.script(step)
        with pytest.raises(RetryRouterError):
            list(llm.stream("hi"))
        assert llm.invoke("hi").content == STUB_TEXT

    assert gateway.connections == 1


async def test_a_failed_answer_gives_its_connection_back_async(
    new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """Likewise within an event loop."""
    llm = new_llm(max_retries=0)

    for step in FAILURES:
        gateway.script(step)
        with pytest.raises(RetryRouterError):
            [chunk async for chunk in llm.astream("hi")]
        assert (await llm.ainvoke("hi")).content == STUB_TEXT

    assert gateway.connections == 1


def test_models_of_one_gateway_share_connections(
    new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """Two models with the same address share connections, whatever else they differ in."""
    new_llm().invoke("hi")
    new_llm(gpt_router_api_key="another", temperature=0.1).invoke("hi")

    assert gateway.connections == 1
    assert gateway.requests[1].headers["ws-secret"] == "another"


def test_threads_share_a_pool(new_llm: NewModel, gateway: FaultyGateway) -> None:
    """Eight threads need eight connections at the most, and they are kept."""
    llm = new_llm()

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(llm.invoke, ["hi"] * 80))

    assert [answer.content for answer in answers] == [STUB_TEXT] * 80
    used = gateway.connections
    assert used <= 8
    llm.batch(["hi"] * 4, {"max_concurrency": 4})
    assert gateway.connections <= max(used, 4)


def test_a_gateway_that_restarted_is_found_again(
    new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """A kept connection that the gateway has closed meanwhile does not cost a retry."""
    llm = new_llm(max_retries=0)
    llm.invoke("hi")
    gateway.stop()
    gateway.start()

    assert llm.invoke("hi").content == STUB_TEXT


async def test_a_gateway_that_restarted_is_found_again_async(
    new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """Nor does it within an event loop."""
    llm = new_llm(max_retries=0)
    await llm.ainvoke("hi")
    await asyncio.to_thread(gateway.stop)
    gateway.start()

    assert (await llm.ainvoke("hi")).content == STUB_TEXT


# --- loops ---


def test_twenty_loops_in_a_row(new_llm: NewModel, gateway: FaultyGateway) -> None:
    """A script with twenty `asyncio.run` fails nowhere, and leaks neither socket nor loop."""
    llm = new_llm()
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def ask() -> str:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        return str((await llm.ainvoke("hi")).content)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers = [asyncio.run(ask()) for _ in range(20)]
        gc.collect()

    assert answers == [STUB_TEXT] * 20
    gateway.wait_for(lambda gateway: gateway.open_connections == 0)
    assert [loop() for loop in loops] == [None] * 20


def test_a_loop_that_was_just_closed_is_forgotten(new_llm: NewModel) -> None:
    """A loop closed without a shutdown of its generators is let go with the next one."""
    llm = new_llm()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(llm.ainvoke("hi"))
    # What `asyncio.run` does, and this user did not; without it the session stays open.
    held = pools._sessions[loop]
    assert held.session is not None
    loop.run_until_complete(held.session.close())
    loop.close()

    assert asyncio.run(llm.ainvoke("hi")).content == STUB_TEXT

    assert loop not in pools._sessions


def test_loops_in_threads_at_the_same_time(
    new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """Each loop has its own connections; four at once do not meet."""
    llm = new_llm()

    async def ask() -> list[str]:
        answers = await asyncio.gather(*(llm.ainvoke("hi") for _ in range(5)))
        return [str(answer.content) for answer in answers]

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: asyncio.run(ask()), range(4)))

    assert answers == [[STUB_TEXT] * 5] * 4
    gateway.wait_for(lambda gateway: gateway.open_connections == 0)


# --- closed at once ---


@pytest.mark.parametrize("how", ["stream", "completion_with_retry"])
def test_closing_a_stream_closes_its_connection(
    new_llm: NewModel, gateway: FaultyGateway, how: str
) -> None:
    """Who closes a stream early hangs up at once, without reading to its end."""
    gateway.always(Stall(after=1, seconds=60))
    stream: Any = (
        new_llm().stream("hi")
        if how == "stream"
        else gpt_router.completion_with_retry(
            new_llm(), [GPT_4], messages=MESSAGES, stream=True
        )
    )
    next(stream)

    stream.close()

    gateway.wait_for(left, timeout=2)


@pytest.mark.parametrize("how", ["stream", "completion_with_retry"])
async def test_closing_a_stream_closes_its_connection_async(
    new_llm: NewModel, gateway: FaultyGateway, how: str
) -> None:
    """So it is for `aclose`."""
    gateway.always(Stall(after=1, seconds=60))
    stream: Any = (
        new_llm().astream("hi")
        if how == "stream"
        else await gpt_router.acompletion_with_retry(
            new_llm(), [GPT_4], messages=MESSAGES, stream=True
        )
    )
    await anext(stream)

    await stream.aclose()

    await gateway.await_for(left, timeout=2)


def test_leaving_a_loop_over_a_stream_closes_its_connection(
    new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """A `break` drops the stream, and with it the connection."""
    gateway.always(Stall(after=1, seconds=60))

    for chunk in new_llm().stream("hi"):
        assert chunk.content == "Hello"
        break

    gateway.wait_for(left, timeout=2)


@pytest.mark.parametrize("way", ["ainvoke", "astream", "streaming ainvoke"])
@pytest.mark.parametrize("step", [Silence(), Stall(after=1, seconds=60)])
async def test_a_cancelled_call_hangs_up(
    new_llm: NewModel, gateway: FaultyGateway, way: str, step: Step
) -> None:
    """Cancellation passes at once, closes the connection, and is never retried."""
    gateway.always(step)
    llm = new_llm(streaming="streaming" in way)

    async def ask() -> None:
        if way == "astream":
            [chunk async for chunk in llm.astream("hi")]
        else:
            await llm.ainvoke("hi")

    task = asyncio.create_task(ask())
    await gateway.await_for(lambda gateway: len(gateway.requests) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await gateway.await_for(left, timeout=2)
    assert len(gateway.requests) == 1


def test_a_closing_frame_that_does_not_come_is_not_waited_for(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """Behind `end` nothing is worth a wait: the stream is over, the connection closed."""
    events = (
        b'data: {"event":"update","data":{"text":"Hi","finish_reason":"stop"}}\n\n'
        b'data: {"event":"end","data":"end"}\n\n'
    )
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    chunk = b"%x\r\n%b\r\n" % (len(events), events)
    unfinished = head + b"transfer-encoding: chunked\r\n\r\n" + chunk
    gateway.script(Raw(unfinished, close=False))
    llm = new_llm(max_retries=0)

    chunks = twin.stream(llm, "hi")

    assert "".join(chunk.content for chunk in chunks) == "Hi"
    assert twin.invoke(llm, "hi").content == STUB_TEXT
    assert gateway.connections == 2


async def test_a_cancelled_close_hangs_up_all_the_same(
    new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """Cancelled while it takes the closing frame off the wire, a stream still hangs up."""
    events = (
        b'data: {"event":"update","data":{"text":"Hi","finish_reason":"stop"}}\n\n'
        b'data: {"event":"end","data":"end"}\n\n'
    )
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    chunk = b"%x\r\n%b\r\n" % (len(events), events)
    unfinished = head + b"transfer-encoding: chunked\r\n\r\n" + chunk
    gateway.script(Raw(unfinished, close=False))
    seen = asyncio.Event()

    async def read() -> None:
        async for chunk in new_llm().astream("hi"):
            if chunk.response_metadata.get("retryrouter"):
                seen.set()

    task = asyncio.create_task(read())
    await seen.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task

    await gateway.await_for(lambda gateway: gateway.open_connections == 0, timeout=2)


# --- copies ---


def test_a_model_pickles_and_answers_after(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """A pickle has all a worker needs, the key included, and none of the sockets."""
    llm = new_llm(clock=None, budget=RetryBudget(), breaker=CircuitBreaker())
    twin.invoke(llm, "hi")

    again = pickle.loads(pickle.dumps(llm))  # noqa: S301 - our own

    assert twin.invoke(again, "hi").content == STUB_TEXT
    assert gateway.requests[-1].headers["ws-secret"] == KEY
    assert isinstance(again.budget, RetryBudget)
    assert isinstance(again.breaker, CircuitBreaker)


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, GPTRouter.model_copy], ids=lambda f: f.__name__
)
def test_a_copy_shares_budget_and_breaker(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway, duplicate: Any
) -> None:
    """A copy of a model draws from the same budget, and heeds the same breaker."""
    budget, breaker = RetryBudget(capacity=28), CircuitBreaker()
    llm = new_llm(clock=None, budget=budget, breaker=breaker)

    again = duplicate(llm)

    assert again is not llm
    assert again.budget is budget
    assert again.breaker is breaker
    assert twin.invoke(again, "hi").content == STUB_TEXT
    assert gateway.requests[-1].headers["ws-secret"] == KEY


def test_configured_copies_use_their_own_settings(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """`configurable_fields` reaches the client: the other key, address or timeout is used."""
    llm = new_llm().configurable_fields(
        gpt_router_api_key=ConfigurableField(id="key"),
        gpt_router_api_base=ConfigurableField(id="base"),
        temperature=ConfigurableField(id="temperature"),
    )

    twin.invoke(llm, "hi", {"configurable": {"key": "sk-of-a-tenant"}})
    twin.invoke(llm, "hi", {"configurable": {"temperature": 0.1}})
    with FaultyGateway() as other:
        twin.invoke(llm, "hi", {"configurable": {"base": other.url}})
        assert len(other.requests) == 1

    first, second = gateway.requests
    assert first.headers["ws-secret"] == "sk-of-a-tenant"
    assert second.headers["ws-secret"] == KEY
    assert second.parameters["temperature"] == 0.1


# --- processes ---


def test_a_forked_child_calls_on_connections_of_its_own(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """A child that was forked can call, and leaves the parent's connection alone."""
    llm = new_llm(clock=None)
    assert twin.invoke(llm, "parent").content == STUB_TEXT

    with warnings.catch_warnings():
        # Python warns of forks in programs with threads; the gateway's is one.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            if twin.invoke(llm, "child").content == STUB_TEXT:
                status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert twin.invoke(llm, "parent").content == STUB_TEXT
    first, of_child, last = gateway.requests
    assert of_child.connection != first.connection
    if not twin.is_async:
        assert last.connection == first.connection


def test_a_spawned_process_can_call(new_llm: NewModel, gateway: FaultyGateway) -> None:
    """A worker process is handed the model, and calls."""
    llm = new_llm(clock=None)
    spawn = multiprocessing.get_context("spawn")

    with ProcessPoolExecutor(1, mp_context=spawn) as workers:
        answer = workers.submit(llm.invoke, "hi").result(15)

    assert answer.content == STUB_TEXT
    assert gateway.requests[0].headers["ws-secret"] == KEY


def test_an_error_pickles_on_its_way_out_of_a_process(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """An error that crosses a process keeps its class, its facts and its notes."""
    gateway.always(ErrorEvent("500 oops"))
    with pytest.raises(ServerError) as caught:
        twin.stream(new_llm(max_retries=1), "hi")

    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own

    assert type(again) is type(caught.value)
    assert (again.status_code, again.attempts) == (500, 2)
    assert again.__notes__ == caught.value.__notes__
    assert again.is_retryable is False


# --- the key ---

SECRET_STEPS: list[Step] = [
    Status(401),
    Status(500),
    Reset(),
    HtmlPage(502),
    Cut(after=1),
    ErrorEvent("400 wrong", after=1),
    Body(200, {"content-type": "text/event-stream"}, "data: {}\n\n"),
]


@pytest.mark.parametrize("step", SECRET_STEPS, ids=str)
def test_nothing_shows_the_key(
    twin: Any,
    new_llm: NewModel,
    gateway: FaultyGateway,
    caplog: pytest.LogCaptureFixture,
    step: Step,
) -> None:
    """Errors, their notes, tracebacks and every log down to DEBUG are without the key."""
    gateway.always(step)
    llm = new_llm(max_retries=1)

    with caplog.at_level(logging.DEBUG):
        for call in (twin.invoke, twin.stream):
            with pytest.raises(RetryRouterError) as caught:
                call(llm, "hi")
            error = caught.value
            shown = "".join(traceback.format_exception(error))
            assert KEY not in shown + repr(error) + str(error) + repr(vars(error))

    assert gateway.requests[0].headers["ws-secret"] == KEY
    assert KEY not in caplog.text
    assert KEY not in repr(llm) + str(llm) + dumps(llm) + repr(llm.model_dump())


# --- proxies ---


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as proxy:
        yield proxy


def test_a_proxy_is_used(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway, proxy: Proxy
) -> None:
    """`proxy=` is where requests go, streams too."""
    llm = new_llm(proxy=proxy.url)

    assert twin.invoke(llm, "hi").content == STUB_TEXT
    assert twin.stream(llm, "hi")

    line = f"POST {gateway.url}/api/v1/generate HTTP/1.1"
    assert proxy.asked == [line, line]
    assert [request.path for request in gateway.requests] == ["/api/v1/generate"] * 2


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_the_environment_s_proxy_is_used(
    twin: Any,
    new_llm: NewModel,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """The proxy that the environment names is used, and `no_proxy` makes exceptions."""
    monkeypatch.setenv(name, proxy.url)
    assert twin.invoke(new_llm(), "hi").content == STUB_TEXT
    assert len(proxy.asked) == 1

    monkeypatch.setenv("no_proxy", "example.com,127.0.0.1")
    assert twin.invoke(new_llm(), "hi").content == STUB_TEXT
    assert len(proxy.asked) == 1

    assert twin.invoke(new_llm(proxy=proxy.url), "hi").content == STUB_TEXT
    assert len(proxy.asked) == 2


def test_a_proxy_s_credentials_are_for_the_proxy(
    twin: Any, new_llm: NewModel, proxy: Proxy
) -> None:
    """User and password in the proxy's URL are sent to it, and shown nowhere."""
    url = proxy.url.replace("http://", "http://ann:p%40ss-word@")
    llm = new_llm(proxy=url)

    assert twin.invoke(llm, "hi").content == STUB_TEXT

    assert proxy.fields[0]["proxy-authorization"] == "Basic YW5uOnBAc3Mtd29yZA=="
    assert "p%40ss-word" not in repr(llm) + dumps(llm)


def test_a_proxy_that_does_not_answer_is_no_connection(
    twin: Any, new_llm: NewModel
) -> None:
    """Where the proxy is not there, nothing has run."""
    with Proxy() as gone:
        url = gone.url

    with pytest.raises(APIConnectionError) as caught:
        twin.invoke(new_llm(proxy=url, max_retries=1), "hi")

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
    """The machine trusts the test's authority, as it does its own."""
    bundle = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(bundle)
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    with fresh_context():
        yield


@contextlib.contextmanager
def fresh_context() -> Iterator[None]:
    """The SSL context of the process is made anew, and forgotten afterwards."""
    pools.ssl_context.cache_clear()
    yield
    pools.ssl_context.cache_clear()
    pools.close_sync_pools()


def tls_for(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.mark.usefixtures("trusted")
def test_https_is_spoken(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway, authority: trustme.CA
) -> None:
    """A gateway behind TLS answers, streams, and keeps its connection."""
    with Relay(gateway.url, tls=tls_for(authority, "127.0.0.1")) as relay:
        llm = new_llm(gpt_router_api_base=relay.url)
        assert twin.invoke(llm, "hi").content == STUB_TEXT
        assert len(twin.stream(llm, "hi")) > 1
        if not twin.is_async:
            assert relay.connections == 1


@pytest.mark.usefixtures("trusted")
def test_closing_a_stream_over_https_hangs_up(
    new_llm: NewModel, gateway: FaultyGateway, authority: trustme.CA
) -> None:
    """An early close is at once over TLS too, and so is the end of a stall."""
    gateway.always(Stall(after=1, seconds=60))
    with Relay(gateway.url, tls=tls_for(authority, "127.0.0.1")) as relay:
        stream: Any = new_llm(gpt_router_api_base=relay.url).stream("hi")
        next(stream)
        stream.close()
        gateway.wait_for(lambda gateway: gateway.open_connections == 0, timeout=2)


@pytest.mark.usefixtures("trusted")
def test_https_through_a_proxy_is_a_tunnel(
    twin: Any,
    new_llm: NewModel,
    gateway: FaultyGateway,
    authority: trustme.CA,
    proxy: Proxy,
) -> None:
    """A proxy of https sees the address, and neither key nor prompt."""
    with Relay(gateway.url, tls=tls_for(authority, "127.0.0.1")) as relay:
        llm = new_llm(gpt_router_api_base=relay.url, proxy=proxy.url)
        assert twin.invoke(llm, "hi").content == STUB_TEXT

    address = relay.url.removeprefix("https://")
    [asked] = proxy.asked
    assert asked.startswith(f"CONNECT {address} HTTP/1.")
    assert "ws-secret" not in proxy.fields[0]


def test_an_unknown_authority_is_refused_and_not_retried(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway, authority: trustme.CA
) -> None:
    """A certificate that nobody vouches for ends the call: no request, no retry."""
    with (
        fresh_context(),
        Relay(gateway.url, tls=tls_for(authority, "127.0.0.1")) as relay,
    ):
        llm = new_llm(gpt_router_api_base=relay.url)
        with pytest.raises(APIConnectionError, match="(?i)certificate") as caught:
            twin.invoke(llm, "hi")

    assert relay.connections == 1
    assert gateway.requests == []
    assert caught.value.may_have_run is False
    assert caught.value.attempts == 1


@pytest.mark.usefixtures("trusted")
def test_a_certificate_for_another_name_is_refused(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway, authority: trustme.CA
) -> None:
    """A good certificate of somebody else is no good here."""
    with Relay(gateway.url, tls=tls_for(authority, "example.com")) as relay:
        llm = new_llm(gpt_router_api_base=relay.url)
        with pytest.raises(APIConnectionError, match="(?i)certificate"):
            twin.invoke(llm, "hi")

    assert relay.connections == 1
    assert gateway.requests == []


def loopbacks() -> list[str]:
    """The loopback's addresses; containers often have no IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return ["127.0.0.1"]
    return ["127.0.0.1", "::1"]


@pytest.mark.parametrize("host", loopbacks())
def test_an_address_may_be_of_either_kind(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway, host: str
) -> None:
    """`http://[::1]:PORT` is a gateway like `http://127.0.0.1:PORT`."""
    with Relay(gateway.url, host=host) as relay:
        llm = new_llm(gpt_router_api_base=relay.url)
        assert twin.invoke(llm, "hi").content == STUB_TEXT
        assert twin.stream(llm, "hi")

    assert gateway.requests[0].headers["host"] == relay.url.removeprefix("http://")


def test_a_redirect_is_not_followed(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """A redirect would take the key to another host: it is an error instead."""
    with FaultyGateway() as other:
        gateway.always(Status(307, {"location": f"{other.url}/api/v1/generate"}))
        for call in (twin.invoke, twin.stream):
            with pytest.raises(RetryRouterError) as caught:
                call(new_llm(), "hi")
            assert (caught.value.status_code, caught.value.attempts) == (307, 1)
        assert other.requests == []
        gateway.always(Answer())
