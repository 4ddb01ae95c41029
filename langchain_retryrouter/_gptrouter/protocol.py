"""The gateway's protocol, in words: requests to dicts, dicts to answers and errors.

Pure: dicts and the `gptrouter` package's own types. This file does not know sockets,
retries, or LangChain's messages (those are `messages`' business). Sources: the protocol
as seen on the wire of the public gateway, and the payloads of the `gptrouter` package
for what newer gateways take. What goes out stands in `options`, and what an error means
in `failures`; both are handed on from here.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, cast

from gpt_router.models import (
    Choice,
    ChunkedGenerationResponse,
    ExtendedThinking,
    GenerationParams,
    GenerationResponse,
    ModelGenerationRequest,
    Usage,
    WebSearchOptions,
)
from langchain_core.messages import InvalidToolCall, ToolCall
from langchain_core.messages.ai import (
    InputTokenDetails,
    OutputTokenDetails,
    UsageMetadata,
)
from langchain_core.output_parsers.openai_tools import (
    make_invalid_tool_call,
    parse_tool_call,
)
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from langchain_retryrouter import _json
from langchain_retryrouter._gptrouter.errors import (
    GPT_ROUTER_ERRORS,
    GPT_ROUTER_STATUS_ERRORS,
    GPT_ROUTER_STREAM_ERRORS,
)
from langchain_retryrouter._retry.retry_after import ServerAdvice
from langchain_retryrouter._retry.streaming import ChunkInfo
from langchain_retryrouter.errors import RetryRouterError, UnsupportedOptionError
from langchain_retryrouter.failures import FailureKind, classify

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
        disabled_retries = {call.index for _, call in self._calls}
        if told is not None and told not in disabled_retries:
            return told
        return max(disabled_retries, default=-1) + 1


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


PROVIDER_OPTIONS: Final = frozenset(
    {
        # What the public gateway hands on to the provider.
        "messages",
        "prompt",
        "temperature",
        "top_p",
        "n",
        "stop",
        "max_tokens",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "user",
        "functions",
        "function_call",
        "response_format",
        "tools",
        # What newer gateways take besides, as the `gptrouter` package sends it.
        *GenerationParams.model_fields,
    }
)
"""Names in `promptParams` that some gateway is known to read."""


class GatewayThinking(ExtendedThinking):
    """The SDK's `ExtendedThinking` with what it would drop without a word."""

    model_config = ConfigDict(extra="allow")


class GatewaySearch(WebSearchOptions):
    """The SDK's `WebSearchOptions` with what it would drop without a word."""

    model_config = ConfigDict(extra="allow")


class GatewayParams(GenerationParams):
    """The SDK's `GenerationParams` with what it would drop without a word."""

    model_config = ConfigDict(extra="allow")

    stop: str | list[str] | None = None
    logit_bias: dict[str | int, float] | None = None
    function_call: Any = None
    thinking: GatewayThinking | None = None
    web_search_options: GatewaySearch | None = None


class GatewayRequest(ModelGenerationRequest):
    """The SDK's request, carrying `GatewayParams` whole."""

    prompt_params: GatewayParams = Field(default_factory=GatewayParams)


def check_options(names: Iterable[str]) -> None:
    """Refuse options that no gateway reads, by their names.

    Raises:
        UnsupportedOptionError: Naming them, and the way to send them all the same.
    """
    unknown = sorted(set(names) - PROVIDER_OPTIONS)
    if unknown:
        msg = (
            f"the gateway cannot carry {', '.join(map(repr, unknown))}: it would be"
            " lost without a word. To send it all the same, put it into `model_kwargs`."
        )
        raise UnsupportedOptionError(msg)


def build_params(options: Mapping[str, Any]) -> GatewayParams:
    """What the provider is asked, checked and in the gateway's form.

    Args:
        options: Values by name, the messages among them.

    Raises:
        UnsupportedOptionError: Naming the option, its value, and what it may be.
    """
    options = {
        name: value if name == "messages" else _plain(value)
        for name, value in _fit_function_call(options).items()
    }
    try:
        return GatewayParams(**options)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        told = [line["msg"] for line in error.errors() if line["loc"][0] == name]
        msg = f"`{name}` cannot be {_shown(options[name])}: {', or '.join(told)}"
        raise UnsupportedOptionError(msg) from error


def _fit_function_call(options: Mapping[str, Any]) -> dict[str, Any]:
    """`function_call` as an object: the public gateway answers 500 to a text.

    "auto" is what a provider does anyway, and "none" is said by offering no functions.
    """
    fitted = dict(options)
    call = fitted.get("function_call")
    if isinstance(call, str):
        del fitted["function_call"]
        if call == "none":
            fitted.pop("functions", None)
        elif call != "auto":
            fitted["function_call"] = {"name": call}
    return fitted


def _plain(value: Any) -> Any:
    """`value` without the SDK's types: members of enums and models as JSON has them."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(exclude_none=True))
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _shown(value: Any) -> str:
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = 200
    return shown.repr(value)


# Said by the public gateway in `error` events. Compared in lower case.
_KNOWN_TEXTS: Final = (
    (re.compile(r"^request timed out"), FailureKind.TIMEOUT),
    (re.compile(r"^connection error"), FailureKind.CONNECTION),
    (
        re.compile(r"^(premature close|read econnreset|terminated)"),
        FailureKind.INTERRUPTED,
    ),
    (
        re.compile(r"^(provider|model) with (name|id) .* does not exist"),
        FailureKind.NOT_FOUND,
    ),
    (re.compile(r"^no models available"), FailureKind.UNAVAILABLE),
    (re.compile(r'^\[\s*\{.*"path"', re.DOTALL), FailureKind.INVALID_REQUEST),
)
_LEADING_STATUS: Final = re.compile(r"^([1-5]\d\d)\b")
_NOT_ACCEPTABLE: Final = 406


def read_stream_error(event: Mapping[str, Any]) -> RetryRouterError:
    """The error that an `error` event reports, classed by what its message says."""
    message = event.get("message")
    if not isinstance(message, str):
        message = "the gateway reported an error without a message"
    status = _LEADING_STATUS.match(message)
    status_code = int(status[1]) if status else None
    kind = _by_known_text(message) or classify(status_code, None, message)
    return GPT_ROUTER_STREAM_ERRORS[kind](
        message, status_code=status_code, body=dict(event)
    )


def _by_known_text(message: str) -> FailureKind | None:
    lowered = message.lower()
    return next((kind for text, kind in _KNOWN_TEXTS if text.match(lowered)), None)


def read_status_error(
    status_code: int, body: bytes, advice: ServerAdvice, request_id: str | None
) -> RetryRouterError:
    """The error that an answer other than 200 stands for."""
    data = json_or_none(body)
    message = _told(data) or excerpt(body) or "no body"
    kind = classify(status_code, _code(data), message)
    if status_code == _NOT_ACCEPTABLE:
        # The SDK's own reading of a 406: no model of the list is available.
        kind = FailureKind.UNAVAILABLE
    cls = GPT_ROUTER_STATUS_ERRORS.get((status_code, kind), GPT_ROUTER_ERRORS[kind])
    return cls(
        f"{status_code}: {message}",
        status_code=status_code,
        retry_after=advice.retry_after,
        should_retry=advice.should_retry,
        request_id=request_id,
        code=_code(data),
        body=data if data is not None else excerpt(body),
    )


_UNKNOWN_NAME: Final = re.compile(
    r"^(?:[1-5]\d\d:? )?"  # The status of an answer leads its message.
    r"(?:provider|model) with (?:name|id) (?P<name>.+) does not exist",
    re.IGNORECASE,
)


def unknown_name(error: RetryRouterError) -> str | None:
    """The model or provider that the gateway says it does not know; None if neither."""
    told = _UNKNOWN_NAME.match(error.message)
    return told["name"] if told else None


def is_opaque(error: RetryRouterError) -> bool:
    """Whether the gateway hid the cause, which it would have told a stream."""
    return error.status_code == 500 and error.body == {"error": "Something went wrong"}  # noqa: PLR2004


def _told(data: Any) -> str:
    if not isinstance(data, dict):
        return ""
    nested = data.get("error")
    told = data.get("message") or (
        nested.get("message") if isinstance(nested, dict) else nested
    )
    return told if isinstance(told, str) else ""


def _code(data: Any) -> str | None:
    nested = data.get("error") if isinstance(data, dict) else None
    code = nested.get("code") if isinstance(nested, dict) else None
    return code if isinstance(code, str) else None


def json_or_none(body: bytes) -> Any:
    """What `body` says; None if it is no JSON."""
    try:
        return _json.read_quickly(body)
    except ValueError:
        return None


def excerpt(body: bytes, length: int = 200) -> str:
    """How `body` begins, as text."""
    text = body[: 4 * length].decode("utf-8", "replace").strip()
    return text if len(text) <= length else f"{text[:length]}…"


_SAID: Final = ("tool_calls", "function_call")
_BESIDE: Final = (("provider", str), ("id", str), ("citations", list))
_REASONING: Final = ("reasoning_content", "reasoning", "thinking")


# What stands beside an answer, which was paid for: where it is odd, it is left out.
_BESIDE_A_CHOICE: Final = {"index": int, "role": str, "citations": list}
_BESIDE_AN_ANSWER: Final = {
    "id": str,
    "model": str,
    "providerId": str,
    "provider_id": str,
    "modelId": str,
    "model_id": str,
    "citations": list,
}


def _without_odd(data: dict[str, Any], forms: Mapping[str, type]) -> dict[str, Any]:
    """`data` without its nulls, and without what has not the form that it must have."""
    return {
        name: value
        for name, value in data.items()
        if value is not None and (name not in forms or isinstance(value, forms[name]))
    }


def _unless_none() -> Any:
    """A field that the SDK's type does not have, and that is not written if unset."""
    return Field(default=None, exclude_if=lambda value: value is None)


class GatewayChoice(Choice):
    """The SDK's `Choice`, tolerant of the nulls that gateways send in a paid answer.

    Attributes:
        tool_calls: In OpenAI's form; None from a gateway that drops them unstreamed.
        reasoning_content: What the model thought before it said `text`.
    """

    index: int = 0
    text: str = ""
    finish_reason: str | None = None  # type: ignore[assignment]
    function_call: dict[str, Any] | None = None
    tool_calls: list[dict[str, Any]] | None = _unless_none()
    reasoning_content: str | None = _unless_none()

    @model_validator(mode="before")
    @classmethod
    def _look_into_the_message(cls, data: Any) -> Any:
        """OpenAI has what was said in `message`, and a gateway may hand that on."""
        if not isinstance(data, dict):
            return data
        told = _without_odd(data, _BESIDE_A_CHOICE)
        reasoning = read_reasoning(data)
        message = data.get("message")
        if isinstance(message, dict):
            said = {key: message[key] for key in _SAID if message.get(key) is not None}
            if isinstance(text := message.get("content"), str):
                said["text"] = text
            told = {**said, **told}
            reasoning = reasoning or read_reasoning(message)
        return {**told, "reasoning_content": reasoning}

    @field_validator("tool_calls", mode="before")
    @classmethod
    def _check_calls(cls, value: Any) -> Any:
        if not are_calls(value):
            msg = "no list of tool calls"
            raise ValueError(msg)
        return value

    @field_validator("function_call", mode="before")
    @classmethod
    def _check_function_call(cls, value: Any) -> Any:
        if not is_function_call(value):
            msg = "no call of a function"
            raise ValueError(msg)
        return value


class GatewayUsage(Usage):
    """The SDK's `Usage` with the details that it would drop."""

    model_config = ConfigDict(extra="allow")


class GatewayResponse(GenerationResponse):
    """The SDK's `GenerationResponse` with the call's ledger.

    Attributes:
        retryrouter: The attempts that the answer took.
    """

    id: str = ""
    model: str = ""
    choices: list[GatewayChoice]  # type: ignore[assignment]
    meta: GatewayUsage | None = None
    citations: list[Any] | None = None
    retryrouter: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_is_odd(cls, data: Any) -> Any:
        return _without_odd(data, _BESIDE_AN_ANSWER) if isinstance(data, dict) else data

    @field_validator("meta", mode="before")
    @classmethod
    def _odd_usage_is_none(cls, value: Any) -> Any:
        # What is there already is no JSON, and is what it should be.
        return value if isinstance(value, Usage) else clean_usage(value) or None


class GatewayEvent(ChunkedGenerationResponse):
    """The SDK's event; on the `end` event also the call's ledger.

    Attributes:
        id: The provider's id of the answer.
        citations: The sources of the answer, where they are told beside `data`.
        retryrouter: The attempts that the answer took.
    """

    id: str | None = None
    citations: list[Any] | None = None
    retryrouter: dict[str, Any] | None = None


# --- what comes back ----------------------------------------------------------------


def read_json(body: bytes, status_code: int) -> dict[str, Any]:
    """The JSON object in the body of a 2xx answer.

    Raises:
        GPTRouterMalformedResponseError: If there is none.
    """
    try:
        data = _json.read_quickly(body)
    except ValueError as error:
        what = f"is not JSON: {excerpt(body)!r}" if body.strip() else "has no body"
        msg = f"the gateway's answer {what}"
        raise _malformed(msg, status_code) from error
    if not isinstance(data, dict):
        msg = f"the gateway's answer is no JSON object: {excerpt(body)!r}"
        raise _malformed(msg, status_code)
    return data


def read_response(data: Mapping[str, Any]) -> GatewayResponse:
    """The answer in a gateway's JSON.

    Raises:
        GPTRouterMalformedResponseError: If it is not of the protocol.
    """
    try:
        response = GatewayResponse.model_validate(data)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        msg = f"the gateway's answer is not of its protocol (at {where!r})"
        raise _malformed(msg, 200) from error
    if not response.choices:
        msg = "the gateway's answer has no choices"
        raise _malformed(msg, 200)
    return response


def read_event(data: bytes) -> GatewayEvent:
    """One JSON event of a stream.

    Raises:
        RetryRouterError: The error that an `error` event reports, or a
            `GPTRouterStreamMalformedResponseError` if it is not of the protocol.
    """
    event = json_or_none(data)
    kind = event.get("event") if isinstance(event, dict) else None
    if not isinstance(kind, str):
        msg = f"an event of the stream is not of the protocol: {excerpt(data)!r}"
        raise GPT_ROUTER_STREAM_ERRORS[FailureKind.MALFORMED](msg)
    kind = kind.lower()
    if kind == "error":
        raise read_stream_error(event)
    content = event.get("data")
    if kind == "update" and not _is_update(content):
        msg = f"an update of the stream is not of the protocol: {excerpt(data)!r}"
        raise GPT_ROUTER_STREAM_ERRORS[FailureKind.MALFORMED](msg)
    beside: dict[str, Any] = {
        name: told
        for name, form in _BESIDE
        if isinstance(told := event.get(name), form)
    }
    # The data of `end` is the string "end", which the SDK's type cannot hold.
    held = content if isinstance(content, dict) else {}
    return GatewayEvent(event=kind, data=held, **beside)


def read_reasoning(data: Mapping[str, Any]) -> str | None:
    """The model's reasoning in a choice or an update, under the name it goes by."""
    for name in _REASONING:
        text = data.get(name)
        if text and isinstance(text, str):
            return text
    return None


def _is_update(content: Any) -> bool:
    """Whether what is read of an update is what it should be; its other keys may be."""
    if not isinstance(content, dict):
        return False
    return (
        _is_text(content.get("text"))
        and _is_text(content.get("finish_reason"))
        and are_calls(content.get("tool_calls"))
        and is_function_call(content.get("function_call"))
    )


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


class EndReader:
    """Tells whether the `end` of one stream is the end of an answer.

    `end` alone does not make an answer whole: a provider whose stream was cut cleanly
    leaves a normal `end`, and as its only trace that no update had a finish reason.
    Completion models' updates have no `finish_reason` key at all.
    """

    __slots__ = ("is_finished",)

    def __init__(self) -> None:
        """At the start of a stream."""
        self.is_finished = False

    def see(self, event: ChunkedGenerationResponse) -> None:
        """Take note of an update: of its finish reason, if it has one."""
        data = event.data
        if "finish_reason" not in data or data["finish_reason"] is not None:
            self.is_finished = True


class EventReader:
    """Tells, for the events of one stream, which is a token and which the end.

    Calls and reasoning are tokens as text is, since they are handed to the caller too;
    only the text is what an interrupted stream is said to have delivered.
    """

    __slots__ = ("_end",)

    def __init__(self) -> None:
        """At the start of a stream."""
        self._end = EndReader()

    def __call__(self, event: ChunkedGenerationResponse) -> ChunkInfo:
        """What `event` means."""
        if event.event == "update":
            self._end.see(event)
            data = event.data
            text = data.get("text")
            if text:
                return ChunkInfo(text, is_token=True)
            is_token = bool(
                data.get("tool_calls")
                or data.get("function_call")
                or read_reasoning(data)
            )
            return ChunkInfo(is_token=is_token)
        if event.event == "end":
            return ChunkInfo(is_end=self._end.is_finished, is_last=True)
        return ChunkInfo()


def _malformed(message: str, status_code: int) -> RetryRouterError:
    return GPT_ROUTER_ERRORS[FailureKind.MALFORMED](message, status_code=status_code)
