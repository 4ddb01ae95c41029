"""Hooks of a policy: retries and failovers, for callers without LangChain callbacks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from langchain_retryrouter import (
    FailureKind,
    RetryBudget,
    RetryEvent,
    RetryPolicy,
    UnavailableError,
)
from langchain_retryrouter._retry.call_state import CallState, RouteState
from langchain_retryrouter._retry.engine import RetryContext
from langchain_retryrouter.failures import FAILURE_ACTIONS
from langchain_retryrouter.testing import FakeClock

from .engines import Drive
from .scripted import END, Script, Source, token


def context_of(
    clock: FakeClock, *routes: str, budget: Any = None, **numbers: Any
) -> tuple[RetryContext, list[tuple[str, RetryEvent]]]:
    """A call, and what its hooks are given."""
    heard: list[tuple[str, RetryEvent]] = []
    policy = RetryPolicy(
        jitter=False,
        on_retry=lambda event: heard.append(("retry", event)),
        on_failover=lambda event: heard.append(("failover", event)),
        max_retries=1,
    )
    policy = replace(policy, **numbers)
    if not routes:
        state = CallState(policy, time=clock, budget=budget)
        return RetryContext(state, clock=clock, route=lambda: "gpt-4"), heard
    states = [RouteState(route) for route in routes]
    state = CallState(policy, states, time=clock, actions=FAILURE_ACTIONS)
    return RetryContext(state, clock=clock), heard


def test_a_retry_is_reported_before_its_wait(drive: Drive, clock: FakeClock) -> None:
    """`on_retry` gets the failed attempt and the wait for the next one."""
    context, heard = context_of(clock)
    error = UnavailableError("503")
    assert drive.call(context, Script(error, "hello")) == "hello"
    event = RetryEvent(1, "gpt-4", FailureKind.UNAVAILABLE, error, 1.5, "gpt-4")
    assert heard == [("retry", event)]


def test_a_failover_is_reported_instead(drive: Drive, clock: FakeClock) -> None:
    """`on_failover` is called if another route is next."""
    context, heard = context_of(clock, "a", "b")
    errors = [UnavailableError("503"), UnavailableError("503 again")]
    source = Source(token("Hi"), END)
    assert drive.stream(context, Script(*errors, source)) == [token("Hi"), END]
    kind = FailureKind.UNAVAILABLE
    assert heard == [
        ("retry", RetryEvent(1, "a", kind, errors[0], 1.5, "a")),
        ("failover", RetryEvent(2, "a", kind, errors[1], 0.0, "b")),
    ]


def test_a_last_failure_is_not_reported(drive: Drive, clock: FakeClock) -> None:
    """Only failures that another attempt follows reach the hooks."""
    context, heard = context_of(clock, max_retries=0)
    with pytest.raises(UnavailableError):
        drive.call(context, Script(UnavailableError("503")))
    assert heard == []


@pytest.mark.parametrize("error", [None, "the attempt's"], ids=["bug", "attempt"])
def test_an_exception_of_a_hook_ends_the_call(
    drive: Drive, clock: FakeClock, error: str | None
) -> None:
    """It passes through; nothing more is sent, and the retry is refunded."""

    def hook(event: RetryEvent) -> None:
        raise (KeyError("a bug in the hook") if error is None else event.error)

    budget = RetryBudget()
    context, _ = context_of(clock, on_retry=hook, budget=budget)
    script = Script(UnavailableError("503"), "not sent")
    with pytest.raises(KeyError if error is None else UnavailableError):
        drive.call(context, script)
    assert (script.numbers, budget.tokens, clock.sleeps) == ([1], 500, [])
