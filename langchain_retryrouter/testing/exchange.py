"""A request, as it was recorded, and the response to it, down to the bytes.

A `Step` (see `faults.py`) decides what happens to a request. It builds the response
from an `Exchange`, which knows the protocol: `gptrouter_api.py` and `openai_api.py` put
what a provider says (`ResolvedAnswer`) into a `Response`, whose bytes HTTP carries.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
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
CHUNKED = ("transfer-encoding", "chunked")
LAST_CHUNK = b"0\r\n\r\n"
WITHOUT_BODY = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_IDLE_SECONDS = 72  # GPTRouter's own, as recorded

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
        return head(self.status, headers, close=close)


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

    def head(self, *, close: bool) -> bytes:
        """Status line, headers and preamble."""
        headers = (*self.headers, CHUNKED)
        return head(HTTPStatus.OK, headers, close=close) + chunk(self.preamble)

    def rest(self, after: int) -> tuple[bytes, ...]:
        """The chunks that follow `after` events; with 0, the opening too."""
        opening = () if after else self.opening
        frames = (*opening, *self.events[after:], *self.closing)
        return (*map(chunk, frames), chunk(self.last_frame) + LAST_CHUNK)


Response: TypeAlias = BodyResponse | StreamResponse


Ending: TypeAlias = Literal["keep", "fin", "rst"]
"""What happens to the connection after the response."""


class Delivery(NamedTuple):
    """What the server does with one request."""

    actions: tuple[bytes | float, ...] = ()
    """Each `bytes` is one write, each number a wait; 0 lets the loop turn once."""
    ending: Ending = "keep"
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


def head(status: int, headers: Headers, *, close: bool) -> bytes:
    """Status line and headers."""
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


# Requests.

Endpoint: TypeAlias = Literal[
    "generate", "embeddings", "embeddings-v2", "completions", "chat"
]
ProtocolName: TypeAlias = Literal["gptrouter", "openai"]
Edition: TypeAlias = Literal["public", "hosted"]
"""Which GPTRouter: the public snapshot of its source, or the newer hosted service."""

_ENDPOINTS: dict[str, Endpoint] = {
    "/api/v1/generate": "generate",
    "/api/v1/generate/embeddings": "embeddings",
    "/api/v1/generate/embeddings-v2": "embeddings-v2",
    "/v1/completions": "completions",
    "/v1/chat/completions": "chat",
}
_HOSTED_ONLY: frozenset[Endpoint] = frozenset({"embeddings", "embeddings-v2"})
_AZURE = re.compile(r"/openai/deployments/(?P<name>[^/]+)(?P<rest>/.+)")


@lru_cache(maxsize=1024)
def _parse_path(path: str) -> tuple[ProtocolName, Endpoint | None, str | None]:
    """Protocol, endpoint and Azure deployment of a path."""
    if azure := _AZURE.fullmatch(path):
        return "openai", _ENDPOINTS.get(f"/v1{azure['rest']}"), azure["name"]
    is_openai = path.startswith(("/v1/", "/openai/"))
    return "openai" if is_openai else "gptrouter", _ENDPOINTS.get(path), None


class Step:
    """What the gateway does with one request. The steps are in `faults.py`."""

    __slots__ = ()

    def deliver(self, exchange: Exchange, /) -> Delivery:
        """What the server writes, and how it ends; called in the server's thread."""
        msg = f"{self!r} does not say how to answer request {exchange.request.number}"
        raise TypeError(msg)


@dataclass(frozen=True)
class RecordedRequest:
    """One request, as it came in."""

    number: int
    """Counted from 1, over the life of the gateway."""
    at: float
    """When its last byte had come, in seconds of `time.monotonic`."""
    connection: int
    """Which TCP connection it came on, counted from 1."""
    method: str
    path: str
    """Without the query."""
    query: str
    headers: Mapping[str, str]
    """Names in lower case; values of a repeated header are joined by `", "`."""
    body: bytes
    step: Step | None = None
    """The step that answered it; None while there is none."""
    outcome: Outcome = "pending"
    """How the response ended.

    `sent`: the client was given a whole response, be it an answer or an error.
    `faulted`: the step kept something back or garbled it, or the gateway stopped.
    `client_left`: the client closed the connection before the end.
    """
    gptrouter: Edition = "public"
    """Which GPTRouter the gateway played."""

    @property
    def json(self) -> Any:
        """The body, read as JSON.

        Raises:
            ValueError: The body is not JSON.
        """
        try:
            return json.loads(self.body)
        except ValueError as error:
            msg = f"the body of request {self.number} is not JSON: {self.body[:80]!r}"
            raise ValueError(msg) from error

    @cached_property
    def payload(self) -> Mapping[str, Any]:
        """The body's JSON object; empty when the body is anything else."""
        try:
            body = json.loads(self.body)
        except ValueError:
            return {}
        return body if isinstance(body, dict) else {}

    @property
    def protocol(self) -> ProtocolName:
        """The protocol that the path belongs to; an unknown path is GPTRouter's."""
        return _parse_path(self.path)[0]

    @property
    def endpoint(self) -> Endpoint | None:
        """The endpoint that was asked, None for one that is not served."""
        endpoint = _parse_path(self.path)[1] if self.method == "POST" else None
        if endpoint in _HOSTED_ONLY and self.gptrouter != "hosted":
            return None
        return endpoint

    @property
    def deployment(self) -> str | None:
        """The Azure deployment in the path, None when this is not Azure's protocol."""
        return _parse_path(self.path)[2]

    @cached_property
    def entry(self) -> Mapping[str, Any]:
        """The first entry of GPTRouter's `data`, by its `order`."""
        data = self.payload.get("data")
        entries = data if isinstance(data, list) else []

        def order(entry: Mapping[str, Any]) -> float:
            try:
                return float(entry.get("order", "inf"))
            except (TypeError, ValueError):
                return float("inf")

        return min((e for e in entries if isinstance(e, dict)), key=order, default={})

    @cached_property
    def parameters(self) -> Mapping[str, Any]:
        """The parameters of the generation, wherever the protocol keeps them."""
        if self.protocol == "openai" or self.endpoint == "embeddings-v2":
            return self.payload
        parameters = self.entry.get("promptParams")
        return parameters if isinstance(parameters, dict) else {}

    @cached_property
    def model(self) -> str | None:
        """The model that was asked: GPTRouter's first one, or Azure's deployment."""
        named = (
            self.deployment
            or self.entry.get("modelName")
            or self.entry.get("modelId")
            or self.payload.get("model")
            or self.payload.get("modelName")
        )
        return named if isinstance(named, str) else None

    @cached_property
    def streaming(self) -> bool:
        """Whether a stream was asked for; GPTRouter takes the text `"true"` too."""
        return self.payload.get("stream") in {True, "true"}

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages that are JSON objects, in their order."""
        given = self.parameters.get("messages")
        return [m for m in given if isinstance(m, dict)] if given else []

    @property
    def prompts(self) -> list[object]:
        """The prompts: one, unless a list of texts or of token lists was sent."""
        prompt = None if self.endpoint == "chat" else self.parameters.get("prompt")
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            return prompt
        return [prompt]

    def count(self, name: str) -> int:
        """The parameter `name`, a count such as `n`; 1 when it is not given."""
        value = self.parameters.get(name)
        return max(1, int(value)) if isinstance(value, int | str) else 1

    @property
    def closes_connection(self) -> bool:
        """Whether the client sends no further request on this connection."""
        return "close" in self.headers.get("connection", "").lower()

    def __str__(self) -> str:
        """One line for a log or an error message; the body stays out of it."""
        target = f"{self.method} {self.path}"
        ending = f"{self.step}, {self.outcome}"
        return f"#{self.number} by {self.connection}: {target} {self.model}, {ending}"


@dataclass(frozen=True, slots=True)
class Exchange(ABC):
    """One request, and the responses to it in the protocol that it speaks."""

    request: RecordedRequest
    make_answer: Callable[[RecordedRequest], ResolvedAnswer]
    """The gateway's own answer to a request."""
    fixed: BodyResponse | None = None
    """The answer of a path that `FaultyGateway.respond` has set."""

    def own_answer(self) -> ResolvedAnswer:
        """The gateway's own answer, given what of the request reaches the model."""
        return self.make_answer(self.seen_by_model())

    def healthy(self, answer: ResolvedAnswer | None = None) -> Response:
        """The healthy response: this answer, or else the gateway's own one."""
        other = self.fixed or self.embeddings()
        return other or self.respond(answer or self.own_answer())

    def seen_by_model(self) -> RecordedRequest:
        """What of the request reaches the model that answers: all of it."""
        return self.request

    def send(self, response: Response) -> Delivery:
        """All of the response."""
        close = self.closes_after(response)
        begin = response.head(close=close)
        ending: Ending = "fin" if close else "keep"
        if isinstance(response, BodyResponse):
            return Delivery((begin + response.body,), ending)
        return Delivery((begin, *response.rest(0)), ending)

    def end(self, actions: tuple[bytes | float, ...]) -> Delivery:
        """These writes and waits, and what the client asked to follow them."""
        return Delivery(actions, "fin" if self.request.closes_connection else "keep")

    def closes_after(self, response: Response) -> bool:
        """Whether the connection ends after the response."""
        header = ("connection", "close")
        given = [(name.lower(), value.lower()) for name, value in response.headers]
        return header in given or self.request.closes_connection

    def embeddings(self) -> BodyResponse | None:
        """The healthy response of an embeddings endpoint; None at all others."""
        return None

    @abstractmethod
    def unknown_path(self) -> Step:
        """The step for a path or a method that does not exist."""

    @abstractmethod
    def is_authorized(self, api_key: str) -> bool:
        """Whether the request carries this key."""

    @abstractmethod
    def refusal(self) -> Step | None:
        """The step for a request that the server itself refuses; None if it is fine."""

    @abstractmethod
    def respond(self, answer: ResolvedAnswer) -> Response:
        """The healthy response that says `answer`."""

    @abstractmethod
    def error(
        self, status: int, code: str | None = None, message: str | None = None
    ) -> BodyResponse:
        """The protocol's own response for this status."""

    @abstractmethod
    def unstreamed_error(
        self, message: str, status: int | None, code: str | None
    ) -> BodyResponse:
        """The response to a request without streaming for an error inside a stream."""

    @abstractmethod
    def error_event(
        self, message: str, status: int | None, code: str | None, after: int
    ) -> bytes:
        """The end of a stream that fails after `after` events."""

    @abstractmethod
    def error_in_ok(self, message: str, code: str | None) -> bytes:
        """The body of an error that comes with status 200."""


@dataclass(slots=True)
class Entry:
    """One request and what has become of it so far."""

    request: RecordedRequest
    step: Step | None = None
    outcome: Outcome = "pending"


class RequestLog:
    """The requests and the connections of one gateway."""

    def __init__(self, keep: int | None) -> None:
        """Start an empty log of the `keep` latest requests, None for all."""
        self._changed = threading.Condition()
        self._listeners: set[Callable[[], object]] = set()
        self._entries: deque[Entry] = deque(maxlen=keep)
        self._requests_begun = 0
        self.connections = 0
        self.open_connections = 0

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests as they stand now, oldest first."""
        with self._changed:
            return [
                replace(entry.request, step=entry.step, outcome=entry.outcome)
                for entry in self._entries
            ]

    def clear(self) -> None:
        """Forget the requests; numbers continue."""
        with self._changed:
            self._entries.clear()

    def connection_opened(self) -> int:
        """Count a connection; returns its number."""
        with self._changed:
            self.connections += 1
            self.open_connections += 1
            self._notify()
            return self.connections

    def connection_closed(self) -> None:
        """Count a connection that is gone."""
        with self._changed:
            self.open_connections -= 1
            self._notify()

    def next_number(self) -> int:
        """The number of the request that comes now. Only the server's thread asks."""
        self._requests_begun += 1
        return self._requests_begun

    def begin(self, request: RecordedRequest) -> Entry:
        """Record a request."""
        entry = Entry(request)
        with self._changed:
            self._entries.append(entry)
            self._notify()
        return entry

    def end(self, entry: Entry, outcome: Outcome) -> None:
        """Record how a request ended."""
        with self._changed:
            entry.outcome = outcome
            self._notify()

    def wait_for(self, predicate: Callable[[], bool], timeout: float) -> None:
        """Block until `predicate` holds, or raise TimeoutError with what was seen."""
        with self._changed:
            if not self._changed.wait_for(predicate, timeout):
                raise TimeoutError(self._report(timeout))

    async def await_for(
        self,
        predicate: Callable[[], bool],
        timeout: float,  # noqa: ASYNC109 - as in `wait_for`
    ) -> None:
        """Do what `wait_for` does, without blocking the event loop."""
        changed = asyncio.Event()
        listener = partial(asyncio.get_running_loop().call_soon_threadsafe, changed.set)
        with self._changed:
            self._listeners.add(listener)
        try:
            async with asyncio.timeout(timeout):
                while not predicate():
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            raise TimeoutError(self._report(timeout)) from None
        finally:
            with self._changed:
                self._listeners.discard(listener)

    def forget_locks(self) -> None:
        """Take new locks, after a fork that may have copied taken ones."""
        self._changed = threading.Condition()
        self._listeners = set()

    def _notify(self) -> None:
        self._changed.notify_all()
        for listener in self._listeners:
            listener()

    def _report(self, timeout: float) -> str:
        requests = self.requests
        seen = "".join(f"\n  {request}" for request in requests)
        counts = f"{self.open_connections} of {self.connections} connections open"
        return f"not so after {timeout} s; {counts}, {len(requests)} requests:{seen}"
