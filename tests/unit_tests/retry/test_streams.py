"""`stream` and `astream`: retried before the first token, never after it."""

from typing import Any

import pytest

from langchain_retryrouter import (
    APIConnectionError,
    FailureKind,
    RetryBudget,
    StreamInterruptedError,
)
from langchain_retryrouter._gptrouter.protocol import GPT_ROUTER_ERRORS
from langchain_retryrouter._retry.streaming import ChunkInfo

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
CUT = ChunkInfo(is_last=True)


CALL = ChunkInfo(is_token=True)
AT_ONCE = ChunkInfo("Hello", is_token=True, is_end=True, is_last=True)


@pytest.mark.parametrize(
    ("events", "stop_after", "outcome"),
    [
        ([HEL, LO, END], None, "ok"),
        ([ROLE, ROLE, HEL, ROLE, LO, END], None, "ok"),
        ([CALL, END], None, "ok"),
        ([END], None, "ok"),
        ([ROLE, END], None, "ok"),
        ([WHOLE], None, "ok"),
        ([HEL, WHOLE], None, "ok"),
        ([HEL, WHOLE, USAGE, USAGE], None, "ok"),
        ([HEL, WHOLE, USAGE, CUT], None, "ok"),
        ([HEL, WHOLE, USAGE, WHOLE, END], None, "ok"),
        ([AT_ONCE], None, "ok"),
        ([HEL, LO, END], 1, "cancelled"),
        ([ROLE, HEL, LO, END], 1, "cancelled"),
        ([HEL, LO, END], 2, "cancelled"),
        ([HEL, LO, END], 3, "ok"),
        ([HEL, WHOLE, USAGE], 2, "ok"),
    ],
)
def test_a_stream_is_handed_over_and_closed(
    engine: Engine, events: list[ChunkInfo], stop_after: int | None, outcome: str
) -> None:
    """Each event comes once, in order; a caller that leaves before the end cancels."""
    source, recorder, budget = Source(*events), Recorder(), RetryBudget()
    budget.spend()
    context = engine.context(budget=budget)
    seen = engine.stream(context, Script(source), recorder, stop_after=stop_after)
    assert seen == events[:stop_after]
    assert (source.closed, recorder.states, outcomes(context)) == (1, [], [outcome])
    assert budget.tokens == 500 - 14 + (outcome == "ok")


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


def test_an_interruption_counts_its_attempts_and_its_failure(engine: Engine) -> None:
    """The error has attempts and route, and the budget gains nothing."""
    budget, broken = RetryBudget(), APIConnectionError("the connection broke")
    parts: dict[str, Any] = {"route": lambda: "gpt-4", "budget": budget}
    context = engine.context(errors=GPT_ROUTER_ERRORS, **parts)
    with pytest.raises(GPT_ROUTER_ERRORS[FailureKind.INTERRUPTED]) as caught:
        engine.stream(context, Script(Source(broken), Source(HEL)))
    assert (caught.value.attempts, caught.value.route) == (2, "gpt-4")
    assert outcomes(context) == ["connection", "interrupted"]
    assert budget.tokens == 486
