"""Requests, answers and chunks of `/v1/completions` and `/v1/chat/completions`.

An answer is a `SDKObject`, or an object or dict from the user's own client; all are
read as JSON. Nothing in this module sends or retries. A response that is not an answer
is raised as one of `_openai.errors`.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, NoReturn

from langchain_core.outputs import GenerationChunk

from langchain_retryrouter import _json
from langchain_retryrouter._http import ServerSentEvent, SSEParser
from langchain_retryrouter._openai.errors import OPENAI_ERRORS
from langchain_retryrouter._providers.errors import read_event
from langchain_retryrouter._providers.finish_reasons import kind_of, says_failed
from langchain_retryrouter._retry.streaming import ChunkInfo
from langchain_retryrouter.failures import FailureKind

ATTEMPT_LOG: Final = "retryrouter"
"""The field of an answer, or of a stream's last chunk, that holds the attempt log."""

_EVENT_FIELDS: Final = ("data:", "event:", "id:", "retry:", ":")
_LARGEST_COUNT: Final = 2**63 - 1
# Fields that the SDK's objects always have, and answers often leave out.
_OPTIONAL_FIELDS: Final = {
    *("content", "finish_reason", "function_call", "logprobs", "refusal", "role"),
    *("system_fingerprint", "tool_calls", "usage"),
}


class SDKObject(dict[str, Any]):
    """A JSON object with attributes, like the SDK's at a twentieth of the cost."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self._with_attributes(self[name])
        if name in _OPTIONAL_FIELDS:
            return None
        msg = f"the answer has no field {name!r}"
        raise AttributeError(msg)

    def model_dump(self, **_: Any) -> dict[str, Any]:
        """The object as a plain dict, as the SDK's `model_dump`."""
        return dict(self)

    @classmethod
    def _with_attributes(cls, value: Any) -> Any:
        if isinstance(value, list):
            return [cls._with_attributes(one) for one in value]
        return cls(value) if isinstance(value, dict) else value


def plain(thing: Any) -> Any:
    """An object of the SDK as the JSON that was sent; anything else as it is."""
    if isinstance(thing, dict) or not hasattr(thing, "model_dump"):
        return thing
    try:
        # Providers fill fields with what the SDK's types do not expect: no warnings.
        return thing.model_dump(exclude_unset=True, warnings=False)
    except ValueError as error:  # SDK objects hold what they cannot write.
        _raise_malformed(f"an answer that cannot be read: {error}")


def get(thing: Any, name: str) -> Any:
    """The field `name` of a JSON object; None if `thing` has none, or is not one."""
    return thing.get(name) if isinstance(thing, dict) else None


def _choices_of(document: Any) -> list[Any]:
    """The choices of an answer or chunk, empty if they are not a list."""
    found = get(document, "choices")
    return [plain(one) for one in found] if isinstance(found, list | tuple) else []


def attach_attempt_log(thing: Any, attempt_log: dict[str, Any]) -> Any:
    """`thing` with the attempt log as its field `retryrouter`, if it can hold one."""
    if isinstance(thing, SDKObject):
        thing[ATTEMPT_LOG] = attempt_log
    elif isinstance(thing, dict):
        return {**thing, ATTEMPT_LOG: attempt_log}
    elif hasattr(thing, "model_dump"):
        with contextlib.suppress(ValueError):  # Its class may take no more fields.
            setattr(thing, ATTEMPT_LOG, attempt_log)
    return thing


# Requests.


def count_prompts(request: Mapping[str, Any]) -> int:
    """How many prompts a request has; a list of numbers is one, of tokens."""
    prompt = request.get("prompt")
    has_several = isinstance(prompt, list | tuple) and not any(
        isinstance(token, int) for token in prompt
    )
    return len(prompt) if has_several and prompt else 1


def expected_choices(request: Mapping[str, Any]) -> int:
    """How many choices a request asks for: `n` for each of its prompts."""
    return (request.get("n") or 1) * count_prompts(request)


def check_choices(request: Mapping[str, Any], *, streaming: bool) -> None:
    """Refuse a request for no whole number of choices, or for a stream of several."""
    given = {name: request.get(name) for name in ("n", "best_of")}
    n, best_of = (1 if value is None else value for value in given.values())
    for name, value in (("n", n), ("best_of", best_of)):
        if not isinstance(value, int) or value < 1:
            msg = f"{name} must be 1 or more, not {value!r}"
            raise ValueError(msg)
        if streaming and value > 1:
            msg = f"a stream carries one answer, so {name}={value} cannot be streamed"
            raise ValueError(msg)
    if 1 < best_of < n:
        msg = f"best_of={best_of} is less than n={n}: the best {n} are chosen of them"
        raise ValueError(msg)


# Whole answers.


def read_response(response: Any) -> Any:
    """The JSON in a raw response; its text, if it is not JSON."""
    try:
        document = _json.read(response.content)
    except ValueError:
        return response.content.decode("utf-8", "replace")
    return SDKObject(document) if isinstance(document, dict) else document


def checked_answer(answer: Any, request: Mapping[str, Any]) -> Any:
    """`answer`, if it is an answer to `request`."""
    document = plain(answer)
    if not isinstance(document, dict | list | str | int | float | None):
        return answer  # A raw response, or the user's own class.
    choices, expected = _choices_of(document), expected_choices(request)
    _raise_reported(document)
    if not isinstance(document, dict):
        _raise_malformed(f"an answer that is not a JSON object: {_excerpt(document)}")
    if len(choices) != expected:
        found = len(choices) if isinstance(document.get("choices"), list) else "no"
        _raise_malformed(f"an answer with {found} choices, {expected} expected")
    if not all(_is_choice(choice, "text", "message") for choice in choices):
        _raise_malformed(f"a choice without a text: {_excerpt(choices)}")
    return answer


def check_document(response: Any) -> None:
    """Raise what a document says that came where a stream was asked for.

    It may be a stream after all: there are servers that label theirs as JSON.
    """
    text = response.content.decode("utf-8", "replace")
    if not text.lstrip().startswith(_EVENT_FIELDS):
        _raise_reported(read_response(response))
        _raise_malformed(f"no stream, but {_excerpt(text)}")


def _raise_malformed(what: str) -> NoReturn:
    """Raise the error for an answer that does not follow the protocol."""
    msg = f"the provider sent {what}"
    raise OPENAI_ERRORS[FailureKind.MALFORMED](msg)


def _excerpt(text: Any) -> str:
    """The beginning of a page or text, to be quoted."""
    words = "" if text is None else _json.excerpt(str(text))
    return repr(words) if words else "an empty body"


def _raise_reported(document: Any, event: str = "message") -> None:
    """Raise the error that an answer or event reports, or ends with, if it does."""
    choices = _choices_of(document)
    has_error = any(get(one, "error") for one in (document, *choices))
    is_unusual = event != "message" or get(document, "object") == "error"
    may_report = has_error or is_unusual or not choices
    if may_report and (report := read_event(document, event)) is not None:
        raise report.to_error(OPENAI_ERRORS)
    for choice in choices:
        reason = get(choice, "finish_reason")
        if reason != "stop" and says_failed(reason):
            message = f"the provider ended the answer with finish_reason {reason!r}"
            raise OPENAI_ERRORS[FailureKind.SERVER_ERROR](message)


def _is_choice(choice: Any, *names: str) -> bool:
    """Whether a choice has one of these fields, and its text, if any, is a string."""
    reason, text = get(choice, "finish_reason"), get(choice, "text")
    if not (isinstance(choice, dict) and isinstance(reason, str | None)):
        return False
    if text is not None or choice.keys().isdisjoint(names):
        return isinstance(text, str)
    message = _message_of(choice)
    said = get(message, "content")
    if isinstance(said, list):
        return all(isinstance(part, dict | str) for part in said)
    return isinstance(message, dict | None) and isinstance(said, str | None)


def facts_of(answer: Any) -> dict[str, Any]:
    """What an answer or chunk says of itself, for observers."""
    document = plain(answer)
    facts = {name: plain(get(document, name)) for name in ("usage", "model")}
    reasons = [get(choice, "finish_reason") for choice in _choices_of(document)]
    facts["finish_reasons"] = reasons if any(reasons) else None
    return {name: value for name, value in facts.items() if value}


def _message_of(choice: Any) -> Any:
    """The message, or its delta, of a choice of the chat endpoint."""
    delta = get(choice, "delta")
    return get(choice, "message") if delta is None else delta


def _text_of(choice: Any) -> str:
    said = get(choice, "text") or get(_message_of(choice), "content") or ""
    if isinstance(said, list):  # Of reasoning models: parts, some of which are texts.
        parts = [part if isinstance(part, str) else get(part, "text") for part in said]
        return "".join(part for part in parts if isinstance(part, str))
    return said if isinstance(said, str) else ""


def _is_repeated(choice: Any) -> bool:
    """Whether a choice of a stream is the whole message, as MiniMax ends streams."""
    return get(choice, "delta") is None and get(choice, "message") is not None


class CompletionResult(NamedTuple):
    """What a request brought: choices of `text`, `finish_reason` and `logprobs`."""

    choices: list[dict[str, Any]]
    usage: dict[str, Any]
    attempt_log: dict[str, Any]
    system_fingerprint: str | None = None


def read_answer(answer: Any) -> CompletionResult:
    """The text, usage and attempt log of a whole answer."""
    document = plain(answer)
    found = _choices_of(document)
    if not found:
        _raise_malformed(f"an answer without choices: {_excerpt(document)}")
    if len(found) > 1:
        indices = [choice.get("index") for choice in found]
        if all(index in indices for index in range(len(found))):
            found.sort(key=operator.itemgetter("index"))
    attempt_log = get(document, ATTEMPT_LOG) or {}
    content = [NonText() for _ in found]
    for choice, non_text in zip(found, content, strict=True):
        non_text.add(choice)
    NonText.check(content, attempts=len(attempt_log.get("attempts", ())) or 1)
    usage = plain(get(document, "usage"))
    names = ("finish_reason", "logprobs")
    return CompletionResult(
        choices=[
            {"text": _text_of(choice), **{name: choice.get(name) for name in names}}
            for choice in found
        ],
        usage=usage if isinstance(usage, dict) else {},
        system_fingerprint=get(document, "system_fingerprint"),
        attempt_log=attempt_log,
    )


# Streams.


def _is_heartbeat(event: ServerSentEvent) -> bool:
    """Whether an event only keeps the connection: no data, or no JSON under a name."""
    data = event.data.strip()
    is_named = event.kind != b"message" and not data.startswith((b"{", b"["))
    return event.kind != b"error" and (is_named or not data)


class ClassifiedChunk(NamedTuple):
    """A chunk of a stream, and what it means for the stream."""

    chunk: Any
    info: ChunkInfo


class StreamReader:
    """Reads the chunks of one attempt: errors, tokens, and the end.

    A stream is whole when each choice that was asked for has a `finish_reason`;
    `[DONE]` may be missing, and a chunk with usage may follow. Some servers name a
    reason in every chunk: if one comes no later than the first token, or a token after
    it, only `[DONE]`, or the end of the body, is the end.
    """

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._finished: set[str] = set()
        self._is_empty = True
        self._reasons_are_early = False
        self._saw_token = False
        self._parser = SSEParser()
        self.is_done = False
        self.is_whole = False

    def feed(self, data: bytes) -> Iterator[ClassifiedChunk]:
        """The chunks in the events that `data` completes."""
        for event in self._parser.feed(data):
            if event.data.startswith(b"[DONE]"):
                self.is_done = True
                return
            if not _is_heartbeat(event):
                yield self._read(event.data, event.kind)

    def _read(self, data: bytes, event: bytes) -> ClassifiedChunk:
        try:
            chunk = _json.read(data)
        except ValueError as error:
            _raise_reported(data, event.decode("utf-8", "replace"))
            _raise_malformed(f"an event that is not JSON: {error}")
        if event != b"message":
            _raise_reported(chunk, event.decode("utf-8", "replace"))
        return self._classify(SDKObject(chunk) if isinstance(chunk, dict) else chunk)

    def take(self, chunk: Any) -> Iterator[ClassifiedChunk]:
        """The chunk that the stream of a user's own client has handed over."""
        yield self._classify(chunk)

    def _classify(self, chunk: Any) -> ClassifiedChunk:
        self._is_empty = False
        document = plain(chunk)
        choices = _choices_of(document)
        if not choices or document.get("error"):
            _raise_reported(document)
        if not isinstance(document, dict) or (document.get("choices") and not choices):
            _raise_malformed(f"an unexpected event: {_excerpt(document)}")
        text, is_token, was_finished = "", False, self._is_finished
        for choice in choices:
            if not _is_choice(choice, "text", "delta", "message", "index"):
                _raise_malformed(f"an unexpected event: {_excerpt(document)}")
            reason = choice.get("finish_reason")
            if reason or choice.get("error"):
                _raise_reported(document)
            is_news = not (self._saw_token and _is_repeated(choice))
            said = _text_of(choice) if is_news else ""
            text += said
            is_token = is_token or bool(said) or NonText.is_in(choice.get("delta"))
            if reason:
                self._finished.add(str(choice.get("index")))
        if is_token and was_finished:
            self.is_whole, self._reasons_are_early = False, True
        is_ended = self._is_finished and self._saw_token and not self._reasons_are_early
        is_end = is_ended and not self.is_whole
        self.is_whole = self.is_whole or is_end
        self._saw_token = self._saw_token or is_token
        return ClassifiedChunk(chunk, ChunkInfo(text, is_token, is_end))

    @property
    def _is_finished(self) -> bool:
        return len(self._finished) >= self._expected

    def end_of_body(self) -> ClassifiedChunk | None:
        """The end, at `[DONE]` or a body that ended well, if none came yet."""
        if self._is_empty:
            _raise_malformed("a stream without an event")
        if self.is_whole or not self._is_finished:
            return None
        self.is_whole = True
        return ClassifiedChunk(SDKObject(choices=[]), ChunkInfo(is_end=True))


class ChunkTranslator:
    """Translates the chunks of one stream with one choice into LangChain's."""

    def __init__(self) -> None:
        self._finish_reason: str | None = None
        self._is_counted = False
        self._non_text = NonText()

    def read(self, chunk: Any) -> GenerationChunk:
        """The chunk for LangChain; usage and attempt log are in `generation_info`."""
        document = plain(chunk)
        info: dict[str, Any] = {}
        text = ""
        choices = _choices_of(document)[:1]  # One was asked for.
        for choice in choices:
            if not (self._non_text.has_text and _is_repeated(choice)):
                text = _text_of(choice)
            self._non_text.add(choice)
            reason = choice.get("finish_reason")
            # LangChain joins the strings of chunks: a reason is handed on once.
            info["finish_reason"] = None if self._finish_reason else reason
            self._finish_reason = self._finish_reason or reason
            logprobs = plain(choice.get("logprobs"))
            if isinstance(logprobs, dict):  # Without what LangChain cannot join.
                items = logprobs.items()
                logprobs = {n: v for n, v in items if isinstance(v, list | None)}
            info["logprobs"] = logprobs if isinstance(logprobs, dict) else None
        # LangChain adds usage up, and some servers repeat the sum in every chunk.
        if (self._finish_reason or not choices) and not self._is_counted:
            usage = plain(get(document, "usage"))
            if isinstance(usage, Mapping) and any(
                isinstance(count, int | float) and count for count in usage.values()
            ):  # LiteLLM sends zeros where it has not counted.
                self._is_counted = True
                info["token_usage"] = usage
        if attempt_log := get(document, ATTEMPT_LOG):
            info[ATTEMPT_LOG] = attempt_log
        return GenerationChunk(text=text, generation_info=info or None)

    def finish(self) -> None:
        """Raise an error if the stream was a refusal, a tool call, or filtered out."""
        NonText.check([self._non_text])


def join(chunks: Iterable[GenerationChunk]) -> CompletionResult:
    """The answer that the chunks of a whole stream add up to."""
    chunks = list(chunks)
    if not chunks:
        _raise_malformed("a stream without a chunk")
    whole = functools.reduce(operator.add, chunks)
    info = whole.generation_info or {}
    choice = {name: info.get(name) for name in ("finish_reason", "logprobs")}
    return CompletionResult(
        choices=[{"text": whole.text, **choice}],
        usage=info.get("token_usage") or {},
        attempt_log=info.get(ATTEMPT_LOG) or {},
    )


class NonText:
    """Collects, from a chat message or its deltas, what an LLM cannot return."""

    refusal = ""
    called = ""
    has_text = False
    is_filtered = False

    @staticmethod
    def is_in(delta: Any) -> bool:
        """Whether a delta has a refusal or a part of a tool call."""
        names = ("tool_calls", "refusal", "function_call")
        return any(get(delta, name) for name in names)

    def add(self, choice: dict[str, Any]) -> None:
        """Take note of a choice, and of its message or delta."""
        self.has_text = self.has_text or bool(_text_of(choice))
        reason = choice.get("finish_reason")
        if reason and kind_of(reason) is FailureKind.CONTENT_FILTER:
            self.is_filtered = True
        if (message := _message_of(choice)) is None:
            return
        # LiteLLM's proxy moves OpenAI's own fields, such as a refusal, to this one.
        moved = get(message, "provider_specific_fields")
        said = get(message, "refusal") or get(moved, "refusal") or ""
        self.refusal += said if isinstance(said, str) else _excerpt(said)
        calls = get(message, "tool_calls")
        functions = [get(message, "function_call")]
        if isinstance(calls, list | tuple):
            functions = [*(get(call, "function") for call in calls), *functions]
        for function in functions:
            self.called = self.called or get(function, "name") or ""

    @staticmethod
    def check(content: list[NonText], attempts: int = 1) -> None:
        """Raise an error for a refusal, a tool call, or a whole answer filtered out."""
        kind, message = FailureKind.CONTENT_FILTER, ""
        refusal = next((one.refusal for one in content if one.refusal), "")
        called = next((one.called for one in content if one.called), "")
        if refusal:
            message = f"the model refused: {refusal}"
        elif called:
            kind = FailureKind.INVALID_REQUEST
            message = (
                f"the model calls the tool {called!r} instead of saying anything, and"
                " an LLM returns nothing but text: use a chat model for tools"
            )
        elif content and all(one.is_filtered and not one.has_text for one in content):
            message = "a content filter removed the whole answer"
        if message:
            error = OPENAI_ERRORS[kind](message)
            error.attempts = attempts
            raise error


# Usage.


def add_usage(total: dict[str, Any], usage: Mapping[str, Any]) -> dict[str, Any]:
    """`total` and `usage` added up, at any depth, without what is not a count."""
    added = dict(total)
    for name, count in usage.items():
        before = added.get(name)
        if isinstance(count, Mapping):
            added[name] = add_usage(before if isinstance(before, dict) else {}, count)
        elif (
            isinstance(count, int | float)
            and not isinstance(count, bool)
            and 0 <= count <= _LARGEST_COUNT
        ):
            added[name] = (0 if isinstance(before, dict | None) else before) + count
    return added


def update_token_usage(
    keys: set[str], response: dict[str, Any], token_usage: dict[str, Any]
) -> None:
    """Add what `response["usage"]` says about `keys` to `token_usage`, in place."""
    usage = response.get("usage") or {}
    for key in keys.intersection(usage):
        token_usage[key] = token_usage.get(key, 0) + (usage[key] or 0)
