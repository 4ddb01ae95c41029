"""A provider that is down gets `max_retries + 1` requests a call, whoever calls."""

from __future__ import annotations

import contextlib
import importlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import cycle
from operator import itemgetter
from typing import Any, Final, NamedTuple

import openai
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import Runnable
from langgraph.graph import MessagesState, StateGraph
from langgraph.types import RetryPolicy
from typing_extensions import TypedDict

from langchain_retryrouter import RetryRouterError
from langchain_retryrouter.testing import (
    FakeClock,
    FaultyGateway,
    Reset,
    Silence,
    Status,
    Step,
)
from tests.promises.evidence import Evidence, Length, Promise
from tests.promises.five_models import CHAT_MODELS, FIVE_MODELS
from tests.promises.peer_models import (
    DOWN_FOR_NOW,
    chat_openai,
    old_gpt_router,
    old_openai,
)
from tests.unit_tests.conftest import Twin

PROMISE = Promise(
    title="Requests per call",
    number="exactly `max_retries + 1` a route",
    why=(
        "Retries around retries multiply: three times three times three requests for"
        " one question, to a provider that is down already. Each call is made bare and"
        " inside what people put around models, and the provider counts. `with_retry()`"
        " repeats every exception unless it is told to ask for `is_retryable`; what it"
        " does when told nothing stands beside it. Where a route is silent a router"
        " goes on to the next at once, so that each gets one."
    ),
)
MAX_RETRIES: Final = 2
REQUESTS: Final = MAX_RETRIES + 1
DOWN: Final = f"requests to a route that is down, max_retries={MAX_RETRIES}"
WRONG_KEY: Final = "requests with a wrong key, all three around it"

FAULTS: Final[dict[str, Step]] = {
    "503": Status(503),
    "429": Status(429, {"retry-after": "1"}),
    "reset": Reset(),
    "silence": Silence(),
}


def is_worth_a_retry(error: BaseException) -> bool:
    """What one writes to have `with_retry` ask, as the middleware does by itself."""
    return getattr(error, "is_retryable", True)


# --- what people put around models ---


class Asked(NamedTuple):
    """Something to call, and with what."""

    runnable: Runnable[Any, Any]
    request: Any
    stream_options: dict[str, Any]


class Talk(TypedDict):
    """The state of a graph of one model."""

    request: str
    answer: str


MESSAGES: Final = {"messages": [("user", "Hello?")]}
POLICY: Final = RetryPolicy(initial_interval=0, jitter=False)


def bare(llm: Any) -> Asked:
    """Nothing around it."""
    return Asked(llm, "Hello?", {})


def in_a_node(llm: Any) -> Asked:
    """A node of a graph."""
    node = itemgetter("question") | llm | {"answer": StrOutputParser()}
    graph = StateGraph(Talk).add_node("model", node, retry_policy=POLICY)
    graph.set_entry_point("model")
    return Asked(graph.compile(), {"question": "Hello?"}, {"stream_mode": "messages"})


def in_an_agent(llm: Any, on_failure: Any = "continue") -> Asked:
    """An agent whose middleware repeats."""
    retries = ModelRetryMiddleware(initial_delay=0, on_failure=on_failure)
    agent: Any = create_agent(llm, tools=[], middleware=[retries])
    return Asked(agent, MESSAGES, {"stream_mode": "messages"})


def told(llm: Any) -> Asked:
    """`with_retry` that asks the error."""
    return Asked(
        llm.with_retry(
            retry_if_exception_type=is_worth_a_retry, wait_exponential_jitter=False
        ),
        "Hello?",
        {},
    )


def told_nothing(llm: Any) -> Asked:
    """`with_retry` as it comes."""
    return Asked(llm.with_retry(wait_exponential_jitter=False), "Hello?", {})


def all_three(llm: Any) -> Asked:
    """Middleware in an agent in a graph's node in `with_retry`."""
    agent = in_an_agent(llm, on_failure="error").runnable
    graph = StateGraph(MessagesState).add_node("agent", agent, retry_policy=POLICY)
    graph.set_entry_point("agent")
    asked = told(graph.compile())
    return Asked(asked.runnable, MESSAGES, {"stream_mode": "messages"})


Around = Callable[[Any], Asked]

BARE: Final = f"{DOWN}: called bare"
ALL_THREE: Final = f"{DOWN}: all three around each other"
AROUND_CHAT_MODELS: Final[dict[str, Around]] = {
    f"{DOWN}: in an agent with ModelRetryMiddleware()": in_an_agent,
    ALL_THREE: all_three,
}
AROUND_ALL: Final[dict[str, Around]] = {
    BARE: bare,
    f"{DOWN}: in a LangGraph node with RetryPolicy()": in_a_node,
    f"{DOWN}: in with_retry() that asks is_retryable": told,
}
TOLD_NOTHING: Final = f"{DOWN}: in with_retry() told nothing"


# --- ours ---


@pytest.fixture(scope="module", autouse=True)
def whole_libraries() -> None:
    """They import parts of themselves when first used, which blocks an event loop."""
    openai.DefaultHttpxClient().close()
    importlib.import_module("requests")  # As LangGraph does to decide on a retry.


def requests_of(
    gateway: FaultyGateway, call: Callable[[], object]
) -> Counter[str | None]:
    """How often each route is asked by a call that fails."""
    before = len(gateway.requests)
    with pytest.raises(RetryRouterError):
        call()
    return Counter(request.model for request in gateway.requests[before:])


def calls_of(twin: Twin, asked: Asked) -> list[Callable[[], object]]:
    """Both ways to call it."""
    runnable, request, options = asked
    return [
        partial(twin.invoke, runnable, request),
        partial(twin.stream, runnable, request, **options),
    ]


@pytest.mark.parametrize("model", FIVE_MODELS)
def test_no_route_gets_more(
    twin: Twin,
    model: str,
    faulty_gateway: FaultyGateway,
    fake_clock: FakeClock,
    evidence: Evidence,
    length: Length,
) -> None:
    """Whatever stands around a model, each of its routes is asked as often as said."""
    around = AROUND_ALL | (AROUND_CHAT_MODELS if model in CHAT_MODELS else {})
    turns = cycle(FAULTS)
    for _ in range(list(FIVE_MODELS).index(model) + twin.is_async):
        next(turns)  # In short each has another fault, and together they have all.
    for what, put_around in around.items():
        for fault in FAULTS if length.is_long else (next(turns),):
            faulty_gateway.always(FAULTS[fault])
            timeout = 0.05 if fault == "silence" else 30
            llm = FIVE_MODELS[model](
                faulty_gateway, fake_clock, max_retries=MAX_RETRIES, timeout=timeout
            )
            for call in calls_of(twin, put_around(llm)):
                asked = requests_of(faulty_gateway, call)
                assert len(asked) == (2 if model == "RetryRouter" else 1)
                evidence.counted(1, "calls tried")
                if model == "RetryRouter" and fault == "silence":
                    # Time is what has run out: it goes on to the next route at once.
                    assert set(asked.values()) == {1}
                    continue
                for requests_of_route in asked.values():
                    evidence.exactly(REQUESTS, requests_of_route, what)


@pytest.mark.parametrize("model", CHAT_MODELS)
def test_what_is_final_is_asked_once(
    twin: Twin,
    model: str,
    faulty_gateway: FaultyGateway,
    fake_clock: FakeClock,
    evidence: Evidence,
) -> None:
    """A wrong key is a wrong key, and nobody around the model asks with it again."""
    faulty_gateway.always(Status(401))
    llm = CHAT_MODELS[model](
        faulty_gateway, fake_clock, max_retries=MAX_RETRIES, timeout=30
    )
    for call in calls_of(twin, all_three(llm)):
        asked = requests_of(faulty_gateway, call)
        evidence.exactly(1, max(asked.values()), WRONG_KEY)
        evidence.counted(1, "calls tried")


@pytest.mark.parametrize("model", FIVE_MODELS)
def test_with_retry_told_nothing(
    twin: Twin,
    model: str,
    faulty_gateway: FaultyGateway,
    fake_clock: FakeClock,
    evidence: Evidence,
) -> None:
    """It repeats every exception, ours too: as often as it says, and no oftener."""
    faulty_gateway.always(Status(503))
    llm = FIVE_MODELS[model](
        faulty_gateway, fake_clock, max_retries=MAX_RETRIES, timeout=30
    )
    invoke, stream = calls_of(twin, told_nothing(llm))
    for asked in requests_of(faulty_gateway, invoke).values():
        evidence.exactly(3 * REQUESTS, asked, TOLD_NOTHING)
    assert set(requests_of(faulty_gateway, stream).values()) == {REQUESTS}
    evidence.counted(2, "calls tried")


# --- peers ---


def peer_asked(asked: Asked, gateway: FaultyGateway) -> int:
    """How often a peer asks, sync: some of theirs block an event loop."""
    before = len(gateway.requests)
    # In an agent their error becomes an answer, once the middleware has given up.
    with contextlib.suppress(Exception):
        asked.runnable.invoke(asked.request)
    return len(gateway.requests) - before


def test_chat_openai(faulty_gateway: FaultyGateway, evidence: Evidence) -> None:
    """The same for langchain-openai's `ChatOpenAI`."""
    llm = chat_openai(faulty_gateway, MAX_RETRIES)
    faulty_gateway.always(DOWN_FOR_NOW)
    around = AROUND_ALL | AROUND_CHAT_MODELS | {TOLD_NOTHING: told_nothing}
    for what, put_around in around.items():
        asked = peer_asked(put_around(llm), faulty_gateway)
        evidence.peer("ChatOpenAI", asked, what)
    faulty_gateway.always(Status(401))
    asked = peer_asked(all_three(llm), faulty_gateway)
    evidence.peer("ChatOpenAI", asked, WRONG_KEY)


def test_community_openai(faulty_gateway: FaultyGateway, evidence: Evidence) -> None:
    """The same for langchain-community's `OpenAI`, which no agent takes."""
    llm = old_openai(faulty_gateway, MAX_RETRIES)
    faulty_gateway.always(DOWN_FOR_NOW)
    for what, put_around in (AROUND_ALL | {TOLD_NOTHING: told_nothing}).items():
        asked = peer_asked(put_around(llm), faulty_gateway)
        evidence.peer("community OpenAI", asked, what)


def test_community_gpt_router(
    faulty_gateway: FaultyGateway, evidence: Evidence, length: Length
) -> None:
    """The same for langchain-community's `GPTRouter`, where there is time to wait."""
    llm = old_gpt_router(faulty_gateway, MAX_RETRIES if length.is_long else 0)
    faulty_gateway.always(Status(503))
    if not length.is_long:
        assert peer_asked(bare(llm), faulty_gateway) == 1
        return
    around = AROUND_ALL | AROUND_CHAT_MODELS | {TOLD_NOTHING: told_nothing}
    del around[ALL_THREE]  # 27 calls of 8 s.
    for what, put_around in around.items():
        asked = peer_asked(put_around(llm), faulty_gateway)
        evidence.peer("community GPTRouter", asked, what)
