"""`stream` and `astream`: retried before the first token, never after it."""

from typing import Any

import pytest

from langchain_retryrouter import (
    APIConnectionError,
    BreakerState,
    CircuitBreaker,
    FailureKind,
    RetryBudget,
    StreamInterruptedError,
)
from langchain_retryrouter._gptrouter.protocol import GPT_ROUTER_ERRORS
from langchain_retryrouter._retry.streaming import ChunkInfo
from langchain_retryrouter.errors import BASE_ERRORS

from .scripted import (
    END,
    ROLE,
    WHOLE,
    Engine,
    Recorder,
    Script,
    Source,
    outcomes,
    token,
)

HEL, LO, USAGE = token("Hel"), token("lo"), ChunkInfo()
TOOL_CALL = ChunkInfo(is_token=True)
CUT = ChunkInfo(is_last=True)


def broken() -> APIConnectionError:
    """A connection that breaks; a new one each time, since errors are annotated."""
    return APIConnectionError("the connection broke")


# --- whole streams ---


@pytest.mark.parametrize(
    "events",
    [
        [HEL, LO, END],
        [ROLE, ROLE, HEL, ROLE, LO, END],
        [TOOL_CALL, END],
        [END],
        [ROLE, END],
        [WHOLE],
        [HEL, WHOLE],
        [HEL, WHOLE, USAGE, USAGE],
        [HEL, WHOLE, USAGE, CUT],
        [HEL, WHOLE, USAGE, WHOLE, END],
        [ChunkInfo("Hello", is_token=True, is_end=True, is_last=True)],
    ],
)
def test_a_whole_stream_is_unchanged(engine: Engine, events: list[ChunkInfo]) -> None:
    """Every event is handed over once, in order, and the budget gets one token."""
    source, recorder, budget = Source(*events), Recorder(), RetryBudget()
    budget.spend()
    context = engine.context(budget=budget)
    assert engine.stream(context, Script(source), recorder) == events
    assert (source.closed, recorder.states, outcomes(context)) == (1, [], ["ok"])
    assert budget.tokens == 500 - 14 + 1


# --- before the first token ---


def test_a_first_token_that_was_not_handed_over_is_retried(engine: Engine) -> None:
    """A first event that is the last, and not an end, has not reached the caller."""
    first = Source(ChunkInfo("Hel", is_token=True, is_last=True))
    recorder, context = Recorder(), engine.context()
    script = Script(first, Source(HEL, LO, END))
    assert engine.stream(context, script, recorder) == [HEL, LO, END]
    (error,) = recorder.errors
    assert isinstance(error, StreamInterruptedError)
    assert error.delivered == ""
    assert not hasattr(error, "__notes__")
    assert first.closed == 1
    assert outcomes(context) == ["interrupted", "ok"]


def test_each_attempt_has_its_own_classifier(engine: Engine) -> None:
    """State that a classifier keeps of a failed attempt does not reach the next."""
    script = Script(Source(ROLE, broken()), Source(HEL, END))
    engine.stream(engine.context(), script)
    assert script.classified == [[ROLE], [HEL, END]]


# --- after the first token ---


@pytest.mark.parametrize("kind", [FailureKind.CONNECTION, FailureKind.TIMEOUT])
@pytest.mark.parametrize(
    ("events", "text"), [([ROLE, HEL, ROLE, LO], "Hello"), ([TOOL_CALL], "")]
)
def test_a_stream_that_breaks_is_interrupted(
    engine: Engine, kind: FailureKind, events: list[ChunkInfo], text: str
) -> None:
    """After the first token nothing is retried: the error has what was delivered.

    A tool call cannot be taken back either, though it has no text.
    """
    error, seen = BASE_ERRORS[kind]("it broke"), list[ChunkInfo]()
    source, context = Source(*events, error), engine.context()
    script, recorder = Script(source, "not sent"), Recorder()
    with pytest.raises(StreamInterruptedError) as caught:
        engine.stream(context, script, recorder, into=seen)
    assert seen == events
    assert str(caught.value) == f"it broke, after {len(text)} characters"
    assert caught.value.delivered == text
    assert caught.value.__cause__ is error
    assert caught.value.__notes__ == [
        f"not retried: {len(text)} characters were already delivered"
    ]
    assert caught.value.attempts == 1
    assert (script.numbers, recorder.states, source.closed) == ([1], [], 1)
    assert outcomes(context) == ["interrupted"]


def test_an_interruption_counts_its_attempts_and_its_failure(engine: Engine) -> None:
    """The error has attempts and route; the breaker opens, and the budget gains 0."""
    breaker, budget = (
        CircuitBreaker(failure_threshold=1, clock=engine.clock),
        RetryBudget(),
    )
    guards: dict[str, Any] = {"breaker": breaker, "budget": budget}
    context = engine.context(errors=GPT_ROUTER_ERRORS, route=lambda: "gpt-4", **guards)
    with pytest.raises(GPT_ROUTER_ERRORS[FailureKind.INTERRUPTED]) as caught:
        engine.stream(context, Script(Source(HEL)))
    assert (caught.value.attempts, caught.value.route) == (1, "gpt-4")
    assert breaker.state is BreakerState.OPEN
    context = engine.context(budget=budget)
    with pytest.raises(StreamInterruptedError) as again:
        engine.stream(context, Script(Source(broken()), Source(HEL)))
    assert again.value.attempts == 2
    assert outcomes(context) == ["connection", "interrupted"]
    assert budget.tokens == 486


# --- closed early ---


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
def test_closing_a_stream_closes_its_connection(
    engine: Engine, events: list[ChunkInfo], stop_after: int, outcome: str
) -> None:
    """A caller that stops reading cancels the call, unless it has the whole answer."""
    source, context = Source(*events), engine.context()
    seen = engine.stream(context, Script(source), stop_after=stop_after)
    assert seen == events[:stop_after]
    assert source.closed == 1
    assert outcomes(context) == [outcome]
