"""Half an hour of real calls through real faults: nothing hangs, nothing grows.

Threads and an event loop call the models over HTTP, whole and streamed, while a server
in a process of its own fails 2 % of the requests and is slow with another 2 %. Each
minute's line has what could grow: memory, open files, threads, tasks, and the time that
a call takes. It is over with 1 if a call hung, took more attempts than its policy
allows, raised what is no error of ours, or if anything grew.

    python -m benchmarks.soak [--minutes 30] [--threads 4] [--tasks 8] [--seed 1]

Growth is judged once all is warm, after the first tenth of the run and at least one
sample; of fewer than five samples none is judged.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import gc
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from langchain_openai import ChatOpenAI
from pydantic import SecretStr

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
    ErrorEvent,
    FaultyGateway,
    Hangup,
    HtmlPage,
    MalformedEvent,
    Reset,
    Silence,
    SlowFirstToken,
    Stall,
    Status,
    Step,
    Truncate,
)

_FAULTS = 0.02
_TAILS = 0.02
_STREAMS = 0.5  # The share of the calls that stream.
_STEPS: tuple[Step, ...] = (
    Status(429, {"retry-after": "0.1"}),
    Status(500),
    Status(503),
    Status(529),
    HtmlPage(502),
    Reset(),
    Hangup(),
    Cut(after=1),
    Cut(after=0, how="rst"),
    Truncate(after=2),
    MalformedEvent(at=1),
    ErrorEvent("Connection error."),
    Silence(),
)
_POLICY = RetryPolicy(
    max_retries=2,
    initial_delay=0.02,
    max_delay=0.2,
    max_retry_after=1.0,
    deadline=5.0,
    first_token_timeout=2.0,
    stall_timeout=2.0,
)
_ROUTES = 3
_GRACE = 5.0  # Seconds above the deadline before a call counts as one that hangs.
_DRIFT = 0.02
_FEWEST_SAMPLES = 5
_LEEWAY = 16  # Open files more or less: connections that broke are not there.


# The server.


def _serve(port: Any, stop: Any, seed: int) -> None:
    rng = Random(seed)  # noqa: S311 - nothing secret is drawn

    def step(_request: object) -> Step:
        random = rng.random()
        if random < _FAULTS:
            return rng.choice(_STEPS)
        if random < _FAULTS + _TAILS:
            seconds = min(1.5, 0.05 * rng.paretovariate(1.2))
            return rng.choice((SlowFirstToken(seconds), Stall(1, seconds)))
        return Answer()

    with FaultyGateway(keep_requests=0) as gateway:
        gateway.always(step)
        port.send(gateway.url)
        stop.wait()


@contextlib.contextmanager
def _server(seed: int) -> Iterator[str]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    stop = context.Event()
    process = context.Process(target=_serve, args=(theirs, stop, seed))
    process.start()
    try:
        yield ours.recv()
    finally:
        stop.set()
        process.join(30)


# The calls.


def _models(url: str) -> Mapping[str, Any]:
    """The models by name; all share one budget, each has a breaker of its own."""
    budget = RetryBudget()

    def gateway_model(**fields: Any) -> GPTRouter:
        return GPTRouter(
            models_priority_list=[
                GPTRouterModel(name="gpt-4-0613", provider_name="chat_openai")
            ],
            gpt_router_api_base=url,
            gpt_router_api_key=SecretStr("any"),
            **fields,
        )

    def chat_model(name: str) -> ChatOpenAI:
        return ChatOpenAI(model=name, base_url=f"{url}/v1", api_key=SecretStr("any"))

    shared: dict[str, Any] = {"retry_policy": _POLICY, "budget": budget}
    return {
        "GPTRouter": gateway_model(breaker=CircuitBreaker(), **shared),
        "OpenAI": OpenAI(
            base_url=f"{url}/v1",
            api_key="any",
            max_retries=_POLICY.max_retries,
            breaker=CircuitBreaker(),
            **shared,
        ),
        "RetryRouter": RetryRouter(
            routes=[chat_model("gpt-4o"), chat_model("gpt-4.1"), gateway_model()],
            strategy="round_robin",
            seed=1,
            **shared,
        ),
    }


@dataclass
class _Watch:
    """What is going on, and what has gone wrong."""

    under_way: dict[int, tuple[str, float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    broken: list[str] = field(default_factory=list)
    total: int = 0
    told: int = 0
    attempts: int = 0
    is_over: bool = False

    @contextlib.contextmanager
    def call(self, worker: int, name: str, most: int) -> Iterator[Callable[..., None]]:
        """One call, whose attempts are told, of which there may be `most`."""
        began = time.monotonic()
        self.under_way[worker] = name, began
        told: list[int] = []
        try:
            yield told.append
            self.outcomes["ok"] += 1
        except RetryRouterError as error:
            self.outcomes[error.kind] += 1
            told.append(error.attempts)
        except Exception as error:  # noqa: BLE001 - it is what we look for
            self.broken.append(f"{name}: {type(error).__name__}: {error}")
        finally:
            seconds = time.monotonic() - began
            self.seconds.append(seconds)
            self.total += 1
            self.told += len(told)
            self.attempts += sum(told)
            del self.under_way[worker]
        if seconds > (_POLICY.deadline or 0) + _GRACE:
            self.broken.append(f"{name} took {seconds:.1f} s")
        if max(told, default=1) > most:
            self.broken.append(f"{name} took {max(told)} attempts of {most}")

    def look_for_hangs(self) -> None:
        """Note the calls that should be over."""
        now = time.monotonic()
        for name, began in list(self.under_way.values()):
            if now - began > (_POLICY.deadline or 0) + _GRACE:
                self.broken.append(f"{name} hangs since {now - began:.0f} s")


def _most(name: str) -> int:
    return (_POLICY.max_retries + 1) * (_ROUTES if name == "RetryRouter" else 1)


def _check(answer: Any, told: Callable[[int], None]) -> None:
    """Whether an answer is one: never empty, and with its ledger where it has room."""
    text = answer if isinstance(answer, str) else answer.content
    if not (isinstance(text, str) and text):
        msg = f"an answer without a text: {text!r}"
        raise TypeError(msg)
    if not isinstance(answer, str):
        attempt_log = answer.response_metadata["retryrouter"]
        told(sum("attempt" in line for line in attempt_log["attempts"]))


def _joined(chunks: list[Any]) -> Any:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    return whole


def _call_on(
    worker: int, models: Mapping[str, Any], watch: _Watch, rng: Random
) -> None:
    while not watch.is_over:
        name = rng.choice(list(models))
        model = models[name]
        with watch.call(worker, name, _most(name)) as told:
            if rng.random() < _STREAMS:
                _check(model.invoke("Say something."), told)
            else:
                _check(_joined(list(model.stream("Say something."))), told)


async def _acall_on(
    worker: int, models: Mapping[str, Any], watch: _Watch, rng: Random
) -> None:
    while not watch.is_over:
        name = rng.choice(list(models))
        model = models[name]
        with watch.call(worker, name, _most(name)) as told:
            if rng.random() < _STREAMS:
                _check(await model.ainvoke("Say something."), told)
            else:
                chunks = [chunk async for chunk in model.astream("Say something.")]
                _check(_joined(chunks), told)


# What is watched.


def resident_mebibytes() -> float:
    """The memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass(frozen=True)
class Sample:
    """What this process holds at a moment; memory in MiB."""

    rss: float
    files: int
    threads: int
    tasks: int

    @classmethod
    def now(cls) -> Sample:
        """Now, without what only waits to be collected."""
        gc.collect()
        return cls(
            rss=resident_mebibytes(),
            files=len(list(Path("/proc/self/fd").iterdir())),
            threads=threading.active_count(),
            tasks=len(asyncio.all_tasks()),
        )


async def _watch_over(watch: _Watch, count: int, every: float) -> list[Sample]:
    """A line and a sample each `every` seconds; `count` of them."""
    samples: list[Sample] = []
    print("sample   calls    ok %  attempts/call   p50 ms   p99 ms   max s   RSS MiB"
          "  files  threads  tasks")  # fmt: skip
    began, total, told, attempts = time.monotonic(), 0, 0, 0
    while len(samples) < count:
        while (left := began + every * (len(samples) + 1) - time.monotonic()) > 0:
            await asyncio.sleep(min(1.0, left))
            watch.look_for_hangs()
        sample = Sample.now()
        samples.append(sample)
        seconds, watch.seconds = sorted(watch.seconds), []
        outcomes, watch.outcomes = watch.outcomes, collections.Counter()
        calls = watch.total - total
        print(
            f"{len(samples):6d} {calls:7d} {100 * outcomes['ok'] / max(1, calls):7.2f}"
            f" {(watch.attempts - attempts) / max(1, watch.told - told):14.3f}"
            f" {1000 * _quantile(seconds, 0.5):8.1f}"
            f" {1000 * _quantile(seconds, 0.99):8.1f} {_quantile(seconds, 1):7.2f}"
            f" {sample.rss:9.1f} {sample.files:6d} {sample.threads:8d}"
            f" {sample.tasks:6d}",
            flush=True,
        )
        total, told, attempts = watch.total, watch.told, watch.attempts
    watch.is_over = True
    return samples


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def growth(samples: list[Sample]) -> list[str]:
    """What was more, or less, at the end than when all was warm."""
    if len(samples) < _FEWEST_SAMPLES:
        return []
    warm, *later = samples[max(1, len(samples) // 10) :]
    grown: list[str] = []
    for sample in later:
        drift = sample.rss / warm.rss - 1
        if abs(drift) > _DRIFT:
            grown.append(f"RSS {warm.rss:.1f} MiB, then {sample.rss:.1f}: {drift:+.1%}")
        if sample.files > warm.files + _LEEWAY:
            grown.append(f"open files: {warm.files}, then {sample.files}")
        if sample.threads > warm.threads + _LEEWAY:
            grown.append(f"threads: {warm.threads}, then {sample.threads}")
    return grown


async def _run(arguments: argparse.Namespace, url: str) -> list[str]:
    models, watch = _models(url), _Watch()
    rng = [
        Random(f"{arguments.seed} {worker}")  # noqa: S311 - as above
        for worker in range(arguments.threads + arguments.tasks)
    ]
    threads = [
        threading.Thread(target=_call_on, args=(i, models, watch, rng[i]), daemon=True)
        for i in range(arguments.threads)
    ]
    for thread in threads:
        thread.start()
    tasks = [
        asyncio.create_task(_acall_on(i, models, watch, rng[i]))
        for i in range(arguments.threads, len(rng))
    ]
    count = max(1, round(60 * arguments.minutes / arguments.every))
    samples = await _watch_over(watch, count, arguments.every)
    await asyncio.wait(tasks, timeout=(_POLICY.deadline or 0) + _GRACE)
    for thread in threads:
        await asyncio.to_thread(thread.join, _GRACE)
    watch.broken += [f"{name} never ended" for name, _ in watch.under_way.values()]
    wrong = [*watch.broken, *growth(samples)]
    print(f"{watch.total} calls, {len(wrong)} wrong")
    return wrong


def main() -> int:
    """Run it; 1 if anything is not as it should be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=60, help="seconds of a sample")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with _server(arguments.seed) as url:
        wrong = asyncio.run(_run(arguments, url))
    for line, count in collections.Counter(wrong).most_common(20):
        print(f"WRONG {count:5d} x {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
