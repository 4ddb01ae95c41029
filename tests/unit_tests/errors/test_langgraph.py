"""What LangGraph's `RetryPolicy` makes of our errors."""

from __future__ import annotations

from typing import Any, TypedDict

import pytest
from langchain_core.exceptions import ModelAuthenticationError, ModelTimeoutError
from langgraph.graph import END, START, StateGraph
from langgraph.types import RetryPolicy as GraphRetryPolicy
from pydantic import SecretStr

from langchain_retryrouter import OpenAI, errors, should_retry
from langchain_retryrouter.testing import FaultyGateway, Status


class State(TypedDict):
    """The state of a graph with one node."""

    text: str


def requests_of(model: OpenAI, gateway: FaultyGateway, policy: GraphRetryPolicy) -> int:
    """How many requests a graph sends whose only node asks a model that fails."""

    def ask(state: State) -> dict[str, Any]:
        return {"text": model.invoke(state["text"])}

    graph = StateGraph(State)
    graph.add_node("ask", ask, retry_policy=policy)
    graph.add_edge(START, "ask")
    graph.add_edge("ask", END)
    with pytest.raises(errors.RetryRouterError):
        graph.compile().invoke({"text": "hi"})
    return len(gateway.requests)


@pytest.mark.parametrize(
    ("status", "options", "sent"),
    [
        (503, {}, 1),
        (401, {}, 1),
        (503, {"retry_on": should_retry}, 3),
        (401, {"retry_on": should_retry}, 1),
    ],
)
def test_langgraph_repeats_only_if_it_is_told_to(
    status: int, options: dict[str, Any], sent: int
) -> None:
    """LangGraph's default repeats none of our errors, `should_retry` transient ones."""
    policy = GraphRetryPolicy(
        max_attempts=3, initial_interval=0, jitter=False, **options
    )
    with FaultyGateway() as gateway:
        gateway.script(*[Status(status)] * 3)
        model = OpenAI(
            api_key=SecretStr("any"), base_url=gateway.openai_url, max_retries=0
        )
        assert requests_of(model, gateway, policy) == sent


def given_up() -> errors.RetryRouterError:
    error = errors.ServerError("after 3 attempts")
    error.is_retryable = False
    return error


@pytest.mark.parametrize(
    ("error", "may_pass"),
    [
        (errors.RateLimitError("slow down"), True),
        (errors.RateLimitError("slow down", should_retry=False), False),
        (errors.QuotaExceededError("no money"), False),
        (given_up(), False),
        (ModelTimeoutError("LangChain's"), True),
        (ModelAuthenticationError("LangChain's"), False),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (ValueError("a bug"), False),
        (KeyboardInterrupt(), False),
    ],
    ids=repr,
)
def test_should_retry(error: BaseException, *, may_pass: bool) -> None:
    """Transient errors may pass; final ones, and those we gave up on, do not."""
    assert should_retry(error) is may_pass
