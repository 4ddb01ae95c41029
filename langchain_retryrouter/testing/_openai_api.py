"""OpenAI's completions and chat completions, and Azure's, seen from the server."""

from __future__ import annotations

import base64
import struct
from typing import Any

from langchain_retryrouter.testing import _exchange as wire
from langchain_retryrouter.testing._faults import Status
from langchain_retryrouter.testing._gptrouter_api import stub_embedding

_LEAST_SERVER_ERROR = 500
_SERVER_ERROR = "The server had an error while processing your request."
_INVALID = "invalid_request_error"
_OVERLOADED = "The engine is currently overloaded, please try again later."
_ERRORS: dict[int, tuple[str, str | None, str]] = {
    401: (_INVALID, "invalid_api_key", "Incorrect API key provided."),
    404: (_INVALID, "model_not_found", "The model does not exist."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached for requests."),
    503: ("server_error", None, _OVERLOADED),
}
"""By status: type, code and message."""
_AZURE_MESSAGES = {
    401: "Access denied due to invalid subscription key or wrong API endpoint.",
    404: "Resource not found",
    429: "Requests have exceeded the call rate limit of your current pricing tier.",
}

_LOGPROB = -0.25  # the same for every token, so that equal requests get equal bytes
_FIRST_CREATED = 1_700_000_000  # fixed, so that equal requests get equal bytes
_PROMPT_FILTER_RESULTS = {
    "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}]
}
# Azure's first event has no choices: a trap for clients that look at `choices[0]`.
_AZURE_OPENING = {"choices": [], "created": 0, "id": "", "model": "", "object": ""}


class OpenAIExchange(wire.Exchange):
    """A request to OpenAI's or Azure's API, and the responses to it."""

    def unknown_path(self) -> wire.Step:
        message = f"Invalid URL ({self.request.method} {self.request.path})"
        return Status(404, message=message, error_code="unknown_url")

    def is_authorized(self, api_key: str) -> bool:
        headers = self.request.headers
        if headers.get("authorization") == f"Bearer {api_key}":
            return True
        return bool(self.request.deployment) and headers.get("api-key") == api_key

    def refusal(self) -> wire.Step | None:
        request = self.request
        if request.deployment and "api-version=" not in request.query:
            # Azure answers 404, not 400, to a call that does not say its version.
            return Status(404)
        if not request.payload:
            message = "We could not parse the JSON body of your request."
        elif request.model is None:
            message = "you must provide a model parameter"
        elif request.endpoint == "chat" and not isinstance(
            request.payload.get("messages"), list
        ):
            message = "Missing required parameter: 'messages'."
        else:
            return None
        return Status(400, message=message)

    # Healthy responses.

    def vectors(self) -> wire.Response | None:
        if self.request.endpoint != "embeddings":
            return None
        given = self.request.payload
        asked, size = given.get("input", ""), str(given.get("dimensions"))
        length = (int(size) if size.isdecimal() else 0) or 8
        data = []
        for index, text in enumerate(asked if isinstance(asked, list) else [asked]):
            numbers = stub_embedding(str(text))
            vector: Any = [numbers[n % len(numbers)] for n in range(length)]
            if given.get("encoding_format") == "base64":
                vector = base64.b64encode(struct.pack(f"<{length}f", *vector)).decode()
            data.append({"object": "embedding", "index": index, "embedding": vector})
        usage = {"prompt_tokens": len(data), "total_tokens": len(data)}
        body = {"object": "list", "data": data, "model": given["model"], "usage": usage}
        return self._json(body)

    @property
    def _is_chat(self) -> bool:
        return self.request.endpoint == "chat"

    @property
    def _request_id(self) -> wire.Headers:
        """The header by which a provider's support finds a request."""
        name = "apim-request-id" if self.request.deployment else "x-request-id"
        return ((name, f"req_{self.request.number:06d}"),)

    def _json(self, body: Any, status: int = 200) -> wire.Response:
        headers = wire.JSON_HEADERS + self._request_id
        return wire.Response(status, headers, wire.compact_json(body))

    def respond(self, answer: wire.ResolvedAnswer) -> wire.Response:
        if self.request.streaming:
            return self._stream(answer)
        kind = "chat.completion" if self._is_chat else "text_completion"
        result = self._frame(answer, kind)
        text = answer.whole_text
        content: dict[str, Any] = {"text": text}
        if self._is_chat:
            has_calls = answer.tool_calls or answer.function_call
            said = None if has_calls and not text else text
            message: dict[str, Any] = {"role": "assistant", "content": said}
            message["refusal"] = None
            if answer.tool_calls:
                calls = [call.as_tool_dict() for call in answer.tool_calls]
                message["tool_calls"] = calls
            if answer.function_call:
                message["function_call"] = answer.function_call.as_dict()
            content = {"message": message}
        # All choices say the same.
        logprobs = self._logprobs([one for one in answer.deltas() if not one.choice])
        content |= {"logprobs": logprobs, "finish_reason": answer.finish_reason}
        result["choices"] = [{"index": i, **content} for i in range(answer.choices)]
        if answer.usage:
            result["usage"] = answer.usage.as_dict()
        if self.request.deployment:
            result |= _PROMPT_FILTER_RESULTS
        return self._json(result)

    def _stream(self, answer: wire.ResolvedAnswer) -> wire.Response:
        parameters, is_chat = self.request.parameters, self._is_chat
        kind = "chat.completion.chunk" if is_chat else "text_completion"
        frame = self._frame(answer, kind)
        options = parameters.get("stream_options") or {}
        with_usage = bool(options.get("include_usage"))
        no_usage_yet = {"usage": None} if with_usage else {}

        def event(index: int, **choice: Any) -> bytes:
            whole = {"index": index, "logprobs": None, "finish_reason": None, **choice}
            return wire.sse(frame | {"choices": [whole]} | no_usage_yet)

        indexes = range(answer.choices)
        opening: list[bytes] = []
        if self.request.deployment:
            opening.append(wire.sse(_AZURE_OPENING | _PROMPT_FILTER_RESULTS))
        if is_chat:
            start = {"role": "assistant", "content": "", "refusal": None}
            opening += [event(index, delta=start) for index in indexes]
        events = []
        for delta in answer.deltas():
            said: dict[str, Any] = {"content": delta.text}
            if delta.tool_call is not None:
                said = {"tool_calls": [delta.tool_call]}
            elif delta.function_call is not None:
                said = {"function_call": delta.function_call}
            content = {"delta": said} if is_chat else {"text": delta.text}
            logprobs = self._logprobs([delta])
            events.append(event(delta.choice, logprobs=logprobs, **content))
        closing: list[bytes] = []
        if (reason := answer.finish_reason) is not None:
            empty: dict[str, Any] = {"delta": {}} if is_chat else {"text": ""}
            closing = [event(i, finish_reason=reason, **empty) for i in indexes]
        if with_usage and answer.usage:
            usage = answer.usage.as_dict()
            closing.append(wire.sse(frame | {"choices": [], "usage": usage}))
        return wire.Response(
            200,
            (("content-type", "text/event-stream; charset=utf-8"), *self._request_id),
            is_stream=True,
            opening=tuple(opening),
            events=tuple(events),
            closing=tuple(closing),
            last_frame=b"data: [DONE]\n\n",
        )

    def _frame(self, answer: wire.ResolvedAnswer, kind: str) -> dict[str, Any]:
        prefix, number = "chatcmpl" if self._is_chat else "cmpl", self.request.number
        return {
            "id": answer.id or f"{prefix}-stub{number:06d}",
            "object": kind,
            "created": _FIRST_CREATED + number,
            "model": answer.model or self.request.model,
            "system_fingerprint": "fp_stub",
        }

    def _logprobs(self, deltas: list[wire.Delta]) -> dict[str, Any] | None:
        """What `logprobs` asks for, of these tokens."""
        asked = self.request.parameters.get("logprobs")
        tokens = [delta.text for delta in deltas]
        # A completion's 0 asks for the tokens without alternatives.
        if asked is None or (self._is_chat and not asked):
            return None
        if self._is_chat:
            content = [
                {
                    "token": token,
                    "logprob": _LOGPROB,
                    "bytes": list(token.encode()),
                    "top_logprobs": [],
                }
                for token in filter(None, tokens)
            ]
            return {"content": content, "refusal": None}
        return {
            "tokens": tokens,
            "token_logprobs": [_LOGPROB] * len(tokens),
            "top_logprobs": [{token: _LOGPROB} for token in tokens] if asked else None,
            "text_offset": [delta.offset for delta in deltas],
        }

    # Errors.

    def error(
        self, status: int, code: str | None = None, message: str | None = None
    ) -> wire.Response:
        """OpenAI's error body for this status, or Azure's, which has no type."""
        body = _error(status, code, message)
        if self.request.deployment:
            message = message or _AZURE_MESSAGES.get(status, _SERVER_ERROR)
            body = {"code": code or str(status), "message": message}
        return self._json({"error": body}, status)

    def error_event(
        self, status: int | None, code: str | None, message: str, _after: int
    ) -> bytes:
        """The event that ends a stream that fails; no `[DONE]` comes after it."""
        return wire.sse({"error": _error(status or _LEAST_SERVER_ERROR, code, message)})

    def error_in_ok(self, code: str | None, message: str) -> bytes:
        return wire.compact_json({"error": _error(_LEAST_SERVER_ERROR, code, message)})


def _error(status: int, code: str | None, message: str | None) -> dict[str, Any]:
    other = (_INVALID, None, "The request was turned down.")
    if status >= _LEAST_SERVER_ERROR:
        other = ("server_error", None, _SERVER_ERROR)
    type_, usual_code, usual_message = _ERRORS.get(status, other)
    return {
        "message": message or usual_message,
        "type": code if code == "insufficient_quota" else type_,
        "param": None,
        "code": code or usual_code,
    }
