"""The faults of a script, and what each of them writes to the wire.

Seconds are floats; every wait ends early when the client leaves or the gateway stops.
`after=N` counts events with content: neither the opening event without text nor the
frames of the protocol. A response without streaming has no events; there a fault in the
middle comes after the first half of the body. A step that does not fit its response is
an error: the client gets a 500, and `FaultyGateway.stop` raises it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Literal, NoReturn, TypeAlias, cast

from langchain_retryrouter.testing import _exchange as wire

HeaderFields: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]
"""Header fields; pairs where one is repeated."""

# Behind the first byte of a character of several bytes.
_FIRST_BYTE = re.compile(rb"(?<=[\xc0-\xff])")
_LINE = re.compile(r"[^\r\n\u0100-\U0010ffff]*")


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
            given = self.headers or ()
            pairs = given.items() if isinstance(given, Mapping) else given
            headers = tuple(map(tuple, pairs))
            for pair in headers:
                is_pair = [isinstance(one, str) for one in pair] == [True, True]
                if not is_pair or not _LINE.fullmatch("".join(pair)):
                    msg = (
                        f"{type(self).__name__}: {pair!r} is not a header field: give a"
                        " name and a value, which are texts of one line in Latin-1"
                    )
                    raise ValueError(msg)
            object.__setattr__(self, "headers", headers)

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
        given = cast("wire.Headers", self.headers)
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
        headers = cast("wire.Headers", self.headers)
        return exchange.send(wire.Response(self.status, headers, _to_bytes(self.body)))


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
    """Exactly these bytes, or this text, status line and framing included."""

    data: bytes | str
    close: bool = True
    """Whether the connection is closed after them."""
    how: Literal["fin", "rst"] = "fin"
    """How it is closed."""

    def deliver(self, _exchange: wire.Exchange, /) -> wire.Delivery:
        ending = self.how if self.close else "keep"
        return wire.Delivery((_to_bytes(self.data),), ending, "faulted")


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
        response = exchange.healthy()
        sent = exchange.send(response)
        at = int(response.is_stream)  # Behind the headers of a stream.
        late = (*sent.actions[:at], self.seconds, *sent.actions[at:])
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
        error = self.status, self.code, self.message
        if not exchange.request.streaming or exchange.fixed:
            return exchange.send(exchange.unstreamed_error(*error))
        # A request that fails before the first event is not shown to the model.
        unseen = exchange.respond(wire.ResolvedAnswer())
        stream = exchange.healthy() if self.after else unseen
        before, _ = self._split(exchange, stream, self.after)
        event = exchange.error_event(*error, self.after)
        return exchange.end(*before, wire.chunk(event) + wire.LAST_CHUNK)


@dataclass(frozen=True, slots=True)
class ErrorInOk(_Fault):
    """A 200 whose JSON body is an error; never a stream, whatever was asked."""

    message: str
    code: str | None = None

    def deliver(self, exchange: wire.Exchange) -> wire.Delivery:
        body = exchange.error_in_ok(self.code, self.message)
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
        whole = exchange.healthy(wire.Answer(self.text))
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
