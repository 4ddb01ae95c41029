"""Models of a gateway that fails as scripted, on a clock that does not wait."""

import asyncio
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import openai
import pytest
from blockbuster import BlockBuster
from langchain_openai import ChatOpenAI

from langchain_retryrouter import GPTRouter, GPTRouterModel, RetryRouter
from langchain_retryrouter.testing import Answer, FakeClock, FaultyGateway
from tests.support.models import chat_openai
from tests.unit_tests.conftest import Twin
from tests.unit_tests.one_loop import OneLoop

from .frames import sum_of

KEY = "sk-the-key-of-the-tests"
TEXT = "one two three four five"
SHORT = 0.2
"""Seconds of a limit that a test waits for, and that nothing keeps."""
ENOUGH = 1.0
"""Seconds of a limit that a healthy answer keeps on a busy machine, too."""
WAYS = ["invoke", "stream", "streaming invoke"]
"""How `Env.ask` can call a model."""
OTHER = GPTRouterModel(name="gpt-4o", provider_name="chat_openai")
GPT_4 = GPTRouterModel(name="gpt-4-0613", provider_name="chat_openai")


class NewModel(Protocol):
    """Makes a `GPTRouter` of the test's gateway, with these fields."""

    def __call__(self, **fields: Any) -> GPTRouter: ...


@dataclass(frozen=True)
class Env(Twin):
    """The gateway and the clock of a test, and sync or async calls of its models."""

    gateway: FaultyGateway
    clock: FakeClock
    llm: NewModel

    def ask(self, way: str, **fields: Any) -> Any:
        """The message of a new model: by `invoke`, `stream` or a streaming `invoke`."""
        if way == "streaming invoke":
            way, fields = "invoke", {"streaming": True, **fields}
        return self.message(way, self.llm(**fields))

    def message(self, way: str, llm: Any, prompt: Any = "hi", **options: Any) -> Any:
        """The message of a model: by `invoke`, or the sum of its `stream`."""
        if way == "stream":
            return sum_of(self.stream(llm, prompt, **options))
        return self.invoke(llm, prompt, **options)


@pytest.fixture
def env(twin: Twin, gateway: FaultyGateway, clock: FakeClock, new_llm: NewModel) -> Env:
    """Run the test twice: with sync calls, and with async calls."""
    return Env(twin.is_async, gateway, clock, new_llm)


@pytest.fixture
def new_llm(gateway: FaultyGateway, clock: FakeClock) -> NewModel:
    """Makes models of the test's gateway, on the test's clock."""
    settings: dict[str, Any] = {
        "models_priority_list": [GPT_4],
        "gpt_router_api_base": gateway.url,
        "gpt_router_api_key": KEY,
        "clock": clock,
    }
    return lambda **fields: GPTRouter(**{**settings, **fields})


@pytest.fixture
def old_ways(no_blocking_calls: BlockBuster) -> Iterator[None]:
    """Allow what the SDK's own client does: warnings, and a blocked event loop."""
    no_blocking_calls.deactivate()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
        warnings.filterwarnings("ignore", "The 'warn' method", DeprecationWarning)
        yield
    no_blocking_calls.activate()


# --- routers ---


@dataclass
class Pair:
    """Two providers, the first of which is asked first, and routers over them."""

    twin: OneLoop
    way: str
    """How `ask` calls a router: `invoke` or `stream`."""
    primary: FaultyGateway
    backup: FaultyGateway
    clock: FakeClock

    def model(self, gateway: FaultyGateway, name: str, **fields: Any) -> ChatOpenAI:
        """A model of a provider; it repeats nothing by itself.

        Its clients are its own and closed after the test. A call that was cancelled may
        leave a connection open, whatever its headers say.
        """
        clients = {
            "http_client": openai.DefaultHttpxClient(),
            "http_async_client": openai.DefaultAsyncHttpxClient(),
        }
        settings = {"max_retries": 0, "stream_usage": True, **clients, **fields}
        model = chat_openai(gateway, name, **settings)
        self.twin.closes(model)
        return model

    def router(self, **fields: Any) -> RetryRouter:
        if "routes" not in fields:
            fields["routes"] = [
                self.model(self.primary, "first"),
                self.model(self.backup, "second"),
            ]
        return RetryRouter(**{"clock": self.clock, **fields})

    def ask(self, router: Any, *args: Any) -> Any:
        """The router's answer; of a stream, the sum of its chunks."""
        answer = getattr(self.twin, self.way)(router, *args)
        return sum_of(answer) if self.way == "stream" else answer

    def asked(self) -> tuple[int, int]:
        return len(self.primary.requests), len(self.backup.requests)


both_ways = pytest.mark.parametrize("way", ["invoke", "stream"])
"""Runs a test of a `pair` by `invoke` and by `stream`."""


@pytest.fixture
def way() -> str:
    """How `Pair.ask` calls a router, where a test does not say it."""
    return "invoke"


@pytest.fixture(params=["sync", "async"])
def pair(
    request: pytest.FixtureRequest, way: str, fake_clock: FakeClock
) -> Iterator[Pair]:
    """Run the test twice: with sync calls, and with async calls."""
    text = Answer(TEXT)
    with (
        FaultyGateway(answer=text) as primary,
        FaultyGateway(answer=text) as backup,
        asyncio.Runner() as runner,
    ):
        one_loop = OneLoop(request.param == "async", runner)
        yield Pair(one_loop, way, primary, backup, fake_clock)
        one_loop.close()
