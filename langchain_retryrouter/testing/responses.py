"""What a healthy provider says: plain data, before a protocol puts it into bytes.

A `Responder` turns a request into a `Completion`, and the protocol files turn the
`Completion` into bytes. This file knows neither HTTP nor JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from langchain_retryrouter.testing.requests import RecordedRequest


STUB_TEXT = "Hello from the stub upstream"
"""What the provider behind the recorded GPTRouter exchanges said."""

Text: TypeAlias = str | tuple[str, ...]
"""A text, streamed word by word; or its pieces, streamed one event each."""

CallPlace: TypeAlias = Literal["dropped", "tool_calls", "function_call"]
"""Where GPTRouter puts tool calls when nothing is streamed.

The public server drops them, and the hosted one's place for them is not known.
"""

# The stub upstream of the recordings counted 10 tokens on top of the prompt's words.
# For a stream GPTRouter does not pass that count on: it makes an estimate of its own.
_PROMPT_OVERHEAD = 10
_GPTROUTER_STREAM_OVERHEAD = 7

_WORD = re.compile(r"\s*\S+|\s+\Z")


def split_words(text: str) -> tuple[str, ...]:
    """The words of `text`, each with the space before it: what counts as a token."""
    return tuple(_WORD.findall(text))


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens that a call cost."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """One call of a function, as models made them before there were tools."""

    name: str
    arguments: Text = "{}"
    """JSON; as a tuple, a stream carries one piece an event."""

    @property
    def argument_pieces(self) -> tuple[str, ...]:
        """The arguments as a stream carries them."""
        given = self.arguments
        return (given,) if isinstance(given, str) else given

    @property
    def whole_arguments(self) -> str:
        """The arguments in one string."""
        return "".join(self.argument_pieces)


@dataclass(frozen=True, slots=True)
class ToolCall(FunctionCall):
    """One call of a tool."""

    id: str = "call_0"


@dataclass(frozen=True, slots=True)
class Delta:
    """The content of one event of a stream."""

    choice: int
    text: str = ""
    offset: int = 0
    """Where the text begins in its choice, in characters."""
    tool_call: Mapping[str, Any] | None = None
    """As OpenAI puts it on the wire; GPTRouter passes it on unchanged."""
    function_call: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the answers to a prompt."""

    text: Text = ""
    tool_calls: tuple[ToolCall, ...] = ()
    function_call: FunctionCall | None = None
    finish_reason: str | None = "stop"
    """None when the provider leaves it out."""
    unstreamed_calls: CallPlace = "dropped"
    """Only for GPTRouter; as `function_call` there is room for one call."""
    citations: tuple[Any, ...] = ()
    """Only in GPTRouter's answers that are not streamed: texts or objects."""

    def __post_init__(self) -> None:
        """Refuse calls for which there is no room."""
        if self.unstreamed_calls == "function_call":
            calls = len(self.tool_calls) + (self.function_call is not None)
            if calls > 1:
                msg = f"{calls} calls do not fit into one function_call: {self}"
                raise ValueError(msg)

    @property
    def pieces(self) -> tuple[str, ...]:
        """The text as a stream carries it."""
        text = self.text
        return split_words(text) if isinstance(text, str) else text

    @property
    def whole_text(self) -> str:
        """The text in one string."""
        text = self.text
        return text if isinstance(text, str) else "".join(text)

    def deltas(self, index: int) -> Iterator[Delta]:
        """The events that carry this choice, which is number `index` of its answer."""
        offset = 0
        for piece in self.pieces:
            yield Delta(index, text=piece, offset=offset)
            offset += len(piece)
        for position, call in enumerate(self.tool_calls):
            for tool_call in _tool_call_deltas(position, call):
                yield Delta(index, tool_call=tool_call)
        if self.function_call is not None:
            for function_call in _function_call_deltas(self.function_call):
                yield Delta(index, function_call=function_call)


def _tool_call_deltas(position: int, call: ToolCall) -> Iterator[dict[str, Any]]:
    function = {"name": call.name, "arguments": ""}
    yield {"index": position, "id": call.id, "type": "function", "function": function}
    for piece in call.argument_pieces:
        yield {"index": position, "function": {"arguments": piece}}


def _function_call_deltas(call: FunctionCall) -> Iterator[dict[str, Any]]:
    yield {"name": call.name, "arguments": ""}
    for piece in call.argument_pieces:
        yield {"arguments": piece}


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole healthy answer."""

    choices: tuple[Choice, ...]
    usage: Usage | None = None
    """None when the provider says nothing about it."""
    model: str | None = None
    """The model that answered; None stands for the one that was asked."""
    id: str | None = None
    """None stands for one made from the number of the request."""
    citations: tuple[str, ...] = ()
    """Only in GPTRouter's answers that are not streamed."""

    def deltas(self) -> Iterator[Delta]:
        """The events of all choices, taking turns as providers send them."""
        streams = [choice.deltas(index) for index, choice in enumerate(self.choices)]
        return (delta for delta in chain(*zip_longest(*streams)) if delta is not None)


Responder: TypeAlias = Callable[["RecordedRequest"], Completion]
"""What produces the healthy answers of a gateway.

It is shown the request as it reaches a model: without what GPTRouter drops on the way.
"""


def complete(request: RecordedRequest, choice: Choice) -> Completion:
    """The completion of `request` that says `choice` as often as it was asked for.

    Its usage is counted: one token a word, ten for the frame of the prompt.
    """
    repeated = choices_for_each_prompt(request) * len(prompts_of(request))
    return completion_of(request, (choice,) * repeated)


def completion_of(request: RecordedRequest, choices: tuple[Choice, ...]) -> Completion:
    """The completion of `request` with these choices; its usage is counted."""
    return Completion(choices, usage=_counted_usage(request, choices))


@dataclass(frozen=True, slots=True)
class StubResponder:
    """Says one text, always; honours `n`, `stop` and lists of prompts."""

    text: Text = STUB_TEXT

    def __call__(self, request: RecordedRequest) -> Completion:
        """The stub's answer to `request`."""
        text = cut_at_stop(self.text, request.parameters.get("stop"))
        return complete(request, Choice(text))


def cut_at_stop(text: Text, stop: object) -> Text:
    """`text` up to the first of the texts in `stop`, which may be one text or none."""
    if not stop:
        return text
    whole = text if isinstance(text, str) else "".join(text)
    stops = [stop] if isinstance(stop, str) else [str(one) for one in _listed(stop)]
    found = [at for one in stops if (at := whole.find(one)) >= 0]
    return whole[: min(found)] if found else text


def choices_for_each_prompt(request: RecordedRequest) -> int:
    """The `n` of the request."""
    return _number(request.parameters.get("n"))


def _number(value: object) -> int:
    """`value`, where nothing stands for 1 and GPTRouter takes a string."""
    return max(1, int(value)) if isinstance(value, int | str) else 1


def prompts_of(request: RecordedRequest) -> list[object]:
    """The prompts of `request`: one, save for a list of texts or of token lists."""
    if request.endpoint == "chat":
        return [None]
    prompt = request.parameters.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return prompt
    return [prompt]


def _counted_usage(
    request: RecordedRequest, choices: tuple[Choice, ...]
) -> Usage | None:
    overhead = _PROMPT_OVERHEAD
    contents = [message.get("content") for message in messages_of(request)]
    if request.protocol == "gptrouter" and request.streaming:
        has_other_content = any(not isinstance(content, str) for content in contents)
        if has_other_content and request.gptrouter == "public":
            # Its tokenizer throws on such a content, and usage is left out.
            return None
        overhead = _GPTROUTER_STREAM_OVERHEAD
    asked = overhead + sum(_words(text) for text in [*prompts_of(request), *contents])
    # `best_of` candidates are paid for, though only `n` of them are seen.
    shown = choices_for_each_prompt(request)
    generated = max(shown, _number(request.parameters.get("best_of")))
    said = sum(len(choice.pieces) for choice in choices) * generated // shown
    return Usage(asked, said)


def messages_of(request: RecordedRequest) -> list[dict[str, Any]]:
    """The messages of `request` that are JSON objects, in their order."""
    messages = request.parameters.get("messages")
    return [message for message in _listed(messages) if isinstance(message, dict)]


def _words(content: object) -> int:
    """How many words `content` has: a text, token numbers, or parts of a message."""
    if isinstance(content, str):
        return len(content.split())
    if isinstance(content, dict):
        return _words(content.get("text"))
    if isinstance(content, int):
        return 1
    return sum(_words(part) for part in _listed(content))


def _listed(value: object) -> Iterable[Any]:
    return value if isinstance(value, list) else ()
