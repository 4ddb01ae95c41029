"""A stream, repeated until its first token, then watched: `stream` and its twin.

What can be undone is undone silently: until the first token has been handed over, a
failed attempt is followed by the next. From then on nothing is repeated, and a stream
that ends without its protocol's end raises, with what was delivered. A plan may hold a
stream back until its end; then there is no such moment, and nothing is ever half said.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
)
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, NoReturn, Protocol, TypeAlias, TypeVar

from langchain_retryrouter._retry.engine import (
    ANotify,
    Attempt,
    Notify,
    RetryContext,
    RetryController,
    abegin,
    aretrying,
    begin,
    retrying,
)
from langchain_retryrouter._retry.watchdog import Watch
from langchain_retryrouter.errors import RetryRouterError
from langchain_retryrouter.failures import FailureKind


class ChunkInfo(NamedTuple):
    """What one event of a stream means.

    Attributes:
        text: Text that it adds to the answer.
        is_token: Whether it carries content: once handed over, nothing can be undone.
        is_end: Whether the protocol says with it that the answer is whole.
        is_last: Whether nothing worth reading follows.
    """

    text: str = ""
    is_token: bool = False
    is_end: bool = False
    is_last: bool = False


class StreamGuard:
    """Follows the stream of one attempt."""

    __slots__ = ("_parts", "is_over", "is_whole", "saw_token")

    def __init__(self) -> None:
        """Nothing has been seen yet."""
        self._parts: list[str] = []
        self.saw_token = False
        self.is_whole = False
        self.is_over = False

    def see(self, signal: ChunkInfo) -> None:
        """Take note of one event."""
        if signal.text:
            self._parts.append(signal.text)
        if signal.is_token:
            self.saw_token = True
            self.is_whole = False  # An end that a token follows was not the end.
        if signal.is_end:
            self.is_whole = True
        if signal.is_last:
            self.is_over = True

    @property
    def is_settled(self) -> bool:
        """Whether the first event worth handing over has come: a token, or the end."""
        return self.saw_token or self.is_whole

    @property
    def delivered(self) -> str:
        """All text seen so far."""
        return "".join(self._parts)


E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)

Reader: TypeAlias = Callable[[E], ChunkInfo]

# Behind the end there may be a usage event. A server that neither sends it nor closes
# is not waited for longer than this many seconds.
_AFTER_THE_END = 5.0


class EventSource(Protocol[E_co]):
    """One attempt's stream, opened."""

    def __iter__(self) -> Iterator[E_co]:
        """The events; an error they raise is a `RetryRouterError`."""

    def close(self) -> None:
        """Let go of the connection at once."""

    def abort(self) -> None:
        """Unblock, from another thread, a read under way; it then raises."""


class AEventSource(Protocol[E_co]):
    """Async twin of `EventSource`."""

    def __aiter__(self) -> AsyncIterator[E_co]:
        """The events; an error they raise is a `RetryRouterError`."""

    async def aclose(self) -> None:
        """Let go of the connection at once."""


class _End:
    """What a pull gives instead of an event when there are no more."""


_END = _End()
_SILENCE = _End()


class StreamMonitor(Generic[E]):
    """One attempt's stream as both twins follow it: what was seen, what it means."""

    def __init__(self, controller: RetryController, reader: Reader[E]) -> None:
        self.guard = StreamGuard()
        self.held: list[E] = []
        self.first_token_delivered = False
        self._steering = controller
        self._reader = reader
        self._is_counted = False
        policy = controller.call_state.policy
        limits = (policy.stall_timeout, policy.deadline)
        self._is_limited = limits != (None, None)

    def open_for(self, event: E) -> bool:
        """Keep an event back; True once there is something worth handing over."""
        self.held.append(event)
        self.see(event)
        if self._steering.is_buffered:
            return self.guard.is_whole
        return self.guard.is_settled

    def see(self, event: E) -> None:
        """Take note of an event about to be handed over."""
        self.guard.see(self._reader(event))
        if self.guard.is_whole:
            if not self._is_counted:
                self._is_counted = True
                self._steering.call_state.succeeded()
        elif self.guard.is_over:
            self.ended()

    def limit(self) -> float | None:
        """Seconds the next event may take; None for no limit of ours."""
        if not (self._is_limited or self.guard.is_whole):
            return None
        call_state = self._steering.call_state
        limits = (
            call_state.policy.stall_timeout,
            call_state.remaining(),
            _AFTER_THE_END if self.guard.is_whole else None,
        )
        return min((limit for limit in limits if limit is not None), default=None)

    def ended(self) -> _End:
        """The body is over, which is fine if the protocol said so first."""
        if not self.guard.is_whole:
            self._break_off(
                self._interrupted("the stream ended before the answer was complete")
            )
        return _END

    def broke(self, error: RetryRouterError) -> _End:  # noqa: RET503 - it raises
        """The body broke, which is no matter once the answer is whole."""
        if self.guard.is_whole:
            return _END
        if error.failure.kind in {FailureKind.CONNECTION, FailureKind.TIMEOUT}:
            self._break_off(self._interrupted(error.message), cause=error)
        self._break_off(error)

    def fell_silent(self, limit: float) -> _End:  # noqa: RET503 - it raises
        """The next event did not come in time."""
        if self.guard.is_whole:
            return _END
        self._break_off(self._interrupted(self._why_cut(limit)))

    def timed_out(self, attempt: Attempt) -> RetryRouterError:
        """The error for an attempt that was cut short before anything was handed over.

        It is one of time, and not of a broken stream: another route may be faster.
        """
        if not (self._steering.is_buffered and self.guard.saw_token):
            return self._steering.timed_out(attempt.timeout or 0.0)
        what = self._why_cut(self.limit() or 0.0)
        return self._steering.errors[FailureKind.TIMEOUT](what)

    def _why_cut(self, limit: float) -> str:
        policy = self._steering.call_state.policy
        if limit == policy.stall_timeout:
            return f"the stream was silent for {limit:.3g} s"
        return f"the deadline of {policy.deadline:g} s is over"

    def _interrupted(self, what: str) -> RetryRouterError:
        return self._steering.errors[FailureKind.INTERRUPTED](
            f"{what}, after {len(self.guard.delivered)} characters"
        )

    def _break_off(
        self, error: RetryRouterError, cause: RetryRouterError | None = None
    ) -> NoReturn:
        if self.first_token_delivered:
            error.delivered = self.guard.delivered
            self._steering.stream_interrupted(error)
        raise error from cause


@dataclass(slots=True)
class _Opened(Generic[E]):
    source: EventSource[E]
    monitor: StreamMonitor[E]
    watch: Watch
    events: Iterator[E] = field(init=False)

    def __post_init__(self) -> None:
        self.events = iter(self.source)


@dataclass(slots=True)
class _AOpened(Generic[E]):
    source: AEventSource[E]
    monitor: StreamMonitor[E]
    events: AsyncIterator[E] = field(init=False)

    def __post_init__(self) -> None:
        self.events = aiter(self.source)


def stream(
    plan: RetryContext,
    connect: Callable[[Attempt], EventSource[E]],
    new_reader: Callable[[], Reader[E]],
    notify: Notify | None = None,
) -> Generator[E, None, None]:
    """The events of one whole stream.

    Args:
        plan: The call's session, errors and clock.
        connect: Opens one attempt's stream.
        new_reader: Makes what tells, for one attempt's events, token and end.
        notify: Told of each retry before its wait.

    Raises:
        RetryRouterError: Before the first token, the last attempt's own error; after it
            a `StreamInterruptedError`, or the error that the stream itself reported,
            with `delivered`.
    """
    controller = RetryController(plan, is_stream=True)

    def attempt() -> _Opened[E]:
        return _open(controller, begin(controller), connect, new_reader)

    opened = retrying(plan, controller, attempt, notify)
    opened.monitor.first_token_delivered = True
    try:
        yield from opened.monitor.held
        while not isinstance(pulled := _pull(opened), _End):
            yield pulled
    finally:
        opened.watch.end()
        # Says nothing about a call that is settled. First, since a close can break.
        plan.call_state.cancelled()
        opened.source.close()


async def astream(
    plan: RetryContext,
    connect: Callable[[Attempt], Awaitable[AEventSource[E]]],
    new_reader: Callable[[], Reader[E]],
    notify: ANotify | None = None,
) -> AsyncGenerator[E, None]:
    """Async twin of `stream`."""
    controller = RetryController(plan, is_stream=True)

    async def attempt() -> _AOpened[E]:
        return await _aopen(controller, await abegin(controller), connect, new_reader)

    opened = await aretrying(plan, controller, attempt, notify)
    opened.monitor.first_token_delivered = True
    try:
        for event in opened.monitor.held:
            yield event
        while not isinstance(pulled := await _apull(opened), _End):
            yield pulled
    finally:
        plan.call_state.cancelled()
        await opened.source.aclose()


def _open(
    controller: RetryController,
    attempt: Attempt,
    connect: Callable[[Attempt], EventSource[E]],
    new_reader: Callable[[], Reader[E]],
) -> _Opened[E]:
    """Connect, and read up to the first event worth handing over."""
    clock = controller.clock
    began = clock.monotonic()
    monitor = StreamMonitor(controller, new_reader())
    source = connect(attempt)
    opened = _Opened(source, monitor, Watch(source.abort))
    try:
        if attempt.timeout is not None:
            opened.watch.expect_within(attempt.timeout - (clock.monotonic() - began))
        for event in opened.events:
            if monitor.open_for(event) and opened.watch.pause():
                return opened
            if monitor.guard.saw_token and opened.watch.pause():
                opened.watch.expect_within(monitor.limit())
        monitor.ended()
    except BaseException as error:
        opened.watch.end()
        source.close()
        if opened.watch.has_fired and isinstance(error, RetryRouterError):
            raise monitor.timed_out(attempt) from error
        raise
    return opened


async def _aopen(
    controller: RetryController,
    attempt: Attempt,
    connect: Callable[[Attempt], Awaitable[AEventSource[E]]],
    new_reader: Callable[[], Reader[E]],
) -> _AOpened[E]:
    """Async twin of `_open`."""
    source: AEventSource[E] | None = None
    monitor = StreamMonitor(controller, new_reader())
    try:
        async with asyncio.timeout(attempt.timeout) as limit:
            source = await connect(attempt)
            opened = _AOpened(source, monitor)
            async for event in opened.events:
                if monitor.open_for(event):
                    return opened
                if monitor.guard.saw_token:
                    _reschedule(limit, monitor.limit())
            monitor.ended()
    except BaseException as error:
        if source is not None:
            await source.aclose()
        if isinstance(error, TimeoutError) and limit.expired():
            raise monitor.timed_out(attempt) from error
        raise
    return opened


def _reschedule(limit: asyncio.Timeout, seconds: float | None) -> None:
    loop = asyncio.get_running_loop()
    limit.reschedule(None if seconds is None else loop.time() + seconds)


def _pull(opened: _Opened[E]) -> E | _End:
    """The next event of a stream that is under way."""
    monitor, watch = opened.monitor, opened.watch
    if monitor.guard.is_over:
        return _END
    limit = monitor.limit()
    watch.expect_within(limit)
    try:
        event = next(opened.events, _END)
    except RetryRouterError as error:
        if watch.has_fired:
            return monitor.fell_silent(limit or 0.0)
        return monitor.broke(error)
    if limit is not None:
        watch.pause()
    if isinstance(event, _End):
        return monitor.ended()
    monitor.see(event)
    return event


async def _apull(opened: _AOpened[E]) -> E | _End:
    """Async twin of `_pull`."""
    monitor = opened.monitor
    if monitor.guard.is_over:
        return _END
    limit = monitor.limit()
    try:
        event = await _anext_within(opened.events, limit)
    except RetryRouterError as error:
        return monitor.broke(error)
    if event is _SILENCE:
        return monitor.fell_silent(limit or 0.0)
    if isinstance(event, _End):
        return monitor.ended()
    monitor.see(event)
    return event


async def _anext_within(events: AsyncIterator[E], limit: float | None) -> E | _End:
    if limit is None:
        return await anext(events, _END)
    try:
        async with asyncio.timeout(limit) as scope:
            return await anext(events, _END)
    except TimeoutError:
        if scope.expired():
            return _SILENCE
        raise
