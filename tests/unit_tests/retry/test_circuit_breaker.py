"""The circuit breaker: when it opens, which calls it admits, and what it reports."""

import copy
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

from langchain_retryrouter import CircuitBreaker
from langchain_retryrouter.circuit_breaker import BreakerState, Permit, Refusal
from langchain_retryrouter.policy import RetryBudget
from langchain_retryrouter.testing import FakeClock
from tests.support.forks import told_by_a_child

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
