"""The server: start and stop, scripts, the log, and the connections."""

import asyncio
import gc
import json
import multiprocessing
import re
import socket
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

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
    COMPLETIONS,
    GENERATE,
    address,
    ask,
    asked,
    chat,
    connect,
    generate,
    post,
    raw_request,
    read_until,
    request,
    statuses,
)

# Start and stop.


def _descriptors() -> Counter[str]:
    """What is open: each socket has its own name, its number goes to the next one."""
    names: Counter[str] = Counter()
    for path in Path("/dev/fd").iterdir():
        with suppress(FileNotFoundError):  # It was the list itself.
            names[str(path.readlink())] += 1
    return names


def _collect() -> None:
    """Collect all garbage; what one round frees may hold the next round's."""
    while gc.collect():
        pass


@pytest.fixture
def no_leaks(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fails when threads, descriptors, or warnings about them are left over."""
    _collect()
    threads, descriptors = set(threading.enumerate()), _descriptors()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        _collect()
    assert set(threading.enumerate()) == threads
    ends = time.monotonic() + 5  # Threads of other tests may just be connecting.
    while (left := _descriptors() - descriptors) and time.monotonic() < ends:
        threading.Event().wait(0.05)
    assert left == Counter()
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
            stack.enter_context(asked(gateway, CHAT, stream=True))
        gateway.wait_for(lambda seen: len(seen.requests) == 3)
        gateway.stop()
        assert gateway.open_connections == 0
    outcomes = {seen.outcome for seen in gateway.requests}
    assert outcomes <= {"sent", "faulted"}


@pytest.mark.usefixtures("no_leaks")
def test_starting_again_at_the_same_address() -> None:
    """A provider that is down refuses connections, and comes back where it was.

    While it runs, its port is taken.
    """
    gateway = FaultyGateway()
    with pytest.raises(RuntimeError, match="start it"):
        _ = gateway.url
    for _ in range(2):
        gateway.start()
        url = gateway.url
        with pytest.raises(RuntimeError, match=f"already running at {url}"):
            gateway.start()
        with pytest.raises(OSError, match="in use"):
            FaultyGateway(port=address(gateway)[1]).start()
        assert statuses(gateway, 1) == [200]
        gateway.stop()
        gateway.stop()  # does nothing
        assert gateway.url == url
        assert gateway.openai_url == f"{url}/v1"
        with pytest.raises(ConnectionRefusedError):
            ask(gateway, CHAT)
    assert [seen.number for seen in gateway.requests] == [1, 2]


def _no_idea(_asked: RecordedRequest) -> Any:
    msg = "no idea"
    raise LookupError(msg)


@pytest.mark.parametrize(
    ("function", "error", "said"),
    [
        (_no_idea, LookupError, "no idea"),
        # pytest's own errors are no `Exception`.
        (lambda _: pytest.fail("too many"), pytest.fail.Exception, "too many"),
        (lambda _: 503, TypeError, "503 is neither a step nor a function"),
    ],
)
def test_an_error_in_the_user_s_function_is_raised_by_stop(
    function: Any, error: type[BaseException], said: str
) -> None:
    """It becomes a 500 for the client, and comes out of `stop` once."""
    gateway = FaultyGateway(answer=function if function is _no_idea else Answer())
    with pytest.RaisesGroup(pytest.RaisesExc(error, match=said)), gateway:
        gateway.script(Answer() if function is _no_idea else function)
        reply = ask(gateway, CHAT)
    begins = f"FaultyGateway: {error.__name__}: {said}"
    assert (reply.status, reply.body.decode()[: len(begins)]) == (500, begins)
    gateway.start()
    gateway.stop()


def test_a_function_that_blocks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the user's function blocks the gateway, `stop` says so and does not hang."""
    monkeypatch.setattr("langchain_retryrouter.testing.server._STOP_SECONDS", 0.01)
    blocked = threading.Lock()

    def pick(_asked: RecordedRequest) -> Step:
        with blocked:
            return Answer()

    gateway = FaultyGateway()
    gateway.start()
    gateway.script(pick)
    (thread,) = (one for one in threading.enumerate() if one.name == "FaultyGateway")
    with blocked, asked(gateway, CHAT):
        gateway.wait_for(lambda seen: len(seen.requests) == 1)
        with pytest.raises(RuntimeError, match="a function in its script blocks"):
            gateway.stop()
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.usefixtures("no_leaks")
def test_it_never_blocks_an_event_loop() -> None:
    """In a coroutine nothing of it blocks: start, script, log, waiting, stop."""

    async def calls() -> None:
        async with FaultyGateway() as gateway:
            with pytest.raises(TimeoutError, match="connections open, 0 requests"):
                await gateway.await_for(lambda _: False, timeout=0.01)
            gateway.script(Drip(), Cut(1), Hangup())
            for _ in range(3):
                reader, writer = await asyncio.open_connection(*address(gateway))
                asking = raw_request(CHAT, stream=True)
                writer.write(
                    asking.replace(b" a\r\n", b" a\r\nconnection: close\r\n", 1)
                )
                await reader.read()
                writer.close()
                await writer.wait_closed()
            await gateway.await_for(lambda seen: seen.open_connections == 0)
            seen = gateway.requests
            assert [one.outcome for one in seen] == ["sent", "faulted", "faulted"]
            gateway.reset_log()

    asyncio.run(calls())


# Forks.


def test_a_forked_child_holds_no_connection(gateway: FaultyGateway) -> None:
    """A child can call the parent's gateway, and keeps none of its sockets open."""
    gateway.script(Answer(), Answer(), Reset())
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()

    def call_and_stop() -> None:
        seen = statuses(gateway, 1)
        gateway.stop()
        theirs.send(seen)
        theirs.poll(None)  # It lives until it is killed.

    child = fork.Process(target=call_and_stop, daemon=True)
    with closing(connect(gateway)) as connection:
        connection.request("POST", CHAT, json.dumps(chat()))
        connection.getresponse().read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # For its threads.
            child.start()
        try:
            assert ours.poll(30)
            assert ours.recv() == [200]
            # The child has had copies of the sockets of this connection.
            connection.request("POST", CHAT, json.dumps(chat()))
            with pytest.raises(ConnectionResetError):
                connection.getresponse()
            assert statuses(gateway, 1) == [200]
            gateway.stop()
            with pytest.raises(ConnectionRefusedError):
                statuses(gateway, 1)
        finally:
            child.kill()
            child.join()
            child.close()
            ours.close()
            theirs.close()


# Scripts.


def test_scripts(gateway: FaultyGateway) -> None:
    """Each request takes one step; then comes `always`, or a healthy answer.

    A new script replaces the steps that are not used yet.
    """
    gateway.script(Status(503), Answer(), Status(429))
    assert statuses(gateway, 4) == [503, 200, 429, 200]
    gateway.script(Status(500), Status(501))
    gateway.script(Status(503))
    assert statuses(gateway, 2) == [503, 200]
    gateway.script(Status(500))
    gateway.script()
    gateway.always(Status(504))
    assert statuses(gateway, 2) == [504, 504]


def test_a_model_has_its_own_script(gateway: FaultyGateway) -> None:
    """A model's script and `always` come before the others, for it alone."""
    gateway.script(Status(500), Status(501))
    gateway.script(Status(503), model="a")
    gateway.always(Status(504), model="b")
    assert statuses(gateway, 2, model="a") == [503, 500]
    assert statuses(gateway, 2, model="b") == [504, 504]
    assert statuses(gateway, 2, model="c") == [501, 200]


def test_a_function_picks_the_step(gateway: FaultyGateway) -> None:
    """A step may depend on the request, in a script and for ever."""

    def pick(asked: RecordedRequest) -> Step:
        return Status(400) if asked.payload["messages"][-1]["content"] else Answer()

    gateway.script(pick)
    gateway.always(pick, model="m")
    empty = [{"role": "user", "content": ""}]
    assert statuses(gateway, 1) == [400]
    assert ask(gateway, CHAT, model="m", messages=empty).status == 200
    assert gateway.requests[0].step == Status(400)


def test_paths_without_a_model(gateway: FaultyGateway) -> None:
    """`respond` sets the answer of any path; scripts and keys hold for it as well."""
    gateway.respond("/v1/embeddings", {"data": [1.5]})
    gateway.respond("/api/v1/generate/generate-image", {}, status=201)
    gateway.script(Status(503), Answer("ignored"))
    replies = [post(gateway, "/v1/embeddings", {"model": "e"}) for _ in range(2)]
    image = request(gateway, "GET", "/api/v1/generate/generate-image")
    assert [reply.status for reply in replies] == [503, 200]
    assert replies[0].json["error"]["type"] == "server_error"
    assert replies[1].json == {"data": [1.5]}
    assert (image.status, image.json) == (201, {})
    assert gateway.requests[0].model == "e"
    for path in ("v1/embeddings", "/v1/embeddings?a=b"):
        with pytest.raises(ValueError, match=re.escape(repr(path))):
            gateway.respond(path, {})
    with FaultyGateway(api_key="k") as closed:
        closed.respond("/v1/embeddings", {})
        assert post(closed, "/v1/embeddings", {}).status == 401


# The log.


def test_the_log_has_everything(gateway: FaultyGateway) -> None:
    """A request is recorded with all that a test may want to know about it."""
    before = time.monotonic()
    payload = generate(stream=True)
    asking = raw_request(GENERATE, stream=True)
    asking = asking.replace(b" HTTP/", b"?a=b HTTP/", 1)
    with socket.create_connection(address(gateway), 5) as client:
        client.sendall(asking.replace(b"host", b"X-Trace: t\r\nx-trace: u\r\nhost", 1))
        read_until(client, b"\r\n0\r\n\r\n")
    (seen,) = gateway.requests
    assert before <= seen.at <= time.monotonic()
    assert (seen.number, seen.connection) == (1, 1)
    assert (seen.method, seen.path, seen.query) == ("POST", GENERATE, "a=b")
    assert seen.headers["x-trace"] == "t, u"
    assert json.loads(seen.body) == seen.json == payload
    assert (seen.model, seen.streaming) == ("gpt-4-0613", True)
    assert (seen.step, seen.outcome) == (Answer(), "sent")
    assert "POST /api/v1/generate gpt-4-0613" in str(seen)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[1]"])
def test_a_body_that_is_not_an_object(gateway: FaultyGateway, body: bytes) -> None:
    """A body that cannot be read says so when asked, and has no model."""
    request(gateway, "POST", CHAT, body)
    (seen,) = gateway.requests
    assert (seen.model, seen.streaming, dict(seen.payload)) == (None, False, {})
    if body != b"[1]":
        with pytest.raises(ValueError, match="the body of request 1 is not JSON"):
            _ = seen.json


@pytest.mark.parametrize(("keep", "numbers"), [(None, [1, 2, 3]), (2, [2, 3]), (0, [])])
def test_the_log_can_be_bounded(keep: int | None, numbers: list[int]) -> None:
    """`keep_requests` bounds the log; `reset_log` empties it; numbers continue."""
    with FaultyGateway(keep_requests=keep) as gateway:
        statuses(gateway, 3)
        assert [seen.number for seen in gateway.requests] == numbers
        gateway.reset_log()
        assert gateway.requests == []
        statuses(gateway, 1)
        assert [seen.number for seen in gateway.requests] == [4] * bool(numbers)


def test_the_outcome_is_in_the_log_before_the_answer_ends(
    gateway: FaultyGateway,
) -> None:
    """A test that has read the answer finds its outcome in the log."""
    with closing(connect(gateway)) as connection:
        for _ in range(300):
            connection.request("POST", CHAT, json.dumps(chat()))
            connection.getresponse().read()
            assert gateway.requests[-1].outcome == "sent"


def test_waiting(gateway: FaultyGateway) -> None:
    """`wait_for` ends when its condition holds; else it says what was seen.

    A recorded request follows what happens to it.
    """
    gateway.script(Silence())
    with asked(gateway, CHAT, model="my-model"):
        gateway.wait_for(lambda seen: len(seen.requests) == 1)
        (request,) = gateway.requests
        assert request.outcome == "pending"
    gateway.wait_for(lambda _: request.outcome == "client_left")
    gateway.wait_for(lambda seen: seen.open_connections == 0)
    with pytest.raises(TimeoutError) as raised:
        gateway.wait_for(lambda seen: len(seen.requests) == 2, timeout=0.01)
    assert "after 0.01 s; 0 of 1 connections open, 1 requests" in str(raised.value)
    assert "my-model, Silence(seconds=120.0), client_left" in str(raised.value)


# Connections.


def test_connections_are_counted(gateway: FaultyGateway) -> None:
    """Connections are counted when they come and when they go; requests know theirs."""
    with ExitStack() as stack:
        kept = [stack.enter_context(closing(connect(gateway))) for _ in range(2)]
        for connection in (*kept, *kept):
            connection.request("POST", CHAT, json.dumps(chat()))
            assert connection.getresponse().read()
        assert gateway.connections == gateway.open_connections == 2
        assert [seen.connection for seen in gateway.requests] == [1, 2, 1, 2]
    gateway.wait_for(lambda seen: seen.open_connections == 0)
    assert gateway.connections == 2


def test_a_client_that_leaves(gateway: FaultyGateway) -> None:
    """An answer that was not read to its end is not called sent, nor continued."""
    gateway.script(Answer(("x" * 20_000_000,)), Stall(1, 0.05), SlowFirstToken(0.1))
    with asked(gateway, CHAT) as client:
        client.recv(1)
    gateway.wait_for(lambda seen: seen.requests[0].outcome == "client_left")
    with asked(gateway, CHAT, stream=True) as client:
        read_until(client, b"Hello")
    assert statuses(gateway, 1) == [200]
    outcomes = [seen.outcome for seen in gateway.requests]
    assert outcomes == ["client_left", "client_left", "sent"]


def test_a_big_answer_arrives(gateway: FaultyGateway) -> None:
    """An answer that the kernel takes in many parts arrives whole, streamed or not."""
    text = "word " * 400_000
    gateway.always(Answer((text, text)))
    whole = ask(gateway, COMPLETIONS)
    streamed = ask(gateway, COMPLETIONS, stream=True)
    assert whole.json["choices"][0]["text"] == text * 2
    assert streamed.events[1]["choices"][0]["text"] == text
    assert streamed.events[-1] == "[DONE]"
    assert [seen.outcome for seen in gateway.requests] == ["sent", "sent"]
