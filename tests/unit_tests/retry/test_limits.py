"""First token, stall, deadline: no read blocks for longer than it was told to.

The time is real here, and short: nobody can hand a clock to a socket.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from langchain_retryrouter._gptrouter.errors import GPT_ROUTER_ERRORS
from langchain_retryrouter._retry import streaming as streams
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK
from langchain_retryrouter._retry.engine import acall
from langchain_retryrouter._retry.streaming import ChunkInfo
from langchain_retryrouter.errors import (
    APIConnectionError,
    APITimeoutError,
    RetryRouterError,
    StreamInterruptedError,
)
from langchain_retryrouter.failures import FailureKind
from langchain_retryrouter.policy import RetryPolicy
from langchain_retryrouter.testing import FakeClock

from .engines import Drive, aopen, open_, plan_for
from .scripted import (
    END,
    ROLE,
    SILENCE,
    WHOLE,
    Script,
    Source,
    Witness,
    happen,
    token,
)

HEL, LO = token("Hel"), token("lo")

SHORT = 0.1
DEADLINE = 0.25  # Room for a busy machine to start a loop and bring the first token.
LONG_AGO = 5.0  # What would have been waited for without the limit, and more.


@pytest.fixture
def quick() -> Iterator[None]:
    """The test is over long before any limit but the short one."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < LONG_AGO


quickly = pytest.mark.usefixtures("quick")


def real_plan(**parts: Any) -> Any:
    """A plan on the machine's clock, whose waits are none."""
    numbers = {"initial_delay": 0.0, "max_retries": 1, **parts.pop("policy", {})}
    return plan_for(SYSTEM_CLOCK, RetryPolicy(**numbers), **parts)


@quickly
async def test_an_async_call_ends_with_its_deadline() -> None:
    """A request that does not come back is cut at the deadline, as a timeout."""

    async def send(_: object) -> None:
        await asyncio.get_running_loop().create_future()

    plan = real_plan(policy={"deadline": DEADLINE}, errors=GPT_ROUTER_ERRORS)
    with pytest.raises(GPT_ROUTER_ERRORS[FailureKind.TIMEOUT]) as caught:
        await acall(plan, send)
    assert re.fullmatch(r"no answer within 0\.2\d+ s", str(caught.value))
    assert caught.value.attempts == 1
    assert "deadline of 0.25 s" in caught.value.__notes__[0]
    assert caught.value.is_retryable is False


@quickly
@pytest.mark.parametrize("events", [[SILENCE], [ROLE, SILENCE], [ROLE, ROLE, SILENCE]])
def test_a_silent_start_is_cut_and_repeated(drive: Drive, events: list[Any]) -> None:
    """A stream without a token in time is closed, and the next attempt may answer."""
    silent, witness = Source(*events), Witness(FakeClock())
    plan = real_plan(policy={"first_token_timeout": SHORT})
    assert drive.stream(plan, Script(silent, Source(HEL, END)), witness) == [HEL, END]
    assert silent.was_closed()
    assert silent.is_aborted is not drive.is_async
    (state,) = witness.states
    assert state.outcome is not None
    error = state.outcome.exception()
    assert isinstance(error, APITimeoutError)
    assert str(error) == "no first token within 0.1 s"
    assert [record.outcome for record in plan.call_state.records] == ["timeout", "ok"]


@quickly
def test_a_silent_start_that_stays_silent(drive: Drive) -> None:
    """When no attempt brings a token, the timeout comes out, of the caller's family."""
    plan = real_plan(policy={"first_token_timeout": SHORT}, errors=GPT_ROUTER_ERRORS)
    script = Script(Source(SILENCE), Source(ROLE, SILENCE))
    with pytest.raises(GPT_ROUTER_ERRORS[FailureKind.TIMEOUT]) as caught:
        drive.stream(plan, script)
    assert caught.value.attempts == 2
    assert caught.value.delivered == ""


@quickly
def test_connecting_is_part_of_the_first_tokens_time(clock: FakeClock) -> None:
    """What connecting took is not given a second time to the reading."""
    source = Source(SILENCE)

    def connect() -> Source:
        clock.advance(60)
        return source

    plan = plan_for(clock, RetryPolicy(first_token_timeout=60, max_retries=0))
    with pytest.raises(APITimeoutError, match="no first token within 60 s"):
        list(open_(plan, Script(connect)))
    assert source.is_aborted
    assert source.was_closed()


@quickly
def test_what_connecting_left_of_it_is_the_first_tokens(clock: FakeClock) -> None:
    """On a clock that has run for long, too: the time is taken from its beginning."""

    def connect() -> Source:
        clock.advance(10)
        return Source(slow_token, END)

    def slow_token() -> ChunkInfo:
        SYSTEM_CLOCK.sleep(SHORT)
        return HEL

    clock.advance(1_000)
    plan = plan_for(clock, RetryPolicy(first_token_timeout=60, max_retries=0))
    assert list(open_(plan, Script(connect))) == [HEL, END]


@quickly
async def test_an_async_connection_that_hangs_is_cut() -> None:
    """The first token's time runs from the request on, not from the first byte."""

    async def connect(_: object) -> Source:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    plan = real_plan(policy={"first_token_timeout": SHORT, "max_retries": 0})
    with pytest.raises(APITimeoutError, match=r"no first token within 0\.1 s"):
        await anext(streams.astream(plan, connect, lambda: lambda signal: signal))


@quickly
def test_a_stall_is_an_interruption(drive: Drive) -> None:
    """A stream that falls silent after its first token is closed, not repeated."""
    source, seen = Source(HEL, LO, SILENCE), list[ChunkInfo]()
    plan, script = (
        real_plan(policy={"stall_timeout": SHORT}),
        Script(source, "never sent"),
    )
    with pytest.raises(StreamInterruptedError) as caught:
        drive.stream(plan, script, into=seen)
    assert str(caught.value) == "the stream was silent for 0.1 s, after 5 characters"
    assert caught.value.delivered == "Hello"
    assert seen == [HEL, LO]
    assert script.numbers == [1]
    assert source.was_closed()


@quickly
@pytest.mark.parametrize("limits", [{}, {"stall_timeout": LONG_AGO}])
def test_the_deadline_cuts_a_stream_too(drive: Drive, limits: dict[str, float]) -> None:
    """After the first token the deadline goes on to run, and is named when it ends."""
    source = Source(HEL, SILENCE)
    plan = real_plan(policy={"deadline": DEADLINE, **limits})
    with pytest.raises(StreamInterruptedError) as caught:
        drive.stream(plan, Script(source))
    assert str(caught.value) == "the deadline of 0.25 s is over, after 3 characters"
    assert caught.value.delivered == "Hel"
    assert source.was_closed()


@quickly
def test_a_slow_reader_is_no_stall() -> None:
    """How long the caller takes over an event is not the server's silence, in sync."""
    events = open_(
        real_plan(policy={"stall_timeout": SHORT, "first_token_timeout": SHORT}),
        Script(Source(HEL, LO, END)),
    )
    for expected in (HEL, LO, END):
        assert next(events) == expected
        SYSTEM_CLOCK.sleep(2 * SHORT)
    assert list(events) == []


@quickly
async def test_a_slow_reader_is_no_stall_in_async() -> None:
    """How long the caller takes over an event is not the server's silence, in async."""
    events = aopen(
        real_plan(policy={"stall_timeout": SHORT, "first_token_timeout": SHORT}),
        Script(Source(HEL, LO, END)),
    )
    for expected in (HEL, LO, END):
        assert await anext(events) == expected
        await SYSTEM_CLOCK.asleep(2 * SHORT)
    assert [event async for event in events] == []


@quickly
def test_silence_after_the_end_is_not_waited_out(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that neither sends usage nor closes does not hold up a whole answer."""
    monkeypatch.setattr(streams, "_AFTER_THE_END", SHORT)
    source, plan = Source(HEL, WHOLE, SILENCE), real_plan()
    assert drive.stream(plan, Script(source)) == [HEL, WHOLE]
    assert source.was_closed()
    assert [record.outcome for record in plan.call_state.records] == ["ok"]


@quickly
def test_before_the_end_there_is_more_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit for what follows the end is none for what comes before it."""
    monkeypatch.setattr(streams, "_AFTER_THE_END", SHORT / 4)

    def slow_token() -> ChunkInfo:
        SYSTEM_CLOCK.sleep(SHORT)
        return LO

    plan = real_plan(policy={"stall_timeout": LONG_AGO})
    assert list(open_(plan, Script(Source(HEL, slow_token, END)))) == [HEL, LO, END]


@quickly
@pytest.mark.parametrize("limit", ["stall_timeout", "deadline"])
def test_other_limits_hold_after_the_end_too(drive: Drive, limit: str) -> None:
    """Usage is not waited for beyond the deadline, nor longer than for a token."""
    source, plan = Source(HEL, WHOLE, SILENCE), real_plan(policy={limit: DEADLINE})
    began = time.monotonic()
    assert drive.stream(plan, Script(source)) == [HEL, WHOLE]
    assert time.monotonic() - began < LONG_AGO / 2
    assert source.was_closed()


class LastMoment(Source):
    """A source that goes on in the very moment in which its read is cut short."""

    def __iter__(self) -> Iterator[ChunkInfo]:
        """Yield the events, once it is too late."""
        assert self._aborted.wait(LONG_AGO)
        for event in self._events:
            yield happen(event)


@quickly
def test_a_token_in_the_last_moment_is_not_handed_over() -> None:
    """Nothing of a stream that is cut is delivered: it can still be repeated."""
    late = LastMoment(HEL, APIConnectionError("the connection was shut down"))
    plan = real_plan(policy={"first_token_timeout": SHORT})
    assert list(open_(plan, Script(late, Source(LO, END)))) == [LO, END]
    assert late.was_closed()
    assert [record.outcome for record in plan.call_state.records] == ["timeout", "ok"]


class SocketSource:
    """A stream over a real socket: a read blocks until there are bytes or an end."""

    def __init__(self, reader: socket.socket) -> None:
        """Over a connected socket."""
        self._reader = reader

    def __iter__(self) -> Iterator[ChunkInfo]:
        """Yield an event a byte."""
        while data := self._reader.recv(1):
            yield ChunkInfo(data.decode(), is_token=True)
        msg = "the connection was shut down"
        raise APIConnectionError(msg)

    def abort(self) -> None:
        """Wake up whoever reads."""
        self._reader.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Let go of the socket."""
        self._reader.close()


@quickly
@pytest.mark.parametrize(
    ("sent", "limits", "error"),
    [
        (b"", {"first_token_timeout": SHORT}, r"no first token within 0\.1 s"),
        (b"", {"deadline": DEADLINE}, r"no first token within 0\.2\d+ s"),
        (b"Hi", {"stall_timeout": SHORT}, r"the stream was silent for 0\.1 s"),
        (b"Hi", {"deadline": DEADLINE}, r"the deadline of 0\.25 s is over"),
    ],
)
def test_a_blocking_read_is_cut(
    sent: bytes, limits: dict[str, float], error: str
) -> None:
    """A thread that hangs in `recv` of a real socket is woken when its time is over."""
    server, client = socket.socketpair()
    with server, client:
        server.sendall(sent)
        plan = real_plan(policy={**limits, "max_retries": 0})
        with pytest.raises(RetryRouterError, match=f"^{error}"):
            list(open_(plan, Script(SocketSource(client))))
