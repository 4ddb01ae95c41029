"""One call of a `RetryRouter`: its attempts, and what becomes of their answers.

The engine (`_retry.engine`, `_retry.streaming`) decides when an attempt is made, and
asks `RouterCall` or `AsyncRouterCall` to make it. An attempt asks the model of one
route, gives each exception its meaning, and judges the answer: an answer that is empty,
filtered or cut is a failure. `BaseRouterCall` has what the sync and async variant
share: failures, continuation of broken streams, hedging and the attempt log.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import re
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Generator,
    Iterator,
    Mapping,
)
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final, NamedTuple, Self, TypeGuard

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    ToolMessage,
    message_chunk_to_message,
)
from langchain_core.messages.ai import add_usage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.outputs.chat_generation import merge_chat_generation_chunks
from langchain_core.rate_limiters import BaseRateLimiter
from pydantic import ValidationError

from langchain_retryrouter._prices import write_costs
from langchain_retryrouter._providers.errors import (
    PAYLOADS,
    is_of_closed_loop,
    name_failure,
    safe_getattr,
)
from langchain_retryrouter._providers.finish_reasons import (
    StreamCheck,
    check_result,
    has_answer,
    kind_of,
)
from langchain_retryrouter._providers.history import (
    fit_history,
    foreign_response_id,
)
from langchain_retryrouter._providers.integrations import (
    UNKNOWN_INTEGRATION,
    integration_of,
)
from langchain_retryrouter._retry.call_log import AttemptRecord
from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.clock import Clock
from langchain_retryrouter._retry.engine import Attempt
from langchain_retryrouter._retry.hedging import AHedgedSource, HedgedSource
from langchain_retryrouter._retry.streaming import ChunkInfo
from langchain_retryrouter._retry.timeouts import (
    AEventSource,
    EventSource,
    reraise_lost_cancellation,
)
from langchain_retryrouter._router.costs import CallCosts
from langchain_retryrouter._router.route import Accept, Route
from langchain_retryrouter.errors import (
    BASE_ERRORS,
    LengthLimitError,
    RejectedAnswerError,
    RetryRouterError,
)
from langchain_retryrouter.failures import FailureAction, FailureKind

logger = logging.getLogger(__name__)

_LOGGED: Final = frozenset(
    {
        FailureKind.AUTHENTICATION,
        FailureKind.PERMISSION,
        FailureKind.NOT_FOUND,
        FailureKind.INVALID_REQUEST,
        FailureKind.UNKNOWN,
    }
)
"""Failures that need a human: a silent failover would hide them."""

_REJECTED: Final = frozenset(
    {FailureKind.INVALID_REQUEST, FailureKind.UNKNOWN, FailureKind.NOT_FOUND}
)
"""Failures that content of other authors may cause."""
_MOST_STALE: Final = 100  # As many idle connections as the generated SDKs keep.
_MISSES_ITEM: Final = re.compile(r"(?i)\b(?:response|item|container|file)s?\b")
_NO_INFO: Final = ChunkInfo()
_MOST_BLOCKS: Final = 1000  # Of one answer.
# Of a 400 that is about the way in which JSON was asked for.
_ABOUT_FORMAT: Final = re.compile(
    r"schema|response.?format|output.?(?:config|format)|structured.?output",
    re.IGNORECASE,
)
_LIMITER_INTERVAL: Final = 0.1  # Seconds between two questions to a rate limiter.


class StreamEvent(NamedTuple):
    """One chunk of a stream and what it means; without a chunk, the end of it."""

    chunk: ChatGenerationChunk | None
    info: ChunkInfo


info_of: Final = attrgetter("info")
"""What an event means: already known when the event is made."""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What the caller asked, the same for every route."""

    messages: list[BaseMessage]
    stop: list[str] | None
    options: dict[str, Any]

    def hash(self) -> int:
        """The same number for the same conversation, within this process."""
        return hash(repr([(one.type, one.content) for one in self.messages]))


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """What the caller asks of an answer, besides being whole.

    `hears_length` is whether an answer that a token limit cut is a failure. `parse`
    makes the object that is asked for, or raises a ValueError. `refused_formats` are
    the routes that are asked for it by a tool, since they refused their own format.
    """

    accept: Accept | None = None
    hears_length: bool = False
    parse: Callable[[BaseMessage], Any] | None = None
    refused_formats: set[str] = field(default_factory=set)


class _CallersError(Exception):
    """Carries an error of the caller's own function past the retry engine."""


class PrefixFilter:
    """Takes out of a second answer what the caller already has of the first.

    A model seldom writes the same text twice, so every character must be the same.
    """

    def __init__(self, delivered: str, *, is_optional: bool = False) -> None:
        """After `delivered` has been handed over.

        Args:
            delivered: The text that the caller has.
            is_optional: Whether the answer may begin behind it as well.
        """
        self._missing = delivered
        self._taken = ""
        self._is_optional = is_optional

    def strip(self, chunk: ChatGenerationChunk) -> bool:
        """Take the known text out of `chunk`; whether anything new is left.

        Raises:
            StreamInterruptedError: This answer begins differently.
        """
        text = chunk.text
        if not self._missing or not text:
            return not self._missing
        common = min(len(text), len(self._missing))
        if text[:common] == self._missing[:common]:
            self._missing = self._missing[common:]
            self._taken += text[:common]
            rest = text[common:]
        elif self._is_optional:  # It began behind the text that it seemed to repeat.
            self._missing, rest = "", self._taken + text
        else:
            raise self._another_answer()
        chunk.message.content = rest
        chunk.text = rest
        return bool(rest)

    def end(self) -> None:
        """The second answer is over.

        Raises:
            StreamInterruptedError: It is shorter than what was delivered.
        """
        if self._missing and (self._taken.strip() or not self._is_optional):
            raise self._another_answer()

    def _another_answer(self) -> RetryRouterError:
        msg = "another attempt gave another answer, which cannot be continued"
        return BASE_ERRORS[FailureKind.INTERRUPTED](msg, should_retry=False)


@dataclass(slots=True)
class RouteAttempt:
    """One attempt: the route that is asked, and what it is sent.

    Settled when the attempt begins: a thread that is left to itself may run on while
    the call is already at another route.
    """

    route: Route
    position: int
    began: float
    facts: dict[str, Any]
    number: int
    messages: list[BaseMessage] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    is_strict: bool = False
    is_prefilled: bool = False
    prefix: PrefixFilter | None = None
    was_heard: bool = False
    received: int | None = None  # Characters, of a stream.
    chunks: list[ChatGenerationChunk] = field(default_factory=list)


class BaseRouterCall:
    """What the sync and the async variant of a call share."""

    def __init__(
        self,
        routes: list[Route],
        call_state: CallState,
        request: ModelRequest,
        clock: Clock,
        measured: Callable[[int, float], None],
        rules: AnswerRules,
    ) -> None:
        """Before the first attempt; `routes` are in the order of `call_state`'s.

        `measured` is called with a route's position and the seconds until its answer,
        its first chunk or its failure.
        """
        self._measured = measured
        self._rules = rules
        accepts = (rules.accept, *(route.accept for route in routes))
        self.needs_whole = rules.hears_length or any(
            rule is not None for rule in (rules.parse, *accepts)
        )
        self._repairs: dict[int, list[BaseMessage]] = {}  # By the route's position.
        self._hopeless: RetryRouterError | None = None
        self._routes = routes
        self._state = call_state
        self._request = request
        self._clock = clock
        self._failures: list[RetryRouterError] = []
        self._facts: dict[int, dict[str, Any]] = {}
        self._interrupted: RetryRouterError | None = None
        self._delivered = ""
        self._has_delivered = False
        self._said_more_than_text = False
        self._passes = 0  # How often the stream broke off and was taken up again.
        self._authors = {route.name: route.reader for route in routes}
        self._refused_prefill: set[str] = set()
        self._strict: set[str] = set()
        self._unheard: list[RouteAttempt] = []
        self._metadata: dict[str, str] = {}
        self._attempts: dict[int, RouteAttempt] = {}
        self.costs: CallCosts | None = None
        self.is_over = False
        self.may_continue = False
        self.hedge_after: float | None = None
        self.on_answer: Callable[[], None] = lambda: None

    @property
    def route(self) -> Route:
        """The route that is asked now, and in the end the one that answered."""
        return self._routes[self._state.position]

    def __enter__(self) -> Self:
        """One pass over the routes; a stream that is continued takes several."""
        return self

    def __exit__(
        self, kind: object, error: BaseException | None, traceback: object
    ) -> bool:
        """Raise the error that the caller gets, unless another pass continues."""
        self.is_over = error is None
        self._settle_costs()
        if isinstance(error, _CallersError) and error.__cause__ is not None:
            self._state.end(error.__cause__)
            raise error.__cause__
        if not isinstance(error, RetryRouterError):
            if error is not None and self._has_delivered:
                self.on_answer()  # The caller has left a stream that was well.
            self._state.end(error)
            return False
        if self.can_continue(error):
            return True
        final = self.final_error(error)
        self._state.end(final)
        final.attempt_log = self.attempt_log()
        raise final

    def on_failure(self, error: RetryRouterError) -> None:
        """Keep a failure that another attempt follows."""
        self._settle_costs()
        self._measure_failed()
        self._failures.append(error)
        if error.kind in _LOGGED:
            cause = error.__cause__ if error.kind is FailureKind.UNKNOWN else None
            logger.warning(
                "route %r cannot answer: %s", error.route, error, exc_info=cause
            )

    def action_for(self, error: RetryRouterError) -> FailureAction | None:
        """A model that has seen its mistake, and repeats it, is not asked again."""
        return FailureAction.FAILOVER if error is self._hopeless else None

    def final_error(self, error: RetryRouterError) -> RetryRouterError:
        """The error that the caller gets, with the others attached.

        The first route's; or the one that was not to be followed by another route, such
        as the refusal of a content filter.
        """
        self._measure_failed()
        if self._interrupted is not None:
            lead = self._interrupted
            lead.delivered, lead.attempts = self._delivered, self._state.attempts
            lead.is_retryable = False  # A caller that retried would multiply the load.
            return _with_others(lead, [*self._failures, error])
        is_raised = bool(error.delivered) or self._state.is_raised
        return lead_of([*self._failures, error], is_raised=is_raised)

    def can_continue(self, error: RetryRouterError) -> bool:
        """Whether another attempt continues a stream that broke after its first token.

        Tool calls, images and refused answers are never continued. After thoughts
        without any text, another attempt begins its answer anew.
        """
        broke_off = bool(error.delivered) or self._state.broke_off
        if not (broke_off and self.may_continue) or self._said_more_than_text:
            return False
        if error.kind is FailureKind.CONTENT_FILTER:
            return False
        self._interrupted = self._interrupted or error
        self._delivered += error.delivered
        self._passes += 1
        self._metadata.clear()
        has_next = self._state.resume()
        if has_next:
            size = len(self._delivered)
            self._state.tell("continued", route=self._state.next_route, characters=size)
        return has_next

    def attempt_log(self) -> dict[str, Any]:
        """The call so far, as JSON-able data."""
        log = self._state.attempt_log()
        costs = []
        for line, record in zip(log["attempts"], self._state.records, strict=True):
            facts, received = self._facts_of(record)
            line.update(facts)
            if self.costs is not None:
                costs.append(self.costs.price(record, facts, received))
        write_costs(log, costs)
        return log

    def cost_of(self, record: AttemptRecord) -> float | None:
        """The money of an attempt that is over, for observers."""
        if self.costs is None:
            return None
        priced = self.costs.price(record, *self._facts_of(record))
        return None if priced is None else priced[0]

    def _facts_of(self, record: AttemptRecord) -> tuple[dict[str, Any], int | None]:
        """What is known of an attempt, and the characters that its stream brought."""
        number = record.number or 0
        attempt = self._attempts.get(number)
        received = None if attempt is None else attempt.received
        return self._facts.get(number, {}), received

    def _settle_costs(self) -> None:
        """Settle the money of the attempts that are over."""
        if self.costs is None or not self.costs.is_limited:
            return
        for record in self._state.records:
            if record.outcome != "pending":
                self.costs.settle(record, *self._facts_of(record))

    def with_attempt_log(self, result: ChatResult) -> ChatResult:
        """An answer with the call's attempt log."""
        for generation in result.generations:
            self._take_facts(generation.message)
        log = self.attempt_log()
        for generation in result.generations:
            generation.message.response_metadata["retryrouter"] = log
        result.llm_output = {**(result.llm_output or {}), "retryrouter": log}
        return result

    def passed_on(self, chunk: ChatGenerationChunk) -> ChatGenerationChunk:
        """A chunk without what only the router may say: the log, and which is last."""
        self._has_delivered = True
        message = chunk.message
        if message.response_metadata or getattr(message, "usage_metadata", None):
            self._take_facts(message)
        if self.may_continue:
            for metadata in (message.response_metadata, chunk.generation_info):
                if metadata:
                    self._hold_metadata(metadata)
        if isinstance(message, AIMessageChunk):
            if message.chunk_position is not None:
                message.chunk_position = None
            if message.tool_call_chunks or (
                not chunk.text.strip() and has_answer(message)
            ):
                self._said_more_than_text = True
            if self._passes and type(message.content) is list:
                self._separate(message.content)
        return chunk

    def _separate(self, blocks: list[Any]) -> None:
        """Keep an attempt's blocks apart from those of an attempt that broke off.

        LangChain joins blocks of the same index: thoughts, and even their signatures.
        """
        for block in blocks:
            index = block.get("index") if isinstance(block, dict) else None
            if isinstance(index, int):
                block["index"] = index + self._passes * _MOST_BLOCKS
            elif index is not None:
                block["index"] = f"{index}-{self._passes}"

    def last_chunk(self) -> ChatGenerationChunk:
        """The router's own last chunk, with the attempt log."""
        metadata = {**self._metadata, "retryrouter": self.attempt_log()}
        message = AIMessageChunk(
            content="", response_metadata=metadata, chunk_position="last"
        )
        return ChatGenerationChunk(message=message)

    def _hold_metadata(self, metadata: dict[str, Any]) -> None:
        """Keep texts such as the model's name for the last chunk.

        LangChain joins the texts of all chunks, and those of an attempt that was
        interrupted would be in front of those of the attempt that continued it.
        """
        for name in [name for name, value in metadata.items() if type(value) is str]:
            # Content is parsed by these two; of several attempts the first one's stay.
            if name not in {"model_provider", "output_version"}:
                self._metadata[name] = metadata.pop(name)
            elif self._interrupted is not None:
                del metadata[name]

    def _take_facts(self, message: BaseMessage) -> None:
        """Note a route's usage and take its own attempt log out of the message."""
        facts = self._facts.setdefault(self._state.attempt, {})
        inner = message.response_metadata.pop("retryrouter", None)
        if inner is not None:
            facts["inside"] = inner
            self._state.sent_inside(self._state.attempt, inner)
        self._note(message, self._state.attempt, facts.get("usage"))

    def _note(self, message: BaseMessage, number: int, usage: Any = None) -> None:
        """Tell the observers what an answer, or a part of it, says of itself."""
        if not self._state.wants_facts:
            return
        says = message.response_metadata
        self._state.sent_inside(number, says.get("retryrouter"))
        reason = says.get("finish_reason") or says.get("stop_reason")
        facts: dict[str, Any] = {
            "usage": usage or getattr(message, "usage_metadata", None),
            "model": says.get("model_name") or says.get("model"),
            "finish_reasons": [reason] if isinstance(reason, str) else None,
        }
        prices = (
            self._attempts[number].route.prices if number in self._attempts else None
        )
        if prices is not None and facts["usage"]:
            facts["cost"] = prices.cost(facts["usage"])
        self._state.answered(number, **{n: v for n, v in facts.items() if v})

    def sent_inside(self, attempt: RouteAttempt, log: Mapping[str, Any]) -> None:
        """Count the requests of a model of our own that has attempts itself."""
        self._state.sent_inside(attempt.number, log)

    def _read_headers(self, attempt: RouteAttempt, answer: ChatGeneration) -> None:
        """Correct the rate limits by the headers that a model hands on, if it does."""
        info = answer.generation_info
        if info and self._state.limits is not None:
            self._state.read_headers(attempt.number, info.get("headers"))

    def _begin(self, position: int | None = None) -> RouteAttempt:
        """The attempt that has just begun, on the route at `position`."""
        position = self._state.position if position is None else position
        route = self._routes[position]
        if route.by_tool is not None and route.name in self._rules.refused_formats:
            route = route.by_tool
        number = self._state.attempts
        facts = self._facts.setdefault(number, {})
        attempt = RouteAttempt(route, position, self._clock.monotonic(), facts, number)
        attempt.is_strict = route.name in self._strict
        self._fit(attempt)
        self._unheard.append(attempt)
        self._attempts[number] = attempt
        return attempt

    def _fit(self, attempt: RouteAttempt) -> None:
        """Give an attempt the messages and options that its route can read."""
        route, request = attempt.route, self._request
        attempt.messages, left_out = fit_history(
            request.messages, route.reader, self._authors, is_strict=attempt.is_strict
        )
        attempt.options = request.options
        response_id = request.options.get("previous_response_id")
        if response_id is not None and (
            attempt.is_strict
            or foreign_response_id(
                response_id, request.messages, route.reader, self._authors
            )
        ):
            attempt.options = {**request.options}
            del attempt.options["previous_response_id"]
            left_out = (*left_out, "previous_response_id")
        facts = attempt.facts
        facts.pop("left_out", None)
        if left_out:
            facts["left_out"] = list(left_out)
        repairs = self._repairs.get(attempt.position, ())
        attempt.messages = [*attempt.messages, *repairs]
        if self._delivered:
            # Providers refuse a prefill that ends in white space.
            text = self._delivered.rstrip()
            refused = not text or route.name in self._refused_prefill
            prefill = None if refused else route.prefill(text)
            attempt.is_prefilled = prefill is not None
            facts |= {
                "continued_at": len(self._delivered),
                "prefill": attempt.is_prefilled,
            }
            if prefill is not None:
                attempt.messages = [*attempt.messages, prefill]
            attempt.prefix = PrefixFilter(
                self._delivered, is_optional=attempt.is_prefilled or not text
            )

    def _amend(self, attempt: RouteAttempt, error: Exception) -> bool:
        """Whether a request that was rejected is to be sent again in a plainer form.

        A prefill was our idea, and so was what is left of other models' answers: the
        caller's request is not to fail because of them. The first time the prefill is
        left out, the second time all that may be particular to one author.

        A client that served another `asyncio.run` still has connections of that event
        loop, and they say nothing about the provider: the request is sent as it was.
        """
        if is_of_closed_loop(error):
            resent = attempt.facts["resent"] = attempt.facts.get("resent", 0) + 1
            return bool(resent < _MOST_STALE)
        named = name_failure(error, self._clock.time())
        if named.kind not in _REJECTED:
            return False
        is_missing = named.kind is FailureKind.NOT_FOUND
        if is_missing and not _MISSES_ITEM.search(named.message):
            return False
        name, by_tool = attempt.route.name, attempt.route.by_tool
        if by_tool is not None and _ABOUT_FORMAT.search(named.message):
            attempt.route = by_tool
            self._rules.refused_formats.add(name)
            self._state.resent(attempt.number, named.failure)
            return True
        if attempt.is_prefilled:
            self._refused_prefill.add(name)
        elif attempt.is_strict:
            return False
        else:
            attempt.is_strict = True
        before = (attempt.messages, attempt.options)
        self._fit(attempt)
        if (attempt.messages, attempt.options) == before:
            return False
        if attempt.is_strict:
            self._strict.add(name)
        attempt.facts["rejected"] = named.message
        self._state.resent(attempt.number, named.failure)
        return True

    def heard(self, attempt: RouteAttempt) -> None:
        """Measure the seconds until the first sign of life, or of failure."""
        if not attempt.was_heard:
            attempt.was_heard = True
            seconds = self._clock.monotonic() - attempt.began
            self._measured(attempt.position, seconds)

    def _measure_failed(self) -> None:
        """Measure attempts that failed: one that timed out may still be running."""
        for attempt in self._unheard:
            self.heard(attempt)
        self._unheard.clear()

    def named(self, error: BaseException, attempt: RouteAttempt) -> RetryRouterError:
        """What a route's model raised, as an error with a kind."""
        named = name_failure(error, self._clock.time())
        headers = safe_getattr(safe_getattr(error, "response"), "headers")
        self._state.read_headers(attempt.number, headers)
        is_unread = named.kind is FailureKind.UNKNOWN and self._rules.parse is not None
        if is_unread and isinstance(error, ValidationError):
            return self._misfit(attempt, error)  # The SDK has parsed it by itself.
        is_key = isinstance(error, KeyError) and PAYLOADS.issuperset(error.args)
        if is_key and integration_of(attempt.route.model) is not UNKNOWN_INTEGRATION:
            # The answer lacks what each answer has.
            msg = f"the provider's answer has no field {error}"
            return BASE_ERRORS[FailureKind.MALFORMED](msg)
        if named is error:
            # A model of our own has noted how it ended, of itself, not of the call.
            notes = getattr(error, "__notes__", [])
            notes[:] = [f"{attempt.route.name}: {note}" for note in notes]
        return named

    def _check(
        self, result: ChatResult, attempt: RouteAttempt
    ) -> list[tuple[BaseMessage, str | None]]:
        """The answers that are to be judged, as the caller gets them, with reasons."""
        for generation in result.generations:
            message = generation.message
            if usage := getattr(message, "usage_metadata", None):
                attempt.facts["usage"] = dict(usage)
            self._note(message, attempt.number)
            self._read_headers(attempt, generation)
        route = attempt.route
        reasons = check_result(result, needs_reason=route.needs_reason("generate"))
        if None not in reasons:
            route.learn_reason("generate")
        if not self.needs_whole:
            return []
        shared = result.llm_output if len(result.generations) == 1 else None
        messages = [
            _with_info(generation.message, shared, generation.generation_info)
            for generation in result.generations
        ]
        return list(zip(messages, reasons, strict=True))

    def _parse(
        self, message: BaseMessage, reason: str | None, attempt: RouteAttempt
    ) -> Any:
        """The object that an answer holds, if one is asked for.

        Raises:
            RetryRouterError: There is none that fits, or a limit cut the answer.
        """
        is_cut = kind_of(reason) is FailureKind.LENGTH
        cut = f"a token limit cut the answer: finish reason {reason!r}"
        if self._rules.hears_length and is_cut:
            raise _with_message(LengthLimitError(cut), message)
        if self._rules.parse is None:
            return None
        try:
            return self._rules.parse(message)
        except ValueError as error:
            if is_cut:
                raise _with_message(LengthLimitError(cut), message) from error
            raise self._misfit(attempt, error, message) from error

    def _misfit(
        self,
        attempt: RouteAttempt,
        error: Exception,
        message: BaseMessage | None = None,
    ) -> RetryRouterError:
        """The error of an answer that does not fit; the model is shown it, once."""
        attempt.facts["reason"] = str(error)
        msg = f"the answer does not fit its schema: {error}"
        rejected = _with_message(RejectedAnswerError(msg), message)
        if attempt.position in self._repairs:
            self._hopeless, rejected.should_retry = rejected, False
        else:
            self._repairs[attempt.position] = _repair(message, error)
        return rejected

    def _functions(self, attempt: RouteAttempt) -> list[Accept]:
        """The functions that judge an answer of this attempt."""
        own = (attempt.route.accept, self._rules.accept)
        return [one for one in own if one is not None]

    def _take(self, judgment: Any, message: BaseMessage, attempt: RouteAttempt) -> None:
        """Raise an error unless `accept` has taken the answer."""
        if judgment is True:
            return
        if judgment is not False and not isinstance(judgment, str):
            msg = f"accept must return True, False or a reason (str), not {judgment!r}"
            raise TypeError(msg)
        attempt.facts["reason"] = judgment or "accept returned False"
        msg = f"the answer was not accepted: {attempt.facts['reason']}"
        raise _with_message(RejectedAnswerError(msg), message)

    def _second_position(self) -> int | None:
        """The route that is asked as well, since the first one is silent, if any."""
        position = self._state.hedge()
        if position is None:
            return None
        limiter = self._routes[position].model.rate_limiter
        if limiter is None or limiter.acquire(blocking=False):
            return position
        self._state.settle_hedge(has_won=False)
        return None

    def _read(
        self, chunk: ChatGenerationChunk, attempt: RouteAttempt, check: StreamCheck
    ) -> tuple[StreamEvent, ...]:
        """The events of one chunk: none where it is kept back or already known."""
        if not attempt.was_heard:
            self.heard(attempt)
        self._read_headers(attempt, chunk)
        if self.needs_whole:
            attempt.chunks.append(chunk)
        if usage := getattr(chunk.message, "usage_metadata", None):
            # Some providers send it in parts.
            usage = add_usage(attempt.facts.get("usage"), usage)
            attempt.facts["usage"] = dict(usage)
        attempt.received = (attempt.received or 0) + len(chunk.text)
        info = check.read(chunk)
        if info is None:
            return ()
        if attempt.prefix is not None:
            if not attempt.prefix.strip(chunk):
                return ()
            info = info._replace(text=chunk.text)
        if self.needs_whole:
            info = info._replace(is_end=False)  # Its judges have the last word.
        event = StreamEvent(chunk, info)
        return (*_held(check), event) if check.held else (event,)

    def _end(
        self, attempt: RouteAttempt, check: StreamCheck
    ) -> tuple[StreamEvent, ...]:
        """The events of the end of a stream that did not break."""
        info = check.end()
        if attempt.prefix is not None:
            attempt.prefix.end()
        if check.reason is not None:
            attempt.route.learn_reason("stream")
        return (*_held(check), StreamEvent(None, info))


def _new_check(attempt: RouteAttempt) -> StreamCheck:
    # What is continued may have been whole but for its end.
    return StreamCheck(
        needs_reason=attempt.route.needs_reason("stream"),
        may_be_empty=attempt.is_prefilled,
    )


def _held(check: StreamCheck) -> list[StreamEvent]:
    return [StreamEvent(chunk, _NO_INFO) for chunk in check.release()]


class RouteRateLimiter:
    """Waits for the rate limiter of the route that is asked next.

    The engine asks it before an attempt and its time limit begin. If a route would have
    to be waited for longer than `failover_after_wait`, the next route is asked.
    """

    def __init__(
        self, routes: list[Route], call_state: CallState, clock: Clock
    ) -> None:
        """For one call."""
        self._routes = routes
        self._state = call_state
        self._clock = clock
        self._waits_since: float | None = None

    def acquire(self, *, blocking: bool = True) -> bool:
        """Whether the next attempt may be sent: now, or when the wait is over."""
        while (limiter := self._limiter()) is not None:
            if len(self._routes) == 1 and blocking:
                return limiter.acquire(blocking=True)
            if limiter.acquire(blocking=False):
                break
            if not self._fails_over() and not blocking:
                return False
            if blocking:
                self._clock.sleep(_LIMITER_INTERVAL)
        self._waits_since = None
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        """Async variant of `acquire`."""
        while (limiter := self._limiter()) is not None:
            if len(self._routes) == 1 and blocking:
                return await limiter.aacquire(blocking=True)
            if await limiter.aacquire(blocking=False):
                break
            if not self._fails_over() and not blocking:
                return False
            if blocking:
                await self._clock.asleep(_LIMITER_INTERVAL)
        self._waits_since = None
        return True

    def _limiter(self) -> BaseRateLimiter | None:
        self._state.skip_refused()
        return self._routes[self._state.position].model.rate_limiter

    def _fails_over(self) -> bool:
        """Whether the wait has been too long, and another route is asked instead."""
        now = self._clock.monotonic()
        if self._waits_since is None:
            self._waits_since = now
        if now - self._waits_since < self._state.policy.failover_after_wait:
            return False
        self._waits_since = None
        return self._state.failover()


def _wins_race(event: StreamEvent) -> bool:
    return event.info.is_token or event.info.is_end


class RouterCall(BaseRouterCall):
    """One call of sync models."""

    def generate(self, attempt: Attempt) -> ChatResult:
        """One attempt's answer."""
        del attempt
        begun, stop = self._begin(), self._request.stop
        with _Reported(self, begun):
            while True:
                try:
                    result = begun.route.generate(begun.messages, stop, begun.options)
                    break
                except Exception as error:
                    if not self._amend(begun, error):
                        raise
        for message, reason in self._check(result, begun):
            self._judge(message, reason, begun)
        return result

    def _judge(
        self, message: BaseMessage, reason: str | None, attempt: RouteAttempt
    ) -> None:
        """Refuse an answer that does not satisfy the caller's rules."""
        parsed = self._parse(message, reason, attempt)
        for accept in self._functions(attempt):
            with _callers_own():
                judgment = _ask(accept, message, parsed)
                if inspect.isawaitable(judgment):
                    if inspect.iscoroutine(judgment):
                        judgment.close()
                    msg = (
                        "accept is async, and this is a sync call: use `ainvoke` or"
                        f" `astream`, or give a plain function instead of {accept!r}"
                    )
                    raise TypeError(msg)
            self._take(judgment, message, attempt)

    def connect(self, attempt: Attempt) -> EventSource[StreamEvent]:
        """One attempt's stream."""
        del attempt
        events = self._events(self._begin())
        if self.hedge_after is None:
            return events
        state = self._state
        return HedgedSource(
            events,
            self.hedge_after,
            self._connect_second,
            state.settle_hedge,
            _wins_race,
            state.ends_call,
            state.attach,
        )

    def _connect_second(self) -> EventSource[StreamEvent] | None:
        position = self._second_position()
        return None if position is None else self._events(self._begin(position))

    def _events(self, attempt: RouteAttempt) -> Generator[StreamEvent, None, None]:
        stop, attempt.received = self._request.stop, 0
        with _Reported(self, attempt):
            while True:
                check = _new_check(attempt)
                try:
                    chunks = attempt.route.stream(
                        attempt.messages, stop, attempt.options
                    )
                    with contextlib.closing(chunks):
                        for chunk in chunks:
                            yield from self._read(chunk, attempt, check)
                    break
                except Exception as error:
                    if check.saw_chunk or not self._amend(attempt, error):
                        raise
        events = self._end(attempt, check)
        if self.needs_whole:
            whole = _joined(attempt.chunks)
            self._note(whole, attempt.number)
            self._judge(whole, check.reason, attempt)
        yield from events


class AsyncRouterCall(BaseRouterCall):
    """One call of async models."""

    async def generate(self, attempt: Attempt) -> ChatResult:
        """One attempt's answer; the engine limits its time."""
        del attempt
        begun, stop = self._begin(), self._request.stop
        with _Reported(self, begun), reraise_lost_cancellation():
            while True:
                try:
                    result = await begun.route.agenerate(
                        begun.messages, stop, begun.options
                    )
                    break
                except Exception as error:
                    if not self._amend(begun, error):
                        raise
        for message, reason in self._check(result, begun):
            await self._judge(message, reason, begun)
        return result

    async def _judge(
        self, message: BaseMessage, reason: str | None, attempt: RouteAttempt
    ) -> None:
        """Async variant of `RouterCall._judge`, which awaits async functions."""
        parsed = self._parse(message, reason, attempt)
        for accept in self._functions(attempt):
            with _callers_own():
                judgment = _ask(accept, message, parsed)
                if inspect.isawaitable(judgment):
                    judgment = await judgment
            self._take(judgment, message, attempt)

    async def connect(self, attempt: Attempt) -> AEventSource[StreamEvent]:
        """One attempt's stream."""
        del attempt
        events = _AsyncGeneratorSource(self._events(self._begin()))
        if self.hedge_after is None:
            return events
        state = self._state
        return AHedgedSource(
            events,
            self.hedge_after,
            self._connect_second,
            state.settle_hedge,
            _wins_race,
            state.ends_call,
            state.attach,
        )

    def _connect_second(self) -> AEventSource[StreamEvent] | None:
        position = self._second_position()
        if position is None:
            return None
        return _AsyncGeneratorSource(self._events(self._begin(position)))

    async def _events(self, attempt: RouteAttempt) -> AsyncGenerator[StreamEvent, None]:
        stop, attempt.received = self._request.stop, 0
        with _Reported(self, attempt):
            while True:
                check = _new_check(attempt)
                try:
                    chunks = await attempt.route.astream(
                        attempt.messages, stop, attempt.options
                    )
                    async with contextlib.aclosing(chunks):
                        async for chunk in chunks:
                            for event in self._read(chunk, attempt, check):
                                yield event
                    break
                except Exception as error:
                    if check.saw_chunk or not self._amend(attempt, error):
                        raise
        events = self._end(attempt, check)
        if self.needs_whole:
            whole = _joined(attempt.chunks)
            self._note(whole, attempt.number)
            await self._judge(whole, check.reason, attempt)
        for event in events:
            yield event


class _Reported:
    """Raise what a model raises as an error with a kind; measure its time.

    A class, since `contextlib.contextmanager` takes what is raised from a StopIteration
    for that StopIteration.
    """

    def __init__(self, call: BaseRouterCall, attempt: RouteAttempt) -> None:
        self._call, self._attempt = call, attempt

    def __enter__(self) -> None:
        """Nothing to do before."""

    def __exit__(
        self, kind: object, error: BaseException | None, traceback: object
    ) -> None:
        self._call.heard(self._attempt)
        if isinstance(error, Exception) or _is_foreign_cancellation(error):
            named = self._call.named(error, self._attempt)
            if named.attempt_log is not None:
                self._attempt.facts["inside"] = named.attempt_log
                self._call.sent_inside(self._attempt, named.attempt_log)
            if named is not error:
                raise named from error


def _is_foreign_cancellation(error: BaseException | None) -> TypeGuard[BaseException]:
    """Whether something inside the model was cancelled, and not this call."""
    if not isinstance(error, asyncio.CancelledError):
        return False
    try:
        task = asyncio.current_task()
    except RuntimeError:  # In a thread.
        return True
    return task is not None and not task.cancelling()


class _AsyncGeneratorSource:
    """The events of an async generator."""

    def __init__(self, events: AsyncGenerator[StreamEvent, None]) -> None:
        self._events = events

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        return self

    async def __anext__(self) -> StreamEvent:
        with reraise_lost_cancellation():
            return await anext(self._events)

    async def aclose(self) -> None:
        await self._events.aclose()


@contextlib.contextmanager
def _callers_own() -> Iterator[None]:
    """Let an error of ours that the caller's function raises pass: it is no route's."""
    try:
        yield
    except RetryRouterError as error:
        raise _CallersError from error


def _joined(chunks: list[ChatGenerationChunk]) -> BaseMessage:
    """The message that the chunks of a whole stream are."""
    whole = merge_chat_generation_chunks(chunks)
    if whole is None:  # `StreamCheck.end` has refused a stream without a chunk.
        raise AssertionError
    return _with_info(message_chunk_to_message(whole.message), whole.generation_info)


def _with_info(message: BaseMessage, *infos: dict[str, Any] | None) -> BaseMessage:
    """The message with what its generation says, as LangChain hands it over."""
    for info in filter(None, reversed(infos)):
        message.response_metadata = {**info, **message.response_metadata}
    return message


def _with_message(
    error: RetryRouterError, message: BaseMessage | None
) -> RetryRouterError:
    error.raw_message = message
    return error


def _ask(accept: Accept, message: BaseMessage, parsed: Any) -> Any:
    """What `accept` says of the message, and of the object if it takes that, too."""
    try:
        parameters = inspect.signature(accept).parameters.values()
    except ValueError:  # A function written in C.
        return accept(message)
    if any(one.name == "parsed" for one in parameters):
        return accept(message, parsed=parsed)
    needed = [
        one
        for one in parameters
        if one.default is one.empty and one.kind <= one.POSITIONAL_OR_KEYWORD
    ]
    return accept(message, parsed) if len(needed) > 1 else accept(message)


def _repair(message: BaseMessage | None, error: Exception) -> list[BaseMessage]:
    """The end of a conversation that shows a model why its answer does not fit."""
    text = f"Your answer does not fit the schema: {error}\nFix this and answer again."
    calls = message.tool_calls if isinstance(message, AIMessage) else []
    ids = [call["id"] for call in calls if call["id"]]
    is_whole = isinstance(message, AIMessage) and not message.invalid_tool_calls
    if message is not None and ids and len(ids) == len(calls) and is_whole:
        shown = [ToolMessage(text, tool_call_id=i, status="error") for i in ids]
        return [message, *shown]
    said = message.text if message is not None else ""
    return [*([AIMessage(said)] if said.strip() else []), HumanMessage(text)]


def lead_of(failures: list[RetryRouterError], *, is_raised: bool) -> RetryRouterError:
    """The error of a call that failed so, with the other failures attached.

    The last one of the first route; or the last of all, if `is_raised`.
    """
    error = failures[-1]
    if is_raised:
        return _with_others(error, failures)
    lead = [one for one in failures if one.route == failures[0].route][-1]
    if lead is not error:
        lead.attempts, lead.is_retryable = error.attempts, error.is_retryable
        lead.may_have_run = lead.may_have_run or error.may_have_run
        for note in getattr(error, "__notes__", ()):
            lead.add_note(note)
    return _with_others(lead, failures)


def _with_others(
    lead: RetryRouterError, failures: list[RetryRouterError]
) -> RetryRouterError:
    """`lead` with the call's other failures attached to it, and in its notes."""
    lead.others = tuple(one for one in failures if one is not lead)
    for other in lead.others:
        lead.add_note(f"{other.route}: {type(other).__name__}: {other.message}")
    return lead
