"""Fixtures of all unit tests: sync and async calls, and what a test may not do."""

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import anthropic
import coverage
import openai
import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from langsmith.env import get_langchain_env_var_metadata, get_runtime_environment

from langchain_retryrouter._retry.clock import SYSTEM_CLOCK
from langchain_retryrouter.testing import FakeClock


@dataclass(frozen=True)
class Twin:
    """Calls models by their sync methods or by their async ones.

    Each async call has an event loop of its own, as with `asyncio.run` in a script.
    """

    is_async: bool

    def result_of(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(coroutine)

    def call(self, target: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        """`target.name(...)`, or `await target.aname(...)`."""
        if self.is_async:
            return self.result_of(getattr(target, f"a{name}")(*args, **kwargs))
        return getattr(target, name)(*args, **kwargs)

    def invoke(self, runnable: Any, *args: Any, **kwargs: Any) -> Any:
        return self.call(runnable, "invoke", *args, **kwargs)

    def batch(self, runnable: Any, *args: Any, **kwargs: Any) -> Any:
        return self.call(runnable, "batch", *args, **kwargs)

    def generate(self, runnable: Any, *args: Any, **kwargs: Any) -> Any:
        return self.call(runnable, "generate", *args, **kwargs)

    def stream(
        self, runnable: Any, *args: Any, into: list[Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """All chunks; `into` has those before an error."""
        chunks: list[Any] = [] if into is None else into
        if self.is_async:
            self.result_of(_acollect(runnable.astream(*args, **kwargs), chunks))
        else:
            chunks.extend(runnable.stream(*args, **kwargs))
        return chunks

    def complete(
        self, module: Any, *args: Any, into: list[Any] | None = None, **kwargs: Any
    ) -> Any:
        """`completion_with_retry` or `acompletion_with_retry`; a stream as a list."""
        chunks: list[Any] = [] if into is None else into
        is_stream = kwargs.get("stream")

        async def acomplete() -> Any:
            answer = await module.acompletion_with_retry(*args, **kwargs)
            if is_stream:
                await _acollect(answer, chunks)
            return answer

        if self.is_async:
            answer = self.result_of(acomplete())
        else:
            answer = module.completion_with_retry(*args, **kwargs)
            chunks.extend(answer if is_stream else ())
        return chunks if is_stream else answer


async def _acollect(chunks: AsyncIterator[Any], seen: list[Any]) -> None:
    async for chunk in chunks:
        seen.append(chunk)  # noqa: PERF401 - what came before an error must be kept


@pytest.fixture(params=["sync", "async"])
def twin(request: pytest.FixtureRequest) -> Twin:
    """Run the test twice: with sync calls, and with async calls."""
    return Twin(is_async=request.param == "async")


@pytest.fixture(scope="session", autouse=True)
def whole_http_libraries() -> None:
    """The first clients of a process import a part of them, in a coroutine or not."""
    openai.DefaultHttpxClient().close()
    anthropic.DefaultHttpxClient().close()


@pytest.fixture(scope="session")
def known_surroundings() -> None:
    """LangSmith's client asks git and docker about them once, where it first needs to.

    That is not to be in a coroutine, where a blocking call is an error.
    """
    get_runtime_environment()
    get_langchain_env_var_metadata()


@pytest.fixture
def clock(fake_clock: FakeClock) -> FakeClock:
    """The clock of the models of a test, which records waits and does not wait."""
    return fake_clock


@pytest.fixture(scope="session", autouse=True)
def no_blocking_calls() -> Iterator[BlockBuster]:
    """Fail each test whose coroutine calls `time.sleep` or reads a socket."""
    with blockbuster_ctx() as blockbuster:
        if coverage.Coverage.current() is not None:
            # `make coverage` takes a lock of its own in any line, in no function.
            blockbuster.functions["threading.Lock.acquire"].deactivate()
        # The first model that is made in a process reads the list of prices.
        for function in blockbuster.functions.values():
            function.can_block_in("langchain_retryrouter/_prices.py", {"listed_prices"})
        yield blockbuster


@pytest.fixture(autouse=True)
def no_finalizers() -> Iterator[None]:
    """Collect the garbage of other tests after a test, and not within.

    Some answers are too deep for a JSON reader. At the limit of recursion a client that
    is collected cannot close its connections, and a later test is blamed for them.
    """
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """Python's own answer to SIGINT, also where it was started with none."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def waits_for_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that ends is read to its end, however busy the machine is."""
    for limit in ("_openai.client._DRAIN_TIMEOUT", "_gptrouter.http._DRAIN_SECONDS"):
        monkeypatch.setattr(f"langchain_retryrouter.{limit}", 30)


@pytest.fixture
def no_real_waits(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Let code that uses the system's clock, such as the demo, wait for nothing."""
    clock = FakeClock()
    monkeypatch.setattr(SYSTEM_CLOCK, "sleep", clock.sleep)
    monkeypatch.setattr(SYSTEM_CLOCK, "asleep", clock.asleep)
    return clock
