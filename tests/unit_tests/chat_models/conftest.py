"""A `GPTRouter` over a gateway that fails on cue, on a clock nobody waits for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import pytest
from blockbuster import BlockBuster

from langchain_retryrouter import GPTRouter, GPTRouterModel
from langchain_retryrouter.testing import FakeClock, FaultyGateway

KEY = "sk-the-key-of-the-tests"
GPT_4 = GPTRouterModel(name="gpt-4-0613", provider_name="chat_openai")


class NewModel(Protocol):
    """Makes a `GPTRouter` of the test's gateway, with these fields besides."""

    def __call__(self, **fields: Any) -> GPTRouter:
        """The model."""


@pytest.fixture
def gateway(faulty_gateway: FaultyGateway) -> FaultyGateway:
    """The gateway behind the models of a test."""
    return faulty_gateway


@pytest.fixture
def clock(fake_clock: FakeClock) -> FakeClock:
    """The clock of the models of a test: waits are written down, and over at once."""
    return fake_clock


@pytest.fixture
def new_llm(gateway: FaultyGateway, clock: FakeClock) -> NewModel:
    """Makes models of the test's gateway, on the test's clock."""

    def new_llm(**fields: Any) -> GPTRouter:
        settings: dict[str, Any] = {
            "models_priority_list": [GPT_4],
            "gpt_router_api_base": gateway.url,
            "gpt_router_api_key": KEY,
            "clock": clock,
        }
        return GPTRouter(**{**settings, **fields})

    return new_llm


@pytest.fixture
def old_ways(no_blocking_calls: BlockBuster) -> Iterator[None]:
    """Leave to the SDK's client what it does: warn per stream, block the event loop."""
    no_blocking_calls.deactivate()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
        warnings.filterwarnings("ignore", "The 'warn' method", DeprecationWarning)
        yield
    no_blocking_calls.activate()
