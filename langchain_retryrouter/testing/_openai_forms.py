"""How one choice looks in a chat completion, and how in a completion.

Pure. The two endpoints differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .completion import Choice, Delta

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
