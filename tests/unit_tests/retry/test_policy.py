"""The policy: its numbers, its waits and its worst case."""

import dataclasses
import itertools
import json
import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_retryrouter import CircuitBreaker, RetryBudget, RetryPolicy
from langchain_retryrouter.policy import resolve_policy

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
    for copy in (read, pickle.loads(pickle.dumps(policy))):
        assert (copy, hash(copy)) == (policy, hash(policy))
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
