"""LangChain's messages to the gateway's and back.

Pure: messages, and the answers and events that `wire` has read. This file does not know
sockets, retries, or the model object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from gpt_router.models import (
    Choice,
    ChunkedGenerationResponse,
    GenerationResponse,
)
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from langchain_retryrouter._gptrouter.content_blocks import PROVIDER
from langchain_retryrouter._gptrouter.history import build_messages
from langchain_retryrouter._gptrouter.tool_calls import (
    CallPiece,
    CallReader,
    parse_calls,
)
from langchain_retryrouter._gptrouter.usage import add_usage, clean_usage, read_usage
from langchain_retryrouter._gptrouter.wire import (
    GatewayEvent,
    GatewayResponse,
    read_reasoning,
    read_response,
)

_PLAIN: Final = frozenset({"text", "finish_reason"})

__all__ = [
    "ChunkReader",
    "add_usage",
    "assemble",
    "build_messages",
    "read_result",
    "take_apart",
]


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
    ledger = _without_none({"retryrouter": getattr(response, "retryrouter", None)})
    generations = [
        ChatGeneration(
            message=_read_choice(
                choice,
                {
                    **served,
                    **_cited(choice.citations, response.citations),
                    **ledger,
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
        **ledger,
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
