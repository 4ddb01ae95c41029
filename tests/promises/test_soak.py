"""A million calls, two in a hundred of which meet a fault: nothing hangs or grows."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import gc
import os
import subprocess
import sys
from pathlib import Path
from random import Random  # noqa: TID251 - the provider's dice, by their seed
from typing import Any

import pytest
from pydantic import SecretStr

from benchmarks import soak
from langchain_retryrouter import (
    CircuitBreaker,
    GPTRouter,
    GPTRouterModel,
    OpenAI,
    RetryBudget,
    RetryPolicy,
    RetryRouter,
)
from langchain_retryrouter.errors import RetryRouterError
from langchain_retryrouter.testing import (
    Answer,
    Cut,
    FakeClock,
    FaultyGateway,
    Hangup,
    HtmlPage,
    Reset,
    Status,
    Step,
    Truncate,
)
from tests.promises.evidence import Evidence, Length, Promise
from tests.promises.scripted_provider import FAULTS, Provider

PROMISE = Promise(
    title="Soak",
    number="0 hangs, memory ± 2 % over 10⁶ calls with 2 % faults",
    why=(
        "What leaks a little in a call is down in a week. Whole calls and streams, sync"
        " and eight at once in an event loop, are driven on a virtual clock against a"
        " provider in memory: at each, attempts, budget, breaker, waits and what is in"
        " flight are checked. Fewer go through the real models over HTTP; `make soak`"
        " does that for half an hour of real time."
    ),
)
_ROOT = Path(__file__).parents[2]
_TASKS = 8


def _objects() -> int:
    """Blocks of memory that Python holds, without what only waits to be collected."""
    gc.collect()
    return sys.getallocatedblocks()


class _Memory:
    """What is held once all is warm, and how much that has changed in the end."""

    def __init__(self) -> None:
        self._objects, self._rss = _objects(), soak.resident_mebibytes()

    def take_down(self, evidence: Evidence, where: str) -> None:
        objects, rss = (
            _objects() / self._objects - 1,
            soak.resident_mebibytes() / self._rss - 1,
        )
        evidence.at_most(2, abs(100 * objects), f"% that objects drift {where}")
        evidence.at_most(2, abs(100 * rss), f"% that RSS drifts {where}")


@pytest.mark.timeout(1800)
def test_a_million_calls_on_a_virtual_clock(evidence: Evidence, length: Length) -> None:
    """Call by call the numbers hold, and at the end nothing is left behind."""
    calls = length.of(short=3_000, long=1_000_000) // 2
    outcomes: collections.Counter[str | None] = collections.Counter()
    for provider, run in ((Provider(seed=1), _call_on), (Provider(seed=2), _acall_on)):
        run(provider, calls // 10, outcomes)
        memory = _Memory()
        run(provider, calls - calls // 10, outcomes)
        provider.check_end()
        memory.take_down(evidence, "on a virtual clock")
        if run is _call_on:
            evidence.at_most(1e-6, provider.latest, "seconds past a deadline, at most")
    done = sum(outcomes.values())
    assert outcomes[None] > 0.8 * done, outcomes
    assert len(outcomes) >= length.of(short=6, long=10), outcomes
    assert outcomes["circuit_open"], "the breaker has never been open"
    evidence.counted(done, "calls on a virtual clock")


def _call_on(
    provider: Provider, calls: int, outcomes: collections.Counter[str | None]
) -> None:
    outcomes.update(provider.call() for _ in range(calls))


def _acall_on(
    provider: Provider, calls: int, outcomes: collections.Counter[str | None]
) -> None:
    left = iter(range(calls))

    async def call_on() -> None:
        for _ in left:
            outcomes[await provider.acall()] += 1

    async def together() -> None:
        await asyncio.gather(*(call_on() for _ in range(_TASKS)))

    asyncio.run(together())


_STEPS: tuple[Step, ...] = (
    Status(429, {"retry-after": "3"}),
    Status(500),
    Status(503),
    HtmlPage(),
    Reset(),
    Hangup(),
    Cut(after=1),
    Truncate(after=1),
    Status(400),
)


def _models(url: str, clock: FakeClock) -> list[Any]:
    settings: dict[str, Any] = {
        "clock": clock,
        "retry_policy": RetryPolicy(),
        "budget": RetryBudget(),
    }

    def gateway_model(**fields: Any) -> GPTRouter:
        return GPTRouter(
            models_priority_list=[
                GPTRouterModel(name="gpt-4-0613", provider_name="chat_openai")
            ],
            gpt_router_api_base=url,
            gpt_router_api_key=SecretStr("any"),
            **fields,
        )

    return [
        gateway_model(breaker=CircuitBreaker(), **settings),
        OpenAI(
            base_url=f"{url}/v1",
            api_key="any",
            breaker=CircuitBreaker(),
            **settings,
        ),
        RetryRouter(routes=[gateway_model(), gateway_model()], **settings),
    ]


@pytest.mark.timeout(1800)
def test_real_models_over_http(evidence: Evidence, length: Length) -> None:
    """The real models hold what the drive holds, and keep neither calls nor sockets."""
    calls = length.of(short=400, long=30_000)
    rng = Random(3)  # noqa: S311 - nothing secret is drawn

    def step(_request: object) -> Step:
        return rng.choice(_STEPS) if rng.random() < FAULTS else Answer()

    with FaultyGateway(keep_requests=0) as gateway:
        gateway.always(step)
        models = _models(gateway.url, FakeClock(random=iter(rng.random, None)))

        def call_on(numbers: range) -> int:
            return sum(
                _answers(models[number % 3], streams=rng.random() < 0.5)
                for number in numbers
            )

        answered = call_on(range(calls // 10))
        memory = _Memory()
        answered += call_on(range(calls // 10, calls))
        memory.take_down(evidence, "over HTTP")
        evidence.at_most(8, gateway.open_connections, "connections open in the end")
    assert calls * 0.95 < answered <= calls
    evidence.counted(calls, "calls over HTTP")


def _answers(model: Any, *, streams: bool) -> bool:
    """Whether a call is answered, and not ended by an error of ours."""
    try:
        return bool(list(model.stream("Hi")) if streams else model.invoke("Hi"))
    except RetryRouterError as error:
        attempts = error.attempts
    assert attempts <= (6 if isinstance(model, RetryRouter) else 3)
    return False


def test_the_soak_of_real_time_sees_growth() -> None:
    """What `make soak` judges by is not blind: each thing that grows is named."""
    warm = soak.Sample(rss=100.0, files=40, threads=12, tasks=10)
    assert soak.growth([warm] * 30) == []
    for grown, named in (
        ({"rss": 103.0}, "RSS"),
        ({"files": 90}, "open files"),
        ({"threads": 60}, "threads"),
    ):
        [line] = soak.growth([*[warm] * 29, dataclasses.replace(warm, **grown)])
        assert line.startswith(named)


@pytest.mark.timeout(120)
def test_the_soak_of_real_time_runs(length: Length) -> None:
    """`make soak` is there when it is needed: tried out in long, called in short."""
    told = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.soak"),
            *("--minutes 0.5 --every 5" if length.is_long else "--help").split(),
        ],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        check=False,
        text=True,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert ("calls, 0 wrong" if length.is_long else "--minutes") in told.stdout
