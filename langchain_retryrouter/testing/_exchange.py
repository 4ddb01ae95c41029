"""A request, as it was recorded, and the response to it, down to the bytes.

A `Step` decides what happens to a request: an `Answer`, or a fault of `_faults.py`. It
gets the response from an `Exchange`, which knows the protocol: `_gptrouter_api.py` and
`_openai_api.py` put what a provider says (`ResolvedAnswer`) into a `Response`.
"""

from __future__ import annotations

import contextlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from http import HTTPStatus
from itertools import chain
from types import EllipsisType
from typing import Any, Final, Literal, NamedTuple, TypeAlias

STUB_TEXT = "Hello from the stub upstream"
"""The text of a healthy answer unless the test sets another one."""

Text: TypeAlias = str | tuple[str, ...]
"""A text, streamed word by word; or its pieces, streamed one event each."""

CallPlace: TypeAlias = Literal["dropped", "tool_calls", "function_call"]
"""Where GPTRouter puts tool calls when nothing is streamed.

The public server drops them, and where the hosted one puts them is not known.
"""

Outcome: TypeAlias = Literal["pending", "sent", "faulted", "client_left"]

# Requests.

Edition: TypeAlias = Literal["public", "hosted"]
"""Which GPTRouter: the public snapshot of its source, or the newer hosted service."""

_ENDPOINTS = {
    "/api/v1/generate": "generate",
    "/api/v1/generate/embeddings": "embeddings",
    "/api/v1/generate/embeddings-v2": "embeddings-v2",
    "/v1/completions": "completions",
    "/v1/chat/completions": "chat",
    "/v1/embeddings": "embeddings",
}
HOSTED_ONLY = {"embeddings", "embeddings-v2"}
_AZURE = re.compile(r"/openai/deployments/([^/]+)(/.+)")


class Step:
    """What the gateway does with one request, such as `Status(429)` or `Reset()`."""

    __slots__ = ()

    def deliver(self, exchange: Exchange, /) -> Delivery:
        """What the server writes, and how it ends; called in the server's thread."""
        msg = f"{self!r} does not say how to answer request {exchange.request.number}"
        raise TypeError(msg)


@dataclass
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
        with contextlib.suppress(ValueError):
            if isinstance(body := self.json, dict):
                return body
        return {}

    @cached_property
    def deployment(self) -> str | None:
        """The Azure deployment in the path, None when this is not Azure's protocol."""
        azure = _AZURE.fullmatch(self.path)
        return azure[1] if azure else None

    @property
    def protocol(self) -> Literal["gptrouter", "openai"]:
        """The protocol that the path belongs to; an unknown path is GPTRouter's."""
        is_openai = self.path.startswith(("/v1/", "/openai/"))
        return "openai" if is_openai else "gptrouter"

    @cached_property
    def endpoint(self) -> str | None:
        """`generate`, `embeddings`, `embeddings-v2`, `completions` or `chat`.

        None for a path or a method that is not served.
        """
        endpoint = _ENDPOINTS.get(_AZURE.sub(r"/v1\2", self.path))
        is_public = self.protocol == "gptrouter" and self.gptrouter == "public"
        is_served = self.method == "POST" and not (
            is_public and endpoint in HOSTED_ONLY
        )
        return endpoint if is_served else None

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
        stream = self.payload.get("stream")
        return stream is True or stream == "true"

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages that are JSON objects, in their order."""
        given = self.parameters.get("messages")
        messages = given if isinstance(given, list) else []
        return [one for one in messages if isinstance(one, dict)]

    @property
    def prompts(self) -> list[object]:
        """The prompts: one, unless a list of texts or of token lists was sent."""
        prompt = None if self.endpoint == "chat" else self.parameters.get("prompt")
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            return prompt
        return [prompt]

    def count(self, name: str) -> int:
        """The parameter `name`, a count such as `n`; 1 when it is not given."""
        value = str(self.parameters.get(name))
        return max(1, int(value)) if value.isdecimal() else 1

    @property
    def closes_connection(self) -> bool:
        """Whether the client sends no further request on this connection."""
        return "close" in self.headers.get("connection", "").lower()

    def __str__(self) -> str:
        """One line for a log or an error message; the body stays out of it."""
        target = f"{self.method} {self.path}"
        ending = f"{self.step}, {self.outcome}"
        return f"#{self.number} by {self.connection}: {target} {self.model}, {ending}"


# Answers.

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
        return {**asdict(self), "total_tokens": self.total_tokens}


_FIRST_CALL: Final = "call_0"


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A function call in the form that models used before there were tools."""

    name: str
    arguments: Text = "{}"
    """JSON. A tuple is streamed one piece an event, a string in one event."""

    def as_dict(self) -> dict[str, str]:
        """Name and arguments as they stand in JSON."""
        return {"name": self.name, "arguments": "".join(self.arguments)}

    def deltas(self) -> Iterator[dict[str, str]]:
        """The call as a stream carries it: the name, then the arguments."""
        yield {"name": self.name, "arguments": ""}
        given = self.arguments
        for piece in (given,) if isinstance(given, str) else given:
            yield {"arguments": piece}


@dataclass(frozen=True, slots=True)
class ToolCall(FunctionCall):
    """A tool call."""

    id: str = _FIRST_CALL
    """If it is not given, the calls of an answer are `call_0`, `call_1` and so on."""

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
class Answer(Step):
    """A healthy answer. With nothing given, it is the gateway's own one.

    The usual value is made up for `...`; None would leave it out of the response.
    """

    text: Text | Callable[[RecordedRequest], str] | None = None
    """Sent word for word (`stop` does not cut it), in as many choices as `n` asks."""
    finish_reason: str | EllipsisType | None = ...
    usage: Usage | EllipsisType | None = ...
    """Counted if it is not given: one token a word."""
    tool_calls: tuple[ToolCall, ...] = ()
    function_call: FunctionCall | None = None
    model: str | None = None
    id: str | None = None
    unstreamed_calls: CallPlace = "dropped"
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

    def deliver(self, exchange: Exchange) -> Delivery:
        return exchange.send(exchange.healthy(self))

    @property
    def has_content(self) -> bool:
        """Whether this answer says something itself."""
        return self.text is not None or bool(self.tool_calls or self.function_call)

    def resolve(self, request: RecordedRequest) -> ResolvedAnswer:
        """This answer to `request`, with all that is not given made up."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        text = self.text(request) if callable(self.text) else self.text or ""
        found |= {"text": text, "choices": request.count("n") * len(request.prompts)}
        found["tool_calls"] = tuple(
            replace(call, id=f"call_{n}") if call.id == _FIRST_CALL else call
            for n, call in enumerate(self.tool_calls)
        )
        if self.finish_reason is ...:
            found["finish_reason"] = "tool_calls" if self.tool_calls else "stop"
            if self.function_call:
                found["finish_reason"] = "function_call"
        if self.usage is ...:
            found["usage"] = _count_usage(request, text)
        return ResolvedAnswer(**found)


HEALTHY: Final = Answer()
"""What answers where no script says anything."""


# The stub upstream of the recordings counted 10 tokens on top of the prompt's words.
# For a stream GPTRouter does not pass that count on: it makes an estimate of its own.
_PROMPT_OVERHEAD, _GPTROUTER_STREAM_OVERHEAD = 10, 7


def _count_usage(request: RecordedRequest, text: Text) -> Usage | None:
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
    generated = len(split_words(text)) * candidates * len(request.prompts)
    return Usage(overhead + prompt_tokens, generated)


def _count_words(content: object) -> int:
    """The words of a text, of token numbers, or of the parts of a message."""
    if isinstance(content, str):
        return len(content.split())
    if isinstance(content, dict):
        return _count_words(content.get("text"))
    if isinstance(content, list):
        return sum(_count_words(part) for part in content)
    return int(isinstance(content, int))


@dataclass(frozen=True, slots=True)
class ResolvedAnswer(Answer):
    """A healthy answer with nothing left open: the content of each of its choices."""

    text: Text = ""
    finish_reason: str | None = "stop"
    usage: Usage | None = None
    choices: int = 1

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
            named = {"id": call.id, "type": "function"}
            for said in call.deltas():
                tool_call = {"index": index, **named, "function": said}
                yield Delta(choice, tool_call=tool_call)
                named = {}
        for said in self.function_call.deltas() if self.function_call else ():
            yield Delta(choice, function_call=said)


# Responses.

Headers: TypeAlias = tuple[tuple[str, str], ...]

JSON_HEADERS: Headers = (("content-type", "application/json; charset=utf-8"),)
LAST_CHUNK = b"0\r\n\r\n"
WITHOUT_BODY = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_KEEP_ALIVE = "keep-alive\r\nkeep-alive: timeout=72"  # GPTRouter's own, as recorded

_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def reason(status: int) -> str:
    """The reason phrase of a status, also of one that no standard names."""
    return _REASONS.get(status, f"Status {status}")


def compact_json(value: Any) -> bytes:
    """JSON without white space, its text as raw UTF-8, as the real servers send it."""
    # Half a surrogate pair becomes JSON's escape of it.
    return _compact(value).encode(errors="backslashreplace")


def sse(value: Any) -> bytes:
    """One server-sent event with JSON data."""
    return b"data: %b\n\n" % compact_json(value)


def chunk(data: bytes) -> bytes:
    """One chunk of a body; nothing for no data, since an empty chunk ends the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


@dataclass(frozen=True, slots=True)
class Response:
    """A body that is sent at once, or a stream of events, each sent as one chunk."""

    status: int
    headers: Headers
    body: bytes = b""
    """Of a stream, what is sent with the headers, before the model is asked."""
    is_stream: bool = False
    events: tuple[bytes, ...] = ()
    """The events with content: what `after=N` counts."""
    opening: tuple[bytes, ...] = ()
    """Events without content before the first one with content."""
    closing: tuple[bytes, ...] = ()
    """Finish reasons, usage, end marks."""
    last_frame: bytes = b""
    """OpenAI's `[DONE]`, or GPTRouter's `event: end`."""

    def begin(self, *, close: bool) -> bytes:
        """Status line and headers, and of a stream what is sent with them."""
        fields = {name.lower() for name, _ in self.headers}
        lines = [f"HTTP/1.1 {self.status} {reason(self.status)}"]
        lines += [f"{n}: {v}" for n, v in self.headers if n.lower() != "connection"]
        if self.is_stream:
            lines.append("transfer-encoding: chunked")
        elif "content-length" not in fields and self.status not in WITHOUT_BODY:
            lines.append(f"content-length: {len(self.body)}")
        lines.append(f"connection: {'close' if close else _KEEP_ALIVE}\r\n\r\n")
        begin = "\r\n".join(lines).encode("latin-1")
        return begin + chunk(self.body) if self.is_stream else begin

    def rest(self, after: int = 0) -> tuple[bytes, ...]:
        """The chunks of a stream that follow `after` events; for 0 its opening too."""
        opening = () if after else self.opening
        frames = (*opening, *self.events[after:], *self.closing)
        return (*map(chunk, frames), chunk(self.last_frame) + LAST_CHUNK)


class Delivery(NamedTuple):
    """What the server does with one request."""

    actions: tuple[bytes | float, ...] = ()
    """Each `bytes` is one write, each number a wait; 0 lets the loop turn once."""
    ending: Literal["keep", "fin", "rst"] = "keep"
    """What happens to the connection after the response."""
    outcome: Outcome = "sent"


@dataclass(frozen=True, slots=True)
class Exchange(ABC):
    """One request, and the responses to it in the protocol that it speaks."""

    request: RecordedRequest
    own_answer: Callable[[RecordedRequest], Answer]
    """The gateway's own answer to what of a request reaches the model."""
    fixed: Response | None = None
    """The answer of a path that `FaultyGateway.respond` has set."""

    def healthy(self, answer: Answer = HEALTHY) -> Response:
        """The healthy response: `answer`, or the gateway's own with what it gives."""
        if known := self.fixed or self.vectors():
            return known
        seen = self.seen_by_model()
        if not answer.has_content:
            values = {field: getattr(answer, field.name) for field in fields(answer)}
            given = {f.name: value for f, value in values.items() if value != f.default}
            answer = replace(self.own_answer(seen), **given)
        return self.respond(answer.resolve(seen))

    def send(self, response: Response, outcome: Outcome = "sent") -> Delivery:
        """All of the response."""
        given = {(name.lower(), value.lower()) for name, value in response.headers}
        close = self.request.closes_connection or ("connection", "close") in given
        begin = response.begin(close=close)
        whole = (begin + response.body,)
        writes = (begin, *response.rest()) if response.is_stream else whole
        return Delivery(writes, "fin" if close else "keep", outcome)

    def end(self, *actions: bytes | float, outcome: Outcome = "sent") -> Delivery:
        """These writes and waits, and what the client asked to follow them."""
        close = self.request.closes_connection
        return Delivery(actions, "fin" if close else "keep", outcome)

    def seen_by_model(self) -> RecordedRequest:
        """What of the request reaches the model that answers: all of it."""
        return self.request

    @abstractmethod
    def vectors(self) -> Response | None:
        """The healthy response to a request for embeddings; None for any other."""

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
    ) -> Response:
        """The protocol's own response for this status."""

    def unstreamed_error(
        self, status: int | None, code: str | None, message: str
    ) -> Response:
        """The response to a request without streaming for an error inside a stream."""
        return self.error(status or 500, code, message)

    @abstractmethod
    def error_event(
        self, status: int | None, code: str | None, message: str, after: int
    ) -> bytes:
        """The end of a stream that fails after `after` events."""

    @abstractmethod
    def error_in_ok(self, code: str | None, message: str) -> bytes:
        """The body of an error that comes with status 200."""
