"""A provider gets `max_retries + 1` requests a call, and each retry is seen."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypedDict
from uuid import UUID

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from langgraph.graph import MessagesState, StateGraph
from langgraph.types import RetryPolicy as LangGraphRetryPolicy
from tenacity import RetryCallState

from langchain_retryrouter import RetryPolicy, RetryRouterError
from langchain_retryrouter.testing import (
    Answer,
    FakeClock,
    FaultyGateway,
    Hangup,
    HtmlPage,
    Reset,
    Silence,
    Status,
    Step,
    Truncate,
)
from tests.promises.conftest import Figures, Twin
from tests.promises.models import (
    CHAT_MODELS,
    FIVE,
    chat_openai,
    load_lazily_imported_modules,
    new_model,
)

MAX_RETRIES: Final = 2
REQUESTS: Final = MAX_RETRIES + 1
POLICY: Final = RetryPolicy(max_retries=MAX_RETRIES)
FAULTS: Final[dict[str, Step]] = {
    "503": Status(503),
    "429": Status(429, {"retry-after": "1"}),
    "reset": Reset(),
    "silence": Silence(),
}
DOWN_FOR_NOW: Final = Status(503, {"retry-after-ms": "1"})
"""A fault after which the openai SDK's own retries come at once."""


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """Nothing is imported by the first call, nor by LangGraph's first failure."""
    load_lazily_imported_modules()
    importlib.import_module("requests")


# --- what people put around models ---


class Asked(NamedTuple):
    """Something to call, and with what."""

    runnable: Runnable[Any, Any]
    request: Any
    stream_options: dict[str, Any]


class Talk(TypedDict):
    """The state of a graph of one model."""

    question: str
    answer: str


MESSAGES: Final = {"messages": [("user", "hi")]}
GRAPH_POLICY: Final = LangGraphRetryPolicy(initial_interval=0, jitter=False)


def is_worth_a_retry(error: BaseException) -> bool:
    """The predicate for `with_retry`; the middleware asks this by itself."""
    return getattr(error, "is_retryable", True)


def bare(llm: Any) -> Asked:
    """Nothing around it."""
    return Asked(llm, "hi", {})


def in_a_node(llm: Any) -> Asked:
    """In a node of a graph with a retry policy."""
    node = itemgetter("question") | llm | {"answer": StrOutputParser()}
    graph = StateGraph(Talk).add_node("model", node, retry_policy=GRAPH_POLICY)
    graph.set_entry_point("model")
    return Asked(graph.compile(), {"question": "hi"}, {"stream_mode": "messages"})


def in_an_agent(llm: Any, on_failure: Any = "continue") -> Asked:
    """In an agent with retry middleware."""
    retries = ModelRetryMiddleware(initial_delay=0, on_failure=on_failure)
    agent: Any = create_agent(llm, tools=[], middleware=[retries])
    return Asked(agent, MESSAGES, {"stream_mode": "messages"})


def with_retry(llm: Any) -> Asked:
    """In `with_retry` that asks the error."""
    repeated = llm.with_retry(
        retry_if_exception_type=is_worth_a_retry, wait_exponential_jitter=False
    )
    return Asked(repeated, "hi", {})


def all_three(llm: Any) -> Asked:
    """In middleware in an agent in a graph's node in `with_retry`."""
    agent = in_an_agent(llm, on_failure="error").runnable
    graph = StateGraph(MessagesState).add_node(
        "agent", agent, retry_policy=GRAPH_POLICY
    )
    graph.set_entry_point("agent")
    repeated = with_retry(graph.compile()).runnable
    return Asked(repeated, MESSAGES, {"stream_mode": "messages"})


AROUND: Final[dict[str, Callable[[Any], Asked]]] = {
    "called bare": bare,
    "in a LangGraph node with RetryPolicy()": in_a_node,
    "in with_retry() that asks is_retryable": with_retry,
}
AROUND_CHAT_MODELS: Final[dict[str, Callable[[Any], Asked]]] = {
    **AROUND,
    "in an agent with ModelRetryMiddleware()": in_an_agent,
    "all three around each other": all_three,
}


def calls_of(twin: Twin, asked: Asked) -> Iterator[Callable[[], object]]:
    """Both ways to call it."""
    yield lambda: twin.invoke(asked.runnable, asked.request)
    yield lambda: twin.stream(asked.runnable, asked.request, **asked.stream_options)


def requests_of(gateway: FaultyGateway, call: Callable[[], object]) -> list[int]:
    """How often each route is asked by a call that fails."""
    gateway.reset_log()
    with pytest.raises(RetryRouterError):
        call()
    return list(Counter(request.model for request in gateway.requests).values())


@pytest.mark.parametrize("name", FIVE)
def test_no_route_gets_more(
    name: str, twin: Twin, figures: Figures, *, is_long: bool
) -> None:
    """Whatever stands around a model, each of its routes is asked as often as said."""
    around = AROUND_CHAT_MODELS if name in CHAT_MODELS else AROUND
    turns = cycle(FAULTS)
    for _ in range(FIVE.index(name) + twin.is_async):
        next(turns)  # In the short form each has another fault.
    with FaultyGateway() as gateway:
        for what, put_around in around.items():
            for fault in FAULTS if is_long else (next(turns),):
                gateway.always(FAULTS[fault])
                timeout = 0.1 if fault == "silence" else 30
                fields: dict[str, Any] = {"clock": FakeClock(), "timeout": timeout}
                llm = new_model(name, gateway, retry_policy=POLICY, **fields)
                for call in calls_of(twin, put_around(llm)):
                    asked = requests_of(gateway, call)
                    assert len(asked) == (2 if name == "RetryRouter" else 1)
                    # A router leaves a silent route after one request.
                    is_left = name == "RetryRouter" and fault == "silence"
                    for number in asked:
                        bar = 1 if is_left else REQUESTS
                        assert number == bar, f"{name} {what}: {fault}"
                        story = " (silent routes of a router)" if is_left else ""
                        figures.exactly(bar, number, f"requests a route, {what}{story}")


@pytest.mark.parametrize("name", CHAT_MODELS)
def test_a_final_error_is_asked_once(name: str, twin: Twin, figures: Figures) -> None:
    """A wrong key is a wrong key: nobody around the model asks with it again."""
    with FaultyGateway() as gateway:
        gateway.always(Status(401))
        llm = new_model(name, gateway, retry_policy=POLICY, clock=FakeClock())
        for call in calls_of(twin, all_three(llm)):
            asked = max(requests_of(gateway, call))
            figures.exactly(1, asked, "requests with a wrong key, all three around it")


def test_what_chat_openai_sends(figures: Figures) -> None:
    """The same around langchain-openai's model, whose SDK retries by itself."""
    with FaultyGateway() as gateway:
        gateway.always(DOWN_FOR_NOW)
        llm = chat_openai(gateway.url, max_retries=MAX_RETRIES)
        for what, put_around in AROUND_CHAT_MODELS.items():
            gateway.reset_log()
            asked = put_around(llm)
            with contextlib.suppress(Exception):
                asked.runnable.invoke(asked.request)
            number = len(gateway.requests)
            figures.peer("ChatOpenAI", number, f"requests a route, {what}")


# --- every retry is seen ---


@dataclass
class Events:
    """The events of each run that a callback handler has got, in order."""

    gateway: FaultyGateway
    events: dict[UUID, list[tuple[str, int]]] = field(default_factory=dict)

    def add(self, what: str, run_id: UUID, number: int = 0) -> None:
        """Add an event of a run; for a retry, with the number of its attempt."""
        self.events.setdefault(run_id, []).append((what, number))

    def check(self, end: str | None) -> int:
        """The number of retries, after a check that each is in its place."""
        for run in self.events.values():
            retries = sum(what == "retry" for what, _ in run)
            expected = [("start", 0), *(("retry", n + 1) for n in range(retries))]
            expected += [(end, 0)] if end else []
            assert run == expected
        requests = len(self.gateway.requests)
        told = sum(what == "retry" for run in self.events.values() for what, _ in run)
        assert told == requests - len(self.events), self.events
        return told


class Handler(BaseCallbackHandler):
    """A sync handler; raises from `on_retry` where asked, which ends no call."""

    def __init__(self, events: Events, *, raises: bool = False) -> None:
        self.record = events.add
        self.raises = raises

    def on_chat_model_start(self, *_: Any, run_id: UUID, **__: Any) -> Any:
        self.record("start", run_id)

    def on_llm_start(self, *_: Any, run_id: UUID, **__: Any) -> Any:
        self.record("start", run_id)

    def on_retry(self, retry_state: RetryCallState, *, run_id: UUID, **_: Any) -> Any:
        self.record("retry", run_id, retry_state.attempt_number)
        if self.raises:
            msg = "the handler is broken"
            raise RuntimeError(msg)

    def on_llm_end(self, *_: Any, run_id: UUID, **__: Any) -> Any:
        self.record("end", run_id)

    def on_llm_error(self, *_: Any, run_id: UUID, **__: Any) -> Any:
        self.record("error", run_id)


def delayed(method: Callable[..., object]) -> Callable[..., Awaitable[None]]:
    """The method of a handler, after the event loop has turned for a while."""

    async def add(self: Handler, *args: Any, **kwargs: Any) -> None:
        for _ in range(100):
            await FakeClock().asleep(1)
        method(self, *args, **kwargs)

    return add


class AsyncHandler(Handler, AsyncCallbackHandler):
    """An async handler: one that is not awaited records too late."""

    on_chat_model_start = delayed(Handler.on_chat_model_start)  # type: ignore[assignment]
    on_llm_start = delayed(Handler.on_llm_start)  # type: ignore[assignment]
    on_retry = delayed(Handler.on_retry)  # type: ignore[assignment]
    on_llm_end = delayed(Handler.on_llm_end)  # type: ignore[assignment]
    on_llm_error = delayed(Handler.on_llm_error)  # type: ignore[assignment]


def stream_events(twin: Twin, llm: Any, config: Any) -> object:
    """`astream_events` v2; its sync variant, v3, is only for chat models."""

    async def read() -> list[Any]:
        return [one async for one in llm.astream_events("hi", config, version="v2")]

    if twin.is_async:
        return asyncio.run(read())
    if not hasattr(llm, "bind_tools"):
        return twin.stream(llm, "hi", config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(llm.stream_events("hi", config, version="v3"))


def chain(llm: Any) -> Any:
    """The model in a chain."""
    return ChatPromptTemplate(["{question}"]) | llm | StrOutputParser()


WAYS: Final[dict[str, Callable[[Twin, Any, Any], object]]] = {
    "invoke": lambda twin, llm, config: twin.invoke(llm, "hi", config),
    "batch": lambda twin, llm, config: twin.batch(llm, ["hi"], config),
    "chain": lambda twin, llm, config: twin.invoke(chain(llm), "hi", config),
    "stream": lambda twin, llm, config: twin.stream(llm, "hi", config),
    "chain stream": lambda twin, llm, config: twin.stream(chain(llm), "hi", config),
    "stream events": stream_events,
}
SEEN_FAULTS: Final[tuple[Step, ...]] = (
    Status(503),
    Status(429),
    HtmlPage(502),
    Reset(),
    Hangup(),
)


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize("way", WAYS)
def test_each_retry_is_seen(
    name: str, way: str, twin: Twin, figures: Figures, *, is_long: bool
) -> None:
    """Every handler is told of each retry before the next request, and of the end."""
    told = 0
    faults = [*SEEN_FAULTS, Truncate(0)] if "stream" in way else [*SEEN_FAULTS]
    with FaultyGateway() as gateway:
        policy = RetryPolicy(max_retries=4)
        llm = new_model(name, gateway, retry_policy=policy, clock=FakeClock())
        for shift in range(len(faults) if is_long else 1):
            three = [
                faults[(shift + FIVE.index(name) + n) % len(faults)] for n in range(3)
            ]
            for ends_well in (True, False):
                records = [Events(gateway) for _ in range(3)]
                handlers = [
                    Handler(records[0], raises=True),
                    Handler(records[1]),
                    AsyncHandler(records[2]),
                ]
                gateway.reset_log()
                gateway.always(Answer() if ends_well else three[0])
                gateway.script(*(three if ends_well else ()))
                with (
                    contextlib.nullcontext()
                    if ends_well
                    else pytest.raises(RetryRouterError)
                ):
                    WAYS[way](twin, llm, {"callbacks": handlers})
                for one in records:
                    told += one.check("end" if ends_well else "error")
                assert told
    figures.counted(told, "retries that handlers were told of")
    figures.exactly(0, 0, "retries that a handler was not told of, or too late")


def test_what_chat_openai_tells(figures: Figures) -> None:
    """langchain-openai's SDK repeats, and tells nobody."""
    with FaultyGateway() as gateway:
        events = Events(gateway)
        gateway.script(DOWN_FOR_NOW, DOWN_FOR_NOW)
        chat_openai(gateway.url).invoke("hi", {"callbacks": [Handler(events)]})
        missed = len(gateway.requests) - 1
    figures.peer(
        "ChatOpenAI", missed, "retries that a handler was not told of, or too late"
    )
