"""Connections: kept, shared, closed at once, and limited in time.

The gateway counts connections and says on which of them a request came. Limits of time
are about a tenth of a second, on the real clock.
"""

import asyncio
import contextlib
import gc
import socket
import ssl
import sys
import time
import traceback
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from blockbuster import BlockBuster
from langchain_core.load import dumpd, dumps

from langchain_retryrouter import (
    APIConnectionError,
    APITimeoutError,
    RetryPolicy,
    RetryRouterError,
    ServerError,
    StreamInterruptedError,
)
from langchain_retryrouter._gptrouter.http import ssl_context
from langchain_retryrouter.chat_models import gpt_router
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Body,
    Drip,
    ErrorEvent,
    FaultyGateway,
    HtmlPage,
    Raw,
    Silence,
    SlowFirstToken,
    Stall,
    Status,
    Step,
)
from tests.unit_tests.conftest import Twin
from tests.unit_tests.listeners import A_LONG_PROMPT, deaf

from .conftest import ENOUGH, GPT_4, SHORT, WAYS, Env, NewModel
from .frames import END, outcomes, text_of, update
from .relays import EarlyHints, Proxy, Relay

HANG_UP = Stall(after=1, seconds=60)
EVENTS = f"{update('Hi', 'stop')}\n\n{END}\n\n".encode()
# A stream whose last chunk, which is empty, does not come.
UNFINISHED = Raw(
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(EVENTS), EVENTS),
    close=False,
)


@dataclass
class OneLoop:
    """Calls by sync methods, or by async methods that share one event loop."""

    is_async: bool
    gateway: FaultyGateway
    new_llm: NewModel

    async def call(self, target: Any, name: str, *args: Any) -> Any:
        if self.is_async:
            return await getattr(target, f"a{name}")(*args)
        return await asyncio.to_thread(getattr(target, name), *args)

    async def invoke(self, llm: Any, prompt: str = "hi") -> Any:
        return await self.call(llm, "invoke", prompt)

    async def stream(self, llm: Any, prompt: str = "hi") -> list[Any]:
        if self.is_async:
            return [chunk async for chunk in llm.astream(prompt)]
        return await asyncio.to_thread(lambda: list(llm.stream(prompt)))

    async def first_of(self, events: Any) -> Any:
        if self.is_async:
            return await anext(events)
        return await asyncio.to_thread(next, events)


@pytest.fixture
def loop(twin: Twin, gateway: FaultyGateway, new_llm: NewModel) -> OneLoop:
    """Run the test twice: with sync calls, and with async calls in one event loop."""
    return OneLoop(twin.is_async, gateway, new_llm)


def left(gateway: FaultyGateway) -> bool:
    """Whether the client of the last request has closed its connection."""
    return bool(gateway.requests) and gateway.requests[-1].outcome == "client_left"


def all_closed(gateway: FaultyGateway) -> bool:
    return gateway.open_connections == 0


# --- kept ---


@pytest.mark.usefixtures("waits_for_bodies")
async def test_a_hundred_calls_use_one_connection(loop: OneLoop) -> None:
    """A hundred calls one after another, streams among them, use one connection."""
    llm = loop.new_llm()

    for number in range(50):
        assert (await loop.invoke(llm, str(number))).content == STUB_TEXT
        await loop.stream(llm, str(number))

    assert len(loop.gateway.requests) == 100
    assert loop.gateway.connections == 1


def test_a_prompt_that_is_too_large_is_sent_whole_and_once(env: Env) -> None:
    """The gateway decides on a body above 1 MiB; its opaque 500 is not retried."""
    with pytest.raises(ServerError) as caught:
        env.invoke(env.llm(), "x" * 3_000_000)

    assert [len(one.body) > 3_000_000 for one in env.gateway.requests] == [True]
    assert "the public gateway fails above 1,048,576" in caught.value.__notes__[0]


FAILURES: list[Step] = [
    Status(503),
    Status(401),
    HtmlPage(502),
    ErrorEvent("500 oops"),
    ErrorEvent("401 wrong key", after=2),
    Body(200, {"content-type": "text/event-stream"}, "data: nonsense\n\n"),
]


@pytest.mark.usefixtures("waits_for_bodies")
async def test_a_failed_answer_gives_its_connection_back(loop: OneLoop) -> None:
    """After an error, in a stream or not, the connection serves the next call."""
    llm = loop.new_llm(max_retries=0)

    for step in FAILURES:
        loop.gateway.script(step)
        with pytest.raises(RetryRouterError):
            await loop.stream(llm)
        assert (await loop.invoke(llm)).content == STUB_TEXT

    assert loop.gateway.connections == 1


def test_models_of_one_gateway_share_connections(
    new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """Models with the same address share connections, whatever else they differ in."""
    new_llm().invoke("hi")
    new_llm(gpt_router_api_key="another", temperature=0.1).invoke("hi")

    assert gateway.connections == 1
    assert gateway.requests[1].headers["ws-secret"] == "another"


def test_threads_share_a_pool(
    new_llm: NewModel, gateway: FaultyGateway, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of 110 threads needs one connection, and urllib3 has no warnings."""
    gateway.always(SlowFirstToken(0.2))
    with ThreadPoolExecutor(110) as threads:
        answers = list(threads.map(new_llm(clock=None).invoke, ["hi"] * 220))

    assert [answer.content for answer in answers] == [STUB_TEXT] * 220
    assert gateway.connections <= 110
    assert not caplog.messages


async def test_a_silent_connection_is_probed(loop: OneLoop) -> None:
    """TCP notices a connection that the network has dropped, and keeps it from that."""
    await loop.invoke(loop.new_llm())

    sockets = [one for one in gc.get_objects() if type(one) is socket.socket]
    [opened] = [one for one in sockets if peer_of(one) == loop.gateway.url]
    assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def peer_of(one: socket.socket) -> str:
    """The address of the other end; empty if there is none."""
    with contextlib.suppress(OSError, ValueError):
        host, port = one.getpeername()
        return f"http://{host}:{port}"
    return ""


async def test_a_gateway_that_restarted_is_found_again(loop: OneLoop) -> None:
    """A kept connection that the gateway has closed meanwhile does not cost a retry."""
    llm = loop.new_llm(max_retries=0)
    await loop.invoke(llm)
    await asyncio.to_thread(loop.gateway.stop)
    loop.gateway.start()

    assert (await loop.invoke(llm)).content == STUB_TEXT


# --- event loops ---


def test_twenty_loops_in_a_row(new_llm: NewModel, gateway: FaultyGateway) -> None:
    """Twenty `asyncio.run` in a row work, and leak neither socket nor loop."""
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
    gateway.wait_for(all_closed)
    assert [loop() for loop in loops] == [None] * 20


def test_a_loop_closed_by_hand_does_not_break_the_next(new_llm: NewModel) -> None:
    """After a loop that was closed without its shutdown, the next one works."""
    llm = new_llm()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(llm.ainvoke("hi"))
    loop.close()

    with warnings.catch_warnings():
        # asyncio's own, for the transport and its socket.
        warnings.filterwarnings("ignore", "unclosed", ResourceWarning)
        assert asyncio.run(llm.ainvoke("hi")).content == STUB_TEXT
        loop_seen = weakref.ref(loop)
        del loop
        gc.collect()

    assert loop_seen() is None


# asyncio's own, for the transports of loops that were closed without their shutdown.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_threads_have_loops_of_their_own(
    new_llm: NewModel, no_blocking_calls: BlockBuster
) -> None:
    """Threads that run and close event loops at the same time do not disturb others."""
    no_blocking_calls.deactivate()  # Threads wait for each other's imports.
    llm = new_llm(max_retries=0)

    def ask(number: int) -> str:
        if number % 2:
            return str(asyncio.run(llm.ainvoke("hi")).content)
        loop = asyncio.new_event_loop()
        answer = loop.run_until_complete(llm.ainvoke("hi"))
        loop.close()
        return str(answer.content)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(ask, range(160)))
    finally:
        sys.setswitchinterval(interval)
    answers.append(ask(1))  # Which closes what was left.
    gc.collect()
    no_blocking_calls.activate()

    assert answers == [STUB_TEXT] * 161


# --- closed at once ---


async def test_closing_a_stream_closes_its_connection(loop: OneLoop) -> None:
    """`close` or `aclose` of a stream hangs up at once, without reading to its end."""
    loop.gateway.always(HANG_UP)
    llm = loop.new_llm()
    asked: Any = {"messages": [{"role": "user", "content": "hi"}], "stream": True}

    events: list[Any]
    if loop.is_async:
        events = [
            llm.astream("hi"),
            await gpt_router.acompletion_with_retry(llm, [GPT_4], **asked),
        ]
    else:
        answer = gpt_router.completion_with_retry(llm, [GPT_4], **asked)
        events = [llm.stream("hi"), answer]
    for one in events:
        await loop.first_of(one)
        await loop.call(one, "close")
        await loop.gateway.await_for(left)


def test_a_closing_frame_that_does_not_come_is_not_waited_for(env: Env) -> None:
    """After the event `end` a stream is over, and its connection is closed."""
    env.gateway.script(UNFINISHED)
    llm = env.llm(max_retries=0)

    assert text_of(env.stream(llm, "hi")) == "Hi"
    assert env.invoke(llm, "hi").content == STUB_TEXT
    assert env.gateway.connections == 2


async def test_a_stream_that_is_cancelled_at_its_end_hangs_up(
    new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """Cancelled while it waits for the closing frame, a stream still hangs up."""
    gateway.script(UNFINISHED)
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

    await gateway.await_for(all_closed)


# --- closed by hand ---


async def test_close_closes_idle_connections(loop: OneLoop) -> None:
    """After `close`, `aclose` or a `with` no connection is open; the model works on."""
    llm = loop.new_llm()
    if loop.is_async:
        async with llm:
            await llm.ainvoke("hi")
    else:
        with llm:
            await loop.invoke(llm)
    await loop.gateway.await_for(all_closed)

    assert (await loop.invoke(llm)).content == STUB_TEXT

    await loop.call(llm, "close")
    await loop.gateway.await_for(all_closed)


async def test_a_close_leaves_calls_under_way_alone(
    new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """A stream of another model goes on, and its connection is closed after it."""
    gateway.always(Stall(after=1, seconds=0.2))
    stream: Any = new_llm().astream("hi")
    first = await anext(stream)

    async with new_llm():
        pass
    text = first.content + "".join([chunk.content async for chunk in stream])

    assert text == STUB_TEXT
    await gateway.await_for(all_closed)


# --- proxies ---


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as proxy:
        yield proxy


def test_a_proxy_is_used(env: Env, proxy: Proxy) -> None:
    """Requests go to `proxy=`, whose user and password it gets, and nobody sees."""
    url = proxy.url.replace("http://", "http://ann:p%40ss-word@")
    llm = env.llm(proxy=url)

    assert env.invoke(llm, "hi").content == STUB_TEXT
    assert env.stream(llm, "hi")

    line = f"POST {env.gateway.url}/api/v1/generate HTTP/1.1"
    assert proxy.asked == [line, line]
    assert {request.path for request in env.gateway.requests} == {"/api/v1/generate"}
    assert proxy.fields[0]["proxy-authorization"] == "Basic YW5uOnBAc3Mtd29yZA=="
    assert "p%40ss-word" not in repr(llm) + dumps(llm)
    assert dumpd(llm)["kwargs"]["proxy"] == proxy.url


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


def test_a_proxy_that_does_not_answer_is_no_connection(env: Env) -> None:
    """Without a connection to the proxy, the provider cannot have run the call."""
    with Proxy() as gone:
        url = gone.url

    with pytest.raises(APIConnectionError) as caught:
        env.invoke(env.llm(proxy=url, max_retries=1), "hi")

    assert caught.value.may_have_run is False
    assert caught.value.attempts == 2


def test_the_password_of_a_proxy_that_refuses_is_not_shown(env: Env) -> None:
    """What a proxy answers is no answer of the gateway, and has no login in it."""
    proxy = env.gateway.url.replace("//", "//ann:the-password@")
    address = "https://gateway.test"
    with pytest.raises(APIConnectionError) as caught:
        env.invoke(env.llm(proxy=proxy, gpt_router_api_base=address), "hi")
    assert caught.value.may_have_run is False
    assert "the-password" not in "".join(traceback.format_exception(caught.value))


def test_the_address_may_have_a_user_and_a_password(env: Env) -> None:
    """A gateway behind a server that asks for them gets them, and nobody else."""
    llm = env.llm(gpt_router_api_base=env.gateway.url.replace("//", "//ann:p%40ss@"))

    env.invoke(llm, "hi")
    env.stream(llm, "hi")

    for request in env.gateway.requests:
        assert request.headers["authorization"] == "Basic YW5uOnBAc3M="
        assert request.headers["host"] == env.gateway.url.removeprefix("http://")


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
    gateway: FaultyGateway,
    authority: trustme.CA,
    trusted: None,  # noqa: ARG001
) -> Iterator[Relay]:
    """The address of the gateway behind TLS."""
    with Relay(gateway.url, tls=tls_for(authority, "127.0.0.1")) as relay:
        yield relay


def test_https_is_spoken(env: Env, https: Relay) -> None:
    """A gateway behind TLS answers, streams, and keeps its connection."""
    llm = env.llm(gpt_router_api_base=https.url)
    assert env.invoke(llm, "hi").content == STUB_TEXT
    assert len(env.stream(llm, "hi")) > 1
    if not env.is_async:
        assert https.connections == 1


@pytest.fixture
def half_open_https(https: Relay) -> Iterator[Relay]:
    """The same, with a way between that can be cut in one direction."""
    with Relay(https.url) as relay:
        yield relay


async def test_closing_a_stream_over_https_hangs_up(
    loop: OneLoop, half_open_https: Relay
) -> None:
    """An early close is immediate over TLS too, though the server says no farewell."""
    loop.gateway.always(HANG_UP)
    relay = half_open_https
    llm: Any = loop.new_llm(gpt_router_api_base=relay.url.replace("http", "https"))

    events = llm.astream("hi") if loop.is_async else llm.stream("hi")
    await loop.first_of(events)
    relay.is_deaf = True  # So the server does not learn that it is to close.
    await loop.call(events, "close")

    assert await asyncio.to_thread(relay.left.wait, 1)


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


@pytest.mark.parametrize("is_trusted", [True, False])
def test_a_wrong_certificate_is_refused_and_not_retried(
    env: Env,
    authority: trustme.CA,
    request: pytest.FixtureRequest,
    *,
    is_trusted: bool,
) -> None:
    """A certificate for another host, or of an unknown authority: nothing is sent."""
    if is_trusted:
        request.getfixturevalue("trusted")
    tls = tls_for(authority, "example.com" if is_trusted else "127.0.0.1")
    with fresh_context(), Relay(env.gateway.url, tls=tls) as relay:
        llm = env.llm(gpt_router_api_base=relay.url)
        with pytest.raises(APIConnectionError, match=r"(?i)certificate") as caught:
            env.invoke(llm, "hi")

    assert relay.connections == 1
    assert env.gateway.requests == []
    assert caught.value.may_have_run is False
    assert caught.value.attempts == 1


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


@pytest.mark.parametrize("way", WAYS)
def test_a_connection_after_an_interim_response_is_not_used_again(
    env: Env, way: str
) -> None:
    """The answer that follows a 103 is never that to another request."""
    with EarlyHints(env.gateway.url, answers=env.is_async) as relay:
        message = env.ask(way, gpt_router_api_base=relay.url, timeout=ENOUGH)
        assert message.content == STUB_TEXT
        # aiohttp waits for the answer; http.client takes the 103 for it.
        assert relay.connections == (1 if env.is_async else 2)
        tried = ["ok"] if env.is_async else ["malformed", "ok"]
        assert outcomes(message) == tried


# --- limits of time ---


LONG = 30.0


@contextlib.contextmanager
def within(least: float = 0.0) -> Iterator[None]:
    """Fail if the block takes less than this, or as long as what it meets."""
    began = time.monotonic()
    yield
    assert least <= time.monotonic() - began < LONG / 2


SLOW: dict[str, Step] = {
    "silence": Silence(),
    "slow first token": SlowFirstToken(LONG),
    "stall": Stall(after=1, seconds=LONG),
    "drip": Drip(seconds=0.1),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fault", SLOW)
def test_a_deadline_ends_a_call_whatever_is_slow(
    env: Env, fault: str, way: str
) -> None:
    """A call ends at its deadline if the server is silent, stalled or dripping."""
    env.gateway.always(SLOW[fault])
    policy = RetryPolicy(max_retries=0, deadline=SHORT)

    errors = (APITimeoutError, StreamInterruptedError)
    with within(SHORT - 0.01), pytest.raises(errors):
        env.ask(way, clock=None, retry_policy=policy)


@pytest.mark.parametrize("timeout", [SHORT, (LONG, SHORT)], ids=["one", "pair"])
@pytest.mark.parametrize("fault", ["silence", "stall"])
def test_the_request_timeout_is_for_silence(env: Env, timeout: Any, fault: str) -> None:
    """`request_timeout`, or the second of a pair, is how long silence may last."""
    env.gateway.always(SLOW[fault])
    # A long deadline does not lift it.
    policy = RetryPolicy(max_retries=0, deadline=LONG, first_token_timeout=LONG)
    llm = env.llm(clock=None, request_timeout=timeout, retry_policy=policy)

    for call in (env.invoke, env.stream):
        with within(), pytest.raises(RetryRouterError):
            call(llm, "hi")


def test_a_silent_gateway_is_not_waited_for_in_the_background(env: Env) -> None:
    """A stream whose gateway sends no headers in time leaves no connection open."""
    env.gateway.always(Silence())
    policy = RetryPolicy(max_retries=0, first_token_timeout=SHORT)

    with pytest.raises(APITimeoutError, match="no first token within"):
        env.ask("stream", clock=None, request_timeout=None, retry_policy=policy)

    env.gateway.wait_for(all_closed)


def test_the_time_for_a_first_token_limits_no_later_read(env: Env) -> None:
    """After the headers, a stream may be silent for as long as `request_timeout`."""
    env.gateway.always(Stall(after=1, seconds=2 * ENOUGH))
    policy = RetryPolicy(max_retries=0, first_token_timeout=ENOUGH)

    answer = env.ask("stream", clock=None, retry_policy=policy)

    assert answer.content == STUB_TEXT


def test_a_dripping_server_is_not_silent(env: Env) -> None:
    """A server that keeps sending, however slowly, is within `request_timeout`."""
    env.gateway.always(Drip(seconds=0.15, size=100))
    llm = env.llm(clock=None, max_retries=0, request_timeout=0.8)

    assert env.invoke(llm, "hi").content == STUB_TEXT
    assert len(env.stream(llm, "hi")) > 1


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_request_that_is_not_read_is_a_timeout(env: Env, way: str) -> None:
    """A server that reads nothing of a long request causes a timeout."""
    policy = RetryPolicy(max_retries=0, deadline=SHORT)
    with warnings.catch_warnings():
        # asyncio's own, for a connection that cannot send what is left in its buffer.
        warnings.filterwarnings("ignore", "unclosed", ResourceWarning)
        with deaf() as address:
            llm = env.llm(clock=None, gpt_router_api_base=address, retry_policy=policy)
            with within(), pytest.raises(APITimeoutError):
                getattr(env, way)(llm, A_LONG_PROMPT)
        gc.collect()
