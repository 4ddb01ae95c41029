"""The judge of the failover bench: every grade can be reached."""

from pathlib import Path

import pytest

from benchmarks.failover.provider import TEXT
from benchmarks.failover.scenarios import SCENARIOS, Attempt, Call, Grade, Seen, judge
from benchmarks.speed.measure import BEGIN, END, Bar, Section, bars_table

PROBE = Call(0.0, 1.0, TEXT)
SICK = Call(0.0, 1.0, error="gone")
FAILED = Call(0.0, 1.0, error="ServerError: gone")
REFUSED = Call(0.0, 1.0, error="APIError: rejected by our safety system")
HALF = " ".join(TEXT.split()[:40])


def answered(
    seconds: float = 1.0, text: str = TEXT, *, model: str = "fb-ok", usage: bool = True
) -> Call:
    return Call(0.0, seconds, text, model, usage)


def attempts(*times: float, sizes: tuple[int, ...] = ()) -> list[Attempt]:
    sizes = sizes or tuple(range(len(times), 0, -1))
    pairs = zip(times, sizes, strict=True)
    return [Attempt(at, "fb-s00", "503", size) for at, size in pairs]


OK = answered()
OTHER_SPACES = answered(text=TEXT.replace(" ", "\n"))


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize(
    "call", [Call(0.0, 130.0), answered(text=HALF), answered(text=f"{TEXT} {TEXT}")]
)
def test_a_hang_or_half_an_answer_fails(name: str, call: Call) -> None:
    """No check can make up for a hang, or for a part of the text called success."""
    seen = Seen((call,), tuple(attempts(0, 1.8)), PROBE)
    assert judge(SCENARIOS[name], seen)[0] is Grade.FAIL


@pytest.mark.parametrize(
    ("name", "call", "at_primary", "grade"),
    [
        ("S01", OK, attempts(0, 1.8), "pass"),
        ("S01", OK, attempts(0, 1.7), "partial"),
        ("S01", OK, attempts(0, 1, 1.4, 4), "fail"),
        ("S02", OK, attempts(0, 1, 2, 2.9), "pass"),
        ("S02", OK, attempts(0, 1, 2, 2.5, 2.9), "fail"),
        ("S03", OTHER_SPACES, attempts(0, 1), "pass"),
        ("S04", OK, attempts(*range(6)), "pass"),
        ("S04", FAILED, attempts(*range(7)), "fail"),
        ("S06", answered(100.0), attempts(0), "pass"),
        ("S06", OK, attempts(0, 1), "partial"),
        ("S06", answered(100.1), attempts(0), "fail"),
        ("S07", answered(15.1), attempts(0), "partial"),
        ("S08", FAILED, attempts(0), "safe"),
        ("S09", answered(45.0), attempts(0), "pass"),
        ("S09", answered(45.1), attempts(0), "fail"),
        ("S10", FAILED, attempts(0), "safe"),
        ("S11", answered(usage=False), attempts(0), "partial"),
        ("S11", answered(8.1), attempts(0), "fail"),
        ("S12", OK, attempts(0), "pass"),
        ("S12", OK, attempts(0, 1, sizes=(9, 8)), "pass"),
        ("S12", OK, attempts(0, 1, sizes=(9, 9)), "fail"),
        ("S12", OK, attempts(0, 1, 2, sizes=(9, 8, 7)), "fail"),
        ("S13", REFUSED, attempts(0), "pass"),
        ("S13", OK, attempts(0), "partial"),
        ("S13", FAILED, attempts(0), "safe"),
        ("S14", FAILED, [Attempt(1, "fb-ok-noprefill", "400 prefill")], "fail"),
        ("S14", FAILED, attempts(0), "safe"),
        ("S15", FAILED, [Attempt(90, "fb-s15", "200")], "fail"),
        ("S15", OK, [Attempt(90, "fb-s15", "200")], "pass"),
        ("S15", OK, [Attempt(91, "fb-s15", "200")], "fail"),
        ("S16", OK, attempts(0), "pass"),
        ("S16", answered(usage=False), attempts(0), "partial"),
        ("S16", answered(model="openai/fb-s16"), attempts(0), "fail"),
    ],
)
def test_a_call_gets_what_it_deserves(
    name: str, call: Call, at_primary: list[Attempt], grade: str
) -> None:
    """Required checks decide between fail and the rest, advisory ones cost the pass."""
    verdict, reasons = judge(SCENARIOS[name], Seen((call,), tuple(at_primary), PROBE))
    assert verdict == grade, reasons
    assert bool(reasons) is (grade != Grade.PASS)


@pytest.mark.parametrize("name", ["S09", "S10"])
def test_a_system_that_stays_broken_fails(name: str) -> None:
    """A healthy model must answer after the fault."""
    seen = Seen((OK,), tuple(attempts(0)), SICK)
    assert judge(SCENARIOS[name], seen)[0] is Grade.FAIL


def test_every_answer_has_sixty_words() -> None:
    """The scenarios count on it."""
    assert len(TEXT.split()) == 60


# --- speed ---


ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("bar", "seen", "holds"),
    [
        (Bar("", "ours", 3.0), 3.0, True),
        (Bar("", "ours", 2.9), 3.0, False),
        (Bar("", "ours", 3.0, side="≥"), 3.0, True),
        (Bar("", "ours", 3.1, side="≥"), 3.0, False),
        (Bar("", "ours", 2.0, minus="floor"), 2.0, True),
        (Bar("", "ours", 0.4, over="peer"), 0.375, True),  # Of the two rounds of both.
    ],
)
def test_a_bar_is_held_to_the_median_of_its_rounds(
    bar: Bar, seen: float, *, holds: bool
) -> None:
    """A ratio is taken round by round, and the limit itself is held."""
    rounds = {"ours": [2.0, 3.0, 100.0], "floor": [1.0] * 3, "peer": [4.0, 12.0]}
    assert bar.seen(rounds) == pytest.approx(seen)
    assert bar.holds(rounds) is holds


def test_a_missed_bar_shows() -> None:
    """The table says what was seen, what the aim is, and that it was missed."""
    bars = (Bar("ours / peer", "ours", 0.5, "peer"),)
    table = bars_table([Section("", "µs", {"ours": [2.0], "peer": [2.5]}, bars)])
    assert "| ours / peer | 0.8 | ≤ 0.5 | **missed** |" in table


@pytest.mark.parametrize("name", ["performance.md", "failover.md"])
def test_the_pages_have_a_place_for_the_figures(name: str) -> None:
    """`make bench` and `make failover_bench` find the block that they rewrite."""
    page = (ROOT / "docs" / name).read_text()
    assert page.count(BEGIN) == page.count(END) == 1
