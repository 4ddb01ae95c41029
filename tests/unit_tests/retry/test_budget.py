"""The budget: a token bucket for retries, shared by many calls."""

from __future__ import annotations

import copy
import math
import pickle
import sys
import threading
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from langchain_retryrouter.policy import RetryBudget


def test_the_defaults_are_those_of_the_aws_sdks() -> None:
    """500 tokens, 14 for a retry, 5 for a throttled one, 1 back for a success."""
    budget = RetryBudget()
    assert (budget.tokens, budget.spend(), budget.spend(throttled=True)) == (500, 14, 5)
    budget.succeeded()
    assert budget.tokens == 500 - 14 - 5 + 1
    assert repr(budget) == "RetryBudget(482 of 500 tokens)"


def test_the_edges_are_allowed() -> None:
    """A retry may be free, also with an empty bucket; a bucket may never be empty."""
    free = RetryBudget(capacity=0, retry_cost=0, throttled_cost=0)
    assert (free.spend(), free.spend(throttled=True)) == (0, 0)
    endless = RetryBudget(capacity=sys.float_info.max)
    assert (endless.spend(), endless.tokens) == (14, sys.float_info.max)


@pytest.mark.parametrize(
    "name", ["capacity", "retry_cost", "throttled_cost", "success_gain"]
)
def test_bad_values_are_refused(name: str) -> None:
    """The error names the argument and its value."""
    values: list[Any] = [-1, -0.1, math.nan, math.inf, 10**400, True, "5", None]
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} must be a finite num") as caught:
            RetryBudget(**{name: value})
        assert repr(value) in str(caught.value)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_is_the_same_budget(duplicate: Any) -> None:
    """A copied model goes on to share its budget; a pickle has its own, as full."""
    budget = RetryBudget(capacity=20, retry_cost=3)
    assert duplicate(budget) is budget
    assert duplicate({"budget": budget})["budget"] is budget
    budget.spend()
    other = pickle.loads(pickle.dumps(budget))
    assert (other.tokens, other.spend(), budget.tokens) == (17, 3, 17)


def test_threads_spend_no_more_than_there_is() -> None:
    """Many threads together buy as many retries as one thread could."""
    budget = RetryBudget(capacity=1_000, retry_cost=1)
    start = threading.Barrier(8)
    bought: list[float | None] = []

    def spend() -> None:
        start.wait()
        bought.extend([budget.spend() for _ in range(500)])

    threads = [threading.Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (bought.count(1), bought.count(None), budget.tokens) == (1_000, 3_000, 0)


# Whole numbers, so that the model below is exact.
tokens = st.integers(0, 100)


class BudgetModel(RuleBasedStateMachine):
    """A second account of the tokens, for any order of events."""

    @initialize(capacity=tokens, retry=tokens, throttled=tokens, gain=tokens)
    def create(self, capacity: int, retry: int, throttled: int, gain: int) -> None:
        """Begin with a full bucket."""
        self.capacity, self.gain, self.left = capacity, gain, capacity
        self.price = {False: retry, True: throttled}
        self.scheduled: list[float] = []
        self.budget = RetryBudget(
            capacity=capacity,
            retry_cost=retry,
            throttled_cost=throttled,
            success_gain=gain,
        )

    @rule(throttled=st.booleans())
    def spend(self, throttled: bool) -> None:
        """A retry is sold if there are enough tokens, and costs nothing otherwise."""
        price = self.price[throttled]
        spent = self.budget.spend(throttled=throttled)
        assert spent == (None if price > self.left else price)
        if spent is not None:
            self.left -= price
            self.scheduled.append(price)

    @rule()
    def refund(self) -> None:
        """A retry that is not sent is given back, up to the capacity."""
        if self.scheduled:
            price = self.scheduled.pop()
            self.budget.refund(price)
            self.left = min(self.capacity, self.left + int(price))

    @rule()
    def succeed(self) -> None:
        """A success gains tokens, up to the capacity."""
        self.budget.succeeded()
        self.left = min(self.capacity, self.left + self.gain)

    @rule()
    def pickle(self) -> None:
        """A pickle changes nothing."""
        self.budget = pickle.loads(pickle.dumps(self.budget))

    @invariant()
    def the_tokens_are_right(self) -> None:
        """Never below 0, never above the capacity, and none lost."""
        if hasattr(self, "budget"):
            assert 0 <= self.budget.tokens == self.left <= self.capacity


TestBudgetModel = BudgetModel.TestCase
