"""`RateLimit` by itself: what it admits, takes, gives back, and refuses."""

import copy
import math
import pickle
from typing import Any

import pytest
from langchain_core.rate_limiters import BaseRateLimiter

from langchain_retryrouter import RateLimit
from langchain_retryrouter.failures import Failure, FailureKind
from langchain_retryrouter.rate_limits import (
    RequestTooLargeError,
    Size,
    approximate_tokens,
)
from langchain_retryrouter.testing import FakeClock
from tests.unit_tests.conftest import Twin

from .conftest import ONE, admitted

REFUSED = Failure(FailureKind.RATE_LIMIT, status_code=429, may_have_run=False)
NOT_CONNECTED = Failure(FailureKind.CONNECTION, may_have_run=False)
BROKEN = Failure(FailureKind.SERVER_ERROR, status_code=500)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "needs a limit, such as requests_per_minute=500"),
        ({"requests_per_minute": 0}, "requests_per_minute must be .* not 0; leave it"),
        ({"requests_per_minute": math.inf}, "a finite number, more than 0, not inf"),
        ({"tokens_per_minute": 10**400}, "tokens_per_minute must be .* not 1000"),
        ({"max_concurrency": 10**400}, "a whole number, 1 or more, not 1000"),
        ({"max_concurrency": 1.5}, "a whole number, 1 or more, not 1.5"),
        ({"requests_per_minute": 1, "name": 7}, "name must be a string, not 7"),
        ({"requests_per_minute": 1, "adaptive": 1}, "adaptive must be True or False"),
    ],
)
def test_bad_numbers_are_refused(given: dict[str, Any], says: str) -> None:
    """The error names the value, and what to do instead."""
    with pytest.raises(ValueError, match=says):
        RateLimit(**given)


def test_a_minute_has_the_limit_and_a_second_more(clock: FakeClock) -> None:
    """Requests are spread, so that no minute has more than 102 % of the limit."""
    limit = RateLimit(requests_per_minute=600, clock=clock)
    sent = 0
    while clock.monotonic() < 60:
        admitted(limit).succeeded()
        sent += clock.monotonic() < 60
    assert sent == pytest.approx(610, abs=1)
    assert max(clock.sleeps) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("numbers", "size", "times"),
    [
        ({"requests_per_minute": 3}, ONE, [0, 20, 40, 60]),
        # More than a second's worth waits for a full bucket; those behind it pay.
        ({"tokens_per_minute": 600}, Size(200, max_tokens=100), [0, 30, 60]),
    ],
)
def test_a_small_limit_admits_one_at_a_time(
    clock: FakeClock, numbers: Any, size: Size, times: list[float]
) -> None:
    """Each as soon as what the one before it took has come back."""
    limit = RateLimit(**numbers, clock=clock)
    for time in times:
        admitted(limit, size).succeeded()
        assert clock.monotonic() == pytest.approx(time)


def test_tokens_are_taken_as_estimated_and_settled_as_used(clock: FakeClock) -> None:
    """What an answer did not use is given back, and what it used beyond is owed."""
    limit = RateLimit(tokens_per_minute=6_000, clock=clock)  # 100 a second
    one = admitted(limit, Size(30, max_tokens=40))
    assert limit.available() == {"tokens": pytest.approx(30)}
    one.used = (30, 10)
    one.succeeded()
    assert limit.available() == {"tokens": pytest.approx(60)}
    other = admitted(limit, Size(30))
    other.used = (30, 1_000)
    other.succeeded()
    assert limit.available() == {"tokens": pytest.approx(60 - 1_030)}
    assert limit.wait_for(Size(0, 1)) == pytest.approx(9.71)


def test_an_estimate_learns_from_answers(clock: FakeClock) -> None:
    """Prompts and answers are reserved by the running means of what was used."""
    limit = RateLimit(tokens_per_minute=6_000_000, clock=clock)
    one = admitted(limit, Size(100))
    assert one.costs["tokens"] == 100 + 256
    one.used = (150, 20)
    one.succeeded()
    costs = [limit.costs_of(size)["tokens"] for size in (Size(100), Size(100, 5), ONE)]
    assert costs == pytest.approx([150 + 20, 150 + 5, 150 + 20])


@pytest.mark.parametrize(
    ("end", "used", "left"),
    [
        ("unsent", None, (10, 100)),
        (NOT_CONNECTED, None, (10, 100)),
        (REFUSED, None, (9, 100)),
        (BROKEN, None, (9, 50)),
        (BROKEN, (30, 2), (9, 50)),  # More may have come than it told.
        (BROKEN, (30, 40), (9, 30)),
        ("cancelled", None, (9, 50)),
        ("succeeded", None, (9, 50)),
    ],
    ids=str,
)
def test_what_may_have_run_is_charged(
    clock: FakeClock, end: Any, used: Any, left: tuple[float, float]
) -> None:
    """Only what was never sent costs nothing; a refusal is a request without tokens."""
    limit = RateLimit(requests_per_minute=600, tokens_per_minute=6_000, clock=clock)
    one = admitted(limit, Size(30, max_tokens=20))
    one.used = used
    if isinstance(end, Failure):
        one.failed(end)
    else:
        getattr(one, end)()
    found = limit.available()
    assert (found["requests"], found["tokens"]) == pytest.approx(left)
    assert limit.in_flight == 0
    one.succeeded()  # It is settled once.
    assert limit.available() == found


@pytest.mark.parametrize("kind", ["tokens", "input_tokens"])
def test_a_request_above_a_minute_is_an_error(clock: FakeClock, kind: str) -> None:
    """It would wait for ever; the error names both numbers."""
    limit = RateLimit(**{f"{kind}_per_minute": 1_000}, clock=clock)  # type: ignore[arg-type] # a name
    with pytest.raises(RequestTooLargeError, match=r"2,500 tokens.*1,000 in a minute"):
        limit.reserve(Size(2_500))
    assert limit.waiting == 0
    # What was learned of other prompts refuses none.
    one = admitted(limit, Size(1))
    one.used = (10, 1)
    one.succeeded()
    assert limit.reserve(Size(900), 1_000) is not None


def test_concurrency_is_held_until_the_end(clock: FakeClock) -> None:
    """A third request waits until one is over; if it leaves, it takes nothing."""
    limit = RateLimit(max_concurrency=2, requests_per_minute=60, clock=clock)
    first, second = admitted(limit), admitted(limit)
    assert limit.try_reserve(ONE) is None
    assert limit.reserve(ONE, 0.4) is None
    assert limit.available()["requests"] == pytest.approx(0.4)
    assert limit.reserve(ONE, 4.6) is None
    assert clock.monotonic() == pytest.approx(1 + 5)
    first.succeeded()
    assert limit.in_flight == 1
    admitted(limit).succeeded()
    second.failed(BROKEN)
    assert (limit.in_flight, limit.waiting) == (0, 0)


def test_copies_share_and_pickles_start_afresh(clock: FakeClock) -> None:
    """A copy is the same limit; another process gets the numbers."""
    limit = RateLimit(requests_per_minute=60, max_concurrency=3, name="a", clock=clock)
    admitted(limit)
    assert copy.copy(limit) is copy.deepcopy(limit) is limit
    other = pickle.loads(pickle.dumps(limit))
    shown = "RateLimit(requests_per_minute=60, max_concurrency=3, name='a')"
    assert repr(other) == repr(limit) == shown
    assert (other.in_flight, other.available()) == (0, {"requests": 1.0})


def test_as_a_limiter_of_langchain(twin: Twin, clock: FakeClock) -> None:
    """It counts requests and the mean of known tokens, and waits if it is told to."""
    limit = RateLimit(requests_per_minute=60, tokens_per_minute=60_000, clock=clock)
    limiter = limit.as_rate_limiter()
    assert isinstance(limiter, BaseRateLimiter)
    assert twin.call(limiter, "acquire", blocking=False) is True
    assert twin.call(limiter, "acquire", blocking=False) is False
    assert twin.call(limiter, "acquire") is True
    assert clock.monotonic() == pytest.approx(1)
    assert limit.in_flight == 0


def test_a_limiter_of_langchain_cannot_hold_concurrency() -> None:
    """It is not told when a call is over: that is said, and never ignored."""
    with pytest.raises(ValueError, match="max_concurrency=3 does not hold"):
        RateLimit(max_concurrency=3).as_rate_limiter()
    limit = RateLimit(max_concurrency=3, requests_per_minute=60)
    with pytest.warns(UserWarning, match="max_concurrency=3 does not hold"):
        limit.as_rate_limiter()


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        ("eight ch", 2),
        (["one", "two"], 2),
        ([1, 2, 3], 3),
        ({"role": "user", "content": "four"}, 2),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,xx"}}, 88),
        ({"type": "file", "data": "A" * 100_000}, 86),
        (None, 0),
    ],
)
def test_tokens_are_counted_approximately(content: Any, tokens: int) -> None:
    """About 4 characters a token, and pictures by a fixed number."""
    assert approximate_tokens(content) == tokens
