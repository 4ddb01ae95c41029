"""The judge of the failover bench: each verdict can be reached, and by what."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.failover.evidence import (
    BACKUP,
    PRIMARY,
    TEXT,
    Attempt,
    Call,
    Evidence,
    Reply,
)
from benchmarks.failover.judge import Grade, judge
from benchmarks.failover.scenarios import (
    BACKUP_PROMPT_TOKENS,
    SCENARIOS,
    attempts_in_the_outage,
    back_after,
)

_WHOLE = Reply(TEXT, BACKUP, BACKUP_PROMPT_TOKENS)


def _attempts(*times: float, did: str = "503") -> tuple[Attempt, ...]:
    return tuple(Attempt(at, PRIMARY, did) for at in times)


def _answered(seconds: float = 1.0, text: str = TEXT, began: float = 0.0) -> Call:
    return Call(began, seconds, dataclasses.replace(_WHOLE, text=text))


def _failed(error: str = "ServerError [503]: gone") -> Call:
    return Call(0.0, 1.0, error=error)


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "S13"])
def test_a_hang_fails_whatever_the_scenario(name: str) -> None:
    """A call that never ended is a failure, also where nothing else was broken."""
    seen = Evidence((Call(0.0, 120.0),), _attempts(0.0))
    final_error = judge(SCENARIOS[name], seen)
    assert final_error.grade is Grade.FAIL
    assert final_error.broken[0] == "no end after 120 s"


@pytest.mark.parametrize("name", SCENARIOS)
def test_half_an_answer_that_is_called_success_fails(name: str) -> None:
    """Anything but the whole text is a failure where it is handed over as an answer."""
    half = " ".join(TEXT.split()[:40])
    final_error = judge(
        SCENARIOS[name], Evidence((_answered(text=half),), _attempts(0.0))
    )
    assert final_error.grade is Grade.FAIL
    assert final_error.broken[0] == "called success, and not the answer: 40 words"


@pytest.mark.parametrize("text", ["", f"{TEXT} {TEXT}", TEXT.replace("07", "70")])
def test_an_answer_with_too_much_or_other_words_fails(text: str) -> None:
    """Words that are missing, doubled or garbled are no answer either."""
    seen = Evidence((_answered(text=text),), _attempts(0.0, 1.0))
    assert judge(SCENARIOS["S03"], seen).grade is Grade.FAIL


def test_white_space_is_no_difference() -> None:
    """The text is compared after its white space is normalised."""
    seen = Evidence(
        (_answered(text=TEXT.replace(" ", "\n") + " "),), _attempts(0.0, 1.0)
    )
    assert judge(SCENARIOS["S03"], seen).grade is Grade.PASS


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        pytest.param("S01", Evidence((_answered(),), _attempts(0, 1.8)), id="S01"),
        pytest.param(
            "S02", Evidence((_answered(),), _attempts(0, 1, 2, 2.9)), id="S02"
        ),
        pytest.param("S04", Evidence((_answered(),), _attempts(*range(6))), id="S04"),
        pytest.param("S05", Evidence((_answered(),), ()), id="S05"),
        pytest.param("S06", Evidence((_answered(100.0),), _attempts(0)), id="S06"),
        pytest.param("S07", Evidence((_answered(15.0),), _attempts(0)), id="S07"),
        pytest.param("S08", Evidence((_answered(),), _attempts(0)), id="S08"),
        pytest.param(
            "S09", Evidence((_answered(45.0),), _attempts(0), _answered()), id="S09"
        ),
        pytest.param("S12", Evidence((_answered(),), _attempts(0)), id="S12"),
        pytest.param(
            "S13",
            Evidence((_failed("X [400 content_policy_violation]"),), _attempts(0)),
            id="S13",
        ),
        pytest.param("S16", Evidence((_answered(),), _attempts(0)), id="S16"),
    ],
)
def test_a_pass_needs_no_more_than_the_checks(name: str, seen: Evidence) -> None:
    """What just keeps every bound is a pass, with nothing held against it."""
    final_error = judge(SCENARIOS[name], seen)
    assert (final_error.grade, final_error.broken) == (Grade.PASS, ())


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        pytest.param("S01", Evidence((_answered(),), _attempts(0)), id="no-retry"),
        pytest.param("S01", Evidence((_answered(),), _attempts(0, 1.7)), id="early"),
        pytest.param(
            "S06", Evidence((_answered(),), _attempts(0, 1)), id="asked-twice"
        ),
        pytest.param("S07", Evidence((_answered(15.1),), _attempts(0)), id="late"),
        pytest.param(
            "S11",
            Evidence((Call(0, 1, Reply(TEXT, PRIMARY)),), _attempts(0)),
            id="no-usage",
        ),
        pytest.param("S13", Evidence((_answered(),), _attempts(0)), id="routed-around"),
    ],
)
def test_an_advisory_check_makes_a_pass_partial(name: str, seen: Evidence) -> None:
    """Answered, but not as well as can be, is partial and says why."""
    final_error = judge(SCENARIOS[name], seen)
    assert final_error.grade is Grade.PARTIAL
    assert final_error.broken


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        pytest.param("S08", Evidence((_failed(),), _attempts(0)), id="error"),
        pytest.param("S13", Evidence((_failed(),), _attempts(0)), id="another-error"),
        pytest.param(
            "S10", Evidence((_failed(),), _attempts(0), _answered()), id="well-again"
        ),
        pytest.param("S05", Evidence((_answered(), _failed()), ()), id="one-of-two"),
    ],
)
def test_an_error_in_place_of_an_answer_is_safe(name: str, seen: Evidence) -> None:
    """A clean error is safe, and worth no more, even if every check held."""
    assert judge(SCENARIOS[name], seen).grade is Grade.SAFE


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        pytest.param(
            "S01", Evidence((_answered(),), _attempts(0, 1, 1.4, 4)), id="S01-burst"
        ),
        pytest.param(
            "S02",
            Evidence((_answered(),), _attempts(0, 1, 2, 2.5, 2.9)),
            id="S02-burst",
        ),
        pytest.param(
            "S02", Evidence((_answered(),), _attempts(*range(0, 70, 10))), id="S02-sum"
        ),
        pytest.param("S04", Evidence((_failed(),), _attempts(*range(7))), id="S04-sum"),
        pytest.param("S06", Evidence((_answered(100.1),), _attempts(0)), id="S06-late"),
        pytest.param(
            "S09",
            Evidence((_answered(45.1),), _attempts(0), _answered()),
            id="S09-late",
        ),
        pytest.param(
            "S09", Evidence((_answered(),), _attempts(0), _failed()), id="S09-sick"
        ),
        pytest.param("S10", Evidence((_answered(),), _attempts(0)), id="S10-not-tried"),
        pytest.param("S11", Evidence((_answered(8.1),), _attempts(0)), id="S11-late"),
        pytest.param("S12", Evidence((_answered(),), _attempts(0, 1)), id="S12-again"),
        pytest.param("S12", Evidence((_answered(),), ()), id="S12-never"),
        pytest.param(
            "S13",
            Evidence((_failed("content_policy_violation"),), _attempts(0, 1)),
            id="S13-again",
        ),
        pytest.param(
            "S14", Evidence((_failed("X [400]: prefill"),), _attempts(0)), id="S14-400"
        ),
        pytest.param(
            "S16",
            Evidence((Call(0, 1, Reply(TEXT, PRIMARY, 222)),), _attempts(0)),
            id="S16-model",
        ),
        pytest.param(
            "S16",
            Evidence((Call(0, 1, Reply(TEXT, BACKUP, 111)),), _attempts(0)),
            id="S16-usage",
        ),
    ],
)
def test_a_required_check_that_is_broken_fails(name: str, seen: Evidence) -> None:
    """Each required check can fail its scenario, and the verdict names it first."""
    final_error = judge(SCENARIOS[name], seen)
    assert final_error.grade is Grade.FAIL
    assert final_error.broken[0].startswith("not so: ")


def _outage(back_at: int | None) -> Evidence:
    """Twenty calls, of which those from number `back_at` are the primary's."""
    calls = tuple(
        Call(
            4.0 * number,
            0.0,
            Reply(
                TEXT, PRIMARY if back_at is not None and number >= back_at else BACKUP
            ),
        )
        for number in range(30)
    )
    healthy = _attempts(64.0, did="Answer")
    return Evidence(calls, (*_attempts(0.0, 1.0, 2.0, 32.0), *healthy))


@pytest.mark.parametrize(
    ("back_at", "grade"),
    [(16, Grade.PASS), (22, Grade.PASS), (23, Grade.FAIL), (None, Grade.FAIL)],
)
def test_a_system_must_be_back_in_time(back_at: int | None, grade: Grade) -> None:
    """After an outage the primary serves again within 30 s, or the scenario is lost."""
    assert judge(SCENARIOS["S15"], _outage(back_at)).grade is grade


def test_an_outage_is_told_in_numbers() -> None:
    """Refused attempts are counted, those after the recovery are not."""
    seen = _outage(16)
    assert attempts_in_the_outage(seen) == 4
    assert back_after(seen) == 4.0
    assert back_after(_outage(None)) is None
