"""The sixteen scenarios: fault, time limit and checks, and how what was seen is judged.

They are those of the public Failover Bench, methodology v0.1. Times are seconds. What
was seen is plain data, from both ends: the caller's answer and the provider's log.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from benchmarks.failover.provider import OUTAGE, TEXT


@dataclass(frozen=True)
class Call:
    """One call, as its caller saw it.

    Attributes:
        began: When it was made.
        seconds: How long it took, or was waited for.
        text: The answer, if there was one.
        model: The model that the system says has answered.
        has_usage: Whether the answer reports token usage.
        error: What was raised instead. Without answer and error, the call hung.
    """

    began: float
    seconds: float
    text: str | None = None
    model: str = ""
    has_usage: bool = False
    error: str | None = None

    @property
    def is_hung(self) -> bool:
        """Whether it did not end within the scenario's limit."""
        return self.text is None and self.error is None

    @property
    def is_whole(self) -> bool:
        """Whether the answer is the healthy one, white space aside."""
        return self.text is not None and self.text.split() == TEXT.split()


@dataclass(frozen=True)
class Attempt:
    """One request, as the provider's log has it."""

    at: float
    model: str
    did: str
    prompt_tokens: int = 0


@dataclass(frozen=True)
class Seen:
    """All that is judged of one scenario, played once by one system.

    Attributes:
        calls: The calls, in their order.
        attempts: The provider's log of them.
        probe: A call of a healthy model, without a stream or fallback, after the fault.
    """

    calls: tuple[Call, ...]
    attempts: tuple[Attempt, ...]
    probe: Call

    @property
    def at_primary(self) -> list[Attempt]:
        """The attempts that the faulty model saw."""
        return [one for one in self.attempts if not is_fallback(one.model)]


def is_fallback(model: str) -> bool:
    """Whether this is one of the healthy models."""
    return model.rpartition("/")[2].startswith("fb-ok")


@dataclass(frozen=True)
class Check:
    """Something that is looked at; `is_required` decides between fail and partial."""

    rule: str
    holds: Callable[[Seen], bool]
    is_required: bool = True


@dataclass(frozen=True)
class Scenario:
    """One fault.

    Attributes:
        name: `S01` to `S16`; the model `fb-s01` has its fault.
        fault: What is wrong with the primary, in words.
        limit: Seconds after which a call hangs.
        checks: What is looked at, beside the answer.
        right_error: What the error says that is the right end; None where an answer is.
        fallback: The model that is asked when the primary fails.
        calls: How many calls are made, each when the one before is over.
        pace: Seconds from the start of one of them to the next.
    """

    name: str
    fault: str
    limit: float
    checks: tuple[Check, ...] = ()
    right_error: str | None = None
    fallback: str = "fb-ok"
    calls: int = 1
    pace: float = 0.0


def _at_least_two(seen: Seen) -> bool:
    return len(seen.at_primary) >= 2


def _at_most(count: int, seconds: float | None = None) -> Check:
    within = "" if seconds is None else f" in the first {seconds:g} s"

    def holds(seen: Seen) -> bool:
        times = [one.at for one in seen.at_primary]
        early = [at for at in times if seconds is None or at - times[0] < seconds]
        return len(early) <= count

    return Check(f"at most {count} attempts at the primary{within}", holds)


def _ends_within(seconds: float, *, is_required: bool = True) -> Check:
    rule = f"ends within {seconds:g} s"
    return Check(rule, lambda seen: seen.calls[0].seconds <= seconds, is_required)


def _waits_as_told(seen: Seen) -> bool:
    first, *later = (one.at for one in seen.at_primary)
    return bool(later) and later[0] - first >= 1.8


def _sends_less_each_time(seen: Seen) -> bool:
    sizes = [one.prompt_tokens for one in seen.at_primary]
    shrinks = all(after < before for before, after in itertools.pairwise(sizes))
    return len(sizes) <= 2 and shrinks


def _is_not_masked(seen: Seen) -> bool:
    was_refused = any(one.did == "400 prefill" for one in seen.attempts)
    return not (was_refused and any(call.error for call in seen.calls))


def _all_served_in_outage(seen: Seen) -> bool:
    return all(call.text is not None for call in seen.calls if call.began < OUTAGE)


def _is_back(seen: Seen) -> bool:
    served = [one.at for one in seen.at_primary if one.did == "200"]
    return bool(served) and served[0] - OUTAGE <= 30


def attempts_in_the_outage(seen: Seen) -> int:
    """How often the primary was asked while it was down."""
    return sum(1 for one in seen.at_primary if one.at < OUTAGE)


_RETRIED: Final = Check("2 attempts at the primary or more", _at_least_two, False)  # noqa: FBT003
_ONE_ATTEMPT: Final = Check(
    "exactly 1 attempt at the primary", lambda seen: len(seen.at_primary) == 1
)
_HEALTHY: Final = Check("healthy afterwards", lambda seen: seen.probe.is_whole)
_USAGE: Final = Check(
    "usage is reported",
    lambda seen: all(call.has_usage for call in seen.calls if call.text is not None),
    is_required=False,
)

SCENARIOS: Final = {
    one.name: one
    for one in (
        Scenario(
            "S01",
            "429 with `Retry-After: 2` once, then healthy",
            20,
            (
                _RETRIED,
                Check("waits 1.8 s or more", _waits_as_told, is_required=False),
                _at_most(2, 1.5),
            ),
        ),
        Scenario("S02", "429 for ever, no header", 40, (_at_most(4, 3), _at_most(6))),
        Scenario("S03", "500 once, then healthy", 20, (_RETRIED,)),
        Scenario("S04", "503 for ever", 40, (_at_most(6),)),
        Scenario("S05", "TCP reset before any byte, once", 20),
        Scenario(
            "S06",
            "accepts, then silence for 120 s",
            130,
            (
                _ends_within(100),
                Check(
                    "1 attempt at the primary only",
                    lambda seen: len(seen.at_primary) <= 1,
                    is_required=False,
                ),
            ),
        ),
        Scenario(
            "S07",
            "headers at once, first token after 20 s",
            60,
            (_ends_within(15, is_required=False),),
        ),
        Scenario("S08", "stream dies after 40 of 60 tokens, no end", 40),
        Scenario(
            "S09",
            "after 20 tokens silence for 30 s, then the connection closes",
            70,
            (_ends_within(45), _HEALTHY),
        ),
        Scenario("S10", "an event is not JSON; the rest is fine", 30, (_HEALTHY,)),
        Scenario(
            "S11", "whole stream, `[DONE]` missing", 30, (_ends_within(8), _USAGE)
        ),
        Scenario(
            "S12",
            "400 `context_length_exceeded`",
            20,
            (Check("the request is not sent again as it was", _sends_less_each_time),),
        ),
        Scenario(
            "S13",
            "400 `content_policy_violation`",
            20,
            (_ONE_ATTEMPT,),
            right_error="rejected by our safety system",
        ),
        Scenario(
            "S14",
            "as S08, and the fallback rejects an assistant prefill with a 400",
            40,
            (Check("the 400 does not end the call", _is_not_masked),),
            fallback="fb-ok-noprefill",
        ),
        Scenario(
            "S15",
            "503 for 60 s, then healthy; 20 calls, one every 4 s",
            30,
            (
                Check("all calls of the outage are answered", _all_served_in_outage),
                Check("back on the primary 30 s after its recovery", _is_back),
            ),
            calls=20,
            pace=4,
        ),
        Scenario(
            "S16",
            "503 for ever, the fallback answers",
            40,
            (
                Check(
                    "the model is the fallback's",
                    lambda seen: (
                        seen.calls[0].text is None or is_fallback(seen.calls[0].model)
                    ),
                ),
                _USAGE,
                _at_most(6),
            ),
        ),
    )
}
"""By their names."""


class Grade(StrEnum):
    """How well a scenario was survived."""

    PASS = "pass"  # noqa: S105 - the scorecard's word
    """The whole answer, or the right error, and every check held."""
    PARTIAL = "partial"
    """Answered; an advisory check failed, or an error would have been right."""
    SAFE = "safe"
    """No answer, but an error in time."""
    FAIL = "fail"
    """A hang, another text than the whole answer, or a required check failed."""


def judge(scenario: Scenario, seen: Seen) -> tuple[Grade, tuple[str, ...]]:
    """The grade of `scenario`, and the reasons against a better one."""
    wrong = [f"no end within {scenario.limit:g} s" for c in seen.calls if c.is_hung]
    texts = [c.text for c in seen.calls if c.text is not None and not c.is_whole]
    wrong += [f"called success: {len(text.split())} of 60 words" for text in texts]
    broken = [one for one in scenario.checks if not one.holds(seen)]
    advice = tuple(f"failed check: {one.rule}" for one in broken if not one.is_required)
    wrong += [f"failed check: {one.rule}" for one in broken if one.is_required]
    errors = [call.error for call in seen.calls if call.error is not None]
    if wrong:
        return Grade.FAIL, (*wrong, *advice, *errors[:1])
    if scenario.right_error is None:
        if errors:
            return Grade.SAFE, (f"no answer: {errors[0]}", *advice)
    elif not errors:
        routed = "answered; the provider's error would be correct"
        return Grade.PARTIAL, (routed, *advice)
    elif scenario.right_error not in errors[0]:
        return Grade.SAFE, (f"another error: {errors[0]}", *advice)
    return Grade.PARTIAL if advice else Grade.PASS, advice
