"""LangChain's agents over a gateway that fails; they end, and no tool runs twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from operator import itemgetter
from typing import Any, Protocol

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelFallbackMiddleware, ModelRetryMiddleware
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.tools import BaseTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import StateGraph
from langgraph.types import RetryPolicy
from pydantic import BaseModel
from typing_extensions import TypedDict

from langchain_retryrouter import (
    GPTRouter,
    GPTRouterModel,
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
from tests.support.rule_responder import RuleResponder
from tests.unit_tests.conftest import Twin

from .faults import AFTER_THE_FIRST_TOKEN, BEFORE_THE_FIRST_TOKEN

MODEL = GPTRouterModel(name="gpt-4-0613", provider_name="chat_openai")
OTHER = GPTRouterModel(name="gpt-4o", provider_name="chat_openai")
QUESTION = {"messages": [("user", "What is the weather in 'Oslo'?")]}
ANSWER = "The tools said: It rains in Oslo"


class Forecast(BaseModel):
    """A forecast."""

    place: str
    degrees: int


class NewLLM(Protocol):
    """Makes models of the test's gateway."""

    def __call__(self, **fields: Any) -> GPTRouter:
        """A model, with these fields besides."""


class NewAgent(Protocol):
    """Makes agents of a model and one tool."""

    def __call__(self, *, max_retries: int = 2, **arguments: Any) -> Any:
        """An agent, with these arguments besides."""


@pytest.fixture
def gateway(request: pytest.FixtureRequest) -> Iterator[FaultyGateway]:
    """The hosted gateway, or the one of the parameter, and a model by rules."""
    edition: Edition = getattr(request, "param", "hosted")
    with FaultyGateway(answer=RuleResponder(), gptrouter=edition) as gateway:
        yield gateway


@pytest.fixture
def new_llm(gateway: FaultyGateway, fake_clock: FakeClock) -> NewLLM:
    """Makes models that wait on the test's clock."""

    def new_llm(**fields: Any) -> GPTRouter:
        settings: dict[str, Any] = {
            "models_priority_list": [MODEL],
            "gpt_router_api_base": gateway.url,
            "gpt_router_api_key": "any",
            "clock": fake_clock,
        }
        return GPTRouter(**{**settings, **fields})

    return new_llm


@pytest.fixture
def new_agent(new_llm: NewLLM, get_weather: BaseTool) -> NewAgent:
    """Makes agents whose tool records its runs."""

    def new_agent(*, max_retries: int = 2, **arguments: Any) -> Any:
        llm = new_llm(max_retries=max_retries)
        return create_agent(**{"model": llm, "tools": [get_weather], **arguments})

    return new_agent


def attempts_of(message: AIMessage) -> int:
    return len(message.response_metadata["retryrouter"]["attempts"])


def streamed(chunks: list[Any]) -> list[AIMessageChunk]:
    """The model's messages that the chunks of a stream add up to."""
    messages: dict[Any, AIMessageChunk] = {}
    for chunk, _ in chunks:
        if isinstance(chunk, AIMessageChunk):
            before = messages.get(chunk.id)
            messages[chunk.id] = chunk if before is None else before + chunk
    return list(messages.values())


@pytest.mark.parametrize("gateway", ["public", "hosted"], indirect=True)
@pytest.mark.parametrize(
    "fault", [*BEFORE_THE_FIRST_TOKEN, *AFTER_THE_FIRST_TOKEN], ids=str
)
def test_an_agent_ends(
    twin: Twin,
    new_agent: NewAgent,
    gateway: FaultyGateway,
    cities: list[str],
    fault: Step,
) -> None:
    """Both calls of the model fail once, and the tool runs once all the same."""
    gateway.script(fault, Answer(), fault, Answer())

    _, called, result, answer = twin.invoke(new_agent(), QUESTION)["messages"]

    (call,) = called.tool_calls
    assert call["args"] == {"city": "Oslo"}
    assert result.tool_call_id == call["id"]
    assert answer.content == ANSWER
    assert cities == ["Oslo"]
    assert attempts_of(called) == attempts_of(answer) == 2
    assert len(gateway.requests) == 4


def test_calls_of_one_turn_are_each_made_once(
    twin: Twin, new_agent: NewAgent, gateway: FaultyGateway, cities: list[str]
) -> None:
    """After a cut between two tool calls, both are asked for again."""
    gateway.script(Cut(after=2), Answer(), Reset(), Answer())
    asked = "get_weather('Oslo') and get_weather('Rome')"

    messages = twin.invoke(new_agent(), {"messages": [("user", asked)]})["messages"]

    assert len(messages[1].tool_calls) == len(cities) == 2
    assert messages[-1].content.startswith("The tools said: ")
    assert len(gateway.requests) == 4


@pytest.mark.parametrize("fault", BEFORE_THE_FIRST_TOKEN, ids=str)
def test_an_agents_tokens_come_once(
    twin: Twin,
    new_agent: NewAgent,
    gateway: FaultyGateway,
    cities: list[str],
    fault: Step,
) -> None:
    """A fault before the first token leaves no trace in the stream of tokens."""
    gateway.script(fault, Answer(), fault, Answer())

    chunks = twin.stream(new_agent(), QUESTION, stream_mode="messages")

    called, answer = streamed(chunks)
    assert [call["args"] for call in called.tool_calls] == [{"city": "Oslo"}]
    assert answer.text == ANSWER
    assert len(chunks) > len(ANSWER.split())
    assert cities == ["Oslo"]
    assert len(gateway.requests) == 4


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
def test_an_agents_messages_come_once(
    twin: Twin, new_agent: NewAgent, gateway: FaultyGateway, cities: list[str]
) -> None:
    """`stream_events` v3 of an agent shows nothing of faults before the first token."""
    gateway.script(Status(503), Answer(), Reset(), Answer())
    agent = new_agent()

    async def follow() -> list[str]:
        run = await agent.astream_events(QUESTION, version="v3")
        return [
            "".join([part async for part in message.text])
            async for message in run.messages
        ]

    if twin.is_async:
        said = asyncio.run(follow())
    else:
        run = agent.stream_events(QUESTION, version="v3")
        said = ["".join(message.text) for message in run.messages]

    assert said == ["", ANSWER]
    assert cities == ["Oslo"]
    assert len(gateway.requests) == 4


@pytest.mark.parametrize("turn", [1, 2], ids=["call", "answer"])
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        pytest.param(fault, e, id=str(fault))
        for fault, e in AFTER_THE_FIRST_TOKEN.items()
    ],
)
def test_what_was_streamed_is_not_repeated(
    twin: Twin,
    new_agent: NewAgent,
    gateway: FaultyGateway,
    cities: list[str],
    fault: Step,
    error: type[RetryRouterError],
    turn: int,
) -> None:
    """After the first token a fault is an error, and no tool runs on half a call."""
    gateway.script(*[Answer()] * (turn - 1), fault)
    chunks: list[Any] = []

    with pytest.raises(error) as caught:
        twin.stream(new_agent(), QUESTION, stream_mode="messages", into=chunks)

    assert streamed(chunks)[-1].text == caught.value.delivered
    assert cities == ["Oslo"] * (turn - 1)
    assert len(gateway.requests) == turn


def test_an_agent_goes_on_where_it_failed(
    twin: Twin, new_agent: NewAgent, gateway: FaultyGateway, cities: list[str]
) -> None:
    """From a checkpoint, the model is asked again and the tool is not run again."""
    agent = new_agent(max_retries=0, checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "1"}}
    gateway.script(Answer(), Status(503))

    with pytest.raises(UnavailableError):
        twin.invoke(agent, QUESTION, thread)
    messages = twin.invoke(agent, None, thread)["messages"]

    assert messages[-1].content == ANSWER
    assert cities == ["Oslo"]
    assert len(gateway.requests) == 3


@pytest.mark.parametrize("has_tools", [True, False])
@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])
def test_an_agent_answers_with_data(
    twin: Twin,
    new_agent: NewAgent,
    gateway: FaultyGateway,
    cities: list[str],
    strategy: Any,
    has_tools: bool,
) -> None:
    """Structured output comes by a tool or by JSON schema, with other tools or none."""
    gateway.script(Status(503), Answer(), Reset(), Answer())
    tools: dict[str, Any] = {} if has_tools else {"tools": []}
    asked = "The weather in 'Oslo', its place and degrees, which are 7?"

    agent = new_agent(response_format=strategy(Forecast), **tools)
    state = twin.invoke(agent, {"messages": [("user", asked)]})

    assert state["structured_response"] == Forecast(place="Oslo", degrees=7)
    assert cities == ["Oslo"] * has_tools
    assert len(gateway.requests) == (4 if has_tools else 2)


@pytest.mark.parametrize("on_failure", ["error", "continue"])
def test_retries_are_not_multiplied(
    twin: Twin,
    new_agent: NewAgent,
    gateway: FaultyGateway,
    on_failure: Any,
) -> None:
    """LangChain's own retries do not repeat a call that we gave up on."""
    gateway.always(Status(503))
    retries = ModelRetryMiddleware(
        max_retries=4, initial_delay=0, on_failure=on_failure
    )

    with pytest.raises(UnavailableError, match="gave up after 3 attempts"):
        twin.invoke(new_agent(middleware=[retries]), QUESTION)

    assert len(gateway.requests) == 3


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
        pytest.param(2, 401, {"retry_on": should_retry}, 1, id="final"),
    ],
)
def test_a_graph_does_not_multiply_retries(
    twin: Twin,
    new_llm: NewLLM,
    gateway: FaultyGateway,
    max_retries: int,
    status: int,
    options: dict[str, Any],
    requests: int,
) -> None:
    """LangGraph repeats no error of ours; with `should_retry`, those not given up."""
    gateway.always(Status(status))
    llm = new_llm(max_retries=max_retries)
    node = itemgetter("question") | llm | {"answer": StrOutputParser()}
    policy = RetryPolicy(initial_interval=0, jitter=False, **options)
    graph = StateGraph(Talk).add_node("model", node, retry_policy=policy)

    with pytest.raises(RetryRouterError):
        twin.invoke(graph.set_entry_point("model").compile(), {"question": "Hello?"})

    assert len(gateway.requests) == requests


def test_a_fallback_takes_over_in_the_middle(
    twin: Twin,
    new_llm: NewLLM,
    new_agent: NewAgent,
    gateway: FaultyGateway,
    cities: list[str],
) -> None:
    """When the first model fails for good, another answers from the tool's result."""
    other = new_llm(models_priority_list=[OTHER])
    gateway.script(Answer(), model=MODEL.name)
    gateway.always(Status(503), model=MODEL.name)
    agent = new_agent(middleware=[ModelFallbackMiddleware(other)])

    messages = twin.invoke(agent, QUESTION)["messages"]

    assert messages[-1].content == ANSWER
    assert messages[-1].response_metadata["model_name"] == OTHER.name
    assert cities == ["Oslo"]
    assert [request.model for request in gateway.requests] == [
        *[MODEL.name] * 4,
        OTHER.name,
    ]


def test_retries_can_be_left_to_langchain(
    twin: Twin, new_agent: NewAgent, gateway: FaultyGateway, cities: list[str]
) -> None:
    """With our retries off, LangChain's middleware repeats the same errors."""
    gateway.script(Status(503), Status(503), Answer(), Reset(), Answer())
    agent = new_agent(max_retries=0, middleware=[ModelRetryMiddleware(initial_delay=0)])

    messages = twin.invoke(agent, QUESTION)["messages"]

    assert messages[-1].content == ANSWER
    assert cities == ["Oslo"]
    assert len(gateway.requests) == 5


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_an_agents_retries_are_seen(
    twin: Twin, new_agent: NewAgent, gateway: FaultyGateway, way: str
) -> None:
    """A handler of the agent sees each retry in it, streamed or not."""
    seen: list[int] = []

    class Seen(BaseCallbackHandler):
        def on_retry(self, retry_state: Any, **_: Any) -> None:
            seen.append(retry_state.attempt_number)

    gateway.script(Status(503), Reset(), Answer(), Status(429), Answer())
    mode = {"stream_mode": "messages"} if way == "stream" else {}

    getattr(twin, way)(new_agent(), QUESTION, {"callbacks": [Seen()]}, **mode)

    assert seen == [1, 2, 1]


def test_a_broken_stream_can_be_left_to_langchain(
    twin: Twin, new_agent: NewAgent, gateway: FaultyGateway, cities: list[str]
) -> None:
    """Its middleware asks again, in a new message, and the tool runs once."""
    gateway.script(Cut(after=1), Answer(), Answer())
    agent = new_agent(middleware=[ModelRetryMiddleware(initial_delay=0)])

    chunks = twin.stream(agent, QUESTION, stream_mode="messages")

    _, called, answer = streamed(chunks)
    assert [call["args"] for call in called.tool_calls] == [{"city": "Oslo"}]
    assert answer.text == ANSWER
    assert cities == ["Oslo"]
    assert len(gateway.requests) == 3
