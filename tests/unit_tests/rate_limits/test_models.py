"""`rate_limit` of every class: reserve, wait, settle, and go to another route."""

import asyncio
import contextlib
import functools
import operator
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_openai import ChatOpenAI

from langchain_retryrouter import (
    APIConnectionError,
    APITimeoutError,
    CircuitBreaker,
    CircuitOpenError,
    InvalidRequestError,
    RateLimit,
    RateLimitError,
    RetryPolicy,
    RetryRouter,
    Route,
)
from langchain_retryrouter.rate_limits import Size
from langchain_retryrouter.stores import MemoryStore
from langchain_retryrouter.testing import (
    Answer,
    Cut,
    FakeClock,
    FaultyGateway,
    Reset,
    SlowFirstToken,
    Stall,
    Status,
)
from tests.promises.harness import FIVE, LLMS, new_model
from tests.support.models import Turns, chat_openai, gpt_router
from tests.unit_tests.conftest import Twin

NO_RETRIES = RetryPolicy(max_retries=0)


@dataclass(frozen=True)
class Lab(Twin):
    """Sync or async calls of models at one gateway, on one clock."""

    gateway: FaultyGateway
    clock: FakeClock

    def ask(self, model: Any, method: str = "invoke", prompt: str = "hi") -> Any:
        return getattr(super(), method)(model, prompt)

    def limit(self, **fields: Any) -> RateLimit:
        return RateLimit(**fields, clock=self.clock)

    def used_up(self, **numbers: Any) -> RateLimit:
        """A limit that has nothing left for a minute."""
        limit = self.limit(**{"requests_per_minute": 1, **numbers})
        limit.take(Size()).cancelled()
        return limit

    def model(self, name: str, **fields: Any) -> Any:
        return new_model(name, self.gateway, clock=self.clock, **fields)

    def router(self, **fields: Any) -> RetryRouter:
        return RetryRouter(**fields, clock=self.clock)

    def routed(self, *limits: RateLimit | None, **fields: Any) -> RetryRouter:
        """A router with a route for each limit, named a, b, ..."""
        routes = [
            Route(model=chat_openai(self.gateway), name=name, rate_limit=limit)
            for name, limit in zip("abc", limits, strict=False)
        ]
        return self.router(routes=routes, **fields)


@pytest.fixture
def lab(twin: Twin, gateway: FaultyGateway, clock: FakeClock) -> Lab:
    """Run the test twice: with sync calls, and with async calls."""
    return Lab(twin.is_async, gateway, clock)


both_ways = pytest.mark.parametrize("method", ["invoke", "stream"])
every_class = pytest.mark.parametrize("name", FIVE)


def attempts(answer: Any) -> list[dict[str, Any]]:
    """The attempt log of a chat model's answer."""
    if isinstance(answer, list):
        answer = next(c for c in answer if "retryrouter" in c.response_metadata)
    log: list[dict[str, Any]] = answer.response_metadata["retryrouter"]["attempts"]
    return log


def told(answer: Any) -> list[tuple[Any, Any]]:
    """Which routes were asked, and what came of it."""
    return [(line.get("route"), line["outcome"]) for line in attempts(answer)]


@both_ways
@every_class
def test_every_attempt_waits_for_its_turn(lab: Lab, name: str, method: str) -> None:
    """Retries too; nothing is in flight when the call is over."""
    limit = lab.limit(requests_per_minute=60)
    policy = RetryPolicy(max_retries=1, initial_delay=0)
    model = lab.model(name, rate_limit=limit, retry_policy=policy)
    lab.gateway.script(Status(503))
    lab.ask(model, method)
    assert len(lab.gateway.requests) == 2
    assert lab.clock.sleeps[-1:] == [pytest.approx(1.0)]
    assert (limit.in_flight, limit.waiting) == (0, 0)
    assert limit.available() == {"requests": pytest.approx(0)}


@both_ways
@every_class
def test_tokens_are_settled_by_the_usage(lab: Lab, name: str, method: str) -> None:
    """What the provider counted is what the limit has lost."""
    limit = lab.limit(tokens_per_minute=6e6, input_tokens_per_minute=6e6)
    fields = {"stream_usage": True} if name in LLMS and method == "stream" else {}
    model = lab.model(name, rate_limit=limit, **fields)
    answer = lab.ask(model, method, "one two three")
    if name not in LLMS:
        if isinstance(answer, list):
            answer = functools.reduce(operator.add, answer)
        usage, left = answer.usage_metadata, limit.available()
        assert 1e5 - left["tokens"] == pytest.approx(usage["total_tokens"])
        assert 1e5 - left["input_tokens"] == pytest.approx(usage["input_tokens"])
    assert 10 < 1e5 - limit.available()["tokens"] < 100
    assert limit.in_flight == 0


@both_ways
@every_class
@pytest.mark.parametrize("in_flight", [0, 1])
def test_a_wait_ends_with_the_deadline(
    lab: Lab, name: str, method: str, in_flight: int
) -> None:
    """The error says that nothing was sent, for which limit, and how long it needs.

    A limit that lets nothing through says nothing about the provider: no breaker opens.
    While a request is in flight the wait may end early, and is told to callbacks: what
    these take for it counts for the deadline.
    """

    class Slow(BaseCallbackHandler):
        def on_custom_event(self, *_: Any, **__: Any) -> None:
            lab.clock.advance(3)

    limit = lab.used_up(name="tier-1")
    for _ in range(in_flight):
        limit.take(Size())
    breaker = CircuitBreaker(failure_threshold=1, clock=lab.clock)
    policy = RetryPolicy(deadline=5)
    model = lab.model(name, rate_limit=limit, retry_policy=policy, breaker=breaker)
    with pytest.raises(APITimeoutError, match=r"nothing was sent.*tier-1") as caught:
        lab.ask(model.with_config(callbacks=[Slow()]), method)
    assert not caught.value.may_have_run
    assert len(lab.gateway.requests) == 0
    assert lab.clock.monotonic() == pytest.approx(5 * in_flight)
    assert limit.waiting == 0
    left = lab.clock.monotonic() / 60 - in_flight
    assert limit.available()["requests"] == pytest.approx(left)
    assert not breaker.is_open


class Waits(BaseCallbackHandler):
    """Notes the custom events of waits."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.retries = 0

    def on_custom_event(self, name: str, data: Any, **_: Any) -> None:
        self.seen.append((name, data))

    def on_retry(self, *_: Any, **__: Any) -> None:
        self.retries += 1


@both_ways
@every_class
def test_a_wait_is_told(lab: Lab, name: str, method: str) -> None:
    """Before it to callbacks, as a custom event and no retry; then in the attempt log.

    That has it as `limiter_wait`, in seconds, and not in the attempt's own time.
    """
    limit = lab.limit(requests_per_minute=30, name="tier-1")
    waits = Waits()
    model = lab.model(name, rate_limit=limit).with_config(callbacks=[waits])
    lab.ask(model, method)
    answer = lab.ask(model, method)
    ((event, data),) = waits.seen
    assert event == "rate_limit_wait"
    assert data["limit"] == "tier-1"
    assert data["seconds"] == pytest.approx(2.0)
    assert waits.retries == 0
    if name not in LLMS:
        (line,) = attempts(answer)
        assert line["limiter_wait"] == pytest.approx(2.0)
        assert line["seconds"] == 0


@both_ways
@pytest.mark.parametrize(
    ("used_up", "patience", "told_of", "waited"),
    [
        ((60, 0), 10, "its rate limit is used up for 60.0 s", 0),
        ((2, 0), 10, "", 2),
        ((2, 0), 0, "its rate limit is used up for 2.0 s", 0),
        ((60, 10), 5, "its rate limit is used up for 60.0 s", 10),
    ],
    ids=["full", "a short wait", "a short wait, no patience", "all full"],
)
def test_the_route_that_is_free_first_is_asked(
    lab: Lab,
    method: str,
    used_up: tuple[float, ...],
    patience: float,
    told_of: str,
    waited: float,
) -> None:
    """Without a wait if one is free; a wait up to `failover_after_wait` stays."""
    limits = [
        lab.used_up(requests_per_minute=60 / wait) if wait else None for wait in used_up
    ]
    policy = RetryPolicy(failover_after_wait=patience)
    answer = lab.ask(lab.routed(*limits, retry_policy=policy), method)
    spills = [("a", "skipped"), ("b", "ok")]
    assert told(answer) == (spills if told_of else [("a", "ok")])
    assert attempts(answer)[0].get("reason", "") == told_of
    assert attempts(answer)[-1].get("limiter_wait", 0) == pytest.approx(waited)
    assert lab.clock.monotonic() == pytest.approx(waited)


def test_a_routers_own_limit_holds_for_all_routes(lab: Lab) -> None:
    """A second route is no way around it."""
    router = lab.routed(None, None, rate_limit=lab.used_up(requests_per_minute=6))
    answer = lab.ask(router)
    assert told(answer) == [("a", "ok")]
    assert attempts(answer)[0]["limiter_wait"] == pytest.approx(10)


@both_ways
@pytest.mark.parametrize("is_field", [True, False])
def test_a_models_own_limit_is_its_routes(
    lab: Lab, method: str, *, is_field: bool
) -> None:
    """Its wait is no silence of the provider: another route is asked at once."""
    limit = lab.used_up()
    first = lab.model("GPTRouter", rate_limit=limit)
    if not is_field:
        own: Any = type("Own", (ChatOpenAI,), {"rate_limit": property(lambda _: limit)})
        first = chat_openai(lab.gateway, "gpt-4", cls=own)
    router = lab.router(routes=[first, chat_openai(lab.gateway)])
    for _ in range(4):
        assert told(lab.ask(router, method))[-1] == ("gpt-4o", "ok")
    lab.clock.advance(60)
    assert told(lab.ask(router, method)) == [("gpt-4", "ok")]


def test_a_request_that_never_fits_goes_elsewhere(lab: Lab) -> None:
    """To a route with a larger limit; without one, the error names both numbers."""
    small = lab.limit(tokens_per_minute=100)
    prompt = "word " * 400
    answer = lab.ask(lab.routed(small, None), prompt=prompt)
    assert told(answer) == [("a", "skipped"), ("b", "ok")]
    with pytest.raises(RateLimitError, match=r"about 5\d\d tokens.* 100 in a min"):
        lab.ask(lab.routed(small), prompt=prompt)
    llm = lab.model("OpenAI", rate_limit=small)
    with pytest.raises(RateLimitError, match=r"nothing was sent.* 100 in a min"):
        lab.ask(llm, prompt=prompt)
    assert len(lab.gateway.requests) == 1


@every_class
def test_what_was_refused_before_it_was_sent_costs_nothing(lab: Lab, name: str) -> None:
    """An open breaker, and a server that is not there."""
    limit = lab.limit(requests_per_minute=60, tokens_per_minute=6_000)
    full = limit.available()
    breaker = CircuitBreaker(clock=lab.clock)
    model = new_model(
        name,
        "http://127.0.0.1:9",
        rate_limit=limit,
        clock=lab.clock,
        breaker=breaker,
        retry_policy=NO_RETRIES,
    )
    with pytest.raises(Exception, match=r"(?i)connect") as caught:
        lab.ask(model)
    assert caught.value.may_have_run is False  # type: ignore[attr-defined] # ours
    assert limit.available() == full
    breaker.open_for(1_000)
    refused = APIConnectionError if name == "RetryRouter" else CircuitOpenError
    with pytest.raises(refused):  # A router sends a probe.
        lab.ask(model)
    assert (limit.available(), limit.in_flight) == (full, 0)


@pytest.mark.parametrize("fault", [Status(500), Reset(), Cut(after=1)], ids=str)
@both_ways
@every_class
def test_no_permit_is_lost_by_a_failure(
    lab: Lab, name: str, method: str, fault: Any
) -> None:
    """Whatever goes wrong, the next request may be sent."""
    limit = lab.limit(max_concurrency=1)
    model = lab.model(name, rate_limit=limit, retry_policy=NO_RETRIES)
    lab.gateway.always(fault)
    with pytest.raises(Exception, match=r".") as caught:
        lab.ask(model, method)
    assert caught.value.may_have_run  # type: ignore[attr-defined] # ours
    assert limit.in_flight == 0


@every_class
def test_a_stream_holds_its_permit_until_it_is_closed(lab: Lab, name: str) -> None:
    """Not only until its first token: a caller may leave early, or be cancelled."""
    limit = lab.limit(max_concurrency=1)
    model = lab.model(name, rate_limit=limit)

    async def cancel() -> None:
        lab.gateway.always(Stall(after=1, seconds=10))
        is_read = asyncio.Event()

        async def read() -> None:
            async for _ in model.astream("hi"):
                is_read.set()

        task = asyncio.create_task(read())
        await is_read.wait()
        assert limit.in_flight == 1
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    if lab.is_async:
        asyncio.run(cancel())
    else:
        chunks = model.stream("hi")
        next(chunks)
        assert limit.in_flight == 1
        chunks.close()
    assert limit.in_flight == 0


@pytest.mark.parametrize("second", ["free", "full", "too small"])
def test_a_hedge_is_limited_and_its_loser_lets_go(lab: Lab, second: str) -> None:
    """A second stream needs room in its route's limit; both give their permits back.

    Where it has none, or never has, the stream that is under way goes on.
    """
    first, other = (lab.limit(max_concurrency=1) for _ in range(2))
    if second == "full":
        other.take(Size())
    elif second == "too small":
        other = lab.limit(tokens_per_minute=10)
    silence = SlowFirstToken(2.0 if second == "free" else 0.3)
    lab.gateway.script(silence, Answer("hello there"))
    router = lab.routed(first, other, hedge_after=0.05)
    answer = lab.ask(router, "stream", prompt="word " * 100)
    assert told(answer)[-1] == ("b" if second == "free" else "a", "ok")
    assert len(lab.gateway.requests) == (2 if second == "free" else 1)
    assert (first.in_flight, other.in_flight) == (0, second == "full")


@both_ways
@pytest.mark.parametrize("first", ["router", "route"])
@pytest.mark.parametrize("inside", [None, "router", "route"])
def test_a_limit_at_several_places_counts_once(
    lab: Lab, method: str, first: str, inside: str | None
) -> None:
    """A call never waits for what it holds itself, nor calls for one another."""
    numbers: Any = {"requests_per_minute": 6_000, "max_concurrency": 1}
    limit, other = (lab.limit(**numbers) for _ in range(2))
    at = [limit, other] if first == "router" else [other, limit]
    policy = RetryPolicy(max_retries=0, deadline=5, stall_timeout=5)
    model: Any = chat_openai(lab.gateway)
    if inside is not None:
        route = Route(model=model, name="in", rate_limit=at[0])
        model = lab.router(
            routes=[route if inside == "route" else model],
            rate_limit=at[inside == "route"],
            retry_policy=NO_RETRIES,
        )
    router = lab.router(
        routes=[Route(model=model, name="out", rate_limit=at[0])],
        rate_limit=at[1 if inside else 0],
        retry_policy=policy,
    )
    lab.ask(router, method)
    assert len(lab.gateway.requests) == 1
    assert limit.in_flight == other.in_flight == 0
    assert limit.available()["requests"] >= 99


@pytest.mark.parametrize("last", [Answer(), Status(400)], ids=["answered", "failed"])
def test_each_request_inside_of_a_route_counts(lab: Lab, last: Any) -> None:
    """A list of models behind a gateway is asked one after the other."""
    limit = lab.limit(requests_per_minute=6_000)
    at_once = RetryPolicy(max_retries=1, initial_delay=0)
    model = gpt_router(lab.gateway, "a", "b", retry_policy=at_once, clock=lab.clock)
    route = Route(model=model, name="list", rate_limit=limit)
    lab.gateway.script(Status(503), last)
    with contextlib.suppress(InvalidRequestError):
        lab.ask(lab.router(routes=[route]))
    assert len(lab.gateway.requests) == 2
    assert limit.in_flight == 0
    spent = 100 - limit.available()["requests"]
    assert spent == pytest.approx(2)


@pytest.mark.parametrize("count", [1, 2])
@both_ways
def test_a_pause_that_begins_during_the_wait_for_a_turn_is_waited_for(
    lab: Lab, method: str, count: int
) -> None:
    """A call that had its turn is not refused for what servers said in the meantime."""
    store = MemoryStore(clock=lab.clock)
    breakers = [
        CircuitBreaker(clock=lab.clock, name=f"b{number}", store=store)
        for number in range(count)
    ]
    waiting = list(breakers)

    def pause() -> None:
        while waiting:
            waiting.pop().pause_for(5)

    limiter = Turns(pause)
    models = [chat_openai(lab.gateway, rate_limiter=limiter) for _ in breakers]
    routes = [
        Route(model=model, breaker=breaker)
        for model, breaker in zip(models, breakers, strict=True)
    ]
    assert lab.ask(lab.router(routes=routes), method)
    assert len(lab.gateway.requests) == 1
    assert sum(lab.clock.sleeps) >= 5


@pytest.mark.parametrize("name", ["GPTRouter", "RetryRouter", "OpenAIChat"])
def test_no_more_requests_at_a_time_than_allowed(
    twin: Twin, gateway: FaultyGateway, name: str
) -> None:
    """Six calls at once, in threads or tasks, are three times two requests."""
    limit = RateLimit(max_concurrency=2)
    gateway.always(SlowFirstToken(0.1))
    model = new_model(name, gateway, rate_limit=limit)
    twin.batch(model, ["hi"] * 6)
    twin.call(model, "close")
    times = [request.at for request in gateway.requests]
    assert len(times) == 6
    for first, third in zip(times, times[2:], strict=False):
        assert third - first >= 0.1
    assert limit.in_flight == 0


def test_a_breaker_that_opens_after_the_wait_leaves_the_next_route(lab: Lab) -> None:
    """Also if the request is larger than its limit: the server decides about that."""
    limits = [lab.limit(requests_per_minute=60), lab.limit(tokens_per_minute=100)]
    breaker = CircuitBreaker(clock=lab.clock)
    turns = Turns(functools.partial(breaker.open_for, 30))
    first = chat_openai(lab.gateway, rate_limiter=turns)
    routes = [
        Route(model=first, name="a", rate_limit=limits[0], breaker=breaker),
        Route(model=chat_openai(lab.gateway), name="b", rate_limit=limits[1]),
    ]
    answer = lab.ask(lab.router(routes=routes), prompt="word " * 400)
    assert told(answer) == [("a", "circuit_open"), ("b", "ok")]
    assert [limit.in_flight for limit in limits] == [0, 0]
    assert limits[0].available() == {"requests": 1.0}


def test_a_models_limiter_of_langchain_counts_as_well(lab: Lab) -> None:
    """If it sends the call elsewhere, the first route's limit has its turn back."""
    limits = [lab.limit(requests_per_minute=60) for _ in range(2)]
    router = lab.routed(*limits)
    limiter = Turns(lambda: lab.clock.monotonic() >= 30)
    router.routes[0].model.rate_limiter = limiter
    assert told(lab.ask(router)) == [("b", "ok")]
    lab.clock.advance(60)
    assert [limit.in_flight for limit in limits] == [0, 0]
    assert limits[0].available() == {"requests": 1.0}
    assert told(lab.ask(router)) == [("a", "ok")]
