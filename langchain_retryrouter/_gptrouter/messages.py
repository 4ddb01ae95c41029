"""LangChain's messages to the gateway's and back.

Pure: messages, and the answers and events that `wire` has read. This file does not know
sockets, retries, or the model object.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

from gpt_router.models import (
    Choice,
    ChunkedGenerationResponse,
    GenerationResponse,
)
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    convert_to_openai_data_block,
    is_data_content_block,
)
from langchain_core.messages import content as types
from langchain_core.messages.block_translators import register_translator
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.messages.utils import convert_to_openai_messages
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from langchain_retryrouter._gptrouter.protocol import (
    CallPiece,
    CallReader,
    GatewayEvent,
    GatewayResponse,
    clean_usage,
    parse_calls,
    read_reasoning,
    read_response,
    read_usage,
)
from langchain_retryrouter.errors import UnsupportedOptionError

PROVIDER: Final = "gptrouter"
"""The `model_provider` of our messages."""

_CITATION_FIELDS: Final = {
    "url": str,
    "title": str,
    "cited_text": str,
    "start_index": int,
    "end_index": int,
}


def translate_content(message: AIMessage) -> list[types.ContentBlock]:
    """The blocks of a whole message.

    Raises:
        NotImplementedError: If its content is a list, which our answers never have;
            LangChain then reads it by itself.
    """
    blocks = _said(message)
    blocks += [{**call, "type": "tool_call"} for call in message.tool_calls]
    blocks += [
        {**call, "type": "invalid_tool_call"} for call in message.invalid_tool_calls
    ]
    return cast("list[types.ContentBlock]", blocks)


def translate_content_chunk(message: AIMessageChunk) -> list[types.ContentBlock]:
    """The blocks of a chunk, or of the sum of a stream's chunks.

    Raises:
        NotImplementedError: As `translate_content`.
    """
    is_sum = message.content or message.tool_call_chunks or message.additional_kwargs
    if is_sum and message.chunk_position == "last":
        return translate_content(message)
    blocks = [
        {**block, "index": "lc_txt_0" if block["type"] == "text" else "lc_rs_0"}
        for block in _said(message)
    ]
    blocks += [
        {**call, "type": "tool_call_chunk", "index": f"lc_tc_{call['index']}"}
        for call in message.tool_call_chunks
    ]
    return cast("list[types.ContentBlock]", blocks)


def _said(message: AIMessage) -> list[dict[str, Any]]:
    if not isinstance(message.content, str):
        raise NotImplementedError
    blocks: list[dict[str, Any]] = []
    reasoning = message.additional_kwargs.get("reasoning_content")
    if reasoning and isinstance(reasoning, str):
        blocks.append({"type": "reasoning", "reasoning": reasoning})
    text: dict[str, Any] = {"type": "text", "text": message.content}
    citations = message.response_metadata.get("citations")
    if citations and isinstance(citations, list):
        text["annotations"] = [_annotation(citation) for citation in citations]
    if message.content or "annotations" in text:
        blocks.append(text)
    return blocks


def _annotation(citation: Any) -> dict[str, Any]:
    if isinstance(citation, str):
        return {"type": "citation", "url" if "://" in citation else "title": citation}
    if not isinstance(citation, dict):
        return {"type": "non_standard_annotation", "value": {"citation": citation}}
    told = _flat(citation)
    known = {
        name: told[name]
        for name, kind in _CITATION_FIELDS.items()
        if isinstance(told.get(name), kind)
    }
    if not known:
        return {"type": "non_standard_annotation", "value": citation}
    extras = {key: value for key, value in told.items() if key not in known}
    return {"type": "citation", **known, **({"extras": extras} if extras else {})}


def _flat(citation: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI nests a citation under its type's name."""
    nested = citation.get(str(citation.get("type")))
    told = nested if isinstance(nested, dict) else citation
    return {key: value for key, value in told.items() if key != "type"}


register_translator(PROVIDER, translate_content, translate_content_chunk)


# Blocks that LangChain's own conversion puts into OpenAI's form.
_CONVERTED: Final = frozenset(
    {"image_url", "image", "file", "audio", "input_audio", "media", "json"}
)
_PLAIN_ROLES: Final = {HumanMessage: "user", SystemMessage: "system"}
_CALLS: Final = frozenset({"tool_use", "tool_call", "function_call"})
# LangChain's own marks on a text, which no provider knows.
_MARKS: Final = frozenset({"id", "index", "annotations", "extras"})


def build_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """LangChain's messages as the gateway takes them.

    Every message has a `content` key, since the gateway answers 500 to one without; the
    role `developer`, which it does not know, is `system`.

    Raises:
        UnsupportedOptionError: If a message has content that cannot be sent.
    """
    return [built for message in messages for built in _build(message)]


def _build(message: BaseMessage) -> Iterator[dict[str, Any]]:
    if isinstance(message, AIMessage):
        yield _build_ai(message)
        return
    content = message.content
    role = _PLAIN_ROLES.get(type(message))
    if role and isinstance(content, str) and _is_bare(message):
        # What most messages are; LangChain's own way takes ten times as long.
        yield {"role": role, "content": content}
        return
    built = _frame(message)
    if isinstance(content, str):
        yield {**built, "content": content}
        return
    results, said = _split(content, "tool_result")
    # The results of a call are to follow it at once.
    yield from _tool_results(results)
    if said or not results:
        parts = [part for block in said for part in _parts(block, built["role"])]
        yield {**built, "content": _fewest(parts)}


def _is_bare(message: BaseMessage) -> bool:
    return message.name is None and not message.additional_kwargs


def _build_ai(message: AIMessage) -> dict[str, Any]:
    built = _frame(message)
    content = message.content
    blocks = [content] if isinstance(content, str) else content
    calls = [*built.pop("tool_calls", []), *_calls_besides(message, blocks)]
    if calls:
        built["tool_calls"] = calls
    elif legacy := message.additional_kwargs.get("function_call"):
        built["function_call"] = legacy
    said = _fewest([part for block in blocks for part in _said_parts(block)])
    nothing = None if calls or "function_call" in built else ""
    return {**built, "content": said or _words_besides(message) or nothing}


def _words_besides(message: AIMessage) -> str:
    """What a model said without a content; the gateway knows no key for it."""
    audio = message.additional_kwargs.get("audio")
    spoken = audio.get("transcript") if isinstance(audio, dict) else None
    return message.additional_kwargs.get("refusal") or spoken or ""


def _frame(message: BaseMessage) -> dict[str, Any]:
    """All of a message but its content, in OpenAI's form."""
    empty = message.model_copy(update={"content": ""})
    try:
        frame: dict[str, Any] = convert_to_openai_messages(empty)
    except (TypeError, ValueError) as error:
        msg = f"a message of type {message.type!r} cannot be sent: {error}"
        raise UnsupportedOptionError(msg) from error
    if frame["role"] == "developer":
        frame["role"] = "system"
    frame.pop("name", None)
    frame.pop("refusal", None)
    name = message.name or message.additional_kwargs.get("name")
    if name is not None and not isinstance(message, ToolMessage):
        frame["name"] = name
    return frame


# --- calls --------------------------------------------------------------------------


def _calls_besides(
    message: AIMessage, blocks: Iterable[str | dict[Any, Any]]
) -> Iterator[dict[str, Any]]:
    """The calls that are not in `tool_calls`: unreadable ones, and those in blocks."""
    known = {call["id"] for call in (*message.tool_calls, *message.invalid_tool_calls)}
    for invalid in message.invalid_tool_calls:
        yield _call(invalid["id"], invalid["name"], invalid["args"] or "")
    for block in blocks:
        if not isinstance(block, dict) or block.get("type") not in _CALLS:
            continue
        id_ = block.get("call_id") or block.get("id")
        if id_ is not None and id_ not in known:
            arguments = block.get("arguments", block.get("input", block.get("args")))
            if not isinstance(arguments, str):
                arguments = json.dumps(arguments or {}, ensure_ascii=False)
            yield _call(id_, block.get("name"), arguments)


def _call(id_: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "id": id_, "function": function}


def _tool_results(blocks: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Anthropic's blocks for what tools said, as messages of their own."""
    for block in blocks:
        content = block.get("content") or ""
        yield from _build(
            ToolMessage(content, tool_call_id=block.get("tool_use_id") or "")
        )


def _split(
    blocks: Iterable[str | dict[Any, Any]], kind: str
) -> tuple[list[dict[Any, Any]], list[str | dict[Any, Any]]]:
    """The blocks of this kind, and the others."""
    found: list[dict[Any, Any]] = []
    others: list[str | dict[Any, Any]] = []
    for block in blocks:
        if isinstance(block, dict) and block.get("type") == kind:
            found.append(block)
        else:
            others.append(block)
    return found, others


# --- content ------------------------------------------------------------------------


def _said_parts(block: str | dict[Any, Any]) -> list[dict[str, Any]]:
    """A block of what a model said; nothing if it is its provider's own."""
    kind = "text" if isinstance(block, str) else block.get("type")
    if kind in {"text", "refusal"}:
        text = block if isinstance(block, str) else block.get(kind)
        return [{"type": "text", "text": text}] if text else []
    if kind not in _CONVERTED:
        return []
    try:
        return _parts(block, "assistant")
    except UnsupportedOptionError:
        return []


def _parts(block: str | dict[Any, Any], role: str) -> list[dict[str, Any]]:
    """A block of what was said to a model, as OpenAI's parts of a content."""
    if isinstance(block, str):
        return [{"type": "text", "text": block}]
    kind = block.get("type")
    if kind == "non_standard" and isinstance(block.get("value"), dict):
        return [block["value"]]  # What the caller says is the provider's own.
    if kind in {"text", "text-plain"} and isinstance(block.get("text"), str):
        own = {key: value for key, value in block.items() if key not in _MARKS}
        return [own if kind == "text" else {"type": "text", "text": block["text"]}]
    if kind is None and role == "tool":
        return [{"type": "text", "text": json.dumps(block, ensure_ascii=False)}]
    if kind not in _CONVERTED and not {"image", "guard_content"} & block.keys():
        raise _unsendable(block, role, "no provider's form for it is known")
    try:
        return _converted(block)
    except (ValueError, KeyError, TypeError) as error:
        raise _unsendable(block, role, str(error)) from error


def _converted(block: dict[Any, Any]) -> list[dict[str, Any]]:
    source = block.get("source")
    if block.get("type") == "image_url" and isinstance(block.get("image_url"), str):
        block = {**block, "image_url": {"url": block["image_url"]}}
    elif isinstance(source, dict) and source.get("type") == "url":
        # Anthropic's, whose other form LangChain knows.
        block = {"type": "image_url", "image_url": {"url": source["url"]}}
    elif isinstance(file := block.get("file"), dict) and file.get("file_id"):
        return [block]
    if is_data_content_block(block):
        return [convert_to_openai_data_block(block)]
    message: dict[str, Any] = convert_to_openai_messages(
        HumanMessage([block]), text_format="block"
    )
    parts: list[dict[str, Any]] = message["content"]
    return parts


def _unsendable(
    block: Mapping[Any, Any], role: str, reason: str
) -> UnsupportedOptionError:
    told = reason.split("Full content block", maxsplit=1)[0].strip()
    return UnsupportedOptionError(
        f"a message of role {role!r} cannot carry a content block of type"
        f" {block.get('type')!r}: {told}. To send a block of your provider's own as it"
        " is, put it into {'type': 'non_standard', 'value': ...}."
    )


def _fewest(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """One text as a text: the public gateway counts the tokens of no list."""
    if not parts:
        return ""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        return str(parts[0]["text"])
    return parts


_PLAIN: Final = frozenset({"text", "finish_reason"})


def read_result(
    response: GenerationResponse, providers: Mapping[str, str]
) -> ChatResult:
    """A whole answer as LangChain's result.

    Args:
        response: The gateway's answer.
        providers: The provider's name for each model that was asked.
    """
    usage = response.meta.model_dump(exclude_none=True) if response.meta else {}
    served = _served(response.model, providers) | _without_none(
        {"provider_id": response.provider_id, "model_id": response.model_id}
    )
    attempt_log = _without_none({"retryrouter": getattr(response, "retryrouter", None)})
    generations = [
        ChatGeneration(
            message=_read_choice(
                choice,
                {
                    **served,
                    **_cited(choice.citations, response.citations),
                    **attempt_log,
                },
            ),
            generation_info=_without_none({"finish_reason": choice.finish_reason}),
        )
        for choice in response.choices
    ]
    if generations:
        # The tokens of all choices, which are counted together, are counted once.
        first: Any = generations[0].message
        first.usage_metadata = read_usage(usage)
    llm_output = {
        "token_usage": usage,
        "model": response.model,
        **served,
        **_without_none({"id": response.id}),
        **attempt_log,
    }
    return ChatResult(generations=generations, llm_output=llm_output)


def _read_choice(choice: Choice, metadata: dict[str, Any]) -> AIMessage:
    calls, invalid_calls = parse_calls(getattr(choice, "tool_calls", None) or ())
    beside = {
        "function_call": choice.function_call,
        "reasoning_content": getattr(choice, "reasoning_content", None),
    }
    return AIMessage(
        content=choice.text,
        additional_kwargs={name: said for name, said in beside.items() if said},
        tool_calls=calls,
        invalid_tool_calls=invalid_calls,
        response_metadata=metadata,
    )


class ChunkReader:
    """Reads the events of one stream as LangChain's chunks.

    LangChain adds up chunks by joining their texts, so that a name told twice would be
    doubled: here all that is told again is left out. The chunks of a stream add up to
    the message that the same answer in one piece is read as.
    """

    def __init__(self, providers: Mapping[str, str]) -> None:
        """At the start of a stream.

        Args:
            providers: The provider's name for each model that was asked.
        """
        self._providers = providers
        self._calls = CallReader()
        self._function = CallReader()
        self._citations: list[Any] = []
        self._told: dict[str, Any] = {}
        self._late: dict[str, Any] = {}

    def __call__(self, event: ChunkedGenerationResponse) -> ChatGenerationChunk | None:
        """What `event` adds to the answer; None if nothing."""
        self._note(event)
        if event.event == "update":
            return self._read_update(event.data)
        if event.event == "meta":
            return self._read_meta(event.data)
        if event.event == "generation_source":
            source = {
                "provider_id": _text(event.data.get("providerId")),
                "model_id": _text(event.data.get("modelId")),
            }
            return _chunk(self._news(source))
        if event.event == "end":
            return self._read_end(event)
        return None

    def _note(self, event: ChunkedGenerationResponse) -> None:
        """Remember what may be told with every event, and is said with the last."""
        for name in ("id", "provider"):
            if name not in self._late and (told := getattr(event, name, None)):
                self._late[name] = told
        for cited in (event.data.get("citations"), getattr(event, "citations", None)):
            if cited:
                self._citations.extend(_new(self._citations, cited))

    def _read_update(self, data: Mapping[str, Any]) -> ChatGenerationChunk | None:
        text = data.get("text") or ""
        if data.keys() <= _PLAIN and data.get("finish_reason") is None:
            return _text_chunk(text) if text else None
        beside = self._read_beside(data)
        calls = self._calls.read(data.get("tool_calls"))
        finish = self._news({"finish_reason": data.get("finish_reason")})
        if not (text or beside or calls or finish):
            return None
        return _chunk({}, text, beside, calls, finish)

    def _read_beside(self, data: Mapping[str, Any]) -> dict[str, Any]:
        beside: dict[str, Any] = {}
        if reasoning := read_reasoning(data):
            beside["reasoning_content"] = reasoning
        if function := data.get("function_call"):
            for piece in self._function.read([{"index": 0, "function": function}]):
                name = {} if piece.name is None else {"name": piece.name}
                beside["function_call"] = {**name, "arguments": piece.arguments}
        return beside

    def _read_meta(self, data: Mapping[str, Any]) -> ChatGenerationChunk:
        usage = clean_usage(data.get("usage"))
        news = self._news({"token_usage": usage or None})
        chunk = _chunk(self._news(_served(data.get("model"), self._providers)) | news)
        if news:
            chunk.message.usage_metadata = read_usage(usage)  # type: ignore[attr-defined]
        return chunk

    def _read_end(self, event: ChunkedGenerationResponse) -> ChatGenerationChunk:
        last = {
            **_served(self._told.get("model_name"), self._providers),
            **_cited(self._citations),
            "id": self._late.get("id"),
            "retryrouter": getattr(event, "retryrouter", None),
        }
        last.setdefault("provider_name", self._late.get("provider"))
        chunk = _chunk(self._news(last))
        chunk.message.chunk_position = "last"  # type: ignore[attr-defined]
        return chunk

    def _news(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """What of `metadata` has not been said yet."""
        news = {
            name: value
            for name, value in metadata.items()
            if value is not None and name not in self._told
        }
        self._told |= news
        return news


def _text_chunk(text: str) -> ChatGenerationChunk:
    """What nearly all chunks of a stream are; so it has nothing that it need not."""
    return ChatGenerationChunk(message=AIMessageChunk(content=text))


def _chunk(
    metadata: Mapping[str, Any],
    text: str = "",
    beside: dict[str, Any] | None = None,
    calls: Sequence[CallPiece] = (),
    info: dict[str, Any] | None = None,
) -> ChatGenerationChunk:
    # An empty list is costlier to build than not to pass.
    optional: dict[str, Any] = {"additional_kwargs": beside} if beside else {}
    if calls:
        optional["tool_call_chunks"] = [
            tool_call_chunk(
                name=call.name, args=call.arguments, id=call.id, index=call.index
            )
            for call in calls
        ]
    metadata = {"model_provider": PROVIDER, **metadata}
    message = AIMessageChunk(content=text, response_metadata=metadata, **optional)
    return ChatGenerationChunk(message=message, generation_info=info or None)


def assemble(events: Iterable[ChunkedGenerationResponse]) -> GatewayResponse:
    """The answer that a whole stream of events adds up to, with one choice."""
    calls, function = CallReader(), CallReader()
    texts: list[str] = []
    thoughts: list[str] = []
    citations: list[Any] = []
    found: dict[str, Any] = {}
    choice: dict[str, Any] = {"index": 0, "role": "assistant"}
    for event in events:
        data = event.data
        citations.extend(_new(citations, data.get("citations")))
        citations.extend(_new(citations, getattr(event, "citations", None)))
        if event.event == "update":
            texts.append(data.get("text") or "")
            thoughts.append(read_reasoning(data) or "")
            calls.read(data.get("tool_calls"))
            if data.get("function_call"):
                function.read([{"index": 0, "function": data["function_call"]}])
            _set_once(choice, finish_reason=data.get("finish_reason"))
            _set_once(found, id=getattr(event, "id", None))
        elif event.event == "meta":
            _set_once(found, model=data.get("model"), meta=data.get("usage"))
        elif event.event == "generation_source":
            _set_once(
                found, providerId=data.get("providerId"), modelId=data.get("modelId")
            )
    choice |= {
        "text": "".join(texts),
        "reasoning_content": "".join(thoughts),
        "tool_calls": calls.whole(),
        "function_call": next((one["function"] for one in function.whole()), None),
    }
    return read_response({**found, "choices": [choice], "citations": citations})


def take_apart(answer: GenerationResponse) -> Iterator[GatewayEvent]:
    """A whole answer as the events that a stream would have told it with."""
    for choice in answer.choices[:1]:
        update = choice.model_dump(exclude={"index", "role"}, exclude_none=True)
        yield GatewayEvent(event="update", id=answer.id, data=update)
    meta: dict[str, Any] = {"model": answer.model}
    if answer.meta is not None:
        meta["usage"] = answer.meta.model_dump(exclude_none=True)
    yield GatewayEvent(event="meta", data=meta)
    source = {"providerId": answer.provider_id, "modelId": answer.model_id}
    yield GatewayEvent(event="generation_source", data=source)
    yield GatewayEvent(event="end", data={})


def _set_once(found: dict[str, Any], **told: Any) -> None:
    for name, value in told.items():
        if value is not None:
            found.setdefault(name, value)


def _cited(*told: list[Any] | None) -> dict[str, list[Any]]:
    """The sources of an answer, each once."""
    citations: list[Any] = []
    for some in told:
        citations.extend(_new(citations, some))
    return {"citations": citations} if citations else {}


def _new(known: list[Any], told: Any) -> list[Any]:
    """What of `told`, if it is a list, is not among `known`, each once."""
    news: list[Any] = []
    for one in told if isinstance(told, list) else ():
        if one not in known and one not in news:
            news.append(one)
    return news


def _served(model: Any, providers: Mapping[str, str]) -> dict[str, Any]:
    """Which model and provider answered; the model's name may be all that is told."""
    if not (model and isinstance(model, str)) and len(providers) == 1:
        [model] = providers  # Azure's models do not say their name in a stream.
    served = {"model_provider": PROVIDER}
    if model and isinstance(model, str):
        served["model_name"] = model
        if model in providers:
            served["provider_name"] = providers[model]
    return served


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
