"""The sixteen faults: what the providers do, and what is looked at afterwards.

The faults and checks are those of the public Failover Bench, methodology v0.1. Times
are seconds; whoever plays a scenario may shorten them all by one factor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from benchmarks.failover.evidence import PRIMARY, Evidence
from langchain_retryrouter.testing import (
    Answer,
    Cut,
    FaultyGateway,
    MalformedEvent,
    MissingDone,
    RecordedRequest,
    Reset,
    Silence,
    SlowFirstToken,
    Stall,
    Status,
    Step,
)

OUTAGE: Final = 60.0
"""Seconds for which the primary of S15 is down."""

BACKUP_PROMPT_TOKENS: Final = 222
"""By which a bill of the backup's is known; the primary counts others."""

RUN_LENGTH: Final = 120.0
"""Seconds after which a call that has not ended hangs."""


class Stage(Protocol):
    """Where a scenario takes place."""

    primary: FaultyGateway
    backup: FaultyGateway

    def seconds(self, seconds: float) -> float:
        """So many seconds of the scenario, in those of the clock."""

    def now(self) -> float:
        """Seconds of the scenario since its first call."""


@dataclass(frozen=True)
class Check:
    """Something that is looked at.

    Attributes:
        rule: What must be, in words.
        holds: Whether it is.
        is_required: Whether the scenario is failed without it; else it is advisory.
    """

    rule: str
    holds: Callable[[Evidence], bool]
    is_required: bool = True


@dataclass(frozen=True)
class Scenario:
    """One fault.

    Attributes:
        name: `S01` to `S16`.
        fault: What is wrong with the primary, in words.
        prepare: Tells the providers what to do.
        checks: What is looked at, beside the answer itself.
        right_error: What the error says that is the right end; None where an answer is.
        calls: How many calls are made.
        pace: Seconds from one of them to the next.
        is_tried_again: Whether another call is made when the fault is over.
        needs_stream: Whether only a stream can have this fault.
    """

    name: str
    fault: str
    prepare: Callable[[Stage], None]
    checks: tuple[Check, ...] = ()
    right_error: str | None = None
    calls: int = 1
    pace: float = 0.0
    is_tried_again: bool = False
    needs_stream: bool = False


# --- what is looked at ---


def _advisory(rule: str, holds: Callable[[Evidence], bool]) -> Check:
    return Check(rule, holds, is_required=False)


def _at_least(count: int) -> Check:
    return _advisory(
        f"{count} attempts at the primary or more",
        lambda seen: len(seen.at_primary) >= count,
    )


def _at_most(count: int) -> Check:
    return Check(
        f"{count} attempts at the primary at most",
        lambda seen: len(seen.at_primary) <= count,
    )


def _at_most_within(count: int, seconds: float) -> Check:
    return Check(
        f"{count} attempts at the primary at most in the first {seconds:g} s",
        lambda seen: seen.primary_within(seconds) <= count,
    )


def _one_attempt(seen: Evidence) -> bool:
    return len(seen.at_primary) == 1


_EXACTLY_ONE: Final = Check("exactly 1 attempt at the primary", _one_attempt)


def _ends_within(seconds: float, *, is_required: bool = True) -> Check:
    return Check(
        f"ends within {seconds:g} s",
        lambda seen: seen.calls[0].seconds <= seconds,
        is_required,
    )


_HEALTHY_AFTERWARDS: Final = Check(
    "healthy afterwards",
    lambda seen: seen.afterwards is not None and seen.afterwards.is_whole,
)
_USAGE_REPORTED: Final = _advisory(
    "usage reported",
    lambda seen: all(
        call.reply.prompt_tokens is not None for call in seen.calls if call.reply
    ),
)


def _no_400_at_the_end(seen: Evidence) -> bool:
    return not any("[400" in (call.error or "") for call in seen.calls)


def _bills_the_backup(seen: Evidence) -> bool:
    reply = seen.calls[0].reply
    return reply is None or (
        reply.model is not None
        and reply.model.endswith("gpt-backup")
        and reply.prompt_tokens == BACKUP_PROMPT_TOKENS
    )


def attempts_in_the_outage(seen: Evidence) -> int:
    """How often the primary was asked while it was down."""
    return sum(1 for one in seen.at_primary if one.did == "503")


def back_after(seen: Evidence) -> float | None:
    """Seconds from the recovery to the first answer of the primary's; None for none."""
    served = [
        call.began + call.seconds
        for call in seen.calls
        if call.reply is not None and (call.reply.model or "").endswith(PRIMARY)
    ]
    return max(0.0, served[0] - OUTAGE) if served else None


def _is_back(seen: Evidence) -> bool:
    seconds = back_after(seen)
    return seconds is not None and seconds <= 30.0


# --- what the providers do ---


def _once(step: Callable[[Stage], Step]) -> Callable[[Stage], None]:
    return lambda stage: stage.primary.script(step(stage))


def _for_ever(step: Callable[[Stage], Step]) -> Callable[[Stage], None]:
    return lambda stage: stage.primary.always(step(stage))


def _throttle(stage: Stage) -> Step:
    return Status(429, {"retry-after": f"{stage.seconds(2):g}"})


def refuses_prefill(request: RecordedRequest) -> Step:
    """A provider that answers users only, and says so with a 400."""
    messages = request.payload["messages"]
    if messages[-1]["role"] != "assistant":
        return Answer()
    return Status(400, message="This model does not support assistant prefill.")


def _cut_and_refuse_prefill(stage: Stage) -> None:
    stage.primary.always(Cut(after=40))
    stage.backup.always(refuses_prefill)


def _be_down_for_a_while(stage: Stage) -> None:
    stage.primary.always(lambda _: Status(503) if stage.now() < OUTAGE else Answer())


SCENARIOS: Final = {
    one.name: one
    for one in (
        Scenario(
            "S01",
            "429 with `Retry-After: 2` once, then healthy",
            _once(_throttle),
            (
                _at_least(2),
                _advisory("waits 1.8 s or more", lambda seen: seen.first_gap >= 1.8),
                _at_most_within(2, 1.5),
            ),
        ),
        Scenario(
            "S02",
            "429 for ever, no header",
            _for_ever(lambda _: Status(429)),
            (_at_most_within(4, 3.0), _at_most(6)),
        ),
        Scenario(
            "S03",
            "500 once, then healthy",
            _once(lambda _: Status(500)),
            (_at_least(2),),
        ),
        Scenario(
            "S04", "503 for ever", _for_ever(lambda _: Status(503)), (_at_most(6),)
        ),
        Scenario("S05", "TCP reset before any byte, once", _once(lambda _: Reset())),
        Scenario(
            "S06",
            "accepts, then silence for 120 s",
            _for_ever(lambda stage: Silence(stage.seconds(120))),
            (
                _ends_within(100),
                _advisory("1 attempt at the primary only", _one_attempt),
            ),
        ),
        Scenario(
            "S07",
            "headers at once, first token after 20 s",
            _for_ever(lambda stage: SlowFirstToken(stage.seconds(20))),
            (_ends_within(15, is_required=False),),
            needs_stream=True,
        ),
        Scenario(
            "S08",
            "stream dies after 40 of 60 tokens, no end",
            _for_ever(lambda _: Cut(after=40)),
        ),
        Scenario(
            "S09",
            "after 20 tokens silence for 30 s, socket open",
            _once(lambda stage: Stall(after=20, seconds=stage.seconds(30))),
            (_ends_within(45), _HEALTHY_AFTERWARDS),
            is_tried_again=True,
            needs_stream=True,
        ),
        Scenario(
            "S10",
            "the 10th event is not JSON; the rest is fine",
            _once(lambda _: MalformedEvent(at=10)),
            (_HEALTHY_AFTERWARDS,),
            is_tried_again=True,
        ),
        Scenario(
            "S11",
            "whole stream, `[DONE]` missing",
            _for_ever(lambda _: MissingDone()),
            (_ends_within(8), _USAGE_REPORTED),
            needs_stream=True,
        ),
        Scenario(
            "S12",
            "400 `context_length_exceeded`",
            _for_ever(lambda _: Status(400, error_code="context_length_exceeded")),
            (_EXACTLY_ONE,),
        ),
        Scenario(
            "S13",
            "400 `content_policy_violation`",
            _for_ever(lambda _: Status(400, error_code="content_policy_violation")),
            (_EXACTLY_ONE,),
            right_error="content_policy_violation",
        ),
        Scenario(
            "S14",
            "as S08, and the fallback rejects an assistant prefill with a 400",
            _cut_and_refuse_prefill,
            (Check("the 400 is never the final error", _no_400_at_the_end),),
        ),
        Scenario(
            "S15",
            "503 for 60 s, then healthy; 20 calls, one every 4 s",
            _be_down_for_a_while,
            (Check("back on the primary within 30 s of its recovery", _is_back),),
            calls=20,
            pace=4.0,
        ),
        Scenario(
            "S16",
            "503 for ever, the fallback answers",
            _for_ever(lambda _: Status(503)),
            (
                Check("model and usage are the fallback's", _bills_the_backup),
                _at_most(6),
            ),
        ),
    )
}
"""By their names."""
