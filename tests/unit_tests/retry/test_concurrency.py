"""Several calls side by side: how many, in which order, and what an error does."""

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

FAR = 5.0
_whose: contextvars.ContextVar[str] = contextvars.ContextVar("whose", default="nobody")


class Meeting:
    """Where calls that are under way together meet; sync and async."""

    def __init__(self, together: int) -> None:
        """Nobody leaves before so many have come."""
        self._together = together
        self._lock = threading.Lock()
        self._all_came, self._too_many = threading.Event(), threading.Event()
        self.present = self.most = self.came = 0

    def _enter(self) -> bool:
        """One more; whether it is the last that was waited for."""
        with self._lock:
            self.came += 1
            self.present += 1
            self.most = max(self.most, self.present)
            if self.most > self._together:
                self._too_many.set()
            return self.came == self._together

    def _leave(self) -> None:
        """One less."""
        with self._lock:
            self.present -= 1

    def send(self, request: int) -> int:
        """The request times ten, once all are there."""
        if self._enter():
            self._too_many.wait(0.02)  # For one that should not come.
            self._all_came.set()
        assert self._all_came.wait(FAR), "nobody else came"
        self._leave()
        return request * 10

    async def asend(self, request: int) -> int:
        """Async variant of `send`."""
        if self._enter():
            self._all_came.set()
        for _ in range(100):
            await one_turn()
            if self._all_came.is_set():
                break
        assert self._all_came.is_set(), "nobody else came"
        self._leave()
        return request * 10


def answers(
    twin: Twin,
    send: Callable[[int], Any],
    asend: Callable[[int], Any],
    requests: list[int],
    at_once: int,
) -> list[Any]:
    """What comes back, either way."""
    if twin.is_async:
        return asyncio.run(agather_bounded(asend, requests, at_once))
    return gather_bounded(send, requests, at_once)


@pytest.mark.parametrize(
    ("requests", "at_once", "together"),
    [(1, 1, 1), (1, 5, 1), (5, 1, 1), (2, 2, 2), (6, 3, 3), (3, 6, 3)],
)
def test_as_many_as_may_be_are_under_way(
    twin: Twin, requests: int, at_once: int, together: int
) -> None:
    """`at_once` calls run together and never more, and each request is sent once."""
    meeting = Meeting(together)
    asked = list(range(requests))
    told = answers(twin, meeting.send, meeting.asend, asked, at_once)
    assert told == [request * 10 for request in asked]
    assert meeting.most == together
    assert meeting.came == requests


def test_no_request_has_no_answer(twin: Twin) -> None:
    """Nothing to ask is no error, and nothing is sent."""
    meeting = Meeting(0)
    assert answers(twin, meeting.send, meeting.asend, [], 3) == []
    assert meeting.came == 0


def test_answers_stand_in_the_order_of_the_requests(twin: Twin) -> None:
    """Whoever answers first does not come first."""
    done: list[int] = []
    last_is_done = threading.Event()

    def send(request: int) -> int:
        if request != 2:
            assert last_is_done.wait(FAR)
        done.append(request)
        if request == 2:
            last_is_done.set()
        return request

    async def asend(request: int) -> int:
        while request != 2 and not last_is_done.is_set():
            await one_turn()
        return send(request)

    assert answers(twin, send, asend, [0, 1, 2], 3) == [0, 1, 2]
    assert done[0] == 2


@pytest.mark.parametrize(("requests", "at_once"), [([7], 4), ([7, 8], 1)])
def test_no_thread_is_spent_on_one_at_a_time(requests: list[int], at_once: int) -> None:
    """What runs one after the other runs where it was called."""
    threads = gather_bounded(lambda _: threading.current_thread(), requests, at_once)
    assert set(threads) == {threading.current_thread()}


def test_threads_know_whose_work_they_do() -> None:
    """Context variables of the caller, such as a tracer's, are seen in each thread."""
    _whose.set("mine")
    assert gather_bounded(lambda _: _whose.get(), [1, 2, 3], 2) == ["mine"] * 3


@pytest.mark.parametrize("at_once", [1, 2])
def test_after_an_error_nothing_more_is_sent(twin: Twin, at_once: int) -> None:
    """The very error comes out, and what had not begun does not begin."""
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
        answers(twin, send, asend, requests, at_once)
    assert caught.value is error
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
    assert len(sent) < len(requests)


def test_what_is_under_way_at_an_error_is_waited_for() -> None:
    """A thread cannot be stopped, so none is left behind; the first error comes out."""
    has_failed, late = threading.Event(), list[str]()

    def send(request: int) -> int:
        if request == 2:
            has_failed.set()
            msg = "first"
            raise ValueError(msg)
        assert has_failed.wait(FAR)
        time.sleep(0.05)  # noqa: TID251 - for whoever would not wait
        late.append("done")
        msg = "second"
        raise ValueError(msg)

    with pytest.raises(ValueError, match="first"):
        gather_bounded(send, [1, 2], 2)
    assert late == ["done"]


async def test_what_is_under_way_at_an_error_is_cancelled() -> None:
    """A task can be stopped: nobody waits for an answer that will not be looked at."""
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


def test_who_is_interrupted_sends_nothing_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C is heard by the thread that waits; the requests not yet sent stay so."""
    sent: list[int] = []
    has_begun, may_answer = threading.Event(), threading.Event()

    def send(request: int) -> int:
        sent.append(request)
        has_begun.set()
        assert may_answer.wait(FAR)
        return request

    def interrupted(_: object) -> None:
        assert has_begun.wait(FAR)
        # Later than the interrupt, as an answer would be.
        threading.Timer(0.05, may_answer.set).start()
        raise KeyboardInterrupt

    monkeypatch.setattr("langchain_retryrouter._retry.timeouts.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gather_bounded(send, list(range(50)), 2)
    assert len(sent) <= 2
