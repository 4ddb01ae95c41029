"""The models whose calls are cancelled, and the server that answers them by the call.

Each prompt says which call it belongs to and what becomes of it. So a request can be
told to be one too many, however late it comes.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from langchain_retryrouter import (
    CircuitBreaker,
    GPTRouter,
    GPTRouterModel,
    OpenAI,
    OpenAIChat,
    RetryBudget,
    RetryPolicy,
    RetryRouter,
    Route,
)
from langchain_retryrouter.circuit_breaker import BreakerState, Permit
from langchain_retryrouter.testing import (
    Answer,
    Cut,
    Drip,
    FaultyGateway,
    RecordedRequest,
    Reset,
    Silence,
    SlowFirstToken,
    Stall,
    Status,
    Step,
    Truncate,
)

RETRY_COST: Final = 14
_LONG = 60.0

FAULTS: Final[dict[str, tuple[Step, ...]]] = {
    "answers": (Answer(),),
    "drips": (Drip(0, 64),),
    "fails_once": (Status(503), Answer()),
    "throttles_once": (Status(429, {"retry-after": "0.002"}), Answer()),
    "resets_once": (Reset(), Answer()),
    "truncates_once": (Truncate(1), Answer()),
    "fails": (Status(503),),
    "cuts": (Cut(2),),
    "is_silent": (Silence(_LONG),),
    "is_late": (SlowFirstToken(_LONG),),
    "is_late_once": (SlowFirstToken(_LONG), Answer()),
    "stalls": (Stall(2, _LONG),),
}
"""What becomes of the requests of one call; the last step is that of all others."""

_PROMPT = re.compile(rb"(call|next) (\d+) (\w+)")


class Script:
    """Answers each request as its prompt says."""

    def __init__(self) -> None:
        """Nothing has been asked yet."""
        self.requests: Counter[int] = Counter()

    def __call__(self, request: RecordedRequest) -> Step:
        """The step for this one."""
        kind, number, fault = _read(request)
        if kind == "next":
            return Answer()
        steps = FAULTS[fault]
        self.requests[number] += 1
        return steps[min(self.requests[number], len(steps)) - 1]


def too_late(requests: list[RecordedRequest], number: int) -> list[str]:
    """Requests of a call that came when it was over: behind the one that came next."""
    following = [one.number for one in requests if _read(one)[0] == "next"]
    return [
        str(one)
        for one in requests
        if _read(one)[0] == "call"
        and (_read(one)[1] < number or one.number > following[0])
    ]


def _read(request: RecordedRequest) -> tuple[str, int, str]:
    found = _PROMPT.search(request.body)
    assert found is not None, request.body
    kind, number, fault = found.groups()
    return kind.decode(), int(number), fault.decode()


@dataclass
class Caller:
    """A model, and what guards its provider."""

    name: str
    model: Any
    budget: RetryBudget
    breakers: list[CircuitBreaker]
    asks_together: int = 1
    """How many requests of one call may be under way."""
    methods: tuple[str, ...] = ("ainvoke", "astream")
    faults: tuple[str, ...] = tuple(FAULTS)

    @property
    def hedges(self) -> bool:
        """Whether it asks two at a time."""
        return self.asks_together > 1

    def half_open(self) -> None:
        """Let each breaker wait for a probe, which the next call is."""
        for breaker in self.breakers:
            permit = self._permit(breaker)
            assert permit is not None, f"{self.name}: a probe's place was lost"
            breaker.failed(permit, time.monotonic())

    def stuck(self) -> int:
        """How many breakers wait for a probe that nobody sends any more."""
        count = 0
        for breaker in self.breakers:
            permit = self._permit(breaker)
            if permit is None:
                count += 1
            else:
                breaker.cancelled(permit)
        return count

    @staticmethod
    def _permit(breaker: CircuitBreaker) -> Permit | None:
        while breaker.state(time.monotonic()) is BreakerState.OPEN:
            pass  # For some microseconds.
        permit = breaker.admit(time.monotonic())
        return permit if isinstance(permit, Permit) else None


async def read(model: Any, prompt: str) -> int:
    """Read a stream to its end; how many chunks it had."""
    chunks = 0
    async for _ in model.astream(prompt):
        chunks += 1
    return chunks


_POLICY = RetryPolicy(initial_delay=0.001, max_delay=0.002)


def callers(gateway: FaultyGateway) -> list[Caller]:
    """All of them, asking `gateway`."""
    direct: dict[str, Any] = {"base_url": gateway.openai_url, "api_key": "any"}
    found = [
        _alone("GPTRouter", lambda **guards: _gpt_router(gateway, **guards)),
        _alone(
            "OpenAI",
            lambda **guards: OpenAI(model="gpt-3.5-turbo-instruct", **direct, **guards),
        ),
        _alone(
            "OpenAIChat",
            lambda **guards: OpenAIChat(model="gpt-4o", **direct, **guards),
        ),
    ]
    settings: dict[str, dict[str, Any]] = {
        "": {},
        " hedging": {"hedge_after": 0.002},
        " continuing": {"stream_recovery": "continue"},
        " buffering": {"stream_recovery": "buffer"},
    }
    for name, fields in settings.items():
        ours = [_gpt_router(gateway) for _ in range(2)]
        # Of a client that is shared by the process: nothing is to be left in it.
        foreign = [
            ChatOpenAI(
                model="gpt-4o", **direct, default_headers={"connection": "close"}
            )
            for _ in range(2)
        ]
        found.append(_router(f"RetryRouter{name} of GPTRouter", ours, fields))
        found.append(_router(f"RetryRouter{name} of ChatOpenAI", foreign, fields))
    return found


def sync_callers(gateway: FaultyGateway, *, is_guarded: bool) -> list[Caller]:
    """Those that wait in the thread of whoever asked, and are not hedged."""
    if is_guarded:
        return [
            caller
            for caller in callers(gateway)
            if not caller.hedges and "ChatOpenAI" not in caller.name
        ]
    direct: dict[str, Any] = {"base_url": gateway.openai_url, "api_key": "any"}
    models = [
        _gpt_router(gateway),
        OpenAI(model="gpt-3.5-turbo-instruct", **direct),
        OpenAIChat(model="gpt-4o", **direct),
        RetryRouter(routes=[_gpt_router(gateway)]),
    ]
    return [Caller(type(one).__name__, one, RetryBudget(), []) for one in models]


def _gpt_router(gateway: FaultyGateway, **guards: Any) -> GPTRouter:
    return GPTRouter(
        models_priority_list=[
            GPTRouterModel(name="gpt-4o", provider_name="chat_openai"),
        ],
        gpt_router_api_base=gateway.url,
        gpt_router_api_key=SecretStr("any"),
        **guards,
    )


def _breaker() -> CircuitBreaker:
    return CircuitBreaker(failure_threshold=1, recovery_time=1e-6)


def _guards() -> dict[str, Any]:
    return {
        "retry_policy": _POLICY,
        "budget": RetryBudget(capacity=1e9, success_gain=0),
        # Of which there is one for each call, and now and then one has to wait.
        "rate_limiter": InMemoryRateLimiter(
            requests_per_second=200, check_every_n_seconds=0.001, max_bucket_size=3
        ),
    }


def _alone(name: str, make: Any) -> Caller:
    guards, breaker = _guards(), _breaker()
    return Caller(name, make(breaker=breaker, **guards), guards["budget"], [breaker])


def _router(name: str, models: list[Any], fields: dict[str, Any]) -> Caller:
    guards, breakers = _guards(), [_breaker(), _breaker()]
    routes = [
        Route(model=model, name=str(place), breaker=breaker)
        for place, (model, breaker) in enumerate(zip(models, breakers, strict=True))
    ]
    router = RetryRouter(routes=routes, **guards, **fields)
    caller = Caller(name, router, guards["budget"], breakers)
    if "hedge_after" in fields:
        caller.asks_together = 2
        # Streams are hedged, and where the first is late there is a race.
        caller.methods = ("astream",)
        caller.faults = ("is_late_once", "is_late_once", "is_late", "is_silent")
    return caller
