"""An OpenAI-compatible chat provider that misbehaves by a seeded script.

It runs in its own process. Each prompt is `call N`. Which fault meets the first request
of a call at a provider is drawn from the seed, the provider's name and N, so that every
system meets the same faults. A transient fault is over with the next request of the
call in half of the cases; a refusal and a 400 about the route stay.
"""

from __future__ import annotations

import asyncio
import collections
import json
import random
import sys
from typing import Final

from aiohttp import ClientConnectionResetError, web

from benchmarks.openai_server import completion, error, event, serve
from benchmarks.scaled_loop import run

ANSWER: Final = " ".join(f"word{number}" for number in range(1, 61)) + "."
_TOKENS: Final = [f"{word} " for word in ANSWER.split(" ")]
_TOKENS[-1] = _TOKENS[-1].strip()

FAULTS: Final = {
    # name: (weight, whether it stays for the call's next requests at this provider)
    "rate_limit": (20, False),
    "unavailable": (18, False),
    "silence": (8, False),
    "slow_first_token": (8, False),
    "cut": (10, False),
    "clean_cut": (6, False),
    "reset": (10, False),
    "refusal": (5, True),
    "empty": (5, False),
    "route_400": (10, True),
}


class Provider:
    """The faults of one provider, and what its log saw."""

    def __init__(self, name: str, fault_share: float, seed: int) -> None:
        """`fault_share` of the calls meet a fault at first."""
        self.name, self.fault_share, self.seed = name, fault_share, seed
        self.requests: collections.Counter[str] = collections.Counter()

    def fault(self, call: str, attempt: int) -> str | None:
        """What happens to this request; None: it is answered."""
        draw = random.Random(f"{self.seed}:{self.name}:{call}")
        if draw.random() >= self.fault_share:
            return None
        names = list(FAULTS)
        name = draw.choices(names, [FAULTS[one][0] for one in names])[0]
        if attempt == 1 or FAULTS[name][1]:
            return name
        again = random.Random(f"{self.seed}:{self.name}:{call}:{attempt}")
        return name if again.random() < 0.5 else None

    def drawn(self, call: str, low: float, high: float) -> float:
        """A number for this call between `low` and `high`."""
        return random.Random(f"{self.seed}:{self.name}:{call}:n").uniform(low, high)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One request of a chat completion."""
        body = await request.json()
        call = str(body["messages"][-1]["content"])
        self.requests[call] += 1
        fault = self.fault(call, self.requests[call])
        if fault == "rate_limit":
            seconds = str(round(self.drawn(call, 1, 60)))
            headers = {"retry-after": seconds}
            return error(429, "Rate limit reached", headers=headers)
        if fault == "unavailable":
            return error(503, "The engine is currently overloaded")
        if fault == "route_400":
            return error(400, "Unsupported value: this model does not support it")
        if fault == "silence":
            await asyncio.sleep(60)  # as load balancers do with a silent server
            fault = "reset"
        if fault == "reset":
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        await asyncio.sleep(
            self.drawn(call, 15, 45)
            if fault == "slow_first_token"
            else self.drawn(call, 0.3, 1.5)
        )
        say = self._stream if body.get("stream") else self._whole
        try:
            return await say(request, fault)
        except ClientConnectionResetError:  # The client has gone.
            return web.Response()

    async def _whole(
        self, request: web.Request, fault: str | None
    ) -> web.StreamResponse:
        await asyncio.sleep(0.015 * len(_TOKENS))
        text = "" if fault in {"refusal", "empty"} else ANSWER
        choice = {
            "index": 0,
            "finish_reason": "content_filter" if fault == "refusal" else "stop",
            "message": {"role": "assistant", "content": text},
        }
        answer = completion("chat.completion", self.name, [choice], (9, 60))
        data = json.dumps(answer).encode()
        if fault not in {"cut", "clean_cut"}:
            return web.Response(body=data, content_type="application/json")
        response = web.StreamResponse(headers={"content-type": "application/json"})
        response.content_length = len(data)
        await response.prepare(request)
        await response.write(data[: len(data) // 2])
        assert request.transport is not None
        request.transport.abort()
        return response

    async def _stream(
        self, request: web.Request, fault: str | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        tokens = [] if fault in {"refusal", "empty"} else _TOKENS
        await response.write(event(self.name, {"role": "assistant", "content": ""}))
        for number, token in enumerate(tokens, start=1):
            await response.write(event(self.name, {"content": token}))
            await asyncio.sleep(0.015)
            if number == 40 and fault in {"cut", "clean_cut"}:
                if fault == "cut":
                    assert request.transport is not None
                    request.transport.abort()
                return response
        reason = "content_filter" if fault == "refusal" else "stop"
        await response.write(event(self.name, {}, reason) + b"data: [DONE]\n\n")
        return response

    async def log(self, _: web.Request) -> web.Response:
        """How many requests each call has sent; forgotten with this."""
        seen = dict(self.requests)
        self.requests.clear()
        return web.json_response(seen)


if __name__ == "__main__":
    seed, scale = int(sys.argv[1]), float(sys.argv[2])
    shares = {"primary": 0.3, "backup": 0.03}
    routes = [
        [
            web.post("/v1/chat/completions", provider.answer),
            web.get("/log", provider.log),
        ]
        for provider in (Provider(name, shares[name], seed) for name in shares)
    ]
    run(serve(*routes), scale)
