"""A stream that is held back: handed over whole, or repeated as if nothing was said.

The time is real where a read is cut, and short: nobody can hand a clock to a socket.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from langchain_retryrouter._gptrouter.errors import GPT_ROUTER_ERRORS
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK
from langchain_retryrouter._retry.engine import RetryContext
from langchain_retryrouter._retry.streaming import ChunkInfo
from langchain_retryrouter.errors import (
    APITimeoutError,
    StreamInterruptedError,
    UnavailableError,
)
from langchain_retryrouter.failures import FailureKind
from langchain_retryrouter.policy import RetryPolicy
from langchain_retryrouter.testing import FakeClock

from .engines import Drive, plan_for
from .scripted import END, ROLE, SILENCE, WHOLE, Outcome, Script, Source, Witness, token

HEL, LO, BON = token("Hel"), token("lo"), token("Bon")

SHORT = 0.1
PATIENT = 0.4


def held_back(**parts: Any) -> RetryContext:
    """A plan on the machine's clock, whose waits are none."""
    numbers = {"initial_delay": 0.0, "max_retries": 1, **parts.pop("policy", {})}
    return plan_for(SYSTEM_CLOCK, RetryPolicy(**numbers), is_buffered=True, **parts)


class Slow(Source):
    """A source that takes a moment over each event but the first."""

    def __iter__(self) -> Iterator[ChunkInfo]:
        """Yield the events, a moment apart."""
        for event in super().__iter__():
            yield event
            SYSTEM_CLOCK.sleep(SHORT)

    async def __aiter__(self) -> AsyncIterator[ChunkInfo]:
        """Async variant of `__iter__`."""
        async for event in super().__aiter__():
            yield event
            await SYSTEM_CLOCK.asleep(SHORT)


@pytest.mark.parametrize(
    ("breaks", "outcome"),
    [
        ((ROLE, HEL, UnavailableError("503")), "unavailable"),
        ((HEL, LO), "interrupted"),
        ((HEL, ChunkInfo(is_last=True)), "interrupted"),
    ],
)
def test_it_is_repeated_after_its_first_token_too(
    drive: Drive, clock: FakeClock, breaks: tuple[Outcome, ...], outcome: str
) -> None:
    """What broke was never handed over: the next attempt's answer is all there is."""
    broken = Source(*breaks)
    script = Script(broken, Source(BON, END))
    plan = plan_for(clock, is_buffered=True)
    assert drive.stream(plan, script) == [BON, END]
    assert [record.outcome for record in plan.call_state.records] == [outcome, "ok"]
    assert broken.was_closed()


def test_nothing_is_handed_over_before_the_end(drive: Drive, clock: FakeClock) -> None:
    """When the first event is seen, the last one of the answer has been read."""
    source = Source(ROLE, HEL, LO, WHOLE, ChunkInfo())
    plan = plan_for(clock, is_buffered=True)
    assert drive.stream(plan, Script(source), stop_after=1) == [ROLE]
    assert source.read == 4
    assert [record.outcome for record in plan.call_state.records] == ["ok"]


def test_the_last_error_comes_out_with_nothing_delivered(
    drive: Drive, clock: FakeClock
) -> None:
    """A caller who saw nothing is told of nothing that was delivered."""
    seen: list[ChunkInfo] = []
    plan = plan_for(clock, RetryPolicy(max_retries=0), is_buffered=True)
    with pytest.raises(StreamInterruptedError) as caught:
        drive.stream(plan, Script(Source(HEL, LO)), into=seen)
    assert seen == []
    assert str(caught.value) == (
        "the stream ended before the answer was complete, after 5 characters"
    )


def test_the_first_tokens_limit_ends_with_the_first_token(drive: Drive) -> None:
    """What follows may take longer than the first token may."""
    slow = Slow(HEL, LO, LO, END)
    plan = held_back(policy={"first_token_timeout": 2 * SHORT})
    assert drive.stream(plan, Script(slow, "never sent")) == [HEL, LO, LO, END]


def test_each_token_gives_the_next_its_time(drive: Drive) -> None:
    """A stall is a silence between two events, and not the length of an answer."""
    events = [HEL, *[LO] * 4, END]
    plan = held_back(policy={"stall_timeout": PATIENT, "first_token_timeout": 60})
    assert drive.stream(plan, Script(Slow(*events), "never sent")) == events


@pytest.mark.parametrize("first_token", [{}, {"first_token_timeout": 60}])
def test_a_stall_is_cut_and_repeated(
    drive: Drive, first_token: dict[str, float]
) -> None:
    """A stream that falls silent in its middle is a time-out, and the next is asked."""
    silent, witness = Source(HEL, LO, SILENCE), Witness(FakeClock())
    plan = held_back(policy={"stall_timeout": SHORT, **first_token})
    assert drive.stream(plan, Script(silent, Source(BON, END)), witness) == [BON, END]
    assert silent.was_closed()
    (state,) = witness.states
    assert state.outcome is not None
    error = state.outcome.exception()
    assert isinstance(error, APITimeoutError)
    assert str(error) == "the stream was silent for 0.1 s"


def test_the_deadline_is_named_after_the_first_token(drive: Drive) -> None:
    """Who waited in vain for the rest of an answer learns which limit ended it."""
    source = Source(HEL, SILENCE)
    plan = held_back(policy={"deadline": 2 * SHORT}, errors=GPT_ROUTER_ERRORS)
    with pytest.raises(GPT_ROUTER_ERRORS[FailureKind.TIMEOUT]) as caught:
        drive.stream(plan, Script(source))
    assert str(caught.value) == "the deadline of 0.2 s is over"
    assert source.was_closed()


def test_before_the_first_token_it_is_the_first_tokens_limit(drive: Drive) -> None:
    """A silent start is named as such, held back or not."""
    plan = held_back(
        policy={"first_token_timeout": SHORT, "stall_timeout": 60, "max_retries": 0}
    )
    with pytest.raises(APITimeoutError) as caught:
        drive.stream(plan, Script(Source(ROLE, SILENCE)))
    assert str(caught.value) == "no first token within 0.1 s"
