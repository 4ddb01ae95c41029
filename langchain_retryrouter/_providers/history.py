"""Makes a conversation readable for a provider that did not write its answers.

Answers carry content that only their author can read: signed thoughts, blocks of tools
that ran on its servers, ids of items that it stores. Another provider rejects them with
a 400, so `fit_history` leaves them out for its route and reports that. Text, tool calls
and tool results are common to all providers and always stay.

The author of an answer is in its `response_metadata["model_provider"]`, which
LangChain's integrations set from version 1 on. In an answer without an author only
blocks in one provider's own form count as foreign.

Sources: the content blocks of docs.claude.com/en/api/messages; the output items in
openai's `types.responses`; what langchain-openai 1.7.3 and langchain-anthropic 1.7.7
pass on unread (`_construct_responses_api_input`, `_format_messages`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage

_Block: TypeAlias = str | dict[Any, Any]

# Other names of a provider, in `ls_provider` and in `model_provider`.
_SAME: Final = {
    "amazon_bedrock": "bedrock",
    "bedrock_converse": "bedrock",
    "azure": "openai",
    "azure_openai": "openai",
    "mistralai": "mistral",
}
_OWNERS: Final = {
    kind: owner
    for owner, kinds in (
        ("anthropic", "thinking redacted_thinking server_tool_use mcp_tool_use"),
        ("anthropic", "mcp_tool_result web_search_tool_result web_fetch_tool_result"),
        ("anthropic", "code_execution_tool_result bash_code_execution_tool_result"),
        ("anthropic", "text_editor_code_execution_tool_result tool_search_tool_result"),
        ("anthropic", "advisor_tool_result container_upload"),
        ("openai", "web_search_call file_search_call computer_call"),
        ("openai", "code_interpreter_call image_generation_call mcp_call"),
        ("openai", "mcp_list_tools mcp_approval_request tool_search_call"),
        ("openai", "tool_search_output apply_patch_call apply_patch_call_output"),
        ("openai", "function_call custom_tool_call"),
        ("bedrock", "reasoning_content"),
    )
    for kind in kinds.split()
}
# Each names its call in a field of its own; the call itself is in `tool_calls` too.
_CALLS: Final = frozenset(
    {"tool_use", "tool_call", "function_call", "custom_tool_call", "invalid_tool_call"}
)
_OPENAIS_REASONING: Final = frozenset({"summary", "encrypted_content"})
_TEXTS: Final = {"text": "text", "output_text": "text", "refusal": "refusal"}
_NOTES: Final = ("annotations", "citations")
# Blocks that every integration sends, as far as its provider takes them.
_COMMON: Final = frozenset(
    {"image", "image_url", "audio", "input_audio", "video", "file", "document"}
    | {"text-plain", "tool_result"}
)
_MARKS: Final = {
    # The provider that reads the mark, and those that pass it on to that provider.
    "cache_control": frozenset({"anthropic", "bedrock", "openrouter", "litellm"}),
    "prompt_cache_breakpoint": frozenset({"openai"}),
}
# Where integrations keep thoughts outside the content, and ids that only they know.
_OWN_KWARGS: Final = (
    "reasoning",
    "reasoning_content",
    "tool_outputs",
    "audio",
    "__openai_function_call_ids__",
    "__gemini_function_call_thought_signatures__",
)


def tracing_params(model: BaseChatModel, /, **kwargs: Any) -> LangSmithParams:
    """What the model's integration tells tracers: provider, model name and options."""
    return model._get_ls_params(**kwargs)  # noqa: SLF001 - an extension point


def provider_of(model: BaseChatModel) -> str:
    """The provider of a model, by the name that its integration gives it."""
    named = tracing_params(model).get("ls_provider")
    return _family(named or type(model).__module__.partition(".")[0])


def fit_history(
    messages: Sequence[BaseMessage], provider: str
) -> tuple[list[BaseMessage], tuple[str, ...]]:
    """The conversation as a provider can read it, and what was left out.

    Args:
        messages: The conversation; neither it nor a message in it is changed.
        provider: The provider that is asked, as named by `provider_of`.

    Returns:
        The messages, the same objects where nothing is left out, without those of which
        nothing is left; and the kinds of what is left out, such as `thinking` or
        `cache_control`, each once.
    """
    fitting = _Fitting(_family(provider))
    fitted = [fitting.fit(message) for message in messages]
    kept = [message for message in fitted if message is not None]
    return kept, tuple(fitting.left_out)


def _family(provider: str) -> str:
    return _SAME.get(provider, provider)


class _Fitting:
    """Fits one conversation, and records what it leaves out."""

    def __init__(self, reader: str) -> None:
        self._reader = reader
        self.left_out: dict[str, None] = {}  # A set that keeps its order.

    def fit(self, message: BaseMessage) -> BaseMessage | None:
        if isinstance(message.content, str) and not message.additional_kwargs:
            return message  # Every provider reads plain text.
        author = message.response_metadata.get("model_provider")
        if not isinstance(message, AIMessage):
            return self._without_marks(message)
        if not isinstance(author, str):
            return self._fit_answer(message, is_foreign=False)
        if _family(author) == self._reader:
            return message
        return self._fit_answer(message, is_foreign=True)

    def _without_marks(self, message: BaseMessage) -> BaseMessage:
        """The caller's message without marks that only another provider knows."""
        content = message.content
        if not isinstance(content, str):
            content = [self._unmarked(block) for block in content]
        kwargs = self._unmarked(message.additional_kwargs)
        if content == message.content and kwargs == message.additional_kwargs:
            return message
        return message.model_copy(
            update={"content": content, "additional_kwargs": kwargs}
        )

    def _unmarked(self, block: Any) -> Any:
        if not isinstance(block, dict):
            return block
        foreign = {
            mark: None
            for mark, readers in _MARKS.items()
            if mark in block and self._reader not in readers
        }
        self.left_out.update(foreign)
        kept = {name: item for name, item in block.items() if name not in foreign}
        if isinstance(extras := kept.get("extras"), dict):
            kept["extras"] = self._unmarked(extras)
            if extras and not kept["extras"]:
                del kept["extras"]
        if isinstance(inner := kept.get("content"), list):  # A tool's result.
            kept["content"] = [self._unmarked(item) for item in inner]
        return kept

    def _fit_answer(self, message: AIMessage, *, is_foreign: bool) -> AIMessage | None:
        fit = self._fit_foreign if is_foreign else self._fit_authorless
        given, kwargs = message.content, message.additional_kwargs
        blocks = ([given] if given else []) if isinstance(given, str) else given
        tool_calls = [*message.tool_calls, *message.invalid_tool_calls]
        calls = {str(call.get("id")) for call in tool_calls}
        kept = [b for block in blocks if (b := fit(block, calls)) is not None]
        if is_foreign:
            kwargs = self._kwargs(kwargs, calls)
        if kept == blocks and kwargs == message.additional_kwargs:
            return message
        if not kept and not calls:
            return None
        # Text alone as a string: the one form of an answer that every provider takes.
        texts = [
            block if isinstance(block, str) else block.get("text")
            for block in kept
            if isinstance(block, str) or block.get("type") == "text"
        ]
        is_text = len(texts) == len(kept) and all(isinstance(t, str) for t in texts)
        return message.model_copy(
            update={
                "content": "".join(map(str, texts)) if is_text else kept,
                "additional_kwargs": kwargs,
                # `output_version` would promise standard blocks in `content`.
                "response_metadata": {
                    name: value
                    for name, value in message.response_metadata.items()
                    if name != "output_version"
                },
            }
        )

    def _kwargs(self, kwargs: Mapping[str, Any], calls: set[str]) -> dict[str, Any]:
        # The legacy form of a call is dropped where the call is in `tool_calls` too.
        dropped = {*_OWN_KWARGS, "function_call"} if calls else set(_OWN_KWARGS)
        for name in _OWN_KWARGS:
            # Ids are no loss, and have no name that would tell the user anything.
            if kwargs.get(name) and not name.startswith("__"):
                self.left_out[name] = None
        return {name: value for name, value in kwargs.items() if name not in dropped}

    def _fit_authorless(self, block: _Block, calls: set[str]) -> _Block | None:
        """A block of an answer without an author: kept unless its form has an owner."""
        if not isinstance(block, dict):
            return block
        kind = _kind_of(block)
        owner = _OWNERS.get(kind)
        if kind == "reasoning" and not _OPENAIS_REASONING.isdisjoint(block):
            owner = "openai"
        if owner in {None, self._reader}:
            unmarked: dict[Any, Any] = self._unmarked(block)
            return unmarked
        if kind in _CALLS:
            return None if _is_among(calls, block) else block
        self.left_out[kind] = None
        return None

    def _fit_foreign(self, block: _Block, calls: set[str]) -> _Block | None:
        """The part of another provider's block that all can read; None if none is."""
        if not isinstance(block, dict):
            return block or None
        kind = _kind_of(block)
        if field := _TEXTS.get(kind):
            notes = (name for name in _NOTES if block.get(name))
            self.left_out.update(dict.fromkeys(notes))
            text = block.get(field)
            return {"type": "text", "text": text} if text else None
        if kind in _CALLS:
            return None if _is_among(calls, block) else block
        if kind in _COMMON:
            unmarked: dict[Any, Any] = self._unmarked(block)
            return unmarked
        self.left_out[kind] = None
        return None


def _kind_of(block: Mapping[Any, Any]) -> str:
    """The type of a block, also of one that LangChain has no standard for."""
    inner = block.get("value") if block.get("type") == "non_standard" else None
    return str((inner if isinstance(inner, Mapping) else block).get("type"))


def _is_among(calls: set[str], block: Mapping[Any, Any]) -> bool:
    """Whether a tool call in the content is in `tool_calls` too.

    It is not in a message that was built by hand with the call in its content alone.
    """
    return not calls.isdisjoint(str(block.get(name)) for name in ("id", "call_id"))
