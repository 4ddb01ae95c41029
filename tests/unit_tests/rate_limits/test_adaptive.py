"""`adaptive=True`: what a provider's headers and refusals change, and what not."""

import json
from pathlib import Path
from typing import Any

import pytest

from langchain_retryrouter import RateLimit, RetryPolicy, RetryRouter, Route
from langchain_retryrouter._retry.retry_after import read_limits
from langchain_retryrouter.failures import Failure, FailureKind
from langchain_retryrouter.rate_limits import ServerLimit, Size
from langchain_retryrouter.testing import Body, FakeClock, FaultyGateway, Status
from tests.promises.harness import new_model
from tests.support.models import chat_openai
from tests.unit_tests.conftest import Twin

from .conftest import ONE

NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z
TOO_MANY = Failure(FailureKind.RATE_LIMIT, 429, may_have_run=False)
_DATA = Path(__file__).parents[1] / "data/rate_limit_headers.json"
# The header fields of an answer, and the limits that they tell: what is limited, the
# limit, what remains, the seconds to its reset, and those of its window.
HEADERS: dict[str, dict[str, Any]] = json.loads(_DATA.read_text("utf-8"))


@pytest.mark.parametrize("family", HEADERS)
def test_headers_of_all_families_are_read(family: str) -> None:
    """In each form that providers use; what is malformed is ignored."""
    limits = read_limits(HEADERS[family]["headers"], unix_time=NOW)
    assert [list(one) for one in limits] == HEADERS[family]["limits"]


def said(
    limit: float | None = None,
    remaining: float | None = None,
    reset: float | None = None,
    window: float | None = None,
    kind: str = "requests",
) -> ServerLimit:
    return ServerLimit(kind, limit, remaining, reset, window)


DAY, MINUTE, SECOND = (
    said(most, most - 1, window=window)
    for most, window in ((1_000, 86_400), (60, 60), (10, 1))
)


@pytest.mark.parametrize(
    ("numbers", "limits", "wait"),
    [
        # Its own limit counts if it is less than the number that was given.
        ({"requests_per_minute": 60}, [said(30)], 2),
        ({"requests_per_minute": 60}, [said(30), said(6_000, 6_000)], 1),
        # Used up: until its reset, a minute at most, or until a bucket has something.
        ({"requests_per_minute": 600}, [said(300, 0, 20)], 20),
        ({"requests_per_minute": 600}, [said(300, 0, 3_600)], 60),
        ({"requests_per_minute": 600}, [said(300, 0, 60)], 0.4),
        # Only what is allowed in a minute or less makes a rate: the lowest of them.
        ({}, [[DAY, MINUTE, SECOND]], 1),
        ({}, [[SECOND, MINUTE, DAY]], 1),
        ({}, [said(1_000, 0, 86_000, 86_400)], 60),
        # The numbers that were given are the limit.
        ({"requests_per_minute": 60, "adaptive": False}, [said(1, 0, 30)], 1),
    ],
)
def test_what_a_server_says_is_a_limit(
    clock: FakeClock, numbers: Any, limits: list[Any], wait: float
) -> None:
    """It lowers the limit, if that is adaptive, and never raises it."""
    limit = RateLimit(**{"adaptive": True, "clock": clock, **numbers})
    for one in limits:
        limit.observe(one if isinstance(one, list) else [one])
    limit.take(ONE).cancelled()
    assert limit.wait_for(ONE) == pytest.approx(wait)


def test_less_remains_than_was_thought(clock: FakeClock) -> None:
    """Others use the account, too."""
    limit = RateLimit(tokens_per_minute=60_000, adaptive=True, clock=clock)
    one = limit.take(Size(0, 100))
    limit.take(Size(0, 200))
    # The 200 were taken after the request that the server speaks of.
    for remaining in (500, 50_000):
        one.observe([said(remaining=remaining, kind="tokens")])
        assert limit.available() == {"tokens": pytest.approx(300)}


def test_a_limit_without_numbers_takes_the_providers(clock: FakeClock) -> None:
    """Nothing is limited until the first answer."""
    limit = RateLimit(adaptive=True, clock=clock)
    for _ in range(1_000):
        assert limit.wait_for(Size(100)) == 0
        limit.take(Size(100))
    assert limit.available() == {}
    limit.observe([said(60, 1)])
    limit.take(ONE)
    assert limit.wait_for(ONE) == pytest.approx(1)
    limit.observe([said(6_000, kind="tokens")])
    assert limit.available()["tokens"] == 100


def test_without_headers_refusals_lower_the_concurrency(clock: FakeClock) -> None:
    """To 70 %, once for those that were refused together; successes raise it slowly."""
    limit = RateLimit(max_concurrency=10, adaptive=True, clock=clock)

    def room() -> int:
        taken = []
        while (one := limit.try_reserve(ONE)) is not None:
            taken.append(one)
        for one in taken:
            one.unsent()
        return len(taken)

    flight = [limit.take(ONE) for _ in range(10)]
    clock.advance(1)
    for one in flight:
        one.failed(TOO_MANY)
    assert room() == 7
    clock.advance(1)
    limit.take(ONE).failed(TOO_MANY)
    assert room() == 1
    for _ in range(3):
        limit.take(ONE).succeeded()
    assert room() == 2
    for _ in range(200):
        limit.take(ONE).succeeded()
    assert room() == 10


def test_a_retry_after_stops_all(clock: FakeClock) -> None:
    """Not only the request that was refused."""
    limit = RateLimit(max_concurrency=10, adaptive=True, clock=clock)
    limit.take(ONE).failed(
        Failure(FailureKind.RATE_LIMIT, 429, retry_after=7, may_have_run=False)
    )
    assert limit.wait_for(ONE) == pytest.approx(7)


# --- headers of real answers ---

LOW = {"x-ratelimit-limit-requests": "30", "x-ratelimit-remaining-requests": "0"}
CHOICE = {"index": 0, "text": "hi", "message": {"role": "assistant", "content": "hi"}}
ANSWER = Body(
    200,
    {"content-type": "application/json", **LOW},
    json.dumps({"choices": [{**CHOICE, "finish_reason": "stop"}], "usage": {}}),
)
both_ways = pytest.mark.parametrize("method", ["invoke", "stream"])
POLICY = RetryPolicy(max_retries=0, failover_after_wait=0)


@pytest.fixture
def limit(clock: FakeClock) -> RateLimit:
    return RateLimit(requests_per_minute=60_000, adaptive=True, clock=clock)


@pytest.mark.parametrize("name", ["GPTRouter", "RetryRouter", "OpenAI", "OpenAIChat"])
@both_ways
def test_headers_of_refusals_are_seen(
    twin: Twin, gateway: FaultyGateway, limit: RateLimit, name: str, method: str
) -> None:
    """By our own transports, and in the errors of other models."""
    fields = {"rate_limit": limit, "clock": FakeClock(), "retry_policy": POLICY}
    model = new_model(name, gateway, **fields)
    gateway.always(Status(429, headers=LOW))
    with pytest.raises(Exception, match=r"429|Too Many|rate"):
        getattr(twin, method)(model, "hi")
    assert limit.available()["requests"] <= 1


@pytest.mark.parametrize("name", ["OpenAI", "OpenAIChat", "ChatOpenAI"])
def test_headers_of_answers_are_seen(
    twin: Twin, gateway: FaultyGateway, limit: RateLimit, name: str
) -> None:
    """Of the LLMs, and of ChatOpenAI with `include_response_headers`."""
    gateway.always(ANSWER)
    if name == "ChatOpenAI":
        told = chat_openai(gateway.url, include_response_headers=True)
        model: Any = RetryRouter(routes=[Route(model=told, rate_limit=limit)])
    else:
        model = new_model(name, gateway, rate_limit=limit)
    twin.invoke(model, "hi")
    assert limit.available()["requests"] <= 1


@both_ways
def test_a_model_inside_a_router_tells_its_limit(
    twin: Twin,
    gateway: FaultyGateway,
    clock: FakeClock,
    limit: RateLimit,
    method: str,
) -> None:
    """The router waits for the limit, and the model reads the headers."""
    model = new_model("GPTRouter", gateway, rate_limit=limit, max_retries=0)
    policy = RetryPolicy(max_retries=0)
    router = RetryRouter(routes=[model], clock=clock, retry_policy=policy)
    gateway.script(Status(429, headers=LOW))
    with pytest.raises(Exception, match=r"429|Too Many|rate"):
        getattr(twin, method)(router, "hi")
    assert limit.available()["requests"] <= 1
    assert limit.in_flight == 0
    clock.advance(60)
    getattr(twin, method)(router, "hi")
    assert limit.available()["requests"] <= 1
