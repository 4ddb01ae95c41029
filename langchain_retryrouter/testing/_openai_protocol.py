"""OpenAI's completions and chat completions, Azure's too, seen from the server.

Pure: completions in, bytes out. How a choice looks at either endpoint is in
`_openai_forms.py`; what goes wrong is in `_openai_errors.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._openai_errors import (
    error,
    error_event,
    error_in_ok,
    headers_of,
    is_authorized,
    refusal,
    unknown_path,
    unstreamed_error,
)
from ._openai_forms import CHAT, COMPLETIONS, Form
from ._reply import JSON_HEADERS, Reply, Stream, Whole, compact_json, sse

if TYPE_CHECKING:
    from .completion import Completion, Usage
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
