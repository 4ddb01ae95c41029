"""A model works wherever it is taken: processes, threads and event loops."""

import logging
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, Final

import loky
import pytest
from langchain_core.load import dumps

from langchain_retryrouter import CircuitBreaker, RetryBudget, RetryPolicy, RetryRouter
from langchain_retryrouter.testing import FaultyGateway
from tests.promises.conftest import Figures
from tests.promises.harness import ALL, call, is_stub_answer, new_model
from tests.support.models import KEY

FAILED: Final = "calls that failed where a model was taken to"
MADE: Final = "calls made there"

pytestmark = pytest.mark.filterwarnings(
    # Python warns of forks in programs with threads; the gateway's is one.
    "ignore:.*multi-threaded, use of fork.*:DeprecationWarning"
)


@pytest.fixture
def gateway() -> Iterator[FaultyGateway]:
    """The server behind all models; it has embeddings."""
    with FaultyGateway(gptrouter="hosted") as gateway:
        yield gateway


def models(gateway: FaultyGateway) -> list[Any]:
    """One of each class, with a policy, a budget and a breaker that travel with it.

    The router's route is a GPTRouter: a ChatOpenAI cannot be pickled.
    """
    parts: dict[str, Any] = {
        "retry_policy": RetryPolicy(max_retries=1, initial_delay=0),
        "budget": RetryBudget(),
    }
    made = [
        new_model(name, gateway, breaker=CircuitBreaker(), **parts)
        for name in ALL
        if name != "RetryRouter"
    ]
    return [*made, RetryRouter(routes=[new_model("GPTRouter", gateway)], **parts)]


def failures_of(models: list[Any]) -> int:
    """How many calls fail: one sync, and two async ones in event loops of their own."""
    return sum(
        not is_stub_answer(answer)
        for model in models
        for answer in (call(model), call(model, "ainvoke"), call(model, "ainvoke"))
    )


POOLS: Final[dict[str, Callable[[], Executor]]] = {
    "fork": lambda: ProcessPoolExecutor(1, multiprocessing.get_context("fork")),
    "spawn": lambda: ProcessPoolExecutor(1, multiprocessing.get_context("spawn")),
    "loky": lambda: loky.ProcessPoolExecutor(1),  # joblib's and Dask's kind.
}


@pytest.mark.parametrize("pool", [*POOLS, "inherited by a fork"])
def test_other_processes_answer(
    pool: str, gateway: FaultyGateway, figures: Figures
) -> None:
    """A process gets each class, used and not; the parent goes on as before."""
    used, new = models(gateway), models(gateway)
    failed = failures_of(used)
    if pool in POOLS:
        with POOLS[pool]() as workers:
            failed += workers.submit(failures_of, [*used, *new]).result(110)
    else:
        context = multiprocessing.get_context("fork")
        told = context.SimpleQueue()
        child = context.Process(target=lambda: told.put(failures_of([*used, *new])))
        child.start()
        failed += told.get()
        child.join(10)
    failed += failures_of([*used, *new])
    figures.exactly(0, failed, FAILED)
    figures.counted(3 * 5 * len(used), MADE)


@pytest.mark.parametrize("name", ALL)
def test_threads_and_loops_answer(
    name: str, gateway: FaultyGateway, figures: Figures
) -> None:
    """20 loops in a row, 20 at once, and 50 threads at once share one model."""
    model = new_model(name, gateway)
    together = threading.Barrier(20)

    def in_a_loop(_: int) -> Any:
        together.wait()
        return call(model, "ainvoke")

    answers = [call(model, "ainvoke") for _ in range(20)]
    with ThreadPoolExecutor(20) as pool:
        answers += pool.map(in_a_loop, range(20))
    with ThreadPoolExecutor(50) as pool:
        answers += pool.map(call, [model] * 50)
    figures.exactly(0, sum(not is_stub_answer(one) for one in answers), FAILED)
    figures.counted(len(answers), MADE)


def test_nothing_shows_the_key(
    gateway: FaultyGateway, figures: Figures, caplog: pytest.LogCaptureFixture
) -> None:
    """No model and no log down to DEBUG shows the key; a pickle may carry it."""
    shown = 0
    with caplog.at_level(logging.DEBUG):
        for model in models(gateway):
            said = [repr(model), str(model), repr(vars(model)), dumps(model)]
            shown += sum(KEY in one for one in said)
            assert failures_of([model]) == 0
    shown += KEY in caplog.text
    figures.exactly(0, shown, "models and logs that show the key")
