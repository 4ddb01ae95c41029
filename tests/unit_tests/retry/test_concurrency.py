"""Several requests side by side: the limit, the order, and errors."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from langchain_retryrouter._retry.timeouts import agather_bounded, gather_bounded
from tests.unit_tests.conftest import Twin

from .scripted import one_turn

LONG = 5.0
_user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")


class Meeting:
    """Requests under way together wait for each other here; sync and async."""

    def __init__(self, together: int) -> None:
        """No request returns before so many have begun."""
        self._together = together
        self._lock = threading.Lock()
        self._complete, self._too_many = threading.Event(), threading.Event()
        self.running = self.most = self.begun = 0

    def _enter(self) -> bool:
        with self._lock:
            self.begun += 1
            self.running += 1
            self.most = max(self.most, self.running)
            if self.most > self._together:
                self._too_many.set()
            return self.begun == self._together

    def _leave(self, request: int) -> int:
        with self._lock:
            self.running -= 1
        return request * 10

    def send(self, request: int) -> int:
        """The request times ten, once all are under way."""
        if self._enter():
            self._too_many.wait(0.02)  # For one that should not begin.
            self._complete.set()
        assert self._complete.wait(LONG), "fewer requests than expected"
        return self._leave(request)

    async def asend(self, request: int) -> int:
        """Async variant of `send`."""
        if self._enter():
            self._complete.set()
        for _ in range(100):
            await one_turn()
        assert self._complete.is_set(), "fewer requests than expected"
        return self._leave(request)


def gather(
    twin: Twin, send: Callable[[int], Any], asend: Any, requests: list[int], limit: int
) -> list[Any]:
    """The results, sync or async."""
    if twin.is_async:
        return asyncio.run(agather_bounded(asend, requests, limit))
    return gather_bounded(send, requests, limit)


@pytest.mark.parametrize(
    ("requests", "limit", "together"),
    [(0, 3, 0), (1, 1, 1), (1, 5, 1), (5, 1, 1), (2, 2, 2), (6, 3, 3), (3, 6, 3)],
)
def test_the_limit_of_concurrent_requests(
    twin: Twin, requests: int, limit: int, together: int
) -> None:
    """`limit` requests run together and never more, and each is sent once."""
    meeting = Meeting(together)
    asked = list(range(requests))
    answers = gather(twin, meeting.send, meeting.asend, asked, limit)
    assert answers == [request * 10 for request in asked]
    assert (meeting.most, meeting.begun) == (together, requests)


def test_results_are_in_the_order_of_the_requests(twin: Twin) -> None:
    """The order in which the requests end does not matter."""
    done, last_is_done = list[int](), threading.Event()

    def send(request: int) -> int:
        if request != 2:
            assert last_is_done.wait(LONG)
        done.append(request)
        if request == 2:
            last_is_done.set()
        return request

    async def asend(request: int) -> int:
        while request != 2 and not last_is_done.is_set():
            await one_turn()
        return send(request)

    assert gather(twin, send, asend, [0, 1, 2], 3) == [0, 1, 2]
    assert done[0] == 2


@pytest.mark.parametrize(("requests", "limit"), [([7], 4), ([7, 8], 1)])
def test_one_at_a_time_needs_no_thread(requests: list[int], limit: int) -> None:
    """Requests that run one after the other run in the caller's thread."""
    threads = gather_bounded(lambda _: threading.current_thread(), requests, limit)
    assert set(threads) == {threading.current_thread()}


def test_threads_see_the_callers_context() -> None:
    """Context variables of the caller, such as a tracer's, are seen in each thread."""
    _user.set("mine")
    assert gather_bounded(lambda _: _user.get(), [1, 2, 3], 2) == ["mine"] * 3


@pytest.mark.parametrize("limit", [1, 2])
def test_after_an_error_nothing_more_is_sent(twin: Twin, limit: int) -> None:
    """The error comes out unchanged, and the remaining requests do not begin."""
    error, sent = ValueError("no"), list[int]()

    def send(request: int) -> int:
        sent.append(request)
        if request == 1:
            raise error
        return request

    async def asend(request: int) -> int:
        answer = send(request)
        for _ in range(request + 3):
            await one_turn()
        return answer

    requests = list(range(1, 60))
    with pytest.raises(ValueError, match=r"^no$") as caught:
        gather(twin, send, asend, requests, limit)
    assert caught.value is error
    assert (caught.value.__context__, caught.value.__cause__) == (None, None)
    assert len(sent) < len(requests)


def test_threads_under_way_at_an_error_are_waited_for() -> None:
    """A thread cannot be stopped, so none is left behind; the first error comes out."""
    has_failed, late = threading.Event(), list[str]()

    def send(request: int) -> int:
        if request == 2:
            has_failed.set()
            msg = "first"
            raise ValueError(msg)
        assert has_failed.wait(LONG)
        time.sleep(0.05)  # noqa: TID251 - longer than a caller that does not wait
        late.append("done")
        msg = "second"
        raise ValueError(msg)

    with pytest.raises(ValueError, match="first"):
        gather_bounded(send, [1, 2], 2)
    assert late == ["done"]


async def test_tasks_under_way_at_an_error_are_cancelled() -> None:
    """No task goes on for an answer that is not used."""
    left: list[int] = []

    async def send(request: int) -> None:
        if request == 2:
            msg = "no"
            raise ValueError(msg)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            left.append(request)

    with pytest.raises(ValueError, match="no"):
        await agather_bounded(send, [1, 2, 3], 3)
    assert sorted(left) == [1, 3]


def test_after_an_interrupt_nothing_more_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C ends the waiting thread, and the remaining requests do not begin."""
    sent: list[int] = []
    has_begun, may_answer = threading.Event(), threading.Event()

    def send(request: int) -> int:
        sent.append(request)
        has_begun.set()
        assert may_answer.wait(LONG)
        return request

    def interrupted(_: object) -> None:
        assert has_begun.wait(LONG)
        # Later than the interrupt, as an answer would be.
        threading.Timer(0.05, may_answer.set).start()
        raise KeyboardInterrupt

    monkeypatch.setattr("langchain_retryrouter._retry.timeouts.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gather_bounded(send, list(range(50)), 2)
    assert len(sent) <= 2
