"""The same script is the same story, in every run, process and twin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest

from tests.promises import fault_scripts
from tests.promises.evidence import Evidence, Length, Promise

PROMISE = Promise(
    title="Determinism",
    number="0 differences in 1,000 fault scripts",
    why=(
        "A failure that was seen once can be seen again: with a clock and dice that are"
        " handed in, all attempts, waits, decisions, callbacks and errors of a call"
        " follow from its script. Real models over real HTTP play each script twice in"
        " one process, once in another with another hash seed, and as async twins; the"
        " logs are compared byte by byte."
    ),
)
_ROOT = Path(__file__).parents[2]

Logs = list[list[str]]


def _differing(logs: Logs, others: Logs) -> list[str]:
    """The first line in which each pair of logs differs."""
    assert len(logs) == len(others)
    return [
        f"{log[0]}: {next(two for two in zip_longest(log, other) if two[0] != two[1])}"
        for log, other in zip(logs, others, strict=True)
        if log != other
    ]


def _of_another_process(count: int, twin: str) -> Logs:
    told = subprocess.run(
        [sys.executable, "-m", "tests.promises.fault_scripts", "0", str(count), twin],
        cwd=_ROOT,
        env={**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        check=True,
        text=True,
    )
    logs: Logs = json.loads(told.stdout)
    return logs


@pytest.mark.timeout(900)
def test_a_fault_script_has_one_log(evidence: Evidence, length: Length) -> None:
    """What becomes of a script follows from the script, and from nothing else."""
    count = length.of(short=100, long=1_000)
    first = fault_scripts.logs(0, count)
    differing = _differing(first, fault_scripts.logs(0, count))
    assert not differing, differing[:3]
    evidence.exactly(0, len(differing), "scripts whose log differs when run again")

    differing = _differing(first, fault_scripts.async_logs(0, count))
    assert not differing, differing[:3]
    evidence.exactly(0, len(differing), "scripts whose log differs in the async twin")

    if length.is_long:
        differing = [
            difference
            for twin in ("sync", "async")
            for difference in _differing(first, _of_another_process(count, twin))
        ]
        assert not differing, differing[:3]
        evidence.exactly(0, len(differing), "... in another process, hashed otherwise")
    lines = [line.partition(" ")[0] for log in first for line in log]
    assert min(map(lines.count, ("retry", "error", "ends", "token"))) >= count // 4
    evidence.counted(count, "scripts")
    evidence.counted(len(lines), "lines of their logs")


def test_another_script_has_another_log() -> None:
    """The logs say what happened: hardly two of different scripts are the same."""
    logs = [tuple(log[1:]) for log in fault_scripts.logs(0, 30)]
    assert len(set(logs)) >= 28
