"""A provider gets `max_retries + 1` requests a call, and each retry is seen."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import cycle, islice
from operator import itemgetter
from typing import Any, Final, TypedDict
from uuid import UUID

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langgraph.graph import MessagesState, StateGraph
from langgraph.types import RetryPolicy as LangGraphRetryPolicy

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
from tests.promises.models import CHAT_MODELS, FIVE, chat_openai, new_model

MAX_RETRIES: Final = 2
POLICY: Final = RetryPolicy(max_retries=MAX_RETRIES)
FAULTS: Final[dict[str, Step]] = {
    "503": Status(503),
    "429": Status(429, {"retry-after": "1"}),
    "reset": Reset(),
    "silence": Silence(),
}
DOWN_FOR_NOW: Final = Status(503, {"retry-after-ms": "1"})
"""A fault after which the openai SDK's own retries come at once."""

MISSED: Final = "retries that a handler was not told of, or too late"
MESSAGES: Final = {"messages": [("user", "hi")]}
GRAPH_POLICY: Final = LangGraphRetryPolicy(initial_interval=0, jitter=False)

importlib.import_module("requests")  # LangGraph's first failure does.


class Talk(TypedDict):
    """The state of a graph of one model."""

    question: str
    answer: str


def in_a_node(llm: Any) -> Any:
    node = itemgetter("question") | llm | {"answer": StrOutputParser()}
    graph = StateGraph(Talk).add_node("model", node, retry_policy=GRAPH_POLICY)
    return graph.set_entry_point("model").compile()


def in_an_agent(llm: Any, on_failure: Any = "continue") -> Any:
    retries = ModelRetryMiddleware(initial_delay=0, on_failure=on_failure)
    return create_agent(llm, tools=[], middleware=[retries])


def with_retry(llm: Any) -> Any:
    return llm.with_retry(
        retry_if_exception_type=lambda error: getattr(error, "is_retryable", True),
        wait_exponential_jitter=False,
    )


def all_three(llm: Any) -> Any:
    agent = in_an_agent(llm, on_failure="error")
    graph = StateGraph(MessagesState)
    graph.add_node("agent", agent, retry_policy=GRAPH_POLICY).set_entry_point("agent")
    return with_retry(graph.compile())


AROUND: Final[dict[str, tuple[Callable[[Any], Any], Any]]] = {
    "called bare": (lambda llm: llm, "hi"),
    "in a LangGraph node with RetryPolicy()": (in_a_node, {"question": "hi"}),
    "in with_retry() that asks is_retryable": (with_retry, "hi"),
}
AROUND_CHAT_MODELS: Final[dict[str, tuple[Callable[[Any], Any], Any]]] = {
    **AROUND,
    "in an agent with ModelRetryMiddleware()": (in_an_agent, MESSAGES),
    "all three around each other": (all_three, MESSAGES),
}


def requests_of(
    gateway: FaultyGateway, twin: Twin, runnable: Any, request: Any
) -> list[int]:
    """How often each route is asked by a call that fails, invoked and streamed."""
    asked: list[int] = []
    options: Any = {} if request == "hi" else {"stream_mode": "messages"}
    calls: tuple[Any, ...] = (twin.invoke, partial(twin.stream, **options))
    for call in calls:
        gateway.reset_log()
        with pytest.raises(RetryRouterError):
            call(runnable, request)
        asked += Counter(request.model for request in gateway.requests).values()
    return asked


@pytest.mark.parametrize("name", FIVE)
def test_no_route_gets_more(
    name: str, twin: Twin, figures: Figures, *, is_long: bool
) -> None:
    """Whatever stands around a model, each of its routes is asked as often as said."""
    around = AROUND_CHAT_MODELS if name in CHAT_MODELS else AROUND
    # In the short form each has another fault.
    turns = islice(cycle(FAULTS), FIVE.index(name) + twin.is_async, None)
    with FaultyGateway() as gateway:
        for what, (put_around, request) in around.items():
            for fault in FAULTS if is_long else (next(turns),):
                gateway.always(FAULTS[fault])
                timeout = 0.1 if fault == "silence" else 30
                fields: dict[str, Any] = {"clock": FakeClock(), "timeout": timeout}
                llm = new_model(name, gateway, retry_policy=POLICY, **fields)
                asked = requests_of(gateway, twin, put_around(llm), request)
                assert len(asked) == (4 if name == "RetryRouter" else 2)
                for number in asked:
                    figures.exactly(
                        MAX_RETRIES + 1, number, f"requests a route, {what}"
                    )


@pytest.mark.parametrize("name", CHAT_MODELS)
def test_a_final_error_is_asked_once(name: str, twin: Twin, figures: Figures) -> None:
    """A wrong key is a wrong key: nobody around the model asks with it again."""
    with FaultyGateway() as gateway:
        gateway.always(Status(401))
        llm = new_model(name, gateway, retry_policy=POLICY, clock=FakeClock())
        asked = max(requests_of(gateway, twin, all_three(llm), MESSAGES))
    figures.exactly(1, asked, "requests with a wrong key, all three around it")


def test_what_chat_openai_sends(figures: Figures) -> None:
    """The same around langchain-openai's model, whose SDK retries by itself."""
    with FaultyGateway() as gateway:
        gateway.always(DOWN_FOR_NOW)
        llm = chat_openai(gateway.url, max_retries=MAX_RETRIES)
        for what, (put_around, request) in AROUND_CHAT_MODELS.items():
            gateway.reset_log()
            with contextlib.suppress(Exception):
                put_around(llm).invoke(request)
            figures.peer(len(gateway.requests), f"requests a route, {what}")


class Handler(BaseCallbackHandler):
    """Records the events of each run; may raise from `on_retry`, which ends no call."""

    def __init__(self, *, raises: bool = False) -> None:
        self.events: defaultdict[UUID, list[tuple[str, int]]] = defaultdict(list)
        self.raises = raises

    def on_chat_model_start(self, *_: Any, run_id: UUID, **__: Any) -> Any:
        self.events[run_id].append(("start", 0))

    on_llm_start = on_chat_model_start

    def on_retry(self, retry_state: Any, *, run_id: UUID, **_: Any) -> Any:
        self.events[run_id].append(("retry", retry_state.attempt_number))
        if self.raises:
            msg = "the handler is broken"
            raise RuntimeError(msg)

    def on_llm_end(self, *_: Any, run_id: UUID, **__: Any) -> Any:
        self.events[run_id].append(("end", 0))

    def on_llm_error(self, *_: Any, run_id: UUID, **__: Any) -> Any:
        self.events[run_id].append(("error", 0))

    def retries(self, gateway: FaultyGateway, end: str) -> int:
        """The number of retries, after a check that each is in its place."""
        retries = len(gateway.requests) - len(self.events)
        for run in self.events.values():
            told = range(1, len(run) - 1)
            assert run == [("start", 0), *(("retry", at) for at in told), (end, 0)]
        assert sum(len(run) - 2 for run in self.events.values()) == retries
        return retries


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
    *(Status(503), Status(429), HtmlPage(502), Reset(), Hangup()),
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
            first = FIVE.index(name) + shift
            three = [*islice(cycle(faults), first, first + 3)]
            for end in ("end", "error"):
                handlers = [Handler(raises=True), Handler(), AsyncHandler()]
                gateway.reset_log()
                gateway.always(Answer() if end == "end" else three[0])
                gateway.script(*(three if end == "end" else ()))
                with contextlib.ExitStack() as stack:
                    if end == "error":
                        stack.enter_context(pytest.raises(RetryRouterError))
                    WAYS[way](twin, llm, {"callbacks": handlers})
                told += sum(one.retries(gateway, end) for one in handlers)
    assert told
    figures.counted(told, "retries that handlers were told of")
    figures.exactly(0, 0, MISSED)


def test_what_chat_openai_tells(figures: Figures) -> None:
    """langchain-openai's SDK repeats, and tells nobody."""
    with FaultyGateway() as gateway:
        gateway.script(DOWN_FOR_NOW, DOWN_FOR_NOW)
        chat_openai(gateway.url).invoke("hi")
        figures.peer(len(gateway.requests) - 1, MISSED)
