"""Recorded streams, and the ways in which a network or a proxy ends one too early."""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from langchain_retryrouter.testing import Answer, FaultyGateway, Raw, ToolCall

CAPTURES: Final = Path(__file__).parents[1] / "unit_tests/data/gptrouter_captures"
Protocol: TypeAlias = Literal["gptrouter", "completions", "chat"]

_OK: Final = b"HTTP/1.1 200 OK\r\n"
_EVENTS: Final = _OK + b"content-type: text/event-stream; charset=utf-8\r\n"
_CHUNKED: Final = b"transfer-encoding: chunked\r\n\r\n"
_LAST_CHUNK: Final = b"0\r\n\r\n"
_PAGE: Final = b"""<html>\r
<head><title>502 Bad Gateway</title></head>\r
<body bgcolor="white">\r
<center><h1>502 Bad Gateway</h1></center>\r
</body>\r
</html>\r
"""


class Told(NamedTuple):
    """What a stream has said: text, and the name and arguments of a call."""

    text: str
    call: str


@dataclass(frozen=True)
class Recording:
    """One stream, read by a reader that knows no more than recordings need."""

    name: str
    protocol: Protocol
    body: bytes

    @cached_property
    def frames(self) -> tuple[bytes, ...]:
        """The body's frames, each with the blank line behind it."""
        return tuple(f"{f}\n\n".encode() for f in self.body.decode().split("\n\n") if f)

    @cached_property
    def whole(self) -> bytes:
        """The response, each frame in a chunk of its own, as the servers send it."""
        return _EVENTS + _CHUNKED + b"".join(map(_chunk, self.frames)) + _LAST_CHUNK

    @property
    def all_told(self) -> Told:
        """What the whole stream says."""
        return self.told_by(len(self.body))

    @cached_property
    def finish_reason(self) -> str | None:
        """The first one; None where the stream itself is broken."""
        return next(filter(None, (said.finish for said in self._said)), None)

    @cached_property
    def ends_at(self) -> int | None:
        """Bytes of the body after which the protocol has said that it is whole."""
        return next((said.until for said in self._said if said.is_end), None)

    def told_by(self, size: int) -> Told:
        """What the first `size` bytes of the body say."""
        said = [one for one in self._said if one.until <= size]
        return Told("".join(one.text for one in said), "".join(o.call for o in said))

    def in_body(self, size: int) -> int:
        """How many bytes of the body came in whole frames of a cut response."""
        at, inside = len(_EVENTS + _CHUNKED), 0
        for frame in self.frames:
            at += len(_chunk(frame))
            if at - len(b"\r\n") > size:
                break
            inside += len(frame)
        return inside

    def in_response(self, size: int) -> int:
        """Where byte `size` of the body stands in the response."""
        at, left = len(_EVENTS + _CHUNKED), size
        for frame in self.frames:
            framing = len(_chunk(frame)) - len(frame)
            if left <= len(frame):
                return at + framing - len(b"\r\n") + left
            at, left = at + len(frame) + framing, left - len(frame)
        return at

    @cached_property
    def _said(self) -> list[_Said]:
        said, until = [], 0
        is_finished = False
        for frame in self.frames:
            until += len(frame)
            one = _read(frame, until)
            is_finished = is_finished or one.finish is not None
            is_end = one.is_end and is_finished
            said.append(one._replace(is_end=is_end))
        return said


class _Said(NamedTuple):
    until: int
    text: str = ""
    call: str = ""
    finish: str | None = None
    is_end: bool = False


def _read(frame: bytes, until: int) -> _Said:
    lines = frame.decode().split("\n")
    data = next((line[6:] for line in lines if line.startswith("data: {")), "{}")
    event = json.loads(data)
    if "choices" not in event:
        update = event["data"] if event.get("event") == "update" else {}
        return _Said(until, *_words(update), is_end=event.get("event") == "end")
    choice: dict[str, Any] = next(iter(event["choices"]), {})
    words = _words({**choice, **choice.get("delta", {})})
    return _Said(until, *words, is_end=words[2] is not None)


def _words(data: Mapping[str, Any]) -> tuple[str, str, str | None]:
    text = data.get("text") or data.get("content") or ""
    parts = (
        (call["function"].get("name"), call["function"].get("arguments"))
        for call in data.get("tool_calls") or ()
    )
    call = "".join(part for pair in parts for part in pair if part)
    return text, call, data.get("finish_reason")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


# Where they come from.


def captured() -> list[Recording]:
    """All streams of the real gateway."""
    found = []
    for path in sorted(CAPTURES.glob("*.http")):
        recorded = path.read_bytes().removesuffix(b"\n")
        _, _, response = recorded.partition(b"\n\n=== response ===\n")
        head, _, body = response.partition(b"\n\n")
        if b"text/event-stream" in head:
            found.append(Recording(path.stem, "gptrouter", body + b"\n\n"))
    return found


def recorded(gateway: FaultyGateway) -> list[Recording]:
    """OpenAI's streams, as `gateway` sends them."""
    text = Answer('Grüße, "日本" and\n🦊')
    call = Answer(
        "Let me see.", tool_calls=(ToolCall("weather", ('{"city": ', '"Łódź"}')),)
    )
    prompt = {"prompt": "hi", "stream": True}
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    messages = {"messages": [{"role": "user", "content": "hi"}], **usage}
    asked: list[tuple[str, Protocol, Answer, str, dict[str, Any]]] = [
        ("completions", "completions", text, "/v1/completions", prompt),
        ("chat", "chat", text, "/v1/chat/completions", messages),
        ("chat with a call", "chat", call, "/v1/chat/completions", messages),
    ]
    return [
        Recording(name, protocol, _sent(gateway, answer, path, payload))
        for name, protocol, answer, path, payload in asked
    ]


def whole_bodies(gateway: FaultyGateway) -> dict[str, bytes]:
    """The JSON of unstreamed answers by their paths."""
    messages = {"messages": [{"role": "user", "content": "hi"}]}
    model = {"modelName": "gpt-4", "providerName": "p", "order": 1}
    texts = {"input": ["hi"]}
    asked: dict[str, dict[str, Any]] = {
        "/api/v1/generate": {"data": [{**model, "promptParams": messages}]},
        "/api/v1/generate/embeddings": {"data": [{**model, "promptParams": texts}]},
        "/v1/completions": {"prompt": "hi"},
        "/v1/chat/completions": messages,
    }
    return {
        path: _sent(gateway, Answer(), path, payload) for path, payload in asked.items()
    }


def _sent(
    gateway: FaultyGateway, answer: Answer, path: str, payload: dict[str, Any]
) -> bytes:
    gateway.script(answer)
    connection = http.client.HTTPConnection(gateway.url.removeprefix("http://"))
    try:
        headers = {"content-type": "application/json", "connection": "close"}
        body = json.dumps({"model": "m", **payload})
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return response.read()
    finally:
        connection.close()


# How they end.


@dataclass(frozen=True)
class Way:
    """How a stream is broken at one byte.

    Attributes:
        name: As a reader would say it.
        step: What the gateway does instead of sending the whole recording.
        is_of_response: Whether the place counts the response's bytes, its head and its
            framing included, or only those of the body.
        keeps_order: Whether all that came before the break has to be handed over.
        is_damage: Whether the rest still comes, so that the answer may be whole where
            nothing that counts was hit.
    """

    name: str
    step: Callable[[Recording, int], Raw]
    is_of_response: bool = False
    keeps_order: bool = True
    is_damage: bool = False

    def places(self, recording: Recording) -> range:
        """Every byte where this can happen."""
        return range(len(recording.whole if self.is_of_response else recording.body))

    def told(self, recording: Recording, place: int) -> Told:
        """What had been said in whole before."""
        return recording.told_by(self._in_body(recording, place))

    def is_behind_the_end(self, recording: Recording, place: int) -> bool:
        """Whether the protocol had said before that the answer is whole."""
        ends_at = recording.ends_at
        return ends_at is not None and self._in_body(recording, place) >= ends_at

    def _in_body(self, recording: Recording, place: int) -> int:
        return recording.in_body(place) if self.is_of_response else place


def _noise(recording: Recording, place: int) -> bytes:
    seed = f"{recording.name} {place}".encode()
    return hashlib.blake2b(seed, digest_size=16).digest()


def _framed(body: bytes, end: bytes = _LAST_CHUNK) -> bytes:
    return _EVENTS + _CHUNKED + _chunk(body) + end


def _until_closed(body: bytes) -> bytes:
    return _EVENTS + b"connection: close\r\n\r\n" + body


def _noisy(recording: Recording, place: int) -> Raw:
    body = recording.body
    noise = _noise(recording, place)
    return Raw(_framed(body[:place] + noise + body[place:]), close=False)


END_OF_BODY: Final = Way(
    "a clean end of the chunked body",
    lambda recording, place: Raw(_framed(recording.body[:place]), close=False),
)
LOST_CONNECTION: Final = Way(
    "a connection closed (FIN)",
    lambda recording, place: Raw(recording.whole[:place]),
    is_of_response=True,
)
WAYS: Final = (
    END_OF_BODY,
    LOST_CONNECTION,
    Way(
        "a close that is the only end of the body",
        lambda recording, place: Raw(_until_closed(recording.body[:place])),
    ),
    Way(
        "a reset (RST)",
        lambda recording, place: Raw(recording.whole[:place], how="rst"),
        is_of_response=True,
        keeps_order=False,  # The kernel may throw away what was not read yet.
    ),
    Way(
        "a proxy's page for the rest",
        lambda recording, place: Raw(
            _framed(recording.body[:place] + _PAGE), close=False
        ),
    ),
    Way("16 random bytes in the middle", _noisy, is_damage=True),
)
# Only a reader of its own can tell; the openai SDK's leaves such lines out.
PAGE_BETWEEN: Final = Way(
    "a proxy's page in the middle",
    lambda recording, place: Raw(
        _framed(recording.body[:place] + _PAGE + recording.body[place:]), close=False
    ),
    is_damage=True,
)
SILENCE: Final = Way(
    "silence",
    lambda recording, place: Raw(_framed(recording.body[:place], b""), close=False),
    keeps_order=False,  # A busy machine may lose patience first.
)


def cut_json(body: bytes, place: int) -> Iterator[Raw]:
    """A JSON body that ends at `place`, in each way that its framing allows."""
    head, cut = _OK + b"content-type: application/json\r\n", body[:place]
    length = b"content-length: %d\r\n\r\n"
    yield Raw(head + length % len(body) + cut)
    yield Raw(head + length % len(body) + cut, how="rst")
    yield Raw(head + length % place + cut, close=False)
    yield Raw(head + _CHUNKED + _chunk(cut))
    ended = head + _CHUNKED + _chunk(cut) + _LAST_CHUNK
    yield Raw(ended, close=False)
    yield Raw(head + b"connection: close\r\n\r\n" + cut)


def whole_json(body: bytes) -> Raw:
    """The same with nothing cut off."""
    head = _OK + b"content-type: application/json\r\n"
    return Raw(head + b"content-length: %d\r\n\r\n" % len(body) + body)
