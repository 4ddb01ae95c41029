"""What the OpenAI-compatible providers of the benches share.

A provider runs in a process of its own, as a module that prints its ports.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from aiohttp import web


def completion(
    kind: str, model: str, choices: list[Any], usage: tuple[int, int] | None = None
) -> dict[str, Any]:
    """A chat completion, or a chunk of one; usage is that of prompt and answer."""
    named = {"id": "chatcmpl-1", "object": kind, "created": 1, "model": model}
    body: dict[str, Any] = named | {"choices": choices}
    if usage:
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        body["usage"] = dict(zip(names, (*usage, sum(usage)), strict=True))
    return body


def event(model: str, delta: dict[str, Any], reason: str | None = None) -> bytes:
    """The event of a stream with one choice."""
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return sse(completion("chat.completion.chunk", model, [choice]))


def sse(data: Any) -> bytes:
    """An event with JSON data."""
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def error(
    status: int,
    message: str,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> web.Response:
    """An error with OpenAI's body."""
    body = {"message": message, "type": "error", "param": None, "code": code}
    return web.json_response({"error": body}, status=status, headers=headers)


async def serve(*providers: Sequence[web.RouteDef]) -> None:
    """Serve each provider's routes on a port of its own, and print the ports."""
    ports = []
    for routes in providers:
        app = web.Application()
        app.add_routes(routes)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ports.append(runner.addresses[0][1])
    print(json.dumps(ports), flush=True)
    await asyncio.Event().wait()


@contextlib.contextmanager
def running(module: str, *options: str) -> Iterator[list[str]]:
    """The addresses of the providers of a module, in a process of their own."""
    command = [sys.executable, "-m", module, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603
        assert server.stdout is not None
        try:
            ports = json.loads(server.stdout.readline())
            yield [f"http://127.0.0.1:{port}" for port in ports]
        finally:
            server.terminate()
