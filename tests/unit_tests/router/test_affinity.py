"""Conversations that stay on one route: `affinity="conversation"`."""

import asyncio
import contextlib
import copy
import itertools
import json
import pickle
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver

from langchain_retryrouter import RetryRouter, Route
from langchain_retryrouter._router.preflight import conversation_of
from langchain_retryrouter.testing import FakeClock

from . import attempts
from .attempts import Way, every_way, message_of

CONVERSATIONS = 1_000
EQUAL = {"a": 1.0, "b": 1.0, "c": 1.0}


class Place(FakeListChatModel):
    """A model that answers with its name, or is down, or falls silent."""

    is_down: bool = False
    silent_after: int | None = None  # Tokens of an async stream.

    def _call(self, *args: Any, **kwargs: Any) -> str:
        if self.is_down:
            raise ConnectionError
        return super()._call(*args, **kwargs)

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        if self.is_down:
            raise ConnectionError
        yield from super()._stream(*args, **kwargs)

    async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        if self.is_down:
            raise ConnectionError
        for number in itertools.count():
            if number == self.silent_after:
                await asyncio.Event().wait()
            async for chunk in super()._astream(*args, **kwargs):
                yield chunk
            return


def thread(number: Any) -> RunnableConfig:
    return {"configurable": {"thread_id": f"thread-{number}"}}


def router_of(
    weights: dict[str, float], *, strategy: Any = "weighted", **fields: Any
) -> RetryRouter:
    routes = [
        Route(model=Place(responses=[name]), name=name, weight=weight)
        for name, weight in weights.items()
    ]
    fields = {"strategy": strategy, "affinity": "conversation", **fields}
    return attempts.router_of(*routes, **fields)


def pins(router: RetryRouter, conversations: int = CONVERSATIONS) -> list[str]:
    """The route of each conversation."""
    return [router.invoke("hi", thread(n)).text for n in range(conversations)]


@pytest.fixture(scope="module")
def equal() -> list[str]:
    """The routes of the conversations while three of one weight are well."""
    return pins(router_of(EQUAL))


# --- balance and stickiness ---------------------------------------------------------


@pytest.mark.parametrize(
    "weights", [EQUAL, {"a": 7, "b": 2, "c": 1}, {"stable": 95, "canary": 5}], ids=str
)
def test_conversations_are_balanced_by_weight(weights: dict[str, float]) -> None:
    """Of 1,000 conversations each route gets its share within 5 percentage points."""
    led = Counter(pins(router_of(weights)))
    total = sum(weights.values())
    for name, weight in weights.items():
        assert abs(led[name] / CONVERSATIONS - weight / total) <= 0.05


def test_raising_a_canary_moves_conversations_only_to_it() -> None:
    """The conversations of a canary are the same each time, and only get more."""
    none, few, more = (
        pins(router_of({"a": 60, "b": 40, "canary": weight})) for weight in (0, 5, 20)
    )
    for before, after in ((none, few), (few, more)):
        moved = {new for old, new in zip(before, after, strict=True) if old != new}
        assert moved == {"canary"}
    assert Counter(few)["canary"] < Counter(more)["canary"]
    assert "canary" not in none


def test_a_route_that_is_added_or_left_out_moves_only_its_own(equal: list[str]) -> None:
    """Other conversations keep their prompt caches when the list changes."""
    for before, after in zip(equal, pins(router_of({"c": 1, "a": 1})), strict=True):
        assert before in {after, "b"}


PROCESS = """
import json, sys
from langchain_core.language_models import FakeListChatModel
from langchain_retryrouter import RetryRouter, Route
routes = [
    Route(model=FakeListChatModel(responses=[name]), name=name, weight=weight)
    for name, weight in (("a", 3), ("b", 2), ("canary", 1))
]
router = RetryRouter(routes=routes, strategy="weighted", affinity="conversation")
print(json.dumps([
    router.invoke(f"I am {n}", {"configurable": {"thread_id": n} if n % 2 else {}}).text
    for n in range(400)
]))
"""


def test_processes_agree_without_a_store() -> None:
    """Each process has a hash seed of its own, and all pin the same conversations."""

    def run(_: int) -> str:
        command = [sys.executable, "-c", PROCESS]
        return subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(run, range(2)))
    assert len(set(answers)) == 1
    assert set(json.loads(answers[0])) == {"a", "b", "canary"}


# --- what a conversation is ---------------------------------------------------------


@every_way
@pytest.mark.parametrize("around", ["nothing", "a chain", "bound options"])
def test_the_thread_id_counts_whatever_is_said(way: Way, around: str) -> None:
    """Turns are of one conversation if the config of what is around them says so."""
    router = router_of(EQUAL)
    chain: Any = RunnableLambda(lambda text: [HumanMessage(text)]) | router
    for n, name in enumerate(pins(router, 20)):
        asked: Any = chain if around == "a chain" else router
        config: RunnableConfig | None = thread(n)
        if around == "bound options":
            asked, config = router.bind(stop=["x"]).with_config(config), None
        assert message_of(way, asked, f"message {n * 7}", config).text == name


def test_an_agents_turns_stay() -> None:
    """LangGraph keeps the thread id in the config around the node that asks."""
    router = router_of(EQUAL)
    agent: Any = create_agent(router, checkpointer=InMemorySaver())
    for n, name in enumerate(pins(router, 6)):
        given = {"messages": [HumanMessage(f"message {n * 7}")]}
        said = (
            agent.invoke(given, thread(n)),
            asyncio.run(agent.ainvoke(given, thread(n))),
        )
        assert [one["messages"][-1].text for one in said] == [name, name]


def test_a_thread_id_reaches_streams_of_events() -> None:
    """In both versions of LangChain's protocol, sync and async."""
    router = router_of(EQUAL)

    async def listen(number: int) -> list[str]:
        stream = await router.astream_events("x", thread(number), version="v3")
        events = router.astream_events("x", thread(number), version="v2")
        told = [e async for e in events if e["event"] == "on_chat_model_end"]
        return [(await stream.output).text, told[0]["data"]["output"].text]

    for n, name in enumerate(pins(router, 8)):
        with warnings.catch_warnings(action="ignore"):
            stream = router.stream_events("x", thread(n), version="v3")
            told = asyncio.run(listen(n))
        assert [stream.output.text, *told] == [name] * 3


@pytest.mark.parametrize("name", ["session_id", "conversation_id"])
def test_other_names_of_a_thread_count(name: str) -> None:
    """`RunnableWithMessageHistory` calls it a session."""
    router = router_of(EQUAL)
    configs: list[Any] = [{"configurable": {name: f"thread-{n}"}} for n in range(30)]
    assert [router.invoke("x", c).text for c in configs] == pins(router, 30)


@pytest.mark.parametrize("value", [7, 0, UUID(int=7), ["a"], {"a": 1}, None, ""])
@every_way
def test_a_thread_id_may_be_anything(way: Way, value: Any) -> None:
    """Where it is no id, a call is answered all the same, and turns stay."""
    router = router_of(EQUAL)
    for key in ("configurable", "metadata"):
        config: Any = {key: {"session_id": value}}
        assert len({message_of(way, router, "x", config).text for _ in range(3)}) == 1


def turns(*first: BaseMessage) -> list[list[BaseMessage]]:
    """The beginning of a conversation, and its later turns."""
    later = [*first, AIMessage("Yes."), HumanMessage("And then?")]
    return [list(first), later, [*later, AIMessage("No."), HumanMessage("Why?")]]


IMAGE = {"type": "image", "base64": "aaaa", "mime_type": "image/png"}
TEXT = {"type": "text", "text": "Hello"}


# Each entry is the beginning of one conversation, written in several ways.
BEGINNINGS: list[list[list[BaseMessage]]] = [
    [[HumanMessage("Hello")], [HumanMessage([TEXT])], [HumanMessage(["Hello"])]],
    [
        [HumanMessage([TEXT, IMAGE])],
        [HumanMessage([{**TEXT, "id": "b1"}, {**IMAGE, "id": "b2"}])],
        [HumanMessage([TEXT, {**IMAGE, "cache_control": {"type": "ephemeral"}}])],
    ],
    [
        [SystemMessage("Be brief."), HumanMessage("Hello")],
        [SystemMessage("Be brief.", id="s"), HumanMessage("Hello", id="h")],
    ],
    [[HumanMessage("Hi")]],
    [[AIMessage("What can I do?"), HumanMessage("Hello there")]],
    [[HumanMessage("\ud800 half of a character")]],
    [[HumanMessage([TEXT, {**IMAGE, "base64": "bbbb"}])]],
]


def test_a_conversation_is_known_by_its_beginning() -> None:
    """Later messages, ids and marks of caches do not count; all else does."""
    found = [
        {conversation_of(turn, None) for one in ways for turn in turns(*one)}
        for ways in BEGINNINGS
    ]
    assert [len(keys) for keys in found] == [1] * len(BEGINNINGS)
    assert len(set.union({conversation_of([], None)}, *found)) == len(found) + 1


# --- failures -----------------------------------------------------------------------


class Service:
    """A router over two places, and a conversation that begins at the first one."""

    def __init__(self, clock: FakeClock | None) -> None:
        self.clock = clock
        self.router = router_of({"a": 1, "b": 1}, clock=clock)
        self.first, self.second = (route.model for route in self.router.routes)
        routes = enumerate(pins(self.router, 50))
        self.moved, self.new = [n for n, name in routes if name == "a"][:2]

    def ask(self, number: int | None = None) -> str:
        return self.router.invoke("hi", thread(number or self.moved)).text


@pytest.fixture
def service() -> Any:
    """A service whose first place is down; any attribute may be set."""
    service = Service(FakeClock())
    vars(service.first)["is_down"] = True
    return service


def test_a_conversation_that_moved_stays_and_a_new_one_goes_home(service: Any) -> None:
    """The failing call moves it; its prompt is cached there, and goes cold elsewhere.

    It moves back when it has been silent for an hour, or when its new route fails.
    """
    assert service.ask() == "b"
    service.first.is_down = False
    assert service.ask(service.new) == "a"
    for seconds, route in ((60, "b"), (3_000, "b"), (3_000, "b"), (3_601, "a")):
        service.clock.advance(seconds)
        assert service.ask() == route

    service.first.is_down = True
    assert [chunk.text for chunk in service.router.stream("hi", thread(service.moved))]
    service.first.is_down = False
    assert service.ask() == "b"
    service.second.is_down = True
    assert [service.ask() for _ in range(2)] == ["a", "a"]


@pytest.mark.parametrize("leave", ["close", "aclose", "cancel", "before a token"])
def test_a_stream_that_its_caller_leaves_moves_its_conversation(
    service: Any, leave: str
) -> None:
    """The route had begun to answer after the failover: it has the prompt cached.

    Whether it would have answered is not known before its first token.
    """
    is_early = leave == "before a token"
    service.second.silent_after = 0 if is_early else 1
    config = thread(service.moved)

    async def read(begun: asyncio.Event) -> None:
        async with contextlib.aclosing(service.router.astream("hi", config)) as chunks:
            async for _ in chunks:
                begun.set()
                if leave == "aclose":
                    return

    async def begin() -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(read(begun))
        if leave != "aclose":
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(begun.wait(), 0.1 if is_early else 30)
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    if leave == "close":
        chunks = service.router.stream("hi", config)
        next(chunks)
        chunks.close()
    else:
        asyncio.run(begin())
    assert service.router.health()["routes"][0]["failed"] == 1
    service.first.is_down = False
    assert service.ask() == ("a" if is_early else "b")


def test_only_the_conversations_of_a_sick_route_move(equal: list[str]) -> None:
    """A simulated outage over 1,000 conversations: the others do not notice it."""
    router = router_of(EQUAL)
    vars(router.routes[0].model)["is_down"] = True
    during = pins(router)
    for old, new in zip(equal, during, strict=True):
        assert old in {new, "a"}
    led = Counter(new for old, new in zip(equal, during, strict=True) if old == "a")
    assert abs(led["b"] - led["c"]) <= 0.2 * led.total()


def test_the_memory_of_moved_conversations_is_bounded() -> None:
    """A long outage does not fill the memory of a process."""
    order = router_of({"a": 1, "b": 1})._memory.order  # noqa: SLF001 - not public
    for n in range(30_000):
        order.served(str(n).encode(), n % 2, 0.0)
    assert len(order._moved) == 10_000  # noqa: SLF001


def test_copies_remember_together_and_other_processes_begin_anew() -> None:
    """Bound copies of a router are one caller; a pickle is another process."""
    service: Any = Service(None)
    service.first.is_down = True
    assert service.ask() == "b"
    service.first.is_down = False
    travelled = pickle.loads(pickle.dumps(service.router))
    for router, route in ((copy.deepcopy(service.router), "b"), (travelled, "a")):
        assert router.invoke("hi", thread(service.moved)).text == route


# --- choices ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("routes", "fields", "served"),
    [
        # A backup that is only listed gets none while the first is well.
        ([{}, {}], {}, {"a"}),
        # A weight alone is meant; keys of a tier have their own, the next tier none.
        ([{"weight": 1}] * 2, {}, {"a", "b"}),
        ([{"tier": 0}, {"tier": 0}, {"tier": 1}], {}, {"a", "b"}),
        ([{}, {}], {"strategy": "round_robin"}, {"a", "b"}),
    ],
    ids=["list", "weights", "tiers", "turns"],
)
def test_what_a_router_says_of_its_routes_spreads_conversations(
    routes: list[Any], fields: dict[str, Any], served: set[str]
) -> None:
    """The list's order stays unless weights, tiers or a strategy ask for more."""
    given = [
        Route(model=FakeListChatModel(responses=[name]), name=name, **own)
        for name, own in zip("abc", routes, strict=False)
    ]
    router = RetryRouter(routes=given, affinity="conversation", **fields)
    led = pins(router, 100)
    assert set(led) == served
    assert led == pins(router, 100)


def test_the_fastest_route_cannot_be_kept() -> None:
    """Two wishes that exclude each other are an error, and none is ignored."""
    with pytest.raises(ValueError, match=r"least_latency.*choose 'weighted'"):
        router_of({"a": 1}, strategy="least_latency")
