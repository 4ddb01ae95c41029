"""A model that follows rules: it calls tools, fills schemas, and says what it was told.

Pure. How a schema is filled is in `_schema_values.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from ._prompt_words import PromptWords, positions
from ._schema_values import value_for
from .completion import (
    Choice,
    Completion,
    FunctionCall,
    ToolCall,
    choices_for_each_prompt,
    completion_of,
    cut_at_stop,
    messages_of,
    prompts_of,
    split_words,
)

if TYPE_CHECKING:
    from .recorded_request import RecordedRequest

_RESULT_ROLES = {"tool", "function"}
_WORD = re.compile(r"[^\W\d_]{4,}")
# Words of four letters or more that say nothing about what a tool is for.
_EMPTY_WORDS = frozenset(
    _WORD.findall(
        "about does from have here into tell that them then there this they tool uses "
        "using value what when which with your"
    )
)
_FORCES_ANY = {"required", "any"}


@dataclass(frozen=True, slots=True)
class RuleResponder:
    """A model without a mind: the answer follows from the request by these rules.

    - Tools: `tool_choice` decides, be it `"none"`, `"required"` (or `"any"`), a tool's
      name or the object that names it. Where it is `"auto"` or missing, tools are
      called when the last message is the user's and speaks of them: those whose name
      stands in it, once for each time it is followed by a bracket; otherwise the one
      whose name and description share most words of four letters or more with it,
      words like `what` and `tool` aside.
      `"required"` calls the first tool when none is spoken of, and after the results
      of tools the first that has not been called. With `parallel_tool_calls: false` it
      is one call at most.
    - Arguments, and answers to `response_format`, are filled from the JSON schema.
      Numbers and quotes in the last user message are used in order where they fit:
      `What is magic_function(3)?` gives `{"input": 3}`. Properties that are not
      required are filled when the message mentions them.
    - `json_object` has the quotes in the message as its keys, or `"answer"`.
    - After the results of tools, they are quoted, so that a tool loop ends.
    - Anything else: what the user has said is said back.
    - `functions` and `function_call` are treated like `tools` and `tool_choice`.
    - `n`, `stop`, lists of prompts and `max_tokens` are honoured; a word is a token. An
      answer that is too long is cut, calls included, and its `finish_reason` is
      `"length"`.

    A request that no model could answer, such as one that forces an unknown tool or
    whose schema cannot be filled, raises a `ValueError`, which the gateway reports.
    """

    def __call__(self, request: RecordedRequest) -> Completion:
        """The answer to `request`."""
        limit = _token_limit(request)
        choices = [
            _within(limit, _choice(request, prompt)) for prompt in prompts_of(request)
        ]
        times = choices_for_each_prompt(request)
        return completion_of(
            request, tuple(choice for choice in choices for _ in range(times))
        )


def _choice(request: RecordedRequest, prompt: object) -> Choice:
    parameters = request.parameters
    messages = messages_of(request) or [{"role": "user", "content": prompt}]
    asked = _last_said_by_user(messages)
    words = PromptWords(_text_of(asked))
    results = _tool_results(messages)
    speaks_to_tools = messages[-1].get("role") == "user"
    tools, choice = _tools_of(parameters)
    said_to_tools = words.text if speaks_to_tools else ""
    chosen = _chosen_tools(tools, choice, said_to_tools, _called_already(messages))
    if parameters.get("parallel_tool_calls") is False or "functions" in parameters:
        chosen = chosen[:1]
    calls = [(tool["name"], _arguments(tool, words)) for tool in chosen]
    if calls and "tools" in parameters:
        return Choice(
            tool_calls=tuple(
                ToolCall(name, arguments, id=f"call_{request.number}_{position}")
                for position, (name, arguments) in enumerate(calls)
            ),
            finish_reason="tool_calls",
        )
    if calls:
        call = FunctionCall(*calls[0])
        return Choice(function_call=call, finish_reason="function_call")
    said = _said_of_results(results) if results else _said_back(asked)
    text = _formatted(said, parameters.get("response_format"), words)
    return Choice(cut_at_stop(text, parameters.get("stop")))


# What was said.


def _last_said_by_user(messages: list[dict[str, Any]]) -> Any:
    for message in reversed(messages):
        if message.get("role") == "user":
            return message.get("content")
    return None


def _tool_results(messages: list[dict[str, Any]]) -> list[str]:
    """What the tools have answered, when that is what was said last."""
    latest = takewhile(
        lambda message: message.get("role") in _RESULT_ROLES, reversed(messages)
    )
    return [_text_of(message.get("content")) for message in latest][::-1]


def _text_of(content: Any) -> str:
    """The text of a content: itself, its parts of text, or nothing."""
    if isinstance(content, str):
        # Half a surrogate pair can be asked in JSON, and not be answered in UTF-8.
        return content.encode(errors="replace").decode()
    parts = content if isinstance(content, list) else []
    texts = [_text_of_part(part) for part in parts]
    return " ".join(text for text in texts if text)


def _text_of_part(part: Any) -> str:
    if isinstance(part, Mapping):
        text = part.get("text")
        return _text_of(text) if isinstance(text, str) else ""
    return _text_of(str(part))


def _said_of_results(results: list[str]) -> str:
    return f"The tools said: {'; '.join(results)}"


def _said_back(content: Any) -> str:
    parts = content if isinstance(content, list) else []
    others = [
        f"[{part.get('type')}]"
        for part in parts
        if isinstance(part, Mapping) and "text" not in part
    ]
    return " ".join(["You said:", _text_of(content) or "nothing", *others])


# Tools.


def _tools_of(parameters: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Any]:
    """The functions that may be called, and what is said about the choice."""
    if "tools" in parameters:
        tools = [tool.get("function") for tool in parameters["tools"] or []]
        return [tool for tool in tools if tool], parameters.get("tool_choice")
    return parameters.get("functions") or [], parameters.get("function_call")


def _chosen_tools(
    tools: list[dict[str, Any]], choice: Any, said: str, called: set[str]
) -> list[dict[str, Any]]:
    if choice == "none":
        return []
    name = _named(choice)
    if name is not None:
        forced = [tool for tool in tools if tool["name"] == name]
        if not forced:
            known = [tool["name"] for tool in tools]
            msg = f"tool_choice asks for {name!r}, and the tools are {known}"
            raise ValueError(msg)
        return forced
    chosen = _called_by_name(tools, said) or _called_by_subject(tools, said)
    if chosen or not _is_forced(choice):
        return chosen
    if not tools:
        msg = f"tool_choice is {choice!r}, and there are no tools"
        raise ValueError(msg)
    # An agent whose answer is a call as well forces one until that call is made.
    new = [tool for tool in tools if tool["name"] not in called]
    return (new or tools)[:1]


def _called_already(messages: list[dict[str, Any]]) -> set[str]:
    """The names of the tools called since the user spoke."""
    since = takewhile(lambda message: message.get("role") != "user", reversed(messages))
    calls = [call for message in since for call in message.get("tool_calls") or []]
    names = ((call.get("function") or {}).get("name") for call in calls)
    return {name for name in names if isinstance(name, str)}


def _named(choice: Any) -> str | None:
    if isinstance(choice, str):
        return None if choice in {"auto", *_FORCES_ANY} else choice
    if not isinstance(choice, Mapping):
        return None
    name = choice.get("function", choice).get("name")
    return name if isinstance(name, str) else None


def _is_forced(choice: Any) -> bool:
    kind = choice.get("type") if isinstance(choice, Mapping) else choice
    return kind in _FORCES_ANY


def _called_by_name(tools: list[dict[str, Any]], said: str) -> list[dict[str, Any]]:
    """The tools whose names are said, in that order."""
    places: list[tuple[int, dict[str, Any]]] = []
    for tool in tools:
        found = positions(tool["name"], said)
        called = [at for at in found if said.startswith("(", at + len(tool["name"]))]
        places += [(at, tool) for at in called or found[:1]]
    return [tool for _, tool in sorted(places, key=lambda place: place[0])]


def _called_by_subject(tools: list[dict[str, Any]], said: str) -> list[dict[str, Any]]:
    """The one tool that shares most words with what is said; the first of equals."""
    words = _telling_words(said)
    shared = [len(words & _telling_words(_subject(tool))) for tool in tools]
    most = max(shared, default=0)
    return [tools[shared.index(most)]] if most else []


def _subject(tool: Mapping[str, Any]) -> str:
    return f"{tool['name']} {tool.get('description') or ''}"


def _telling_words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower())) - _EMPTY_WORDS


def _arguments(tool: Mapping[str, Any], words: PromptWords) -> tuple[str, ...]:
    arguments = value_for(tool.get("parameters") or {"type": "object"}, words)
    return split_words(_json(arguments))


# Texts.


def _formatted(said: str, response_format: Any, words: PromptWords) -> str:
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "json_schema":
        schema = response_format["json_schema"].get("schema")
        return _json(value_for(schema, words)) if schema else _json({"answer": said})
    if kind == "json_object":
        return _json(dict.fromkeys(words.quotes or ["answer"], said))
    return said


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# Length.


def _token_limit(request: RecordedRequest) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        limit = request.parameters.get(name)
        if limit is not None:
            return int(limit)
    return None


def _within(limit: int | None, choice: Choice) -> Choice:
    """`choice`, cut where the tokens end."""
    calls = [*choice.tool_calls, choice.function_call]
    pieces = [call.argument_pieces for call in calls if call]
    if limit is None or len(choice.pieces) + sum(map(len, pieces)) <= limit:
        return choice
    kept: list[ToolCall] = []
    left = limit
    for call in choice.tool_calls:
        if left > 0:
            kept.append(replace(call, arguments=call.argument_pieces[:left]))
        left -= len(call.argument_pieces)
    function_call = choice.function_call
    if function_call is not None:
        shorter = function_call.argument_pieces[:limit]
        function_call = replace(function_call, arguments=shorter) if limit else None
    return Choice(choice.pieces[:limit], tuple(kept), function_call, "length")
