"""LangChain's messages to the gateway's, and its answers and events to LangChain's.

Pure: no sockets, no retries, no model object. `build_messages` writes a prompt;
`read_result` reads a whole answer, `ChunkReader` the events of a stream; `assemble` and
`take_apart` turn one into the other. `translate_content` gives LangChain's standard
content blocks of our messages.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

from gpt_router.models import ChunkedGenerationResponse, GenerationResponse
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    InvalidToolCall,
    SystemMessage,
    ToolCall,
    ToolMessage,
    ai,
    convert_to_openai_data_block,
    is_data_content_block,
)
from langchain_core.messages import content as types
from langchain_core.messages.block_translators import register_translator
from langchain_core.messages.tool import ToolCallChunk, tool_call_chunk
from langchain_core.messages.utils import convert_to_openai_messages
from langchain_core.output_parsers.openai_tools import (
    make_invalid_tool_call,
    parse_tool_call,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.utils.json import parse_partial_json

from langchain_retryrouter import _json
from langchain_retryrouter._gptrouter import protocol
from langchain_retryrouter._providers.finish_reasons import kind_of
from langchain_retryrouter.errors import UnsupportedOptionError
from langchain_retryrouter.failures import FailureKind

PROVIDER: Final = "gptrouter"
"""The `model_provider` of our messages."""

# --- prompts ------------------------------------------------------------------------

# Blocks that LangChain's own conversion puts into OpenAI's form.
_CONVERTED: Final = frozenset(
    {"image_url", "image", "file", "audio", "input_audio", "media", "json"}
)
_PLAIN_ROLES: Final = {HumanMessage: "user", SystemMessage: "system"}
_CALL_BLOCKS: Final = frozenset({"tool_use", "tool_call", "function_call"})
# LangChain's own keys of a text block, which no provider knows.
_MARKS: Final = frozenset({"id", "index", "annotations", "extras"})


def build_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """LangChain's messages as the gateway takes them.

    Every message has a `content` key, since the gateway answers 500 to one without. The
    role `developer`, which it does not know, becomes `system`.
    """
    sent: list[dict[str, Any]] = []
    for message in messages:
        content = message.content
        role = _PLAIN_ROLES.get(type(message))
        is_plain = message.name is None and not message.additional_kwargs
        if role and is_plain and isinstance(content, str):
            # As most messages are; LangChain's own conversion takes ten times as long.
            sent.append({"role": role, "content": content})
            continue
        try:
            sent += _build(message)
        except UnsupportedOptionError:
            raise
        except (TypeError, ValueError) as error:
            msg = f"a message of type {message.type!r} cannot be sent: {error}"
            raise UnsupportedOptionError(msg) from error
    return sent


def _build(message: BaseMessage) -> list[dict[str, Any]]:
    content = message.content
    if isinstance(message, AIMessage):
        return [_build_ai(message)]
    if isinstance(content, str):
        return [{**_frame(message), "content": content}]
    # Anthropic's results of tools become messages of their own, which have to follow
    # the call at once.
    results = [
        block
        for block in content
        if isinstance(block, dict) and block.get("type") == "tool_result"
    ]
    built: list[dict[str, Any]] = []
    for result in results:
        id_, said = result.get("tool_use_id"), result.get("content")
        built += build_messages([ToolMessage(said or "", tool_call_id=id_ or "")])
    blocks = [block for block in content if block not in results]
    if blocks or not results:
        frame = _frame(message)
        parts = [part for one in blocks for part in _parts(one, frame["role"])]
        built.append({**frame, "content": _as_content(parts)})
    return built


def _build_ai(message: AIMessage) -> dict[str, Any]:
    built = _frame(message)
    content = message.content
    blocks = [content] if isinstance(content, str) else content
    calls = [*built.pop("tool_calls", []), *_further_calls(message, blocks)]
    if calls:
        built["tool_calls"] = calls
    elif legacy := message.additional_kwargs.get("function_call"):
        built["function_call"] = legacy
    parts = [part for block in blocks for part in _answer_parts(block)]
    text = _as_content(parts, between="")
    # The gateway has no key for what a model refused or spoke.
    audio = message.additional_kwargs.get("audio")
    spoken = audio.get("transcript") if isinstance(audio, dict) else None
    text = text or message.additional_kwargs.get("refusal") or spoken or ""
    has_calls = calls or "function_call" in built
    return {**built, "content": text or (None if has_calls else "")}


def _frame(message: BaseMessage) -> dict[str, Any]:
    """A message without its content, in OpenAI's form."""
    empty = message.model_copy(update={"content": ""})
    frame: dict[str, Any] = convert_to_openai_messages(empty)
    if frame["role"] == "developer":
        frame["role"] = "system"
    frame.pop("name", None)
    frame.pop("refusal", None)
    name = message.name or message.additional_kwargs.get("name")
    if name is not None and not isinstance(message, ToolMessage):
        frame["name"] = name
    return frame


def _further_calls(
    message: AIMessage, blocks: Iterable[str | dict[Any, Any]]
) -> Iterator[dict[str, Any]]:
    """The calls that are not in `tool_calls`: invalid ones, and those in blocks."""
    known = {call["id"] for call in (*message.tool_calls, *message.invalid_tool_calls)}
    for invalid in message.invalid_tool_calls:
        yield _call(invalid["id"], invalid["name"], invalid["args"] or "")
    for block in blocks:
        if not isinstance(block, dict) or block.get("type") not in _CALL_BLOCKS:
            continue
        id_ = block.get("call_id") or block.get("id")
        if id_ is not None and id_ not in known:
            arguments = block.get("arguments", block.get("input", block.get("args")))
            if not isinstance(arguments, str):
                arguments = json.dumps(arguments or {}, ensure_ascii=False)
            yield _call(id_, block.get("name"), arguments)


def _call(id_: str | None, name: str | None, arguments: str | None) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "id": id_, "function": function}


def _answer_parts(block: str | dict[Any, Any]) -> list[dict[str, Any]]:
    """A block of a model's answer; nothing if only its provider understands it."""
    kind = "text" if isinstance(block, str) else block.get("type")
    # Bedrock's text has no type; `output_text` is that of OpenAI's Responses.
    if kind in {"text", "refusal", "output_text", None}:
        name = "refusal" if kind == "refusal" else "text"
        text = block if isinstance(block, str) else block.get(name)
        return [{"type": "text", "text": text}] if text else []
    if kind not in _CONVERTED:
        return []
    try:
        return _parts(block, "assistant")
    except UnsupportedOptionError:
        return []


def _parts(block: str | dict[Any, Any], role: str) -> list[dict[str, Any]]:
    """A block of a prompt as OpenAI's content parts."""
    if isinstance(block, str):
        return [{"type": "text", "text": block}]
    kind = block.get("type")
    if kind == "non_standard" and isinstance(block.get("value"), dict):
        return [block["value"]]  # The provider's own form, by the caller's word.
    if kind in {"text", "text-plain"} and isinstance(block.get("text"), str):
        own = {key: value for key, value in block.items() if key not in _MARKS}
        return [own if kind == "text" else {"type": "text", "text": block["text"]}]
    if kind is None and role == "tool":
        return [{"type": "text", "text": json.dumps(block, ensure_ascii=False)}]
    if kind not in _CONVERTED and not {"image", "guard_content"} & block.keys():
        raise _unsendable(block, role, "its form is not known")
    if isinstance(file := block.get("file"), dict) and file.get("file_id"):
        return [block]
    source, readable = block.get("source"), block
    try:
        if kind == "image_url" and isinstance(block.get("image_url"), str):
            readable = {**block, "image_url": {"url": block["image_url"]}}
        elif isinstance(source, dict) and source.get("type") == "url":
            # Anthropic's, whose other form LangChain knows.
            readable = {"type": "image_url", "image_url": {"url": source["url"]}}
        if is_data_content_block(readable):
            return [convert_to_openai_data_block(readable)]
        message: dict[str, Any] = convert_to_openai_messages(
            HumanMessage([readable]), text_format="block"
        )
        parts: list[dict[str, Any]] = message["content"]
    except (ValueError, KeyError, TypeError) as error:
        raise _unsendable(block, role, str(error)) from error
    return parts


def _unsendable(
    block: Mapping[Any, Any], role: str, reason: str
) -> UnsupportedOptionError:
    reason = reason.split("Full content block", maxsplit=1)[0].strip()
    return UnsupportedOptionError(
        f"a message of role {role!r} cannot carry a content block of type"
        f" {block.get('type')!r}: {reason}. To send a block of your provider's own"
        " as it is, put it into {'type': 'non_standard', 'value': ...}."
    )


def _as_content(
    parts: list[dict[str, Any]], between: str = "\n"
) -> str | list[dict[str, Any]]:
    """The parts; as a string if they are plain texts.

    The public gateway counts no tokens of a list, and completion models lose it.
    """
    if all(part.keys() == {"type", "text"} for part in parts):
        return between.join(str(part["text"]) for part in parts)
    return parts


# --- answers ------------------------------------------------------------------------

_TEXT_KEYS: Final = frozenset({"text", "finish_reason"})


def read_result(
    response: GenerationResponse, providers: Mapping[str, str | None]
) -> ChatResult:
    """A whole answer as LangChain's result.

    `providers` has the provider's name for each model that was asked, in order.
    """
    usage = response.meta.model_dump(exclude_none=True) if response.meta else {}
    attempt_log = getattr(response, "retryrouter", None)
    served = {
        "model_provider": PROVIDER,
        **_served_by(response.model, providers, attempt_log),
        **_without_none(provider_id=response.provider_id, model_id=response.model_id),
    }
    logged = _without_none(retryrouter=attempt_log)
    generations: list[ChatGeneration] = []
    for choice in response.choices:
        calls, invalid_calls = parse_calls(getattr(choice, "tool_calls", None) or ())
        extra = {
            "function_call": choice.function_call,
            "reasoning_content": getattr(choice, "reasoning_content", None),
            "refusal": getattr(choice, "refusal", None),
        }
        citations = _new(_new([], choice.citations), response.citations)
        cited = {"citations": citations} if citations else {}
        message = AIMessage(
            content=choice.text,
            additional_kwargs={name: value for name, value in extra.items() if value},
            tool_calls=calls,
            invalid_tool_calls=invalid_calls,
            response_metadata={**served, **cited, **logged},
        )
        if not generations:
            # The gateway counts the tokens of all choices together.
            message.usage_metadata = read_usage(usage)
        info = _without_none(finish_reason=choice.finish_reason)
        generations.append(ChatGeneration(message=message, generation_info=info))
    llm_output = {"token_usage": usage, "model": response.model, **served, **logged}
    llm_output |= _without_none(id=response.id)
    return ChatResult(generations=generations, llm_output=llm_output)


class ChunkReader:
    """Reads the events of one stream as LangChain's chunks.

    LangChain adds up chunks by joining their texts, which would double a name that is
    repeated, so what was said before is left out. The chunks of a stream add up to the
    message that the same answer in one piece is read as.
    """

    def __init__(self, providers: Mapping[str, str | None]) -> None:
        self._providers = providers
        self._calls, self._function = CallReader(), CallReader()
        self._citations: list[Any] = []
        self._said: dict[str, Any] = {}
        # What may come with any event, and is said with the last chunk.
        self._model: Any = None
        self._id: str | None = None
        self._provider: str | None = None

    def __call__(self, event: ChunkedGenerationResponse) -> ChatGenerationChunk | None:
        data = event.data
        self._id = self._id or getattr(event, "id", None)
        self._provider = self._provider or event.provider
        for citations in (data.get("citations"), getattr(event, "citations", None)):
            if citations:
                self._citations = _new(self._citations, citations)
        self._model = self._model or data.get("model")
        if event.event == "update":
            if data.keys() <= _TEXT_KEYS and not data.get("finish_reason"):
                # As nearly all events of a stream are.
                if not (text := data.get("text")):
                    return None
                return ChatGenerationChunk(message=AIMessageChunk(content=text))
            return self._read_update(data)
        if event.event == "meta":
            usage = protocol.clean_usage(data.get("usage"))
            served = {}
            if self._model or len(self._providers) == 1:
                served = _served_by(self._model, self._providers)
            news = self._news({**served, "token_usage": usage or None})
            counted = read_usage(usage) if "token_usage" in news else None
            return _chunk(news, usage_metadata=counted)
        if event.event == "generation_source":
            names = {"provider_id": "providerId", "model_id": "modelId"}
            ids = {ours: data.get(theirs) for ours, theirs in names.items()}
            texts = {name: id_ for name, id_ in ids.items() if isinstance(id_, str)}
            return _chunk(self._news(texts))
        if event.event == "end":
            attempt_log = getattr(event, "retryrouter", None)
            last = {
                "provider_name": self._provider,
                **_served_by(self._model, self._providers, attempt_log),
                "citations": self._citations or None,
                "id": self._id,
                "retryrouter": attempt_log,
            }
            return _chunk(self._news(last), chunk_position="last")
        return None

    def _read_update(self, data: Mapping[str, Any]) -> ChatGenerationChunk | None:
        text = data.get("text") or ""
        extra: dict[str, Any] = {}
        if reasoning := protocol.read_reasoning(data):
            extra["reasoning_content"] = reasoning
        if isinstance(refusal := data.get("refusal"), str):
            extra["refusal"] = refusal
        if function := data.get("function_call"):
            for piece in self._function.read([{"index": 0, "function": function}]):
                name = _without_none(name=piece["name"])
                extra["function_call"] = {**name, "arguments": piece["args"]}
        calls = self._calls.read(data.get("tool_calls"))
        finish = self._news({"finish_reason": data.get("finish_reason") or None})
        if not (text or extra or calls or finish):
            return None
        return _chunk({}, text, extra, calls, finish)

    def _news(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """What of `metadata` has not been said yet."""
        further = {n: v for n, v in metadata.items() if n not in self._said}
        news = _without_none(**further)
        self._said |= news
        return news


def _chunk(
    metadata: Mapping[str, Any],
    text: str = "",
    extra: dict[str, Any] | None = None,
    calls: Sequence[ToolCallChunk] = (),
    info: dict[str, Any] | None = None,
    **optional: Any,
) -> ChatGenerationChunk:
    # To pass an empty list takes longer than to leave it out.
    if extra:
        optional["additional_kwargs"] = extra
    if calls:
        optional["tool_call_chunks"] = calls
    metadata = {"model_provider": PROVIDER, **metadata}
    message = AIMessageChunk(content=text, response_metadata=metadata, **optional)
    return ChatGenerationChunk(message=message, generation_info=info or None)


def assemble(
    events: Iterable[ChunkedGenerationResponse], classify_event: protocol.EventReader
) -> protocol.GatewayResponse:
    """The answer that a whole stream of events adds up to, with one choice."""
    is_complete, calls, function = False, CallReader(), CallReader()
    texts, thoughts, refusals = list[str](), list[str](), list[str]()
    citations, found = list[Any](), dict[str, Any]()
    choice: dict[str, Any] = {"index": 0, "role": "assistant"}
    for event in events:
        is_complete = is_complete or classify_event(event).is_end
        data = event.data
        citations = _new(citations, data.get("citations"))
        citations = _new(citations, getattr(event, "citations", None))
        if event.event == "update":
            texts.append(data.get("text") or "")
            thoughts.append(protocol.read_reasoning(data) or "")
            refusals.append(data.get("refusal") or "")
            calls.read(data.get("tool_calls"))
            if data.get("function_call"):
                function.read([{"index": 0, "function": data["function_call"]}])
            reason = data.get("finish_reason") or None
            choice = {**_without_none(finish_reason=reason), **choice}
        # What is said first counts.
        news = {
            "id": getattr(event, "id", None),
            "model": data.get("model"),
            "meta": data.get("usage"),
            "providerId": data.get("providerId"),
            "modelId": data.get("modelId"),
        }
        found = {**_without_none(**news), **found}
    if not is_complete:
        raise protocol.interrupted()
    choice |= {
        "text": "".join(texts),
        "reasoning_content": "".join(thoughts),
        "refusal": "".join(refusals) or None,
        "tool_calls": calls.whole(),
        "function_call": next((one["function"] for one in function.whole()), None),
    }
    answer = {**found, "choices": [choice], "citations": citations}
    return protocol.read_response(answer)


def take_apart(
    answer: GenerationResponse,
) -> Generator[protocol.GatewayEvent, None, None]:
    """The events of a stream that would add up to a whole answer."""
    for choice in answer.choices[:1]:
        update = choice.model_dump(exclude={"index", "role"}, exclude_none=True)
        # An answer in one piece is finished, whether or not it says why.
        update["model"] = answer.model
        yield protocol.GatewayEvent(event="update", id=answer.id, data=update)
    meta: dict[str, Any] = {"model": answer.model}
    if answer.meta is not None:
        meta["usage"] = answer.meta.model_dump(exclude_none=True)
    yield protocol.GatewayEvent(event="meta", data=meta)
    source = {"providerId": answer.provider_id, "modelId": answer.model_id}
    yield protocol.GatewayEvent(event="generation_source", data=source)
    yield protocol.GatewayEvent(event="end", data={})


def _new(known: list[Any], further: Any) -> list[Any]:
    """`known` with what of `further`, if it is a list, is not in it, each once."""
    if not further or not isinstance(further, list):
        return known
    merged = [*known]
    for one in further:
        if one not in merged:
            merged.append(one)
    return merged


def _served_by(
    model: Any,
    providers: Mapping[str, str | None],
    attempt_log: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The names of the model and the provider that answered.

    Without a model in the answer (Azure's streams have none) it is the model that the
    last attempt asked first. A provider's dated name, such as `gpt-4o-2024-08-06`,
    belongs to the listed model that it begins with.
    """
    if not (model and isinstance(model, str)):
        attempts = (attempt_log or {}).get("attempts") or [{}]
        model = attempts[-1].get("route") or next(iter(providers), None)
    listed = [name for name in providers if str(model).startswith(name)]
    provider = providers[max(listed, key=len)] if listed else None
    if provider is None and len(set(providers.values())) == 1:
        provider = next(iter(providers.values()))
    return _without_none(model_name=model, provider_name=provider)


def _without_none(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


# --- tool calls ---------------------------------------------------------------------


def parse_calls(
    calls: Iterable[Mapping[str, Any]],
) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    """Whole calls as LangChain's, and those whose arguments are not a JSON object."""
    parsed: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for call in calls:
        function = call.get("function") or {}
        name, arguments = function.get("name") or "", function.get("arguments") or ""
        whole = _call(call.get("id") or None, name, arguments)
        if not (whole["id"] or name or arguments):
            continue
        try:
            tool_call = cast("ToolCall", parse_tool_call(whole))
        except (ValueError, RecursionError) as error:
            invalid.append(make_invalid_tool_call(whole, str(error)))
            continue
        if isinstance(tool_call["args"], dict) and not _json.is_deep(tool_call["args"]):
            parsed.append(tool_call)
        else:
            reason = (
                f"Function {name} arguments:\n\n{arguments}\n\nare not a JSON object"
            )
            invalid.append(make_invalid_tool_call(whole, f"{reason} that can be read."))
    return parsed, invalid


class CallReader:
    """Joins the pieces of one stream's tool calls.

    Gateways differ in how they say which call a piece belongs to, so it is found here,
    and each call gets an index of its own. A piece belongs to the call with its index,
    unless it has another id; without an index to the call with its id; without both to
    the last call, unless it has a name. A piece with a name after the first arguments
    is another call; one without a name never is, whatever its id. Repeated ids and
    names are not added again, nor is a whole call.
    """

    def __init__(self) -> None:
        # Each with the index that its pieces have.
        self._calls: list[tuple[int | None, ToolCallChunk]] = []

    def read(self, pieces: Iterable[Mapping[str, Any]] | None) -> list[ToolCallChunk]:
        """What the tool calls of one event add; None or "" for what is not new."""
        return [new for piece in pieces or () if (new := self._read(piece)) is not None]

    def whole(self) -> list[dict[str, Any]]:
        """The calls so far, as an answer in one piece would have them."""
        return [
            _call(call["id"], call["name"] or "", call["args"])
            for _, call in self._calls
        ]

    def check(self, finish_reason: str | None) -> None:
        """Raise if the arguments of a call were cut: LangChain would complete them."""
        for call in self.whole():
            _, invalid = parse_calls([call])
            completed = None
            with contextlib.suppress(ValueError, RecursionError):
                completed = parse_partial_json(call["function"]["arguments"])
            if not invalid or not isinstance(completed, dict):
                continue
            kind = kind_of(finish_reason) or FailureKind.MALFORMED
            name, error = invalid[0]["name"], invalid[0]["error"]
            msg = f"the arguments of {name} are not whole: {error}"
            raise protocol.GPT_ROUTER_ERRORS[kind](msg, code="invalid_tool_call")

    def _read(self, piece: Mapping[str, Any]) -> ToolCallChunk | None:
        index: int | None = piece.get("index")
        function = piece.get("function") or {}
        id_, name = piece.get("id") or None, function.get("name") or None
        arguments: str = function.get("arguments") or ""
        if not (id_ or name or arguments):
            return None
        call = self._find(index, id_, name)
        is_next = call is None
        if call and id_ is None and name and call["name"] and (args := call["args"]):
            # Without an id, another name or other whole arguments are another call's.
            is_next = name != call["name"] or (
                arguments != args
                and _is_json_object(arguments)
                and _is_json_object(args)
            )
        if call is None or is_next:
            taken = {known["index"] or 0 for _, known in self._calls}
            own = max(taken, default=-1) + 1
            if index is not None and index not in taken:
                own = index
            new = tool_call_chunk(name=name, args=arguments, id=id_, index=own)
            self._calls.append((index, new.copy()))
            return new
        if name == call["name"]:
            if _is_json_object(arguments) and arguments == call["args"]:
                return None
            name = None
        new_id = None if call["id"] else id_
        new = tool_call_chunk(name=name, args=arguments, id=new_id, index=call["index"])
        call["id"] = call["id"] or id_
        call["name"] = (call["name"] or "") + (name or "")
        call["args"] = (call["args"] or "") + arguments
        return new

    def _find(
        self, index: int | None, id_: str | None, name: str | None
    ) -> ToolCallChunk | None:
        """The call that a piece belongs to, the latest if in doubt; None if new."""
        for known, call in reversed(self._calls):
            if index is not None:
                if index == known and (None in {id_, call["id"]} or id_ == call["id"]):
                    return call
            elif id_ is not None:
                if id_ == call["id"]:
                    return call
            else:
                return None if name and call["name"] else call
        if name is None and id_ is not None:
            # Some servers make up another id for each piece.
            return self._find(index, None, None)
        return None


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(_json.read(text), dict)
    except ValueError:
        return False


# --- usage --------------------------------------------------------------------------

_DETAILS: Final = {
    "prompt_tokens_details": (
        "input_token_details",
        {
            "audio": "audio_tokens",
            "cache_read": "cached_tokens",
            "cache_creation": "cache_write_tokens",
        },
    ),
    "completion_tokens_details": (
        "output_token_details",
        {"audio": "audio_tokens", "reasoning": "reasoning_tokens"},
    ),
}


def read_usage(usage: Mapping[str, Any]) -> ai.UsageMetadata | None:
    """A clean count as LangChain's; None if it has neither prompt nor completion."""
    if usage.get("prompt_tokens") is usage.get("completion_tokens") is None:
        return None
    prompt = usage.get("prompt_tokens") or 0
    completion = usage.get("completion_tokens") or 0
    total = usage.get("total_tokens") or prompt + completion
    read = ai.UsageMetadata(
        input_tokens=prompt, output_tokens=completion, total_tokens=total
    )
    for key, (ours, names) in _DETAILS.items():
        if isinstance(given := usage.get(key), dict):
            counts = {
                name: protocol.read_count(given.get(k)) for name, k in names.items()
            }
            if counts := _without_none(**counts):
                details: Any = read
                details[ours] = counts
    return read


# --- content blocks -----------------------------------------------------------------

_CITATION_FIELDS: Final = {
    **dict.fromkeys(("url", "title", "cited_text"), str),
    **dict.fromkeys(("start_index", "end_index"), int),
}


def translate_content(message: AIMessage) -> list[types.ContentBlock]:
    """The blocks of a whole message."""
    calls = map(dict, (*message.tool_calls, *message.invalid_tool_calls))
    return cast("list[types.ContentBlock]", [*_text_blocks(message), *calls])


def translate_content_chunk(message: AIMessageChunk) -> list[types.ContentBlock]:
    """The blocks of a chunk, or of the sum of a stream's chunks."""
    is_sum = message.content or message.tool_call_chunks or message.additional_kwargs
    if is_sum and message.chunk_position == "last":
        return translate_content(message)
    blocks = [
        {**block, "index": "lc_txt_0" if block["type"] == "text" else "lc_rs_0"}
        for block in _text_blocks(message)
    ]
    blocks += [
        {**call, "type": "tool_call_chunk", "index": f"lc_tc_{call['index']}"}
        for call in message.tool_call_chunks
    ]
    return cast("list[types.ContentBlock]", blocks)


def _text_blocks(message: AIMessage) -> list[dict[str, Any]]:
    if not isinstance(message.content, str):  # As our answers never have it.
        raise NotImplementedError  # LangChain then reads it itself.
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
    # OpenAI nests a citation under its type's name.
    nested = citation.get(str(citation.get("type")))
    source = nested if isinstance(nested, dict) else citation
    fields = {key: value for key, value in source.items() if key != "type"}
    known = {
        name: fields[name]
        for name, kind in _CITATION_FIELDS.items()
        if isinstance(fields.get(name), kind)
    }
    if not known:
        return {"type": "non_standard_annotation", "value": citation}
    extras = {key: value for key, value in fields.items() if key not in known}
    return {"type": "citation", **known, **({"extras": extras} if extras else {})}


register_translator(PROVIDER, translate_content, translate_content_chunk)
