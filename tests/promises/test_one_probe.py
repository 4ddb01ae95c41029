"""One probe at a time finds out whether a sick provider is well again."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from langchain_retryrouter._core.breaker import CircuitBreaker, Permit
from tests.promises.evidence import Evidence, Length, Promise

PROMISE = Promise(
    title="One probe",
    number="exactly 1 of 500 threads",
    why=(
        "A provider that begins to recover is asked by one call, not by all that have"
        " waited: 500 threads arrive at a half-open breaker at the same moment."
    ),
)
THREADS = 500


def probes_among_threads() -> int:
    """How many of the threads a half-open breaker lets through."""
    breaker = CircuitBreaker(failure_threshold=1, recovery_time=30)
    permit = breaker.admit(0)
    assert isinstance(permit, Permit)
    breaker.failed(permit, 0)
    together = threading.Barrier(THREADS)

    def arrive() -> bool:
        together.wait()
        return isinstance(breaker.admit(30), Permit)

    with ThreadPoolExecutor(THREADS) as pool:
        arrivals = [pool.submit(arrive) for _ in range(THREADS)]
        return sum(arrival.result() for arrival in arrivals)


def test_one_of_500_threads_is_the_probe(evidence: Evidence, length: Length) -> None:
    """However many arrive at a half-open breaker at once, one is let through."""
    rounds = length.of(short=3, long=100)
    for _ in range(rounds):
        evidence.exactly(1, probes_among_threads(), "probes among 500 threads")
    evidence.counted(rounds, "times tried")
