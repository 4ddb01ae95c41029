"""Handlers that raise, are slow, or ignore retries."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

import pytest
from tenacity import RetryCallState

from langchain_retryrouter._callbacks import anotifier, notifier
from langchain_retryrouter.testing import FakeClock
from tests.unit_tests.conftest import Twin
from tests.unit_tests.retry.scripted import one_turn

from .models import WAYS, AsyncHandler, FlakyChatModel, SyncHandler, Way


class BrokenHandler(SyncHandler):
    """Raises from `on_retry`, and asks LangChain to let that out."""

    raise_error = True

    def on_retry(self, *args: Any, **kwargs: Any) -> None:
        super().on_retry(*args, **kwargs)
        msg = "this handler is broken"
        raise RuntimeError(msg)


class InlineHandler(BrokenHandler):
    """The same, called in the event loop's own thread."""

    run_inline = True


@pytest.mark.parametrize("broken_class", [BrokenHandler, InlineHandler])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_broken_handler_breaks_nothing(
    twin: Twin,
    way: Way,
    broken_class: type[BrokenHandler],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its exception is logged; the call and the other handlers go on."""
    callbacks = [broken_class(), SyncHandler(), AsyncHandler()]
    with caplog.at_level(logging.WARNING, logger="langchain_retryrouter"):
        way(twin, FlakyChatModel(), {"callbacks": list(callbacks)})
    for handler in callbacks:
        handler.check_two_retries()
    logged = [r for r in caplog.records if r.name == "langchain_retryrouter._callbacks"]
    message = "A callback handler failed in on_retry"
    assert [record.getMessage() for record in logged] == [message] * 2
    assert all(r.exc_info and isinstance(r.exc_info[1], RuntimeError) for r in logged)


def test_ignore_retry_is_respected(twin: Twin) -> None:
    """A handler with `ignore_retry` gets no retries, the others do."""

    class Ignoring(SyncHandler):
        ignore_retry = True

    ignoring, other = Ignoring(), SyncHandler()
    twin.stream(FlakyChatModel(), "hi", {"callbacks": [ignoring, other]})
    assert ignoring.retries == []
    other.check_two_retries()


def test_the_wait_begins_after_the_handlers(twin: Twin) -> None:
    """However slow a handler is, it has ended before the back-off begins."""
    clock, waits = FakeClock(), list[int]()

    class Slow(AsyncHandler):
        async def on_retry(self, *args: Any, **kwargs: Any) -> None:
            await super().on_retry(*args, **kwargs)
            waits.append(len(clock.sleeps))

    twin.stream(FlakyChatModel(clock=clock), "hi", {"callbacks": [Slow()]})
    assert waits == [0, 1]
    assert len(clock.sleeps) == 2


class FakeRunManager:
    """A run manager of a caller that has `on_retry` and nothing else."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error
        self.states: list[RetryCallState] = []

    def on_retry(self, retry_state: RetryCallState) -> Any:
        self.states.append(retry_state)
        if self._error is not None:
            raise self._error


class AsyncFakeRunManager(FakeRunManager):
    """Async variant of `FakeRunManager`."""

    async def on_retry(self, retry_state: RetryCallState) -> None:
        await one_turn()
        super().on_retry(retry_state)


@pytest.mark.parametrize("error", [None, RuntimeError("broken")])
def test_any_run_manager_with_on_retry_will_do(
    twin: Twin, error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    """`completion_with_retry` takes one; it may be missing, and it may fail."""
    state = RetryCallState(cast("Any", None), None, (), {})
    assert notifier(None) is None
    assert anotifier(None) is None
    manager: Any = (AsyncFakeRunManager if twin.is_async else FakeRunManager)(error)
    if twin.is_async:
        asyncio.run(cast("Any", anotifier(manager))(state))
    else:
        cast("Any", notifier(manager))(state)
    assert manager.states == [state]
    assert ("failed in on_retry" in caplog.text) is (error is not None)
