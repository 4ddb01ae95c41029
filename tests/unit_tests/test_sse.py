"""The events that are in the bytes, however the network cuts them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_retryrouter._http import EventTooLargeError, ServerSentEvent, SSEParser

CAPTURES = Path(__file__).parent / "data" / "gptrouter_captures"


def body_of(capture: Path) -> bytes:
    """The body of the response in a capture of the real gateway."""
    _, response = capture.read_bytes().split(b"=== response ===\n")
    _, _, body = response.replace(b"\r\n", b"\n").partition(b"\n\n")
    # The files end with a single line feed, where the streams had a blank line.
    return body + b"\n"


STREAMS = {
    capture.stem: body_of(capture)
    for capture in sorted(CAPTURES.glob("*.http"))
    if b"text/event-stream" in capture.read_bytes()
}


def feed(chunks: Iterable[bytes], **limits: int) -> list[ServerSentEvent]:
    """The events of a stream that comes in these pieces."""
    parser = SSEParser(**limits)
    return [event for chunk in chunks for event in parser.feed(chunk)]


def data_of(*chunks: bytes) -> list[bytes]:
    """The data of each event."""
    return [event.data for event in feed(chunks)]


# --- what the real gateway sent -----------------------------------------------------


@pytest.mark.parametrize("name", STREAMS)
def test_a_capture_in_one_piece(name: str) -> None:
    """The real gateway's messages are JSON, and only its closing frame is named."""
    events = feed([STREAMS[name]])
    messages = [event for event in events if event.kind == b"message"]
    named = {(event.kind, event.data) for event in events} - set(messages)
    assert messages
    assert all("event" in json.loads(event.data) for event in messages)
    assert named <= {(b"end", b"Stream closed")}
    frames = [frame for frame in STREAMS[name].split(b"\n\n") if b"data:" in frame]
    assert len(events) == len(frames)
    if b'"event":"end"' in STREAMS[name] or b'"event":"error"' in STREAMS[name]:
        assert named


@pytest.mark.parametrize("name", STREAMS)
def test_a_capture_with_other_line_ends(name: str) -> None:
    """A proxy that turns the line ends into CRLF changes nothing."""
    body = STREAMS[name].replace(b"\n", b"\r\n")
    whole = feed([STREAMS[name]])
    assert feed([body]) == whole
    assert feed(body[i : i + 1] for i in range(len(body))) == whole


def test_an_event_comes_with_its_blank_line() -> None:
    """An event is handed out by the byte that completes it, and not later."""
    body = STREAMS["02_stream_ok"]
    parser, completed = SSEParser(), []
    for position in range(len(body)):
        completed += [position for _ in parser.feed(body[position : position + 1])]
    blank_lines = [
        i for i in range(len(body)) if body[: i + 1].endswith(b"\n\n") and i > 20
    ]
    assert completed == blank_lines


# --- lines --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\r"]
)
def test_only_line_feeds_end_a_line(mark: str) -> None:
    """What Unicode or `str.splitlines` calls a line end stays in the data."""
    text = f"Hel{mark}lo"
    assert data_of(f"data: {text}\n\n".encode()) == [text.encode()]


@pytest.mark.parametrize(
    "data", [b"\xff\xfe", b"\xe2\x80", b"Hel\x00lo", "日本語".encode()]
)
def test_nothing_is_decoded(data: bytes) -> None:
    """Bytes come out as they came in: UTF-8 is the JSON reader's business."""
    assert data_of(b"data: " + data + b"\n\n") == [data]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: one\n\n", [b"one"]),
        (b"data:one\n\n", [b"one"]),
        (b"data:  one\n\n", [b" one"]),
        (b"data: one \n\n", [b"one "]),
        (b"data: a: b\n\n", [b"a: b"]),
        (b"data: one\r\n\r\n", [b"one"]),
        (b"data: one\r\n\n", [b"one"]),
        (b"data: one\n\r\n", [b"one"]),
        (b"data: one\n\n\n\n\ndata: two\n\n", [b"one", b"two"]),
        (b"\n\ndata: one\n\n", [b"one"]),
        # Several lines are one event, joined by line feeds.
        (b"data: one\ndata: two\n\n", [b"one\ntwo"]),
        (b"data: one\r\ndata: two\r\n\r\n", [b"one\ntwo"]),
        (b"data: one\ndata:\ndata: two\n\n", [b"one\n\ntwo"]),
        (b"data: one\nid: 7\ndata: two\n\n", [b"one\ntwo"]),
        # Data may be empty; an event without any is none.
        (b"data:\n\n", [b""]),
        (b"data\n\n", [b""]),
        (b"data: \n\n", [b""]),
        (b"data\ndata\n\n", [b"\n"]),
        (b"event: update\n\n", []),
        (b"id: 7\n\n", []),
        (b"retry: 3000\n\n", []),
        (b": a comment\n\n", []),
        (b":\n\n", []),
        (b"nonsense\n\n", []),
        (b"Data: one\n\n", []),
        # What no server writes is damage, and left to whoever reads the data.
        (b" data: one\n\n", [b" data: one"]),
        (b"<hr>data: one\n\n", [b"<hr>data: one"]),
        (b"data: one\n<hr>\n\n", [b"one\n<hr>"]),
        (b"\xffdata: one\n\n", [b"\xffdata: one"]),
        (b":\xffdata: one\n\n", [b":\xffdata: one"]),
        (b"id:\xffdata: one\n\n", [b"id:\xffdata: one"]),
        (b": hidden\ndata: one\n: more\n\n", [b"one"]),
        # What no blank line completed is not an event.
        (b"data: one", []),
        (b"data: one\n", []),
        (b"data: one\r\n", []),
        (b"data: one\n\ndata: two\n", [b"one"]),
        (b"", []),
        # A byte order mark at the very beginning is none of the data.
        (b"\xef\xbb\xbfdata: one\n\n", [b"one"]),
        (b"\xef\xbb\xbf\n\ndata: one\n\n", [b"one"]),
        (b"data: \xef\xbb\xbfone\n\n", [b"\xef\xbb\xbfone"]),
        (b"\n\xef\xbb\xbfdata: one\n\n", [b"\xef\xbb\xbfdata: one"]),
    ],
)
def test_a_stream(stream: bytes, events: list[bytes]) -> None:
    """The rules of the standard, line by line, in one piece and byte by byte."""
    assert data_of(stream) == events
    assert data_of(*(stream[i : i + 1] for i in range(len(stream)))) == events


@pytest.mark.parametrize(
    ("stream", "kinds"),
    [
        (b"data: 1\n\n", [b"message"]),
        (b"event: end\ndata: 1\n\n", [b"end"]),
        (b"data: 1\nevent: end\n\n", [b"end"]),
        (b"event: a\nevent: b\ndata: 1\n\n", [b"b"]),
        (b"event:\ndata: 1\n\n", [b"message"]),
        (b"event: end\ndata: 1\n\ndata: 2\n\n", [b"end", b"message"]),
        (b"event: end\n\ndata: 2\n\n", [b"message"]),
    ],
)
def test_the_kind_of_an_event(stream: bytes, kinds: list[bytes]) -> None:
    """An event is of the kind that it names last, or else a `message`."""
    assert [event.kind for event in feed([stream])] == kinds


# --- size ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stream",
    [
        b"data: " + b"x" * 100 + b"\n\n",
        b"data: " + b"x" * 100,
        b"data: xxxxx\n" * 10 + b"\n",
        b": " + b"x" * 100 + b"\n\n",
        b"x" * 100,
        b"data:\n" * 100,
        b"event: " + b"x" * 100 + b"\n\n",
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_an_event_that_never_ends_is_refused(stream: bytes, size: int) -> None:
    """Memory is bounded, whether one line does not end or the lines do not."""
    chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
    with pytest.raises(EventTooLargeError, match="larger than 64 bytes"):
        feed(chunks, max_event_bytes=64)


@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_the_limit_is_one_of_an_event_and_not_of_a_stream(size: int) -> None:
    """Any number of events may come, each as large as the limit, in whatever pieces."""
    stream = (b"data: " + b"x" * 58 + b"\n\n") * 50 + b": ping\n\n" * 50
    chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert (
        feed(chunks, max_event_bytes=64)
        == [ServerSentEvent(b"message", b"x" * 58)] * 50
    )


def test_an_answer_of_megabytes_is_no_attack() -> None:
    """Without a word about it, an event may have 16 MiB, in small pieces too."""
    large = b"x" * (16 * 1024 * 1024 - len(b"data: "))
    stream = b"data: " + large + b"\n\n"
    chunks = [stream[i : i + 65_536] for i in range(0, len(stream), 65_536)]
    assert [event.data for event in feed(chunks)] == [large]


# --- any stream, any cut ------------------------------------------------------------

LINES = st.sampled_from(
    [
        b"data: {}",
        b"data:",
        b"data",
        b"event: end",
        b"event:",
        b": ping",
        b"retry: 3000",
        b"id",
        b"\xef\xbb\xbf",
        b"",
        b"",
        b"\r",
        "data: a\u2028b\r".encode(),
        ": 日本語".encode(),
        b":\xff",
        b"data: \xff\xfe",
    ]
)
STREAM = st.lists(LINES | st.binary(max_size=20), max_size=30).map(b"\n".join)


@settings(max_examples=500, deadline=None)
@given(STREAM, st.lists(st.integers(0, 400), max_size=30))
def test_any_cut_gives_the_same_events(stream: bytes, cuts: list[int]) -> None:
    """A stream is its bytes: how they are packed says nothing."""
    edges = [0, *sorted(cuts), len(stream)]
    chunks = [stream[a:b] for a, b in pairwise(edges)]
    assert b"".join(chunks) == stream
    assert feed(chunks) == feed([stream])


@settings(deadline=None)
@given(STREAM, st.integers(1, 60), st.integers(1, 20))
def test_any_cut_keeps_the_limit(stream: bytes, limit: int, size: int) -> None:
    """Whether an event is too large does not hang on how it was packed."""

    def final_error(chunks: list[bytes]) -> object:
        try:
            return feed(chunks, max_event_bytes=limit)
        except EventTooLargeError as error:
            return str(error)

    chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert final_error(chunks) == final_error([stream])


@settings(deadline=None)
@given(st.lists(st.text(min_size=1).map(str.encode), max_size=10), st.integers(1, 50))
def test_what_is_written_is_read(texts: list[bytes], size: int) -> None:
    """Every text of a well-formed stream comes out whole, and in order."""
    events = [text.replace(b"\n", b"").replace(b"\r", b"") for text in texts]
    stream = b"".join(b"data: " + event + b"\n\n" for event in events)
    chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert data_of(*chunks) == events
