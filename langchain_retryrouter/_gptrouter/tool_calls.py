"""Calls of tools and functions in an answer: whole ones, and the pieces of a stream.

Pure. The forms are OpenAI's, which the gateway hands on: `tool_calls` is a list of
`{index, id, type, function: {name, arguments}}`, where `arguments` is a text of JSON
that a stream cuts anywhere; `function_call` is the one call of the time before tools.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from langchain_core.messages import InvalidToolCall, ToolCall
from langchain_core.output_parsers.openai_tools import (
    make_invalid_tool_call,
    parse_tool_call,
)

from langchain_retryrouter import _json

_NOTHING: Final = {
    "id": None,
    "type": "function",
    "function": {"name": "", "arguments": ""},
}

# --- form ---------------------------------------------------------------------------


def are_calls(calls: Any) -> bool:
    """Whether `calls` is a list of tool calls, whole or in pieces; None is none."""
    return calls is None or (isinstance(calls, list) and all(map(_is_call, calls)))


def is_function_call(call: Any) -> bool:
    """Whether `call` is the call of a function, whole or a piece; None is none."""
    return call is None or (
        isinstance(call, dict)
        and isinstance(call.get("name"), str | None)
        and isinstance(call.get("arguments"), str | None)
    )


def _is_call(call: Any) -> bool:
    return (
        isinstance(call, dict)
        and is_function_call(call.get("function") or {})
        and isinstance(call.get("index"), int | None)
        and isinstance(call.get("id"), str | None)
    )


# --- whole calls --------------------------------------------------------------------


def parse_calls(
    calls: Iterable[Mapping[str, Any]],
) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    """Whole calls as LangChain's, and those whose arguments are no JSON object."""
    parsed: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for call in calls:
        whole = _whole(call)
        if whole == _NOTHING:
            continue
        try:
            parsed.append(_parse(whole))
        except (ValueError, RecursionError) as error:
            invalid.append(make_invalid_tool_call(whole, str(error)))
    return parsed, invalid


def _parse(call: dict[str, Any]) -> ToolCall:
    read = cast("ToolCall", parse_tool_call(call))
    if not isinstance(read["args"], dict) or _json.is_deep(read["args"]):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        msg = (
            f"Function {name} arguments:\n\n{arguments}\n\nare no JSON object that can"
            " be read."
        )
        raise ValueError(msg)
    return read


def _whole(call: Mapping[str, Any]) -> dict[str, Any]:
    """`call` with all that LangChain's parser asks for."""
    function = call.get("function") or {}
    name, arguments = function.get("name") or "", function.get("arguments") or ""
    return {
        "id": call.get("id") or None,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


# --- pieces -------------------------------------------------------------------------


@dataclass(slots=True)
class CallPiece:
    """What one event adds to one call; None or "" where it adds nothing."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str | None = None


class CallReader:
    """Puts the pieces of one stream's tool calls in order.

    Gateways differ in how they say which call a piece belongs to, so this is found out
    here, and each call gets an index of its own. A piece belongs to the call with its
    index, unless it has another id; without an index to the call with its id; and with
    neither to the call before, unless it brings a name. What comes with a name where
    the arguments have begun is another call. Ids and names that are said again are not
    added again, nor is a whole call.
    """

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        """At the start of a stream."""
        self._calls: list[tuple[int | None, CallPiece]] = []

    def read(self, pieces: Iterable[Mapping[str, Any]] | None) -> list[CallPiece]:
        """What the tool calls of one event add."""
        return [new for piece in pieces or () if (new := self._read(piece)) is not None]

    def whole(self) -> list[dict[str, Any]]:
        """The calls so far, as an answer in one piece would have them."""
        return [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name or "", "arguments": call.arguments},
            }
            for _, call in self._calls
        ]

    def _read(self, piece: Mapping[str, Any]) -> CallPiece | None:
        told: int | None = piece.get("index")
        function = piece.get("function") or {}
        id_, name = piece.get("id") or None, function.get("name") or None
        arguments: str = function.get("arguments") or ""
        if not (id_ or name or arguments):
            return None
        call = self._find(told, id_, name)
        if call is None or (id_ is None and _is_another(call, name, arguments)):
            call = CallPiece(self._free_index(told), id_, name, arguments)
            self._calls.append((told, call))
            return CallPiece(call.index, id_, name, arguments)
        if name == call.name:
            if _is_json_object(arguments) and arguments == call.arguments:
                return None
            name = None
        new = CallPiece(call.index, None if call.id else id_, name, arguments)
        call.id = call.id or id_
        call.name = (call.name or "") + (name or "")
        call.arguments = (call.arguments or "") + arguments
        return new

    def _find(
        self, told: int | None, id_: str | None, name: str | None
    ) -> CallPiece | None:
        """The call that a piece belongs to, the latest if in doubt; None for a new."""
        for index, call in reversed(self._calls):
            if told is not None:
                if told == index and (None in {id_, call.id} or id_ == call.id):
                    return call
            elif id_ is not None:
                if id_ == call.id:
                    return call
            else:
                return None if name and call.name else call
        return None

    def _free_index(self, told: int | None) -> int:
        taken = {call.index for _, call in self._calls}
        if told is not None and told not in taken:
            return told
        return max(taken, default=-1) + 1


def _is_another(call: CallPiece, name: str | None, arguments: str) -> bool:
    """Whether a piece of this name, which says no id, begins a call behind `call`."""
    if not (name and call.name and call.arguments):
        return False
    return name != call.name or (
        arguments != call.arguments
        and _is_json_object(arguments)
        and _is_json_object(call.arguments)
    )


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(_json.read(text), dict)
    except ValueError:
        return False
