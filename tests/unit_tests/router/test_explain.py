"""`RetryRouter.explain`: the worst case, compared with the server's log."""

import asyncio
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.language_models.fake_chat_models import ParrotFakeChatModel

from langchain_retryrouter import (
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

from .attempts import router_of

new_router = functools.partial(router_of, retries=2)


def test_prices_and_tokens_give_money() -> None:
    """A route's prices are for a million tokens, and each request may be charged."""
    model = ParrotFakeChatModel()
    routes = [
        Route(model=model, name="cheap", input_price=1, output_price=2),
        Route(model=model, name="dear", input_price=10, output_price=20),
    ]
    router = router_of(*routes)
    said = router.explain(input_tokens=1000, output_tokens=500)
    assert said.money == pytest.approx(0.002 + 0.02)
    assert "cheap          1   0.0 s  0.0020\n" in str(said)
    for counts in ({"input_tokens": 0}, {"output_tokens": 5}):
        with pytest.raises(ValueError, match="the money needs both counts"):
            router.explain(**counts)


def test_a_buffered_stream_has_no_early_token() -> None:
    """`first_token_timeout` bounds the first token only where it is handed over."""
    policy = RetryPolicy(first_token_timeout=5, max_retries=0)
    model = ParrotFakeChatModel()
    assert new_router(model, retry_policy=policy).explain().first_token == 5
    buffered = new_router(model, retry_policy=policy, stream_recovery="buffer")
    assert buffered.explain().first_token is None


def test_time_limits_of_attempts_limit_the_call() -> None:
    """Without a deadline, a call without a stream ends when its attempts have ended."""
    models = [ParrotFakeChatModel(), ParrotFakeChatModel()]
    policy = RetryPolicy(attempt_timeout=10, max_retries=1)
    said = router_of(*models, retry_policy=policy).explain()
    assert said.seconds == 2 * (2 * 10 + policy.explain().waited)
    assert f"without a stream: within {said.seconds:.1f} s" in str(said)
    unlimited = RetryPolicy(attempt_timeout=math.inf)
    assert router_of(*models, retry_policy=unlimited).explain().seconds is None
    brief = RetryPolicy(attempt_timeout=10, deadline=30)
    assert router_of(*models, retry_policy=brief).explain().seconds == 30


class Failing(FakeListChatModel):
    """A model at an address that fails, each time with the next error of a cycle."""

    api_key: str = "k"
    base_url: str = "https://a"
    errors: Iterator[type[RetryRouterError]]
    asked: list[str]

    def _call(self, *_: Any, **__: Any) -> str:
        self.asked.append(self.base_url)
        msg, pause = "no", 1.0 + 29.0 * (len(self.asked) % 3 == 0)
        raise next(self.errors)(msg, retry_after=pause)


CAUSES = (RateLimitError, UnavailableError, AuthenticationError, APITimeoutError)
KINDS = ("rate_limit", "unavailable", "server_error", "conflict", "connection")
ALL_FAILOVER = dict.fromkeys((*KINDS, "interrupted", "malformed"), "failover")


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("keys", [(1, 1), (3, 2)], ids=str)
@pytest.mark.parametrize("fields", [{}, {"failover_on": ALL_FAILOVER}], ids=["", "own"])
def test_no_call_sends_more_than_explain_says(
    keys: tuple[int, ...], retries: int, fields: dict[str, Any], *, is_async: bool
) -> None:
    """With retries, a key that has to pause and a route that was left are asked again.

    Without, each is asked once.
    """
    most = 0
    for causes in itertools.product(CAUSES, repeat=3):
        asked: list[str] = []
        errors = itertools.cycle(causes)
        routes: list[Any] = []
        for number, own in enumerate(keys):
            model = Failing(
                responses=[""], base_url=f"https://{number}", errors=errors, asked=asked
            )
            names = [f"k{n}" for n in range(own)]
            routes.append(Route.pool(model, api_keys=names) if own > 1 else model)
        router = RetryRouter(
            routes=routes,
            retry_policy=RetryPolicy(max_retries=retries),
            clock=FakeClock(),
            stream_recovery="error",
            **fields,
        )
        for route in router.routes:  # pydantic has copied the list.
            vars(route.model).update(asked=asked, errors=errors)
        with pytest.raises(RetryRouterError):
            asyncio.run(router.ainvoke("hi")) if is_async else router.invoke("hi")
        most = max(most, len(asked))
    worst = router.explain()
    assert worst.requests == (retries + 1) * sum(keys)
    assert most <= worst.requests
    assert (most > sum(keys)) is (retries > 0)
