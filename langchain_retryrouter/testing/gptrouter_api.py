"""GPTRouter's protocol, seen from the server: completions in, bytes out.

Pure. Written after recorded exchanges with the public server; where it is odd, the real
one is. What it turns down by itself is in `_gptrouter_refusals.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from langchain_retryrouter.testing.delivery import (
    JSON_HEADERS,
    Reply,
    Stream,
    Whole,
    compact_json,
    reason,
    sse,
)
from langchain_retryrouter.testing.faults import ErrorEvent, Status, Step

if TYPE_CHECKING:
    from langchain_retryrouter.testing.requests import RecordedRequest
    from langchain_retryrouter.testing.responses import (
        Choice,
        Completion,
        Delta,
        FunctionCall,
        Usage,
    )


# Not here, hence dropped: tool_choice, parallel_tool_calls, seed, thinking, raw_event,
# reasoning_effort, and whatever is newer.
_PASSED_ON = {
    "frequency_penalty",
    "function_call",
    "functions",
    "logit_bias",
    "max_tokens",
    "messages",
    "n",
    "presence_penalty",
    "prompt",
    "response_format",
    "stop",
    "temperature",
    "tools",
    "top_p",
    "user",
}


def seen_by_model(request: RecordedRequest) -> RecordedRequest:
    """`request` with the parameters that reach the model; the hosted server's are all.

    Which ones the hosted server drops is not known. It takes more than the public one.
    """
    if request.gptrouter == "hosted":
        return request
    given = request.parameters
    passed_on = {
        name: _COERCIONS.get(name, _unchanged)(value)
        for name, value in given.items()
        if name in _PASSED_ON
    }
    if passed_on == given:  # by far the most frequent case
        return request
    entries: list[Mapping[str, Any]] = request.payload["data"]
    changed = [
        {**entry, "promptParams": passed_on} if entry is request.entry else entry
        for entry in entries
    ]
    body = json.dumps({**request.payload, "data": changed})
    return replace(request, body=body.encode())


def _unchanged(value: Any) -> Any:
    return value


def _number(value: Any) -> Any:
    """A number, for which the server takes a text too; null becomes 0."""
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        return int(number) if number.is_integer() else number
    return 0 if value is None else value


def _text_if_alone(value: Any) -> Any:
    """A list of one is that one."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


_COERCIONS: Mapping[str, Callable[[Any], Any]] = {
    "frequency_penalty": _number,
    "max_tokens": _number,
    "n": _number,
    "presence_penalty": _number,
    "stop": _text_if_alone,
    "temperature": _number,
    "top_p": _number,
}


_BODY_LIMIT = 1024 * 1024
_ROLES = {"system", "user", "assistant", "function", "tool"}
_RESPONSE_FORMATS = {
    "public": {"text", "json_object"},
    "hosted": {"text", "json_object", "json_schema"},
}

_NO_MESSAGES = [
    {"path": "/messages", "message": "Expected array"},
    {"path": "/messages", "message": "Expected required property"},
]
_UNKNOWN_RESPONSE_FORMAT = [
    {"path": "/response_format/type", "message": "Expected value of union"},
    {"path": "/response_format/type", "message": "Expected 'text'"},
    {"path": "/response_format/type", "message": "Expected 'json_object'"},
]


def unknown_path(_request: RecordedRequest) -> Step:
    """What is said to a path or a method that does not exist."""
    return Status(404)


def is_authorized(request: RecordedRequest, api_key: str) -> bool:
    """Whether `request` carries the key, as a secret or as a bearer token."""
    headers = request.headers
    return (
        api_key == headers.get("ws-secret")
        or headers.get("authorization") == f"Bearer {api_key}"
    )


def refusal(request: RecordedRequest) -> Step | None:
    """How `request` is turned down; None when it is as it should be."""
    if len(request.body) > _BODY_LIMIT:
        return Status(500, headers={"connection": "close"})
    if not request.headers.get("content-type", "").startswith("application/json"):
        return Status(500)
    if request.endpoint != "generate":
        return shape_refusal(request)
    if not _has_valid_shape(request):
        return Status(500)
    return _provider_refusal(request)


def _has_valid_shape(request: RecordedRequest) -> bool:
    entries = request.payload.get("data")
    return isinstance(entries, list) and all(
        _is_valid_entry(entry) for entry in entries
    )


def _is_valid_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not _is_number(entry.get("order")):
        return False
    parameters = entry.get("promptParams")
    if not isinstance(parameters, dict):
        return False
    if not isinstance(parameters.get("function_call", {}), dict):
        return False
    messages = parameters.get("messages", [])
    return isinstance(messages, list) and all(
        _is_valid_message(message) for message in messages
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (
        isinstance(value, str) and value.isdigit()
    )


def _is_valid_message(message: Any) -> bool:
    # The key `content` must be there, null is allowed.
    return (
        isinstance(message, dict)
        and message.get("role") in _ROLES
        and "content" in message
    )


def _provider_refusal(request: RecordedRequest) -> Step | None:
    """What is only found out after a stream has begun, hence comes inside of it."""
    if not request.payload["data"]:
        return ErrorEvent("No models available")
    parameters = request.parameters
    if "messages" not in parameters and "prompt" not in parameters:
        return ErrorEvent(compact_json(_NO_MESSAGES).decode())
    response_format = parameters.get("response_format") or {"type": "text"}
    if response_format.get("type") not in _RESPONSE_FORMATS[request.gptrouter]:
        return ErrorEvent(compact_json(_UNKNOWN_RESPONSE_FORMAT).decode())
    return None


_DIMENSIONS = 8
_BYTES_EACH = 4
_HALF = 2 ** (8 * _BYTES_EACH - 1)


def stub_embedding(text: str) -> list[float]:
    """The vector that a hosted `FaultyGateway` has for `text`: 8 numbers from -1 to 1.

    The same text has always the same vector, and another text another one.
    """
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    numbers = [
        int.from_bytes(digest[at : at + _BYTES_EACH])
        for at in range(0, _DIMENSIONS * _BYTES_EACH, _BYTES_EACH)
    ]
    return [number / _HALF - 1 for number in numbers]


def embedding_vectors(request: RecordedRequest) -> dict[str, Any]:
    """The body of the healthy answer: a vector for each text."""
    texts = request.parameters["input"]
    return {"choices": [{"embedding": stub_embedding(text)} for text in texts]}


def shape_refusal(request: RecordedRequest) -> Step | None:
    """How a request of the wrong shape is turned down; None if it is sound."""
    is_sound = _is_sound_v2 if request.endpoint == "embeddings-v2" else _is_sound
    return None if is_sound(request.payload) else Status(500)


def _is_sound(payload: Mapping[str, Any]) -> bool:
    entries = payload.get("data")
    return isinstance(entries, list) and bool(entries) and all(map(_is_entry, entries))


def _is_sound_v2(payload: Mapping[str, Any]) -> bool:
    return _has_texts(payload) and _is_text(payload.get("modelName"))


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("order"), int)
        and _is_text(entry.get("modelName"))
        and _is_text(entry.get("providerName"))
        and _has_texts(entry.get("promptParams"))
    )


def _has_texts(parameters: Any) -> bool:
    texts = parameters.get("input") if isinstance(parameters, Mapping) else None
    # As at OpenAI, an empty text is no text.
    return isinstance(texts, list) and bool(texts) and all(map(_is_text, texts))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


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
    body = embedding_vectors(request)
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
