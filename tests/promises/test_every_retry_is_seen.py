"""Each request but the first of a call is a retry, and each is told of as one."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import openai
import pytest
from langchain_core.runnables import RunnableConfig
from langchain_core.tracers.langchain import LangChainTracer

from langchain_retryrouter import RetryRouterError
from langchain_retryrouter._retry.clock import new_rng
from langchain_retryrouter.testing import (
    Answer,
    FakeClock,
    FaultyGateway,
    Hangup,
    HtmlPage,
    Reset,
    Status,
    Step,
    Truncate,
)
from tests.promises.evidence import Evidence, Length, Promise
from tests.promises.five_models import FIVE_MODELS
from tests.promises.listeners import (
    TEMPERS,
    AnyListener,
    Listener,
    World,
    misplaced_in,
    of_every_temper,
    retries_in,
)
from tests.promises.peer_models import (
    DOWN_FOR_NOW,
    chat_openai,
    old_gpt_router,
    old_openai,
)
from tests.promises.ways import Way, ways_of
from tests.unit_tests import test_langsmith
from tests.unit_tests.conftest import Twin

PROMISE = Promise(
    title="Every retry is seen",
    number="`on_retry` for each request but the first, before the end",
    why=(
        "A retry that no callback and no trace shows is a slow answer that nobody can"
        " explain. The provider counts the requests; handlers that are sync, async,"
        " slow and broken count what they are told, whichever way a call takes through"
        " LangChain, and whether it is answered in the end or not."
    ),
)
INVOKED: Final = "on_retry events for an answer that comes at the third request"
STREAMED: Final = "on_retry events for a stream that comes at the third request"
TOLD: Final = "retries that each handler is told of, percent"
MISPLACED: Final = "runs whose retries are told out of order, or too late"
TRACED: Final = "retries that are events of their run in LangSmith, percent"

MAX_RETRIES: Final = 4
MOST_FAULTS: Final = 3
CHANCE_TO_END_WELL: Final = 0.6
FAULTS: Final[tuple[Step, ...]] = (
    Status(503),
    Status(429),
    Status(500),
    HtmlPage(502),
    Reset(),
    Hangup(),
)

collector, tracer = test_langsmith.collector, test_langsmith.tracer


@pytest.fixture(scope="module", autouse=True)
def whole_http_library() -> None:
    """It imports parts of itself when first used, which blocks an event loop."""
    openai.DefaultHttpxClient().close()


# --- ours ---


def new_model(model: str, gateway: FaultyGateway, clock: FakeClock) -> Any:
    """One of the five, that repeats often enough for any script here."""
    return FIVE_MODELS[model](gateway, clock, max_retries=MAX_RETRIES, timeout=30)


@dataclass(frozen=True)
class RetryContext:
    """One call to be made."""

    name: str
    way: Way
    faults: tuple[Step, ...]
    ends_well: bool

    def make(self, twin: Twin, llm: Any, gateway: FaultyGateway, ears: Any) -> None:
        """Make it, heard by `ears`; the gateway counts from here."""
        gateway.reset_log()
        call = partial(self.way, twin, llm, {"callbacks": ears})
        gateway.always(Answer() if self.ends_well else self.faults[0])
        if self.ends_well:
            gateway.script(*self.faults)
            call()
        else:
            with pytest.raises(RetryRouterError):
                call()

    def check(self, one: AnyListener, evidence: Evidence) -> None:
        """One handler was told of each retry, once, where it belongs."""
        end = "end" if self.ends_well else "error"
        has_end = not self.name.startswith("completion")
        runs = len({event.run_id for event in one.heard})
        retries = len(one.world.gateway.requests) - runs
        told = retries_in(one.heard)
        misplaced = misplaced_in(one.heard, end=end if has_end else None)
        story = f"{self}: {type(one).__name__} heard {one.heard}"
        assert (told, misplaced) == (retries, 0), story
        assert retries >= 1, story
        evidence.exactly(100, 100 * told / retries, TOLD)
        evidence.exactly(0, misplaced, MISPLACED)


def plans(twin: Twin, model: str, length: Length) -> Iterator[RetryContext]:
    """Each way, with faults that the dice choose; in short with one of the two ends."""
    for seed in range(length.of(short=1, long=2)):
        rng = new_rng(seed)
        for name, way in ways_of(twin, model).items():
            choice = [*FAULTS, Truncate(0)] if "stream" in name else FAULTS
            count = 1 + int(rng() * MOST_FAULTS)
            faults = tuple(choice[int(rng() * len(choice))] for _ in range(count))
            ends = [True, False] if length.is_long else [rng() < CHANCE_TO_END_WELL]
            for ends_well in ends:
                yield RetryContext(name, way, faults, ends_well)


@pytest.mark.parametrize("model", FIVE_MODELS)
def test_whatever_way_a_call_takes(
    twin: Twin,
    model: str,
    faulty_gateway: FaultyGateway,
    fake_clock: FakeClock,
    evidence: Evidence,
    length: Length,
) -> None:
    """Whoever listens is told of each retry, on whichever way, however it ends."""
    llm = new_model(model, faulty_gateway, fake_clock)
    world = World(faulty_gateway, fake_clock)
    alone = TEMPERS.values() if length.is_long else ()
    for plan in plans(twin, model, length):
        for new_listeners in (of_every_temper, *alone):
            listeners = new_listeners(world)
            plan.make(twin, llm, faulty_gateway, list(listeners))
            for one in listeners:
                plan.check(one, evidence)
            evidence.counted(1, "calls made")
            evidence.counted(retries_in(listeners[0].heard), "retries made")


def at_the_third(
    gateway: FaultyGateway, call: Callable[[RunnableConfig], object], fault: Step
) -> int:
    """How many retries are told where two requests fail and the third is answered."""
    listener = Listener(World(gateway, FakeClock()))
    gateway.always(Answer())
    gateway.script(fault, fault)
    with contextlib.suppress(Exception):
        call({"callbacks": [listener]})
    return retries_in(listener.heard)


@pytest.mark.parametrize("model", FIVE_MODELS)
def test_two_faults_are_two_events(
    twin: Twin,
    model: str,
    faulty_gateway: FaultyGateway,
    fake_clock: FakeClock,
    evidence: Evidence,
) -> None:
    """What the peers are put through as well: two faults, and an answer."""
    llm = new_model(model, faulty_gateway, fake_clock)
    for ask, what in ((twin.invoke, INVOKED), (twin.stream, STREAMED)):
        told = at_the_third(faulty_gateway, partial(ask, llm, "hi"), DOWN_FOR_NOW)
        evidence.exactly(2, told, what)


@pytest.mark.parametrize("model", FIVE_MODELS)
def test_langsmith_shows_each(
    twin: Twin,
    model: str,
    faulty_gateway: FaultyGateway,
    fake_clock: FakeClock,
    collector: test_langsmith.Collector,
    tracer: LangChainTracer,
    evidence: Evidence,
) -> None:
    """The run that LangSmith is sent has an event `retry` for each."""
    llm = new_model(model, faulty_gateway, fake_clock)
    for ask in (twin.invoke, twin.stream):
        faulty_gateway.script(Status(503), Reset(), Status(429))
        ask(llm, "hi", {"callbacks": [tracer]})
    test_langsmith.flush(tracer)

    runs = collector.runs_of("llm")
    assert len(runs) == 2
    retries = len(faulty_gateway.requests) - len(runs)
    numbers = [
        [retry["attempt"] for retry in test_langsmith.retries_of(run)] for run in runs
    ]
    assert numbers == [[1, 2, 3]] * 2
    assert {run["events"][-1]["name"] for run in runs} == {"end"}
    evidence.exactly(100, 100 * sum(map(len, numbers)) / retries, TRACED)


# --- peers ---


def test_chat_openai(
    faulty_gateway: FaultyGateway,
    collector: test_langsmith.Collector,
    tracer: LangChainTracer,
    evidence: Evidence,
) -> None:
    """langchain-openai's SDK repeats, and tells nobody."""
    llm = chat_openai(faulty_gateway, MAX_RETRIES)
    for ask, what in ((llm.invoke, INVOKED), (_streamed(llm), STREAMED)):
        told = at_the_third(faulty_gateway, partial(ask, "hi"), DOWN_FOR_NOW)
        evidence.peer("ChatOpenAI", told, what)
    assert len(faulty_gateway.requests) == 6
    faulty_gateway.script(DOWN_FOR_NOW)
    llm.invoke("hi", {"callbacks": [tracer]})
    test_langsmith.flush(tracer)
    [run] = collector.runs_of("llm")
    evidence.peer("ChatOpenAI", 100 * len(test_langsmith.retries_of(run)), TRACED)


def test_community_openai(faulty_gateway: FaultyGateway, evidence: Evidence) -> None:
    """langchain-community's SDK repeats, and tells nobody."""
    llm = old_openai(faulty_gateway, MAX_RETRIES)
    for ask, what in ((llm.invoke, INVOKED), (_streamed(llm), STREAMED)):
        told = at_the_third(faulty_gateway, partial(ask, "hi"), DOWN_FOR_NOW)
        evidence.peer("community OpenAI", told, what)
    assert len(faulty_gateway.requests) == 6


def test_community_gpt_router(
    faulty_gateway: FaultyGateway, evidence: Evidence, length: Length
) -> None:
    """langchain-community's model tells of the retries of `invoke`; streams have none.

    It waits 4 s for each, so that there is time for it in the long form only.
    """
    llm = old_gpt_router(faulty_gateway, MAX_RETRIES)
    with old_ways():
        told = at_the_third(faulty_gateway, partial(_streamed(llm), "hi"), Status(503))
    evidence.peer("community GPTRouter", told, STREAMED)
    assert len(faulty_gateway.requests) == 1
    if length.is_long:
        told = at_the_third(faulty_gateway, partial(llm.invoke, "hi"), Status(503))
        evidence.peer("community GPTRouter", told, INVOKED)


def _streamed(llm: Any) -> Callable[[str, RunnableConfig], object]:
    return lambda prompt, config: list(llm.stream(prompt, config))


@contextlib.contextmanager
def old_ways() -> Iterator[None]:
    """The SDK of the gateway warns of its own calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
