"""Server-sent events: the rules of the standard, however the network cuts the bytes."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_retryrouter._http import ServerSentEvent, SSEParser, TooLargeError

CAPTURE = Path(__file__).parent / "data" / "gptrouter_captures" / "02_stream_ok.http"
STREAM_OK = CAPTURE.read_bytes().split(b"=== response ===\n")[1].split(b"\n\n", 1)[1]


def feed(chunks: Iterable[bytes], **limits: int) -> list[ServerSentEvent]:
    """The events of a stream that comes in these pieces."""
    parser = SSEParser(**limits)
    return [event for chunk in chunks for event in parser.feed(chunk)]


def data_of(*chunks: bytes) -> list[bytes]:
    """The data of each event."""
    return [event.data for event in feed(chunks)]


def test_an_event_comes_with_its_blank_line() -> None:
    """An event is returned for the byte that completes it, and not later."""
    parser, completed = SSEParser(), []
    for position in range(len(STREAM_OK)):
        piece = STREAM_OK[position : position + 1]
        completed += [position for _ in parser.feed(piece)]
    blank_lines = [
        i for i in range(len(STREAM_OK)) if STREAM_OK[: i + 1].endswith(b"\n\n")
    ]
    assert completed == blank_lines[1:]  # The first has no data.


OTHER_LINE_ENDS = ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c"]
IN_DATA = [
    *(f"Hel{mark}lo".encode() for mark in OTHER_LINE_ENDS),
    *(b"\xff\xfe", b"\xe2\x80", b"Hel\x00lo", "日本語".encode()),
]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        # No other line end of Unicode ends a line, and no byte is decoded.
        *((b"data: " + data + b"\n\n", [data]) for data in IN_DATA),
        (b"data: one\n\n", [b"one"]),
        (b"data:one\n\n", [b"one"]),
        (b"data:  one\n\n", [b" one"]),
        (b"data: one\r\n\r\n", [b"one"]),
        (b"data: one\r\r", [b"one"]),
        (b"data: one\n\ndata: two\r\r", [b"one", b"two"]),
        (b"data: one\rdata: two\r\n\rdata: three\n\r", [b"one\ntwo", b"three"]),
        (b"data: one\n\n\n\n\ndata: two\n\n", [b"one", b"two"]),
        # Several lines are one event, joined by line feeds.
        (b"data: one\ndata: two\n\n", [b"one\ntwo"]),
        (b"data: one\ndata:\ndata: two\n\n", [b"one\n\ntwo"]),
        (b"data: one\nid: 7\ndata: two\n\n", [b"one\ntwo"]),
        # Data may be empty; an event without a data line is left out.
        (b"data:\n\n", [b""]),
        (b"data\ndata\n\n", [b"\n"]),
        (b"event: update\n\n", []),
        (b"retry: 3000\n\n", []),
        (b": a comment\n\n", []),
        (b"nonsense\n\n", []),
        # Damage is left in the data, so that its reader finds it.
        (b" data: one\n\n", [b" data: one"]),
        (b"<hr>data: one\n\n", [b"<hr>data: one"]),
        (b"data: one\n<hr>\n\n", [b"one\n<hr>"]),
        (b"\xffdata: one\n\n", [b"\xffdata: one"]),
        (b":\xffdata: one\n\n", [b":\xffdata: one"]),
        (b": hidden\ndata: one\n: more\n\n", [b"one"]),
        # An event ends with a blank line.
        (b"data: one\n", []),
        (b"data: one\n\ndata: two\n", [b"one"]),
        # A byte order mark at the very beginning is not part of the data.
        (b"\xef\xbb\xbfdata: one\n\n", [b"one"]),
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
        b"data: xxxxx\n" * 10 + b"\n",
        b": " + b"x" * 100 + b"\n\n",
        b"data:\n" * 100,
        b"event: " + b"x" * 100 + b"\n\n",
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_an_event_that_never_ends_is_refused(stream: bytes, size: int) -> None:
    """Memory is bounded, whether one line does not end or the lines do not."""
    chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
    with pytest.raises(TooLargeError, match="larger than 64 bytes"):
        feed(chunks, max_event_bytes=64)


@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_the_limit_is_one_of_an_event_and_not_of_a_stream(size: int) -> None:
    """Any number of events may come, each as large as the limit, in any pieces."""
    stream = (b"data: " + b"x" * 58 + b"\n\n") * 50 + b": ping\n\n" * 50
    chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert (
        feed(chunks, max_event_bytes=64)
        == [ServerSentEvent(b"message", b"x" * 58)] * 50
    )


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
        "data: a\u2028b".encode(),
        ": 日本語".encode(),
        b":\xff",
        b"data: \xff\xfe",
    ]
)
ENDED = st.tuples(
    LINES | st.binary(max_size=20), st.sampled_from([b"\n", b"\r\n", b"\r"])
)
STREAM = st.lists(ENDED.map(b"".join), max_size=30).map(b"".join)


@settings(max_examples=500, deadline=None)
@given(STREAM, st.lists(st.integers(0, 400), max_size=30))
def test_any_cut_gives_the_same_events(stream: bytes, cuts: list[int]) -> None:
    """How a stream is cut into packets does not change its events."""
    edges = [0, *sorted(cuts), len(stream)]
    chunks = [stream[a:b] for a, b in pairwise(edges)]
    assert b"".join(chunks) == stream
    assert feed(chunks) == feed([stream])
