"""A call with a deadline is over at its deadline, whatever a server does."""

from __future__ import annotations

import asyncio
import contextlib
import random  # noqa: TID251 - seeded
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
from gpt_router.client import GPTRouterClient
from langchain_community.chat_models.gpt_router import (
    GPTRouter as CommunityGPTRouter,
)
from langchain_community.chat_models.gpt_router import (
    GPTRouterModel as CommunityGPTRouterModel,
)
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from langchain_retryrouter import (
    APITimeoutError,
    RateLimitError,
    RetryPolicy,
    StreamInterruptedError,
    UnavailableError,
)
from langchain_retryrouter.testing import FakeClock, FaultyGateway, Status, Step
from tests.promises.evidence import Evidence, Length, Promise
from tests.promises.silences import (
    STEPS,
    Place,
    gateway_fields,
    let_slow_models_end,
    let_slow_models_wait,
    models,
    places,
)
from tests.unit_tests.conftest import Twin

PROMISE = Promise(
    title="The deadline holds",
    number="≤ 0.1 s after the deadline; 0 waits begun that cannot end",
    why=(
        "`RetryPolicy(deadline=...)` bounds the whole call: connecting, sending,"
        " attempts, waits and each token, in `invoke`, `stream` and their async twins."
        " `first_token_timeout` and `stall_timeout` are for streams only; a plain"
        " `invoke` has the model's own timeout, which starts anew with each byte, and"
        " the deadline. How late a call is counts from the end of a bare wait that"
        " was begun beside it, so that a busy machine is no finding."
    ),
)
AT_ONCE = 6
"""Calls under way together: few, since each of them takes the processor too."""

LATE = "seconds from the deadline to the end of a call, the latest"
UNTYPED = "calls that ended with something else than an error of time"


class Call(NamedTuple):
    """One call that is going to wait."""

    place: Place
    name: str
    model: Any
    way: str

    def __str__(self) -> str:
        """For a message."""
        return f"{self.way} of {self.name} where a server {self.place.manner}"


@dataclass
class End:
    """How a call ended, and after how many seconds."""

    call: Call
    seconds: float
    error: BaseException | None


@pytest.mark.usefixtures("small_heap")
def test_a_call_is_over_at_its_deadline(evidence: Evidence, length: Length) -> None:
    """A call is over at its deadline, be the server silent, stalled, deaf or full."""
    deadline = length.of(short=2, long=20) / 10
    policy = RetryPolicy(deadline=deadline, max_retries=5, initial_delay=0.05)
    count, odd = 0, list[End]()
    with places() as found:
        _warm_up(found[-1])
        for group in _groups(found, policy, is_long=length.is_long):
            bare, ends = _wait_together(group, deadline)
            for end in ends:
                late = end.seconds - max(deadline, bare)
                assert late <= 0.1, f"{end.call}: {late:.3f} s late; {end.error!r}"
                evidence.at_most(0.1, max(0, late), LATE)
            odd += [end for end in ends if not isinstance(end.error, _ERRORS)]
            count += len(ends)
    assert not odd, "\n".join(f"{end.call}: {end.error!r}" for end in odd)
    evidence.exactly(0, len(odd), UNTYPED)
    evidence.counted(count, "calls that waited in vain")


_ERRORS = (APITimeoutError, StreamInterruptedError)


def _groups(
    found: list[Place], policy: RetryPolicy, *, is_long: bool
) -> Iterator[list[Call]]:
    """Calls to be begun together: of one colour, and not too many.

    A long request is alone, since to write it takes the processor.
    """
    for way in ("invoke", "stream", "ainvoke", "astream"):
        quick: list[Call] = []
        for place in found:
            calls = [
                Call(place, name, make(), way)
                for name, make in models(place, policy).items()
                # It is slow wherever it is asked.
                if "slow" not in name or place is found[-1]
            ]
            if place.prompt == "hi":
                quick.extend(calls)
            elif is_long:
                yield from ([call] for call in calls)
            elif way == "invoke":
                yield from ([call] for call in calls[:2])
        yield from (quick[at : at + AT_ONCE] for at in range(0, len(quick), AT_ONCE))


def _wait_together(group: list[Call], deadline: float) -> tuple[float, list[End]]:
    """How long a bare wait took, and the calls that were begun beside it."""
    let_slow_models_wait()
    if group[0].way.startswith("a"):
        return asyncio.run(_await_together(group, deadline))
    with ThreadPoolExecutor(len(group) + 1) as threads:
        bare = threads.submit(_bare_wait, deadline)
        running = [threads.submit(_timed, call) for call in group]
        ends = [one.result() for one in running]
    let_slow_models_end()  # Or their threads would be left behind.
    return bare.result(), ends


async def _await_together(
    group: list[Call], deadline: float
) -> tuple[float, list[End]]:
    bare, ends = await asyncio.gather(
        _abare_wait(deadline), asyncio.gather(*(_atimed(call) for call in group))
    )
    let_slow_models_end()  # Or the event loop would wait for their threads.
    return bare, ends


def _bare_wait(seconds: float) -> float:
    began = time.monotonic()
    threading.Event().wait(seconds)
    return time.monotonic() - began


async def _abare_wait(seconds: float) -> float:
    began = time.monotonic()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.get_running_loop().create_future()
    return time.monotonic() - began


def _timed(call: Call) -> End:
    began = time.monotonic()
    error: BaseException | None = None
    try:
        if call.way == "invoke":
            call.model.invoke(call.place.prompt)
        else:
            list(call.model.stream(call.place.prompt))
    except Exception as raised:  # noqa: BLE001 - looked at by the test
        error = raised
    return End(call, time.monotonic() - began, error)


async def _atimed(call: Call) -> End:
    began = time.monotonic()
    error: BaseException | None = None
    try:
        if call.way == "ainvoke":
            await call.model.ainvoke(call.place.prompt)
        else:
            [chunk async for chunk in call.model.astream(call.place.prompt)]
    except Exception as raised:  # noqa: BLE001 - looked at by the test
        error = raised
    return End(call, time.monotonic() - began, error)


def _warm_up(place: Place) -> None:
    """What the first call of a process imports is not the deadline's business."""
    for way in ("invoke", "ainvoke"):
        hasty = models(place, RetryPolicy(deadline=0.05))
        _wait_together(
            [Call(place, name, make(), way) for name, make in hasty.items()], 0.05
        )


# No wait is begun that cannot end.


class WatchfulClock(FakeClock):
    """A clock that counts the waits which would reach the end of a call's time."""

    def __init__(self, end: float, **settings: Any) -> None:
        """For a call that begins at 0."""
        super().__init__(**settings)
        self._end = end
        self.hopeless = 0

    def _pass(self, seconds: float, *, waited: bool) -> None:
        # To end with the deadline is to end in time, but for the rounding of floats.
        self.hopeless += waited and self.monotonic() + seconds > self._end + 1e-9
        super()._pass(seconds, waited=waited)


def test_no_wait_is_begun_that_cannot_end(
    twin: Twin, evidence: Evidence, length: Length, faulty_gateway: FaultyGateway
) -> None:
    """Whatever a server asks for, a wait that would outlast the deadline is not begun.

    On a virtual clock, which the server moves while it makes up its mind.
    """
    waits = hopeless = 0
    for seed in range(length.of(short=60, long=1_500)):
        rng = random.Random(seed)  # noqa: S311 - no secret
        clock = WatchfulClock(2, random=iter(rng.random, None))

        def refuse(
            _: object, rng: random.Random = rng, clock: FakeClock = clock
        ) -> Step:
            clock.advance(rng.choice([0, 0.01, 0.3, 1.2]))
            asked = rng.choice(["0", "0.2", "1", "1.9", "2", "30"])
            return rng.choice([Status(503), Status(429, {"retry-after": asked})])

        faulty_gateway.always(refuse)
        policy = RetryPolicy(
            deadline=2,
            max_retries=20,
            initial_delay=rng.choice([0.05, 0.4, 3]),
            jitter=rng.random() < 0.5,
        )
        llm = _model(faulty_gateway, policy, clock, seed)
        with pytest.raises((UnavailableError, RateLimitError, APITimeoutError)):
            twin.invoke(llm, "hi")
        assert not clock.hopeless, f"seed {seed}: waits of {clock.sleeps}"
        hopeless += clock.hopeless
        waits += len(clock.sleeps)
    evidence.exactly(0, hopeless, "waits begun that would have outlasted the deadline")
    evidence.counted(waits, "waits begun, and over in time")


def _model(
    gateway: FaultyGateway, policy: RetryPolicy, clock: FakeClock, seed: int
) -> Any:
    place = Place("refuses", gateway.url)
    ours = models(place, policy)
    name = ("GPTRouter", "OpenAI", "OpenAIChat", "RetryRouter of GPTRouter")[seed % 4]
    return ours[name]().model_copy(update={"clock": clock})


# With the peers beside us.


def test_beside_its_peers(evidence: Evidence, length: Length) -> None:
    """A limit of 2 s is one of 2 s, where others begin it anew with each byte and try.

    In the long form, since the peers really wait.
    """
    if not length.is_long:
        return
    for manner in ("says nothing", "drips bytes"):
        with FaultyGateway() as gateway:
            gateway.always(STEPS[manner])
            place = Place(manner, gateway.url)
            what = f"seconds of a call limited to 2 s, where a server {manner}"
            asked = {**_ours(place), **_peers(place)}
            with ThreadPoolExecutor(len(asked)) as threads:
                running = {
                    name: threads.submit(_timed, Call(place, name, model, "invoke"))
                    for name, model in asked.items()
                }
                took = {name: one.result().seconds for name, one in running.items()}
        for name, seconds in took.items():
            if name in _peers(place):
                evidence.peer(name, round(seconds, 2), what)
            else:
                evidence.at_most(2.1, seconds, what)


def _ours(place: Place) -> dict[str, Any]:
    ours = models(place, RetryPolicy(deadline=2, max_retries=2))
    return {name: ours[name]() for name in ("GPTRouter", "OpenAI", "OpenAIChat")}


def _peers(place: Place) -> dict[str, Any]:
    def chat() -> ChatOpenAI:
        return ChatOpenAI(
            model="gpt-4o",
            base_url=f"{place.url}/v1",
            api_key=SecretStr("any"),
            timeout=2,
            max_retries=2,
            default_headers={"connection": "close"},
        )

    client = GPTRouterClient(place.url, "any", request_timeout=2)
    return {
        "ChatOpenAI": chat(),
        "ChatOpenAI.with_fallbacks": chat().with_fallbacks([chat()]),
        "community GPTRouter": CommunityGPTRouter(
            models_priority_list=[
                CommunityGPTRouterModel(name="gpt-4o", provider_name="chat_openai")
            ],
            client=client,
            **gateway_fields(place),
        ),
    }
