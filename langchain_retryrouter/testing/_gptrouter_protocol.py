"""GPTRouter's protocol, seen from the server: completions in, bytes out.

Pure. Written after recorded exchanges with the public server; where it is odd, the real
one is. What it turns down by itself is in `_gptrouter_refusals.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from . import _gptrouter_embeddings
from ._gptrouter_refusals import is_authorized, refusal, unknown_path
from ._gptrouter_upstream import seen_by_model
from ._reply import JSON_HEADERS, Reply, Stream, Whole, compact_json, reason, sse

if TYPE_CHECKING:
    from .completion import Choice, Completion, Delta, FunctionCall, Usage
    from .recorded_request import RecordedRequest

__all__ = [
    "answer",
    "error",
    "error_event",
    "error_in_ok",
    "is_authorized",
    "refusal",
    "seen_by_model",
    "unknown_path",
    "unstreamed_error",
    "vectors",
]

_HEADERS = (("vary", "Origin"), *JSON_HEADERS)
_STREAM_HEADERS = (
    ("vary", "Origin"),
    ("Content-Type", "text/event-stream; charset=utf-8"),
    ("Cache-Control", "no-cache,no-transform"),
    ("x-no-compression", "1"),
)
_PREAMBLE = b"retry: 3000\n\n"
_END = sse({"event": "end", "data": "end"})
# Sent after errors too, so it is no mark of success; `_END` is.
_FAREWELL = b"event: end\ndata: Stream closed\n\n"

_COMPLETION_PROVIDER = "openai"
_AZURE_PROVIDER = "azure_chat_openai"
_OPAQUE = {"error": "Something went wrong"}
_BODIES: dict[int, Mapping[str, Any]] = {
    401: {"message": "Unauthorized"},
    429: {"message": "You've reached a limit on preview generations"},
}
_LEAST_SERVER_ERROR = 500

# What the server says by itself, before a provider is asked: one farewell, not two.
_OWN_ERROR = re.compile(
    r"No models available|(Model|Provider) with name .* does not exist"
)

# The ids in the recordings. Anything else gets an id made from its name.
_RECORDED_IDS = {
    "chat_openai": "7dc8712a-63a4-4788-bf25-496fd2b2dc84",
    "openai": "88e9ed4a-baa5-4004-9c2b-f30d10063efe",
    "azure_chat_openai": "625886f6-a6dd-47bf-af73-4c7fadf8c197",
    "chat_openai/gpt-4-0613": "631b2d96-4f17-4544-a676-7a0f87372415",
    "chat_openai/gpt-3.5-turbo-1106": "75c4e88c-a295-4575-a02b-c31e9278dd28",
    "openai/gpt-3.5-turbo-instruct": "2cdfbb9e-7264-4c3b-a9c0-b07640d4322c",
    "azure_chat_openai/gpt-4": "4c1acfeb-72b1-401d-aaf1-8b22223c2346",
}


def vectors(request: RecordedRequest) -> Whole | None:
    """The healthy reply of an embeddings endpoint; None at all others."""
    if request.endpoint not in {"embeddings", "embeddings-v2"}:
        return None
    body = _gptrouter_embeddings.vectors(request)
    return Whole(200, _HEADERS, compact_json(body))


def answer(request: RecordedRequest, completion: Completion) -> Reply:
    """The healthy reply that says `completion`."""
    if request.streaming:
        return _stream(request, completion)
    return Whole(200, _HEADERS, compact_json(_result(request, completion)))


def error(
    request: RecordedRequest, status: int, code: str | None, message: str | None
) -> Whole:
    """The reply for this status; every server error has the same opaque body."""
    if message is None and code is None:
        body = _default_error(request, status)
    else:
        body = {"message": message or reason(status)} | ({"code": code} if code else {})
    return Whole(status, _HEADERS, compact_json(body))


def _default_error(request: RecordedRequest, status: int) -> Mapping[str, Any]:
    if status == HTTPStatus.NOT_FOUND:
        target = f"{request.path}?{request.query}" if request.query else request.path
        message = f"Route {request.method}:{target} not found"
        return {"message": message, "error": "Not Found", "statusCode": status}
    if status >= _LEAST_SERVER_ERROR:
        return _OPAQUE
    return _BODIES.get(status, {"message": reason(status)})


def unstreamed_error(
    request: RecordedRequest, _message: str, _status: int | None, _code: str | None
) -> Whole:
    """The opaque 500 that all errors become when nothing is streamed."""
    return error(request, HTTPStatus.INTERNAL_SERVER_ERROR, None, None)


def error_event(message: str, status: int | None, code: str | None) -> bytes:
    """The frames of a stream that fails; a provider's status leads the message."""
    event: dict[str, Any] = {"event": "error"}
    event["message"] = message if status is None else f"{status} {message}"
    if code is not None:
        event["code"] = code
    own = status is None and _OWN_ERROR.fullmatch(message)
    return sse(event) + _FAREWELL * (1 if own else 2)


def error_in_ok(message: str, code: str | None) -> bytes:
    """The body of an error that comes with status 200."""
    return compact_json({"error": message} | ({"code": code} if code else {}))


def _result(request: RecordedRequest, completion: Completion) -> dict[str, Any]:
    provider, model, provider_id, model_id = _source(request, completion)
    role = {} if provider == _COMPLETION_PROVIDER else {"role": "assistant"}
    return {
        "id": _id(request, completion),
        "choices": [
            _choice(i, choice) | role | _call(choice) | _citations(choice.citations)
            for i, choice in enumerate(completion.choices)
        ],
        "model": model,
        "providerId": provider_id,
        "modelId": model_id,
        "meta": {"usage": _whole_usage(completion.usage)} if completion.usage else {},
    } | _citations(completion.citations)


def _choice(index: int, choice: Choice) -> dict[str, Any]:
    return {
        "index": index,
        "text": choice.whole_text,
        "finish_reason": choice.finish_reason,
    }


def _call(choice: Choice) -> dict[str, Any]:
    # Tool calls are missing on purpose: without streaming the server drops them.
    call = choice.function_call
    if choice.unstreamed_calls == "function_call" and choice.tool_calls:
        call = choice.tool_calls[0]
    said: dict[str, Any] = {} if call is None else {"function_call": _function(call)}
    if choice.unstreamed_calls == "tool_calls":
        said["tool_calls"] = [
            {"id": one.id, "type": "function", "function": _function(one)}
            for one in choice.tool_calls
        ]
    return said


def _function(call: FunctionCall) -> dict[str, str]:
    return {"name": call.name, "arguments": call.whole_arguments}


def _citations(citations: tuple[Any, ...]) -> dict[str, list[Any]]:
    return {"citations": list(citations)} if citations else {}


def _stream(request: RecordedRequest, completion: Completion) -> Stream:
    provider, model, provider_id, model_id = _source(request, completion)
    deltas = list(completion.deltas())
    meta: dict[str, Any] = {"text": "".join(delta.text for delta in deltas)}
    if provider != _AZURE_PROVIDER:
        meta["model"] = model
    source = {"modelId": model_id, "providerId": provider_id}
    if provider == _COMPLETION_PROVIDER:
        # Neither finish reasons nor usage come out of a stream of a completion model.
        events = [{"text": delta.text, "model": model} for delta in deltas]
        opening: list[dict[str, Any]] = []
        finish: list[dict[str, Any]] = []
    else:
        events = [_update(delta) for delta in deltas]
        opening = [{"text": "", "finish_reason": None} for _ in completion.choices]
        reasons = [choice.finish_reason for choice in completion.choices]
        finish = [{"text": "", "finish_reason": reason} for reason in reasons if reason]
        if completion.usage:
            meta["usage"] = _stream_usage(completion.usage)
    stream_id = _id(request, completion)
    return Stream(
        headers=_STREAM_HEADERS,
        preamble=_PREAMBLE,
        opening=_updates(stream_id, opening),
        events=_updates(stream_id, events),
        closing=(
            *_updates(stream_id, finish),
            sse({"event": "meta", "data": meta}),
            sse({"event": "generation_source", "data": source}),
            _END,
        ),
        farewell=_FAREWELL,
    )


def _update(delta: Delta) -> dict[str, Any]:
    # No index of the choice, and a function call's deltas come through empty.
    update = {"text": delta.text, "finish_reason": None}
    return (
        update
        if delta.tool_call is None
        else {**update, "tool_calls": [delta.tool_call]}
    )


def _updates(stream_id: str, updates: list[dict[str, Any]]) -> tuple[bytes, ...]:
    return tuple(
        sse({"id": stream_id, "event": "update", "data": data}) for data in updates
    )


def _id(request: RecordedRequest, completion: Completion) -> str:
    return completion.id or f"chatcmpl-stub{request.number:06d}"


def _source(
    request: RecordedRequest, completion: Completion
) -> tuple[str, str, str, str]:
    """Provider and model that answer: their names, then their ids."""
    model = completion.model or request.model or ""
    entry = _entry_of(request, model)
    provider = str(entry.get("providerName") or entry.get("providerId") or "")
    provider_id = entry.get("providerId") or _id_of(provider)
    named_by_id = entry.get("modelId") if model == entry.get("modelId") else None
    return (
        provider,
        model,
        str(provider_id),
        str(named_by_id or _id_of(f"{provider}/{model}")),
    )


def _entry_of(request: RecordedRequest, model: str) -> Mapping[str, Any]:
    entries: list[Mapping[str, Any]] = request.payload.get("data", [])
    return next(
        (entry for entry in entries if entry.get("modelName") == model), request.entry
    )


def _id_of(name: str) -> str:
    return _RECORDED_IDS.get(name) or str(uuid5(NAMESPACE_URL, f"gptrouter:{name}"))


def _whole_usage(usage: Usage) -> dict[str, int]:
    return {
        "completion_tokens": usage.completion_tokens,
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.total_tokens,
    }


def _stream_usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
