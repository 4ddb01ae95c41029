"""The one thread that cuts blocking reads short. Its times are real, and short."""

# ruff: noqa: SLF001 - what a watchdog keeps is seen from inside only

from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from langchain_retryrouter._retry import watchdog
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK
from langchain_retryrouter._retry.watchdog import Watch
from langchain_retryrouter.errors import UnavailableError
from langchain_retryrouter.policy import RetryPolicy
from langchain_retryrouter.testing import FakeClock

from .both_twins import open_, plan_for
from .scripted import END, ROLE, Script, Source, token

HEL, LO = token("Hel"), token("lo")
SHORT = 0.05
IN_TIME = 0.95  # A busy machine may be late with a thread, and a whole second is wrong.
FAR = 30.0


class Read:
    """A blocking read that can be aborted."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        """Do `then` when aborted."""
        self._then = then
        self._aborted = threading.Event()
        self.aborts = 0

    def abort(self) -> None:
        """Unblock it."""
        self.aborts += 1
        self._aborted.set()
        self._then()

    def is_cut(self, run_with_timeout: float = FAR) -> bool:
        """Block until it is aborted."""
        return self._aborted.wait(run_with_timeout)


@pytest.fixture(autouse=True)
def own_watchdog(monkeypatch: pytest.MonkeyPatch) -> watchdog._Watchdog:
    """A process whose watchdog has not been needed yet."""
    clone = watchdog._Watchdog()
    monkeypatch.setattr(watchdog, "_current", clone)
    return clone


def test_an_overdue_read_is_cut() -> None:
    """What does not come within its limit is cut, once, and the watch knows it."""
    read = Read()
    watch = Watch(read.abort)
    began = time.monotonic()
    watch.expect_within(SHORT)
    assert not watch.has_fired
    assert read.is_cut()
    assert SHORT <= time.monotonic() - began < IN_TIME
    watch.end()
    assert watch.has_fired
    assert read.aborts == 1


def test_no_limit_is_no_thread(own_watchdog: watchdog._Watchdog) -> None:
    """Who sets no limit pays for no thread."""
    before = threading.active_count()
    watch = Watch(Read().abort)
    watch.expect_within(None)
    watch.pause()
    watch.end()
    assert not own_watchdog._is_running
    assert threading.active_count() == before


def test_one_thread_serves_all() -> None:
    """However many streams are followed, one thread watches over them."""
    before = threading.active_count()
    reads = [Read() for _ in range(50)]
    watches = [Watch(read.abort) for read in reads]
    for number, watch in enumerate(watches):
        watch.expect_within(SHORT + number / 1_000)
    assert threading.active_count() == before + 1
    assert all(read.is_cut() for read in reads)


def test_what_is_at_rest_hides_nothing() -> None:
    """Among many streams without a limit, the one that is overdue is found."""
    resting = [Watch(Read().abort) for _ in range(20)]
    for watch in resting:
        watch.expect_within(FAR)
    read = Read()
    overdue = Watch(read.abort)
    for watch in resting:
        watch.pause()
    overdue.expect_within(SHORT)
    assert read.is_cut()
    assert not any(watch.has_fired for watch in resting)


def test_the_thread_keeps_no_process_alive() -> None:
    """It ends with the program, and has a name in its dumps."""
    before = set(threading.enumerate())
    watch = Watch(Read().abort)
    watch.expect_within(FAR)
    (thread,) = set(threading.enumerate()) - before
    assert thread.daemon
    assert thread.name == "retryrouter-watchdog"
    watch.end()


def test_a_limit_moves_away() -> None:
    """Events that keep coming keep a read alive, however often old limits pass."""
    read = Read()
    watch = Watch(read.abort)
    for _ in range(40):
        watch.expect_within(10 * SHORT)
        SYSTEM_CLOCK.sleep(SHORT / 2)
        assert watch.pause()
    watch.expect_within(FAR)
    assert not read.is_cut(run_with_timeout=3 * SHORT)
    watch.end()


def test_a_limit_moves_nearer() -> None:
    """A shorter limit counts at once, though the thread had planned to look later."""
    read, far = Read(), Read()
    others, watch = Watch(far.abort), Watch(read.abort)
    others.expect_within(FAR)
    watch.expect_within(FAR)
    SYSTEM_CLOCK.sleep(SHORT)  # The thread is asleep until the far limit now.
    watch.expect_within(SHORT)
    assert read.is_cut(run_with_timeout=FAR / 3)
    assert not far.is_cut(run_with_timeout=0)
    others.end()


def test_a_pause_has_no_limit() -> None:
    """Between two events nothing is due, and after the pause the next limit counts."""
    read = Read()
    watch = Watch(read.abort)
    watch.expect_within(SHORT)
    assert watch.pause()
    assert not read.is_cut(run_with_timeout=3 * SHORT)
    watch.expect_within(SHORT)
    assert read.is_cut()
    assert not watch.pause()


def test_a_limit_that_is_over_is_over() -> None:
    """What should have come already is cut at once."""
    read = Read()
    Watch(read.abort).expect_within(-1.0)
    assert read.is_cut()


@pytest.mark.parametrize("settle", [Watch.pause, Watch.end])
def test_an_event_in_the_last_moment_is_not_cut(
    settle: Callable[[Watch], object],
) -> None:
    """A watch found overdue whose event, or end, then came does not fire."""
    read = Read()
    watch = Watch(read.abort)
    watch.due = time.monotonic() - 1
    settle(watch)
    watch.fire()
    assert not watch.has_fired
    assert read.aborts == 0


def test_the_thread_sleeps_when_there_is_nothing_to_watch(
    own_watchdog: watchdog._Watchdog,
) -> None:
    """When all limits are gone, the thread waits for the next; it does not spin."""
    watch = Watch(Read().abort)
    watch.due = 7.0
    own_watchdog._watches.add(watch)
    assert own_watchdog._sort(now=5.0) == []
    assert own_watchdog.next_look == 7.0
    watch.end()
    own_watchdog._watches.clear()
    assert own_watchdog._sort(now=5.0) == []
    assert own_watchdog.next_look == math.inf


def test_what_has_ended_is_not_kept(own_watchdog: watchdog._Watchdog) -> None:
    """A stream that is over is let go of at once, and not when it would be due."""
    read = Read()
    watch, kept = Watch(read.abort), weakref.ref(read)
    watch.expect_within(FAR)
    assert own_watchdog._watches == {watch}
    watch.end()
    assert own_watchdog._watches == set()
    assert not watch.is_watched
    del watch, read
    gc.collect()
    assert kept() is None


def test_a_stream_that_is_over_is_not_kept(
    own_watchdog: watchdog._Watchdog, clock: FakeClock
) -> None:
    """However an attempt ends, failed or left half read, its watch is let go of."""
    limits = RetryPolicy(first_token_timeout=FAR, stall_timeout=FAR)
    failed, left = Source(ROLE, UnavailableError("503")), Source(HEL, LO, END)
    events = open_(plan_for(clock, limits), Script(failed, left))
    assert [next(events), next(events)] == [HEL, LO]
    assert len(own_watchdog._watches) == 1
    events.close()
    assert own_watchdog._watches == set()


def test_what_is_paused_for_long_is_not_kept(own_watchdog: watchdog._Watchdog) -> None:
    """A stream whose caller takes his time is forgotten, and then found again."""
    read = Read()
    watch = Watch(read.abort)
    watch.expect_within(SHORT)
    watch.pause()
    until = time.monotonic() + FAR
    while watch.is_watched and time.monotonic() < until:
        SYSTEM_CLOCK.sleep(SHORT / 10)
    assert own_watchdog._watches == set()
    watch.expect_within(SHORT)
    assert read.is_cut()


def test_one_bad_abort_stays_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A stream that cannot be aborted is logged, and all others are still watched."""

    def fail() -> None:
        msg = "no such socket"
        raise RuntimeError(msg)

    bad, good = Read(fail), Read()
    bad_watch, good_watch = Watch(bad.abort), Watch(good.abort)
    bad_watch.expect_within(SHORT)
    assert bad.is_cut()
    good_watch.expect_within(SHORT)
    assert good.is_cut()
    assert caplog.messages == ["A stream that was overdue could not be aborted"]
    assert "no such socket" in caplog.text


def test_a_limit_of_centuries_does_no_harm() -> None:
    """A limit that no condition variable can wait for leaves the thread alive."""
    endless, read = Watch(Read().abort), Read()
    endless.expect_within(1e18)
    SYSTEM_CLOCK.sleep(SHORT)
    Watch(read.abort).expect_within(SHORT)
    assert read.is_cut()
    endless.end()


def test_a_thread_that_cannot_start_is_no_secret(
    own_watchdog: watchdog._Watchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no thread can start, the caller hears of it, and the next one tries anew."""

    def refuse(_: threading.Thread) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    read = Read()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            Watch(Read().abort).expect_within(FAR)
    Watch(read.abort).expect_within(SHORT)
    assert own_watchdog._is_running
    assert read.is_cut()


def test_many_threads_move_their_limits() -> None:
    """Whatever the order in which limits move, each read that falls silent is cut."""
    reads = [Read() for _ in range(16)]

    def follow(read: Read) -> None:
        watch = Watch(read.abort)
        for step in range(200):
            watch.expect_within(FAR if step % 2 else 1.0)
            watch.pause()
        watch.expect_within(SHORT)

    threads = [threading.Thread(target=follow, args=(read,)) for read in reads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(read.is_cut(run_with_timeout=FAR / 3) for read in reads)
    assert [read.aborts for read in reads] == [1] * 16


class Restless:
    """A watch whose reader sets its next limit while the thread looks at it."""

    def __init__(self, *dues: float) -> None:
        """Due at these times, one a look."""
        self._dues = iter(dues)
        self.is_watched = True

    @property
    def due(self) -> float:
        """The limit of the moment."""
        return next(self._dues)


def test_a_limit_set_while_the_thread_looks(own_watchdog: watchdog._Watchdog) -> None:
    """An overdue watch that is re-armed in the same moment is kept, and not cut."""
    restless: Any = Restless(1.0, 7.0, 7.0, 7.0)
    own_watchdog._watches.add(restless)
    assert own_watchdog._sort(now=5.0) == []
    assert own_watchdog._watches == {restless}
    assert own_watchdog.next_look == 7.0
    assert restless.is_watched


def test_a_process_has_one_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for all its threads, and another one after a fork."""
    first = watchdog._watchdog()
    assert watchdog._watchdog() is first
    monkeypatch.setattr(os, "getpid", lambda: first.pid + 1)
    second = watchdog._watchdog()
    assert second is not first
    assert watchdog._watchdog() is second


FORK = """
import os, sys, threading
from langchain_retryrouter._retry.watchdog import Watch

def cut(watch, aborted):
    watch.expect_within(0.05)
    return aborted.wait(10)

before, inherited, fresh = (threading.Event() for _ in range(3))
running = Watch(inherited.set)
running.expect_within(1000)
assert cut(Watch(before.set), before)
child = os.fork()
if child == 0:
    ok = cut(running, inherited) and cut(Watch(fresh.set), fresh)
    os._exit(0 if ok else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_child_has_a_watchdog_of_its_own() -> None:
    """A fork leaves the thread behind, and the child's reads are cut all the same."""
    root = Path(watchdog.__file__).parents[2]
    child = subprocess.run(
        # Python warns of a fork beside threads; that is the case under test.
        [sys.executable, "-W", "ignore", "-c", FORK],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert (child.returncode, child.stderr) == (0, "")
