"""LangChain's agents over a router whose first route fails; no tool runs twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.tools import BaseTool
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import SecretStr

from langchain_retryrouter import (
    GPTRouter,
    RetryPolicy,
    RetryRouter,
    RetryRouterError,
    UnavailableError,
)
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
from .test_agents import ANSWER, MODEL, OTHER, QUESTION, streamed


@pytest.fixture
def primary() -> Iterator[FaultyGateway]:
    """The provider of the first route."""
    with FaultyGateway(answer=RuleResponder(), gptrouter="hosted") as gateway:
        yield gateway


@pytest.fixture
def backup() -> Iterator[FaultyGateway]:
    """The provider of the second route."""
    with FaultyGateway(answer=RuleResponder(), gptrouter="hosted") as gateway:
        yield gateway


class NewAgent(Protocol):
    """Makes agents of a router and one tool."""

    def __call__(self, *, middleware: Any = (), **fields: Any) -> Any:
        """An agent, of a router with these fields besides."""


@pytest.fixture
def new_agent(
    primary: FaultyGateway,
    backup: FaultyGateway,
    fake_clock: FakeClock,
    get_weather: BaseTool,
) -> NewAgent:
    """Makes agents whose tool records its runs."""

    def new_agent(*, middleware: Any = (), **fields: Any) -> Any:
        routes = [
            GPTRouter(
                models_priority_list=[model],
                gpt_router_api_base=gateway.url,
                gpt_router_api_key=SecretStr("any"),
                max_retries=0,
            )
            for gateway, model in ((primary, MODEL), (backup, OTHER))
        ]
        settings: dict[str, Any] = {
            "routes": routes,
            "clock": fake_clock,
            "retry_policy": RetryPolicy(max_retries=1),
            "breaker_settings": None,
        }
        return create_agent(
            RetryRouter(**{**settings, **fields}),
            [get_weather],
            middleware=middleware,
            checkpointer=InMemorySaver(),
        )

    return new_agent


THREAD: Any = {"configurable": {"thread_id": "1"}}


def routes_of(message: Any) -> list[str]:
    """The routes in the attempt log of a message."""
    attempt_log = message.response_metadata["retryrouter"]
    return [line["route"] for line in attempt_log["attempts"]]


@pytest.mark.parametrize("fault", BEFORE_THE_FIRST_TOKEN, ids=str)
@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_an_agent_ends_without_the_first_route(
    twin: Twin,
    new_agent: NewAgent,
    primary: FaultyGateway,
    backup: FaultyGateway,
    cities: list[str],
    fault: Step,
    way: str,
) -> None:
    """Each turn fails over, its attempt log says so, and the tool runs once."""
    primary.always(fault)

    if way == "stream":
        chunks = twin.stream(new_agent(), QUESTION, THREAD, stream_mode="messages")
        called, answer = streamed(chunks)
        assert len(chunks) > len(ANSWER.split())
    else:
        _, called, _, answer = twin.invoke(new_agent(), QUESTION, THREAD)["messages"]

    assert [call["args"] for call in called.tool_calls] == [{"city": "Oslo"}]
    assert answer.text == ANSWER
    assert cities == ["Oslo"]
    expected = [MODEL.name, MODEL.name, OTHER.name]
    assert routes_of(called) == routes_of(answer) == expected
    assert answer.response_metadata["model_name"] == OTHER.name
    assert (len(primary.requests), len(backup.requests)) == (4, 2)


def test_an_agent_changes_its_route_between_two_turns(
    twin: Twin, new_agent: NewAgent, primary: FaultyGateway, cities: list[str]
) -> None:
    """The second model answers from the result of a call that the first one made."""
    primary.script(Answer(), Status(503), Status(503))

    _, called, result, answer = twin.invoke(new_agent(), QUESTION, THREAD)["messages"]

    assert routes_of(called) == [MODEL.name]
    assert routes_of(answer) == [MODEL.name, MODEL.name, OTHER.name]
    assert result.tool_call_id == called.tool_calls[0]["id"]
    assert answer.content == ANSWER
    assert cities == ["Oslo"]


@pytest.mark.parametrize("fault", AFTER_THE_FIRST_TOKEN, ids=str)
@pytest.mark.parametrize("turn", [1, 2], ids=["call", "answer"])
def test_a_buffered_agent_streams_whole_messages(
    twin: Twin,
    new_agent: NewAgent,
    primary: FaultyGateway,
    cities: list[str],
    fault: Step,
    turn: int,
) -> None:
    """With "buffer" a turn that breaks after a token is repeated, and shown once."""
    primary.script(*[Answer()] * (turn - 1), fault, Answer(), Answer())
    agent = new_agent(stream_recovery="buffer")

    called, answer = streamed(
        twin.stream(agent, QUESTION, THREAD, stream_mode="messages")
    )

    assert [call["args"] for call in called.tool_calls] == [{"city": "Oslo"}]
    assert answer.text == ANSWER
    assert cities == ["Oslo"]
    assert len(primary.requests) == 3


@pytest.mark.parametrize("recovery", ["error", "continue"])
@pytest.mark.parametrize(
    ("fault", "error"),
    [pytest.param(f, e, id=str(f)) for f, e in AFTER_THE_FIRST_TOKEN.items()],
)
def test_no_tool_runs_on_half_a_call(
    twin: Twin,
    new_agent: NewAgent,
    primary: FaultyGateway,
    backup: FaultyGateway,
    cities: list[str],
    fault: Step,
    error: type[RetryRouterError],
    recovery: str,
) -> None:
    """A tool call that is cut while it is streamed is an error, never continued."""
    primary.always(fault)

    with pytest.raises(error):
        twin.stream(
            new_agent(stream_recovery=recovery),
            QUESTION,
            THREAD,
            stream_mode="messages",
        )

    assert cities == []
    assert (len(primary.requests), len(backup.requests)) == (1, 0)


@pytest.mark.parametrize("on_failure", ["error", "continue"])
def test_retries_are_not_multiplied(
    twin: Twin,
    new_agent: NewAgent,
    primary: FaultyGateway,
    backup: FaultyGateway,
    on_failure: Any,
) -> None:
    """LangChain's own retries do not repeat what no route could answer."""
    primary.always(Status(503))
    backup.always(Status(503))
    retries = ModelRetryMiddleware(
        max_retries=4, initial_delay=0, on_failure=on_failure
    )

    with pytest.raises(UnavailableError):
        twin.invoke(new_agent(middleware=[retries]), QUESTION, THREAD)

    assert (len(primary.requests), len(backup.requests)) == (2, 2)


def test_an_agent_goes_on_where_every_route_failed(
    twin: Twin,
    new_agent: NewAgent,
    primary: FaultyGateway,
    backup: FaultyGateway,
    cities: list[str],
) -> None:
    """With a checkpoint, the routes are asked again, and the tool is not run again."""
    agent = new_agent()
    primary.script(Answer(), Status(503), Status(503))
    backup.script(Status(503), Status(503))

    with pytest.raises(UnavailableError):
        twin.invoke(agent, QUESTION, THREAD)
    messages = twin.invoke(agent, None, THREAD)["messages"]

    assert messages[-1].content == ANSWER
    assert cities == ["Oslo"]


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_an_agents_handlers_see_each_attempt_and_count_each_answer_once(
    twin: Twin, new_agent: NewAgent, primary: FaultyGateway, way: str
) -> None:
    """A handler of the agent sees both turns' retries, and usage once each."""
    seen: list[int] = []

    class Seen(BaseCallbackHandler):
        def on_retry(self, retry_state: Any, **_: Any) -> None:
            seen.append(retry_state.attempt_number)

    primary.always(Status(503))
    usage = UsageMetadataCallbackHandler()
    config = {**THREAD, "callbacks": [Seen(), usage]}
    agent = new_agent()

    mode = {"stream_mode": "messages"} if way == "stream" else {}
    getattr(twin, way)(agent, QUESTION, config, **mode)

    messages = agent.get_state(THREAD).values["messages"]
    assert seen == [1, 2, 1, 2]
    assert {
        name: one["total_tokens"] for name, one in usage.usage_metadata.items()
    } == {OTHER.name: sum(messages[i].usage_metadata["total_tokens"] for i in (1, 3))}
