"""The life of a gateway: start, stop, errors, and the company it keeps."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from blockbuster import blockbuster_ctx

from langchain_retryrouter.testing import (
    Answer,
    Cut,
    Drip,
    FaultyGateway,
    Hangup,
    RecordedRequest,
    Reset,
    Silence,
    SlowFirstToken,
    Stall,
    Status,
    Step,
)

from .wire_client import (
    CHAT,
    chat,
    connect,
    post,
    posted,
    read_until,
    statuses,
)


def _descriptors() -> set[str]:
    return {path.name for path in Path("/dev/fd").iterdir()}


@pytest.fixture
def no_leaks(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fails when threads, descriptors, or warnings about them are left over."""
    gc.collect()
    threads, descriptors = set(threading.enumerate()), _descriptors()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert set(threading.enumerate()) == threads
    assert _descriptors() == descriptors
    assert [str(warning.message) for warning in caught] == []
    assert caplog.records == []


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize(
    "step",
    [
        Answer(),
        Silence(),
        SlowFirstToken(120),
        Stall(2, 120),
        Drip(120),
        Drip(),
        Reset(),
        Hangup(),
        Cut(2, "rst"),
        Answer(("x" * 20_000_000,)),
    ],
)
def test_stopping_in_the_middle_leaves_nothing(step: Step) -> None:
    """Whatever is under way, `stop` leaves no thread, no socket and no warning."""
    gateway = FaultyGateway()
    gateway.start()
    gateway.always(step)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(posted(gateway, CHAT, chat(stream=True)))
        gateway.wait_for(lambda seen: len(seen.requests) == 3)
        gateway.stop()
        assert gateway.open_connections == 0
    outcomes = {seen.outcome for seen in gateway.requests}
    assert outcomes <= {"sent", "faulted"}


@pytest.mark.usefixtures("no_leaks")
def test_stopping_while_clients_connect() -> None:
    """Connections that are just being accepted are closed as well."""
    for _ in range(20):
        with ExitStack() as stack, FaultyGateway() as gateway:
            address = ("127.0.0.1", urlsplit(gateway.url).port)
            for _ in range(10):
                stack.enter_context(closing(socket.create_connection(address, 5)))


@pytest.mark.usefixtures("no_leaks")
def test_starting_again_at_the_same_address() -> None:
    """A provider that is down refuses connections, and comes back where it was."""
    gateway = FaultyGateway()
    for _ in range(2):
        gateway.start()
        url = gateway.url
        assert statuses(gateway, 1) == [200]
        gateway.stop()
        gateway.stop()  # does nothing
        assert gateway.url == url
        with pytest.raises(ConnectionRefusedError):
            post(gateway, CHAT, chat())
    assert [seen.number for seen in gateway.requests] == [1, 2]


def test_the_addresses(faulty_gateway: FaultyGateway) -> None:
    """OpenAI's base has the `/v1` that GPTRouter's has not."""
    assert faulty_gateway.url.startswith("http://127.0.0.1:")
    assert faulty_gateway.openai_url == f"{faulty_gateway.url}/v1"


def test_starting_twice(faulty_gateway: FaultyGateway) -> None:
    """A running gateway is not started over."""
    with pytest.raises(RuntimeError, match=f"already running at {faulty_gateway.url}"):
        faulty_gateway.start()


def test_no_address_before_the_start() -> None:
    """A gateway that was never started has no address to give."""
    with pytest.raises(RuntimeError, match="start it"):
        _ = FaultyGateway().url


@pytest.mark.usefixtures("no_leaks")
def test_a_port_that_is_taken(faulty_gateway: FaultyGateway) -> None:
    """A port that is taken is an error at the start."""
    taken = FaultyGateway(port=urlsplit(faulty_gateway.url).port or 0)
    with pytest.raises(OSError, match="in use"):
        taken.start()


def test_gateways_share_nothing() -> None:
    """Two gateways have their own scripts and logs."""
    with FaultyGateway() as one, FaultyGateway() as other:
        one.always(Status(503))
        assert statuses(one, 1) == [503]
        assert statuses(other, 1) == [200]
        assert [len(one.requests), len(other.requests)] == [1, 1]


def test_an_error_in_the_user_s_function_is_raised_by_stop() -> None:
    """It becomes a 500 for the client, and comes out of `stop`."""

    def answer(_asked: RecordedRequest) -> Answer:
        msg = "no idea"
        raise LookupError(msg)

    gateway = FaultyGateway(answer=answer)
    with (
        pytest.RaisesGroup(pytest.RaisesExc(LookupError, match="no idea")),
        gateway,
    ):
        reply = post(gateway, CHAT, chat())
    assert (reply.status, reply.body) == (500, b"FaultyGateway: LookupError: no idea")
    gateway.start()
    gateway.stop()  # it is raised once


def test_a_function_that_blocks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the caller's code holds the gateway up, `stop` says so and does not hang."""
    monkeypatch.setattr("langchain_retryrouter.testing.server._STOP_SECONDS", 0.01)
    blocked = threading.Lock()

    def pick(_asked: RecordedRequest) -> Step:
        with blocked:
            return Answer()

    gateway = FaultyGateway()
    gateway.start()
    gateway.script(pick)
    (thread,) = (one for one in threading.enumerate() if one.name == "FaultyGateway")
    with blocked, posted(gateway, CHAT, chat()):
        gateway.wait_for(lambda seen: len(seen.requests) == 1)
        with pytest.raises(RuntimeError, match="a function in its script blocks"):
            gateway.stop()
    thread.join(5)
    assert not thread.is_alive()


def test_many_connections_at_once(faulty_gateway: FaultyGateway) -> None:
    """Many connections are open at the same time, and each gets its answer."""
    with ExitStack() as stack:
        clients = [
            stack.enter_context(posted(faulty_gateway, CHAT, chat()))
            for _ in range(200)
        ]
        faulty_gateway.wait_for(lambda seen: seen.open_connections == 200)
        assert all(b" upstream" in read_until(one, b"upstream") for one in clients)


@pytest.mark.usefixtures("no_leaks")
def test_it_never_blocks_an_event_loop() -> None:
    """In a coroutine nothing of it blocks: start, script, log, waiting, stop."""

    async def scenario() -> None:
        with blockbuster_ctx():
            await calls()

    async def calls() -> None:
        async with FaultyGateway() as gateway:
            gateway.script(Drip(), Cut(1), Hangup())
            port = urlsplit(gateway.url).port
            for _ in range(3):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                body = json.dumps(chat(stream=True)).encode()
                head = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
                writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode())
                writer.write(body)
                await reader.read()
                writer.close()
                await writer.wait_closed()
            await gateway.await_for(lambda seen: seen.open_connections == 0)
            seen = gateway.requests
            assert [one.outcome for one in seen] == ["sent", "faulted", "faulted"]
            gateway.reset_log()

    asyncio.run(scenario())


@contextmanager
def _child(check: Callable[[], bool]) -> Iterator[None]:
    """A forked child in which `check` has held, and which lives until the end."""
    final_error, tell = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # for forking with threads
        child = os.fork()
    if child == 0:
        try:
            signal.alarm(10)  # a child that hangs ends, and has said nothing
            os.write(tell, b"good" if check() else b"bad")
            signal.alarm(0)
            signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    try:
        assert os.read(final_error, 4) == b"good"
        yield
    finally:
        os.close(final_error)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_forked_child_holds_no_connection(faulty_gateway: FaultyGateway) -> None:
    """A child can call the parent's gateway, and keeps none of its sockets open."""
    faulty_gateway.script(Answer(), Answer(), Reset())

    def call_and_stop() -> bool:
        seen = statuses(faulty_gateway, 1)
        faulty_gateway.stop()
        return seen == [200]

    with closing(connect(faulty_gateway)) as connection:
        connection.request("POST", CHAT, json.dumps(chat()))
        connection.getresponse().read()
        with _child(call_and_stop):
            # The child has had copies of the sockets of this connection.
            connection.request("POST", CHAT, json.dumps(chat()))
            with pytest.raises(ConnectionResetError):
                connection.getresponse()
            assert statuses(faulty_gateway, 1) == [200]
            faulty_gateway.stop()
            with pytest.raises(ConnectionRefusedError):
                statuses(faulty_gateway, 1)


def test_a_fork_while_the_log_is_locked(faulty_gateway: FaultyGateway) -> None:
    """A child does not hang on a lock that another thread of the parent has held."""
    locked, leave = threading.Event(), threading.Event()

    def hold(_gateway: FaultyGateway) -> bool:
        locked.set()
        return leave.wait(10)

    holder = threading.Thread(target=faulty_gateway.wait_for, args=[hold])
    holder.start()
    assert locked.wait(5)
    try:
        with _child(lambda: faulty_gateway.requests == []):
            pass
    finally:
        leave.set()
        holder.join()


def test_it_imports_neither_pytest_nor_langchain() -> None:
    """The kit serves tests of any kind, and starts fast."""
    code = "import sys, langchain_retryrouter.testing; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    heavy = {"pytest", "langchain_core", "openai", "tenacity", "pydantic", "aiohttp"}
    assert not heavy & set(ran.stdout.split())


def test_the_fixtures(
    faulty_gateway: FaultyGateway, request: pytest.FixtureRequest
) -> None:
    """The fixture gives a running gateway, the same all through a test."""
    assert statuses(faulty_gateway, 1) == [200]
    assert request.getfixturevalue("faulty_gateway") is faulty_gateway
