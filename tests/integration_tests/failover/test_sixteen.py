"""The sixteen faults of the public Failover Bench, with every check, in short."""

from __future__ import annotations

import pytest

from benchmarks.failover.evidence import BACKUP, PRIMARY
from benchmarks.failover.judge import Grade, Verdict, judge
from benchmarks.failover.play import play
from benchmarks.failover.scenarios import SCENARIOS, Scenario, attempts_in_the_outage
from benchmarks.failover.systems import Way, retry_router, with_fallbacks
from langchain_retryrouter.testing import FakeClock
from tests.integration_tests.failover.conftest import SCALE

_PASS = Verdict(Grade.PASS)
_IN_SHORT = [one for name, one in SCENARIOS.items() if name != "S15"]
_BREAKS = ["S08", "S09", "S10", "S14"]
"""Those whose stream ends after its first token."""
_STREAMS: tuple[Way, ...] = ("astream", "stream")
_WHOLE: tuple[Way, ...] = ("ainvoke", "invoke")


@pytest.mark.parametrize("way", _STREAMS)
@pytest.mark.parametrize("scenario", _IN_SHORT, ids=lambda one: one.name)
async def test_a_stream_passes_with_every_check(scenario: Scenario, way: Way) -> None:
    """A held back stream is whole, or ends as it should, and no check is broken."""
    seen = await play(scenario, retry_router(way), scale=SCALE)
    assert judge(scenario, seen) == _PASS, seen


@pytest.mark.parametrize("way", _WHOLE)
@pytest.mark.parametrize(
    "scenario",
    [one for one in _IN_SHORT if not one.needs_stream],
    ids=lambda one: one.name,
)
async def test_a_call_passes_with_every_check(scenario: Scenario, way: Way) -> None:
    """An answer in one piece is whole, or ends as it should, and no check is broken."""
    seen = await play(scenario, retry_router(way), scale=SCALE)
    assert judge(scenario, seen) == _PASS, seen


@pytest.mark.parametrize("way", [*_STREAMS, *_WHOLE])
async def test_an_outage_is_lived_through(way: Way) -> None:
    """Three calls open its breaker, then only probes reach it; soon it is back."""
    scenario = SCENARIOS["S15"]
    seen = await play(scenario, retry_router(way), scale=1.0, clock=FakeClock())
    assert judge(scenario, seen) == _PASS, seen
    assert attempts_in_the_outage(seen) <= 9
    served = [call.reply.model for call in seen.calls if call.reply]
    assert served == [BACKUP] * 18 + [PRIMARY] * 2


@pytest.mark.parametrize("way", _STREAMS)
@pytest.mark.parametrize("scenario", _IN_SHORT, ids=lambda one: one.name)
async def test_a_stream_that_is_not_held_back_is_never_half_a_success(
    scenario: Scenario, way: Way
) -> None:
    """Handed over as it comes, a stream that breaks is an error, and the rest pass."""
    system = retry_router(way, stream_recovery="error")
    final_error = judge(scenario, await play(scenario, system, scale=SCALE))
    assert final_error.grade is (Grade.SAFE if scenario.name in _BREAKS else Grade.PASS)


@pytest.mark.parametrize("way", _STREAMS)
@pytest.mark.parametrize("name", _BREAKS)
@pytest.mark.parametrize(
    "supports_prefill", [True, False], ids=["prefilled", "asked-anew"]
)
async def test_a_broken_stream_is_continued(
    name: str, way: Way, *, supports_prefill: bool
) -> None:
    """What is missing comes from the backup, which a refused prefill does not stop."""
    scenario = SCENARIOS[name]
    system = retry_router(
        way, stream_recovery="continue", supports_prefill=supports_prefill
    )
    seen = await play(scenario, system, scale=SCALE)
    assert judge(scenario, seen) == _PASS, seen
    refusals = [one for one in seen.at_backup if one.did == "400"]
    assert len(refusals) == (name == "S14" and supports_prefill)


@pytest.mark.parametrize(
    ("name", "grade"),
    [("S12", Grade.PASS), ("S13", Grade.PARTIAL), ("S14", Grade.SAFE)],
)
async def test_the_bench_tells_systems_apart(name: str, grade: Grade) -> None:
    """LangChain's own fallbacks get what they deserve, so a pass is worth something."""
    seen = await play(SCENARIOS[name], with_fallbacks, scale=SCALE)
    assert judge(SCENARIOS[name], seen).grade is grade
