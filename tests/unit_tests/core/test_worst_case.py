"""What a call along routes may cost at the most, and that none costs more."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_retryrouter._retry.call_state import (
    FAILURE_ACTIONS,
    FailureAction,
    Retry,
    RoutedCallState,
    RouteState,
)
from langchain_retryrouter._router.cost import RouteCost, RoutingWorstCase, worst_case
from langchain_retryrouter.circuit_breaker import CircuitBreaker
from langchain_retryrouter.failures import Failure, FailureKind, is_retryable
from langchain_retryrouter.policy import RetryPolicy
from langchain_retryrouter.testing import FakeClock

ALL_END = dict.fromkeys(FailureKind, FailureAction.RAISE)
PRICED = RouteCost("cheap", input_price=1.0, output_price=2.0)


def worst(
    *route_costs: RouteCost | str,
    after: Any = FAILURE_ACTIONS,
    policy: Any = None,
    **settings: Any,
) -> RoutingWorstCase:
    numbers: dict[str, Any] = {
        "max_retries": 2,
        "initial_delay": 0.5,
        "jitter": False,
        "max_retry_after": 0.0,
    }
    listed = [
        RouteCost(route_cost) if isinstance(route_cost, str) else route_cost
        for route_cost in route_costs
    ]
    return worst_case(
        RetryPolicy(**{**numbers, **(policy or {})}), listed, after, **settings
    )


# --- no call costs more ---

failures = st.builds(
    Failure,
    kind=st.sampled_from(FailureKind),
    retry_after=st.none() | st.floats(0, 100),
    should_retry=st.none() | st.booleans(),
)


@given(
    routes=st.integers(1, 4),
    policy=st.builds(
        RetryPolicy,
        max_retries=st.integers(0, 4),
        initial_delay=st.floats(0, 10),
        backoff_factor=st.floats(0, 4),
        jitter=st.booleans(),
        max_retry_after=st.floats(0, 90),
        deadline=st.none() | st.floats(0.1, 200),
    ),
    overruled=st.dictionaries(
        st.sampled_from(FailureKind), st.sampled_from(FailureAction)
    ),
    threshold=st.none() | st.integers(1, 4),
    happens=st.lists(
        st.tuples(failures, st.floats(0, 30), st.booleans()), min_size=1, max_size=8
    ),
    taken_up=st.booleans(),
    random=st.floats(0, 1, exclude_max=True),
)
def test_no_call_costs_more(
    routes: int,
    policy: RetryPolicy,
    overruled: dict[FailureKind, FailureAction],
    threshold: int | None,
    happens: list[tuple[Failure, float, bool]],
    taken_up: bool,
    random: float,
) -> None:
    """Whatever fails, also streams that are taken up again: what was said holds."""
    clock = FakeClock(random=random)
    after = {**FAILURE_ACTIONS, **overruled}
    names = [str(number) for number in range(routes)]
    route_states = [
        RouteState(
            name,
            None if threshold is None else CircuitBreaker(failure_threshold=threshold),
        )
        for name in names
    ]
    said = worst_case(
        policy, [RouteCost(name) for name in names], after, is_taken_up=True
    )
    call_state = RoutedCallState(policy, route_states, time=clock, after=after)
    asked: list[str | None] = []
    for failure, seconds, breaks_off in itertools.islice(itertools.cycle(happens), 25):
        if call_state.admit() is not None:
            break
        asked.append(call_state.route)
        clock.advance(seconds)
        if breaks_off:
            call_state.stream_interrupted(failure)
            if not taken_up or not call_state.resume():
                break
            continue
        decision = call_state.failed(failure)
        if not isinstance(decision, Retry):
            break
        clock.sleep(decision.delay)
    else:
        pytest.fail("the call did not end")

    assert call_state.attempts == len(asked) <= said.requests
    assert call_state.waited <= said.waited * (1 + 1e-9)
    for cost in said.routes:
        assert asked.count(cost.name) <= cost.requests
        waits = [r.wait for r in call_state.records if r.route == cost.name]
        assert sum(waits) <= cost.waited * (1 + 1e-9)


@given(st.integers(1, 4), st.integers(0, 4))
def test_the_worst_case_can_happen(routes: int, max_retries: int) -> None:
    """The bound is no guess: with a 503 for ever each of its requests is sent."""
    names = [str(number) for number in range(routes)]
    policy = RetryPolicy(max_retries=max_retries, jitter=False, max_retry_after=0)
    call_state = RoutedCallState(
        policy, [RouteState(name) for name in names], time=FakeClock()
    )
    decision: object = Retry(0)
    while isinstance(decision, Retry):
        assert call_state.admit() is None
        decision = call_state.failed(Failure(FailureKind.UNAVAILABLE))
    said = worst_case(policy, [RouteCost(name) for name in names], FAILURE_ACTIONS)
    assert (call_state.attempts, call_state.waited) == (said.requests, said.waited)


# --- what is counted ---


def test_requests_and_waits_are_each_routes() -> None:
    """Retries count on each route anew, and what a model does itself comes on top."""
    said = worst("a", RouteCost("b", requests=2, waited=4.0))
    assert [(c.name, c.requests, c.waited) for c in said.routes] == [
        ("a", 3, 1.5),
        ("b", 6, 13.5),
    ]
    assert (said.requests, said.waited) == (9, 15.0)


def test_the_deadline_bounds_everything() -> None:
    """No wait and no call outlasts it, so no sum of seconds does."""
    said = worst(RouteCost("a", waited=9.0), "b", policy={"deadline": 10.0})
    assert [cost.waited for cost in said.routes] == [10.0, 1.5]
    assert (said.waited, said.seconds, said.first_token) == (10.0, 10.0, 10.0)


def test_without_a_limit_there_is_no_bound_on_time() -> None:
    """Nobody can say how long an attempt takes that nothing cuts short."""
    said = worst("a", "b")
    assert (said.seconds, said.first_token) == (None, None)


def test_a_first_token_has_a_bound_where_silence_has() -> None:
    """Each attempt may be silent for so long, and the waits come on top."""
    limits = {"first_token_timeout": 5.0}
    assert worst("a", "b", policy=limits).first_token == 2 * (3 * 5.0 + 1.5)
    assert worst("a", policy={**limits, "deadline": 7.0}).first_token == 7.0


def test_who_gets_the_whole_answer_waits_for_its_end() -> None:
    """A stream that is held back has no first token before its last."""
    limits = {"first_token_timeout": 5.0}
    assert worst("a", policy=limits, is_buffered=True).first_token is None


def test_where_nothing_is_repeated_each_route_is_asked_once() -> None:
    """`failover_on` can turn all repeating off, and the numbers know it."""
    said = worst("a", "b", after=ALL_END)
    assert (said.requests, said.waited) == (2, 0.0)


def test_a_stream_that_is_taken_up_costs_more_requests() -> None:
    """It asks a route as often as its retries allow, whatever broke, without a wait."""
    said = worst("a", after=ALL_END, is_taken_up=True)
    assert (said.requests, said.waited) == (3, 0.0)
    call_state = RoutedCallState(
        RetryPolicy(max_retries=2), [RouteState("a")], time=FakeClock(), after=ALL_END
    )
    for _ in range(said.requests):
        call_state.admit()
        call_state.stream_interrupted(Failure(FailureKind.INTERRUPTED))
    assert not call_state.resume()


def test_what_cannot_be_repeated_is_left_in_effect() -> None:
    """A wrong key stays wrong, and without retries nothing is repeated at all."""
    repeat = dict.fromkeys(FailureKind, FailureAction.RETRY)
    assert worst("a", after=repeat).after == {
        kind: FailureAction.RETRY if is_retryable(kind) else FailureAction.FAILOVER
        for kind in FailureKind
    }
    said = worst("a", after=repeat, policy={"max_retries": 0})
    assert set(said.after.values()) == {FailureAction.FAILOVER}


# --- money ---


def test_money_is_that_of_every_request() -> None:
    """Each request may be charged in full, also one that failed."""
    dear = RouteCost("dear", requests=2, input_price=10.0, output_price=20.0)
    said = worst(PRICED, dear, input_tokens=1000, output_tokens=500)
    assert [cost.money for cost in said.routes] == pytest.approx([0.006, 0.12])
    assert said.money == pytest.approx(0.126)


@pytest.mark.parametrize(
    "half",
    [
        pytest.param(RouteCost("half", output_price=2.0), id="no-input-price"),
        pytest.param(RouteCost("half", input_price=1.0), id="no-output-price"),
    ],
)
def test_a_sum_with_an_unknown_part_is_unknown(half: RouteCost) -> None:
    """A route without prices makes no cheap call of it."""
    said = worst(PRICED, half, input_tokens=1000, output_tokens=500)
    assert [cost.money is None for cost in said.routes] == [False, True]
    assert said.money is None


def test_no_tokens_cost_nothing() -> None:
    """A number of 0 is one like another: the bill is known, and empty."""
    assert worst(PRICED, input_tokens=0, output_tokens=0).money == 0
    assert worst(PRICED, input_tokens=1_000_000, output_tokens=0).money == 3
    assert worst(PRICED, input_tokens=0, output_tokens=1_000_000).money == 6


def test_without_tokens_there_is_no_money() -> None:
    """Prices alone say nothing."""
    assert worst(PRICED).money is None


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        pytest.param(
            {"input_tokens": 1},
            "^output_tokens must be a number of tokens, 0 or more, not None; money is"
            " told where both are given$",
            id="half",
        ),
        pytest.param({"output_tokens": 1}, "input_tokens must be", id="other-half"),
        pytest.param(
            {"input_tokens": -1, "output_tokens": 1}, "not -1", id="below-zero"
        ),
    ],
)
def test_half_a_bill_is_refused(tokens: dict[str, int], says: str) -> None:
    """A prompt without an answer would look cheap, so both are asked for."""
    with pytest.raises(ValueError, match=says):
        worst(PRICED, **tokens)


# --- as text ---


def test_it_is_told_as_a_table() -> None:
    """Routes, limits and steps can be read without knowing the code."""
    loud = RouteCost("loud", requests=3, warnings=("repeats", "and says so"))
    told = str(
        worst(
            dataclasses.replace(PRICED, disabled_retries="max_retries=2"),
            loud,
            policy={"deadline": 60.0},
            after={
                **FAILURE_ACTIONS,
                FailureKind.CONTENT_FILTER: FailureAction.FAILOVER,
            },
            input_tokens=1000,
            output_tokens=500,
        )
    )
    assert told == (
        "route   requests  waited   money\n"
        "cheap          3   1.5 s  0.0060  max_retries=2 turned off\n"
        "loud           9   1.5 s       ?  repeats; and says so\n"
        "in all        12   3.0 s       ?\n"
        "\n"
        "an answer or an error: within 60.0 s\n"
        "a stream's first token: within 60.0 s\n"
        "\n"
        "repeated, then the next route: rate_limit, unavailable, server_error,"
        " conflict, connection, interrupted, malformed\n"
        "the next route at once: quota, timeout, authentication, permission,"
        " not_found, context_overflow, content_filter, circuit_open\n"
        "the end of the call: invalid_request"
    )


def test_a_table_tells_the_sum_where_it_is_known() -> None:
    """The last line is all of the call, in money too, and says so below its column."""
    told = worst(PRICED, PRICED, input_tokens=100_000, output_tokens=50_000_000)
    assert str(told).splitlines()[:4] == [
        "route   requests  waited     money",
        "cheap          3   1.5 s  300.3000",
        "cheap          3   1.5 s  300.3000",
        "in all         6   3.0 s  600.6000",
    ]


def test_a_table_leaves_out_what_there_is_not() -> None:
    """No money without prices, and no line for a step that follows nothing."""
    assert str(worst("a", after=ALL_END)) == (
        "route   requests  waited\n"
        "a              1   0.0 s\n"
        "in all         1   0.0 s\n"
        "\n"
        "an answer or an error: no bound\n"
        "a stream's first token: no bound\n"
        "\n"
        f"the end of the call: {', '.join(FailureKind)}"
    )
