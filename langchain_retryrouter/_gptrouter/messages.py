"""LangChain's messages to the gateway's and back.

Pure: messages, and the answers and events that `wire` has read. This file does not know
sockets, retries, or the model object.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gpt_router.models import ChunkedGenerationResponse, GenerationResponse
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, tool_call_chunk
from langchain_core.messages.utils import convert_to_openai_messages
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from langchain_retryrouter._gptrouter.wire import GatewayResponse, read_response

_PROVIDER = "gptrouter"


def build_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """LangChain's messages as the gateway takes them.

    Every message has a `content` key, since the gateway answers 500 to one without; the
    role `developer`, which it does not know, is `system`.
    """
    dicts = convert_to_openai_messages(list(messages))
    return [
        _fit_message(message, as_dict)
        for message, as_dict in zip(messages, dicts, strict=True)
    ]


def _fit_message(message: BaseMessage, as_dict: dict[str, Any]) -> dict[str, Any]:
    if as_dict["role"] == "developer":
        as_dict["role"] = "system"
    if isinstance(message, AIMessage):
        legacy = message.additional_kwargs.get("function_call")
        if legacy is not None:
            as_dict["function_call"] = legacy
        if (legacy or "tool_calls" in as_dict) and not as_dict.get("content"):
            as_dict["content"] = None
    as_dict.setdefault("content", None)
    return as_dict


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
            message=AIMessage(
                content=choice.text,
                usage_metadata=_usage(usage) if index == 0 else None,
                response_metadata={**served, **ledger},
            ),
            generation_info={"finish_reason": choice.finish_reason},
        )
        for index, choice in enumerate(response.choices)
    ]
    llm_output = {
        "token_usage": usage,
        "model": response.model,
        **served,
        **_without_none({"id": response.id}),
        **ledger,
    }
    return ChatResult(generations=generations, llm_output=llm_output)


def read_chunk(
    event: ChunkedGenerationResponse, providers: Mapping[str, str]
) -> ChatGenerationChunk | None:
    """What one event adds to the answer; None if nothing."""
    if event.event == "update":
        return _read_update(event.data)
    if event.event == "meta":
        usage = event.data.get("usage")
        message = AIMessageChunk(
            content="",
            usage_metadata=_usage(usage) if isinstance(usage, dict) else None,
            response_metadata=_served(event.data.get("model"), providers),
        )
        return ChatGenerationChunk(message=message)
    if event.event == "generation_source":
        source = {
            "provider_id": event.data.get("providerId"),
            "model_id": event.data.get("modelId"),
        }
        return _metadata_chunk(_without_none(source))
    if event.event == "end":
        ledger = {"retryrouter": getattr(event, "retryrouter", None)}
        chunk = _metadata_chunk(_without_none(ledger))
        chunk.message.chunk_position = "last"  # type: ignore[attr-defined]
        return chunk
    return None


def assemble(events: Iterable[ChunkedGenerationResponse]) -> GatewayResponse:
    """The answer that a whole stream of events adds up to, with one choice."""
    texts: list[str] = []
    found: dict[str, Any] = {}
    choice: dict[str, Any] = {"index": 0, "role": "assistant"}
    for event in events:
        data = event.data
        if event.event == "update":
            texts.append(data.get("text") or "")
            choice["finish_reason"] = data.get("finish_reason")
            found.setdefault("id", getattr(event, "id", None) or "")
        elif event.event == "meta":
            found |= {"model": data.get("model") or "", "meta": data.get("usage")}
        elif event.event == "generation_source":
            found |= {
                "provider_id": data.get("providerId"),
                "model_id": data.get("modelId"),
            }
    choice["text"] = "".join(texts)
    return read_response({**found, "choices": [choice]})


def add_usage(outputs: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """The `llm_output` of several runs: token counts summed, the rest of the last."""
    combined: dict[str, Any] = {}
    total: dict[str, int] = {}
    for output in outputs:
        if output is None:
            continue  # The run was answered from a cache, or streamed.
        combined |= {
            key: value for key, value in output.items() if key != "retryrouter"
        }
        for name, count in (output.get("token_usage") or {}).items():
            total[name] = total.get(name, 0) + count
    return {**combined, "token_usage": total} if combined else {}


def _read_update(data: Mapping[str, Any]) -> ChatGenerationChunk | None:
    text = data.get("text") or ""
    calls = [_read_call_chunk(call) for call in data.get("tool_calls") or ()]
    finish_reason = data.get("finish_reason")
    if not text and not calls and finish_reason is None:
        return None
    # An empty list is costlier to build than not to pass.
    message = (
        AIMessageChunk(content=text, tool_call_chunks=calls)
        if calls
        else AIMessageChunk(content=text)
    )
    info = None if finish_reason is None else {"finish_reason": finish_reason}
    return ChatGenerationChunk(message=message, generation_info=info)


def _read_call_chunk(call: Mapping[str, Any]) -> ToolCallChunk:
    function = call.get("function") or {}
    return tool_call_chunk(
        name=function.get("name"),
        args=function.get("arguments"),
        id=call.get("id"),
        index=call.get("index"),
    )


def _metadata_chunk(metadata: dict[str, Any]) -> ChatGenerationChunk:
    return ChatGenerationChunk(
        message=AIMessageChunk(content="", response_metadata=metadata)
    )


def _served(model: Any, providers: Mapping[str, str]) -> dict[str, Any]:
    """Which model and provider answered; the model's name may be all that is told."""
    served = {"model_provider": _PROVIDER}
    if model and isinstance(model, str):
        served["model_name"] = model
        if model in providers:
            served["provider_name"] = providers[model]
    return served


def _usage(usage: Mapping[str, Any]) -> UsageMetadata | None:
    prompt = _count(usage, "prompt_tokens")
    completion = _count(usage, "completion_tokens")
    if prompt is None and completion is None:
        return None
    prompt, completion = prompt or 0, completion or 0
    return UsageMetadata(
        input_tokens=prompt,
        output_tokens=completion,
        total_tokens=_count(usage, "total_tokens") or prompt + completion,
    )


def _count(usage: Mapping[str, Any], name: str) -> int | None:
    count = usage.get(name)
    return count if isinstance(count, int) else None


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
