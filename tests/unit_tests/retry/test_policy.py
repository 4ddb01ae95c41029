"""What decides about retries: kinds of failures, policy, budget and breaker."""

import copy
import dataclasses
import itertools
import json
import math
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_retryrouter import CircuitBreaker, RetryBudget, RetryPolicy
from langchain_retryrouter import FailureKind as K
from langchain_retryrouter.circuit_breaker import BreakerState, Permit, Refusal
from langchain_retryrouter.failures import (
    ROUTES_OWN,
    Failure,
    classify,
    is_retryable,
)
from langchain_retryrouter.policy import resolve_policy
from langchain_retryrouter.testing import FakeClock
from tests.support.forks import told_by_a_child

# All statuses that the table names, and at least one beside each of its edges.
STATUSES = {
    status: kind
    for kind, statuses in {
        K.MALFORMED: (-1, 0, 100, 200, 204, 299, 600, 999),
        K.INVALID_REQUEST: (
            *(300, 301, 307, 399, 400, 405, 407, 413, 418, 422, 426, 431, 501, 505),
        ),
        K.AUTHENTICATION: (401,),
        K.QUOTA: (402,),
        K.PERMISSION: (403,),
        K.NOT_FOUND: (404, 410),
        K.TIMEOUT: (408, 504, 524),
        K.CONFLICT: (409,),
        K.RATE_LIMIT: (429,),
        K.UNAVAILABLE: (424, 425, 498, 499, 503, 529),
        K.SERVER_ERROR: (500, 502, 507, 520, 599),
    }.items()
    for status in statuses
}
RETRYABLE = {
    *(K.RATE_LIMIT, K.UNAVAILABLE, K.SERVER_ERROR, K.CONFLICT, K.TIMEOUT),
    *(K.CONNECTION, K.INTERRUPTED, K.MALFORMED, K.REJECTED),
}
OF_THE_ROUTE = {
    *(K.AUTHENTICATION, K.PERMISSION, K.NOT_FOUND, K.QUOTA, K.CONTEXT_OVERFLOW),
    K.UNKNOWN,
}
CODES = {
    "insufficient_quota": K.QUOTA,
    "billing_hard_limit_reached": K.QUOTA,
    "billing_not_active": K.QUOTA,
    "context_length_exceeded": K.CONTEXT_OVERFLOW,
    "string_above_max_length": K.CONTEXT_OVERFLOW,
    "content_filter": K.CONTENT_FILTER,
    "content_policy_violation": K.CONTENT_FILTER,
    "invalid_api_key": K.AUTHENTICATION,
    "model_not_found": K.NOT_FOUND,
    "rate_limit_exceeded": K.RATE_LIMIT,
    "server_error": K.SERVER_ERROR,
}


# The body says more about these; any other status is not overruled.
REFINED = {400, 401, 403, 413, 422, 424, 429}
PHRASE = "you exceeded your current quota, maximum context length"


@pytest.mark.parametrize(("status", "kind"), STATUSES.items())
def test_each_status_has_a_kind(status: int, kind: K) -> None:
    """A 503 stays an outage, whatever the body says; a 500 may be a long prompt."""
    assert classify(status) is kind
    if status not in REFINED:
        kinds = {classify(status, code, PHRASE) for code in (None, *CODES)}
        assert kinds == {K.CONTEXT_OVERFLOW if status == 500 else kind}


@pytest.mark.parametrize("kind", K)
def test_which_kinds_are_retried(kind: K) -> None:
    """`x-should-retry: false` forbids a retry; `true` does not allow one."""
    expected = kind in RETRYABLE
    assert is_retryable(kind) is expected
    assert Failure(kind).is_retryable is expected
    assert Failure(kind, should_retry=True).is_retryable is expected
    assert Failure(kind, should_retry=False).is_retryable is False
    assert (kind in ROUTES_OWN) is (kind in OF_THE_ROUTE)
    assert Failure(kind).may_have_run  # By default: the provider may charge for it.


@pytest.mark.parametrize(("code", "kind"), CODES.items())
def test_a_code(code: str, kind: K) -> None:
    """A code decides in a stream; a 4xx is made more exact, but never retryable."""
    assert classify(None, code) is kind
    assert classify(None, code, "maximum context length") is kind
    for status in (400, 403, 413, 422):
        expected = classify(status) if kind in RETRYABLE else kind
        assert classify(status, code) is expected


@pytest.mark.parametrize("code", [None, "", "some_new_code"])
def test_a_sentence(code: str | None) -> None:
    """The message is read where the code is missing or unknown, in any case.

    The wordings of providers are in `tests/unit_tests/data/provider_answers.json`.
    """
    for status in (None, 400, 403, 413, 422):
        for message in ("Your prompt is too long.", "PROMPT IS TOO LONG"):
            assert classify(status, code, message) is K.CONTEXT_OVERFLOW
    assert classify(None, code, "Oh no.") is K.SERVER_ERROR


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Invalid schema for function 'content_policy'", K.INVALID_REQUEST),
        ("Unknown name \"billing\" at 'tools[0].content_policy'", K.INVALID_REQUEST),
        ("tools[0].properties[daily_limit].type: missing", K.INVALID_REQUEST),
        ("input_schema.properties.rate_limit.type: wrong", K.INVALID_REQUEST),
        ("not a dict, input_value='our content policy'", K.INVALID_REQUEST),
        ("see https://example.com/account/billing", K.INVALID_REQUEST),
        ("The model `content-policy-1` does not exist", K.NOT_FOUND),
        ("upstream failed with code 'insufficient_quota'", K.QUOTA),
        ('stopped with finish_reason "content_filter"', K.CONTENT_FILTER),
        ("error `context_length_exceeded` from upstream", K.CONTEXT_OVERFLOW),
        ("upstream got 'insufficient_quota'", K.QUOTA),
        ("litellm.exceptions.ContentPolicyViolationError: no", K.CONTENT_FILTER),
        ('{"see":"https://a.b/c","code":"insufficient_quota"}', K.QUOTA),
        ("add a payment method at https://example.com/billing", K.QUOTA),
        ("Blocked entity: US_DRIVER_LICENSE by Guardrail: pii", K.CONTENT_FILTER),
    ],
)
def test_what_is_only_quoted_says_nothing(message: str, kind: K) -> None:
    """Names that the caller chose, paths, values and addresses; a code is no such."""
    assert classify(400, None, message) is kind


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        ("insufficient_quota", "", K.QUOTA),
        ("rate_limit_exceeded", "You exceeded your current quota.", K.RATE_LIMIT),
        ("context_length_exceeded", "", K.RATE_LIMIT),
        (None, "maximum context length", K.RATE_LIMIT),
        ("server_error", "", K.RATE_LIMIT),
        (None, "", K.RATE_LIMIT),
    ],
)
def test_a_429_is_a_rate_limit_or_a_quota(
    code: str | None, message: str, kind: K
) -> None:
    """A used-up quota is not retried; nothing else changes a 429."""
    assert classify(429, code, message) is kind


@given(st.none() | st.integers(), st.none() | st.text(), st.text())
def test_any_error_has_a_kind(status: int | None, code: str | None, text: str) -> None:
    """No status, code or message makes `classify` fail."""
    assert classify(status, code, text) in K


seconds = st.floats(0, 1e9)
numbers_in_unit_interval = st.floats(0, 1, exclude_max=True)
retries = st.integers(1, 10_000)
policies = st.builds(
    RetryPolicy,
    max_retries=st.integers(0, 8),
    initial_delay=seconds,
    max_delay=seconds,
    backoff_factor=st.floats(0, 1e3),
    jitter=st.booleans(),
    max_retry_after=seconds,
)


def test_the_defaults() -> None:
    """A changed default changes the waits of every user, so it is listed here too.

    The first five names are those of LangChain's retry middleware.
    """
    assert dataclasses.astuple(RetryPolicy()) == (
        *(2, 1.5, 8.0, 2.0, True, 60.0, None, None, None, None, 3.0, None, None),
    )
    assert [field.name for field in dataclasses.fields(RetryPolicy)] == [
        *("max_retries", "initial_delay", "max_delay", "backoff_factor", "jitter"),
        *("max_retry_after", "deadline", "attempt_timeout", "first_token_timeout"),
        *("stall_timeout", "failover_after_wait", "on_retry", "on_failover"),
    ]


def test_a_policy_is_plain_data() -> None:
    """It is hashable, and survives JSON and pickle."""
    policy = RetryPolicy(max_retries=7, deadline=30.0, jitter=False)
    as_json = json.dumps(dataclasses.asdict(policy), allow_nan=False)
    read = RetryPolicy(**json.loads(as_json))
    for one in (read, pickle.loads(pickle.dumps(policy))):
        assert (one, hash(one)) == (policy, hash(policy))
    assert policy.max_attempts == 8


NOT_SECONDS = [-1, -1e-9, math.nan, math.inf, -math.inf, 10**400, True, "1", [1], 1j]


async def async_hook(*_: object) -> None:
    """A hook that the sync engine could not call."""


class AsyncHook:
    """The same as an object."""

    async def __call__(self, *_: object) -> None: ...


NOT_WHOLE = [-1, 1.5, 2.0, True, False, "5", None, math.nan]
HOOKS = [1, "print", async_hook, AsyncHook()]
WAITS = "initial_delay max_delay backoff_factor max_retry_after failover_after_wait"
LIMITED = "attempt_timeout first_token_timeout stall_timeout"
NOT_LIMITS = [*(bad for bad in NOT_SECONDS if bad != math.inf), 0, 0.0]
TOKENS = "capacity retry_cost throttled_cost success_gain"
COUNTS = "failure_threshold minimum_calls quorum"
TIMES, NOT_TIMES = "recovery_time window", [*NOT_LIMITS, math.inf, None]
NOT_RATES, NOT_SHARES = [0, 1.1, -0.1, math.nan, "1"], [-1, 1.1, None, True]
ADVICE = {
    "max_retries": " (0 sends one request and never repeats it)",
    "deadline": "; leave it None for no limit",
    **dict.fromkeys(LIMITED.split(), "; math.inf for no limit"),
}


@pytest.mark.parametrize(
    ("cls", "names", "values", "allowed"),
    [
        (RetryPolicy, "max_retries", NOT_WHOLE, "a whole number, 0 or more"),
        (RetryPolicy, WAITS, [*NOT_SECONDS, None], "a finite number, 0 or more"),
        (RetryPolicy, "deadline", [*NOT_SECONDS, 0], "a finite number, more than 0"),
        (RetryPolicy, LIMITED, NOT_LIMITS, "a finite number, more than 0"),
        (RetryPolicy, "jitter", [None, 0, 1, "yes"], "True or False"),
        (RetryPolicy, "on_retry on_failover", HOOKS, "a function that is not async"),
        (CircuitBreaker, "on_state_change", HOOKS, "a function that is not async"),
        (CircuitBreaker, COUNTS, [0, *NOT_WHOLE], "a whole number, 1 or more"),
        (CircuitBreaker, TIMES, NOT_TIMES, "a finite number above 0"),
        (CircuitBreaker, "failure_rate", NOT_RATES, "a share above 0 and up to 1"),
        (CircuitBreaker, "recovery_jitter", NOT_SHARES, "a share from 0 to 1"),
        (
            RetryBudget,
            TOKENS,
            [*NOT_SECONDS, None],
            "a finite number of tokens, 0 or more",
        ),
    ],
)
def test_bad_values_are_refused(
    cls: Any, names: str, values: list[Any], allowed: str
) -> None:
    """The error names the argument, its value and what is allowed."""
    for name, value in itertools.product(names.split(), values):
        with pytest.raises(ValueError, match=name) as caught:
            cls(**{name: value})
        message = f"{name} must be {allowed}, not {value!r}{ADVICE.get(name, '')}"
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("numbers", "longest"),
    [
        ({}, [1.5, 3, 6, 8, 8]),
        ({"backoff_factor": 0}, [1.5, 1.5, 1.5]),
        ({"backoff_factor": 0.5}, [1.5, 0.75, 0.375]),
        ({"backoff_factor": 10, "max_delay": 3}, [1.5, 3, 3]),
        ({"backoff_factor": 0, "max_delay": 0.1}, [0.1, 0.1]),
        ({"initial_delay": 0}, [0, 0, 0]),
        ({"initial_delay": 20}, [8, 8]),
    ],
)
def test_back_off_grows_by_the_factor(
    numbers: dict[str, Any], longest: list[float]
) -> None:
    """Back-off starts at `initial_delay`, is multiplied, and ends at `max_delay`."""
    policy = RetryPolicy(**numbers)
    assert [policy.backoff(retry) for retry in range(1, len(longest) + 1)] == longest


@given(policies, retries)
def test_back_off_stays_in_its_range(policy: RetryPolicy, retry: int) -> None:
    """Back-off is between 0 and `max_delay`, and does not shrink with a factor >= 1."""
    assert 0 <= policy.backoff(retry) <= policy.max_delay
    if policy.backoff_factor >= 1:
        assert policy.backoff(retry) <= policy.backoff(retry + 1)


@pytest.mark.parametrize(
    ("retry", "random", "retry_after", "jitter", "wait"),
    [
        (3, 0.0, None, True, 0.0),
        (3, 0.25, None, True, 1.5),
        (3, 0.25, 0.0, True, 1.5),
        (3, 0.9, None, False, 6.0),
        (3, 0.9, 1.5, False, 6.0),
        (3, 0.9, 10.0, False, 10.0),
        # The jitter is added, since the server asked all its clients for the same time.
        (1, 0.0, 10.0, True, 10.0),
        (1, 0.5, 10.0, True, 10.75),
        (5, 1.0, 0.1, True, 8.1),
        (5, 1.0, 20.0, True, 28.0),
    ],
)
def test_the_wait_is_back_off_above_retry_after(
    retry: int, random: float, retry_after: float | None, jitter: bool, wait: float
) -> None:
    """Full jitter without Retry-After; with it, a random part of back-off on top."""
    assert RetryPolicy(jitter=jitter).delay(retry, random, retry_after) == wait


@given(policies, retries, numbers_in_unit_interval, st.none() | seconds)
def test_a_wait_is_between_retry_after_and_its_jitter(
    policy: RetryPolicy, retry: int, random: float, retry_after: float | None
) -> None:
    """Never shorter than Retry-After, and at most a back-off (or 1 s) longer."""
    wait, floor = policy.delay(retry, random, retry_after), retry_after or 0.0
    assert math.isfinite(wait)
    spread = max(policy.backoff(retry), min(floor, 1.0))
    assert floor <= wait <= (floor + spread) * (1 + 1e-9)
    if policy.jitter and floor >= 1:
        waits = [policy.delay(retry, number, retry_after) for number in (0.0, 1.0)]
        assert waits[1] - waits[0] >= 1 - 1e-6 * floor


@given(policies, st.data())
def test_no_call_waits_longer_than_explained(
    policy: RetryPolicy, data: st.DataObject
) -> None:
    """`explain` bounds the waits of any call, with any Retry-After."""
    asked = st.none() | st.floats(0, policy.max_retry_after)
    waits = [
        policy.delay(retry, data.draw(numbers_in_unit_interval), data.draw(asked))
        for retry in range(1, policy.max_attempts)
    ]
    assert sum(waits) <= policy.explain().waited * (1 + 1e-9)


@pytest.mark.parametrize(
    ("numbers", "attempt_timeout", "sentence"),
    [
        ({"max_retries": 0}, None, "1 request, 0.0 s of waiting, no bound on"),
        ({"max_retries": 0}, 60, "1 request, 0.0 s of waiting, over after 60.0"),
        (
            {"max_retry_after": 0, "jitter": False},
            10,
            "3 requests, 4.5 s of waiting, over after 34.5 s",
        ),
        ({}, None, "3 requests, 124.5 s of waiting, no bound on the time of an"),
        ({}, math.inf, "3 requests, 124.5 s of waiting, no bound on the time of an"),
        ({"max_retries": 0, "attempt_timeout": math.inf}, None, "1 request, 0.0 s"),
        ({"deadline": 5}, None, "3 requests, 5.0 s of waiting, over after 5.0"),
        (
            {"attempt_timeout": 10, "deadline": 200},
            None,
            "3 requests, 124.5 s of waiting, over after 154.5 s",
        ),
    ],
)
def test_the_worst_case_in_words(
    numbers: dict[str, Any], attempt_timeout: float | None, sentence: str
) -> None:
    """`explain` says what a call costs at most, before anything is sent."""
    explained = str(RetryPolicy(**numbers).explain(attempt_timeout))
    assert explained.startswith(f"at most {sentence}")
    assert "inf" not in explained


@pytest.mark.parametrize("seconds", [0, -500, math.nan, True])
def test_the_worst_case_of_no_time_is_refused(seconds: Any) -> None:
    """An attempt takes some time."""
    with pytest.raises(ValueError, match=f"attempt_timeout must .* not {seconds}"):
        RetryPolicy().explain(seconds)


def test_max_retries_is_short_for_a_policy() -> None:
    """A model takes one of `max_retries` and `retry_policy`; they may not disagree."""
    policy = RetryPolicy(max_retries=9, deadline=3.0)
    assert resolve_policy(None, None, 6) == RetryPolicy(max_retries=6)
    assert resolve_policy(None, 0, 6) == RetryPolicy(max_retries=0)
    assert resolve_policy(policy, None, 6) is policy
    assert resolve_policy(policy, 9, 6) is policy
    with pytest.raises(ValueError, match="max_retries=1 and a retry_policy with"):
        resolve_policy(policy, 1, 6)
    with pytest.raises(ValueError, match="max_retries must be a whole number"):
        resolve_policy(None, -1, 6)


CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def permit_of(breaker: CircuitBreaker) -> Permit:
    """The permit of a call that is admitted."""
    permit = breaker.admit()
    assert isinstance(permit, Permit)
    return permit


def fail(breaker: CircuitBreaker, times: int = 1, **parts: Any) -> None:
    """So many calls fail."""
    for _ in range(times):
        breaker.failed(permit_of(breaker), **parts)


@pytest.mark.parametrize("threshold", [1, 3, 5])
def test_it_opens_at_the_threshold(clock: FakeClock, threshold: int) -> None:
    """So many failures in a row open it; a success ends the row, a cancel does not."""
    breaker = CircuitBreaker(failure_threshold=threshold, clock=clock)
    assert (breaker.state, breaker.is_open, breaker.retry_after) == (CLOSED, False, 0)
    for _ in range(2):
        fail(breaker, threshold - 1)
        breaker.succeeded(permit_of(breaker))
    fail(breaker, threshold - 1)
    breaker.cancelled(permit_of(breaker))
    assert breaker.state is CLOSED
    fail(breaker)
    assert (breaker.state, breaker.is_open, breaker.retry_after) == (OPEN, True, 30)
    clock.advance(10)
    assert breaker.admit() == Refusal(20)


def test_one_probe_decides(clock: FakeClock) -> None:
    """Half open, one call is admitted at a time; its outcome closes or opens it."""
    breaker = CircuitBreaker(failure_threshold=2, recovery_time=30, clock=clock)
    fail(breaker, 2)
    clock.advance(30)
    assert (breaker.state, breaker.is_open) == (HALF_OPEN, False)
    probe = permit_of(breaker)
    assert breaker.admit() == Refusal(0)
    breaker.failed(probe)
    assert breaker.retry_after == 30
    clock.advance(30)
    breaker.cancelled(permit_of(breaker))
    breaker.succeeded(permit_of(breaker))
    assert breaker.state is CLOSED
    fail(breaker)
    assert breaker.state is CLOSED  # The row begins again.


@pytest.mark.parametrize(
    "outcome", ["succeeded", "failed", "cancelled", "probe_answers"]
)
def test_a_call_from_before_the_opening_does_not_count(
    clock: FakeClock, outcome: str
) -> None:
    """A slow call that began before an outage says nothing about the time after it."""
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    slow = permit_of(breaker)
    fail(breaker)
    getattr(breaker, outcome)(slow)
    assert breaker.retry_after == 30
    clock.advance(30)
    probe = permit_of(breaker)
    getattr(breaker, outcome)(slow)
    assert breaker.admit() == Refusal(0)
    breaker.succeeded(probe)
    getattr(breaker, outcome)(probe)
    assert breaker.state is CLOSED


@pytest.mark.parametrize(
    ("failures", "successes", "state"), [(5, 5, OPEN), (4, 6, CLOSED), (4, 5, CLOSED)]
)
def test_it_opens_at_a_share_of_failures(
    clock: FakeClock, failures: int, successes: int, state: BreakerState
) -> None:
    """Enough failures among enough calls open it, and those before it do not count."""
    breaker = CircuitBreaker(failure_threshold=99, failure_rate=0.5, clock=clock)
    for _ in range(2):
        for _ in range(successes):
            breaker.succeeded(permit_of(breaker))
        fail(breaker, failures)
        assert breaker.state is state
        if state is CLOSED:
            return
        clock.advance(30)
        breaker.succeeded(permit_of(breaker))
        fail(breaker)
        assert breaker.state is CLOSED
        clock.advance(120)


@given(calls=st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=60))
def test_only_the_latest_calls_count(calls: list[tuple[float, bool]]) -> None:
    """Calls older than `window` are forgotten, up to a tenth of it early."""
    clock = FakeClock()
    breaker = CircuitBreaker(
        failure_threshold=10**6,
        failure_rate=0.5,
        minimum_calls=4,
        window=60,
        recovery_time=0.001,
        clock=clock,
    )
    times: list[tuple[float, bool]] = []
    for pause, has_failed in calls:
        clock.advance(pause)
        now = clock.monotonic()
        permit = permit_of(breaker)
        (breaker.failed if has_failed else breaker.succeeded)(permit)
        times.append((now, has_failed))
        rates = []
        for window in (54.0, 60.0):
            latest = [failed for since, failed in times if since > now - window]
            rates.append(len(latest) >= 4 and sum(latest) / len(latest) >= 0.5)
        if breaker.is_open:
            assert has_failed
            return
        if all(rates) and has_failed and now < 54:
            raise AssertionError(times)


@pytest.mark.parametrize(
    ("asked", "pause"),
    [(None, 30), (0.5, 30), (90.0, 90), (1e9, 86_400), (math.inf, 86_400), (-1.0, 30)],
)
def test_the_server_can_lengthen_the_pause(
    clock: FakeClock, asked: float | None, pause: float
) -> None:
    """An open breaker stays open for the longest time asked for, a day at most."""
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    fail(breaker, retry_after=asked)
    assert breaker.retry_after == pause
    breaker.open_for(40)
    assert breaker.retry_after == max(pause, 40)
    other = CircuitBreaker(clock=clock)
    other.open_for(asked or 0)
    assert other.retry_after == min(max(asked or 0, 0), 86_400)


@given(random=st.floats(0, 1, exclude_max=True), jitter=st.floats(0, 1))
def test_processes_do_not_probe_together(random: float, jitter: float) -> None:
    """`recovery_jitter` adds a random part of `recovery_time` to each opening."""
    clock = FakeClock(random=random)
    breaker = CircuitBreaker(failure_threshold=1, recovery_jitter=jitter, clock=clock)
    fail(breaker)
    assert breaker.retry_after == pytest.approx(30 + 30 * jitter * random)


def test_a_listener_hears_each_change_once(clock: FakeClock) -> None:
    """`on_state_change` gets the state before and the new one, outside the lock."""
    changes: list[tuple[BreakerState, BreakerState, BreakerState]] = []

    def listen(before: BreakerState, now: BreakerState) -> None:
        changes.append((before, now, breaker.state))

    breaker = CircuitBreaker(failure_threshold=1, clock=clock, on_state_change=listen)
    fail(breaker)
    breaker.open_for(60)
    clock.advance(60)
    breaker.cancelled(permit_of(breaker))
    breaker.succeeded(permit_of(breaker))
    assert changes == [
        (CLOSED, OPEN, OPEN),
        (OPEN, HALF_OPEN, HALF_OPEN),
        (HALF_OPEN, CLOSED, CLOSED),
    ]


def test_an_exception_of_a_listener_ends_its_call_only(clock: FakeClock) -> None:
    """The breaker has changed all the same, and the next call can be the probe."""
    bugs = [KeyError("a bug"), KeyError("a bug")]

    def listen(*_: object) -> None:
        if bugs:
            raise bugs.pop()

    breaker = CircuitBreaker(failure_threshold=1, clock=clock, on_state_change=listen)
    with pytest.raises(KeyError, match="a bug"):
        fail(breaker)
    assert breaker.is_open
    clock.advance(30)
    with pytest.raises(KeyError, match="a bug"):
        breaker.admit()
    breaker.succeeded(permit_of(breaker))
    assert breaker.state is CLOSED


def at_once(function: Callable[[], Any], threads: int) -> list[Any]:
    """The results of so many threads that call a function together."""
    barrier, interval = threading.Barrier(threads), sys.getswitchinterval()

    def call(_: int) -> Any:
        barrier.wait()
        return function()

    sys.setswitchinterval(1e-6)  # So that a missing lock is found.
    with ThreadPoolExecutor(threads) as pool:
        results = [*pool.map(call, range(threads))]
    sys.setswitchinterval(interval)
    return results


def test_one_of_many_threads_is_the_probe(clock: FakeClock) -> None:
    """Of calls that come together after the pause exactly one is admitted."""
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    fail(breaker)
    clock.advance(30)
    permits = at_once(breaker.admit, 50)
    assert sum(isinstance(permit, Permit) for permit in permits) == 1


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("shared", [CircuitBreaker(), RetryBudget()])
def test_a_copy_is_the_same_object(shared: Any, duplicate: Any) -> None:
    """A copied model goes on to share its breaker and its budget."""
    assert duplicate(shared) is shared


def test_a_pickle_has_the_numbers_and_starts_closed(clock: FakeClock) -> None:
    """Clock and listener belong to the process, and so does the state."""
    numbers = {"failure_threshold": 1, "recovery_time": 7, "failure_rate": 0.5}
    breaker = CircuitBreaker(**numbers, clock=clock, on_state_change=print)  # type: ignore[arg-type]
    fail(breaker)
    restored = pickle.loads(pickle.dumps(breaker))
    assert restored.state is CLOSED
    shown = "failure_threshold=1, recovery_time=7, failure_rate=0.5"
    assert repr(restored) == repr(breaker) == f"CircuitBreaker({shown})"
    shown = "failure_threshold=5, recovery_time=30"
    assert repr(CircuitBreaker()) == f"CircuitBreaker({shown})"


def test_a_forked_process_admits_its_own_probe(clock: FakeClock) -> None:
    """The probe that is under way is the parent's: the child does not wait for it."""
    breaker = CircuitBreaker(failure_threshold=1, recovery_time=7, clock=clock)
    fail(breaker)
    clock.advance(8)
    probe = permit_of(breaker)
    assert told_by_a_child(lambda: isinstance(breaker.admit(), Permit)) == "True"
    assert isinstance(breaker.admit(), Refusal)
    breaker.succeeded(probe)
    assert breaker.state is CLOSED


@pytest.mark.parametrize(
    ("arguments", "method", "value"),
    [
        ("clock=Clock()", "random", "0.5"),
        ("name='p', store=MemoryStore(clock=Clock())", "monotonic", "time.monotonic()"),
    ],
    ids=["breaker", "store"],
)
def test_a_fork_while_a_thread_has_the_lock(
    arguments: str, method: str, value: str
) -> None:
    """The child goes on, though the thread that had the lock is not there."""
    code = f"""
import os, signal, threading, time
from langchain_retryrouter import CircuitBreaker
from langchain_retryrouter.stores import MemoryStore
begun = threading.Event()
class Clock:
    monotonic = staticmethod(time.monotonic)
    def {method}(self):
        if threading.current_thread().daemon:
            begun.set()
            threading.Event().wait()
        return {value}
breaker = CircuitBreaker({arguments})
threading.Thread(target=breaker.open_for, args=(60,), daemon=True).start()
begun.wait()
child = os.fork()
if child == 0:
    signal.alarm(5)
    breaker.open_for(60)
    os._exit(0 if breaker.is_open else 1)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    options = ["-W", "ignore::DeprecationWarning"]
    done = subprocess.run([sys.executable, *options, "-c", code], check=False)
    assert done.returncode == 0


def test_the_edges_of_each_range_are_allowed() -> None:
    """The smallest and the largest numbers that make sense."""
    CircuitBreaker(failure_threshold=1, recovery_time=1e-9, failure_rate=1, window=1e-9)
    CircuitBreaker(minimum_calls=1, recovery_jitter=1, failure_rate=1e-9)


# --- budgets ---


def test_the_defaults_are_those_of_the_aws_sdks() -> None:
    """500 tokens, 14 for a retry, 5 for a throttled one, 1 back for a success."""
    budget = RetryBudget()
    assert (budget.tokens, budget.spend(), budget.spend(throttled=True)) == (500, 14, 5)
    budget.succeeded()
    assert budget.tokens == 500 - 14 - 5 + 1
    assert repr(budget) == "RetryBudget(482 of 500 tokens)"


def test_threads_spend_no_more_than_there_is() -> None:
    """Many threads together buy as many retries as one thread could."""
    budget = RetryBudget(capacity=1_000, retry_cost=1)
    spent = at_once(lambda: [budget.spend() for _ in range(500)], 8)
    bought = [one for each in spent for one in each]
    assert (bought.count(1), bought.count(None), budget.tokens) == (1_000, 3_000, 0)


tokens = st.integers(0, 100)  # Whole numbers, so that the sums are exact.
EVENTS = st.sampled_from(["retry", "throttled retry", "refund", "success", "pickle"])


@given(tokens, tokens, tokens, tokens, st.lists(EVENTS))
def test_no_token_is_lost(
    capacity: int, retry: int, throttled: int, gain: int, events: list[str]
) -> None:
    """A retry is sold if there are enough; no more are given than the capacity."""
    budget = RetryBudget(
        capacity=capacity,
        retry_cost=retry,
        throttled_cost=throttled,
        success_gain=gain,
    )
    left, scheduled = capacity, list[int]()
    for event in events:
        if event == "pickle":
            budget = pickle.loads(pickle.dumps(budget))
        elif event == "success":
            budget.succeeded()
            left = min(capacity, left + gain)
        elif event == "refund" and scheduled:
            price = scheduled.pop()
            budget.refund(price)
            left = min(capacity, left + price)
        elif event != "refund":
            is_throttled = event == "throttled retry"
            price = throttled if is_throttled else retry
            is_sold = price <= left
            spent = budget.spend(throttled=is_throttled)
            assert spent == (price if is_sold else None)
            scheduled += [price] * is_sold
            left -= price * is_sold
        assert budget.tokens == left
