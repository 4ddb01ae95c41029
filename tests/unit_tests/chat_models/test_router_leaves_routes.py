"""When a router leaves a route: silence, waits, open breakers, the caller's rules."""

import asyncio
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import pytest
from langchain.chat_models import init_chat_model
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage
from langchain_core.rate_limiters import BaseRateLimiter

from langchain_retryrouter import (
    APIConnectionError,
    APITimeoutError,
    CircuitBreaker,
    CircuitOpenError,
    ContentFilterError,
    InvalidRequestError,
    RateLimit,
    RateLimitError,
    RetryBudget,
    RetryEvent,
    RetryPolicy,
    RetryRouter,
    RetryRouterError,
    Route,
    ServerError,
    SpendLimitError,
    UnavailableError,
)
from langchain_retryrouter.testing import (
    Answer,
    Body,
    Cut,
    FakeClock,
    FaultyGateway,
    Reset,
    Silence,
    SlowFirstToken,
    Status,
    Step,
)
from tests.support.alone import run_alone
from tests.unit_tests.retry.scripted import fail_elsewhere
from tests.unit_tests.router.anthropic_wire import ANSWER

from .conftest import ENOUGH, SHORT, TEXT, Pair, both_ways
from .frames import sum_of
from .test_retry_router import Raising, told

NO_LIMITS = RetryPolicy(
    attempt_timeout=math.inf, first_token_timeout=math.inf, stall_timeout=math.inf
)


# --- what follows a failure ---


def limited(seconds: float | str) -> Status:
    """A rate limit that names a pause."""
    return Status(429, {"retry-after": str(seconds)})


def rate_limits_only(error: Exception) -> str | None:
    """Wait for rate limits at the first route, whatever else is said."""
    return "raise" if getattr(error, "status_code", None) == 429 else None


@dataclass(frozen=True)
class Run:
    """A call: what the providers do, and what the attempt log says of it."""

    log: str
    """The first letters of routes, and outcomes; * is any outcome."""
    first: Step | list[Step]
    """What the first provider does always, or to its first requests."""
    second: Step | None = None
    rules: Any = None
    """`failover_on`."""
    waited: float = 0.0
    """Seconds; a random share of the back-off comes on top."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Other fields of the router."""
    error: type[RetryRouterError] | None = None
    """What is raised if no route answers."""


def thrice(kind: str) -> str:
    return f"f {kind}, f {kind}, f {kind}, s ok"


OVERLONG = Status(400, error_code="context_length_exceeded")
FILTERED = Status(400, error_code="content_policy_violation")
RUNS = {
    **{
        str(status): Run("f invalid_request, s ok", Status(status))
        for status in (400, 405, 413, 422, 501)
    },
    "429": Run(thrice("rate_limit"), Status(429)),
    "499": Run(thrice("unavailable"), Status(499)),
    "500": Run(thrice("server_error"), Status(500)),
    "503": Run(thrice("unavailable"), Status(503)),
    "reset": Run(thrice("connection"), Reset()),
    "quota": Run("f quota, s ok", Status(429, error_code="insufficient_quota")),
    "401": Run("f authentication, s ok", Status(401)),
    "404": Run("f not_found, s ok", Status(404)),
    "context": Run("f context_overflow, s ok", OVERLONG),
    # Up to `failover_after_wait` a wait stays at its route, whatever the jitter.
    "a long wait": Run("f rate_limit, s ok", limited(3600)),
    "2 s": Run("f rate_limit, f ok", [limited(2)], waited=2.0),
    "3 s": Run("f rate_limit, f ok", [limited(3)], waited=3.0),
    "0.5 s": Run("f rate_limit, f ok", [limited(0.5)], waited=0.5),
    "a held route": Run(
        "f rate_limit, s invalid_request, f ok", [limited(40)], Status(400), waited=40
    ),
    "the shorter pause": Run(
        "f rate_limit, s rate_limit, f ok", [limited(10)], limited(50), waited=10
    ),
    # The caller's rules: the first one with an action counts.
    "a kind": Run("f rate_limit, s ok", Status(429), rules={"rate_limit": "failover"}),
    "a filter": Run(
        "f content_filter, s ok", FILTERED, rules={"content_filter": "failover"}
    ),
    "a class": Run(
        "f rate_limit, s ok",
        Status(429),
        rules={LookupError: "raise", RateLimitError: "failover"},
    ),
    "a base": Run("f rate_limit, s ok", Status(429), rules={Exception: "failover"}),
    "a silent function": Run(
        thrice("unavailable"), Status(503), rules=rate_limits_only
    ),
    "a list": Run(
        "f unavailable, s ok",
        Status(503),
        rules=[rate_limits_only, {"unavailable": "failover"}],
    ),
    "a retry of anything": Run(
        thrice("invalid_request"), Status(400), rules=lambda _: "retry"
    ),
    # A refusal, and the caller's rule, end a call.
    "a refusal": Run("f content_filter", FILTERED, error=ContentFilterError),
    "a refusal after another route's failure": Run(
        "f authentication, s content_filter",
        Status(401),
        FILTERED,
        error=ContentFilterError,
    ),
    "the end by a kind": Run(
        "f invalid_request",
        Status(400),
        rules={"invalid_request": "raise"},
        error=InvalidRequestError,
    ),
    "the end by a list": Run(
        "f rate_limit",
        Status(429),
        rules=[rate_limits_only, {"rate_limit": "failover"}],
        error=RateLimitError,
    ),
    # The call fails at once if the pause outlasts the deadline or the policy.
    **{
        f"a pause beyond the {limit}": Run(
            "f rate_limit, s invalid_request",
            limited(40),
            Status(400),
            fields={"retry_policy": policy},
            error=RateLimitError,
        )
        for limit, policy in (
            ("deadline", RetryPolicy(deadline=30)),
            ("policy's", RetryPolicy(max_retry_after=30)),
        )
    },
    # If the other route fails for good, the first one's trouble may be over.
    **{
        f"a breaker that this call opened by {name}": Run(
            "f *, s invalid_request, f ok",
            [fault],
            Status(400),
            fields={"breaker_settings": {"failure_threshold": 1}},
        )
        for name, fault in (("503", Status(503)), ("a cut", Cut(after=2)))
    },
    # Retries are bought, and failovers are not.
    "an empty budget": Run(
        "f unavailable, s ok", Status(503), fields={"budget": RetryBudget(capacity=1)}
    ),
    # A wait alone does not make a retry as cheap as after a rate limit.
    "a budget for a retry after a rate limit": Run(
        "f invalid_request, s server_error",
        Status(400),
        Status(500),
        fields={"budget": RetryBudget(capacity=13)},
        error=InvalidRequestError,
    ),
}


@both_ways
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_what_follows_a_failure(
    pair: Pair, caplog: pytest.LogCaptureFixture, run: Run
) -> None:
    """The same route, after a wait, the next one, or the end; nothing else is asked.

    A failure that needs a human is logged if another attempt hides it.
    """
    if isinstance(run.first, list):
        pair.primary.script(*run.first)
    else:
        pair.primary.always(run.first)
    if run.second is not None:
        pair.backup.always(run.second)
    router = pair.router(failover_on=run.rules or {}, **run.fields)

    if run.error is None:
        answer = pair.ask(router, "hi")
        ledger = answer.response_metadata["retryrouter"]
        assert answer.text == TEXT
        assert json.loads(json.dumps(answer.response_metadata))
    else:
        with pytest.raises(run.error) as caught:
            pair.ask(router, "hi")
        ledger = caught.value.attempt_log

    routes = [line["route"] for line in ledger["attempts"]]
    log = ", ".join(f"{one['route'][0]} {one['outcome']}" for one in ledger["attempts"])
    assert fnmatch(log, run.log)
    assert pair.asked() == (routes.count("first"), routes.count("second"))
    hidden = {line["outcome"] for line in ledger["attempts"][:-1]}
    is_logged = "cannot answer" in caplog.text
    assert is_logged == bool(
        hidden & {"authentication", "not_found", "invalid_request"}
    )
    if run.error is None:
        assert ledger["route"] == answer.response_metadata["model_name"] == routes[-1]
    else:  # A refusal leads, else the first route's error.
        leads = routes[-1] if run.error is ContentFilterError else "first"
        assert caught.value.route == leads
        others = {other.route for other in caught.value.others}
        assert others == set(routes) - {leads}
    if run.waited:
        assert run.waited <= sum(pair.clock.sleeps) < run.waited + 3
    elif len(routes) <= 2:
        assert sum(pair.clock.sleeps) == 0


@both_ways
def test_hooks_get_retries_and_failovers(pair: Pair) -> None:
    """`on_retry` gets the wait at the same route, and `on_failover` the next route.

    A callback handler's `on_retry` is called between any two requests.
    """
    retries, failovers = list[RetryEvent](), list[RetryEvent]()
    seen: list[type] = []

    class Seen(BaseCallbackHandler):
        def on_retry(self, retry_state: Any, **_: Any) -> None:
            seen.append(type(retry_state.outcome.exception()))

    policy = RetryPolicy(
        max_retries=1,
        jitter=False,
        on_retry=retries.append,
        on_failover=failovers.append,
    )
    pair.primary.always(Status(503))

    pair.ask(pair.router(retry_policy=policy), "hi", {"callbacks": [Seen()]})

    events = [(e.attempt, e.route, e.delay, e.next_route) for e in retries + failovers]
    assert events == [(1, "first", 1.5, "first"), (2, "first", 0.0, "second")]
    assert seen == [UnavailableError] * 2


# --- silence ---


@both_ways
def test_a_silent_route_gets_its_share_of_the_time(pair: Pair) -> None:
    """Half of the deadline for the first of two routes; the last gets what is left."""
    pair.primary.always(Silence(30))
    policy = RetryPolicy(deadline=2 * ENOUGH)
    answer = pair.ask(pair.router(retry_policy=policy, clock=None), "hi")
    assert told(answer) == [("first", "timeout"), ("second", "ok")]
    (line, _) = answer.response_metadata["retryrouter"]["attempts"]
    assert 0.9 * ENOUGH < line["seconds"] < 1.9 * ENOUGH

    if pair.way == "invoke":  # `attempt_timeout` is for calls without a stream.
        policy = RetryPolicy(attempt_timeout=ENOUGH)
        answer = pair.ask(pair.router(retry_policy=policy, clock=None), "hi")
        assert told(answer) == [("first", "timeout"), ("second", "ok")]

    before = pair.asked()
    pair.backup.always(Silence(30))
    policy = RetryPolicy(deadline=2 * ENOUGH)
    with pytest.raises(APITimeoutError, match=r"no answer within|no first token"):
        pair.ask(pair.router(retry_policy=policy, clock=None), "hi")
    assert pair.asked() == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize(
    ("policy", "silent", "stalled"),
    [
        (RetryPolicy(), "within 300.0 s", "within 60.0 s"),
        (RetryPolicy(max_retries=1), "within 300.0 s", "within 60.0 s"),
        (RetryPolicy(attempt_timeout=math.inf), "no limit", "within 60.0 s"),
        (NO_LIMITS, "no limit", "no limit"),
        (RetryPolicy(deadline=30), "within 15.0 s", "within 30.0 s"),
        (RetryPolicy(deadline=30, attempt_timeout=4), "within 4.0 s", "within 30.0 s"),
    ],
    ids=["nothing", "retries", "none", "none-at-all", "deadline", "attempt_timeout"],
)
def test_explain_says_what_a_silent_route_costs(
    policy: RetryPolicy, silent: str, stalled: str
) -> None:
    """A router has time limits where its policy sets none; the table has the lines."""
    model = FakeListChatModel(responses=[""])
    table = str(RetryRouter(routes=[model, model], retry_policy=policy).explain())
    assert f"a silent route is left, without a stream: {silent}\n" in table
    assert f"a stream that falls silent is left: {stalled}\n" in table


@both_ways
def test_a_pause_holds_for_other_calls(pair: Pair) -> None:
    """A Retry-After above `failover_after_wait` keeps all calls away, till it ends."""
    pair.primary.script(limited(40))
    router = pair.router()

    first, second = (pair.ask(router, "hi") for _ in range(2))

    assert told(first) == [("first", "rate_limit"), ("second", "ok")]
    assert told(second) == [("first", "circuit_open"), ("second", "ok")]
    assert sum(pair.clock.sleeps) == 0
    assert pair.asked() == (1, 2)
    pair.clock.advance(45)
    assert told(pair.ask(router, "hi")) == [("first", "ok")]


# --- breakers ---


@both_ways
@pytest.mark.parametrize(
    ("fault", "attempts"),
    [
        (Status(500), 9),
        (Body(200, {}, "<html>"), 9),
        (Answer("", finish_reason=None), 9),
        (Reset(), 9),
        (Status(504), 3),
    ],
    ids=["500", "malformed", "cut", "reset", "timeout"],
)
def test_one_prompt_opens_no_breaker(pair: Pair, fault: Any, attempts: int) -> None:
    """A prompt that breaks all providers is harmless, however often it is sent.

    After a timeout each next route is asked at once.
    """
    pair.primary.always(
        lambda request: (
            fault
            if request.parameters["messages"][0]["content"] == "boom"
            else Answer(TEXT)
        )
    )
    router = pair.router(
        routes=[pair.model(pair.primary, name) for name in ("a", "b", "c")]
    )

    for _ in range(5):
        with pytest.raises(RetryRouterError):
            pair.ask(router, "boom")

    assert told(pair.ask(router, "hello")) == [("a", "ok")]
    assert len(pair.primary.requests) == 5 * attempts + 1


@both_ways
@pytest.mark.parametrize(
    ("fault", "kind", "prompts"),
    [
        (Status(500), "server_error", ["one", "two", "three"]),
        (Status(503), "unavailable", ["hi"] * 3),
    ],
    ids=["500", "503"],
)
def test_an_outage_opens_the_breaker(
    pair: Pair, fault: Status, kind: str, prompts: list[str]
) -> None:
    """Different prompts that fail are an outage, and so is a 503 for any prompt.

    Then the route gets a probe now and then, and all calls after one that was answered.
    """
    pair.primary.always(fault)
    router = pair.router()
    skipped = [("first", "circuit_open"), ("second", "ok")]

    for prompt in prompts:
        assert told(pair.ask(router, prompt))[-1] == ("second", "ok")

    assert told(pair.ask(router, "hi")) == skipped
    pair.clock.advance(31)
    assert told(pair.ask(router, "hi")) == [("first", kind), ("second", "ok")]
    assert told(pair.ask(router, "hi")) == skipped
    pair.clock.advance(31)
    pair.primary.always(Answer(TEXT))
    for _ in range(2):
        assert told(pair.ask(router, "hi")) == [("first", "ok")]


@both_ways
def test_with_every_breaker_open_one_route_is_probed(pair: Pair) -> None:
    """The call goes to the route that opens first: the outage may be over."""
    pair.primary.always(Status(503))
    pair.backup.always(Status(503))
    router = pair.router(
        breaker_settings={"failure_threshold": 1, "recovery_jitter": 0.0}
    )
    for _ in range(2):
        with pytest.raises(UnavailableError):
            pair.ask(router, "hi")
        pair.clock.advance(5)
    assert pair.asked() == (2, 2)

    pair.primary.always(Answer(TEXT))
    pair.backup.always(Answer(TEXT))

    assert told(pair.ask(router, "hi")) == [
        ("first", "circuit_open"),
        ("second", "circuit_open"),
        ("first", "ok"),
    ]
    assert told(pair.ask(router, "hi")) == [("first", "ok")]


@both_ways
@pytest.mark.parametrize("fault", [Status(400), Status(503)], ids=["400", "503"])
def test_a_skipped_route_is_asked_before_the_call_gives_up(
    pair: Pair, fault: Status
) -> None:
    """With no other route left, an open breaker gets its probe early, once."""
    pair.primary.script(Status(503))
    router = pair.router(
        breaker_settings={"failure_threshold": 1}, retry_policy=RetryPolicy()
    )
    told(pair.ask(router, "hi"))
    pair.backup.always(fault)

    answer = pair.ask(router, "hi")

    assert told(answer)[:2] == [
        ("first", "circuit_open"),
        ("second", "invalid_request" if fault == Status(400) else "unavailable"),
    ]
    assert told(answer)[-1] == ("first", "ok")
    assert told(pair.ask(router, "hi")) == [("first", "ok")]

    pair.primary.always(Status(500))
    with pytest.raises(ServerError):
        pair.ask(pair.router(breaker_settings={"failure_threshold": 1}), "hi")
    assert len(pair.primary.requests) == (5 if fault == Status(400) else 4)


@both_ways
def test_a_pause_of_every_route_is_waited_for(pair: Pair) -> None:
    """Of calls that find all routes paused one asks early, and others wait."""
    breaker = CircuitBreaker(clock=pair.clock)
    route = Route(model=pair.model(pair.primary, "first"), breaker=breaker)
    router = pair.router(routes=[route])
    breaker.open_for(20)
    pair.primary.script(limited(15))

    early = pair.ask(router, "hi")

    assert told(early) == [
        ("first", "circuit_open"),
        ("first", "rate_limit"),
        ("first", "ok"),
    ]
    assert 15 <= sum(pair.clock.sleeps) < 18
    breaker.open_for(20)
    breaker.cancelled(breaker.admit(is_early=True))  # type: ignore[arg-type]
    began = pair.clock.monotonic()
    assert told(pair.ask(router, "hi"))[-1] == ("first", "ok")
    assert pair.clock.monotonic() - began >= 20


def test_a_route_gets_one_probe_at_a_time(pair: Pair) -> None:
    """While a probe is under way, another call learns when to come back."""
    pair.primary.always(Status(503))
    router: RetryRouter = pair.router(
        routes=[pair.model(pair.primary, "first")],
        breaker_settings={"failure_threshold": 1},
        retry_policy=RetryPolicy(max_retries=0),
    )
    with pytest.raises(UnavailableError):
        router.invoke("hi")
    pair.primary.always(Silence(3))

    def probe() -> None:
        with pytest.raises(APIConnectionError):
            router.invoke("hi")

    thread = threading.Thread(target=probe)
    thread.start()
    asyncio.run(pair.primary.await_for(lambda it: len(it.requests) == 2))

    with pytest.raises(CircuitOpenError) as caught:
        router.invoke("hi")
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 5
    thread.join()


def test_connections_of_another_event_loop_are_no_failure(
    faulty_gateway: FaultyGateway,
) -> None:
    """A second `asyncio.run` with many calls is answered, and no breaker opens."""
    faulty_gateway.respond("/v1/messages", ANSWER)
    # In a process of its own: LangChain's integrations keep the client, and with it the
    # connections of the first event loop, for as long as the process lives.
    addresses = {"openai": faulty_gateway.openai_url, "anthropic": faulty_gateway.url}
    run_alone(ask_in_two_loops, addresses)


def log_of(answer: AIMessage) -> list[dict[str, Any]]:
    """The attempts for an answer."""
    log: list[dict[str, Any]] = answer.response_metadata["retryrouter"]["attempts"]
    return log


def ask_in_two_loops(addresses: dict[str, str]) -> None:
    """Six calls in one event loop, which then is closed, and six in another."""

    async def ask(router: RetryRouter) -> list[AIMessage]:
        return await router.abatch(["hi"] * 6)

    for provider, url in addresses.items():
        model = init_chat_model(
            "m", model_provider=provider, base_url=url, api_key="any"
        )
        clock = FakeClock()
        limit = RateLimit(requests_per_minute=6_000, clock=clock)
        route = Route(model=model, input_price=1, output_price=1, rate_limit=limit)
        router = RetryRouter(
            routes=[route], retry_policy=RetryPolicy(max_retries=0), clock=clock
        )
        first = asyncio.run(ask(router))
        before = limit.available()["requests"]
        attempts = [log_of(answer) for answer in asyncio.run(ask(router))]
        assert [[one["outcome"] for one in log] for log in attempts] == [["ok"]] * 6
        # How many of the old connections a call gets depends on the library's pool.
        resent = [log[0].get("resent", 0) for log in attempts]
        assert any(resent), provider
        # The provider may have answered them, too.
        assert before - limit.available()["requests"] == 6 + sum(resent)
        assert [bool(log[0].get("cost_is_estimate")) for log in attempts] == [
            count > 0 for count in resent
        ]
        (once,) = {one["cost"] for answer in first for one in log_of(answer)}
        costs = {
            log[0]["cost"] - once: count
            for log, count in zip(attempts, resent, strict=True)
        }
        (estimate,) = {
            round(cost / count, 12) for cost, count in costs.items() if count
        }
        assert estimate > 0
        asyncio.run(ask(router))
        with pytest.raises(SpendLimitError, match=r"not sent again: .* is left"):
            asyncio.run(router.ainvoke("hi", max_cost=1.5 * estimate))


@both_ways
def test_a_route_not_asked_yet_is_probed_after_another_call(pair: Pair) -> None:
    """A call whose other route is used up waits for the probe of another call."""
    pair.backup.always(Status(503))
    pair.primary.script(Status(503), SlowFirstToken(2 * SHORT))
    router = pair.router(
        breaker_settings={"failure_threshold": 1},
        retry_policy=RetryPolicy(max_retries=0),
        clock=None,
    )
    with pytest.raises(UnavailableError):
        router.invoke("hi")
    with ThreadPoolExecutor(1) as pool:
        probe = pool.submit(router.invoke, "hi")
        pair.primary.wait_for(lambda it: len(it.requests) == 2)
        assert pair.ask(router, "hi").text == TEXT
        assert probe.result().text == TEXT


@both_ways
def test_a_callers_own_error_costs_nothing(pair: Pair) -> None:
    """Half a character cannot be sent: no retry, no request, and no breaker opens."""
    router = pair.router(breaker_settings={"failure_threshold": 1})

    with pytest.raises(Exception, match="surrogates not allowed"):
        pair.ask(router, "cut \ud83d here")

    assert len(pair.primary.requests) == 0
    assert told(pair.ask(router, "hi")) == [("first", "ok")]


# --- the caller's rules ---


@both_ways
def test_a_rule_sees_what_the_model_raised(pair: Pair) -> None:
    """An exception class of the model's own is matched, and its error raised."""
    bug = KeyError("choices")
    routes = [Raising(error=bug), pair.model(pair.backup, "second")]
    router = pair.router(routes=routes, failover_on={KeyError: "raise"})

    with pytest.raises(Exception, match="KeyError: 'choices'") as caught:
        pair.ask(router, "hi")

    assert caught.value.__cause__ is bug
    assert len(pair.backup.requests) == 0


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (ValueError, "needs an action for ValueError"),
        ({ValueError: "next"}, "failover_on"),
        ("failover", "failover_on"),
        ({"ratelimit": "raise"}, "not 'ratelimit'; did you mean 'rate_limit'"),
        (lambda _: "next", "failover_on: <lambda>.*'raise', not 'next'"),
    ],
    ids=["class", "action", "text", "kind", "function"],
)
def test_a_wrong_rule_is_refused(pair: Pair, rules: Any, says: str) -> None:
    """A rule that cannot be followed is an error at once; a function's, when called."""
    pair.primary.always(Status(503))
    with pytest.raises(ValueError, match=says):
        pair.ask(pair.router(failover_on=rules), "hi")


# --- rate limiters of routes ---


class Gate(BaseRateLimiter):
    """Admits one request at a given time, and refuses before."""

    def __init__(self, clock: FakeClock, opens: float) -> None:
        self._clock, self._opens = clock, clock.monotonic() + opens
        self.passed = 0

    def acquire(self, *, blocking: bool = True) -> bool:
        if blocking:
            self._clock.sleep(max(0.0, self._opens - self._clock.monotonic()))
        is_open = self._clock.monotonic() >= self._opens
        self.passed += is_open
        return is_open

    async def aacquire(self, *, blocking: bool = True) -> bool:
        return self.acquire(blocking=blocking)


@both_ways
@pytest.mark.parametrize("deadline", [None, 60.0])
@pytest.mark.parametrize(
    ("opens", "served", "waited"),
    [(0.0, "first", 0.0), (2.0, "first", 2.0), (30.0, "second", 3.0)],
    ids=["now", "soon", "late"],
)
def test_a_routes_rate_limiter_is_waited_for_a_while(
    pair: Pair, deadline: float | None, opens: float, served: str, waited: float
) -> None:
    """The wait is no failure and in no limit; a long one asks the next route."""
    first = pair.model(pair.primary, "first")
    first.rate_limiter = gate = Gate(pair.clock, opens)
    policy = RetryPolicy(deadline=deadline, attempt_timeout=5, first_token_timeout=5)
    router = pair.router(
        routes=[first, pair.model(pair.backup, "second")], retry_policy=policy
    )
    began = pair.clock.monotonic()

    answer = pair.ask(router, "hi")

    assert told(answer) == [(served, "ok")]
    assert gate.passed == (served == "first")
    assert pair.clock.monotonic() - began == pytest.approx(waited, abs=0.15)


@both_ways
def test_a_rate_limiter_counts_behind_an_open_breaker(pair: Pair) -> None:
    """While the first route's breaker is open, the second one's limiter is asked."""
    breaker = CircuitBreaker(clock=pair.clock)
    breaker.open_for(60)
    second = pair.model(pair.backup, "second")
    second.rate_limiter = gate = Gate(pair.clock, 2)
    first = Route(model=pair.model(pair.primary, "first"), breaker=breaker)
    began = pair.clock.monotonic()

    answer = pair.ask(pair.router(routes=[first, second]), "hi")

    assert told(answer) == [("first", "circuit_open"), ("second", "ok")]
    assert gate.passed == 1
    assert pair.clock.monotonic() - began == pytest.approx(2, abs=0.15)


@both_ways
def test_a_rate_limiter_keeps_the_last_resort(pair: Pair) -> None:
    """A skipped route is probed, and not the one that has just asked for a pause."""
    pair.backup.always(limited(20))
    breaker = CircuitBreaker(clock=pair.clock, failure_threshold=1)
    fail_elsewhere(breaker)
    first = pair.model(pair.primary, "first")
    first.rate_limiter = Gate(pair.clock, 0)
    routes = [Route(model=first, breaker=breaker), pair.model(pair.backup, "second")]

    answer = pair.ask(pair.router(routes=routes), "hi")

    assert told(answer) == [
        ("first", "circuit_open"),
        ("second", "rate_limit"),
        ("first", "ok"),
    ]


def test_without_limits_a_call_starts_no_thread(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what follows a stream's finish reason is read by the caller's thread."""
    router: RetryRouter = pair.router(retry_policy=NO_LIMITS)

    def refuse(thread: threading.Thread) -> None:
        raise AssertionError(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert router.invoke("hi").text == TEXT
    assert "".join(chunk.text for chunk in router.stream("hi")) == TEXT


@both_ways
def test_a_rate_limiter_is_bounded_by_the_deadline(pair: Pair) -> None:
    """Nothing is sent for a caller whose time is up."""
    first = pair.model(pair.primary, "first")
    first.rate_limiter = Gate(pair.clock, 30)
    router = pair.router(routes=[first], retry_policy=RetryPolicy(deadline=5))

    with pytest.raises(APITimeoutError, match="nothing was sent"):
        pair.ask(router, "hi")

    assert len(pair.primary.requests) == 0


@pytest.mark.parametrize("obstacle", ["rate limiter", "budget", "breaker"])
def test_a_second_stream_must_be_admitted(pair: Pair, obstacle: str) -> None:
    """`hedge_after` asks no route that refuses; what is not sent costs nothing."""
    pair.primary.always(SlowFirstToken(3 * SHORT))
    budget = RetryBudget(capacity=13 if obstacle == "budget" else 500)
    breaker = CircuitBreaker(failure_threshold=1, clock=pair.clock)
    if obstacle == "breaker":
        fail_elsewhere(breaker)
        pair.clock.advance(30)
        breaker.admit()  # The probe of another call.
    second = pair.model(pair.backup, "second")
    second.rate_limiter = Gate(pair.clock, 30 if obstacle == "rate limiter" else 0)
    router = pair.router(
        routes=[
            pair.model(pair.primary, "first"),
            Route(model=second, breaker=breaker),
        ],
        hedge_after=SHORT,
        budget=budget,
    )

    answer = sum_of(pair.twin.stream(router, "hi"))

    assert told(answer) == [("first", "ok")]
    assert pair.asked() == (1, 0)
    assert budget.tokens == (13 if obstacle == "budget" else 500)
