"""One call's requests to a gateway: what an attempt sends, how its answer is read.

Between the drive, which says when, and the transport, which says how. From attempt to
attempt a call keeps two things in mind:

- The gateway asks its second model only when its own health table says that the first
  is sick, never when the first one fails. So whoever failed is put last for the next
  attempt; and whoever cannot answer at all, such as a model that the gateway does not
  know, is left out of it.
- Without streaming the gateway answers most causes with the same opaque 500, while a
  stream is told the cause. So after an opaque 500 the attempts stream inside, and an
  unknown model is named instead of being repeated.
- Without streaming it drops tool calls, and in a stream the legacy function call. So a
  call with tools streams inside from the start, and one with functions never does.

A client that a user put in ours' place is asked as langchain-community would ask it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Generator,
    Iterator,
    Sequence,
)
from typing import TYPE_CHECKING, Any

from gpt_router.models import (
    ChunkedGenerationResponse,
    GenerationResponse,
    GPTRouterMetadata,
)

from langchain_retryrouter._core.failure import is_routes_own
from langchain_retryrouter._gptrouter.bodies import AsyncEvents, SyncEvents
from langchain_retryrouter._gptrouter.borders import from_sdk
from langchain_retryrouter._gptrouter.failures import is_opaque, unknown_name
from langchain_retryrouter._gptrouter.messages import assemble, take_apart
from langchain_retryrouter._gptrouter.options import GatewayRequest
from langchain_retryrouter._gptrouter.transport import GatewayClient
from langchain_retryrouter._gptrouter.wire import (
    GatewayEvent,
    GatewayResponse,
)
from langchain_retryrouter.errors import RetryRouterError
from langchain_retryrouter.errors.gpt_router import GPT_ROUTER_STREAM_ERRORS

if TYPE_CHECKING:
    from langchain_retryrouter._drive import AEventSource, Attempt, EventSource

logger = logging.getLogger(__name__)

_NO_CHOICES_WITH_TOOLS = (
    "n must be 1 in a call with tools: the gateway sends tool calls in streams only,"
    " where it interleaves several answers without telling them apart"
)


class _Conversation:
    """What both twins know of a call."""

    def __init__(
        self,
        client: Any,
        requests: Sequence[GatewayRequest],
        options: dict[str, Any],
        *,
        metadata: GPTRouterMetadata | None,
        failover: bool,
    ) -> None:
        """Nothing is sent yet.

        Args:
            client: What sends; ours, or one with the SDK's `generate`.
            requests: A request per model, the preferred one first.
            options: What our own client tells the gateway beside them.
            metadata: What the gateway is told for its own records.
            failover: Whether the next attempt puts a model that failed last.

        Raises:
            ValueError: For several answers with tool calls, which no stream can carry.
        """
        params = requests[0].prompt_params
        asks_for_one = params.n in {None, 1}
        if params.tools and not asks_for_one:
            raise ValueError(_NO_CHOICES_WITH_TOOLS)
        self._client = client
        self._requests = list(requests)
        self._options = options if isinstance(client, GatewayClient) else None
        self._metadata = metadata
        self._failover = failover
        self._streams_inside = bool(params.tools)
        self._never_streams = bool(params.functions)
        self._may_stream_inside = asks_for_one and not self._never_streams

    def route(self) -> str:
        """The model that the next attempt asks first."""
        return self._requests[0].model_name

    def learn(self, error: RetryRouterError) -> None:
        """Prepare the next attempt, knowing how the last one failed."""
        if self._may_stream_inside and is_opaque(error):
            self._streams_inside = True
        if not self._failover:
            return
        if self.leaves_behind(error):
            out = self._cannot_answer(error)
            names = ", ".join(request.model_name for request in out)
            logger.warning("%s cannot answer: %s", names, error)
            asked_next = [one for one in self._requests if one not in out]
        else:
            failed, *others = self._requests
            asked_next = [*others, failed]
        self._requests = [
            request.model_copy(update={"order": order})
            for order, request in enumerate(asked_next, start=1)
        ]

    def leaves_behind(self, error: RetryRouterError) -> bool:
        """Whether some models are out of the question, and others are not."""
        return self._failover and (
            0 < len(self._cannot_answer(error)) < len(self._requests)
        )

    def _cannot_answer(self, error: RetryRouterError) -> list[GatewayRequest]:
        """Which models an error rules out, however often they were asked.

        A name that the gateway does not know is told. Else only what a stream reports
        is about the model or its provider, and so about the one asked first: a 401 to
        the request itself, say, is about the gateway's key, whoever is asked.
        """
        name = unknown_name(error)
        named = [r for r in self._requests if name in {r.model_name, r.provider_name}]
        if named:
            return named
        told_by_a_stream = type(error) is GPT_ROUTER_STREAM_ERRORS.get(error.kind)
        is_models_own = told_by_a_stream and is_routes_own(error.kind)
        return self._requests[:1] if is_models_own else []

    def _arguments(self, attempt: Attempt, *, is_stream: bool) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "ordered_generation_requests": self._requests,
            "is_stream": is_stream,
        }
        if self._metadata is not None:
            arguments["model_router_metadata"] = self._metadata
        if self._options is not None:
            arguments |= {"timeout": attempt.timeout, **self._options}
            if self._streams_inside:
                # Nobody watches this stream: what limits the answer limits all of it.
                arguments["whole_within"] = attempt.timeout
        return arguments

    @staticmethod
    def signed(
        response: GenerationResponse, ledger: dict[str, Any]
    ) -> GenerationResponse:
        """The answer, telling the attempts it took where its type has room for it."""
        if isinstance(response, GatewayResponse):
            response.retryrouter = ledger
        return response


class Exchange(_Conversation):
    """One call over a sync client."""

    def send(self, attempt: Attempt) -> GenerationResponse:
        """One attempt's answer."""
        if self._streams_inside:
            with contextlib.closing(self.connect(attempt)) as events:
                return assemble(events)
        with _foreign_border():
            answer: GenerationResponse = self._client.generate(
                **self._arguments(attempt, is_stream=False)
            )
        return answer

    def connect(self, attempt: Attempt) -> EventSource[ChunkedGenerationResponse]:
        """One attempt's stream."""
        if self._never_streams:
            return _ToldAtOnce(take_apart(self.send(attempt)))
        with _foreign_border():
            events = self._client.generate(**self._arguments(attempt, is_stream=True))
        return events if isinstance(events, SyncEvents) else _ForeignEvents(events)


class AsyncExchange(_Conversation):
    """One call over an async client."""

    async def send(self, attempt: Attempt) -> GenerationResponse:
        """One attempt's answer."""
        if self._streams_inside:
            async with contextlib.aclosing(await self.connect(attempt)) as events:
                return assemble([event async for event in events])
        with _foreign_border():
            answer: GenerationResponse = await self._client.agenerate(
                **self._arguments(attempt, is_stream=False)
            )
        return answer

    async def connect(
        self, attempt: Attempt
    ) -> AEventSource[ChunkedGenerationResponse]:
        """One attempt's stream."""
        if self._never_streams:
            return _AsyncToldAtOnce(take_apart(await self.send(attempt)))
        with _foreign_border():
            events = await self._client.agenerate(
                **self._arguments(attempt, is_stream=True)
            )
        return (
            events if isinstance(events, AsyncEvents) else _AsyncForeignEvents(events)
        )


class _ToldAtOnce:
    """The events of an answer that is here already."""

    def __init__(self, events: Iterator[GatewayEvent]) -> None:
        self._events = events

    def __iter__(self) -> Iterator[GatewayEvent]:
        yield from self._events

    def abort(self) -> None:
        """Nothing is read any longer."""

    def close(self) -> None:
        """Nothing is open any longer."""


class _AsyncToldAtOnce:
    """Async twin of `_ToldAtOnce`."""

    def __init__(self, events: Iterator[GatewayEvent]) -> None:
        self._events = events

    async def __aiter__(self) -> AsyncIterator[GatewayEvent]:
        for event in self._events:
            yield event

    async def aclose(self) -> None:
        """Nothing is open any longer."""


class _ForeignEvents:
    """The events of the SDK's own client, which swallows `end`.

    A body that is over then has to do for an end; the reader still asks for a finish
    reason. Nobody can abort a read in there, so limits hold between events only.
    """

    def __init__(self, events: Iterator[ChunkedGenerationResponse]) -> None:
        self._events = events

    def __iter__(self) -> Iterator[ChunkedGenerationResponse]:
        with _foreign_border():
            yield from self._events
        yield GatewayEvent(event="end", data={})

    def abort(self) -> None:
        """Nothing that could be done."""

    def close(self) -> None:
        if isinstance(self._events, Generator):
            self._events.close()


class _AsyncForeignEvents:
    """Async twin of `_ForeignEvents`."""

    def __init__(self, events: AsyncIterator[ChunkedGenerationResponse]) -> None:
        self._events = events

    async def __aiter__(self) -> AsyncIterator[ChunkedGenerationResponse]:
        with _foreign_border():
            async for event in self._events:
                yield event
        yield GatewayEvent(event="end", data={})

    async def aclose(self) -> None:
        if isinstance(self._events, AsyncGenerator):
            await self._events.aclose()


@contextlib.contextmanager
def _foreign_border() -> Iterator[None]:
    try:
        yield
    except RetryRouterError:
        raise
    except Exception as error:
        told = from_sdk(error)
        if told is None:
            raise
        raise told from error
