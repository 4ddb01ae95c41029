"""`RateLimit` by itself: its buckets, its queue, and what servers say of limits."""

import asyncio
import copy
import json
import math
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)
from langchain_core.rate_limiters import BaseRateLimiter

from langchain_retryrouter import RateLimit, RetryPolicy, RetryRouter, Route
from langchain_retryrouter._retry.retry_after import read_limits
from langchain_retryrouter.failures import Failure, FailureKind
from langchain_retryrouter.rate_limits import (
    RequestTooLargeError,
    Reservation,
    ServerLimit,
    Size,
    approximate_tokens,
)
from langchain_retryrouter.stores import MemoryStore
from langchain_retryrouter.testing import Body, FakeClock, FaultyGateway, Status
from tests.promises.harness import new_model
from tests.support.forks import told_by_a_child
from tests.support.models import chat_openai
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
    for moment in times:
        admitted(limit, size).succeeded()
        assert clock.monotonic() == pytest.approx(moment)


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


def until_waiting(limit: RateLimit, number: int) -> None:
    """Let other threads run until so many of them wait."""
    end = time.monotonic() + 10
    while limit.waiting != number:
        assert time.monotonic() < end
        os.sched_yield()


def test_threads_and_loops_stand_in_one_line() -> None:
    """Whoever came first is admitted first, whatever it waits with."""
    limit = RateLimit(max_concurrency=1)
    held = limit.take(ONE)
    order: list[int] = []

    def in_thread(number: int) -> None:
        one = admitted(limit)
        order.append(number)
        one.succeeded()

    async def in_loop(number: int) -> None:
        one = await limit.areserve(ONE)
        assert one is not None
        order.append(number)
        one.succeeded()

    with ThreadPoolExecutor(12) as pool:
        waits = []
        for number in range(12):
            if number % 2:
                waits.append(pool.submit(in_thread, number))
            else:
                waits.append(pool.submit(asyncio.run, in_loop(number)))
            until_waiting(limit, number + 1)
        held.succeeded()
        for one in waits:
            one.result(10)
    assert order == list(range(12))
    assert (limit.in_flight, limit.waiting) == (0, 0)


async def test_nobody_overtakes_the_queue(clock: FakeClock) -> None:
    """A small request does not pass a large one that waits, nor one without a wait."""
    limit = RateLimit(tokens_per_minute=600, clock=clock)
    limit.take(Size(0, 30)).cancelled()
    large = asyncio.create_task(limit.areserve(Size(0, 500)))
    await asyncio.sleep(0)  # noqa: TID251 - one turn
    assert limit.waiting == 1
    assert limit.try_reserve(Size(0, 1)) is None
    small = asyncio.create_task(limit.areserve(Size(0, 1)))
    first, second = await large, await small
    assert first is not None
    assert second is not None
    assert first.since < second.since


@pytest.mark.parametrize("state", ["waiting", "granted"])
async def test_a_cancelled_wait_lets_the_next_one_in(state: str) -> None:
    """Also if its turn came in the same instant."""
    limit = RateLimit(max_concurrency=1)
    held = limit.take(ONE)
    first = asyncio.create_task(limit.areserve(ONE))
    second = asyncio.create_task(limit.areserve(ONE))
    await asyncio.sleep(0)  # noqa: TID251 - one turn
    assert limit.waiting == 2
    if state == "granted":
        held.succeeded()
    first.cancel()
    held.succeeded()
    one = await second
    assert one is not None
    one.succeeded()
    assert first.cancelled()
    assert (limit.in_flight, limit.waiting) == (0, 0)


def test_an_interrupted_wait_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control-C is no answer, and takes no place."""
    limit = RateLimit(max_concurrency=1)
    limit.take(ONE)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Event, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        limit.reserve(ONE)
    assert (limit.in_flight, limit.waiting) == (1, 0)


class StillClock(FakeClock):
    """A clock that waits do not move: they only let other threads run."""

    def sleep(self, seconds: float) -> None:
        del seconds
        os.sched_yield()


def test_what_is_given_back_goes_to_those_who_wait() -> None:
    """At once, and all of it, also if it is more than the bucket holds."""
    clock = StillClock()
    limit = RateLimit(tokens_per_minute=60, clock=clock)  # Its bucket holds one.
    held = limit.take(Size(0, max_tokens=1_000))
    size = Size(10, max_tokens=20)
    with ThreadPoolExecutor(20) as pool:
        waits = []
        for at in range(20):
            waits.append(pool.submit(limit.reserve, size, 1_000))
            until_waiting(limit, at + 1)
        clock.advance(500)
        held.used = (0, 0)
        held.succeeded()
        assert limit.available() == {"tokens": pytest.approx(1 + 500 - 17 * 30)}
        assert (limit.in_flight, limit.waiting) == (17, 3)
        clock.advance(1_000)
        assert sum(one.result(10) is not None for one in waits) >= 17
    assert limit.waiting == 0


def test_a_forked_process_starts_afresh() -> None:
    """What its parent has in flight, and who waits there, is not its own."""
    limit = RateLimit(max_concurrency=2)
    held = limit.take(ONE)

    def in_the_child() -> tuple[int, int]:
        held.succeeded()
        return limit.in_flight, limit.waiting

    assert told_by_a_child(in_the_child) == "(0, 0)"
    assert limit.in_flight == 1


def test_a_limit_that_gets_a_store_keeps_what_is_in_flight() -> None:
    """And those who wait for it: another model may be given the store meanwhile."""
    limit = RateLimit(max_concurrency=1)
    held = limit.take(ONE)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(limit.reserve, ONE, 30)
        until_waiting(limit, 1)
        limit.join(MemoryStore(), "any")
        assert (limit.in_flight, limit.waiting) == (1, 1)
        held.succeeded()
        one = waiting.result()
    assert one is not None
    one.succeeded()
    assert limit.in_flight == 0


class Histories(RuleBasedStateMachine):
    """Any order of reservations, ends and time."""

    sent = Bundle("sent")

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.limit = RateLimit(
            requests_per_minute=120,
            tokens_per_minute=6_000,
            input_tokens_per_minute=3_000,
            max_concurrency=4,
            adaptive=True,
            clock=self.clock,
        )
        self.held = 0

    @rule(
        target=sent,
        prompt=st.integers(0, 2_000),
        most=st.none() | st.integers(1, 2_000),
        patience=st.sampled_from([0.0, 0.5, 5.0, 300.0]),
    )
    def reserve(self, prompt: int, most: int | None, patience: float) -> Any:
        with_ratio = self.limit.costs_of(Size(100))["input_tokens"] / 100
        if prompt * with_ratio > 3_000:
            return multiple()
        one = self.limit.reserve(Size(prompt, most), patience)
        if one is None:
            return multiple()
        self.held += 1
        return one

    @rule(
        one=consumes(sent),
        end=st.sampled_from(["succeeded", "cancelled", "unsent", 429, 500, None]),
        used=st.none() | st.tuples(st.integers(0, 3_000), st.integers(0, 3_000)),
    )
    def end(
        self, one: Reservation, end: str | int | None, used: tuple[int, int] | None
    ) -> None:
        one.used = used
        if isinstance(end, str):
            getattr(one, end)()
        else:
            kind = FailureKind.RATE_LIMIT if end == 429 else FailureKind.CONNECTION
            one.failed(Failure(kind, end, may_have_run=end == 500))
        self.held -= 1

    @rule(seconds=st.floats(0, 120))
    def let_pass(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def nothing_is_lost(self) -> None:
        """Permits are those held, nobody is left waiting, no bucket overflows."""
        assert self.limit.in_flight == self.held
        assert self.held <= 4
        assert self.limit.waiting == 0
        levels = self.limit.available()
        assert levels["requests"] <= 2 + 1e-6
        assert levels["tokens"] <= 100 + 1e-6
        assert levels["input_tokens"] <= 50 + 1e-6

    def teardown(self) -> None:
        self.clock.advance(1e6)
        assert self.limit.available() == {
            "requests": 2.0,
            "tokens": 100.0,
            "input_tokens": 50.0,
        }


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None
)


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
