"""Requests, answers and chunks of `/v1/completions` and `/v1/chat/completions`.

An answer is a `SDKObject`, or an object or dict from the user's own client; all are
read alike. Nothing in this module sends or retries. A response that is not an answer is
raised as one of `_openai.errors`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, NoReturn

from langchain_core.outputs import GenerationChunk

from langchain_retryrouter import _json
from langchain_retryrouter._http import SSEParser
from langchain_retryrouter._openai.errors import OPENAI_ERRORS
from langchain_retryrouter._providers.errors import read_event
from langchain_retryrouter._providers.finish_reasons import kind_of
from langchain_retryrouter._retry.streaming import ChunkInfo
from langchain_retryrouter.failures import FailureKind

ATTEMPT_LOG: Final = "retryrouter"
"""The field of an answer, or of a stream's last chunk, that holds the attempt log."""

_EXCERPT: Final = 80
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


def get(thing: Any, name: str) -> Any:
    """The field `name` of an SDK object or a dict; None if it has none."""
    if isinstance(thing, dict):
        return thing.get(name)
    return getattr(thing, name, None)


def _plain(thing: Any) -> Any:
    """An SDK object as dicts and lists; anything else as it is."""
    if isinstance(thing, dict):
        return thing
    dump = getattr(thing, "model_dump", None)
    # Providers fill fields with what the SDK's types do not expect: no warnings.
    return thing if dump is None else dump(warnings=False)


def attach_attempt_log(thing: Any, attempt_log: dict[str, Any]) -> Any:
    """`thing` with the attempt log as its field `retryrouter`, if it can hold one."""
    if isinstance(thing, SDKObject):
        thing[ATTEMPT_LOG] = attempt_log
    elif isinstance(thing, dict):
        return {**thing, ATTEMPT_LOG: attempt_log}
    elif hasattr(thing, "model_dump"):
        setattr(thing, ATTEMPT_LOG, attempt_log)
    return thing


# Requests.


def expected_choices(request: Mapping[str, Any]) -> int:
    """How many choices a request asks for: `n` for each of its prompts."""
    prompt = request.get("prompt")
    has_several = isinstance(prompt, list | tuple) and not any(
        isinstance(token, int) for token in prompt
    )
    return (request.get("n") or 1) * (len(prompt) if has_several and prompt else 1)


def check_choices(request: Mapping[str, Any], *, streaming: bool) -> None:
    """Refuse a request for fewer than one choice, or for a stream of several."""
    given = {name: request.get(name) for name in ("n", "best_of")}
    n, best_of = (1 if value is None else value for value in given.values())
    for name, value in (("n", n), ("best_of", best_of)):
        if value < 1:
            msg = f"{name} must be 1 or more, not {value}"
            raise ValueError(msg)
        if streaming and value > 1:
            msg = f"a stream carries one answer, so {name}={value} cannot be streamed"
            raise ValueError(msg)
    if 1 < best_of < n:
        msg = f"best_of={best_of} is less than n={n}: the best {n} are chosen of them"
        raise ValueError(msg)


# Whole answers.


def read_response(response: Any) -> Any:
    """The JSON in a raw response; its text, if it is none."""
    try:
        document = _json.read(response.content)
    except ValueError:
        return response.content.decode("utf-8", "replace")
    return SDKObject(document) if isinstance(document, dict) else document


def checked_answer(answer: Any, request: Mapping[str, Any]) -> Any:
    """`answer`, if it is an answer to `request`."""
    if isinstance(answer, SDKObject) and "error" not in answer:
        found = answer.get("choices")
        is_list = isinstance(found, list) and len(found) == expected_choices(request)
        if is_list and _has_only_text(found):
            return answer
    if answer is None or isinstance(answer, str | int | float | list):
        _raise_reported(answer)
        _raise_malformed(f"an answer that is not a JSON object: {_excerpt(answer)}")
    if not isinstance(answer, dict) and not hasattr(answer, "model_dump"):
        return answer  # A raw response, or the user's own class.
    _raise_reported(answer)
    choices, expected = get(answer, "choices"), expected_choices(request)
    if not isinstance(choices, list) or len(choices) != expected:
        found = len(choices) if isinstance(choices, list) else "no"
        _raise_malformed(f"an answer with {found} choices, {expected} expected")
    for choice in choices:
        if not _is_choice(choice, "text", "message"):
            _raise_malformed(f"a choice without a text: {_excerpt(choices)}")
    return answer


def _has_only_text(choices: Any) -> bool:
    """Whether choices are what nearly all are: a text, and a reason for its end."""
    for choice in choices:
        if (
            type(choice) is not dict
            or type(choice.get("text")) is not str
            or choice.get("finish_reason") not in ("stop", "length")
            or "error" in choice
            or "message" in choice
        ):
            return False
    return True


def raise_for_page(response: Any) -> NoReturn:
    """Raise what a document says that came where a stream was asked for."""
    _raise_reported(read_response(response))
    text = response.content.decode("utf-8", "replace")
    _raise_malformed(f"no stream, but {_excerpt(text)}")


def _raise_malformed(what: str) -> NoReturn:
    """Raise the error for an answer that does not follow the protocol."""
    msg = f"the provider sent {what}"
    raise OPENAI_ERRORS[FailureKind.MALFORMED](msg)


def _excerpt(text: Any) -> str:
    """The beginning of a page or text, to be quoted."""
    words = "" if text is None else " ".join(str(text).split())
    if not words:
        return "an empty body"
    return repr(words if len(words) <= _EXCERPT else f"{words[:_EXCERPT]}…")


def _raise_reported(thing: Any, event: str = "message") -> None:
    """Raise the error that an answer or event reports, if it reports one."""
    if (report := read_event(thing, event)) is not None:
        raise report.to_error(OPENAI_ERRORS)
    choices = get(thing, "choices")
    for choice in choices if isinstance(choices, list) else ():
        reason = get(choice, "finish_reason")
        if _has_failed(reason):
            message = f"the provider ended the answer with finish_reason {reason!r}"
            raise OPENAI_ERRORS[FailureKind.SERVER_ERROR](message)


def _has_failed(reason: Any) -> bool:
    """Whether a finish reason, such as OpenRouter's `error`, is no end of an answer."""
    kind = kind_of(reason) if isinstance(reason, str) else None
    return kind in {FailureKind.INTERRUPTED, FailureKind.MALFORMED}


def _is_choice(choice: Any, *names: str) -> bool:
    """Whether a choice has one of these fields, and its text, if any, is a string."""
    if choice is None or isinstance(choice, str | int | float | list):
        return False
    if not isinstance(get(choice, "finish_reason"), str | None):
        return False
    text = get(choice, "text")
    if isinstance(text, str):
        return True
    message = _message_of(choice)
    came: Any = choice
    if hasattr(choice, "model_fields_set"):  # The others of an SDK object are None.
        came = {*choice.model_fields_set, *(choice.model_extra or {})}
    elif not isinstance(choice, dict):
        came = [name for name in names if hasattr(choice, name)]
    return (
        text is None
        and any(name in came for name in names)
        and not isinstance(message, str | int | float | list)
        and isinstance(get(message, "content"), str | None)
    )


def facts_of(answer: Any) -> dict[str, Any]:
    """What an answer or chunk says of itself, for observers."""
    facts = {"usage": _plain(get(answer, "usage")), "model": get(answer, "model")}
    reasons = [get(choice, "finish_reason") for choice in get(answer, "choices") or ()]
    return {name: value for name, value in facts.items() if value} | (
        {"finish_reasons": reasons} if any(reasons) else {}
    )


def _message_of(choice: Any) -> Any:
    """The message, or its delta, of a choice of the chat endpoint."""
    delta = get(choice, "delta")
    return get(choice, "message") if delta is None else delta


def _text_of(choice: Any) -> str:
    return get(choice, "text") or get(_message_of(choice), "content") or ""


@dataclass(slots=True)
class CompletionResult:
    """What a request brought: choices of `text`, `finish_reason` and `logprobs`."""

    choices: list[dict[str, Any]] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    system_fingerprint: str | None = None
    attempt_log: dict[str, Any] = field(default_factory=dict)


def read_answer(answer: Any) -> CompletionResult:
    """The text, usage and attempt log of a whole answer."""
    try:
        found = [_plain(choice) for choice in _plain(answer)["choices"]]
    except ValueError as error:  # SDK objects hold what they cannot write.
        _raise_malformed(f"an answer that cannot be read: {error}")
    if len(found) > 1:
        indices = [choice.get("index") for choice in found]
        if all(index in indices for index in range(len(found))):
            found.sort(key=operator.itemgetter("index"))
    attempt_log = get(answer, ATTEMPT_LOG) or {}
    if not (isinstance(answer, SDKObject) and _has_only_text(found)):
        content = [NonText() for _ in found]
        for choice, non_text in zip(found, content, strict=True):
            non_text.add(choice, choice.get("message"))
        NonText.check(content, attempts=len(attempt_log.get("attempts", ())) or 1)
    usage = _plain(get(answer, "usage"))
    names = ("finish_reason", "logprobs")
    return CompletionResult(
        choices=[
            {"text": _text_of(choice), **{name: choice.get(name) for name in names}}
            for choice in found
        ],
        usage=usage if isinstance(usage, dict) else {},
        system_fingerprint=get(answer, "system_fingerprint"),
        attempt_log=attempt_log,
    )


# Streams.


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
            yield self._read(event.data, event.kind)

    def _read(self, data: bytes, event: bytes) -> ClassifiedChunk:
        try:
            chunk = _json.read(data)
        except ValueError as error:
            _raise_reported(data, event.decode("utf-8", "replace"))
            _raise_malformed(f"an event that is not JSON: {error}")
        if isinstance(chunk, dict):
            chunk = SDKObject(chunk)
        if event != b"message":
            _raise_reported(chunk, event.decode("utf-8", "replace"))
        return self._classify(chunk)

    def take(self, chunk: Any) -> Iterator[ClassifiedChunk]:
        """The chunk that the stream of a user's own client has handed over."""
        yield self._classify(chunk)

    def _classify(self, chunk: Any) -> ClassifiedChunk:
        self._is_empty = False
        if chunk is None or isinstance(chunk, str | int | float | list):
            _raise_reported(chunk)
            _raise_malformed(f"an unexpected event: {_excerpt(chunk)}")
        choices = get(chunk, "choices") or ()
        if not choices or get(chunk, "error"):
            _raise_reported(chunk)
        if not isinstance(choices, list | tuple):
            _raise_malformed(f"an unexpected event: {_excerpt(chunk)}")
        text, is_token, was_finished = "", False, self._is_finished
        for choice in choices:
            if not _is_choice(choice, "text", "delta", "index"):
                _raise_malformed(f"an unexpected event: {_excerpt(chunk)}")
            reason = get(choice, "finish_reason")
            if get(choice, "error") or (reason and _has_failed(reason)):
                _raise_reported(chunk)
            said = _text_of(choice)
            text += said
            is_token = is_token or bool(said) or NonText.is_in(get(choice, "delta"))
            if reason:
                self._finished.add(str(get(choice, "index")))
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
        self._is_over = False
        self._non_text = NonText()

    def read(self, chunk: Any) -> GenerationChunk:
        """The chunk for LangChain; usage and attempt log are in `generation_info`."""
        choice = next(iter(get(chunk, "choices") or ()), None)
        info: dict[str, Any] = {}
        text = ""
        if choice is not None:
            text = _text_of(choice)
            reason = get(choice, "finish_reason")
            self._is_over = self._is_over or bool(reason)
            # LangChain joins the strings of chunks: a reason is handed on once.
            info["finish_reason"] = None if self._finish_reason else reason
            self._finish_reason = self._finish_reason or reason
            logprobs = _plain(get(choice, "logprobs"))
            info["logprobs"] = None
            if isinstance(logprobs, dict):
                joinable = [
                    n for n, v in logprobs.items() if isinstance(v, list | None)
                ]
                info["logprobs"] = {name: logprobs[name] for name in joinable}
            said = not isinstance(get(choice, "text"), str)
            self._non_text.add(choice, get(choice, "delta") if said else None)
        # LangChain adds usage up, and some servers repeat the sum in every chunk.
        if (choice is None or self._is_over) and not self._is_counted:
            usage = _plain(get(chunk, "usage"))
            if isinstance(usage, Mapping) and any(
                isinstance(count, int | float) and count for count in usage.values()
            ):  # LiteLLM sends zeros where it has not counted.
                self._is_counted = True
                info["token_usage"] = usage
        if attempt_log := get(chunk, ATTEMPT_LOG):
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
        return delta is not None and any(get(delta, name) for name in names)

    def add(self, choice: Any, message: Any) -> None:
        """Take note of a choice, and of its message or delta."""
        self.has_text = self.has_text or bool(_text_of(choice))
        reason = get(choice, "finish_reason")
        if reason and kind_of(reason) is FailureKind.CONTENT_FILTER:
            self.is_filtered = True
        if message is None:
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
    def check(content: list[NonText], attempts: int | None = None) -> None:
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
            error.attempts = error.attempts if attempts is None else attempts
            raise error


# Usage.


def add_usage(total: dict[str, Any], usage: Mapping[str, Any]) -> dict[str, Any]:
    """`total` and `usage` added up, at any depth, without what is no count."""
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
