"""What each step writes, seen from the other end of a real connection."""

import http.client
import json
import socket
from contextlib import closing, nullcontext
from typing import Any

import pytest

from langchain_retryrouter.testing import (
    Body,
    Cut,
    Drip,
    ErrorEvent,
    FaultyGateway,
    Hangup,
    HtmlPage,
    MalformedEvent,
    MissingDone,
    Raw,
    Reset,
    Silence,
    SlowFirstToken,
    SplitCharacter,
    Stall,
    Status,
    Step,
    Truncate,
)

from .wire_client import (
    CHAT,
    COMPLETIONS,
    GENERATE,
    Reply,
    ask,
    asked,
    chunks_of,
    connect,
    raw_request,
    read_to_end,
    read_until,
)

_every_endpoint = pytest.mark.parametrize("path", [GENERATE, CHAT, COMPLETIONS])
_streaming = pytest.mark.parametrize("stream", [False, True])


def _outcome(gateway: FaultyGateway) -> tuple[Step | None, str]:
    last = gateway.requests[-1]
    return last.step, last.outcome


def _healthy(path: str, *, stream: bool = True) -> Reply:
    """The healthy answer to the first request of a gateway."""
    with FaultyGateway() as gateway:
        return ask(gateway, path, stream=stream)


def _texts(response: bytes) -> list[str]:
    """The texts of the events with content in a raw response, in any protocol."""
    events = [
        json.loads(chunk.removeprefix(b"data: "))
        for chunk in chunks_of(response)
        if chunk.startswith(b"data: {") and b"meta" not in chunk
    ]
    return [text for event in events if (text := _text(event))]


def _text(event: dict[str, Any]) -> str:
    if isinstance(event.get("data"), dict):
        return str(event["data"].get("text", ""))
    (choice,) = event.get("choices", [{}])
    return str(choice.get("text") or choice.get("delta", {}).get("content") or "")


# Statuses and bodies.


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b"\xff\x00", b"\xff\x00"),
        ("Grüße", "Grüße".encode()),
        ({"a": [1, None]}, b'{"a":[1,null]}'),
        ("", b""),
    ],
)
def test_a_status_with_a_body(
    gateway: FaultyGateway, body: object, sent: bytes
) -> None:
    """Bytes and text go out as they are, all else as JSON."""
    gateway.script(Status(503, body=body))
    reply = ask(gateway, GENERATE)
    assert (reply.status, reply.body) == (503, sent)
    assert _outcome(gateway) == (Status(503, body=body), "sent")


def test_headers_of_a_status(gateway: FaultyGateway) -> None:
    """Headers come as given, repeated ones too, in place of the protocol's."""
    headers = [("Retry-After", "1"), ("retry-after", "inf"), ("Content-Type", "a/b")]
    gateway.script(Status(429, headers), Status(429, {"retry-after": "2"}))
    several, one = ask(gateway, GENERATE), ask(gateway, GENERATE)
    assert several.header("retry-after") == ["1", "inf"]
    assert several.header("content-type") == ["a/b"]
    assert one.header("retry-after") == ["2"]
    assert one.header("content-type") == ["application/json; charset=utf-8"]


def test_how_a_status_ends(gateway: FaultyGateway) -> None:
    """A 204 has no body and keeps the connection; `connection: close` closes it."""
    gateway.script(Status(204))
    with closing(connect(gateway)) as connection:
        for status in (204, 200):
            connection.request(
                "POST", CHAT, raw_request(CHAT).partition(b"\r\n\r\n")[2]
            )
            response = connection.getresponse()
            assert (response.status, bool(response.read())) == (status, status == 200)
    assert gateway.connections == 1
    gateway.script(Status(503, {"connection": "close"}))
    with asked(gateway, GENERATE) as client:
        assert b"connection: close\r\n" in read_to_end(client)


def test_a_body_is_sent_as_it_is(gateway: FaultyGateway) -> None:
    """`Body` adds nothing to its headers but its length; a proxy's page is HTML."""
    gateway.script(Body(200, {"x-a": "b"}, "<p>"), Body())
    reply = ask(gateway, CHAT, stream=True)
    assert (reply.status, reply.body) == (200, b"<p>")
    names = {name.lower() for name, _ in reply.headers}
    assert names == {"x-a", "content-length", "connection", "keep-alive"}
    assert ask(gateway, CHAT).body == b""
    gateway.script(HtmlPage(520))
    page = ask(gateway, CHAT, stream=True)
    assert (page.status, page.header("content-type")) == (520, ["text/html"])
    assert page.body.startswith(b"<html>")


@pytest.mark.parametrize("step", [{"close": True}, {"close": False}, {"how": "rst"}])
def test_raw_bytes(gateway: FaultyGateway, step: dict[str, Any]) -> None:
    """`Raw` sends its bytes or text and nothing else; all arrive, before any end."""
    data = b"HTTP/1.1 200 Fine\r\ncontent-length: 9\r\n\r\nhalf"
    gateway.script(Raw(data if "close" in step else data.decode(), **step))
    ending = pytest.raises(ConnectionResetError) if "how" in step else nullcontext()
    with asked(gateway, GENERATE) as client:
        assert read_until(client, b"half") == data
        if step.get("close", True):
            with ending:
                assert client.recv(1) == b""
    assert gateway.requests[0].outcome == "faulted"


# Connections that break.


@_every_endpoint
@pytest.mark.parametrize("step", [Reset(), Hangup(), Silence(0.01)])
def test_nothing_comes_before_the_end(
    gateway: FaultyGateway, path: str, step: Step
) -> None:
    """`Reset` and `Hangup` end the connection at once, `Silence` after its time."""
    gateway.script(step)
    ending = pytest.raises(ConnectionResetError) if step == Reset() else nullcontext()
    with asked(gateway, path, stream=True) as client, ending:
        assert read_to_end(client) == b""
    assert _outcome(gateway) == (step, "faulted")
    assert ask(gateway, path).status == 200


@pytest.mark.parametrize(
    "step", [Silence(), Stall(1, 120), SlowFirstToken(120), Drip(120)]
)
def test_a_wait_ends_when_the_client_leaves(gateway: FaultyGateway, step: Step) -> None:
    """A step stops waiting when its client has left."""
    gateway.script(step)
    with asked(gateway, GENERATE, stream=True):
        gateway.wait_for(lambda seen: len(seen.requests) == 1)
        assert _outcome(gateway)[1] == "pending"
    gateway.wait_for(lambda seen: seen.requests[0].outcome == "client_left")
    gateway.wait_for(lambda seen: seen.open_connections == 0)


@_every_endpoint
@pytest.mark.parametrize("after", [0, 1, 5])
def test_cut_in_a_stream(gateway: FaultyGateway, path: str, after: int) -> None:
    """`Cut` sends `after` events with content and leaves the body open."""
    gateway.script(Cut(after))
    with asked(gateway, path, stream=True) as client:
        response = read_to_end(client)
    assert len(_texts(response)) == after
    assert not response.endswith(b"0\r\n\r\n")
    assert _outcome(gateway) == (Cut(after), "faulted")


@_every_endpoint
def test_cut_with_a_reset(gateway: FaultyGateway, path: str) -> None:
    """With `how="rst"` the reset comes after the events, not in place of them."""
    gateway.script(Cut(2, how="rst"))
    with asked(gateway, path, stream=True) as client:
        received = read_until(client, b"from")
        with pytest.raises(ConnectionResetError):
            received += read_to_end(client)
    assert _texts(received) == ["Hello", " from"]


@_every_endpoint
def test_half_a_whole_answer(gateway: FaultyGateway, path: str) -> None:
    """Without streaming half of the body comes: as if it were all, or cut."""
    gateway.script(Truncate(1), MalformedEvent(1), Cut(1))
    for _ in range(2):
        reply = ask(gateway, path)
        assert reply.status == 200
        with pytest.raises(json.JSONDecodeError):
            json.loads(reply.body)
    with pytest.raises(http.client.IncompleteRead) as raised:
        ask(gateway, path)
    assert abs(len(raised.value.partial) - (raised.value.expected or 0)) <= 1


# Streams that are garbled.


@_every_endpoint
@pytest.mark.parametrize("after", [0, 2, 5])
def test_truncate_in_a_stream(gateway: FaultyGateway, path: str, after: int) -> None:
    """`Truncate` ends the body as HTTP wants it, without any mark of the end."""
    gateway.script(Truncate(after))
    reply = ask(gateway, path, stream=True)
    assert _healthy(path).body.startswith(reply.body)
    assert len([event for event in reply.events if _text(event)]) == after
    for mark in (b'"finish_reason":"stop"', b'"end"', b"[DONE]", b"event: end"):
        assert mark not in reply.body
    assert _outcome(gateway) == (Truncate(after), "faulted")


@_every_endpoint
@pytest.mark.parametrize("at", [1, 5])
def test_a_malformed_event(gateway: FaultyGateway, path: str, at: int) -> None:
    """Event number `at` is not JSON, and every other byte is as it should be."""
    gateway.script(MalformedEvent(at))
    garbled = ask(gateway, path, stream=True).body.split(b"\n\n")
    pairs = zip(garbled, _healthy(path).body.split(b"\n\n"), strict=True)
    ((bad, good),) = [(one, other) for one, other in pairs if one != other]
    assert {1: b"Hello", 5: b" upstream"}[at] in good
    with pytest.raises(json.JSONDecodeError):
        json.loads(bad.removeprefix(b"data: "))


@_every_endpoint
def test_missing_done(gateway: FaultyGateway, path: str) -> None:
    """Only the last frame is missing."""
    gateway.script(MissingDone())
    reply = ask(gateway, path, stream=True)
    done = b"data: [DONE]\n\n"
    missing = b"event: end\ndata: Stream closed\n\n" if path == GENERATE else done
    assert reply.body + missing == _healthy(path).body


# Whole answers that are slow or cut into pieces.


@_every_endpoint
@_streaming
@pytest.mark.parametrize(
    "step", [SlowFirstToken(0.01), Stall(3, 0.01), Stall(0, 0), Drip(), Drip(0.001, 99)]
)
def test_slow_but_whole(
    gateway: FaultyGateway, path: str, stream: bool, step: Step
) -> None:
    """However it is delayed or cut up, every byte of a healthy answer comes."""
    gateway.script(step)
    assert ask(gateway, path, stream=stream) == _healthy(path, stream=stream)
    assert _outcome(gateway) == (step, "sent")


@_every_endpoint
def test_what_comes_before_a_wait(gateway: FaultyGateway, path: str) -> None:
    """Headers come before a slow first token, `after` events before a stall.

    A drip is written in drops.
    """
    gateway.script(SlowFirstToken(120), Stall(2, 120), Drip(120, size=200))
    with asked(gateway, path, stream=True) as client:
        start = read_until(client, b"\r\n\r\n")
        _assert_nothing_comes(client)
    head, _, body = start.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body == (b"d\r\nretry: 3000\n\n\r\n" if path == GENERATE else b"")
    with asked(gateway, path, stream=True) as client:
        response = read_until(client, rb" from[^\n]*\n\n\r\n")
        _assert_nothing_comes(client)
    assert _texts(response) == ["Hello", " from"]
    with asked(gateway, path, stream=True) as client:
        assert len(client.recv(65536)) == 200
        _assert_nothing_comes(client)


def _assert_nothing_comes(client: socket.socket) -> None:
    client.settimeout(0.02)
    with pytest.raises(TimeoutError):
        client.recv(1)


@_every_endpoint
@_streaming
def test_split_characters(gateway: FaultyGateway, path: str, stream: bool) -> None:
    """Every character of several bytes is split between two chunks."""
    text = "ü日🦊"
    gateway.script(SplitCharacter(text))
    with asked(gateway, path, stream=stream) as client:
        chunks = chunks_of(read_until(client, b"\r\n0\r\n\r\n"))
    whole = b"".join(chunks)
    assert text.encode() in whole
    torn = [chunk for chunk in chunks if chunk[-1:] >= b"\xc0"]
    assert len(torn) == len(text) * whole.count(text.encode())


# Steps that do not fit.


class _NotAnswering(Step):
    """A step that does not say what to deliver."""


@pytest.mark.parametrize(
    ("step", "stream", "why"),
    [
        (SplitCharacter("plain"), False, "no character of several bytes"),
        (MissingDone(), False, "only a stream has a last frame"),
        (Cut(6), True, "5 events to count"),
        (MalformedEvent(6), True, "5 events to count"),
        (ErrorEvent("no", after=6), True, "5 events to count"),
        (_NotAnswering(), False, "does not say how to answer request 1"),
    ],
)
def test_a_step_that_does_not_fit(
    gateway: FaultyGateway, step: Step, stream: bool, why: str
) -> None:
    """Such a step is a 500 and an error of `stop`, never an ordinary answer."""
    gateway.script(step)
    reply = ask(gateway, GENERATE, stream=stream)
    assert (reply.status, why in reply.body.decode()) == (500, True)
    with pytest.RaisesGroup(pytest.RaisesExc((ValueError, TypeError), match=why)):
        gateway.stop()


@pytest.mark.parametrize(
    ("kind", "given", "named"),
    [
        (Status, {"code": 99}, "99"),
        (Status, {"code": 600}, "600"),
        (HtmlPage, {"status": 100}, "100"),
        (Silence, {"seconds": -0.1}, "-0.1"),
        (SlowFirstToken, {"seconds": float("nan")}, "nan"),
        (Stall, {"after": 0, "seconds": float("inf")}, "inf"),
        (Cut, {"after": -1}, "-1"),
        (Cut, {"after": 1, "how": "bang"}, "bang"),
        (MalformedEvent, {"at": 0}, "0"),
        (Drip, {"size": 0}, "0"),
        (Status, {"code": 429, "headers": {"retry-after": 1}}, "'retry-after', 1"),
        (Body, {"headers": [("x", "a\nb")]}, "one line"),
        (Body, {"headers": [("x", "\u0100")]}, "Latin-1"),
        (Body, {"headers": "ab"}, "'a',"),
    ],
)
def test_a_step_that_cannot_be_carried_out(
    kind: type[Step], given: dict[str, Any], named: str
) -> None:
    """It is refused where it is written, with the value that is wrong."""
    with pytest.raises(ValueError, match=named):
        kind(**given)


@pytest.mark.parametrize("step", [Reset, "reset", 503, None])
def test_a_script_takes_steps_only(gateway: FaultyGateway, step: object) -> None:
    """A class in place of its instance, or anything else, is refused at once."""
    for put in (gateway.script, gateway.always):
        with pytest.raises(TypeError, match=r"step|instances"):
            put(step)  # type: ignore[arg-type]
