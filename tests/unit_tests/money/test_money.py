"""What calls cost, and limits for a call and for a period."""

import copy
import dataclasses
import functools
import gc
import itertools
import operator
import pickle
from datetime import datetime
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from pydantic import SecretStr

from langchain_retryrouter import (
    AttemptLog,
    GPTRouter,
    OpenAI,
    OpenAIChat,
    RateLimit,
    RetryPolicy,
    RetryRouterError,
    Route,
    SpendLimit,
    SpendLimitError,
)
from langchain_retryrouter._prices import (
    FixedPrices,
    ListedPrices,
    listed_prices,
    tokens_of,
    usage_of,
)
from langchain_retryrouter.spend_limits import Price, SpendReservation
from langchain_retryrouter.stores import MemoryStore
from langchain_retryrouter.testing import (
    Answer,
    Cut,
    FakeClock,
    FaultyGateway,
    Hangup,
    Silence,
    SlowFirstToken,
    Status,
    Step,
    Usage,
)
from tests.support import models
from tests.support.forks import told_by_a_child
from tests.unit_tests.router.attempts import HELLO, Odd

from .conftest import (
    ANSWERED,
    ASKED,
    COST,
    Env,
    crowd,
    new_route,
    new_router,
    reserved,
)

# --- what a call cost ---


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_the_log_says_what_each_attempt_cost(env: Env, way: str) -> None:
    """An answer costs its usage by the route's prices; a refusal costs nothing."""
    env.gateway.script(Status(503), Status(401))
    log = env.log(way, new_router(env.route(), env.route("b")))
    costs = [(line["cost"], line.get("cost_is_estimate")) for line in log.attempts]
    assert costs == [(0.0, True), (0.0, None), (pytest.approx(COST), None)]
    assert log.cost == pytest.approx(COST)
    assert log.cost_is_estimate


@pytest.mark.parametrize(
    ("step", "way", "least"),
    [
        (Silence(60), "invoke", 0.0001),
        (Silence(60), "stream", 0.0001),
        (Cut(2), "stream", 0.003),
    ],
)
def test_what_is_not_counted_is_estimated(
    env: Env, step: Step, way: str, least: float
) -> None:
    """A silent or broken attempt may be charged: its prompt and what has arrived."""
    env.gateway.always(step)
    seconds = 0.5 if isinstance(step, Silence) else 30
    policy = RetryPolicy(
        max_retries=0, attempt_timeout=seconds, first_token_timeout=seconds
    )
    router = new_router(env.route(), retry_policy=policy, clock=None)
    (line,) = env.log(way, router).attempts
    assert line["cost_is_estimate"] is True
    assert least < line["cost"] < COST + 0.001


def test_the_loser_of_a_hedge_is_estimated(env: Env) -> None:
    """The attempt that a hedge cancels has a cost, too."""
    env.gateway.script(SlowFirstToken(60))
    routes = env.route(), env.route("b")
    log = env.log("stream", new_router(*routes, hedge_after=0.02, clock=None))
    first, second = log.attempts
    assert (first["outcome"], first["cost_is_estimate"]) == ("cancelled", True)
    assert (second["outcome"], second["cost"]) == ("ok", COST)
    assert log.cost == pytest.approx(first["cost"] + second["cost"])


def test_an_unknown_price_is_no_cost(env: Env) -> None:
    """A model without a price has no cost, which is not 0; nor has its call."""
    env.gateway.script(Status(401))
    unknown = env.route("b", input_price=None)
    log = env.log("invoke", new_router(env.route(), unknown))
    assert [line.get("cost") for line in log.attempts] == [0.0, None]
    assert "cost" not in log.as_dict()


def test_public_prices_are_looked_up(env: Env) -> None:
    """Without prices of its own, a route has those of `genai-prices` for its model."""
    listed, unheard_of = (
        env.log(
            "invoke", new_router(env.route(name, input_price=None, output_price=None))
        )
        for name in ("gpt-4o", "gpt-unheard-of")
    )
    assert listed.cost == pytest.approx((ASKED * 2.5 + ANSWERED * 10) / 1_000_000)
    assert unheard_of.cost is None


@pytest.mark.parametrize("way", ["invoke", "stream"])
@pytest.mark.parametrize(
    ("cls", "model", "listed"),
    [
        (GPTRouter, "gpt-4o", (2.5, 10.0)),
        (OpenAI, "gpt-3.5-turbo-instruct", (1.5, 2.0)),
        (OpenAIChat, "gpt-4o", (2.5, 10.0)),
    ],
)
def test_single_models_say_what_is_listed(
    env: Env, cls: Any, model: str, listed: tuple[float, float], way: str
) -> None:
    """`GPTRouter` and the LLMs have the listed prices of their models.

    Also where the usage follows the end of a stream.
    """
    env.gateway.script(Status(503))
    answer: Any
    if cls is GPTRouter:
        one: Any = models.gpt_router(env.gateway, model, clock=FakeClock())
        chunks = env.stream(one, "hi") if way == "stream" else [env.invoke(one, "hi")]
        answer = functools.reduce(operator.add, chunks)
        counts = tokens_of(answer.usage_metadata)
    else:
        streams = {"streaming": way == "stream", "stream_usage": way == "stream"}
        url, key = env.gateway.openai_url, SecretStr("any")
        one = cls(model=model, base_url=url, api_key=key, clock=FakeClock(), **streams)
        answer = env.generate(one, ["hi"])
        counts = tokens_of(usage_of(answer.llm_output["token_usage"]))
    env.call(one, "close")
    assert counts is not None
    log, money = AttemptLog(answer), FixedPrices(*listed).money(*counts)
    assert log.cost == pytest.approx(money)
    assert 0 in [line["cost"] for line in log.attempts]


def test_cached_answers_are_free(env: Env) -> None:
    """An answer from the cache of the router, or of its model, costs nothing."""
    cached = env.route(model={"cache": InMemoryCache()})
    router = new_router(cached)
    assert env.log("invoke", router).cost == pytest.approx(COST)
    assert env.log("invoke", router).cost == 0
    router = new_router(env.route(), cache=InMemoryCache())
    env.gateway.script(Hangup())  # What that has cost is an estimate.
    first, second = (env.log("invoke", router) for _ in range(2))
    assert first.cost_is_estimate
    assert second.cost == 0
    assert not second.cost_is_estimate


def test_an_inner_router_hands_its_costs_on(env: Env) -> None:
    """A router inside a router is priced by its own log, in failures too."""
    inner = new_router(env.route(), retry_policy=RetryPolicy(max_retries=0))
    routes = Route(model=inner, name="inner"), env.route("b")
    env.gateway.script(Status(503))
    log = env.log("invoke", new_router(*routes))
    assert [line["cost"] for line in log.attempts] == [0.0, COST]
    assert env.log("invoke", new_router(*routes)).cost == COST


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_limit_pays_all_that_was_asked_inside_of_a_route(env: Env, way: str) -> None:
    """A rejected answer, or a request sent again, is in the log and in the limit."""
    once, verdicts = RetryPolicy(max_retries=0), [True, False]
    # A model whose first connections are of an event loop that was closed.
    gone = RuntimeError("Event loop is closed")
    lost = env.route(model=Odd(results=[gone, gone, HELLO]))
    two = {"accept": lambda _: verdicts.pop(), "retry_policy": once}
    for inner in (
        new_router(env.route("a"), env.route("b"), **two),
        new_router(lost, retry_policy=once),
    ):
        requests = RateLimit(requests_per_minute=6_000, clock=FakeClock())
        limit, before = SpendLimit(1, clock=FakeClock()), requests.available()
        route = env.route(model=inner, rate_limit=requests)
        log = env.log(way, new_router(route, spend_limit=limit))
        (line,) = log.attempts
        assert line["cost"] == line["inside"]["cost"] > 0
        assert limit.spent == pytest.approx(log.cost)
        sent = sum(1 + one.get("resent", 0) for one in line["inside"]["attempts"])
        assert before["requests"] - requests.available()["requests"] == sent > 1


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_routes_own_prices_count_more_than_listed_ones(env: Env, way: str) -> None:
    """Also where its model, such as a `GPTRouter`, says itself what it has cost."""
    model = models.gpt_router(env.gateway, "gpt-4o", provider="chat_openai")
    assert env.log(way, model).cost is not None
    limit = SpendLimit(1, clock=FakeClock())
    router = new_router(env.route(model=model), spend_limit=limit)
    env.gateway.script(Status(503), Answer(usage=Usage(ASKED, ANSWERED)))
    assert env.log(way, router).cost == pytest.approx(COST)
    assert limit.spent == pytest.approx(COST)


def test_a_copy_of_a_route_has_its_own_prices(env: Env) -> None:
    """And shares no breaker and no limit with the model that it had before."""
    (first,) = new_router(env.route(model={"max_tokens": 5})).routes
    dearer = first.model_copy(update={"input_price": 200, "output_price": 2000})
    assert env.log("invoke", new_router(dearer)).cost == pytest.approx(2 * COST)
    model = models.chat_openai(env.gateway, "other", max_tokens=5)
    assert first.model_copy(update={"model": model}).scope != first.scope
    assert first.model_copy().scope == first.scope


def test_batches_and_worst_cases_say_money(env: Env) -> None:
    """`summarize` adds the costs up, and `explain` stops at `max_cost`."""
    limit = SpendLimit(5, name="team", clock=FakeClock())
    # All of them fit: to wait for money is nothing for a clock of tests.
    short = env.route(model={"max_tokens": 10})
    router = new_router(short, max_cost=0.5, spend_limit=limit)
    summary = AttemptLog.summarize(env.batch(router, ["a", "b", "c"]))
    assert summary.cost == pytest.approx(3 * COST)
    assert f"cost {3 * COST:.4g}" in str(summary)
    worst = router.explain(input_tokens=1000, output_tokens=1000)
    assert worst.routes[0].money == pytest.approx(3.3)
    assert worst.money == 0.5
    assert f"SpendLimit(5, per='day', name='team') has {5 - 3 * COST:.4g} left" in str(
        worst
    )


# --- a limit for a call ---


@pytest.mark.parametrize("way", ["invoke", "stream"])
@pytest.mark.parametrize("is_option", [True, False])
def test_nothing_is_sent_that_costs_too_much(
    env: Env, way: str, *, is_option: bool
) -> None:
    """The error names the numbers, and no request was sent."""
    fields: dict[str, Any] = {} if is_option else {"max_cost": 0.01}
    options = {"max_cost": 0.01} if is_option else {}
    router = new_router(env.route(model={"max_tokens": 10}), **fields)
    said = r"an attempt may cost 0\.01\d+; only 0\.01 of max_cost=0\.01 is left"
    with pytest.raises(SpendLimitError, match=said) as caught:
        getattr(env, way)(router, "hi", **options)
    assert not env.gateway.requests
    assert caught.value.attempt_log is not None
    (line,) = caught.value.attempt_log["attempts"]
    assert (line["outcome"], line["route"]) == ("skipped", "own")
    assert caught.value.retry_after is None
    assert not caught.value.may_have_run


@pytest.mark.parametrize(
    ("by", "reason"),
    [
        ("max_cost", "only 0.5 of max_cost=0.5 is left"),
        ("spend_limit", "name='first') has only 0.5 left, which is never enough"),
        ("spent", "name='first') has only 0.00305 left; it resets in"),
    ],
)
def test_a_cheaper_route_is_asked_instead(env: Env, by: str, reason: str) -> None:
    """A route that is too expensive is skipped, and its line says why."""
    limit = SpendLimit(1.5 * COST if by == "spent" else 0.5, name="first")
    dear = {"output_price": 1e6} if by != "spent" else {}
    limited = {"spend_limit": limit} if by != "max_cost" else {}
    routes = env.route("a", model={"max_tokens": 5}, **dear, **limited), env.route("b")
    router = new_router(*routes, max_cost=0.5 if by == "max_cost" else None)
    if by == "spent":
        assert env.log("invoke", router).route == "a"
    skipped, answered = env.log("invoke", router).attempts
    assert (skipped["route"], skipped["outcome"]) == ("a", "skipped")
    assert reason in skipped["reason"]
    assert (answered["route"], answered["cost"]) == ("b", COST)


def test_no_retry_goes_beyond_the_limit(env: Env) -> None:
    """A call whose attempts have used up the money ends with the last one's error."""
    router = new_router(
        env.route(),
        accept=lambda _: False,
        max_cost=2.5 * COST,
        retry_policy=RetryPolicy(max_retries=9),
    )
    with pytest.raises(RetryRouterError) as caught:
        env.invoke(router, "hi")
    assert len(env.gateway.requests) == 2
    assert caught.value.kind == "rejected"
    assert any("max_cost" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "1", True, []])
def test_a_limit_that_makes_no_sense_is_an_error(
    gateway: FaultyGateway, value: Any
) -> None:
    """A limit must be a positive number, wherever it is given."""
    with pytest.raises(ValueError, match="max_cost must be a finite number"):
        new_router(new_route(gateway)).invoke("hi", max_cost=value)
    with pytest.raises(ValueError, match="amount must be a finite number"):
        SpendLimit(value)
    with pytest.raises(ValueError, match="per must be one of"):
        SpendLimit(1, per=value)


@pytest.mark.parametrize("way", ["call", "field", "router", "route"])
def test_a_limit_needs_prices(gateway: FaultyGateway, way: str) -> None:
    """A limit over a route without a known price is an error that says what to do."""
    limit = SpendLimit(1)
    own: dict[str, Any] = {"spend_limit": limit} if way == "route" else {}
    route = new_route(gateway, input_price=None, **own)
    fields: dict[str, Any] = {
        "field": {"max_cost": 1},
        "router": {"spend_limit": limit},
    }
    with pytest.raises(
        ValueError, match=r"'own' has no known price.*input_price=\.\.\."
    ):
        new_router(route, **fields.get(way, {})).invoke("hi", max_cost=1)


# --- a limit for a period ---


def test_a_period_ends(env: Env) -> None:
    """What is spent counts until the period is over; the error says when that is."""
    clock = FakeClock(unix_time=1_800_000_000.0 // 3600 * 3600 + 600)
    limit = SpendLimit(2.5 * COST, per="hour", clock=clock)
    router = new_router(env.route(), spend_limit=limit)
    env.invoke(router, "hi")
    env.invoke(router, "hi")
    assert limit.spent == pytest.approx(2 * COST)
    assert limit.left == pytest.approx(COST / 2)
    with pytest.raises(SpendLimitError, match="it resets in 3000 s") as caught:
        env.invoke(router, "hi")
    assert caught.value.retry_after == limit.resets_in == 3000
    clock.advance(3000)
    env.invoke(router, "hi")
    assert limit.spent == pytest.approx(COST)


@pytest.mark.parametrize(
    ("per", "now", "ends"),
    [
        ("minute", "2026-11-29T23:55:42", "2026-11-29T23:56:00"),
        ("day", "2026-11-29T23:55:42", "2026-11-30T00:00:00"),
        ("month", "2026-12-31T23:00:00", "2027-01-01T00:00:00"),
        ("month", "2028-02-01T00:00:00", "2028-03-01T00:00:00"),
        (7200, "2026-11-29T23:55:42", "2026-11-30T00:00:00"),
    ],
)
def test_periods_are_those_of_the_calendar(per: Any, now: str, ends: str) -> None:
    """Periods begin and end in UTC, a month at its first day."""
    times = [datetime.fromisoformat(f"{one}+00:00").timestamp() for one in (now, ends)]
    limit = SpendLimit(1, per=per, clock=FakeClock(unix_time=times[0]))
    assert limit.resets_in == times[1] - times[0]


@pytest.mark.parametrize(
    ("total", "paid"),
    [(None, 10), (110, 10), (150, 50)],
    ids=["no total", "in the answer", "beside it"],
)
@pytest.mark.parametrize(
    ("read", "written"),
    [
        (
            "input_tokens",
            {"output_tokens": 10, "output_token_details": {"reasoning": 40}},
        ),
        (
            "prompt_tokens",
            {
                "completion_tokens": 10,
                "completion_tokens_details": {"reasoning_tokens": 40},
            },
        ),
    ],
    ids=["langchain", "openai"],
)
def test_thoughts_are_paid_once(
    total: int | None, paid: int, read: str, written: dict[str, Any]
) -> None:
    """Whether a provider counts them as tokens of the answer, or beside them."""
    whole = {} if total is None else {"total_tokens": total}
    money = (100 + 1000 * paid) / 1_000_000
    assert FixedPrices(1, 1000).cost(usage_of({read: 100, **written, **whole})) == money


def test_a_count_that_no_answer_can_have_is_none() -> None:
    """It is neither paid nor an error of the caller's, in details too."""
    none, one = 10**400, {"input_tokens": 1, "output_tokens": 1}
    assert FixedPrices(1, 1).cost({**one, "input_tokens": none}) is None
    thoughts = {"output_token_details": {"reasoning": none}, "total_tokens": none + 2}
    assert FixedPrices(1, 1).cost({**one, **thoughts}) == 2 / 1_000_000
    prices = listed_prices("claude-sonnet-4-5", "anthropic")
    assert prices is not None
    cached = {"input_token_details": {"cache_read": none}}
    assert prices.cost({**one, **cached}) == prices.cost(one)


class TurnedClock(FakeClock):
    """A clock whose date can be turned back, as NTP does."""

    turned = 0.0

    def time(self) -> float:
        return super().time() + self.turned


def test_a_clock_that_is_turned_back_gives_no_money_back() -> None:
    """What was spent after midnight counts until the next one."""
    clock = TurnedClock(unix_time=86_400 * 100 + 3)
    limit = SpendLimit(10, per="day", clock=clock)
    one = limit.reserve(Price(1, 5))
    clock.turned = -5
    assert isinstance(one, SpendReservation)
    one.settle(4)
    assert (limit.spent, limit.left) == (4, 6)
    clock.turned = 0
    assert limit.spent == 4
    clock.turned = 86_400
    assert limit.spent == 0


def test_a_forked_process_has_nothing_in_flight() -> None:
    """What its parent's attempts hold is not held in the child for ever."""
    limit = SpendLimit(10)
    one = limit.reserve(Price(1, 9))
    assert told_by_a_child(lambda: limit.left) == "10.0"
    assert limit.left == 1
    assert isinstance(one, SpendReservation)


@pytest.mark.parametrize("where", ["router", "inside", "inside of a route"])
@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_limit_at_several_places_pays_once(env: Env, where: str, way: str) -> None:
    """And never waits for what its own call holds."""
    limit = SpendLimit(1, clock=FakeClock())
    route = env.route(spend_limit=None if where == "inside" else limit)
    if where != "router":
        once = RetryPolicy(max_retries=0)
        own = limit if where == "inside" else None
        inner = new_router(route, spend_limit=own, retry_policy=once)
        route = Route(model=inner, name="inner", input_price=100, output_price=1000)
    router = new_router(route, spend_limit=limit)
    assert env.log(way, router).cost == pytest.approx(COST)
    assert limit.spent == pytest.approx(COST)
    assert limit.left == pytest.approx(1 - COST)


@pytest.mark.parametrize(
    ("model", "provider", "is_plain"),
    [
        ("gpt-4o", "openai", True),
        ("claude-sonnet-4-5", "anthropic", False),  # Dearer above 200,000 tokens.
        ("deepseek-chat", "deepseek", False),  # Cheaper by night.
        ("sonar", "perplexity", False),  # A price for each request, too.
        ("text-embedding-3-small", "openai", False),  # No price of an answer.
    ],
)
def test_a_plain_price_is_the_listed_one(
    model: str, provider: str, *, is_plain: bool
) -> None:
    """What is computed without the library is what the library says."""
    prices = listed_prices(model, provider)
    assert isinstance(prices, ListedPrices)
    assert (prices.plain is not None) == is_plain
    by_library = dataclasses.replace(prices, plain=None)
    for read, written in itertools.product((0, 1, 999, 250_000), (0, 7, 40_000)):
        usage = {"input_tokens": read, "output_tokens": written}
        assert prices.cost(usage) == by_library.cost(usage)


def test_tokens_written_to_a_cache_are_paid_once() -> None:
    """Also where the sum of them is given beside its parts."""
    prices = listed_prices("claude-sonnet-4-5", "anthropic")
    assert prices is not None
    for total in (0, 500):
        parts = {"cache_read": 100, "ephemeral_5m_input_tokens": 500}
        details = {**parts, "cache_creation": total}
        usage = {"input_tokens": 1000, "output_tokens": 10}
        money = 400 * 3 + 500 * 3.75 + 100 * 0.3 + 10 * 15
        cost = prices.cost({**usage, "input_token_details": details})
        assert cost == pytest.approx(money / 1_000_000)


@pytest.mark.parametrize(
    ("step", "requests"), [(Status(503), 3), (Cut(1), 1), (Status(400), 1)]
)
def test_nothing_stays_reserved(env: Env, step: Step, requests: int) -> None:
    """However a call ends, its money is settled: what is left is what was not spent."""
    limit = SpendLimit(1)
    router = new_router(
        env.route(), spend_limit=limit, max_cost=9, stream_recovery="error"
    )
    env.gateway.always(step)
    env.log("stream", router)
    assert len(env.gateway.requests) == requests
    env.log("invoke", router)
    assert limit.left == pytest.approx(1 - limit.spent)
    env.gateway.always(Answer("a b c d e f"))
    chunks: Any = router.stream("hi")
    next(chunks)
    assert limit.left < 1 - limit.spent
    chunks.close()
    assert limit.left == pytest.approx(1 - limit.spent)


class Settling(FakeClock):
    """Gives money that another call holds back at the sixth wait."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self._held = held

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if len(self.sleeps) == 6:
            self._held.settle(0.0)

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)


@pytest.mark.parametrize("limits", ["none", "rate_limit", "deadline"])
@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_rate_limiter_is_asked_once_while_money_is_waited_for(
    env: Env, way: str, limits: str
) -> None:
    """The turn of an attempt is kept until there is money for it."""
    limit, asked = SpendLimit(10 * COST, clock=FakeClock()), list[float]()
    held = limit.reserve(Price(COST, 9.5 * COST))
    clock = Settling(held)
    shared = RateLimit(requests_per_minute=60_000, clock=clock)
    turns = models.Turns(lambda: asked.append(clock.monotonic()))
    model = {"max_tokens": 5, "rate_limiter": turns}
    router = new_router(
        env.route(model=model),
        spend_limit=limit,
        clock=clock,
        rate_limit=shared if limits == "rate_limit" else None,
        retry_policy=RetryPolicy(deadline=60 if limits == "deadline" else None),
    )
    assert env.log(way, router).route == "own"
    assert len(clock.sleeps) >= 6
    assert len(asked) == 1
    env.gateway.script(Status(503))
    assert len(env.log(way, router).attempts) == 2
    assert len(asked) == 3


def test_held_money_is_not_waited_for_without_an_end(env: Env) -> None:
    """A call without a deadline waits for `max_retry_after` seconds in all."""
    limit, clock = SpendLimit(10 * COST), FakeClock()
    held = limit.reserve(Price(COST, 9.5 * COST))
    router = new_router(
        env.route(model={"max_tokens": 5}),
        spend_limit=limit,
        clock=clock,
        retry_policy=RetryPolicy(max_retry_after=2),
    )
    with pytest.raises(SpendLimitError, match="1 attempt in flight may take the rest"):
        env.invoke(router, "hi")
    assert 1.9 < sum(clock.sleeps) <= 2
    assert isinstance(held, SpendReservation)


def test_a_lost_attempt_counts_with_its_estimate() -> None:
    """Nobody settles that of a stream whose event loop was closed."""
    limit = SpendLimit(10)
    one: Any = limit.reserve(Price(1, 9))
    assert limit.left == 1
    del one
    gc.collect()
    assert (limit.spent, limit.left) == (1, 9)


@pytest.mark.parametrize("max_tokens", [10, None])
@pytest.mark.parametrize("is_async", [False, True])
def test_64_callers_stay_below_the_limit(
    gateway: FaultyGateway, max_tokens: int | None, *, is_async: bool
) -> None:
    """Callers at the same time wait for what is held, and overrun it by nothing.

    The answers have fewer tokens than `max_tokens`; without it their size is learned.
    """
    limit = SpendLimit(20.5 * COST, clock=FakeClock())
    route = new_route(gateway, model={"max_tokens": max_tokens})
    router = new_router(route, spend_limit=limit, clock=None)
    outcomes = crowd(router, is_async=is_async)
    assert outcomes["ok"] in {19, 20}
    assert outcomes["refused"] == 64 - outcomes["ok"]
    assert limit.spent == pytest.approx(outcomes["ok"] * COST)
    assert limit.spent <= limit.amount


def test_under_estimates_of_many_callers_are_those_of_one(
    gateway: FaultyGateway,
) -> None:
    """Answers that are longer than all before overrun the limit once, not 64 times."""
    gateway.always(Answer(" ".join(["word"] * 200)))
    limit = SpendLimit(0.5, clock=FakeClock())  # Two and a half of these answers.
    crowd(new_router(new_route(gateway), spend_limit=limit, clock=None))
    each = limit.spent / len(gateway.requests)
    assert each > 0.15
    assert limit.spent <= limit.amount + each


def test_copies_share_a_limit_and_pickles_keep_its_numbers(
    gateway: FaultyGateway,
) -> None:
    """A copy of a router spends from the same limit; a pickle takes its state along."""
    limit = SpendLimit(1, per="month", name="x")
    router = new_router(new_route(gateway), spend_limit=limit)
    router.invoke("hi")
    assert copy.deepcopy(limit) is copy.copy(limit) is limit
    assert router.model_copy().spend_limit is limit
    loaded = pickle.loads(pickle.dumps(limit))
    assert (loaded.spent, repr(loaded)) == (limit.spent, repr(limit))
    assert repr(limit) == "SpendLimit(1, per='month', name='x')"
    # With a store it gets no lease, but asks for its own; this store is an empty one.
    shared = SpendLimit(10, name="x", store=MemoryStore())
    reserved(shared, 4).settle(4)
    assert pickle.loads(pickle.dumps(shared)).left == 10
