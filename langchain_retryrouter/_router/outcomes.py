"""An attempt, and what becomes of its answer or error.

`AnswerJudge` refuses answers that do not satisfy the caller, `PrefixFilter` continues a
broken stream, and `lead_of` says which of several errors is raised. Next to read:
`call`, which makes the attempts.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    ToolMessage,
    message_chunk_to_message,
)
from langchain_core.messages.ai import add_usage
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.outputs.chat_generation import merge_chat_generation_chunks

from langchain_retryrouter._providers.finish_reasons import is_more_than_text, kind_of
from langchain_retryrouter._retry.timeouts import reraise_lost_cancellation
from langchain_retryrouter._router.route import Accept, Route, in_blocks
from langchain_retryrouter.errors import (
    BASE_ERRORS,
    LengthLimitError,
    RejectedAnswerError,
    RetryRouterError,
)
from langchain_retryrouter.failures import FailureKind

_M = TypeVar("_M", bound=BaseMessage)
_MOST_BLOCKS: Final = 1000  # Of one answer.


@dataclass(slots=True)
class RouteAttempt:
    """One attempt: the route that is asked, and what it is sent.

    Settled when the attempt begins: a thread that is left to itself may run on while
    the call is already at another route.
    """

    route: Route
    position: int
    number: int
    began: float
    facts: dict[str, Any] = field(default_factory=dict)
    messages: list[BaseMessage] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    is_strict: bool = False
    is_prefilled: bool = False
    prefix: PrefixFilter | None = None
    was_heard: bool = False
    received: int | None = None  # Characters, of a stream.
    chunks: list[ChatGenerationChunk] = field(default_factory=list)


@dataclass(slots=True)
class AnswerJudge:
    """Judges the answers of one call by what the caller asks of them."""

    accept: Accept | None
    hears_length: bool  # Whether an answer that a token limit cut is a failure.
    output: Any  # The `OutputFormat` that answers must fit, if there is one.
    # What shows a model why its answer does not fit, by its route's position.
    repairs: dict[int, list[BaseMessage]] = field(default_factory=dict)
    # The error of a model that has seen its mistake, and repeats it.
    hopeless: RetryRouterError | None = None

    def judge(
        self, message: BaseMessage, reason: str | None, attempt: RouteAttempt
    ) -> None:
        """Refuse an answer that does not satisfy the caller's rules."""
        for accept, judgment in self._judgments(message, reason, attempt):
            if inspect.isawaitable(judgment):
                if inspect.iscoroutine(judgment):
                    judgment.close()
                msg = (
                    "accept is async, and this is a sync call: use `ainvoke` or"
                    f" `astream`, or give a plain function instead of {accept!r}"
                )
                raise TypeError(msg)
            self._take(judgment, message, attempt)

    async def ajudge(
        self, message: BaseMessage, reason: str | None, attempt: RouteAttempt
    ) -> None:
        """Async variant of `judge`, which awaits async functions."""
        for _, judgment in self._judgments(message, reason, attempt):
            with _callers_own(), reraise_lost_cancellation():
                is_async = inspect.isawaitable(judgment)
                said = await judgment if is_async else judgment
            self._take(said, message, attempt)

    def _judgments(
        self, message: BaseMessage, reason: str | None, attempt: RouteAttempt
    ) -> Iterator[tuple[Accept, Any]]:
        """What each `accept` says of an answer, and of the object that it holds.

        An answer that a limit cut, or that holds no object that fits, is an error.
        """
        cut, parsed = None, None
        if kind_of(reason) is FailureKind.LENGTH:
            cut = LengthLimitError(
                f"a token limit cut the answer: finish reason {reason!r}"
            )
            cut.raw_message = message
            if self.hears_length:
                raise cut
        if self.output is not None:
            try:
                parsed = self.output.parse(message)
            except (ValueError, RecursionError) as error:  # The latter: "[[[[[…".
                raise cut or self.misfit(attempt, error, message) from error
        for accept in (attempt.route.accept, self.accept):
            if accept is not None:
                with _callers_own():
                    judgment = self._ask(accept, message, parsed)
                yield accept, judgment

    @staticmethod
    def _ask(accept: Accept, message: BaseMessage, parsed: Any) -> Any:
        """What `accept` says of the message, and of the object if it takes both."""
        try:
            parameters = inspect.signature(accept).parameters
        except ValueError:  # A function written in C.
            return accept(message)
        if "parsed" in parameters:
            return accept(message, parsed=parsed)
        needed = [
            one
            for one in parameters.values()
            if one.default is one.empty and one.kind <= one.POSITIONAL_OR_KEYWORD
        ]
        return accept(message, parsed) if len(needed) > 1 else accept(message)

    @staticmethod
    def _take(judgment: Any, message: BaseMessage, attempt: RouteAttempt) -> None:
        """Raise an error unless `accept` has taken the answer."""
        if judgment is True:
            return
        if judgment is not False and not isinstance(judgment, str):
            msg = f"accept must return True, False or a reason (str), not {judgment!r}"
            raise TypeError(msg)
        reason = attempt.facts["reason"] = judgment or "accept returned False"
        rejected = RejectedAnswerError(f"the answer was not accepted: {reason}")
        rejected.raw_message = message
        raise rejected

    def misfit(
        self,
        attempt: RouteAttempt,
        error: Exception,
        message: BaseMessage | None = None,
    ) -> RetryRouterError:
        """The error of an answer that does not fit; the model is shown it, once."""
        attempt.facts["reason"] = str(error)
        rejected = RejectedAnswerError(f"the answer does not fit its schema: {error}")
        rejected.raw_message = message
        if attempt.position in self.repairs:
            self.hopeless, rejected.should_retry = rejected, False
            return rejected
        text = (
            f"Your answer does not fit the schema: {error}\nFix this and answer again."
        )
        calls, shown = [], list[BaseMessage]()
        if isinstance(message, AIMessage) and not message.invalid_tool_calls:
            calls = [call["id"] for call in message.tool_calls]
        if message is not None and calls and all(calls):
            shown = [message]
            shown += [ToolMessage(text, tool_call_id=i, status="error") for i in calls]
        else:
            if message is not None and message.text.strip():
                shown = [AIMessage(message.text)]
            shown.append(HumanMessage(text))
        self.repairs[attempt.position] = shown
        return rejected


class CallersError(Exception):
    """Carries an error of the caller's own function past the retry engine."""


@contextlib.contextmanager
def _callers_own() -> Iterator[None]:
    """Let an error of ours that the caller's function raises pass: no route's fault."""
    try:
        yield
    except RetryRouterError as error:
        raise CallersError from error


class PrefixFilter:
    """Takes out of a second answer what the caller already has of the first.

    A model seldom writes the same text twice, so every character must be the same.
    """

    def __init__(
        self, delivered: str, *, is_optional: bool = False, space: str = ""
    ) -> None:
        """After `delivered`; with `is_optional` the answer may begin behind it, too.

        What then follows may repeat the `space` that a prefill went without.
        """
        self.facts: ChatGenerationChunk | None = None
        self._missing = delivered
        self._space = space
        self._taken = ""
        self._is_optional = is_optional

    def strip(self, chunk: ChatGenerationChunk) -> ChatGenerationChunk | None:
        """What of `chunk` is new, if anything, with the `facts` of those before it."""
        if not self._missing:
            return self._with_facts(chunk)
        rest, is_more = self._rest_of(chunk.text), is_more_than_text(chunk)
        if is_more and self._missing:  # No more text comes before a call.
            rest = self._begun_behind("")
        if not (rest or is_more):
            self._keep_facts(chunk)
            return None
        if rest != chunk.text:
            message = chunk.message.model_copy(update={"content": rest})
            chunk = chunk.model_copy(update={"message": message, "text": rest})
        return self._with_facts(chunk)

    def _rest_of(self, text: str) -> str:
        common = min(len(text), len(self._missing))
        if text[:common] != self._missing[:common]:
            return self._begun_behind(text)
        self._missing = self._missing[common:]
        self._taken += text[:common]
        return text[common:]

    def _begun_behind(self, text: str) -> str:
        """What is new in an answer that seemed to repeat the text, and did not."""
        if not self._is_optional:
            raise self._another_answer()
        said, self._taken = self._taken + text, ""
        known = 0
        while known < len(said) and self._space.startswith(said[: known + 1]):
            known += 1
        # More of the space may come with the next chunk.
        self._space = self._missing = self._space[known:] if known == len(said) else ""
        return said[known:]

    def _keep_facts(self, chunk: ChatGenerationChunk) -> None:
        """Keep what a known chunk says of the answer, such as its usage."""
        message = AIMessageChunk(
            content="",
            response_metadata=chunk.message.response_metadata,
            usage_metadata=getattr(chunk.message, "usage_metadata", None),
        )
        info = chunk.generation_info
        self.facts = self._with_facts(
            ChatGenerationChunk(message=message, generation_info=info)
        )

    def _with_facts(self, chunk: ChatGenerationChunk) -> ChatGenerationChunk:
        """A chunk with the `facts`; a sum of both would join names and blocks."""
        facts, self.facts = self.facts, None
        if facts is None:
            return chunk
        before, message = facts.message, chunk.message
        metadata = {**before.response_metadata, **message.response_metadata}
        update: dict[str, Any] = {"response_metadata": metadata}
        if usage := getattr(before, "usage_metadata", None):
            own = getattr(message, "usage_metadata", None)
            update["usage_metadata"] = add_usage(usage, own)
        info = {**(facts.generation_info or {}), **(chunk.generation_info or {})}
        message = message.model_copy(update=update)
        return chunk.model_copy(update={"message": message, "generation_info": info})

    def end(self) -> None:
        """The second answer is over, which is an error if it is shorter."""
        if self._missing and (self._taken.strip() or not self._is_optional):
            raise self._another_answer()

    def _another_answer(self) -> RetryRouterError:
        msg = "another attempt gave another answer, which cannot be continued"
        return BASE_ERRORS[FailureKind.INTERRUPTED](msg, should_retry=False)


class StreamBlocks:
    """Gives the chunks of a stream standard blocks with an index, as LangChain does."""

    def __init__(self) -> None:
        self._index, self._kind = -1, ""  # Those of the last block.

    def in_blocks(self, message: _M) -> _M:
        """The message of a chunk in standard blocks."""
        message = in_blocks(message)
        blocks: Any = [{**block} for block in cast("list[Any]", message.content)]
        for block in blocks:
            if block["type"] != self._kind:
                self._index, self._kind = self._index + 1, block["type"]
            block.setdefault("index", self._index)
        return message.model_copy(update={"content": blocks})


def kept_apart(content: Any, passes: int) -> Any:
    """Content whose blocks have indexes that those before so many passes had not.

    LangChain joins blocks of the same index, thoughts and even their signatures.
    """

    def with_index(block: Any) -> Any:
        index = block.get("index") if isinstance(block, dict) else None
        if index is None:
            return block
        is_number = isinstance(index, int)
        new = index + passes * _MOST_BLOCKS if is_number else f"{index}-{passes}"
        return {**block, "index": new}

    return list(map(with_index, content)) if isinstance(content, list) else content


def whole_message(chunks: list[ChatGenerationChunk]) -> BaseMessage:
    """The message that the chunks of a whole stream are."""
    # Not None: `StreamCheck.end` has refused a stream without a chunk.
    whole = cast("ChatGenerationChunk", merge_chat_generation_chunks(chunks))
    return with_info(message_chunk_to_message(whole.message), whole.generation_info)


def with_info(message: BaseMessage, *infos: dict[str, Any] | None) -> BaseMessage:
    """The message with what its generation says, as LangChain hands it over."""
    for info in filter(None, reversed(infos)):
        message.response_metadata = {**info, **message.response_metadata}
    return message


def lead_of(failures: list[RetryRouterError], *, is_raised: bool) -> RetryRouterError:
    """The error of a call that failed so, with the other failures attached.

    The last one of the first route; or the last of all, if `is_raised`.
    """
    error = failures[-1]
    if is_raised:
        return with_others(error, failures)
    lead = [one for one in failures if one.route == failures[0].route][-1]
    if lead is not error:
        lead.attempts, lead.is_retryable = error.attempts, error.is_retryable
        lead.may_have_run = lead.may_have_run or error.may_have_run
        for note in getattr(error, "__notes__", ()):
            lead.add_note(note)
    return with_others(lead, failures)


def with_others(
    lead: RetryRouterError, failures: list[RetryRouterError]
) -> RetryRouterError:
    """`lead` with the call's other failures attached to it, and in its notes."""
    others = {id(one): one for one in failures if one is not lead}
    lead.others = tuple(others.values())
    for other in lead.others:
        route = f"{other.route}: " if other.route else ""
        note = f"{route}{type(other).__name__}: {other.message}"
        if note not in getattr(lead, "__notes__", ()):
            lead.add_note(note)
    return lead
