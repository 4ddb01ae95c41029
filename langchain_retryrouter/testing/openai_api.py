"""OpenAI's completions and chat completions, Azure's too, seen from the server.

Pure: completions in, bytes out. How a choice looks at either endpoint is in
`_openai_forms.py`; what goes wrong is in `_openai_errors.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from langchain_retryrouter.testing.delivery import (
    JSON_HEADERS,
    Pairs,
    Reply,
    Stream,
    Whole,
    compact_json,
    sse,
)
from langchain_retryrouter.testing.faults import Status, Step

if TYPE_CHECKING:
    from langchain_retryrouter.testing.requests import RecordedRequest
    from langchain_retryrouter.testing.responses import Choice, Completion, Delta, Usage


@dataclass(frozen=True, slots=True)
class _Kind:
    type: str
    code: str | None
    message: str


_SERVER_ERROR = _Kind(
    "server_error", None, "The server had an error while processing your request."
)
_OTHER_ERROR = _Kind("invalid_request_error", None, "The request was turned down.")
_KINDS: dict[int, _Kind] = {
    401: _Kind(
        "invalid_request_error", "invalid_api_key", "Incorrect API key provided."
    ),
    404: _Kind("invalid_request_error", "model_not_found", "The model does not exist."),
    429: _Kind("requests", "rate_limit_exceeded", "Rate limit reached for requests."),
    500: _SERVER_ERROR,
    503: _Kind(
        "server_error",
        None,
        "The engine is currently overloaded, please try again later.",
    ),
}
_AZURE_KINDS: dict[int, _Kind] = {
    401: _Kind(
        "",
        "401",
        "Access denied due to invalid subscription key or wrong API endpoint.",
    ),
    404: _Kind("", "404", "Resource not found"),
    429: _Kind(
        "",
        "429",
        "Requests have exceeded the call rate limit of your current pricing tier.",
    ),
}
_TYPES_BY_CODE = {"insufficient_quota": "insufficient_quota"}
_LEAST_SERVER_ERROR = 500


def headers_of(request: RecordedRequest) -> Pairs:
    """The header fields by which a provider's support finds a request."""
    name = "apim-request-id" if request.deployment else "x-request-id"
    return ((name, f"req_{request.number:06d}"),)


def error(
    request: RecordedRequest, status: int, code: str | None, message: str | None
) -> Whole:
    """The reply for this status: OpenAI's body, or Azure's, which has no type."""
    body = (
        _azure_error(status, code, message)
        if request.deployment
        else _error(status, code, message)
    )
    return Whole(
        status, JSON_HEADERS + headers_of(request), compact_json({"error": body})
    )


def unstreamed_error(
    request: RecordedRequest, message: str, status: int | None, code: str | None
) -> Whole:
    """The error as a status, which is where it belongs when nothing is streamed."""
    return error(request, status or _LEAST_SERVER_ERROR, code, message)


def error_event(message: str, status: int | None, code: str | None) -> bytes:
    """The event that ends a stream that fails; no `[DONE]` comes after it."""
    return sse({"error": _error(status or _LEAST_SERVER_ERROR, code, message)})


def error_in_ok(message: str, code: str | None) -> bytes:
    """The body of an error that comes with status 200."""
    return compact_json({"error": _error(_LEAST_SERVER_ERROR, code, message)})


def _error(status: int, code: str | None, message: str | None) -> dict[str, Any]:
    kind = _KINDS.get(
        status, _SERVER_ERROR if status >= _LEAST_SERVER_ERROR else _OTHER_ERROR
    )
    return {
        "message": message or kind.message,
        "type": _TYPES_BY_CODE.get(code or "", kind.type),
        "param": None,
        "code": code or kind.code,
    }


def _azure_error(status: int, code: str | None, message: str | None) -> dict[str, Any]:
    kind = _AZURE_KINDS.get(status, _Kind("", str(status), _SERVER_ERROR.message))
    return {"code": code or kind.code, "message": message or kind.message}


def unknown_path(request: RecordedRequest) -> Step:
    """What is said to a path or a method that does not exist."""
    return Status(
        404,
        message=f"Invalid URL ({request.method} {request.path})",
        error_code="unknown_url",
    )


def is_authorized(request: RecordedRequest, api_key: str) -> bool:
    """Whether `request` carries the key; Azure has a header of its own for it."""
    headers = request.headers
    if headers.get("authorization") == f"Bearer {api_key}":
        return True
    return request.deployment is not None and headers.get("api-key") == api_key


def refusal(request: RecordedRequest) -> Step | None:
    """How `request` is turned down; None when it is as it should be."""
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


_LOGPROB = -0.25  # the same for every token, so that equal requests get equal bytes


@dataclass(frozen=True, slots=True)
class Form:
    """One endpoint's way to put choices. `logprobs` is the parameter of the request."""

    id_prefix: str
    result_kind: str
    event_kind: str
    choice: Callable[[int, Choice, object], dict[str, Any]]
    opening: Callable[[int], Iterable[dict[str, Any]]]
    """The events of a choice before its first content."""
    event: Callable[[Delta, object], dict[str, Any]]
    finish: Callable[[int, str], dict[str, Any]]


def _chat_choice(index: int, choice: Choice, logprobs: object) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": choice.whole_text,
        "refusal": None,
    }
    if choice.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": _function(call.name, call.whole_arguments),
            }
            for call in choice.tool_calls
        ]
    if call := choice.function_call:
        message["function_call"] = _function(call.name, call.whole_arguments)
    if not choice.whole_text and (choice.tool_calls or choice.function_call):
        message["content"] = None
    return {
        "index": index,
        "message": message,
        "logprobs": _chat_logprobs(choice.pieces, logprobs),
        "finish_reason": choice.finish_reason,
    }


def _function(name: str, arguments: str) -> dict[str, str]:
    return {"name": name, "arguments": arguments}


def _chat_opening(index: int) -> list[dict[str, Any]]:
    delta = {"role": "assistant", "content": "", "refusal": None}
    return [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]


def _chat_event(delta: Delta, logprobs: object) -> dict[str, Any]:
    content: dict[str, Any]
    if delta.tool_call is not None:
        content = {"tool_calls": [delta.tool_call]}
    elif delta.function_call is not None:
        content = {"function_call": delta.function_call}
    else:
        content = {"content": delta.text}
    tokens = (delta.text,) if delta.text else ()
    return {
        "index": delta.choice,
        "delta": content,
        "logprobs": _chat_logprobs(tokens, logprobs),
        "finish_reason": None,
    }


def _chat_finish(index: int, reason: str) -> dict[str, Any]:
    return {"index": index, "delta": {}, "logprobs": None, "finish_reason": reason}


def _chat_logprobs(tokens: Iterable[str], asked: object) -> dict[str, Any] | None:
    if not asked:
        return None
    content = [
        {
            "token": token,
            "logprob": _LOGPROB,
            "bytes": list(token.encode()),
            "top_logprobs": [],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _text_choice(index: int, choice: Choice, logprobs: object) -> dict[str, Any]:
    deltas = list(choice.deltas(index))
    return {
        "text": choice.whole_text,
        "index": index,
        "logprobs": _text_logprobs(deltas, logprobs),
        "finish_reason": choice.finish_reason,
    }


def _text_opening(_index: int) -> tuple[()]:
    return ()


def _text_event(delta: Delta, logprobs: object) -> dict[str, Any]:
    return {
        "text": delta.text,
        "index": delta.choice,
        "logprobs": _text_logprobs([delta], logprobs),
        "finish_reason": None,
    }


def _text_finish(index: int, reason: str) -> dict[str, Any]:
    return {"text": "", "index": index, "logprobs": None, "finish_reason": reason}


def _text_logprobs(deltas: list[Delta], asked: object) -> dict[str, Any] | None:
    # Here 0 asks for the tokens without alternatives; only null asks for nothing.
    if asked is None:
        return None
    tokens = [delta.text for delta in deltas]
    return {
        "tokens": tokens,
        "token_logprobs": [_LOGPROB] * len(tokens),
        "top_logprobs": [{token: _LOGPROB} for token in tokens] if asked else None,
        "text_offset": [delta.offset for delta in deltas],
    }


CHAT: Final = Form(
    id_prefix="chatcmpl",
    result_kind="chat.completion",
    event_kind="chat.completion.chunk",
    choice=_chat_choice,
    opening=_chat_opening,
    event=_chat_event,
    finish=_chat_finish,
)
COMPLETIONS: Final = Form(
    id_prefix="cmpl",
    result_kind="text_completion",
    event_kind="text_completion",
    choice=_text_choice,
    opening=_text_opening,
    event=_text_event,
    finish=_text_finish,
)


_STREAM_HEADERS = (("content-type", "text/event-stream; charset=utf-8"),)
_DONE = b"data: [DONE]\n\n"
_FIRST_CREATED = 1_700_000_000  # fixed, so that equal requests get equal bytes
_PROMPT_FILTER_RESULTS = {
    "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}]
}
# Azure's first event has no choices: a trap for clients that look at `choices[0]`.
_AZURE_OPENING = {"choices": [], "created": 0, "id": "", "model": "", "object": ""}


def vectors(_request: RecordedRequest) -> None:
    """None: OpenAI's embeddings are not served."""


def answer(request: RecordedRequest, completion: Completion) -> Reply:
    """The healthy reply that says `completion`."""
    form = CHAT if request.endpoint == "chat" else COMPLETIONS
    if request.streaming:
        return _stream(request, completion, form)
    return Whole(
        200,
        JSON_HEADERS + headers_of(request),
        compact_json(_result(request, completion, form)),
    )


def seen_by_model(request: RecordedRequest) -> RecordedRequest:
    """`request` itself: nothing stands between it and the model."""
    return request


def _result(
    request: RecordedRequest, completion: Completion, form: Form
) -> dict[str, Any]:
    result = _frame(request, completion, form.id_prefix, form.result_kind)
    result["choices"] = [
        form.choice(index, choice, request.parameters.get("logprobs"))
        for index, choice in enumerate(completion.choices)
    ]
    if completion.usage:
        result["usage"] = _usage(completion.usage)
    if request.deployment:
        result |= _PROMPT_FILTER_RESULTS
    return result


def _stream(request: RecordedRequest, completion: Completion, form: Form) -> Stream:
    frame = _frame(request, completion, form.id_prefix, form.event_kind)
    options = request.parameters.get("stream_options") or {}
    with_usage = bool(options.get("include_usage"))
    no_usage_yet = {"usage": None} if with_usage else {}

    def event(choice: dict[str, Any]) -> bytes:
        return sse(frame | {"choices": [choice]} | no_usage_yet)

    logprobs = request.parameters.get("logprobs")
    opening = [
        event(start)
        for index in range(len(completion.choices))
        for start in form.opening(index)
    ]
    if request.deployment:
        opening.insert(0, sse(_AZURE_OPENING | _PROMPT_FILTER_RESULTS))
    closing = [
        event(form.finish(index, choice.finish_reason))
        for index, choice in enumerate(completion.choices)
        if choice.finish_reason is not None
    ]
    if with_usage and completion.usage:
        closing.append(sse(frame | {"choices": [], "usage": _usage(completion.usage)}))
    return Stream(
        headers=_STREAM_HEADERS + headers_of(request),
        opening=tuple(opening),
        events=tuple(
            event(form.event(delta, logprobs)) for delta in completion.deltas()
        ),
        closing=tuple(closing),
        farewell=_DONE,
    )


def _frame(
    request: RecordedRequest, completion: Completion, id_prefix: str, kind: str
) -> dict[str, Any]:
    return {
        "id": completion.id or f"{id_prefix}-stub{request.number:06d}",
        "object": kind,
        "created": _FIRST_CREATED + request.number,
        "model": completion.model or request.model,
        "system_fingerprint": "fp_stub",
    }


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
