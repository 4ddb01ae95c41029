"""A stream that ends too early, wherever and however, is never a short answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple

import pytest

from langchain_retryrouter import RetryPolicy, RetryRouterError
from langchain_retryrouter.testing import FaultyGateway, Raw
from tests.promises.evidence import Evidence, Length, Promise
from tests.promises.recordings import (
    END_OF_BODY,
    LOST_CONNECTION,
    PAGE_BETWEEN,
    SILENCE,
    WAYS,
    Protocol,
    Recording,
    Way,
    captured,
    cut_json,
    recorded,
    whole_bodies,
    whole_json,
)
from tests.promises.stream_listeners import (
    LISTENERS,
    ONCE,
    Heard,
    Listener,
    Stage,
    Unstreamed,
    alisten,
    listen,
    unstreamed,
)
from tests.promises.tally import Tally
from tests.promises.truncated_peers import peers
from tests.unit_tests.conftest import Twin

PROMISE = Promise(
    title="No truncated success",
    number="0 answers without an end, wherever a stream is cut",
    why=(
        "Half an answer that looks whole is worse than an error. Recorded streams of"
        " both protocols are cut at every byte by a clean end of the body and by FIN,"
        " and at many by RST, silence, a proxy's page and random bytes. Who gets no"
        " error has all of the answer and its finish reason; who gets one has heard"
        " exactly the beginning, which the error repeats. Only a page in the middle of"
        " a stream that goes on is not seen in a route whose SDK ignores such lines."
    ),
)

logger = logging.getLogger(__name__)

_TAKEN = "cut streams taken for whole answers"
_LOST = "broken streams with a character lost or doubled"
_NOT_GOOD = "broken streams that a retry should have made whole, and did not"
_UNNAMED = "broken streams whose error is none of ours"
_BODIES = "cut JSON bodies taken for answers"
_OF_100 = "of 100 streams cut by {}, taken for whole answers"
_AT_ONCE = 16
_A_SLICE = 1_000

_SILENT = RetryPolicy(max_retries=0, stall_timeout=0.05, first_token_timeout=0.05)
_FEW = ("02_stream_ok", "06_stream_tool", "80_mid_cut_stream", "a8_newlines_stream")


class Break(NamedTuple):
    """One exchange: what is broken, how, and where."""

    recording: Recording
    way: Way
    place: int

    @property
    def steps(self) -> tuple[Raw, Raw]:
        """The broken stream, and the whole one for who asks again."""
        first = self.way.step(self.recording, self.place)
        return first, Raw(self.recording.whole, close=False)


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """The first client of a process reads files, which none may do in a coroutine."""
    with FaultyGateway(gptrouter="hosted") as gateway:
        for asking in unstreamed(gateway):
            assert asking.ask("hi") is not None


@pytest.fixture
def gateway() -> Iterator[FaultyGateway]:
    """A gateway that keeps no requests, since there are many."""
    with FaultyGateway(keep_requests=0, gptrouter="hosted") as gateway:
        yield gateway


def breaks(recordings: Iterable[Recording], way: Way, *, every: int) -> Iterator[Break]:
    """Each recording broken at one byte of `every` many, each at other ones."""
    for shift, recording in enumerate(recordings):
        for place in way.places(recording)[shift * 7 % every :: every]:
            yield Break(recording, way, place)


def tally_of(
    twin: Twin,
    listener: Listener,
    gateway: FaultyGateway,
    planned: Iterator[Break],
    policy: RetryPolicy = ONCE,
) -> Tally:
    """What becomes of all these, heard by `listener`."""
    tally, stage = Tally(), Stage(gateway)
    retried = RetryPolicy(max_retries=1)
    llm = listener.new(gateway, retried if listener.is_retried else policy)
    requests = 2 if listener.is_retried else 1
    # One loop for all: a foreign client's connections do not outlive theirs.
    with asyncio.Runner() as runner:
        while some := list(islice(planned, _A_SLICE)):
            prompts = [stage.prompt_for(*one.steps[:requests]) for one in some]
            if twin.is_async:
                everyone = runner.run(_aheard(listener, llm, prompts))
            else:
                everyone = _heard(listener, llm, prompts)
            for one, heard in zip(some, everyone, strict=True):
                tally.take(listener, *one, heard)
    return tally


def _heard(listener: Listener, llm: Any, prompts: list[str]) -> list[Heard]:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(partial(listen, listener, llm), prompts))


async def _aheard(listener: Listener, llm: Any, prompts: list[str]) -> list[Heard]:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def hear(prompt: str) -> Heard:
        async with gate:
            return await alisten(listener, llm, prompt)

    return await asyncio.gather(*map(hear, prompts))


def take_down(evidence: Evidence, tally: Tally) -> None:
    """The figures of a tally; of what went wrong, some stands in the log."""
    for example in tally.examples[:20]:
        logger.error(example)
    evidence.counted(tally.tried, "streams broken")
    evidence.exactly(0, tally.taken_for_whole, _TAKEN)
    evidence.exactly(0, tally.lost_or_doubled, _LOST)
    evidence.exactly(0, tally.not_made_good, _NOT_GOOD)
    evidence.exactly(0, tally.unnamed_errors, _UNNAMED)


def heard_by(listener: Listener, gateway: FaultyGateway) -> list[Recording]:
    """A few recordings that differ, as far as this one can ask for them."""
    few = [one for one in captured() if one.name in _FEW] + recorded(gateway)
    heard = [one for one in few if listener.takes(one)]
    assert heard
    return heard


def test_no_byte_is_a_place_to_be_cut_at(
    gateway: FaultyGateway, evidence: Evidence, length: Length
) -> None:
    """Wherever a recorded stream is cut, it is an error or was over."""
    recordings, ways = captured()[:1], [END_OF_BODY]
    if length.is_long:
        recordings, ways = captured(), [END_OF_BODY, LOST_CONNECTION]
    every_byte = (breaks(recordings, way, every=1) for way in ways)
    planned = chain.from_iterable(every_byte)

    tally = tally_of(Twin(is_async=False), LISTENERS[0], gateway, planned)

    assert tally.tried >= len(ways) * sum(len(one.body) for one in recordings)
    take_down(evidence, tally)


@pytest.mark.parametrize("listener", LISTENERS, ids=lambda one: one.name)
def test_no_listener_takes_a_part_for_the_whole(
    twin: Twin,
    gateway: FaultyGateway,
    evidence: Evidence,
    length: Length,
    listener: Listener,
) -> None:
    """However a stream is broken, and whoever listens, he hears the truth."""
    recordings = heard_by(listener, gateway)
    ways = [*WAYS, PAGE_BETWEEN] if listener.has_reader else WAYS
    all_of_them = (
        breaks(
            recordings,
            way,
            every=length.of(short=599, long=3 if way is END_OF_BODY else 11),
        )
        for way in ways
    )

    planned = chain.from_iterable(all_of_them)

    take_down(evidence, tally_of(twin, listener, gateway, planned))


@pytest.mark.parametrize(
    "listener",
    [one for one in LISTENERS if not one.is_retried],
    ids=lambda one: one.name,
)
def test_silence_is_no_end(
    twin: Twin,
    gateway: FaultyGateway,
    evidence: Evidence,
    length: Length,
    listener: Listener,
) -> None:
    """A stream that says nothing more is an error once its time is up."""
    every = length.of(short=1_499, long=29)
    planned = breaks(heard_by(listener, gateway), SILENCE, every=every)

    take_down(evidence, tally_of(twin, listener, gateway, planned, _SILENT))


@pytest.mark.parametrize("way", [END_OF_BODY, LOST_CONNECTION], ids=["end", "fin"])
def test_what_peers_make_of_a_cut_stream(
    gateway: FaultyGateway, evidence: Evidence, length: Length, way: Way
) -> None:
    """A stream that is cut before its end is an error, whoever is in between."""
    recordings = {one.protocol: one for one in recorded(gateway)[:2] + captured()[:1]}
    what = _OF_100.format(way.name)
    tries = length.of(short=4, long=60)

    def cut(protocol: Protocol) -> Iterator[Raw]:
        recording = recordings[protocol]
        for number in range(tries):
            body = (recording.ends_at or 0) * (number + 1) // (tries + 1)
            place = recording.in_response(body) if way.is_of_response else body
            assert not way.is_behind_the_end(recording, place)
            yield way.step(recording, place)

    ours = [one for one in LISTENERS if not one.is_retried]
    for listener in ours:
        llm = listener.new(gateway, ONCE)
        ask = partial(_listen_strictly, listener, llm)
        share = _share_taken(gateway, cut(listener.protocol), ask)
        evidence.exactly(0, share, what)
    for peer in peers(gateway):
        share = _share_taken(gateway, cut(peer.protocol), peer.stream)
        evidence.peer(peer.name, share, what)


def _listen_strictly(listener: Listener, llm: Any, prompt: str) -> None:
    for _ in listener.stream(llm, prompt):
        pass


def _share_taken(
    gateway: FaultyGateway, steps: Iterable[Raw], ask: Callable[[str], Any]
) -> float:
    stage, tried, disabled_retries = Stage(gateway), 0, 0
    for step in steps:
        tried += 1
        with contextlib.suppress(Exception):
            ask(stage.prompt_for(step))
            disabled_retries += 1
    return 100 * disabled_retries / tried


def test_no_part_of_a_body_is_an_answer(
    twin: Twin, gateway: FaultyGateway, evidence: Evidence, length: Length
) -> None:
    """An unstreamed answer that ends too early is an error, however it is framed."""
    bodies = whole_bodies(gateway)
    stage, tried = Stage(gateway), 0
    for asking in unstreamed(gateway):
        body = bodies[asking.path]
        places = range(0, len(body), length.of(short=83, long=3))
        cut = [step for place in places for step in cut_json(body, place)]
        prompts = [stage.prompt_for(step) for step in (*cut, whole_json(body))]
        *parts, whole = _answered(twin, asking, prompts)
        assert whole
        evidence.exactly(0, sum(parts), _BODIES)
        tried += len(parts)
    evidence.counted(tried, "JSON bodies cut")
    for peer in peers(gateway) if length.is_long and not twin.is_async else ():
        if peer.invoke is not None:
            cut = [*cut_json(bodies[peer.path], len(bodies[peer.path]) // 2)]
            share = _share_taken(gateway, cut, peer.invoke)
            evidence.peer(peer.name, share * len(cut) / 100, _BODIES)


def _answered(twin: Twin, asking: Unstreamed, prompts: list[str]) -> list[bool]:
    """Which of the prompts got an answer."""
    if twin.is_async:
        return asyncio.run(_aanswered(asking, prompts))
    answered = []
    for prompt in prompts:
        with contextlib.suppress(RetryRouterError):
            answered.append(asking.ask(prompt) is not None)
            continue
        answered.append(False)
    return answered


async def _aanswered(asking: Unstreamed, prompts: list[str]) -> list[bool]:
    answered = []
    for prompt in prompts:
        with contextlib.suppress(RetryRouterError):
            answered.append(await asking.aask(prompt) is not None)
            continue
        answered.append(False)
    return answered
