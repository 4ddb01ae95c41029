"""The steps of a script: healthy answers and faults, and what each writes to the wire.

Seconds are floats; every wait ends early when the client leaves or the gateway stops.
`after=N` counts events with content: neither the opening event without text nor the
frames of the protocol. A response without streaming has no events; there a fault in the
middle comes after the first half of the body. A step that does not fit its response is
an error: the client gets a 500, and `FaultyGateway.stop` raises it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, fields, replace
from http import HTTPStatus
from types import EllipsisType
from typing import Any, Final, Literal, NoReturn, TypeAlias, cast

from langchain_retryrouter.testing import _exchange as wire

HeaderFields: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]
"""Header fields; pairs where one is repeated."""

ScriptedStep: TypeAlias = wire.Step | Callable[[wire.RecordedRequest], wire.Step]
"""A step, or a function that picks one when the request is known."""


@dataclass(frozen=True, slots=True)
class Answer(wire.Step):
    """A healthy answer. With nothing given, it is the gateway's own one.

    The usual value is made up for `...`; None would leave it out of the response.
    """

    text: wire.Text | Callable[[wire.RecordedRequest], str] | None = None
    """Sent word for word (`stop` does not cut it), in as many choices as `n` asks."""
    finish_reason: str | EllipsisType | None = ...
    usage: wire.Usage | EllipsisType | None = ...
    """Counted if it is not given: one token a word."""
    tool_calls: tuple[wire.ToolCall, ...] = ()
    function_call: wire.FunctionCall | None = None
    model: str | None = None
    id: str | None = None
    unstreamed_calls: wire.CallPlace = "dropped"
    """Where GPTRouter puts the tool calls when nothing is streamed."""
    citations: tuple[str, ...] = ()
    """In GPTRouter's response without streaming; a stream's place is not known."""
    choice_citations: tuple[Any, ...] = ()
    """In each choice of GPTRouter's response: texts or objects."""

    def __post_init__(self) -> None:
        calls = len(self.tool_calls) + (self.function_call is not None)
        if self.unstreamed_calls == "function_call" and calls > 1:
            msg = f"{calls} calls do not fit into one function_call: {self}"
            raise ValueError(msg)

    def deliver(self, exchange: wire.Exchange) -> wire.Delivery:
        if self.has_content:
            answer = self.resolve(exchange.seen_by_model())
            return exchange.send(exchange.healthy(answer))
        if self is HEALTHY:  # by far the most frequent step
            return exchange.send(exchange.healthy())
        values = {field: getattr(self, field.name) for field in fields(self)}
        given = {f.name: value for f, value in values.items() if value != f.default}
        answer = replace(exchange.own_answer(), **given)
        return exchange.send(exchange.healthy(answer))

    @property
    def has_content(self) -> bool:
        """Whether this answer says something itself."""
        return self.text is not None or bool(self.tool_calls or self.function_call)

    def resolve(self, request: wire.RecordedRequest) -> wire.ResolvedAnswer:
        """This answer to `request`, with all that is not given made up."""
        finish_reason = self.finish_reason
        if finish_reason is ...:
            finish_reason = "tool_calls" if self.tool_calls else "stop"
            if self.function_call:
                finish_reason = "function_call"
        text = self.text(request) if callable(self.text) else self.text or ""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        found: dict[str, Any] = {"text": text, "finish_reason": finish_reason}
        found["choices"] = request.count("n") * len(request.prompts)
        if self.usage is ...:
            found["usage"] = _count_usage(request, text)
        return wire.ResolvedAnswer(**{**given, **found})


HEALTHY: Final = Answer()
"""What answers where no script says anything."""


# The stub upstream of the recordings counted 10 tokens on top of the prompt's words.
# For a stream GPTRouter does not pass that count on: it makes an estimate of its own.
_PROMPT_OVERHEAD, _GPTROUTER_STREAM_OVERHEAD = 10, 7


def _count_usage(request: wire.RecordedRequest, text: wire.Text) -> wire.Usage | None:
    overhead = _PROMPT_OVERHEAD
    contents = [message.get("content") for message in request.messages]
    if request.protocol == "gptrouter" and request.streaming:
        has_other_content = any(not isinstance(content, str) for content in contents)
        if has_other_content and request.gptrouter == "public":
            # Its tokenizer throws on such a content, and usage is left out.
            return None
        overhead = _GPTROUTER_STREAM_OVERHEAD
    prompt_tokens = sum(_count_words(text) for text in [*request.prompts, *contents])
    # `best_of` candidates are paid for, though only `n` of them are seen.
    candidates = max(request.count("n"), request.count("best_of"))
    generated = len(wire.split_words(text)) * candidates * len(request.prompts)
    return wire.Usage(overhead + prompt_tokens, generated)


def _count_words(content: object) -> int:
    """The words of a text, of token numbers, or of the parts of a message."""
    if isinstance(content, str):
        return len(content.split())
    if isinstance(content, dict):
        return _count_words(content.get("text"))
    if isinstance(content, list):
        return sum(_count_words(part) for part in content)
    return int(isinstance(content, int))


# Behind the first byte of a character of several bytes.
_FIRST_BYTE = re.compile(rb"(?<=[\xc0-\xff])")


class _Fault(wire.Step):
    """A step that refuses fields which cannot be carried out."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for name, least in {"seconds": 0, "after": 0, "at": 1, "size": 1}.items():
            value = getattr(self, name, least)
            if not (math.isfinite(value) and value >= least):
                msg = f"{self}: {name} must be finite and at least {least}"
                raise ValueError(msg)
        if getattr(self, "how", "fin") not in {"fin", "rst"}:
            msg = f"{self}: how must be 'fin' or 'rst'"
            raise ValueError(msg)
        for name in ("code", "status"):
            status = getattr(self, name, None)
            if isinstance(status, int) and status not in range(200, 600):
                msg = f"{self}: {status} is not a final HTTP status, use 200 to 599"
                raise ValueError(msg)
        if hasattr(self, "headers"):  # as pairs, since an iterator is used up
            object.__setattr__(self, "headers", _pairs(self.headers))

    def _split(
        self, exchange: wire.Exchange, response: wire.Response, after: int
    ) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """The writes up to event number `after`, and those that would follow."""
        if not response.is_stream:
            data = cast("bytes", exchange.send(response).actions[0])
            half = len(data) - len(response.body) // 2
            return (data[:half],), (data[half:],)
        self._require(after, exchange, response.events)
        begin = response.begin(close=exchange.request.closes_connection)
        # The opening has no content: it is not sent when the fault comes before any.
        sent = (*response.opening, *response.events[:after]) if after else ()
        return (begin, *map(wire.chunk, sent)), response.rest(after)

    def _require(self, n: int, exchange: wire.Exchange, events: Sized) -> None:
        if n > len(events):
            self._refuse(exchange, f"the answer has {len(events)} events to count")

    def _refuse(self, exchange: wire.Exchange, why: str) -> NoReturn:
        msg = f"{self} does not fit request {exchange.request.number}: {why}"
        raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Status(_Fault):
    """An answer with this status; unless given, its body is the protocol's own."""

    code: int
    headers: HeaderFields | None = None
    """They replace the protocol's own of the same name."""
    body: Any = None
    """Bytes or text as they are, all else as JSON."""
    error_code: str | None = None
    message: str | None = None

    def deliver(self, exchange: wire.Exchange) -> wire.Delivery:
        if self.body is not None:
            response = wire.Response(self.code, wire.JSON_HEADERS, _to_bytes(self.body))
        elif self.code in wire.WITHOUT_BODY:
            response = wire.Response(self.code, ())
        else:
            response = exchange.error(self.code, self.error_code, self.message)
        given = _pairs(self.headers)
        names = {name.lower() for name, _ in given}
        kept = tuple(one for one in response.headers if one[0].lower() not in names)
        return exchange.send(replace(response, headers=kept + given))


@dataclass(frozen=True, slots=True)
class Body(_Fault):
    """Exactly these headers and this body; only `content-length` is added."""

    status: int = 200
    headers: HeaderFields | None = None
    body: bytes | str = b""

    def deliver(self, exchange: wire.Exchange) -> wire.Delivery:
        headers, body = _pairs(self.headers), _to_bytes(self.body)
        return exchange.send(wire.Response(self.status, headers, body))


@dataclass(frozen=True, slots=True)
class HtmlPage(_Fault):
    """An HTML error page, as a proxy in between sends it."""

    status: int = 502

    def deliver(self, exchange: wire.Exchange) -> wire.Delivery:
        title = f"{self.status} {wire.reason(self.status)}"
        page = f"<html><head><title>{title}</title></head><body>{title}</body></html>"
        headers = (("content-type", "text/html"),)
        return exchange.send(wire.Response(self.status, headers, page.encode()))


@dataclass(frozen=True, slots=True)
class Raw(_Fault):
    """Exactly these bytes, status line and framing included."""

    data: bytes
    close: bool = True
    """Whether the connection is closed after them."""
    how: Literal["fin", "rst"] = "fin"
    """How it is closed."""

    def deliver(self, _exchange: wire.Exchange, /) -> wire.Delivery:
        ending = self.how if self.close else "keep"
        return wire.Delivery((self.data,), ending, "faulted")


@dataclass(frozen=True, slots=True)
class Reset(_Fault):
    """A TCP reset (RST) before a byte is sent."""

    def deliver(self, _exchange: wire.Exchange, /) -> wire.Delivery:
        return wire.Delivery((), "rst", "faulted")


@dataclass(frozen=True, slots=True)
class Hangup(_Fault):
    """An orderly end of the connection (FIN) before a byte is sent."""

    def deliver(self, _exchange: wire.Exchange, /) -> wire.Delivery:
        return wire.Delivery((), "fin", "faulted")


@dataclass(frozen=True, slots=True)
class Silence(_Fault):
    """The request is taken and not answered; after `seconds` comes a FIN."""

    seconds: float = 120.0

    def deliver(self, _exchange: wire.Exchange, /) -> wire.Delivery:
        return wire.Delivery((self.seconds,), "fin", "faulted")


@dataclass(frozen=True, slots=True)
class SlowFirstToken(_Fault):
    """A whole answer, late: of a stream, the headers come at once."""

    seconds: float

    def deliver(self, exchange: wire.Exchange) -> wire.Delivery:
        response, pause = exchange.healthy(), self.seconds
        sent = exchange.send(response)
        begin, rest = sent.actions[:1], sent.actions[1:]
        late = (*begin, pause, *rest) if response.is_stream else (pause, *begin)
        return sent._replace(actions=late)


@dataclass(frozen=True, slots=True)
class Stall(_Fault):
    """A whole answer that pauses for `seconds` after `after` events."""

    after: int
    seconds: float

    def deliver(self, exchange: wire.Exchange) -> wire.Delivery:
        before, after = self._split(exchange, exchange.healthy(), self.after)
        return exchange.end(*before, self.seconds, *after)


@dataclass(frozen=True, slots=True)
class Cut(_Fault):
    """The connection ends after `after` events, the body unfinished: FIN or RST."""

    after: int
    how: Literal["fin", "rst"] = "fin"

    def deliver(self, exchange: wire.Exchange) -> wire.Delivery:
        before, _ = self._split(exchange, exchange.healthy(), self.after)
        return wire.Delivery(before, self.how, "faulted")


@dataclass(frozen=True, slots=True)
class Truncate(_Fault):
    """The body ends cleanly after `after` events, without any end mark."""

    after: int

    def deliver(self, exchange: wire.Exchange) -> wire.Delivery:
        response = exchange.healthy()
        if not response.is_stream:
            return _send_half(response, exchange)
        before, _ = self._split(exchange, response, self.after)
        return exchange.end(*before, wire.LAST_CHUNK, outcome="faulted")


@dataclass(frozen=True, slots=True)
class MalformedEvent(_Fault):
    """A whole stream whose event number `at`, counted from 1, is not JSON."""

    at: int

    def deliver(self, exchange: wire.Exchange) -> wire.Delivery:
        response = exchange.healthy()
        if not response.is_stream:
            return _send_half(response, exchange)
        events = list(response.events)
        self._require(self.at, exchange, events)
        event = events[self.at - 1]
        events[self.at - 1] = event[: len(event) // 2] + b"\n\n"
        return exchange.send(replace(response, events=tuple(events)), "faulted")


@dataclass(frozen=True, slots=True)
class ErrorEvent(_Fault):
    """An error inside the stream, after `after` events, in the asked protocol.

    Without streaming it is what the protocol makes of such an error: GPTRouter's opaque
    500, or an OpenAI error with `status`, 500 if there is none. GPTRouter sends neither
    `status` nor `code` once the first event is out, as its server does.
    """

    message: str
    after: int = 0
    status: int | None = None
    code: str | None = None

    def deliver(self, exchange: wire.Exchange) -> wire.Delivery:
        error = self.message, self.status, self.code
        if not exchange.request.streaming or exchange.fixed:
            return exchange.send(exchange.unstreamed_error(*error))
        # A request that fails before the first event is not shown to the model.
        stream = exchange.healthy(None if self.after else wire.ResolvedAnswer())
        before, _ = self._split(exchange, stream, self.after)
        event = exchange.error_event(*error, self.after)
        return exchange.end(*before, wire.chunk(event) + wire.LAST_CHUNK)


@dataclass(frozen=True, slots=True)
class ErrorInOk(_Fault):
    """A 200 whose JSON body is an error; never a stream, whatever was asked."""

    message: str
    code: str | None = None

    def deliver(self, exchange: wire.Exchange) -> wire.Delivery:
        body = exchange.error_in_ok(self.message, self.code)
        return exchange.send(wire.Response(HTTPStatus.OK, wire.JSON_HEADERS, body))


@dataclass(frozen=True, slots=True)
class Drip(_Fault):
    """A whole healthy answer in writes of `size` bytes, `seconds` apart."""

    seconds: float = 0.0
    size: int = 1

    def deliver(self, exchange: wire.Exchange) -> wire.Delivery:
        sent = exchange.send(exchange.healthy())
        data = b"".join(part for part in sent.actions if isinstance(part, bytes))
        drops = [data[at : at + self.size] for at in range(0, len(data), self.size)]
        return exchange.end(*_space_out(drops, self.seconds))


@dataclass(frozen=True, slots=True)
class SplitCharacter(_Fault):
    """A whole healthy answer, every character of several bytes torn apart.

    The pieces are chunks of the HTTP body too, so a client sees them apart even when
    TCP joins the writes.
    """

    text: wire.Text = "Grüße aus Łódź, 日本語 and 🦊"

    def deliver(self, exchange: wire.Exchange) -> wire.Delivery:
        answer = Answer(self.text).resolve(exchange.seen_by_model())
        whole = exchange.healthy(answer)
        if not whole.is_stream:
            whole = replace(whole, is_stream=True, body=b"", events=(whole.body,))
        frames = (*whole.opening, *whole.events, *whole.closing, whole.last_frame)
        pieces = [one for frame in frames for one in _FIRST_BYTE.split(frame)]
        if all(piece.isascii() for piece in pieces):
            self._refuse(exchange, "the answer has no character of several bytes")
        begin = whole.begin(close=exchange.request.closes_connection)
        chunks = [wire.chunk(piece) for piece in pieces if piece]
        return exchange.end(*_space_out([begin, *chunks, wire.LAST_CHUNK], 0))


@dataclass(frozen=True, slots=True)
class MissingDone(_Fault):
    """A whole stream without its last frame.

    That is OpenAI's `[DONE]`, or GPTRouter's `event: end`, which is not a mark of
    success: its JSON event `end` is sent.
    """

    def deliver(self, exchange: wire.Exchange) -> wire.Delivery:
        response = exchange.healthy()
        if not response.is_stream:
            self._refuse(exchange, "only a stream has a last frame")
        return exchange.send(replace(response, last_frame=b""), "faulted")


def _send_half(response: wire.Response, exchange: wire.Exchange) -> wire.Delivery:
    """Half of the body as if it were all."""
    half = response.body[: len(response.body) // 2]
    return exchange.send(replace(response, body=half), "faulted")


def _space_out(writes: list[bytes], seconds: float) -> list[bytes | float]:
    return [part for write in writes for part in (write, seconds)][:-1]


def _to_bytes(body: Any) -> bytes:
    if isinstance(body, bytes):
        return body
    return body.encode() if isinstance(body, str) else wire.compact_json(body)


def _pairs(headers: HeaderFields | None) -> wire.Headers:
    """The header fields as pairs, in their order."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
    return tuple((name, value) for name, value in pairs)
