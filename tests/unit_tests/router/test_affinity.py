"""Conversations that stay on one route: `affinity="conversation"`."""

import asyncio
import contextlib
import copy
import json
import pickle
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, cast
from uuid import UUID

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver

from langchain_retryrouter import RetryPolicy, RetryRouter, Route
from langchain_retryrouter._router.preflight import conversation_of
from langchain_retryrouter._router.strategies import rendezvous
from langchain_retryrouter.testing import (
    Answer,
    FakeClock,
    FaultyGateway,
    Silence,
    Stall,
    Status,
)

from .attempts import WAYS, Way
from .test_pools import gpt_router

CONVERSATIONS = 1_000
every_way = pytest.mark.parametrize("way", WAYS, ids=str)


def thread(number: Any) -> RunnableConfig:
    return {"configurable": {"thread_id": f"thread-{number}"}}


def router_of(
    weights: dict[str, float], *, strategy: Any = "weighted", **fields: Any
) -> RetryRouter:
    routes = [
        Route(model=FakeListChatModel(responses=[name]), name=name, weight=weight)
        for name, weight in weights.items()
    ]
    return RetryRouter(
        routes=routes, strategy=strategy, affinity="conversation", **fields
    )


def pins(router: RetryRouter, conversations: int = CONVERSATIONS) -> list[str]:
    """The route of each conversation."""
    return [router.invoke("hi", thread(n)).text for n in range(conversations)]


def ask(way: Way, router: Any, given: Any, config: RunnableConfig | None) -> str:
    """The text of the answer, in one of four ways."""

    async def aask() -> str:
        if not way.is_streaming:
            return str((await router.ainvoke(given, config)).text)
        chunks = [chunk async for chunk in router.astream(given, config)]
        return "".join(chunk.text for chunk in chunks)

    if way.is_async:
        return asyncio.run(aask())
    if way.is_streaming:
        return "".join(chunk.text for chunk in router.stream(given, config))
    return str(router.invoke(given, config).text)


# --- balance and stickiness ---------------------------------------------------------


@pytest.mark.parametrize(
    "weights",
    [
        {"a": 1, "b": 1},
        {"a": 1, "b": 1, "c": 1},
        {"a": 7, "b": 2, "c": 1},
        {"stable": 95, "canary": 5},
    ],
    ids=str,
)
def test_conversations_are_balanced_by_weight(weights: dict[str, float]) -> None:
    """Of 1,000 conversations each route gets its share within 5 percentage points."""
    led = Counter(pins(router_of(weights)))
    total = sum(weights.values())
    for name, weight in weights.items():
        assert abs(led[name] / CONVERSATIONS - weight / total) <= 0.05


@pytest.mark.parametrize("strategy", ["weighted", "round_robin"])
def test_all_turns_of_a_conversation_stay(strategy: Any) -> None:
    """The second turn of each conversation is on the route of its first."""
    router = router_of({"a": 1, "b": 1, "c": 1}, strategy=strategy)
    assert pins(router, 200) == pins(router, 200)


def test_raising_a_canary_moves_conversations_only_to_it() -> None:
    """The conversations of a canary are the same each time, and only get more."""
    few = pins(router_of({"a": 60, "b": 40, "canary": 5}))
    more = pins(router_of({"a": 60, "b": 40, "canary": 20}))
    none = pins(router_of({"a": 60, "b": 40, "canary": 0}))
    for before, after in ((none, few), (few, more)):
        moved = {new for old, new in zip(before, after, strict=True) if old != new}
        assert moved == {"canary"}
    assert Counter(few)["canary"] < Counter(more)["canary"]
    assert "canary" not in none


def test_a_route_that_is_added_or_left_out_moves_only_its_own() -> None:
    """Other conversations keep their prompt caches when the list changes."""
    three = pins(router_of({"a": 1, "b": 1, "c": 1}))
    two = pins(router_of({"c": 1, "a": 1}))
    for before, after in zip(three, two, strict=True):
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


@pytest.mark.timeout(180)  # Each process imports LangChain.
def test_processes_agree_without_a_store() -> None:
    """Each process has a hash seed of its own, and all pin the same conversations."""

    def run(_: int) -> str:
        command = [sys.executable, "-c", PROCESS]
        return subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(run, range(3)))
    assert len(set(answers)) == 1
    assert set(json.loads(answers[0])) == {"a", "b", "canary"}


# --- what a conversation is ---------------------------------------------------------


@every_way
@pytest.mark.parametrize("around", ["nothing", "a chain", "bound options"])
def test_the_thread_id_counts_whatever_is_said(way: Way, around: str) -> None:
    """Turns are of one conversation if the config of what is around them says so."""
    router = router_of({"a": 1, "b": 1, "c": 1})
    chain: Any = RunnableLambda(lambda text: [HumanMessage(text)]) | router
    for n, name in enumerate(pins(router, 20)):
        asked: Any = chain if around == "a chain" else router
        config: RunnableConfig | None = thread(n)
        if around == "bound options":
            asked, config = router.bind(stop=["x"]).with_config(config), None
        assert ask(way, asked, f"message {n * 7}", config) == name


def test_an_agents_turns_stay() -> None:
    """LangGraph keeps the thread id in the config around the node that asks."""
    router = router_of({"a": 1, "b": 1, "c": 1})
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
    router = router_of({"a": 1, "b": 1, "c": 1})

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


@pytest.mark.parametrize("name", ["thread_id", "session_id", "conversation_id"])
def test_other_names_of_a_thread_count(name: str) -> None:
    """`RunnableWithMessageHistory` calls it a session."""
    router = router_of({"a": 1, "b": 1, "c": 1})
    configs: list[Any] = [{"configurable": {name: f"thread-{n}"}} for n in range(30)]
    assert [router.invoke("x", c).text for c in configs] == pins(router, 30)


@pytest.mark.parametrize("value", [7, 0, UUID(int=7), ["a"], {"a": 1}, None, ""])
@every_way
def test_a_thread_id_may_be_anything(way: Way, value: Any) -> None:
    """Where it is no id, a call is answered all the same, and turns stay."""
    router = router_of({"a": 1, "b": 1, "c": 1})
    named = {"session_id": value}
    for config in ({"configurable": named}, {"metadata": named}):
        assert len({ask(way, router, "x", cast("Any", config)) for _ in range(3)}) == 1


def turns(*first: BaseMessage) -> list[list[BaseMessage]]:
    """The beginning of a conversation, and its later turns."""
    later = [*first, AIMessage("Yes."), HumanMessage("And then?")]
    return [list(first), later, [*later, AIMessage("No."), HumanMessage("Why?")]]


IMAGE = {"type": "image", "base64": "aaaa", "mime_type": "image/png"}
TEXT = {"type": "text", "text": "Hello"}


@pytest.mark.parametrize(
    "beginnings",
    [
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
        [[AIMessage("What can I do?"), HumanMessage("Hello")]],
        [[HumanMessage("\ud800 half of a character")]],
    ],
    ids=["text", "blocks", "system", "greeting", "surrogate"],
)
def test_the_beginning_of_a_conversation_is_the_same_in_all_turns(
    beginnings: list[list[BaseMessage]],
) -> None:
    """Neither later messages, nor ids, nor marks of caches change it."""
    keys = {conversation_of(t, None) for one in beginnings for t in turns(*one)}
    assert len(keys) == 1


def test_other_beginnings_are_other_conversations() -> None:
    """The system message counts, and so do images."""
    other = {**IMAGE, "base64": "bbbb"}
    begun: list[list[BaseMessage]] = [
        [HumanMessage("Hello")],
        [HumanMessage("Hi")],
        [SystemMessage("Be brief."), HumanMessage("Hello")],
        [HumanMessage([TEXT, IMAGE])],
        [HumanMessage([TEXT, other])],
        [],
    ]
    assert len({conversation_of(one, None) for one in begun}) == len(begun)


# --- failures -----------------------------------------------------------------------


class Service:
    """Two providers, of which either may be down."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.gateways = {"a": FaultyGateway(), "b": FaultyGateway()}

    def __enter__(self) -> Self:
        routes = []
        for name, gateway in self.gateways.items():
            gateway.start()
            model = gpt_router(api_key="k", base_url=gateway.url, max_retries=0)
            routes.append(Route(model=model, name=name))
        self.router = RetryRouter(
            routes=routes,
            strategy="weighted",
            affinity="conversation",
            clock=self.clock,
            retry_policy=RetryPolicy(max_retries=0),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.router.close()
        for gateway in self.gateways.values():
            gateway.stop()

    def ask(self, number: int, *, is_stream: bool = False) -> str:
        if is_stream:
            answer: Any = list(self.router.stream("hi", thread(number)))[-1]
        else:
            answer = self.router.invoke("hi", thread(number))
        return str(answer.response_metadata["retryrouter"]["route"])

    def home(self, name: str, after: int = 0) -> int:
        """A conversation whose first route is this one."""
        return next(
            n
            for n in range(after, 1_000)
            if rendezvous(
                conversation_of([], {"thread_id": f"thread-{n}"}), ["a", "b"], [1, 1]
            )[0]
            == (0 if name == "a" else 1)
        )


def test_a_conversation_that_moved_stays_and_a_new_one_goes_home() -> None:
    """The failing call moves it; its prompt is cached there, and goes cold elsewhere.

    It moves back when it has been silent for an hour, or when its new route fails.
    """
    clock = FakeClock()
    with Service(clock) as service:
        moved, new = service.home("a"), service.home("a", 500)
        service.gateways["a"].always(Status(503))
        assert service.ask(moved) == "b"
        service.gateways["a"].always(Answer())
        clock.advance(60)
        assert service.ask(moved) == "b"
        assert service.ask(new) == "a"
        clock.advance(3_000)
        assert service.ask(moved) == "b"
        clock.advance(3_000)
        assert service.ask(moved) == "b"
        clock.advance(3_601)
        assert service.ask(moved) == "a"


@pytest.mark.parametrize("leave", ["close", "aclose", "cancel"])
def test_a_stream_that_its_caller_leaves_moves_its_conversation(leave: str) -> None:
    """The route had begun to answer after the failover: it has the prompt cached."""
    with Service(FakeClock()) as service:
        moved = service.home("a")
        service.gateways["a"].always(Status(503))
        service.gateways["b"].script(Stall(after=1, seconds=30))

        async def begin(begun: asyncio.Event) -> None:
            chunks = cast(
                "AsyncGenerator[Any]", service.router.astream("hi", thread(moved))
            )
            async for _ in chunks:
                begun.set()
                if leave == "aclose":
                    break
            await chunks.aclose()

        async def abegin() -> None:
            begun = asyncio.Event()
            task = asyncio.create_task(begin(begun))
            if leave == "cancel":
                await begun.wait()
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        if leave == "close":
            sync = cast("Generator[Any]", service.router.stream("hi", thread(moved)))
            next(sync)
            sync.close()
        else:
            asyncio.run(abegin())
        service.gateways["a"].always(Answer())
        assert service.ask(moved) == "b"


def test_a_stream_that_is_left_before_its_first_token_moves_nothing() -> None:
    """Whether the route would have answered is not known."""
    with Service(FakeClock()) as service:
        moved = service.home("a")
        service.gateways["a"].script(Status(503))
        service.gateways["b"].always(Silence())

        async def cancelled() -> None:
            chunks = service.router.astream("hi", thread(moved))
            task = asyncio.ensure_future(anext(chunks))
            await service.gateways["b"].await_for(lambda one: bool(one.requests))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(cancelled())
        service.gateways["b"].always(Answer())
        assert service.ask(moved) == "a"


def test_a_conversation_whose_new_route_fails_goes_home() -> None:
    """Where it began is where it is expected by all processes."""
    clock = FakeClock()
    with Service(clock) as service:
        moved = service.home("a")
        service.gateways["a"].always(Status(503))
        assert service.ask(moved, is_stream=True) == "b"
        service.gateways["a"].always(Answer())
        assert service.ask(moved, is_stream=True) == "b"
        service.gateways["b"].always(Status(503))
        clock.advance(60)
        assert [service.ask(moved) for _ in range(2)] == ["a", "a"]


def test_only_the_conversations_of_a_sick_route_move() -> None:
    """A simulated outage over 1,000 conversations: the others do not notice it."""
    weights = {"a": 1.0, "b": 1.0, "c": 1.0}
    before = pins(router_of(weights))
    broken = Route(model=Broken(responses=["x"]), name="a")
    routes = [broken, *router_of(weights).routes[1:]]
    during = pins(
        RetryRouter(
            routes=routes,
            strategy="weighted",
            affinity="conversation",
            clock=FakeClock(),
        )
    )
    for old, new in zip(before, during, strict=True):
        assert old in {new, "a"}
    led = Counter(new for old, new in zip(before, during, strict=True) if old == "a")
    assert abs(led["b"] - led["c"]) <= 0.2 * led.total()


class Broken(FakeListChatModel):
    """A model that is down."""

    def _call(self, *args: Any, **kwargs: Any) -> str:
        del args, kwargs
        raise ConnectionError


def test_the_memory_of_moved_conversations_is_bounded() -> None:
    """A long outage does not fill the memory of a process."""
    router = router_of({"a": 1, "b": 1}, clock=FakeClock())
    order = router._memory.order  # noqa: SLF001 - nothing public tells its size
    for n in range(30_000):
        order.served(str(n).encode(), n % 2, 0.0)
    assert len(order._moved) == 10_000  # noqa: SLF001


def test_copies_remember_together_and_other_processes_begin_anew() -> None:
    """Bound copies of a router are one caller; a pickle is another process."""
    router = router_of({"a": 1, "b": 1})
    order = router._memory.order  # noqa: SLF001 - not public
    order.served(b"x", 1 - order.order(0, lambda _: False, b"x")[0], 0.0)
    assert copy.deepcopy(order) is copy.copy(order) is order
    fresh = pickle.loads(pickle.dumps(order))
    assert fresh.order(0, lambda _: False, b"x") != order.order(
        0, lambda _: False, b"x"
    )


# --- choices ------------------------------------------------------------------------


def test_priority_stays_the_order_of_the_list() -> None:
    """A backup that is only listed gets no conversations while the first is well."""
    routes = [FakeListChatModel(responses=[name]) for name in "ab"]
    router = RetryRouter(routes=routes, affinity="conversation")
    assert set(pins(router, 50)) == {"a"}


@pytest.mark.parametrize(
    "fields",
    [[{"weight": 1}] * 2, [{"tier": 0}, {"tier": 0}, {"tier": 1}]],
    ids=["weights", "tiers"],
)
def test_weights_and_tiers_spread_conversations(fields: list[Any]) -> None:
    """A weight alone is meant; keys of a tier have their own, the next tier none."""
    routes = [
        Route(model=FakeListChatModel(responses=[name]), name=name, **given)
        for name, given in zip("abc", fields, strict=False)
    ]
    router = RetryRouter(routes=routes, affinity="conversation")
    led = pins(router, 100)
    assert set(led) == {"a", "b"}
    assert led == pins(router, 100)


def test_the_fastest_route_cannot_be_kept() -> None:
    """Two wishes that exclude each other are an error, and none is ignored."""
    with pytest.raises(ValueError, match=r"least_latency.*choose 'weighted'"):
        router_of({"a": 1}, strategy="least_latency")
