"""GPTRouter's protocol, seen from the server.

Written after recorded exchanges with the public server (its snapshot of December 2023)
and its source; where this is strange, the real server is. What the newer hosted server
does is implied by its clients only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from langchain_retryrouter.testing import _exchange as wire
from langchain_retryrouter.testing._faults import ErrorEvent, Status

# The public server drops all others: tool_choice, parallel_tool_calls, seed, thinking,
# raw_event, reasoning_effort, and whatever is newer.
_PENALTIES = {"frequency_penalty", "presence_penalty"}
_NUMBERS = _PENALTIES | {"max_tokens", "n", "temperature", "top_p"}
_OTHERS = {"function_call", "functions", "logit_bias", "messages", "prompt", "stop"}
_PASSED_ON = _NUMBERS | _OTHERS | {"response_format", "tools", "user"}
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

_AZURE = "azure_chat_openai"
_COHERE = "cohere"
_COMPLETION_PROVIDERS = {"anthropic", "openai"}
"""Providers of the public server that are given a text and nothing else."""
_SPEAKERS = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: ", "system": ""}

_HEADERS = (("vary", "Origin"), *wire.JSON_HEADERS)
_STREAM_HEADERS = (
    ("vary", "Origin"),
    ("Content-Type", "text/event-stream; charset=utf-8"),
    ("Cache-Control", "no-cache,no-transform"),
    ("x-no-compression", "1"),
)
# Sent after errors too, so it does not mean success; the JSON event `end` does.
_LAST_FRAME = b"event: end\ndata: Stream closed\n\n"

_BODIES: dict[int, Mapping[str, Any]] = {
    401: {"message": "Unauthorized"},
    429: {"message": "You've reached a limit on preview generations"},
}
_LEAST_SERVER_ERROR = 500
# Errors of the server itself, before a provider is asked: one last frame, not two.
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

_DIMENSIONS, _BYTES_EACH = 8, 4
_HALF = 2 ** (8 * _BYTES_EACH - 1)


def stub_embedding(text: str) -> list[float]:
    """The vector that a hosted `FaultyGateway` has for `text`: 8 numbers from -1 to 1.

    The same text always has the same vector, and another text another one.
    """
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    starts = range(0, _DIMENSIONS * _BYTES_EACH, _BYTES_EACH)
    return [int.from_bytes(digest[i : i + _BYTES_EACH]) / _HALF - 1 for i in starts]


class GPTRouterExchange(wire.Exchange):
    """A request to GPTRouter, and the responses to it."""

    def unknown_path(self) -> wire.Step:
        return Status(404)

    def is_authorized(self, api_key: str) -> bool:
        # A bearer token would be a user's login.
        return self.request.headers.get("ws-secret") == api_key

    # What the server refuses.

    def refusal(self) -> wire.Step | None:
        """The opaque 500 for malformed requests; an error event for some others."""
        request = self.request
        if len(request.body) > _BODY_LIMIT:
            return Status(500, headers={"connection": "close"})
        if not request.headers.get("content-type", "").startswith("application/json"):
            return Status(500)
        payload = request.payload
        if request.endpoint == "embeddings-v2":
            is_valid = _has_texts(payload) and _is_text(payload.get("modelName"))
            return None if is_valid else Status(500)
        entries = payload.get("data")
        if not isinstance(entries, list):
            return Status(500)
        if request.endpoint == "embeddings":
            is_valid = bool(entries) and all(
                isinstance(entry, dict)
                and isinstance(entry.get("order"), int)
                and _is_text(entry.get("modelName"))
                and _is_text(entry.get("providerName"))
                and _has_texts(entry.get("promptParams"))
                for entry in entries
            )
            return None if is_valid else Status(500)
        return self._provider_refusal() if all(map(_is_entry, entries)) else Status(500)

    def _provider_refusal(self) -> wire.Step | None:
        """What is found out only after a stream has begun, hence sent inside of it."""
        request, provider = self.request, self._source(None)[0]
        if not request.payload["data"]:
            return ErrorEvent("No models available")
        if provider == _COHERE and self._is_public and request.streaming:
            return ErrorEvent("Stream not supported for provider cohere")
        parameters = request.parameters
        takes_prompt = provider in {*_COMPLETION_PROVIDERS, _COHERE}
        if "messages" not in parameters and not (
            takes_prompt and "prompt" in parameters
        ):
            return ErrorEvent(wire.compact_json(_NO_MESSAGES).decode())
        # The schema of the server says nothing about a format that is not an object.
        given = parameters.get("response_format")
        kind = given.get("type") if isinstance(given, dict) and given else "text"
        if kind not in _RESPONSE_FORMATS[request.gptrouter]:
            return ErrorEvent(wire.compact_json(_UNKNOWN_RESPONSE_FORMAT).decode())
        return None

    # What the model sees.

    @property
    def _is_public(self) -> bool:
        return self.request.gptrouter == "public"

    def seen_by_model(self) -> wire.RecordedRequest:
        """The request with the parameters that reach the model: all, if hosted."""
        request, given = self.request, self.request.parameters
        if not self._is_public:
            return request
        kept = {name: given[name] for name in _PASSED_ON & given.keys()}
        if self._source(None)[0] in _COMPLETION_PROVIDERS:
            # Blocks and results of tools are lost, as JavaScript writes them to a text.
            flat = ""
            for message in request.messages:
                if (role := message.get("role")) in _SPEAKERS:
                    content = message.get("content")
                    if isinstance(content, list):
                        content = ",".join("[object Object]" for _ in content)
                    flat += f"{_SPEAKERS[role]}{'null' if content is None else content}"
            prompt = given.get("prompt") or f"{flat}\n\nAssistant:"
            limit = {"max_tokens": given["max_tokens"]} if "max_tokens" in given else {}
            kept = {"prompt": prompt, **limit}
        passed_on = {name: _coerced(name, value) for name, value in kept.items()}
        if passed_on == given:  # by far the most frequent case
            return request
        entries = [
            {**entry, "promptParams": passed_on} if entry is request.entry else entry
            for entry in request.payload["data"]
        ]
        body = json.dumps({**request.payload, "data": entries})
        return replace(request, body=body.encode())

    # Healthy responses.

    def vectors(self) -> wire.Response | None:
        if self.request.endpoint not in wire.HOSTED_ONLY:
            return None
        texts = self.request.parameters["input"]
        choices = [{"embedding": stub_embedding(text)} for text in texts]
        return wire.Response(200, _HEADERS, wire.compact_json({"choices": choices}))

    def respond(self, answer: wire.ResolvedAnswer) -> wire.Response:
        if self.request.streaming:
            return self._stream(answer)
        provider, model, provider_id, model_id = self._source(answer.model)
        usage = sorted(answer.usage.as_dict().items()) if answer.usage else ()
        choice: dict[str, Any] = {
            "text": answer.whole_text,
            # The server makes a text of what its provider leaves out.
            "finish_reason": answer.finish_reason or "",
        }
        if self._is_chat(provider):
            choice["role"] = "assistant"
        # Without streaming the server drops tool calls, unless the test places them.
        call = answer.function_call
        if answer.unstreamed_calls == "function_call" and answer.tool_calls:
            call = answer.tool_calls[0]
        if call is not None:
            choice["function_call"] = call.as_dict()
        if answer.unstreamed_calls == "tool_calls":
            choice["tool_calls"] = [one.as_tool_dict() for one in answer.tool_calls]
        if answer.choice_citations:
            choice["citations"] = list(answer.choice_citations)
        result: dict[str, Any] = {
            "id": self._id(answer),
            "choices": [{"index": i, **choice} for i in range(answer.choices)],
            "model": model,
            "providerId": provider_id,
            "modelId": model_id,
            "meta": {"usage": dict(usage)} if usage else {},
        }
        if answer.citations:
            result["citations"] = list(answer.citations)
        return wire.Response(200, _HEADERS, wire.compact_json(result))

    def _stream(self, answer: wire.ResolvedAnswer) -> wire.Response:
        provider, model, provider_id, model_id = self._source(answer.model)
        deltas = list(answer.deltas())
        meta: dict[str, Any] = {"text": "".join(delta.text for delta in deltas)}

        def updates(*said: dict[str, Any]) -> tuple[bytes, ...]:
            frame = {"id": self._id(answer), "event": "update"}
            return tuple(wire.sse({**frame, "data": data}) for data in said)

        opening = closing = updates()
        if self._is_chat(provider):
            empty = {"text": "", "finish_reason": None}
            opening = updates(*[empty] * answer.choices)
            # No index of the choice, and a function call's deltas come through empty.
            events = [
                {**empty, "text": delta.text}
                | ({"tool_calls": [delta.tool_call]} if delta.tool_call else {})
                for delta in deltas
            ]
            if answer.finish_reason:
                last = {**empty, "finish_reason": answer.finish_reason}
                closing = updates(*[last] * answer.choices)
            if provider != _AZURE:
                meta["model"] = model
        else:
            # No finish reason comes out of a stream of a completion model.
            texts = [delta.text for delta in deltas if delta.text]
            events = [{"text": text, "model": model} for text in texts]
        if answer.usage and provider != "openai":
            meta["usage"] = answer.usage.as_dict()
        if provider == _AZURE:
            # Azure's results of the prompt's filter: a chunk without choices.
            first = wire.sse({"id": "", "event": "update", "data": {"text": ""}})
            opening = (first, *opening)
        source = {"modelId": model_id, "providerId": provider_id}
        closing += (
            wire.sse({"event": "meta", "data": meta}),
            wire.sse({"event": "generation_source", "data": source}),
            wire.sse({"event": "end", "data": "end"}),
        )
        return wire.Response(
            200,
            _STREAM_HEADERS,
            b"retry: 3000\n\n",
            is_stream=True,
            opening=opening,
            events=updates(*events),
            closing=closing,
            last_frame=_LAST_FRAME,
        )

    def _is_chat(self, provider: str) -> bool:
        if self._is_public:
            return provider not in {*_COMPLETION_PROVIDERS, _COHERE}
        return provider != "openai"

    def _id(self, answer: wire.ResolvedAnswer) -> str:
        return answer.id or f"chatcmpl-stub{self.request.number:06d}"

    def _source(self, answering: str | None) -> tuple[str, str, str, str]:
        """Provider and model that answer: their names, then their ids."""
        request = self.request
        model = answering or request.model or ""
        entries: list[Mapping[str, Any]] = request.payload.get("data", [])
        same = (entry for entry in entries if entry.get("modelName") == model)
        entry = next(same, request.entry)
        provider = str(entry.get("providerName") or entry.get("providerId") or "")
        provider_id = entry.get("providerId") or _id_of(provider)
        named_by_id = entry.get("modelId") if model == entry.get("modelId") else None
        model_id = named_by_id or _id_of(f"{provider}/{model}")
        return provider, model, str(provider_id), str(model_id)

    # Errors.

    def error(
        self, status: int, code: str | None = None, message: str | None = None
    ) -> wire.Response:
        """The response for this status; server errors share one opaque body."""
        request, body = self.request, dict[str, Any]()
        if message is not None or code is not None:
            body["message"] = message or wire.reason(status)
            body |= {"code": code} if code else {}
        elif status == HTTPStatus.NOT_FOUND:
            query = f"?{request.query}" if request.query else ""
            route = f"{request.method}:{request.path}{query}"
            body["message"] = f"Route {route} not found"
            body |= {"error": "Not Found", "statusCode": status}
        elif status >= _LEAST_SERVER_ERROR:
            body["error"] = "Something went wrong"
        else:
            body |= _BODIES.get(status, {"message": wire.reason(status)})
        return wire.Response(status, _HEADERS, wire.compact_json(body))

    def unstreamed_error(self, *_: object) -> wire.Response:
        """The opaque 500 that all errors become when nothing is streamed."""
        return self.error(HTTPStatus.INTERNAL_SERVER_ERROR)

    def error_event(
        self, status: int | None, code: str | None, message: str, after: int
    ) -> bytes:
        """The frames of a stream that fails.

        The status leads the message, as long as the provider has not begun to answer.
        """
        event: dict[str, Any] = {"event": "error", "message": message}
        if status is not None and not after:
            event["message"] = f"{status} {message}"
        if code is not None and not after:
            event["code"] = code
        own = status is None and _OWN_ERROR.fullmatch(message)
        return wire.sse(event) + _LAST_FRAME * (1 if own else 2)

    def error_in_ok(self, code: str | None, message: str) -> bytes:
        return wire.compact_json({"error": message} | ({"code": code} if code else {}))


def _id_of(name: str) -> str:
    url = f"gptrouter:{name}".encode(errors="backslashreplace").decode()
    return _RECORDED_IDS.get(name) or str(uuid5(NAMESPACE_URL, url))


def _coerced(name: str, value: Any) -> Any:
    """A parameter as the server's schema coerces it."""
    if name in _NUMBERS:
        if isinstance(value, str):
            try:
                number = float(value)
            except ValueError:
                return value
            return int(number) if number.is_integer() else number
        return 0 if value is None else value
    if name == "stop" and isinstance(value, list) and len(value) == 1:
        return value[0]
    return value


def _is_entry(entry: Any) -> bool:
    """Whether the schema of the server accepts this entry of `data`."""
    if not isinstance(entry, dict):
        return False
    order, parameters = entry.get("order"), entry.get("promptParams")
    is_number = isinstance(order, int | float) or str(order).isdigit()
    if not is_number or not isinstance(parameters, dict):
        return False
    messages = parameters.get("messages", [])
    return (
        isinstance(parameters.get("function_call", {}), dict)
        and isinstance(messages, list)
        # The key `content` must be there, null is allowed.
        and all(isinstance(m, dict) and "content" in m for m in messages)
        and all(message.get("role") in _ROLES for message in messages)
    )


def _has_texts(parameters: Any) -> bool:
    texts = parameters.get("input") if isinstance(parameters, Mapping) else None
    return isinstance(texts, list) and bool(texts) and all(map(_is_text, texts))


def _is_text(value: Any) -> bool:
    # As at OpenAI, an empty text does not count as one.
    return isinstance(value, str) and bool(value)
