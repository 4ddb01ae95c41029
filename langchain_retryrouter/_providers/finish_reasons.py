"""Whether a foreign model's answer is whole, by what its last chunk says.

Integrations hand on the provider's reason under the provider's own name. Only of some
is it known that a whole stream never ends without one; of the others, and of a fake,
the end of the iterator is the end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from langchain_retryrouter._retry.streaming import ChunkInfo

_REASONS: Final = (
    "finish_reason",  # OpenAI's, and what is like it: Groq, Mistral, Google, GPTRouter
    "stop_reason",  # Anthropic's, and Bedrock's InvokeModel
    "stopReason",  # Bedrock's Converse
    "done_reason",  # Ollama's
)
# Most chunks of a stream have none of these.
_TELLING: Final = frozenset({*_REASONS, "object"})
# Some gateways send a reason where there was none: OpenRouter ends a stream that failed
# on its way with `error`, and Google's first value says that nothing is said.
_NO_REASONS: Final = frozenset({"error", "FINISH_REASON_UNSPECIFIED"})
# The final states of OpenAI's Responses API in which there is an answer.
_ENDED: Final = frozenset({"completed", "incomplete"})

# Read in langchain-openai 1.7.4 and langchain-anthropic 1.7.10: each passes on the
# reason that its protocol promises. The module is that of the class whose `_stream`
# runs, so that a subclass of ChatOpenAI counts as long as it leaves that alone.
_TELLS: Final = ("langchain_openai.", "langchain_anthropic.")

# What a block of content says about itself, and is no content: the first event of a
# block has an index and a type, and nothing to read yet.
_FRAME: Final = frozenset({"type", "index", "id", "phase", "status"})


def finish_reason_in(answer: BaseMessage | ChatGeneration) -> str | None:
    """The reason for which the provider ended this answer; None if it names none.

    Args:
        answer: A message, or a generation around one; whole, or a chunk.
    """
    for facts in _facts(answer):
        if not _TELLING.isdisjoint(facts) and (reason := _reason_in(facts)):
            return reason
    return None


def has_finish_reason(result: ChatResult) -> bool:
    """Whether each answer of a result names the reason for which it ended.

    Some integrations say it of the result as a whole, if there is one answer in it.
    """
    reasons = [finish_reason_in(answer) for answer in result.generations]
    if reasons == [None] and result.llm_output:
        return _reason_in(result.llm_output) is not None
    return None not in reasons


def _reason_in(facts: Mapping[str, Any]) -> str | None:
    for name in _REASONS:
        reason = facts.get(name)
        if isinstance(reason, str) and reason and reason not in _NO_REASONS:
            return reason
    if facts.get("object") == "response" and facts.get("status") in _ENDED:
        details = facts.get("incomplete_details")
        why = details.get("reason") if isinstance(details, Mapping) else None
        return str(why or facts["status"])
    return None


def _facts(answer: BaseMessage | ChatGeneration) -> tuple[Mapping[str, Any], ...]:
    if isinstance(answer, BaseMessage):
        return (answer.response_metadata,)
    return answer.generation_info or {}, answer.message.response_metadata


def reports_finish_reason(model: BaseChatModel) -> bool:
    """Whether a stream of this model that ended without a reason was cut off.

    With `stream_usage` off, `ChatAnthropic` passes the reason on since version 1.7.10.
    """
    home = f"{type(model)._stream.__module__}."  # noqa: SLF001 - where it is defined
    if home.startswith("langchain_anthropic."):
        has_usage = bool(getattr(model, "stream_usage", True))
        return has_usage or _is_installed("langchain-anthropic", (1, 7, 10))
    return home.startswith(_TELLS)


def _is_installed(package: str, at_least: tuple[int, ...]) -> bool:
    try:
        numbers = re.findall(r"\d+", version(package))
    except PackageNotFoundError:
        return False
    return tuple(map(int, numbers[: len(at_least)])) >= at_least


class ChunkReader:
    """Tells, for the chunks of one attempt, what is a token and what is the end.

    After the end a chunk with usage may follow, so none is ever the last one. A model
    that never tells the end gets none from here either: whoever runs its iterator has
    to add it.

    Attributes:
        finish_reason: The reason that the provider named, once it has.
    """

    __slots__ = ("finish_reason",)

    def __init__(self) -> None:
        """Nothing has been read yet."""
        self.finish_reason: str | None = None

    def __call__(self, chunk: ChatGenerationChunk) -> ChunkInfo:
        """What `chunk` means for its stream."""
        reason = finish_reason_in(chunk)
        if reason is not None:
            self.finish_reason = reason
        content = chunk.message.content
        return ChunkInfo(
            text=content if isinstance(content, str) else str(chunk.message.text),
            is_token=_says(chunk.message),
            is_end=reason is not None,
        )


def _says(message: BaseMessage) -> bool:
    """Whether a chunk has anything that, once handed over, cannot be taken back."""
    if isinstance(message, AIMessageChunk) and message.tool_call_chunks:
        return True
    if any(message.additional_kwargs.values()):  # A refusal, or a call of old.
        return True
    content = message.content
    return bool(content) if isinstance(content, str) else any(map(_holds, content))


def _holds(block: str | dict[Any, Any]) -> bool:
    if isinstance(block, str):
        return bool(block)
    return any(value for name, value in block.items() if name not in _FRAME)
