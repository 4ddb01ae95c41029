"""A fast stub server in a process of its own, for GPTRouter's and OpenAI's protocols.

The address says what it does, so that every client can ask for it: `/d50` in front of
the path is a delay of 50 ms, `/n1000` a stream of 1,000 tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import multiprocessing
import re
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Final, cast

MODEL: Final = "gpt-4-0613"
WORD: Final = "word "
_TEXT: Final = "Hello from the stub upstream"
_USAGE: Final = {"completion_tokens": 5, "prompt_tokens": 11, "total_tokens": 16}
_SWITCHES: Final = re.compile(rb"/([dn])(\d+)(?=/)")
_STREAMS: Final = re.compile(rb'"stream":\s*true')
_LENGTH: Final = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)
_FRAME: Final = 60_000


class StubServer:
    """The server, seen from the process that measures."""

    def __init__(self, url: str) -> None:
        """Over a server that runs."""
        self.url = url

    def at(self, *, delay_ms: int = 0, tokens: int = 0) -> str:
        """Its address with what it shall do."""
        delay = f"/d{delay_ms}" if delay_ms else ""
        return f"{self.url}{delay}{f'/n{tokens}' if tokens else ''}"


@contextlib.contextmanager
def running() -> Iterator[StubServer]:
    """A server on loopback for as long as the block lasts."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        yield StubServer(ours.recv())
    finally:
        ours.close()
        process.join()


def _serve(pipe: Connection) -> None:
    asyncio.run(_serve_until_told(pipe))


async def _serve_until_told(pipe: Connection) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Protocol, "127.0.0.1", 0, backlog=4096)
    stop = asyncio.Event()
    loop.add_reader(pipe.fileno(), stop.set)  # The other end was closed.
    pipe.send(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await stop.wait()
    loop.remove_reader(pipe.fileno())
    server.close()


class _Protocol(asyncio.Protocol):
    """HTTP/1.1 as far as well-behaved clients on loopback need it."""

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._transport = None

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer = self._buffer + data if self._buffer else data
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(buffer, 0, end)
        whole = end + 4 + (int(length[1]) if length else 0)
        if len(buffer) < whole:
            return
        self._buffer = b""
        line = buffer[: buffer.find(b"\r\n")]
        switches = {key: int(number) for key, number in _SWITCHES.findall(line)}
        is_stream = _STREAMS.search(buffer, end) is not None
        answer = _answer(_family(line), is_stream, switches.get(b"n", 5))
        delay = switches.get(b"d", 0)
        if delay:
            loop = asyncio.get_running_loop()
            loop.call_later(delay / 1000, self._write, answer)
        else:
            self._write(answer)

    def _write(self, answer: bytes) -> None:
        if self._transport is not None:
            self._transport.write(answer)


def _family(line: bytes) -> str:
    if b"/generate" in line:
        return "gptrouter"
    return "chat" if b"/chat/" in line else "completions"


@functools.cache
def _answer(family: str, is_stream: bool, tokens: int) -> bytes:  # noqa: FBT001
    if is_stream:
        return _chunked(b"".join(_EVENTS[family](tokens)))
    body = _dump(_WHOLE[family])
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json; charset=utf-8\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )


def _chunked(body: bytes) -> bytes:
    frames = [
        b"%x\r\n%b\r\n" % (len(frame), frame)
        for start in range(0, len(body), _FRAME)
        if (frame := body[start : start + _FRAME])
    ]
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    return b"".join([head, *frames, b"0\r\n\r\n"])


def _dump(data: Any) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()


def _data(data: Any) -> bytes:
    return b"data: %b\n\n" % _dump(data)


# --- the gateway --------------------------------------------------------------------


def _gptrouter_events(tokens: int) -> Iterator[bytes]:
    def update(text: str, finish_reason: str | None) -> bytes:
        data = {"text": text, "finish_reason": finish_reason}
        return _data({"id": "chatcmpl-1", "event": "update", "data": data})

    yield b"retry: 3000\n\n"
    for _ in range(tokens):
        yield update(WORD, None)
    yield update("", "stop")
    yield _data({"event": "meta", "data": {"model": MODEL, "usage": _USAGE}})
    yield _data({"event": "end", "data": "end"})
    yield b"event: end\ndata: Stream closed\n\n"


# --- OpenAI -------------------------------------------------------------------------


def _openai_events(tokens: int, *, is_chat: bool) -> Iterator[bytes]:
    kind = "chat.completion.chunk" if is_chat else "text_completion"

    def chunk(text: str, finish_reason: str | None) -> bytes:
        delta = {"content": text} if text else {}
        said: dict[str, Any] = {"delta": delta} if is_chat else {"text": text}
        choice = {"index": 0, **said, "finish_reason": finish_reason}
        return _data({**_chunk_of(kind), "choices": [choice]})

    for _ in range(tokens):
        yield chunk(WORD, None)
    yield chunk("", "stop")
    yield b"data: [DONE]\n\n"


def _chunk_of(kind: str) -> dict[str, Any]:
    return {"id": "cmpl-1", "object": kind, "created": 1_790_000_000, "model": MODEL}


_WHOLE: Final[dict[str, dict[str, Any]]] = {
    "gptrouter": {
        "id": "chatcmpl-1",
        "choices": [
            {"index": 0, "text": _TEXT, "finish_reason": "stop", "role": "assistant"}
        ],
        "model": MODEL,
        "providerId": "7dc8712a-63a4-4788-bf25-496fd2b2dc84",
        "modelId": "631b2d96-4f17-4544-a676-7a0f87372415",
        "meta": {"usage": _USAGE},
    },
    "chat": {
        **_chunk_of("chat.completion"),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": _TEXT},
                "finish_reason": "stop",
            }
        ],
        "usage": _USAGE,
    },
    "completions": {
        **_chunk_of("text_completion"),
        "choices": [{"index": 0, "text": _TEXT, "finish_reason": "stop"}],
        "usage": _USAGE,
    },
}
_EVENTS: Final[dict[str, Callable[[int], Iterator[bytes]]]] = {
    "gptrouter": _gptrouter_events,
    "chat": functools.partial(_openai_events, is_chat=True),
    "completions": functools.partial(_openai_events, is_chat=False),
}
