"""LangChain's agents over a router whose first route fails; no tool runs twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.tools import BaseTool
from langgraph.checkpoint.memory import InMemorySaver

from langchain_retryrouter import RetryPolicy, RetryRouter
from langchain_retryrouter.testing import (
    Answer,
    FakeClock,
    FaultyGateway,
    Status,
    Step,
)
from tests.support.rule_responder import RuleResponder
from tests.unit_tests.conftest import Twin

from .faults import AFTER_THE_FIRST_TOKEN, BEFORE_THE_FIRST_TOKEN
from .test_agents import (
    ANSWER,
    MODEL,
    OTHER,
    QUESTION,
    Lab,
    assert_answered,
    streamed,
)

THREAD: Any = {"configurable": {"thread_id": "1"}}


@dataclass(frozen=True)
class RouterLab(Lab):
    """Agents over a router of two models, each at a gateway of its own."""

    backup: FaultyGateway
    """The provider of the second route; `gateway` is the one of the first."""

    def agent(self, *, middleware: Any = (), **fields: Any) -> Any:
        """An agent, of a router with these fields besides."""
        url = self.backup.url
        routes = [
            self.llm(max_retries=0, clock=None),
            self.llm(
                max_retries=0,
                clock=None,
                models_priority_list=[OTHER],
                gpt_router_api_base=url,
            ),
        ]
        settings: dict[str, Any] = {
            "routes": routes,
            "clock": self.clock,
            "retry_policy": RetryPolicy(max_retries=1),
            "breaker_settings": None,
        }
        return create_agent(
            RetryRouter(**{**settings, **fields}),
            [self.get_weather],
            middleware=middleware,
            checkpointer=InMemorySaver(),
        )

    def assert_requests(self, first: int, second: int, runs: int = 1) -> None:
        """So many requests came to each gateway, and the tool ran so often."""
        assert len(self.backup.requests) == second
        self.assert_asked(first, runs)


@pytest.fixture
def lab(
    twin: Twin, fake_clock: FakeClock, get_weather: BaseTool, cities: list[str]
) -> Iterator[RouterLab]:
    with (
        FaultyGateway(answer=RuleResponder(), gptrouter="hosted") as primary,
        FaultyGateway(answer=RuleResponder(), gptrouter="hosted") as backup,
    ):
        yield RouterLab(twin, primary, fake_clock, get_weather, cities, backup)


def routes_of(message: Any) -> list[str]:
    """The routes in the attempt log of a message."""
    attempt_log = message.response_metadata["retryrouter"]
    return [line["route"] for line in attempt_log["attempts"]]


@pytest.mark.parametrize("fault", BEFORE_THE_FIRST_TOKEN, ids=str)
@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_an_agent_ends_without_the_first_route(
    lab: RouterLab, fault: Step, way: str
) -> None:
    """Each turn fails over, its attempt log says so, and the tool runs once."""
    lab.gateway.always(fault)
    if way == "stream":
        chunks = lab.stream(None, THREAD)
        called, answer = streamed(chunks)
        assert len(chunks) > len(ANSWER.split())
    else:
        _, called, _, answer = lab.ask(None, QUESTION, THREAD)
    assert_answered(called, answer)
    expected = [MODEL.name, MODEL.name, OTHER.name]
    assert routes_of(called) == routes_of(answer) == expected
    assert answer.response_metadata["model_name"] == OTHER.name
    lab.assert_requests(4, 2)


def test_an_agent_changes_its_route_between_two_turns(lab: RouterLab) -> None:
    """The second model answers from the result of a call that the first one made."""
    lab.gateway.script(Answer(), Status(503), Status(503))
    _, called, result, answer = lab.ask(None, QUESTION, THREAD)
    assert routes_of(called) == [MODEL.name]
    assert routes_of(answer) == [MODEL.name, MODEL.name, OTHER.name]
    assert result.tool_call_id == called.tool_calls[0]["id"]
    assert_answered(called, answer)
    assert lab.cities == ["Oslo"]


@pytest.mark.parametrize("fault", AFTER_THE_FIRST_TOKEN, ids=str)
@pytest.mark.parametrize("turn", [1, 2], ids=["call", "answer"])
def test_a_buffered_agent_streams_whole_messages(
    lab: RouterLab, fault: Step, turn: int
) -> None:
    """With "buffer" a turn that breaks after a token is repeated, and shown once."""
    lab.gateway.script(*[Answer()] * (turn - 1), fault, Answer(), Answer())
    agent = lab.agent(stream_recovery="buffer")
    assert_answered(*streamed(lab.stream(agent, THREAD)))
    lab.assert_asked(3)


@pytest.mark.parametrize("recovery", ["error", "continue"])
@pytest.mark.parametrize("fault", AFTER_THE_FIRST_TOKEN, ids=str)
def test_no_tool_runs_on_half_a_call(
    lab: RouterLab, fault: Step, recovery: str
) -> None:
    """A tool call that is cut while it is streamed is an error, never continued."""
    lab.gateway.always(fault)
    with pytest.raises(AFTER_THE_FIRST_TOKEN[fault]):
        lab.stream(lab.agent(stream_recovery=recovery), THREAD)
    lab.assert_requests(1, 0, runs=0)


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_an_agents_handlers_see_each_attempt_and_count_each_answer_once(
    lab: RouterLab, way: str
) -> None:
    """A handler of the agent sees both turns' retries, and usage once each."""
    seen: list[int] = []

    class Seen(BaseCallbackHandler):
        def on_retry(self, retry_state: Any, **_: Any) -> None:
            seen.append(retry_state.attempt_number)

    lab.gateway.always(Status(503))
    usage = UsageMetadataCallbackHandler()
    config = {**THREAD, "callbacks": [Seen(), usage]}
    agent = lab.agent()
    mode = {"stream_mode": "messages"} if way == "stream" else {}
    getattr(lab.twin, way)(agent, QUESTION, config, **mode)
    messages = agent.get_state(THREAD).values["messages"]
    assert seen == [1, 2, 1, 2]
    counted = sum(messages[i].usage_metadata["total_tokens"] for i in (1, 3))
    (name,) = usage.usage_metadata
    assert (name, usage.usage_metadata[name]["total_tokens"]) == (OTHER.name, counted)
