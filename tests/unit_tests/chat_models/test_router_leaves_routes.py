"""When a router leaves a route: silence, waits, open breakers, the caller's rules."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import Any

import pytest
from langchain_core.rate_limiters import BaseRateLimiter

from langchain_retryrouter import (
    APIConnectionError,
    APITimeoutError,
    CircuitBreaker,
    CircuitOpenError,
    InvalidRequestError,
    RateLimitError,
    RetryPolicy,
    RetryRouter,
    RetryRouterError,
    Route,
    ServerError,
    UnavailableError,
)
from langchain_retryrouter.circuit_breaker import Permit
from langchain_retryrouter.testing import (
    Answer,
    Body,
    Cut,
    FakeClock,
    FaultyGateway,
    Silence,
    SlowFirstToken,
    Status,
)
from tests.unit_tests.conftest import Twin

from .test_retry_router import (
    SHORT,
    TEXT,
    NewModel,
    NewRouter,
    Raising,
    answer_of,
    asked,
    backup,
    model_of,
    models,
    new_router,
    primary,
    told,
    twin,
)

__all__ = ["backup", "model_of", "models", "new_router", "primary", "twin"]

NO_LIMITS = RetryPolicy(
    attempt_timeout=math.inf, first_token_timeout=math.inf, stall_timeout=math.inf
)
both_ways = pytest.mark.parametrize("way", ["invoke", "stream"])


# --- silence ---


@both_ways
def test_a_silent_route_gets_its_share_of_the_deadline(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    way: str,
) -> None:
    """Half of the time goes to the first of two routes, and the second one answers."""
    primary.always(Silence(30))
    policy = RetryPolicy(deadline=8 * SHORT)

    answer = answer_of(twin, way, new_router(retry_policy=policy, clock=None), "hi")

    assert told(answer) == [("first", "timeout"), ("second", "ok")]
    (line, _) = answer.response_metadata["retryrouter"]["attempts"]
    assert 3 * SHORT < line["seconds"] < 7 * SHORT


def test_an_attempt_has_a_limit_of_its_own(
    twin: Twin, new_router: NewRouter, primary: FaultyGateway
) -> None:
    """`attempt_timeout` bounds each attempt of a call without a stream."""
    primary.always(Silence(30))
    policy = RetryPolicy(attempt_timeout=SHORT)

    answer = twin.invoke(new_router(retry_policy=policy, clock=None), "hi")

    assert told(answer) == [("first", "timeout"), ("second", "ok")]


def test_the_last_route_gets_what_is_left(
    twin: Twin, new_router: NewRouter, primary: FaultyGateway, backup: FaultyGateway
) -> None:
    """With all routes silent the call ends with the deadline, each asked once."""
    primary.always(Silence(30))
    backup.always(Silence(30))
    policy = RetryPolicy(deadline=4 * SHORT)

    with pytest.raises(APITimeoutError, match="no answer within"):
        twin.invoke(new_router(retry_policy=policy, clock=None), "hi")

    assert asked(primary, backup) == (1, 1)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (RetryPolicy(), "within 300.0 s"),
        (RetryPolicy(attempt_timeout=math.inf), "no limit"),
        (RetryPolicy(deadline=30), "within 15.0 s"),
        (RetryPolicy(deadline=30, attempt_timeout=4), "within 4.0 s"),
    ],
    ids=["nothing", "none", "deadline", "attempt_timeout"],
)
def test_explain_says_what_a_silent_route_costs(
    new_router: NewRouter, policy: RetryPolicy, said: str
) -> None:
    """The table has a line for it."""
    table = str(new_router(retry_policy=policy).explain())
    assert f"a silent route is left, without a stream: {said}\n" in table


def test_a_router_alone_has_time_limits(new_router: NewRouter) -> None:
    """They hold where a policy sets none, and `math.inf` switches them off."""
    for router in (new_router(), new_router(retry_policy=RetryPolicy(max_retries=1))):
        table = str(router.explain())
        assert "a silent route is left, without a stream: within 300.0 s\n" in table
        assert "a stream that falls silent is left: within 60.0 s\n" in table
        assert router.explain().first_token is not None

    given = new_router(retry_policy=NO_LIMITS).explain()
    assert (given.silent_route, given.silent_stream, given.first_token) == (None,) * 3


@both_ways
def test_a_stream_that_is_cut_is_answered_by_default(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    way: str,
) -> None:
    """A router with nothing but its routes gives the whole answer."""
    primary.always(Cut(after=2))

    answer = answer_of(twin, way, new_router(), "hi")

    assert answer.text == TEXT
    assert told(answer)[-1] == ("second", "ok")


# --- waits ---


@both_ways
def test_a_long_wait_goes_to_the_next_route(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    backup: FaultyGateway,
    fake_clock: FakeClock,
    way: str,
) -> None:
    """A Retry-After above `failover_after_wait` is respected, but not waited for."""
    primary.script(Status(429, {"retry-after": "40"}))
    router = new_router()

    first, second = (answer_of(twin, way, router, "hi") for _ in range(2))

    assert told(first) == [("first", "rate_limit"), ("second", "ok")]
    assert told(second) == [("first", "circuit_open"), ("second", "ok")]
    assert fake_clock.sleeps == [0.0] or sum(fake_clock.sleeps) == 0
    assert asked(primary, backup) == (1, 2)
    fake_clock.advance(45)
    assert told(answer_of(twin, way, router, "hi")) == [("first", "ok")]


@both_ways
@pytest.mark.parametrize(
    ("seconds", "random", "wait"),
    [("2", 0.0, 2.0), ("2", 0.9, 2.9), ("3", 0.9, 3.9), ("0.5", 0.9, 1.85)],
)
def test_a_short_wait_stays_on_the_route(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    way: str,
    seconds: str,
    random: float,
    wait: float,
) -> None:
    """A Retry-After up to `failover_after_wait` is waited for, whatever the jitter."""
    primary.script(Status(429, {"retry-after": seconds}))
    clock = FakeClock(random=random)

    answer = answer_of(twin, way, new_router(clock=clock), "hi")

    assert told(answer) == [("first", "rate_limit"), ("first", "ok")]
    assert clock.sleeps == [pytest.approx(wait)]


@both_ways
def test_without_another_route_a_long_wait_is_made(
    twin: Twin,
    new_router: NewRouter,
    model_of: NewModel,
    primary: FaultyGateway,
    fake_clock: FakeClock,
    way: str,
) -> None:
    """The only route left is waited for as long as `max_retry_after` allows."""
    primary.script(Status(429, {"retry-after": "40"}))
    router = new_router(
        routes=[model_of(primary, "first")], retry_policy=RetryPolicy(jitter=False)
    )

    answer = answer_of(twin, way, router, "hi")

    assert told(answer) == [("first", "rate_limit"), ("first", "ok")]
    assert fake_clock.sleeps == [40.0]


# --- breakers ---


@both_ways
def test_the_attempts_of_one_call_are_one_failure(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    backup: FaultyGateway,
    way: str,
) -> None:
    """A prompt that breaks every provider opens no breaker for other calls."""
    for gateway in (primary, backup):
        gateway.always(
            lambda request: (
                Status(500)
                if request.parameters["messages"][0]["content"] == "boom"
                else Answer(TEXT)
            )
        )
    router = new_router()

    with pytest.raises(ServerError):
        getattr(twin, way)(router, "boom")

    assert told(answer_of(twin, way, router, "hi")) == [("first", "ok")]


@both_ways
@pytest.mark.parametrize(
    "fault",
    [Status(500), Body(200, {}, "<html>"), Answer("", finish_reason=None)],
    ids=["500", "malformed", "cut"],
)
def test_one_prompt_opens_no_breaker(
    twin: Twin,
    new_router: NewRouter,
    model_of: NewModel,
    primary: FaultyGateway,
    way: str,
    fault: Any,
) -> None:
    """A prompt that breaks all providers is harmless, however often it is sent."""
    primary.always(
        lambda request: (
            fault
            if request.parameters["messages"][0]["content"] == "boom"
            else Answer(TEXT)
        )
    )
    router = new_router(routes=[model_of(primary, name) for name in ("a", "b", "c")])

    for _ in range(10):
        with pytest.raises(RetryRouterError):
            getattr(twin, way)(router, "boom")

    assert told(answer_of(twin, way, router, "hello")) == [("a", "ok")]
    assert len(primary.requests) == 10 * 9 + 1


@both_ways
@pytest.mark.parametrize("fault", [Status(500), Status(503)], ids=["500", "503"])
def test_an_outage_opens_the_breaker(
    twin: Twin, new_router: NewRouter, primary: FaultyGateway, way: str, fault: Status
) -> None:
    """Different prompts that fail are an outage, and so is a 503 for any prompt."""
    primary.always(fault)
    router = new_router()
    prompts = ["hi"] * 3 if fault == Status(503) else ["one", "two", "three"]

    for prompt in prompts:
        assert told(answer_of(twin, way, router, prompt))[-1] == ("second", "ok")

    assert told(answer_of(twin, way, router, "hi")) == [
        ("first", "circuit_open"),
        ("second", "ok"),
    ]


@both_ways
def test_with_every_breaker_open_one_route_is_probed(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    backup: FaultyGateway,
    fake_clock: FakeClock,
    way: str,
) -> None:
    """The call goes to the route that opens first: the outage may be over."""
    primary.always(Status(503))
    backup.always(Status(503))
    router = new_router(
        breaker_settings={"failure_threshold": 1, "recovery_jitter": 0.0}
    )
    for _ in range(2):
        with pytest.raises(UnavailableError):
            getattr(twin, way)(router, "hi")
        fake_clock.advance(5)
    assert asked(primary, backup) == (2, 2)

    primary.always(Answer(TEXT))
    backup.always(Answer(TEXT))

    assert told(answer_of(twin, way, router, "hi")) == [
        ("first", "circuit_open"),
        ("second", "circuit_open"),
        ("first", "ok"),
    ]
    assert told(answer_of(twin, way, router, "hi")) == [("first", "ok")]


@both_ways
@pytest.mark.parametrize("fault", [Status(400), Status(503)], ids=["400", "503"])
def test_a_skipped_route_is_asked_before_the_call_gives_up(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    backup: FaultyGateway,
    way: str,
    fault: Status,
) -> None:
    """With no other route left, an open breaker gets its probe early, once."""
    primary.script(Status(503))
    router = new_router(
        breaker_settings={"failure_threshold": 1}, retry_policy=RetryPolicy()
    )
    told(answer_of(twin, way, router, "hi"))
    backup.always(fault)

    answer = answer_of(twin, way, router, "hi")

    assert told(answer)[:2] == [
        ("first", "circuit_open"),
        ("second", "invalid_request" if fault == Status(400) else "unavailable"),
    ]
    assert told(answer)[-1] == ("first", "ok")
    assert told(answer_of(twin, way, router, "hi")) == [("first", "ok")]

    primary.always(Status(500))
    with pytest.raises(ServerError):
        getattr(twin, way)(new_router(breaker_settings={"failure_threshold": 1}), "hi")
    assert len(primary.requests) == (5 if fault == Status(400) else 4)


@both_ways
@pytest.mark.parametrize("fault", [Status(503), Cut(after=2)], ids=["503", "cut"])
def test_a_route_whose_breaker_this_call_opened_is_asked_again(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    backup: FaultyGateway,
    way: str,
    fault: Any,
) -> None:
    """If the other route fails for good, the first one's trouble may be over."""
    primary.script(fault)
    backup.always(Status(400))
    router = new_router(breaker_settings={"failure_threshold": 1})

    answer = answer_of(twin, way, router, "hi")

    assert answer.text == TEXT
    assert [route for route, _ in told(answer)] == ["first", "second", "first"]


@both_ways
def test_a_held_route_is_waited_for_before_the_call_gives_up(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    backup: FaultyGateway,
    fake_clock: FakeClock,
    way: str,
) -> None:
    """A pause that the server asked for is kept, and better than an error."""
    primary.script(Status(429, {"retry-after": "40"}))
    backup.always(Status(400))
    router = new_router()

    answer = answer_of(twin, way, router, "hi")

    assert told(answer) == [
        ("first", "rate_limit"),
        ("second", "invalid_request"),
        ("first", "ok"),
    ]
    assert 40 <= sum(fake_clock.sleeps) < 43
    assert asked(primary, backup) == (2, 1)


@both_ways
@pytest.mark.parametrize("limits", [{"deadline": 30}, {"max_retry_after": 30}], ids=str)
def test_a_pause_that_is_too_long_is_not_waited_for(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    backup: FaultyGateway,
    fake_clock: FakeClock,
    way: str,
    limits: dict[str, Any],
) -> None:
    """The call fails at once if the pause outlasts the deadline or the policy."""
    primary.always(Status(429, {"retry-after": "40"}))
    backup.always(Status(400))
    router = new_router(retry_policy=RetryPolicy(**limits))

    with pytest.raises(RateLimitError) as caught:
        getattr(twin, way)(router, "hi")

    assert sum(fake_clock.sleeps) == 0
    assert caught.value.attempts == 2
    assert asked(primary, backup) == (1, 1)


@both_ways
def test_the_shorter_of_two_pauses_is_waited_for(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    backup: FaultyGateway,
    fake_clock: FakeClock,
    way: str,
) -> None:
    """If all routes are limited, the one that is free first is asked first."""
    primary.script(Status(429, {"retry-after": "10"}))
    backup.always(Status(429, {"retry-after": "50"}))

    answer = answer_of(twin, way, new_router(), "hi")

    assert told(answer) == [
        ("first", "rate_limit"),
        ("second", "rate_limit"),
        ("first", "ok"),
    ]
    assert 10 <= sum(fake_clock.sleeps) < 13


@both_ways
def test_a_pause_of_every_route_is_waited_for(
    twin: Twin,
    new_router: NewRouter,
    model_of: NewModel,
    primary: FaultyGateway,
    fake_clock: FakeClock,
    way: str,
) -> None:
    """Of calls that find all routes paused one asks early, and others wait."""
    breaker = CircuitBreaker(clock=fake_clock)
    route = Route(model=model_of(primary, "first"), breaker=breaker)
    router = new_router(routes=[route])
    breaker.open_for(20)
    primary.script(Status(429, {"retry-after": "15"}))

    early = answer_of(twin, way, router, "hi")

    assert told(early) == [
        ("first", "circuit_open"),
        ("first", "rate_limit"),
        ("first", "ok"),
    ]
    assert 15 <= sum(fake_clock.sleeps) < 18
    breaker.open_for(20)
    breaker.cancelled(breaker.probe())  # type: ignore[arg-type]
    began = fake_clock.monotonic()
    assert told(answer_of(twin, way, router, "hi"))[-1] == ("first", "ok")
    assert fake_clock.monotonic() - began >= 20


def test_a_route_gets_one_probe_at_a_time(
    new_router: NewRouter, model_of: NewModel, primary: FaultyGateway
) -> None:
    """While a probe is under way, another call learns when to come back."""
    primary.always(Status(503))
    router: RetryRouter = new_router(
        routes=[model_of(primary, "first")],
        breaker_settings={"failure_threshold": 1},
        retry_policy=RetryPolicy(max_retries=0),
    )
    with pytest.raises(UnavailableError):
        router.invoke("hi")
    primary.always(Silence(3))

    def probe() -> None:
        with pytest.raises(APIConnectionError):
            router.invoke("hi")

    thread = threading.Thread(target=probe)
    thread.start()
    asyncio.run(primary.await_for(lambda it: len(it.requests) == 2))

    with pytest.raises(CircuitOpenError) as caught:
        router.invoke("hi")
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 5
    thread.join()


@both_ways
def test_an_unknown_error_says_nothing_about_a_provider(
    twin: Twin,
    new_router: NewRouter,
    model_of: NewModel,
    backup: FaultyGateway,
    way: str,
) -> None:
    """A bug of a route's own code opens no breaker."""
    routes = [Raising(error=TypeError("a bug")), model_of(backup, "second")]
    router = new_router(routes=routes, breaker_settings={"failure_threshold": 1})

    for _ in range(2):
        answer = answer_of(twin, way, router, "hi")
        assert told(answer) == [("Raising", "unknown"), ("second", "ok")]


@both_ways
def test_a_callers_own_error_costs_nothing(
    twin: Twin, new_router: NewRouter, primary: FaultyGateway, way: str
) -> None:
    """Half a character cannot be sent: no retry, no request, and no breaker opens."""
    router = new_router(breaker_settings={"failure_threshold": 1})

    with pytest.raises(Exception, match="surrogates not allowed"):
        getattr(twin, way)(router, "cut \ud83d here")

    assert len(primary.requests) == 0
    assert told(answer_of(twin, way, router, "hi")) == [("first", "ok")]


# --- the caller's rules ---


def rate_limits_only(error: Exception) -> str | None:
    """Wait for rate limits at the first route, whatever else is said."""
    return "raise" if getattr(error, "status_code", None) == 429 else None


@both_ways
@pytest.mark.parametrize(
    ("fault", "rules", "attempt_log"),
    [
        (Status(429), {"rate_limit": "failover"}, ["rate_limit", "ok"]),
        (Status(400), {"invalid_request": "raise"}, InvalidRequestError),
        (Status(429), {RateLimitError: "failover"}, ["rate_limit", "ok"]),
        (
            Status(429),
            {LookupError: "raise", Exception: "failover"},
            ["rate_limit", "ok"],
        ),
        (Status(429), rate_limits_only, RateLimitError),
        (Status(503), rate_limits_only, ["unavailable"] * 3 + ["ok"]),
        (Status(429), [rate_limits_only, {"rate_limit": "failover"}], RateLimitError),
        (
            Status(503),
            [rate_limits_only, {"unavailable": "failover"}],
            ["unavailable", "ok"],
        ),
        (Status(400), lambda _: "retry", ["invalid_request"] * 3 + ["ok"]),
        (Status(400), lambda _: None, ["invalid_request", "ok"]),
    ],
    ids=[
        "kind",
        "kind-raises",
        "class",
        "classes",
        "function",
        "function-says-nothing",
        "list",
        "list-goes-on",
        "retry-of-anything",
        "none",
    ],
)
def test_failover_on_takes_kinds_classes_and_functions(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    way: str,
    fault: Status,
    rules: Any,
    attempt_log: Any,
) -> None:
    """The caller says what follows a failure: the first rule with an action counts."""
    primary.always(fault)
    router = new_router(failover_on=rules)

    if isinstance(attempt_log, list):
        answer = answer_of(twin, way, router, "hi")
        assert [outcome for _, outcome in told(answer)] == attempt_log
    else:
        with pytest.raises(attempt_log):
            getattr(twin, way)(router, "hi")


@both_ways
def test_a_rule_sees_what_the_model_raised(
    twin: Twin,
    new_router: NewRouter,
    model_of: NewModel,
    backup: FaultyGateway,
    way: str,
) -> None:
    """An exception class of the model's own is matched, and its error raised."""
    bug = KeyError("choices")
    routes = [Raising(error=bug), model_of(backup, "second")]
    router = new_router(routes=routes, failover_on={KeyError: "raise"})

    with pytest.raises(Exception, match="KeyError: 'choices'") as caught:
        getattr(twin, way)(router, "hi")

    assert caught.value.__cause__ is bug
    assert len(backup.requests) == 0


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (ValueError, "needs an action for ValueError"),
        ({ValueError: "next"}, "failover_on"),
        ({"bad_luck": "raise"}, "failover_on"),
        ("failover", "failover_on"),
    ],
    ids=str,
)
def test_a_wrong_rule_is_refused(new_router: NewRouter, rules: Any, says: str) -> None:
    """A rule that could not be followed is an error at once."""
    with pytest.raises(ValueError, match=says):
        new_router(failover_on=rules)


def test_a_function_must_return_an_action(
    twin: Twin, new_router: NewRouter, primary: FaultyGateway
) -> None:
    """A function that returns anything else is an error that says so."""
    primary.always(Status(503))
    with pytest.raises(ValueError, match="'next' is not a valid FailureAction"):
        twin.invoke(new_router(failover_on=lambda _: "next"), "hi")


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
    twin: Twin,
    new_router: NewRouter,
    model_of: NewModel,
    primary: FaultyGateway,
    backup: FaultyGateway,
    fake_clock: FakeClock,
    way: str,
    deadline: float | None,
    opens: float,
    served: str,
    waited: float,
) -> None:
    """The wait is no failure and in no limit; a long one asks the next route."""
    first = model_of(primary, "first")
    first.rate_limiter = gate = Gate(fake_clock, opens)
    policy = RetryPolicy(deadline=deadline, attempt_timeout=5, first_token_timeout=5)
    router = new_router(routes=[first, model_of(backup, "second")], retry_policy=policy)
    began = fake_clock.monotonic()

    answer = answer_of(twin, way, router, "hi")

    assert told(answer) == [(served, "ok")]
    assert gate.passed == (served == "first")
    assert fake_clock.monotonic() - began == pytest.approx(waited, abs=0.15)


@both_ways
def test_a_rate_limiter_counts_behind_an_open_breaker(
    twin: Twin,
    new_router: NewRouter,
    model_of: NewModel,
    primary: FaultyGateway,
    backup: FaultyGateway,
    fake_clock: FakeClock,
    way: str,
) -> None:
    """While the first route's breaker is open, the second one's limiter is asked."""
    breaker = CircuitBreaker(clock=fake_clock)
    breaker.open_for(60)
    second = model_of(backup, "second")
    second.rate_limiter = gate = Gate(fake_clock, 2)
    first = Route(model=model_of(primary, "first"), breaker=breaker)
    began = fake_clock.monotonic()

    answer = answer_of(twin, way, new_router(routes=[first, second]), "hi")

    assert told(answer) == [("first", "circuit_open"), ("second", "ok")]
    assert gate.passed == 1
    assert fake_clock.monotonic() - began == pytest.approx(2, abs=0.15)


@both_ways
def test_a_rate_limiter_keeps_the_last_resort(
    twin: Twin,
    new_router: NewRouter,
    model_of: NewModel,
    primary: FaultyGateway,
    backup: FaultyGateway,
    fake_clock: FakeClock,
    way: str,
) -> None:
    """A skipped route is probed, and not the one that has just asked for a pause."""
    backup.always(Status(429, headers={"retry-after": "20"}))
    breaker = CircuitBreaker(clock=fake_clock, failure_threshold=1)
    permit = breaker.admit()
    assert isinstance(permit, Permit)
    breaker.failed(permit)
    first = model_of(primary, "first")
    first.rate_limiter = Gate(fake_clock, 0)
    routes = [Route(model=first, breaker=breaker), model_of(backup, "second")]

    answer = answer_of(twin, way, new_router(routes=routes), "hi")

    assert told(answer) == [
        ("first", "circuit_open"),
        ("second", "rate_limit"),
        ("first", "ok"),
    ]


def test_without_limits_a_call_starts_no_thread(
    new_router: NewRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what follows a stream's finish reason is read by the caller's thread."""
    router: RetryRouter = new_router(retry_policy=NO_LIMITS)

    def refuse(thread: threading.Thread) -> None:
        raise AssertionError(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert router.invoke("hi").text == TEXT
    assert "".join(chunk.text for chunk in router.stream("hi")) == TEXT


@both_ways
def test_a_rate_limiter_is_bounded_by_the_deadline(
    twin: Twin,
    new_router: NewRouter,
    model_of: NewModel,
    primary: FaultyGateway,
    fake_clock: FakeClock,
    way: str,
) -> None:
    """Nothing is sent for a caller whose time is up."""
    first = model_of(primary, "first")
    first.rate_limiter = Gate(fake_clock, 30)
    router = new_router(routes=[first], retry_policy=RetryPolicy(deadline=5))

    with pytest.raises(APITimeoutError, match="nothing was sent"):
        getattr(twin, way)(router, "hi")

    assert len(primary.requests) == 0


def test_a_second_stream_passes_its_routes_rate_limiter(
    twin: Twin,
    new_router: NewRouter,
    model_of: NewModel,
    primary: FaultyGateway,
    backup: FaultyGateway,
    fake_clock: FakeClock,
) -> None:
    """A route whose limiter has nothing left is not asked by `hedge_after`."""
    primary.always(SlowFirstToken(3 * SHORT))
    second = model_of(backup, "second")
    second.rate_limiter = Gate(fake_clock, 30)
    router = new_router(routes=[model_of(primary, "first"), second], hedge_after=SHORT)

    chunks = twin.stream(router, "hi")

    assert "".join(chunk.text for chunk in chunks) == TEXT
    assert asked(primary, backup) == (1, 0)
