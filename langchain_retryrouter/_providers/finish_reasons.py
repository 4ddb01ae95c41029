"""Decides from an answer's own words whether it is whole, empty, filtered or failed.

Integrations pass on the provider's finish reason under the provider's own field name.
`finish_reason_in` finds it, `check_result` judges a whole answer, and `StreamCheck`
judges the chunks of one stream. Which models name a reason at all is recorded in
`integrations`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from langchain_retryrouter._retry.streaming import ChunkInfo
from langchain_retryrouter.errors import (
    BASE_ERRORS,
    ContentFilterError,
    LengthLimitError,
    MalformedResponseError,
    RetryRouterError,
    StreamInterruptedError,
)
from langchain_retryrouter.failures import FailureKind

_REASON_FIELDS: Final = (
    "normalized_finish_reason",  # LangChain's own from langchain-core 1.8.4 on
    "finish_reason",  # OpenAI, and the APIs like it: Groq, Mistral, Google, GPTRouter
    "stop_reason",  # Anthropic, and Bedrock's InvokeModel
    "stopReason",  # Bedrock's Converse
    "done_reason",  # Ollama
    "finish_state",  # LangChain's own, too
)
# Most chunks of a stream have none of these.
_TELLING_FIELDS: Final = frozenset({*_REASON_FIELDS, "object", "prompt_feedback"})
# The final states of OpenAI's Responses API that come with an answer.
_FINAL_STATES: Final = frozenset({"completed", "incomplete"})
# "Not yet", as Google, Alibaba and IBM say it.
_NO_REASON: Final = frozenset({"finish_reason_unspecified", "null", "not_finished"})
# By the words of a reason in lower case, so that it holds for providers that are not
# known: the first match counts, and a reason without a match is a good end. Sources:
# the enumerations of OpenAI, Anthropic, Google, Amazon, Cohere, Mistral, DeepSeek, IBM,
# Zhipu and vLLM.
_KINDS: Final = {
    FailureKind.CONTENT_FILTER: (
        r"filter|safety|refus|prohibited|block|spii|recitation|guardrail|moderat"
        r"|toxic|sensitive|policy|model_armor|violation"
    ),
    FailureKind.LENGTH: (
        r"length|max_(?:\w+_)?tokens|token_limit|context_window|max_len|error_limit"
    ),
    FailureKind.MALFORMED: (
        r"malformed|unexpected_tool|too_many_tool|invalid_(?:tool|function)"
        r"|missing_thought"
    ),
    FailureKind.INTERRUPTED: (
        r"error|cancel|abort|fail|time_?(?:out|limit)|insufficient|unavailable"
        r"|overload|interrupt|^incomplete$|^(?:image_)?other$|^language$"
    ),
}

# Fields that describe a content block and are not content: the first event of a block
# has an index and a type, and nothing to read yet.
_FRAME: Final = frozenset({"type", "index", "id", "phase", "status"})
_THOUGHTS: Final = frozenset({"thinking", "redacted_thinking", "reasoning"})


def finish_reason_in(answer: BaseMessage | ChatGeneration) -> str | None:
    """The provider's reason for ending this answer, or chunk; None if it names none."""
    if isinstance(answer, BaseMessage):
        return reason_in(answer.response_metadata)
    info = answer.generation_info
    return (info and reason_in(info)) or reason_in(answer.message.response_metadata)


def reason_in(facts: Mapping[str, Any]) -> str | None:
    """The same, in the metadata of an answer."""
    if not facts or _TELLING_FIELDS.isdisjoint(facts):
        return None
    reasons = [
        reason
        for name in _REASON_FIELDS
        if isinstance(reason := facts.get(name), str)
        and reason
        and reason.lower() not in _NO_REASON
    ]
    if facts.get("object") == "response" and facts.get("status") in _FINAL_STATES:
        details = facts.get("incomplete_details")
        why = details.get("reason") if isinstance(details, Mapping) else None
        reasons.append(str(why or facts["status"]))
    feedback = facts.get("prompt_feedback")  # Google's, for a prompt that was blocked.
    if isinstance(feedback, Mapping) and feedback.get("block_reason"):
        reasons.append("safety")
    # A bad reason counts, even if another field calls it an end.
    return next((one for one in reasons if kind_of(one)), next(iter(reasons), None))


@functools.lru_cache(64)
def kind_of(reason: str | None) -> FailureKind | None:
    """What a finish reason says against an answer; None for a good end."""
    words = re.sub(r"[^a-z]+", "_", (reason or "").lower())
    found = (kind for kind, pattern in _KINDS.items() if re.search(pattern, words))
    return next(found, None)


def check_result(result: ChatResult, *, needs_reason: bool) -> list[str | None]:
    """The finish reason of each answer of a model without a stream.

    `needs_reason` is whether this model names one in every whole answer.

    Raises:
        RetryRouterError: An answer is empty, filtered, failed or, as far as it says,
            cut.
    """
    if not result.generations:
        msg = "the answer has no generations"
        raise MalformedResponseError(msg)
    # Some integrations give it for the result as a whole, if that has one answer.
    is_only = len(result.generations) == 1
    shared = reason_in(result.llm_output or {}) if is_only else None
    reasons = [finish_reason_in(one) or shared for one in result.generations]
    if needs_reason and None in reasons:
        raise _no_reason()
    for generation, reason in zip(result.generations, reasons, strict=True):
        _check_reason(reason, _refusal_in(generation.message))
        message = generation.message
        for call in getattr(message, "invalid_tool_calls", ()):
            if error := _broken_call(call.get("name"), call.get("args"), reason):
                raise error
        is_short = kind_of(reason) is FailureKind.LENGTH
        if not (is_short or has_answer(message)):
            raise _empty()
    return reasons


class StreamCheck:
    """Judges the chunks of one attempt: token, end, or failure.

    `held` are chunks that are kept back, since the answer may be empty.
    """

    __slots__ = (
        *("_calls", "_may_be_empty", "_needs_reason", "_refusal", "_saw_answer"),
        *("_saw_token", "held", "reason", "saw_chunk"),
    )

    def __init__(self, *, needs_reason: bool, may_be_empty: bool = False) -> None:
        """Before the first chunk.

        `needs_reason` is whether this model ends each whole stream with a reason, and
        `may_be_empty` whether an answer without content may be whole.
        """
        self._may_be_empty = may_be_empty
        self.reason: str | None = None
        self.saw_chunk = False
        self._saw_token = self._saw_answer = False
        self._needs_reason = needs_reason
        self._refusal = ""
        self._calls: dict[Any, list[str]] = {}
        self.held: list[ChatGenerationChunk] = []

    def read(self, chunk: ChatGenerationChunk) -> ChunkInfo | None:
        """What `chunk` means; None if it is kept back, see `held`.

        A chunk with a finish reason that comes before any content is kept back: the
        answer may be empty, and nothing of an empty answer is handed over.

        Raises:
            RetryRouterError: The finish reason says that the answer is filtered or
                failed.
        """
        self.saw_chunk = True
        message = chunk.message
        if (
            type(message.content) is str
            and message.content
            and not (
                message.additional_kwargs
                or message.response_metadata
                or chunk.generation_info
            )
        ):
            # Text alone, as nearly every chunk.
            self._saw_token = True
            self._saw_answer = self._saw_answer or not message.content.isspace()
            return ChunkInfo(text=message.content, is_token=True)
        if refusal := _refusal_in(message):
            self._refusal += refusal
            return None
        content = message.content
        is_token = has_content(message)
        reason = finish_reason_in(chunk)
        if reason is not None:
            if kind_of(self.reason) is None:
                self.reason = reason
            _check_reason(reason, self._refusal)
        if is_token:
            self._saw_token = True
            self._saw_answer = self._saw_answer or has_answer(message)
            for call in getattr(message, "tool_call_chunks", ()):
                # Without an index each chunk is a call of its own.
                index = call.get("index")
                place = object() if index is None else index
                parts = self._calls.setdefault(place, [call.get("name") or "a tool"])
                parts.append(call.get("args") or "")
        elif self.reason is not None and not self._saw_token:
            self.held.append(chunk)
            return None
        return ChunkInfo(
            text=content if isinstance(content, str) else str(message.text),
            is_token=is_token,
            # Some servers send a reason with each token, so that proves nothing.
            is_end=reason is not None
            and not is_token
            and not (self._is_empty() or self._broken_call()),
        )

    def release(self) -> list[ChatGenerationChunk]:
        """The chunks that were kept back, to be handed over now."""
        held, self.held = self.held, []
        return held

    def end(self) -> ChunkInfo:
        """The stream is over without an error: whether the answer is whole.

        Raises:
            RetryRouterError: It is empty, or cut.
        """
        if not self.saw_chunk:
            msg = "the stream ended without any chunk"
            raise MalformedResponseError(msg)
        _check_reason(self.reason, self._refusal)
        if self.reason is None and self._needs_reason:
            raise _no_reason()
        if error := self._broken_call():
            raise error
        if self._is_empty():
            raise _empty()
        return ChunkInfo(is_end=True, is_last=True)

    def _is_empty(self) -> bool:
        is_short = kind_of(self.reason) is FailureKind.LENGTH
        return not (self._saw_answer or self._may_be_empty or is_short)

    def _broken_call(self) -> RetryRouterError | None:
        """The error of a tool call that is not whole; None if all are."""
        calls = (
            _broken_call(name, "".join(arguments), self.reason)
            for name, *arguments in self._calls.values()
        )
        return next(filter(None, calls), None)


def has_content(message: BaseMessage) -> bool:
    """Whether a chunk has anything that, once handed over, cannot be taken back."""
    if isinstance(message, AIMessageChunk) and message.tool_call_chunks:
        return True
    kwargs = message.additional_kwargs
    if kwargs and any(kwargs.values()):  # A refusal, a legacy call, thoughts.
        return True
    content = message.content
    return bool(content) if isinstance(content, str) else any(map(_holds, content))


def has_answer(message: BaseMessage) -> bool:
    """Whether there is text, a tool call or other content; thoughts are not enough."""
    kwargs, content = message.additional_kwargs, message.content
    if isinstance(content, str) and content.strip():
        return True
    names = ("function_call", "tool_calls", "audio")
    if kwargs and any(kwargs.get(name) for name in names):
        return True
    if isinstance(message, AIMessage) and (
        message.tool_calls
        or message.invalid_tool_calls
        or getattr(message, "tool_call_chunks", None)
    ):
        return True
    return not isinstance(content, str) and any(
        bool(block.strip())
        if isinstance(block, str)
        else block.get("type") not in _THOUGHTS
        and _holds({**block, "text": str(block.get("text") or "").strip()})
        for block in content
    )


def _holds(block: str | dict[Any, Any]) -> bool:
    if isinstance(block, str):
        return bool(block)
    return any(value for name, value in block.items() if name not in _FRAME)


def _refusal_in(message: BaseMessage) -> str:
    """The model's own refusal (OpenAI, for JSON schemas), or a piece of it."""
    if refusal := message.additional_kwargs.get("refusal"):
        return str(refusal)
    if isinstance(message.content, str):
        return ""
    return "".join(
        str(block.get("refusal") or "")
        for block in message.content
        if isinstance(block, dict) and block.get("type") == "refusal"
    )


def _check_reason(reason: str | None, refusal: str) -> None:
    kind = kind_of(reason)
    if refusal or kind is FailureKind.CONTENT_FILTER:
        msg = f"the answer was refused: {refusal or f'finish reason {reason!r}'}"
        raise ContentFilterError(msg)
    if kind is not None and kind is not FailureKind.LENGTH:
        msg = f"the provider ended the answer with reason {reason!r}"
        raise BASE_ERRORS[kind](msg)


def _broken_call(
    name: Any, arguments: Any, reason: str | None
) -> RetryRouterError | None:
    """The error of a tool call whose arguments are not JSON; None if they are.

    LangChain completes the arguments of a stream that was cut.
    """
    try:
        json.loads(arguments or "{}", strict=False)
    except (TypeError, ValueError) as error:
        msg = f"the arguments of {name} are not JSON: {error}: {arguments}"
        if kind_of(reason) is FailureKind.LENGTH:
            return LengthLimitError(msg)
        return MalformedResponseError(msg, code="invalid_tool_call")
    return None


def _no_reason() -> RetryRouterError:
    msg = (
        "the answer came without a finish reason, so it may have been cut; if this"
        " server never sends one, give its route sends_finish_reason=False"
    )
    return StreamInterruptedError(msg)


def _empty() -> RetryRouterError:
    msg = "the answer is empty: no text and no tool call"
    return MalformedResponseError(msg, code="empty")
