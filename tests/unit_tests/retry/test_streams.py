"""`stream` and `astream`: repeated until the first token, never after, and truthful."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from langchain_retryrouter import errors
from langchain_retryrouter._gptrouter.errors import GPT_ROUTER_ERRORS
from langchain_retryrouter._retry.streaming import ChunkInfo, astream, stream
from langchain_retryrouter.circuit_breaker import BreakerState, CircuitBreaker
from langchain_retryrouter.errors import BASE_ERRORS, StreamInterruptedError
from langchain_retryrouter.failures import FailureKind
from langchain_retryrouter.policy import RetryBudget, RetryPolicy
from langchain_retryrouter.testing import FakeClock

from .engines import Drive, aopen, open_, plan_for
from .scripted import END, ROLE, WHOLE, Script, Source, Witness, token

HEL, LO = token("Hel"), token("lo")
USAGE = ChunkInfo()
CALL = ChunkInfo(is_token=True)


def cut() -> errors.APIConnectionError:
    """A connection that breaks; a new one each time, since errors learn."""
    return errors.APIConnectionError("the connection broke")


def outcomes(plan: Any) -> list[str]:
    """What became of each attempt, as the attempt log tells it."""
    return [record.outcome for record in plan.call_state.records]


# --- whole streams ------------------------------------------------------------------


@pytest.mark.parametrize(
    "events",
    [
        [HEL, LO, END],
        [ROLE, ROLE, HEL, ROLE, LO, END],
        [CALL, END],
        [END],
        [ROLE, END],
        [HEL, WHOLE],
        [HEL, WHOLE, USAGE],
        [HEL, WHOLE, USAGE, ChunkInfo(is_last=True)],
        [ChunkInfo("Hello", is_token=True, is_end=True, is_last=True)],
        [WHOLE],
    ],
)
def test_a_whole_stream_comes_as_it_is(
    drive: Drive, clock: FakeClock, events: list[ChunkInfo]
) -> None:
    """Every event is handed over, in order, once; the end is an end, text or none."""
    source, plan, witness = Source(*events), plan_for(clock), Witness(clock)
    assert drive.stream(plan, Script(source), witness) == events
    assert source.closed == 1
    assert witness.states == []
    assert outcomes(plan) == ["ok"]


def test_after_the_last_event_nothing_is_read(drive: Drive, clock: FakeClock) -> None:
    """Who said that nothing follows is believed: the stream is not read further."""
    source = Source(HEL, END, AssertionError("read too far"))
    assert drive.stream(plan_for(clock), Script(source)) == [HEL, END]
    assert source.read == 2


def test_after_the_end_usage_may_follow(drive: Drive, clock: FakeClock) -> None:
    """An answer that is whole is read on for what else its server tells."""
    source = Source(HEL, WHOLE, USAGE, USAGE)
    assert drive.stream(plan_for(clock), Script(source)) == [HEL, WHOLE, USAGE, USAGE]


@pytest.mark.parametrize("kind", FailureKind)
@pytest.mark.parametrize("between", [(), (USAGE,)])
def test_an_error_after_the_end_is_no_matter(
    drive: Drive, clock: FakeClock, kind: FailureKind, between: tuple[ChunkInfo, ...]
) -> None:
    """Whatever breaks once the answer is whole: the caller has the whole answer."""
    source, plan = (
        Source(HEL, WHOLE, *between, BASE_ERRORS[kind]("late")),
        plan_for(clock),
    )
    assert drive.stream(plan, Script(source)) == [HEL, WHOLE, *between]
    assert source.closed == 1
    assert outcomes(plan) == ["ok"]


def test_a_whole_stream_pays_in_once(drive: Drive, clock: FakeClock) -> None:
    """A success counts once, at the end, however many events follow it."""
    budget = RetryBudget()
    budget.spend()
    source = Source(HEL, WHOLE, USAGE, WHOLE, END)
    drive.stream(plan_for(clock, budget=budget), Script(source))
    assert budget.tokens == 500 - 14 + 1


# --- before the first token ---------------------------------------------------------

RETRYABLE = [kind for kind in FailureKind if BASE_ERRORS[kind]("").failure.is_retryable]


@pytest.mark.parametrize("kind", RETRYABLE)
@pytest.mark.parametrize("before", [(), (ROLE,), (ROLE, ROLE)])
def test_a_failure_before_the_first_token_is_repeated(
    drive: Drive, clock: FakeClock, kind: FailureKind, before: tuple[ChunkInfo, ...]
) -> None:
    """Nothing was handed over, so nothing is lost: only the good attempt is seen."""
    bad, good = Source(*before, BASE_ERRORS[kind]("no")), Source(ROLE, HEL, END)
    plan, witness = plan_for(clock), Witness(clock)
    assert drive.stream(plan, Script(bad, good), witness) == [ROLE, HEL, END]
    assert (bad.closed, good.closed) == (1, 1)
    assert outcomes(plan) == [kind.value, "ok"]
    assert [
        type(state.outcome.exception()) for state in witness.states if state.outcome
    ] == [BASE_ERRORS[kind]]
    assert clock.sleeps == [0.5]


def test_a_refused_connection_is_repeated(drive: Drive, clock: FakeClock) -> None:
    """Opening the stream is part of the attempt."""
    script = Script(errors.RateLimitError("429", retry_after=2.0), Source(HEL, END))
    assert drive.stream(plan_for(clock), script) == [HEL, END]
    assert clock.sleeps == [2.0]


@pytest.mark.parametrize("kind", [k for k in FailureKind if k not in RETRYABLE])
def test_a_final_failure_is_let_out(
    drive: Drive, clock: FakeClock, kind: FailureKind
) -> None:
    """What another attempt cannot mend comes out as it is, from the first `next`."""
    error = BASE_ERRORS[kind]("no")
    source = Source(ROLE, error)
    script = Script(source, "never sent")
    with pytest.raises(type(error)) as caught:
        drive.stream(plan_for(clock), script)
    assert caught.value is error
    assert script.numbers == [1]
    assert source.closed == 1
    assert error.delivered == ""


@pytest.mark.parametrize("events", [[], [ROLE], [ROLE, ChunkInfo(is_last=True)]])
def test_an_end_without_an_end_is_repeated(
    drive: Drive, clock: FakeClock, events: list[ChunkInfo]
) -> None:
    """A body that is over before the protocol's end was cut, and is repeated."""
    sources = [Source(*events), Source(*events), Source(HEL, END)]
    assert drive.stream(plan_for(clock), Script(*sources)) == [HEL, END]
    assert [source.closed for source in sources] == [1, 1, 1]


def test_a_stream_that_stays_empty_is_an_error(drive: Drive, clock: FakeClock) -> None:
    """An empty body is no empty answer; after the last attempt it is said so."""
    sources, plan = [Source(), Source(), Source()], plan_for(clock)
    with pytest.raises(StreamInterruptedError) as caught:
        drive.stream(plan, Script(*sources))
    assert str(caught.value) == (
        "the stream ended before the answer was complete, after 0 characters"
    )
    assert caught.value.__notes__ == [
        "gave up after 3 attempts, 1.5 s waited: no retries left"
    ]
    assert caught.value.attempts == 3
    assert caught.value.delivered == ""
    assert caught.value.is_retryable is False
    assert outcomes(plan) == ["interrupted"] * 3


def test_a_token_that_was_not_handed_over_was_not_delivered(
    drive: Drive, clock: FakeClock
) -> None:
    """A first event that is the last, and no end, is repeated: nobody saw it."""
    cut = ChunkInfo("Hel", is_token=True, is_last=True)
    first = Source(cut)
    script = Script(first, Source(HEL, LO, END))
    witness, plan = Witness(clock), plan_for(clock)
    assert drive.stream(plan, script, witness) == [HEL, LO, END]
    (state,) = witness.states
    assert state.outcome is not None
    error = state.outcome.exception()
    assert isinstance(error, StreamInterruptedError)
    assert error.delivered == ""
    assert not hasattr(error, "__notes__")
    assert first.closed == 1
    assert outcomes(plan) == ["interrupted", "ok"]


def test_each_attempt_has_a_reader_of_its_own(drive: Drive, clock: FakeClock) -> None:
    """What a reader remembers of a failed attempt does not colour the next one."""
    readers: list[list[ChunkInfo]] = []

    def new_reader() -> Any:
        readers.append([])
        seen = readers[-1]

        def read(signal: ChunkInfo) -> ChunkInfo:
            seen.append(signal)
            return signal

        return read

    script, plan = Script(Source(ROLE, cut()), Source(HEL, END)), plan_for(clock)
    if drive.is_async:

        async def run() -> list[ChunkInfo]:
            return [event async for event in astream(plan, script.asend, new_reader)]

        asyncio.run(run())
    else:
        list(stream(plan, script.send, new_reader))
    assert readers == [[ROLE], [HEL, END]]


# --- after the first token ----------------------------------------------------------


@pytest.mark.parametrize("kind", [FailureKind.CONNECTION, FailureKind.TIMEOUT])
def test_a_stream_that_breaks_is_interrupted(
    drive: Drive, clock: FakeClock, kind: FailureKind
) -> None:
    """After the first token nothing is repeated: the error says what was delivered."""
    broken = BASE_ERRORS[kind]("it broke")
    source, plan, seen = (
        Source(ROLE, HEL, ROLE, LO, broken),
        plan_for(clock),
        list[ChunkInfo](),
    )
    script, witness = Script(source, "never sent"), Witness(clock)
    with pytest.raises(StreamInterruptedError) as caught:
        drive.stream(plan, script, witness, into=seen)
    assert seen == [ROLE, HEL, ROLE, LO]
    assert str(caught.value) == "it broke, after 5 characters"
    assert caught.value.delivered == "Hello"
    assert caught.value.__cause__ is broken
    assert caught.value.__notes__ == ["not repeated: 5 characters were delivered"]
    assert caught.value.attempts == 1
    assert script.numbers == [1]
    assert witness.states == []
    assert source.closed == 1
    assert outcomes(plan) == ["interrupted"]


@pytest.mark.parametrize(
    "kind",
    sorted(set(GPT_ROUTER_ERRORS) - {FailureKind.CONNECTION, FailureKind.TIMEOUT}),
)
def test_an_error_that_the_stream_reports_keeps_its_class(
    drive: Drive, clock: FakeClock, kind: FailureKind
) -> None:
    """What the provider said in the stream is the error, with what was delivered."""
    error = GPT_ROUTER_ERRORS[kind]("the provider said so")
    source, seen = Source(HEL, error), list[ChunkInfo]()
    script = Script(source, "never sent")
    with pytest.raises(type(error)) as caught:
        drive.stream(plan_for(clock), script, into=seen)
    assert caught.value is error
    assert seen == [HEL]
    assert error.delivered == "Hel"
    assert script.numbers == [1]
    assert source.closed == 1


@pytest.mark.parametrize("rest", [[], [ROLE], [ChunkInfo(is_last=True)]])
def test_a_stream_that_ends_without_its_end(
    drive: Drive, clock: FakeClock, rest: list[ChunkInfo]
) -> None:
    """A clean end of the body is never a short answer."""
    source, seen = Source(HEL, LO, *rest), list[ChunkInfo]()
    with pytest.raises(StreamInterruptedError) as caught:
        drive.stream(plan_for(clock), Script(source), into=seen)
    assert str(caught.value) == (
        "the stream ended before the answer was complete, after 5 characters"
    )
    assert caught.value.delivered == "Hello"
    assert [signal for signal in seen if signal.is_token] == [HEL, LO]
    assert source.closed == 1


def test_a_tool_call_is_delivered_though_it_has_no_text(
    drive: Drive, clock: FakeClock
) -> None:
    """What cannot be undone is not repeated, be it without a character of text."""
    script = Script(Source(CALL, cut()), "never sent")
    with pytest.raises(StreamInterruptedError) as caught:
        drive.stream(plan_for(clock), script)
    assert caught.value.delivered == ""
    assert caught.value.__notes__ == ["not repeated: 0 characters were delivered"]
    assert script.numbers == [1]


def test_the_attempts_before_are_told(drive: Drive, clock: FakeClock) -> None:
    """An interruption of the second attempt tells that there were two."""
    plan = plan_for(clock, errors=GPT_ROUTER_ERRORS, route=lambda: "gpt-4")
    with pytest.raises(GPT_ROUTER_ERRORS[FailureKind.INTERRUPTED]) as caught:
        drive.stream(plan, Script(Source(cut()), Source(HEL)))
    assert caught.value.attempts == 2
    assert caught.value.route == "gpt-4"
    assert outcomes(plan) == ["connection", "interrupted"]


def test_an_interruption_counts_against_the_provider(
    drive: Drive, clock: FakeClock
) -> None:
    """A stream that breaks off is a failure to breaker and budget."""
    breaker, budget = CircuitBreaker(failure_threshold=1, clock=clock), RetryBudget()
    budget.spend()
    with pytest.raises(StreamInterruptedError):
        drive.stream(
            plan_for(clock, breaker=breaker, budget=budget), Script(Source(HEL, cut()))
        )
    assert breaker.state is BreakerState.OPEN
    assert budget.tokens == 486


# --- closed early -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "stop_after", "outcome"),
    [
        ([HEL, LO, END], 1, "cancelled"),
        ([ROLE, HEL, LO, END], 1, "cancelled"),
        ([HEL, LO, END], 2, "cancelled"),
        ([HEL, LO, END], 3, "ok"),
        ([HEL, WHOLE, USAGE], 2, "ok"),
    ],
)
def test_closing_early_closes_the_source_at_once(
    drive: Drive,
    clock: FakeClock,
    events: list[ChunkInfo],
    stop_after: int,
    outcome: str,
) -> None:
    """Who stops reading lets go of the connection, and abandons what is not whole."""
    source, plan = Source(*events), plan_for(clock)
    assert (
        drive.stream(plan, Script(source), stop_after=stop_after) == events[:stop_after]
    )
    assert source.closed == 1
    assert source.read <= len(events)
    assert outcomes(plan) == [outcome]


def test_a_stream_that_nobody_begins_sends_nothing(
    drive: Drive, clock: FakeClock
) -> None:
    """Nothing is sent before the first `next`."""
    script, plan = Script("never sent"), plan_for(clock)

    async def never_begun() -> None:
        await aopen(plan, script).aclose()

    if drive.is_async:
        asyncio.run(never_begun())
    else:
        open_(plan, script).close()
    assert script.numbers == []
    assert plan.call_state.attempt_log() == {"attempts": []}


def test_a_stream_that_is_forgotten_is_closed(clock: FakeClock) -> None:
    """A generator that is dropped half read closes its source when it is collected."""
    source, plan = Source(HEL, LO, END), plan_for(clock)
    events = open_(plan, Script(source))
    assert next(events) == HEL
    assert source.closed == 0
    del events
    gc.collect()
    assert source.closed == 1
    assert outcomes(plan) == ["cancelled"]


def test_retries_off_is_one_request(drive: Drive, clock: FakeClock) -> None:
    """With `max_retries=0` a stream, too, is sent for once, and hides nothing."""
    error = cut()
    script = Script(Source(error))
    with pytest.raises(errors.APIConnectionError) as caught:
        drive.stream(plan_for(clock, RetryPolicy(max_retries=0)), script)
    assert caught.value is error
    assert script.numbers == [1]
    assert caught.value.is_retryable is True
