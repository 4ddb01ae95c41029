"""What OpenAI's answers and chunks mean, whoever built them: plain data in and out.

Everything about the *content* of `/v1/completions` and `/v1/chat/completions` lives
here. An answer is the SDK's object, or the dict of somebody's own client; both are read
alike. This file knows no network, no retry and no model object; what it finds wrong it
returns as a `Problem`.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import openai
from langchain_core.outputs import GenerationChunk

from langchain_retryrouter import _json
from langchain_retryrouter._retry.streaming import ChunkInfo
from langchain_retryrouter.failures import FailureKind, classify

_PARTS: Final = ("connect", "read", "write", "pool")
_SECRET_NAME: Final = re.compile("auth|key|token|secret|cookie|password", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class ClientSettings:
    """How to make an SDK client.

    Attributes:
        sdk_class: `OpenAI` or `AzureOpenAI`; the async client is its sister.
        options: The keyword arguments of that class.
        proxy: The address of a proxy that all requests take.
        http_client: An HTTP client of the user's own: never closed.
    """

    sdk_class: str
    options: Mapping[str, Any] = field(repr=False)
    proxy: str | None = field(default=None, repr=False)
    http_client: Any = field(default=None, repr=False)

    @property
    def identity(self) -> Hashable:
        """Equal for settings that make equal clients."""
        return _frozen((self.sdk_class, self.options, self.proxy, self.http_client))

    def __eq__(self, other: object) -> bool:
        """Whether both make equal clients."""
        if not isinstance(other, ClientSettings):
            return NotImplemented
        return self.identity == other.identity

    def __hash__(self) -> int:
        """Equal for equal settings."""
        return hash(self.identity)


def _frozen(value: Any) -> Hashable:
    if isinstance(value, Mapping):
        items = [(str(name), _frozen(item)) for name, item in value.items()]
        return tuple(sorted(items, key=lambda item: item[0]))
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    if hasattr(value, "as_dict"):  # The HTTP libraries' Timeout, which has no hash.
        return _frozen(value.as_dict())
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value  # type: ignore[no-any-return]


def check_timeout(value: Any) -> Any:
    """`value`, if it is a time limit that can be kept.

    Raises:
        ValueError: If it is neither seconds, nor a pair of them, nor a `Timeout`.
    """
    if value is None or _is_seconds(value) or hasattr(value, "as_dict"):
        return value
    is_pair = isinstance(value, list | tuple) and len(value) == len(("connect", "read"))
    if is_pair and all(_is_seconds(part) for part in value):
        return tuple(value)
    msg = (
        "request_timeout must be seconds above 0, or a pair of them for connecting and"
        f" for reading, or None for the SDK's own, not {value!r}"
    )
    raise ValueError(msg)


def _is_seconds(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def sdk_timeout(value: Any) -> Any:
    """A time limit as the SDK takes it; a pair is for connecting and for reading."""
    if isinstance(value, list | tuple):
        connect, read = value
        return openai.Timeout(read, connect=connect)
    return value


def part_of(value: Any, name: str) -> float | None:
    """The part `connect`, `read`, `write` or `pool` of a limit as the SDK takes it."""
    part = value.as_dict().get(name) if hasattr(value, "as_dict") else value
    return part if part is None else float(part)


def limited(value: Any, limit: float) -> openai.Timeout:
    """A time limit with no part longer than `limit` seconds.

    Args:
        value: What the request has without it, as the SDK takes it.
        limit: Seconds.
    """
    own = {name: part_of(value, name) for name in _PARTS}
    return openai.Timeout(
        **{
            name: limit if part is None else min(limit, part)
            for name, part in own.items()
        }
    )


def without_secrets(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that, by their names, may be shown."""
    return {
        name: value for name, value in headers.items() if not _SECRET_NAME.search(name)
    }


def without_password(address: str) -> str:
    """An address without the name and the password that it may have."""
    return re.sub(r"(?<=//)[^/@]*@", "", address)


_MOST: Final = 2**63 - 1  # What is more is no count, and too much for many a reader.


def counted(usage: Any) -> dict[str, Any]:
    """What an answer says about its tokens; empty where that is no object."""
    return usage if isinstance(usage, dict) else {}


def has_count(usage: Any) -> bool:
    """Whether anything was counted; LiteLLM sends zeros where it has not."""
    return isinstance(usage, Mapping) and any(
        isinstance(count, int | float) and count for count in usage.values()
    )


def add_usage(total: dict[str, Any], usage: Mapping[str, Any]) -> dict[str, Any]:
    """`total` and `usage` added up, details such as cached tokens included.

    What is no number, or none that could be a count, is left out.
    """
    added = dict(total)
    for name, count in usage.items():
        before = added.get(name)
        if isinstance(count, Mapping):
            added[name] = add_usage(before if isinstance(before, dict) else {}, count)
        elif _is_count(count):
            added[name] = (0 if isinstance(before, dict | None) else before) + count
    return added


def _is_count(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value <= _MOST


def update_token_usage(
    keys: set[str], response: dict[str, Any], token_usage: dict[str, Any]
) -> None:
    """Add what `response["usage"]` says about `keys` to `token_usage`, in place."""
    usage = response.get("usage") or {}
    for key in keys.intersection(usage):
        token_usage[key] = token_usage.get(key, 0) + (usage[key] or 0)


ATTEMPT_LOG: Final = "retryrouter"
"""Under which name an answer, or the chunk that ends a stream, carries the ledger."""

_BAD_REQUEST, _END_OF_STATUSES = 400, 600
_DIGITS = 3  # Of a status; what is longer may be too long for `int`.
_EXCERPT = 80


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with an answer that came with status 200.

    Attributes:
        kind: What it means.
        message: What the provider, or we, say about it.
        code: The provider's machine-readable code.
        body: The provider's own words, as it sent them.
    """

    kind: FailureKind
    message: str
    code: str | None = None
    body: Any = None


@dataclass(slots=True)
class Answer:
    """What a request brought, whichever endpoint, streamed or not.

    Attributes:
        choices: One dict each with `text`, `finish_reason` and `logprobs`.
        usage: The tokens it cost, as the provider counted them.
        system_fingerprint: OpenAI's name for the machinery that answered.
        ledger: The attempts it took.
        problem: What makes it no text: a refusal, the call of a tool, a filter.
    """

    choices: list[dict[str, Any]] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    system_fingerprint: str | None = None
    attempt_log: dict[str, Any] = field(default_factory=dict)
    problem: Problem | None = None


def _is_object(thing: Any) -> bool:
    return isinstance(thing, dict) or hasattr(thing, "model_dump")


def get(thing: Any, name: str) -> Any:
    """The field `name` of an SDK object or a dict; None where there is none."""
    if isinstance(thing, dict):
        return thing.get(name)
    return getattr(thing, name, None)


def plain(thing: Any) -> Any:
    """An SDK object as dicts and lists; anything else as it is."""
    dump = getattr(thing, "model_dump", None)
    # Providers fill fields with what the SDK's types do not foresee: no warnings.
    return thing if dump is None else dump(warnings=False)


def attach_attempt_log(thing: Any, attempt_log: dict[str, Any]) -> Any:
    """`thing` with the call's ledger as its field `retryrouter`, if it can hold one."""
    if isinstance(thing, dict):
        return {**thing, ATTEMPT_LOG: attempt_log}
    if hasattr(thing, "model_dump"):
        setattr(thing, ATTEMPT_LOG, attempt_log)
    return thing


# The request.


def expected_choices(request: Mapping[str, Any]) -> int:
    """How many choices a request asks for: `n` for each of its prompts."""
    prompt = request.get("prompt")
    several = isinstance(prompt, list | tuple) and not any(
        isinstance(token, int) for token in prompt
    )
    return (request.get("n") or 1) * (len(prompt) if several and prompt else 1)


def refuse_several(request: Mapping[str, Any], *, streaming: bool) -> None:
    """Refuse what no answer can be: fewer than one choice, or a stream of several.

    Raises:
        ValueError: Names the parameter and its value.
    """
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


# A whole answer.


def problem_of(answer: Any, expected: int) -> Problem | None:
    """What makes an answer with status 200 none; None if it is one.

    Args:
        answer: What the SDK's `create` returned; it hands over a page's text as `str`.
        expected: Choices that were asked for.
    """
    if _is_scalar(answer):
        return no_object(answer)
    if not _is_object(answer):
        return None  # A raw response, or somebody's own object: theirs to judge.
    if error := get(answer, "error"):
        return reported(error)
    choices = get(answer, "choices")
    if not isinstance(choices, list) or len(choices) != expected:
        found = len(choices) if isinstance(choices, list) else "no"
        return malformed(f"an answer with {found} choices where {expected} were due")
    if not all(_is_choice(choice, "text", "message") for choice in choices):
        return malformed(f"a choice without a text: {excerpt(choices)}")
    return None


def is_chunk(chunk: Any) -> bool:
    """Whether an event of a stream can be read as a chunk."""
    choices = None if _is_scalar(chunk) else get(chunk, "choices") or ()
    return isinstance(choices, list | tuple) and all(
        _is_choice(choice, "text", "delta", "index") for choice in choices
    )


def _is_choice(choice: Any, *names: str) -> bool:
    """Whether a choice has one of these fields, and its text, if any, is a text."""
    if _is_scalar(choice):
        return False
    if not isinstance(get(choice, "finish_reason"), str | None):
        return False
    if isinstance(get(choice, "text"), str):
        return True
    inner = _inner(choice)
    texts = (get(choice, "text"), get(inner, "content"))
    return (
        any(_has(choice, name) for name in names)
        and not (_is_scalar(inner) and inner is not None)
        and all(isinstance(text, str | None) for text in texts)
    )


def _inner(choice: Any) -> Any:
    """The message, or its delta, that a choice of the chat endpoint has."""
    delta = get(choice, "delta")
    return get(choice, "message") if delta is None else delta


def _text_of(choice: Any) -> str:
    return get(choice, "text") or get(_inner(choice), "content") or ""


def _is_scalar(thing: Any) -> bool:
    return thing is None or isinstance(thing, str | int | float | list)


def _has(thing: Any, name: str) -> bool:
    """Whether a field came, be it null; the SDK has None for those that did not."""
    if isinstance(thing, dict):
        return name in thing
    came = getattr(thing, "model_fields_set", None)
    if came is None:
        return hasattr(thing, name)
    return name in came or name in (thing.model_extra or {})


def reported(error: Any) -> Problem:
    """An error that came inside a 200 or as an event of a stream.

    Args:
        error: The value of `error`: a dict as OpenAI's, or only a sentence.
    """
    body = _json.cut(plain(error))
    facts = body if isinstance(body, Mapping) else {"message": body}
    text = str(facts.get("message") or "the provider reported an error")
    code = code_in(facts)
    return Problem(kind_of(_status_in(facts), facts, text), text, code, body)


def code_in(facts: Mapping[str, Any]) -> str | None:
    """The machine-readable code of an error's body; some servers send a number."""
    code = facts.get("code")
    return str(code) if code or code == 0 else None


def kind_of(status: int | None, facts: Mapping[str, Any], message: str) -> FailureKind:
    """The meaning of an error, by its status, its body, and its sentence."""
    named = code_in(facts) or facts.get("type")
    return classify(status, named if isinstance(named, str) else None, message)


def no_object(answer: Any) -> Problem:
    """The problem of an answer that is a page, a list, or a word."""
    return malformed(f"an answer that is not a JSON object: {excerpt(answer)}")


def malformed(what: str) -> Problem:
    """The problem of an answer that is not the protocol."""
    return Problem(FailureKind.MALFORMED, f"the provider sent {what}")


def excerpt(text: Any) -> str:
    """The beginning of a page or text, to be quoted."""
    words = "" if text is None else " ".join(str(text).split())
    if not words:
        return "an empty body"
    return repr(words if len(words) <= _EXCERPT else f"{words[:_EXCERPT]}…")


def _status_in(facts: Mapping[str, Any]) -> int | None:
    # Gateways such as OpenRouter, vLLM and LiteLLM put the HTTP status into `code`.
    code = str(facts.get("code"))
    if (
        len(code) == _DIGITS
        and code.isdecimal()
        and _BAD_REQUEST <= int(code) < _END_OF_STATUSES
    ):
        return int(code)
    return _BAD_REQUEST if facts.get("type") == "invalid_request_error" else None


def read_answer(raw: Any) -> Answer:
    """The answer of either endpoint, which has no `Problem` of `problem_of`."""
    choices, voices = [], []
    try:
        found = plain(raw)["choices"]
    except ValueError as error:  # The SDK's objects hold what they cannot write.
        return Answer(problem=malformed(f"an answer that cannot be read: {error}"))
    for choice in _in_order(found):
        voices.append(_Voice(choice.get("message")))
        voices[-1].follow(choice)
        choices.append(
            {
                "text": _text_of(choice),
                "finish_reason": choice.get("finish_reason"),
                "logprobs": choice.get("logprobs"),
            }
        )
    return Answer(
        choices=choices,
        usage=counted(plain(get(raw, "usage"))),
        system_fingerprint=get(raw, "system_fingerprint"),
        attempt_log=get(raw, ATTEMPT_LOG) or {},
        problem=next((v.problem for v in voices if v.problem is not None), None)
        or (_FILTERED if all(voice.is_cut_out for voice in voices) else None),
    )


def _in_order(choices: list[Any]) -> list[dict[str, Any]]:
    """The choices by their index, where it numbers them all; else as they came."""
    found = [plain(choice) for choice in choices]
    if any(choice.get("index") not in range(len(found)) for choice in found):
        return found
    ordered = sorted(found, key=lambda choice: choice["index"])
    is_numbered = all(choice["index"] == at for at, choice in enumerate(ordered))
    return ordered if is_numbered else found


# A stream.


class StreamReader:
    """Tells, for the chunks of one attempt, what is a token and what is the end.

    A stream is whole when each choice that was asked for has a `finish_reason`;
    `[DONE]` may be missing, and a chunk with usage may follow.
    """

    __slots__ = ("_expected", "_finished", "ending", "is_whole")

    def __init__(self, expected: int) -> None:
        """Nothing has been read yet; `expected` choices will come."""
        self._expected = expected
        self._finished: set[Any] = set()
        self.is_whole = False
        self.ending: Any = None

    def __call__(self, chunk: Any) -> ChunkInfo:
        """What `chunk` means for its stream."""
        choices = get(chunk, "choices") or ()
        for choice in choices:
            if get(choice, "finish_reason"):
                self._finished.add(str(get(choice, "index")))
        ends = not self.is_whole and len(self._finished) >= self._expected
        if ends:
            self.is_whole = True
            self.ending = chunk
        texts = [_text_of(choice) for choice in choices]
        return ChunkInfo(
            text="".join(texts),
            is_token=any(texts) or any(_Voice.is_in(choice) for choice in choices),
            is_end=ends,
        )


class ChunkReader:
    """Translates the chunks of one stream with one choice.

    Attributes:
        problem: What makes the stream no text, known when it is over.
    """

    __slots__ = ("_is_counted", "_is_over", "_voice")

    def __init__(self) -> None:
        """Nothing has been read yet."""
        self._is_counted = False
        self._is_over = False
        self._voice = _Voice()

    @property
    def problem(self) -> Problem | None:
        """What came instead of text: a refusal, the call of a tool, or nothing."""
        return self._voice.problem or (_FILTERED if self._voice.is_cut_out else None)

    def read(self, chunk: Any) -> GenerationChunk:
        """The chunk as LangChain has it; usage and ledger in `generation_info`."""
        choice = next(iter(get(chunk, "choices") or ()), None)
        info: dict[str, Any] = {}
        if choice is not None:
            info["finish_reason"] = get(choice, "finish_reason")
            info["logprobs"] = _logprobs_of(choice)
            if not isinstance(get(choice, "text"), str):
                self._voice.hear(get(choice, "delta"))
            self._voice.follow(choice)
        usage = plain(get(chunk, "usage"))
        self._is_over = self._is_over or _is_final(choice)
        # Once: LangChain adds up what chunks say, and some servers repeat the sum.
        if self._is_over and not self._is_counted and has_count(usage):
            self._is_counted = True
            info["token_usage"] = usage
        if attempt_log := get(chunk, ATTEMPT_LOG):
            info[ATTEMPT_LOG] = attempt_log
        return GenerationChunk(
            text="" if choice is None else _text_of(choice),
            generation_info=info or None,
        )


def _logprobs_of(choice: Any) -> dict[str, Any] | None:
    """A chunk's part of the probabilities; None where it cannot be joined to others."""
    told = plain(get(choice, "logprobs"))
    if not isinstance(told, dict):
        return None
    return {name: some for name, some in told.items() if isinstance(some, list | None)}


def _is_final(choice: Any) -> bool:
    return choice is None or bool(get(choice, "finish_reason"))


def join(chunks: Iterable[GenerationChunk]) -> Answer:
    """The answer that the chunks of a whole stream add up to."""
    chunks = list(chunks)
    if not chunks:
        return Answer(problem=malformed("a stream without a chunk"))
    whole = functools.reduce(operator.add, chunks)
    info = whole.generation_info or {}
    choice = {
        "text": whole.text,
        "finish_reason": info.get("finish_reason"),
        "logprobs": info.get("logprobs"),
    }
    return Answer(
        choices=[choice],
        usage=counted(info.get("token_usage")),
        attempt_log=info.get(ATTEMPT_LOG) or {},
    )


_FILTERED: Final = Problem(
    FailureKind.CONTENT_FILTER, "a content filter let nothing of the answer through"
)


class _Voice:
    """Hears, in a chat message or its deltas, what is not text."""

    __slots__ = ("_called", "_has_spoken", "_is_filtered", "_refusal")

    def __init__(self, message: Any = None) -> None:
        self._refusal = ""
        self._called = ""
        self._has_spoken = False
        self._is_filtered = False
        self.hear(message)

    @staticmethod
    def is_in(choice: Any) -> bool:
        delta = get(choice, "delta")
        return any(
            get(delta, name) for name in ("refusal", "tool_calls", "function_call")
        )

    def hear(self, message: Any) -> None:
        if message is None:
            return
        # LiteLLM's proxy moves what is OpenAI's own, such as a refusal, out of the way.
        moved = get(message, "provider_specific_fields")
        said = get(message, "refusal") or get(moved, "refusal") or ""
        self._refusal += said if isinstance(said, str) else excerpt(said)
        told = get(message, "tool_calls")
        calls = told if isinstance(told, list | tuple) else ()
        functions = [get(call, "function") for call in calls]
        for function in [*functions, get(message, "function_call")]:
            self._called = self._called or get(function, "name") or ""

    def follow(self, choice: Any) -> None:
        self._has_spoken = self._has_spoken or bool(_text_of(choice))
        if get(choice, "finish_reason") == "content_filter":
            self._is_filtered = True

    @property
    def is_cut_out(self) -> bool:
        """Whether a filter ended the answer before its first word."""
        return self._is_filtered and not self._has_spoken

    @property
    def problem(self) -> Problem | None:
        if self._refusal:
            return Problem(
                FailureKind.CONTENT_FILTER, f"the model refused: {self._refusal}"
            )
        if self._called:
            return Problem(
                FailureKind.INVALID_REQUEST,
                f"the model calls the tool {self._called!r} instead of saying anything,"
                " and an LLM returns nothing but text: use a chat model for tools",
            )
        return None
