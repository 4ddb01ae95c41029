"""The numbers of a policy: what they come to, and which are refused."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_retryrouter.policy import RetryPolicy, effective_policy

seconds = st.floats(0, 1e12, allow_nan=False)
policies = st.builds(
    RetryPolicy,
    max_retries=st.integers(0, 30),
    initial_delay=seconds,
    max_delay=seconds,
    backoff_factor=st.floats(0, 1e12),
    jitter=st.booleans(),
    max_retry_after=seconds,
)
chances = st.floats(0, 1, exclude_max=True)
retries = st.integers(1, 2_000)


# --- what it is ---------------------------------------------------------------------


def test_the_names_are_langchains() -> None:
    """The first five names are those of LangChain's retry middleware, in its order."""
    names = [field.name for field in dataclasses.fields(RetryPolicy)]
    assert names[:5] == [
        "max_retries",
        "initial_delay",
        "max_delay",
        "backoff_factor",
        "jitter",
    ]


def test_the_defaults() -> None:
    """A default that changes changes every user's waiting, so it changes here too."""
    assert dataclasses.asdict(RetryPolicy()) == {
        "max_retries": 2,
        "initial_delay": 1.5,
        "max_delay": 8.0,
        "backoff_factor": 2.0,
        "jitter": True,
        "max_retry_after": 60.0,
        "deadline": None,
        "attempt_timeout": None,
        "first_token_timeout": None,
        "stall_timeout": None,
        "failover_after_wait": 3.0,
    }


def test_it_is_plain_data() -> None:
    """A policy goes through JSON and pickle, and comes back equal."""
    policy = RetryPolicy(max_retries=7, deadline=30.0, jitter=False)
    as_json = json.dumps(dataclasses.asdict(policy), allow_nan=False)
    for copy in (
        RetryPolicy(**json.loads(as_json)),
        pickle.loads(pickle.dumps(policy)),
    ):
        assert copy == policy
        assert hash(copy) == hash(policy)


def test_it_is_frozen_and_keyword_only() -> None:
    """A policy is shared, so nobody can change it, nor mix up its numbers."""
    policy = RetryPolicy()
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.max_retries = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        RetryPolicy(2)  # type: ignore[call-arg]


@pytest.mark.parametrize("retries", [0, 1, 2, 1_000_000])
def test_attempts_are_retries_and_one(retries: int) -> None:
    """`max_retries` counts what comes after the first request."""
    assert RetryPolicy(max_retries=retries).max_attempts == retries + 1


# --- what is refused ----------------------------------------------------------------


@pytest.mark.parametrize("value", [-1, 2.0, 0.5, True, False, None, "2", math.nan])
def test_retries_are_a_whole_number(value: Any) -> None:
    """What is no number of retries is refused by name and value at construction."""
    with pytest.raises(
        ValueError, match="max_retries must be a whole number"
    ) as caught:
        RetryPolicy(max_retries=value)
    assert str(caught.value) == (
        f"max_retries must be a whole number, 0 or more, not {value!r}"
        " (0 sends one request and never repeats it)"
    )


NO_SECONDS = [
    -1,
    -1e-9,
    math.nan,
    math.inf,
    -math.inf,
    10**400,
    True,
    "1",
    None,
    [1],
    1j,
]


@pytest.mark.parametrize("value", NO_SECONDS, ids=lambda v: repr(v)[:12])
@pytest.mark.parametrize(
    "name", ["initial_delay", "max_delay", "backoff_factor", "max_retry_after"]
)
def test_numbers_are_finite_and_not_negative(name: str, value: Any) -> None:
    """What is no usable number is refused by name and value at construction."""
    with pytest.raises(ValueError, match=name) as caught:
        RetryPolicy(**{name: value})
    told = f"{name} must be a finite number, 0 or more, not {value!r}"
    assert str(caught.value) == told


@pytest.mark.parametrize("value", [0, 0.0, *(v for v in NO_SECONDS if v is not None)])
@pytest.mark.parametrize("name", ["deadline", "first_token_timeout", "stall_timeout"])
def test_limits_are_above_zero(name: str, value: Any) -> None:
    """A limit that no call could meet is refused, and None is named as the way out."""
    with pytest.raises(ValueError, match=name) as caught:
        RetryPolicy(**{name: value})
    assert str(caught.value) == (
        f"{name} must be a finite number, more than 0, not {value!r}"
        "; leave it None for no limit"
    )


@pytest.mark.parametrize("value", [None, 0, 1, "yes"])
def test_jitter_is_yes_or_no(value: Any) -> None:
    """Jitter is a bool: somebody who writes 0.5 means something we do not do."""
    with pytest.raises(ValueError, match="jitter must be True or False"):
        RetryPolicy(jitter=value)


@pytest.mark.parametrize(
    "numbers",
    [
        {"max_retries": 0},
        {"initial_delay": 0, "max_delay": 0, "backoff_factor": 0, "max_retry_after": 0},
        {"initial_delay": 5, "max_delay": 1},
        {"deadline": 1e-9, "first_token_timeout": 1, "stall_timeout": 0.5},
        {"max_delay": sys.float_info.max, "deadline": sys.float_info.max},
    ],
)
def test_the_edges_are_allowed(numbers: dict[str, Any]) -> None:
    """Zeros, whole numbers and a first delay above the longest are policies too."""
    assert dataclasses.asdict(RetryPolicy(**numbers)).items() >= numbers.items()


# --- back-off -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "longest"),
    [
        ({}, [1.5, 3, 6, 8, 8]),
        ({"backoff_factor": 0}, [1.5, 1.5, 1.5]),
        ({"backoff_factor": 1}, [1.5, 1.5, 1.5]),
        ({"backoff_factor": 0.5}, [1.5, 0.75, 0.375]),
        ({"backoff_factor": 10, "max_delay": 3}, [1.5, 3, 3]),
        ({"backoff_factor": 0, "max_delay": 0.1}, [0.1, 0.1]),
        ({"initial_delay": 0}, [0, 0, 0]),
        ({"initial_delay": 20}, [8, 8]),
        ({"max_delay": 0}, [0, 0]),
    ],
)
def test_the_longest_wait_grows_by_the_factor(
    numbers: dict[str, Any], longest: list[float]
) -> None:
    """Back-off starts at `initial_delay`, is multiplied, and ends at `max_delay`."""
    policy = RetryPolicy(**numbers)
    assert [policy.backoff(retry) for retry in range(1, len(longest) + 1)] == longest


@pytest.mark.parametrize(("initial_delay", "longest"), [(0.5, 8.0), (0, 0.0)])
@pytest.mark.parametrize("factor", [2, 2.0, 1e308])
def test_a_number_too_large_for_a_float_is_no_error(
    factor: float, initial_delay: float, longest: float
) -> None:
    """The ten-thousandth retry waits like the fifth, or not at all, but never fails."""
    policy = RetryPolicy(initial_delay=initial_delay, backoff_factor=factor)
    assert policy.backoff(10_000) == longest


@given(policies, retries)
def test_backoff_stays_in_its_range(policy: RetryPolicy, retry: int) -> None:
    """Back-off is never negative, never above `max_delay`, and always a number."""
    assert 0 <= policy.backoff(retry) <= policy.max_delay


@given(policies, st.integers(1, 100))
def test_backoff_does_not_shrink(policy: RetryPolicy, retry: int) -> None:
    """With a factor of 1 or more, each longest wait is at least the one before."""
    if policy.backoff_factor >= 1:
        assert policy.backoff(retry) <= policy.backoff(retry + 1)


# --- the wait -----------------------------------------------------------------------


def test_full_jitter_is_a_part_of_the_backoff() -> None:
    """Without word from the server the wait is `random` times the back-off."""
    policy = RetryPolicy()
    assert policy.delay(3, 0.0, None) == 0
    assert policy.delay(3, 0.25, None) == 1.5
    assert policy.delay(3, 0.25, 0.0) == 1.5


@pytest.mark.parametrize(
    ("retry_after", "wait"), [(None, 6.0), (0.0, 6.0), (1.5, 6.0), (10.0, 10.0)]
)
def test_without_jitter_the_wait_is_exact(
    retry_after: float | None, wait: float
) -> None:
    """Without jitter the wait is the larger of back-off and Retry-After."""
    policy = RetryPolicy(jitter=False)
    assert policy.delay(3, 0.9, retry_after) == wait


def test_jitter_is_added_to_what_the_server_asked_for() -> None:
    """Clients that were all told the same number do not all come back at once."""
    policy = RetryPolicy()
    assert policy.delay(1, 0.0, 10.0) == 10.0
    assert policy.delay(1, 0.5, 10.0) == 10.75
    assert policy.delay(5, 0.5, 10.0) == 14.0


@pytest.mark.parametrize(
    ("retry_after", "shortest", "longest"),
    [(0.1, 0.1, 8.1), (4.0, 4.0, 12.0), (20.0, 20.0, 28.0)],
)
def test_the_whole_backoff_is_added_to_what_the_server_asked_for(
    retry_after: float, shortest: float, longest: float
) -> None:
    """However short or long a Retry-After is, those who were told it are spread."""
    policy = RetryPolicy()
    assert policy.delay(5, 0.0, retry_after) == shortest
    assert policy.delay(5, 1.0, retry_after) == longest


@given(policies, retries, chances, st.floats(0, 1e12))
def test_jitter_is_bounded(
    policy: RetryPolicy, retry: int, random: float, retry_after: float
) -> None:
    """A wait ends a back-off after what a server asked for, or up to 1 s after it."""
    wait = policy.delay(retry, random, retry_after)
    spread = max(policy.backoff(retry), min(retry_after, 1.0))
    assert wait <= (retry_after + spread) * (1 + 1e-9)


@given(policies, retries, st.floats(1, 1e6))
def test_nobody_comes_back_in_a_herd(
    policy: RetryPolicy, retry: int, retry_after: float
) -> None:
    """Those who were all told the same second or more are spread over a second."""
    if policy.jitter:
        waits = [policy.delay(retry, random, retry_after) for random in (0.0, 1.0)]
        assert waits[1] - waits[0] >= 1 - 1e-9


@given(policies, retries, chances, st.none() | seconds)
def test_the_wait_respects_the_floor(
    policy: RetryPolicy, retry: int, random: float, retry_after: float | None
) -> None:
    """A wait is finite, not negative, and never shorter than the server asked for."""
    delay = policy.delay(retry, random, retry_after)
    assert math.isfinite(delay)
    assert delay >= (retry_after or 0.0)


@given(policies, retries, chances)
def test_a_wait_of_our_own_stays_below_the_backoff(
    policy: RetryPolicy, retry: int, random: float
) -> None:
    """Nobody waits longer than `max_delay` unless a server asked for it."""
    assert (
        policy.delay(retry, random, None) <= policy.backoff(retry) <= policy.max_delay
    )


# --- the worst case -----------------------------------------------------------------


@given(policies, st.data())
def test_no_call_waits_longer_than_explained(
    policy: RetryPolicy, data: st.DataObject
) -> None:
    """`explain` bounds what any dice and any Retry-After that is heeded can come to."""
    told = st.none() | st.floats(0, policy.max_retry_after)
    waits = [
        policy.delay(retry, data.draw(chances), data.draw(told))
        for retry in range(1, policy.max_attempts)
    ]
    assert sum(waits) <= policy.explain().waited * (1 + 1e-9)


@pytest.mark.parametrize(
    ("numbers", "attempt_timeout", "told"),
    [
        (
            {"max_retries": 0},
            None,
            "at most 1 request, 0.0 s of waiting, no bound on the time of an attempt",
        ),
        (
            {"max_retries": 0},
            60,
            "at most 1 request, 0.0 s of waiting, over after 60.0 s",
        ),
        (
            {"max_retry_after": 0, "jitter": False},
            10,
            "at most 3 requests, 4.5 s of waiting, over after 34.5 s",
        ),
        # A server may ask for `max_retry_after` each time, and jitter comes on top.
        (
            {},
            None,
            (
                "at most 3 requests, 124.5 s of waiting,"
                " no bound on the time of an attempt"
            ),
        ),
        (
            {"deadline": 5},
            None,
            "at most 3 requests, 5.0 s of waiting, over after 5.0 s",
        ),
        (
            {"deadline": 5, "max_retries": 0},
            1,
            "at most 1 request, 0.0 s of waiting, over after 1.0 s",
        ),
        (
            {"deadline": 200},
            10,
            "at most 3 requests, 124.5 s of waiting, over after 154.5 s",
        ),
    ],
)
def test_the_worst_case_in_words(
    numbers: dict[str, Any], attempt_timeout: float | None, told: str
) -> None:
    """`explain` says before anything runs what a call may cost at the most."""
    assert str(RetryPolicy(**numbers).explain(attempt_timeout)) == told


# --- a model's own number -----------------------------------------------------------


def test_a_models_own_retries_win() -> None:
    """`max_retries` of a model beats its policy's, and leaves the policy as it was."""
    policy = RetryPolicy(max_retries=9, deadline=3.0)
    assert effective_policy(policy, 1) == RetryPolicy(max_retries=1, deadline=3.0)
    assert effective_policy(None, 0) == RetryPolicy(max_retries=0)
    with pytest.raises(ValueError, match=r"max_retries must be a whole number.*not -1"):
        effective_policy(policy, -1)
    assert policy.max_retries == 9
