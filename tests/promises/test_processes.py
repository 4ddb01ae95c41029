"""A model works wherever it is taken: processes, copies, threads and event loops."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import loky
import openai
import pytest
from langchain_community.chat_models.gpt_router import GPTRouter as CommunityGPTRouter
from langchain_community.chat_models.gpt_router import (
    GPTRouterModel as CommunityModel,
)
from langchain_core.load import dumps
from pydantic import SecretStr

from langchain_retryrouter.testing import FaultyGateway
from tests.promises import workers
from tests.promises.askers import PLENTY, chat_openai
from tests.promises.evidence import Evidence, Length, Promise
from tests.promises.faults import KEY
from tests.unit_tests.test_langsmith import collector, flush, tracer

__all__ = ["collector", "tracer"]

PROMISE = Promise(
    title="Fork, spawn, pickle, threads, loops",
    number="0 failures; exactly 1 connection for 100 calls; the key is shown nowhere",
    why=(
        "Each public class, used in the parent or not, is copied in five ways, and"
        " handed to forked, spawned and loky's worker processes, to threads, and to"
        " event loops one after another and at once. The server counts connections."
    ),
)
FAILED = "calls that failed where a model was taken to"
CALLS = "calls made there"
CONNECTIONS = "connections for 100 calls one after another"
SHOWN = "models, logs and traces that show the key"

pytestmark = pytest.mark.filterwarnings(
    # Python warns of forks in programs with threads; the gateway's is one.
    "ignore:.*multi-threaded, use of fork.*:DeprecationWarning"
)


@pytest.fixture(scope="module", autouse=True)
def whole_http_library() -> None:
    """It reads a part of itself from disk when first used: not in a coroutine."""
    openai.DefaultHttpxClient().close()


@pytest.fixture
def gateway() -> Iterator[FaultyGateway]:
    """The server behind all models; it has embeddings."""
    with FaultyGateway(gptrouter="hosted") as gateway:
        yield gateway


def taken_down(evidence: Evidence, failed: int, calls: int) -> None:
    """Write down how many calls there were, and that none failed."""
    evidence.counted(calls, CALLS)
    evidence.exactly(0, failed, FAILED)


@pytest.mark.parametrize("is_used", [False, True], ids=["new", "used"])
def test_copies_answer(
    gateway: FaultyGateway, evidence: Evidence, *, is_used: bool
) -> None:
    """A copy of each class, by each way of copying, answers; before a call or after."""
    failed = calls = 0
    for model in workers.models(gateway).values():
        if is_used:
            assert workers.failures(model) == 0
        for copied in workers.COPIED.values():
            failed += workers.failures(copied(model))
            calls += workers.CALLS
    taken_down(evidence, failed, calls)


def fork() -> Executor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))


def spawn() -> Executor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def cloudpickled() -> Executor:
    executor: Executor = loky.ProcessPoolExecutor(1)
    return executor


@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers_of", [fork, spawn, cloudpickled])
def test_worker_processes_answer(
    workers_of: Any, gateway: FaultyGateway, evidence: Evidence
) -> None:
    """A worker is handed each class, used and not; the parent goes on as before."""
    used = list(workers.models(gateway).values())
    new = list(workers.models(gateway).values())
    failed = workers.failures_of(used)
    with workers_of() as pool:
        failed += pool.submit(workers.failures_of, [*used, *new]).result(110)
    failed += workers.failures_of([*used, *new])
    taken_down(evidence, failed, workers.CALLS * 5 * len(used))


def test_a_model_that_a_fork_inherits_answers(
    gateway: FaultyGateway, evidence: Evidence
) -> None:
    """A child that copies no model but has its parent's memory answers with them."""
    models = list(workers.models(gateway).values())
    failed = workers.failures_of(models)
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()
    child = context.Process(target=lambda: told.put(workers.failures_of(models)))
    child.start()
    failed += told.get()
    child.join(10)
    failed += workers.failures_of(models)
    taken_down(evidence, failed, workers.CALLS * 3 * len(models))


def classes(length: Length) -> list[str]:
    """All public classes; in the short form one of each kind of connection."""
    return list(workers.NAMES if length.is_long else workers.NAMES[:2])


def test_threads_and_loops_answer(
    gateway: FaultyGateway, evidence: Evidence, length: Length
) -> None:
    """20 loops in a row, 20 at once, and 50 threads at once share one model."""
    failed = calls = 0
    for name in classes(length):
        model = workers.models(gateway)[name]
        together = threading.Barrier(20)

        def in_a_loop(_: int, model: Any = model, gate: Any = together) -> bool:
            gate.wait()
            return asyncio.run(workers.aasked(model))

        in_a_row = [asyncio.run(workers.aasked(model)) for _ in range(20)]
        with ThreadPoolExecutor(20) as pool:
            at_once = list(pool.map(in_a_loop, range(20)))
        with ThreadPoolExecutor(50) as pool:
            shared = list(pool.map(workers.asked, [model] * 50))
        answers = [*in_a_row, *at_once, *shared]
        failed += answers.count(False)
        calls += len(answers)
    taken_down(evidence, failed, calls)


def connections_of(model: Any, gateway: FaultyGateway, *, is_async: bool) -> int:
    """How many connections 100 calls one after another open."""
    before = gateway.connections

    async def ask() -> None:
        for _ in range(100):
            assert await workers.aasked(model)

    if is_async:
        asyncio.run(ask())
    else:
        assert all(workers.asked(model) for _ in range(100))
    return gateway.connections - before


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_hundred_calls_have_one_connection(
    evidence: Evidence, length: Length, *, is_async: bool
) -> None:
    """Whatever the class, 100 calls one after another open one connection."""
    for name in classes(length):
        with FaultyGateway(gptrouter="hosted") as own:
            model = workers.models(own)[name]
            opened = connections_of(model, own, is_async=is_async)
            evidence.exactly(1, opened, CONNECTIONS)


@pytest.mark.timeout(120)
def test_connections_of_the_peers(evidence: Evidence, length: Length) -> None:
    """The peers' connections for the same calls, sync, in the long form."""
    if not length.is_long:
        return
    with FaultyGateway() as gateway:
        chat = chat_openai(gateway.url, 0, PLENTY)
        community = CommunityGPTRouter(
            models_priority_list=[CommunityModel(name="gpt-4", provider_name="openai")],
            gpt_router_api_base=gateway.url,
            gpt_router_api_key=SecretStr(KEY),
        )
        for name, model in (("ChatOpenAI", chat), ("community GPTRouter", community)):
            opened = connections_of(model, gateway, is_async=False)
            evidence.peer(name, opened, CONNECTIONS)
        assert isinstance(chat.http_client, openai.DefaultHttpxClient)
        chat.http_client.close()


def test_nothing_shows_the_key(
    gateway: FaultyGateway,
    evidence: Evidence,
    caplog: pytest.LogCaptureFixture,
    collector: Any,
    tracer: Any,
) -> None:
    """No model, log down to DEBUG, or LangSmith trace has it; a pickle may carry it."""
    shown = 0
    with caplog.at_level(logging.DEBUG):
        for name, model in workers.models(gateway).items():
            said = [repr(model), str(model), repr(vars(model)), dumps(model)]
            shown += sum(KEY in one for one in said)
            assert workers.failures(model) == 0
            if name != "GPTRouterEmbeddings":  # LangChain does not trace them.
                model.invoke("hi", {"callbacks": [tracer]})
                asyncio.run(model.ainvoke("hi", {"callbacks": [tracer]}))
    flush(tracer)
    assert len(collector.runs_of("llm")) >= 10
    shown += (KEY in caplog.text) + (KEY.encode() in b"".join(collector.posted))
    evidence.exactly(0, shown, SHOWN)
