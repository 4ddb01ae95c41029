"""Tokens that a call cost: the gateway's count, and LangChain's reading of it.

Pure. A count is a whole number that is not negative; it may come as a text of digits or
as a float. Anything else is no count, and is left out: the answer beside it was paid
for. The details are OpenAI's; what else a gateway counts is kept as it came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from langchain_core.messages.ai import (
    InputTokenDetails,
    OutputTokenDetails,
    UsageMetadata,
)

_MOST: Final = 2**63 - 1  # What is more is no count, and too much for many a reader.
_COUNTS: Final = ("prompt_tokens", "completion_tokens", "total_tokens")
_INPUT_DETAILS: Final = {
    "audio": "audio_tokens",
    "cache_read": "cached_tokens",
    "cache_creation": "cache_write_tokens",
}
_OUTPUT_DETAILS: Final = {"audio": "audio_tokens", "reasoning": "reasoning_tokens"}


def clean_usage(told: Any) -> dict[str, Any]:
    """The gateway's own count, flat or under `usage`, without what is no count."""
    nested = told.get("usage") if isinstance(told, dict) else None
    usage = nested if isinstance(nested, dict) else told
    if not isinstance(usage, dict):
        return {}
    counts = {name: read_count(usage.get(name)) for name in _COUNTS}
    return {
        name: value for name, value in {**usage, **counts}.items() if value is not None
    }


def read_usage(usage: Mapping[str, Any]) -> UsageMetadata | None:
    """A clean count as LangChain's; None if it has neither prompt nor completion."""
    prompt, completion, total = (read_count(usage.get(name)) for name in _COUNTS)
    if prompt is None and completion is None:
        return None
    prompt, completion = prompt or 0, completion or 0
    read = UsageMetadata(
        input_tokens=prompt,
        output_tokens=completion,
        total_tokens=total or prompt + completion,
    )
    of_input = _details(usage.get("prompt_tokens_details"), _INPUT_DETAILS)
    if of_input:
        read["input_token_details"] = cast("InputTokenDetails", of_input)
    of_output = _details(usage.get("completion_tokens_details"), _OUTPUT_DETAILS)
    if of_output:
        read["output_token_details"] = cast("OutputTokenDetails", of_output)
    return read


def read_count(value: Any) -> int | None:
    """`value` as a number of tokens; None if it is none."""
    if type(value) is int:  # As nearly all are; True is none.
        return value if 0 <= value <= _MOST else None
    if isinstance(value, str):
        # Of what `isdecimal` lets through `int` reads all, up to a length.
        value = int(value) if value.isdecimal() and len(value) < 20 else None  # noqa: PLR2004
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return read_count(value) if type(value) is int else None


def add_usage(outputs: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """The `llm_output` of several runs: token counts summed, the rest of the last."""
    combined: dict[str, Any] = {}
    total: dict[str, Any] = {}
    for output in outputs:
        if output is None:
            continue  # The run was answered from a cache, or streamed.
        combined |= {
            key: value for key, value in output.items() if key != "retryrouter"
        }
        total = _sum(total, output.get("token_usage") or {})
    return {**combined, "token_usage": total} if combined else {}


def _details(told: Any, names: Mapping[str, str]) -> dict[str, int]:
    if not isinstance(told, dict):
        return {}
    counts = {ours: read_count(told.get(theirs)) for ours, theirs in names.items()}
    return {name: count for name, count in counts.items() if count is not None}


def _sum(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers added up, at any depth; of what cannot be added, the last."""
    total = dict(left)
    for name, value in right.items():
        before = total.get(name)
        if isinstance(before, dict) and isinstance(value, dict):
            total[name] = _sum(before, value)
        elif _is_number(before) and _is_number(value):
            total[name] = before + value
        else:
            total[name] = value
    return total


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= _MOST
