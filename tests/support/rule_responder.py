"""A model that follows rules: it calls tools, fills JSON schemas and repeats texts.

`FaultyGateway(answer=RuleResponder())` passes LangChain's standard tests and lets
agents run without a real model. Arguments come from the prompt: its quoted texts
and its numbers, in order. The rest is made up.
"""

import json
import re
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from langchain_retryrouter.testing import (
    Answer,
    FunctionCall,
    RecordedRequest,
    ToolCall,
)

# A number stands alone: the 2 of `tool2` and of `v1.2.3` does not count.
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?!\w|\.\d)")
# An apostrophe inside a word is not a quote.
_QUOTE = re.compile(r"(?<!\w)'([^']+)'(?!\w)|\"([^\"]+)\"|`([^`]+)`")
_WORD = re.compile(r"[^\W\d_]{4,}")
_FILL_WORDS = frozenset(
    {"about", "does", "from", "have", "that", "this", "tool", "using", "what", "with"}
)
_FORCED = {"required", "any"}
_FORMATS = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "email": "user@example.com",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


class RuleResponder:
    """Answers a request by these rules.

    - `tool_choice` forces a call, the call of one tool, or none. Otherwise the tools
      that the user's last message names are called, in order; or else the tool whose
      name and description share most words with it.
    - After the results of tools: "The tools said: ...".
    - `response_format` is filled; else the text is "You said: ...", cut at `stop`.
    """

    def __call__(self, request: RecordedRequest) -> Answer:
        """The answer to `request`."""
        parameters = request.parameters
        messages = request.messages or [{"role": "user", "content": request.prompts[0]}]
        asked: Any = next(
            (m.get("content") for m in reversed(messages) if m.get("role") == "user"),
            "",
        )
        said = _text_of(asked)
        prompt = _Prompt(said)
        is_asked = messages[-1].get("role") == "user"
        chosen = _chosen_tools(parameters, said if is_asked else "", messages)
        calls = [
            (tool["name"], _pieces(prompt.fill(tool.get("parameters") or {})))
            for tool in chosen
        ]
        if calls and "functions" in parameters:
            return Answer(function_call=FunctionCall(*calls[0]))
        if calls:
            ids = [f"call_{request.number}_{i}" for i in range(len(calls))]
            named = zip(calls, ids, strict=True)
            return Answer(tool_calls=tuple(ToolCall(*call, id_) for call, id_ in named))
        results = takewhile(
            lambda one: one.get("role") in {"tool", "function"}, reversed(messages)
        )
        quoted = [_text_of(one.get("content")) for one in results][::-1]
        text = f"The tools said: {'; '.join(quoted)}" if quoted else _repeated(asked)
        wanted = parameters.get("response_format") or {}
        if wanted.get("type") == "json_schema":
            text = json.dumps(prompt.fill(wanted["json_schema"]["schema"]))
        elif wanted.get("type") == "json_object":
            text = json.dumps(dict.fromkeys(prompt.quotes or ["answer"], text))
        stop = parameters.get("stop") or []
        for one in [stop] if isinstance(stop, str) else stop:
            text = text.partition(one)[0]
        return Answer(text)


def _text_of(content: Any) -> str:
    """The text of a content: itself, its parts of text, or nothing."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text", "") for part in parts if isinstance(part, Mapping)]
    return " ".join(text for text in texts if text)


def _repeated(content: Any) -> str:
    """The text of a content, and the types of its other parts."""
    parts = content if isinstance(content, list) else []
    others = [f"[{part['type']}]" for part in parts if "text" not in part]
    return " ".join(["You said:", _text_of(content) or "nothing", *others])


def _pieces(arguments: Any) -> tuple[str, ...]:
    """JSON, in the pieces in which a stream carries it."""
    return tuple(re.findall(r"\s*\S+", json.dumps(arguments, ensure_ascii=False)))


def _chosen_tools(
    parameters: Mapping[str, Any], said: str, messages: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    if "tools" in parameters:
        offered = parameters["tools"] or []
        tools = [tool["function"] for tool in offered if "function" in tool]
        choice = parameters.get("tool_choice") or "auto"
    else:
        tools = parameters.get("functions") or []
        choice = parameters.get("function_call") or "auto"
    if isinstance(choice, Mapping):
        kind = choice["type"] if choice.get("type") in _FORCED else "auto"
        choice = choice.get("function", choice).get("name", kind)
    if choice not in {"auto", "none", *_FORCED}:
        return [next(tool for tool in tools if tool["name"] == choice)]
    if choice == "none" or not tools:
        return []
    places = [
        (match.start(), tool)
        for tool in tools
        for match in re.finditer(
            rf"(?<!\w){re.escape(tool['name'])}(?!\w)", said, re.IGNORECASE
        )
    ]
    chosen = [tool for _, tool in sorted(places, key=lambda place: place[0])]
    if not chosen:
        about = [_words(f"{one['name']} {one.get('description')}") for one in tools]
        shared = [len(_words(said) & words) for words in about]
        chosen = [tools[shared.index(max(shared))]] if any(shared) else []
    if not chosen and choice in _FORCED:
        # An agent whose answer is a call as well ends when all tools were called.
        since = takewhile(lambda one: one.get("role") != "user", reversed(messages))
        calls = [call for one in since for call in one.get("tool_calls") or []]
        called = {call["function"]["name"] for call in calls}
        chosen = [[one for one in tools if one["name"] not in called] or tools][0][:1]
    return chosen[:1] if parameters.get("parallel_tool_calls") is False else chosen


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower())) - _FILL_WORDS


class _Prompt:
    """The values that a prompt mentions; each of them fills one place of a schema."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.quotes = ["".join(groups) for groups in _QUOTE.findall(text)]
        self.numbers = [float(one) for one in _NUMBER.findall(text)]

    def fill(self, schema: Any, definitions: Any = None) -> Any:
        """A value for `schema`; optional properties are left out unless mentioned."""
        definitions = definitions or schema.get("$defs", {})
        if "$ref" in schema:
            return self.fill(definitions[schema["$ref"].split("/")[-1]], definitions)
        for key in ("allOf", "anyOf", "oneOf"):
            if key in schema:
                return self.fill(schema[key][0], definitions)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            said = [one for one in schema["enum"] if str(one) in self.text]
            return [*said, *schema["enum"]][0]
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if kind == "object":
            properties = schema.get("properties", {})
            required = schema.get("required", [])
            wanted = [one for one in properties if one in required or one in self.text]
            return {name: self.fill(properties[name], definitions) for name in wanted}
        if kind == "array":
            items = schema.get("items", {"type": "string"})
            said = self.quotes if items.get("type") == "string" else self.numbers
            return [self.fill(items, definitions) for _ in range(max(1, len(said)))]
        if kind in {"integer", "number"}:
            number = self.numbers.pop(0) if self.numbers else schema.get("minimum", 1)
            return int(number) if number == int(number) else number
        if kind in {"boolean", "null"}:
            return True if kind == "boolean" else None
        if "format" in schema:
            return _FORMATS[schema["format"]]
        return self.quotes.pop(0) if self.quotes else schema.get("default", self.text)
