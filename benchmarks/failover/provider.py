"""An OpenAI-compatible provider whose faults are chosen by the name of the model.

`fb-ok` is healthy; `fb-s01` to `fb-s16` have the faults of `scenarios.py`. All are on
one host and port. `POST /reset` begins a scenario, `GET /log` tells every request
since. It runs in a process of its own: `python -m benchmarks.failover.provider`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from typing import Any, Final

from aiohttp import ClientConnectionResetError, web

from benchmarks.openai_server import completion, error, event, serve, sse
from benchmarks.scaled_loop import run

TEXT: Final = (
    "Providers fail in more ways than one. Some refuse at once, which is easy to see;"
    " others take a request, say nothing, and keep the line open. A stream can stop in"
    " the middle of a sentence, or lose its last word. What a caller needs is simple:"
    " the whole answer, or an honest error, and neither later than promised."
)
"""Every healthy answer: 60 words with punctuation."""

OUTAGE: Final = 60.0
"""Seconds for which the primary of S15 is down."""

_FIRST_TOKEN, _STALL, _SILENCE, _TOKEN = 20.0, 30.0, 120.0, 0.015
_CUT_AFTER, _STALL_AFTER, _MALFORMED_AT = 40, 20, 10
_BUSY: Final = (503, "The engine is currently overloaded.", "overloaded")
_TOO_LONG: Final = (
    "This model's maximum context length is 8192 tokens. However, your messages"
    " resulted in 9631 tokens."
)


class Provider:
    """The faults, and the log of the requests since the last reset."""

    def __init__(self) -> None:
        """Nothing is asked yet."""
        self.retry_after = "2"
        self.began = 0.0
        self.log: list[dict[str, Any]] = []
        self.attempts: Counter[str] = Counter()

    def now(self) -> float:
        """Seconds since the last reset."""
        return asyncio.get_running_loop().time() - self.began

    async def reset(self, request: web.Request) -> web.Response:
        """Forget everything; `retry_after` is what S01 will send."""
        self.retry_after = (await request.json())["retry_after"]
        self.log, self.attempts = [], Counter()
        self.began = asyncio.get_running_loop().time()
        return web.json_response({})

    async def tell(self, _: web.Request) -> web.Response:
        """The log."""
        return web.json_response(self.log)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """One request of a chat completion."""
        body = await request.json()
        model, messages = body["model"], body["messages"]
        size = sum(len(str(one.get("content")).split()) + 4 for one in messages)
        self.attempts[model] += 1
        entry = {"at": self.now(), "model": model, "did": "200", "prompt_tokens": size}
        self.log.append(entry)
        rest = TEXT
        if messages[-1]["role"] == "assistant":
            if model == "fb-ok-noprefill":
                entry["did"] = "400 prefill"
                return error(400, "This model does not take a prefill.")
            rest = TEXT.removeprefix(messages[-1]["content"])
        fault = model.removeprefix("fb-")
        if refusal := self._refusal(fault, is_first=self.attempts[model] == 1):
            entry["did"] = str(refusal.status)
            return refusal
        if fault == "s06" or (fault == "s05" and self.attempts[model] == 1):
            entry["did"] = "no answer"
            if fault == "s06":
                await asyncio.sleep(_SILENCE)
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        say = _stream if body.get("stream") else _whole
        try:
            return await say(request, fault, model, rest, size)
        except (ClientConnectionResetError, ConnectionResetError):
            return web.Response()  # The client has gone.

    def _refusal(self, fault: str, *, is_first: bool) -> web.Response | None:
        """The answer of a fault that is an HTTP status."""
        limit = "Rate limit reached."
        match fault:
            case "s01" if is_first:
                limit += f" Please retry after {self.retry_after} seconds."
                headers = {"retry-after": self.retry_after}
                return error(429, limit, "rate_limit_exceeded", headers)
            case "s02":
                return error(429, limit, "rate_limit_exceeded")
            case "s03" if is_first:
                return error(500, "The server had an error.")
            case "s04" | "s16":
                return error(*_BUSY)
            case "s15" if self.now() < OUTAGE:
                return error(*_BUSY)
            case "s12":
                return error(400, _TOO_LONG, "context_length_exceeded")
            case "s13":
                rejected = "Your request was rejected by our safety system."
                return error(400, rejected, "content_policy_violation")
        return None


async def _whole(
    request: web.Request, fault: str, model: str, text: str, size: int
) -> web.StreamResponse:
    """Answer without a stream; a break comes inside the body."""
    if fault == "s07":
        await asyncio.sleep(_FIRST_TOKEN)
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = size, len(text.split())
    answer = completion("chat.completion", model, [choice], usage)
    data = json.dumps(answer).encode()
    if fault == "s10":
        data = data[: len(data) // 2] + b'"oops'
    response = web.StreamResponse(headers={"content-type": "application/json"})
    response.content_length = len(data)
    await response.prepare(request)
    if fault in {"s08", "s14", "s09"}:
        if fault == "s09":
            await asyncio.sleep(_STALL)
        else:
            await response.write(data[: len(data) * 3 // 5])
        return _closed(request, response)
    await response.write(data)
    await response.write_eof()
    return response


async def _stream(
    request: web.Request, fault: str, model: str, text: str, size: int
) -> web.StreamResponse:
    """Answer with a stream, a token each 15 ms; a break comes between tokens."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    response.enable_chunked_encoding()
    await response.prepare(request)

    async def send(delta: dict[str, str], reason: str | None = None) -> None:
        await response.write(event(model, delta, reason))

    if fault == "s07":
        await asyncio.sleep(_FIRST_TOKEN)
    await send({"role": "assistant", "content": ""})
    for number, word in enumerate(text.split()):
        if fault in {"s08", "s14"} and number == _CUT_AFTER:
            return _closed(request, response)
        if fault == "s09" and number == _STALL_AFTER:
            await asyncio.sleep(_STALL)
            return _closed(request, response)
        if fault == "s10" and number == _MALFORMED_AT:
            await response.write(b'data: {"choices": [{"delta": {"content": \n\n')
        await send({"content": f" {word}" if number or text != TEXT else word})
        await asyncio.sleep(_TOKEN)
    await send({}, "stop")
    usage = size, len(text.split())
    await response.write(sse(completion("chat.completion.chunk", model, [], usage)))
    if fault != "s11":
        await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def _closed(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """End the connection with a FIN, the body unfinished."""
    if request.transport is not None:
        request.transport.close()
    return response


if __name__ == "__main__":
    provider = Provider()
    routes = [
        web.post("/v1/chat/completions", provider.chat),
        web.post("/reset", provider.reset),
        web.get("/log", provider.tell),
    ]
    run(serve(routes), float(sys.argv[1]))
