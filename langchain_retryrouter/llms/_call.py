"""One call of an OpenAI LLM: what it consists of, and how an attempt sends it.

`_retry.engine` and `_retry.streaming` repeat its attempts; `_openai.client` sends one.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

from langchain_retryrouter._base import new_call_state
from langchain_retryrouter._callbacks import AnyRunManager, observe_run
from langchain_retryrouter._openai import client, protocol
from langchain_retryrouter._openai.errors import OPENAI_ERRORS
from langchain_retryrouter._prices import listed_prices, load_list
from langchain_retryrouter._retry import engine
from langchain_retryrouter._retry.call_log import Subject
from langchain_retryrouter.llms._connection import OpenAIConnection
from langchain_retryrouter.rate_limits import Size, approximate_tokens

chunk_info = operator.attrgetter("info")  # What an event of a stream means.


class Call:
    """One call: its request, and how an attempt sends it."""

    def __init__(
        self,
        llm: OpenAIConnection,
        resource: Any,
        request: Mapping[str, Any],
        run_manager: AnyRunManager | None,
    ) -> None:
        route = str(request.get("model") or llm.model_name)  # Any JSON is sent.
        operation = "chat" if "messages" in request else "text_completion"
        subject = Subject(operation, llm.ls_provider, route)
        call_state = self._call_state = new_call_state(
            llm, lambda _: subject, lambda _: _size_of(request)
        )
        if load_list():
            prices = listed_prices(route, llm.ls_provider, llm.openai_api_base)
            call_state.prices = {route: prices}
        observe_run(call_state, run_manager, trace_attempts=llm.trace_attempts)
        self.context = engine.RetryContext(
            call_state,
            errors=OPENAI_ERRORS,
            route=lambda: route,
            rate_limiters=(llm.rate_limiter,),
        )
        self.request = client.SDKRequest(resource, request, call_state.clock.time)
        self._is_logged = False
        # A chunk with the usage follows the end of such a stream.
        asked = request.get("stream_options")
        self._is_counted_late = isinstance(asked, Mapping) and asked.get(
            "include_usage"
        )
        self._end: Any = None  # The chunk of the end, until its usage is known.

    def send(self, attempt: engine.Attempt) -> Any:
        return self._noted(self.request.create(attempt), attempt.number)

    async def asend(self, attempt: engine.Attempt) -> Any:
        return self._noted(await self.request.acreate(attempt), attempt.number)

    def _noted(self, answer: Any, attempt: int) -> Any:
        """An answer or chunk, that the observers have seen."""
        if self._call_state.wants_facts and (facts := protocol.facts_of(answer)):
            self._call_state.answered(attempt, **facts)
        return answer

    def chunks(self, event: protocol.ClassifiedChunk) -> Iterator[Any]:
        """The chunks to hand over; that with which the answer ends has the log."""
        self._noted(event.chunk, self._call_state.attempt)
        yield from self.held_end()
        if not event.info.is_end or self._is_logged:
            yield event.chunk
            return
        self._is_logged, self._end = True, event.chunk
        if not self._is_counted_late or "usage" in protocol.facts_of(event.chunk):
            yield from self.held_end()

    def held_end(self) -> Iterator[Any]:
        """The chunk of the end, with the attempt log, if it is held back."""
        end, self._end = self._end, None
        if end is not None:
            yield self.logged(end)

    def logged(self, thing: Any) -> Any:
        """An answer, or a chunk, with the attempt log."""
        return protocol.attach_attempt_log(thing, self._call_state.attempt_log())


def _size_of(request: Mapping[str, Any]) -> Size:
    """The size of a request, which may have several prompts."""
    names = ("prompt", "messages", "tools", "suffix")
    answers = max(request.get("n") or 1, request.get("best_of") or 1)
    most = request.get("max_tokens") or request.get("max_completion_tokens") or 0
    return Size(
        approximate_tokens([request.get(name) for name in names]),
        most * answers * protocol.count_prompts(request) if most > 0 else None,
    )
