"""Fault scripts by their number, and all that became of one, line by line.

A script is a model, two calls of it, and what its providers do with each request. The
log has what a caller, a handler, a provider and the clock saw. Not in it, since it is
not ours to determine: ids and ports, the words of a broken connection (they are those
of the HTTP library, and of the race between two sockets), and faults that take real
time or lose bytes that were sent (a silence, a reset in the middle).

    python -m tests.promises.fault_scripts FIRST COUNT sync|async
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from random import Random  # noqa: TID251 - every script has dice of its own, by its seed
from typing import Any, Final

import openai
from langchain_core.callbacks import BaseCallbackHandler
from langchain_openai import ChatOpenAI
from pydantic import SecretStr
from tenacity import RetryCallState

from langchain_retryrouter import (
    CircuitBreaker,
    GPTRouter,
    GPTRouterModel,
    OpenAI,
    RetryBudget,
    RetryPolicy,
    RetryRouter,
    Route,
)
from langchain_retryrouter.errors import RetryRouterError
from langchain_retryrouter.testing import (
    Answer,
    Cut,
    ErrorEvent,
    ErrorInOk,
    FakeClock,
    FaultyGateway,
    Hangup,
    HtmlPage,
    MalformedEvent,
    MissingDone,
    Reset,
    SplitCharacter,
    Status,
    Step,
    Truncate,
)
from langchain_retryrouter.testing.faults import ScriptedStep

_CALLS: Final = 2
_STEPS: Final[tuple[Callable[[Random], Step], ...]] = (
    *(lambda _: Answer(),) * 4,
    lambda rng: Answer(f"Answer number {rng.randrange(100)}, said in full."),
    lambda rng: Status(429, {"retry-after": str(rng.randrange(90))}),
    lambda rng: Status(429, {"retry-after-ms": str(rng.randrange(2_000))}),
    lambda _: Status(429, error_code="insufficient_quota"),
    lambda rng: Status(rng.choice((400, 401, 404, 408, 409))),
    lambda rng: Status(rng.choice((500, 502, 503, 504, 529))),
    lambda rng: Status(503, {"x-should-retry": rng.choice(("true", "false"))}),
    lambda _: HtmlPage(),
    lambda _: Reset(),
    lambda _: Hangup(),
    lambda _: ErrorInOk("Overloaded"),
    lambda _: SplitCharacter(),
)
_IN_STREAMS: Final[tuple[Callable[[Random], Step], ...]] = (
    lambda rng: Cut(after=rng.randrange(4)),
    lambda rng: Truncate(after=rng.randrange(4)),
    lambda rng: MalformedEvent(at=rng.randrange(1, 4)),
    lambda rng: ErrorEvent("Connection error.", after=rng.randrange(3)),
    lambda _: MissingDone(),
)
_TEXT: Final = "One two three four five."


def _step(rng: Random) -> ScriptedStep:
    """What shall happen; what can happen to a stream only is a fault of the other."""
    whole = rng.choice(_STEPS)(rng)
    streamed = rng.choice((*_STEPS, *_IN_STREAMS * 2))(rng)
    return lambda request: streamed if request.streaming else whole


class Diary(BaseCallbackHandler):
    """Writes down what a handler is told, in order."""

    run_inline = True

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, what: str, **facts: Any) -> None:
        """One line."""
        self.lines.append(f"{what} {json.dumps(facts, default=str)}")

    def on_llm_start(self, *_args: Any, **_kwargs: Any) -> None:
        self.note("starts")

    def on_chat_model_start(self, *_args: Any, **_kwargs: Any) -> None:
        self.note("starts")

    def on_llm_new_token(self, token: Any, **_kwargs: Any) -> None:
        self.note("token", text=token)

    def on_retry(self, retry_state: RetryCallState, **_kwargs: Any) -> None:
        outcome = retry_state.outcome
        self.note(
            "retry",
            attempt=retry_state.attempt_number,
            wait=retry_state.upcoming_sleep,
            error=_facts_of(None if outcome is None else outcome.exception()),
        )

    def on_llm_error(self, error: BaseException, **_kwargs: Any) -> None:
        self.note("error", error=_facts_of(error))

    def on_llm_end(self, *_args: Any, **_kwargs: Any) -> None:
        self.note("ends")


def _facts_of(error: BaseException | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"class": type(error).__name__}
    if isinstance(error, RetryRouterError):
        facts |= {
            "kind": error.kind,
            "status_code": error.status_code,
            "retry_after": error.retry_after,
            "attempts": error.attempts,
            "delivered": error.delivered,
            "route": error.route,
            "is_retryable": error.is_retryable,
            "others": [type(other).__name__ for other in getattr(error, "others", ())],
        }
        if error.status_code is not None:
            facts["message"] = error.message
        # The last words of a call; the others' notes hold what their libraries said.
        notes = getattr(error, "__notes__", ())
        facts["notes"] = [note for note in notes if note.startswith("gave up")]
    return facts


class Stage:
    """The providers, and the connections to them; each script has models of its own."""

    def __init__(self, gateways: list[FaultyGateway]) -> None:
        self._gateways = gateways
        self._client = openai.DefaultHttpxClient()
        self._async_client = openai.DefaultAsyncHttpxClient()
        self.chat_models = [
            self._chat_model(gateway, name)
            for gateway, name in zip(gateways, ("gpt-4o", "gpt-4.1"), strict=False)
        ]

    def play(self, seed: int) -> list[str]:
        """Every line of script number `seed`."""
        script = _Script(seed, self)
        for number in range(_CALLS):
            script.begin(number)
            with script.noted():
                if script.streams:
                    for chunk in script.model.stream("Hi", script.config):
                        script.deliver(chunk)
                else:
                    script.deliver(script.model.invoke("Hi", script.config))
            script.end()
        return script.diary.lines

    async def aplay(self, seed: int) -> list[str]:
        """Async twin of `play`."""
        script = _Script(seed, self)
        for number in range(_CALLS):
            script.begin(number)
            with script.noted():
                if script.streams:
                    async for chunk in script.model.astream("Hi", script.config):
                        script.deliver(chunk)
                else:
                    script.deliver(await script.model.ainvoke("Hi", script.config))
            script.end()
        return script.diary.lines

    def set_out(self, rng: Random) -> list[FaultyGateway]:
        """The providers with a new script each, and nothing seen yet."""
        for gateway in self._gateways:
            gateway.script(*(_step(rng) for _ in range(12)))
            gateway.reset_log()
        return self._gateways

    def _chat_model(self, gateway: FaultyGateway, name: str) -> ChatOpenAI:
        """A route of another make."""
        return ChatOpenAI(
            model=name,
            base_url=gateway.openai_url,
            api_key=SecretStr("any"),
            http_client=self._client,
            http_async_client=self._async_client,
        )

    def close(self) -> None:
        """Let go of the connections of the sync models."""
        self._client.close()

    async def aclose(self) -> None:
        """Let go of the connections of the async models."""
        await self._async_client.aclose()


class _Script:
    """One script under way."""

    def __init__(self, seed: int, stage: Stage) -> None:
        rng = Random(seed)  # noqa: S311 - nothing secret is drawn
        self.diary = Diary()
        self.config: Any = {"callbacks": [self.diary]}
        self.streams = rng.random() < 0.5
        self.clock = FakeClock(random=iter(rng.random, None))
        self.budget = RetryBudget(capacity=rng.choice((20, 60, 500)))
        self.gateways = stage.set_out(rng)
        self.breakers = [
            CircuitBreaker(
                failure_threshold=rng.randrange(2, 5),
                recovery_time=rng.choice((1.0, 30.0)),
                recovery_jitter=0.5,
            )
            for _ in self.gateways
        ]
        policy = RetryPolicy(
            max_retries=rng.randrange(4),
            initial_delay=rng.choice((0.1, 0.5, 2.0)),
            max_retry_after=rng.choice((5.0, 60.0)),
            deadline=rng.choice((None, None, 30.0)),
        )
        self._settings: dict[str, Any] = {
            "clock": self.clock,
            "retry_policy": policy,
            "budget": self.budget,
        }
        kind = rng.choice((self._gateway_model, self._llm, self._router))
        self.model = kind(rng, stage)
        self.diary.note("script", seed=seed, kind=kind.__name__, streams=self.streams)
        self._texts: list[str] = []

    def begin(self, number: int) -> None:
        """The next call."""
        self._texts = []
        self.diary.note("call", number=number)

    def deliver(self, piece: Any) -> None:
        """What the caller is handed."""
        if isinstance(piece, str):
            self._texts.append(piece)
            return
        self._texts.append(str(piece.content))
        if attempt_log := piece.response_metadata.get("retryrouter"):
            self.diary.note("ledger", attempt_log=attempt_log)

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """What leaves a call in place of an answer."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is, it is in the log
            self.diary.note("raised", error=_facts_of(error))

    def end(self) -> None:
        """What a call leaves behind."""
        now = self.clock.monotonic()
        self.diary.note(
            "left",
            delivered="".join(self._texts),
            waits=self.clock.sleeps,
            tokens=self.budget.tokens,
            breakers=[breaker.state(now) for breaker in self.breakers],
            asked=[
                [type(request.step).__name__ for request in gateway.requests]
                for gateway in self.gateways
            ],
        )
        self.clock.advance(10.0)

    def _gateway_model(self, _dice: Random, _stage: Stage, at: int = 0) -> GPTRouter:
        names = ["gpt-4-0613"] if at else ["gpt-4-0613", "gpt-3.5-turbo"]
        return GPTRouter(
            models_priority_list=[
                GPTRouterModel(name=name, provider_name="chat_openai") for name in names
            ],
            gpt_router_api_base=self.gateways[at].url,
            gpt_router_api_key=SecretStr("any"),
            breaker=None if at else self.breakers[0],
            **(self._settings if not at else {"clock": self.clock}),
        )

    def _llm(self, rng: Random, _stage: Stage) -> OpenAI:
        return OpenAI(
            base_url=self.gateways[0].openai_url,
            api_key="any",
            max_retries=rng.randrange(4),
            breaker=self.breakers[0],
            **self._settings,
        )

    def _router(self, rng: Random, stage: Stage) -> RetryRouter:
        models: list[Any] = [
            *stage.chat_models,
            self._gateway_model(rng, stage, at=2),
        ]
        count = rng.randrange(2, 4)
        return RetryRouter(
            routes=[
                Route(model=model, breaker=breaker, weight=rng.randrange(1, 9))
                for model, breaker in zip(models[:count], self.breakers, strict=False)
            ],
            strategy=rng.choice(
                ("priority", "weighted", "least_latency", "round_robin")
            ),
            seed=rng.randrange(1_000),
            stream_recovery=rng.choice(("error", "buffer", "continue")),
            **self._settings,
        )


def logs(first: int, count: int) -> list[list[str]]:
    """What became of the scripts, in the sync models."""
    with _gateways() as gateways:
        stage = Stage(gateways)
        with contextlib.closing(stage):
            return [stage.play(seed) for seed in range(first, first + count)]


def async_logs(first: int, count: int) -> list[list[str]]:
    """What became of the scripts, in the async models."""

    async def play(gateways: list[FaultyGateway]) -> list[list[str]]:
        async with contextlib.aclosing(Stage(gateways)) as stage:
            return [await stage.aplay(seed) for seed in range(first, first + count)]

    with _gateways() as gateways:
        return asyncio.run(play(gateways))


@contextlib.contextmanager
def _gateways() -> Iterator[list[FaultyGateway]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(FaultyGateway(answer=Answer(_TEXT))) for _ in range(3)
        ]


def main() -> None:
    """Write the logs out, for another process to compare."""
    first, count, twin = sys.argv[1:]
    play = async_logs if twin == "async" else logs
    json.dump(play(int(first), int(count)), sys.stdout)


if __name__ == "__main__":
    main()
