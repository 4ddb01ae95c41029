"""Handlers that raise, are slow, or are deaf: all are told, none is trusted."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from tenacity import RetryCallState

from langchain_retryrouter._callbacks import anotifier, notifier
from langchain_retryrouter.testing import FakeClock
from tests.unit_tests.conftest import Twin

from .diaries import AsyncHandler, InlineHandler, LoudHandler, SyncHandler, one_turn
from .flaky_model import FlakyChatModel
from .ways_in import WAYS, Way

every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@pytest.mark.parametrize("loud_class", [LoudHandler, InlineHandler])
@every_way
def test_a_broken_handler_breaks_nothing(
    twin: Twin,
    way: Way,
    loud_class: type[LoudHandler],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A handler that raises keeps neither the call nor the others from anything."""
    loud, disable_retries, slow = loud_class(), SyncHandler(), AsyncHandler()
    with caplog.at_level(logging.WARNING, logger="langchain_retryrouter"):
        way(twin, FlakyChatModel(), {"callbacks": [loud, disable_retries, slow]})
    for handler in (loud, disable_retries, slow):
        (run_id,) = handler.diary.starts
        assert handler.diary.retries == [(run_id, 1), (run_id, 2)]
    told = [r for r in caplog.records if r.name == "langchain_retryrouter._callbacks"]
    assert [record.getMessage() for record in told] == [
        "A callback handler failed in on_retry"
    ] * 2
    assert all(r.exc_info and isinstance(r.exc_info[1], RuntimeError) for r in told)


class Deaf(SyncHandler):
    """Does not want to hear of retries."""

    ignore_retry = True


def test_who_does_not_want_to_hear_is_spared(twin: Twin) -> None:
    """`ignore_retry` is respected."""
    deaf, other = Deaf(), SyncHandler()
    twin.stream(FlakyChatModel(), "hi", {"callbacks": [deaf, other]})
    assert deaf.diary.retries == []
    assert len(other.diary.retries) == 2


def test_an_event_is_over_before_the_wait(twin: Twin) -> None:
    """However slow a handler is, the wait begins after it, and not beside it."""
    clock, waits = FakeClock(), list[int]()

    class Slow(AsyncCallbackHandler):
        async def on_retry(self, retry_state: RetryCallState, **_: Any) -> None:
            for _turn in range(50):
                await one_turn()
            waits.append(len(clock.sleeps))
            assert retry_state.outcome is not None

    twin.stream(FlakyChatModel(clock=clock), "hi", {"callbacks": [Slow()]})
    assert waits == [0, 1]
    assert len(clock.sleeps) == 2


# --- notifiers by themselves --------------------------------------------------------


def state() -> RetryCallState:
    """A state that a handler may be told."""
    return RetryCallState(cast("Any", None), None, (), {})


def test_nobody_to_tell_is_no_notifier() -> None:
    """Without a run manager there is nothing to call."""
    assert notifier(None) is None
    assert anotifier(None) is None


class StandIn:
    """A run manager that a caller wrote: it knows `on_retry` and no more."""

    def __init__(self, error: Exception | None = None) -> None:
        """Break with `error`, if any."""
        self._error = error
        self.states: list[RetryCallState] = []

    def on_retry(self, retry_state: RetryCallState) -> None:
        """Take note."""
        self.states.append(retry_state)
        if self._error is not None:
            raise self._error


class AsyncStandIn(StandIn):
    """The same, to be awaited."""

    async def on_retry(  # type: ignore[override]
        self, retry_state: RetryCallState
    ) -> None:
        """Take note."""
        await one_turn()
        super().on_retry(retry_state)


@pytest.mark.parametrize("error", [None, RuntimeError("broken")])
def test_a_stand_in_is_told(
    twin: Twin, error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    """`completion_with_retry` takes whatever has an `on_retry`, and survives it."""
    told = state()
    stand_in = AsyncStandIn(error) if twin.is_async else StandIn(error)
    if twin.is_async:
        anotify = anotifier(cast("Any", stand_in))
        assert anotify is not None
        asyncio.run(cast("Any", anotify(told)))
    else:
        notify = notifier(cast("Any", stand_in))
        assert notify is not None
        notify(told)
    assert stand_in.states == [told]
    assert ("failed in on_retry" in caplog.text) is (error is not None)
