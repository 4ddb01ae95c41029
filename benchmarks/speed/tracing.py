"""What OpenTelemetry adds to a call: `python -m benchmarks.speed.tracing`.

Of the engine alone, with a model that answers at once. An attempt is counted by the
difference that failed attempts before the answer make.
"""

from __future__ import annotations

import statistics
import time

from opentelemetry.metrics import MeterProvider, NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider as SDKMeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

from langchain_retryrouter import RetryPolicy, UnavailableError
from langchain_retryrouter._retry.call_log import Subject
from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.engine import Attempt, RetryContext, call
from langchain_retryrouter._retry.health import RouteState
from langchain_retryrouter.failures import FAILURE_ACTIONS
from langchain_retryrouter.otel import instrument
from langchain_retryrouter.testing import FakeClock

CALLS, FAILURES = 20_000, 2
SUBJECT = Subject("chat", "openai", "gpt-4o")
POLICY = RetryPolicy(max_retries=FAILURES)
FACTS = {"model": "gpt-4o", "usage": {"input_tokens": 11, "output_tokens": 7}}


class NoWaits(FakeClock):
    """A clock that does not wait, and keeps no list of the waits."""

    def sleep(self, seconds: float) -> None:
        """Return at once."""


CLOCK = NoWaits()


def one_call(failures: int) -> None:
    """A call whose first attempts fail."""
    state = CallState(
        POLICY,
        [RouteState("openai")],
        actions=FAILURE_ACTIONS,
        time=CLOCK,
        describe=lambda _: SUBJECT,
    )

    def send(attempt: Attempt) -> int:
        if attempt.number <= failures:
            msg = "503"
            raise UnavailableError(msg)
        state.answered(attempt.number, **FACTS)
        return attempt.number

    call(RetryContext(state), send)


def microseconds(failures: int) -> float:
    """The time of a call: what a tenth of many calls stay below.

    Each is timed by itself, so that other processes do not matter.
    """
    taken = []
    for _ in range(CALLS):
        began = time.perf_counter_ns()
        one_call(failures)
        taken.append(time.perf_counter_ns() - began)
    return statistics.quantiles(taken, n=10)[0] / 1e3


def main() -> None:
    """Print what each kind of recording adds."""
    off = ParentBased(ALWAYS_OFF)
    setups: dict[str, tuple[TracerProvider, MeterProvider]] = {
        "not sampled": (TracerProvider(sampler=off), NoOpMeterProvider()),
        "not sampled, metrics": (
            TracerProvider(sampler=off),
            SDKMeterProvider([InMemoryMetricReader()]),
        ),
        "sampled, metrics": (
            TracerProvider(),
            SDKMeterProvider([InMemoryMetricReader()]),
        ),
    }
    base, with_failures = microseconds(0), microseconds(FAILURES)
    print(f"{'without':>22}: a call takes {base:.1f} µs")
    for name, (tracers, meters) in setups.items():
        instrumentation = instrument(tracers, meters)
        call_costs = microseconds(0) - base
        more = microseconds(FAILURES) - with_failures - call_costs
        instrumentation.uninstrument()
        print(
            f"{name:>22}: a call with one attempt {call_costs:+.1f} µs,"
            f" each further attempt {more / FAILURES:+.1f} µs"
        )


if __name__ == "__main__":
    main()
