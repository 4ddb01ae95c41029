"""Retried streams: `stream` and `astream`.

A stream is repeated silently until its first token has been handed to the caller. From
then on nothing is repeated: a stream that stops before the end that its protocol
requires raises an error with the text that was delivered. If `RetryContext.is_buffered`
is set, nothing is handed over before the end is known to be good.

The loop is that of `engine.py`; sync streams with time limits are read by a
`timeouts.ThreadedStream`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
)
from typing import Final, Generic, NamedTuple, NoReturn, TypeAlias, TypeVar

from langchain_retryrouter._retry.engine import (
    ANotify,
    Attempt,
    Notify,
    RetryContext,
    RetryController,
    arun,
    run,
)
from langchain_retryrouter._retry.timeouts import (
    END,
    AEventSource,
    DirectStream,
    End,
    EventSource,
    ThreadedStream,
    TimeLimitError,
)
from langchain_retryrouter.errors import RetryRouterError
from langchain_retryrouter.failures import FailureKind


class ChunkInfo(NamedTuple):
    """What one event of a stream means.

    Once a token is handed over, nothing can be repeated. The answer is complete with
    its end, as the protocol defines it; nothing useful follows the last event.
    """

    text: str = ""
    is_token: bool = False
    is_end: bool = False
    is_last: bool = False


E = TypeVar("E")

Classifier: TypeAlias = Callable[[E], ChunkInfo]

# Seconds to wait for what follows a complete answer, such as token usage.
_AFTER_THE_END = 5.0
_NO_END: Final = "the stream ended before the answer was complete"


class StreamMonitor(Generic[E]):
    """The state of one attempt's stream, shared by the sync and async engine.

    `buffer` has the events that were read before the first one was handed over, and
    `is_complete` is whether the protocol's end was seen.
    """

    def __init__(
        self,
        controller: RetryController,
        attempt: Attempt,
        classify_chunk: Classifier[E],
    ) -> None:
        self.buffer: list[E] = []
        self.first_token_delivered = False
        self.saw_token = False
        self.is_complete = False
        self.is_over = False
        self._controller = controller
        self._call_state = controller.call_state
        self._policy = controller.call_state.policy
        self._attempt = attempt
        self._began = controller.call_state.clock.monotonic()
        self._classify_chunk = classify_chunk
        self._text: list[str] = []
        self._is_counted = False

    @property
    def delivered(self) -> str:
        """All text seen so far."""
        return "".join(self._text)

    def hold(self, event: E | End) -> bool:
        """Keep an event back; True once the events may be handed over."""
        if isinstance(event, End):
            self.interrupt(_NO_END)
        self.buffer.append(event)
        self.see(event)
        if self._controller.context.is_buffered:
            return self.is_complete
        return self.saw_token or self.is_complete

    def see(self, event: E) -> None:
        """Take note of an event about to be handed over."""
        try:
            chunk = self._classify_chunk(event)
        except RetryRouterError as error:
            self._raise(error)
        if chunk.text:
            self._text.append(chunk.text)
        if chunk.is_token:
            if not self.saw_token:
                self.saw_token = True
                self._call_state.begins_to_answer()
            self.is_complete = False  # An end that a token follows was not the end.
        if chunk.is_end:
            self.is_complete = True
            if not self._is_counted:
                self._is_counted = True
                self._call_state.succeeded()
        if chunk.is_last:
            self.is_over = True
            self.ended()
            if (on_last := self._controller.context.on_last) is not None:
                on_last(event)

    def limit(self) -> float | None:
        """Seconds that the next event may take; None for no limit."""
        stall = self._policy.stall_timeout
        if not self.is_complete and self._policy.deadline is None:
            return stall
        after = _AFTER_THE_END if self.is_complete else math.inf
        stall = math.inf if stall is None else stall
        return min(after, stall, self._call_state.remaining())

    def opening_limit(self) -> float | None:
        """Seconds that the next event may take before any is handed over."""
        if self.saw_token:
            return self.limit()
        if self._attempt.timeout is None:
            return None
        return self._attempt.timeout + self._began - self._call_state.clock.monotonic()

    def ended(self, error: Exception | None = None, limit: float | None = None) -> None:
        """The body is over, reading failed, or no event came within the limit.

        It does not matter if the answer is complete.
        """
        if self.is_complete:
            return
        if error is None:
            self.interrupt(_NO_END)
        if not isinstance(error, RetryRouterError):
            self.interrupt(self._limit_exceeded(limit))
        if error.failure.kind in {FailureKind.CONNECTION, FailureKind.TIMEOUT}:
            self.interrupt(error.message, cause=error)
        self._raise(error)

    def timed_out(self) -> RetryRouterError:
        """The error for an attempt that ran out of time before any event was delivered.

        It is a timeout and not an interrupted stream, since another route may be
        faster.
        """
        if self._controller.context.is_buffered and self.saw_token:
            message = self._limit_exceeded(self.limit())
            return self._controller.context.errors[FailureKind.TIMEOUT](message)
        return self._controller.timed_out(self._attempt)

    def interrupt(
        self, message: str, cause: RetryRouterError | None = None
    ) -> NoReturn:
        """Raise that the stream broke off."""
        error_class = self._controller.context.errors[FailureKind.INTERRUPTED]
        error = error_class(f"{message}, after {len(self.delivered)} characters")
        self._raise(error, cause)

    def _limit_exceeded(self, limit: float | None) -> str:
        if limit is not None and limit == self._policy.stall_timeout:
            return f"the stream was silent for {limit:.3g} s"
        return f"the deadline of {self._policy.deadline:g} s is over"

    def _raise(
        self, error: RetryRouterError, cause: RetryRouterError | None = None
    ) -> NoReturn:
        if self.first_token_delivered:
            error.delivered = self.delivered
            self._controller.stream_interrupted(error)
        raise error from cause


_Stream: TypeAlias = DirectStream[E] | ThreadedStream[E]


def stream(
    context: RetryContext,
    connect: Callable[[Attempt], EventSource[E]],
    new_classifier: Callable[[], Classifier[E]],
    notify: Notify | None = None,
) -> Generator[E, None, None]:
    """The events of one complete stream.

    If there is a time limit, `connect` runs in a worker thread, and may return while
    the next attempt is under way. `new_classifier` makes the function that classifies
    one attempt's events. `notify` is called before each wait.

    Raises:
        RetryRouterError: Before the first token, the last attempt's own error; after it
            a `StreamInterruptedError`, or the error that the stream itself reported,
            with `delivered`.
    """
    controller = RetryController(context, notify, is_stream=True)
    state, error = context.call_state, None

    def open_stream(attempt: Attempt) -> tuple[_Stream[E], StreamMonitor[E]]:
        """Connect, and read up to the first event that may be handed over."""
        monitor = StreamMonitor(controller, attempt, new_classifier())
        has_limits = (attempt.timeout, state.policy.stall_timeout) != (None, None)
        with state.attach(attempt.number):
            events: _Stream[E] = (ThreadedStream if has_limits else DirectStream)(
                lambda: connect(attempt)
            )
            try:
                while not monitor.hold(events.next(monitor.opening_limit())):
                    pass
            except BaseException as error:
                events.close()
                if isinstance(error, TimeLimitError):
                    raise monitor.timed_out() from error
                raise
        return events, monitor

    events, monitor = run(controller, open_stream)
    try:
        monitor.first_token_delivered = True
        yield from monitor.buffer
        while not monitor.is_over:
            event = _next_event(events, monitor)
            if isinstance(event, End):
                break
            monitor.see(event)
            yield event
    except BaseException as left:
        error = left
        raise
    finally:
        # First, since closing may fail; it changes nothing in a call that has ended.
        state.cancelled()
        context.end(error)
        events.close()


def _next_event(events: _Stream[E], monitor: StreamMonitor[E]) -> E | End:
    """The next event; `END` also if silence or an error follows a whole answer."""
    limit = monitor.limit()
    try:
        event = events.next(limit)
    except (TimeLimitError, RetryRouterError) as error:
        monitor.ended(error, limit)
        return END
    if isinstance(event, End):
        monitor.ended()
    return event


async def astream(
    context: RetryContext,
    connect: Callable[[Attempt], Awaitable[AEventSource[E]]],
    new_classifier: Callable[[], Classifier[E]],
    notify: ANotify | None = None,
) -> AsyncGenerator[E, None]:
    """Async variant of `stream`."""
    controller = RetryController(context, notify, is_stream=True)
    state, error = context.call_state, None
    loop_time = asyncio.get_running_loop().time

    async def open_stream(
        attempt: Attempt,
    ) -> tuple[AEventSource[E], AsyncIterator[E], StreamMonitor[E]]:
        monitor = StreamMonitor(controller, attempt, new_classifier())
        source: AEventSource[E] | None = None
        with state.attach(attempt.number):
            try:
                async with asyncio.timeout(attempt.timeout) as limit:
                    source = await connect(attempt)
                    events = aiter(source)
                    while not monitor.hold(await anext(events, END)):
                        if monitor.saw_token:
                            left, now = monitor.limit(), loop_time()
                            limit.reschedule(None if left is None else now + left)
            except BaseException as error:
                if source is not None:
                    await source.aclose()
                if isinstance(error, TimeoutError) and limit.expired():
                    raise monitor.timed_out() from error
                raise
        return source, events, monitor

    source, events, monitor = await arun(controller, open_stream)
    try:
        monitor.first_token_delivered = True
        for event in monitor.buffer:
            yield event
        while not monitor.is_over:
            following = await _anext_event(events, monitor)
            if isinstance(following, End):
                break
            monitor.see(following)
            yield following
    except BaseException as left:
        error = left
        raise
    finally:
        state.cancelled()
        try:
            await context.aend(error)
        finally:
            await source.aclose()


async def _anext_event(events: AsyncIterator[E], monitor: StreamMonitor[E]) -> E | End:
    """Async variant of `_next_event`."""
    limit = monitor.limit()
    try:
        if limit is None:
            event = await anext(events, END)
        else:
            async with asyncio.timeout(limit) as scope:
                event = await anext(events, END)
    except RetryRouterError as error:
        monitor.ended(error)
    except TimeoutError as error:
        if limit is None or not scope.expired():
            raise
        monitor.ended(error, limit)
    else:
        if isinstance(event, End):
            monitor.ended()
        return event
    return END
