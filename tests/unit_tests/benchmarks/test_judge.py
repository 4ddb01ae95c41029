"""The judge of the failover bench: every grade can be reached."""

from __future__ import annotations

import pytest

from benchmarks.failover.evidence import BACKUP, PRIMARY, TEXT, Attempt, Call, Evidence
from benchmarks.failover.evidence import Reply as _Reply
from benchmarks.failover.judge import Grade, judge
from benchmarks.failover.scenarios import BACKUP_PROMPT_TOKENS, SCENARIOS


def attempts(*times: float) -> tuple[Attempt, ...]:
    return tuple(Attempt(at, PRIMARY, "503") for at in times)


def answered(seconds: float = 1.0, text: str = TEXT, model: str = BACKUP) -> Call:
    return Call(0.0, seconds, _Reply(text, model, BACKUP_PROMPT_TOKENS))


def failed(error: str = "ServerError [503]: gone") -> Call:
    return Call(0.0, 1.0, error=error)


HALF = " ".join(TEXT.split()[:40])
NO_USAGE = Call(0, 1, _Reply(TEXT, PRIMARY))
REFUSED = "X [400 content_policy_violation]"


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_hang_or_half_an_answer_fails(name: str) -> None:
    """No check can make up for a hang, or for a part of the text called success."""
    for call in (
        Call(0.0, 120.0),
        answered(text=HALF),
        answered(text=f"{TEXT} {TEXT}"),
    ):
        seen = Evidence((call,), attempts(0, 1.8), answered())
        assert judge(SCENARIOS[name], seen).grade is Grade.FAIL


@pytest.mark.parametrize(
    ("name", "call", "times", "afterwards", "grade"),
    [
        ("S01", answered(), (0, 1.8), None, Grade.PASS),
        ("S01", answered(), (0, 1.7), None, Grade.PARTIAL),
        ("S01", answered(), (0, 1, 1.4, 4), None, Grade.FAIL),
        ("S02", answered(), (0, 1, 2, 2.9), None, Grade.PASS),
        ("S02", answered(), (0, 1, 2, 2.5, 2.9), None, Grade.FAIL),
        ("S03", answered(text=TEXT.replace(" ", "\n")), (0, 1), None, Grade.PASS),
        ("S04", answered(), range(6), None, Grade.PASS),
        ("S04", failed(), range(7), None, Grade.FAIL),
        ("S06", answered(100.0), (0,), None, Grade.PASS),
        ("S06", answered(), (0, 1), None, Grade.PARTIAL),
        ("S06", answered(100.1), (0,), None, Grade.FAIL),
        ("S07", answered(15.1), (0,), None, Grade.PARTIAL),
        ("S08", failed(), (0,), None, Grade.SAFE),
        ("S09", answered(45.0), (0,), answered(), Grade.PASS),
        ("S09", answered(), (0,), failed(), Grade.FAIL),
        ("S10", failed(), (0,), answered(), Grade.SAFE),
        ("S11", NO_USAGE, (0,), None, Grade.PARTIAL),
        ("S11", answered(8.1), (0,), None, Grade.FAIL),
        ("S12", answered(), (0,), None, Grade.PASS),
        ("S12", answered(), (0, 1), None, Grade.FAIL),
        ("S13", failed(REFUSED), (0,), None, Grade.PASS),
        ("S13", answered(), (0,), None, Grade.PARTIAL),
        ("S13", failed(), (0,), None, Grade.SAFE),
        ("S14", failed("X [400]: prefill"), (0,), None, Grade.FAIL),
        ("S16", answered(), (0,), None, Grade.PASS),
        ("S16", answered(model=PRIMARY), (0,), None, Grade.FAIL),
    ],
)
def test_a_call_gets_what_it_deserves(
    name: str,
    call: Call,
    times: tuple[float, ...],
    afterwards: Call | None,
    grade: Grade,
) -> None:
    """Required checks decide between fail and the rest, advisory ones cost the pass."""
    seen = Evidence((call,), attempts(*times), afterwards)
    verdict = judge(SCENARIOS[name], seen)
    assert verdict.grade is grade
    assert bool(verdict.broken) is (grade is not Grade.PASS)
