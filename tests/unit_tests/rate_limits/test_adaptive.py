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
    kind: str = "requests",
    limit: float | None = None,
    remaining: float | None = None,
    reset: float | None = None,
) -> list[ServerLimit]:
    return [ServerLimit(kind, limit, remaining, reset)]


def test_a_server_lowers_a_limit_and_never_raises_it(clock: FakeClock) -> None:
    """Its own limit counts if it is less than the number that was given."""
    limit = RateLimit(requests_per_minute=60, adaptive=True, clock=clock)
    limit.take(Size()).succeeded()
    limit.observe(said(limit=30))
    assert limit.wait_for(Size()) == pytest.approx(2)
    limit.observe(said(limit=6_000, remaining=6_000))
    assert limit.wait_for(Size()) == pytest.approx(1)


def test_less_remains_than_was_thought(clock: FakeClock) -> None:
    """Others use the account, too."""
    limit = RateLimit(tokens_per_minute=60_000, adaptive=True, clock=clock)
    one = limit.take(Size(0, 100))
    limit.take(Size(0, 200))
    one.observe(said("tokens", remaining=500))
    # The 200 were taken after the request that the server speaks of.
    assert limit.available() == {"tokens": pytest.approx(300)}
    one.observe(said("tokens", remaining=50_000))
    assert limit.available() == {"tokens": pytest.approx(300)}


@pytest.mark.parametrize(
    ("reset", "wait"), [(20.0, 20.0), (3_600.0, 60.0), (60.0, 0.2)]
)
def test_a_limit_that_is_used_up_is_waited_for(
    clock: FakeClock, reset: float, wait: float
) -> None:
    """Until its reset, a minute at most; a bucket has something long before that."""
    limit = RateLimit(requests_per_minute=600, adaptive=True, clock=clock)
    limit.observe(said(limit=300, remaining=0, reset=reset))
    assert limit.wait_for(Size()) == pytest.approx(wait)


def test_a_limit_without_numbers_takes_the_providers(clock: FakeClock) -> None:
    """Nothing is limited until the first answer."""
    limit = RateLimit(adaptive=True, clock=clock)
    for _ in range(1_000):
        assert limit.wait_for(Size(100)) == 0
        limit.take(Size(100))
    assert limit.available() == {}
    limit.observe(said(limit=60, remaining=1))
    limit.take(Size())
    assert limit.wait_for(Size()) == pytest.approx(1)
    limit.observe(said("tokens", limit=6_000))
    assert limit.available()["tokens"] == 100


def test_a_quota_of_a_day_is_not_spread_over_it(clock: FakeClock) -> None:
    """Only what is allowed in a minute or less makes a rate: the lowest one of them."""
    limit = RateLimit(adaptive=True, clock=clock)
    day, minute, second = (
        ServerLimit("requests", most, most - 1, None, window)
        for most, window in ((1_000, 86_400), (60, 60), (10, 1))
    )
    for order in ([day, minute, second], [second, minute, day]):
        limit.observe(order)
        limit.take(Size()).cancelled()
        assert limit.wait_for(Size()) == pytest.approx(1)
        clock.sleep(10)
    limit.observe([ServerLimit("requests", 1_000, 0, 86_000, 86_400)])
    assert limit.wait_for(Size()) == 60


def test_a_limit_that_is_not_adaptive_hears_nothing(clock: FakeClock) -> None:
    """The numbers that were given are the limit."""
    limit = RateLimit(requests_per_minute=60, clock=clock)
    limit.observe(said(limit=1, remaining=0, reset=30))
    limit.take(Size()).failed(TOO_MANY)
    assert limit.wait_for(Size()) == pytest.approx(1)


def test_without_headers_refusals_lower_the_concurrency(clock: FakeClock) -> None:
    """To 70 %, once for those that were refused together; successes raise it slowly."""
    limit = RateLimit(max_concurrency=10, adaptive=True, clock=clock)

    def room() -> int:
        taken = []
        while (one := limit.try_reserve(Size())) is not None:
            taken.append(one)
        for one in taken:
            one.unsent()
        return len(taken)

    flight = [limit.take(Size()) for _ in range(10)]
    clock.advance(1)
    for one in flight:
        one.failed(TOO_MANY)
    assert room() == 7
    clock.advance(1)
    limit.take(Size()).failed(TOO_MANY)
    assert room() == 1
    for _ in range(3):
        limit.take(Size()).succeeded()
    assert room() == 2
    for _ in range(200):
        limit.take(Size()).succeeded()
    assert room() == 10


def test_a_retry_after_stops_all(clock: FakeClock) -> None:
    """Not only the request that was refused."""
    limit = RateLimit(max_concurrency=10, adaptive=True, clock=clock)
    limit.take(Size()).failed(
        Failure(FailureKind.RATE_LIMIT, 429, retry_after=7, may_have_run=False)
    )
    assert limit.wait_for(Size()) == pytest.approx(7)


LOW = {"x-ratelimit-limit-requests": "30", "x-ratelimit-remaining-requests": "0"}


@pytest.mark.parametrize("name", ["GPTRouter", "RetryRouter", "OpenAI", "OpenAIChat"])
@pytest.mark.parametrize("method", ["invoke", "stream"])
def test_headers_of_refusals_are_seen(
    twin: Twin, gateway: FaultyGateway, clock: FakeClock, name: str, method: str
) -> None:
    """By our own transports, and in the errors of other models."""
    limit = RateLimit(requests_per_minute=60_000, adaptive=True, clock=clock)
    model = new_model(
        name,
        gateway,
        rate_limit=limit,
        clock=clock,
        retry_policy=RetryPolicy(max_retries=0, failover_after_wait=0),
    )
    gateway.always(Status(429, headers=LOW))
    with pytest.raises(Exception, match=r"429|Too Many|rate"):
        getattr(twin, method)(model, "hi")
    assert limit.available()["requests"] <= 1


def test_headers_of_answers_are_seen(
    twin: Twin, gateway: FaultyGateway, clock: FakeClock
) -> None:
    """Of the LLMs, and of ChatOpenAI with `include_response_headers`."""
    choice = {
        "index": 0,
        "text": "hi",
        "message": {"role": "assistant", "content": "hi"},
    }
    body = json.dumps({"choices": [{**choice, "finish_reason": "stop"}], "usage": {}})
    gateway.always(Body(200, {"content-type": "application/json", **LOW}, body))
    for name in ("OpenAI", "OpenAIChat"):
        limit = RateLimit(requests_per_minute=60_000, adaptive=True, clock=clock)
        twin.invoke(new_model(name, gateway, rate_limit=limit, clock=clock), "hi")
        assert limit.available()["requests"] <= 1
    limit = RateLimit(requests_per_minute=60_000, adaptive=True, clock=clock)
    model = chat_openai(gateway.url, include_response_headers=True)
    route = Route(model=model, rate_limit=limit)
    twin.invoke(RetryRouter(routes=[route], clock=clock), "hi")
    assert limit.available()["requests"] <= 1


@pytest.mark.parametrize("method", ["invoke", "stream"])
def test_a_model_inside_a_router_tells_its_limit(
    twin: Twin, gateway: FaultyGateway, clock: FakeClock, method: str
) -> None:
    """The router waits for the limit, and the model reads the headers."""
    limit = RateLimit(requests_per_minute=60_000, adaptive=True, clock=clock)
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
