"""LangChain's agents over what fails: they end, and no tool runs twice."""

from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.tools import BaseTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import StateGraph
from langgraph.types import RetryPolicy as GraphPolicy
from pydantic import BaseModel
from typing_extensions import TypedDict

from langchain_retryrouter import (
    GPTRouter,
    RetryPolicy,
    RetryRouter,
    RetryRouterError,
    UnavailableError,
    should_retry,
)
from langchain_retryrouter.testing import (
    Answer,
    Cut,
    FakeClock,
    FaultyGateway,
    Reset,
    Status,
    Step,
)
from langchain_retryrouter.testing._exchange import Edition
from tests.support.models import gpt_router
from tests.support.rule_responder import RuleResponder
from tests.unit_tests.conftest import Twin

from .faults import AFTER_THE_FIRST_TOKEN, BEFORE_THE_FIRST_TOKEN

MODEL, OTHER = "gpt-4-0613", "gpt-4o"
QUESTION = {"messages": [("user", "What is the weather in 'Oslo'?")]}
ANSWER = "The tools said: It rains in Oslo"


class Forecast(BaseModel):
    """A forecast."""

    place: str
    degrees: int


@dataclass(frozen=True)
class Lab:
    """Agents with one tool, and the gateway that fails them."""

    twin: Twin
    gateway: FaultyGateway
    clock: FakeClock
    get_weather: BaseTool
    cities: list[str]
    """The city of each time that the tool has run."""

    def llm(self, **fields: Any) -> GPTRouter:
        """A model that waits on the test's clock."""
        return gpt_router(self.gateway, MODEL, clock=self.clock, **fields)

    def agent(self, *, max_retries: int = 2, **arguments: Any) -> Any:
        """An agent, with these arguments besides."""
        llm = self.llm(max_retries=max_retries)
        return create_agent(**{"model": llm, "tools": [self.get_weather], **arguments})

    def ask(self, agent: Any = None, question: Any = QUESTION, *config: Any) -> Any:
        """The messages of the conversation."""
        agent = agent or self.agent()
        return self.twin.invoke(agent, question, *config)["messages"]

    def stream(self, agent: Any = None, *config: Any, into: Any = None) -> list[Any]:
        """The chunks that the answer to `QUESTION` comes in."""
        chunks = [] if into is None else into
        agent, mode = agent or self.agent(), "messages"
        return self.twin.stream(agent, QUESTION, *config, stream_mode=mode, into=chunks)

    def turns(self, way: str, *config: Any) -> tuple[Any, Any]:
        """The model's two messages: it called the tool for Oslo, and then answered."""
        if way == "stream":
            chunks = self.stream(None, *config)
            called, answer = streamed(chunks)
            assert len(chunks) > len(ANSWER.split())
        else:
            _, called, result, answer = self.ask(None, QUESTION, *config)
            assert result.tool_call_id == called.tool_calls[0]["id"]
        assert_answered(called, answer)
        return called, answer

    def assert_asked(self, requests: int, runs: int = 1) -> None:
        """So many requests came, and the tool ran so often, for Oslo."""
        assert len(self.gateway.requests) == requests
        assert self.cities == ["Oslo"] * runs


@pytest.fixture
def gateway(request: pytest.FixtureRequest) -> Iterator[FaultyGateway]:
    """The hosted gateway, or the one of the parameter, and a model by rules."""
    edition: Edition = getattr(request, "param", "hosted")
    with FaultyGateway(answer=RuleResponder(), gptrouter=edition) as gateway:
        yield gateway


@pytest.fixture
def lab(
    twin: Twin,
    gateway: FaultyGateway,
    fake_clock: FakeClock,
    get_weather: BaseTool,
    cities: list[str],
) -> Lab:
    return Lab(twin, gateway, fake_clock, get_weather, cities)


def attempts_of(message: AIMessage) -> list[dict[str, Any]]:
    attempts: list[dict[str, Any]]
    attempts = message.response_metadata["retryrouter"]["attempts"]
    return attempts


def streamed(chunks: list[Any]) -> list[AIMessageChunk]:
    """The model's messages that the chunks of a stream add up to."""
    messages: dict[Any, AIMessageChunk] = {}
    for chunk, _ in chunks:
        if isinstance(chunk, AIMessageChunk):
            before = messages.get(chunk.id)
            messages[chunk.id] = chunk if before is None else before + chunk
    return list(messages.values())


def assert_answered(called: Any, answer: Any) -> None:
    """The model called the tool for Oslo, and then answered from its result."""
    assert [call["args"] for call in called.tool_calls] == [{"city": "Oslo"}]
    assert answer.text == ANSWER


@pytest.mark.parametrize("gateway", ["public", "hosted"], indirect=True)
@pytest.mark.parametrize(
    ("way", "fault"),
    [
        *(("invoke", fault) for fault in AFTER_THE_FIRST_TOKEN),
        *((way, one) for way in ("invoke", "stream") for one in BEFORE_THE_FIRST_TOKEN),
    ],
    ids=str,
)
def test_an_agent_ends(lab: Lab, fault: Step, way: str) -> None:
    """Both calls of the model fail once, the tool runs once, and tokens come once."""
    lab.gateway.script(fault, Answer(), fault, Answer())
    called, answer = lab.turns(way)
    assert len(attempts_of(called)) == len(attempts_of(answer)) == 2
    lab.assert_asked(4)


def test_calls_of_one_turn_are_each_made_once(lab: Lab) -> None:
    """After a cut between two tool calls, both are asked for again."""
    lab.gateway.script(Cut(after=2), Answer(), Reset(), Answer())
    asked = "get_weather('Oslo') and get_weather('Rome')"
    messages = lab.ask(None, {"messages": [("user", asked)]})
    assert len(messages[1].tool_calls) == len(lab.cities) == 2
    assert messages[-1].content.startswith("The tools said: ")
    assert len(lab.gateway.requests) == 4


@pytest.mark.parametrize("turn", [1, 2], ids=["call", "answer"])
@pytest.mark.parametrize("fault", AFTER_THE_FIRST_TOKEN, ids=str)
def test_what_was_streamed_is_not_repeated(lab: Lab, fault: Step, turn: int) -> None:
    """After the first token a fault is an error, and no tool runs on half a call."""
    lab.gateway.script(*[Answer()] * (turn - 1), fault)
    chunks: list[Any] = []
    with pytest.raises(AFTER_THE_FIRST_TOKEN[fault]) as caught:
        lab.stream(into=chunks)
    assert streamed(chunks)[-1].text == caught.value.delivered
    lab.assert_asked(turn, runs=turn - 1)


def test_an_agent_goes_on_where_it_failed(lab: Lab) -> None:
    """From a checkpoint, the model is asked again and the tool is not run again."""
    agent = lab.agent(max_retries=0, checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "1"}}
    lab.gateway.script(Answer(), Status(503))
    with pytest.raises(UnavailableError):
        lab.ask(agent, QUESTION, thread)
    assert lab.ask(agent, None, thread)[-1].content == ANSWER
    lab.assert_asked(3)


@pytest.mark.parametrize("has_tools", [True, False])
@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])
def test_an_agent_answers_with_data(lab: Lab, strategy: Any, has_tools: bool) -> None:
    """Structured output comes by a tool or by JSON schema, with other tools or none."""
    lab.gateway.script(Status(503), Answer(), Reset(), Answer())
    tools: dict[str, Any] = {} if has_tools else {"tools": []}
    asked = "The weather in 'Oslo', its place and degrees, which are 7?"
    agent = lab.agent(response_format=strategy(Forecast), **tools)
    state = lab.twin.invoke(agent, {"messages": [("user", asked)]})
    assert state["structured_response"] == Forecast(place="Oslo", degrees=7)
    lab.assert_asked(4 if has_tools else 2, runs=int(has_tools))


class Talk(TypedDict):
    """The state of a graph of one model."""

    question: str
    answer: str


@pytest.mark.parametrize(
    ("max_retries", "status", "options", "requests"),
    [
        pytest.param(2, 503, {}, 3, id="ours"),
        pytest.param(2, 503, {"retry_on": should_retry}, 3, id="ours, predicate"),
        pytest.param(0, 503, {}, 1, id="none"),
        pytest.param(0, 503, {"retry_on": should_retry}, 3, id="langgraph's"),
        pytest.param(0, 401, {}, 1, id="none, final"),
        pytest.param(0, 401, {"retry_on": should_retry}, 1, id="langgraph's, final"),
        pytest.param(2, 401, {"retry_on": should_retry}, 1, id="final"),
    ],
)
def test_a_graph_does_not_multiply_retries(
    lab: Lab, max_retries: int, status: int, options: Any, requests: int
) -> None:
    """LangGraph repeats no error of ours; with `should_retry`, those not given up."""
    lab.gateway.always(Status(status))
    llm = lab.llm(max_retries=max_retries)
    node = itemgetter("question") | llm | {"answer": StrOutputParser()}
    policy = GraphPolicy(initial_interval=0, jitter=False, **options)
    graph = StateGraph(Talk).add_node("model", node, retry_policy=policy)
    agent = graph.set_entry_point("model").compile()
    with pytest.raises(RetryRouterError):
        lab.twin.invoke(agent, {"question": "Hello?"})
    lab.assert_asked(requests, runs=0)


def test_retries_can_be_left_to_langchain(lab: Lab) -> None:
    """With our retries off, LangChain's middleware repeats the same errors."""
    lab.gateway.script(Status(503), Status(503), Answer(), Reset(), Answer())
    retries = ModelRetryMiddleware(initial_delay=0)
    *_, answer = lab.ask(lab.agent(max_retries=0, middleware=[retries]))
    assert answer.content == ANSWER
    lab.assert_asked(5)


# --- over a router ---


THREAD: Any = {"configurable": {"thread_id": "1"}}


@dataclass(frozen=True)
class RouterLab(Lab):
    """Agents over a router of two models, each at a gateway of its own."""

    backup: FaultyGateway
    """The provider of the second route; `gateway` is the one of the first."""

    def agent(self, *, middleware: Any = (), **fields: Any) -> Any:
        """An agent, of a router with these fields besides."""
        gateways = {MODEL: self.gateway, OTHER: self.backup}
        router = RetryRouter(
            routes=[gpt_router(one, name) for name, one in gateways.items()],
            clock=self.clock,
            retry_policy=RetryPolicy(max_retries=1),
            breaker_settings=None,
            **fields,
        )
        return create_agent(
            router,
            [self.get_weather],
            middleware=middleware,
            checkpointer=InMemorySaver(),
        )

    def assert_requests(self, first: int, second: int, runs: int = 1) -> None:
        """So many requests came to each gateway, and the tool ran so often."""
        assert len(self.backup.requests) == second
        self.assert_asked(first, runs)


@pytest.fixture
def router_lab(
    twin: Twin, fake_clock: FakeClock, get_weather: BaseTool, cities: list[str]
) -> Iterator[RouterLab]:
    with (
        FaultyGateway(answer=RuleResponder(), gptrouter="hosted") as primary,
        FaultyGateway(answer=RuleResponder(), gptrouter="hosted") as backup,
    ):
        yield RouterLab(twin, primary, fake_clock, get_weather, cities, backup)


def routes_of(message: AIMessage) -> list[str]:
    return [line["route"] for line in attempts_of(message)]


@pytest.mark.parametrize("fault", BEFORE_THE_FIRST_TOKEN, ids=str)
@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_an_agent_ends_without_the_first_route(
    router_lab: RouterLab, fault: Step, way: str
) -> None:
    """Each turn fails over, its attempt log says so, and the tool runs once."""
    router_lab.gateway.always(fault)
    called, answer = router_lab.turns(way, THREAD)
    expected = [MODEL, MODEL, OTHER]
    assert routes_of(called) == routes_of(answer) == expected
    assert answer.response_metadata["model_name"] == OTHER
    router_lab.assert_requests(4, 2)


def test_an_agent_changes_its_route_between_two_turns(router_lab: RouterLab) -> None:
    """The second model answers from the result of a call that the first one made."""
    router_lab.gateway.script(Answer(), Status(503), Status(503))
    called, answer = router_lab.turns("invoke", THREAD)
    assert routes_of(called) == [MODEL]
    assert routes_of(answer) == [MODEL, MODEL, OTHER]
    assert router_lab.cities == ["Oslo"]


@pytest.mark.parametrize("fault", AFTER_THE_FIRST_TOKEN, ids=str)
@pytest.mark.parametrize("turn", [1, 2], ids=["call", "answer"])
def test_a_buffered_agent_streams_whole_messages(
    router_lab: RouterLab, fault: Step, turn: int
) -> None:
    """With "buffer" a turn that breaks after a token is repeated, and shown once."""
    router_lab.gateway.script(*[Answer()] * (turn - 1), fault, Answer(), Answer())
    agent = router_lab.agent(stream_recovery="buffer")
    assert_answered(*streamed(router_lab.stream(agent, THREAD)))
    router_lab.assert_asked(3)


@pytest.mark.parametrize("recovery", ["error", "continue"])
@pytest.mark.parametrize("fault", AFTER_THE_FIRST_TOKEN, ids=str)
def test_no_tool_runs_on_half_a_call(
    router_lab: RouterLab, fault: Step, recovery: str
) -> None:
    """A tool call that is cut while it is streamed is an error, never continued."""
    router_lab.gateway.always(fault)
    with pytest.raises(AFTER_THE_FIRST_TOKEN[fault]):
        router_lab.stream(router_lab.agent(stream_recovery=recovery), THREAD)
    router_lab.assert_requests(1, 0, runs=0)


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_an_agents_handlers_see_each_attempt_and_count_each_answer_once(
    router_lab: RouterLab, way: str
) -> None:
    """A handler of the agent sees both turns' retries, and usage once each."""
    seen: list[int] = []

    class Seen(BaseCallbackHandler):
        def on_retry(self, retry_state: Any, **_: Any) -> None:
            seen.append(retry_state.attempt_number)

    router_lab.gateway.always(Status(503))
    usage = UsageMetadataCallbackHandler()
    config = {**THREAD, "callbacks": [Seen(), usage]}
    agent = router_lab.agent()
    mode = {"stream_mode": "messages"} if way == "stream" else {}
    getattr(router_lab.twin, way)(agent, QUESTION, config, **mode)
    messages = agent.get_state(THREAD).values["messages"]
    assert seen == [1, 2, 1, 2]
    counted = sum(messages[i].usage_metadata["total_tokens"] for i in (1, 3))
    (name,) = usage.usage_metadata
    assert (name, usage.usage_metadata[name]["total_tokens"]) == (OTHER, counted)
