"""The bucket for retries: never below nothing, never above full, one for all."""

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


def test_the_numbers_are_those_of_the_aws_sdks() -> None:
    """500 tokens, 14 a retry, 5 a throttled one, 1 back for a success."""
    budget = RetryBudget()
    assert budget.tokens == 500
    assert budget.spend() == 14
    assert budget.spend(throttled=True) == 5
    budget.succeeded()
    assert budget.tokens == 500 - 14 - 5 + 1


def test_an_outage_is_not_fed_for_long() -> None:
    """When nothing succeeds, a full bucket buys 35 retries, and then none."""
    budget = RetryBudget()
    bought = [budget.spend() for _ in range(100)]
    assert bought == [14] * 35 + [None] * 65


def test_what_does_not_suffice_is_not_taken() -> None:
    """A retry that cannot be paid for costs nothing; a cheaper one is still sold."""
    budget = RetryBudget(capacity=10, retry_cost=14, throttled_cost=5)
    assert budget.spend() is None
    assert budget.tokens == 10
    assert budget.spend(throttled=True) == 5
    assert budget.spend(throttled=True) == 5
    assert budget.spend(throttled=True) is None
    assert budget.tokens == 0


def test_a_full_purse_takes_no_more() -> None:
    """Good times are not saved up beyond the capacity."""
    budget = RetryBudget(capacity=3, retry_cost=1, success_gain=10)
    budget.succeeded()
    assert budget.tokens == 3
    budget.spend()
    budget.refund(100)
    assert budget.tokens == 3


def test_a_refund_is_as_if_nothing_was_bought() -> None:
    """What a retry cost comes back whole if it is never sent."""
    budget = RetryBudget()
    spent = budget.spend(throttled=True)
    assert spent is not None
    budget.refund(spent)
    assert budget.tokens == 500


def test_a_retry_may_be_free() -> None:
    """A cost of 0 is a price like another: paid, and not refused."""
    budget = RetryBudget(capacity=0, retry_cost=0, throttled_cost=0)
    assert budget.spend() == 0
    assert budget.spend(throttled=True) == 0


@pytest.mark.parametrize(
    "value",
    [-1, -0.1, math.nan, math.inf, 10**400, True, "5", None],
    ids=lambda v: repr(v)[:9],
)
@pytest.mark.parametrize(
    "name", ["capacity", "retry_cost", "throttled_cost", "success_gain"]
)
def test_tokens_are_finite_and_not_negative(name: str, value: Any) -> None:
    """What is no number of tokens is refused by name and value."""
    with pytest.raises(
        ValueError, match=f"^{name} must be a finite number of"
    ) as caught:
        RetryBudget(**{name: value})
    assert repr(value) in str(caught.value)


def test_the_largest_number_is_one() -> None:
    """A bucket that is never empty is a bucket too."""
    budget = RetryBudget(capacity=sys.float_info.max)
    assert budget.spend() == 14
    assert budget.tokens == sys.float_info.max


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_is_the_same_purse(duplicate: Any) -> None:
    """A copied model goes on sharing: sharing is what a budget is for."""
    budget = RetryBudget()
    assert duplicate(budget) is budget
    assert duplicate({"budget": budget})["budget"] is budget


def test_a_pickle_carries_numbers_and_tokens() -> None:
    """Another process gets a bucket of its own, as full as this one was."""
    budget = RetryBudget(capacity=20, retry_cost=3)
    budget.spend()
    other = pickle.loads(pickle.dumps(budget))
    assert (other.tokens, other.spend()) == (17, 3)
    assert budget.tokens == 17


def test_it_shows_what_is_left() -> None:
    """A bucket in a log says how full it is."""
    budget = RetryBudget()
    budget.spend()
    assert repr(budget) == "RetryBudget(486 of 500 tokens)"


def test_threads_spend_what_is_there_and_no_more() -> None:
    """Many threads together buy exactly what one could, and leave nothing behind."""
    budget = RetryBudget(capacity=1_000, retry_cost=1)
    start = threading.Barrier(8)
    bought: list[float | None] = []

    def shop() -> None:
        start.wait()
        bought.extend([budget.spend() for _ in range(500)])

    threads = [threading.Thread(target=shop) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(price == 1 for price in bought) == 1_000
    assert sum(price is None for price in bought) == 3_000
    assert budget.tokens == 0


# Whole numbers, so that the book below is exact.
tokens = st.integers(0, 100)


class BudgetBook(RuleBasedStateMachine):
    """A second book beside the budget's own, for any order of events."""

    @initialize(capacity=tokens, retry=tokens, throttled=tokens, gain=tokens)
    def open(self, capacity: int, retry: int, throttled: int, gain: int) -> None:
        """Begin with a full bucket."""
        self.capacity, self.gain = capacity, gain
        self.price = {False: retry, True: throttled}
        self.left = capacity
        self.scheduled: list[float] = []
        self.budget = RetryBudget(
            capacity=capacity,
            retry_cost=retry,
            throttled_cost=throttled,
            success_gain=gain,
        )

    @rule(throttled=st.booleans())
    def schedule(self, throttled: bool) -> None:
        """A retry is sold exactly if there is enough for it."""
        price = self.price[throttled]
        spent = self.budget.spend(throttled=throttled)
        if price > self.left:
            assert spent is None
        else:
            assert spent == price
            self.left -= price
            self.scheduled.append(price)

    @rule()
    def cancel(self) -> None:
        """A retry that is never sent is given back."""
        if self.scheduled:
            price = self.scheduled.pop()
            self.budget.refund(price)
            self.left = min(self.capacity, self.left + int(price))

    @rule()
    def succeed(self) -> None:
        """A success earns its gain."""
        self.budget.succeeded()
        self.left = min(self.capacity, self.left + self.gain)

    @rule()
    def travel(self) -> None:
        """A pickle changes nothing."""
        self.budget = pickle.loads(pickle.dumps(self.budget))

    @invariant()
    def the_books_agree(self) -> None:
        """Never below nothing, never above full, and nothing lost on the way."""
        if hasattr(self, "budget"):
            assert 0 <= self.budget.tokens == self.left <= self.capacity


TestBudgetBook = BudgetBook.TestCase
