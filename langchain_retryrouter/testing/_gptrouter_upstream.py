"""What GPTRouter passes on to the model behind it.

Pure. Found on the real public server, whose model was made to repeat its request: what
the server does not know it drops without a word, and it changes some types on the way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .recorded_request import RecordedRequest

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
