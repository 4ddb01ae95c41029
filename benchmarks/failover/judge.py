"""What a system deserves for what was seen of it: one pure function."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from benchmarks.failover.evidence import Call, Evidence
from benchmarks.failover.scenarios import Scenario


class Grade(StrEnum):
    """How well a scenario was survived."""

    PASS = "pass"  # noqa: S105 - the scorecard's word
    """The whole answer, or the right error, and every check held."""
    PARTIAL = "partial"
    """Answered; an advisory check failed, or an error would have been right."""
    SAFE = "safe"
    """No answer, but an error, in time."""
    FAIL = "fail"
    """A hang, something else than the whole answer called one, or a required check."""


@dataclass(frozen=True)
class Verdict:
    """A grade, and what was held against a better one."""

    grade: Grade
    broken: tuple[str, ...] = ()


def judge(scenario: Scenario, seen: Evidence) -> Verdict:
    """What `seen` is worth as an answer to the faults of `scenario`.

    Of several calls the worst one counts.
    """
    required = [
        *(fault for call in seen.calls if (fault := _disgrace(call))),
        *_broken(scenario, seen, is_required=True),
    ]
    advisory = _broken(scenario, seen, is_required=False)
    if required:
        return Verdict(Grade.FAIL, (*required, *advisory))
    errors = [call.error for call in seen.calls if call.error is not None]
    if scenario.right_error is not None:
        return _of_right_end(scenario.right_error, errors, advisory)
    if errors:
        return Verdict(Grade.SAFE, (f"no answer: {errors[0]}", *advisory))
    return Verdict(Grade.PARTIAL if advisory else Grade.PASS, advisory)


def _disgrace(call: Call) -> str | None:
    """What no system may do to a caller, whatever the fault."""
    if call.ending == "hung":
        return f"no end after {call.seconds:.0f} s"
    if call.reply is not None and not call.is_whole:
        words = len(call.reply.text.split())
        return f"called success, and not the answer: {words} words"
    return None


def _broken(
    scenario: Scenario, seen: Evidence, *, is_required: bool
) -> tuple[str, ...]:
    return tuple(
        f"not so: {check.rule}"
        for check in scenario.checks
        if check.is_required is is_required and not check.holds(seen)
    )


def _of_right_end(
    right_error: str, errors: list[str], advisory: tuple[str, ...]
) -> Verdict:
    if not errors:
        routed = "answered, where the provider's error is the right end"
        return Verdict(Grade.PARTIAL, (routed, *advisory))
    if not all(right_error in error for error in errors):
        return Verdict(Grade.SAFE, (f"another error: {errors[0]}", *advisory))
    return Verdict(Grade.PARTIAL if advisory else Grade.PASS, advisory)
