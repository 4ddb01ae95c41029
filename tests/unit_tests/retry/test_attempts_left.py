"""A call is not failed while a route has attempts left; seen from outside."""

import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from langchain_retryrouter import (
    APIConnectionError,
    APITimeoutError,
    AuthenticationError,
    RateLimitError,
    RetryPolicy,
    RetryRouter,
    RetryRouterError,
    Route,
    UnavailableError,
)
from langchain_retryrouter.testing import FakeClock
from tests.unit_tests.conftest import Twin

FAILURES: Final[dict[str, Any]] = {
    "503": lambda: UnavailableError("503"),
    "429": lambda: RateLimitError("429"),
    "429, 20 s": lambda: RateLimitError("429", retry_after=20.0),
    "silent": lambda: APITimeoutError("silent"),
    "cut": lambda: APIConnectionError("cut"),
    "401": lambda: AuthenticationError("401"),
    "bug": lambda: KeyError("bug"),
}
FINAL: Final = {"401", "bug"}
WHOLE: Final = "Hello world"


class ScriptedModel(BaseChatModel):
    """A model that fails as its script says, and answers from then on."""

    script: tuple[str, ...]
    asked: int = 0

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _fail(self) -> Exception | None:
        script, self.asked = self.script[self.asked :], self.asked + 1
        return FAILURES[script[0]]() if script else None

    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        if (error := self._fail()) is not None:
            raise error
        return ChatResult(generations=[ChatGeneration(message=AIMessage(WHOLE))])

    def _stream(self, *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        error = self._fail()
        if error is not None and str(error) != "cut":
            raise error
        yield ChatGenerationChunk(message=AIMessageChunk(content=WHOLE[:5]))
        if error is not None:
            raise error
        yield ChatGenerationChunk(message=AIMessageChunk(content=WHOLE[5:]))

    async def _agenerate(self, *_: Any, **__: Any) -> ChatResult:
        return self._generate()

    async def _astream(self, *_: Any, **__: Any) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream():
            yield chunk


def scripts() -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Two routes that fail up to three times each, in any way."""
    each = [s for n in range(4) for s in itertools.product(FAILURES, repeat=n)]
    pairs = [*itertools.product(each, each)][::641]
    family = [("cut",), ("429, 20 s",), ("429, 20 s", "cut"), ("silent",), ("503",)]
    return [*itertools.product(family, [("401",), ("bug",), ("silent",)]), *pairs]


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_call_fails_only_when_no_route_has_attempts_left(
    twin: Twin, *, is_stream: bool
) -> None:
    """Whatever failed last, a route that failed only for now is asked again.

    No route gets more attempts than the policy allows, and none that failed for good.
    When all routes are silent there is no second round, which would be as slow.
    """
    for both in scripts():
        models = [ScriptedModel(script=script) for script in both]
        router = RetryRouter(
            routes=[Route(model=model) for model in models],
            retry_policy=RetryPolicy(max_retries=2),
            breaker_settings=None,
            clock=FakeClock(),
        )
        try:
            ask = twin.stream if is_stream else lambda *args: [twin.invoke(*args)]
            answer = "".join(chunk.text for chunk in ask(router, "hi"))
        except RetryRouterError:
            outcomes = [model.script[: model.asked] for model in models]
            assert all(one[-1:] == ("silent",) for one in outcomes) or all(
                len(one) == 3 or not FINAL.isdisjoint(one) for one in outcomes
            ), both
        else:
            assert answer == WHOLE, both
        for model in models:
            sent = model.script[: model.asked]
            assert model.asked <= 3, both
            assert FINAL.isdisjoint(sent[:-1]), both


@pytest.mark.parametrize("deadline", [None, 60, 10])
@pytest.mark.parametrize("count", [1, 2])
def test_a_wait_that_is_too_long_is_not_left_out(
    twin: Twin, count: int, deadline: float | None
) -> None:
    """A failing route is asked again after its wait, or not at all.

    Also if the wait is longer than `failover_after_wait`, or would outlast the
    deadline: of two routes the other one is asked at once, and then both wait.
    """
    clock = FakeClock()
    waits: Any = {"initial_delay": 6, "backoff_factor": 1, "jitter": False}
    policy = RetryPolicy(max_retries=9, deadline=deadline, **waits)
    router = RetryRouter(
        routes=[ScriptedModel(script=("503",) * 99)] * count,
        retry_policy=policy,
        breaker_settings=None,
        clock=clock,
    )
    with pytest.raises(UnavailableError) as raised:
        twin.invoke(router, "hi")
    asked = raised.value.attempts
    assert asked <= count * (1 + clock.monotonic() // 6) + count - 1
    assert clock.monotonic() >= 6
    assert deadline is not None or asked == count * 10


@pytest.mark.parametrize("failover_on", [{}, {"unavailable": "failover"}])
def test_a_caller_does_not_repeat_the_retries_of_a_single_route(
    twin: Twin, failover_on: Any
) -> None:
    """Whatever the rule says of a next route, where there is none."""
    router = RetryRouter(
        routes=[ScriptedModel(script=("503",) * 9)],
        failover_on=failover_on,
        retry_policy=RetryPolicy(max_retries=1),
        clock=FakeClock(),
    )
    with pytest.raises(UnavailableError) as raised:
        twin.invoke(router, "hi")
    assert (raised.value.attempts, raised.value.is_retryable) == (2, False)
