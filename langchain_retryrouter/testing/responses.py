"""What a provider says, and the bytes in which HTTP carries it: pure functions.

The first half is content (`ResolvedAnswer`), without a protocol. The second half is
framing: JSON, server-sent events, heads and chunks. `gptrouter_api.py` and
`openai_api.py` make the second out of the first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from itertools import chain
from typing import Any, Literal, NamedTuple, TypeAlias

STUB_TEXT = "Hello from the stub upstream"
"""The text of a healthy answer unless the test sets another one."""

Text: TypeAlias = str | tuple[str, ...]
"""A text, streamed word by word; or its pieces, streamed one event each."""

CallPlace: TypeAlias = Literal["dropped", "tool_calls", "function_call"]
"""Where GPTRouter puts tool calls when nothing is streamed.

The public server drops them, and where the hosted one puts them is not known.
"""

Outcome: TypeAlias = Literal["pending", "sent", "faulted", "client_left"]

_WORD = re.compile(r"\s*\S+|\s+\Z")


def split_words(text: Text) -> tuple[str, ...]:
    """The pieces of `text`: its words, each with the space before it, if it has none.

    A piece counts as one token and is streamed as one event.
    """
    return tuple(_WORD.findall(text)) if isinstance(text, str) else text


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens that a call cost."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens

    def as_dict(self) -> dict[str, int]:
        """The usage as it stands in JSON."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
        }


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A function call in the form that models used before there were tools."""

    name: str
    arguments: Text = "{}"
    """JSON. A tuple is streamed one piece an event, a string in one event."""

    @property
    def argument_pieces(self) -> tuple[str, ...]:
        """The arguments as a stream carries them."""
        given = self.arguments
        return (given,) if isinstance(given, str) else given

    def as_dict(self) -> dict[str, str]:
        """Name and arguments as they stand in JSON."""
        return {"name": self.name, "arguments": "".join(self.argument_pieces)}


@dataclass(frozen=True, slots=True)
class ToolCall(FunctionCall):
    """A tool call."""

    id: str = "call_0"

    def as_tool_dict(self) -> dict[str, Any]:
        """The call as it stands in `tool_calls`."""
        return {"id": self.id, "type": "function", "function": self.as_dict()}


@dataclass(frozen=True, slots=True)
class Delta:
    """The content of one event of a stream."""

    choice: int
    text: str = ""
    offset: int = 0
    """Where the text begins in its choice, in characters."""
    tool_call: Mapping[str, Any] | None = None
    """As OpenAI puts it on the wire; GPTRouter passes it on unchanged."""
    function_call: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ResolvedAnswer:
    """A healthy answer with nothing left open: the content of each of its choices."""

    text: Text = ""
    tool_calls: tuple[ToolCall, ...] = ()
    function_call: FunctionCall | None = None
    finish_reason: str | None = "stop"
    """None when the provider leaves it out."""
    choices: int = 1
    usage: Usage | None = None
    """None when the provider leaves it out."""
    model: str | None = None
    """The model that answered; None stands for the one that was asked."""
    id: str | None = None
    """None stands for one made from the number of the request."""
    unstreamed_calls: CallPlace = "dropped"
    citations: tuple[str, ...] = ()
    choice_citations: tuple[Any, ...] = ()

    @property
    def whole_text(self) -> str:
        """The text in one string."""
        return "".join(self.text)

    def deltas(self) -> Iterator[Delta]:
        """The events of all choices, which take turns as providers send them."""
        streams = [list(self._deltas(index)) for index in range(self.choices)]
        return chain.from_iterable(zip(*streams, strict=True))

    def _deltas(self, choice: int) -> Iterator[Delta]:
        offset = 0
        for piece in split_words(self.text):
            yield Delta(choice, piece, offset)
            offset += len(piece)
        for index, call in enumerate(self.tool_calls):
            opening = {"name": call.name, "arguments": ""}
            first = {"id": call.id, "type": "function", "function": opening}
            yield Delta(choice, tool_call={"index": index, **first})
            for piece in call.argument_pieces:
                rest = {"index": index, "function": {"arguments": piece}}
                yield Delta(choice, tool_call=rest)
        if self.function_call is not None:
            opening = {"name": self.function_call.name, "arguments": ""}
            yield Delta(choice, function_call=opening)
            for piece in self.function_call.argument_pieces:
                yield Delta(choice, function_call={"arguments": piece})


# Framing.

Headers: TypeAlias = tuple[tuple[str, str], ...]

JSON_HEADERS: Headers = (("content-type", "application/json; charset=utf-8"),)
LAST_CHUNK = b"0\r\n\r\n"
WITHOUT_BODY = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_IDLE_SECONDS = 72  # GPTRouter's own, as recorded
_FIRST_BYTE_OF_SEVERAL = 0b1100_0000

_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class BodyResponse:
    """A response whose body is sent at once."""

    status: int
    headers: Headers
    body: bytes

    def head(self, *, close: bool) -> bytes:
        """Status line and headers, `content-length` included where there is a body."""
        names = {name.lower() for name, _ in self.headers}
        headers = self.headers
        if "content-length" not in names and self.status not in WITHOUT_BODY:
            headers = (*headers, ("content-length", str(len(self.body))))
        return _head(self.status, headers, close=close)


@dataclass(frozen=True, slots=True)
class StreamResponse:
    """A response in server-sent events, each sent as one chunk."""

    headers: Headers
    events: tuple[bytes, ...]
    """The events with content: what `after=N` counts."""
    preamble: bytes = b""
    """Sent with the headers, before the model is asked."""
    opening: tuple[bytes, ...] = ()
    """Events without content before the first one with content."""
    closing: tuple[bytes, ...] = ()
    """Finish reasons, usage, end marks."""
    last_frame: bytes = b""
    """OpenAI's `[DONE]`, or GPTRouter's `event: end`."""


Response: TypeAlias = BodyResponse | StreamResponse


class Ending(Enum):
    """What happens to the connection after the response."""

    KEEP = "keep"
    FIN = "fin"
    RST = "rst"


@dataclass(frozen=True, slots=True)
class Pause:
    """A wait between two writes; zero seconds let the event loop turn once."""

    seconds: float


class Delivery(NamedTuple):
    """What the server does with one request."""

    actions: tuple[bytes | Pause, ...] = ()
    """Each `bytes` is one write."""
    ending: Ending = Ending.KEEP
    outcome: Outcome = "sent"


def reason(status: int) -> str:
    """The reason phrase of a status, also of one that no standard names."""
    return _REASONS.get(status, f"Status {status}")


def compact_json(value: Any) -> bytes:
    """JSON without white space, its text as raw UTF-8, as the real servers send it."""
    return _compact(value).encode()


def sse(value: Any) -> bytes:
    """One server-sent event with JSON data."""
    return b"data: %b\n\n" % compact_json(value)


def chunked_head(status: int, headers: Headers, *, close: bool) -> bytes:
    """The head of a response whose body is sent in chunks."""
    return _head(status, (*headers, ("transfer-encoding", "chunked")), close=close)


def _head(status: int, headers: Iterable[tuple[str, str]], *, close: bool) -> bytes:
    lines = [f"HTTP/1.1 {status} {reason(status)}"]
    lines += [
        f"{name}: {value}" for name, value in headers if name.lower() != "connection"
    ]
    if close:
        lines.append("connection: close")
    else:
        lines.append(f"connection: keep-alive\r\nkeep-alive: timeout={_IDLE_SECONDS}")
    return "\r\n".join([*lines, "\r\n"]).encode("latin-1")


def chunk(data: bytes) -> bytes:
    """One chunk of a body; nothing for no data, since an empty chunk ends the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def split_inside_characters(data: bytes) -> Iterator[bytes]:
    """`data`, cut after the first byte of every character of several bytes."""
    start = 0
    for position, byte in enumerate(data):
        if byte >= _FIRST_BYTE_OF_SEVERAL:
            yield data[start : position + 1]
            start = position + 1
    yield data[start:]
