"""Decides from an answer's own words whether it is whole, empty, filtered or failed.

Integrations pass on the provider's finish reason under the provider's own field name.
`reason_in` finds it, `check_result` judges a whole answer, and `StreamCheck` judges the
chunks of one stream. Which models name a reason at all is recorded in `integrations`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage
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
_FINAL_STATES: Final = ("completed", "incomplete")
# "Not yet", as Alibaba, Python, IBM and Google say it.
_NO_REASON: Final = ("null", "none", "not_finished", "unspecified")
# By the words of a reason in lower case, so that it holds for providers that are not
# known: the first match counts, and a reason without a match is a good end. Sources:
# the enumerations of OpenAI, Anthropic, Google, Amazon, Cohere, Mistral, DeepSeek, IBM,
# Zhipu and vLLM.
_KINDS: Final = {
    FailureKind.CONTENT_FILTER: (
        r"filter|safety|refus|prohibited|block|spii|recitation|guardrail|moderat"
        r"|toxic|sensitive|policy|model_armor|violation|blacklist|unsafe|reject|denied"
        r"|censor"
    ),
    FailureKind.LENGTH: (
        r"length|max(?:imum)?_(?:\w+_)?tokens|token_limit|context_window|max_len"
        r"|error_limit|truncat"
    ),
    FailureKind.MALFORMED: (
        r"malformed|unexpected_tool|too_many_tool|invalid_(?:tool|function)"
        r"|missing_thought"
    ),
    FailureKind.INTERRUPTED: (
        r"error|cancel|abort|fail|time_?(?:out|limit)|insufficient|unavailable"
        r"|overload|interrupt|quota|preempt|deadline|disconnect|killed"
        r"|^incomplete$|^(?:image_)?other$|^language$"
    ),
}

# Fields that describe a content block and are not content: the first event of a block
# has an index and a type, and nothing to read yet.
_FRAME: Final = frozenset({"type", "index", "id", "phase", "status"})
_THOUGHTS: Final = frozenset({"thinking", "redacted_thinking", "reasoning"})


def reason_in(facts: Mapping[str, Any]) -> str | None:
    """The provider's reason for ending an answer; None if its metadata name none."""
    if _TELLING_FIELDS.isdisjoint(facts):
        return None
    reasons = [
        reason
        for name in _REASON_FIELDS
        if isinstance(reason := facts.get(name), str)
        and reason
        and not reason.lower().endswith(_NO_REASON)
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


def _reason_of(answer: ChatGeneration) -> str | None:
    info = answer.generation_info
    return (info and reason_in(info)) or reason_in(answer.message.response_metadata)


@functools.lru_cache(64)
def kind_of(reason: str | None) -> FailureKind | None:
    """What a finish reason says against an answer; None for a good end."""
    # "FinishReason.MAX_TOKENS" is the text of an enumeration, "maxTokens" JavaScript's.
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", (reason or "").rpartition(".")[2])
    words = re.sub(r"[^a-z]+", "_", words.lower())
    found = (kind for kind, pattern in _KINDS.items() if re.search(pattern, words))
    return next(found, None)


def says_failed(reason: Any) -> bool:
    """Whether a finish reason, such as OpenRouter's `error`, says a provider failed."""
    kinds = {FailureKind.INTERRUPTED, FailureKind.MALFORMED}
    return isinstance(reason, str) and kind_of(reason) in kinds


def check_result(result: ChatResult, *, needs_reason: bool) -> list[str | None]:
    """The finish reason of each answer of a model without a stream.

    `needs_reason` is whether this model names one in every whole answer. It is an error
    if an answer is empty, filtered, failed or, as far as it says, cut.
    """
    if not result.generations:
        msg = "the answer has no generations"
        raise MalformedResponseError(msg)
    # Some integrations give it for the result as a whole, if that has one answer.
    is_only = len(result.generations) == 1
    shared = reason_in(result.llm_output or {}) if is_only else None
    reasons = [_reason_of(one) or shared for one in result.generations]
    for generation, reason in zip(result.generations, reasons, strict=True):
        message = generation.message
        invalid = getattr(message, "invalid_tool_calls", ())
        _check_whole(
            reason,
            _refusal_in(message),
            [(call.get("name"), call.get("args")) for call in invalid],
            needs_reason=needs_reason,
            is_empty=not has_answer(message),
        )
    return reasons


class StreamCheck:
    """Judges the chunks of one attempt: token, end, or failure.

    `needs_reason` is whether this model ends each whole stream with a reason, and
    `may_be_empty` whether an answer without content may be whole. `held` are chunks
    that are kept back, since the answer may be empty.
    """

    def __init__(self, *, needs_reason: bool, may_be_empty: bool = False) -> None:
        self.reason: str | None = None
        self.saw_chunk = False
        self._saw_token = False
        self._is_empty = not may_be_empty
        self._needs_reason = needs_reason
        self._refusal = ""
        self._calls: dict[Any, list[str]] = {}
        self.held: list[ChatGenerationChunk] = []

    def read(self, chunk: ChatGenerationChunk) -> ChunkInfo | None:
        """What `chunk` means; None if it is kept back, see `held`.

        A chunk with a finish reason that comes before any content is kept back: the
        answer may be empty, and nothing of an empty answer is handed over. It is an
        error if the reason says that the answer is filtered or failed.
        """
        self.saw_chunk = True
        message, content = chunk.message, chunk.message.content
        if refusal := _refusal_in(message):
            self._refusal += refusal
            return None
        calls = getattr(message, "tool_call_chunks", ())
        # A token is what, once handed over, cannot be taken back; `additional_kwargs`
        # have legacy calls and thoughts.
        is_token = bool(
            (content if isinstance(content, str) else any(map(_holds, content)))
            or calls
            or any(message.additional_kwargs.values())
        )
        is_end, reason = False, _reason_of(chunk)
        if reason is not None:
            if kind_of(self.reason) is None:
                self.reason = reason
            _check_reason(reason, self._refusal)
        if is_token:
            self._saw_token = True
            self._is_empty = self._is_empty and not has_answer(message)
            for call in calls:
                # Without an index each chunk is a call of its own.
                index = call.get("index")
                place = object() if index is None else index
                parts = self._calls.setdefault(place, [call.get("name") or "a tool"])
                parts.append(call.get("args") or "")
        elif self.reason is not None and not self._saw_token:
            self.held.append(chunk)
            return None
        elif reason is not None:
            # Some servers send a reason with each token, so that proves nothing.
            with contextlib.suppress(RetryRouterError):
                self._check()
                is_end = True
        text = content if isinstance(content, str) else str(message.text)
        return ChunkInfo(text=text, is_token=is_token, is_end=is_end)

    def end(self) -> ChunkInfo:
        """The stream is over: an error if the answer is empty, or cut."""
        if not self.saw_chunk:
            msg = "the stream ended without any chunk"
            raise MalformedResponseError(msg)
        self._check()
        return ChunkInfo(is_end=True, is_last=True)

    def _check(self) -> None:
        _check_whole(
            self.reason,
            self._refusal,
            [(name, "".join(parts)) for name, *parts in self._calls.values()],
            needs_reason=self._needs_reason,
            is_empty=self._is_empty,
        )


def is_more_than_text(chunk: ChatGenerationChunk) -> bool:
    """Whether a chunk has a part of a tool call, an image, or the like."""
    message = chunk.message
    is_call = bool(getattr(message, "tool_call_chunks", ()))
    return is_call or (not chunk.text.strip() and has_answer(message))


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
        bool(block.strip()) if isinstance(block, str) else _is_content(block)
        for block in content
    )


def _is_content(block: dict[Any, Any]) -> bool:
    """Whether a block is more than a thought; signatures and citations are not."""
    kind, text = block.get("type"), str(block.get("text") or "").strip()
    if kind == "text":
        return bool(text)
    return kind not in _THOUGHTS and _holds({**block, "text": text})


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


def _check_whole(
    reason: str | None,
    refusal: str,
    calls: Iterable[tuple[Any, Any]],
    *,
    needs_reason: bool,
    is_empty: bool,
) -> None:
    """Raise what speaks against an answer that has ended.

    `calls` are names and arguments, which LangChain completes if a stream was cut.
    """
    _check_reason(reason, refusal)
    is_short = kind_of(reason) is FailureKind.LENGTH
    if reason is None and needs_reason:
        msg = (
            "the answer came without a finish reason, so it may have been cut; if this"
            " server never sends one, give its route sends_finish_reason=False"
        )
        raise StreamInterruptedError(msg)
    for name, arguments in calls:
        wrong = "an object is expected"
        try:
            read = json.loads(arguments or "{}", strict=False)
        except (TypeError, ValueError) as error:
            read, wrong = arguments, str(error)
        if not isinstance(read, dict | None):
            msg = f"the arguments of {name} are not JSON: {wrong}: {arguments}"
            if is_short:
                raise LengthLimitError(msg)
            raise MalformedResponseError(msg, code="invalid_tool_call")
    # One that began with a stop sequence is empty, and whole.
    if is_empty and not is_short and (reason or "").lower() != "stop_sequence":
        msg = "the answer is empty: no text and no tool call"
        raise MalformedResponseError(msg, code="empty")
