"""Every reader of an answer, from its bytes to what the caller has of it.

No socket is in between: what is fuzzed is what is read, not how it comes. Each takes a
body, reads it as the models do, and looks at what was accepted. An error of the tree is
an answer too; anything else that leaves here is a crash.
"""

# ruff: noqa: SLF001 - a reader is called where it is, below all sockets

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from random import Random  # noqa: TID251 - handed in, by the seed of the input
from typing import Any, Final, TypeAlias

import openai
import urllib3
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatResult, LLMResult
from langchain_openai import ChatOpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from langchain_retryrouter import OpenAI, OpenAIChat
from langchain_retryrouter._gptrouter import client as transport
from langchain_retryrouter._gptrouter.bodies import _EventQueue
from langchain_retryrouter._gptrouter.embeddings import read_vectors
from langchain_retryrouter._gptrouter.messages import (
    ChunkReader,
    assemble,
    build_messages,
    read_result,
)
from langchain_retryrouter._gptrouter.protocol import add_usage
from langchain_retryrouter._http.sse import EventTooLargeError, SSEParser
from langchain_retryrouter._openai import protocol as wire
from langchain_retryrouter._openai.clients import plain, sending
from langchain_retryrouter._openai.clients.sharing import http_library
from langchain_retryrouter._openai.clients.streams import SDKStream
from langchain_retryrouter._openai.errors import from_page, from_problem, typed_errors
from langchain_retryrouter._providers.errors import name_failure
from langchain_retryrouter._providers.finish_reasons import ChunkReader as EndReader
from langchain_retryrouter._providers.finish_reasons import finish_reason_in
from langchain_retryrouter._providers.history import fit_history
from langchain_retryrouter._retry.retry_after import read_advice
from langchain_retryrouter.errors import RetryRouterError, UnsupportedOptionError
from tests.promises.mutations import split

Reader: TypeAlias = Callable[[bytes, Random], None]

WALL: Final = 1_800_000_000.0
PROVIDERS: Final = {"gpt-4": "chat_openai"}
_LIBRARY: Final = http_library()
_REQUEST: Final = _LIBRARY.Request("POST", "http://127.0.0.1/v1/chat/completions")
_STATUSES: Final = (400, 401, 403, 404, 406, 408, 422, 429, 500, 502, 503, 529)
_RESEND_SHARE: Final = 0.1


@functools.cache
def _llms() -> tuple[OpenAI | OpenAIChat, ...]:
    base = "http://127.0.0.1/v1"
    return (
        OpenAI(api_key="any", base_url=base),
        OpenAIChat(api_key="any", base_url=base),
    )


@functools.cache
def _chat_model() -> Any:
    return ChatOpenAI(model="gpt-4o", api_key="any", base_url="http://127.0.0.1/v1")  # type: ignore[arg-type]


@functools.cache
def _sdk() -> Any:
    return openai.OpenAI(api_key="any", base_url="http://127.0.0.1/v1")


# Server-sent events.


def sse(body: bytes, rng: Random) -> None:
    """The parser: a body's events are the same, however it was cut."""
    limit = rng.choice((64, 1_000_000))
    whole = _events([body], limit)
    assert _events(split(rng, body), limit) == whole, "the events depend on the cuts"


def _events(parts: Sequence[bytes], limit: int) -> list[object]:
    parser = SSEParser(limit)
    events: list[object] = []
    try:
        for part in parts:
            events.extend(parser.feed(part))
    except EventTooLargeError as error:
        return [str(error)]
    return events


# GPTRouter.


def gateway_answer(body: bytes, rng: Random) -> None:
    """An answer in one piece."""
    status = 200 if rng.random() < 0.8 else rng.choice((204, *_STATUSES))
    data = transport._read_answer(_http_response(rng, status), body)
    _check_result(read_result(transport._read_generation(data), PROVIDERS), rng)


def gateway_stream(body: bytes, rng: Random) -> None:
    """A stream: chunk by chunk, and put together."""
    whole = _Told([body])
    assert _Told(split(rng, body)) == whole, "the answer depends on the cuts"
    read = ChunkReader(PROVIDERS)
    chunks = [chunk for event in whole.events if (chunk := read(event)) is not None]
    for chunk in chunks:
        _check_message(chunk.message)
    if chunks:
        _check_message(functools.reduce(lambda one, other: one + other, chunks).message)
    _check_result(read_result(assemble(whole.events), PROVIDERS), rng)
    if whole.error is not None:
        raise whole.error


class _Told:
    """What a stream told until it ended, or broke."""

    def __init__(self, parts: Sequence[bytes]) -> None:
        self.events: list[Any] = []
        self.error: RetryRouterError | None = None
        queue = _EventQueue()
        try:
            for part in [*filter(None, parts), b""]:
                queue.feed(part)
                while (event := queue.take()) is not None:
                    self.events.append(event)
                if queue.is_over:
                    break
            queue.check_whole()
        except RetryRouterError as error:
            self.error = error

    def __eq__(self, other: object) -> bool:
        # As texts: nan is not itself.
        return repr(self) == repr(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{self.events!r} {type(self.error).__name__} {self.error}"


def gateway_vectors(body: bytes, rng: Random) -> None:
    """An answer of the embeddings endpoint."""
    data = transport._read_answer(_http_response(rng, 200), body)
    for vector in read_vectors(data, 2):
        assert all(type(number) is float for number in vector), vector


# OpenAI's LLMs.


def openai_answer(body: bytes, rng: Random) -> None:
    """An answer of either endpoint, as plain data."""
    with _errors():
        raw = sending._checked(plain._answer_in(_response(rng, body)), {})
    llm = rng.choice(_llms())
    _check_llm_result(llm._result([llm._read(raw), llm._read(raw)], ["a", "b"], {}))


def openai_objects(body: bytes, rng: Random) -> None:
    """An answer of either endpoint, as the SDK's objects."""
    kind = rng.choice((Completion, ChatCompletion))
    with _errors():
        raw = sending._checked(_parsed(body, kind), {})
    llm = rng.choice(_llms())
    _check_llm_result(llm._result([llm._read(raw)], ["a"], {}))


def openai_stream(body: bytes, rng: Random) -> None:
    """A stream of either endpoint, as plain data."""
    llm = rng.choice(_llms())
    texts, whole = _follow([body])
    cut_texts, cut = _follow(split(rng, body))
    assert "".join(texts) == "".join(cut_texts), "the text depends on the cuts"
    assert repr(whole) == repr(cut), "the end depends on the cuts"
    if isinstance(whole, RetryRouterError):
        raise whole
    _check_llm_result(llm._result([whole], ["a"], {}))


def _follow(
    parts: Sequence[bytes],
) -> tuple[list[str], wire.Answer | RetryRouterError]:
    """What the chunks of a stream said, and what it was in the end."""
    response = _LIBRARY.Response(200, stream=_body_of(parts), request=_REQUEST)
    signals, reader = wire.StreamReader(1), wire.ChunkReader()
    events = SDKStream(plain.PlainEvents(response), signals, _errors)
    chunks: list[Any] = []
    try:
        with contextlib.closing(events):
            for raw in events:
                signals(raw)
                chunks.append(reader.read(raw))
                assert isinstance(chunks[-1].text, str)
        if not signals.is_whole:
            raise from_problem(wire.malformed("a stream without an end"))
        if reader.problem is not None:
            raise from_problem(reader.problem)
        return [chunk.text for chunk in chunks], wire.join(chunks)
    except RetryRouterError as error:
        return [chunk.text for chunk in chunks], error


@functools.cache
def _body_class() -> Any:
    class Body(_LIBRARY.SyncByteStream):  # type: ignore[misc, name-defined]
        def __init__(self, parts: Sequence[bytes]) -> None:
            self._parts = parts

        def __iter__(self) -> Iterator[bytes]:
            yield from self._parts

    return Body


def _body_of(parts: Sequence[bytes]) -> Any:
    return _body_class()(parts)


def openai_error(body: bytes, rng: Random) -> None:
    """An error of the SDK, to OpenAI's LLMs; or a page where a stream was due."""
    response = _response(rng, body)
    if rng.random() < 0.2:
        raise from_page(response)
    with _errors():
        raise _sdk_error(response, rng)


# A router's routes.


def router_error(body: bytes, rng: Random) -> None:
    """An error of an SDK, to a router."""
    _raise_named(_sdk_error(_response(rng, body), rng))


def router_answer(body: bytes, rng: Random) -> None:
    """An answer, as `ChatOpenAI` reads it for a router."""
    del rng
    try:
        result = chat_openai(body)
    except Exception as error:  # noqa: BLE001 - named, or a crash
        _raise_named(error)
    for generation in result.generations:
        finish_reason_in(generation)
        _check_message(generation.message, is_ours=False)
        fit_history([generation.message], "anthropic")


def chat_openai(body: bytes) -> ChatResult:
    """The same without us."""
    answer = _parsed(body, ChatCompletion)
    result: ChatResult = _chat_model()._create_chat_result(answer)
    return result


def router_stream(body: bytes, rng: Random) -> None:
    """A stream, as `ChatOpenAI` reads it for a router."""
    model, read = _chat_model(), EndReader()
    try:
        parts = _body_of(split(rng, body))
        response = _LIBRARY.Response(200, stream=parts, request=_REQUEST)
        stream = openai.Stream(
            cast_to=ChatCompletionChunk, response=response, client=_sdk()
        )
        for event in stream:
            chunk = model._convert_chunk_to_generation_chunk(
                event.model_dump(), AIMessageChunk, {}
            )
            if chunk is not None:
                assert isinstance(read(chunk).text, str)
    except Exception as error:  # noqa: BLE001 - named, or a crash
        _raise_named(error)


def _raise_named(error: Exception) -> None:
    named = name_failure(error, WALL)
    raise error if named is None else named


# What servers say beside an answer.


def headers(body: bytes, rng: Random) -> None:
    """When to come back, out of any header."""
    del body
    advice = read_advice(_headers(rng), unix_time=WALL)
    assert advice.retry_after is None or 0 <= advice.retry_after < float("inf")


_NAMES: Final = (
    "retry-after",
    "Retry-After-Ms",
    "x-should-retry",
    "date",
    "x-ratelimit-reset-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset",
    "x-ratelimit-remaining",
    "llm_provider-retry-after",
    "x-request-id",
)
_VALUES: Final = (
    "1",
    "0.5",
    "-1",
    "inf",
    "nan",
    "1e9",
    "9" * 64,
    "٣",
    "true",
    "false",
    "0",
    "1m30.5s",
    "1d1h1ms",
    "2000000000",
    "Wed, 21 Oct 2026 07:28:00 GMT",
    "Mon, 01 Jan 0001 00:00:00 GMT",
    "Mon, 31 Dec 9999 23:59:59 -2359",
    "Mon, 01 Jan 99999999999 00:00:00 GMT",
    "Sun Nov  6 08:49:37 1994",
    "1, 2, x",
    "",
)


def _http_response(rng: Random, status: int) -> urllib3.HTTPResponse:
    return urllib3.HTTPResponse(
        headers=urllib3.HTTPHeaderDict(_headers(rng)), status=status
    )


def _headers(rng: Random) -> list[tuple[str, str]]:
    """Header fields, some of them odd."""
    fields: list[tuple[str, str]] = []
    for _ in range(rng.randrange(4)):
        value = rng.choice(_VALUES)
        for _change in range(rng.randrange(3)):
            at = rng.randrange(len(value) + 1)
            told = rng.choice(("", chr(rng.randrange(33, 256)), *_VALUES))
            value = value[:at] + told + value[at + rng.randrange(4) :]
        fields.append((rng.choice(_NAMES), value))
    return fields


# What all of them need.


def _errors() -> contextlib.AbstractContextManager[None]:
    return typed_errors(lambda: WALL, None)


def _response(rng: Random, body: bytes) -> Any:
    status = 200 if rng.random() < 0.5 else rng.choice(_STATUSES)
    fields = [
        (name, value.encode("latin-1", "replace")) for name, value in _headers(rng)
    ]
    return _LIBRARY.Response(status, headers=fields, content=body, request=_REQUEST)


def _parsed(body: bytes, kind: Any) -> Any:
    """What the SDK makes of a body."""
    response = _LIBRARY.Response(
        200,
        headers={"content-type": "application/json"},
        content=body,
        request=_REQUEST,
    )
    return _sdk()._process_response(
        cast_to=kind,
        options=_OPTIONS,
        response=response,
        stream=False,
        stream_cls=None,
    )


_OPTIONS: Final = openai._models.FinalRequestOptions.construct(
    method="post", url="/chat/completions"
)


def _sdk_error(response: Any, rng: Random) -> Exception:
    """What the SDK raises for a body: as an answer, or as an event of a stream."""
    if rng.random() < 0.7:
        error: Exception = _sdk()._make_status_error_from_response(response)
        return error
    try:
        told = json.loads(response.content)
    except (ValueError, RecursionError):
        told = response.text
    told = told.get("error", told) if isinstance(told, dict) else told
    message = told.get("message") if isinstance(told, dict) else None
    said = message if isinstance(message, str) else "An error occurred"
    return openai.APIError(message=said, request=_REQUEST, body=told)


def _check_result(result: ChatResult, rng: Random) -> None:
    for generation in result.generations:
        _check_message(generation.message)
        if rng.random() < _RESEND_SHARE:
            # Half a character can be read, and cannot be sent.
            with contextlib.suppress(UnsupportedOptionError):
                transport._encode({"messages": build_messages([generation.message])})
    add_usage([result.llm_output, result.llm_output])


def _check_message(message: BaseMessage, *, is_ours: bool = True) -> None:
    assert isinstance(message.content, str if is_ours else str | list)
    if not isinstance(message, AIMessage):
        assert not is_ours, "another role than ChatOpenAI read"
        return
    for name, count in (message.usage_metadata or {}).items():
        is_count = isinstance(count, int) and count >= 0
        assert not is_ours or is_count or isinstance(count, dict), (name, count)
    for call in message.tool_calls:
        assert isinstance(call["args"], dict), call
        assert isinstance(call["name"], str), call


def _check_llm_result(result: LLMResult) -> None:
    for generation in (one for some in result.generations for one in some):
        assert isinstance(generation.text, str), generation
    usage = (result.llm_output or {})["token_usage"]
    for name, count in usage.items():
        is_negative = isinstance(count, int | float) and not count >= 0
        assert not is_negative, (name, count)
