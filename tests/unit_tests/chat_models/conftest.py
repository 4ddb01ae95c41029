"""Models of a gateway that fails as scripted, on a clock that does not wait."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import pytest
from blockbuster import BlockBuster

from langchain_retryrouter import GPTRouter, GPTRouterModel
from langchain_retryrouter.testing import FakeClock, FaultyGateway
from tests.unit_tests.conftest import Twin

from .frames import sum_of

KEY = "sk-the-key-of-the-tests"
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
        if way == "stream":
            return sum_of(self.stream(self.llm(**fields), "hi"))
        streaming = {"streaming": True} if way == "streaming invoke" else {}
        return self.invoke(self.llm(**streaming, **fields), "hi")


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
