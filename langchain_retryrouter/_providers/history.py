"""Makes a conversation readable for a provider that did not write its answers.

Answers carry content that only their author can read: signed thoughts, blocks of tools
that ran on its servers, ids of items that it stores. Another provider rejects them, so
`fit_history` leaves them out for its route and reports that. It also rewrites what the
reader rejects by its form. Text, tool calls and tool results always stay.

The author of an answer is in its `response_metadata["model_provider"]`, and in the
attempt log if a route of this router wrote it, which also tells the account. In an
answer without an author only thoughts and one provider's own blocks count as foreign.

Sources: the content blocks of docs.claude.com/en/api/messages; the output items in
openai's `types.responses`; what langchain-openai 1.7.3 and langchain-anthropic 1.7.7
pass on unread (`_construct_responses_api_input`, `_format_messages`); the 400s of
OpenAI, Mistral, Anthropic and Amazon Bedrock.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar, cast

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    FunctionMessage,
    HumanMessage,
    ToolMessage,
    convert_to_openai_image_block,
    convert_to_openai_messages,
)

from langchain_retryrouter._providers.integrations import ANY_ID, Reader, family

_Block: TypeAlias = str | dict[Any, Any]
_M = TypeVar("_M", bound=BaseMessage)

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
        ("bedrock_converse", "reasoning_content"),
    )
    for kind in kinds.split()
}
# Each names its call in a field of its own; the call itself is in `tool_calls` too.
_CALLS: Final = frozenset(
    {"tool_use", "tool_call", "function_call", "custom_tool_call", "invalid_tool_call"}
)
_OPENAIS_REASONING: Final = frozenset({"summary", "encrypted_content"})
_TEXTS: Final = {"text": "text", "output_text": "text", "refusal": "refusal"}
_MEDIA: Final = frozenset(
    {"image", "image_url", "input_image", "audio", "input_audio", "video"}
    | {"file", "document"}
)
# Blocks that every integration sends, as far as its provider takes them.
_COMMON: Final = _MEDIA | {"text-plain", "tool_result"}
_MARKS: Final = {
    # The provider that reads the mark, and those that pass it on to that provider.
    "cache_control": frozenset(
        {"anthropic", "bedrock", "bedrock_converse", "openrouter", "litellm"}
    ),
    "prompt_cache_breakpoint": frozenset({"openai"}),
}
# Where integrations keep thoughts and what their servers did outside the content.
_OWN_KWARGS: Final = (
    *("reasoning", "reasoning_content", "reasoning_details", "tool_outputs", "audio"),
)
# Thoughts in a form that does not tell whose they are.
_THOUGHTS: Final = frozenset({"reasoning", "reasoning_content"})
_IN_NO_NAME: Final = re.compile(r"[\s<|\\/>]+")  # OpenAI's pattern of names.


def fit_history(
    messages: Sequence[BaseMessage],
    reader: Reader,
    authors: Mapping[str, Reader] | None = None,
    *,
    is_strict: bool = False,
) -> tuple[list[BaseMessage], tuple[str, ...]]:
    """The conversation as a model can read it, and the kinds of what was left out.

    Messages are the same objects where nothing is left out. `authors` are the routes'
    models by their names in attempt logs, and with `is_strict` all goes that any reader
    may reject, also the reader's own.
    """
    if all(map(_is_plain, messages)):
        return [*messages], ()
    fitting = _Fitting(reader, authors or {}, is_strict=is_strict)
    for message in messages:
        fitting.add(message)
    fitting.add_media()
    fitting.answer_results()
    return fitting.fitted, tuple(fitting.left_out)


def foreign_response_id(
    response_id: Any,
    messages: Sequence[BaseMessage],
    reader: Reader,
    authors: Mapping[str, Reader],
) -> bool:
    """Whether a `previous_response_id` is one that this reader cannot know."""
    if not reader.facts.is_account_bound:
        return True
    return any(
        isinstance(message, AIMessage)
        and message.response_metadata.get("id") == response_id
        and _is_own(message, reader, authors) is False
        for message in messages
    )


def _is_plain(message: BaseMessage) -> bool:
    """Whether a message is text alone, which every provider reads."""
    return (
        type(message.content) is str
        and message.name is None
        and not (message.additional_kwargs or message.response_metadata)
        and not isinstance(message, ToolMessage | FunctionMessage)
        and not (isinstance(message, AIMessage) and message.tool_calls)
    )


def of_its_version(message: _M) -> _M:
    """A message that says its content is standard blocks only where it is.

    LangChain's streams, and some integrations, say so of text, and a reader that
    believes it finds no block.
    """
    metadata, content = message.response_metadata, message.content
    if metadata.get("output_version") != "v1" or (
        not isinstance(content, str)
        and all(isinstance(block, dict) and "type" in block for block in content)
    ):
        return message
    kept = {name: one for name, one in metadata.items() if name != "output_version"}
    return message.model_copy(update={"response_metadata": kept})


def _is_own(
    message: AIMessage, reader: Reader, authors: Mapping[str, Reader]
) -> bool | None:
    """Whether the reader wrote an answer; None if its author is not known."""
    log = message.response_metadata.get("retryrouter")
    route = log.get("route") if isinstance(log, Mapping) else None
    by = authors.get(route) if isinstance(route, str) else None
    named = message.response_metadata.get("model_provider")
    if isinstance(named, str) and family(named) != reader.provider:
        return False
    if by is None:
        return True if isinstance(named, str) else None
    # Packages that are made of langchain-openai may name OpenAI as the author.
    return by.same_account(reader)


class _Fitting:
    """Fits one conversation, and records what it leaves out."""

    def __init__(
        self, reader: Reader, authors: Mapping[str, Reader], *, is_strict: bool
    ) -> None:
        self._model, self._facts = reader, reader.facts
        self._reader = reader.provider
        self._authors = authors
        self._is_strict = is_strict
        self.left_out: dict[str, None] = {}  # A set that keeps its order.
        self.fitted: list[BaseMessage] = []
        self._media: list[Any] = []
        self._ids = _ToolIds(reader, is_strict=is_strict)

    def add(self, message: BaseMessage) -> None:
        if not isinstance(message, ToolMessage | FunctionMessage):
            self.add_media()
        if _is_plain(message):
            self.fitted.append(message)
            return
        message = self._with_name(of_its_version(message))
        if isinstance(message, AIMessage):
            is_own = _is_own(message, self._model, self._authors)
            answer = self._fit_answer(self._modern(message), is_own=is_own)
            if answer is None:
                return
            message = self._ids.in_answer(answer, is_own=is_own)
        else:
            message = self._without_marks(message)
            if isinstance(message, FunctionMessage):
                message = self._ids.as_tool_message(message)
            if isinstance(message, ToolMessage):
                message = self._ids.in_result(self._without_media(message))
        self.fitted.append(message)

    def _with_name(self, message: BaseMessage) -> BaseMessage:
        """The message with a name that OpenAI's pattern allows."""
        name = message.name
        if name is None or isinstance(message, ToolMessage | FunctionMessage):
            return message
        fit = _IN_NO_NAME.sub("_", name.strip())[:64]
        if self._is_strict:
            fit = re.sub(r"[^a-zA-Z0-9_-]+", "_", fit)
        if fit == name:
            return message
        self.left_out["name"] = None
        return message.model_copy(update={"name": fit or None})

    def _modern(self, message: AIMessage) -> AIMessage:
        """An answer whose call is in OpenAI's legacy form, in today's."""
        legacy = message.additional_kwargs.get("function_call")
        if (
            not isinstance(legacy, Mapping)
            or message.tool_calls
            or message.invalid_tool_calls
            or (self._reader == "openai" and not self._is_strict)
        ):
            return message
        args = None
        with contextlib.suppress(TypeError, ValueError):
            args = json.loads(legacy.get("arguments") or "{}")
        if not isinstance(args, dict):
            return message
        name = str(legacy.get("name"))
        call = {"name": name, "args": args, "id": f"call_{name}", "type": "tool_call"}
        self.left_out["function_call"] = None
        kwargs = dict(message.additional_kwargs)
        del kwargs["function_call"]
        update = {"tool_calls": [call], "additional_kwargs": kwargs}
        return message.model_copy(update=update)

    def _without_media(self, message: ToolMessage) -> ToolMessage:
        """A tool's result whose images and documents follow in a user's message."""
        if isinstance(message.content, str):
            return message
        media = [b for b in message.content if _kind_of(b) in _MEDIA]
        takes_it = self._model.media_results
        if takes_it is None:
            takes_it = self._facts.media_results
        if not media or (takes_it and not self._is_strict):
            return message
        self.left_out.update(dict.fromkeys(f"tool_result.{_kind_of(b)}" for b in media))
        name = message.name or message.tool_call_id
        self._media += [{"type": "text", "text": f"From the result of {name}:"}, *media]
        rest = [b for b in message.content if b not in media]
        content = _joined(rest) if rest else "The next message of the user has it."
        return message.model_copy(update={"content": content})

    def add_media(self) -> None:
        if self._media:
            content = [_with_image_url(block) for block in self._media]
            self.fitted.append(HumanMessage(content=content))
            self._media = []

    def answer_results(self) -> None:
        """Put an answer between a tool's result and what the user says next."""
        if not (self._facts.answers_results or self._is_strict):
            return
        for place in range(len(self.fitted) - 1, 0, -1):
            before, message = self.fitted[place - 1 : place + 1]
            if isinstance(before, ToolMessage) and isinstance(message, HumanMessage):
                self.fitted.insert(place, AIMessage("I have the result."))
                self.left_out["order"] = None

    def _without_marks(self, message: BaseMessage) -> BaseMessage:
        """The caller's message without marks that only another provider knows."""
        content = message.content
        if not isinstance(content, str):
            content = [self._unmarked(block) for block in content]
            if isinstance(message, HumanMessage) and self._facts.needs_image_urls:
                content = [_with_image_url(block) for block in content]
        kwargs = self._unmarked(message.additional_kwargs)
        if content == message.content and kwargs == message.additional_kwargs:
            return message
        update = {"content": content, "additional_kwargs": kwargs}
        return message.model_copy(update=update)

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

    def _fit_answer(
        self, message: AIMessage, *, is_own: bool | None
    ) -> AIMessage | None:
        """An answer without what the reader cannot read; None if nothing is left."""
        if is_own and not self._is_strict:
            return message
        is_foreign = is_own is False or self._is_strict
        given = message.content
        blocks = ([given] if given else []) if isinstance(given, str) else given
        tool_calls = [*message.tool_calls, *message.invalid_tool_calls]
        calls = {str(call.get("id")) for call in tool_calls}
        fitted = [self._fit_block(one, calls, is_foreign=is_foreign) for one in blocks]
        kept = [block for block in fitted if block is not None]
        # The legacy form of a call is dropped where the call is in `tool_calls` too.
        # The loss of private ones, such as ids, would not tell the user anything.
        dropped = {*_OWN_KWARGS, *(["function_call"] if calls else [])}
        kwargs, metadata = message.additional_kwargs, message.response_metadata
        self.left_out.update(dict.fromkeys(n for n in _OWN_KWARGS if kwargs.get(n)))
        kwargs = {
            name: value
            for name, value in kwargs.items()
            if name not in dropped and not name.startswith("_")
        }
        has_ids = is_foreign and "id" in metadata
        if kept == blocks and kwargs == message.additional_kwargs and not has_ids:
            return message
        if not kept and not calls:
            return None
        # Ids of stored items, and `output_version`, which promises standard blocks.
        foreign = {"output_version", *(["id"] if is_foreign else [])}
        metadata = {k: v for k, v in metadata.items() if k not in foreign}
        update = {"content": _joined(kept), "additional_kwargs": kwargs}
        return message.model_copy(update={**update, "response_metadata": metadata})

    def _fit_block(
        self, block: _Block, calls: set[str], *, is_foreign: bool
    ) -> _Block | None:
        """The part of a block that the reader can read; None if there is none.

        In an answer without an author a block is readable unless its form has an owner.
        """
        if not isinstance(block, dict):
            return block if block or not is_foreign else None
        kind = _kind_of(block)
        if is_foreign and (field := _TEXTS.get(kind)):
            notes = (name for name in ("annotations", "citations") if block.get(name))
            self.left_out.update(dict.fromkeys(notes))
            text = block.get(field)
            return {"type": "text", "text": text} if text else None
        owner = _OWNERS.get(kind)
        if kind == "reasoning" and not _OPENAIS_REASONING.isdisjoint(block):
            owner = "openai"
        is_readable = owner == self._reader or (owner is None and kind not in _THOUGHTS)
        if kind in _COMMON if is_foreign else is_readable:
            return cast("_Block", self._unmarked(block))
        if kind not in _CALLS:
            self.left_out[kind] = None
            return None
        # A call is in `tool_calls` too, but not in a message that was built by hand.
        ids = {str(block.get(name)) for name in ("id", "call_id")}
        return block if calls.isdisjoint(ids) else None


class _ToolIds:
    """Ids of tool calls that the reader takes, the same for a call and its result."""

    def __init__(self, reader: Reader, *, is_strict: bool) -> None:
        self._facts = reader.facts
        self._is_strict = is_strict
        self._used: set[str] = set()
        self._open: dict[str, list[str]] = {}  # New ids that have no result so far.
        self._last: dict[str, str] = {}

    def in_answer(self, message: AIMessage, *, is_own: bool | None) -> AIMessage:
        """An answer with such ids, wherever they are in it."""
        new: dict[str, str] = {}
        calls = [*message.tool_calls, *message.invalid_tool_calls]
        ids = [self._new(call.get("id"), is_own=is_own) for call in calls]
        self._open = {}
        for call, fit in zip(calls, ids, strict=True):
            given = str(call.get("id") or "")
            self._open.setdefault(given, []).append(fit)
            self._last[given] = new[given] = fit
        is_same = all(c.get("id") == fit for c, fit in zip(calls, ids, strict=True))
        lacks = self._facts.reads_kwargs and bool(message.tool_calls)
        if is_same and not (lacks and "tool_calls" not in message.additional_kwargs):
            return message
        renamed = [{**c, "id": fit} for c, fit in zip(calls, ids, strict=True)]
        count = len(message.tool_calls)
        kwargs = {
            name: value
            for name, value in message.additional_kwargs.items()
            if name not in {"tool_calls", "__openai_function_call_ids__"}
        }
        if lacks:
            written = convert_to_openai_messages(
                AIMessage("", tool_calls=renamed[:count])
            )
            kwargs["tool_calls"] = written["tool_calls"]
        content: Any = message.content
        if not isinstance(content, str):
            content = [
                {**b, **{k: new[b[k]] for k in ("id", "call_id") if b.get(k) in new}}
                if _kind_of(b) in _CALLS
                else b
                for b in content
            ]
        return message.model_copy(
            update={
                "content": content,
                "tool_calls": renamed[:count],
                "invalid_tool_calls": renamed[count:],
                "additional_kwargs": kwargs,
            }
        )

    def in_result(self, message: ToolMessage) -> ToolMessage:
        """The result of a call, with the call's new id."""
        given = message.tool_call_id
        waiting = self._open.get(given)
        fit = waiting.pop(0) if waiting else self._last.get(given, given)
        if fit == given:
            return message
        return message.model_copy(update={"tool_call_id": fit})

    def as_tool_message(self, message: FunctionMessage) -> BaseMessage:
        """A result in OpenAI's legacy form, in today's if its call is."""
        given = f"call_{message.name}"
        if given not in self._open:
            return message
        return ToolMessage(message.content, tool_call_id=given, name=message.name)

    def _new(self, given: str | None, *, is_own: bool | None) -> str:
        pattern = self._facts.ids
        if pattern is None and (self._is_strict or is_own is False):
            pattern = ANY_ID
        fit, count = given or "", 0
        while not fit or fit in self._used or (pattern and not pattern.fullmatch(fit)):
            count += 1
            text = f"{given}/{count}".encode("utf-8", "surrogatepass")
            digest = hashlib.sha256(text).hexdigest()
            fit = f"call_{digest[:24]}"
            if pattern and not pattern.fullmatch(fit):
                fit = digest[:9]  # Mistral's.
        self._used.add(fit)
        return fit


def _with_image_url(block: Any) -> Any:
    """An image in the form that all integrations send; any other block as it is."""
    if not isinstance(block, dict) or block.get("type") != "image":
        return block
    image: Any = HumanMessage(content=[block]).content_blocks[0]
    if "url" in image or {"base64", "mime_type"} <= image.keys():
        return convert_to_openai_image_block(image)
    return block


def _joined(blocks: list[Any]) -> Any:
    """Text alone as a string: the one form that every provider takes."""
    texts = [b if isinstance(b, str) else b.get("text") for b in blocks]
    is_text = all(_kind_of(b) == "text" for b in blocks)
    return "".join(texts) if is_text and None not in texts else blocks


def _kind_of(block: Any) -> str:
    """The type of a block, also of one that LangChain has no standard for."""
    if not isinstance(block, Mapping):
        return "text"
    inner = block.get("value") if block.get("type") == "non_standard" else None
    return str((inner if isinstance(inner, Mapping) else block).get("type"))
