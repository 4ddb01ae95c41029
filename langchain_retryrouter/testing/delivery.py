"""How a step comes about: the bytes to write, the waits between them, and the ending.

Pure. `plan` takes a step and an exchange and returns a `Plan`; `_server.py` carries it
out without knowing what it means.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from functools import singledispatch
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol, TypeAlias

from langchain_retryrouter.testing import faults
from langchain_retryrouter.testing.responses import (
    Choice,
    Completion,
    Responder,
    complete,
)

if TYPE_CHECKING:
    from langchain_retryrouter.testing.faults import Step
    from langchain_retryrouter.testing.requests import Outcome, RecordedRequest
    from langchain_retryrouter.testing.responses import Completion


Pairs: TypeAlias = tuple[tuple[str, str], ...]

JSON_HEADERS: Pairs = (("content-type", "application/json; charset=utf-8"),)
LAST_CHUNK = b"0\r\n\r\n"

_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_REASONS = {status.value: status.phrase for status in HTTPStatus}
_FIRST_BYTE_OF_SEVERAL = 0b1100_0000
_WITHOUT_BODY = {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}
_IDLE_SECONDS = 72  # GPTRouter's own, as recorded


@dataclass(frozen=True, slots=True)
class Whole:
    """A reply in one piece."""

    status: int
    headers: Pairs
    body: bytes


@dataclass(frozen=True, slots=True)
class Stream:
    """A reply in events."""

    headers: Pairs
    events: tuple[bytes, ...]
    """The events with content: what `after=N` counts."""
    preamble: bytes = b""
    """Sent with the headers, before the model is asked."""
    opening: tuple[bytes, ...] = ()
    """Events without content that precede the first one with content."""
    closing: tuple[bytes, ...] = ()
    """Finish reasons, usage, end marks."""
    farewell: bytes = b""
    """The last frame, which a stream can do without."""


Reply: TypeAlias = Whole | Stream


class Dialect(Protocol):
    """What a protocol file offers: the pieces of its replies."""

    def unknown_path(self, request: RecordedRequest, /) -> Step:
        """What is said to a path or a method that does not exist."""

    def is_authorized(self, request: RecordedRequest, api_key: str, /) -> bool:
        """Whether the request carries this key."""

    def refusal(self, request: RecordedRequest, /) -> Step | None:
        """How a request is turned down whatever the script says; None if sound."""

    def seen_by_model(self, request: RecordedRequest, /) -> RecordedRequest:
        """What of the request reaches the model that answers."""

    def vectors(self, request: RecordedRequest, /) -> Reply | None:
        """The healthy reply of an embeddings endpoint; None at all others."""

    def answer(self, request: RecordedRequest, completion: Completion, /) -> Reply:
        """The healthy reply that says `completion`."""

    def error(
        self,
        request: RecordedRequest,
        status: int,
        code: str | None,
        message: str | None,
        /,
    ) -> Whole:
        """The protocol's own reply for this status."""

    def unstreamed_error(
        self,
        request: RecordedRequest,
        message: str,
        status: int | None,
        code: str | None,
        /,
    ) -> Whole:
        """What becomes of an error inside a stream when there is no stream."""

    def error_event(
        self, message: str, status: int | None, code: str | None, /
    ) -> bytes:
        """The end of a stream that fails."""

    def error_in_ok(self, message: str, code: str | None, /) -> bytes:
        """The body of an error that comes with status 200."""


def reason(status: int) -> str:
    """The phrase for a status; proxies send statuses that have none."""
    return _REASONS.get(status, f"Status {status}")


def compact_json(value: Any) -> bytes:
    """JSON without white space, its text as raw UTF-8: what the real servers send."""
    return _compact(value).encode()


def sse(value: Any) -> bytes:
    """One server-sent event with JSON data."""
    return b"data: %b\n\n" % compact_json(value)


def head(status: int, headers: Iterable[tuple[str, str]], *, close: bool) -> bytes:
    """The status line and the header section, and what becomes of the connection."""
    fields = [f"HTTP/1.1 {status} {reason(status)}"]
    fields += [
        f"{name}: {value}" for name, value in headers if name.lower() != "connection"
    ]
    if close:
        fields.append("connection: close")
    else:
        fields.append(f"connection: keep-alive\r\nkeep-alive: timeout={_IDLE_SECONDS}")
    return "\r\n".join([*fields, "\r\n"]).encode("latin-1")


def whole_head(reply: Whole, *, close: bool) -> bytes:
    """The head of a reply whose body is sent by its length."""
    names = {name.lower() for name, _ in reply.headers}
    headers = reply.headers
    if "content-length" not in names and reply.status not in _WITHOUT_BODY:
        headers = (*headers, ("content-length", str(len(reply.body))))
    return head(reply.status, headers, close=close)


def chunked_head(status: int, headers: Pairs, *, close: bool) -> bytes:
    """The head of a reply whose body is sent in chunks."""
    return head(status, (*headers, ("transfer-encoding", "chunked")), close=close)


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


@dataclass(frozen=True, slots=True)
class Pause:
    """A wait between two writes; zero seconds let the event loop turn once."""

    seconds: float


class Ending(Enum):
    """What becomes of the connection."""

    KEEP = "keep"
    FIN = "fin"
    RST = "rst"


Action: TypeAlias = bytes | Pause


class Plan(NamedTuple):
    """What the server does with one request. Every `bytes` is a write of its own."""

    actions: tuple[Action, ...] = ()
    ending: Ending = Ending.KEEP
    outcome: Outcome = "sent"


class Exchange(NamedTuple):
    """One request, whose protocol it speaks, and who knows the healthy answer."""

    request: RecordedRequest
    dialect: Dialect
    responder: Responder
    fixed: Whole | None = None
    """The answer of a path that `FaultyGateway.respond` has set."""

    def healthy(self) -> Reply:
        """The reply when nothing is wrong."""
        return self._unspoken() or self.say(self.generated())

    def generated(self) -> Completion:
        """What the model says, which is shown no more than reaches it."""
        return self.responder(self.dialect.seen_by_model(self.request))

    def say(self, completion: Completion) -> Reply:
        """The healthy reply that says `completion`."""
        return self._unspoken() or self.dialect.answer(self.request, completion)

    def _unspoken(self) -> Reply | None:
        """The healthy reply where nobody is asked to say anything."""
        return self.fixed or self.dialect.vectors(self.request)


@singledispatch
def plan(step: object, exchange: Exchange) -> Plan:
    """What the server does when `step` answers `exchange`.

    Raises:
        TypeError: `step` is none of the steps.
        ValueError: `step` cannot be carried out on this reply, such as a cut after 40
            events where there are 5.
    """
    number = exchange.request.number
    msg = f"{step!r}, scripted for request {number}, is none of the known steps"
    raise TypeError(msg)


# Healthy answers and errors: the whole reply goes out.


@plan.register
def _(step: faults.Answer, exchange: Exchange) -> Plan:
    if step is faults.HEALTHY:  # by far the most frequent one
        return _send(exchange.healthy(), exchange)
    return _send(_answered(step, exchange), exchange)


@plan.register
def _(step: faults.Status, exchange: Exchange) -> Plan:
    if step.body is None:
        reply = exchange.dialect.error(
            exchange.request, step.code, step.error_code, step.message
        )
        if step.code in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
            reply = Whole(step.code, (), b"")
    else:
        reply = Whole(step.code, JSON_HEADERS, _body_bytes(step.body))
    given = faults.pairs_of(step.headers)
    names = {name.lower() for name, _ in given}
    kept = tuple(
        (name, value) for name, value in reply.headers if name.lower() not in names
    )
    return _send(replace(reply, headers=kept + given), exchange)


@plan.register
def _(step: faults.Body, exchange: Exchange) -> Plan:
    headers = faults.pairs_of(step.headers)
    return _send(Whole(step.status, headers, _body_bytes(step.body)), exchange)


@plan.register
def _(step: faults.HtmlPage, exchange: Exchange) -> Plan:
    title = f"{step.status} {reason(step.status)}"
    page = f"<html><head><title>{title}</title></head><body>{title}</body></html>"
    headers = (("content-type", "text/html"),)
    return _send(Whole(step.status, headers, page.encode()), exchange)


@plan.register
def _(step: faults.ErrorInOk, exchange: Exchange) -> Plan:
    body = exchange.dialect.error_in_ok(step.message, step.code)
    return _send(Whole(HTTPStatus.OK, JSON_HEADERS, body), exchange)


@plan.register
def _(step: faults.ErrorEvent, exchange: Exchange) -> Plan:
    if not exchange.request.streaming or exchange.fixed:
        reply = exchange.dialect.unstreamed_error(
            exchange.request, step.message, step.status, step.code
        )
        return _send(reply, exchange)
    # What fails before its first event, refused requests included, has asked no model.
    stream = exchange.healthy() if step.after else exchange.say(Completion(()))
    before, _ = _split(stream, step.after, step, exchange)
    error = exchange.dialect.error_event(step.message, step.status, step.code)
    return _ended((*before, chunk(error) + LAST_CHUNK), exchange)


# Faults of time and of cutting: every byte of a healthy answer goes out.


@plan.register
def _(step: faults.SlowFirstToken, exchange: Exchange) -> Plan:
    reply = exchange.healthy()
    if isinstance(reply, Whole):
        sent = _send(reply, exchange)
        return sent._replace(actions=(Pause(step.seconds), *sent.actions))
    before, after = _split(reply, 0, step, exchange)
    return _ended((*before, Pause(step.seconds), *after), exchange)


@plan.register
def _(step: faults.Stall, exchange: Exchange) -> Plan:
    before, after = _split(exchange.healthy(), step.after, step, exchange)
    return _ended((*before, Pause(step.seconds), *after), exchange)


@plan.register
def _(step: faults.Drip, exchange: Exchange) -> Plan:
    reply = exchange.healthy()
    data = b"".join(_writes(reply, close=_closes(exchange, reply)))
    drops = [data[at : at + step.size] for at in range(0, len(data), step.size)]
    return _ended(_spaced(drops, Pause(step.seconds)), exchange)


@plan.register
def _(step: faults.SplitCharacter, exchange: Exchange) -> Plan:
    reply = exchange.say(complete(exchange.request, Choice(step.text)))
    close = _closes(exchange, reply)
    if isinstance(reply, Whole):
        first = chunked_head(reply.status, reply.headers, close=close)
        pieces = list(split_inside_characters(reply.body))
    else:
        first = _stream_head(reply, close=close)
        frames = (*reply.opening, *reply.events, *reply.closing, reply.farewell)
        pieces = [piece for frame in frames for piece in split_inside_characters(frame)]
    if all(piece.isascii() for piece in pieces):
        _refuse(step, exchange, "the answer has no character of several bytes")
    writes = [first, *(chunk(piece) for piece in pieces if piece), LAST_CHUNK]
    return _ended(_spaced(writes, Pause(0)), exchange)


# Faults that keep something back or garble it.


@plan.register
def _(_step: faults.Reset, _exchange: Exchange) -> Plan:
    return Plan(ending=Ending.RST, outcome="faulted")


@plan.register
def _(_step: faults.Hangup, _exchange: Exchange) -> Plan:
    return Plan(ending=Ending.FIN, outcome="faulted")


@plan.register
def _(step: faults.Silence, _exchange: Exchange) -> Plan:
    return Plan((Pause(step.seconds),), Ending.FIN, "faulted")


@plan.register
def _(step: faults.Cut, exchange: Exchange) -> Plan:
    before, _ = _split(exchange.healthy(), step.after, step, exchange)
    return Plan(before, Ending(step.how), "faulted")


@plan.register
def _(step: faults.Truncate, exchange: Exchange) -> Plan:
    reply = exchange.healthy()
    if isinstance(reply, Whole):
        return _faulted(_send(_halved(reply), exchange))
    before, _ = _split(reply, step.after, step, exchange)
    return _faulted(_ended((*before, LAST_CHUNK), exchange))


@plan.register
def _(step: faults.MalformedEvent, exchange: Exchange) -> Plan:
    reply = exchange.healthy()
    if isinstance(reply, Whole):
        return _faulted(_send(_halved(reply), exchange))
    _require_events(reply, step.at, step, exchange)
    events = list(reply.events)
    event = events[step.at - 1]
    events[step.at - 1] = event[: len(event) // 2] + b"\n\n"
    return _faulted(_send(replace(reply, events=tuple(events)), exchange))


@plan.register
def _(step: faults.MissingDone, exchange: Exchange) -> Plan:
    reply = exchange.healthy()
    if isinstance(reply, Whole):
        _refuse(step, exchange, "only a stream has a last frame")
    return _faulted(_send(replace(reply, farewell=b""), exchange))


@plan.register
def _(step: faults.Raw, _exchange: Exchange) -> Plan:
    ending = Ending(step.how) if step.close else Ending.KEEP
    return Plan((step.data,), ending, "faulted")


# What they are made of.


def _answered(step: faults.Answer, exchange: Exchange) -> Reply:
    completion = _completion(step, exchange)
    changes = _changes(step)
    choices = completion.choices
    if changes:
        choices = tuple(replace(choice, **changes) for choice in choices)
    return exchange.say(
        replace(
            completion,
            choices=choices,
            usage=completion.usage if step.usage is faults.UNSET else step.usage,
            model=step.model or completion.model,
            id=step.id or completion.id,
            citations=step.citations or completion.citations,
        )
    )


def _changes(step: faults.Answer) -> dict[str, Any]:
    """What the step says about every choice, whoever made it."""
    changes: dict[str, Any] = {}
    if step.finish_reason is not faults.UNSET:
        changes["finish_reason"] = step.finish_reason
    if step.choice_citations:
        changes["citations"] = step.choice_citations
    if step.unstreamed_calls != "dropped":
        changes["unstreamed_calls"] = step.unstreamed_calls
    return changes


def _completion(step: faults.Answer, exchange: Exchange) -> Completion:
    text = step.text
    if text is None and not step.tool_calls and step.function_call is None:
        return exchange.generated()
    choice = Choice(
        text=text(exchange.request) if callable(text) else text or "",
        tool_calls=step.tool_calls,
        function_call=step.function_call,
        finish_reason=_natural_finish(step),
    )
    return complete(exchange.request, choice)


def _natural_finish(step: faults.Answer) -> str:
    if step.tool_calls:
        return "tool_calls"
    return "function_call" if step.function_call else "stop"


def _body_bytes(body: Any) -> bytes:
    if isinstance(body, bytes):
        return body
    return body.encode() if isinstance(body, str) else compact_json(body)


def _send(reply: Reply, exchange: Exchange) -> Plan:
    close = _closes(exchange, reply)
    return Plan(_writes(reply, close=close), Ending.FIN if close else Ending.KEEP)


def _ended(actions: tuple[Action, ...], exchange: Exchange) -> Plan:
    ending = Ending.FIN if exchange.request.closes_connection else Ending.KEEP
    return Plan(actions, ending)


def _faulted(healthy: Plan) -> Plan:
    return healthy._replace(outcome="faulted")


def _closes(exchange: Exchange, reply: Reply) -> bool:
    said = any(
        name.lower() == "connection" and value.lower() == "close"
        for name, value in reply.headers
    )
    return said or exchange.request.closes_connection


def _writes(reply: Reply, *, close: bool) -> tuple[bytes, ...]:
    """The reply as a healthy server writes it."""
    if isinstance(reply, Whole):
        return (whole_head(reply, close=close) + reply.body,)
    return (_stream_head(reply, close=close), *_stream_rest(reply, 0))


def _split(
    reply: Reply, after: int, step: faults.Step, exchange: Exchange
) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """The writes up to event number `after`, and those that would follow."""
    close = _closes(exchange, reply)
    if isinstance(reply, Whole):
        data = whole_head(reply, close=close) + reply.body
        half = len(data) - len(reply.body) // 2
        return (data[:half],), (data[half:],)
    _require_events(reply, after, step, exchange)
    # The opening has no content: it is not sent when the fault comes before any.
    opening = (*reply.opening,) if after else ()
    sent = (*opening, *reply.events[:after])
    return (
        (_stream_head(reply, close=close), *(chunk(frame) for frame in sent)),
        _stream_rest(reply, after),
    )


def _stream_head(reply: Stream, *, close: bool) -> bytes:
    head = chunked_head(HTTPStatus.OK, reply.headers, close=close)
    return head + chunk(reply.preamble)


def _stream_rest(reply: Stream, after: int) -> tuple[bytes, ...]:
    opening = () if after else reply.opening
    frames = (*opening, *reply.events[after:], *reply.closing)
    return (*(chunk(frame) for frame in frames), chunk(reply.farewell) + LAST_CHUNK)


def _halved(reply: Whole) -> Whole:
    return replace(reply, body=reply.body[: len(reply.body) // 2])


def _spaced(writes: list[bytes], pause: Pause) -> tuple[Action, ...]:
    spaced: list[Action] = []
    for write in writes:
        spaced += [write, pause]
    return tuple(spaced[:-1])


def _require_events(
    reply: Stream, count: int, step: faults.Step, exchange: Exchange
) -> None:
    if count > len(reply.events):
        _refuse(step, exchange, f"the answer has {len(reply.events)} events to count")


def _refuse(step: faults.Step, exchange: Exchange, why: str) -> NoReturn:
    msg = f"{step} cannot be done to request {exchange.request.number}: {why}"
    raise ValueError(msg)
